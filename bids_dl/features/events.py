"""What a participant was doing while each volume was taken, as the blood tells it: some seconds late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_dl import signals
from bids_dl.errors import DataError
from bids_dl.records import Array, Feature, Scan

TAKES = ("bold",)
NEEDS = ("events",)
BY_DEFAULT = False


def extract(scan: Scan, *, delay_s: float = 5.0) -> Feature:
    """Mark the volumes of each trial type, shifted by the delay of the haemodynamic response [1]_.

    A volume belongs to a trial that is under way in its middle; a trial too short for that has the volume nearest to
    its onset. Rows are those of the whole run: of a series that was censored, ``CensoredVolumes`` are missing. Trials that
    begin after the end of the scan, as where it was stopped, have no volume; ``LateEvents`` counts them.

    Parameters
    ----------
    scan
        A 4-D BOLD with its events.tsv in ``related``.
    delay_s
        Seconds from an event to the peak of its response.

    Returns
    -------
    Feature
        ``timeseries`` (BIDS keeps ``events`` for onsets), (time, trial_type), 1 in a trial and 0 elsewhere; no unit. NaN
        where the only trial under way has no type (n/a). A table without trial types has one column, ``event``.

    Raises
    ------
    DataError
        If there is no events file, it lacks numbers for onset, or most onsets lie after the end of the scan.

    References
    ----------
    .. [1] Glover (1999), NeuroImage 9(4). doi:10.1006/nimg.1998.0419
    """
    if "events" not in scan.related:
        raise DataError(f"{scan.name} has no events.tsv beside it; add it, or leave out the feature events.")
    image = signals.open_bold(scan)
    n_volumes, period = image.shape[3], signals.repetition_time(scan, image)
    onset, duration, kind = read_events(scan.related["events"])
    typed = np.array([name is not None for name in kind], bool)
    late = _late(scan, onset[typed], n_volumes * period)
    labels = tuple(sorted({name for name in kind if name is not None}))
    values, untyped = np.zeros((n_volumes, len(labels))), np.zeros(n_volumes, bool)
    for start, stop, name in zip(*_volumes_of(onset + delay_s, duration, period), kind, strict=True):
        at = slice(max(start, 0), max(stop, 0))
        if name is None:
            untyped[at] = True
        else:
            values[at, labels.index(name)] = 1
    values[untyped & ~values.any(axis=1)] = np.nan
    described: dict[str, Any] = {"RepetitionTime": period, "HaemodynamicDelay": delay_s, "LateEvents": late}
    named = {"space": "", "res": "", "desc": "alignedevents"}
    return Feature(values, ("time", "trial_type"), "timeseries", "none", labels, named, described)


def _volumes_of(start: Array, duration: Array, period: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Number the first volume of each trial and the one after its last, (event,), from seconds since the first volume.

    A middle at which a trial begins belongs to it, and one at which it ends does not: one after another, none overlap.
    """
    begin, end = (np.round(t / period, 6) for t in (start, start + duration))
    first, last = np.ceil(begin - 0.5), np.ceil(end - 0.5)
    brief = last <= first
    first = np.where(brief, np.floor(begin), first)
    return first.astype(np.intp), np.where(brief, first + 1, last).astype(np.intp)


def read_events(file: Path) -> tuple[Array, Array, list[str | None]]:
    """Read onsets and durations in seconds, (event,), and trial types of a BIDS table, None where that is n/a.

    Raises
    ------
    DataError
        If the table lacks a column, is empty, or an onset is no number.
    """
    import pandas as pd

    table = pd.read_csv(file, sep="\t", na_values=["n/a"], keep_default_na=False, encoding="utf-8-sig")
    lacking = [c for c in ("onset", "duration") if c not in table]
    if lacking or table.empty:
        raise DataError(
            f"{file.name} {f'lacks {lacking[0]}' if lacking else 'is empty'}; BIDS wants onset and duration."
        )
    onset = pd.to_numeric(table["onset"], errors="coerce").to_numpy(np.float64)
    if not np.isfinite(onset).all():
        row = int(np.flatnonzero(~np.isfinite(onset))[0]) + 2
        raise DataError(f"{file.name}: the onset in line {row} is no number; give it in seconds.")
    duration = np.nan_to_num(pd.to_numeric(table["duration"], errors="coerce").to_numpy(np.float64))
    kinds = table["trial_type"] if "trial_type" in table else pd.Series(["event"] * len(table))
    return onset, duration, [str(kind) if known else None for kind, known in zip(kinds, kinds.notna(), strict=True)]


def _late(scan: Scan, onset: Array, end: float) -> int:
    """Count the events that begin after the end of a scan; refuse those of another run, or in another unit."""
    file, late = scan.related["events"].name, int((onset >= end).sum())
    if not len(onset):
        raise DataError(f"{file} names no trial type in any row; leave out the feature events.")
    if 2 * late > len(onset):
        raise DataError(
            f"{file}: {late} of {len(onset)} events begin after the end of {scan.name} at {end:g} s; are the onsets in "
            "seconds, and of this run?"
        )
    return late
