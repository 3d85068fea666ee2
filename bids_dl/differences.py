"""Do figures of held-out participants differ between levels of the target: permutation tests, adjusted for their number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_dl import comparison
from bids_dl.records import Array

TOGETHER = 2**24
"""Numbers that are permuted at once, of eight bytes each."""

ALIKE = 1e-9
"""Part by which a permuted share may fall below the observed one and still count as equal."""


def between(
    values: Array, levels: Sequence[str], splits: Sequence[str], confounds: Array | None = None, *, n_permutations: int,
    seed: int,
) -> tuple[Array, Array]:  # fmt: skip
    """Test whether the means of levels differ, by the part of the variance that lies between them [1]_.

    Figures of different splits are those of different models, so values are taken less their split's mean, and change
    places within a split only; with sites left out, a difference of sites is no difference of levels. What the confounds
    explain linearly is taken off figures and levels, and it is what is left of the figures that changes places [2]_.
    Relatives count as strangers.

    Parameters
    ----------
    values
        (participant, figure), each of a model that had not seen the participant; whoever has NaN is left out of that figure.
    levels, splits
        Level of the target, and split, of each participant.
    confounds
        (participant, confound); what is not known of somebody (NaN) counts as the mean.
    n_permutations, seed
        How often figures change places, and by which numbers.

    Returns
    -------
    share, p_value
        (figure,) each: between 0 and 1, and the part of the permutations, with the data as one of them [3]_, that share
        as much. NaN for a figure that does not vary, or where there is one level, or too few people for the confounds.

    References
    ----------
    .. [1] Anderson (2001), Austral Ecology 26. doi:10.1111/j.1442-9993.2001.01070.pp.x
    .. [2] Freedman and Lane (1983), Journal of Business and Economic Statistics 1(4). doi:10.2307/1391660
    .. [3] Phipson and Smyth (2010), Statistical Applications in Genetics and Molecular Biology 9. doi:10.2202/1544-6115.1585
    """
    level, split = np.asarray(levels, str), np.asarray(splits, str)
    values, known = np.asarray(values, np.float64), np.isfinite(values)
    given = np.zeros((len(values), 0)) if confounds is None else np.asarray(confounds, np.float64)
    found = np.full((2, values.shape[1]), np.nan)
    patterns, which = np.unique(known, axis=1, return_inverse=True)
    for number, people in enumerate(patterns.T):
        figures = np.flatnonzero(which.ravel() == number)
        design = _Design(level[people], split[people], given[people])
        found[:, figures] = design.test(values[np.ix_(people, figures)], n_permutations, np.random.default_rng(seed))
    return found[0], found[1]


class _Design:
    """Orthonormal columns (participant, column) of what is not looked at, and of what levels have beside it."""

    def __init__(self, levels: NDArray[np.str_], splits: NDArray[np.str_], confounds: Array) -> None:
        self.splits = np.unique(splits, return_inverse=True)[1]
        self.n_levels = len(set(levels))
        self.nuisance = _basis(np.hstack([_columns(splits), _filled(confounds)]))
        self.levels = _basis(self._left(_columns(levels)))

    def _left(self, values: Array) -> Array:
        return np.asarray(values - self.nuisance @ (self.nuisance.T @ values))

    def test(self, values: Array, n_permutations: int, generator: np.random.Generator) -> tuple[Array, Array]:
        """Return share and p-value of figures that all these participants have, (participant, figure)."""
        left = self._left(values)
        total = np.square(left).sum(axis=0)
        n_free = len(values) - self.nuisance.shape[1] - self.levels.shape[1]
        varies = total > np.finfo(float).eps * np.square(values).sum(axis=0)
        varies &= (self.n_levels > 1) & (n_free > 0)
        observed = np.square(self.levels.T @ left).sum(axis=0) / np.where(varies, total, 1)
        n_as_large = np.ones(len(total))
        step = max(1, TOGETHER // max(1, left.size))
        for start in range(0, n_permutations, step):
            permuted = left[_permuted(self.splits, min(step, n_permutations - start), generator)]
            explained, lost = (np.square(basis.T @ permuted).sum(axis=1) for basis in (self.levels, self.nuisance))
            n_as_large += (explained >= observed * (1 - ALIKE) * (total - lost)).sum(axis=0)
        share = np.where(varies, observed, np.nan)
        return share, np.where(varies, n_as_large / (1 + n_permutations), np.nan)


def _columns(names: NDArray[np.str_]) -> Array:
    """Write a column a name, (participant, name): 1 for those who have it."""
    return np.asarray(names[:, None] == np.unique(names), np.float64)


def _filled(confounds: Array) -> Array:
    """Centre and scale each confound over those of whom it is known; nobody else says anything."""
    known = np.isfinite(confounds)
    n = known.sum(axis=0).clip(1)
    centred = np.where(known, confounds - np.where(known, confounds, 0).sum(axis=0) / n, 0)
    spread = np.sqrt(np.square(centred).sum(axis=0) / n)
    return np.asarray(centred / np.where(spread > 0, spread, 1))


def _basis(columns: Array) -> Array:
    """Return orthonormal columns that span the same space, but for what rounding leaves."""
    axes, lengths, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(axes[:, lengths > ALIKE * np.sqrt(max(1, len(columns)))])


def _permuted(at: NDArray[np.intp], n: int, generator: np.random.Generator) -> NDArray[np.intp]:
    """Let participants change places within their split, (permutation, participant)."""
    home = np.argsort(at, kind="stable")
    drawn = np.argsort(at + generator.random((n, len(at))), axis=1)
    permuted = np.empty((n, len(at)), np.intp)
    permuted[:, home] = drawn
    return permuted


def table(figures: Any, part: str, confounds: Any = None, *, n_permutations: int, seed: int) -> Any:
    """Test every figure that is one number a part, such as occupancy and dwell time, for a difference between levels.

    Parameters
    ----------
    figures
        A table with a row a number: ``participant_id``, ``split``, ``level``, ``measure``, the part, ``to``, ``value``.
    part
        What the parts are called.
    confounds
        A table with a row a ``participant_id`` and a column a confound; none if left out.
    n_permutations, seed
        As `between` takes them.

    Returns
    -------
    DataFrame
        A row a measure and part: ``share``, ``p_value``, ``p_holm`` over all of them, ``n`` who have the figure.
    """
    import pandas as pd

    alone = figures[(figures["to"] == "") & (figures["level"] != "")]
    if alone.empty:
        return pd.DataFrame(columns=["measure", part, "share", "p_value", "p_holm", "n"])
    named = alone[["measure", part]].drop_duplicates()
    wide = alone.pivot(index=["participant_id", "split", "level"], columns=["measure", part], values="value")
    wide, keys = wide[list(named.itertuples(index=False, name=None))], wide.index.to_frame()
    given = None if confounds is None else confounds.loc[keys["participant_id"]].to_numpy()
    share, p = between(
        wide.to_numpy(np.float64), keys["level"], keys["split"], given, n_permutations=n_permutations, seed=seed
    )
    n = wide.notna().sum().to_numpy()
    return named.assign(share=share, p_value=p, p_holm=comparison.holm(list(p)), n=n).reset_index(drop=True)


COLUMNS = {
    "share": "Part of the variance within splits, less what the confounds explain, that lies between the levels of the target",
    "p_value": "Part of the permutations within splits that share as much",
    "p_holm": "The same, adjusted for all measures and parts of this model (Holm)",
}  # fmt: skip
