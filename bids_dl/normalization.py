"""What is learned from the training rows before a model sees them: means, scales, the part the confounds explain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bids_dl.harmonization import Harmonization
from bids_dl.records import Array

CHUNK_BYTES = 2**23
TINY = 1e-6
SAME = 1e-10
"""Part of the largest variance of the confounds below which another is rounding: columns that tell the same."""


@dataclass(frozen=True)
class Normalization:
    """Mean and scale of each value over the training rows, and its slope on the confounds where they are removed.

    ``mean`` and ``scale`` have one participant's shape, of a sequence one step's; ``slopes`` is (confound, value),
    ``confound_mean`` (confound,). ``harmonization`` comes first.
    """

    mean: Array
    scale: Array
    slopes: Array | None = None
    confound_mean: Array | None = None
    harmonization: Harmonization | None = None

    @property
    def by_value(self) -> bool:
        """Whether a range of values can be normalised without the participant's others."""
        return self.harmonization is None or self.harmonization.by_value

    def apply(self, values: Array, given: Array | None = None, columns: slice = slice(None)) -> Array:
        """Normalise rows, (participant, …) or, with ``columns``, a range of the flattened values.

        ``given`` is (participant, confound + site): the confounds, then a column a site.
        A missing value becomes 0, the training mean; an absent participant, or step of a sequence, (all missing) stays
        NaN.
        """
        ranged = columns != slice(None)
        mean = self.mean.reshape(-1)[columns] if ranged else self.mean
        scale = self.scale.reshape(-1)[columns] if ranged else self.scale
        centred = np.asarray(_harmonised(values, given, self.harmonization, columns), np.float32) - mean
        if self.slopes is not None and given is not None and self.confound_mean is not None:
            confounds = given[:, : len(self.slopes)]
            filled = np.where(np.isfinite(confounds), confounds - self.confound_mean, 0)
            centred -= (filled @ self.slopes[:, columns]).reshape(centred.shape).astype(np.float32)
        centred /= scale
        if ranged:
            return np.nan_to_num(centred, copy=False)
        flat = centred.reshape(-1, self.mean.size) if self.mean.size else centred.reshape(len(centred), 0)
        absent = np.isnan(flat).all(axis=1) if flat.shape[1] else np.zeros(len(flat), bool)
        np.nan_to_num(flat, copy=False)
        flat[absent] = np.nan
        return centred


def _harmonised(
    values: Array, given: Array | None, harmonization: Harmonization | None, columns: slice = slice(None)
) -> Array:
    if harmonization is None or given is None:
        return np.asarray(values)
    return harmonization.apply(values, given, columns)


def chunks(rows: NDArray[np.intp], row_bytes: int) -> Iterator[NDArray[np.intp]]:
    """Divide rows so that a chunk of them fits into little memory."""
    step = max(1, CHUNK_BYTES // max(1, row_bytes))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def fit(
    values: Array, rows: NDArray[np.intp], confounds: Array | None = None, *, one_scale: bool = False, steps: bool = False,
    given: Array | None = None, harmonization: Harmonization | None = None,
) -> Normalization:  # fmt: skip
    """Learn means and standard deviations from some rows, reading a few at a time.

    Parameters
    ----------
    values
        (participant, …), possibly memory-mapped; NaN is missing.
    rows
        The training rows; no other is read.
    confounds
        (participant, confound): their linear part is removed before scaling.
    one_scale
        Divide all values by one number, so that those which vary more between people keep more weight.
    steps
        The second axis is time or windows: learn one mean and scale a value over all steps. Confounds are not removed.
    given, harmonization
        What brings the sites together before anything else is learned, and the confounds and sites that it needs.

    Returns
    -------
    Normalization
        Values that do not vary over the training rows get an infinite scale, so that they become 0.
    """
    shape = values.shape[2:] if steps else values.shape[1:]

    def read(part: NDArray[np.intp]) -> Array:
        found = _harmonised(values[part], None if given is None else given[part], harmonization)
        n_read = np.prod(found.shape[: found.ndim - len(shape)], dtype=int)  # not -1: there may be no values
        return np.asarray(found, np.float64).reshape(n_read, *shape)

    shift = np.nan_to_num(read(rows[:1])[0])
    n, total, squares = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for part in chunks(rows, int(np.prod(values.shape[1:])) * 8):
        centred = read(part) - shift
        known = np.isfinite(centred)
        centred[~known] = 0
        n += known.sum(axis=0)
        total += centred.sum(axis=0)
        squares += np.einsum("i...,i...->...", centred, centred)
    mean = total / np.maximum(n, 1)
    variance = np.maximum(squares / np.maximum(n, 1) - mean**2, 0)
    slopes, confound_mean, explained = _regress(read, rows, None if steps else confounds, shift + mean)
    deviation = np.sqrt(np.maximum(variance - explained, 0))
    scale = _scale(deviation, shift + mean, n)
    if one_scale and np.isfinite(scale).any():
        scale = np.where(np.isfinite(scale), np.sqrt(np.mean(scale[np.isfinite(scale)] ** 2)), np.inf)
    return Normalization(
        (shift + mean).astype(np.float32), scale.astype(np.float32), slopes, confound_mean, harmonization
    )


def _scale(deviation: Array, mean: Array, n: Array) -> Array:
    """Keep standard deviations that are more than rounding; blank the rest.

    The voxels of a volume share one unit: those that vary a thousand times less than most are background. Of several
    maps, each is judged by itself.
    """
    typical = _typical(deviation)
    alive = (deviation > np.maximum(TINY * np.abs(mean), 1e-3 * typical)) & (n > 1)
    return np.where(alive, deviation, np.inf).astype(np.float32)


def _typical(deviation: Array) -> Array:
    """Return the median of what varies in a volume, or in each of several maps, (map, 1, 1, 1); 0 for other features."""
    if deviation.ndim not in {3, 4}:
        return np.zeros(())
    maps = deviation.reshape(-1, *deviation.shape[-3:])
    found = [float(np.median(one[one > 0])) if (one > 0).any() else 0.0 for one in maps]
    return np.reshape(found, (*deviation.shape[:-3], 1, 1, 1))


def _regress(
    read: Callable[[NDArray[np.intp]], Array], rows: NDArray[np.intp], confounds: Array | None, mean: Array
) -> tuple[Array | None, Array | None, Array]:
    """Fit the linear part of the confounds; returns slopes, the confounds' mean, and the variance they explain.

    Confounds that tell the same share what it explains. Of the levels of a column the mean over the rows is 0, so that a level
    which nobody in training has, 0 in every column, counts as the mean.
    """
    if confounds is None or not confounds.shape[1]:
        return None, None, np.zeros(mean.shape)
    known = np.isfinite(confounds[rows])
    centre = np.where(known, confounds[rows], 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    design = np.where(np.isfinite(confounds), confounds - centre, 0)
    product = np.zeros((design.shape[1], mean.size))
    for part in chunks(rows, mean.size * 8):
        centred = np.nan_to_num(read(part) - mean).reshape(len(part), -1)
        product += design[part].T @ centred
    gram = design[rows].T @ design[rows]
    size = np.sqrt(np.diag(gram) + len(rows) * centre**2)
    size[size == 0] = 1
    inverse = np.linalg.pinv(gram / np.outer(size, size), rcond=SAME, hermitian=True)
    slopes = inverse @ (product / size[:, None]) / size[:, None]
    explained = np.einsum("ci,ci->i", slopes, gram @ slopes) / len(rows)
    return slopes.astype(np.float32), centre, explained.reshape(mean.shape)
