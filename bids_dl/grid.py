"""What models of volumes, or of several maps on one grid, share: the checks of their input."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bids_dl.errors import UsageError


def one_volume(shapes: Sequence[tuple[int, ...]], model: str) -> tuple[int, int, int]:
    """Return the grid of a model's only input.

    Raises
    ------
    UsageError
        If the input is no volume, or there are several.
    """
    if len(shapes) != 1 or len(shapes[0]) != 3:
        raise UsageError(
            f"{model} takes one volume (x, y, z); this input has the shape {tuple(shapes[0])}. Use mlp or linear for it."
        )
    x, y, z = shapes[0]
    return x, y, z


def maps_on_grid(shapes: Sequence[tuple[int, ...]], model: str) -> tuple[int, int, int, int]:
    """Return how many maps a model's only input has, one for a volume, and their grid.

    Raises
    ------
    UsageError
        If the input is neither a volume nor maps, or there are several.
    """
    if len(shapes) == 1 and len(shapes[0]) == 4:
        n, x, y, z = shapes[0]
        return n, x, y, z
    return 1, *one_volume(shapes, model)


def refuse_small(grid: Sequence[int], n_voxels: int, model: str, remedy: str) -> None:
    """Refuse a grid that a model's layers would halve, or pool, to nothing.

    Raises
    ------
    UsageError
        If an edge has fewer voxels than the model takes; it ends in the remedy.
    """
    if min(grid) < n_voxels:
        size = " x ".join(map(str, grid))
        raise UsageError(f"{model} takes at least {n_voxels} voxels along each axis; this grid has {size}. {remedy}")


def as_maps(x: Tensor) -> Tensor:
    """Return (participant, map, x, y, z), of volumes (participant, x, y, z) too."""
    return x[:, None] if x.ndim == 4 else x
