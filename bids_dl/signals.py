"""A 4-D image before it is averaged: read, checked, and cleaned of what is known to be noise."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bids_dl import query, zoo
from bids_dl.errors import DataError, damaged
from bids_dl.records import Array, Scan

MIN_VOLUMES = 10
LONGEST_PERIOD = 30.0
"""Seconds: a longer repetition time is one in milliseconds."""

SHORTEST_PADDED = 33
"""Volumes that scipy mirrors at each end of a run before it filters: shorter runs mirror all they have."""

RANK = 1e-8
"""Smaller parts of a standardised confound are rounding errors."""

BLOCK = 4096
"""Voxels cleaned at once: their filtered copies stay small."""

MOTION = tuple(f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz")
TISSUES = ("csf", "white_matter")
EXPANDED = ("", "_derivative1", "_power2", "_derivative1_power2")
STRATEGIES: dict[str, dict[str, Any]] = {
    "none": {},
    "motion": {"strategy": ("motion",), "motion": "full"},
    "simple": {"strategy": ("high_pass", "motion", "wm_csf"), "motion": "full", "wm_csf": "basic"},
    "scrubbing": {
        "strategy": ("high_pass", "motion", "wm_csf", "scrub"), "motion": "full", "wm_csf": "full", "scrub": 5,
        "fd_threshold": 0.5, "std_dvars_threshold": 1.5,
    },
    "compcor": {"strategy": ("high_pass", "motion", "compcor"), "motion": "full", "compcor": "anat_combined", "n_compcor": "all"},
    "ica_aroma": {"strategy": ("high_pass", "wm_csf", "ica_aroma"), "wm_csf": "basic", "ica_aroma": "full"},
}  # fmt: skip
"""What `nilearn.interfaces.fmriprep.load_confounds` is asked for: the presets of its strategies, by their names."""

NEEDED: dict[str, tuple[str, ...]] = {
    "none": (),
    "motion": MOTION,
    "simple": MOTION + TISSUES,
    "scrubbing": (*MOTION, *TISSUES, "framewise_displacement", "std_dvars"),
    "compcor": (*MOTION, "a_comp_cor_00"),
    "ica_aroma": TISSUES,
}
"""Columns without which a strategy cannot be followed; derivatives and squares are computed where they lack."""


@dataclass(frozen=True)
class Nuisance:
    """What is taken out of a run: ``columns`` (time, column) are regressed out, volumes not ``kept`` (time,) removed."""

    columns: Array
    kept: NDArray[np.bool_]
    strategy: str = "none"
    fd_threshold_mm: float = 0.0

    @property
    def described(self) -> dict[str, Any]:
        """Metadata: the strategy, and which volumes were removed."""
        removed = np.flatnonzero(~self.kept).tolist()
        said: dict[str, Any] = {"ConfoundStrategy": self.strategy, "NumberOfConfounds": self.columns.shape[1]}
        said |= {"NumberOfVolumesCensored": len(removed), "CensoredVolumes": removed} if removed else {}
        return said | (
            {"FramewiseDisplacementThreshold": self.fd_threshold_mm, "NumberOfVolumesCensored": len(removed)}
            if self.fd_threshold_mm > 0
            else {}
        )


def open_bold(scan: Scan) -> Any:
    """Open a prepared 4-D BOLD, without reading its values.

    Raises
    ------
    DataError
        If the scan is raw, damaged, not 4-D, or shorter than 10 volumes.
    """
    if not scan.prepared:
        raise DataError(
            f"{scan.name} is a raw BOLD; preprocess it (e.g. fMRIPrep) and give the result by --derivatives."
        )
    try:
        image = nib.load(scan.path)
    except Exception as problem:  # nibabel raises many kinds for a damaged header
        raise DataError(f"{scan.name} cannot be opened ({problem}); copy it again from its source.") from problem
    if len(image.shape) != 4:
        raise DataError(f"{scan.name} has {len(image.shape)} dimensions; a series of volumes (4) is expected.")
    refuse_short(scan, image.shape[3])
    return image


def read(image: Any) -> tuple[NDArray[Any], float, float]:
    """Read the stored numbers without scaling them, a quarter of the memory and of the time: data, slope, intercept.

    Raises
    ------
    DataError
        If the file ends early or is damaged.
    """
    proxy = image.dataobj
    try:
        if str(image.get_filename() or "").endswith(".nii.gz") and hasattr(proxy, "offset"):
            data = _inflate(Path(image.get_filename()), proxy)
        else:
            data = proxy.get_unscaled() if hasattr(proxy, "get_unscaled") else np.asanyarray(proxy)
    except (EOFError, OSError, ValueError) as problem:
        raise damaged(named(image), problem) from problem
    return data, float(getattr(proxy, "slope", 1.0)), float(getattr(proxy, "inter", 0.0))


def _inflate(path: Path, proxy: Any) -> NDArray[Any]:
    """Decompress a NIfTI straight into its array, with ISA-L: twice as fast as zlib, and no second copy."""
    from isal import igzip, igzip_lib

    data = np.empty(proxy.shape, proxy.dtype, order="F")
    room: Any = memoryview(data.reshape(-1, order="F").view(np.uint8))  # type: ignore[arg-type]
    try:
        with igzip.open(path, "rb") as stream:  # type: ignore[no-untyped-call]
            stream.read(proxy.offset)
            _fill(room, stream)
    except igzip_lib.IsalError as problem:  # type: ignore[misc]  # a plain Exception, whatever its stub says
        raise ValueError(str(problem)) from problem
    return data


def _fill(room: Any, stream: Any) -> None:
    filled = 0
    while filled < len(room):
        n_read = stream.readinto(room[filled:])
        if not n_read:
            raise EOFError(f"{len(room) - filled} bytes are missing")
        filled += n_read


def carries_signal(volumes: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which voxels of (voxel, time) are finite and not always zero, from a few volumes spread over the run."""
    sampled = volumes[:, np.unique(np.linspace(0, volumes.shape[1] - 1, 5).astype(int))]
    carries: NDArray[np.bool_] = np.isfinite(sampled).all(axis=1) & (sampled != 0).any(axis=1)
    return carries


