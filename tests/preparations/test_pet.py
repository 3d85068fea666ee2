"""A PET whose dose is unknown gives back the ratios that were planted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_dl import derivatives, regions
from bids_dl.errors import DataError
from bids_dl.preparations import pet
from bids_dl.records import Scan

SHIFT_MM = (3.0, 4.0, -5.0)
"""The head lies elsewhere than in the T1w."""


def regions_of(planted: Any, name: str) -> np.ndarray:
    atlas = regions.load_atlas("aal")
    numbers = [n + 1 for n, label in enumerate(atlas.labels) if label.startswith(name)]
    on = regions.on_grid(atlas, planted.template.mask.values.shape, planted.template.mask.affine)
    return np.isin(on, numbers)


def uptake(planted: Any) -> np.ndarray:
    """Plant 1.6 in the frontal lobe and 1 elsewhere, times the brain's structure and a dose."""
    ratio = np.where(regions_of(planted, "Frontal"), 1.6, 1.0)
    return 5000 * ratio * (planted.template.mask.values > 0) * (0.8 + 0.2 * planted.template.gm.values)


def test_planted_ratio_comes_back_through_the_t1w(planted: Any, anatomy: Scan, tmp_path: Path) -> None:
    out = tmp_path / "out"
    derivatives.write_description(out, {"bids": tmp_path})
    frames = [planted.place(dose * uptake(planted), SHIFT_MM) for dose in (0.5, 1.5)]
    image = nib.Nifti1Image(np.stack([np.asarray(f.dataobj) for f in frames], axis=-1), frames[0].affine)
    done = pet.prepare(planted.scan(image, tmp_path, "pet", "pet"), anatomy, out, resolution_mm=4)
    found = np.asarray(nib.load(done.path).dataobj)
    expected = uptake(planted) / uptake(planted)[regions_of(planted, "Cerebelum")].mean()
    for name in ("Frontal", "Cerebelum", "Occipital"):
        core = ndimage.binary_erosion(regions_of(planted, name))
        assert found[core].mean() == pytest.approx(expected[core].mean(), rel=0.1)
    assert "through the T1w" in done.why
    assert json.loads(derivatives.sidecar_path(done.path).read_text())["Units"] == "SUVR"


def test_frames_are_chosen_by_their_beginning(planted: Any, tmp_path: Path) -> None:
    volumes = np.stack([np.full((9, 9, 9), v, np.float32) for v in (1, 2, 3)], axis=-1)
    volumes[0, 0, 0] = 0
    scan = planted.scan(nib.Nifti1Image(volumes, np.eye(4)), tmp_path, "pet", "pet")
    scan.path.with_name("sub-01_pet.json").write_text(json.dumps({"FrameTimesStart": [0, 300, 600]}))
    assert pet._mean_frame(scan, (300, 900)).values.max() == 2.5
    with pytest.raises(DataError, match="sub-01_pet: no frame begins between 900"):
        pet._mean_frame(scan, (900, 1200))


def test_empty_image_is_refused(planted: Any, tmp_path: Path) -> None:
    scan = planted.scan(nib.Nifti1Image(np.zeros((9, 9, 9), np.float32), np.eye(4)), tmp_path, "pet", "pet")
    with pytest.raises(DataError, match="sub-01_pet .* holds no uptake"):
        pet.prepare(scan, None, tmp_path)


def test_unknown_reference_region_is_named(planted: Any) -> None:
    with pytest.raises(DataError, match="no region that begins with 'Pons'"):
        pet._reference_region(planted.template.mask, "aal", "Pons")
