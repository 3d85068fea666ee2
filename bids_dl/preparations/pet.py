"""A raw PET becomes ratios of uptake (SUVR) in standard space, through the T1w."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bids_dl import derivatives, query, regions
from bids_dl import registration as reg
from bids_dl.errors import DataError, damaged
from bids_dl.records import Scan
from bids_dl.registration import Volume


def prepare(
    scan: Scan, anatomy: Scan | None, out: Path, *, resolution_mm: int = 2, reference: str = "Cerebelum", atlas: str = "aal",
    frames_s: Sequence[float] = (),
) -> Scan:  # fmt: skip
    """Average the frames, bring them onto the template, and divide by the mean of a reference region [1]_.

    Parameters
    ----------
    scan
        A raw PET, one volume or several frames.
    anatomy
        The prepared T1w of the participant; without it, the PET itself is brought onto the template, less exactly.
    out
        The output folder.
    resolution_mm
        Edge of a voxel in standard space.
    reference
        How the names of the reference region's parts begin, in the atlas.
    atlas
        Where the reference region is found.
    frames_s
        First and last second of the frames that are averaged, by ``FrameTimesStart``; empty means all.

    Returns
    -------
    Scan
        The SUVR in standard space, with its mask.

    Raises
    ------
    DataError
        If the image is damaged or empty, no frame lies in the window, the atlas has no such region, or there is no
        uptake in it.

    References
    ----------
    .. [1] Lopresti et al. (2005), Journal of Nuclear Medicine 46(12).
    """
    frame = _mean_frame(scan, frames_s)
    template = reg.template(resolution_mm)
    inside = template.mask.values > 0
    with tempfile.TemporaryDirectory() as folder:
        transforms = reg.to_standard(frame, anatomy, template, Path(folder))
        standard = reg.resample(frame, template.mask, transforms).values
    part = _reference_region(template.mask, atlas, reference) & inside
    level = float(standard[part].mean())
    if not level > 0:
        raise DataError(
            f"{scan.name}: there is no uptake in the reference region {reference}; look at the registration."
        )
    return _write(scan, out, template.mask.like(standard / level * inside), resolution_mm, reference, anatomy)


def _mean_frame(scan: Scan, frames_s: Sequence[float]) -> Volume:
    image = reg.open_image(scan)
    try:
        turned = nib.as_closest_canonical(image)
        values = np.nan_to_num(np.asarray(turned.dataobj, np.float32))
    except Exception as problem:  # nibabel, zlib and gzip raise many kinds for a damaged file
        raise damaged(scan.name, problem) from problem
    if values.ndim == 4:
        values = values[..., _chosen(scan, values.shape[3], frames_s)].mean(axis=3)
    if values.ndim != 3 or not np.ptp(values):
        raise DataError(f"{scan.name} has the shape {values.shape} and holds no uptake; look at the image.")
    return Volume(values, np.asarray(turned.affine))


def _chosen(scan: Scan, n_frames: int, frames_s: Sequence[float]) -> Any:
    """Choose the frames that begin inside the window."""
    if not frames_s:
        return slice(None)
    starts = query.sidecar(scan.path, scan.dataset).get("FrameTimesStart", [])
    if len(starts) != n_frames:
        raise DataError(f"{scan.name} has {n_frames} frames but FrameTimesStart {len(starts)}; mend the sidecar JSON.")
    chosen = [n for n, start in enumerate(starts) if frames_s[0] <= start < frames_s[-1]]
    if not chosen:
        raise DataError(
            f"{scan.name}: no frame begins between {frames_s[0]:g} and {frames_s[-1]:g} s; they begin at {starts}."
        )
    return chosen


def _reference_region(grid: Volume, atlas: str, reference: str) -> Any:
    """Find the voxels of the regions whose names begin with a word."""
    chosen = regions.load_atlas(atlas)
    numbers = [n + 1 for n, label in enumerate(chosen.labels) if label.lower().startswith(reference.lower())]
    if not numbers:
        raise DataError(
            f"the atlas {atlas} has no region that begins with '{reference}', as preparations.pet.reference asks."
        )
    return np.isin(regions.on_grid(chosen, grid.values.shape, grid.affine), numbers)


def _write(scan: Scan, out: Path, ratio: Volume, resolution_mm: int, reference: str, anatomy: Scan | None) -> Scan:
    folder = derivatives.folder_of(out, scan) / "pet"
    own = {k: v for k, v in scan.entities.items() if k not in {"suffix", "datatype"}}
    standard = {**own, "space": reg.SPACE, "res": str(resolution_mm)}
    path = folder / derivatives.name({**standard, "desc": "preproc"}, "pet", ".nii.gz")
    held = folder / derivatives.name({**standard, "desc": "brain"}, "mask", ".nii.gz")
    described = {"Sources": [derivatives.bids_uri(out, scan)], "SkullStripped": True, "Units": "SUVR",
                 "Resolution": f"{resolution_mm} mm isotropic", "ReferenceRegion": reference}  # fmt: skip
    derivatives.write_image(path, ratio.values, ratio.affine)
    derivatives.write_image(held, (ratio.values != 0).astype(np.uint8), ratio.affine)
    for image in (path, held):
        derivatives.write_json(derivatives.sidecar_path(image), described)
    through = "through the T1w" if anatomy is not None and "native" in anatomy.related else "without a T1w"
    entities = {**scan.entities, "space": reg.SPACE, "res": str(resolution_mm), "desc": "preproc"}
    return replace(
        scan, path=path, dataset=out, prepared=True, mask=held, entities=entities,
        why=f"prepared here from the raw scan, {through}",
    )  # fmt: skip
