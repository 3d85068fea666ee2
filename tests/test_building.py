from dataclasses import replace

import numpy as np
import pytest
import torch
from trained import THREE, cohort, split_of, train

from bids_dl import building, bundle, nulls, training
from bids_dl.errors import MissingInputError, UsageError
from bids_dl.records import Block
from bids_dl.settings import Settings


def test_definition_outside_of_the_package_is_refused():
    for target in ("os.system", "bids_dlevil.build", "subprocess.run"):
        with pytest.raises(UsageError, match=f"names '{target}', which is not part of bids_dl"):
            building.instantiate({"_target_": target, "command": "true"})


@pytest.mark.parametrize("target", ["bids_dl.engine.call", "bids_dl.derivatives.remove", "bids_dl.cli.main"])
def test_definition_of_something_that_is_no_model_is_refused(target):
    """A bundle is data: ``engine.call`` would import and run anything that it names."""
    with pytest.raises(UsageError, match=target):
        building.instantiate({"_target_": target, "step": "os:getcwd", "arguments": "{}", "stamp": "", "upstream": []})


@pytest.fixture
def started(tmp_path):
    """A bundle of an ensemble, trained on one cohort."""
    data = cohort(effect=0.5)
    fitted = train("mlp", "columns", data, split_of(data))
    return bundle.save(fitted, tmp_path / "start", {"participants": []}), fitted


