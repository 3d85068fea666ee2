"""bundle_across_sites.py BIDS_DIR FEATURES WORK: train on half of the sites, apply the bundles to the other half.

FEATURES is an output folder of the participant level over BIDS_DIR. Prints the AUC on the other sites, and the largest difference
between the command line's predictions and those of the bundle loaded in a fresh process here.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from bids_dl import bundle, cohort, training
from bids_dl.records import Block, Cohort, Target

CONFIG = """
[select.include]
site = [{sites}]
[targets]
names = ["diagnosis"]
[features]
names = ["connectivity"]
[models]
names = ["linear", "mlp"]
[explainers.integrated_gradients]
max_participants = 2
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("features", type=Path)
    parser.add_argument("work", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    people = pd.read_csv(options.bids_dir / "participants.tsv", sep="\t", index_col=0)
    sites = sorted(people["site"].unique())
    halves = sites[::2], sites[1::2]
    config = options.work / "half.toml"
    config.write_text(CONFIG.format(sites=", ".join(f'"{site}"' for site in halves[0])))
    bids_dl(
        options.bids_dir, options.work / "train", "group", "--config-file", config, "-d", f"bids_dl={options.features}"
    )
    bundles = sorted((options.work / "train" / "group" / "bundles").iterdir())
    other = [i.removeprefix("sub-") for i in people.index[people["site"].isin(halves[1])]]
    known = [i.removeprefix("sub-") for i in people.index[people["site"].isin(halves[0])]][:3]
    bids_dl(options.bids_dir, options.work / "apply", "participant", "--skip-bids-validation", "--bundle", *bundles,
            "--participant-label", *other, *known)  # fmt: skip
    for folder in bundles:
        report(folder, options.work / "apply", people, set(other))


def bids_dl(*arguments: object) -> None:
    command = [sys.executable, "-m", "bids_dl", *map(str, arguments)]
    subprocess.run(command, check=False, stderr=subprocess.DEVNULL)


def report(folder: Path, out: Path, people: pd.DataFrame, other: set[str]) -> None:
    table = pd.read_csv(out / "phenotype" / f"{folder.name}.tsv", sep="\t", index_col=0)
    refused = table["excluded"].notna()
    mine = table[~refused]
    auc = roc_auc_score(people.loc[mine.index, "diagnosis"] == "autism", mine["y_score"])
    fitted, said = bundle.load(folder), bundle.about(folder)
    difference = max(abs(here(fitted, said, out, i) - mine.loc[i, "y_score"]) for i in mine.index[:20])
    print(f"{folder.name}: AUC {auc:.3f} on {len(mine)} participants of other sites, {int(refused.sum())} refused; "
          f"largest difference to a fresh process {difference:.1e}")  # fmt: skip


def here(fitted, said: dict, out: Path, participant_id: str) -> float:
    described = said["features"]["connectivity"]
    path = next((out / participant_id / "func").glob("*fisherz_relmat.tsv"))
    values = cohort.row_of(path, described)[None].astype(np.float32)
    people = pd.DataFrame({"participant_id": [participant_id]})
    one = Cohort(
        people, {"connectivity": Block(values, ("edge",))}, Target("diagnosis", np.array([np.nan]), fitted.levels)
    )
    return float(training.predict(fitted, one, np.array([0]))[0, 1])


if __name__ == "__main__":
    main()
