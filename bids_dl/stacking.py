"""Many small networks trained as one: the same rows and the same start, each with labels of its own.

Each takes the steps that it would take by itself; those whose validation loss has stopped falling leave the stack.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap

from bids_dl.records import Array

Weights = dict[str, Tensor]
FEWER = 0.9
"""The stack is made smaller when this part of it, or less, still learns."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train, as `bids_dl.settings.Settings` says it."""

    n_epochs: int
    patience: int
    batch_size: int
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class Labels:
    """What each network of the stack is to learn: (network, row) for the training and the validation rows.

    ``weights`` is (network, class), or None for a quantity; ``n_outputs`` as the head has.
    """

    train: Tensor
    validation: Tensor
    weights: Tensor | None
    n_outputs: int


def train(
    module: nn.Module, x: Tensor, x_validation: Tensor, others: Mapping[str, Tensor], labels: Labels, schedule: Schedule, *,
    seed: int,
) -> dict[str, Array]:  # fmt: skip
    """Train a stack and return the outputs of its networks.

    Parameters
    ----------
    module
        A network of ``input_dropout``, ``first`` (linear), ``rest`` and ``head``, in this order, with its first weights;
        it is not changed.
    x, x_validation
        Rows (row, value) that all networks share.
    others
        More rows to predict.
    labels
        Each network's labels.
    schedule
        How to train.
    seed
        Of the order of the rows.

    Returns
    -------
    dict
        ``validation`` and each of ``others``: (network, row, output), by the weights of the lowest validation loss.
    """
    stack = _Stack(module, labels, schedule)
    generator = np.random.default_rng(seed)
    stack.judge(x_validation)
    for _ in range(schedule.n_epochs):
        for at in batches(generator.permutation(len(x)), schedule.batch_size, smallest=2):
            stack.step(x, at)
        if not stack.judge(x_validation):
            break
    return {name: stack.outputs(rows) for name, rows in {"validation": x_validation, **others}.items()}


def batches(order: NDArray[np.intp], size: int, *, smallest: int = 1) -> Iterator[NDArray[np.intp]]:
    """Cut rows into batches; a last one below the smallest joins the one before, as one row has no batch statistics."""
    starts = list(range(0, len(order), size))
    if len(starts) > 1 and len(order) - starts[-1] < smallest:
        starts.pop()
    for start, stop in zip(starts, [*starts[1:], len(order)][: len(starts)], strict=True):
        yield order[start:stop]


class _Stack:
    """Weights with one more axis, the network, in front; those that still learn, and the best of each so far."""

    def __init__(self, module: nn.Module, labels: Labels, schedule: Schedule) -> None:
        copied: Any = copy.deepcopy(module)
        self.before, self.after = copied.input_dropout, nn.Sequential(copied.rest, copied.head)
        self.labels, self.schedule = labels, schedule
        n = len(labels.train)
        start = {"weight": copied.first.weight, "bias": copied.first.bias, **dict(self.after.named_parameters())}
        self.weights = {name: p.detach().expand(n, *p.shape).clone().requires_grad_() for name, p in start.items()}
        self.best = {name: p.detach().clone() for name, p in self.weights.items()}
        self.lowest, self.waited = torch.full((n,), torch.inf), torch.zeros(n, dtype=torch.long)
        self.lowest_trained = self.lowest.clone()
        self.alive = torch.arange(n)
        self.judged = False
        self.optimizer = self._optimizer()

    def _optimizer(self) -> torch.optim.AdamW:
        given = self.schedule
        return torch.optim.AdamW(
            self.weights.values(), lr=given.learning_rate, weight_decay=given.weight_decay, fused=True
        )

    def _run(self, weights: Weights, x: Tensor) -> Tensor:
        """Return (network, row, output); all networks draw the same units to leave out, as each would by itself."""
        first, bias = weights["weight"], weights["bias"]
        h = nn.functional.linear(self.before(x), first.flatten(0, 1), bias.flatten())  # one product for all networks
        h = h.view(len(x), len(first), -1).transpose(0, 1)  # (network, row, unit)
        others = {name: p for name, p in weights.items() if name not in {"weight", "bias"}}
        call = vmap(lambda w, rows: functional_call(self.after, w, (rows,)), randomness="same")
        return call(others, h)  # type: ignore[no-any-return]

    def _switch(self, *, learns: bool) -> None:
        self.before.train(learns)
        self.after.train(learns)

    def _losses(self, out: Tensor, y: Tensor) -> Tensor:
        """Return each network's mean loss over its rows, (network,)."""
        weights = None if self.labels.weights is None else self.labels.weights[self.alive]
        if weights is None:
            return (out[:, :, 0] - y).square().mean(dim=1)
        own = weights.gather(1, y.long())  # (network, row)
        if self.labels.n_outputs == 1:
            loss = nn.functional.binary_cross_entropy_with_logits(out[:, :, 0], y, own, reduction="none")
            return loss.mean(dim=1)
        surprise = -torch.log_softmax(out, dim=2).gather(2, y.long()[:, :, None])[:, :, 0]
        return (own * surprise).sum(dim=1) / own.sum(dim=1)

    def step(self, x: Tensor, at: NDArray[np.intp]) -> None:
        """Take one step with some of the rows."""
        self._switch(learns=True)
        rows = torch.from_numpy(at)
        losses = self._losses(self._run(self.weights, x[rows]), self.labels.train[self.alive][:, rows])
        self.optimizer.zero_grad()
        total: Any = losses.sum()
        total.backward()
        self.optimizer.step()

    def judge(self, x: Tensor) -> bool:
        """Keep the weights of those that never were better; returns whether anybody still learns."""
        self._switch(learns=False)
        with torch.no_grad():
            held = self._losses(self._run(self.weights, x), self.labels.validation[self.alive])
        better = held < self.lowest[self.alive]
        now = self.alive[better]
        for name, kept in self.best.items():
            kept[now] = self.weights[name].detach()[better]
        self.lowest[now] = held[better]
        if self.judged:
            sinks = held < self.lowest_trained[self.alive]
            self.lowest_trained[self.alive] = torch.minimum(held, self.lowest_trained[self.alive])
            self.waited[self.alive] = torch.where(sinks, 0, self.waited[self.alive] + 1)
        self.judged = True
        learning = self.waited[self.alive] <= self.schedule.patience
        if int(learning.sum()) <= FEWER * len(self.alive):
            self._shrink(learning)
        return len(self.alive) > 0

    def _shrink(self, kept: Tensor) -> None:
        """Let those that have stopped leave, with what the optimiser knows of them."""
        known = [self.optimizer.state.get(p, {}) for p in self.weights.values()]
        self.alive = self.alive[kept]
        self.weights = {name: p.detach()[kept].clone().requires_grad_() for name, p in self.weights.items()}
        self.optimizer = self._optimizer()
        for p, state in zip(self.weights.values(), known, strict=True):
            for key, value in state.items():
                self.optimizer.state[p][key] = value[kept].clone() if value.ndim else value.clone()

    def outputs(self, x: Tensor) -> Array:
        """Return the outputs of each network's best weights, (network, row, output)."""
        self._switch(learns=False)
        with torch.no_grad():
            return np.asarray(self._run(self.best, x).numpy(), np.float64)
