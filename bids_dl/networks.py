"""Networks that participants share: maps read from a template, or found by group ICA, and each participant's own."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bids_dl import derivatives, query, signals, volumes
from bids_dl.errors import DataError, MissingInputError
from bids_dl.records import Array, Feature, Scan

COLLINEAR = 1e-4
"""Smallest eigenvalue of the maps' correlations: two maps alone have it where they correlate by 0.9999."""


N_STARTS = 10
"""Starts of the ICA, of which the sparsest result is kept."""


@dataclass(frozen=True)
class Networks:
    """Named spatial maps in one 4-D NIfTI, in standard space."""

    name: str
    path: Path
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Regressed:
    """A BOLD regressed on networks: ``courses`` (kept time, network), cleaned, mean 0, standard deviation 1."""

    networks: Networks
    voxels: signals.Voxels
    courses: Array
    high_pass_hz: float
    low_pass_hz: float

    @property
    def degrees_of_freedom(self) -> float:
        """Independent values that filtering and confounds have left."""
        return signals.degrees_of_freedom(
            self.voxels.taken, self.voxels.period, high_pass_hz=self.high_pass_hz, low_pass_hz=self.low_pass_hz
        )


def of(scan: Scan, template: str) -> Networks:
    """Choose the networks to look for in a scan: the template named, else those that were fitted for it.

    Raises
    ------
    DataError, MissingInputError
        If there are neither, or the file cannot be used.
    """
    path = template or scan.related.get("networks")
    if not path:
        raise DataError(
            f"{scan.name}: there are no networks to look for; give the option template the path of a 4-D NIfTI of maps, "
            "or set networks.n_components."
        )
    return load(str(path))


def load(template: str) -> Networks:
    """Read what a template of networks holds; names come from the TSV beside it (index, name), else they are numbered.

    Raises
    ------
    MissingInputError, DataError
        If there is no such file, it is not 4-D, or its table has another number of rows.
    """
    path = Path(template).expanduser()
    if not path.is_file():
        raise MissingInputError(f"the template of networks {template} does not exist.")
    try:
        shape = nib.load(path).shape
    except Exception as problem:  # nibabel raises many kinds for a damaged header
        raise DataError(
            f"the template {path} cannot be opened ({problem}); copy it again from its source."
        ) from problem
    if len(shape) != 4:
        raise DataError(f"the template {path} has {len(shape)} dimensions; maps of several networks (4) are expected.")
    return Networks(_name(path), path, _labels(path, shape[3]))


def _name(path: Path) -> str:
    words = "".join(c if c.isalnum() else " " for c in path.name.split(".")[0]).split()
    return query.entities(path).get("atlas") or "".join(w[:1].upper() + w[1:] for w in words)


def _labels(path: Path, n_networks: int) -> tuple[str, ...]:
    import pandas as pd

    table = path.with_name(path.name.split(".")[0] + ".tsv")
    if not table.is_file():
        return tuple(f"network{n + 1:02d}" for n in range(n_networks))
    names = pd.read_csv(table, sep="\t", dtype=str).get("name", [])
    if len(names) != n_networks:
        raise DataError(
            f"{table} names {len(names)} networks for {n_networks} maps; give it a column name, a row a map."
        )
    return tuple(names)


def on_grid(networks: Networks, shape: tuple[int, ...], affine: Array) -> NDArray[np.float32]:
    """Resample the maps to a grid by trilinear interpolation, (x, y, z, network); 0 outside of them."""
    return _on_grid(networks.path, tuple(shape[:3]), tuple(map(float, np.asarray(affine).ravel())))


@lru_cache(maxsize=1)
def _on_grid(path: Path, shape: tuple[int, ...], flat_affine: tuple[float, ...]) -> NDArray[np.float32]:
    image = nib.load(path)
    values = np.nan_to_num(np.asarray(image.dataobj, np.float32))
    maps = np.empty((*shape, values.shape[3]), np.float32)
    for n in range(values.shape[3]):
        maps[..., n] = _resampled(values[..., n], image.affine, shape, np.reshape(flat_affine, (4, 4)))
    return maps


def _resampled(volume: NDArray[np.float32], affine: Array, shape: tuple[int, ...], to: Array) -> NDArray[np.float32]:
    from scipy.ndimage import affine_transform

    step = np.linalg.inv(affine) @ to
    found: NDArray[np.float32] = affine_transform(volume, step[:3, :3], step[:3, 3], output_shape=shape, order=1)
    return found


