"""Labels of moments under the null: each run's course of them is moved in a circle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_dl.records import Array, Target


def shifted_target(target: Target, runs: Sequence[Any], seed: int) -> Target:
    """Move the labels of each run in a circle, by a step that the seed decides."""
    return replace(target, values=next(shifts(target.values, codes_of(runs), np.random.default_rng(seed))))


def codes_of(names: Sequence[Any]) -> NDArray[np.intp]:
    """Number names, equal ones alike."""
    return np.unique(np.asarray(names, dtype=str), return_inverse=True)[1]


def shifts(
    values: Array, runs: NDArray[np.intp], generator: np.random.Generator, folds: NDArray[np.intp] | None = None
) -> Iterator[Array]:
    """Draw labels under the null, without end: each run's course of labels, in order of time, is moved in a circle [1]_.

    Neighbouring volumes have like labels and like predictions, so single labels cannot be exchanged; a shift keeps both
    courses as smooth as they are and breaks only what ties them together. It takes one of the two to be stationary: a
    drift that goes with the order of conditions passes for a connection [2]_.

    Parameters
    ----------
    values
        (row,): labels, the rows of a run in order of time.
    runs
        (row,): number of the run.
    generator
        Draws the steps.
    folds
        (row,): rows of different folds (repeats) are moved by the same part of a turn.

    References
    ----------
    .. [1] Harris (2020), A shift test for independence in generic time series. arXiv:2012.06862
    .. [2] Harris (2020), Nonsense correlations in neuroscience. doi:10.1101/2020.11.29.402719
    """
    courses = np.zeros(len(runs), np.intp) if folds is None else folds
    _, parts = np.unique(np.stack([runs, courses]), axis=1, return_inverse=True)
    order = np.argsort(parts.ravel(), kind="stable")
    places = np.split(order, np.flatnonzero(np.diff(parts.ravel()[order])) + 1)
    n_runs = int(runs.max()) + 1
    while True:
        turn = generator.random(n_runs)
        moved = values.copy()
        for at in places:
            moved[at] = np.roll(values[at], int(turn[runs[at[0]]] * len(at)))
        yield moved
