"""permutations.py BIDS_DIR: the MLP's five folds once, and once more under 200 permuted labellings, in one run.

BIDS_DIR holds regional series (``*_timeseries.tsv``) and a participants.tsv with the target. Prints seconds, their ratio, and
the p-value that the null distribution gives the AUC.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import mlp_against_ml4fmri as mlp
import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, train_test_split

from bids_dl import cohort, config, fits, nulls, training
from bids_dl.records import Block, Cohort, Split
from bids_dl.settings import settings_for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("--target", default="diagnosis")
    parser.add_argument("--permutations", type=int, default=200)
    parser.add_argument("--participants", type=int)
    options = parser.parse_args()
    ids, series, y = mlp.read(options.bids_dir, options.target, options.participants)
    people = pd.DataFrame({"participant_id": ids})
    target = cohort.make_target("target", [str(v) for v in y], kind="classification")
    table = Cohort(people, {"connectivity": Block(mlp.edges(series), ("edge",))}, target)
    definition = training.define("mlp", [table.features["connectivity"].shape], 1, {})
    settings = settings_for(definition, config.Config("", "", "group"))
    parts = list(made(y))
    once, aucs = timed(lambda split: observed(definition, table, split, settings, y), parts)
    folds = np.zeros(len(ids), int)
    for number, part in enumerate(parts):
        folds[part.test] = number
    targets = [fits.permuted(target, folds, 1 + number) for number in range(options.permutations)]
    many, null = timed(lambda split: permuted(definition, table, split, settings, targets), parts)
    reached = np.mean(null, axis=0)
    p = (1 + (reached >= np.mean(aucs)).sum()) / (1 + len(reached))
    print(f"one run: AUC {np.mean(aucs):.3f}, {once:.1f} s")
    print(
        f"{len(targets)} permutations: mean AUC {reached.mean():.3f} (SD {reached.std():.3f}), {many:.1f} s, p = {p:.4f}"
    )
    print(f"time ratio {many / once:.1f}")


def made(y: np.ndarray):
    for number, (train, test) in enumerate(StratifiedKFold(5, shuffle=True, random_state=0).split(y, y)):
        fit, validation = train_test_split(train, test_size=0.2, stratify=y[train], random_state=number)
        yield Split(np.sort(fit), np.sort(validation), test, f"fold-{number}")


def timed(work, parts):
    started = time.perf_counter()
    found = [work(split) for split in parts]
    return time.perf_counter() - started, found


def observed(definition, table, split, settings, y) -> float:
    fitted = training.train(definition, table, split, ["connectivity"], settings)
    return roc_auc_score(y[split.test], training.predict(fitted, table, split.test)[:, 1])


def permuted(definition, table, split, settings, targets) -> list[float]:
    scores = nulls.null_scores(definition, table, split, ["connectivity"], settings, targets)
    return [roc_auc_score(t.values[split.test], s[:, 1]) for t, s in zip(targets, scores, strict=True)]


if __name__ == "__main__":
    main()
