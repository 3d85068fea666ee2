"""A raw MEG becomes the amplitude of its rhythms at every sensor, a table a band."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bids_dl import oscillations
from bids_dl.errors import UsageError
from bids_dl.records import Scan

GIVES = ("timeseries",)


def prepare(
    scan: Scan, anatomy: Scan | None, out: Path, *, envelope_hz: float = 2.0, sensors: str = "mag",
    bands: Sequence[str] = ("delta 1-4", "theta 4-8", "alpha 8-13", "beta 13-30", "lowgamma 30-45"),
) -> list[Scan]:  # fmt: skip
    """Filter an MEG to each band and follow the amplitude of the analytic signal over time [1]_.

    Neighbouring sensors see the same sources: part of what their amplitudes share is the spread of the field. Neither
    signal space separation nor a correction of head movement is done.

    Parameters
    ----------
    scan
        A raw MEG.
    anatomy
        Not used.
    out
        The output folder.
    envelope_hz
        Windows a second in which the amplitude is averaged.
    sensors
        ``mag``: magnetometers and axial gradiometers (CTF, KIT); ``grad``: planar gradiometers (Neuromag).
    bands
        Name and edges, in Hz, of each band.

    Returns
    -------
    list of Scan
        A table (time, sensor) a band, in fT or fT/cm, of the kind ``timeseries``, its atlas called ``megAlpha`` and so
        on; sensors that are bad by channels.tsv, flat or not finite are n/a.

    Raises
    ------
    DataError
        If MNE-BIDS is not installed, the file is damaged, fewer than 2 sensors are good, fewer than 10 s are not marked
        bad, or there are too few samples a second for a band.
    UsageError
        If there is no such kind of sensor, or a band or ``envelope_hz`` cannot be followed.

    References
    ----------
    .. [1] Bruns (2004), Journal of Neuroscience Methods 137(2). doi:10.1016/j.jneumeth.2004.03.002
    """
    if sensors not in {"mag", "grad"}:
        raise UsageError(f"preparations.meg.sensors is '{sensors}'; choose 'mag' or 'grad'.")
    wanted = oscillations.bands_of(bands, "preparations.meg.bands")
    taken = oscillations.read(scan, sensors)
    oscillations.refuse_slow(scan, taken, wanted)
    return oscillations.write(scan, out, oscillations.thinned(taken, wanted), wanted, envelope_hz)
