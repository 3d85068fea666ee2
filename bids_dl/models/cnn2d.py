"""Convolutional network on the slices of a volume, the same for each, then one vote of all slices of a participant."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bids_dl.errors import UsageError
from bids_dl.grid import one_volume
from bids_dl.layers import AttentionPool, Network

SUITS = ("volume",)
ATTENTION = "attention"
SCHEDULE = {
    "n_epochs": 40,
    "patience": 20,
    "batch_size": 8,
    "learning_rate": 2e-3,
    "weight_decay": 1e-2,
    "n_members": 3,
}


class CNN2D(Network):
    """Each slice through the same 2-D convolutions; a participant's slices stay together, so no split divides them.

    As in `cnn3d`, nothing normalises over a slice: how bright it is *is* the signal.
    """

    def __init__(
        self, n_outputs: int, axis: int, channels: Sequence[int], width: int, dropout: float, *, attention: bool
    ) -> None:
        super().__init__()
        self.axis = axis + 1
        layers: list[nn.Module] = []
        for before, after in zip([1, *channels], channels, strict=False):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
        self.convolutions = nn.Sequential(*layers)
        self.squeeze = nn.Sequential(nn.Linear(2 * channels[-1], width), nn.ReLU(), nn.Dropout(dropout))
        self.pool = AttentionPool(width) if attention else None
        self.head = nn.Linear(width, n_outputs)

    def slices(self, x: Tensor) -> Tensor:
        """Represent each slice by its channels' mean and maximum, (participant, slice, unit)."""
        apart = x.movedim(self.axis, 1)  # (participant, slice, row, column)
        h = self.convolutions(apart.flatten(0, 1).unsqueeze(1))  # (participant × slice, channel, row/8, column/8)
        both = torch.cat([h.mean(dim=(2, 3)), h.amax(dim=(2, 3))], dim=1)  # (participant × slice, 2 × channel)
        found: Tensor = self.squeeze(both).unflatten(0, apart.shape[:2])  # (participant, slice, unit)
        return found

    def votes(self, h: Tensor) -> Tensor:
        """Say how much each slice counts, (participant, slice), summing to 1."""
        everything = torch.ones(h.shape[:2], dtype=torch.bool, device=h.device)
        return self.pool.weights(h, everything) if self.pool is not None else everything / h.shape[1]

    def attention(self, x: Tensor) -> Tensor:
        """Say how much each slice counts: (participant, x, y, z), of which two have the length 1, summing to 1."""
        return self.votes(self.slices(x))[:, :, None, None].movedim(1, self.axis)

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant by the weighted mean of its slices."""
        h = self.slices(x)
        return torch.einsum("ps,psu->pu", self.votes(h), h)  # (participant, unit)


def build(
    shapes: Sequence[tuple[int, ...]],
    n_outputs: int,
    *,
    axis: int = 2,
    attention: bool = True,
    channels: Sequence[int] = (8, 16, 32),
    width: int = 32,
    dropout: float = 0.3,
) -> CNN2D:
    """Build a CNN over the slices of a volume [1]_ that are weighed by attention [2]_.

    Trained participant by participant, never slice by slice: slices of one brain on both sides of a split are the
    commonest leak of slice-level networks [1]_.

    Parameters
    ----------
    shapes
        One volume (x, y, z).
    n_outputs
        One logit for two classes or a quantity, else one a class.
    axis
        Along which axis the slices lie: 0 sagittal, 1 coronal, 2 axial, of a volume in standard space.
    attention
        Weigh the slices by a learned score; false averages them.
    channels
        Channels of each convolution; each halves the slice.
    width
        Units that represent a slice.
    dropout
        Part of these units that is left out at each step of the training.

    Raises
    ------
    UsageError
        If the input is no volume, or has no such axis.

    References
    ----------
    .. [1] Wen et al. (2020), Medical Image Analysis 63. doi:10.1016/j.media.2020.101694
    .. [2] Gupta et al. (2021), IEEE ISBI. arXiv:2102.04438
    """
    one_volume(shapes, "cnn2d")
    if axis not in (0, 1, 2):
        raise UsageError(f"models.cnn2d.axis is {axis}; choose 0 (sagittal), 1 (coronal) or 2 (axial).")
    return CNN2D(n_outputs, axis, channels, width, dropout, attention=attention)
