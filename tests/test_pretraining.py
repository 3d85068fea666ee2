"""Hidden values are learned from everybody's features; what a few labels then teach goes further."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from bids_dl import config, nulls, pretraining, splits, training, zoo
from bids_dl.errors import UsageError
from bids_dl.layers import Network
from bids_dl.records import Block, Cohort, Split, Target
from bids_dl.settings import Settings

N_LABELLED, N_TEST = 40, 300


def latent(seed, n_unlabelled=600, n_values=120, n_sources=4):
    """Few sources move all values, one of them the class; most participants have no label."""
    generator = np.random.default_rng(seed)
    n = N_LABELLED + N_TEST + n_unlabelled
    sources = generator.normal(size=(n, n_sources))
    values = sources @ generator.normal(size=(n_sources, n_values)) / np.sqrt(n_sources)
    values += 1.5 * generator.normal(size=values.shape)
    y = (sources[:, 0] + 0.5 * generator.normal(size=n) > 0).astype(float)
    y[N_LABELLED + N_TEST :] = np.nan
    people = pd.DataFrame({"participant_id": [f"sub-{k:04d}" for k in range(n)]})
    data = Cohort(people, {"x": Block(values.astype(np.float32), ("column",))}, Target("t", y, ("a", "b")))
    return data, Split(np.arange(30), np.arange(30, 40), np.arange(N_LABELLED, N_LABELLED + N_TEST), "one")


def fit(data, split, model="mlp", **wishes):
    schedule = zoo.constant("models", model, "SCHEDULE") or {}
    settings = Settings(**{**schedule, "n_members": 1, "device": "cpu", **wishes})
    definition = training.define(model, [data.features["x"].shape], 1, {})
    return training.train(definition, data, split, ["x"], settings)


def weights(fitted):
    return torch.cat([p.detach().flatten() for p in fitted.module.parameters()])


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(pretraining, "N_EPOCHS", 2)


@pytest.mark.slow
def test_few_labels_go_further_where_many_participants_have_none():
    found = {"none": [], "masked": []}
    for seed in range(4):
        data, split = latent(seed)
        truth = data.target.values[split.test]
        for pretrain, aucs in found.items():
            fitted = fit(data, split, seed=seed, pretrain=pretrain)
            aucs.append(roc_auc_score(truth, training.predict(fitted, data, split.test)[:, 1]))
    assert np.mean(found["masked"]) > np.mean(found["none"]) + 0.04


class Halves(Network):
    """Five units of ten values."""

    def __init__(self):
        super().__init__()
        self.first, self.head = torch.nn.Linear(10, 5), torch.nn.Linear(5, 1)

    def embed(self, x):
        return self.first(x)


def test_hidden_values_are_told_from_the_others():
    """Values come in pairs that are nearly equal: of a hidden one, the other says most."""
    torch.manual_seed(0)
    pairs = np.random.default_rng(0).normal(size=(400, 5)).repeat(2, axis=1)
    x = torch.tensor(pairs, dtype=torch.float32)
    options = {"batch_size": 16, "learning_rate": 1e-2, "seed": 0, "device": "cpu"}
    errors = pretraining.masked(Halves(), lambda at: (x[at],), len(x), **options)
    assert errors[0] > 0.9
    assert errors[-1] < 0.6  # of a hidden pair nothing is known: 0.3 of them


def test_whole_steps_are_hidden_and_padding_is_left():
    x = torch.randn(6, 20, 4)
    x[0, 15:] = torch.nan
    seen, hidden = pretraining._hide(x, np.random.default_rng(0))
    assert (hidden.all(dim=2) == hidden.any(dim=2)).all()
    assert 0.2 < hidden.float().mean() < 0.4
    assert torch.isnan(seen[0, 15:]).all()
    assert (seen[hidden] == 0).all()
    torch.testing.assert_close(seen[~hidden], x[~hidden], equal_nan=True)


def test_error_is_the_mean_over_hidden_values():
    x, found = torch.randn(3, 4, 2), torch.randn(3, 8)
    x[1, 3] = torch.nan
    _, hidden = pretraining._hide(x, np.random.default_rng(1))
    squares = [
        (found[i, 2 * t + r] - x[i, t, r]) ** 2 for i in range(3) for t in range(4) for r in range(2) if hidden[i, t, r]
    ]
    assert float(pretraining._error(found, x, hidden)) == pytest.approx(float(torch.stack(squares).mean()), rel=1e-5)


def changed(data, rows):
    values = data.features["x"].values.copy()
    values[rows] = np.random.default_rng(9).normal(5, 20, values[rows].shape)
    return replace(data, features={"x": replace(data.features["x"], values=values)})


def test_participants_without_a_target_take_part_and_those_tested_do_not(quick):
    data, split = latent(0, n_unlabelled=60)
    one = weights(fit(data, split, n_epochs=1, pretrain="masked"))
    tested = weights(fit(changed(data, split.test), split, n_epochs=1, pretrain="masked"))
    without = weights(fit(changed(data, np.arange(350, 400)), split, n_epochs=1, pretrain="masked"))
    torch.testing.assert_close(tested, one, atol=0, rtol=0)
    assert not torch.allclose(without, one)


def test_participants_without_a_target_teach_nothing_where_nobody_asked(quick):
    data, split = latent(0, n_unlabelled=60)
    one, other = (weights(fit(d, split, n_epochs=1)) for d in (data, changed(data, np.arange(350, 400))))
    torch.testing.assert_close(other, one, atol=0, rtol=0)


@pytest.mark.parametrize("model", ["gru", "transformer"])
def test_sequences_with_padding_are_pretrained(quick, model):
    series = np.random.default_rng(0).normal(size=(40, 12, 4)).astype(np.float32)
    series[::2, 9:] = np.nan
    y = np.where(np.arange(40) < 30, np.arange(40) % 2, np.nan)
    people = pd.DataFrame({"participant_id": [f"sub-{k:02d}" for k in range(40)]})
    data = Cohort(people, {"x": Block(series, ("time", "roi"))}, Target("t", y.astype(float), ("a", "b")))
    split = Split(np.arange(16), np.arange(16, 22), np.arange(22, 30), "one")
    one, other = (fit(data, split, model, n_epochs=1, pretrain=p) for p in ("masked", "none"))
    assert torch.isfinite(weights(one)).all()
    assert not torch.allclose(weights(one), weights(other))


def test_permuted_labels_are_trained_on_as_the_true_ones_are(quick):
    data, split = latent(0, n_unlabelled=40)
    settings = Settings(n_epochs=2, n_members=1, device="cpu", pretrain="masked")
    definition = training.define("mlp", [data.features["x"].shape], 1, {})
    null = nulls.null_scores(definition, data, split, ["x"], settings, [data.target])[0]
    fitted = training.train(definition, data, split, ["x"], settings)
    np.testing.assert_allclose(null, training.predict(fitted, data, split.test), atol=1e-6)


def test_volumes_are_trained_as_they_are(quick):
    values = np.random.default_rng(0).normal(size=(24, 8, 8, 8)).astype(np.float32)
    people = pd.DataFrame({"participant_id": [f"sub-{k:02d}" for k in range(24)]})
    data = Cohort(people, {"x": Block(values, ())}, Target("t", np.arange(24) % 2.0, ("a", "b")))
    split = splits.make(data.target, list(people["participant_id"]), config.Splits(n_folds=3), seed=0)[0]
    one, other = (weights(fit(data, split, "cnn3d", n_epochs=1, pretrain=p)) for p in ("masked", "none"))
    torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_unknown_pretraining_is_refused():
    given = {"bids_dir": "", "output_dir": "", "analysis_level": "group", "training": {"pretrain": "mask"}}
    with pytest.raises(UsageError, match=r"'training.pretrain' is 'mask'; .*masked"):
        config.from_mapping(given)


def test_parts_that_would_keep_random_weights_are_refused():
    given = {"bids_dir": "", "output_dir": "", "analysis_level": "group", "training": {"frozen": ["first"]}}
    with pytest.raises(UsageError, match="'training.frozen' keeps the weights of a bundle, and none is named"):
        config.from_mapping(given)
