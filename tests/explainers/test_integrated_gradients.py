import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from bids_dl import attributions, training
from bids_dl.explainers.integrated_gradients import Slopes, explain
from bids_dl.fusions.postfusion import fuse
from bids_dl.records import Block, Cohort, Split, Target
from bids_dl.settings import Settings

N, N_REGIONS = 80, 20
N_EDGES = N_REGIONS * (N_REGIONS - 1) // 2
PLANTED = np.random.default_rng(5).choice(N_EDGES, 12, replace=False)
SPLIT = Split(np.arange(0, 40), np.arange(40, 50), np.arange(50, 80), "one")
SETTINGS = Settings(n_epochs=15, n_members=2, learning_rate=3e-3, device="cpu")
TARGETS = {"two classes": ("control", "patient"), "three classes": ("a", "b", "c"), "quantity": ()}


def cohort(levels, effect=1.0):
    """Connectomes of which twelve edges follow the target, and columns of noise that some lack."""
    generator = np.random.default_rng(0)
    y = generator.permutation(np.arange(N) % len(levels)).astype(float) if levels else generator.normal(50, 10, N)
    edges = generator.normal(size=(N, N_EDGES))
    edges[:, PLANTED] += effect * ((y - y.mean()) / y.std())[:, None]
    columns = generator.normal(size=(N, 5)) + y[:, None] / y.std()
    columns[[55, 60]] = np.nan
    labels = tuple(f"region{i}" for i in range(N_REGIONS))
    features = {
        "edges": Block(edges.astype(np.float32), ("edge",), labels),
        "columns": Block(columns.astype(np.float32), ("column",), tuple("abcde")),
    }
    people = pd.DataFrame({"participant_id": [f"sub-{i:02d}" for i in range(N)]})
    return Cohort(people, features, Target("target", y, levels))


def trained(model, data, feature="edges"):
    definition = training.define(model, [data.features[feature].shape], data.target.n_outputs, {})
    return training.train(definition, data, SPLIT, [feature], SETTINGS)


def build(kind, data):
    if kind != "fusion":
        return trained(kind, data)
    return fuse([trained("mlp", data, f) for f in data.features], data, SPLIT, SETTINGS)


def output_at_the_training_mean(fitted, inputs, chosen):
    """An absent modality stays absent at the mean."""
    means = [torch.where(torch.isnan(x), x, torch.zeros_like(x)) for x in inputs]
    with torch.no_grad():
        return fitted.module(*means).gather(1, chosen[:, None])[:, 0].numpy()


