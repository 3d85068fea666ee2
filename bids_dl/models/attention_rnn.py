"""Recurrent units from both ends of the regional series, and attention that says which time points counted."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from bids_dl.layers import RecurrentNetwork

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


def build(
    shapes: Sequence[tuple[int, ...]],
    n_outputs: int,
    *,
    width: int = 64,
    hidden: int = 32,
    n_layers: int = 1,
    lstm: bool = False,
    dropout: float = 0.3,
) -> RecurrentNetwork:
    """Build a bidirectional recurrent network with attention over time [1]_, as used for schizophrenia in [2]_.

    The state at a time point knows what came before and what follows; a learned score then shares out how much each
    time point counts.

    Parameters
    ----------
    shapes
        One sequence (time, roi); of any length, padded with NaN.
    n_outputs
        One logit for two classes or a quantity, else one a class.
    width
        Units that the regions of a time point are brought to.
    hidden
        Recurrent units of each direction.
    n_layers
        Layers of recurrent units.
    lstm
        Use long short-term memory instead of gated recurrent units.
    dropout
        Part of the units that is left out at each step of the training.

    References
    ----------
    .. [1] Bahdanau, Cho and Bengio (2015), ICLR. arXiv:1409.0473
    .. [2] Zhao et al. (2021), IEEE ISBI. doi:10.1109/ISBI48211.2021.9433919
    """
    return RecurrentNetwork(
        nn.LSTM if lstm else nn.GRU, shapes[0][-1], n_outputs, width=width, hidden=hidden, n_layers=n_layers,
        both_ways=True, attention=True, dropout=dropout,
    )  # fmt: skip
