"""Residual network for volumes, from MONAI's blocks, with a few channels."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets.resnet import ResNetBlock
from torch import Tensor, nn

from bids_dl.grid import one_volume
from bids_dl.layers import Network

SUITS = ("volume",)
SCHEDULE = {
    "n_epochs": 40,
    "patience": 30,
    "batch_size": 8,
    "learning_rate": 5e-3,
    "weight_decay": 1e-2,
    "n_members": 3,
}


def _block(before: int, after: int) -> ResNetBlock:
    """Halve the grid; the shortcut is a convolution of one voxel."""
    shortcut = nn.Conv3d(before, after, 1, stride=2)
    return ResNetBlock(before, after, 3, stride=2, downsample=shortcut, norm="batch", act=("relu", {"inplace": False}))


class ResNet3D(Network):
    """Residual blocks, averaged over the volume: where a pattern lies is not looked at.

    Normalised over the batch, as in the paper. Deeper ones, or those normalised over a participant's own channels, often
    missed lesions at random places that this one finds.
    """

    def __init__(self, n_outputs: int, channels: Sequence[int], dropout: float) -> None:
        super().__init__()
        first = nn.Conv3d(1, channels[0], 3, padding=1)
        self.stem = nn.Sequential(first, nn.BatchNorm3d(channels[0]), nn.ReLU(), nn.MaxPool3d(2, ceil_mode=True))
        self.blocks = nn.Sequential(*(_block(a, b) for a, b in zip(channels, channels[1:], strict=False)))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels[-1], n_outputs)

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant by the mean of each channel over the volume."""
        h = self.blocks(self.stem(x[:, None]))  # (participant, channel, x/8, y/8, z/8)
        out: Tensor = self.dropout(h.mean(dim=(2, 3, 4)))  # (participant, channel)
        return out


def build(
    shapes: Sequence[tuple[int, ...]],
    n_outputs: int,
    *,
    channels: Sequence[int] = (8, 16, 32),
    dropout: float = 0.2,
) -> ResNet3D:
    """Build a small 3-D residual network [1]_, as used on T1w [2]_.

    Parameters
    ----------
    shapes
        One volume (x, y, z).
    n_outputs
        One logit for two classes or a quantity, else one a class.
    channels
        Channels of the first convolution and of each block; each halves the grid.
    dropout
        Part of the last channels that is left out at each step of the training.

    Raises
    ------
    UsageError
        If the input is no volume.

    References
    ----------
    .. [1] He et al. (2016), IEEE CVPR. doi:10.1109/CVPR.2016.90
    .. [2] Korolev et al. (2017), IEEE ISBI. doi:10.1109/ISBI.2017.7950647
    """
    one_volume(shapes, "resnet3d")
    return ResNet3D(n_outputs, channels, dropout)