def brain(shape: tuple[int, ...], affine: Array) -> NDArray[np.bool_]:
    """Tell which voxels of a grid in MNI space lie in the brain of the template, (x, y, z)."""
    mask = _template_mask()
    return _resampled(np.asarray(mask.dataobj, np.float32), mask.affine, tuple(shape[:3]), affine) >= 0.5


@lru_cache(maxsize=1)
def _template_mask() -> Any:
    from nilearn import datasets

    return datasets.load_mni152_brain_mask(resolution=2)


def regress(scan: Scan, *, template: str, confounds: str, high_pass_hz: float, low_pass_hz: float) -> Regressed:
    """Regress each volume of a BOLD on all maps of networks together [1]_, and clean the courses found.

    Maps and volumes have mean 0 over space. A scan without a mask is confined to the template's brain.

    Raises
    ------
    DataError
        If the BOLD, its confounds or the template cannot be used, a network has no voxel inside of the mask, or the
        maps are collinear there.

    References
    ----------
    .. [1] Nickerson et al. (2017), Frontiers in Neuroscience 11. doi:10.3389/fnins.2017.00115
    """
    networks = of(scan, template)
    found = _confined(scan, signals.voxels(scan, confounds=confounds))
    inverse = np.linalg.pinv(_maps_inside(scan, networks, found))  # (network, voxel)
    courses = np.array([inverse @ (volume - volume.mean(dtype=np.float64)) for volume in found.series])
    cleaned = signals.clean(courses, found.taken, found.period, high_pass_hz=high_pass_hz, low_pass_hz=low_pass_hz)
    return Regressed(networks, found, signals.standardised(cleaned), high_pass_hz, low_pass_hz)


def _confined(scan: Scan, found: signals.Voxels) -> signals.Voxels:
    """Leave out what lies outside of the brain, where a scan has no mask that does so."""
    if scan.mask is not None:
        return found
    inside = brain(found.mask.shape, found.affine)
    return replace(found, series=found.series[:, inside[found.mask]], mask=found.mask & inside)


def _maps_inside(scan: Scan, networks: Networks, found: signals.Voxels) -> Array:
    """Return the maps of the voxels in use, (voxel, network), each of mean 0."""
    maps = on_grid(networks, found.mask.shape, found.affine)[found.mask].astype(np.float64)
    absent = [] if len(maps) else list(networks.labels)
    absent = absent or [n for n, spread in zip(networks.labels, np.ptp(maps, axis=0), strict=True) if spread == 0]
    if absent:
        raise DataError(
            f"{scan.name} has no voxel of {', '.join(absent[:5])} of {networks.path.name} inside its mask; look whether "
            "both are in one space, or leave such networks out of the template."
        )
    maps -= maps.mean(axis=0)
    _refuse_collinear(scan, networks, maps / np.linalg.norm(maps, axis=0))
    return maps


def _refuse_collinear(scan: Scan, networks: Networks, maps: Array) -> None:
    values, vectors = np.linalg.eigh(maps.T @ maps)
    if values[0] < COLLINEAR:
        weights = np.abs(vectors[:, 0])
        involved = [n for n, w in zip(networks.labels, weights, strict=True) if w > 0.1 * weights.max()]
        raise DataError(
            f"{scan.name}: the maps of {', '.join(involved[:5])} of {networks.path.name} are collinear inside its mask; "
            "leave one of them out of the template."
        )


