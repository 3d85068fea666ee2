"""Small random changes of training volumes that leave what they show: moved, bent, brighter here and there, noisier."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

KNOTS = 4
"""Random fields are drawn on so many points along each axis, and are smooth between them."""


@dataclass(frozen=True)
class Strengths:
    """How much may change; each is the bound of an even distribution, or the deviation of a normal one.

    Volumes are normalised: a voxel has mean 0 and deviation 1 over the training participants, and is 0 outside the
    brain. So whatever enters from outside the grid is 0, and ``noise`` is in units of the difference between people.
    ``flip`` swaps the first axis, left and right in standard space: only for targets that have no side.
    """

    rotation_deg: float = 5.0
    scale: float = 0.05
    shift_voxels: float = 1.0
    elastic_voxels: float = 0.7
    bias: float = 0.1
    noise: float = 0.1
    flip: bool = False


STILL = Strengths(0, 0, 0, 0, 0, 0)


@dataclass(frozen=True)
class Draw:
    """One random choice for each participant of a batch; the rest is deterministic given it.

    ``matrix`` (participant, 3, 3) and ``shift`` (participant, 3), in voxels, say from where, relative to the grid's
    centre, a voxel takes its value; ``bend`` (participant, 3, knot, knot, knot), in voxels, is added. The logarithm of the
    ``bias`` is (participant, 1, knot, knot, knot). ``flipped`` is (participant,); ``noise`` is as large as the batch.
    """

    matrix: Tensor
    shift: Tensor
    bend: Tensor
    bias: Tensor
    noise: Tensor
    flipped: Tensor

    def to(self, device: torch.device) -> Draw:
        """Move everything to a device."""
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})


def draw(shape: torch.Size, strengths: Strengths) -> Draw:
    """Draw from torch's seeded state, always on the CPU, so that another device gets the same."""
    n = shape[0]
    angles = _even(n, 3) * math.radians(strengths.rotation_deg)
    matrix = rotations(angles) * (1 + strengths.scale * _even(n, 1, 1))
    return Draw(
        matrix,
        strengths.shift_voxels * _even(n, 3),
        strengths.elastic_voxels * torch.randn(n, 3, KNOTS, KNOTS, KNOTS, device="cpu"),
        strengths.bias * torch.randn(n, 1, KNOTS, KNOTS, KNOTS, device="cpu"),
        strengths.noise * torch.randn(shape, device="cpu"),
        (torch.rand(n, device="cpu") < 0.5) & strengths.flip,
    )


def _even(*shape: int) -> Tensor:
    return 2 * torch.rand(*shape, device="cpu") - 1


def rotations(angles: Tensor) -> Tensor:
    """Return (participant, 3, 3) for (participant, 3) angles in radians about x, then y, then z."""
    found = torch.eye(3).expand(len(angles), 3, 3)
    for axis, (one, other) in enumerate(((1, 2), (2, 0), (0, 1))):
        turn = torch.eye(3).repeat(len(angles), 1, 1)
        cosine, sine = torch.cos(angles[:, axis]), torch.sin(angles[:, axis])
        turn[:, one, one] = turn[:, other, other] = cosine
        turn[:, one, other], turn[:, other, one] = -sine, sine
        found = turn @ found
    return found


def augment(x: Tensor, strengths: Strengths | None = None) -> Tensor:
    """Change each volume of a batch at random.

    Parameters
    ----------
    x
        (participant, x, y, z), normalised; an absent participant is all NaN and stays so.
    strengths
        How much.

    Returns
    -------
    Tensor
        The same shape; what no voxel of the grid gives is 0.
    """
    return changed(x, draw(x.shape, strengths or Strengths()).to(x.device))


def changed(x: Tensor, drawn: Draw) -> Tensor:
    """Move, bend, brighten and add noise, as drawn; the value between voxels is linear in them."""
    absent = torch.isnan(x).flatten(1).all(dim=1)
    values = torch.nan_to_num(x)[:, None]  # (participant, 1, x, y, z)
    places = _places(x.shape[1:], drawn).to(values.dtype)
    moved = nn.functional.grid_sample(values, places, mode="bilinear", padding_mode="zeros", align_corners=False)
    found = (moved * torch.exp(_smooth(drawn.bias, x.shape[1:])))[:, 0] + drawn.noise * (values[:, 0] != 0)
    found = torch.where(drawn.flipped[:, None, None, None], found.flip(1), found)
    return torch.where(absent[:, None, None, None], x, found)


def _places(grid: torch.Size, drawn: Draw) -> Tensor:
    """Return where each voxel takes its value, (participant, x, y, z, 3), as `grid_sample` counts: last axis first."""
    sizes = torch.tensor(grid, dtype=torch.float32, device=drawn.shift.device)
    axes = [torch.arange(n, device=sizes.device) - (n - 1) / 2 for n in grid]
    own = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)  # (x, y, z, 3), from the centre
    there = torch.einsum("pij,xyzj->pxyzi", drawn.matrix, own) + drawn.shift[:, None, None, None]
    there = there + _smooth(drawn.bend, grid).movedim(1, -1)
    return (there * 2 / sizes).flip(-1)


def _smooth(field: Tensor, grid: torch.Size) -> Tensor:
    """Interpolate (participant, value, knot, knot, knot) over the grid."""
    return nn.functional.interpolate(field, size=tuple(grid), mode="trilinear", align_corners=True)
