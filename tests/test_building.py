from dataclasses import replace

import pytest
import torch
from trained import THREE, cohort, split_of, train

from bids_dl import building, bundle, training
from bids_dl.errors import MissingInputError, UsageError
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
