"""Training again under permuted labels: what the features alone determine is computed once for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from bids_dl import building, estimating, loop, material, member, stacking, training
from bids_dl import span as spans
from bids_dl.material import Material, Rows
from bids_dl.records import Array, Cohort, Split, Target
from bids_dl.settings import Settings


def held_out_scores(
    definition: Mapping[str, Any], cohort: Cohort, split: Split, inputs: Sequence[str], settings: Settings
) -> Array:
    """Predict the test rows, as `training.predict` does, by a model that nobody needs: linear weights are not brought to values."""
    return null_scores(definition, cohort, split, inputs, settings, [cohort.target])[0]


def null_scores(
    definition: Mapping[str, Any],
    cohort: Cohort,
    split: Split,
    inputs: Sequence[str],
    settings: Settings,
    targets: Sequence[Target],
) -> list[Array]:
    """Train under other labels, again and again, and predict the test rows each time.

    Linear baselines with more values than participants never leave the span of the training rows: a training takes
    milliseconds. Plain networks of the span are trained in one stack, all others one by one, and so is what begins with
    the weights of a bundle, which lie outside of the span.

    Returns
    -------
    list
        Scores of the test rows for each of ``targets``, as `training.predict` gives them.
    """
    usable = material.present(cohort, split, inputs)
    prepared = training.prepare(cohort, usable, inputs, settings)
    probe = building.without_weights(definition, is_class=cohort.target.is_class)
    shapes = [cohort.features[n].shape for n in inputs]
    small = training.is_smaller(probe, shapes, len(usable.pool))
    joined = member.pretrains(settings, shapes) or member.is_joined(definition, cohort, inputs, settings)
    is_stacked = getattr(probe, "is_plain", False) and not (cohort.target.ranks or joined or settings.start_from)
    if small and (is_stacked or not isinstance(probe, nn.Module)):
        data = material.lay_out(cohort, inputs, prepared, settings, usable.pool)
        fit = _stacked if is_stacked else _in_span
        return fit(definition, data, usable, split.test, settings, targets)
    permuted = (replace(cohort, target=target) for target in targets)
    return [
        training.predict(training.train(definition, one, usable, inputs, settings, prepared), one, split.test)
        for one in permuted
    ]


def _stacked(
    definition: Mapping[str, Any], data: Material, split: Split, test: Rows, settings: Settings, targets: Sequence[Target]
) -> list[Array]:  # fmt: skip
    """Train one network for each labelling, all at once, on the coordinates of the members' training rows.

    The members' rows are divided once, by the true labels, as the splits are.
    """
    everyone = data.products(np.concatenate([split.pool, split.test]))
    parts = material.parts(split, data.target.values, data.target, settings.n_members, settings.seed)
    each = [data.under(target, split.pool) for target in targets]
    total = np.zeros((len(targets), len(split.test), data.target.n_outputs))
    with torch.random.fork_rng(devices=[]), loop.one_answer():
        for number, (train, validation) in enumerate(parts):
            total += _stacked_member(definition, each, everyone, train, validation, split.test, settings, number)
    return [_scores(one, outputs / len(parts), test, split.test) for one, outputs in zip(each, total, strict=True)]


def _stacked_member(
    definition: Mapping[str, Any], each: Sequence[Material], everyone: spans.Kernel, train: Rows, validation: Rows, test: Rows,
    settings: Settings, number: int,
) -> Array:  # fmt: skip
    """Train one member for each labelling; returns its outputs on the test rows, (labelling, row, output)."""
    span, seed = spans.of(everyone, train), settings.seed_of(number)
    x = [torch.from_numpy(span.coordinates(everyone, rows)) for rows in (train, validation, test)]
    torch.manual_seed(seed)
    module = building.instantiate({**definition, "shapes": [[x[0].shape[1]]]}, classify=each[0].is_class)
    schedule = stacking.Schedule(
        settings.n_epochs,
        settings.patience,
        settings.batch_of(len(train)),
        settings.learning_rate,
        settings.weight_decay,
    )
    labels = _stacked_labels(each, train, validation, weighted=settings.class_weights)
    found = stacking.train(module, x[0], x[1], {"test": x[2]}, labels, schedule, seed=seed)
    for one, held in zip(each, found["validation"], strict=True):
        one.held.append((validation, held))
    return found["test"]


def _stacked_labels(each: Sequence[Material], train: Rows, validation: Rows, *, weighted: bool) -> stacking.Labels:
    """Put the labels of the rows, and the weights of their classes, one labelling beside the other."""
    pool = np.concatenate([train, validation])
    y = [torch.stack([one.labels(rows) for one in each]) for rows in (train, validation)]
    weights = [one.class_weights(pool, weighted=weighted) for one in each] if each[0].is_class else None
    return stacking.Labels(y[0], y[1], None if weights is None else torch.stack(weights), each[0].target.n_outputs)


def _in_span(
    definition: Mapping[str, Any], data: Material, split: Split, test: Rows, settings: Settings, targets: Sequence[Target]
) -> list[Array]:  # fmt: skip
    """Fit a linear estimator for each labelling on coordinates, one after the other."""
    pool = split.pool
    everyone = data.products(np.concatenate([pool, split.test]))
    span = spans.rotated(everyone, pool)
    x, held = span.coordinates(everyone, pool), span.coordinates(everyone, split.test)
    found = []
    for target in targets:
        one = data.under(target, pool)
        weights, bias, _ = estimating.estimate(definition, x, one, split, settings)
        found.append(_scores(one, held @ weights.T + bias, test, split.test))
    return found


def _scores(data: Material, outputs: Array, test: Rows, tested: Rows) -> Array:
    """Turn outputs on the rows that were tested into calibrated scores of all test rows; NaN where the input is absent."""
    n_levels = len(data.target.levels)
    found = np.full((len(test), max(1, n_levels)), np.nan)
    found[np.isin(test, tested)] = data.calibration().scores(outputs, n_levels, *data.unit)
    return found
