"""Residual 3-D convolutions that divide maps of networks into independent sources: a parcellation of each participant."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.networks.nets.resnet import ResNetBlock
from torch import Tensor, nn

from bids_dl.errors import UsageError
from bids_dl.grid import maps_on_grid, refuse_small
from bids_dl.layers import Network, masked, masked_mean

SUITS = ("maps", "moving_maps")
SCHEDULE = {
    "n_epochs": 40,
    "patience": 15,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "weight_decay": 1e-2,
    "n_members": 3,
    "clip_norm": 1.0,
}
PARTS = "source"

WIDTH = math.sqrt(3) / math.pi
"""Of a logistic density whose standard deviation is 1."""

GAUSSIAN = math.log(2 * math.pi * math.e) / 2
"""Entropy in nats of a Gaussian source whose standard deviation is 1."""

ROWS = 8
SMALL = 1e-6


def standardised(sources: Tensor, inside: Tensor) -> Tensor:
    """Bring each source to mean 0 and deviation 1 over the voxels inside, (participant, source, voxel)."""
    values = sources.flatten(2)[..., inside.flatten()]
    centred = values - values.mean(dim=2, keepdim=True)
    return centred / (centred.square().mean(dim=2, keepdim=True) + SMALL).sqrt()


def surprise(z: Tensor) -> Tensor:
    """Return the mean negative log of a logistic density of standard deviation 1 at each source (…, voxel), in nats."""
    u = z / WIDTH
    found: Tensor = (u + 2 * nn.functional.softplus(-u)).mean(dim=-1) + math.log(WIDTH)
    return found


def correlation_information(z: Tensor) -> Tensor:
    """Return the mutual information (participant,) in nats that sources would share if all were Gaussian."""
    n = z.shape[1]
    r = z @ z.transpose(1, 2) / z.shape[2]  # (participant, source, source)
    found: Tensor = -torch.linalg.slogdet(r + SMALL * torch.eye(n, device=z.device))[1] / 2
    return found


def dependence(z: Tensor) -> Tensor:
    """Bound the mutual information (participant,) of standardised sources over voxels, but for a constant, in nats.

    It is what they share as correlations [1]_, and how much more surprising each is under a logistic density than a Gaussian
    source is under its own: infomax [2]_. The constant is the negentropy of all sources together, which no linear unmixing
    changes.

    References
    ----------
    .. [1] Cardoso (2003), Journal of Machine Learning Research 4.
    .. [2] Bell and Sejnowski (1995), Neural Computation 7(6). doi:10.1162/neco.1995.7.6.1129
    """
    return correlation_information(z) + (surprise(z) - GAUSSIAN).sum(dim=1)


def laid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Lay the windows that there are end to end, (window, network, x, y, z); and which those are, (participant, window).

    Maps of whole runs (participant, network, x, y, z) have one window each, absent or not.
    """
    if x.ndim == 5:
        return x, torch.ones(len(x), 1, dtype=torch.bool, device=x.device)
    _, present = masked(x.flatten(2))
    return x[present], present


def spread(values: Tensor, present: Tensor, padding: float = torch.nan) -> Tensor:
    """Give what belongs to each window that there is, (window, …), back to participants, (participant, window, …)."""
    found = values.new_full((*present.shape, *values.shape[1:]), padding)
    found[present] = values
    return found


def moments(values: Tensor, present: Tensor) -> Tensor:
    """Return each value's mean and deviation over a participant's windows, (participant, 2 values); in any order."""
    h = spread(values, present, 0.0)  # (participant, window, value)
    n = present.sum(dim=1, keepdim=True)
    mean = masked_mean(h, present)
    variance = masked_mean((h - mean[:, None]).square(), present) * n / (n - 1).clamp(min=1)
    return torch.cat([mean, (variance + SMALL).sqrt()], dim=1)


