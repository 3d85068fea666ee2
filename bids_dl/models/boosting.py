"""Boosted trees: each corrects those before it, and sees which values matter together; no distances, no scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bids_dl import choice
from bids_dl.layers import Solved
from bids_dl.records import Array

SUITS = ("edge", "column")
SCHEDULE = {"n_members": 1}
GRADIENTS = False


class BoostedTrees(Solved):
    """Trees as tables of nodes, (tree, node), walked down all at once; an output adds up the leaves of its trees.

    A node sends a participant left where its ``feature`` is at most its ``threshold``; a leaf points to itself. The
    output is constant between thresholds: no gradient reaches the input.
    """

    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    value: Tensor

    def __init__(self, n_outputs: int, options: Mapping[str, Any], n_values: int, *, is_class: bool) -> None:
        super().__init__(n_outputs)
        self.options, self.n_values, self.is_class = dict(options), n_values, is_class
        for name in ("feature", "left", "right"):
            self.register_buffer(name, torch.zeros(0, 1, dtype=torch.long))
        self.register_buffer("threshold", torch.zeros(0, 1, dtype=torch.float64))
        self.register_buffer("value", torch.zeros(0, 1))

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant by the sums of leaves, (participant, output)."""
        x = torch.nan_to_num(x.flatten(1))
        tree = torch.arange(len(self.feature), device=x.device)
        at = torch.zeros(len(x), len(tree), dtype=torch.long, device=x.device)  # (participant, tree): a node
        for _ in range(self.options["max_depth"]):
            below = x.gather(1, self.feature[tree, at]) <= self.threshold[tree, at]
            at = torch.where(below, self.left[tree, at], self.right[tree, at])
        return self.value[tree, at].reshape(len(x), -1, self.head.out_features).sum(dim=1)  # (participant, output)

    def solve(
        self, inputs: Sequence[Tensor], y: Array, folds: Sequence[tuple[choice.Rows, choice.Rows]]
    ) -> tuple[float, Array]:
        """Choose the number of rounds by the inner folds and fit all rows; returns it and the rows' held-out outputs."""
        x = torch.nan_to_num(inputs[0].flatten(1)).numpy()
        seed = int(torch.randint(2**31 - 1, (1,)))
        n_rounds = int(self.options["n_estimators"])

        def outputs(train: choice.Rows, held: choice.Rows) -> Array:
            trees, kept = self._fit(x[train], y[train], seed, n_rounds)
            return self._rounds(trees, x[np.ix_(held, kept)])

        best, held_out = choice.choose(
            outputs, y, folds, n_options=n_rounds, n_outputs=self.head.out_features, is_class=self.is_class
        )
        self._keep(*self._fit(x, y, seed, best + 1))
        return float(best + 1), held_out

    def _fit(self, x: Array, y: Array, seed: int, n_rounds: int) -> tuple[Any, NDArray[np.intp]]:
        """Fit trees to the values that tell most alone; returns them and those values' positions."""
        from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
        from sklearn.utils.class_weight import compute_sample_weight

        explained = _explained(x, y, is_class=self.is_class)
        kept = np.sort(np.argsort(-explained, kind="stable")[: self.n_values])
        options = {
            **self.options,
            "n_estimators": n_rounds,
            "init": "zero",
            "max_features": "sqrt",
            "random_state": seed,
        }
        if not self.is_class:
            return GradientBoostingRegressor(**options).fit(x[:, kept], y), kept
        weights = compute_sample_weight("balanced", y)
        return GradientBoostingClassifier(**options).fit(x[:, kept], y.astype(int), weights), kept

    def _rounds(self, trees: Any, x: Array) -> Array:
        """Return the outputs after every round, (round, row, output)."""
        stages = trees.staged_decision_function(x) if self.is_class else trees.staged_predict(x)
        return np.stack([np.reshape(stage, (len(x), -1)) for stage in stages])

    def _keep(self, trees: Any, kept: NDArray[np.intp]) -> None:
        """Write the trees into tables as wide as the largest, round by round and output by output."""
        found = [one.tree_ for one in np.ravel(trees.estimators_)]
        itself = np.tile(np.arange(max(t.node_count for t in found)), (len(found), 1))
        columns = {"feature": itself * 0, "left": itself, "right": itself.copy()}
        threshold, value = itself * 0.0, itself * 0.0
        for row, tree in enumerate(found):
            inner = np.flatnonzero(tree.children_left >= 0)
            columns["feature"][row, inner] = kept[tree.feature[inner]]
            columns["left"][row, inner] = tree.children_left[inner]
            columns["right"][row, inner] = tree.children_right[inner]
            threshold[row, inner] = tree.threshold[inner]
            value[row, : tree.node_count] = tree.value[:, 0, 0] * self.options["learning_rate"]
        for name, table in columns.items():
            setattr(self, name, torch.from_numpy(table.astype(np.int64)))
        self.threshold, self.value = torch.from_numpy(threshold), torch.from_numpy(value.astype(np.float32))


def _explained(x: Array, y: Array, *, is_class: bool) -> Array:
    """Return the share of each value's variance that the target explains; it orders values as the F score does."""
    design = np.stack([y == code for code in np.unique(y)[1:]], axis=1) if is_class else y[:, None]
    axes, _ = np.linalg.qr(design - design.mean(axis=0))
    centred = x - x.mean(axis=0)
    total = np.einsum("ij,ij->j", centred, centred)
    return np.asarray(np.square(axes.T @ centred).sum(axis=0) / np.maximum(total, 1e-12))


def build(
    shapes: Sequence[tuple[int, ...]], n_outputs: int, *, classify: bool = True, n_trees: int = 200, max_depth: int = 3,
    learning_rate: float = 0.03, subsample: float = 0.5, n_values: int = 2000,
) -> BoostedTrees:  # fmt: skip
    """Build stochastic gradient boosting of trees [1]_, [2]_.

    Its output is constant between thresholds, so that gradients say nothing of it: explain it by occlusion.

    Parameters
    ----------
    shapes
        One input; its values are flattened.
    n_outputs
        One logit for two classes or a quantity, else one a class.
    classify
        Classes or a quantity; set by the target.
    n_trees
        Rounds at most, with one tree an output each; the inner folds choose how many.
    max_depth
        Questions between a tree's root and its leaves.
    learning_rate
        What a tree counts.
    subsample
        Part of the training rows that a tree sees; the square root of the number of values is looked at a question.
    n_values
        Of more values than this, the trees see those whose F score with the target is highest in the rows they are
        fitted on: where values matter only together, ask for more.

    References
    ----------
    .. [1] Friedman (2001), Annals of Statistics 29(5). doi:10.1214/aos/1013203451
    .. [2] Friedman (2002), Computational Statistics & Data Analysis 38(4). doi:10.1016/S0167-9473(01)00065-2
    """
    options = {
        "n_estimators": n_trees, "max_depth": max_depth, "learning_rate": learning_rate, "subsample": subsample,
    }  # fmt: skip
    return BoostedTrees(n_outputs, options, n_values, is_class=classify)
