"""A recording of sensors becomes the amplitude of its rhythms: read, re-referenced, filtered, and thinned out."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_dl import derivatives
from bids_dl.errors import DataError, UsageError
from bids_dl.records import Array, Scan

MIN_SECONDS = 10.0
EDGE_SECONDS = 1.0
"""Left out at either end, where the filters see what is not there."""

MIN_SENSORS = 2
"""Good sensors without which there is neither an average of the others nor a pair to relate."""

SAMPLES_PER_CYCLE = 2.2
"""Samples a second that a band needs for each Hz of its upper edge: the filter has to fall off below one half."""

ENOUGH_PER_CYCLE = 6
"""Samples a second beyond which a faster recording is thinned out, for each Hz of the highest band."""

AT_ONCE = 16
"""Sensors filtered at once: their filtered copies stay small."""

UNITS = {"eeg": ("µV", 1e6), "mag": ("fT", 1e15), "grad": ("fT/cm", 1e13)}
"""The unit each type of sensor is written in, and how many of it are one SI unit."""

FILTER = "zero-phase FIR (Hamming window) and Hilbert transform, averaged in windows"
DESCRIPTION = (
    "Minimal preparation by bids_dl: sensors marked bad, flat or not finite are n/a, windows inside bad segments "
    "and within a second of either end are left out; no removal of eye, muscle or heart artefacts, no source reconstruction."
)


@dataclass(frozen=True)
class Band:
    """A range of frequencies, in Hz."""

    name: str
    low: float
    high: float


@dataclass(frozen=True)
class Recording:
    """What the sensors of one type measured, (sensor, sample), in the unit of ``UNITS``.

    ``good`` (sensor,) tells which can be used, ``flagged`` (sample,) which samples lie in a segment marked bad,
    ``thinned`` how many samples of the file became one.
    """

    signal: Array
    labels: tuple[str, ...]
    good: NDArray[np.bool_]
    flagged: NDArray[np.bool_]
    sampling_hz: float
    sensors: str
    reference: str = "as recorded"
    thinned: int = 1


def bands_of(named: Sequence[str], option: str) -> list[Band]:
    """Read bands as they are written in the options, such as ``alpha 8-13``.

    Raises
    ------
    UsageError
        If one is not written so, has no width, or a name stands twice.
    """
    found = []
    for text in named:
        read = re.fullmatch(r"\s*([A-Za-z][A-Za-z0-9]*)\s+([0-9.]+)\s*-\s*([0-9.]+)\s*", str(text))
        if read is None or not 0 < float(read[2]) < float(read[3]):
            raise UsageError(f"{option} has {text!r}; write a name and two frequencies in Hz, like 'alpha 8-13'.")
        found.append(Band(read[1], float(read[2]), float(read[3])))
    if not found or len({b.name for b in found}) < len(found):
        raise UsageError(f"{option} is {list(named)}; give at least one band, and each a name of its own.")
    return found


def read(scan: Scan, sensors: str) -> Recording:
    """Read all sensors of one type: ``eeg``, ``mag`` or ``grad``; channels.tsv says which are bad.

    Raises
    ------
    DataError
        If MNE is not installed, the file is damaged, there is no such sensor, fewer than 2 are good, or what is not
        marked bad is shorter than 10 s.
    """
    raw = _opened(scan)
    try:
        return _checked(scan, _taken(scan, raw, sensors))
    except (OSError, ValueError, RuntimeError) as problem:  # MNE reads the samples only now
        raise _damaged(scan, problem) from problem
    finally:
        raw.close()


def _opened(scan: Scan) -> Any:
    """Open a recording with what its channels.tsv says, where its format is one that BIDS knows for its kind."""
    try:
        import mne
        import mne_bids
        from mne_bids.config import ALLOWED_DATATYPE_EXTENSIONS
    except ImportError as problem:
        raise DataError(f"{scan.name} needs MNE-BIDS to be read ({problem}); pip install 'bids_dl[meeg]'.") from problem
    known = scan.path.suffix in ALLOWED_DATATYPE_EXTENSIONS.get(scan.entities["datatype"], ())
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            if known:
                raw = mne_bids.read_raw_bids(mne_bids.get_bids_path_from_fname(scan.path), verbose="warning")
            else:
                raw = mne.io.read_raw(scan.path, verbose="warning")
        if any("does not match the file size" in str(one.message) for one in said):
            raise EOFError("it is shorter or longer than its header says")
    except Exception as problem:  # every format of every maker raises its own kinds
        raise _damaged(scan, problem) from problem
    return raw


def _damaged(scan: Scan, problem: Exception) -> DataError:
    """Say in one sentence what MNE says in several, the later ones to programmers."""
    said = re.split(r"\.(?=\s|[A-Z]|$)", " ".join(str(problem).split()))[0] or type(problem).__name__
    said = f"a sidecar lacks {said}" if isinstance(problem, KeyError) else said
    return DataError(f"{scan.name} cannot be read ({said}); mend the file or its sidecars, or copy it again.")


def _taken(scan: Scan, raw: Any, sensors: str) -> Recording:
    """Take the samples of one type of sensor, bad ones too, so that all participants have the same columns."""
    types = raw.get_channel_types()
    picks = [n for n, kind in enumerate(types) if kind == sensors]
    if not picks:
        there = ", ".join(sorted(set(types)))
        raise DataError(f"{scan.name} has no channel of the type {sensors}, only {there}; look at its channels.tsv.")
    signal = raw.get_data(picks=picks, verbose="critical")
    signal *= UNITS[sensors][1]
    names = [raw.ch_names[n] for n in picks]
    with np.errstate(invalid="ignore"):
        alive = np.isfinite(signal).all(axis=1) & (np.ptp(signal, axis=1) > 0)
    good = alive & ~np.isin(names, raw.info["bads"])
    return Recording(signal, _labels(names, sensors), good, _flagged(raw), float(raw.info["sfreq"]), sensors)


def _labels(names: Sequence[str], sensors: str) -> tuple[str, ...]:
    """Name the columns; numbers get the type before them, since a header of numbers would be read as a row."""
    numbers = all(re.fullmatch(r"[-+.0-9eE]+", name) for name in names)
    return tuple(f"{sensors.upper()}{name}" if numbers else name for name in names)


def _flagged(raw: Any) -> NDArray[np.bool_]:
    """Find the samples inside annotations whose names begin with BAD."""
    plain, marked = (raw.get_data([0], reject_by_annotation=how, verbose="critical")[0] for how in (None, "NaN"))
    flagged: NDArray[np.bool_] = np.isnan(marked) & ~np.isnan(plain)
    return flagged


def _checked(scan: Scan, taken: Recording) -> Recording:
    n_good, seconds = int(taken.good.sum()), float((~taken.flagged).sum() / taken.sampling_hz)
    if n_good < MIN_SENSORS:
        raise DataError(
            f"{scan.name}: {n_good} of {len(taken.good)} {taken.sensors} channels are good, the others are marked bad, "
            f"flat or not finite; at least {MIN_SENSORS} are needed."
        )
    if seconds < MIN_SECONDS:
        raise DataError(
            f"{scan.name} has {seconds:.3g} s that are not marked bad; at least {MIN_SECONDS:g} s are needed."
        )
    return taken


def thinned(taken: Recording, bands: Sequence[Band]) -> Recording:
    """Keep every n-th sample of a low-passed signal, where there are many more than the bands need.

    The highest band stays below a third of the new Nyquist frequency, where the low-pass filter is flat.
    """
    from scipy.signal import resample_poly

    n = int(taken.sampling_hz // (ENOUGH_PER_CYCLE * max(b.high for b in bands)))
    if n < 2:
        return taken
    n_left = -(-taken.signal.shape[1] // n)
    signal = np.full((len(taken.labels), n_left), np.nan)
    for sensor in np.flatnonzero(taken.good):
        signal[sensor] = resample_poly(taken.signal[sensor], 1, n, padtype="line")
    flagged = np.logical_or.reduceat(taken.flagged, np.arange(n_left) * n)
    return replace(taken, signal=signal, flagged=flagged, sampling_hz=taken.sampling_hz / n, thinned=n)


def average_referenced(taken: Recording) -> Recording:
    """Subtract the mean of the good sensors from each, at every sample."""
    signal = taken.signal - taken.signal[taken.good].mean(axis=0)
    return replace(taken, signal=signal, reference="average of the good sensors")


def refuse_slow(scan: Scan, taken: Recording, bands: Sequence[Band]) -> None:
    """Refuse a recording whose sampling rate is too low for a band."""
    for band in bands:
        if taken.sampling_hz < SAMPLES_PER_CYCLE * band.high:
            raise DataError(
                f"{scan.name} has {taken.sampling_hz:g} samples a second, too few for the band {band.name} up to "
                f"{band.high:g} Hz; leave it out of preparations.{scan.kind}.bands."
            )


def envelope(taken: Recording, band: Band, envelope_hz: float) -> Array:
    """Measure how strong a rhythm is: the amplitude of the analytic signal, averaged in windows of 1/envelope_hz.

    Returns
    -------
    Array
        (window, sensor), in the unit of the signal; NaN for sensors that are not good. Windows that overlap a segment
        marked bad, or the second at either end, are left out.
    """
    length = taken.sampling_hz / envelope_hz
    bounds = np.round(np.arange(int(taken.signal.shape[1] / length) + 1) * length).astype(int)
    amplitude = np.full((len(bounds) - 1, len(taken.labels)), np.nan)
    good = np.flatnonzero(taken.good)
    for sensors in np.array_split(good, -(-len(good) // AT_ONCE)):
        strength = _strength(taken.signal[sensors], band, taken.sampling_hz)[:, : bounds[-1]]
        amplitude[:, sensors] = (np.add.reduceat(strength, bounds[:-1], axis=1) / np.diff(bounds)).T
    at = np.arange(taken.signal.shape[1])
    outer = np.minimum(at, at[::-1]) < round(EDGE_SECONDS * taken.sampling_hz)
    kept = ~np.logical_or.reduceat((taken.flagged | outer)[: bounds[-1]], bounds[:-1])
    return np.asarray(amplitude[kept])


def _strength(signal: Array, band: Band, sampling_hz: float) -> Array:
    """Filter to a band and take the amplitude of the analytic signal, (sensor, sample)."""
    from mne.filter import filter_data
    from scipy.fft import next_fast_len
    from scipy.signal import hilbert

    filtered = filter_data(signal, sampling_hz, band.low, band.high, verbose="critical")
    n = filtered.shape[1]
    return np.asarray(np.abs(hilbert(filtered, N=next_fast_len(n), axis=1))[:, :n])


def write(scan: Scan, out: Path, taken: Recording, bands: Sequence[Band], envelope_hz: float) -> list[Scan]:
    """Write the amplitudes of each band as a table of regional series, the sensors as regions.

    Returns
    -------
    list of Scan
        One a band, of the kind ``timeseries``; its ``atlas`` names the kind of recording and the band.

    Raises
    ------
    UsageError
        If there are more windows a second than a quarter of the recording's samples, or none.
    """
    if not 0 < envelope_hz <= taken.sampling_hz / 4:
        raise UsageError(
            f"preparations.{scan.kind}.envelope_hz is {envelope_hz:g}; {scan.name} has {taken.sampling_hz:g} samples a "
            f"second, of which a window takes at least 4."
        )
    return [_write_band(scan, out, taken, band, envelope_hz) for band in bands]


def _write_band(scan: Scan, out: Path, taken: Recording, band: Band, envelope_hz: float) -> Scan:
    own = {k: v for k, v in scan.entities.items() if k not in {"suffix", "datatype", "split"}}
    own |= {"atlas": f"{scan.kind}{band.name[0].upper()}{band.name[1:]}", "desc": "envelope"}
    path = derivatives.folder_of(out, scan) / scan.kind / derivatives.name(own, "timeseries", ".tsv")
    series = envelope(taken, band, envelope_hz)
    derivatives.write_matrix(path, series, taken.labels)
    n_left_out = int(taken.signal.shape[1] / taken.sampling_hz * envelope_hz) - len(series)
    derivatives.write_json(derivatives.sidecar_path(path), {
        "Sources": [derivatives.bids_uri(out, scan)], "Description": DESCRIPTION,
        "RepetitionTime": 1 / envelope_hz, "SamplingFrequency": envelope_hz, "Units": UNITS[taken.sensors][0],
        "Band": {"Name": band.name, "Low": band.low, "High": band.high, "Units": "Hz"}, "Filter": FILTER,
        "Reference": taken.reference, "RecordingSamplingFrequency": taken.sampling_hz * taken.thinned,
        "BadChannels": [n for n, is_good in zip(taken.labels, taken.good, strict=True) if not is_good],
        "NumberOfWindowsLeftOut": n_left_out,
    })  # fmt: skip
    return replace(
        scan, path=path, dataset=out, prepared=True, related={}, entities={**own, "suffix": "timeseries", "datatype": scan.kind},
        why=f"prepared here from the raw scan: amplitude of {band.name}, {band.low:g}–{band.high:g} Hz",
    )  # fmt: skip