def named(image: Any) -> str:
    """Name an image by its file."""
    name = image.get_filename() if hasattr(image, "get_filename") else None
    return Path(name).name if name else "the image"


def smoothed(volume: NDArray[Any], affine: Array, fwhm_mm: float) -> NDArray[Any]:
    """Smooth one volume with a Gaussian of a width at half its height, in mm; missing values count as 0."""
    from scipy.ndimage import gaussian_filter

    if fwhm_mm <= 0:
        return volume
    edge_mm = np.sqrt((np.asarray(affine)[:3, :3] ** 2).sum(axis=0))
    sigma = fwhm_mm / np.sqrt(8 * np.log(2)) / edge_mm
    found: NDArray[Any] = gaussian_filter(np.nan_to_num(volume).astype(np.float32), sigma)
    return found


def refuse_short(scan: Scan, n_volumes: int) -> None:
    """Refuse a run with too few volumes for anything that varies over time."""
    if n_volumes < MIN_VOLUMES:
        raise DataError(f"{scan.name} has {n_volumes} volumes; at least {MIN_VOLUMES} are needed.")


def mask_of(scan: Scan, image: Any) -> NDArray[np.bool_] | None:
    """Read a scan's brain mask, (x, y, z); None where it has none.

    Raises
    ------
    DataError
        If the mask lies on another grid than the image, be it by one voxel, or is empty.
    """
    if scan.mask is None:
        return None
    try:
        found = nib.load(scan.mask)
        mask: NDArray[np.bool_] = np.asanyarray(found.dataobj) > 0
    except Exception as problem:  # nibabel, zlib and gzip raise many kinds for a damaged file
        raise DataError(f"{scan.name}: its mask {scan.mask.name} is damaged ({problem}); copy it again.") from problem
    if found.shape != image.shape[:3]:
        raise DataError(f"{scan.name} has the grid {image.shape[:3]} but its mask {found.shape}; give them one grid.")
    if not np.allclose(found.affine, image.affine, atol=1e-2):
        shift = np.abs(found.affine - image.affine).max()
        raise DataError(
            f"{scan.name} and its mask {scan.mask.name} have affines that differ by up to {shift:.3g} mm; "
            "resample the mask to the image's grid."
        )
    if not mask.any():
        raise DataError(f"{scan.name}: its mask {scan.mask.name} is empty; make it anew.")
    return mask


