"""Simple fully convolutional network: a plain stack of small convolutions, known for brain age and sex from T1w."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bids_dl.grid import one_volume
from bids_dl.layers import Network

SUITS = ("volume",)
SCHEDULE = {
    "n_epochs": 40,
    "patience": 20,
    "batch_size": 8,
    "learning_rate": 5e-3,
    "weight_decay": 1e-2,
    "n_members": 3,
}


class SFCN(Network):
    """Convolution, normalisation, maximum pooling, again and again, then a mixing of channels and a mean over space."""

    def __init__(self, n_outputs: int, channels: Sequence[int], width: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip([1, *channels], channels, strict=False):
            layers += [
                nn.Conv3d(before, after, 3, padding=1),
                nn.BatchNorm3d(after),
                nn.MaxPool3d(2, ceil_mode=True),
                nn.ReLU(),
            ]
        mix = [nn.Conv3d(channels[-1], width, 1), nn.BatchNorm3d(width), nn.ReLU()]
        self.features = nn.Sequential(*layers, *mix)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, n_outputs)

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant by the mean of each channel over the volume."""
        h = self.features(x[:, None])  # (participant, width, x/16, y/16, z/16)
        out: Tensor = self.dropout(h.mean(dim=(2, 3, 4)))  # (participant, width)
        return out


def build(
    shapes: Sequence[tuple[int, ...]],
    n_outputs: int,
    *,
    channels: Sequence[int] = (8, 16, 32, 32),
    width: int = 32,
    dropout: float = 0.2,
) -> SFCN:
    """Build the simple fully convolutional network [1]_ with fewer channels and blocks.

    The paper has (32, 64, 128, 256, 256) channels and a width of 64, and predicts age by classes of one year each. Here
    the head is plain: one output for a quantity.

    Parameters
    ----------
    shapes
        One volume (x, y, z).
    n_outputs
        One logit for two classes or a quantity, else one a class.
    channels
        Channels of each convolution; each halves the grid.
    width
        Channels after the last mixing.
    dropout
        Part of the last channels that is left out at each step of the training.

    Raises
    ------
    UsageError
        If the input is no volume.

    References
    ----------
    .. [1] Peng et al. (2021), Medical Image Analysis 68. doi:10.1016/j.media.2020.101871
    """
    one_volume(shapes, "sfcn")
    return SFCN(n_outputs, channels, width, dropout)
