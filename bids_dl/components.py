"""Principal components of the training rows: the small space in which generative models draw participants."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bids_dl.layers import Fixed

MOST_ROWS = 1000
"""Components are learned from at most so many rows, evenly spread: their inner products stay small."""


class Components(Fixed):
    """Coordinates of participants along the main axes of the training rows, and the way back.

    Coordinates share one unit, in which their mean square over the training rows is 1; ``spread`` is each one's own
    standard deviation, 0 for an axis that the rows did not have. Before `learn`, the axes are random.
    """

    axes: Tensor
    spread: Tensor
    unit: Tensor

    def __init__(self, n_values: int, n_components: int) -> None:
        super().__init__()
        self.n = min(n_components, n_values)
        self.register_buffer("axes", torch.randn(self.n, n_values) / math.sqrt(n_values))
        self.register_buffer("spread", torch.ones(self.n))
        self.register_buffer("unit", torch.ones(()))

    def begin(self, rows: Callable[[Any], tuple[Tensor, ...]], n: int) -> None:
        """Learn from the training rows that ``rows`` returns, as `bids_dl.training` calls it."""
        self.learn(rows(np.unique(np.linspace(0, n - 1, min(n, MOST_ROWS)).astype(np.intp)))[0])

    def learn(self, x: Tensor) -> None:
        """Take the axes of normalised rows (participant, …), about 0; what is missing counts as 0, the mean."""
        x = torch.nan_to_num(x.flatten(1))
        squares, mixing = torch.linalg.eigh((x @ x.T).double())
        squares, mixing = squares.flip(0)[: self.n], mixing.flip(1)[:, : self.n]
        kept = squares > squares[0].clamp(min=1e-12) * 1e-6
        squares, mixing, n = squares[kept], mixing[:, kept], int(kept.sum())
        unit = (squares.mean() / len(x)).sqrt() if n else torch.ones(())
        self.axes.zero_()[:n] = (mixing / squares.sqrt()).T.to(x.dtype) @ x
        self.spread.zero_()[:n] = (squares / len(x)).sqrt() / unit
        self.unit.copy_(unit)

    def forward(self, x: Tensor) -> Tensor:
        """Return the coordinates of normalised rows, (participant, component)."""
        if self.are_given:
            return x
        return torch.nan_to_num(x.flatten(1)) @ self.axes.T / self.unit

    def restored(self, coordinates: Tensor) -> Tensor:
        """Return the normalised values (participant, value) that coordinates stand for."""
        return coordinates * self.unit @ self.axes


def codes(y: Tensor, n_outputs: int) -> Tensor:
    """Write labels (participant,) as conditions (participant, code): one-hot for many classes, else the label itself."""
    if n_outputs > 1:
        return nn.functional.one_hot(y.long(), n_outputs).to(torch.float32)
    return y.to(torch.float32)[:, None]


def class_logits(output: Tensor) -> Tensor:
    """Spell one logit of two classes out as two, (participant, class); more are as they are."""
    return output if output.shape[1] > 1 else torch.cat([-output / 2, output / 2], dim=1)


def perceptron(n_values: int, widths: tuple[int, ...], dropout: float) -> nn.Sequential:
    """Chain layers of units that leak a fifth of what is negative, so that no unit of either player dies."""
    layers: list[nn.Module] = []
    for before, after in zip((n_values, *widths), widths, strict=False):
        layers += [nn.Linear(before, after), nn.LeakyReLU(0.2), nn.Dropout(dropout)]
    return nn.Sequential(*layers)