@dataclass(frozen=True)
class Windows:
    """Stretches of a run: the ``first`` volume of each, (window,), how many it has and how many lie between two firsts.

    Volumes that were removed count, so that windows keep their length; ``period`` is in seconds.
    """

    first: NDArray[np.intp]
    size: int
    step: int
    period: float

    def members(self, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Tell which of the volumes that are kept lie in each window, (window, kept time)."""
        since = np.flatnonzero(kept) - self.first[:, None]
        inside: NDArray[np.bool_] = (since >= 0) & (since < self.size)
        return inside

    @property
    def onsets(self) -> list[float]:
        """Seconds from the run's begin to each window's."""
        return [round(float(first * self.period), 6) for first in self.first]

    @property
    def described(self) -> dict[str, Any]:
        """Metadata, in seconds."""
        return {
            "WindowDuration": self.size * self.period, "StepDuration": self.step * self.period, "WindowOnsets": self.onsets,
        }  # fmt: skip


def windows(scan: Scan, made: Regressed, *, window_s: float, step_s: float) -> Windows:
    """Lay windows of whole volumes over a run, from its begin; what is left at its end is in none.

    Raises
    ------
    DataError
        If a window or a step is too short, the run is shorter than one window, or filtering and confounds have left
        fewer independent values in one than there are networks.
    """
    period, n_volumes = made.voxels.period, len(made.voxels.taken.kept)
    size, step = round(window_s / period), round(step_s / period)
    if size < 3 or step < 1:
        raise DataError(
            f"{scan.name}: window_s is {window_s:g} and step_s {step_s:g}; give at least 3 and 1 volumes of {period:g} s."
        )
    if n_volumes < size:
        raise DataError(
            f"{scan.name} lasts {n_volumes * period:g} s, less than one window of {window_s:g} s; choose a shorter window_s."
        )
    found = Windows(np.arange(0, n_volumes - size + 1, step), size, step, period)
    n_kept = found.members(made.voxels.taken.kept).sum(axis=1)
    least = int(n_kept.argmin())
    free = made.degrees_of_freedom * n_kept[least] / made.voxels.taken.kept.sum()
    _refuse_few(scan, made, free, f" in the window from {found.onsets[least]:g} s; choose a longer window_s,")
    return found


def _refuse_few(scan: Scan, made: Regressed, free: float, where: str) -> None:
    n_networks = len(made.networks.labels)
    if free <= n_networks:
        raise DataError(
            f"{scan.name}: about {max(free, 0):.0f} independent values are left for {n_networks} networks{where} widen the "
            "band, choose a strategy with fewer confounds or a template with fewer networks."
        )


def moving_maps(made: Regressed, laid: Windows) -> NDArray[np.float32]:
    """Regress each voxel's cleaned series on the courses of all networks together within windows, (voxel, window, network).

    In each window series and courses have mean 0; the unit of a course is its standard deviation over the whole run, so
    that the maps of all windows share one unit. A window of the whole run gives what `own_maps` does.
    """
    member = laid.members(made.voxels.taken.kept)[..., None]  # (window, kept time, 1)
    mean = (member * made.courses).sum(axis=1, keepdims=True) / member.sum(axis=1, keepdims=True)
    inverse = np.linalg.pinv(member * (made.courses - mean))  # (window, network, kept time); 0 outside the window
    found = _combined(made, inverse.reshape(-1, inverse.shape[2]))
    return found.reshape(len(found), *inverse.shape[:2])


def own_maps(scan: Scan, made: Regressed) -> NDArray[np.float32]:
    """Regress each voxel's cleaned series on the courses of all networks together, (voxel, network).

    Courses have standard deviation 1: a map holds a network's amplitude as well as its shape, in the BOLD's unit.

    Raises
    ------
    DataError
        If filtering and confounds have left fewer independent values than there are networks.
    """
    _refuse_few(scan, made, made.degrees_of_freedom, ";")
    return _combined(made, np.linalg.pinv(made.courses))


def _combined(made: Regressed, weights: Array) -> NDArray[np.float32]:
    """Weigh the volumes of each voxel's cleaned series, (weight, kept time), to (voxel, weight)."""
    found = np.empty((made.voxels.series.shape[1], len(weights)), np.float32)
    blocks = signals.cleaned_blocks(made.voxels, high_pass_hz=made.high_pass_hz, low_pass_hz=made.low_pass_hz)
    for some, series in blocks:
        found[some] = (weights @ series).T
    return found


def as_feature(
    scan: Scan, made: Regressed, values: NDArray[np.float32], *, resolution_mm: float, dims: tuple[str, ...] = ("network",),
    desc: str = "", said: Mapping[str, Any] | None = None,
) -> Feature:  # fmt: skip
    """Put what was found of voxels, (voxel, …, network), in its place, (x, y, z, …, network); 0 outside the mask.

    ``resolution_mm`` is the edge of the common grid's voxels; 0 keeps the BOLD's grid. ``said`` joins the metadata.
    """
    maps, affine = _placed(made.voxels, values, resolution_mm)
    named = {"atlas": made.networks.name, "stat": "dualregression", "desc": desc}
    about = signals.described_map(scan, made.voxels) | described(made) | dict(said or {})
    if resolution_mm > 0:
        named["res"] = f"{resolution_mm:g}".replace(".", "p")
        about["Resolution"] = f"{resolution_mm:g} mm isotropic"
    return Feature(maps, ("x", "y", "z", *dims), "boldmap", "BOLD", made.networks.labels, named, about, affine)


def _placed(found: signals.Voxels, values: NDArray[np.float32], resolution_mm: float) -> tuple[Array, Array]:
    """Lay out one volume after another, (voxel, …) to (x, y, z, …), on the grid that is asked for; and its affine."""
    affine, shape = volumes.template_grid(resolution_mm) if resolution_mm > 0 else (found.affine, found.mask.shape)
    columns = values.reshape(len(values), -1)
    maps = np.empty((*shape, columns.shape[1]), np.float32)
    for number, column in enumerate(columns.T):
        volume = signals.as_volume(found, column)
        maps[..., number] = volumes.resampled(volume, found.affine, resolution_mm) if resolution_mm > 0 else volume
    return maps.reshape(*shape, *values.shape[1:]), affine


def described(made: Regressed) -> dict[str, Any]:
    """Metadata of what came of networks: the template's file, their names, and what was left to estimate them from."""
    return {
        "Networks": list(made.networks.labels), "NetworkTemplate": made.networks.path.name,
        "DegreesOfFreedom": round(made.degrees_of_freedom, 1),
    }  # fmt: skip


def fitted(out: Path, n_components: int) -> Path | None:
    """Find the networks that `fit` wrote into an output."""
    return next(iter(sorted(_folder(out).glob(f"atlas-ICA{n_components}_*probseg.nii.gz"))), None)


def _folder(out: Path) -> Path:
    return out / "sourcedata" / "atlases"


def fit(
    bolds: Mapping[str, Sequence[Scan]],
    out: Path,
    *,
    n_components: int,
    smoothing_mm: float = 6.0,
    random_seed: int = 0,
) -> Path:
    """Find independent networks that participants share, by canonical ICA of their prepared BOLDs [1]_, and write them.

    Parameters
    ----------
    bolds
        participant_id → prepared runs, all in one standard space; their grid may differ, the first run's is used.
    out
        The output; the maps go to ``sourcedata/atlases``, with a TSV of their names and a JSON that says on whom they
        were fitted.
    n_components
        Networks to find.
    smoothing_mm
        Full width at half maximum of a Gaussian that volumes are smoothed with first.
    random_seed
        Equal seeds give equal maps.

    Returns
    -------
    Path
        Maps (x, y, z, network): mean 0 and standard deviation 1 in the brain, the longer tail positive, not thresholded.
        Starts of the ICA that did not converge are counted in the JSON: all of them say that the data are too few. A run
        whose file is damaged is left out, and named there.

    Raises
    ------
    DataError
        If there is no BOLD that can be read, they lie in several spaces, or one has fewer volumes than networks are asked
        for.

    References
    ----------
    .. [1] Varoquaux et al. (2010), NeuroImage 51(1). doi:10.1016/j.neuroimage.2010.02.010
    """
    scans = [scan for mine in bolds.values() for scan in mine]
    space = _common_space(scans)
    shape, affine = _grid(scans, n_components)
    mask = brain(shape, affine)

    def found_in(some: Sequence[Scan]) -> tuple[Array, int]:
        return _canonical_ica(some, mask, affine, n_components, smoothing_mm, random_seed)

    (components, n_unsettled), damaged = _without_damaged(found_in, scans)
    maps = np.zeros((*shape, n_components), np.float32)
    maps[mask] = oriented(components).T
    said = {"NumberOfComponents": n_components, "SmoothingFWHM": smoothing_mm, "RandomSeed": random_seed}
    said |= {"NumberOfStarts": N_STARTS, "NumberOfStartsNotConverged": n_unsettled}
    return _write(out, maps, affine, space, said | _sources(bolds, damaged))


def _without_damaged(
    found_in: Callable[[Sequence[Scan]], tuple[Array, int]], scans: Sequence[Scan]
) -> tuple[tuple[Array, int], list[Scan]]:
    """Fit, and where a file turns out to be damaged fit again without all that are: to read each first would take longer."""
    try:
        return found_in(scans), []
    except (EOFError, OSError, ValueError, zlib.error):
        damaged = [scan for scan in scans if not _is_whole(scan)]
        if not damaged:
            raise
    whole = [scan for scan in scans if scan not in damaged]
    if not whole:
        raise DataError(
            f"networks: every BOLD is damaged, such as {damaged[0].name}; copy them again from their source."
        )
    return found_in(whole), damaged


def _is_whole(scan: Scan) -> bool:
    try:
        signals.read(signals.open_bold(scan))
    except DataError:
        return False
    return True


def _canonical_ica(
    scans: Sequence[Scan],
    mask: NDArray[np.bool_],
    affine: Array,
    n_components: int,
    smoothing_mm: float,
    random_seed: int,
) -> tuple[Array, int]:
    """Run nilearn's CanICA, one image in memory at a time: components (network, voxel), and starts that did not converge.

    One thread: where the ICA does not converge, rounding that differs with the number of threads would change the maps.
    """
    from nilearn.decomposition import CanICA
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    ica = CanICA(
        n_components=n_components, smoothing_fwhm=smoothing_mm or None, mask=nib.Nifti1Image(mask.astype(np.uint8), affine),
        threshold=None, standardize="zscore_sample", n_init=N_STARTS, random_state=random_seed, memory_level=0, n_jobs=1,
    )  # fmt: skip
    with threadpool_limits(1), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ConvergenceWarning)
        ica.fit([str(scan.path) for scan in scans])
    return np.asarray(ica.components_, np.float64), sum(issubclass(w.category, ConvergenceWarning) for w in said)


