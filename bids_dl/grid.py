"""What models of volumes share: the check of their input."""

from __future__ import annotations

from collections.abc import Sequence

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
