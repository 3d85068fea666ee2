"""BrainNetCNN: filters the shape of a cross over a connectome's matrix, then over its regions, then over all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bids_dl.layers import Connectome, Network

SUITS = ("edge",)
SCHEDULE = {
    "n_epochs": 60,
    "patience": 10,
    "batch_size": 16,
    "learning_rate": 3e-4,
    "weight_decay": 1e-2,
    "n_members": 3,
}
SLOPE = 0.33
"""Of the leaky ReLUs, as in the paper."""


def activated(h: Tensor) -> Tensor:
    """Apply the paper's very leaky ReLU."""
    return nn.functional.leaky_relu(h, SLOPE)


def weighed(near: Tensor, far: Tensor, weight: Tensor) -> Tensor:
    """Sum the edges of each region i over the other regions k: those of a filter c are the activated near_i + far_k.

    No edge is laid out. Where near_i + far_k > 0 a leaky ReLU is the sum itself, else ``SLOPE`` times it. So the regions k are
    sorted by far_k; which of them lie above zero for a region i are the first so many, and prefix sums of their weights and of
    weights times far_k tell what they add up to. Work and memory grow with the regions, not with their square.

    Parameters
    ----------
    near, far
        (participant, filter, region), what a region adds to its edges, and what it adds to those of the others.
    weight
        (new filter, filter, region k).

    Returns
    -------
    Tensor
        (participant, new filter, region i).
    """
    near, far = near.float(), far.float()
    n_rows, n_in, n = near.shape
    n_out = weight.shape[0]
    by_region = weight.permute(1, 2, 0)  # (filter, region, new filter)
    falling, order = torch.sort(far, dim=2, descending=True)
    n_above = torch.searchsorted((-falling.detach()).contiguous(), near.detach().contiguous())  # by participant, filter
    filters = torch.arange(n_in, device=near.device)[:, None]
    sorted_weight = (
        by_region.flatten(0, 1).index_select(0, (order + filters * n).flatten()).view(n_rows, n_in, n, n_out)
    )
    both = torch.cat([sorted_weight, sorted_weight * falling[..., None]], dim=3).cumsum(dim=2)
    both = nn.functional.pad(both, (0, 0, 1, 0)).flatten(0, 2)  # nothing is above zero: the sum is 0
    columns = torch.arange(n_rows * n_in, device=near.device).view(n_rows, n_in, 1)
    found = both.index_select(0, (n_above + columns * (n + 1)).flatten()).view(n_rows, n_in, n, 2 * n_out)
    above = (near[..., None] * found[..., :n_out] + found[..., n_out:]).sum(dim=1)  # (participant, region, new filter)
    whole = torch.einsum("pci,co->pio", near, by_region.sum(dim=1))
    whole = whole + torch.einsum("pck,cko->po", far, by_region)[:, None]
    out: Tensor = (SLOPE * whole + (1 - SLOPE) * above).transpose(1, 2)  # (participant, new filter, region)
    return out


def drawn(n_out: int, n_in: int, n_regions: int, n_summed: int) -> nn.Parameter:
    """Draw weights (new filter, filter, region) that keep the variance of what ``n_summed`` of them are multiplied with."""
    return nn.Parameter(torch.randn(n_out, n_in, n_regions) * (1 / n_summed) ** 0.5)


class EdgeToEdge(nn.Module):
    """Give each edge (i, j) the weighted sum of all edges of its row i and of its column j.

    The row's sum is the same for all j and the column's for all i: both are returned by themselves, (participant, filter,
    region), and edge (i, j) is their sum. Takes the matrix (participant, region, region), or what a layer before returned.
    """

    def __init__(self, n_regions: int, n_in: int, n_out: int) -> None:
        super().__init__()
        self.row = drawn(n_out, n_in, n_regions, 2 * n_in * n_regions)
        self.column = drawn(n_out, n_in, n_regions, 2 * n_in * n_regions)
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, rows: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what the rows and what the columns add to each new edge."""
        if columns is None:  # a matrix, whose edges are as they are
            new = (
                torch.einsum("pik,ok->poi", rows, self.row[:, 0]),
                torch.einsum("pki,ok->poi", rows, self.column[:, 0]),
            )
        else:
            new = weighed(rows, columns, self.row), weighed(columns, rows, self.column)
        return new[0] + self.bias[:, None], new[1]


class EdgeToNode(nn.Module):
    """Give each region the weighted sum of its row and, where directed, of its column, (participant, filter, region)."""

    def __init__(self, n_regions: int, n_in: int, n_out: int, *, directed: bool) -> None:
        super().__init__()
        self.row = drawn(n_out, n_in, n_regions, n_in * n_regions)
        self.column = nn.Parameter(torch.zeros(n_out, n_in, n_regions)) if directed else None
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return (participant, filter, region)."""
        found = weighed(rows, columns, self.row) + self.bias[:, None]
        return found if self.column is None else found + weighed(columns, rows, self.column)


class BrainNetCNN(Network):
    """Edge-to-edge layers, edge-to-node, node-to-graph."""

    def __init__(
        self, connectome: Connectome, n_outputs: int, edge_filters: Sequence[int], node_filters: int, graph_filters: int,
        input_dropout: float, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.connectome = connectome
        n, widths = self.connectome.n, [1, *edge_filters]
        self.edges = nn.ModuleList(EdgeToEdge(n, a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.nodes = EdgeToNode(n, widths[-1], node_filters, directed=self.connectome.directed)
        self.graph = nn.Linear(node_filters * n, graph_filters)
        self.input_dropout, self.dropout = nn.Dropout(input_dropout), nn.Dropout(dropout)
        self.head = nn.Linear(graph_filters, n_outputs)

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant by the node-to-graph layer."""
        first, *others = self.edges
        rows, columns = first(self.connectome(self.input_dropout(x)))  # (participant, filter, region) each
        for layer in others:
            rows, columns = layer(rows, columns)
        h = self.dropout(activated(self.nodes(rows, columns)).flatten(1))  # (participant, filter and region)
        out: Tensor = self.dropout(activated(self.graph(h)))  # (participant, unit)
        return out


def build(
    shapes: Sequence[tuple[int, ...]], n_outputs: int, directed: bool = False, *,
    edge_filters: Sequence[int] = (16,), node_filters: int = 16,
    graph_filters: int = 64, input_dropout: float = 0.8, dropout: float = 0.5,
) -> BrainNetCNN:  # fmt: skip
    """Build a convolutional network for brain networks [1]_.

    Parameters
    ----------
    shapes
        One connectome's edges, undirected or directed.
    n_outputs
        One logit for two classes or a quantity, else one a class.
    directed
        Whether there is an edge in each direction; else one a pair.
    edge_filters
        Filters of each edge-to-edge layer; the paper has 32 in one or two layers.
    node_filters
        Filters of the edge-to-node layer.
    graph_filters
        Units of the node-to-graph layer.
    input_dropout
        Part of the edges that is left out at each step of the training. So few are left because a few hundred participants
        are fitted at once otherwise.
    dropout
        Part of the regions' and of the graph's units that is left out at each step of the training.

    References
    ----------
    .. [1] Kawahara et al. (2017), NeuroImage 146. doi:10.1016/j.neuroimage.2016.09.046
    """
    connectome = Connectome(shapes[0][0], directed=directed)
    return BrainNetCNN(connectome, n_outputs, edge_filters, node_filters, graph_filters, input_dropout, dropout)
