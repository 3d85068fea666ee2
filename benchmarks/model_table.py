"""model_table.py BIDS_DIR OUT [--target T] [--features F …] [--models M …] [--leave-site-out] …: models side by side.

Runs both levels, one member a network unless ``--members`` says otherwise, the same splits for all, and prints for each model its main
metric with interval and p-value, its difference from the linear model named by ``--reference``, and the corrected resampled t-test of
that difference with its p-value adjusted for the number of comparisons (Holm). The default is what the documentation shows of ABIDE I
laid out as a derivative dataset: every model of edges and of series on the diagnosis. ``--config`` gives more lines of the configuration.
An OUT that is there is asked for more: fits that the options leave as they are are kept. ``--reuse`` prints its table alone;
``--against`` compares the models with the reference of another OUT on the same splits: other features, harmonizers or options.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import measure
import numpy as np
import pandas as pd

from bids_dl import comparison, metrics

EDGES = (
    "linear",
    "tangent_linear",
    "kernel",
    "boosting",
    "mlp",
    "vae",
    "gan",
    "gcn",
    "gat",
    "brainnetcnn",
    "brain_network_transformer",
)
SEQUENCES = (
    "mean_mlp",
    "lstm",
    "gru",
    "attention_rnn",
    "multiscale_cnn_rnn",
    "transformer",
    "learned_connectivity",
    "rnn_ica",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--target", default="diagnosis")
    parser.add_argument("--features", nargs="+", default=["connectivity", "timeseries"])
    parser.add_argument("--models", nargs="+", default=[*EDGES, *SEQUENCES])
    parser.add_argument("--reference", default="connectivity_linear")
    parser.add_argument("--metric", default="auc")
    parser.add_argument("--leave-site-out", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--harmonizer", default="none")
    parser.add_argument("--nprocs", default="2")
    parser.add_argument("--config", default="")
    parser.add_argument("--reuse", action="store_true")
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    base, out = options.out / "participants", options.out / ("leave_site_out" if options.leave_site_out else "kfold")
    if not options.reuse:
        run(options, base, out)
    print(table(out, options.target, options.metric, options.reference).to_string(index=False))
    if options.against:
        print(
            elsewhere(out, options.against / out.name, options.target, options.metric, options.reference).to_string(
                index=False
            )
        )


def run(options: argparse.Namespace, base: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    config = out / "models.toml"
    config.write_text(settings(options))
    command = [sys.executable, "-m", "bids_dl", str(options.bids_dir)]
    common = ["--overwrite", "--skip-bids-validation", "--nprocs", options.nprocs, "--config-file", str(config)]
    if not list(base.glob("sub-*")):
        measure.run([*command, str(base), "participant", *common])
    one = measure.run([*command, str(out), "group", *common, "-d", f"bids_dl={base}"])
    print(f"group: {one.seconds:.0f} s, {one.peak_gb:.2f} GB, exit {one.code}", flush=True)


def settings(options: argparse.Namespace) -> str:
    splits = 'kind = "leave-site-out"' if options.leave_site_out else f"n_repeats = {options.repeats}"
    harmonizers = "" if options.harmonizer == "none" else f'[harmonizers]\nnames = ["{options.harmonizer}"]\n'
    return f"""
[targets]
names = ["{options.target}"]
[features]
names = {json.dumps(options.features)}
[models]
names = {json.dumps(options.models)}
{harmonizers}[splits]
{splits}
[training]
n_members = {options.members}
[metrics]
n_retrained = -1
[explainers]
names = ["integrated_gradients"]
[explainers.integrated_gradients]
max_participants = 2
{options.config}
"""


def table(out: Path, target: str, metric: str, reference: str) -> pd.DataFrame:
    """Put every model's metric beside its comparison with the reference."""
    found = pd.read_csv(out / "group" / "metrics" / f"target-{target}_metrics.tsv", sep="\t")
    found = found[found["metric"] == metric][["model", "value", "ci_low", "ci_high", "p_value"]]
    paired = pd.read_csv(out / "group" / "metrics" / f"target-{target}_comparisons.tsv", sep="\t")
    paired = paired[paired["other"] == reference].rename(columns={"p_value": "p_t"})
    paired = paired[["model", "difference", "t", "p_t", "p_holm"]]
    return found.merge(paired, on="model", how="left").round(4).sort_values("value", ascending=False)


def elsewhere(out: Path, other: Path, target: str, metric: str, reference: str) -> pd.DataFrame:
    """Compare every model of a run with the reference of another run on the same splits."""
    theirs, n_train = predictions(other, target, reference)
    rows = []
    for path in sorted((out / "group" / "predictions").glob(f"target-{target}_model-*_predictions.tsv")):
        model = path.name.removeprefix(f"target-{target}_model-").removesuffix("_predictions.tsv")
        ours, _ = predictions(out, target, model)
        if not np.array_equal(ours.participants, theirs.participants) or not np.array_equal(ours.folds, theirs.folds):
            raise SystemExit(f"{model}: {out} and {other} do not test the same participants in the same folds.")
        rows.append({"model": model, **comparison.compare(ours, theirs, metric, n_train)})
    found = pd.DataFrame(rows).drop(columns=["metric", "dof"])
    return found.assign(p_holm=comparison.holm(found["p_value"])).round(4).sort_values("difference", ascending=False)


def predictions(out: Path, target: str, model: str) -> tuple[metrics.Predictions, list[int]]:
    """Read the held-out predictions of one model, and how many participants each of its folds was trained on."""
    read = pd.read_csv(out / "group" / "predictions" / f"target-{target}_model-{model}_predictions.tsv", sep="\t")
    read = read.sort_values(["split", "participant_id"])
    folds, participants = pd.factorize(read["split"])[0], pd.factorize(read["participant_id"], sort=True)[0]
    if not pd.api.types.is_numeric_dtype(read["y_true"]):
        truth = (read["y_true"] == levels_of(out, target)[1]).to_numpy(int)
        scores, n_levels = np.column_stack([1 - read["y_score"], read["y_score"]]), 2
    else:
        truth, scores, n_levels = read["y_true"].to_numpy(float), read[["y_score"]].to_numpy(float), 0
    n_train = [len(set(participants)) - int((folds == k).sum()) for k in range(folds.max() + 1)]
    return metrics.Predictions(truth, scores, participants, folds, n_levels), n_train


def levels_of(out: Path, target: str) -> list[str]:
    """Read the two levels of a target, the positive one last."""
    choices = json.loads((out / "group" / "choices.json").read_text())
    return next(list(one["levels"]) for one in choices["targets"] if one["name"] == target)


if __name__ == "__main__":
    main()
