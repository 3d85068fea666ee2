"""Small BIDS datasets, seeded, the smallest that can fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_dl.query import read_people

REGIONS = ("A", "B", "C", "D", "E", "F")
AFFINE = np.diag([20.0, 20.0, 20.0, 1.0])
AFFINE[:3, 3] = (-90, -126, -72)


def write_description(folder: Path, **extra: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"Name": folder.name, "BIDSVersion": "1.10.0", "DatasetType": "raw", **extra}
    (folder / "dataset_description.json").write_text(json.dumps(content))


def write_derivative(folder: Path) -> None:
    write_description(folder, DatasetType="derivative", GeneratedBy=[{"Name": folder.name}])


def write_series(path: Path, values: np.ndarray, names: Sequence[str] = REGIONS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(values, columns=list(names)).to_csv(path, sep="\t", index=False, na_rep="n/a")
    path.with_suffix(".json").write_text(json.dumps({"RepetitionTime": 2.0}))
    return path


def write_image(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE, period: float = 2.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values, affine)
    if values.ndim == 4:
        image.header.set_zooms((*image.header.get_zooms()[:3], period))
    nib.save(image, path)
    return path


@pytest.fixture(autouse=True)
def fresh_tables():
    """Forget tables read before: tests write other tables under the same names."""
    read_people.cache_clear()


@pytest.fixture
def xcpd(tmp_path: Path) -> Callable[..., Path]:
    """Make an XCP-D-like dataset of regional series, with a participants.tsv."""

    def make(n: int = 4, *, seed: int = 0, n_volumes: int = 30, folder: str = "xcpd") -> Path:
        generator = np.random.default_rng(seed)
        root = tmp_path / folder
        write_derivative(root)
        ids = [f"sub-{k + 1:02d}" for k in range(n)]
        for one in ids:
            name = f"{one}_task-rest_space-MNI152NLin6Asym_atlas-Six_stat-mean_timeseries.tsv"
            write_series(root / one / "func" / name, generator.standard_normal((n_volumes, len(REGIONS))))
        people = pd.DataFrame(
            {
                "participant_id": ids,
                "age": 20 + np.arange(n),
                "diagnosis": [("control", "patient")[k % 2] for k in range(n)],
            }
        )
        people.to_csv(root / "participants.tsv", sep="\t", index=False)
        return root

    return make


@pytest.fixture
def fmriprep(tmp_path: Path) -> Callable[..., Path]:
    """Make a raw dataset with fMRIPrep-like derivatives: coarse BOLD and T1w in MNI space, confounds, masks."""

    def make(n: int = 2, *, seed: int = 0, n_volumes: int = 40) -> Path:
        generator = np.random.default_rng(seed)
        root, prep = tmp_path / "data", tmp_path / "data" / "derivatives" / "fmriprep"
        write_description(root)
        write_derivative(prep)
        ids = [f"sub-{k + 1:02d}" for k in range(n)]
        for one in ids:
            raw = root / one / "func" / f"{one}_task-rest_bold.nii.gz"
            write_image(raw, generator.integers(0, 9, (3, 3, 3, 12)).astype(np.int16))
            stem = prep / one / "func" / f"{one}_task-rest"
            bold = 500 + 10 * generator.standard_normal((9, 11, 9, n_volumes))
            write_image(Path(f"{stem}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"), bold.astype(np.int16))
            write_image(Path(f"{stem}_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz"), np.ones((9, 11, 9), np.uint8))
            write_confounds(Path(f"{stem}_desc-confounds_timeseries.tsv"), n_volumes, generator)
            anat = prep / one / "anat" / f"{one}_space-MNI152NLin2009cAsym"
            write_image(
                Path(f"{anat}_desc-preproc_T1w.nii.gz"), generator.normal(100, 9, (9, 11, 9)).astype(np.float32)
            )
            write_image(Path(f"{anat}_desc-brain_mask.nii.gz"), np.ones((9, 11, 9), np.uint8))
        people = pd.DataFrame({"participant_id": ids, "age": 20 + np.arange(n)})
        people.to_csv(root / "participants.tsv", sep="\t", index=False)
        return root

    return make


def write_confounds(path: Path, n_volumes: int, generator: np.random.Generator) -> None:
    names = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
    columns: dict[str, np.ndarray] = {}
    for name in [*names, "csf", "white_matter"]:
        base = generator.standard_normal(n_volumes)
        change = np.append(np.nan, np.diff(base))
        columns |= {
            name: base,
            f"{name}_derivative1": change,
            f"{name}_power2": base**2,
            f"{name}_derivative1_power2": change**2,
        }
    columns |= {
        "cosine00": np.cos(np.linspace(0, np.pi, n_volumes)),
        "framewise_displacement": np.append(np.nan, np.full(n_volumes - 1, 0.25)),
    }
    pd.DataFrame(columns).to_csv(path, sep="\t", index=False, na_rep="n/a")
    path.with_suffix(".json").write_text("{}")
