"""A raw T1w reaches standard space with its tissues, and what cannot is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_dl import derivatives, regions, registration
from bids_dl.errors import DataError
from bids_dl.preparations import t1w
from bids_dl.records import Scan


def values(path: Path | None) -> np.ndarray:
    assert path is not None
    return np.asarray(nib.load(path).dataobj, np.float32)


def test_brain_lies_on_the_templates(anatomy: Scan, planted: Any) -> None:
    mask, expected = values(anatomy.mask) > 0, planted.template.mask.values > 0
    assert 2 * (mask & expected).sum() / (mask.sum() + expected.sum()) > 0.92
    assert np.corrcoef(values(anatomy.path)[expected], planted.template.brain.values[expected])[0, 1] > 0.8
    assert (anatomy.prepared, anatomy.entities["space"]) == (True, registration.SPACE)


def test_skull_stripped_image_is_recognised(anatomy: Scan) -> None:
    assert "already skull-stripped" in anatomy.why


def test_modulated_grey_matter_keeps_the_volume_of_the_scan(anatomy: Scan, planted: Any) -> None:
    volumes = json.loads(anatomy.related["volumes"].read_text())
    modulated = values(anatomy.related["modulated"]).sum() * 4**3 / 1000
    assert modulated == pytest.approx(volumes["gm_ml"], rel=0.02)
    unmodulated = values(anatomy.related["gm"]).sum() * 4**3 / 1000
    assert volumes["gm_ml"] / unmodulated == pytest.approx(planted.size**3, rel=0.08)


def test_tissues_are_probabilities_of_the_brain(anatomy: Scan, planted: Any) -> None:
    inside = ndimage.binary_erosion(planted.template.mask.values > 0, iterations=2)
    parts = [values(anatomy.related[t]) for t in ("gm", "wm", "csf")]
    assert np.quantile(np.abs(sum(parts)[inside] - 1), 0.99) < 0.05
    assert np.corrcoef(parts[1][inside], planted.template.wm.values[inside])[0, 1] > 0.7


@pytest.mark.parametrize("name", ["Putamen", "Pallidum", "Thalamus", "Caudate"])
def test_deep_nuclei_are_grey_matter(anatomy: Scan, planted: Any, name: str) -> None:
    atlas = regions.load_atlas("neuromorphometrics")
    inside = [i for i, label in zip(atlas.indices, atlas.labels, strict=True) if name in label]
    image = nib.load(atlas.path)
    held = registration.Volume(np.isin(np.asarray(image.dataobj), inside).astype(np.float32), image.affine)
    core = registration.resample(held, planted.template.mask).values > 0.9
    grey, white = values(anatomy.related["gm"])[core], values(anatomy.related["wm"])[core]
    assert core.sum() > 10
    assert grey.mean() > 0.6 > 0.34 > white.mean()


def test_transforms_lead_there_and_back(anatomy: Scan, planted: Any) -> None:
    forward, _ = registration.read_transforms(anatomy.related["to_standard"])
    noted = json.loads(anatomy.related["from_standard"].read_text())
    back = [str(anatomy.related["from_standard"].with_name(n)) for n in noted["Transforms"]]
    native = registration.read(anatomy.related["native"])
    there = registration.resample(planted.template.mask, native, back, inverted=noted["Invert"])
    again = registration.resample(there, planted.template.mask, forward).values > 0.5
    expected = planted.template.mask.values > 0
    assert 2 * (again & expected).sum() / (again.sum() + expected.sum()) > 0.95


def test_every_image_says_where_it_comes_from(anatomy: Scan) -> None:
    for image in anatomy.path.parent.glob("*.nii.gz"):
        if "_xfm" not in image.name:
            described = json.loads(derivatives.sidecar_path(image).read_text())
            assert described["SkullStripped"] is True
            assert described["Sources"] == ["bids:raw:sub-01/anat/sub-01_T1w.nii.gz"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda x: np.stack([x, x], axis=-1), "one volume"),
        (np.zeros_like, "same value"),
        (lambda x: np.where(np.indices(x.shape)[0] < 16, x, 0), "mL"),
    ],
)
def test_image_without_a_whole_brain_is_refused(
    spoil: Callable[[np.ndarray], np.ndarray], said: str, planted: Any, tmp_path: Path
) -> None:
    image = planted.head()
    scan = planted.scan(nib.Nifti1Image(spoil(np.asarray(image.dataobj)), image.affine), tmp_path)
    with pytest.raises(DataError, match=f"sub-01_T1w.*{said}"):
        t1w.prepare(scan, None, tmp_path)


def test_truncated_file_is_named(planted: Any, tmp_path: Path) -> None:
    scan = planted.scan(planted.head(), tmp_path)
    scan.path.write_bytes(scan.path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"sub-01_T1w ends early"):
        t1w.prepare(scan, None, tmp_path)


def test_contradicting_orientations_are_refused(planted: Any, tmp_path: Path) -> None:
    image = planted.head()
    image.set_sform(image.affine, 1)
    shifted = image.affine.copy()
    shifted[0, 3] += 20
    image.set_qform(shifted, 1)
    with pytest.raises(DataError, match=r"sub-01_T1w: qform and sform .* 20 mm"):
        t1w.prepare(planted.scan(image, tmp_path), None, tmp_path)
