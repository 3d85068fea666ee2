"""Images brought onto one another, rigid or deformable, and onto the MNI template."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_dl import derivatives, query, regions, volumes
from bids_dl.errors import DataError, damaged
from bids_dl.records import Array, Scan

SPACE = "MNI152NLin2009aSym"
"""The space of the template that nilearn ships, as BIDS calls it."""

SEED = 1
NUCLEI = ("Caudate", "Putamen", "Pallidum", "Thalamus", "Accumbens")
"""Starts of the names of deep grey matter in the atlas Neuromorphometrics, after the side."""
LARGEST_DISAGREEMENT_MM = 4.0
"""Two orientations of one header may differ by this much at a corner of the image."""


@dataclass(frozen=True)
class Volume:
    """One volume (x, y, z) with its affine to mm (RAS)."""

    values: Array
    affine: Array

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel, in mL."""
        return float(abs(np.linalg.det(self.affine[:3, :3])) / 1000)

    def like(self, values: Array) -> Volume:
        """Return other values on the same grid."""
        return Volume(values, self.affine)


@dataclass(frozen=True)
class Template:
    """The MNI152 template: the brain's intensities, its mask, and the probabilities of CSF, grey and white matter.

    ``nuclei`` is the probability of grey matter that lies deep, and is nearly as bright as white matter on a T1w.
    """

    brain: Volume
    mask: Volume
    csf: Volume
    gm: Volume
    wm: Volume
    nuclei: Volume


@dataclass(frozen=True)
class Transforms:
    """Files that ANTs applies to bring an image into another space (``forward``) and back (``backward``)."""

    forward: tuple[str, ...]
    backward: tuple[str, ...]

    def inverted(self) -> list[bool]:
        """Tell which files of ``backward`` are applied inverted: the affine ones."""
        return [name.endswith(".mat") for name in self.backward]


def load(scan: Scan) -> Volume:
    """Read one volume of a raw scan, its axes turned to right, anterior, superior.

    Raises
    ------
    DataError
        If the file is damaged, holds not one volume, is empty, or its header contradicts itself.
    """
    image = open_image(scan)
    if int(np.prod(image.shape[3:])) != 1 or len(image.shape) < 3:
        raise DataError(f"{scan.name} has the shape {image.shape}; one volume is expected.")
    try:
        values = np.asarray(nib.as_closest_canonical(image).dataobj, np.float32)
    except Exception as problem:  # nibabel, zlib and gzip raise many kinds for a damaged file
        raise damaged(scan.name, problem) from problem
    values = np.nan_to_num(values.reshape(values.shape[:3]))
    if not np.ptp(values):
        raise DataError(f"{scan.name} holds the same value in every voxel; look at the image.")
    return Volume(values, np.asarray(nib.as_closest_canonical(image).affine))


def open_image(scan: Scan) -> Any:
    """Open an image and check its header.

    Raises
    ------
    DataError
        If it cannot be opened, or qform and sform place it at different points.
    """
    try:
        image = nib.load(scan.path)
    except Exception as problem:  # nibabel raises many kinds for a damaged header
        raise damaged(scan.name, problem) from problem
    (qform, q_code), (sform, s_code) = (get(coded=True) for get in (image.get_qform, image.get_sform))
    if q_code and s_code:
        corners = np.array([[*c, 1] for c in np.ndindex(2, 2, 2)]) * [*np.array(image.shape[:3]) - 1, 1]
        apart = np.linalg.norm(corners @ (qform - sform).T, axis=1).max()
        if apart > LARGEST_DISAGREEMENT_MM:
            raise DataError(
                f"{scan.name}: qform and sform of its header disagree by {apart:.0f} mm; find out which is right and set "
                "the code of the other to 0."
            )
    return image


def read(path: Path) -> Volume:
    """Read a volume that a preparation wrote."""
    image = nib.load(path)
    return Volume(np.asarray(image.dataobj, np.float32), np.asarray(image.affine))


def read_transforms(path: Path) -> tuple[tuple[Path, ...], tuple[bool, ...]]:
    """Read a list of transforms, whose files lie relative to it, and which of them ANTs inverts."""
    content = query.read_json(path)
    files = tuple(path.parent / name for name in content["Transforms"])
    return files, tuple(content.get("Invert") or [False] * len(files))


