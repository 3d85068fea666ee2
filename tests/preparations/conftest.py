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

    @property
    def matrix(self) -> np.ndarray:
        """Where a point of the template (mm) lies in the scan."""
        turned = np.eye(4)
        turned[:3, :3] = self.size * np.array([[0.995, -0.1, 0], [0.1, 0.995, 0], [0, 0, 1]])
        turned[:3, 3] = (5, -8, 12)
        return turned

    def place(self, values: np.ndarray, shift_mm: tuple[float, float, float] = (0, 0, 0)) -> nib.Nifti1Image:
        """Shrink, turn and shift a map, onto a grid whose first axis points to the left."""
        turned = self.matrix
        turned[:3, 3] += shift_mm
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

    def fmriprep(self, root: Path) -> Scan:
        """Lay out what fMRIPrep leaves of the head: itself, its copy in standard space with a mask, and ITK's composite."""
        import ants

        lps = np.diag([-1, -1, 1, 1]) @ self.matrix @ np.diag([-1, -1, 1, 1])
        affine = ants.new_ants_transform(precision="float", dimension=3, transform_type="AffineTransform")
        affine.set_parameters(np.append(lps[:3, :3].ravel(), lps[:3, 3]))
        affine.set_fixed_parameters([0.0, 0.0, 0.0])
        own, standard = root / "sub-01" / "anat" / "sub-01", "space-MNI152NLin2009cAsym"
        related = {"head": Path(f"{own}_desc-preproc_T1w.nii.gz"),
                   "composite": Path(f"{own}_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.h5")}  # fmt: skip
        own.parent.mkdir(parents=True, exist_ok=True)
        nib.save(self.head(), related["head"])
        ants.write_transform(ants.compose_ants_transforms([affine]), str(related["composite"]))
        path, mask = Path(f"{own}_{standard}_desc-preproc_T1w.nii.gz"), Path(f"{own}_{standard}_desc-brain_mask.nii.gz")
        for place, volume in ((path, self.template.brain), (mask, self.template.mask)):
            nib.save(nib.Nifti1Image(volume.values, volume.affine), place)
        return Scan(path, query.entities(path), root, mask=mask, related=related)


@pytest.fixture(scope="session")
def planted() -> Planted:
    return Planted(registration.template(4))


@pytest.fixture(scope="session")
def anatomy(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """Prepare the planted brain once, on a coarse grid."""
    root, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("out")
    derivatives.write_description(out, {"bids": root})
    return t1w.prepare(planted.scan(planted.head(), root), None, out, resolution_mm=4, working_mm=3)
