"""mlp_against_ml4fmri.py BIDS_DIR: five folds of our MLP and of ml4fmri's meanMLP, same participants, same folds, one run.

BIDS_DIR holds regional series (``*_timeseries.tsv``) and a participants.tsv with the target. Ours is timed from the series
(correlations included) to the held-out predictions; so is theirs.
Seconds are CPU time, which other work on the machine disturbs least: run it with OMP_NUM_THREADS=1. Needs `pip install ml4fmri`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, train_test_split

from bids_dl import cohort, config, query, training
from bids_dl.records import Block, Cohort, Split
from bids_dl.settings import settings_for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("--target", default="diagnosis")
    parser.add_argument("--n-volumes", type=int, default=124)
    parser.add_argument("--participants", type=int)
    options = parser.parse_args()
    ids, series, y = read(options.bids_dir, options.target, options.participants)
    folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(y, y))
    ours = run_ours(ids, series, y, folds)
    theirs = run_theirs(np.stack([s[: options.n_volumes] for s in series]), y)
    for name, (auc, seconds) in {"bids_dl mlp": ours, "ml4fmri meanMLP": theirs}.items():
        print(f"{name}: AUC {np.mean(auc):.3f} (folds {np.round(auc, 3)}), {seconds:.1f} CPU s")
    print(
        f"time ratio ours / theirs: {ours[1] / theirs[1]:.3f}; AUC difference: {np.mean(ours[0]) - np.mean(theirs[0]):+.3f}"
    )


def read(folder: Path, target: str, n: int | None) -> tuple[list[str], list[np.ndarray], np.ndarray]:
    table = pd.read_csv(folder / "participants.tsv", sep="\t", index_col=0).head(n)
    ids = [i for i in table.index if list((folder / i).rglob("*_timeseries.tsv"))]
    series = [query.read_matrix(next((folder / i).rglob("*_timeseries.tsv")))[1] for i in ids]
    return ids, series, (table.loc[ids, target] == sorted(table[target].unique())[0]).to_numpy(int)


def edges(series: list[np.ndarray]) -> np.ndarray:
    first, second = cohort.edge_index(series[0].shape[1])
    values = np.empty((len(series), len(first)), np.float32)
    for row, one in enumerate(series):
        with np.errstate(invalid="ignore", divide="ignore"):
            values[row] = np.arctanh(np.clip(np.corrcoef(one.T)[first, second], -1 + 1e-7, 1 - 1e-7))
    return values


def run_ours(ids: list[str], series: list[np.ndarray], y: np.ndarray, folds: list) -> tuple[list[float], float]:
    started = time.process_time()
    people = pd.DataFrame({"participant_id": ids})
    target = cohort.make_target("target", [str(v) for v in y], kind="classification")
    table = Cohort(people, {"connectivity": Block(edges(series), ("edge",))}, target)
    definition = training.define("mlp", [table.features["connectivity"].shape], 1, {})
    settings = settings_for(definition, config.Config("", "", "group"))
    aucs = []
    for number, (train, test) in enumerate(folds):
        fit, validation = train_test_split(train, test_size=0.2, stratify=y[train], random_state=number)
        split = Split(np.sort(fit), np.sort(validation), test, f"fold-{number}")
        fitted = training.train(definition, table, split, ["connectivity"], settings)
        aucs.append(roc_auc_score(y[test], training.predict(fitted, table, test)[:, 1]))
    return aucs, time.process_time() - started


def run_theirs(series: np.ndarray, y: np.ndarray) -> tuple[list[float], float]:
    """Run their own cross-validation; with the same seed its folds are the same."""
    from ml4fmri import cvbench

    started = time.process_time()
    report = cvbench(series.astype(np.float32), y, models="meanMLP", n_folds=5, cv_seed=0, device="cpu", save_dir=False)
    seconds = time.process_time() - started
    predictions = report.get_predictions_dataframe()
    return [roc_auc_score(f["y_true"], f["p_1"]) for _, f in predictions.groupby("fold")], seconds


if __name__ == "__main__":
    main()
