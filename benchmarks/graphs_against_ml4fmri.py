"""graphs_against_ml4fmri.py BIDS_DIR: our graph models and ml4fmri's on the same participants and folds, one run.

BIDS_DIR holds regional series (``*_timeseries.tsv``) and a participants.tsv with the target. Ours are timed from the series
(correlations included) to the held-out predictions; so are theirs. The time of a graph model grows with the square of the
regions or more: ``--every 4`` takes every fourth region, ``--participants`` the first ones, ``--first 1`` the first fold. Seconds
are CPU time, which other work on the machine disturbs least: run it with OMP_NUM_THREADS=1. Needs `pip install ml4fmri`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
from mlp_against_ml4fmri import edges, read
from sequences_against_ml4fmri import FirstFolds
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, train_test_split

from bids_dl import cohort, config, training
from bids_dl.records import Block, Cohort, Split
from bids_dl.settings import settings_for

PAIRS = {"brainnetcnn": "BrainNetCNN", "brain_network_transformer": "BNT"}
ALONE = ("linear", "gcn", "gat")
"""Ours that have no counterpart there, beside the baseline."""


def main() -> None:
    options = arguments()
    ids, series, y = read(options.bids_dir, options.target, options.participants)
    series = [one[:, :: options.every] for one in series]
    table, seconds = laid_out(ids, series, y)
    print(
        f"{len(y)} participants, {series[0].shape[1]} regions; correlations took {seconds:.1f} s, counted to each model"
    )
    folds = list(StratifiedKFold(options.folds, shuffle=True, random_state=0).split(y, y))[: options.first]
    FirstFolds.n_run = options.first
    stacked = np.stack([one[: options.n_volumes] for one in series]).astype(np.float32)
    run_ours("mlp", table, folds[:1], 1, 0.0)  # what is imported at the first training is no model's time
    for name in options.models:
        ours = run_ours(name, table, folds, options.epochs, seconds)
        show(f"bids_dl {name}", *ours)
        if name in PAIRS:
            theirs = run_theirs(PAIRS[name], stacked, y, options.folds, options.epochs)
            show(f"ml4fmri {PAIRS[name]}", *theirs)
            difference = np.mean(ours[0]) - np.mean(theirs[0])
            print(f"  time ratio ours / theirs: {ours[1] / theirs[1]:.3f}; AUC difference: {difference:+.3f}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("--target", default="diagnosis")
    parser.add_argument("--n-volumes", type=int, default=124)
    parser.add_argument("--participants", type=int)
    parser.add_argument("--every", type=int, default=1, help="take every n-th region")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--first", type=int, default=5, help="run so many of the folds")
    parser.add_argument("--models", nargs="+", default=[*PAIRS, *ALONE], choices=[*PAIRS, *ALONE])
    parser.add_argument("--epochs", type=int, help="at most so many, for a short try of both")
    return parser.parse_args()


def show(name: str, aucs: list[float], seconds: float) -> None:
    print(f"{name}: AUC {np.mean(aucs):.3f} (folds {np.round(aucs, 3)}), {seconds:.1f} CPU s", flush=True)


def laid_out(ids: list[str], series: list[np.ndarray], y: np.ndarray) -> tuple[Cohort, float]:
    started = time.process_time()
    block = Block(edges(series), ("edge",), entities={"stat": "pearsoncorrelation"})
    target = cohort.make_target("target", [str(v) for v in y], kind="classification")
    table = Cohort(pd.DataFrame({"participant_id": ids}), {"connectivity": block}, target)
    return table, time.process_time() - started


def run_ours(name: str, table: Cohort, folds: list, n_epochs: int | None, seconds: float) -> tuple[list[float], float]:
    started, y = time.process_time(), table.target.values.astype(int)
    definition = training.define(name, [table.features["connectivity"].shape], 1, {})
    wishes = {"training": {"n_epochs": n_epochs}} if n_epochs else {}
    given = {"bids_dir": "", "output_dir": "", "analysis_level": "group", **wishes}
    settings = settings_for(definition, config.from_mapping(given))
    aucs = []
    for number, (train, test) in enumerate(folds):
        fit, validation = train_test_split(train, test_size=0.2, stratify=y[train], random_state=number)
        split = Split(np.sort(fit), np.sort(validation), test, f"fold-{number}")
        fitted = training.train(definition, table, split, ["connectivity"], settings)
        aucs.append(roc_auc_score(y[test], training.predict(fitted, table, test)[:, 1]))
    return aucs, time.process_time() - started + seconds


def run_theirs(
    name: str, series: np.ndarray, y: np.ndarray, n_folds: int, n_epochs: int | None
) -> tuple[list[float], float]:
    """Run their own cross-validation; with the same seed its folds are the same."""
    from ml4fmri import cvbench

    started, wishes = time.process_time(), {"epochs": n_epochs} if n_epochs else {}
    with mock.patch("ml4fmri.cvreport.StratifiedKFold", FirstFolds):
        report = cvbench(series, y, models=name, n_folds=n_folds, cv_seed=0, device="cpu", save_dir=False, **wishes)
    seconds = time.process_time() - started
    predictions = report.get_predictions_dataframe()
    return [roc_auc_score(f["y_true"], f["p_1"]) for _, f in predictions.groupby("fold")], seconds


if __name__ == "__main__":
    main()
