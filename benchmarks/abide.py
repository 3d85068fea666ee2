"""abide.py BIDS_DIR OUT: both levels on ABIDE I laid out as a derivative dataset, against what linear methods reach.

Prints seconds and peak memory of both levels, every model's main metric beside the reference values (linear kernels on
the same correlations, 5 folds, 3 repeats), and one run with shuffled labels, which has to give chance.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import measure
import pandas as pd

REFERENCE = {"diagnosis": ("auc", 0.745), "sex": ("auc", 0.838), "age": ("r", 0.742)}
CONFIG = """
[targets]
names = ["diagnosis", "sex", "age"]
[features]
names = ["connectivity"]
[models]
names = ["linear", "mlp"]
[splits]
n_repeats = 3
[explainers]
names = ["integrated_gradients"]
[explainers.integrated_gradients]
max_participants = 8
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    config = options.out / "abide.toml"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "bids_dl", str(options.bids_dir)]
    base = options.out / "true"
    one = measure.run([*command, str(base), "participant", "--skip-bids-validation"])
    print(f"participant: {one.seconds:.1f} s, {one.peak_gb:.2f} GB, exit {one.code}")
    two = measure.run([*command, str(base), "group", "--config-file", str(config)])
    print(f"group, 3 targets: {two.seconds:.1f} s, {two.peak_gb:.2f} GB, exit {two.code}")
    report(base)
    shuffled(command, config, base, options.out / "shuffled")


def report(base: Path) -> None:
    for target, (metric, reference) in REFERENCE.items():
        table = pd.read_csv(base / "group" / "metrics" / f"target-{target}_metrics.tsv", sep="\t")
        for row in table[table["metric"] == metric].itertuples():
            print(f"{target} {row.model}: {metric} {row.value:.3f} [{row.ci_low:.3f}, {row.ci_high:.3f}] "
                  f"p = {row.p_value:.4f}; linear reference {reference}")  # fmt: skip


def shuffled(command: list[str], config: Path, base: Path, out: Path) -> None:
    values = []
    for seed in range(3):
        text = config.read_text().replace('"diagnosis", "sex", "age"', '"diagnosis"')
        file = config.with_name("shuffled.toml")
        file.write_text(f"random_seed = {seed}\n{text}\n[metrics]\nshuffle_labels = true\n")
        here = out / str(seed)
        measure.run([*command, str(here), "group", "--config-file", str(file), "-d", f"bids_dl={base}"])
        table = pd.read_csv(here / "group" / "metrics" / "target-diagnosis_metrics.tsv", sep="\t")
        mine = table[(table["metric"] == "auc") & table["model"].str.startswith("connectivity")]
        values += mine["value"].tolist()
        print(f"shuffled labels, seed {seed}:", dict(zip(mine["model"], mine["value"].round(3), strict=True)))
    print(f"shuffled labels, mean AUC {sum(values) / len(values):.3f}")


if __name__ == "__main__":
    main()
