"""Independent sources of regional series, each told from the past of all by a recurrent network; a head reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bids_dl.errors import UsageError
from bids_dl.layers import Network, masked, masked_mean

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
PARTS = "source"
NARROWEST = 0.01
"""Sources have standard deviation 1; no density is narrower than a hundredth of it, so that none can collapse."""

MOST_STEPS = 100
"""Before the labels are looked at, sources are learned from stretches of so many time points."""

CHUNK = 64
"""Participants whose time points are held in memory at once while the covariance is summed."""


def stretches(x: Tensor) -> Tensor:
    """Cut `MOST_STEPS` time points of each series (participant, time, region) at random, none of them from its padding."""
    _, mask = masked(x)
    n_steps = x.shape[1] - mask.flip(1).to(torch.uint8).argmax(dim=1)  # up to the last one that there is
    first = (torch.rand(len(x)) * (n_steps - MOST_STEPS + 1).clamp(min=1)).long()
    at = first[:, None] + torch.arange(min(MOST_STEPS, x.shape[1]))  # (participant, time)
    return x.gather(1, at[..., None].expand(-1, -1, x.shape[2]))


class RNNICA(Network):
    """Whitening, unmixing, and gated recurrent units that give each source's density at a time point from those before.

    ``embed`` has the recurrent states' mean over time and the sources' correlations, arctanh(r), each standardised.
    """

    whitening: Tensor
    begun: Tensor

    def __init__(
        self, n_regions: int, n_outputs: int, *, n_sources: int, hidden: int, infomax: float, n_pretraining: int,
        dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.n = min(n_sources, n_regions)
        self.infomax, self.n_pretraining = infomax, n_pretraining
        self.register_buffer("whitening", nn.init.orthogonal_(torch.empty(self.n, n_regions)))
        self.register_buffer("begun", torch.zeros(()))
        self.rotation = nn.Parameter(nn.init.orthogonal_(torch.empty(self.n, self.n)))
        self.recurrent = nn.GRU(self.n, hidden, batch_first=True)
        self.density = nn.Linear(hidden, 2 * self.n)
        n_values = hidden + self.n * (self.n - 1) // 2
        self.standard = nn.BatchNorm1d(n_values, affine=False)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(n_values, n_outputs)

    def begin(self, rows: Callable[[Any], tuple[Tensor, ...]], n: int) -> None:
        """Whiten by the training rows and unmix them without their labels; what a bundle brought along is kept."""
        if self.begun:
            return
        self.whiten(rows, n)
        generative = [self.rotation, *self.recurrent.parameters(), *self.density.parameters()]
        optimizer = torch.optim.Adam(generative, lr=1e-2)
        for _ in range(self.n_pretraining):
            x = rows(torch.randint(n, (min(n, 32),)).numpy())[0]
            optimizer.zero_grad()
            self.surprise(stretches(x)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self.begun.fill_(1)

    @torch.no_grad()
    def whiten(self, rows: Callable[[Any], tuple[Tensor, ...]], n: int) -> None:
        """Take the main axes of all time points of the training rows, each divided by its standard deviation."""
        squares = torch.zeros(self.whitening.shape[1], self.whitening.shape[1], dtype=torch.float64)
        n_steps = 0
        for at in np.array_split(np.arange(n), -(-n // CHUNK)):
            values, mask = masked(rows(at)[0])
            present = values[mask]  # (time point, region)
            squares += (present.T @ present).double()
            n_steps += len(present)
        variance, axes = torch.linalg.eigh(squares / max(1, n_steps))
        variance, axes = variance.flip(0)[: self.n], axes.flip(1)[:, : self.n]
        alive = variance > variance[0].clamp(min=1e-12) * 1e-6
        scale = torch.where(alive, variance.clamp(min=1e-12).rsqrt(), 0.0)
        self.whitening.copy_((axes * scale).T)

    def unmixing(self) -> Tensor:
        """Return (source, axis) with rows of length 1: over the training rows, each source's standard deviation is 1."""
        return nn.functional.normalize(self.rotation, dim=1)

    def sources(self, x: Tensor) -> Tensor:
        """Return each source's course, (participant, time, source); NaN where there is no step."""
        values, mask = masked(x)
        found = values @ (self.unmixing() @ self.whitening).T  # (participant, time, source)
        return found.masked_fill(~mask[..., None], torch.nan)

    @torch.no_grad()
    def maps(self) -> Tensor:
        """Return how much each source is in each region, (source, region), for one standard deviation of its course.

        ``sources(x) @ maps()`` is the normalised series, as far as the axes hold it. Order and signs are arbitrary.
        """
        found: Tensor = torch.linalg.pinv(self.unmixing() @ self.whitening).T
        return found

    def parts(self) -> Tensor:
        """Return the maps of all participants, as `maps` does."""
        return self.maps()

    @torch.no_grad()
    def describe(self, x: Tensor) -> Mapping[str, tuple[Tensor, tuple[str, ...]]]:
        """Return each participant's courses, and maps of their own: the series regressed on all their courses.

        That is the second step of a dual regression [1]_, for one standard deviation of a course over the training rows.

        References
        ----------
        .. [1] Nickerson et al. (2017), Frontiers in Neuroscience 11. doi:10.3389/fnins.2017.00115
        """
        courses, series = self.sources(x), masked(x)[0]
        design = torch.nan_to_num(courses)
        own = torch.linalg.pinv(design) @ series  # (participant, source, roi)
        return {"courses": (courses, ("time", "source")), "maps": (own, ("source", "roi"))}

    def states(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the steps that there are, brought to the front: sources, mask, and the state before each step.

        Shapes: (participant, step, source), (participant, step), (participant, step, unit).
        """
        values, mask = masked(x)
        order = torch.argsort(~mask, dim=1, stable=True)
        source = values @ (self.unmixing() @ self.whitening).T
        source = source.gather(1, order[..., None].expand(-1, -1, self.n))  # (participant, step, source)
        before = nn.functional.pad(source[:, :-1], (0, 0, 1, 0))  # a step's state has seen what came before, no more
        return source, mask.gather(1, order), self.recurrent(before)[0]

    def surprise(self, x: Tensor) -> Tensor:
        """Return the negative log-likelihood of the whitened series in nats, a time point and source; lower is better."""
        source, mask, h = self.states(x)
        return self._surprise(source, mask, h)

    def _surprise(self, source: Tensor, mask: Tensor, h: Tensor) -> Tensor:
        mean, width = self.density(h).chunk(2, dim=2)  # (participant, step, source) each
        scale = nn.functional.softplus(width) + NARROWEST
        z = (source - mean) / scale
        each = (z + 2 * nn.functional.softplus(-z) + scale.log()).sum(dim=2)  # (participant, step): logistic densities
        mean_surprise = (each * mask).sum() / mask.sum().clamp(min=1)
        found: Tensor = (mean_surprise - torch.linalg.slogdet(self.unmixing())[1]) / self.n
        return found

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant by what the recurrent units did and how the sources went together."""
        return self._embed(*self.states(x))

    def _embed(self, source: Tensor, mask: Tensor, h: Tensor) -> Tensor:
        summary = torch.cat([masked_mean(h, mask), self._correlations(source, mask)], dim=1)
        found: Tensor = self.dropout(self.standard(summary))  # (participant, unit + pair of sources)
        return found

    def _correlations(self, source: Tensor, mask: Tensor) -> Tensor:
        """Correlate every pair of sources over time, arctanh(r), (participant, pair)."""
        centred = (source - masked_mean(source, mask)[:, None]) * mask[..., None]
        standard = nn.functional.normalize(centred, dim=1)
        r = standard.transpose(1, 2) @ standard  # (participant, source, source)
        first, second = torch.triu_indices(self.n, self.n, 1, device=source.device)
        return torch.atanh(r[:, first, second].clamp(-0.999, 0.999))

    def loss(self, inputs: tuple[Tensor, ...], y: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Add the weighted surprise at the series to the loss of the outputs."""
        source, mask, h = self.states(inputs[0])
        output = self.head(self._embed(source, mask, h))
        return criterion(output, y) + self.infomax * self._surprise(source, mask, h)


def build(
    shapes: Sequence[tuple[int, ...]],
    n_outputs: int,
    *,
    n_sources: int = 20,
    hidden: int = 32,
    infomax: float = 1.0,
    n_pretraining: int = 300,
    dropout: float = 0.5,
) -> RNNICA:
    """Build an RNN-ICA, sources that are independent given the past [1]_, with a head that predicts from them.

    The series are whitened on their main axes, learned from the training rows, and unmixed linearly. A source's density
    at a time point is logistic; recurrent units tell its mean and scale from the past of all sources. Unmixing and
    units maximise the log-likelihood, log abs det of the unmixing included, which is infomax [2]_ where nothing can be
    told from the past. In difference to the paper, the sources are those of regions, not of voxels; the unmixing's rows
    have length 1; and the labels have a say, with the states' mean and the sources' correlations as what is predicted
    from. ``sources`` and ``maps`` return the networks' courses and where they lie.

    Parameters
    ----------
    shapes
        One sequence (time, roi); of any length, padded with NaN.
    n_outputs
        One logit for two classes or a quantity, else one a class.
    n_sources
        Sources; at most as many as regions.
    hidden
        Gated recurrent units.
    infomax
        Weight of the negative log-likelihood, a time point and source, against the loss of the outputs.
    n_pretraining
        Steps on the likelihood alone, before the labels are looked at.
    dropout
        Part of the representation that is left out at each step of the training.

    Raises
    ------
    UsageError
        If fewer than two sources are asked for.

    References
    ----------
    .. [1] Hjelm et al. (2018), Frontiers in Neuroscience 12, 600. doi:10.3389/fnins.2018.00600
    .. [2] Bell and Sejnowski (1995), Neural Computation 7(6). doi:10.1162/neco.1995.7.6.1129
    """
    if min(n_sources, shapes[0][-1]) < 2:
        raise UsageError(
            f"rnn_ica unmixes at least two sources; n_sources is {n_sources} and there are {shapes[0][-1]} regions."
        )
    return RNNICA(
        shapes[0][-1], n_outputs, n_sources=n_sources, hidden=hidden, infomax=infomax, n_pretraining=n_pretraining,
        dropout=dropout,
    )  # fmt: skip
