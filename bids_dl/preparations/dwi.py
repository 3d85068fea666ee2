"""A raw dwi becomes maps of the tensor: noise, motion, brain, fractional anisotropy and mean diffusivity, in standard space."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_dl import derivatives, query
from bids_dl import registration as reg
from bids_dl.errors import DataError, damaged
from bids_dl.records import Array, Scan
from bids_dl.registration import Volume

GIVES = ("dwi", "dwimap")
"""Kinds of scan that come out."""

B0 = 50.0
"""Weightings up to this (s/mm²) count as none: some scanners write 5 or 40 for 0."""

LARGEST_B = 1500.0
"""Beyond, the decay is no longer that of one tensor; such volumes are left out where enough others remain."""

FAINT_B = 2000.0
"""Beyond, a single volume shows too little of the brain to be aligned with another."""

BRAIN_ML = (300.0, 2600.0)
STILL_MM = 0.05
"""A volume that lies closer than this to the first is not interpolated."""


@dataclass(frozen=True)
class Diffusion:
    """Volumes (x, y, z, volume), axes along RAS, with weighting (s/mm²) and unit direction along the voxel axes."""

    volumes: Array
    affine: Array
    bvals: Array
    directions: Array

    @property
    def is_b0(self) -> Any:
        """Which volumes are not weighted, (volume,)."""
        return self.bvals <= B0

    @property
    def b0(self) -> Array:
        """Mean of the volumes without weighting, (x, y, z)."""
        return np.asarray(self.volumes[..., self.is_b0].mean(axis=3))


@dataclass(frozen=True)
class Way:
    """Files that ANTs applies: into standard space, and back with which of them inverted; and a phrase for the report."""

    forward: tuple[Path, ...]
    backward: tuple[Path, ...]
    inverted: tuple[bool, ...]
    said: str


def prepare(
    scan: Scan, anatomy: Scan | None, out: Path, *, denoise: bool = True, correct_motion: bool = True,
    resolution_mm: int = 2,
) -> list[Scan]:  # fmt: skip
    """Remove noise [1]_ and motion (rigid; the directions turn along [2]_), fit a tensor [3]_ and bring it to MNI space.

    Susceptibility and eddy currents are not corrected: where a QSIPrep derivative exists, it is the better source.

    Parameters
    ----------
    scan
        A dwi, raw or corrected by another program (``desc-preproc``), with ``bval`` and ``bvec`` beside it.
    anatomy
        The prepared T1w of the participant, with its transforms; without, fractional anisotropy itself is brought onto
        the white matter of the template, which is less exact.
    out
        The output folder.
    denoise
        Remove thermal noise by the spectrum that random matrices have. Not done to a corrected dwi.
    correct_motion
        Align each volume with the first that is not weighted. Not done to a corrected dwi.
    resolution_mm
        Edge of a voxel in standard space.

    Returns
    -------
    list of Scan
        The dwi, whose related roles are ``fa`` and ``md`` (standard space), ``fa_native`` (0 to 1), ``md_native``
        (mm²/s), ``evec_native`` (fastest direction, along the world's axes), ``dwi_native``, ``bval``, ``bvec`` (turned),
        ``mask_native``, ``from_standard`` (JSON: files and which ANTs inverts); then the two maps in standard
        space as scans of their own.

    Raises
    ------
    DataError
        If the image is damaged, empty or no series; the weightings or directions do not fit it; no volume is free of
        weighting; there are fewer than 6 directions; or no brain of a plausible size is found.

    References
    ----------
    .. [1] Veraart et al. (2016), NeuroImage 142. doi:10.1016/j.neuroimage.2016.08.016
    .. [2] Leemans & Jones (2009), Magnetic Resonance in Medicine 61(6). doi:10.1002/mrm.21890
    .. [3] Basser et al. (1994), Biophysical Journal 66(1). doi:10.1016/S0006-3495(94)80775-1
    """
    raw = scan.entities.get("desc") != "preproc"
    data = load(scan)
    mask = _brain_of(scan, data)
    data = without_noise(data, mask) if raw and denoise else data
    data, moved_mm = without_motion(data, mask) if raw and correct_motion else (data, 0.0)
    maps = tensor_maps(data, mask)
    written = _Written(scan, out, resolution_mm, moved_mm if raw and correct_motion else None)
    native = written.native(data, mask, maps)
    with tempfile.TemporaryDirectory() as folder:
        through = _to_standard(data, mask, maps["fa"], anatomy, written, folder)
    return written.standard(native, data.affine, mask, maps, through)


def load(scan: Scan) -> Diffusion:
    """Read the series and its gradients.

    Raises
    ------
    DataError
        As `prepare`, but for the brain.
    """
    try:
        image = nib.load(scan.path)
        turned = nib.as_closest_canonical(image)
        volumes = np.nan_to_num(np.asarray(turned.dataobj, np.float32))
    except Exception as problem:  # nibabel, zlib and gzip raise many kinds for a damaged file
        raise damaged(scan.name, problem) from problem
    if volumes.ndim != 4:
        raise DataError(f"{scan.name} has {volumes.ndim} dimensions; a series of volumes (4) is expected.")
    if not np.ptp(volumes):
        raise DataError(f"{scan.name} holds the same value in every voxel; look at the image.")
    bvals, bvecs = _gradients(scan, volumes.shape[3])
    world = _axes(image.affine) @ _flipped(bvecs, image.affine).T
    directions = (np.linalg.inv(_axes(turned.affine)) @ world).T
    return Diffusion(np.maximum(volumes, 0), np.asarray(turned.affine), bvals, directions)


def _axes(affine: Array) -> Array:
    """Return the unit vectors of the voxel axes in the world, as columns."""
    return np.asarray(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))


def _flipped(bvecs: Array, affine: Array) -> Array:
    """Change directions between FSL's axes, whose first runs to the left, and the axes of the voxels."""
    return bvecs * np.array([-1, 1, 1]) if np.linalg.det(affine[:3, :3]) > 0 else bvecs


def _gradients(scan: Scan, n_volumes: int) -> tuple[Array, Array]:
    """Read weightings (volume,) and unit directions (volume, 3), and check them."""
    bvals, bvecs = (_numbers(scan, role) for role in ("bval", "bvec"))
    bvals = bvals.ravel()
    bvecs = bvecs if bvecs.shape[1] == 3 and bvecs.shape[0] != 3 else bvecs.T
    if len(bvals) != n_volumes or bvecs.shape != (n_volumes, 3):
        raise DataError(
            f"{scan.name} has {n_volumes} volumes, but {len(bvals)} b-values and {len(bvecs)} directions; find the "
            "bval and bvec that belong to it."
        )
    if bvals.min() > B0:
        raise DataError(
            f"{scan.name} has no volume with b=0 (the lowest b-value is {bvals.min():.0f}); a tensor needs one."
        )
    length = np.linalg.norm(np.nan_to_num(bvecs), axis=1, keepdims=True)
    units = np.divide(np.nan_to_num(bvecs), length, out=np.zeros_like(bvecs), where=length > 0)
    units[bvals <= B0] = 0
    _refuse_few(scan, units[bvals > B0])
    return bvals, units


def _numbers(scan: Scan, role: str) -> Array:
    if role not in scan.related:
        raise DataError(f"{scan.name} has no .{role} file beside it; add the one that the conversion from DICOM wrote.")
    try:
        found = np.loadtxt(scan.related[role], ndmin=2)
    except ValueError as problem:
        raise DataError(
            f"{scan.name}: its {role} holds something else than rows of numbers ({problem}); mend it."
        ) from problem
    if not found.size:
        raise DataError(f"{scan.name}: its {role} is empty; copy it again from its source.")
    return np.asarray(found, np.float64)


def _refuse_few(scan: Scan, directions: Array) -> None:
    """Refuse directions that leave a tensor's six numbers undetermined."""
    n_apart = _independent(directions)
    if n_apart < 6:
        raise DataError(
            f"{scan.name} has {n_apart} independent directions among {len(directions)} weighted volumes; a tensor needs 6."
        )


def _independent(directions: Array) -> int:
    """Count how many of a tensor's six numbers the directions (n, 3) determine."""
    x, y, z = directions.T
    products = np.column_stack([x * x, y * y, z * z, x * y, x * z, y * z])
    return int(np.linalg.matrix_rank(products, tol=0.05)) if len(products) else 0


def _brain_of(scan: Scan, data: Diffusion) -> Any:
    """Find the brain in the mean volume without weighting, or take the mask beside a corrected scan."""
    from dipy.segment.mask import median_otsu

    voxel_ml = abs(np.linalg.det(data.affine[:3, :3])) / 1000
    edge_mm = (voxel_ml * 1000) ** (1 / 3)
    beside = scan.path.with_name(scan.path.name.replace("desc-preproc_dwi", "desc-brain_mask"))
    if beside != scan.path and beside.is_file():
        inside = np.asarray(nib.as_closest_canonical(nib.load(beside)).dataobj) > 0
    else:
        _, inside = median_otsu(data.b0, median_radius=max(1, round(4 / edge_mm)), numpass=1)
    if inside.shape != data.b0.shape:
        raise DataError(f"{scan.name} has the grid {data.b0.shape} but its mask {inside.shape}; give them one grid.")
    inside = ndimage.binary_fill_holes(reg.largest_part(inside))
    size = float(inside.sum() * voxel_ml)
    if not BRAIN_ML[0] <= size <= BRAIN_ML[1]:
        raise DataError(
            f"{scan.name}: what was taken for the brain measures {size:.0f} mL, not {BRAIN_ML[0]:.0f} to {BRAIN_ML[1]:.0f}; "
            "look at the image: does it cover a whole brain?"
        )
    return inside


def without_noise(data: Diffusion, mask: Any) -> Diffusion:
    """Keep, in each small neighbourhood, the components that noise alone would not have (MP-PCA)."""
    from dipy.denoise.localpca import mppca

    radius = next((r for r in (1, 2) if data.volumes.shape[3] < (2 * r + 1) ** 3), 3)
    wide = ndimage.binary_dilation(mask, iterations=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        clean = mppca(data.volumes, mask=wide, patch_radius=radius, suppress_warning=True)
    kept = np.where(wide[..., None] & np.isfinite(clean), clean, data.volumes)
    return replace(data, volumes=np.maximum(kept, 0))


def without_motion(data: Diffusion, mask: Any) -> tuple[Diffusion, float]:
    """Align every volume with the first that is not weighted, and turn the directions by as much.

    Returns
    -------
    Diffusion
        Each volume interpolated once, by cubic splines.
    float
        Mean displacement at 50 mm from the centre, in mm.
    """
    centre = data.affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + data.affine[:3, 3]
    volumes, directions, axes = data.volumes.copy(), data.directions.copy(), _axes(data.affine)
    found = movements(data)
    moved = np.array([_displacement(matrix, centre) for matrix in found])
    for t in np.flatnonzero(moved > STILL_MM):
        volumes[..., t] = _resampled(data.volumes[..., t], data.affine, found[t])
        directions[t] = np.linalg.inv(axes) @ found[t][:3, :3].T @ axes @ data.directions[t]
    return replace(data, volumes=volumes, directions=directions), float(moved.mean())


def movements(data: Diffusion) -> list[Array]:
    """Find where each point of the first unweighted volume lies in every other, as matrices (mm, RAS).

    A volume that is too strongly weighted to be aligned moves as the nearest in time that is not.
    """
    unweighted, bright = np.flatnonzero(data.is_b0), np.flatnonzero(~data.is_b0 & (data.bvals <= FAINT_B))
    found: dict[int, Array] = {int(unweighted[0]): np.eye(4)}
    reference = data.volumes[..., unweighted[0]]
    for t in unweighted[1:]:
        found[int(t)] = _rigid(data.volumes[..., t], reference, data.affine)
    aligned = [_resampled(data.volumes[..., t], data.affine, matrix) for t, matrix in found.items()]
    for t in bright:
        found[int(t)] = _rigid(data.volumes[..., t], np.mean(aligned, axis=0), data.affine)
    return [found[min(found, key=lambda near: abs(near - t))] for t in range(len(data.bvals))]


def _rigid(moving: Array, fixed: Array, affine: Array) -> Array:
    """Find where each point of one volume lies in another of the same person, as a matrix (mm, RAS)."""
    import ants

    images = reg.to_ants(Volume(fixed, affine)), reg.to_ants(Volume(moving, affine))
    with tempfile.TemporaryDirectory() as folder:
        transform = ants.read_transform(_register(*images, f"{folder}/", steps_mm=(10, 5), iterations=(40, 20)))
        rotation, shift = np.reshape(transform.parameters[:9], (3, 3)), np.array(transform.parameters[9:])
        about = np.array(transform.fixed_parameters)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, shift + about - rotation @ about
    left = np.diag([-1.0, -1.0, 1.0, 1.0])
    return np.asarray(left @ matrix @ left)


def _register(fixed: Any, moving: Any, prefix: str, *, steps_mm: tuple[int, ...], iterations: tuple[int, ...]) -> str:
    """Find a rotation and a shift by mutual information, from coarse steps to fine; return ANTs' file."""
    import ants

    edge_mm = min(fixed.spacing)
    factors = tuple(max(1, round(step / edge_mm)) for step in steps_mm)
    n_voxels = np.prod(fixed.shape) / factors[-1] ** 3
    found = ants.registration(
        fixed, moving, "Rigid", outprefix=prefix, aff_metric="mattes", aff_iterations=iterations,
        aff_shrink_factors=factors, aff_smoothing_sigmas=tuple(f / 2 if f > 1 else 0 for f in factors), random_seed=reg.SEED,
        aff_random_sampling_rate=float(min(1.0, 10_000 / n_voxels)),
    )  # fmt: skip
    return str(found["fwdtransforms"][0])


def _displacement(matrix: Array, centre: Array, radius_mm: float = 50.0) -> float:
    """Measure how far points around a centre move on average, in mm."""
    points = centre + radius_mm * np.concatenate([np.eye(3), -np.eye(3)])
    return float(np.linalg.norm(points @ matrix[:3, :3].T + matrix[:3, 3] - points, axis=1).mean())


def _resampled(volume: Array, affine: Array, matrix: Array) -> Array:
    """Read a volume at the points that a matrix (mm) gives, by cubic splines; negative overshoot becomes 0."""
    voxels = np.linalg.inv(affine) @ matrix @ affine
    read = ndimage.affine_transform(volume, voxels[:3, :3], voxels[:3, 3], order=3, mode="nearest")
    return np.asarray(np.maximum(read, 0), np.float32)


def tensor_maps(data: Diffusion, mask: Any) -> dict[str, Array]:
    """Fit a tensor by weighted least squares, in the mask.

    Returns
    -------
    dict
        ``fa``, fractional anisotropy from 0 to 1, and ``md``, mean diffusivity in mm²/s, (x, y, z); ``evec``, the unit
        direction of the fastest diffusion, (x, y, z, 3), along the world's axes.
    """
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dti import TensorModel

    low = data.bvals <= LARGEST_B
    used = low if _independent(data.directions[low]) == 6 else np.ones_like(low)
    table = gradient_table(data.bvals[used], bvecs=data.directions[used], b0_threshold=B0, atol=0.1)
    fit = TensorModel(table, fit_method="WLS").fit(data.volumes[..., used], mask=mask)
    fa, md = (np.clip(np.nan_to_num(getattr(fit, name)), 0, top) * mask for name, top in (("fa", 1.0), ("md", 0.01)))
    fastest = np.nan_to_num(fit.evecs[..., 0]) @ _axes(data.affine).T * mask[..., None]
    return {"fa": fa.astype(np.float32), "md": md.astype(np.float32), "evec": fastest.astype(np.float32)}


def _to_standard(data: Diffusion, mask: Any, fa: Array, anatomy: Scan | None, written: _Written, folder: str) -> Way:
    """Go through the T1w where there is one, else straight from the anisotropy to the template."""
    if anatomy is None or not {"native", "to_standard", "from_standard"} <= set(anatomy.related):
        return _straight(data, mask, fa, written, folder)
    native, b0 = reg.read(anatomy.related["native"]), Volume(data.b0 * mask, data.affine)
    images = reg.to_ants(native), reg.to_ants(b0)
    found = _register(*images, f"{folder}/", steps_mm=(12, 8, 4), iterations=(200, 100, 50))
    own = written.keep(found, "T1w", "rigid")
    ahead, _ = reg.read_transforms(anatomy.related["to_standard"])
    back, inverted = reg.read_transforms(anatomy.related["from_standard"])
    return Way((*ahead, own), (own, *back), (True, *inverted), "through the T1w")


def _straight(data: Diffusion, mask: Any, fa: Array, written: _Written, folder: str) -> Way:
    """Bring the brain onto the template by its outline and white matter (affine), then the white matter (SyN)."""
    import ants

    template = reg.template(written.resolution)
    brain = template.brain.like((template.brain.values > 0).astype(np.float32))
    outlines = [reg.to_ants(v) for v in (brain, Volume(mask, data.affine))]
    whites = [reg.to_ants(v) for v in (template.wm, Volume(fa, data.affine))]
    rough = ants.registration(
        *outlines, "Affine", outprefix=f"{folder}/outline", aff_metric="meansquares", random_seed=reg.SEED
    )
    found = ants.registration(
        *whites, "SyN", outprefix=f"{folder}/white", initial_transform=rough["fwdtransforms"][0], aff_metric="mattes",
        reg_iterations=(40, 20, 0), random_seed=reg.SEED,
    )  # fmt: skip
    named = {name: written.keep(f, reg.SPACE, name) for f in found["fwdtransforms"] for name in [_is_called(f)]}
    inverse = next(f for f in found["invtransforms"] if f.endswith(".nii.gz"))
    named["inversewarp"] = written.keep(inverse, reg.SPACE, "inversewarp")
    return Way(
        (named["warp"], named["affine"]), (named["affine"], named["inversewarp"]), (True, False), "without a T1w"
    )


def _is_called(file: str) -> str:
    return "affine" if file.endswith(".mat") else "warp"


class _Written:
    """Names and sidecars of all that is left for the features, the report and other programs."""

    def __init__(self, scan: Scan, out: Path, resolution_mm: int, moved_mm: float | None) -> None:
        self.scan, self.out, self.resolution, self.moved_mm = scan, out, resolution_mm, moved_mm
        self.own = {k: v for k, v in scan.entities.items() if k not in {"suffix", "datatype", "space", "desc", "res"}}
        self.described: dict[str, Any] = {"Sources": [derivatives.bids_uri(out, scan)], "SkullStripped": True}

    def path(self, suffix: str, extension: str, **entities: str) -> Path:
        """Name a file of this participant and session."""
        named = derivatives.name({**self.own, **entities}, suffix, extension)
        return derivatives.folder_of(self.out, self.scan) / "dwi" / named

    def image(self, path: Path, values: Any, affine: Array, **more: Any) -> Path:
        """Write an image and its sidecar."""
        derivatives.write_image(path, values, affine)
        derivatives.write_json(derivatives.sidecar_path(path), {**self.described, **more})
        return path

    def native(self, data: Diffusion, mask: Any, maps: dict[str, Array]) -> dict[str, Path]:
        """Write what lies in the scan's own space, by role."""
        factor = 30_000 / float(data.volumes.max())
        whole = np.rint(data.volumes * factor).astype(np.int16)
        moved = {} if self.moved_mm is None else {"MeanDisplacement": round(self.moved_mm, 3)}
        found = {
            "dwi_native": self.image(self.path("dwi", ".nii.gz", desc="preproc"), whole, data.affine, **moved, **self.how()),
            "mask_native": self.image(self.path("mask", ".nii.gz", desc="brain"), mask.astype(np.uint8), data.affine),
            "bval": self._rows("bval", data.bvals[None], "%.0f"),
            "bvec": self._rows("bvec", _flipped(data.directions, data.affine).T, "%.6f"),
        }  # fmt: skip
        for name, values in maps.items():
            path = self.path("dwimap", ".nii.gz", model="tensor", param=name)
            found[f"{name}_native"] = self.image(path, values, data.affine, **_meaning(name))
        return found

    def how(self) -> dict[str, str]:
        """Say what was done to the volumes."""
        if self.scan.entities.get("desc") == "preproc":
            return {"Description": "As another program prepared it, in 16-bit numbers."}
        return {"Description": "Rigid motion correction by bids_dl; no correction of susceptibility or eddy currents."}

    def _rows(self, extension: str, rows: Array, form: str) -> Path:
        lines = (" ".join(form % (v + 0.0) for v in row) for row in rows)
        return derivatives.write_text(
            self.path("dwi", f".{extension}", desc="preproc"), "".join(f"{line}\n" for line in lines)
        )

    def keep(self, file: str, to: str, kind: str) -> Path:
        """Copy a transform into the output."""
        entities = {"from": "dwi", "to": to, "mode": "image", "desc": kind}
        path = self.path("xfm", ".mat" if file.endswith(".mat") else ".nii.gz", **entities)
        return derivatives.keep(file, path)

    def standard(
        self, native: dict[str, Path], affine: Array, mask: Any, maps: dict[str, Array], through: Way
    ) -> list[Scan]:
        """Write the maps in standard space, and describe all as scans."""
        standard = reg.template(self.resolution).mask
        grid, files = standard.affine, through.forward
        inside = reg.resample(Volume(mask, affine), standard, files).values > 0.5
        held = self.image(self.path("mask", ".nii.gz", space=reg.SPACE, desc="brain"), inside.astype(np.uint8), grid)
        why = f"prepared here from the dwi, {through.said}"
        scans, related = [], {**native, "from_standard": self._list(through)}
        for name in ("fa", "md"):
            moved = reg.resample(Volume(maps[name], affine), standard, files).values * inside
            path = self.path("dwimap", ".nii.gz", space=reg.SPACE, model="tensor", param=name)
            related[name] = self.image(
                path, moved, grid, Resolution=f"{self.resolution} mm isotropic", **_meaning(name)
            )
            names = {**query.entities(path), "datatype": "dwi"}
            scans.append(Scan(path, names, self.out, mask=held, why=why))
        names = {**self.own, "suffix": "dwi", "datatype": "dwi", "desc": "preproc"}
        return [
            Scan(native["dwi_native"], names, self.out, mask=native["mask_native"], related=related, why=why),
            *scans,
        ]

    def _list(self, through: Way) -> Path:
        path = self.path("xfm", ".json", **{"from": reg.SPACE, "to": "dwi", "mode": "image"})
        files = [os.path.relpath(file, path.parent) for file in through.backward]
        return derivatives.write_json(path, {"Transforms": files, "Invert": through.inverted})


def _meaning(name: str) -> dict[str, str]:
    meant = {
        "fa": "Fractional anisotropy",
        "md": "Mean diffusivity",
        "evec": "Fastest direction, along right, anterior, superior,",
    }
    units = {"Units": "mm^2/s"} if name == "md" else {}
    return {"Description": f"{meant[name]} of a tensor fitted by weighted least squares", **units}
