"""A raw T1w reaches standard space with its tissues, and what cannot is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_dl import derivatives, query, registration
from bids_dl.errors import DataError
from bids_dl.preparations import t1w
from bids_dl.records import Scan

SIZE = 0.9
"""How large, against the template, the planted brain is, along each axis."""


def head(template: registration.Template) -> nib.Nifti1Image:
    """Shrink, turn and shift the template's brain, on other axes than the template's, with an uneven brightness."""
    turned = np.eye(4)
    turned[:3, :3] = SIZE * np.array([[0.995, -0.1, 0], [0.1, 0.995, 0], [0, 0, 1]])
    turned[:3, 3] = (5, -8, 12)
    affine = np.diag([-4.0, 4.0, 4.0, 1.0])  # the first axis points to the left
    affine[:3, 3] = (104, -140, -100)
    back = np.linalg.inv(template.brain.affine) @ np.linalg.inv(turned) @ affine
    brain = ndimage.affine_transform(
        template.brain.values, back[:3, :3], back[:3, 3], output_shape=(52, 64, 52), order=1
    )
    bias = 1 + 0.2 * np.linspace(-1, 1, 64)[None, :, None]
    generator = np.random.default_rng(0)
    noisy = brain * bias * (1 + 0.02 * generator.standard_normal(brain.shape))
    return nib.Nifti1Image(
        np.where(brain > 0.05 * brain.max(), 800 * noisy / brain.max(), 0).astype(np.float32), affine
    )


def scan_of(image: nib.Nifti1Image, root: Path) -> Scan:
    path = root / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return Scan(path, query.entities(path), root, prepared=False)


@pytest.fixture(scope="module")
def template() -> registration.Template:
    return registration.template(4)


@pytest.fixture(scope="module")
def done(template: registration.Template, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """Prepare the planted brain once, on a coarse grid."""
    root, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("out")
    derivatives.write_description(out, {"bids": root})
    return t1w.prepare(scan_of(head(template), root), None, out, resolution_mm=4, working_mm=3)


def values(path: Path | None) -> np.ndarray:
    assert path is not None
    return np.asarray(nib.load(path).dataobj, np.float32)


def test_brain_lies_on_the_templates(done: Scan, template: registration.Template) -> None:
    mask, expected = values(done.mask) > 0, template.mask.values > 0
    assert 2 * (mask & expected).sum() / (mask.sum() + expected.sum()) > 0.92
    assert np.corrcoef(values(done.path)[expected], template.brain.values[expected])[0, 1] > 0.8
    assert (done.prepared, done.entities["space"]) == (True, registration.SPACE)


def test_skull_stripped_image_is_recognised(done: Scan) -> None:
    assert "already skull-stripped" in done.why


def test_modulated_grey_matter_keeps_the_volume_of_the_scan(done: Scan) -> None:
    volumes = json.loads(done.related["volumes"].read_text())
    modulated = values(done.related["modulated"]).sum() * 4**3 / 1000
    assert modulated == pytest.approx(volumes["gm_ml"], rel=0.02)
    unmodulated = values(done.related["gm"]).sum() * 4**3 / 1000
    assert volumes["gm_ml"] / unmodulated == pytest.approx(SIZE**3, rel=0.08)


def test_tissues_are_probabilities_of_the_brain(done: Scan, template: registration.Template) -> None:
    inside = ndimage.binary_erosion(template.mask.values > 0, iterations=2)
    parts = [values(done.related[t]) for t in ("gm", "wm", "csf")]
    assert np.quantile(np.abs(sum(parts)[inside] - 1), 0.99) < 0.05
    assert np.corrcoef(parts[1][inside], template.wm.values[inside])[0, 1] > 0.7


def test_transforms_lead_there_and_back(done: Scan, template: registration.Template) -> None:
    forward = registration.read_transforms(done.related["to_standard"])
    noted = json.loads(done.related["from_standard"].read_text())
    back = [str(done.related["from_standard"].with_name(n)) for n in noted["Transforms"]]
    native = registration.read(done.related["native"])
    there = registration.resample(template.mask, native, back, inverted=noted["Invert"])
    again = registration.resample(there, template.mask, forward).values > 0.5
    expected = template.mask.values > 0
    assert 2 * (again & expected).sum() / (again.sum() + expected.sum()) > 0.95


def test_every_image_says_where_it_comes_from(done: Scan) -> None:
    for image in done.path.parent.glob("*.nii.gz"):
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
    spoil: Callable[[np.ndarray], np.ndarray], said: str, template: registration.Template, tmp_path: Path
) -> None:
    image = head(template)
    scan = scan_of(nib.Nifti1Image(spoil(np.asarray(image.dataobj)), image.affine), tmp_path)
    with pytest.raises(DataError, match=f"sub-01_T1w.*{said}"):
        t1w.prepare(scan, None, tmp_path)


def test_truncated_file_is_named(template: registration.Template, tmp_path: Path) -> None:
    scan = scan_of(head(template), tmp_path)
    scan.path.write_bytes(scan.path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"sub-01_T1w ends early"):
        t1w.prepare(scan, None, tmp_path)


def test_contradicting_orientations_are_refused(template: registration.Template, tmp_path: Path) -> None:
    image = head(template)
    image.set_sform(image.affine, 1)
    shifted = image.affine.copy()
    shifted[0, 3] += 20
    image.set_qform(shifted, 1)
    with pytest.raises(DataError, match=r"sub-01_T1w: qform and sform .* 20 mm"):
        t1w.prepare(scan_of(image, tmp_path), None, tmp_path)
