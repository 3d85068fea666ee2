"""Penalised linear model on connectomes as tangent vectors: how each departs from the mean, seen as a covariance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bids_dl import choice
from bids_dl import span as spans
from bids_dl.errors import DataError, UsageError
from bids_dl.layers import Connectome, Network
from bids_dl.records import Array

SUITS = ("edge",)
UNSUITED = ("covariance", "logcorrelation")
"""Kinds of connectome (BIDS's ``stat``) that would be taken for correlations: their logarithm would mean nothing."""

SCHEDULE = {"n_members": 1}

ROWS = 32
SMALLEST = 1e-3
"""Eigenvalues below are taken as this: edges that were changed, such as by removing confounds, may be no correlations."""

LARGEST = 2.0
"""Mean absolute edge that no table of correlations has, nor of Fisher's z."""


class _Logarithm(torch.autograd.Function):
    """Matrix logarithm of symmetric matrices; its gradient holds where eigenvalues are equal, eigh's own does not."""

    @staticmethod
    def forward(ctx: Any, matrices: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrices)
        ctx.save_for_backward(values, vectors)
        logs: Tensor = (vectors * values.clamp(min=SMALLEST).log().unsqueeze(-2)) @ vectors.mT
        return logs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Weigh the gradient between two eigenvectors by the slope of the logarithm between their eigenvalues [1]_.

        It is 0 between two that are both taken as the smallest.

        References
        ----------
        .. [1] Higham (2008), Functions of Matrices, theorem 3.11. doi:10.1137/1.9780898717778
        """
        values, vectors = ctx.saved_tensors
        apart = values.unsqueeze(-1) - values.unsqueeze(-2)
        mean = (values.unsqueeze(-1) + values.unsqueeze(-2)) / 2
        near = apart.abs() < 1e-3 * mean.clamp(min=SMALLEST)
        logs = values.clamp(min=SMALLEST).log()
        slope = (logs.unsqueeze(-1) - logs.unsqueeze(-2)) / torch.where(near, 1.0, apart)
        slope = torch.where(near, torch.where(mean > SMALLEST, 1 / mean, 0.0), slope)
        inner = vectors.mT @ ((gradient + gradient.mT) / 2) @ vectors
        found: Tensor = vectors @ (slope * inner) @ vectors.mT
        return found


def logarithm(matrices: Tensor) -> Tensor:
    """Return the matrix logarithm of symmetric positive definite matrices, (…, n, n)."""
    found: Tensor = _Logarithm.apply(matrices)  # type: ignore[no-untyped-call]
    return found


class TangentLinear(Network):
    """``log(W C W)``, ``W`` being the inverse root of the training rows' mean covariance, read by a linear layer."""

    fisher_z: Tensor
    whitener: Tensor
    row: Tensor
    column: Tensor

    def __init__(
        self, connectome: Connectome, n_outputs: int, shrinkage: float, penalties: Array, *, is_class: bool
    ) -> None:
        super().__init__()
        self.connectome = connectome
        self.shrinkage, self.penalties, self.is_class = shrinkage, penalties, is_class
        n = self.connectome.n
        row, column = torch.triu_indices(n, n, device="cpu")
        self.register_buffer("row", row, persistent=False)
        self.register_buffer("column", column, persistent=False)
        self.register_buffer("fisher_z", torch.zeros((), dtype=torch.bool))
        self.register_buffer("whitener", torch.eye(n))
        self.head = nn.Linear(n * (n + 1) // 2, n_outputs)

    def adopt(self, normalization: Any) -> None:
        """Learn what undoes the normalisation: a covariance is made of correlations as measured."""
        self.connectome.learn(normalization)

    def covariances(self, x: Tensor) -> Tensor:
        """Return correlations, (participant, region, region), shrunk towards none."""
        measured = self.connectome.measured(x)
        r = torch.where(self.fisher_z, torch.tanh(measured), measured.clamp(-1, 1))
        whole = torch.eye(self.connectome.n, device=x.device)  # shrinking leaves the diagonal 1
        return (1 - self.shrinkage) * r + whole

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant by the tangent vector, whose length is that of the matrix (Frobenius)."""
        tangent = logarithm(self.whitener @ self.covariances(x) @ self.whitener)  # (participant, region, region)
        weight = torch.where(self.row == self.column, 1.0, math.sqrt(2))
        return tangent[:, self.row, self.column] * weight  # (participant, pair of regions)

    def solve(
        self, inputs: Sequence[Tensor], y: Array, folds: Sequence[tuple[choice.Rows, choice.Rows]]
    ) -> tuple[float, Array]:
        """Learn the mean, choose the penalty by the inner folds, fit all rows; returns both penalty and held-out outputs.

        The mean is that of all training rows, in the inner folds too: no label takes part in it.
        """
        edges = inputs[0]
        self._learn_unit(edges)
        self._learn_mean(edges)
        tangent = torch.cat([self.embed(part) for part in torch.split(edges, ROWS)])  # (participant, pair of regions)
        rows = np.arange(len(edges))
        inner = spans.Kernel((tangent @ tangent.T).numpy().astype(np.float64), rows)
        span = spans.rotated(inner, rows)
        x = span.coordinates(inner, rows)
        best, held_out, weights, bias = choice.penalised(
            x, y, folds, self.penalties / x.shape[1], n_outputs=self.head.out_features, is_class=self.is_class
        )
        self.head.weight.copy_(torch.from_numpy(span.mixing(weights)) @ tangent)
        self.head.bias.copy_(torch.from_numpy(bias))
        return float(self.penalties[best]), held_out

    def _learn_unit(self, edges: Tensor) -> None:
        """Tell Fisher's z from correlations: no correlation is above 1. Small z are as good as correlations."""
        measured = torch.nan_to_num(edges) * self.connectome.scale + self.connectome.mean
        if float(measured.abs().mean()) > LARGEST:
            raise DataError(
                f"tangent_linear: the edges have a mean size of {float(measured.abs().mean()):.3g}, which no correlation "
                "has; give it a connectivity of kind correlation or partial."
            )
        self.fisher_z = measured.abs().max() > 1

    def _learn_mean(self, edges: Tensor) -> None:
        """Find the inverse root of the log-Euclidean mean."""
        total = torch.zeros_like(self.whitener)
        for part in torch.split(edges, ROWS):
            total += logarithm(self.covariances(part)).sum(dim=0)
        values, vectors = torch.linalg.eigh(total / len(edges))
        self.whitener = (vectors * torch.exp(-values / 2)) @ vectors.T


def build(
    shapes: Sequence[tuple[int, ...]], n_outputs: int, directed: bool = False, *,
    classify: bool = True, shrinkage: float = 0.5,
    weakest: float = 1e4, strongest: float = 1e-3, n_penalties: int = 6,
) -> TangentLinear:  # fmt: skip
    """Build logistic or ridge regression on connectomes in the tangent space [1]_, as compared in [2]_.

    Correlations are shrunk towards none, and the matrix logarithm is taken relative to the training rows'
    log-Euclidean mean [3]_. The edges have to be correlations or their Fisher z, which is told by an edge above 1.

    Parameters
    ----------
    shapes
        One connectome's edges.
    n_outputs
        One logit for two classes or a quantity, else one a class.
    directed
        Whether there is an edge in each direction, which is refused.
    classify
        Classes or a quantity; set by the target.
    shrinkage
        What correlations are shortened by, above 0 and at most 1: with fewer time points than regions some combinations
        of regions do not vary, and have no logarithm.
    weakest, strongest
        Range of inverse penalties that the inner folds choose from.
    n_penalties
        How many values of the range are tried.

    Raises
    ------
    UsageError
        If the connectome is directed, or the shrinkage out of its range.
    DataError
        While training, if the edges cannot be correlations.

    References
    ----------
    .. [1] Varoquaux et al. (2010), MICCAI. doi:10.1007/978-3-642-15705-9_25
    .. [2] Dadi et al. (2019), NeuroImage 192. doi:10.1016/j.neuroimage.2019.02.062
    .. [3] Arsigny et al. (2006), Magnetic Resonance in Medicine 56(2). doi:10.1002/mrm.20965
    """
    if directed:
        raise UsageError("models.tangent_linear needs an undirected connectome; choose another model for this feature.")
    if not 0 < shrinkage <= 1:
        raise UsageError(f"models.tangent_linear.shrinkage is {shrinkage}; give a number above 0 and at most 1.")
    penalties = np.geomspace(strongest, weakest, n_penalties)
    return TangentLinear(Connectome(shapes[0][0]), n_outputs, shrinkage, penalties, is_class=classify)
