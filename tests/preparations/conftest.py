"""A brain of known size and place, prepared once for all that follow it into standard space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_dl import derivatives, query, registration
from bids_dl.preparations import t1w
from bids_dl.records import Scan


@dataclass(frozen=True)
class Planted:
    """The template, and how anything that lies on it is moved into the planted scan."""

    template: registration.Template
    size: float = 0.9

    def place(self, values: np.ndarray, shift_mm: tuple[float, float, float] = (0, 0, 0)) -> nib.Nifti1Image:
        """Shrink, turn and shift a map, onto a grid whose first axis points to the left."""
        turned = np.eye(4)
        turned[:3, :3] = self.size * np.array([[0.995, -0.1, 0], [0.1, 0.995, 0], [0, 0, 1]])
        turned[:3, 3] = np.array([5, -8, 12]) + shift_mm
        affine = np.diag([-4.0, 4.0, 4.0, 1.0])
        affine[:3, 3] = (104, -140, -100)
        back = np.linalg.inv(self.template.brain.affine) @ np.linalg.inv(turned) @ affine
        moved = ndimage.affine_transform(values, back[:3, :3], back[:3, 3], output_shape=(52, 64, 52), order=1)
        return nib.Nifti1Image(moved.astype(np.float32), affine)

    def head(self) -> nib.Nifti1Image:
        """Give the template's brain an uneven brightness and noise, in its planted place."""
        image = self.place(self.template.brain.values)
        brain = np.asarray(image.dataobj)
        bias = 1 + 0.2 * np.linspace(-1, 1, 64)[None, :, None]
        noisy = brain * bias * (1 + 0.02 * np.random.default_rng(0).standard_normal(brain.shape))
        values = np.where(brain > 0.05 * brain.max(), 800 * noisy / brain.max(), 0)
        return nib.Nifti1Image(values.astype(np.float32), image.affine)

    def scan(self, image: nib.Nifti1Image, root: Path, datatype: str = "anat", suffix: str = "T1w") -> Scan:
        """Write an image as a raw scan."""
        path = root / "sub-01" / datatype / f"sub-01_{suffix}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)
        return Scan(path, query.entities(path), root, prepared=False)


@pytest.fixture(scope="session")
def planted() -> Planted:
    return Planted(registration.template(4))


@pytest.fixture(scope="session")
def anatomy(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """Prepare the planted brain once, on a coarse grid."""
    root, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("out")
    derivatives.write_description(out, {"bids": root})
    return t1w.prepare(planted.scan(planted.head(), root), None, out, resolution_mm=4, working_mm=3)
