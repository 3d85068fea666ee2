"""Do figures of held-out participants differ between levels of the target: permutation tests, adjusted for their number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_dl import comparison
from bids_dl.records import Array

TOGETHER = 2**24
"""Labels that are permuted at once: so many bytes, eightfold."""

ALIKE = 1e-9
"""Part by which a permuted share may fall below the observed one and still count as equal."""


def between(
    values: Array, levels: Sequence[str], splits: Sequence[str], *, n_permutations: int, seed: int
) -> tuple[Array, Array]:
    """Test whether the means of levels differ, by the part of the variance that lies between them [1]_.

    Figures of different splits are those of different models, so values are taken less their split's mean, and levels
    change places within a split only; with sites left out, a difference of sites is no difference of levels. Confounds
    that go with the level within a split are not taken into account, and relatives count as strangers.

    Parameters
    ----------
    values
        (participant, figure), each of a model that had not seen the participant.
    levels, splits
        Level of the target, and split, of each participant.
    n_permutations, seed
        How often levels change places, and by which numbers.

    Returns
    -------
    share, p_value
        (figure,) each: between 0 and 1, and the part of the permutations, with the data as one of them [2]_, that share
        as much. NaN for a figure that does not vary, or where there is one level.

    References
    ----------
    .. [1] Anderson (2001), Austral Ecology 26. doi:10.1111/j.1442-9993.2001.01070.pp.x
    .. [2] Phipson and Smyth (2010), Statistical Applications in Genetics and Molecular Biology 9. doi:10.2202/1544-6115.1585
    """
    codes, at = (np.unique(np.asarray(v, str), return_inverse=True)[1] for v in (levels, splits))
    centred = _less_the_mean(np.asarray(values, np.float64), at)
    total = np.square(centred).sum(axis=0)
    varies = (total > np.finfo(float).eps * np.square(values).sum(axis=0)) & (len(set(codes)) > 1)
    observed = _between(codes[None], centred)[0]
    generator = np.random.default_rng(seed)
    n_as_large = np.ones(values.shape[1])
    step = max(1, TOGETHER // len(codes))
    for start in range(0, n_permutations, step):
        n = min(step, n_permutations - start)
        n_as_large += (_between(_permuted(codes, at, n, generator), centred) >= observed * (1 - ALIKE)).sum(axis=0)
    share = np.divide(observed, total, out=np.full(len(total), np.nan), where=varies)
    return share, np.where(varies, n_as_large / (1 + n_permutations), np.nan)


def _less_the_mean(values: Array, at: NDArray[np.intp]) -> Array:
    """Take the mean of each split off, (participant, figure)."""
    means = np.stack([values[at == split].mean(axis=0) for split in range(at.max() + 1)])
    return np.asarray(values - means[at])


def _between(codes: NDArray[np.intp], centred: Array) -> Array:
    """Sum the squares of the levels' means over participants, (permutation, figure); their mean over all is 0."""
    sums = np.zeros((len(codes), centred.shape[1]))
    for level in range(codes.max() + 1):
        within = codes == level
        sums += np.square(within @ centred) / within.sum(axis=1, keepdims=True)
    return sums


def _permuted(
    codes: NDArray[np.intp], at: NDArray[np.intp], n: int, generator: np.random.Generator
) -> NDArray[np.intp]:
    """Let levels change places within their split, (permutation, participant)."""
    home = np.argsort(at, kind="stable")
    drawn = np.argsort(at + generator.random((n, len(at))), axis=1)
    permuted = np.empty((n, len(at)), np.intp)
    permuted[:, home] = codes[drawn]
    return permuted


def table(figures: Any, part: str, *, n_permutations: int, seed: int) -> Any:
    """Test every figure that is one number a part, such as occupancy and dwell time, for a difference between levels.

    Parameters
    ----------
    figures
        A table with a row a number: ``participant_id``, ``split``, ``level``, ``measure``, the part, ``to``, ``value``.
    part
        What the parts are called.
    n_permutations, seed
        As `between` takes them.

    Returns
    -------
    DataFrame
        A row a measure and part: ``share``, ``p_value``, ``p_holm`` over all of them, ``n``.
    """
    import pandas as pd

    alone = figures[(figures["to"] == "") & (figures["level"] != "")]
    wide = alone.pivot_table("value", ["participant_id", "split", "level"], ["measure", part], sort=False)
    if wide.empty:
        return pd.DataFrame(columns=["measure", part, "share", "p_value", "p_holm", "n"])
    keys = wide.index.to_frame()
    share, p = between(wide.to_numpy(), keys["level"], keys["split"], n_permutations=n_permutations, seed=seed)
    tested = {"share": share, "p_value": p, "p_holm": comparison.holm(list(p)), "n": len(wide)}
    return pd.DataFrame({"measure": wide.columns.get_level_values(0), part: wide.columns.get_level_values(1), **tested})


COLUMNS = {
    "share": "Part of the variance within splits that lies between the levels of the target",
    "p_value": "Part of the permutations of levels within splits that share as much",
    "p_holm": "The same, adjusted for all measures and parts of this model (Holm)",
}  # fmt: skip
