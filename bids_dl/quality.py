"""What can be measured of a scan's quality, from the files a feature is extracted from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bids_dl import query
from bids_dl.config import Quality
from bids_dl.errors import DISK_FULL, BidsDLError, DataError, damaged
from bids_dl.records import Array, Scan

Mask = NDArray[np.bool_]

MEASURES: dict[str, tuple[str, str]] = {
    "mask_dice": ("Dice overlap of the brain mask with the template's; low where registration or extraction failed", "1"),
    "mask_ml": ("Volume of the brain mask in template space, which hardly differs between people", "mL"),
    "brain_ml": ("Grey and white matter as scanned", "mL"),
    "snr_wm": ("Signal-to-noise ratio inside white matter", "1"),
    "cnr": ("Contrast of grey and white matter over their noise", "1"),
    "tsnr": ("Temporal signal-to-noise ratio, median over the mask", "1"),
    "dvars_percent": ("Root mean square change from volume to volume over the mask, in percent of the mean", "%"),
    "mean_fd_mm": ("Mean framewise displacement", "mm"),
    "max_fd_mm": ("Largest framewise displacement", "mm"),
    "moved_share": ("Share of volumes whose framewise displacement exceeds 0.5 mm", "1"),
    "n_volumes": ("Volumes of the run", "1"),
    "degrees_of_freedom": ("Independent values that filter, confounds and censoring leave; the fewest over its features", "1"),
    "snr_b0": ("Signal-to-noise ratio over the volumes without diffusion weighting, median over the mask", "1"),
}  # fmt: skip
"""What is measured: in words, and its unit."""

MOVED_MM = 0.5
TISSUE_PROBABILITY, FEWEST_VOXELS = 0.8, 30
FEWEST_B0, LARGEST_B0 = 3, 50
FLAGGED_FROM = 10
"""Participants from which on outliers are flagged: of a site among its own, else of the whole cohort."""

LARGEST_Z = 3.5
FEWEST_FREE = 20
"""Degrees of freedom below which a scan is flagged, whatever the others have: from 20 independent values, two regions that
have nothing in common correlate by more than 0.44 in one of 20 cases; a connectome of such a run is mostly chance."""

SITE_COLUMNS = ("site", "scanner", "site_id", "center", "centre", "acquisition_site")


def is_site(column: str, named: str) -> bool:
    """Tell whether a column of participants.tsv holds sites: the one ``named`` so, or one of `SITE_COLUMNS`."""
    return column == named or column.lower() in SITE_COLUMNS


"""Columns of participants.tsv that name the site, in lower case; the first one that there is."""


def measure(scan: Scan) -> dict[str, float]:
    """Measure the quality of a prepared scan; what cannot be known is left out, and no value is NaN.

    A T1w gives the overlap of its mask with the template's, volumes, white-matter SNR and grey/white contrast [1]_
    (the noise of the background is unknown in a stripped image, and taken as 0); BOLD gives temporal SNR [2]_, DVARS and
    framewise displacement [3]_; a dwi the SNR of its b0 volumes. A PET, whose uptake is no homogeneous signal, gives
    the overlap of its mask only, and so does every other image.

    Parameters
    ----------
    scan
        With ``mask`` (BOLD in MNI space is else measured inside the template's); in ``related``, ``gm`` and ``wm``
        (probabilities), ``volumes`` (mL, JSON), ``bval``.

    Returns
    -------
    dict
        By the names of `MEASURES`; empty for a kind of scan that nothing is measured of.

    Raises
    ------
    DataError
        If a file is damaged, or the image and what belongs to it have different grids.

    References
    ----------
    .. [1] Magnotta & Friedman (2006), Journal of Digital Imaging 19(2). doi:10.1007/s10278-006-0264-x
    .. [2] Murphy et al. (2007), NeuroImage 34(2). doi:10.1016/j.neuroimage.2006.09.032
    .. [3] Power et al. (2012), NeuroImage 59(3). doi:10.1016/j.neuroimage.2011.10.018
    """
    own = MEASURED.get(scan.kind)
    if own is None:
        return {}
    mask, affine = _volume(scan.mask) if scan.mask else (None, np.eye(4))
    inside = None if mask is None else mask > 0
    found = {**_overlap(scan, inside, affine), **own(scan, inside)}
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def noted(scan: Scan, features: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Describe a scan and its measures for the record; a failure is a sentence in it, never an exception.

    ``features`` are the record's entries: those that come from this scan tell the degrees of freedom left in it.
    """
    paths = {k: str(p) for k in ("path", "mask", "confounds") if (p := getattr(scan, k)) is not None}
    entry = {"scan": scan.name, "kind": scan.kind, **paths, "related": {k: str(p) for k, p in scan.related.items()}}
    left = [f["degrees_of_freedom"] for f in features if f["source"] == str(scan.path) and "degrees_of_freedom" in f]
    free = {"degrees_of_freedom": float(min(left))} if left else {}
    try:
        return entry | {"measures": measure(scan) | free}
    except Exception as problem:  # quality is told beside a feature: it must not cost it
        if isinstance(problem, OSError) and problem.errno in DISK_FULL:
            raise
        return entry | {"measures": free, "failure": str(problem)}


def _volume(path: Path) -> tuple[Array, Array]:
    """Read one volume in float32, with its affine."""
    try:
        image = nib.load(path)
        return np.nan_to_num(np.squeeze(np.asarray(image.dataobj, np.float32))), np.asarray(image.affine)
    except Exception as problem:  # nibabel, zlib and gzip raise many kinds for a damaged file
        raise damaged(path.name, problem) from problem


@lru_cache(maxsize=1)
def _template_mask() -> tuple[Array, Array]:
    from nilearn.datasets import load_mni152_brain_mask

    image = load_mni152_brain_mask(resolution=2)
    return np.asarray(image.dataobj, np.float32), np.asarray(image.affine)


def _overlap(scan: Scan, inside: Mask | None, affine: Array) -> dict[str, float]:
    """Compare the mask with the template's on the mask's grid, where it lies in MNI space."""
    if inside is None or not _is_standard(scan):
        return {}
    return {"mask_dice": dice(inside, _expected(inside.shape, affine))}


def _is_standard(scan: Scan) -> bool:
    return scan.entities.get("space", "").startswith("MNI")


def _expected(shape: tuple[int, ...], affine: Array) -> Mask:
    """Tell where on a grid in MNI space the template has its brain."""
    template, template_affine = _template_mask()
    matrix = np.linalg.inv(template_affine) @ affine
    moved = ndimage.affine_transform(template, matrix[:3, :3], matrix[:3, 3], output_shape=shape[:3], order=1)
    inside: Mask = moved > 0.5
    return inside


def dice(one: Mask, other: Mask) -> float:
    """Share what two masks have in common: twice the intersection over the sum of both; NaN if both are empty."""
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else float("nan")


def _structure(scan: Scan, inside: Mask | None) -> dict[str, float]:
    values, affine = _volume(scan.path)
    voxel_ml = float(abs(np.linalg.det(affine[:3, :3])) / 1000)
    found = {} if inside is None else {"mask_ml": float(inside.sum()) * voxel_ml}
    inside = values != 0 if inside is None else _same_grid(scan, inside, scan.mask, values)
    if "volumes" in scan.related:
        said = query.read_json(scan.related["volumes"])
        found["brain_ml"] = float(said["gm_ml"] + said["wm_ml"])
    if not {"gm", "wm"} <= set(scan.related):
        return found
    grey, white = (
        values[inside & (_same_grid(scan, _volume(scan.related[t])[0], scan.related[t], values) > TISSUE_PROBABILITY)]
        for t in ("gm", "wm")
    )
    return found | tissue_contrast(grey, white)


def _same_grid(scan: Scan, other: Any, path: Path | None, values: Array) -> Any:
    if other.shape != values.shape:
        named = path.name if path else "its mask"
        raise DataError(f"{scan.name} has the grid {values.shape} but {named} {other.shape}; give them one grid.")
    return other


def tissue_contrast(grey: Array, white: Array) -> dict[str, float]:
    """Relate intensities of white matter to their noise, and to those of grey matter; empty for too few voxels."""
    if min(len(grey), len(white)) < FEWEST_VOXELS:
        return {}
    noise = np.sqrt(grey.var(ddof=1, dtype=float) + white.var(ddof=1, dtype=float))
    means = grey.mean(dtype=float), white.mean(dtype=float)
    spread = white.std(ddof=1, dtype=float)
    found = {"snr_wm": means[1] / spread} if spread > 0 else {}
    return found | ({"cnr": abs(means[1] - means[0]) / noise} if noise > 0 else {})


def _series(scan: Scan, inside: Mask | None) -> dict[str, float]:
    moved = _motion(scan)
    inside = _assumed(scan) if inside is None else inside
    if not inside.any():
        return moved
    return _temporal(_volumes(scan, inside)) | moved


def _assumed(scan: Scan) -> Mask:
    """Where there is no mask, take the template's in MNI space, and nothing elsewhere."""
    if not _is_standard(scan):
        return np.zeros(1, bool)
    image = nib.load(scan.path)
    return _expected(image.shape, np.asarray(image.affine))


def _motion(scan: Scan) -> dict[str, float]:
    """Summarise the framewise displacement of the confounds table."""
    if scan.confounds is None:
        return {}
    displaced = query.framewise_displacement(scan.confounds)
    known = displaced[np.isfinite(displaced)]
    if not len(known):
        return {}
    return {
        "mean_fd_mm": float(known.mean()), "max_fd_mm": float(known.max()),
        "moved_share": float((displaced > MOVED_MM).mean()),
    }  # fmt: skip


def _volumes(scan: Scan, inside: Mask, only: NDArray[np.bool_] | None = None) -> Iterator[Array]:
    """Yield the volumes of a series one after another, inside a mask: (voxel,). The file is decompressed once."""
    try:
        image = nib.load(scan.path)
        if scan.path.name.endswith(".gz"):
            from isal import igzip

            image = type(image).from_stream(igzip.open(scan.path))  # type: ignore[no-untyped-call]
        if image.shape[:3] != inside.shape or len(image.shape) != 4:
            raise DataError(f"{scan.name} has the shape {image.shape} but its mask {inside.shape}; give them one grid.")
        for t in range(image.shape[3]):
            if only is None or only[t]:
                yield np.nan_to_num(np.asarray(image.dataobj[..., t], np.float32)[inside])
    except DataError:
        raise
    except Exception as problem:  # nibabel, zlib and gzip raise many kinds for a damaged file
        raise damaged(scan.name, problem) from problem


def _temporal(volumes: Iterator[Array]) -> dict[str, float]:
    """Sum up means, variances and steps in one pass, about the first volume: no precision is lost to the mean."""
    first = next(volumes, np.empty(0, np.float32))
    total, squares, change = np.zeros(len(first)), np.zeros(len(first)), []
    before, n = first, 1
    for values in volumes:
        off = values - first
        total += off
        squares += off**2
        change.append(float(np.sqrt(np.mean((values - before) ** 2, dtype=float))))
        before, n = values, n + 1
    if n < 2 or not len(first):
        return {"n_volumes": n}
    mean = first + total / n
    spread = np.sqrt(np.maximum(squares - total**2 / n, 0) / (n - 1))
    return {
        "n_volumes": n,
        "tsnr": _median_ratio(mean, spread),
        "dvars_percent": 100 * _ratio(np.mean(change), mean.mean()),
    }


def _ratio(over: Any, under: Any) -> float:
    return float(over / under) if under > 0 else float("nan")


def _median_ratio(mean: Array, spread: Array) -> float:
    varies = spread > 1e-6 * np.abs(mean)
    return float(np.median(mean[varies] / spread[varies])) if varies.any() else float("nan")


def _diffusion(scan: Scan, inside: Mask | None) -> dict[str, float]:
    """Take the b0 volumes as repeated measurements."""
    if inside is None or "bval" not in scan.related:
        return {}
    weights = np.loadtxt(scan.related["bval"], ndmin=1).ravel()
    unweighted = weights < LARGEST_B0
    if unweighted.sum() < FEWEST_B0:
        return {"n_volumes": len(weights)}
    found = _temporal(_volumes(scan, inside, unweighted))
    return {"n_volumes": len(weights), "snr_b0": found["tsnr"]}


def _nothing(scan: Scan, inside: Mask | None) -> dict[str, float]:
    return {}


MEASURED: dict[str, Callable[[Scan, Mask | None], dict[str, float]]] = {
    "t1w": _structure, "bold": _series, "dwi": _diffusion, "pet": _nothing, "dwimap": _nothing, "t2w": _nothing,
    "flair": _nothing,
}  # fmt: skip
"""How each kind of scan is measured, beside the overlap of its mask."""


def sites_of(bids: Path, named: str = "") -> dict[str, str]:
    """Read the site of each participant from participants.tsv: in the column named, else in one of `SITE_COLUMNS`.

    Nobody has one where there is no such column or no such table; the group level says what is wrong with a table.
    """
    try:
        people = query.participants_table(bids)
    except BidsDLError:
        return {}
    lower = {str(c).lower(): c for c in people.columns}
    column = named if named in people else next((lower[c] for c in SITE_COLUMNS if c in lower), None)
    return {} if column is None else {str(i): str(site) for i, site in people[column].dropna().items()}


def table(records: Mapping[str, Mapping[str, Any]], sites: Mapping[str, str] | None = None) -> Any:
    """Lay the measures of many participants out, a row a scan, with columns that flag what is unusual and say why.

    Parameters
    ----------
    records
        What the participant level noted, by participant.
    sites
        Site of each participant, as far as it is known.

    Returns
    -------
    pandas.DataFrame
        ``participant_id``, ``scan``, ``kind``, the measures in the order of `MEASURES`; ``flags``: names of the measures
        whose robust z exceeds 3.5 among the scans of that kind at the participant's site, or in the whole cohort where
        the site has fewer than 10 participants (no outlier is sought among fewer), and ``degrees_of_freedom`` below 20,
        joined by commas; and ``reason``, the same in words. Both are n/a where there is no flag.
    """
    import pandas as pd

    rows = [
        {"participant_id": participant_id, "scan": entry["scan"], "kind": entry["kind"], **entry["measures"]}
        for participant_id, record in sorted(records.items())
        for entry in record.get("quality", [])
        if entry["measures"]
    ]
    columns = [name for name in MEASURES if any(name in row for row in rows)]
    made = pd.DataFrame(rows, columns=["participant_id", "scan", "kind", *columns])
    said = _said_flags(made, columns, made["participant_id"].map(sites or {}))
    flags = [", ".join(name for name in columns if name in one) or None for one in said]
    reasons = ["; ".join(one[name] for name in columns if name in one) or None for one in said]
    return made.assign(flags=pd.Series(flags, dtype=object), reason=pd.Series(reasons, dtype=object))


def _said_flags(made: Any, columns: Sequence[str], sites: Any) -> list[dict[str, str]]:
    """Say for each row which of its measures are flagged, and why."""
    said: list[dict[str, str]] = [{} for _ in range(len(made))]
    for kind, group in made.groupby("kind"):
        for judged, peers, where in _peers(group, sites[group.index]):
            z = robust_z(made.loc[peers, columns].to_numpy(float))
            for at, column in np.argwhere(np.abs(z) > LARGEST_Z):
                if (row := peers[at]) in judged:
                    name, among = columns[column], f"{len(peers)} {kind} scans {where}"
                    said[row][name] = (
                        f"{_valued(name, made.at[row, name])} (robust z {z[at, column]:+.1f} among {among})"
                    )
    if "degrees_of_freedom" in columns:
        for row in made.index[made["degrees_of_freedom"] < FEWEST_FREE]:
            value = _valued("degrees_of_freedom", made.at[row, "degrees_of_freedom"])
            said[row]["degrees_of_freedom"] = f"{value} (fewer than {FEWEST_FREE})"
    return said


def _valued(name: str, value: float) -> str:
    unit = MEASURES[name][1]
    return f"{name} {value:.3g}" + ("" if unit == "1" else f" {unit}")


def _peers(group: Any, sites: Any) -> Iterator[tuple[Any, Any, str]]:
    """Yield rows to judge, those to compare them with, and where these are: at a site of enough participants, or anywhere."""
    n_at = group["participant_id"].groupby(sites).nunique()
    large = n_at.index[n_at >= FLAGGED_FROM]
    for site in large:
        own = group.index[sites == site]
        yield own, own, f"of site {site}"
    rest = group.index[~sites.isin(large)]
    if len(rest) and group["participant_id"].nunique() >= FLAGGED_FROM:
        yield rest, group.index, "of all sites" if sites.notna().any() else "of the cohort"


def robust_z(values: Array) -> Array:
    """Measure how far each value lies from its column's median, in robust standard deviations [1]_.

    The deviation is 1.4826 times the median absolute deviation; where more than half of a column is equal, 1.2533 times the
    mean absolute deviation. A column that hardly varies has no outlier.

    Parameters
    ----------
    values
        (scan, measure); NaN where it is not known.

    Returns
    -------
    Array
        As ``values``, no unit; NaN where the value is.

    References
    ----------
    .. [1] Iglewicz & Hoaglin (1993), How to Detect and Handle Outliers. ISBN 978-0873892476
    """
    z = np.full(values.shape, np.nan)
    for column in range(values.shape[1]):
        known = np.isfinite(values[:, column])
        if known.any():
            middle = np.median(values[known, column])
            off = values[known, column] - middle
            spread = 1.4826 * np.median(np.abs(off)) or 1.2533 * np.mean(np.abs(off))
            z[known, column] = off / spread if spread > 1e-6 * abs(middle) else 0
    return z


def exclusions(
    rules: Quality, records: Mapping[str, Mapping[str, Any]], sites: Mapping[str, str] | None = None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Apply the rules of the configuration's section ``quality``: none unless asked for; flags are those of `table`.

    Returns
    -------
    tuple
        participant_id → reason; and what a reader must know: how many could not be judged and were kept.
    """
    if rules == Quality():
        return {}, ()
    scans = table(records, sites)
    reasons: dict[str, list[str]] = {}
    for participant_id, reason in [*_moved(rules, scans), *_misplaced(rules, scans), *_flagged(rules, scans)]:
        reasons.setdefault(participant_id, []).append(reason)
    return {i: "; ".join(said) for i, said in reasons.items()}, tuple(_unjudged(rules, scans, list(records)))


def _moved(rules: Quality, scans: Any) -> Iterator[tuple[str, str]]:
    limit = rules.max_mean_fd_mm
    if limit and "mean_fd_mm" in scans:
        for participant_id, value in scans.groupby("participant_id")["mean_fd_mm"].mean().items():
            if value > limit:
                yield participant_id, f"mean framewise displacement {value:.2f} mm (quality.max_mean_fd_mm = {limit:g})"


def _misplaced(rules: Quality, scans: Any) -> Iterator[tuple[str, str]]:
    limit = rules.min_mask_dice
    if limit and "mask_dice" in scans:
        for row in scans[scans["mask_dice"] < limit].itertuples():
            yield (
                row.participant_id,
                f"brain mask of {row.scan} overlaps the template's by {row.mask_dice:.2f} (quality.min_mask_dice = {limit:g})",
            )


def _flagged(rules: Quality, scans: Any) -> Iterator[tuple[str, str]]:
    if rules.exclude_flagged:
        for row in scans[scans["flags"].notna()].itertuples():
            yield row.participant_id, f"{row.scan} is flagged: {row.reason} (quality.exclude_flagged)"


def _unjudged(rules: Quality, scans: Any, ids: Sequence[str]) -> Iterator[str]:
    for limit, name in ((rules.max_mean_fd_mm, "mean_fd_mm"), (rules.min_mask_dice, "mask_dice")):
        judged = set(scans.loc[scans[name].notna(), "participant_id"]) if name in scans else set()
        if limit and (n := len(set(ids) - judged)):
            yield f"{n} of {len(ids)} participants have no {name}; the rule of the section quality did not touch them."
    if rules.exclude_flagged and scans["participant_id"].nunique() < FLAGGED_FROM:
        yield f"quality.exclude_flagged sought no outliers: fewer than {FLAGGED_FROM} participants were measured."
