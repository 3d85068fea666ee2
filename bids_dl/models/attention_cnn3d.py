"""Convolutional network for volumes with an attention map: participants' labels alone teach it where to look."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bids_dl.grid import one_volume
from bids_dl.layers import Network

SUITS = ("volume",)
ATTENTION = True
SCHEDULE = {
    "n_epochs": 40,
    "patience": 20,
    "batch_size": 8,
    "learning_rate": 5e-3,
    "weight_decay": 1e-2,
    "n_members": 3,
}


class AttentionCNN3D(Network):
    """Convolutions, a score a cell, and the mean of the cells weighed by their score.

    Without a normalisation the scores hardly move from even ones. It is over the batch: one over a participant's whole
    volume tells every cell what all hold, and the map then peaks anywhere (near the lesion in 0 of 15 simulated
    patients, in 14 with this one).
    """

    def __init__(self, n_outputs: int, channels: Sequence[int], width: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip([1, *channels], channels, strict=False):
            layers += [
                nn.Conv3d(before, after, 3, padding=1),
                nn.BatchNorm3d(after),
                nn.ReLU(),
                nn.MaxPool3d(2, ceil_mode=True),
            ]
        mix = [nn.Conv3d(channels[-1], width, 1), nn.BatchNorm3d(width), nn.ReLU()]
        self.backbone, self.edge = nn.Sequential(*layers, *mix), 2 ** len(channels)
        self.signal, self.gate = nn.Conv3d(width, width, 1), nn.Conv3d(width, width, 1)
        self.score = nn.Conv3d(width, 1, 1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, n_outputs)

    def weights(self, h: Tensor) -> Tensor:
        """Share 1 out over the cells, (participant, 1, x/8, y/8, z/8): each is ``edge`` voxels wide."""
        scores = self.score(torch.tanh(self.signal(h)) * torch.sigmoid(self.gate(h)))
        return torch.softmax(scores.flatten(1), dim=1).view_as(scores)

    def attention(self, x: Tensor) -> Tensor:
        """Say how much each voxel counts, (participant, x, y, z) on the input's grid, summing to 1.

        The last cells reach beyond a grid that they do not divide.
        """
        weights = self.weights(self.backbone(x[:, None]))
        whole = nn.functional.interpolate(weights, scale_factor=self.edge, mode="trilinear", align_corners=False)[:, 0]
        fine = whole[:, : x.shape[1], : x.shape[2], : x.shape[3]]
        return fine / fine.sum(dim=(1, 2, 3), keepdim=True)

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant by the mean of its cells, weighed by attention."""
        h = self.backbone(x[:, None])  # (participant, width, x/8, y/8, z/8)
        out: Tensor = self.dropout((h * self.weights(h)).sum(dim=(2, 3, 4)))  # (participant, width)
        return out


def build(
    shapes: Sequence[tuple[int, ...]],
    n_outputs: int,
    *,
    channels: Sequence[int] = (8, 16, 32),
    width: int = 32,
    dropout: float = 0.2,
) -> AttentionCNN3D:
    """Build a 3-D CNN with an attention module, taught by labels of whole brains [1]_.

    The attention is gated and shares 1 out over the cells [2]_, so that it reads as a map. The task of
    reconstructing the image that [1]_ adds is left out.

    Parameters
    ----------
    shapes
        One volume (x, y, z).
    n_outputs
        One logit for two classes or a quantity, else one a class.
    channels
        Channels of each convolution; each halves the grid, and the last one's cells are weighed.
    width
        Units that represent a cell.
    dropout
        Part of these units that is left out at each step of the training.

    Raises
    ------
    UsageError
        If the input is no volume.

    References
    ----------
    .. [1] Liang and Gu (2021), Sensors 21(1), 220. doi:10.3390/s21010220
    .. [2] Ilse, Tomczak and Welling (2018), ICML. arXiv:1802.04712
    """
    one_volume(shapes, "attention_cnn3d")
    return AttentionCNN3D(n_outputs, channels, width, dropout)
