"""painted_bold.py SERIES.tsv ATLAS.nii.gz WORK: real regional series painted into an atlas come back, by both ways.

The series are painted on the template's brain, as fMRIPrep would leave them and as a raw scan. Extraction from the first has to
give them back (r > 0.9999); the second goes through motion correction and registration, and shows what these cost. The last line
is what a raw scan loses where both are known beforehand: nothing moves, and only the reading onto the standard grid is left.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage, signal

from bids_dl import registration

RESOLUTION_MM = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("series", type=Path)
    parser.add_argument("atlas", type=Path)
    parser.add_argument("work", type=Path)
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    series, numbers, image = painted(options.series, options.atlas)
    for layout in ("fmriprep", "raw"):
        root = write(options.work / layout, image, layout)
        command = [sys.executable, "-m", "bids_dl", str(root), str(options.work / f"{layout}_out"), "participant",
                   "--features", "timeseries", "--skip-bids-validation", "--config-file", str(config(options))]  # fmt: skip
        subprocess.run(command, check=True)
        found = next((options.work / f"{layout}_out").glob("sub-01/func/*stat-mean_timeseries.tsv"))
        table = pd.read_csv(found, sep="\t", na_values=["n/a"])
        known = table.columns[table.notna().all()]
        straight = signal.detrend(series, axis=0)  # extraction takes the linear trend out
        r = [np.corrcoef(table[name], straight[:, n])[0, 1] for n, name in enumerate(table.columns) if name in known]
        print(f"{layout}: {len(r)} of {len(numbers)} regions, r smallest {min(r):.6f}, median {np.median(r):.6f}")
    r = by_reading_alone(series, numbers, image, options.atlas)
    print(f"true transforms: {len(r)} regions, r smallest {min(r):.6f}, median {np.median(r):.6f}")


def by_reading_alone(
    series: np.ndarray, numbers: np.ndarray, image: nib.Nifti1Image, atlas: Path, order: int = 3
) -> list[float]:
    """Read the volumes by splines onto the standard grid where it truly lies; returns each region's correlation."""
    standard = registration.template(RESOLUTION_MM).mask
    places = np.argwhere(standard.values > 0) @ standard.affine[:3, :3].T + standard.affine[:3, 3]
    labels = nib.load(atlas)
    at = nib.affines.apply_affine(np.linalg.inv(labels.affine), places).T
    own = ndimage.map_coordinates(np.asarray(labels.dataobj).astype(int), at, order=0, mode="constant")
    volumes = np.asarray(image.dataobj)
    read = np.stack([ndimage.map_coordinates(v, at, order=order) for v in np.moveaxis(volumes, 3, 0)])
    straight = signal.detrend(series, axis=0)
    return [
        np.corrcoef(signal.detrend(read[:, own == number].mean(axis=1)), straight[:, n])[0, 1]
        for n, number in enumerate(numbers)
        if (own == number).any()
    ]


def painted(series: Path, atlas: Path) -> tuple[np.ndarray, np.ndarray, nib.Nifti1Image]:
    """Add one region's course, at a hundredth of the brightness, to each of its voxels."""
    labels = nib.load(atlas)
    regions = np.asarray(labels.dataobj).astype(int)
    numbers = np.unique(regions[regions > 0])
    values = pd.read_csv(series, sep="\t", na_values=["n/a"]).to_numpy(float)
    values = values[:, np.ptp(np.nan_to_num(values), axis=0) > 0]
    numbers = numbers[: values.shape[1]]
    template = registration.template(2)
    grid = registration.Volume(np.zeros(regions.shape, np.float32), np.asarray(labels.affine))
    brain = registration.resample(template.brain, grid).values
    brain *= 10_000 / brain.max()
    courses = np.zeros((regions.max() + 1, len(values)), np.float32)
    courses[numbers] = (values[:, : len(numbers)] / values[:, : len(numbers)].std(axis=0)).T
    volumes = brain[..., None] + 100 * courses[np.maximum(regions, 0)]
    return values[:, : len(numbers)], numbers, nib.Nifti1Image(volumes.astype(np.float32), grid.affine)


def write(root: Path, image: nib.Nifti1Image, layout: str) -> Path:
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_zooms((*image.header.get_zooms()[:3], 2.0))
    middle = "_space-MNI152NLin2009aSym_desc-preproc" if layout == "fmriprep" else ""
    path = root / "sub-01" / "func" / f"sub-01_task-rest{middle}_bold.nii.gz"
    path.parent.mkdir(parents=True)
    nib.save(image, path)
    path.with_name(path.name.replace(".nii.gz", ".json")).write_text(
        json.dumps({"RepetitionTime": 2.0, "TaskName": "rest"})
    )
    said = {"Name": layout, "BIDSVersion": "1.10.0", "DatasetType": "derivative" if layout == "fmriprep" else "raw"}
    (root / "dataset_description.json").write_text(
        json.dumps(said | {"GeneratedBy": [{"Name": layout}]} if middle else said)
    )
    return root


def config(options: argparse.Namespace) -> Path:
    path = options.work / "painted.toml"
    settings = (
        f'atlas = "{options.atlas}"\nconfounds = "none"\nhigh_pass_hz = 0.0\nlow_pass_hz = 0.0\nmin_coverage = 0.0\n'
    )
    path.write_text(f"[features.timeseries]\n{settings}")
    return path


if __name__ == "__main__":
    main()
