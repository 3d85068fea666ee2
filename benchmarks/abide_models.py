"""abide_models.py BIDS_DIR OUT [--models NAME …] [--leave-site-out] [--repeats N]: every model on ABIDE's diagnosis.

Runs both levels on ABIDE I laid out as a derivative dataset, one member a network, the same splits for all. Prints for each model the AUC
with its interval and p-value, its difference from the linear model on correlations, and the corrected resampled t-test of that difference
with its p-value adjusted for the number of comparisons (Holm). ``--reuse`` prints the table of an OUT that is there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import measure
import pandas as pd

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
REFERENCE = "connectivity_linear"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="+", default=[*EDGES, *SEQUENCES])
    parser.add_argument("--leave-site-out", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--harmonizer", default="none")
    parser.add_argument("--nprocs", default="2")
    parser.add_argument("--reuse", action="store_true")
    options = parser.parse_args()
    base, out = options.out / "participants", options.out / ("leave_site_out" if options.leave_site_out else "kfold")
    if not options.reuse:
        run(options, base, out)
    print(table(out).to_string(index=False))


def run(options: argparse.Namespace, base: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    config = out / "models.toml"
    config.write_text(settings(options))
    command = [sys.executable, "-m", "bids_dl", str(options.bids_dir)]
    common = ["--skip-bids-validation", "--nprocs", options.nprocs, "--config-file", str(config)]
    if not (base / "participants.tsv").exists() and not list(base.glob("sub-*")):
        measure.run([*command, str(base), "participant", *common])
    one = measure.run([*command, str(out), "group", *common, "-d", f"bids_dl={base}"])
    print(f"group: {one.seconds:.0f} s, {one.peak_gb:.2f} GB, exit {one.code}", flush=True)


def settings(options: argparse.Namespace) -> str:
    splits = 'kind = "leave-site-out"' if options.leave_site_out else f"n_repeats = {options.repeats}"
    harmonizers = "" if options.harmonizer == "none" else f'[harmonizers]\nnames = ["{options.harmonizer}"]\n'
    return f"""
[targets]
names = ["diagnosis"]
[features]
names = ["connectivity", "timeseries"]
[models]
names = {json.dumps(options.models)}
{harmonizers}[splits]
{splits}
[training]
n_members = 1
[metrics]
n_retrained = -1
[explainers]
names = ["integrated_gradients"]
[explainers.integrated_gradients]
max_participants = 2
[fusions]
names = []
"""


def table(out: Path) -> pd.DataFrame:
    """Put every model's AUC beside its comparison with the reference."""
    found = pd.read_csv(out / "group" / "metrics" / "target-diagnosis_metrics.tsv", sep="\t")
    found = found[found["metric"] == "auc"][["model", "value", "ci_low", "ci_high", "p_value"]]
    paired = pd.read_csv(out / "group" / "metrics" / "target-diagnosis_comparisons.tsv", sep="\t")
    return found.merge(against(paired), on="model", how="left").round(4).sort_values("value", ascending=False)


def against(paired: pd.DataFrame) -> pd.DataFrame:
    """Take the comparisons of other models with the reference, which may stand on either side."""
    ours = paired[paired["other"] == REFERENCE]
    return ours[["model", "difference", "t", "p_value", "p_holm"]].rename(columns={"p_value": "p_t"})


if __name__ == "__main__":
    main()
