"""Support vector machine with a linear or a Gaussian kernel: what a penalised linear model misses, without a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bids_dl import choice, zoo
from bids_dl.errors import UsageError
from bids_dl.layers import Solved
from bids_dl.records import Array

SUITS = ("edge", "column")
SCHEDULE = {"n_members": 1}

KERNELS = ("rbf", "linear")
TUBE = 0.1
"""Errors of a standardised quantity that cost nothing."""


class KernelMachine(Solved):
    """Kernel values with the rows that were kept, weighed by ``dual`` (output, row), plus ``bias`` (output,).

    A linear kernel needs one row an output only, the mix of the training rows.
    """

    kept: Tensor
    dual: Tensor
    bias: Tensor
    gamma: Tensor

    def __init__(
        self, n_values: int, n_outputs: int, kernel: str, penalties: Array, gammas: Sequence[float], *, is_class: bool
    ) -> None:
        super().__init__(n_outputs)
        self.kernel, self.penalties, self.gammas, self.is_class = kernel, penalties, tuple(gammas), is_class
        self.register_buffer("kept", torch.zeros(0, n_values))
        self.register_buffer("dual", torch.zeros(n_outputs, 0))
        self.register_buffer("bias", torch.zeros(n_outputs))
        self.register_buffer("gamma", torch.ones(()))

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant by the decision values, (participant, output)."""
        x, kept = torch.nan_to_num(x.flatten(1)).double(), self.kept.double()  # distances are small differences
        products = x @ kept.T  # (participant, row)
        if self.kernel == "rbf":
            squares = x.square().sum(dim=1, keepdim=True) + kept.square().sum(dim=1) - 2 * products
            products = torch.exp(-self.gamma * squares.clamp(min=0))  # (participant, row)
        return (products @ self.dual.double().T + self.bias).float()  # (participant, output)

    def solve(
        self, inputs: Sequence[Tensor], y: Array, folds: Sequence[tuple[choice.Rows, choice.Rows]]
    ) -> tuple[float, Array]:
        """Choose penalty and width by the inner folds and fit all rows; returns the penalty, rows' held-out outputs."""
        x = torch.nan_to_num(inputs[0].flatten(1))
        kernels, units = self._kernels((x @ x.T).numpy().astype(np.float64))
        options = [(penalty, number) for penalty in self.penalties for number in range(len(kernels))]

        def outputs(train: choice.Rows, held: choice.Rows) -> Array:
            return np.stack([self._held_out(kernels[number], y, c, train, held) for c, number in options])

        best, held_out = choice.choose(
            outputs, y, folds, n_options=len(options), n_outputs=len(self.bias), is_class=self.is_class
        )
        penalty, number = options[best]
        dual, bias = self._fit(kernels[number], y, penalty)
        self._keep(x, dual, bias, units[number])
        return float(penalty), held_out

    def _kernels(self, products: Array) -> tuple[list[Array], list[float]]:
        """Bring the kernel to a common size; returns one a width, (row, row), and what divides products or distances."""
        squares = np.diag(products)
        if self.kernel == "linear":
            unit = float(squares.mean()) or 1.0
            return [products / unit], [unit]
        distances = np.maximum(squares[:, None] + squares - 2 * products, 0)
        typical = float(np.median(distances[np.triu_indices(len(distances), 1)])) or 1.0
        return [np.exp(-gamma * distances / typical) for gamma in self.gammas], [typical / g for g in self.gammas]

    def _fit(self, kernel: Array, y: Array, penalty: float) -> tuple[Array, Array]:
        """Fit one machine an output; returns duals (output, row) and biases."""
        targets = choice.each_class(y, len(self.bias), is_class=self.is_class)
        fitted = [_machine(kernel, target, penalty, is_class=self.is_class) for target in targets]
        return np.stack([dual for dual, _ in fitted]), np.array([bias for _, bias in fitted])

    def _held_out(self, kernel: Array, y: Array, penalty: float, train: choice.Rows, held: choice.Rows) -> Array:
        dual, bias = self._fit(kernel[np.ix_(train, train)], y[train], penalty)
        return np.asarray(kernel[np.ix_(held, train)] @ dual.T + bias)

    def _keep(self, x: Tensor, dual: Array, bias: Array, unit: float) -> None:
        """Keep the support vectors or, for a linear kernel, their mix."""
        self.bias = torch.as_tensor(bias, dtype=torch.float32)
        support = np.flatnonzero(np.abs(dual).sum(axis=0))
        weights = torch.as_tensor(dual[:, support], dtype=torch.float32)
        if self.kernel == "linear":
            self.kept, self.dual = weights @ x[support] / unit, torch.eye(len(bias))
        else:
            self.kept, self.dual, self.gamma = x[support], weights, torch.tensor(1 / unit)


def _machine(kernel: Array, y: Array, penalty: float, *, is_class: bool) -> tuple[Array, float]:
    """Fit a support vector machine to two classes, 1 and 0, or to a quantity; returns dual (row,) and bias."""
    from sklearn.svm import SVC, SVR

    machine: Any = SVR(kernel="precomputed", C=penalty, epsilon=TUBE)
    if is_class:
        machine = SVC(kernel="precomputed", C=penalty, class_weight="balanced")
        y = y.astype(int)
    machine.fit(kernel, y)
    dual = np.zeros(len(kernel))
    dual[machine.support_] = machine.dual_coef_[0]
    return dual, float(machine.intercept_[0])


def build(
    shapes: Sequence[tuple[int, ...]], n_outputs: int, *, classify: bool = True, kernel: str = "rbf",
    weakest: float = 100.0, strongest: float = 0.1, n_penalties: int = 4, gammas: Sequence[float] = (0.1, 0.5, 2.0),
) -> KernelMachine:  # fmt: skip
    """Build a support vector machine [1]_, for a quantity a support vector regression [2]_.

    Of several classes, each is told from all others. A Gaussian kernel keeps the values of training participants, its
    support vectors: whoever gets the bundle can read them. A linear kernel keeps none.

    Parameters
    ----------
    shapes
        One input; its values are flattened.
    n_outputs
        One logit for two classes or a quantity, else one a class.
    classify
        Classes or a quantity; set by the target.
    kernel
        ``rbf``, a Gaussian of the distance, or ``linear``.
    weakest, strongest
        Range of inverse penalties that the inner folds choose from, for a kernel whose diagonal has a mean of 1.
    n_penalties
        How many values of the range are tried.
    gammas
        Widths that are tried, from wide to narrow: the Gaussian's exponent is minus this times the squared distance,
        in units of the training rows' median one. A linear kernel has none.

    Raises
    ------
    UsageError
        If there is no such kernel.

    References
    ----------
    .. [1] Cortes and Vapnik (1995), Machine Learning 20. doi:10.1007/BF00994018
    .. [2] Smola and Schölkopf (2004), Statistics and Computing 14. doi:10.1023/B:STCO.0000035301.49549.88
    """
    if kernel not in KERNELS:
        raise UsageError(f"models.kernel.kernel is '{kernel}'; {zoo.nearest(kernel, KERNELS)}")
    penalties = np.geomspace(strongest, weakest, n_penalties)
    return KernelMachine(int(np.prod(shapes[0])), n_outputs, kernel, penalties, gammas, is_class=classify)