def repetition_time(scan: Scan, image: Any) -> float:
    """Read the seconds between volumes from the sidecar, else from the header; NaN for a table that does not say.

    Raises
    ------
    DataError
        If neither knows, the value is no plausible number of seconds, or the two differ by more than 1 %.
    """
    said = query.sidecar(scan.path, scan.dataset).get("RepetitionTime")
    header, is_sure = (float("nan"), False) if image is None else _header_period(image)
    if said is None and image is None:
        return float("nan")
    period = header if said is None else said
    if isinstance(period, bool) or not isinstance(period, (int, float)) or not 0 < period < LONGEST_PERIOD:
        raise DataError(f"{scan.name}: RepetitionTime is {period!r}; write it in seconds into the sidecar JSON.")
    if said is not None and is_sure and abs(header / period - 1) > 0.01:
        raise DataError(
            f"{scan.name}: RepetitionTime is {period:g} s in the sidecar but {header:g} s in the header; correct one."
        )
    return float(period)


def _header_period(image: Any) -> tuple[float, bool]:
    """Read the repetition time of a header in seconds, and whether somebody set it: 1 without a unit is a default."""
    if isinstance(image, nib.Cifti2Image):
        return float(image.header.get_axis(0).step), True
    unit = image.header.get_xyzt_units()[1]
    stored = float(image.header.get_zooms()[3])
    return stored * {"msec": 1e-3, "usec": 1e-6}.get(unit, 1.0), stored > 0 and (unit != "unknown" or stored != 1.0)


def nuisance(scan: Scan, n_volumes: int, *, confounds: str, fd_threshold_mm: float = 0.0) -> Nuisance:
    """Choose what is taken out of a run, by the name of a strategy of nilearn's and a limit of head motion.

    Parameters
    ----------
    scan
        A BOLD with fMRIPrep's confounds table, of whatever version: what old ones lack is computed where it can be.
    n_volumes
        Volumes of the run.
    confounds
        A strategy of `STRATEGIES`.
    fd_threshold_mm
        Volumes with a larger framewise displacement are not kept; 0 keeps them.

    Raises
    ------
    DataError
        If there is no such strategy, no table, a table of another run or without the columns needed, or if fewer than
        10 volumes or no degree of freedom would be left.
    """
    if confounds not in STRATEGIES:
        raise DataError(f"the confound strategy '{confounds}' is unknown; {zoo.nearest(confounds, STRATEGIES)}")
    if confounds == "none" and fd_threshold_mm <= 0:
        return Nuisance(np.zeros((n_volumes, 0)), np.ones(n_volumes, bool))
    table, name = _table(scan, n_volumes)
    columns, kept = _select(scan, table, name, confounds)
    if fd_threshold_mm > 0:
        _refuse_lacking(name, table, ("framewise_displacement",), f"fd_threshold_mm = {fd_threshold_mm:g}")
        kept &= ~(table["framewise_displacement"].to_numpy(np.float64) > fd_threshold_mm)
    found = Nuisance(columns, kept, confounds, fd_threshold_mm)
    _refuse_nothing_left(scan, found)
    return found


