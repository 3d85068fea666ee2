"""Multilayer perceptron on a vector of features, such as the edges of a connectome."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

SUITS = ("edge", "column")
BY_DEFAULT = True
SCHEDULE = {
    "n_epochs": 80,
    "patience": 10,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "weight_decay": 1e-2,
    "n_members": 5,
}


class MLP(nn.Module):
    """Layers of units with dropout; ``first`` is the only layer that sees the input, and it is linear."""

    def __init__(self, n_values: int, n_outputs: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        widths = list(hidden)
        self.input_dropout = nn.Dropout(dropout)
        self.first = nn.Linear(n_values, widths[0])
        layers: list[nn.Module] = [nn.ReLU()]
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Dropout(dropout), nn.Linear(before, after), nn.ReLU()]
        self.rest = nn.Sequential(*layers, nn.Dropout(dropout))
        self.head = nn.Linear(widths[-1], n_outputs)

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant by the last hidden layer."""
        h: Tensor = self.rest(self.first(self.input_dropout(x.flatten(1))))  # (participant, hidden)
        return h

    def forward(self, x: Tensor) -> Tensor:
        """Return (participant, output)."""
        out: Tensor = self.head(self.embed(x))  # (participant, output)
        return out


def build(
    shapes: Sequence[tuple[int, ...]], n_outputs: int, *, hidden: Sequence[int] = (64,), dropout: float = 0.7
) -> MLP:
    """Build a perceptron [1]_, used for functional network connectivity as in [2]_.

    Parameters
    ----------
    shapes
        One input; its values are flattened.
    n_outputs
        One logit for two classes or a quantity, else one a class.
    hidden
        Units of each hidden layer.
    dropout
        Part of the input and of the units that is left out at each step of the training.

    References
    ----------
    .. [1] LeCun, Bengio and Hinton (2015), Nature 521. doi:10.1038/nature14539
    .. [2] Kim et al. (2016), NeuroImage 124. doi:10.1016/j.neuroimage.2015.05.018
    """
    return MLP(int(np.prod(shapes[0])), n_outputs, hidden, dropout)
