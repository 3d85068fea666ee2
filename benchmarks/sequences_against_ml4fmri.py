"""sequences_against_ml4fmri.py BIDS_DIR: five folds of our models of time courses and of ml4fmri's, all rows alike.

BIDS_DIR holds regional series (``*_timeseries.tsv``) and a participants.tsv with the target. Training, validation and test
participants of a fold, the volumes and their scaling are the same for both. Each is timed from the scaled series to the
held-out predictions. ml4fmri takes series of one length alone: ``--whole`` adds ours on everyone's whole series, which
shows what cutting costs. Ours trains the members that its schedule says unless ``--members`` is given; ml4fmri trains one.
Seconds are CPU time, which other work on the machine disturbs least: run it with OMP_NUM_THREADS=1. A whole training of
theirs can take a quarter of an hour: ``--first 1`` runs the first of the five folds alone. Needs `pip install ml4fmri`.
"""

from __future__ import annotations

import argparse
import importlib
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit

from bids_dl import config, query, training
from bids_dl.records import Block, Cohort, Split, Target
from bids_dl.settings import settings_for

PEERS = {"mean_mlp": "meanMLP", "lstm": "LSTM", "transformer": "Transformer"}
Result = tuple[list[float], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("--target", default="diagnosis")
    parser.add_argument("--n-volumes", type=int, default=124)
    parser.add_argument("--participants", type=int)
    parser.add_argument("--models", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--members", type=int)
    parser.add_argument("--epochs", type=int, help="at most so many epochs for both; for a quick look")
    parser.add_argument("--first", type=int, default=5, help="run so many of the five folds")
    parser.add_argument("--whole", action="store_true")
    options = parser.parse_args()
    ids, series, y = read(options.bids_dir, options.target, options.participants)
    cut = padded([scaled(s[: options.n_volumes]) for s in series])
    folds = divide(y)[: options.first]
    for model in options.models:
        wishes = {"n_members": options.members, "n_epochs": options.epochs}
        ours = run_ours(model, ids, cut, y, folds, wishes)
        show(f"bids_dl {model}", ours)
        theirs = run_theirs(PEERS[model], cut, y, options.epochs, options.first)
        show(f"ml4fmri {PEERS[model]}", theirs)
        print(f"time ratio {ours[1] / theirs[1]:.3f}; AUC difference {np.mean(ours[0]) - np.mean(theirs[0]):+.3f}")
        if options.whole:
            whole = padded([scaled(s) for s in series])
            show(f"bids_dl {model}, whole series", run_ours(model, ids, whole, y, folds, wishes))


def show(name: str, result: Result) -> None:
    print(f"{name}: AUC {np.mean(result[0]):.3f} (folds {np.round(result[0], 3)}), {result[1]:.1f} CPU s", flush=True)


def read(folder: Path, target: str, n: int | None) -> tuple[list[str], list[np.ndarray], np.ndarray]:
    table = pd.read_csv(folder / "participants.tsv", sep="\t", index_col=0)
    files = {i: next(iter(sorted((folder / i).rglob("*_timeseries.tsv"))), None) for i in table.index}
    ids = [i for i in table.index if files[i]][:n]
    series = [query.read_matrix(files[i])[1] for i in ids]
    return ids, series, (table.loc[ids, target] == sorted(table[target].unique())[0]).to_numpy(int)


def scaled(series: np.ndarray) -> np.ndarray:
    """Give each region mean 0 and deviation 1; one that does not vary is 0."""
    deviation = series.std(axis=0)
    return (series - series.mean(axis=0)) / np.where(deviation > 0, deviation, np.inf)


def padded(series: list[np.ndarray]) -> np.ndarray:
    """Stack series of their own lengths, (participant, time, roi), NaN behind the shorter ones."""
    found = np.full((len(series), max(map(len, series)), series[0].shape[1]), np.nan, np.float32)
    for row, one in zip(found, series, strict=True):
        row[: len(one)] = one
    return found


def divide(y: np.ndarray) -> list[Split]:
    """Divide participants as ml4fmri's ``cvbench`` does with ``cv_seed=0``: the same rows, validation included."""
    folds = []
    for number, (rest, test) in enumerate(StratifiedKFold(5, shuffle=True, random_state=0).split(y, y)):
        inner = StratifiedShuffleSplit(n_splits=1, test_size=0.2, random_state=42)
        fit, validation = next(inner.split(rest, y[rest]))
        folds.append(Split(np.sort(rest[fit]), np.sort(rest[validation]), test, f"fold-{number}"))
    return folds


def run_ours(
    model: str, ids: list[str], series: np.ndarray, y: np.ndarray, folds: list[Split], wishes: dict[str, int | None]
) -> Result:
    importlib.import_module("lightning_fabric")  # training imports it late; loading libraries is not training
    started = time.process_time()
    people = pd.DataFrame({"participant_id": ids})
    target = Target("target", y.astype(float), ("other", "first"))
    table = Cohort(people, {"series": Block(series, ("time", "roi"))}, target)
    definition = training.define(model, [table.features["series"].shape], target.n_outputs, {})
    settings = settings_for(definition, config.Config("", "", "group"))
    settings = replace(settings, device="cpu", **{key: value for key, value in wishes.items() if value is not None})
    aucs = []
    for split in folds:
        fitted = training.train(definition, table, split, ["series"], settings)
        aucs.append(roc_auc_score(y[split.test], training.predict(fitted, table, split.test)[:, 1]))
    return aucs, time.process_time() - started


class FirstFolds(StratifiedKFold):
    """The first of the folds, the same ones as all would be."""

    n_run = 5

    def split(self, *given):
        """Yield as many as are to be run."""
        return islice(super().split(*given), self.n_run)


def run_theirs(model: str, series: np.ndarray, y: np.ndarray, epochs: int | None, n_run: int) -> Result:
    """Run their own cross-validation with their own epochs, rate and patience, unless the epochs are given."""
    from ml4fmri import cvbench

    wishes, FirstFolds.n_run = {} if epochs is None else {"epochs": epochs}, n_run
    started = time.process_time()
    with mock.patch("ml4fmri.cvreport.StratifiedKFold", FirstFolds):
        report = cvbench(
            series, y, models=model, n_folds=5, cv_seed=0, val_seed=42, device="cpu", save_dir=False, **wishes
        )
    seconds = time.process_time() - started
    predictions = report.get_predictions_dataframe()
    return [roc_auc_score(f["y_true"], f["p_1"]) for _, f in predictions.groupby("fold")], seconds


if __name__ == "__main__":
    main()
