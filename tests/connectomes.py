"""Connectomes in which no edge differs between classes, and what a model makes of them on held-out participants."""

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from bids_dl import training, zoo
from bids_dl.layers import Connectome
from bids_dl.records import Block, Cohort, Split, Target

SETTINGS = {"n_epochs": 40, "patience": 40, "learning_rate": 3e-3, "batch_size": 32}


def cohort(edges, y):
    people = pd.DataFrame({"participant_id": [f"sub-{i:03d}" for i in range(len(y))]})
    return Cohort(people, {"edges": Block(edges, ("edge",))}, Target("target", y.astype(float), ("a", "b")))


def held_out_auc(model, data, **options):
    n = len(data.target.values)
    split = Split(np.arange(0, n // 2), np.arange(n // 2, 3 * n // 5), np.arange(3 * n // 5, n), "one")
    definition = training.define(model, [data.features["edges"].shape], 1, options)
    asked = {**(zoo.constant("models", model, "SCHEDULE") or {}), **SETTINGS} if model != "linear" else {}
    fitted = training.train(definition, data, split, ["edges"], training.Settings(**asked, device="cpu"))
    return roc_auc_score(data.target.values[split.test], training.predict(fitted, data, split.test)[:, 1])


def moved(edges, order):
    """Give the regions another order: the edges of the matrix whose rows and columns are moved."""
    connectome = Connectome(edges.shape[1])
    matrix = connectome(edges)[:, order][:, :, order]
    return matrix[:, connectome.row, connectome.column]


def product_of_two_parts(n=400, n_regions=12, shift=1.0, seed=0):
    """Two sets of edges are both up or both down in one class, else one up and one down: no edge differs in its mean."""
    generator = np.random.default_rng(seed)
    first, second = generator.choice([-1, 1], (2, n))
    edges = generator.normal(size=(n, n_regions * (n_regions - 1) // 2)).astype(np.float32)
    row, column = np.triu_indices(n_regions, 1)
    edges[:, (row < 4) & (column < 4)] += shift * first[:, None]
    edges[:, (row >= 8) & (column >= 8)] += shift * second[:, None]
    return cohort(edges, first * second > 0)
