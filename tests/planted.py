"""For every model a planted problem that it tells, and that a linear model on the usual feature of the same data cannot."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache, partial
from typing import Any

import connectomes
import lesions
import numpy as np
import sequences
from sklearn.metrics import roc_auc_score

from bids_dl import training, zoo
from bids_dl.records import Block, Cohort, FittedModel, Split
from bids_dl.settings import Settings


@dataclass(frozen=True)
class Problem:
    """What is planted, in a few words; how it is drawn from a seed; and what a linear model usually takes of it."""

    words: str
    draw: Callable[..., Cohort]
    usual: Callable[[Block], Block] = field(default=lambda block: block)


@dataclass(frozen=True)
class Solution:
    """A problem, with a model's options and its wishes beside its own schedule."""

    problem: Problem
    options: Mapping[str, Any] = field(default_factory=dict)
    wishes: Mapping[str, Any] = field(default_factory=dict)


ORDER = Problem("three states in a circle, or backwards", sequences.ordered_states, sequences.connectivity)
WINDOWS = Problem("windows of three states in a circle, or backwards", sequences.ordered_windows, sequences.mean_window)
HALVES = Problem("one state, then another, or backwards", sequences.two_halves, sequences.connectivity)
LEADER = Problem("one region follows another, or leads it", sequences.leading_region, sequences.connectivity)
BURSTS = Problem("bursts up, or down", sequences.bursts, sequences.connectivity)
VISITS = Problem("states visited in a circle, or backwards", sequences.visited_in_order, sequences.mean_window)
EDGES = Problem("sign of the product of two of ten edges", connectomes.product_of_two_edges)
FEW = Problem("sign of the product of two of six edges", partial(connectomes.product_of_two_edges, n_edges=6))
PARTS = Problem("sign of the product of two sets of edges", connectomes.product_of_two_parts)
RATIOS = Problem("ratios of eigenvalues", connectomes.ratios_of_eigenvalues)
LESION = Problem("a lesion anywhere", lesions.anywhere)
AMONG = Problem("a lesion anywhere, among scattered bright voxels", lesions.among_scattered)
CUBE = Problem("a lesion in one of 27 cubes", lesions.in_a_cube)
WAYS = Problem("a known region brighter or darker, or as usual", lesions.either_way)
MAPS = Problem("a patch anywhere in one network's map", lesions.of_one_network)
MOVES = Problem("a patch that moves between windows, or is half in both places", lesions.that_move, lesions.mean_maps)

SHORT = {"n_epochs": 10, "learning_rate": 1e-2}
GRAPH = {"n_epochs": 40, "patience": 40, "learning_rate": 3e-3, "batch_size": 32}

