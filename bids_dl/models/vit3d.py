"""Vision transformer for volumes, small: cubes of the volume attend to each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bids_dl.errors import UsageError
from bids_dl.grid import one_volume
from bids_dl.layers import Network

SUITS = ("volume",)
SCHEDULE = {
    "n_epochs": 40,
    "patience": 20,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "weight_decay": 5e-2,
    "n_members": 3,
    "clip_norm": 1.0,
}


class ViT3D(Network):
    """Cubes as tokens with a learned position each; a participant is the mean of its tokens."""

    def __init__(
        self,
        shape: tuple[int, ...],
        n_outputs: int,
        patch: int,
        width: int,
        n_layers: int,
        n_heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.missing = [-size % patch for size in shape]
        n_tokens = math.prod((size + more) // patch for size, more in zip(shape, self.missing, strict=True))
        self.cubes = nn.Conv3d(1, width, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn(n_tokens, width))
        layer = nn.TransformerEncoderLayer(
            width, n_heads, 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, n_layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, n_outputs)

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant by the mean of its tokens; the grid is filled up with the training mean, 0."""
        after = [side for more in reversed(self.missing) for side in (0, more)]
        cubes = self.cubes(nn.functional.pad(x, after)[:, None])  # (participant, width, x/8, y/8, z/8)
        tokens = self.transformer(cubes.flatten(2).transpose(1, 2) + self.position)  # (participant, token, width)
        out: Tensor = tokens.mean(dim=1)  # (participant, width)
        return out


def build(
    shapes: Sequence[tuple[int, ...]],
    n_outputs: int,
    *,
    patch: int = 8,
    width: int = 48,
    n_layers: int = 3,
    n_heads: int = 4,
    dropout: float = 0.1,
) -> ViT3D:
    """Build a small vision transformer [1]_ on the cubes of a volume.

    It knows nothing of neighbourhoods before it has learned them, and needs more participants than a CNN for it.

    Parameters
    ----------
    shapes
        One volume (x, y, z).
    n_outputs
        One logit for two classes or a quantity, else one a class.
    patch
        Edge of a cube, in voxels.
    width
        Units that represent a cube, a multiple of ``n_heads``.
    n_layers
        Rounds of attention.
    n_heads
        Attentions side by side in each round.
    dropout
        Part of the units that is left out at each step of the training.

    Raises
    ------
    UsageError
        If the input is no volume, or the heads do not divide the units.

    References
    ----------
    .. [1] Dosovitskiy et al. (2021), ICLR. arXiv:2010.11929
    """
    shape = one_volume(shapes, "vit3d")
    if width % n_heads:
        raise UsageError(f"models.vit3d.width is {width}, n_heads {n_heads}; choose a multiple of the heads.")
    return ViT3D(shape, n_outputs, patch, width, n_layers, n_heads, dropout)
