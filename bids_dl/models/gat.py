"""Graph attention on a connectome: each region learns which of its connected regions to listen to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bids_dl.errors import UsageError
from bids_dl.layers import Connectome, GraphNetwork, RegionFeatures, n_pooled

SUITS = ("edge",)
SCHEDULE = {
    "n_epochs": 40,
    "patience": 8,
    "batch_size": 16,
    "learning_rate": 3e-4,
    "weight_decay": 1e-2,
    "n_members": 3,
}
SLOPE = 0.2
"""Of the leaky ReLU on the scores, as in the paper."""


class GraphAttention(nn.Module):
    """One layer: a softmax over a region's neighbours of ``leaky_relu(own . h_i + other . h_j)``, a share for each j.

    Takes what is already multiplied by the layer's W; several heads divide the units between them.
    """

    def __init__(self, n_units: int, n_heads: int) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.randn(n_heads, n_units // n_heads) * (n_heads / n_units) ** 0.5)
        self.other = nn.Parameter(torch.randn(n_heads, n_units // n_heads) * (n_heads / n_units) ** 0.5)

    def scores(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each region adds to a score as listener and as neighbour, (participant, head, region) both."""
        parts = h.reshape(*h.shape[:2], *self.own.shape)  # (participant, region, head, unit)
        listener = torch.einsum("prhu,hu->phr", parts, self.own)
        return listener, torch.einsum("prhu,hu->phr", parts, self.other)

    def weights(self, h: Tensor, graph: Tensor) -> Tensor:
        """Return each region's shares of its neighbours, (participant, head, region, neighbour)."""
        listener, neighbour = self.scores(h)
        scores = nn.functional.leaky_relu(listener.unsqueeze(3) + neighbour.unsqueeze(2), SLOPE)
        return torch.softmax(scores.masked_fill(~graph.unsqueeze(1), -torch.inf), dim=3)

    def forward(self, h: Tensor, graph: Tensor) -> Tensor:
        """Return (participant, region, unit); ``graph`` is True for a neighbour; each region must have one."""
        parts = h.reshape(*h.shape[:2], *self.own.shape).transpose(1, 2)  # (participant, head, region, unit)
        found: Tensor = (self.weights(h, graph) @ parts).transpose(1, 2).flatten(2)
        return found


class GAT(GraphNetwork):
    """Layers of attention over each participant's own graph; the regions are pooled at the end."""

    def __init__(
        self, connectome: Connectome, n_outputs: int, hidden: Sequence[int], n_heads: int, density: float, node_features: str,
        pooling: str, graph_units: int, input_dropout: float, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = list(hidden)
        self.connectome, self.density, self.pooling = connectome, density, pooling
        self.features = RegionFeatures(self.connectome, node_features, density, widths[0])
        self.attend = nn.ModuleList(GraphAttention(width, n_heads) for width in widths)
        self.between = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.input_dropout, self.dropout = nn.Dropout(input_dropout), nn.Dropout(dropout)
        self.graph = nn.Linear(n_pooled(self.connectome.n, widths[-1], pooling), graph_units)
        self.head = nn.Linear(graph_units, n_outputs)

    def regions(self, x: Tensor) -> Tensor:
        """Represent each region, (participant, region, unit)."""
        adjacency = self.connectome.strongest(x, self.density)  # (participant, region, region)
        loops = torch.eye(self.connectome.n, dtype=torch.bool, device=x.device)
        graph = (adjacency > 0) | loops
        h: Tensor = self.features(self.connectome.profiles(self.input_dropout(x)), adjacency)
        h = self.dropout(nn.functional.elu(self.attend[0](h, graph)))  # (participant, region, unit)
        for layer, attend in zip(self.between, self.attend[1:], strict=True):
            h = self.dropout(nn.functional.elu(attend(layer(h), graph)))  # (participant, region, unit)
        return h


def build(
    shapes: Sequence[tuple[int, ...]], n_outputs: int, directed: bool = False, *,
    hidden: Sequence[int] = (16,), n_heads: int = 2,
    density: float = 0.1, node_features: str = "profile", pooling: str = "concat", graph_units: int = 32,
    input_dropout: float = 0.0, dropout: float = 0.3,
) -> GAT:  # fmt: skip
    """Build a graph attention network [1]_ with one graph a participant, as compared for connectomes in [2]_.

    Parameters
    ----------
    shapes
        One connectome's edges, undirected or directed; a region listens to those in its row and to itself.
    n_outputs
        One logit for two classes or a quantity, else one a class.
    directed
        Whether there is an edge in each direction; else one a pair.
    hidden
        Units a region has after each layer, all heads together.
    n_heads
        Ways to listen; must divide each layer's units.
    density
        Share of the edges that make the graph: each participant's strongest positive ones.
    node_features
        What a region starts with: ``profile``, its deviations from the training mean; ``identity``, which one it is;
        or ``degree``, five numbers on its strength and its neighbours', which know no region's name.
    pooling
        How regions become one vector: ``mean``, ``max``, or ``concat``, side by side.
    graph_units
        Units of the layer over the pooled regions.
    input_dropout
        Part of the edges that is left out at each step of the training.
    dropout
        Part of the units that is left out at each step of the training.

    Raises
    ------
    UsageError
        If the heads do not divide the units, the density is no share, or the features or the pooling are not among
        those named.

    References
    ----------
    .. [1] Veličković et al. (2018), ICLR. arXiv:1710.10903
    .. [2] Cui et al. (2022), IEEE Transactions on Medical Imaging 42(2). doi:10.1109/TMI.2022.3218745
    """
    uneven = [width for width in hidden if width % n_heads]
    if uneven:
        raise UsageError(f"gat: {n_heads} heads do not divide {uneven[0]} units; choose n_heads or hidden to fit.")
    connectome = Connectome(shapes[0][0], directed=directed)
    return GAT(
        connectome, n_outputs, hidden, n_heads, density, node_features, pooling, graph_units, input_dropout, dropout
    )