@lru_cache(maxsize=2)
def template(resolution_mm: int) -> Template:
    """Load the ICBM 2009a nonlinear symmetric template that nilearn ships, at a resolution [1]_.

    References
    ----------
    .. [1] Fonov et al. (2011), NeuroImage 54(1). doi:10.1016/j.neuroimage.2010.07.033
    """
    from nilearn import datasets

    images = {
        "brain": datasets.load_mni152_template(resolution_mm), "mask": datasets.load_mni152_brain_mask(resolution_mm),
        "gm": datasets.load_mni152_gm_template(resolution_mm), "wm": datasets.load_mni152_wm_template(resolution_mm),
    }  # fmt: skip
    values = {name: np.asarray(image.dataobj, np.float32) for name, image in images.items()}
    affine, mask = np.asarray(images["mask"].affine), values["mask"] > 0
    gm, wm = (np.clip(values[name] / values[name].max(), 0, 1) * mask for name in ("gm", "wm"))
    parts = {"brain": values["brain"] * mask, "mask": mask.astype(np.float32), "gm": gm, "wm": wm}
    parts["csf"] = np.clip(mask - gm - wm, 0, 1)
    held = {name: Volume(part, affine) for name, part in parts.items()}
    return Template(**held, nuclei=_nuclei(held["mask"]))


def _nuclei(mask: Volume, fwhm_mm: float = 2.4) -> Volume:
    """Take deep grey matter from an atlas, smoothed by as much as a registration errs."""
    atlas = regions.load_atlas("neuromorphometrics")
    inside = [
        i for i, label in zip(atlas.indices, atlas.labels, strict=True) if label.partition("_")[2].startswith(NUCLEI)
    ]
    image = nib.load(atlas.path)
    sigma = fwhm_mm / 2.355 / np.array(image.header.get_zooms()[:3])
    smooth = ndimage.gaussian_filter(np.isin(np.asarray(image.dataobj), inside).astype(np.float32), sigma)
    return mask.like(resample(Volume(smooth, np.asarray(image.affine)), mask).values * mask.values)


def largest_part(inside: Any) -> Any:
    """Keep the largest connected part of a mask."""
    parts, n_parts = ndimage.label(inside)
    return parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]) if n_parts > 1 else inside


def grid_around(mask: Volume, spacing_mm: float, margin_mm: float = 6.0) -> Volume:
    """Lay an empty grid of cubic voxels, with axes along RAS, around a mask."""
    at = np.argwhere(mask.values > 0) @ mask.affine[:3, :3].T + mask.affine[:3, 3]
    low, high = np.floor(at.min(axis=0) - margin_mm), np.ceil(at.max(axis=0) + margin_mm)
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = low
    return Volume(np.zeros(tuple(np.ceil((high - low) / spacing_mm).astype(int)), np.float32), affine)


def to_ants(volume: Volume) -> Any:
    """Hand a volume to ANTs, whose world is left, posterior, superior."""
    import ants

    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return ants.from_numpy(
        np.asarray(volume.values, np.float32), origin=tuple(affine[:3, 3]), spacing=tuple(spacing),
        direction=affine[:3, :3] / spacing,
    )  # fmt: skip


def resample(
    volume: Volume,
    grid: Volume,
    transforms: Sequence[str | Path] = (),
    *,
    inverted: Sequence[bool] = (),
    nearest: bool = False,
) -> Volume:
    """Bring a volume onto a grid through ANTs' transforms, applied from the last to the first."""
    import ants

    moved = ants.apply_transforms(
        to_ants(grid), to_ants(volume), [str(t) for t in transforms], interpolator="nearestNeighbor" if nearest else "linear",
        whichtoinvert=list(inverted) or None,
    )  # fmt: skip
    return grid.like(moved.numpy())


def rigid(moving: Volume, fixed: Volume, folder: Path) -> Transforms:
    """Find the rotation and shift that bring one image of a person onto another (mutual information)."""
    return _register(moving, fixed, folder, type_of_transform="Rigid", aff_metric="mattes")


