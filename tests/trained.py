"""A small cohort with features of every kind, and small models trained on it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from bids_dl import calibration, splits, training
from bids_dl import config as configuration
from bids_dl.records import Block, Cohort, Target
from bids_dl.settings import Settings

N = 40
SHAPES = {"edges": (60,), "columns": (5,), "volume": (8, 8, 8)}
TWO, THREE = ("control", "patient"), ("a", "b", "c")
SMALL = {
    "linear": {"n_penalties": 3},
    "mlp": {"hidden": [8]},
    "vae": {"hidden": [8]},
    "cnn3d": {"channels": [4], "width": 4},
}
CASES = [("linear", "edges"), ("linear", "columns"), ("mlp", "edges"), ("mlp", "columns"), ("cnn3d", "volume")]
TARGETS = {"two classes": TWO, "three classes": THREE, "quantity": ()}


def cohort(levels=TWO, *, effect=0.0, seed=0, n=N):
    """Features of every kind with an effect on a tenth of their values; the confounds know nothing."""
    generator = np.random.default_rng(seed)
    y = generator.permutation(np.arange(n) % len(levels)).astype(float) if levels else generator.normal(50, 10, n)
    z = (y - y.mean()) / y.std()
    features = {"confounds": Block(generator.normal(size=(n, 2)).astype(np.float32), ("column",))}
    for name, shape in SHAPES.items():
        values = generator.normal(size=(n, *shape)).astype(np.float32).reshape(n, -1)
        values[:, : max(1, values.shape[1] // 10)] += effect * z[:, None].astype(np.float32)
        features[name] = Block(values.reshape(n, *shape), {"edges": ("edge",), "columns": ("column",)}.get(name, ()))
    people = pd.DataFrame({"participant_id": [f"sub-{i:03d}" for i in range(n)]})
    return Cohort(people, features, Target("target", y, levels))


def split_of(data, seed=0, n_folds=4):
    ids = data.participants["participant_id"].tolist()
    return splits.make(data.target, ids, configuration.Splits(n_folds=n_folds), seed=seed)[0]


def train(model, feature, data, split, *, checkpoint=None, **wishes):
    definition = training.define(model, [data.features[feature].shape], data.target.n_outputs, SMALL[model])
    asked = {"n_epochs": 6, "n_members": 2, "learning_rate": 1e-2, "device": "cpu", "checkpoint": checkpoint}
    return training.train(definition, data, split, [feature], Settings(**{**asked, **wishes}))


def same(one, other):
    """Bit for bit: weights, normalisation, history with the chosen penalty, units of the target, calibration."""
    a, b = one.module.state_dict(), other.module.state_dict()
    weights = all(torch.equal(a[key], b[key]) for key in a)
    learned = [
        np.array_equal(x, y)
        for name in one.normalization
        for x, y in zip(vars(one.normalization[name]).values(), vars(other.normalization[name]).values(), strict=True)
        if x is not None
    ]
    history = pd.DataFrame(one.history).equals(pd.DataFrame(other.history))
    calibrated = [
        np.array_equal(x, y)
        for x, y in zip(vars(one.calibration).values(), vars(other.calibration).values(), strict=True)
    ]
    return weights and all(learned) and history and one.target_mean == other.target_mean and all(calibrated)


def as_trained(fitted, data, rows):
    """Probabilities before the temperature."""
    return calibration.scores(training.outputs(fitted, data, rows), len(fitted.levels), 0, 1)


def with_altered_test_rows(data, split):
    """Other values, other labels and other confounds for those who are tested."""
    features = {}
    for name, block in data.features.items():
        values = block.values.copy()
        values[split.test] = np.random.default_rng(9).normal(7, 30, values[split.test].shape)
        features[name] = replace(block, values=values)
    y = data.target.values.copy()
    y[split.test] = (y[split.test] + 1) % len(data.target.levels) if data.target.is_class else y[split.test] * 50
    return Cohort(data.participants, features, replace(data.target, values=y))


def absent(data, feature, rows):
    values = data.features[feature].values.copy()
    values[rows] = np.nan
    return replace(data, features={**data.features, feature: replace(data.features[feature], values=values)})
