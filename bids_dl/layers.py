"""Layers that several models share: masked sequences, connectomes as matrices and graphs, weights whose number data decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bids_dl.errors import UsageError


class Network(nn.Module):
    """What every model of one input is: it represents participants, and a linear head reads the representation."""

    head: nn.Linear

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant, (participant, unit)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return (participant, output)."""
        out: Tensor = self.head(self.embed(x))  # (participant, output)
        return out


class Fixed(nn.Module):
    """What a module makes of participants by weights that do not change while it trains: it is made once, and then given."""

    are_given = False

    def of(self, rows: Callable[[Any], tuple[Tensor, ...]], parts: Iterable[Any]) -> Tensor:
        """Return what is made of all rows that ``rows`` returns, reading one part after the other."""
        with torch.no_grad():
            return torch.cat([self(*rows(at)) for at in parts])

    @contextmanager
    def given(self) -> Iterator[None]:
        """Take what comes in for what was made of participants before."""
        self.are_given = True
        try:
            yield
        finally:
            self.are_given = False


def masked(x: Tensor) -> tuple[Tensor, Tensor]:
    """Tell the steps of sequences from padding.

    Parameters
    ----------
    x
        (participant, step, value); a step of NaN only is none.

    Returns
    -------
    values, mask
        The values with 0 for what is missing, and (participant, step): True where there is a step.
    """
    if torch.isfinite(x.sum()):  # far cheaper than to look for a NaN at every step
        return x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    mask = ~torch.isnan(x).all(dim=2)
    return torch.nan_to_num(x), mask