class CNNICA(Network):
    """Whitening and a rotation of the maps at each voxel, corrected by residual blocks that see its neighbourhood.

    ``embed`` has the blocks' mean over the voxels, each source's mean in a few cells, and the sources' correlations over
    voxels, arctanh(r), each standardised. Where maps move, all windows pass the same layers one by one, and ``embed`` has
    the mean and the deviation of these values over a participant's windows.
    """

    mean: Tensor
    scale: Tensor
    varies: Tensor
    whitening: Tensor
    unit: Tensor
    begun: Tensor

    def __init__(
        self, n_maps: int, grid: tuple[int, ...], n_outputs: int, *, n_sources: int, width: int, n_blocks: int,
        pool: int, n_cells: int, independence: float, n_pretraining: int, dropout: float, moves: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.moves = moves
        self.n, self.pool = min(n_sources, n_maps), pool
        self.independence, self.n_pretraining = independence, n_pretraining
        for name, start in (("mean", torch.zeros), ("scale", torch.ones)):
            self.register_buffer(name, start(n_maps, *grid))
        self.register_buffer("varies", torch.ones(grid))
        self.register_buffer("whitening", nn.init.orthogonal_(torch.empty(self.n, n_maps)))
        self.register_buffer("unit", torch.ones(n_maps))
        self.register_buffer("begun", torch.zeros(()))
        self.rotation = nn.Parameter(nn.init.orthogonal_(torch.empty(self.n, self.n)))
        self.mixing = nn.Parameter(nn.init.orthogonal_(torch.empty(n_maps, self.n)))
        self.stem = nn.Sequential(nn.Conv3d(2 * n_maps, width, 3, padding=1), nn.BatchNorm3d(width), nn.ReLU())
        self.blocks = nn.Sequential(*(_block(width) for _ in range(n_blocks)))
        self.correction = nn.Conv3d(width, self.n, 1)
        nn.init.normal_(self.correction.weight, std=0.01)
        self.coarse = nn.AvgPool3d(pool) if pool > 1 else nn.Identity()
        self.cells = nn.AdaptiveAvgPool3d(n_cells)
        n_values = (1 + moves) * (width + self.n * n_cells**3 + self.n * (self.n - 1) // 2)
        self.standard = nn.BatchNorm1d(n_values, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(n_values, n_outputs)

    def adopt(self, normalization: Any) -> None:
        """Learn what undoes the normalisation, and where anything varies between participants."""
        scale = torch.as_tensor(normalization.scale)
        known = torch.isfinite(scale)
        self.mean = torch.as_tensor(normalization.mean).clone()
        self.scale = torch.where(known, scale, torch.zeros_like(scale))
        self.varies = known.any(dim=0).to(scale.dtype)

    @property
    def inside(self) -> Tensor:
        """Tell which cells of the coarse grid lie in the brain for the most part, (x, y, z)."""
        share = self.coarse(self.varies[None, None])[0, 0]
        found: Tensor = share > share.max() / 2
        return found

    def measured(self, x: Tensor) -> Tensor:
        """Return the maps in units of each one's spread over voxels and participants, on the coarse grid."""
        maps = torch.nan_to_num(x) * self.scale + self.mean
        coarse: Tensor = self.coarse(maps) / self.unit[:, None, None, None]
        return coarse * self.inside

    def begin(self, rows: Callable[[Any], tuple[Tensor, ...]], n: int) -> None:
        """Whiten by the training rows and unmix them without their labels; what a bundle brought along is kept."""
        if self.begun:
            return
        self.whiten(rows, n)
        optimizer = torch.optim.Adam([self.rotation, self.mixing], lr=1e-2)
        for _ in range(self.n_pretraining):
            x = rows(torch.randint(n, (min(n, ROWS),)).numpy())[0]
            optimizer.zero_grad()
            maps = self.measured(laid(x)[0])
            self.misfit(maps, self.unmixed(maps)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self.begun.fill_(1)

    @torch.no_grad()
    def whiten(self, rows: Callable[[Any], tuple[Tensor, ...]], n: int) -> None:
        """Take the main axes of the maps over all voxels and windows of the training rows, each divided by its deviation."""
        n_maps, n_windows = len(self.unit), 0
        squares = torch.zeros(n_maps, n_maps, dtype=torch.float64)
        for at in np.array_split(np.arange(n), -(-n // ROWS)):
            values = self.measured(laid(rows(at)[0])[0])[..., self.inside]  # (window, map, voxel)
            values = values - values.mean(dim=2, keepdim=True)
            squares += torch.einsum("pmv,pnv->mn", values, values).double() / values.shape[2]
            n_windows += len(values)
        squares /= max(1, n_windows)
        self.unit.copy_(squares.diag().sqrt().clamp(min=SMALL))
        squares = squares / self.unit / self.unit[:, None]
        variance, axes = torch.linalg.eigh(squares)
        variance, axes = variance.flip(0)[: self.n].clamp(min=SMALL), axes.flip(1)[:, : self.n]
        self.whitening.copy_((axes / variance.sqrt()).T)
        self.mixing.copy_(axes.float() * variance.sqrt().float() @ self.rotation.T)

    def unmixed(self, maps: Tensor) -> Tensor:
        """Return the sources without the correction, (participant, source, x, y, z)."""
        return torch.einsum("sm,pmxyz->psxyz", self.rotation @ self.whitening, maps)

    def _sources(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return measured maps, sources, and the blocks' channels, each (participant, …, x, y, z) on the coarse grid."""
        maps = self.measured(x)
        h = self.blocks(self.stem(torch.cat([maps, self.coarse(torch.nan_to_num(x))], dim=1)))
        return maps, (self.unmixed(maps) + self.correction(h)) * self.inside, h

    def misfit(self, maps: Tensor, sources: Tensor) -> Tensor:
        """Add the part of the maps' variance that a linear mixture of the sources misses, and a source's dependence."""
        z, m = standardised(sources, self.inside), maps.flatten(2)[..., self.inside.flatten()]
        m = m - m.mean(dim=2, keepdim=True)
        centred = sources.flatten(2)[..., self.inside.flatten()]
        centred = centred - centred.mean(dim=2, keepdim=True)
        missed = (m - self.mixing @ centred).square().mean() / m.square().mean().clamp(min=SMALL)
        found: Tensor = missed + self.independence * dependence(z).mean() / self.n
        return found

    def sources(self, x: Tensor) -> Tensor:
        """Return each participant's sources, (participant, source, x, y, z) on the coarse grid; 0 outside the brain.

        Where maps move they are (participant, window, source, x, y, z), NaN for a window that there is not.
        """
        windows, present = laid(x)
        return self._given_back(self._sources(windows)[1], present)

    def parcellation(self, x: Tensor) -> Tensor:
        """Say to which source each voxel belongs, in the shape of ``sources``: parts of 1; 0 outside the brain.

        It is the softmax of the sources' size in units of their deviation, as their signs are arbitrary.
        """
        windows, present = laid(x)
        sources = self._sources(windows)[1]
        z = torch.zeros_like(sources)
        z[..., self.inside] = standardised(sources, self.inside)
        return self._given_back(torch.softmax(z.abs(), dim=1) * self.inside, present)

    def _given_back(self, values: Tensor, present: Tensor) -> Tensor:
        return spread(values, present) if self.moves else values

    def parts(self) -> Tensor:
        """Return how much of each network's map is in each source, (source, network)."""
        return self.mixing.T

    @torch.no_grad()
    def describe(self, x: Tensor) -> Mapping[str, tuple[Tensor, tuple[str, ...]]]:
        """Return each participant's sources and parcellation on the coarse grid, where maps move those of every window."""
        dims = (*(("window",) if self.moves else ()), "source", "x", "y", "z")
        return {"maps": (self.sources(x), dims), "parcellation": (self.parcellation(x), dims)}

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant by what the blocks found, where the sources lie and how they go together."""
        windows, present = laid(x)
        return self._embed(*self._sources(windows)[1:], present)

    def _embed(self, sources: Tensor, h: Tensor, present: Tensor) -> Tensor:
        z, inside = standardised(sources, self.inside), self.inside
        r = z @ z.transpose(1, 2) / z.shape[2]
        first, second = torch.triu_indices(self.n, self.n, 1, device=z.device)
        pairs = torch.atanh(r[:, first, second].clamp(-0.999, 0.999))
        summary = torch.cat([h[..., inside].mean(dim=2), self.cells(sources).flatten(1), pairs], dim=1)
        summary = moments(summary, present) if self.moves else summary
        found: Tensor = self.dropout(self.standard(summary))  # (participant, channel + cell + pair)
        return found

    def loss(self, inputs: tuple[Tensor, ...], y: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Add what the sources miss of the maps, and their dependence, to the loss of the outputs."""
        windows, present = laid(inputs[0])
        maps, sources, h = self._sources(windows)
        return criterion(self.head(self._embed(sources, h, present)), y) + self.misfit(maps, sources)


def _block(width: int) -> ResNetBlock:
    return ResNetBlock(width, width, 3, norm="batch", act=("relu", {"inplace": False}))


def build(
    shapes: Sequence[tuple[int, ...]],
    n_outputs: int,
    *,
    n_sources: int = 20,
    width: int = 16,
    n_blocks: int = 2,
    pool: int = 2,
    n_cells: int = 3,
    independence: float = 0.3,
    n_pretraining: int = 100,
    dropout: float = 0.5,
) -> CNNICA:
    """Build residual 3-D convolutions under a constraint of independence, after [1]_, with a head that predicts.

    The maps of a participant's networks are unmixed at each voxel, and residual blocks that see its neighbourhood correct
    the result. The sources are to be independent over voxels, by a bound of their mutual information (infomax, [2]_), and to
    give the maps back by a linear mixture, as in [3]_: without that, convolutions would make anything independent. The
    unmixing is learned first, without labels; the blocks learn with them. ``parcellation`` says to which source each voxel
    belongs.

    Maps in sliding windows (``dynamic_network_maps``) are unmixed window by window, by one unmixing for all: sources and
    parcellation are those of each window. The head reads each value's mean and deviation over the windows, whose number
    may differ between participants; their order does not count. Of whole runs (``network_maps``) there is one parcellation
    a participant.

    In difference to [1]_, where volume after volume goes through the network and targets made by ICA beforehand teach one
    network for each of 53 components, a step in time is a window, long enough to tell the networks apart, and no targets
    are needed: 200 volumes of 2,000 participants would take some 50 GB even at 6 mm.

    Parameters
    ----------
    shapes
        The maps of several networks (network, x, y, z), or (window, network, x, y, z).
    n_outputs
        One logit for two classes or a quantity, else one a class.
    n_sources
        Sources; at most as many as networks.
    width
        Channels of the residual blocks.
    n_blocks
        Residual blocks.
    pool
        Edge, in voxels, of the cells that are averaged first; 1 keeps the grid.
    n_cells
        Cells an edge in which each source is averaged for the output.
    independence
        Weight of that bound, a source and in nats, against the missed part of the maps' variance.
    n_pretraining
        Steps on maps and independence alone, before the labels are looked at.
    dropout
        Part of the representation that is left out at each step of the training.

    Raises
    ------
    UsageError
        If the input is not the maps of two networks or more, fewer than two sources are asked for, or the grid has fewer
        voxels along an axis than are averaged first.

    References
    ----------
    .. [1] Kazemivash and Calhoun (2022), Journal of Neuroscience Methods 369. doi:10.1016/j.jneumeth.2022.109478
    .. [2] Bell and Sejnowski (1995), Neural Computation 7(6). doi:10.1162/neco.1995.7.6.1129
    .. [3] Le, Karpenko, Ngiam and Ng (2011), NeurIPS 24: ICA with reconstruction cost.
    """
    if len(shapes) != 1 or len(shapes[0]) not in {4, 5} or min(n_sources, shapes[0][-4]) < 2:
        raise UsageError(
            f"cnn_ica takes maps (network, x, y, z), of several windows too, and unmixes at least two sources; this input "
            f"has the shape {tuple(shapes[0])} and n_sources is {n_sources}. Use it on network_maps or dynamic_network_maps."
        )
    n_maps, *grid = maps_on_grid([shapes[0][-4:]], "cnn_ica")
    refuse_small(grid, pool, "cnn_ica", f"Lower models.cnn_ica.pool, which is {pool}.")
    return CNNICA(
        n_maps, tuple(grid), n_outputs, n_sources=n_sources, width=width, n_blocks=n_blocks, pool=pool, n_cells=n_cells,
        independence=independence, n_pretraining=n_pretraining, dropout=dropout, moves=len(shapes[0]) == 5,
    )  # fmt: skip
