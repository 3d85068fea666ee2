"""Graph convolutions on a connectome: each region takes up what the regions it is connected to most have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bids_dl.layers import Connectome, GraphNetwork, RegionFeatures, n_pooled, normalised

SUITS = ("edge",)
SCHEDULE = {
    "n_epochs": 40,
    "patience": 8,
    "batch_size": 32,
    "learning_rate": 3e-4,
    "weight_decay": 1e-2,
    "n_members": 1,
}


class GCN(GraphNetwork):
    """Layers of ``relu(A h W)``, ``A`` being the participant's own normalised graph; the regions are pooled at the end."""

    def __init__(
        self, connectome: Connectome, n_outputs: int, hidden: Sequence[int], density: float, node_features: str, pooling: str,
        graph_units: int, input_dropout: float, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = list(hidden)
        self.connectome, self.density, self.pooling = connectome, density, pooling
        self.features = RegionFeatures(self.connectome, node_features, density, widths[0])
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.input_dropout, self.dropout = nn.Dropout(input_dropout), nn.Dropout(dropout)
        self.graph = nn.Linear(n_pooled(self.connectome.n, widths[-1], pooling), graph_units)
        self.head = nn.Linear(graph_units, n_outputs)

    def regions(self, x: Tensor) -> Tensor:
        """Represent each region, (participant, region, unit)."""
        adjacency = self.connectome.strongest(x, self.density)  # (participant, region, region)
        graph = normalised(adjacency)
        h: Tensor = self.features(
            self.connectome.profiles(self.input_dropout(x)), adjacency
        )  # the first layer's W; then its A
        h = self.dropout(torch.relu(graph @ h))  # (participant, region, unit)
        for layer in self.layers:
            h = self.dropout(torch.relu(graph @ layer(h)))  # (participant, region, unit)
        return h


def build(
    shapes: Sequence[tuple[int, ...]], n_outputs: int, directed: bool = False, *,
    hidden: Sequence[int] = (32, 8), density: float = 0.1,
    node_features: str = "profile", pooling: str = "concat", graph_units: int = 32,
    input_dropout: float = 0.0, dropout: float = 0.3,
) -> GCN:  # fmt: skip
    """Build a graph convolutional network [1]_ with one graph a participant, as compared for connectomes in [2]_.

    Parameters
    ----------
    shapes
        One connectome's edges, undirected or directed; a region takes up from those in its row.
    n_outputs
        One logit for two classes or a quantity, else one a class.
    directed
        Whether there is an edge in each direction; else one a pair.
    hidden
        Units a region has after each layer.
    density
        Share of the edges that make the graph: each participant's strongest positive ones.
    node_features
        What a region starts with: ``profile``, its deviations from the training mean; ``identity``, which one it is;
        or ``degree``, five numbers on its strength and its neighbours'. Only the last knows no region's name, so that
        with mean or max pooling the order of the regions does not matter.
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
        If the density is no share, or the features or the pooling are not among those named.

    References
    ----------
    .. [1] Kipf and Welling (2017), ICLR. arXiv:1609.02907
    .. [2] Cui et al. (2022), IEEE Transactions on Medical Imaging 42(2). doi:10.1109/TMI.2022.3218745
    """
    connectome = Connectome(shapes[0][0], directed=directed)
    return GCN(connectome, n_outputs, hidden, density, node_features, pooling, graph_units, input_dropout, dropout)
