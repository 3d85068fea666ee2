"""Convolutional network for volumes, from MONAI's blocks, light enough for a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from bids_dl.grid import as_maps, maps_on_grid, refuse_small
from bids_dl.layers import Network

SUITS = ("volume", "maps")
BY_DEFAULT = True
SCHEDULE = {
    "n_epochs": 40,
    "patience": 10,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "weight_decay": 1e-2,
    "n_members": 5,
}


class CNN3D(Network):
    """Pooling and strided convolutions down to a few cells; where a pattern lies stays known, as brains are registered.

    No layer normalises over the volume: how bright a region is *is* the signal, and a normalisation over the volume or
    over a small batch blurs it (on the simulated atrophy, AUC 0.69 with batch normalisation, 0.91 without).
    """

    def __init__(
        self,
        n_maps: int,
        shape: tuple[int, ...],
        n_outputs: int,
        channels: Sequence[int],
        width: int,
        dropout: float,
        pool: int,
    ) -> None:
        super().__init__()
        widths = [n_maps, *channels]
        self.convolutions = nn.Sequential(
            nn.AvgPool3d(pool) if pool > 1 else nn.Identity(),
            *(
                Convolution(3, a, b, strides=2, kernel_size=3, adn_ordering="A", act="RELU")
                for a, b in zip(widths, widths[1:], strict=False)
            ),
        )
        with torch.no_grad():
            n_cells = self.convolutions(torch.zeros(1, n_maps, *shape)).numel()
        self.squeeze = nn.Sequential(
            nn.Flatten(), nn.Dropout(dropout), nn.Linear(n_cells, width), nn.ReLU(), nn.Dropout(dropout)
        )
        self.head = nn.Linear(width, n_outputs)

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant by the layer before the output."""
        h = self.convolutions(as_maps(x))  # (participant, channel, x/8, y/8, z/8)
        out: Tensor = self.squeeze(h)  # (participant, width)
        return out


def build(
    shapes: Sequence[tuple[int, ...]],
    n_outputs: int,
    *,
    channels: Sequence[int] = (8, 16),
    width: int = 32,
    dropout: float = 0.5,
    pool: int = 2,
) -> CNN3D:
    """Build a small 3-D CNN, after the plain networks that do well on T1w [1]_.

    Parameters
    ----------
    shapes
        One volume (x, y, z), or the maps of several networks (network, x, y, z).
    n_outputs
        One logit for two classes or a quantity, else one a class.
    channels
        Channels of each convolution; each halves the grid.
    width
        Units of the layer before the output.
    dropout
        Part of the cells and units that is left out at each step of the training.
    pool
        Edge, in voxels, of the cells that are averaged first; 1 keeps the grid.

    Raises
    ------
    UsageError
        If the input is neither a volume nor maps, or has fewer voxels along an axis than are averaged first.

    References
    ----------
    .. [1] Abrol et al. (2021), Nature Communications 12, 353. doi:10.1038/s41467-020-20655-6
    """
    n_maps, *shape = maps_on_grid(shapes, "cnn3d")
    refuse_small(shape, pool, "cnn3d", f"Lower models.cnn3d.pool, which is {pool}, or use resnet3d.")
    return CNN3D(n_maps, tuple(shape), n_outputs, channels, width, dropout, pool)
