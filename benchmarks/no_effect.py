"""no_effect.py WORK: with no effect planted, do the intervals cover chance? 20 simulated datasets, the small models.

The diagnosis is still confounded with motion, so `confounds_only` is allowed to find it; the models of images are not.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd

CONFIG = '[models]\nnames = ["linear", "mlp"]\n[explainers.integrated_gradients]\nmax_participants = 2\n[metrics]\nn_retrained = -1\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--effect", default="0")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    config = options.work / "small.toml"
    config.write_text(CONFIG)
    covered: Counter[str] = Counter()
    for seed in range(options.seeds):
        table = one(options.work / str(seed), seed, config, options.effect)
        covered.update(table.index[(table["ci_low"] <= 0.5) & (table["ci_high"] >= 0.5)])
        said = ", ".join(f"{m} {r.value:.2f} [{r.ci_low:.2f}, {r.ci_high:.2f}]" for m, r in table.iterrows())
        print(f"seed {seed}: {said}", flush=True)
    for model, n in covered.items():
        print(f"{model}: the interval covers chance in {n} of {options.seeds}")


def one(folder: Path, seed: int, config: Path, effect: str) -> pd.DataFrame:
    shutil.rmtree(folder, ignore_errors=True)
    data, out = str(folder / "data"), str(folder / "out")
    simulate = ["bids_dl.simulate", data, "--random-seed", str(seed), "--effect", effect, "--nprocs", "2"]
    levels = [["bids_dl", data, out, level] for level in ("participant", "group")]
    levels[0] += ["--skip-bids-validation"]
    levels[1] += ["--config-file", str(config)]
    for command in [simulate, *levels]:
        subprocess.run([sys.executable, "-m", *command], check=False, capture_output=True)
    table = pd.read_csv(folder / "out" / "group" / "metrics" / "target-diagnosis_metrics.tsv", sep="\t")
    shutil.rmtree(folder)
    return table[(table["metric"] == "auc") & (table["model"] != "dummy")].set_index("model")


if __name__ == "__main__":
    main()
