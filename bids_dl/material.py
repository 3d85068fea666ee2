"""What a training is given of a cohort: who has the inputs, their normalised rows, and labels on one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bids_dl import calibration as calibrations
from bids_dl import normalization as norm
from bids_dl import span as spans
from bids_dl import splits
from bids_dl.errors import DataError
from bids_dl.records import Array, Cohort, Split, Target
from bids_dl.settings import Settings

Rows = NDArray[np.intp]


@dataclass
class Prepared:
    """What the features alone determine, whatever the labels: shared by many trainings on one split."""

    normalization: Mapping[str, norm.Normalization]
    kernel: spans.Kernel | None = None


@dataclass
class Material:
    """Normalised rows on demand: from memory where they are few, from disk where they are volumes."""

    cohort: Cohort
    inputs: Sequence[str]
    prepared: Prepared
    confounds: Array | None
    y: Array
    """Codes of classes, or a quantity in deviations from the mean of the training rows; NaN is unknown."""
    unit: tuple[float, float] = (0.0, 1.0)
    """Mean and deviation that a quantity, or the places of ordered levels, were standardised by."""
    held: list[tuple[Rows, Array]] = field(default_factory=list)
    """Rows that a member was not fitted on, and its outputs for them."""

    @property
    def target(self) -> Target:
        """What is learned."""
        return self.cohort.target

    @property
    def is_class(self) -> bool:
        """Whether classes are learned."""
        return self.target.is_class

    @property
    def normalizations(self) -> list[norm.Normalization]:
        """Normalisation of each input, in order."""
        return [self.prepared.normalization[name] for name in self.inputs]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of each input of one participant."""
        return [self.cohort.features[n].shape for n in self.inputs]

    @property
    def row_bytes(self) -> int:
        """Memory that one participant's inputs take."""
        return 4 * sum(int(np.prod(shape)) for shape in self.shapes)

    def under(self, target: Target, pool: Rows) -> Material:
        """Give the same rows other labels, standardised over ``pool``."""
        y, *unit = standardised(target, pool)
        return replace(self, cohort=replace(self.cohort, target=target), y=y, unit=(unit[0], unit[1]), held=[])

    def kernel(self, pool: Rows) -> spans.Kernel:
        """Inner products of the only input's training rows, computed once."""
        if self.prepared.kernel is None:
            self.prepared.kernel = self.products(pool)
        return self.prepared.kernel

    def products(self, rows: Rows) -> spans.Kernel:
        """Inner products of some rows of the only input."""
        name = self.inputs[0]
        return spans.kernel(self.cohort.features[name], self.prepared.normalization[name], rows, self.confounds)

    def folded(self, mixing: Array, pool: Rows) -> Array:
        """Turn a mix of rows of the only input (output, row) into weights on its values (output, value)."""
        name = self.inputs[0]
        block, normalization = self.cohort.features[name], self.prepared.normalization[name]
        return spans.fold(mixing, pool, block, normalization, self.confounds)

    def rows(self, rows: Rows) -> tuple[Tensor, ...]:
        """Return each input's normalised rows."""
        given = None if self.confounds is None else self.confounds[rows]
        return tuple(
            torch.from_numpy(self.prepared.normalization[n].apply(self.cohort.features[n].values[rows], given))
            for n in self.inputs
        )

    def kept(self, rows: Rows) -> tuple[Tensor, ...]:
        """Return the same as `rows`, made a few at a time: at no time is there a second copy of all."""
        made = [np.empty((len(rows), *shape), np.float32) for shape in self.shapes]
        for part in norm.chunks(np.arange(len(rows)), self.row_bytes):
            for whole, values in zip(made, self.rows(rows[part]), strict=True):
                whole[part[0] : part[-1] + 1] = values.numpy()
        return tuple(map(torch.from_numpy, made))

    def labels(self, rows: Rows) -> Tensor:
        """Return labels as a network takes them, (row,); NaN is a target that nobody knows."""
        return torch.tensor(self.y[rows], dtype=torch.float32)

    def class_weights(self, rows: Rows, *, weighted: bool) -> Tensor:
        """Give each class the same say, (class,), or each participant."""
        counts = np.bincount(self.y[rows].astype(int), minlength=len(self.target.levels)).clip(1)
        shares = counts.sum() / (len(counts) * counts) if weighted else np.ones(len(counts))
        return torch.tensor(shares, dtype=torch.float32)

    def calibration(self) -> calibrations.Calibration:
        """Learn from the rows that each member was not fitted on."""
        if not self.held:
            return calibrations.Calibration()
        rows, found = (np.concatenate(parts) for parts in zip(*self.held, strict=True))
        return calibrations.learn(found, self.y[rows], len(self.target.levels), *self.unit)


