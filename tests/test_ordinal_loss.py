"""Thresholds between ordered levels, against the paper's formula and on a planted order."""

import numpy as np
import pandas as pd
import pytest
import torch

from bids_dl import bundle, ordinal, training
from bids_dl.fusions.postfusion import fuse
from bids_dl.records import Block, Cohort, Split, Target
from bids_dl.settings import Settings

RANKS = ("none", "mild", "moderate", "severe")
N = 90
SPLIT = Split(np.arange(40), np.arange(40, 60), np.arange(60, N), "one")


def textbook(score, place, biases):
    """Equation 4 of the paper, a participant and a threshold at a time, every threshold of the same importance."""
    total = 0.0
    for g, y in zip(score, place, strict=True):
        for k, bias in enumerate(biases):
            p = 1 / (1 + np.exp(-(g + bias)))
            total -= np.log(p) * (y > k) + np.log(1 - p) * (1 - (y > k))
    return total / len(score)


def test_loss_is_that_of_the_paper():
    generator = np.random.default_rng(0)
    score, place = generator.normal(size=20) * 3, generator.integers(0, 4, 20)
    biases = np.array([1.5, 0.2, -2.0])
    found = ordinal.coral(*(torch.tensor(a, dtype=torch.float64) for a in (score, place, biases)))
    assert float(found) == pytest.approx(textbook(score, place, biases))


def test_probabilities_fall_from_threshold_to_threshold_whatever_was_learned():
    score, biases = torch.linspace(-5, 5, 11), torch.tensor([-1.0, 2.0, 0.5])
    p = torch.sigmoid(ordinal.beyond(score, biases))
    assert (p.diff(dim=1) <= 0).all()
    places = ordinal.expected(score, biases)
    assert (places.diff() > 0).all()
    assert places.min() > 0
    assert places.max() < 3


def test_first_biases_alone_give_the_frequencies_of_the_levels():
    biases = ordinal.start(np.array([10, 0, 20, 10]))
    beyond = torch.sigmoid(ordinal.beyond(torch.zeros(1), biases))[0]
    torch.testing.assert_close(beyond, torch.tensor([0.75, 0.75, 0.25]))
    assert torch.isfinite(ordinal.start(np.array([0, 5, 0]))).all()


def cohort(*, shuffled=False, seed=0):
    """Levels are unequal steps of a quantity that a tenth of the edges know."""
    generator = np.random.default_rng(seed)
    hidden = generator.normal(size=N)
    place = np.digitize(hidden, [-0.2, 1.0, 1.3]).astype(float)
    values = generator.normal(size=(N, 200)).astype(np.float32)
    values[:, :20] += 1.2 * hidden[:, None].astype(np.float32)
    place = generator.permutation(place) if shuffled else place
    people = pd.DataFrame({"participant_id": [f"sub-{k:02d}" for k in range(N)]})
    return Cohort(people, {"edges": Block(values, ("edge",))}, Target("severity", place, ranks=RANKS))


def trained(data, **wishes):
    settings = Settings(n_epochs=40, n_members=2, learning_rate=1e-2, device="cpu", **wishes)
    return training.train(training.define("mlp", [(200,)], 1, {"hidden": [8]}), data, SPLIT, ["edges"], settings)


def rho(data, fitted):
    said = training.predict(fitted, data, SPLIT.test)[:, 0]
    return np.corrcoef(*(pd.Series(v).rank() for v in (said, data.target.values[SPLIT.test])))[0, 1]


def test_planted_order_is_found_and_a_shuffled_one_is_not():
    data = cohort()
    fitted = trained(data)
    assert isinstance(fitted.module, ordinal.Ordered)
    assert rho(data, fitted) > 0.8
    assert (np.diff(fitted.module.biases.sort(descending=True).values.numpy(), axis=1) < 0).all()
    chance = [rho(data, trained(data)) for data in (cohort(shuffled=True, seed=s) for s in range(3))]
    assert abs(np.mean(chance)) < 0.3


def test_output_is_the_members_mean_expected_place():
    data = cohort()
    fitted = trained(data)
    inputs = training.inputs_of(fitted, data, SPLIT.test)
    places = np.zeros(len(SPLIT.test))
    with torch.no_grad():
        for member, biases in zip(fitted.module.members, fitted.module.biases.numpy(), strict=True):
            score = member(*inputs)[:, 0].numpy()
            places += sum(1 / (1 + np.exp(-(score + b))) for b in biases) / len(fitted.module.members)
    raw = training.outputs(fitted, data, SPLIT.test)[:, 0]
    np.testing.assert_allclose(raw * fitted.target_scale + fitted.target_mean, places, atol=1e-5)


def test_calibration_is_learned_from_places_of_rows_that_were_held_out():
    fitted = trained(cohort())
    assert len(fitted.calibration.nonconformity) == len(SPLIT.pool)
    assert np.median(fitted.calibration.nonconformity) < 1


def test_bundle_keeps_the_thresholds(tmp_path):
    data = cohort()
    fitted = trained(data)
    again = bundle.load(bundle.save(fitted, tmp_path / "one", {}))
    rows = SPLIT.test
    np.testing.assert_array_equal(training.predict(again, data, rows), training.predict(fitted, data, rows))


def test_weights_of_a_bundle_can_be_trained_on(tmp_path):
    data = cohort()
    folder = bundle.save(trained(data), tmp_path / "one", {})
    assert rho(data, trained(data, start_from=str(folder))) > 0.8


@pytest.mark.parametrize("model", ["linear", "vae", "kernel"])
def test_models_without_a_loss_of_the_output_alone_regress_on_places(model):
    data = cohort()
    settings = Settings(n_epochs=2, device="cpu")
    fitted = training.train(training.define(model, [(200,)], 1, {}), data, SPLIT, ["edges"], settings)
    assert not isinstance(fitted.module, ordinal.Ordered)


def test_fusion_begins_with_the_expected_places():
    data = cohort()
    data.features["again"] = Block(data.features["edges"].values[:, :100], ("edge",))
    settings = Settings(n_epochs=1, n_members=2, learning_rate=1e-2, device="cpu")
    one = trained(data)
    other = training.train(training.define("mlp", [(100,)], 1, {"hidden": [8]}), data, SPLIT, ["again"], settings)
    fused = fuse([one, other], data, SPLIT, Settings(n_epochs=0, device="cpu"))
    raw = [training.outputs(m, data, SPLIT.test) for m in (one, other, fused)]
    known = [m.calibration for m in (one, other)]
    places = [
        c.slope * out + c.offset for c, out in zip(known, raw, strict=False)
    ]  # both were trained on the same people
    np.testing.assert_allclose(raw[2], (places[0] + places[1]) / 2, atol=1e-4)