def deform(moving: Volume, fixed: Volume, folder: Path) -> Transforms:
    """Bring a brain onto the template: affine, then symmetric normalisation (SyN) [1]_.

    References
    ----------
    .. [1] Avants et al. (2008), Medical Image Analysis 12(1). doi:10.1016/j.media.2007.06.004
    """
    return _register(moving, fixed, folder, type_of_transform="SyN", reg_iterations=(40, 40, 10))


def _register(moving: Volume, fixed: Volume, folder: Path, **how: Any) -> Transforms:
    import ants

    prefix = tempfile.mkdtemp(dir=folder) + "/"
    found = ants.registration(to_ants(fixed), to_ants(moving), outprefix=prefix, random_seed=SEED, **how)
    backward = list(found["invtransforms"])
    return Transforms(tuple(found["fwdtransforms"]), tuple(backward))


def to_standard(moving: Volume, anatomy: Scan | None, template: Template, folder: Path) -> list[str]:
    """Find what brings an image of a person into standard space: through the T1w where there is one, else directly.

    Parameters
    ----------
    moving
        The image, without its skull.
    anatomy
        The prepared T1w; None, or one that another program prepared, leaves the direct way.
    template
        Where to.
    folder
        Where the transforms are written.

    Returns
    -------
    list of str
        Files, as ANTs applies them.
    """
    if anatomy is None or "native" not in anatomy.related:
        return list(deform(moving, template.brain, folder).forward)
    to_anatomy = rigid(moving, read(anatomy.related["native"]), folder)
    return [*map(str, read_transforms(anatomy.related["to_standard"])[0]), *to_anatomy.forward]


def volume_change(transforms: Transforms, grid: Volume) -> Volume:
    """Tell by how much each voxel of the template was larger in the person: the Jacobian determinant.

    A map times this keeps its sum: what is modulated is a volume, not a density [1]_.

    References
    ----------
    .. [1] Ashburner & Friston (2000), NeuroImage 11(6). doi:10.1006/nimg.2000.0582
    """
    import ants

    warp, affine = transforms.forward
    local = ants.create_jacobian_determinant_image(to_ants(grid), warp).numpy()
    matrix = np.reshape(ants.read_transform(affine).parameters[:9], (3, 3))
    return grid.like(local * abs(np.linalg.det(matrix)))


def whole_change(transform: Path, grid: Volume) -> Volume:
    """Tell the same of one file that holds a whole transform, affine and warp: ITK's composite, as fMRIPrep leaves it."""
    import ants

    on = to_ants(grid)
    with tempfile.TemporaryDirectory() as folder, _readable(transform):
        field = ants.apply_transforms(on, on, [str(transform)], compose=f"{folder}/")
        return grid.like(np.abs(ants.create_jacobian_determinant_image(on, field).numpy()))


@contextmanager
def _readable(transform: Path) -> Iterator[None]:
    """Say which transform it was that ANTs could not read."""
    try:
        yield
    except RuntimeError as problem:  # ANTs says no more than that it failed
        raise damaged(transform.name, problem) from problem


def modulate(scan: Scan, out: Path) -> Scan:
    """Modulate another program's grey matter by its own transform, and write it.

    Parameters
    ----------
    scan
        A prepared T1w with the roles ``gm`` (probability in standard space) and ``composite`` (ITK's, from the
        participant's T1w to that space).
    out
        The output folder.

    Returns
    -------
    Scan
        The same with the role ``modulated``: volume of grey matter by volume of template, on the grid of ``gm``.

    Raises
    ------
    DataError
        If the map or the transform is damaged.
    """
    values, affine = volumes.load(scan.related["gm"], f"{scan.name}: its grey matter")
    change = whole_change(scan.related["composite"], Volume(values, affine))
    own = {k: v for k, v in scan.entities.items() if k not in {"suffix", "datatype"}}
    named = derivatives.name({**own, "label": "GM", "desc": "modulated"}, "probseg", ".nii.gz")
    path = derivatives.folder_of(out, scan) / "anat" / named
    sources = [derivatives.bids_uri(out, replace(scan, path=scan.related[role])) for role in ("gm", "composite")]
    spacing = " x ".join(f"{step:.2g}" for step in np.linalg.norm(affine[:3, :3], axis=0))
    derivatives.write_image(path, np.nan_to_num(values) * change.values, affine)
    derivatives.write_json(
        derivatives.sidecar_path(path), {"Sources": sources, "SkullStripped": True, "Resolution": f"{spacing} mm"}
    )
    return replace(scan, related={**scan.related, "modulated": path})