def _table(scan: Scan, n_volumes: int) -> tuple[Any, str]:
    """Read the confounds as numbers, with derivatives and squares as fMRIPrep defines them where they lack."""
    import pandas as pd

    if scan.confounds is None:
        raise DataError(
            f'{scan.name} has no confounds table beside it; set the option confounds = "none" to go on without.'
        )
    try:
        table = pd.read_csv(scan.confounds, sep="\t", na_values=["n/a"], encoding="utf-8-sig")
    except (ValueError, OSError) as problem:  # not UTF-8, empty, or with more cells than columns
        raise DataError(f"{scan.confounds.name} cannot be read as a table: {str(problem).strip()}.") from problem
    text = table.columns[[kind.kind not in "fiub" for kind in table.dtypes]]
    if len(text):
        raise DataError(f"{scan.confounds.name} holds text in column {text[0]}; expected numbers or n/a.")
    if len(table) != n_volumes:
        raise DataError(
            f"{scan.confounds.name} has {len(table)} rows for {n_volumes} volumes; they belong to different runs."
        )
    for base in [c for c in (*MOTION, *TISSUES) if c in table]:
        change = table[base].diff()
        for end, values in zip(EXPANDED[1:], (change, table[base] ** 2, change**2), strict=True):
            if base + end not in table:
                table[base + end] = values
    return table, scan.confounds.name


def _refuse_lacking(name: str, table: Any, columns: tuple[str, ...], asked_by: str) -> None:
    lacking = [c for c in columns if c not in table]
    if lacking:
        raise DataError(
            f"{name} lacks {', '.join(lacking)}, which {asked_by} needs; choose another strategy of confounds "
            f"({', '.join(STRATEGIES)})."
        )


def _select(scan: Scan, table: Any, name: str, strategy: str) -> tuple[Array, NDArray[np.bool_]]:
    """Let nilearn choose the columns of a strategy, and the volumes to keep, from a completed copy of the table."""
    from nilearn.interfaces.fmriprep import load_confounds

    if strategy == "none":
        return np.zeros((len(table), 0)), np.ones(len(table), bool)
    _refuse_lacking(name, table, NEEDED[strategy], f"the strategy '{strategy}'")
    asked = STRATEGIES[strategy] | _aroma(scan, table, name, strategy)
    desc = "smoothAROMAnonaggr" if asked.get("ica_aroma") == "full" else "preproc"
    with tempfile.TemporaryDirectory() as folder:
        stem = Path(folder) / "sub-1_desc"
        table[[c for c in table if c == c.lower()]].to_csv(f"{stem}-confounds_timeseries.tsv", sep="\t", index=False)
        Path(f"{stem}-confounds_timeseries.json").write_text(json.dumps(_components(scan, table)), encoding="utf-8")
        try:
            columns, sample = load_confounds(f"{stem}-{desc}_bold.nii.gz", **asked)
        except (ValueError, KeyError) as problem:
            raise DataError(f"{name}: {problem}; choose another strategy of confounds.") from problem
    kept = np.ones(len(table), bool) if sample is None else np.isin(np.arange(len(table)), sample)
    return np.nan_to_num(columns.to_numpy(np.float64)), kept


def _aroma(scan: Scan, table: Any, name: str, strategy: str) -> dict[str, str]:
    """Choose how ICA-AROMA is followed: done already in the image, else by regressing out its motion components."""
    if strategy != "ica_aroma" or scan.entities.get("desc") == "smoothAROMAnonaggr":
        return {}
    if not any(str(c).startswith("aroma") for c in table):
        raise DataError(
            f"{name} lacks the columns aroma_motion_* and {scan.name} is not desc-smoothAROMAnonaggr; run fMRIPost-AROMA "
            "or choose another strategy of confounds."
        )
    return {"ica_aroma": "basic"}


def _components(scan: Scan, table: Any) -> Mapping[str, Any]:
    """Describe the aCompCor components of a table; before 1.4, fMRIPrep wrote six of the combined mask and no sidecar."""
    said = query.sidecar(scan.confounds, scan.confounds.parent) if scan.confounds else {}
    named = [str(c) for c in table if str(c).startswith("a_comp_cor_")]
    return {c: {"Mask": "combined", **said.get(c, {})} for c in named}


