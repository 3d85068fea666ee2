"""A raw T1w is centred on the template; registration is left to a preprocessed derivative."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from bids_dl.errors import DataError
from bids_dl.records import Scan

TEMPLATE_CENTRE_MM = np.array([0.0, -22.0, 8.0])


def prepare(scan: Scan, anatomy: Scan | None, out: Path) -> Scan:
    """Find the shift in mm that brings the image's centre of intensity to the template's.

    Nothing is rotated, scaled or stripped: a head that still has its skull keeps it.

    Raises
    ------
    DataError
        If the file is damaged or empty.
    """
    try:
        image = nib.load(scan.path)
        volume = np.squeeze(np.asarray(image.dataobj, np.float32))
    except Exception as problem:  # nibabel, zlib and gzip raise many kinds for a damaged file
        raise DataError(
            f"{scan.name} ends early or is damaged ({problem}); copy it again from its source."
        ) from problem
    if volume.ndim != 3 or not np.nan_to_num(volume).any():
        raise DataError(
            f"{scan.name} is {'all zero' if volume.ndim == 3 else f'{volume.ndim}-D'}; one volume is expected."
        )
    inside = np.argwhere(volume > 0.1 * np.nanpercentile(volume, 98))
    centre = image.affine @ np.append(inside.mean(axis=0), 1)
    offset = TEMPLATE_CENTRE_MM - centre[:3]
    return replace(scan, entities={**scan.entities, "offset_mm": ",".join(f"{v:.3f}" for v in offset)})
