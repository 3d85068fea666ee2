"""Gated recurrent units over the time points of regional series; their states are averaged over time."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from bids_dl.layers import RecurrentNetwork

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


def build(
    shapes: Sequence[tuple[int, ...]],
    n_outputs: int,
    *,
    width: int = 64,
    hidden: int = 64,
    n_layers: int = 1,
    attention: bool = False,
    dropout: float = 0.3,
) -> RecurrentNetwork:
    """Build a network of gated recurrent units [1]_ over time points, whose states are averaged.

    It has three quarters of the weights of a long short-term memory of the same size.

    Parameters
    ----------
    shapes
        One sequence (time, roi); of any length, padded with NaN.
    n_outputs
        One logit for two classes or a quantity, else one a class.
    width
        Units that the regions of a time point are brought to.
    hidden
        Gated units.
    n_layers
        Layers of gated units.
    attention
        Weigh the time points by a learned score instead of alike.
    dropout
        Part of the units that is left out at each step of the training.

    References
    ----------
    .. [1] Cho et al. (2014), EMNLP. doi:10.3115/v1/D14-1179
    """
    return RecurrentNetwork(
        nn.GRU, shapes[0][-1], n_outputs, width=width, hidden=hidden, n_layers=n_layers, both_ways=False,
        attention=attention, dropout=dropout,
    )  # fmt: skip