def correct_bias(volume: Volume, mask: Volume) -> Volume:
    """Remove the slow unevenness of the intensities inside a mask (N4) [1]_.

    References
    ----------
    .. [1] Tustison et al. (2010), IEEE Transactions on Medical Imaging 29(6). doi:10.1109/TMI.2010.2046908
    """
    import ants

    corrected = ants.n4_bias_field_correction(
        to_ants(volume), mask=to_ants(mask), shrink_factor=4 if min(volume.values.shape) > 150 else 2,
        convergence={"iters": [30, 30, 20], "tol": 1e-6},
    )  # fmt: skip
    return volume.like(corrected.numpy() * (mask.values > 0))


def follow_anatomy(scan: Scan, anatomy: Scan | None, out: Path, resolution_mm: int) -> Scan:
    """Align another image of a head to the T1w, and take it along into the T1w's standard space.

    Raises
    ------
    DataError
        If the image is damaged or empty, or there is no T1w that it can follow: one prepared here, or another
        program's with its head in native space, its mask, and its transform to standard space.
    """
    way = _way_of(scan, anatomy, resolution_mm)
    head = load(scan)
    with tempfile.TemporaryDirectory() as folder:
        aligned = rigid(head, way.head, Path(folder)).forward
        with _readable(way.transforms[0]):
            standard = resample(head, way.mask, [*way.transforms, *aligned])
    return write_brain(scan, out, standard, way.mask, resolution_mm, space=way.space)


@dataclass(frozen=True)
class _Way:
    """The T1w's head as scanned, and what brings it into standard space, onto the grid of the brain's mask there."""

    head: Volume
    transforms: tuple[Path, ...]
    mask: Volume
    space: str


def _way_of(scan: Scan, anatomy: Scan | None, resolution_mm: int) -> _Way:
    related = anatomy.related if anatomy else {}
    if anatomy and "native" in related:
        return _Way(
            read(related["raw"]), read_transforms(related["to_standard"])[0], template(resolution_mm).mask, SPACE
        )
    if anatomy and anatomy.mask and {"head", "composite"} <= set(related):
        head, mask = (Volume(*volumes.load(path, path.name)) for path in (related["head"], anatomy.mask))
        inside = resample(mask, grid_around(mask, resolution_mm), nearest=True)
        return _Way(head, (related["composite"],), inside, anatomy.entities["space"])
    raise DataError(
        f"{scan.name} needs a T1w of the same participant, to which it is aligned: a raw one, or fMRIPrep's with its "
        "desc-preproc_T1w and its from-T1w_to-…_xfm.h5; there is none."
    )


def write_brain(
    scan: Scan, out: Path, standard: Volume, mask: Volume, resolution_mm: int, *, space: str = SPACE
) -> Scan:
    """Write an image of a brain in standard space with its mask, and describe it as a scan that is ready."""
    own = {k: v for k, v in scan.entities.items() if k not in {"suffix", "datatype"}}
    named = {**own, "space": space, "res": str(resolution_mm)}
    folder, suffix = derivatives.folder_of(out, scan) / "anat", scan.entities["suffix"]
    inside = (mask.values > 0) & (standard.values != 0)
    path = folder / derivatives.name({**named, "desc": "preproc"}, suffix, ".nii.gz")
    held = folder / derivatives.name({**named, "desc": suffix.lower()}, "mask", ".nii.gz")
    described = {"Sources": [derivatives.bids_uri(out, scan)], "SkullStripped": True,
                 "Resolution": f"{resolution_mm} mm isotropic"}  # fmt: skip
    derivatives.write_image(path, standard.values * inside, standard.affine)
    derivatives.write_image(held, inside.astype(np.uint8), mask.affine)
    for image in (path, held):
        derivatives.write_json(derivatives.sidecar_path(image), described)
    entities = {**scan.entities, **named, "desc": "preproc"}
    return replace(
        scan, path=path, dataset=out, prepared=True, mask=held, entities=entities,
        why="prepared here from the raw scan, through the T1w",
    )  # fmt: skip