def lay_out(cohort: Cohort, inputs: Sequence[str], prepared: Prepared, settings: Settings, pool: Rows) -> Material:
    """Lay out what one training is given, with labels standardised over the training rows ``pool``."""
    confounds = given_of(cohort) if settings.needs_confounds else None
    y, mean, scale = standardised(cohort.target, pool)
    return Material(cohort, inputs, prepared, confounds, y, (mean, scale))


def given_of(cohort: Cohort, rows: Rows | slice = slice(None)) -> Array | None:
    """Put the confounds and, a column each, the sites of some rows side by side, (participant, confound + site)."""
    blocks = [cohort.features[name].values[rows] for name in ("confounds", "sites") if name in cohort.features]
    return np.hstack(blocks) if blocks else None


def standardised(target: Target, rows: Rows) -> tuple[Array, float, float]:
    """Scale a quantity by its mean and deviation over the training rows, which are returned too; leave classes."""
    if target.is_class:
        return target.values, 0.0, 1.0
    mean, scale = float(target.values[rows].mean()), float(target.values[rows].std()) or 1.0
    return (target.values - mean) / scale, mean, scale


def parts(split: Split, y: Array, target: Target, n: int, seed: int) -> list[tuple[Rows, Rows]]:
    """Divide the training rows again, like the outer folds, by values ``y`` of the target's kind."""
    return splits.inner(split, y, is_class=target.is_class, n_parts=n, seed=seed, ranks=target.ranks)


def present(cohort: Cohort, split: Split, inputs: Sequence[str]) -> Split:
    """Keep the rows that have the input; a model of several inputs keeps those that have any.

    Raises
    ------
    DataError
        If too few people, or no one of a class, have it.
    """
    has = np.zeros(len(cohort.participants), bool)
    for name in inputs:
        has |= has_values(cohort.features[name].values)
    found = {part: rows[has[rows]] for part in splits.PARTS if len(rows := getattr(split, part)) or part == "test"}
    kept = replace(split, **found)
    _check_present(cohort.target, kept, " or ".join(inputs))
    return kept


def _check_present(target: Target, split: Split, what: str) -> None:
    """Refuse a split in which too few people, or no one of a class, have the input."""
    if len(split.train) < splits.FEWEST:
        raise DataError(
            f"split {split.name}: {len(split.train)} training participants have {what}; at least {splits.FEWEST} are "
            "needed."
        )
    if not len(split.validation):
        raise DataError(
            f"split {split.name}: nobody in the validation part has {what}; raise splits.validation_fraction."
        )
    known = set(target.values[np.concatenate([split.train, split.validation])])
    absent = [level for code, level in enumerate(target.levels) if code not in known]
    if absent:
        raise DataError(f"split {split.name}: nobody of class '{absent[0]}' in the training part has {what}.")


def has_values(values: Array) -> NDArray[np.bool_]:
    """Tell which participants have the feature: at least one value that is not missing."""
    n_values = int(np.prod(values.shape[1:]))
    if not n_values:
        return np.ones(len(values), bool)
    flat = values.reshape(len(values), n_values)
    found: NDArray[np.bool_] = np.asarray(np.isfinite(flat[:, :: max(1, flat.shape[1] // 50)]).any(axis=1))
    for row in np.flatnonzero(~found):
        found[row] = np.isfinite(flat[row]).any()
    return found
