"""Directed connectivity that the network itself reads from the series at every time point: no window is chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bids_dl.layers import AttentionPool, Network, Recurrent, masked

SUITS = ("sequence",)
ATTENTION = True
SCHEDULE = {
    "n_epochs": 40,
    "patience": 8,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "weight_decay": 1e-2,
    "n_members": 3,
    "clip_norm": 1.0,
}


class LearnedConnectivity(Network):
    """Attention between networks at every time point, averaged by attention over time, read by a perceptron."""

    def __init__(
        self, n_rois: int, n_outputs: int, *, n_networks: int, n_states: int, n_scores: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        self.n_networks = min(n_rois, n_networks)
        self.combine = nn.Linear(n_rois, n_networks, bias=False) if n_rois > n_networks else nn.Identity()
        self.course = Recurrent(nn.LSTM, 1, n_states, both_ways=True)
        self.query = nn.Linear(2 * n_states, n_scores)
        self.key = nn.Linear(2 * n_states, n_scores, bias=False)  # it would add alike to all sources: no effect
        self.pool = AttentionPool(self.n_networks**2)
        self.rest = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(self.n_networks**2, hidden), nn.ReLU(), nn.Dropout(dropout)
        )
        self.head = nn.Linear(hidden, n_outputs)

    def dynamic(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (participant, time, target, source), each target's sources summing to 1, and which steps there are."""
        values, mask = masked(x)
        course = self.combine(values).transpose(1, 2)  # (participant, network, time)
        p, n, t = course.shape
        alone = course.reshape(p * n, t, 1)  # every network's course is read by itself, by the same units
        h = self.course(alone, mask.repeat_interleave(n, dim=0))
        h = h.reshape(p, n, t, -1).transpose(1, 2)  # (participant, time, network, unit)
        query = self.query(h)
        scores = query @ self.key(h).transpose(2, 3) / math.sqrt(query.shape[3])
        return torch.softmax(scores, dim=3), mask

    def weights(self, x: Tensor) -> Tensor:
        """Return each time point's share in a participant's connectivity, (participant, time)."""
        matrices, mask = self.dynamic(x)
        return self.pool.weights(self._scaled(matrices), mask)

    def attention(self, x: Tensor) -> Tensor:
        """Say how much each time point counts, (participant, time, 1), summing to 1; padding counts nothing."""
        return self.weights(x)[..., None]

    def connectivity(self, x: Tensor) -> Tensor:
        """Return the connectivity averaged over time, (participant, target, source)."""
        matrices, mask = self.dynamic(x)
        share = self.pool.weights(self._scaled(matrices), mask)
        return torch.einsum("pt,ptij->pij", share, matrices)  # (participant, target, source)

    def _scaled(self, matrices: Tensor) -> Tensor:
        """Flatten matrices so that sources that count alike are 0 and others near 1, whatever the number of networks."""
        return (matrices * self.n_networks - 1).flatten(-2)

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant by a hidden layer over the connectivity."""
        h: Tensor = self.rest(self._scaled(self.connectivity(x)))  # (participant, unit)
        return h


def build(
    shapes: Sequence[tuple[int, ...]],
    n_outputs: int,
    *,
    n_networks: int = 32,
    n_states: int = 16,
    n_scores: int = 16,
    hidden: int = 64,
    dropout: float = 0.3,
) -> LearnedConnectivity:
    """Build a network that learns a directed connectivity at every time point [1]_, [2]_.

    A bidirectional memory reads each network's course by itself; self-attention between networks at a time point is
    that moment's connectivity; attention over time averages the moments. ``connectivity(x)`` and ``weights(x)`` of the
    module return both for reading. Its cost grows with time points times networks squared.

    Parameters
    ----------
    shapes
        One sequence (time, roi); of any length, padded with NaN.
    n_outputs
        One logit for two classes or a quantity, else one a class.
    n_networks
        Networks that more regions than this are combined to, by learned weights; fewer regions stay as they are.
    n_states
        Units of the memory in each direction.
    n_scores
        Units of a query and a key.
    hidden
        Units between the connectivity and the output.
    dropout
        Part of the edges and units that is left out at each step of the training.

    References
    ----------
    .. [1] Mahmood et al. (2022), NeuroImage 264. doi:10.1016/j.neuroimage.2022.119737
    .. [2] Mahmood et al. (2021), Algorithms 14(3). doi:10.3390/a14030075
    """
    return LearnedConnectivity(
        shapes[0][-1], n_outputs, n_networks=n_networks, n_states=n_states, n_scores=n_scores, hidden=hidden,
        dropout=dropout,
    )  # fmt: skip
