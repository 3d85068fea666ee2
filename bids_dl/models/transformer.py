"""Transformer encoder over the time points of regional series: attention between any two, whatever lies between."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bids_dl.errors import UsageError
from bids_dl.layers import Network, Steps, masked, masked_mean, positions

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


class Transformer(Network):
    """Projected time points plus their positions through encoder layers; ``embed`` is their mean over time."""

    def __init__(
        self, n_values: int, n_outputs: int, *, width: int, n_heads: int, n_layers: int, dropout: float
    ) -> None:
        super().__init__()
        self.project = Steps(n_values, width, dropout)
        layer = nn.TransformerEncoderLayer(width, n_heads, 2 * width, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, n_outputs)

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant by the mean over the time points that there are."""
        values, mask = masked(x)
        h = self.project(values)
        h = h + positions(h.shape[1], h.shape[2]).to(h)  # (participant, time, unit)
        ignored = ~mask
        ignored[:, 0] &= mask.any(dim=1)  # someone without a time point attends to one, or the softmax has no value
        h = self.encoder(h, src_key_padding_mask=ignored)  # (participant, time, unit)
        found: Tensor = self.dropout(masked_mean(h, mask))  # (participant, unit)
        return found


def build(
    shapes: Sequence[tuple[int, ...]],
    n_outputs: int,
    *,
    width: int = 64,
    n_heads: int = 4,
    n_layers: int = 1,
    dropout: float = 0.3,
) -> Transformer:
    """Build a transformer encoder with sinusoidal positions [1]_, whose output is averaged over time as in [2]_.

    Parameters
    ----------
    shapes
        One sequence (time, roi); of any length, padded with NaN.
    n_outputs
        One logit for two classes or a quantity, else one a class.
    width
        Units that the regions of a time point are brought to; a multiple of ``n_heads``.
    n_heads
        Attention heads of a layer.
    n_layers
        Encoder layers.
    dropout
        Part of the units that is left out at each step of the training.

    Raises
    ------
    UsageError
        If the heads cannot share the units alike.

    References
    ----------
    .. [1] Vaswani et al. (2017), NeurIPS. arXiv:1706.03762
    .. [2] Popov et al. (2024), NeuroImage 303. doi:10.1016/j.neuroimage.2024.120909
    """
    if width % n_heads:
        raise UsageError(
            f"models.transformer: width {width} is not a multiple of n_heads {n_heads}; "
            f"use width {width - width % n_heads or n_heads} or other heads."
        )
    return Transformer(shapes[0][-1], n_outputs, width=width, n_heads=n_heads, n_layers=n_layers, dropout=dropout)
