"""Move participants until a network that is trained to tell their sites can no longer do so."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bids_dl.harmonization import Harmonization, Moved, estimate, locations, ranges
from bids_dl.records import Array

MOST_FOR_AXES = 2000
"""Rows that the components are found from; more teach little."""
ROWS_A_COMPONENT = 10
"""Fewer, and the discriminator knows the training participants, who are then moved away from all others."""
BATCH, RATE, MOMENTA, DECAY = 128, 2e-3, (0.5, 0.9), 1e-2
WIDTH, DROPOUT = 64, 0.3
TOGETHER = True
"""One network moves all sites: none can be learned after the others."""
AVERAGING = 0.99
"""How much of the weights' running average stays at each step: the two networks circle around each other."""


def fit(
    values: Array, rows: NDArray[np.intp], given: Array, n_sites: int, labels: Sequence[str] = (), *,
    protect: Sequence[str] = ("age", "sex", "gender"), unseen: str = "pooled", n_components: int = 40, hidden: int = 32,
    n_steps: int = 600, keep: float = 2.0, noise: float = 0.3, seed: int = 0,
) -> Harmonization:  # fmt: skip
    """Learn moves that hide the site from a discriminator, by turns [1]_, after location and spread (ComBat [2]_).

    Where [1]_ teaches a representation to forget the scanner, here the participants themselves move: in principal
    components of what sites and covariates leave, by a linear map a site and a small network, and as little as need be.
    What lies outside of the components has ComBat's location and spread alone.

    Parameters
    ----------
    values
        (participant, …), possibly memory-mapped; NaN is missing and says nothing.
    rows
        The training rows; no other is read, unless ``unseen`` is ``adapt``.
    given
        (participant, confound + site): confounds, then one column a site.
    n_sites
        How many of the last columns are sites.
    labels
        Names of the confounds.
    protect
        Confounds whose effect stays; those that the data lack are passed over. Never the target: its values would have
        to be known for the test participants.
    unseen
        For a site without training participants: ``pooled`` leaves its values, ``refuse`` refuses them, ``adapt``
        learns from its own unlabelled rows.
    n_components
        Components of all values in which participants move, at most one for ten training rows.
    hidden
        Units of the network that moves them.
    n_steps
        Steps of the mover; the discriminator takes one before each.
    keep
        Penalty of a move's square, in units of the components' variance: more keeps more of the data, and of the sites.
    noise
        Standard deviation of the noise through which the discriminator looks, in units of the components': it is to know
        the sites, not the participants.
    seed
        Seeds both networks.

    Returns
    -------
    Harmonization
        A `Moved`, the same for the same rows.

    Raises
    ------
    UsageError
        If ``unseen`` is no policy.

    References
    ----------
    .. [1] Dinsdale, Jenkinson and Namburete (2021), NeuroImage 228. doi:10.1016/j.neuroimage.2020.117689
    .. [2] Johnson, Li and Rabinovic (2007), Biostatistics 8(1). doi:10.1093/biostatistics/kxj037
    """
    found = estimate(values, rows, given, n_sites, labels, protect, unseen)
    shift, spread = locations(found)
    base = Harmonization(
        found.centre, found.slopes, found.covariate_mean, found.covariates, shift, spread, found.n > 0,
        unseen == "refuse",
    )  # fmt: skip
    member = np.nan_to_num(given[:, given.shape[1] - n_sites :])
    rows = _learned_from(rows, member, adapts=unseen == "adapt")
    unit = np.sqrt(np.where(found.variance > 0, found.variance, 1)).astype(np.float32)
    flat = values.reshape(len(values), -1)
    z, axes, size = _components(
        lambda at, part: _left(base, flat, given, at, part) / unit[part], rows, unit, n_components
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mover = _play(z, member[rows].argmax(axis=1), n_sites, hidden=hidden, n_steps=n_steps, keep=keep, noise=noise)
    return Moved(**vars(base), unit=unit, axes=axes, size=size, **mover.arrays())


def _learned_from(rows: NDArray[np.intp], member: Array, *, adapts: bool) -> NDArray[np.intp]:
    """Keep the training rows that have a site; add those of sites without any, where these are adapted to."""
    kept = rows[member[rows].any(axis=1)]
    if not adapts:
        return kept
    new = member[:, ~member[kept].any(axis=0)].any(axis=1)
    return np.concatenate([kept, np.flatnonzero(new)])


def _left(base: Harmonization, flat: Array, given: Array, rows: NDArray[np.intp], part: slice) -> Array:
    """Return what sites and covariates leave of a range of values, missing ones as 0."""
    level = base.apply(flat[rows, part], given[rows], part)
    return np.nan_to_num(level - base.explained(given[rows], part)).astype(np.float32)


def _components(
    read: Callable[[NDArray[np.intp], slice], Array], rows: NDArray[np.intp], unit: Array, most: int
) -> tuple[Array, Array, Array]:
    """Find principal components; returns the rows' coordinates in units of their deviation, axes, and deviations."""
    chosen = rows[np.linspace(0, len(rows) - 1, min(MOST_FOR_AXES, len(rows))).astype(int)]
    parts = ranges(len(unit), len(rows))
    gram = np.zeros((len(chosen), len(chosen)))
    for part in parts:
        x = read(chosen, part)
        gram += x @ x.T
    variances, vectors = np.linalg.eigh(gram)
    kept = np.argsort(variances)[::-1][: min(most, len(rows) // ROWS_A_COMPONENT)]
    kept = kept[variances[kept] > 1e-6 * max(variances.max(), 1e-12)]
    mixing = (vectors[:, kept] / np.sqrt(variances[kept])).T.astype(np.float32)
    axes, z = np.empty((len(kept), len(unit)), np.float32), np.zeros((len(rows), len(kept)), np.float32)
    for part in parts:
        axes[:, part] = mixing @ read(chosen, part)
        z += read(rows, part) @ axes[:, part].T
    size = z.std(axis=0) + np.float32(1e-12)
    return z / size, axes, size


class _Mover(nn.Module):
    """A linear map a site, and a network that sees where somebody is and of which site; at first nobody moves."""

    def __init__(self, n_components: int, n_sites: int, hidden: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(n_sites, n_components, n_components))
        self.into, self.out = nn.Linear(n_components + n_sites, hidden), nn.Linear(hidden, n_components)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, z: Tensor, member: Tensor) -> Tensor:
        """Return the moves, (participant, component)."""
        bent: Tensor = self.out(torch.tanh(self.into(torch.cat([z, member], dim=1))))
        return bent + torch.einsum("ij,is,sjk->ik", z, member, self.mix)

    def arrays(self) -> dict[str, Any]:
        """Return the weights under the names that `Moved` gives them."""
        found = {"mix": self.mix, "into": self.into.weight, "into_bias": self.into.bias, "out": self.out.weight,
                 "out_bias": self.out.bias}  # fmt: skip
        return {name: weight.detach().numpy() for name, weight in found.items()}


def _discriminator(n_components: int, n_sites: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(n_components, WIDTH), nn.LeakyReLU(0.2), nn.Dropout(DROPOUT), nn.Linear(WIDTH, WIDTH),
        nn.LeakyReLU(0.2), nn.Dropout(DROPOUT), nn.Linear(WIDTH, n_sites),
    )  # fmt: skip


def _play(
    z: Array, sites: NDArray[np.intp], n_sites: int, *, hidden: int, n_steps: int, keep: float, noise: float
) -> _Mover:
    """Train mover and discriminator by turns; returns the running average of the mover.

    Sites are drawn with equal probability, so that a discriminator which knows nothing gives all the same.
    """
    mover, judge = _Mover(z.shape[1], n_sites, hidden), _discriminator(z.shape[1], n_sites)
    average = copy.deepcopy(mover)
    moving = torch.optim.AdamW(mover.parameters(), lr=RATE, betas=MOMENTA, weight_decay=0)
    judging = torch.optim.AdamW(judge.parameters(), lr=RATE, betas=MOMENTA, weight_decay=DECAY)
    points, codes = torch.from_numpy(z), torch.from_numpy(sites)
    member = nn.functional.one_hot(codes, n_sites).float()
    chances = 1 / torch.bincount(codes, minlength=n_sites)[codes].float()
    present = torch.unique(codes)

    def seen(moved: Tensor) -> Tensor:
        found: Tensor = judge(moved + noise * torch.randn_like(moved))
        return found

    for step in range(2 * n_steps):
        at = torch.multinomial(chances, BATCH, replacement=True)
        move = mover(points[at], member[at])
        if step % 2 == 0:
            error = nn.functional.cross_entropy(seen(points[at] + move.detach()), codes[at])
            _take(judging, error)
            continue
        unsure = -nn.functional.log_softmax(seen(points[at] + move), dim=1)[:, present].mean()
        _take(moving, unsure + keep * move.square().mean())
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), mover.parameters(), strict=True):
                mean.lerp_(weight, 1 - AVERAGING)
    return average


def _take(optimizer: torch.optim.Optimizer, error: Tensor) -> None:
    """Take one step down an error."""
    optimizer.zero_grad()
    cast(Callable[[], None], error.backward)()
    optimizer.step()