def _refuse_nothing_left(scan: Scan, found: Nuisance) -> None:
    n_kept, n_columns = int(found.kept.sum()), found.columns.shape[1]
    if n_kept < MIN_VOLUMES:
        raise DataError(
            f"{scan.name}: {n_kept} of {len(found.kept)} volumes are left after censoring, at least {MIN_VOLUMES} are "
            "needed; raise the threshold or leave the run out."
        )
    if n_columns > n_kept - 3:
        raise DataError(
            f"{scan.name}: {n_columns} confounds leave nothing of {n_kept} volumes; choose a strategy with fewer columns."
        )


def degrees_of_freedom(taken: Nuisance, period: float, *, high_pass_hz: float, low_pass_hz: float) -> float:
    """Estimate the independent values left in a cleaned series: volumes kept × part of the spectrum kept - confounds.

    Below about 10, what is left is little but noise; at 0 or less the confounds explain the whole band.
    """
    nyquist = 0.5 / period
    low = low_pass_hz if 0 < low_pass_hz < nyquist else nyquist
    return float(taken.kept.sum() * (low - high_pass_hz) / nyquist - taken.columns.shape[1])


def clean(
    series: Array, taken: Nuisance, period: float, *, high_pass_hz: float = 0.0, low_pass_hz: float = 0.0
) -> Array:
    """Detrend, filter and regress confounds out of series without missing values.

    Removed volumes are interpolated before anything else, so that what happened in them does not leak into their
    neighbours through the filter [1]_. Confounds go through the same steps, which keeps them orthogonal [2]_.

    Parameters
    ----------
    series
        (time, column), finite.
    taken
        Confounds and the volumes to keep.
    period
        Seconds between volumes.
    high_pass_hz, low_pass_hz
        Band kept, in Hz; 0, or a low pass beyond half of the sampling frequency, leaves that side open.

    Returns
    -------
    array
        (kept time, column), mean about 0, in the unit of the series.

    References
    ----------
    .. [1] Power et al. (2014), NeuroImage 84. doi:10.1016/j.neuroimage.2013.08.048
    .. [2] Lindquist et al. (2019), Human Brain Mapping 40(8). doi:10.1002/hbm.24528
    """
    from nilearn.signal import butterworth
    from scipy.signal import detrend

    raw: Array = np.concatenate([series, standardised(taken.columns)], axis=1, dtype=np.float64)
    both: Array = detrend(interpolated(raw, taken.kept), axis=0)
    low = low_pass_hz if 0 < low_pass_hz < 0.5 / period else None
    padded = None if len(both) > SHORTEST_PADDED else len(both) - 1
    both = butterworth(both, 1 / period, low_pass=low, high_pass=high_pass_hz or None, padlen=padded, copy=True)
    both = both[taken.kept]
    cleaned, columns = both[:, : series.shape[1]], both[:, series.shape[1] :]
    return np.asarray(cleaned - _explained(cleaned, columns))


def interpolated(series: Array, kept: NDArray[np.bool_]) -> Array:
    """Replace the volumes that are not kept by a straight line between their neighbours; the ends are held."""
    if kept.all():
        return series
    time, known = np.arange(len(series)), np.flatnonzero(kept)
    after = np.clip(np.searchsorted(known, time), 1, len(known) - 1)
    start, stop = known[after - 1], known[after]
    part = np.clip((time - start) / (stop - start), 0, 1)[:, None]
    return np.asarray(series[start] * (1 - part) + series[stop] * part)


def _explained(series: Array, columns: Array) -> Array:
    """Project series on the space of the confounds, whatever its rank; what filtering left of a constant is none."""
    from scipy.linalg import qr

    scale = columns.std(axis=0)
    columns = (columns - columns.mean(axis=0))[:, scale > RANK] / scale[scale > RANK]
    if not columns.size:
        return np.zeros_like(series)
    basis, triangle, _ = qr(columns, mode="economic", pivoting=True)
    size = np.abs(np.diag(triangle))
    basis = basis[:, size > RANK * size[0]]
    return np.asarray(basis @ (basis.T @ series))