def oriented(components: Array) -> Array:
    """Scale components (network, voxel) to mean 0 and standard deviation 1, with the longer tail positive.

    An ICA leaves the sign open; the skewness settles it by the whole map, not by one voxel.
    """
    standard = components - components.mean(axis=1, keepdims=True)
    standard /= standard.std(axis=1, keepdims=True)
    skewness = (standard**3).mean(axis=1, keepdims=True)
    return np.asarray(np.where(skewness < 0, -standard, standard))


def _common_space(scans: Sequence[Scan]) -> str:
    spaces = sorted({scan.entities.get("space", "") for scan in scans})
    if not scans:
        raise DataError("networks: none of the participants that they are to be fitted on has a prepared BOLD.")
    if len(spaces) > 1:
        raise DataError(
            f"networks: the BOLDs lie in several spaces ({', '.join(spaces)}); choose one by a filter file."
        )
    return spaces[0]


def _grid(scans: Sequence[Scan], n_components: int) -> tuple[tuple[int, ...], Array]:
    """Return the grid of the first run, when all can be opened and are long enough."""
    images = [signals.open_bold(scan) for scan in scans]
    for scan, image in zip(scans, images, strict=True):
        if image.shape[3] <= n_components:
            raise DataError(
                f"{scan.name} has {image.shape[3]} volumes for {n_components} networks; lower networks.n_components."
            )
    return tuple(images[0].shape[:3]), np.asarray(images[0].affine)


