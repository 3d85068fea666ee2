"""Convolutions over time of several lengths, then gated recurrent units: short and longer patterns of regional series."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bids_dl.layers import Network, Recurrent, masked, masked_mean

SUITS = ("sequence",)
SCHEDULE = {
    "n_epochs": 40,
    "patience": 8,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "weight_decay": 1e-2,
    "n_members": 3,
    "clip_norm": 1.0,
}


class MultiscaleCNNRNN(Network):
    """One convolution a scale, side by side and pooled over neighbours, then recurrent layers averaged over time."""

    def __init__(
        self, n_values: int, n_outputs: int, *, scales: Sequence[int], n_filters: int, pool: int, hidden: int,
        n_layers: int, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.scales = tuple(scales)
        self.convolutions = nn.ModuleList(nn.Conv1d(n_values, n_filters, scale) for scale in scales)
        self.pool = nn.MaxPool1d(pool, ceil_mode=True)
        self.dropout = nn.Dropout(dropout)
        n_found = n_filters * len(scales)
        self.recurrent = Recurrent(nn.GRU, n_found, hidden, n_layers=n_layers, dropout=dropout)
        self.head = nn.Linear(hidden, n_outputs)

    def patterns(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (participant, step, filter), pooled, and which pooled steps there are."""
        values, mask = masked(x)
        values = values.transpose(1, 2)  # (participant, roi, time)
        found = torch.cat(
            [torch.relu(c(_extended(values, n))) for n, c in zip(self.scales, self.convolutions, strict=True)], dim=1
        )
        there = mask.to(found.dtype)[:, None]
        pooled = self.pool(found * there).transpose(1, 2)  # (participant, step, filter): 0 is the least a filter gives
        return pooled, self.pool(there)[:, 0] > 0

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant by the mean of the recurrent states over time."""
        found, mask = self.patterns(x)
        h = self.recurrent(self.dropout(found), mask)  # (participant, step, unit)
        embedded: Tensor = self.dropout(masked_mean(h, mask))  # (participant, unit)
        return embedded


def _extended(x: Tensor, scale: int) -> Tensor:
    """Add the regions' mean, 0, at both ends, so that a convolution keeps the number of steps."""
    return nn.functional.pad(x, ((scale - 1) // 2, scale // 2))


def build(
    shapes: Sequence[tuple[int, ...]],
    n_outputs: int,
    *,
    scales: Sequence[int] = (2, 4, 8),
    n_filters: int = 32,
    pool: int = 3,
    hidden: int = 32,
    n_layers: int = 2,
    dropout: float = 0.3,
) -> MultiscaleCNNRNN:
    """Build convolutions of several scales before stacked gated recurrent units [1]_.

    Parameters
    ----------
    shapes
        One sequence (time, roi); of any length, padded with NaN.
    n_outputs
        One logit for two classes or a quantity, else one a class.
    scales
        Lengths of the convolutions in time points.
    n_filters
        Filters of each scale, over all regions.
    pool
        Neighbouring time points of which the largest value is kept.
    hidden
        Gated units of a layer.
    n_layers
        Layers of gated units.
    dropout
        Part of the units that is left out at each step of the training.

    References
    ----------
    .. [1] Yan et al. (2019), EBioMedicine 47. doi:10.1016/j.ebiom.2019.08.023
    """
    return MultiscaleCNNRNN(
        shapes[0][-1], n_outputs, scales=scales, n_filters=n_filters, pool=pool, hidden=hidden, n_layers=n_layers,
        dropout=dropout,
    )  # fmt: skip
