"""What every file of fusions/ promises: many models become one, and nothing after it knows."""

import inspect

import numpy as np
import pandas as pd
import pytest
import torch

from bids_dl import attributions, bundle, metrics, training, zoo
from bids_dl.config import from_mapping
from bids_dl.errors import UsageError
from bids_dl.records import Block, Cohort, Split, Target
from bids_dl.settings import Settings

N = 36
SPLIT = Split(np.arange(0, 20), np.arange(20, 26), np.arange(26, 36), "one")
FUSIONS = zoo.names("fusions")
EXPLAINERS = attributions.able(zoo.names("explainers"), gradients=True, attention=False)
SETTINGS = Settings(n_epochs=3, n_members=1, learning_rate=1e-2, device="cpu")
TARGETS = {"two classes": ("control", "patient"), "three classes": ("a", "b", "c"), "quantity": ()}
LACKS_EDGES, LACKS_COLUMNS, LACKS_BOTH = 27, 28, 29


def cohort(levels):
    """Edges and columns; some test and training participants lack one of them, one lacks both."""
    generator = np.random.default_rng(0)
    y = generator.permutation(np.arange(N) % len(levels)) if levels else generator.normal(50, 10, N)
    edges, columns = (generator.normal(size=(N, k)).astype(np.float32) for k in (45, 6))
    edges[[2, LACKS_EDGES, LACKS_BOTH]] = np.nan
    columns[[3, 4, LACKS_COLUMNS, LACKS_BOTH]] = np.nan
    labels = tuple(f"region{i}" for i in range(10))
    features = {"edges": Block(edges, ("edge",), labels), "columns": Block(columns, ("column",), tuple("abcdef"))}
    people = pd.DataFrame({"participant_id": [f"sub-{i:02d}" for i in range(N)]})
    return Cohort(people, features, Target("target", y.astype(float), levels))


@pytest.fixture(scope="module")
def fused():
    """Each fusion of two perceptrons, once a target: members, their weights before, the fused model, the cohort."""
    found = {}

    def fuse(name, levels):
        if (name, levels) not in found:
            data = cohort(levels)
            members = [
                training.train(
                    training.define("mlp", [data.features[f].shape], data.target.n_outputs, {"hidden": [8]}),
                    data, SPLIT, [f], SETTINGS,
                )
                for f in data.features
            ]  # fmt: skip
            before = [{k: v.clone() for k, v in m.module.state_dict().items()} for m in members]
            found[name, levels] = members, before, zoo.load("fusions", name)(members, data, SPLIT, SETTINGS), data
        return found[name, levels]

    return fuse


every = pytest.mark.parametrize("name", FUSIONS)
every_target = pytest.mark.parametrize("levels", TARGETS.values(), ids=TARGETS)


@every
@every_target
def test_members_stay_as_they_are(name, levels, fused):
    members, before, _, _ = fused(name, levels)
    for member, weights in zip(members, before, strict=True):
        assert all(torch.equal(v, weights[k]) for k, v in member.module.state_dict().items())
        assert not member.module.training


@every
@every_target
def test_fused_model_is_one_fitted_model_of_all_inputs(name, levels, fused):
    members, _, model, data = fused(name, levels)
    assert model.inputs == tuple(i for m in members for i in m.inputs)
    assert (model.target_name, model.levels, model.split.name) == ("target", levels, "one")
    assert set(model.normalization) == set(model.inputs)
    assert training.predict(model, data, SPLIT.test).shape == (10, max(1, len(levels)))
    assert model.history


@every
@every_target
def test_participant_without_a_modality_is_predicted_and_one_without_any_is_not(name, levels, fused):
    _, _, model, data = fused(name, levels)
    scores = training.predict(model, data, np.array([LACKS_EDGES, LACKS_COLUMNS, LACKS_BOTH]))
    assert np.isfinite(scores[:2]).all()
    assert np.isnan(scores[2]).all()


@every
def test_prediction_does_not_depend_on_who_else_is_predicted(name, fused):
    _, _, model, data = fused(name, TARGETS["two classes"])
    alone = np.concatenate([training.predict(model, data, np.array([row])) for row in SPLIT.test])
    np.testing.assert_allclose(alone, training.predict(model, data, SPLIT.test), atol=1e-6)


@every
@every_target
def test_outputs_of_one_input_changed_are_those_of_the_whole_model(name, levels, fused):
    _, _, model, data = fused(name, levels)
    inputs = training.inputs_of(model, data, SPLIT.test)
    for position, x in enumerate(inputs):
        changed = torch.cat([x * factor for factor in (1, 0, -2)])
        many = [changed if p == position else one.repeat(3, 1) for p, one in enumerate(inputs)]
        with torch.no_grad():
            torch.testing.assert_close(model.module.varying(position, *inputs)(changed), model.module(*many))


@every
@every_target
def test_fused_model_goes_through_a_bundle(name, levels, fused, tmp_path):
    _, _, model, data = fused(name, levels)
    again = bundle.load(bundle.save(model, tmp_path / "fused", {}))
    np.testing.assert_allclose(
        training.predict(again, data, SPLIT.test), training.predict(model, data, SPLIT.test), atol=1e-6
    )


@every
@every_target
def test_fused_model_goes_through_metrics(name, levels, fused):
    _, _, model, data = fused(name, levels)
    scores = training.predict(model, data, SPLIT.test)
    known = np.isfinite(scores).all(axis=1)
    rows = SPLIT.test[known]
    given = metrics.Predictions(data.target.values[rows], scores[known], rows, np.zeros(len(rows), int), len(levels))
    assert all(np.isfinite(v).all() for v in metrics.score(given).values())


@every
@pytest.mark.parametrize("explainer", EXPLAINERS)
@every_target
def test_fused_model_goes_through_explainers_and_an_absent_input_has_no_share(name, explainer, levels, fused):
    _, _, model, data = fused(name, levels)
    found = zoo.load("explainers", explainer)(model, data, SPLIT)
    at = {participant: row for row, participant in enumerate(found.participant_ids)}
    assert not found.values["edges"][at[f"sub-{LACKS_EDGES}"]].any()
    assert not found.values["columns"][at[f"sub-{LACKS_COLUMNS}"]].any()
    assert found.values["columns"][at[f"sub-{LACKS_EDGES}"]].any()
    assert all(np.isfinite(v).all() for v in found.values.values())


@every
def test_options_are_the_keyword_only_arguments_and_unknown_ones_are_refused(name):
    parameters = inspect.signature(zoo.load("fusions", name)).parameters.values()
    assert zoo.options("fusions", name) == {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    given = {"bids_dir": "a", "output_dir": "b", "analysis_level": "group", "fusions": {name: {"strenght": 3}}}
    with pytest.raises(UsageError, match=f"fusions.{name} has no option 'strenght'"):
        from_mapping(given)