def standardised(series: Array) -> Array:
    """Give each column mean 0 and standard deviation 1; one that does not vary becomes 0."""
    mean, scale = series.mean(axis=0), series.std(axis=0, ddof=1)
    varies = scale > 1e-12 * np.abs(mean)
    return np.asarray((series - mean) / np.where(varies, scale, np.inf))


@dataclass(frozen=True)
class Voxels:
    """The series of a brain's voxels: ``series`` (time, voxel) in the order of ``mask`` (x, y, z)."""

    series: NDArray[np.float32]
    mask: NDArray[np.bool_]
    affine: Array
    period: float
    taken: Nuisance


def voxels(scan: Scan, *, confounds: str, smoothing_mm: float = 0.0) -> Voxels:
    """Read the voxels of a BOLD that vary within its mask, with what is to be taken out of them.

    Raises
    ------
    DataError
        If the scan cannot be used: see `open_bold`, `mask_of`, `repetition_time`, `nuisance`; or if no voxel varies.
    """
    image = open_bold(scan)
    mask, period = mask_of(scan, image), repetition_time(scan, image)
    taken = nuisance(scan, image.shape[3], confounds=confounds)
    data, slope, intercept = read(image)
    carries = carries_signal(data.reshape(-1, image.shape[3], order="F")).reshape(image.shape[:3], order="F")
    mask = carries if mask is None else carries & mask
    series = np.empty((image.shape[3], int(mask.sum())), np.float32)
    for t in range(len(series)):
        series[t] = smoothed(data[..., t], image.affine, smoothing_mm)[mask] * slope + intercept
    varies = np.isfinite(series).all(axis=0) & (np.ptp(series, axis=0) > 0)
    if not varies.any():
        raise DataError(f"{scan.name}: no voxel varies over time; look at the image and its mask.")
    mask[mask] = varies
    return Voxels(series[:, varies], mask, np.asarray(image.affine), period, taken)


def filled(found: Voxels) -> Voxels:
    """Interpolate the volumes that would be removed: a spectrum needs them all."""
    taken = found.taken
    if taken.kept.all():
        return found
    series = interpolated(found.series, taken.kept).astype(np.float32)
    columns = interpolated(taken.columns, taken.kept)
    return replace(found, series=series, taken=replace(taken, columns=columns, kept=np.ones_like(taken.kept)))


def cleaned_blocks(
    found: Voxels, *, high_pass_hz: float = 0.0, low_pass_hz: float = 0.0
) -> Iterator[tuple[slice, Array]]:
    """Clean some thousand voxels at a time: which ones, and their series (kept time, voxel)."""
    for start in range(0, found.series.shape[1], BLOCK):
        some = slice(start, start + BLOCK)
        yield (
            some,
            clean(found.series[:, some], found.taken, found.period, high_pass_hz=high_pass_hz, low_pass_hz=low_pass_hz),
        )


def band(scan: Scan, found: Voxels, low_hz: float, high_hz: float) -> NDArray[np.bool_]:
    """Tell which frequencies of the series' spectrum lie in a band, ends included, (frequency,); never the mean.

    Raises
    ------
    DataError
        If none does.
    """
    frequency = np.fft.rfftfreq(len(found.series), found.period)
    inside: NDArray[np.bool_] = (frequency >= low_hz) & (frequency <= high_hz) & (frequency > 0)
    if not inside.any():
        raise DataError(f"{scan.name}: no frequency of its spectrum lies in {low_hz:g}-{high_hz:g} Hz; widen the band.")
    return inside


def as_volume(found: Voxels, values: Array) -> NDArray[np.float32]:
    """Put one value a voxel back in its place, (x, y, z); 0 outside the mask."""
    volume = np.zeros(found.mask.shape, np.float32)
    volume[found.mask] = values
    return volume


def described_map(scan: Scan, found: Voxels) -> dict[str, Any]:
    """Metadata of a volume made from a BOLD."""
    resolution = query.sidecar(scan.path, scan.dataset).get("Resolution") or f"that of {scan.path.name}"
    said = {"SkullStripped": True, "RepetitionTime": found.period, **found.taken.described}
    return said | ({"Resolution": resolution} if scan.entities.get("res") else {})
