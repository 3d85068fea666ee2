"""Training in the span of the training rows: exact for linear layers, and as small as the participants are few.

A linear layer trained by gradients or with an L2 penalty moves only within the span of its training rows. With n rows
and p ≫ n values it is enough to learn its weights on n coordinates and to fold them back into p values at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from bids_dl import threads
from bids_dl.normalization import Normalization, chunks
from bids_dl.records import Array, Block

CHUNK_BYTES, MOST_COLUMNS = 2**26, 2**12
"""A range of values: so large, and so wide, at most; of few rows a wide one costs more to allocate than to multiply."""
MOST_AXES, MOST_CORNERS = 4_000, 12_000
"""Rows up to which the span's axes are found, in a minute, and up to which any coordinates at all, in 4 GB."""
FEW_ROWS = 1_000
"""Rows up to which axes cost as little as any other coordinates."""
JITTER = 1e-6


@dataclass(frozen=True)
class Kernel:
    """Inner products of all rows with one another, after normalisation; (row, row) in the order of ``rows``."""

    values: Array
    rows: NDArray[np.intp]

    def at(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Positions of participants' rows."""
        return np.searchsorted(self.rows, rows)


def kernel(
    block: Block, normalization: Normalization, rows: NDArray[np.intp], confounds: Array | None = None
) -> Kernel:
    """Multiply the normalised rows with one another, a range of values at a time: memory follows rows, not values."""
    rows = np.sort(rows)
    total = np.zeros((len(rows), len(rows)))
    for _, part in _ranges(block, normalization, rows, confounds):
        with threads.for_values(total.size):
            total += part @ part.T
    return Kernel(total, rows)


def _ranges(
    block: Block, normalization: Normalization, rows: NDArray[np.intp], confounds: Array | None
) -> Iterator[tuple[slice, Array]]:
    """Read some rows normalised, a range of values at a time; from a temporary file where it takes whole rows to know."""
    flat = block.values.reshape(len(block.values), -1)
    step = max(1, min(MOST_COLUMNS, CHUNK_BYTES // (4 * len(rows))))
    ranges = [slice(start, start + step) for start in range(0, flat.shape[1], step)]
    given = None if confounds is None else confounds[rows]
    if normalization.by_value:
        yield from ((part, normalization.apply(np.asarray(flat[rows, part]), given, part)) for part in ranges)
        return
    with TemporaryFile() as file:
        whole = np.memmap(file, np.float32, "w+", shape=(len(rows), flat.shape[1]))
        for at in chunks(np.arange(len(rows)), 4 * flat.shape[1]):
            made = normalization.apply(block.values[rows[at]], None if given is None else given[at])
            whole[at] = np.nan_to_num(made).reshape(len(at), -1)
        yield from ((part, np.array(whole[:, part])) for part in ranges)


@dataclass(frozen=True)
class Span:
    """Orthonormal coordinates in the span of some rows: ``basis`` (row, coordinate) mixes the rows into axes.

    ``scale`` divides the coordinates so that their values over the rows have a standard deviation of 1.
    """

    basis: Array
    rows: NDArray[np.intp]
    scale: float

    def coordinates(self, inner: Kernel, rows: NDArray[np.intp]) -> Array:
        """Coordinates (row, coordinate) of any rows; what lies outside of the span is not seen."""
        products = inner.values[np.ix_(inner.at(rows), inner.at(self.rows))]
        return np.asarray(products @ self.basis / self.scale, np.float32)

    def mixing(self, weights: Array) -> Array:
        """Write weights on coordinates (output, coordinate) as a mix of the rows (output, row)."""
        return np.asarray(weights @ (self.basis.T / self.scale), np.float32)


def fold(
    mixing: Array, rows: NDArray[np.intp], block: Block, normalization: Normalization, confounds: Array | None = None
) -> Array:
    """Turn a mix of rows (output, row) into weights on values (output, value), reading each range of values once."""
    folded = np.empty((len(mixing), int(np.prod(block.shape))), np.float32)
    for columns, part in _ranges(block, normalization, rows, confounds):
        with threads.for_values(part.size):
            folded[:, columns] = mixing @ part
    return folded


@dataclass(frozen=True)
class Corner:
    """Coordinates in the span of very many rows: as good as a `Span`'s for all that no rotation changes, and cheaper.

    ``triangle`` (row, coordinate) is the Cholesky factor of the rows' inner products, each row's own coordinates; in
    float32, since an estimator takes it as it is. ``scale`` is a span's.
    """

    triangle: Array
    rows: NDArray[np.intp]
    scale: float

    def coordinates(self, inner: Kernel, rows: NDArray[np.intp]) -> Array:
        """Coordinates (row, coordinate) of any rows; what lies outside of the span is not seen."""
        if np.array_equal(rows, self.rows):
            return self.triangle
        products = inner.values[np.ix_(inner.at(self.rows), inner.at(rows))] / self.scale**2
        return np.asarray(self._solved(products, transposed=False).T, np.float32)

    def mixing(self, weights: Array) -> Array:
        """Write weights on coordinates (output, coordinate) as a mix of the rows (output, row)."""
        return np.asarray(self._solved(weights.T / self.scale**2, transposed=True).T, np.float32)

    def _solved(self, right: Array, *, transposed: bool) -> Array:
        from scipy.linalg import solve_triangular

        found: Array = solve_triangular(
            self.triangle.astype(np.float64), right, lower=True, trans=int(transposed), check_finite=False
        )
        return found


def of(inner: Kernel, rows: NDArray[np.intp]) -> Span | Corner:
    """Find coordinates in the rows' span from their inner products: its axes, but for very many rows."""
    return _axes(inner, rows) if len(rows) <= MOST_AXES else _corner(inner, rows)


def rotated(inner: Kernel, rows: NDArray[np.intp]) -> Span | Corner:
    """Find coordinates for an estimator that no rotation changes: axes for few rows, which cost many times a corner."""
    return _axes(inner, rows) if len(rows) <= FEW_ROWS else _corner(inner, rows)


def _corner(inner: Kernel, rows: NDArray[np.intp]) -> Corner:
    """Factor the inner products in place: with many rows there is memory for little more than one copy."""
    from scipy.linalg import cholesky

    at = inner.at(rows)
    products = inner.values[np.ix_(at, at)]
    mean = max(float(np.trace(products)) / len(rows), 1e-12)
    products[np.diag_indices(len(rows))] += JITTER * mean  # centred rows span one dimension less than they are
    with threads.for_values(products.size):
        triangle = cholesky(products.T, lower=True, overwrite_a=True, check_finite=False).astype(np.float32, order="C")
    scale = float(np.sqrt(mean / len(rows)))
    triangle /= np.float32(scale)
    return Corner(triangle, rows, scale)


def _axes(inner: Kernel, rows: NDArray[np.intp]) -> Span:
    at = inner.at(rows)
    with threads.for_vectors(len(at) ** 2):
        variances, axes = np.linalg.eigh(inner.values[np.ix_(at, at)])
    kept = variances > max(variances.max(), 1e-12) * 1e-6
    if not kept.any():
        return Span(np.zeros((len(rows), 1)), rows, 1.0)  # nothing varies: one coordinate, always 0
    basis = axes[:, kept] / np.sqrt(variances[kept])
    scale = float(np.sqrt(variances[kept].sum() / (len(rows) * max(1, kept.sum()))))
    return Span(basis, rows, scale or 1.0)


def is_smaller(shapes: Sequence[tuple[int, ...]], n_rows: int, *, most: int = MOST_AXES) -> bool:
    """Tell whether the span is worth it: one input with more values than rows, and few enough rows for a kernel.

    Networks need its axes, since the path of their training depends on them; linear estimators take any coordinates.
    """
    return len(shapes) == 1 and int(np.prod(shapes[0])) > n_rows and n_rows <= most