def test_training_starts_from_a_bundles_weights_member_by_member(started):
    folder, fitted = started
    data = cohort(effect=0.5, seed=7)
    tuned = train("mlp", "columns", data, split_of(data), n_epochs=0, start_from=str(folder))
    for one, other in zip(tuned.module.members, fitted.module.members, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_frozen_parts_keep_the_bundles_weights_and_the_others_learn(started):
    folder, fitted = started
    data = cohort(effect=-3.0, seed=7)
    tuned = train("mlp", "columns", data, split_of(data), n_epochs=8, start_from=str(folder), frozen=("first",))
    one, other = tuned.module.members[0], fitted.module.members[0]
    assert torch.equal(one.first.weight, other.first.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_frozen_parts_keep_their_running_means_and_variances(tmp_path):
    definition = training.define("sfcn", [(8, 8, 8)], 1, {"channels": [4, 4]})
    settings = Settings(n_epochs=2, n_members=1, device="cpu")
    data, other = cohort(effect=0.5), cohort(effect=0.5, seed=7)
    fitted = training.train(definition, data, split_of(data), ["volume"], settings)
    folder = bundle.save(fitted, tmp_path / "start", {"participants": []})
    name = next(n for n, part in fitted.module.named_children() if any("running_mean" in k for k in part.state_dict()))
    tuned = training.train(
        definition, other, split_of(other), ["volume"],
        replace(settings, start_from=str(folder), frozen=(name,), learning_rate=0.05, patience=99, n_epochs=4),
    )  # fmt: skip
    before, after = (one.module.get_submodule(name).state_dict() for one in (fitted, tuned))
    assert any(
        not torch.equal(a, b) for a, b in zip(fitted.module.parameters(), tuned.module.parameters(), strict=True)
    )
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_frozen_weights_are_not_made_sparse(tmp_path):
    definition = training.define("mlp", [(60,)], 1, {"hidden": [8, 4], "sparsity": 0.6})
    settings = Settings(n_epochs=4, n_members=1, device="cpu")
    data, other = cohort(effect=0.5), cohort(effect=0.5, seed=7)
    fitted = training.train(definition, data, split_of(data), ["edges"], replace(settings, n_epochs=1))
    folder = bundle.save(fitted, tmp_path / "start", {"participants": []})
    wishes = replace(settings, start_from=str(folder), frozen=("first",))
    tuned = training.train(definition, other, split_of(other), ["edges"], wishes)
    assert torch.equal(fitted.module.first.weight, tuned.module.first.weight)
    assert not torch.equal(fitted.module.rest[2].weight, tuned.module.rest[2].weight)


def test_what_cannot_be_frozen_is_refused(started):
    folder, _ = started
    data, other = cohort(THREE), cohort()
    with pytest.raises(UsageError, match="head of start has another size.*do not freeze it"):
        train("mlp", "columns", data, split_of(data), start_from=str(folder), frozen=("head",))
    with pytest.raises(UsageError, match="nothing is left to learn; leave out one of first, rest, head"):
        train("mlp", "columns", other, split_of(other), start_from=str(folder), frozen=("first", "rest", "head"))


def test_a_graph_is_that_of_the_edges_as_measured_in_the_new_participants(tmp_path):
    definition = training.define("gcn", [(66,)], 1, {})
    settings = Settings(n_epochs=1, n_members=1, device="cpu")
    found = []
    for k, more in enumerate(({}, {"start_from": str(tmp_path / "start")})):
        data = edges(shift=3.0 * k, spread=1.0 + k)
        fitted = training.train(definition, data, split_of(data), ["edges"], replace(settings, **more))
        bundle.save(fitted, tmp_path / "start", {"participants": []})
        x = training.inputs_of(fitted, data, split_of(data).train)[0]
        measured = fitted.module.connectome.measured(x)[:, *np.triu_indices(12, 1)]
        found.append((measured.numpy(), data.features["edges"].values[split_of(data).train]))
    for measured, given in found:
        np.testing.assert_allclose(measured, given, atol=1e-4)


def edges(*, shift, spread):
    data = cohort()
    values = shift + spread * np.random.default_rng(0).normal(size=(len(data.participants), 66)).astype(np.float32)
    return replace(data, features={**data.features, "edges": Block(values, ("edge",))})


@pytest.mark.parametrize("frozen", [(), ("first",)])
def test_permuted_labels_start_from_the_bundle_as_the_true_ones_do(tmp_path, frozen):
    data = cohort(effect=0.5)
    folder = bundle.save(train("mlp", "edges", data, split_of(data)), tmp_path / "start", {"participants": []})
    data = cohort(effect=0.5, seed=7)
    split = split_of(data)
    settings = Settings(n_epochs=3, n_members=2, device="cpu", start_from=str(folder), frozen=frozen)
    definition = training.define("mlp", [(60,)], 1, {"hidden": [8]})
    null = nulls.null_scores(definition, data, split, ["edges"], settings, [data.target])[0]
    fitted = training.train(definition, data, split, ["edges"], settings)
    np.testing.assert_allclose(null, training.predict(fitted, data, split.test), atol=1e-6)


def test_head_of_another_target_begins_anew(started):
    folder, fitted = started
    data = cohort(THREE, effect=0.5, seed=7)
    tuned = train("mlp", "columns", data, split_of(data), n_epochs=0, start_from=str(folder))
    assert torch.equal(tuned.module.members[0].first.weight, fitted.module.members[0].first.weight)
    assert tuned.module.members[0].head.out_features == 3


def test_bundle_of_other_features_and_unknown_parts_are_refused(started):
    folder, _ = started
    data = cohort()
    with pytest.raises(UsageError, match="'first.weight' of start does not fit"):
        train("mlp", "edges", data, split_of(data), start_from=str(folder))
    with pytest.raises(UsageError, match="the model has no part 'frist'; did you mean 'first'"):
        train("mlp", "columns", data, split_of(data), start_from=str(folder), frozen=("frist",))
    assert building.origin(folder) == "bids_dl.models.mlp.build"
    with pytest.raises(MissingInputError, match="is no bundle"):
        building.origin(folder / "models")


def test_what_a_model_begins_with_is_not_learned_anew_where_it_starts_from_a_bundle(tmp_path):
    definition = training.define("vae", [(60,)], 1, {"n_components": 4})
    settings = Settings(n_epochs=1, n_members=1, device="cpu")
    data = cohort(effect=0.5)
    fitted = training.train(definition, data, split_of(data), ["edges"], settings)
    folder = bundle.save(fitted, tmp_path / "start", {"participants": []})
    other = cohort(effect=0.5, seed=8)
    tuned = training.train(definition, other, split_of(other), ["edges"], replace(settings, start_from=str(folder)))
    before, after = fitted.module.state_dict(), tuned.module.state_dict()
    axes = [key for key in before if key.endswith("axes")]
    assert axes
    assert all(torch.equal(before[key], after[key]) for key in axes)
