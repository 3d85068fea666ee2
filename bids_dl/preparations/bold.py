"""A raw BOLD, minimally prepared: motion, registration through the T1w to standard space, confounds. No slice timing, no fieldmaps."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_dl import confounds, derivatives, motion, signals
from bids_dl import registration as reg
from bids_dl.errors import DataError, damaged
from bids_dl.records import Array, Scan
from bids_dl.registration import Volume

MIN_VOLUMES = 10
FAR_MM, COARSE_MM = 40.0, 8.0
LARGEST_VALUE = 30_000
DESCRIPTION = (
    "Minimal preparation by bids_dl: rigid motion correction and registration through the T1w in one interpolation; "
    "no slice timing and no distortion correction."
)


def prepare(
    scan: Scan, anatomy: Scan | None, out: Path, *, resolution_mm: int = 3, interpolation_order: int = 3
) -> Scan:
    """Align the volumes with one another and with the template, and write the confounds that fMRIPrep would name so.

    Parameters
    ----------
    scan
        A raw BOLD series.
    anatomy
        The prepared T1w of the participant, with its transforms; without, the mean volume itself is brought onto the
        template, which is less exact.
    out
        The output folder.
    resolution_mm
        Edge of a voxel in standard space.
    interpolation_order
        Of the splines by which each volume is read, once: 1 is linear and quick, 3 cubic.

    Returns
    -------
    Scan
        The series in standard space, with its mask and a table of confounds: motion (mm, rad), framewise displacement
        (mm; [1]_), mean signals of white matter, CSF and the brain, their derivatives and squares, DVARS, components of
        noise in eroded white matter and CSF, and slow cosines.

    Raises
    ------
    DataError
        If the image is damaged or no series, there are fewer than 10 volumes, no brain is found, or the repetition time
        is unknown.

    References
    ----------
    .. [1] Power et al. (2012), NeuroImage 59(3). doi:10.1016/j.neuroimage.2011.10.018
    """
    volumes, affine, period = _load(scan)
    mean = Volume(volumes.mean(axis=3, dtype=np.float32), affine)
    mask = _brain_of(scan, mean)
    moved = motion.estimate(volumes, affine, mask)
    centre = motion.centre_of(mask, affine)
    steady = _steady_mean(volumes, affine, moved, centre)
    template = reg.template(resolution_mm)
    inside = template.mask.values > 0
    with tempfile.TemporaryDirectory() as folder:
        points, seen = _standard_points(mean.like(steady * mask), anatomy, template, Path(folder))
    matrices = [motion.matrix(p, centre) for p in moved]
    series = np.stack(
        [
            motion.at_points(Volume(volumes[..., t], affine), points, matrix, order=interpolation_order)
            for t, matrix in enumerate(matrices)
        ]
    )  # fmt: skip
    table, columns = _confounds(moved, series, _tissues(anatomy, template, inside), period)
    done = _write(scan, out, resolution_mm, series, inside, seen, template, period, anatomy)
    return _with_confounds(done, table, columns)


def _load(scan: Scan) -> tuple[Array, Array, float]:
    """Read the series, its axes turned to right, anterior, superior; and the seconds between volumes."""
    image = reg.open_image(scan)
    if len(image.shape) != 4 or image.shape[3] < MIN_VOLUMES:
        n = image.shape[3] if len(image.shape) == 4 else 1
        raise DataError(f"{scan.name} has {n} volume{'s' if n > 1 else ''}; at least {MIN_VOLUMES} are needed.")
    period = signals.repetition_time(scan, image)
    turned = nib.as_closest_canonical(image)
    try:
        volumes = np.asarray(turned.dataobj)
    except Exception as problem:  # nibabel, zlib and gzip raise many kinds for a damaged file
        raise damaged(scan.name, problem) from problem
    if not np.ptp(volumes[..., len(volumes.T) // 2]):
        raise DataError(f"{scan.name} holds the same value in every voxel; look at the image.")
    return volumes, np.asarray(turned.affine), period


def _brain_of(scan: Scan, mean: Volume) -> Any:
    """Find the brain in the mean volume, by the gap between the intensities of brain and background."""
    from nilearn.masking import compute_epi_mask

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an empty mask is refused below
            mask = np.asarray(compute_epi_mask(nib.Nifti1Image(mean.values, mean.affine)).dataobj) > 0
    except Exception as problem:  # nilearn warns or raises by version where nothing is left
        raise DataError(
            f"{scan.name}: no brain was found in the mean volume ({problem}); look at the image."
        ) from problem
    if mask.sum() < 500:
        raise DataError(f"{scan.name}: the brain found in the mean volume has {mask.sum()} voxels; look at the image.")
    return mask


def _steady_mean(volumes: Array, affine: Array, moved: Array, centre: Array) -> Array:
    """Average some volumes after undoing the motion."""
    chosen = np.unique(np.linspace(0, len(moved) - 1, 30).astype(int))
    return np.asarray(np.mean([motion.resampled(volumes[..., t], affine, moved[t], centre) for t in chosen], axis=0))


def _standard_points(mean: Volume, anatomy: Scan | None, template: reg.Template, folder: Path) -> tuple[Array, Any]:
    """Find the point of the scan (mm) that each voxel of the standard brain comes from, and whether the scan covers it."""
    transforms = reg.to_standard(mean, anatomy, template, folder)
    grid = _wide_grid(mean)
    at = np.stack(np.meshgrid(*[np.arange(n) for n in grid.values.shape], indexing="ij"), axis=-1)
    places = at @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    inside = template.mask.values > 0
    points = np.column_stack(
        [reg.resample(grid.like(places[..., axis]), template.mask, transforms).values[inside] for axis in range(3)]
    )
    voxels = np.linalg.inv(mean.affine)
    at_scan = points @ voxels[:3, :3].T + voxels[:3, 3]
    return points, ((at_scan >= -0.5) & (at_scan <= np.array(mean.values.shape) - 0.5)).all(axis=1)


def _wide_grid(mean: Volume) -> Volume:
    """Lay a coarse grid over the scan and beyond, on which a coordinate is linear: reading between its points is exact."""
    corners = np.array([[*c, 1] for c in np.ndindex(2, 2, 2)]) * [*np.array(mean.values.shape) - 1, 1]
    at = (corners @ mean.affine.T)[:, :3]
    affine = np.diag([COARSE_MM] * 3 + [1.0])
    affine[:3, 3] = at.min(axis=0) - FAR_MM
    n = np.ceil((np.ptp(at, axis=0) + 2 * FAR_MM) / COARSE_MM).astype(int) + 1
    return Volume(np.zeros(tuple(n), np.float32), affine)


def _tissues(anatomy: Scan | None, template: reg.Template, inside: Any) -> dict[str, Any]:
    """Choose the voxels that are surely white matter or CSF: by the participant's T1w, else by the template."""
    found = {}
    for role, name in (("wm", "white_matter"), ("csf", "csf")):
        if anatomy is not None and role in anatomy.related:
            sure = reg.resample(reg.read(anatomy.related[role]), template.mask).values
        else:
            sure = getattr(template, role).values
        deep = ndimage.binary_erosion(sure > 0.9)
        found[name] = (deep if deep[inside].sum() > 30 else sure > 0.8)[inside]
    return found | {"global_signal": np.ones(int(inside.sum()), bool)}


