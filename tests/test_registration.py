"""What another program's transform says of volumes is taken as it is: nothing is lost, nothing gained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ants
import nibabel as nib
import numpy as np
import pytest
from conftest import write_derivative, write_image

from bids_dl import derivatives, query, registration
from bids_dl.errors import DataError
from bids_dl.records import Scan
from bids_dl.registration import Volume

AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
AFFINE[:3, 3] = (-90, -126, -72)
SHAPE = (45, 54, 45)
TURNED = np.array([[0.9, -0.2, 0.0], [0.1, 1.1, 0.1], [0.0, 0.0, 0.8]])


def grey() -> Volume:
    """Two soft balls in native space, one on either side."""
    at = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), axis=-1) * 4 + AFFINE[:3, 3]
    balls = [
        1 / (1 + np.exp((np.linalg.norm(at - centre, axis=-1) - 25) / 3)) for centre in ((-32, -20, 5), (32, 0, 10))
    ]
    return Volume(np.sum(balls, axis=0).astype(np.float32), AFFINE)


def wave() -> ants.ANTsTransform:
    """Stretch one side and squeeze the other along the first axis, by a quarter at most."""
    at = np.arange(SHAPE[0]) * 4 + AFFINE[0, 3]
    field = np.zeros((*SHAPE, 3), np.float32)
    field[..., 0] = (7.5 * (1 - np.cos(np.pi * at / 90)))[:, None, None]
    on = registration.to_ants(Volume(field[..., 0], AFFINE))
    return ants.transform_from_displacement_field(
        ants.from_numpy(field, on.origin, on.spacing, on.direction, has_components=True)
    )


def write_composite(path: Path, matrix: np.ndarray, *more: ants.ANTsTransform) -> Path:
    """Write a composite as antsRegistration does for fMRIPrep: a matrix (about the origin), with what follows it."""
    affine = ants.new_ants_transform(precision="float", dimension=3, transform_type="AffineTransform")
    affine.set_parameters(np.append(matrix.ravel(), [2.0, -3.0, 4.0]))
    affine.set_fixed_parameters([0.0, 0.0, 0.0])
    path.parent.mkdir(parents=True, exist_ok=True)
    ants.write_transform(ants.compose_ants_transforms([*more, affine]), str(path))
    return path


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., Scan]:
    """Lay out fMRIPrep's T1w with its grey matter brought into standard space by a known transform."""

    def make(matrix: np.ndarray, *more: ants.ANTsTransform) -> Scan:
        root, out = tmp_path / "fmriprep", tmp_path / "out"
        write_derivative(root)
        derivatives.write_description(out, {"bids": root})
        stem = root / "sub-01" / "anat" / "sub-01_space-MNI152NLin2009cAsym"
        given = write_composite(
            stem.with_name("sub-01_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.h5"), matrix, *more
        )
        moved = registration.resample(grey(), Volume(np.zeros(SHAPE, np.float32), AFFINE), [given])
        gm = write_image(Path(f"{stem}_label-GM_probseg.nii.gz"), moved.values, AFFINE)
        path = write_image(Path(f"{stem}_desc-preproc_T1w.nii.gz"), moved.values, AFFINE)
        return Scan(path, query.entities(path), root, related={"gm": gm, "composite": given})

    return make


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.mark.parametrize("matrix", [1.2 * np.eye(3), 0.85 * np.eye(3), TURNED], ids=["larger", "smaller", "sheared"])
def test_modulation_by_a_known_matrix_keeps_the_volume_that_was_lost(prepared, tmp_path: Path, matrix) -> None:
    scan = prepared(matrix)
    native, moved = grey().values.sum(), values(scan.related["gm"]).sum()
    assert abs(moved / native * np.linalg.det(matrix) - 1) < 0.02 < abs(moved / native - 1)
    modulated = registration.modulate(scan, tmp_path / "out").related["modulated"]
    assert values(modulated).sum() == pytest.approx(native, rel=0.02)


def test_matrix_and_warp_count_together_at_every_place(prepared, tmp_path: Path) -> None:
    scan = prepared(1.1 * np.eye(3), wave())
    done = registration.modulate(scan, tmp_path / "out")
    modulated, unmodulated, native = values(done.related["modulated"]), values(scan.related["gm"]), grey().values
    half = SHAPE[0] // 2
    for side in (slice(half), slice(half, None)):
        assert modulated[side].sum() == pytest.approx(native[side].sum(), rel=0.02)
    lost = [unmodulated[side].sum() / native[side].sum() for side in (slice(half), slice(half, None))]
    assert max(lost) / min(lost) > 1.3


def test_damaged_transform_is_named(prepared, tmp_path: Path) -> None:
    scan = prepared(1.2 * np.eye(3))
    place = scan.related["composite"]
    place.write_bytes(place.read_bytes()[:500])
    with pytest.raises(DataError, match=r"sub-01_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm\.h5 ends early"):
        registration.modulate(scan, tmp_path / "out")


def test_fmriprep_transform_and_head_are_found_beside_its_t1w(prepared) -> None:
    scan = prepared(np.eye(3))
    head = write_image(scan.path.with_name("sub-01_desc-preproc_T1w.nii.gz"), grey().values, AFFINE)
    found = query._with_companions(Scan(scan.path, scan.entities, scan.dataset))
    assert {role: found.related[role] for role in ("head", "composite", "gm")} == {**scan.related, "head": head}
