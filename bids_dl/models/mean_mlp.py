"""Perceptron at every time point, averaged over time: no order is looked at, and that is hard to beat at rest."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bids_dl.layers import Network, masked, masked_mean

SUITS = ("sequence",)
SCHEDULE = {
    "n_epochs": 15,
    "patience": 3,
    "batch_size": 32,
    "learning_rate": 1e-2,
    "weight_decay": 1e-2,
    "n_members": 3,
}


class MeanMLP(Network):
    """The same layers at every time point; ``embed`` is the mean of their last one over time."""

    def __init__(self, n_values: int, n_outputs: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip([n_values, *hidden], hidden, strict=False):
            layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(hidden[-1], n_outputs)

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant by the mean over time."""
        values, mask = masked(x)
        return masked_mean(self.layers(values), mask)  # (participant, unit)


def build(
    shapes: Sequence[tuple[int, ...]], n_outputs: int, *, hidden: Sequence[int] = (64,), dropout: float = 0.3
) -> MeanMLP:
    """Build a perceptron over time points whose output is averaged [1]_.

    Parameters
    ----------
    shapes
        One sequence (time, roi); of any length.
    n_outputs
        One logit for two classes or a quantity, else one a class.
    hidden
        Units of each layer.
    dropout
        Part of the units that is left out at each step of the training.

    References
    ----------
    .. [1] Popov et al. (2024), NeuroImage 303. doi:10.1016/j.neuroimage.2024.120909
    """
    return MeanMLP(shapes[0][-1], n_outputs, hidden, dropout)
