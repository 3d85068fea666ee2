"""One member of an ensemble: a network trained on its own part of the training rows, stopped by the rest of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bids_dl import building, ordinal, pretraining, synthesis
from bids_dl import span as spans
from bids_dl.layers import Fixed
from bids_dl.loop import Loop, Loss, Read, n_together, on_gpu
from bids_dl.material import Material, Rows, has_values
from bids_dl.records import Cohort, Split, Target
from bids_dl.settings import Settings

KEPT_BYTES = 2**26
"""Normalised rows that stay in memory; more are read from the cohort, a batch at a time."""


@dataclass
class Member:
    """One member's training: its rows, its own validation part, and rows without a target that it may learn from."""

    definition: Mapping[str, Any]
    data: Material
    settings: Settings
    number: int
    train: Rows
    validation: Rows
    unlabelled: Rows = field(default_factory=lambda: np.array([], np.intp))
    ordered: bool = False
    """Whether to learn thresholds between the levels of an ordinal target, ``biases`` (rank - 1,) afterwards."""
    biases: Tensor = field(default_factory=lambda: torch.zeros(0))

    def on_coordinates(self, inner: spans.Kernel) -> tuple[Any, spans.Span | spans.Corner, list[dict[str, float]]]:
        """Train on coordinates in the span of this member's training rows, in float32 as permuted networks in a stack are."""
        span = spans.of(inner, self.train)
        torch.manual_seed(self._seed)
        parts = [torch.from_numpy(span.coordinates(inner, rows)) for rows in (self.train, self.validation)]
        module: Any = building.instantiate(
            {**self.definition, "shapes": [[parts[0].shape[1]]]}, classify=self.data.is_class
        )
        read = (lambda at: (parts[0][at],), lambda at: (parts[1][at],))
        return module, span, self._run(module, self.train, *read, precision="32")

    def on_values(self) -> tuple[nn.Module, list[dict[str, float]]]:
        """Train on the normalised values, kept in memory while they are small."""
        torch.manual_seed(self._seed)
        module = building.adopted(self.definition, self.data.normalizations, is_class=self.data.is_class)
        if self.settings.start_from:
            building.start(module, Path(self.settings.start_from), self.settings.frozen, self.number)
            building.adopt(module, self.data.normalizations)  # the bundle's undoes that of other participants
        if pretrains(self.settings, self.data.shapes):
            self._pretrain(module)
        return self.on_module(module)

    def on_module(self, module: nn.Module) -> tuple[nn.Module, list[dict[str, float]]]:
        """Train a module that is already built."""
        train = np.concatenate([self.train, self._usable()]) if uses_unlabelled(self.definition) else self.train
        n_bytes = self.data.row_bytes * (len(train) + len(self.validation))
        kept = [self.data.kept(rows) for rows in (train, self.validation)] if n_bytes < KEPT_BYTES else None

        def getter(part: int, rows: Rows) -> Read:
            if kept is not None:
                return lambda at: tuple(x[at] for x in kept[part])
            return lambda at: self.data.rows(rows[at])

        read = (getter(0, train), getter(1, self.validation))
        return module, self._run(module, train, *read, precision=self.settings.precision, reads_ahead=kept is None)

    @property
    def _seed(self) -> int:
        return self.settings.seed_of(self.number)

    def _pretrain(self, module: nn.Module) -> None:
        """Let a network reconstruct hidden values of everybody it may learn from."""
        rows = np.concatenate([self.train, self._usable()])
        pretraining.masked(
            module, lambda at: self.data.rows(rows[at]), len(rows), batch_size=self.settings.batch_of(len(rows)),
            learning_rate=self.settings.learning_rate, seed=self._seed, device=self._device,
        )  # fmt: skip

    @property
    def _device(self) -> str:
        return "cuda" if on_gpu(self.settings) else "cpu"

    def _usable(self) -> Rows:
        """Keep the rows without a target that have an input."""
        blocks = [self.data.cohort.features[name].values[self.unlabelled] for name in self.data.inputs]
        return self.unlabelled[np.any([has_values(values) for values in blocks], axis=0)]

    def _run(
        self, module: Any, train: Rows, training: Read, validation: Read, *, precision: str, reads_ahead: bool = False
    ) -> list[dict[str, float]]:
        """Let the loop train a module, and note its outputs for the validation rows."""
        loss = self._loss(module)
        if hasattr(module, "begin") and not self.settings.start_from:  # what a bundle has learned is not learned anew
            module.begin(training, len(train))
        labels = self.data.labels(train)
        if is_joined(self.definition, self.data.cohort, self.data.inputs, self.settings):
            drawn = draw(self.data, training, labels, self.settings, self.number)
            training, labels = drawn.behind(training, len(train)), torch.cat([labels, drawn.y])
        checkpoint = self.settings.checkpoint and self.settings.checkpoint / f"member-{self.number}.pt"
        settings = replace(self.settings, precision=precision)
        with ExitStack() as stack:
            if fixed := next((part for part in module.children() if isinstance(part, Fixed)), None):
                training, validation = (
                    self._shortened(fixed, rows, n)
                    for rows, n in ((training, len(train)), (validation, len(self.validation)))
                )
                stack.enter_context(fixed.given())
                reads_ahead = False
            loop = Loop(module, settings, loss, checkpoint, seed=self._seed, reads_ahead=reads_ahead)
            history = loop.run(training, labels, validation, self.data.labels(self.validation))
            held = loop.outputs(validation, len(self.validation))
        if self.ordered:
            self.biases = ordinal.taken(module)
            places = ordinal.expected(torch.from_numpy(held[:, 0]), self.biases).numpy()
            held = ((places - self.data.unit[0]) / self.data.unit[1])[:, None]
        self.data.held.append((self.validation, held))
        return [{"member": self.number, **row} for row in history]

    def _shortened(self, fixed: Fixed, rows: Read, n: int) -> Read:
        """Read what a module's fixed part makes of ``n`` rows, made once, in place of the rows."""
        parts = np.array_split(np.arange(n), -(-n // n_together(rows)))
        made = fixed.to(self._device).of(lambda at: tuple(x.to(self._device) for x in rows(at)), parts).cpu()
        return lambda at: (made[at],)

    def _loss(self, module: Any) -> Loss:
        """Choose the loss; ordered levels get thresholds, which are trained with the module."""
        rows = np.concatenate([self.train, self.validation])
        if not self.ordered:
            return loss_of(self.data, rows, weighted=self.settings.class_weights)
        target, (mean, scale) = self.data.target, self.data.unit
        counts = np.bincount(target.values[rows].astype(int), minlength=len(target.ranks))
        ordinal.let_learn(module, counts.astype(np.float64))
        return lambda out, y: ordinal.coral(out[:, 0], torch.round(y * scale + mean), module.biases)


def loss_of(data: Material, rows: Rows, *, weighted: bool) -> Loss:
    """Choose the loss: (weighted) cross-entropy for classes, squared error for a standardised quantity."""
    if not data.is_class:
        return lambda out, y: nn.functional.mse_loss(out[:, 0], y)
    weights = data.class_weights(rows, weighted=weighted)
    if data.target.n_outputs > 1:
        return lambda out, y: nn.functional.cross_entropy(out, y.long(), weights.to(out.device))
    return lambda out, y: nn.functional.binary_cross_entropy_with_logits(out[:, 0], y, weights.to(out.device)[y.long()])


def draw(data: Material, rows: Read, y: Tensor, settings: Settings, number: int = 0) -> synthesis.Synthetic:
    """Draw participants like the training rows of a member, for each of which ``settings`` says how many."""
    return synthesis.draw(
        rows, y, method=settings.synthetic, options=settings.synthetic_options, n=max(1, round(settings.n_synthetic * len(y))),
        n_levels=len(data.target.levels), seed=settings.seed_of(number),
    )  # fmt: skip


def is_joined(definition: Mapping[str, Any], cohort: Cohort, inputs: Sequence[str], settings: Settings) -> bool:
    """Tell whether synthetic participants join the training rows: as asked, for a network of one input of edges or columns."""
    zoo_name, _, model = str(definition["_target_"]).removesuffix(".build").rpartition(".")
    if settings.synthetic == "none" or zoo_name != "bids_dl.models" or len(inputs) > 1:
        return False
    dims = cohort.features[inputs[0]].dims
    return len(dims) == 1 and synthesis.takes(model, dims[0])


def pretrains(settings: Settings, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Tell whether a network is pretrained: as asked, for one input that is no volume."""
    return settings.pretrain == "masked" and not settings.start_from and len(shapes) == 1 and len(shapes[0]) < 3


def uses_unlabelled(definition: Mapping[str, Any]) -> bool:
    """Tell whether the model's own objective learns from rows without a target."""
    return bool(getattr(building.file_of(definition), "USES_UNLABELLED", False))


def unlabelled(target: Target, split: Split, train: Rows) -> Rows:
    """Find who has no target, for a model whose file says ``USES_UNLABELLED`` or one that is pretrained.

    Nobody is taken whose group has a member with a target outside of ``train``, or whose site is tested.
    """
    rows = np.flatnonzero(np.isnan(target.values))
    outside = np.setdiff1d(np.flatnonzero(np.isfinite(target.values)), train)
    for labels, held in ((split.groups, outside), (split.sites, split.test)):
        if labels:
            refused = {labels[row] for row in held}
            rows = np.array([row for row in rows if labels[row] not in refused], np.intp)
    return rows