def _sources(bolds: Mapping[str, Sequence[Scan]], damaged: Sequence[Scan]) -> dict[str, Any]:
    whole = {i: [scan.path.name for scan in mine if scan not in damaged] for i, mine in bolds.items()}
    used = {i: names for i, names in whole.items() if names}
    said = {"FittedOn": sorted(used), "FittedOnFiles": [name for i in sorted(used) for name in used[i]]}
    return said | ({"LeftOutAsDamaged": [scan.path.name for scan in damaged]} if damaged else {})


def _write(out: Path, maps: NDArray[np.float32], affine: Array, space: str, said: Mapping[str, Any]) -> Path:
    """Write the maps after their table and sidecar: where they are, all is there."""
    import pandas as pd

    n_networks = maps.shape[3]
    stem = f"atlas-ICA{n_networks}{f'_space-{space}' if space else ''}_probseg"
    names = [f"ICA{n + 1:02d}" for n in range(n_networks)]
    table = pd.DataFrame({"index": range(1, n_networks + 1), "name": names})
    derivatives.write_table(_folder(out) / f"{stem}.tsv", table)
    derivatives.write_json(_folder(out) / f"{stem}.json", {
        "Description": "Networks by canonical group ICA; mean 0 and standard deviation 1 in the brain, not thresholded.", **said,
        "Software": f"nilearn {metadata.version('nilearn')} (CanICA), bids_dl {metadata.version('bids_dl')}",
        "ReferencesAndLinks": ["https://doi.org/10.1016/j.neuroimage.2010.02.010"],
    })  # fmt: skip
    return derivatives.write_image(_folder(out) / f"{stem}.nii.gz", maps, affine)
