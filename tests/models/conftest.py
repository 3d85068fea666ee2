"""Planted problems that several models share: what they can tell and a linear model on the usual feature cannot."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from bids_dl import training
from bids_dl.records import Block, Cohort, Split, Target

N = 360
SPLIT = Split(np.arange(0, 160), np.arange(160, 200), np.arange(200, N), "one")


def padded(sequences):
    found = np.full((len(sequences), max(map(len, sequences)), sequences[0].shape[1]), np.nan, np.float32)
    for row, one in zip(found, sequences, strict=True):
        row[: len(one)] = one
    return found


def edges_of(series):
    first, second = np.triu_indices(series.shape[2], 1)
    return np.stack([np.corrcoef(one[~np.isnan(one).all(axis=1)].T)[first, second] for one in series])


def auc_of(model, block, y, options=None, **wishes):
    """Train on one split and return the AUC of the held-out participants."""
    people = pd.DataFrame({"participant_id": [f"sub-{i:03d}" for i in range(len(y))]})
    data = Cohort(people, {"input": block}, Target("target", y, ("control", "patient")))
    definition = training.define(model, [block.shape], 1, options or {})
    settings = training.Settings(**{"n_epochs": 30, "learning_rate": 5e-3, "device": "cpu", **wishes})
    fitted = training.train(definition, data, SPLIT, ["input"], settings)
    return roc_auc_score(y[SPLIT.test], training.predict(fitted, data, SPLIT.test)[:, 1])


@pytest.fixture(scope="session")
def held_out_auc():
    return auc_of


@pytest.fixture(scope="session")
def ordered_states():
    """Three states that follow one another in a circle, and in the other direction in patients; lengths differ.

    Each patient's series is drawn like a control's and turned round in time: every connectivity has the same law.
    """
    generator = np.random.default_rng(0)
    y = np.arange(N) % 2.0
    patterns = np.linalg.qr(generator.normal(size=(8, 3)))[0].T * 3  # (state, roi)
    series = []
    for label in y:
        state = (np.arange(generator.integers(24, 33)) // 3 + generator.integers(3)) % 3
        one = patterns[state] + generator.normal(size=(len(state), 8))
        series.append((one - one.mean(axis=0)) / one.std(axis=0))
        series[-1] = series[-1][::-1] if label else series[-1]
    return padded(series), y


@pytest.fixture(scope="session")
def two_halves():
    """One state in the first half and another in the second, in patients the other way round; lengths differ."""
    generator = np.random.default_rng(0)
    y = np.arange(N) % 2.0
    patterns = np.linalg.qr(generator.normal(size=(8, 2)))[0].T * 3  # (state, roi)
    series = []
    for label in y:
        n = generator.integers(24, 33)
        one = patterns[np.minimum(np.arange(n) // (n // 2), 1)] + generator.normal(size=(n, 8))
        series.append((one - one.mean(axis=0)) / one.std(axis=0))
        series[-1] = series[-1][::-1] if label else series[-1]
    return padded(series), y


@pytest.fixture(scope="session")
def leading_region():
    """Region 1 follows region 0 a step later, in patients region 0 follows region 1; lengths differ."""
    generator = np.random.default_rng(0)
    y = np.arange(N) % 2.0
    series = []
    for label in y:
        one = generator.normal(size=(generator.integers(24, 33), 4))
        one[1:, 1] = one[:-1, 0] + 0.3 * one[1:, 1]
        one = one[::-1] if label else one
        series.append((one - one.mean(axis=0)) / one.std(axis=0))
    return padded(series), y


@pytest.fixture(scope="session")
def linear_auc(held_out_auc):
    """The AUC of a linear model on the connectivity of the same series."""

    def auc(series, y):
        return held_out_auc("linear", Block(edges_of(series).astype(np.float32), ("edge",)), y, {"n_penalties": 3})

    return auc


MIXTURE = (
    (torch.tensor([-1.0, 0.0]), torch.tensor([[1.0, 0.0], [0.8, 0.4]])),
    (torch.tensor([1.0, 0.6]), torch.tensor([[0.5, 0.0], [-0.3, 0.9]])),
)
"""Mean and square root of the covariance of two Gaussian classes."""


@pytest.fixture(scope="session")
def reproduced():
    """Train a generative model on a mixture; how far its classes' means and covariances lie from the true ones."""

    def distances(model, options, learning_rate, n_steps):
        torch.manual_seed(0)
        y = torch.arange(1000) % 2
        x = torch.stack([MIXTURE[label][0] + MIXTURE[label][1] @ torch.randn(2) for label in y])
        mean, scale = x.mean(dim=0), x.std(dim=0)
        module = training.instantiate(training.define(model, [(2,)], 1, options)).train()
        module.begin(lambda at: ((x[at] - mean) / scale,), len(x))
        optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate)
        binary = torch.nn.functional.binary_cross_entropy_with_logits
        for _ in range(n_steps):
            at = torch.randint(1000, (256,))
            optimizer.zero_grad()
            module.loss(((x[at] - mean) / scale,), y[at].float(), lambda out, t: binary(out[:, 0], t)).backward()
            optimizer.step()
        found = []
        for label, (centre, root) in enumerate(MIXTURE):
            drawn = module.synthesise(4000, label, torch.Generator().manual_seed(1)) * scale + mean
            off = torch.cov(drawn.T) - root @ root.T
            found.append((float((drawn.mean(dim=0) - centre).abs().max()), float(off.abs().max())))
        return np.max(found, axis=0)

    return distances
