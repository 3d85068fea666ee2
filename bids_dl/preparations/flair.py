"""A raw FLAIR is aligned to the participant's T1w and follows it into standard space."""

from __future__ import annotations

from pathlib import Path

from bids_dl import registration as reg
from bids_dl.records import Scan


def prepare(scan: Scan, anatomy: Scan | None, out: Path, *, resolution_mm: int = 2) -> Scan:
    """Align a FLAIR rigidly to the T1w, and take it through the T1w's transforms, inside the T1w's brain.

    Parameters
    ----------
    scan
        A raw FLAIR.
    anatomy
        The prepared T1w of the participant: prepared here, or by fMRIPrep with its native T1w and its transform.
    out
        The output folder.
    resolution_mm
        Edge of a voxel in standard space, which is the T1w's.

    Returns
    -------
    Scan
        The brain in standard space, with its mask.

    Raises
    ------
    DataError
        If the image is damaged or empty, or there is no T1w of the participant that it can follow.
    """
    return reg.follow_anatomy(scan, anatomy, out, resolution_mm)
