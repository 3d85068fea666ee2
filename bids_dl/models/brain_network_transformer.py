"""Transformer over connection profiles, whose regions are read out in learned clusters that start orthonormal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bids_dl.errors import UsageError
from bids_dl.layers import Connectome, Network

SUITS = ("edge",)
SCHEDULE = {
    "n_epochs": 100,
    "patience": 10,
    "batch_size": 16,
    "learning_rate": 1e-4,
    "weight_decay": 1e-2,
    "n_members": 3,
}


class Layer(nn.Module):
    """Self-attention among the regions and a feed-forward part, each added to what comes in and normalised."""

    def __init__(self, n_units: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.mix, self.out = nn.Linear(n_units, 3 * n_units), nn.Linear(n_units, n_units)
        self.feed = nn.Sequential(nn.Linear(n_units, 2 * n_units), nn.ReLU(), nn.Linear(2 * n_units, n_units))
        self.norms = nn.ModuleList([nn.LayerNorm(n_units), nn.LayerNorm(n_units)])
        self.dropout = nn.Dropout(dropout)

    def attend(self, h: Tensor) -> Tensor:
        """Let each region take up from all regions, by the likeness of its query to their keys."""
        parts = self.mix(h).unflatten(2, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*parts)  # (participant, head, region, unit)
        found: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return found

    def forward(self, h: Tensor) -> Tensor:
        """Return (participant, region, unit)."""
        h = self.norms[0](h + self.dropout(self.attend(h)))  # (participant, region, unit)
        out: Tensor = self.norms[1](h + self.dropout(self.feed(h)))  # (participant, region, unit)
        return out


class ClusterReadout(nn.Module):
    """Share each region out among clusters, by a softmax over its products with their centres, and sum them up."""

    def __init__(self, n_clusters: int, n_units: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.empty(n_clusters, n_units))
        nn.init.orthogonal_(self.centres)

    def shares(self, h: Tensor) -> Tensor:
        """Return (participant, region, cluster); each region's sum to 1."""
        return torch.softmax(h @ self.centres.T, dim=2)

    def forward(self, h: Tensor) -> Tensor:
        """Return (participant, cluster, unit)."""
        return self.shares(h).transpose(1, 2) @ h


class Coded(nn.Module):
    """Code all regions together by a few numbers, and describe each region by these."""

    def __init__(self, n_values: int, n_codes: int) -> None:
        super().__init__()
        self.narrow = nn.Sequential(
            nn.Linear(n_values, n_codes), nn.LeakyReLU(), nn.Linear(n_codes, n_codes), nn.LeakyReLU()
        )
        self.widen = nn.Linear(n_codes, n_values)

    def forward(self, h: Tensor) -> Tensor:
        """Return (participant, region, unit), as the numbers tell it."""
        found: Tensor = self.widen(self.narrow(h.flatten(1))).unflatten(1, h.shape[1:])
        return found


class BrainNetworkTransformer(Network):
    """Profiles, projected; layers of attention; the clusters' sums, put side by side, through one hidden layer."""

    def __init__(
        self, connectome: Connectome, n_outputs: int, n_units: int, n_layers: int, n_heads: int, n_clusters: int,
        n_codes: int, input_dropout: float, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.connectome = connectome
        self.project = nn.Linear(self.connectome.n_profile, n_units)
        self.layers = nn.Sequential(*(Layer(n_units, n_heads, dropout) for _ in range(n_layers)))
        self.code = Coded(self.connectome.n * n_units, n_codes) if n_codes else nn.Identity()
        self.readout = ClusterReadout(n_clusters, n_units)
        self.norm = nn.LayerNorm(n_units)
        self.graph = nn.Linear(n_clusters * n_units, n_units)
        self.input_dropout, self.dropout = nn.Dropout(input_dropout), nn.Dropout(dropout)
        self.head = nn.Linear(n_units, n_outputs)

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant by the hidden layer over its clusters."""
        h = self.layers(self.project(self.connectome.profiles(self.input_dropout(x))))  # (participant, region, unit)
        sums = self.readout(self.code(h))  # (participant, cluster, unit)
        h = self.norm(sums).flatten(1)  # the sums grow with the regions: they are brought to one scale
        out: Tensor = self.dropout(nn.functional.leaky_relu(self.graph(self.dropout(h))))  # (participant, unit)
        return out


def build(
    shapes: Sequence[tuple[int, ...]], n_outputs: int, directed: bool = False, *,
    n_units: int = 64, n_layers: int = 1, n_heads: int = 4,
    n_clusters: int = 10, n_codes: int = 32, input_dropout: float = 0.0, dropout: float = 0.3,
) -> BrainNetworkTransformer:  # fmt: skip
    """Build a Brain Network Transformer [1]_.

    Before the readout, a few numbers code all regions together, as in the authors' program [2]_: without, the network told
    the diagnosis in ABIDE less well. It differs from the paper in that the profiles are projected to fewer units first, and
    that the clusters' sums are normalised. No position is given to a region: its profile tells which one it is.

    Parameters
    ----------
    shapes
        One connectome's edges, undirected or directed.
    n_outputs
        One logit for two classes or a quantity, else one a class.
    directed
        Whether there is an edge in each direction; else one a pair.
    n_units
        Units that a region's profile is projected to.
    n_layers
        Layers of attention; the paper has two.
    n_heads
        Ways to attend; must divide the units.
    n_clusters
        Clusters of the readout; orthonormal centres cannot be more than the units.
    n_codes
        Numbers that code all regions together; 0 leaves each region to itself.
    input_dropout
        Part of the edges that is left out at each step of the training.
    dropout
        Part of the units that is left out at each step of the training.

    Raises
    ------
    UsageError
        If the heads do not divide the units, or there are more clusters than units.

    References
    ----------
    .. [1] Kan et al. (2022), NeurIPS. arXiv:2210.06681
    .. [2] https://github.com/Wayfear/BrainNetworkTransformer
    """
    if n_units % n_heads:
        raise UsageError(
            f"brain_network_transformer: {n_heads} heads do not divide {n_units} units; choose n_heads or n_units to fit."
        )
    if n_clusters > n_units:
        raise UsageError(
            f"brain_network_transformer: {n_clusters} clusters are more than {n_units} units can keep orthonormal; "
            "lower n_clusters or raise n_units."
        )
    connectome = Connectome(shapes[0][0], directed=directed)
    return BrainNetworkTransformer(
        connectome, n_outputs, n_units, n_layers, n_heads, n_clusters, n_codes, input_dropout, dropout
    )