def masked_mean(h: Tensor, mask: Tensor) -> Tensor:
    """Average (participant, step, unit) over the steps that there are, to (participant, unit); 0 where there is none."""
    weight = mask.to(h.dtype).unsqueeze(2)
    return (h * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


class AttentionPool(nn.Module):
    """Weigh the steps by a learned score and average them [1]_; ``weights`` is (participant, step).

    References
    ----------
    .. [1] Bahdanau, Cho and Bengio (2015), ICLR. arXiv:1409.0473
    """

    def __init__(self, n_units: int, n_scores: int = 32) -> None:
        super().__init__()
        self.project = nn.Linear(n_units, n_scores)
        self.score = nn.Linear(n_scores, 1, bias=False)

    def weights(self, h: Tensor, mask: Tensor) -> Tensor:
        """Share 1 out over the steps that there are."""
        scores = self.score(torch.tanh(self.project(h)))[..., 0]  # (participant, step)
        scores = scores.masked_fill(~mask, -1e9)  # finite: a participant without steps stays a number
        return torch.softmax(scores, dim=1) * mask

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """Return (participant, unit)."""
        return torch.einsum("ps,psu->pu", self.weights(h, mask), h)  # (participant, unit)


def positions(n_steps: int, n_units: int) -> Tensor:
    """Encode positions by sines and cosines of falling frequency [1]_, (step, unit).

    References
    ----------
    .. [1] Vaswani et al. (2017), NeurIPS. arXiv:1706.03762
    """
    step = torch.arange(n_steps, dtype=torch.float32)[:, None]
    pace = torch.exp(torch.arange(0, n_units, 2, dtype=torch.float32) * (-math.log(10_000.0) / n_units))
    encoded = torch.zeros(n_steps, n_units)
    encoded[:, 0::2] = torch.sin(step * pace)
    encoded[:, 1::2] = torch.cos(step * pace)[:, : n_units // 2]
    return encoded


class Steps(nn.Sequential):
    """Bring the values of every step to a few units: (participant, step, value) to (participant, step, unit)."""

    def __init__(self, n_values: int, n_units: int, dropout: float) -> None:
        super().__init__(nn.Linear(n_values, n_units), nn.LayerNorm(n_units), nn.ReLU(), nn.Dropout(dropout))


class Recurrent(nn.Module):
    """Run LSTM or GRU layers over the steps that there are, forwards and, where asked, backwards.

    Steps that are missing are skipped, at the end or within, so that no hidden state has seen padding. Two plain passes,
    the second over steps turned round, are ten times as fast on a CPU as one bidirectional pass over packed sequences.
    """

    def __init__(
        self, cell: type[nn.LSTM] | type[nn.GRU], n_values: int, n_units: int, *, n_layers: int = 1,
        both_ways: bool = False, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        ways = 2 if both_ways else 1
        widths = [n_values] + [ways * n_units] * (n_layers - 1)
        self.forwards = nn.ModuleList(cell(width, n_units, batch_first=True) for width in widths)
        self.backwards = nn.ModuleList(cell(width, n_units, batch_first=True) for width in widths if both_ways)
        self.dropout = nn.Dropout(dropout)
        self.n_units = ways * n_units

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Return the hidden state at every step, (participant, step, unit); at a missing one it means nothing."""
        to_front = torch.argsort(~mask, dim=1, stable=True)
        back = torch.argsort(to_front, dim=1)
        turned = _turned(mask.sum(dim=1), mask.shape[1])
        h = _taken(values, to_front)
        for number, forwards in enumerate(self.forwards):
            h = self.dropout(h) if number else h
            states = [forwards(h)[0]]
            if self.backwards:
                states.append(_taken(self.backwards[number](_taken(h, turned))[0], turned))
            h = torch.cat(states, dim=2)  # (participant, step, unit)
        return _taken(h, back)


def _turned(n_steps: Tensor, n_all: int) -> Tensor:
    """Index the steps from the last to the first, (participant, step); padding behind them keeps its place."""
    step = torch.arange(n_all, device=n_steps.device)[None]
    n = n_steps[:, None]
    return torch.where(step < n, n - 1 - step, step)


def _taken(x: Tensor, order: Tensor) -> Tensor:
    """Put the steps of (participant, step, unit) into each participant's own order."""
    return torch.gather(x, 1, order[..., None].expand(-1, -1, x.shape[2]))


class RecurrentNetwork(Network):
    """Steps brought to a few units, recurrent layers, their states averaged over time, plainly or by attention."""

    def __init__(
        self, cell: type[nn.LSTM] | type[nn.GRU], n_values: int, n_outputs: int, *, width: int, hidden: int,
        n_layers: int, both_ways: bool, attention: bool, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.project = Steps(n_values, width, dropout)
        self.recurrent = Recurrent(cell, width, hidden, n_layers=n_layers, both_ways=both_ways, dropout=dropout)
        self.pool = AttentionPool(self.recurrent.n_units) if attention else None
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.recurrent.n_units, n_outputs)

    def states(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hidden state at every step, (participant, step, unit), and which steps there are."""
        values, mask = masked(x)
        return self.recurrent(self.project(values), mask), mask

    def weights(self, x: Tensor) -> Tensor:
        """Return each step's share in a participant's representation, (participant, step); they sum to 1."""
        h, mask = self.states(x)
        if self.pool is not None:
            return self.pool.weights(h, mask)
        return mask / mask.sum(dim=1, keepdim=True).clamp(min=1)

    def attention(self, x: Tensor) -> Tensor:
        """Say how much each step counts, (participant, step, 1), summing to 1; padding counts nothing."""
        return self.weights(x)[..., None]

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant by the weighted mean of the hidden states over time."""
        h, mask = self.states(x)
        pooled: Tensor = masked_mean(h, mask) if self.pool is None else self.pool(h, mask)
        found: Tensor = self.dropout(pooled)  # (participant, unit)
        return found


def n_regions(n_edges: int, *, directed: bool = False) -> int:
    """Find how many regions a connectome has from its number of edges: n (n - 1) / 2, of a directed one n (n - 1)."""
    n_ways = n_edges if directed else 2 * n_edges
    n = (1 + math.isqrt(1 + 4 * n_ways)) // 2
    if n * (n - 1) != n_ways:
        raise ValueError(f"{n_edges} values are no {'directed' if directed else 'undirected'} connectome's edges.")
    return n


class Connectome(nn.Module):
    """Lay a connectome's edges out as matrices, both as the model sees them and as they were measured.

    ``learn`` keeps what the training rows taught the normalisation, so that ``measured`` can undo it.
    """

    mean: Tensor
    scale: Tensor
    places: Tensor

    def __init__(self, n_edges: int, *, directed: bool = False) -> None:
        super().__init__()
        self.n, self.directed = n_regions(n_edges, directed=directed), directed
        places = torch.full(
            (self.n, self.n), n_edges, device="cpu"
        )  # which edge lies in each cell; none on the diagonal
        if self.directed:
            row, column = torch.nonzero(~torch.eye(self.n, dtype=torch.bool, device="cpu"), as_tuple=True)
        else:
            row, column = torch.triu_indices(self.n, self.n, 1, device="cpu")
        places[row, column] = torch.arange(n_edges, device="cpu")
        if not self.directed:
            places = torch.minimum(places, places.T)
        self.register_buffer("places", places.flatten(), persistent=False)
        self.register_buffer("mean", torch.zeros(n_edges))
        self.register_buffer("scale", torch.ones(n_edges))

    def learn(self, normalization: Any) -> None:
        """Take over the mean and the scale of the edges; an edge that never varied has its mean."""
        scale = torch.as_tensor(normalization.scale)
        self.mean = torch.as_tensor(normalization.mean).clone()
        self.scale = torch.where(torch.isfinite(scale), scale, torch.zeros_like(scale))

    def forward(self, edges: Tensor) -> Tensor:
        """Return (participant, region, region): deviations from the training mean, diagonal 0."""
        padded = nn.functional.pad(torch.nan_to_num(edges), (0, 1))
        matrix: Tensor = padded.index_select(1, self.places).reshape(len(edges), self.n, self.n)
        return matrix  # (participant, region, region)

    def measured(self, edges: Tensor) -> Tensor:
        """Return (participant, region, region) in the feature's own unit, diagonal 0."""
        return self(torch.nan_to_num(edges) * self.scale + self.mean)  # type: ignore[no-any-return]

    @property
    def n_profile(self) -> int:
        """How many values tell how a region is connected: one a region, of a directed connectome one a direction."""
        return 2 * self.n if self.directed else self.n

    def profiles(self, edges: Tensor) -> Tensor:
        """Return each region's row of deviations, (participant, region, value); where directed, its column after it."""
        matrix = self(edges)
        return torch.cat([matrix, matrix.transpose(1, 2)], dim=2) if self.directed else matrix

    def strongest(self, edges: Tensor, density: float) -> Tensor:
        """Keep each participant's strongest positive edges as measured, in units of their mean, and 0 for the others.

        Returns (participant, region, region). As one is a mean edge, self-loops of 1 fit correlations and streamlines
        alike. Edges that equal the weakest one kept are kept too.
        """
        measured = torch.nan_to_num(edges) * self.scale + self.mean
        weakest = measured.topk(max(1, round(density * edges.shape[1])), dim=1, sorted=False).values.amin(1, True)
        kept = torch.where((measured >= weakest) & (measured > 0), measured, 0.0)
        mean = kept.sum(dim=1, keepdim=True) / (kept > 0).sum(dim=1, keepdim=True).clamp(min=1)
        return self(kept / torch.where(mean > 0, mean, 1.0))  # type: ignore[no-any-return]


def normalised(adjacency: Tensor) -> Tensor:
    """Add self-loops of 1 and divide each edge by the roots of its two regions' strengths [1]_.

    Takes and returns (participant, region, region). Where directed, the strengths are those of the row and of the
    column, so that a symmetric connectome gets the paper's formula.

    References
    ----------
    .. [1] Kipf and Welling (2017), ICLR. arXiv:1609.02907
    """
    looped = adjacency + torch.eye(adjacency.shape[1], dtype=adjacency.dtype, device=adjacency.device)
    return looped * looped.sum(dim=2).rsqrt().unsqueeze(2) * looped.sum(dim=1).rsqrt().unsqueeze(1)


def degree_profile(adjacency: Tensor, density: float) -> Tensor:
    """Describe each region by its strength and its neighbours' least, greatest, mean strength and their deviation [1]_.

    Returns (participant, region, 5), each in units of the strength expected of that density, less 1, the deviation
    without; a region without neighbours is taken as its own. Says nothing of which region it is.

    References
    ----------
    .. [1] Cai and Wang (2018), ICLR workshop. arXiv:1811.03508
    """
    strength = adjacency.sum(dim=2) / (density * (adjacency.shape[1] - 1)) - 1  # (participant, region)
    alone = (adjacency > 0).sum(dim=2, keepdim=True) == 0
    near = (adjacency > 0) | (alone & torch.eye(adjacency.shape[1], dtype=torch.bool, device=adjacency.device))
    theirs = strength.unsqueeze(1).expand_as(adjacency)  # (participant, region, neighbour)
    least = theirs.masked_fill(~near, torch.inf).amin(dim=2)
    greatest = theirs.masked_fill(~near, -torch.inf).amax(dim=2)
    share = near / near.sum(dim=2, keepdim=True)
    mean = torch.einsum("prn,pn->pr", share, strength)
    spread = (torch.einsum("prn,pn->pr", share, strength**2) - mean**2).clamp(min=0)
    return torch.stack([strength, least, greatest, mean, (spread + 1e-12).sqrt()], dim=2)


FEATURES, POOLS = ("profile", "identity", "degree"), ("mean", "max", "concat")


class RegionFeatures(nn.Module):
    """What a graph model knows of each region at first, projected: its profile, which one it is, or its degrees."""

    def __init__(self, connectome: Connectome, kind: str, density: float, n_units: int) -> None:
        super().__init__()
        if kind not in FEATURES:
            raise UsageError(f"node_features is '{kind}'; choose from: {', '.join(FEATURES)}.")
        if not 0 < density <= 1:
            raise UsageError(f"density is {density}; give the share of edges to keep, above 0 and at most 1.")
        self.kind, self.density = kind, density
        n_values = {"profile": connectome.n_profile, "identity": connectome.n, "degree": 5}[kind]
        self.project = nn.Linear(n_values, n_units, bias=kind != "identity")

    def forward(self, profiles: Tensor, adjacency: Tensor) -> Tensor:
        """Return (participant, region, unit)."""
        if self.kind == "identity":
            return self.project.weight.T.expand(len(adjacency), -1, -1)  # a one-hot region picks its own column
        known = profiles if self.kind == "profile" else degree_profile(adjacency, self.density)
        found: Tensor = self.project(known)
        return found


def n_pooled(n_regions: int, n_units: int, pooling: str) -> int:
    """Count the values that `pooled` returns; refuse a pooling that there is not."""
    if pooling not in POOLS:
        raise UsageError(f"pooling is '{pooling}'; choose from: {', '.join(POOLS)}.")
    return n_regions * n_units if pooling == "concat" else n_units


def pooled(h: Tensor, pooling: str) -> Tensor:
    """Turn (participant, region, unit) into one vector: the mean or maximum over regions, or all side by side."""
    if pooling == "concat":
        return h.flatten(1)
    return h.mean(dim=1) if pooling == "mean" else h.amax(dim=1)


class GraphNetwork(Network):
    """A model that represents the regions of a connectome, pools them, and puts one hidden layer over all."""

    connectome: Connectome
    graph: nn.Linear
    dropout: nn.Dropout
    pooling: str

    def adopt(self, normalization: Any) -> None:
        """Learn what undoes the normalisation: the graph is that of the edges as measured."""
        self.connectome.learn(normalization)

    def regions(self, x: Tensor) -> Tensor:
        """Represent each region, (participant, region, unit)."""
        raise NotImplementedError

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant by one hidden layer over its pooled regions."""
        out: Tensor = self.dropout(torch.relu(self.graph(pooled(self.regions(x), self.pooling))))  # (participant, unit)
        return out


class Grown(nn.Module):
    """A module whose buffers take the size that the data gave them, also when they are loaded."""

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **options: Any) -> None:
        for name in self._buffers:
            if prefix + name in state_dict:
                self._buffers[name] = torch.empty_like(state_dict[prefix + name])
        super()._load_from_state_dict(state_dict, prefix, *args, **options)


class Solved(Network, Grown):
    """A module that solves for what it learns: ``embed`` has the outputs already, and ``head`` passes them on."""

    def __init__(self, n_outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(n_outputs, n_outputs).requires_grad_(False)
        nn.init.eye_(self.head.weight)
        nn.init.zeros_(self.head.bias)