@pytest.mark.parametrize("levels", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("kind", ["linear", "mlp", "fusion"])
def test_values_sum_to_the_output_less_that_of_the_training_mean(kind, levels):
    data = cohort(levels)
    fitted = build(kind, data)
    found = explain(fitted, data, SPLIT, n_steps=1 if kind == "linear" else 1500, max_participants=8)
    inputs = training.inputs_of(fitted, data, SPLIT.tested(8))
    with torch.no_grad():
        chosen = fitted.module(*inputs).argmax(dim=1)
    sums = sum(v.reshape(len(v), -1).sum(axis=1) for v in found.values.values())
    np.testing.assert_allclose(found.at_mean, output_at_the_training_mean(fitted, inputs, chosen), atol=1e-6)
    np.testing.assert_allclose(sums, found.outputs - found.at_mean, atol=1e-3)
    assert found.additive


@pytest.mark.parametrize("levels", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("kind", ["linear", "fusion"])
def test_shares_of_all_inputs_sum_to_1_whatever_class_is_predicted_and_who_lacks_an_input(kind, levels):
    """Classes, and people without an input, start from outputs of their own."""
    data = cohort(levels)
    found, _ = attributions.summarise([(build(kind, data), SPLIT)], data, "integrated_gradients", {"n_steps": 200})
    assert sum(one.share.sum() for one in found.values()) == pytest.approx(1, abs=2e-3)


def test_default_number_of_steps_is_near_enough():
    """Part of the output that the default leaves unexplained: under two per cent of its spread."""
    data = cohort(TARGETS["two classes"])
    fitted = build("fusion", data)
    few, many = (
        sum(v.sum(axis=1) for v in explain(fitted, data, SPLIT, **o).values.values()) for o in ({}, {"n_steps": 400})
    )
    assert np.abs(few - many).max() < 0.02 * np.ptp(many)


def test_linear_model_is_explained_by_weight_times_value():
    data = cohort(())
    fitted = trained("linear", data)
    x = training.inputs_of(fitted, data, SPLIT.test)[0].numpy()
    expected = x * fitted.module.head.weight.detach().numpy()
    np.testing.assert_allclose(explain(fitted, data, SPLIT).values["edges"], expected, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_batches_change_nothing(batch_size):
    data = cohort(TARGETS["two classes"])
    fitted = trained("mlp", data)
    one = explain(fitted, data, SPLIT, batch_size=batch_size).values["edges"]
    np.testing.assert_allclose(one, explain(fitted, data, SPLIT).values["edges"], atol=1e-5)


@pytest.mark.parametrize("levels", [TARGETS["two classes"], ()], ids=["two classes", "quantity"])
def test_planted_edges_have_the_largest_shares(levels):
    data = cohort(levels)
    found, additive = attributions.summarise([(trained("linear", data), SPLIT)], data, "integrated_gradients", {})
    planted = np.isin(np.arange(N_EDGES), PLANTED)
    assert additive
    assert roc_auc_score(planted, np.abs(found["edges"].share)) >= 0.9


@pytest.mark.parametrize("levels", [TARGETS["two classes"], ()], ids=["two classes", "quantity"])
@pytest.mark.parametrize("kind", ["linear", "mlp", "brainnetcnn"])
def test_slopes_of_planted_edges_have_the_direction_that_was_planted(kind, levels):
    """Means of attributions do not: half of them were negative, as half of the people lie below the mean."""
    data = cohort(levels)
    found, _ = attributions.summarise([(trained(kind, data), SPLIT)], data, "integrated_gradients", {})
    assert (found["edges"].slopes["slope"][PLANTED] > 0).mean() > 0.9


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_of_several_classes_each_has_a_direction_of_its_own(kind, tmp_path):
    """Planted edges rise from a to c; the scores of c rise with them, those of a fall."""
    data = cohort(TARGETS["three classes"])
    found, additive = attributions.summarise([(trained(kind, data), SPLIT)], data, "integrated_gradients", {})
    slopes = found["edges"].slopes
    assert list(slopes) == ["slope_a", "slope_b", "slope_c"]
    assert (slopes["slope_c"][PLANTED] > 0).mean() > 0.9
    assert (slopes["slope_a"][PLANTED] < 0).mean() > 0.9
    np.testing.assert_allclose(sum(slopes.values()), 0, atol=1e-6)  # above the mean of all
    edges, regions = attributions.write_group(found["edges"], data.features["edges"], tmp_path / "x", additive=additive)
    for path in (edges, regions):
        assert {"slope_a", "slope_b", "slope_c"} < set(pd.read_csv(path, sep="\t"))
        assert "the score of 'b', above the mean" in path.with_suffix(".json").read_text()


def test_slopes_of_a_linear_model_of_several_classes_are_its_weights():
    data = cohort(TARGETS["three classes"])
    fitted = trained("linear", data)
    found = explain(fitted, data, SPLIT).slopes["edges"]
    np.testing.assert_allclose(found, fitted.module.head.weight.detach(), atol=1e-5)


def test_one_participant_is_explained_for_the_predicted_class_alone():
    data = cohort(TARGETS["three classes"])
    fitted = trained("mlp", data)
    one, several = (explain(fitted, data, SPLIT, max_participants=n) for n in (1, 2))
    np.testing.assert_allclose(one.values["edges"][0], several.values["edges"][0], atol=1e-6)
    assert not one.slopes["edges"].any()


def test_splits_that_test_one_participant_have_shares_and_those_that_test_nobody_are_passed_over():
    data = cohort(())
    fitted = trained("linear", data)
    alone = [
        (fitted, Split(SPLIT.train, SPLIT.validation, rows, "x")) for rows in np.split(SPLIT.test, [0, 1, 2, 3, 4])
    ]
    found, _ = attributions.summarise(alone, data, "integrated_gradients", {})
    whole, _ = attributions.summarise([(fitted, SPLIT)], data, "integrated_gradients", {"max_participants": 100})
    np.testing.assert_allclose(found["edges"].share, whole["edges"].share, atol=1e-6)
    assert found["edges"].n == len(SPLIT.test)
    assert found["edges"].n_sloped == len(SPLIT.test) - 4


def slopes_of(inputs, weights, parts, *, steps=False):
    """Gather slopes of the attributions of linear models, some participants at a time."""
    made = Slopes(inputs.shape[1:], len(weights), steps=steps)
    for at in np.array_split(np.arange(len(inputs)), parts):
        made.add(inputs[at], np.stack([np.nan_to_num(w * inputs[at]) for w in weights]))
    return made.found


@pytest.mark.parametrize("parts", [1, 5])
def test_slopes_are_weights_whatever_the_mean_and_however_many_come_at_a_time(parts):
    generator = np.random.default_rng(0)
    weights, inputs = generator.normal(size=(2, 3)), generator.normal(2, 1, size=(20, 3))
    np.testing.assert_allclose(slopes_of(inputs, weights, parts), weights)
    inputs[:, 1] = 5.3
    np.testing.assert_allclose(slopes_of(inputs, weights, parts), weights * [1, 0, 1], atol=1e-9)


def test_slopes_of_attributions_are_those_of_least_squares():
    generator = np.random.default_rng(0)
    inputs, given = generator.normal(size=(20, 3)), generator.normal(size=(1, 20, 3))
    made = Slopes((3,), 1)
    made.add(inputs, given)
    expected = [np.polyfit(inputs[:, k], given[0, :, k], 1)[0] for k in range(3)]
    np.testing.assert_allclose(made.found[0], expected)


def test_slopes_of_a_sequence_are_over_the_steps_that_there_are():
    generator = np.random.default_rng(0)
    weights, inputs = generator.normal(size=(1, 3)), generator.normal(1, 1, size=(20, 5, 3))
    inputs[::2, 3:] = np.nan
    np.testing.assert_allclose(slopes_of(inputs, weights, 3, steps=True), weights)


def test_nothing_planted_leaves_the_shares_anywhere():
    data = cohort(TARGETS["two classes"], effect=0.0)
    found, _ = attributions.summarise([(trained("linear", data), SPLIT)], data, "integrated_gradients", {})
    planted = np.isin(np.arange(N_EDGES), PLANTED)
    assert 0.25 < roc_auc_score(planted, np.abs(found["edges"].share)) < 0.75
