"""A raw EEG becomes the amplitude of its rhythms at every electrode, a table a band."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bids_dl import oscillations
from bids_dl.records import Scan

GIVES = ("timeseries",)


def prepare(
    scan: Scan, anatomy: Scan | None, out: Path, *, envelope_hz: float = 2.0, average_reference: bool = True,
    bands: Sequence[str] = ("delta 1-4", "theta 4-8", "alpha 8-13", "beta 13-30", "lowgamma 30-45"),
) -> list[Scan]:  # fmt: skip
    """Filter an EEG to each band and follow the amplitude of the analytic signal over time [1]_.

    Neighbouring electrodes see the same sources: part of what their amplitudes share is conduction by the head.

    Parameters
    ----------
    scan
        A raw EEG, in any format that BIDS allows, or FIF.
    anatomy
        Not used.
    out
        The output folder.
    envelope_hz
        Windows a second in which the amplitude is averaged.
    average_reference
        Subtract the mean of the good electrodes; else the reference of the recording is kept.
    bands
        Name and edges, in Hz, of each band.

    Returns
    -------
    list of Scan
        A table (time, electrode) a band, in µV, of the kind ``timeseries``, its atlas called ``eegAlpha`` and so on;
        electrodes that are bad by channels.tsv, flat or not finite are n/a.

    Raises
    ------
    DataError
        If MNE-BIDS is not installed, the file is damaged, fewer than 2 electrodes are good, fewer than 10 s are not
        marked bad, or there are too few samples a second for a band.
    UsageError
        If a band or ``envelope_hz`` cannot be followed.

    References
    ----------
    .. [1] Bruns (2004), Journal of Neuroscience Methods 137(2). doi:10.1016/j.jneumeth.2004.03.002
    """
    wanted = oscillations.bands_of(bands, "preparations.eeg.bands")
    taken = oscillations.read(scan, "eeg")
    oscillations.refuse_slow(scan, taken, wanted)
    taken = oscillations.thinned(taken, wanted)
    taken = oscillations.average_referenced(taken) if average_reference else taken
    return oscillations.write(scan, out, taken, wanted, envelope_hz)
