"""Long short-term memory from both ends of the windows of a dynamic connectivity; every window's states count."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from bids_dl.layers import RecurrentNetwork

SUITS = ("windows",)
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
    hidden: int = 32,
    n_layers: int = 1,
    attention: bool = False,
    dropout: float = 0.5,
) -> RecurrentNetwork:
    """Build a full bidirectional long short-term memory over windowed connectivity [1]_.

    The edges of every window are first brought to a few units. A window's state knows the windows before and after it,
    and the states of all windows, not the last ones alone, are averaged: recordings may differ in length.

    Parameters
    ----------
    shapes
        One series of connectomes (window, edge); of any length, padded with NaN.
    n_outputs
        One logit for two classes or a quantity, else one a class.
    width
        Units that the edges of a window are brought to.
    hidden
        Units of the memory in each direction.
    n_layers
        Layers of memory.
    attention
        Weigh the windows by a learned score instead of alike.
    dropout
        Part of the units that is left out at each step of the training.

    References
    ----------
    .. [1] Yan et al. (2018), MICCAI. doi:10.1007/978-3-030-00931-1_29
    """
    return RecurrentNetwork(
        nn.LSTM, shapes[0][-1], n_outputs, width=width, hidden=hidden, n_layers=n_layers, both_ways=True,
        attention=attention, dropout=dropout,
    )  # fmt: skip