def _confounds(
    moved: Array, series: Array, tissues: Mapping[str, Any], period: float
) -> tuple[Any, dict[str, dict[str, Any]]]:
    """Gather the columns that fMRIPrep writes, under its names, with their metadata."""
    import pandas as pd

    names = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
    basic = dict(zip(names, moved.T, strict=True))
    basic |= {name: series[:, voxels].mean(axis=1) for name, voxels in tissues.items() if voxels.any()}
    columns: dict[str, Array] = {}
    for name, values in basic.items():
        change = np.append(np.nan, np.diff(values))
        columns |= {name: values, f"{name}_derivative1": change, f"{name}_power2": values**2,
                    f"{name}_derivative1_power2": change**2}  # fmt: skip
    columns |= {"framewise_displacement": motion.displacement(moved), **confounds.dvars(series)}
    slow = confounds.cosines(len(moved), period)
    noise, described = confounds.components(series, tissues["csf"], tissues["white_matter"], slow)
    table = pd.DataFrame(columns | noise | slow)
    return table, {c: described.get(c, {"Method": "bids_dl"}) for c in table}


def _write(
    scan: Scan, out: Path, resolution_mm: int, series: Array, inside: Any, seen: Any, template: reg.Template,
    period: float, anatomy: Scan | None,
) -> Scan:  # fmt: skip
    folder = derivatives.folder_of(out, scan) / "func"
    own = {k: v for k, v in scan.entities.items() if k not in {"suffix", "datatype"}}
    standard = {**own, "space": reg.SPACE, "res": str(resolution_mm)}
    path = folder / derivatives.name({**standard, "desc": "preproc"}, "bold", ".nii.gz")
    held = folder / derivatives.name({**standard, "desc": "brain"}, "mask", ".nii.gz")
    described = {"Sources": [derivatives.bids_uri(out, scan)], "SkullStripped": True,
                 "Resolution": f"{resolution_mm} mm isotropic", "RepetitionTime": period, "TaskName": own.get("task", "rest"),
                 "Description": DESCRIPTION}  # fmt: skip
    factor = (
        min(1.0, LARGEST_VALUE / max(float(series.max()), 1.0)) if series.max() > 1000 else 10_000 / float(series.max())
    )
    volumes = np.zeros((*inside.shape, len(series)), np.int16)
    volumes[inside] = np.rint(series.T * factor * seen[:, None]).astype(np.int16)
    derivatives.write_image(path, volumes, template.mask.affine, period)
    mask = np.zeros(inside.shape, np.uint8)
    mask[inside] = seen & (np.abs(series).max(axis=0) > 0)
    derivatives.write_image(held, mask, template.mask.affine)
    for image in (path, held):
        derivatives.write_json(derivatives.sidecar_path(image), described)
    through = "through the T1w" if anatomy is not None and "native" in anatomy.related else "without a T1w"
    return replace(
        scan, path=path, dataset=out, prepared=True, mask=held, why=f"prepared here from the raw scan, {through}",
        entities={**scan.entities, "space": reg.SPACE, "res": str(resolution_mm), "desc": "preproc"},
    )  # fmt: skip


def _with_confounds(done: Scan, table: Any, described: Mapping[str, Any]) -> Scan:
    """Write the confounds beside a prepared series, and name them in its scan."""
    own = {k: v for k, v in done.entities.items() if k not in {"suffix", "datatype", "space", "res"}}
    path = done.path.with_name(derivatives.name({**own, "desc": "confounds"}, "timeseries", ".tsv"))
    derivatives.write_table(path, table)
    derivatives.write_json(derivatives.sidecar_path(path), described)
    return replace(done, confounds=path)
