"""Volumes in which a patient has one lesion at a random place: no voxel differs between groups, one filter tells."""

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from bids_dl import config, splits, training, zoo
from bids_dl.records import Block, Cohort, Target


def cohort(n=120, size=24, *, edge=5, step=1, brighter=2.5, seed=0, scattered="controls"):
    """Noise; a cube of a patient's voxels is brighter, and as many scattered voxels of a control's.

    Where ``scattered`` is "all", patients have scattered voxels too, and the same mean: only the cube tells them.

    Returns the cohort and, for each participant, the lesion's first corner (a control's is -1).
    """
    generator = np.random.default_rng(seed)
    y = generator.permutation(np.arange(n) % 2).astype(float)
    values = generator.normal(size=(n, size, size, size)).astype(np.float32)
    corners = np.full((n, 3), -1)
    for row, ill in enumerate(y):
        if ill:
            corners[row] = step * generator.integers(0, (size - edge) // step + 1, 3)
            values[row][tuple(slice(c, c + edge) for c in corners[row])] += brighter
            values[row] -= brighter * edge**3 / size**3 if scattered == "all" else 0
        if not ill or scattered == "all":
            values[row].reshape(-1)[generator.choice(size**3, edge**3, replace=False)] += brighter
    people = pd.DataFrame({"participant_id": [f"sub-{i:03d}" for i in range(n)]})
    return Cohort(people, {"volume": Block(values, ())}, Target("target", y, ("control", "patient"))), corners


def fit(model, data, options=None, **wishes):
    """Train one member with the model's own schedule on three quarters."""
    ids = data.participants["participant_id"].tolist()
    split = splits.make(data.target, ids, config.Splits(n_folds=4), seed=0)[0]
    definition = training.define(model, [data.features["volume"].shape], 1, options or {})
    schedule = zoo.constant("models", model, "SCHEDULE") or {}
    settings = training.Settings(**{**schedule, "n_members": 1, "device": "cpu", **wishes})
    return training.train(definition, data, split, ["volume"], settings)


def held_out_auc(model, data, options=None, **wishes):
    """Area under the curve of the quarter that was held out."""
    fitted = fit(model, data, options, **wishes)
    scores = training.predict(fitted, data, fitted.split.test)[:, 1]
    return roc_auc_score(data.target.values[fitted.split.test], scores)
