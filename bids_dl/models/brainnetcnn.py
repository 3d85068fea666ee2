"""BrainNetCNN: filters the shape of a cross over a connectome's matrix, then over its regions, then over all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bids_dl.layers import Connectome, Network

SUITS = ("edge",)
SCHEDULE = {
    "n_epochs": 25,
    "patience": 6,
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


class EdgeToEdge(nn.Module):
    """Give each edge (i, j) the weighted sum of all edges of its row i and of its column j.

    As the row's sum is the same for all j and the column's for all i, two matrix products do what the paper's cross-shaped
    convolution does. Takes and returns (participant, channel, region, region).
    """

    def __init__(self, n_regions: int, n_in: int, n_out: int) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.randn(n_out, n_in, n_regions) * (1 / (2 * n_in * n_regions)) ** 0.5)
        self.column = nn.Parameter(torch.randn(n_out, n_in, n_regions) * (1 / (2 * n_in * n_regions)) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, matrix: Tensor) -> Tensor:
        """Return one matrix a filter."""
        rows = torch.einsum("pcik,ock->poi", matrix, self.row)
        columns = torch.einsum("pckj,ock->poj", matrix, self.column)
        return (rows + self.bias[:, None]).unsqueeze(3) + columns.unsqueeze(2)  # (participant, filter, region, region)


class EdgeToNode(nn.Module):
    """Give each region the weighted sum of its row and of its column, (participant, filter, region)."""

    def __init__(self, n_regions: int, n_in: int, n_out: int, *, directed: bool) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.randn(n_out, n_in, n_regions) * (1 / (n_in * n_regions)) ** 0.5)
        self.column = nn.Parameter(torch.zeros(n_out, n_in, n_regions)) if directed else None
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, matrix: Tensor) -> Tensor:
        """Return (participant, filter, region)."""
        found = torch.einsum("pcik,ock->poi", matrix, self.row) + self.bias[:, None]
        return found if self.column is None else found + torch.einsum("pcki,ock->poi", matrix, self.column)


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
        h = self.connectome(self.input_dropout(x)).unsqueeze(1)  # (participant, 1, region, region)
        for layer in self.edges:
            h = activated(layer(h))  # (participant, filter, region, region)
        h = self.dropout(activated(self.nodes(h)).flatten(1))  # (participant, filter and region)
        out: Tensor = self.dropout(activated(self.graph(h)))  # (participant, unit)
        return out


def build(
    shapes: Sequence[tuple[int, ...]], n_outputs: int, directed: bool = False, *,
    edge_filters: Sequence[int] = (4,), node_filters: int = 8,
    graph_filters: int = 32, input_dropout: float = 0.2, dropout: float = 0.5,
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
        Filters of each edge-to-edge layer; the paper has 32 in one or two layers. Their time and memory grow with the
        square of the regions.
    node_filters
        Filters of the edge-to-node layer.
    graph_filters
        Units of the node-to-graph layer.
    input_dropout
        Part of the edges that is left out at each step of the training.
    dropout
        Part of the regions' and of the graph's units that is left out at each step of the training.

    References
    ----------
    .. [1] Kawahara et al. (2017), NeuroImage 146. doi:10.1016/j.neuroimage.2016.09.046
    """
    connectome = Connectome(shapes[0][0], directed=directed)
    return BrainNetCNN(connectome, n_outputs, edge_filters, node_filters, graph_filters, input_dropout, dropout)
