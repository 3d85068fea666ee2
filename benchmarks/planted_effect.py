"""planted_effect.py WORK: whether the planted effect is found, the fusion gains, explanations point to the truth.

Prints, for each seed, every model's AUC; the fusion beside each modality's network on the participants who have both; and
how well |share| of the explanations ranks the planted voxels and edges (area under the curve).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage
from sklearn.metrics import roc_auc_score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--participants", default="48")
    options = parser.parse_args()
    rows = []
    for seed in range(options.seeds):
        data, out = options.work / f"{seed}" / "data", options.work / f"{seed}" / "out"
        run(data, out, seed, options.participants)
        rows.append(measure(data, out / "group"))
        print(f"seed {seed}:", ", ".join(f"{k} {v:.3f}" for k, v in rows[-1].items()), flush=True)
    print("mean:", ", ".join(f"{k} {v:.3f}" for k, v in pd.DataFrame(rows).mean().items()))


def run(data: Path, out: Path, seed: int, n: str) -> None:
    if not data.exists():
        command = ["bids_dl.simulate", str(data), "--random-seed", str(seed), "--n-participants", n, "--nprocs", "2"]
        subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
    for level in ("participant", "group"):
        command = ["bids_dl", str(data), str(out), level, "--skip-bids-validation"]
        subprocess.run([sys.executable, "-m", *command], check=False, capture_output=True)


def measure(data: Path, group: Path) -> dict[str, float]:
    table = pd.read_csv(group / "metrics" / "target-diagnosis_metrics.tsv", sep="\t")
    found = table[table["metric"] == "auc"].set_index("model")["value"].to_dict()
    found |= {f"{m} (both)": v for m, v in common(group, ["connectivity_mlp", "t1w_cnn3d", "postfusion"]).items()}
    for path in sorted((group / "explanations").glob("*_statmap.nii.gz")):
        found[name(path)] = volume_auc(path, data)
    for path in sorted((group / "explanations").glob("*_edges.tsv")):
        found[name(path)] = edge_auc(path, data)
    return found


def name(path: Path) -> str:
    return path.name.split(".")[0].removeprefix("target-diagnosis_model-").rpartition("_")[0]


def common(group: Path, models: list[str]) -> dict[str, float]:
    """Compare on the participants that every model predicts, within folds."""
    tables = {
        m: pd.read_csv(group / "predictions" / f"target-diagnosis_model-{m}_predictions.tsv", sep="\t") for m in models
    }
    shared = set.intersection(*(set(t["participant_id"]) for t in tables.values()))
    scores = {}
    for model, table in tables.items():
        mine = table[table["participant_id"].isin(shared)]
        right = pairs = 0.0
        for _, fold in mine.groupby("split"):
            up, down = (fold["y_score"][fold["y_true"] == level].to_numpy() for level in ("patient", "control"))
            right += (up[:, None] > down).sum() + 0.5 * (up[:, None] == down).sum()
            pairs += len(up) * len(down)
        scores[model] = right / pairs
    return scores


def volume_auc(path: Path, data: Path) -> float:
    image, truth = nib.load(path), nib.load(data / "sourcedata" / "truth" / "t1w_mask.nii.gz")
    to_truth = np.linalg.inv(truth.affine) @ image.affine
    planted = ndimage.affine_transform(
        truth.get_fdata(), to_truth[:3, :3], to_truth[:3, 3], output_shape=image.shape, order=1
    )
    values = np.abs(image.get_fdata())
    brain = brain_mask(data, image)
    return float(roc_auc_score(planted[brain] > 0.5, values[brain]))


def brain_mask(data: Path, image: nib.Nifti1Image) -> np.ndarray:
    mask = nib.load(next((data / "derivatives" / "fmriprep").rglob("*_res-4_desc-brain_mask.nii.gz")))
    to_mask = np.linalg.inv(mask.affine) @ image.affine
    inside = ndimage.affine_transform(
        mask.get_fdata(), to_mask[:3, :3], to_mask[:3, 3], output_shape=image.shape, order=1
    )
    return inside > 0.5


def edge_auc(path: Path, data: Path) -> float:
    table = pd.read_csv(path, sep="\t")
    truth = pd.read_csv(data / "sourcedata" / "truth" / "edges.tsv", sep="\t")
    planted = {frozenset(pair) for pair in zip(truth["region_a"], truth["region_b"], strict=True)}
    known = table.dropna(subset=["share"])
    hit = [frozenset(p) in planted for p in zip(known["region_a"], known["region_b"], strict=True)]
    return float(roc_auc_score(hit, known["share"].abs()))


if __name__ == "__main__":
    main()
