"""Long short-term memory over the time points of regional series; its states are averaged over time."""

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
    """Build a long short-term memory network [1]_ over time points, whose states are averaged as in [2]_.

    Every time point is first brought to a few units. The mean of the states, rather than the last one, lets a long
    recording count as a whole.

    Parameters
    ----------
    shapes
        One sequence (time, roi); of any length, padded with NaN.
    n_outputs
        One logit for two classes or a quantity, else one a class.
    width
        Units that the regions of a time point are brought to.
    hidden
        Units of the memory.
    n_layers
        Layers of memory.
    attention
        Weigh the time points by a learned score instead of alike.
    dropout
        Part of the units that is left out at each step of the training.

    References
    ----------
    .. [1] Hochreiter and Schmidhuber (1997), Neural Computation 9(8). doi:10.1162/neco.1997.9.8.1735
    .. [2] Popov et al. (2024), NeuroImage 303. doi:10.1016/j.neuroimage.2024.120909
    """
    return RecurrentNetwork(
        nn.LSTM, shapes[0][-1], n_outputs, width=width, hidden=hidden, n_layers=n_layers, both_ways=False,
        attention=attention, dropout=dropout,
    )  # fmt: skip
