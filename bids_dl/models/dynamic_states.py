"""States of dynamic connectivity: windows are sorted by k-means; how long and in which order each is visited predicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bids_dl import choice
from bids_dl.errors import DataError, UsageError
from bids_dl.layers import Network, masked
from bids_dl.records import Array

SUITS = ("windows",)
SCHEDULE = {"n_members": 1}
GRADIENTS = False
PARTS = "state"

MOST_VALUES = 2**25
"""States are learned from so many windows, evenly spread over the participants, as have together so many values."""

LEAST_SPREAD = 1e-6


class DynamicStates(Network):
    """The nearest centroid of each window is its state; ``embed`` has the summary of a participant's, standardised.

    States are in the order of how many windows of the training rows they have.
    """

    centroids: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(
        self, n_edges: int, n_outputs: int, *, n_states: int, n_starts: int, penalties: Array, is_class: bool
    ) -> None:
        super().__init__()
        self.n_starts, self.penalties, self.is_class = n_starts, penalties, is_class
        n_values = n_states * (n_states + 2)
        self.register_buffer("centroids", torch.zeros(n_states, n_edges))
        self.register_buffer("mean", torch.zeros(n_values))
        self.register_buffer("scale", torch.ones(n_values))
        self.head = nn.Linear(n_values, n_outputs)

    def begin(self, rows: Callable[[Any], tuple[Tensor, ...]], n: int) -> None:
        """Find the states of the training rows, some windows of each, without the labels."""
        from sklearn.cluster import KMeans

        windows = self._windows(rows, n)
        k = len(self.centroids)
        if len(windows) < k:
            raise DataError(
                f"dynamic_states: {len(windows)} windows of the training rows cannot be sorted into {k} states; lower "
                "models.dynamic_states.n_states."
            )
        seed = int(torch.randint(2**31 - 1, ()))
        found = KMeans(k, n_init=self.n_starts, random_state=seed, copy_x=False).fit(windows)
        order = np.argsort(-np.bincount(found.labels_, minlength=k), kind="stable")
        self.centroids.copy_(torch.from_numpy(found.cluster_centers_[order]))

    def _windows(self, rows: Callable[[Any], tuple[Tensor, ...]], n: int) -> Array:
        """Take as many windows as fit into memory, evenly spread over the rows and each one's time, (window, edge)."""
        n_windows = max(len(self.centroids), MOST_VALUES // self.centroids.shape[1])
        chosen = np.unique(np.linspace(0, n - 1, min(n, n_windows)).astype(np.intp))
        most = n_windows // len(chosen)
        found = []
        for row in chosen:
            values, mask = masked(rows(np.array([row]))[0])
            there = values[mask]  # (window, edge)
            at = np.unique(np.linspace(0, len(there) - 1, min(most, len(there))).astype(np.intp))
            found.append(there[at].numpy())
        return np.concatenate(found)

    def states(self, x: Tensor) -> Tensor:
        """Return the state of each window, (participant, window), from 0 on; -1 where there is no window."""
        values, mask = masked(x)
        distance = (
            self.centroids.square().sum(dim=1) - 2 * values @ self.centroids.T
        )  # less what is alike for all states
        return distance.argmin(dim=2).masked_fill(~mask, -1)

    def describe(self, x: Tensor) -> Mapping[str, tuple[Tensor, tuple[str, ...]]]:
        """Return each participant's occupancy, mean dwell time in windows, and transitions.

        A visit begins where the window before was of another state, or is missing. Of the windows that are followed by
        one, the transitions give the parts followed by each state. What there is no visit, or no following window, to tell
        from is NaN.
        """
        is_in = self._is_in(x)
        n_windows = is_in.sum(dim=1)  # (participant, state)
        before = nn.functional.pad(is_in[:, :-1], (0, 0, 1, 0))
        n_visits = (is_in * (1 - before)).sum(dim=1)
        follows = before.transpose(1, 2) @ is_in  # (participant, from, to)
        return {
            "occupancy": (n_windows / n_windows.sum(dim=1, keepdim=True).clamp(min=1), ("state",)),
            "dwell": (n_windows / n_visits, ("state",)),
            "transition": (follows / follows.sum(dim=2, keepdim=True), ("state", "state")),
        }

    def _is_in(self, x: Tensor) -> Tensor:
        """Return 1 for the state of each window, else 0, (participant, window, state); all 0 where there is none."""
        state = torch.arange(len(self.centroids), device=x.device)
        return (self.states(x)[..., None] == state).to(x.dtype)

    def parts(self) -> Tensor:
        """Return the centroids, (state, edge), normalised as the windows are."""
        return self.centroids

    def summary(self, x: Tensor) -> Tensor:
        """Put occupancy, dwell times and transitions side by side, (participant, value): what is solved for; 0 where none."""
        return torch.nan_to_num(torch.cat([value.flatten(1) for value, _ in self.describe(x).values()], dim=1))

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant by the summary, each value in units of its spread over the training rows."""
        return (self.summary(x) - self.mean) / self.scale  # (participant, value)

    def solve(
        self, inputs: Sequence[Tensor], y: Array, folds: Sequence[tuple[choice.Rows, choice.Rows]]
    ) -> tuple[float, Array]:
        """Choose the penalty by the inner folds, fit all rows' summaries; returns the penalty and held-out outputs.

        The states are those of all training rows, in the inner folds too: no label takes part in them.
        """
        self.mean = inputs[0].mean(dim=0)
        spread = inputs[0].std(dim=0, correction=0)
        self.scale = torch.where(spread > LEAST_SPREAD, spread, torch.inf)
        x = ((inputs[0] - self.mean) / self.scale).numpy().astype(np.float64)
        best, held_out, weights, bias = choice.penalised(
            x, y, folds, self.penalties / x.shape[1], n_outputs=self.head.out_features, is_class=self.is_class
        )
        self.head.weight.copy_(torch.from_numpy(weights))
        self.head.bias.copy_(torch.from_numpy(bias))
        return float(self.penalties[best]), held_out


def build(
    shapes: Sequence[tuple[int, ...]], n_outputs: int, *, classify: bool = True, n_states: int = 5, n_starts: int = 10,
    weakest: float = 1e3, strongest: float = 1e-3, n_penalties: int = 7,
) -> DynamicStates:  # fmt: skip
    """Build logistic or ridge regression on the states of dynamic connectivity [1]_.

    The windows of the training rows are sorted by k-means, and each participant is described by the part of the windows
    in each state, the mean length of a visit, and which state follows which. In difference to the paper, distances are
    Euclidean rather than absolute, states are found from windows evenly spread in time rather than from those of
    largest variance, and the windows' correlations are not regularised. A visit ends with its run, and where censoring
    took a window.

    Parameters
    ----------
    shapes
        One sequence of connectomes (window, edge); of any length, padded with NaN.
    n_outputs
        One logit for two classes or a quantity, else one a class.
    classify
        Classes or a quantity; set by the target.
    n_states
        States; the paper has seven.
    n_starts
        K-means is begun so many times; the tightest result counts.
    weakest, strongest
        Range of inverse penalties that the inner folds choose from.
    n_penalties
        How many values of the range are tried.

    Raises
    ------
    UsageError
        If fewer than two states are asked for.
    DataError
        While training, if there are fewer windows than states.

    References
    ----------
    .. [1] Allen et al. (2014), Cerebral Cortex 24(3). doi:10.1093/cercor/bhs352
    """
    if n_states < 2:
        raise UsageError(f"models.dynamic_states.n_states is {n_states}; give at least 2.")
    penalties = np.geomspace(strongest, weakest, n_penalties)
    return DynamicStates(
        shapes[0][-1], n_outputs, n_states=n_states, n_starts=n_starts, penalties=penalties, is_class=classify
    )