SOLUTIONS: Mapping[str, Solution] = {
    "attention_cnn3d": Solution(AMONG),
    "attention_rnn": Solution(ORDER, {"width": 16, "hidden": 8}, SHORT),
    "bilstm": Solution(WINDOWS, {"width": 16, "hidden": 8}, SHORT),
    "boosting": Solution(FEW),
    "brain_network_transformer": Solution(PARTS, wishes=GRAPH),
    "brainnetcnn": Solution(PARTS, {"input_dropout": 0.5}, GRAPH),
    "cnn2d": Solution(LESION),
    "cnn3d": Solution(WAYS),
    "cnn_ica": Solution(
        MAPS,
        {"n_sources": 3, "width": 8, "pool": 1, "n_pretraining": 30},
        {"n_epochs": 15, "patience": 15, "learning_rate": 5e-3},
    ),
    "densenet3d": Solution(LESION),
    "dynamic_states": Solution(VISITS, {"n_states": 3}),
    "gan": Solution(EDGES, {"dropout": 0.0}, {"learning_rate": 5e-3}),
    "gat": Solution(PARTS, wishes=GRAPH),
    "gcn": Solution(PARTS, wishes=GRAPH),
    "gru": Solution(ORDER, {"width": 16, "hidden": 16}, SHORT),
    "kernel": Solution(EDGES),
    "learned_connectivity": Solution(
        LEADER,
        {"n_states": 8, "n_scores": 8, "hidden": 16, "dropout": 0.1},
        {"n_epochs": 12, "learning_rate": 1e-2},
    ),
    "lstm": Solution(ORDER, {"width": 16, "hidden": 16}, SHORT),
    "mean_mlp": Solution(BURSTS, {"hidden": [16]}, {"n_epochs": 12, "learning_rate": 1e-2}),
    "mlp": Solution(EDGES, {"dropout": 0.0}, {"n_epochs": 60, "learning_rate": 5e-3, "weight_decay": 0.1}),
    "multiscale_cnn_rnn": Solution(
        ORDER, {"n_filters": 8, "hidden": 8, "n_layers": 1}, {"n_epochs": 12, "learning_rate": 1e-2}
    ),
    "resnet3d": Solution(LESION),
    "rnn_ica": Solution(
        LEADER, {"n_sources": 4, "hidden": 8, "n_pretraining": 100}, {"n_epochs": 30, "learning_rate": 1e-2}
    ),
    "sfcn": Solution(LESION),
    "tangent_linear": Solution(RATIOS, {"shrinkage": 0.01}),
    "transformer": Solution(
        HALVES, {"width": 32, "dropout": 0.1}, {"n_epochs": 12, "patience": 12, "learning_rate": 3e-3}
    ),
    "vae": Solution(EDGES, {"dropout": 0.0}, {"learning_rate": 5e-3}),
    "vit3d": Solution(CUBE),
}


OTHERS: Mapping[str, Solution] = {
    "cnn_ica": Solution(MOVES, {"n_sources": 3, "width": 4, "n_blocks": 1, "n_pretraining": 30}, {"n_epochs": 20})
}
"""Problems of a second kind of input."""


def halves(n: int) -> Split:
    """Train on the first half, stop on the next tenth, test on the rest."""
    return Split(np.arange(n // 2), np.arange(n // 2, 3 * n // 5), np.arange(3 * n // 5, n), "one")


def fit(model: str, data: Cohort, options: Mapping[str, Any] | None = None, *, seed=0, **wishes: Any) -> FittedModel:
    """Train one member on the only feature, by the model's own schedule but for the wishes."""
    ((name, block),) = data.features.items()
    definition = training.define(model, [block.shape], 1, options or {})
    schedule = zoo.constant("models", model, "SCHEDULE") or {}
    settings = Settings(**{**schedule, "n_members": 1, "seed": seed, "device": "cpu", **wishes})
    return training.train(definition, data, halves(len(data.participants)), [name], settings)


def auc_of(fitted: FittedModel, data: Cohort) -> float:
    """Area under the curve of the participants who were held out."""
    test = fitted.split.test
    return float(roc_auc_score(data.target.values[test], training.predict(fitted, data, test)[:, 1]))


@lru_cache(maxsize=4)
def drawn(problem: Problem, seed: int) -> Cohort:
    """Draw a problem once for all who try it."""
    return problem.draw(seed=seed)


def auc(
    model: str,
    *,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    solutions: Mapping[str, Solution] = SOLUTIONS,
) -> float:
    """Train a model on its problem; options given here count more than those it is usually solved with."""
    solution = solutions[model]
    data = drawn(solution.problem, seed)
    return auc_of(fit(model, data, {**solution.options, **(options or {})}, seed=seed, **solution.wishes), data)


def linear_auc(model: str, *, seed: int = 0, solutions: Mapping[str, Solution] = SOLUTIONS) -> float:
    """Train a linear model on the usual feature of a model's problem."""
    return linear_on(solutions[model].problem, seed)


@cache
def linear_on(problem: Problem, seed: int) -> float:
    """Train a linear model on the usual feature, once for all models that share a problem."""
    data = drawn(problem, seed)
    data = replace(data, features={"usual": problem.usual(next(iter(data.features.values())))})
    return auc_of(fit("linear", data, seed=seed), data)
