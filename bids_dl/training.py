"""The only training loop: scikit-learn's baselines and torch's networks become fitted models alike."""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bids_dl import augmentation, harmonization, ordinal, pretraining, splits, stacking, synthesis, zoo
from bids_dl import calibration as calibrations
from bids_dl import config as configuration
from bids_dl import normalization as norm
from bids_dl import span as spans
from bids_dl.errors import DataError, MissingInputError, UsageError
from bids_dl.layers import Network
from bids_dl.records import Array, Cohort, FittedModel, Split, Target

LOG = logging.getLogger("bids_dl")
SAFE_TARGETS = re.compile(r"bids_dl\.((models|fusions)\.\w+\.build|training\.(Affine|Ensemble)|ordinal\.Ordered)")
"""What a bundle may build: a bundle is data, not a way to run code."""

CHECKPOINT_EVERY = 5
MOST_TOGETHER, TOGETHER_BYTES = 64, 2**25
"""Held-out rows that go through a network at once: so many, or fewer where they are large."""
KEPT_BYTES = 2**26
"""Normalised rows that stay in memory; more are read from the cohort, a batch at a time."""
SMALLEST_BATCH, STEPS_AN_EPOCH = 4, 10
"""Few participants are cut into batches smaller than asked, so that an epoch still has some ten steps."""
Rows = NDArray[np.intp]
Loss = Callable[[Tensor, Tensor], Tensor]


class Affine(Network):
    """What a linear estimator has learned, as a layer: it explains and saves like any network."""

    def __init__(self, n_values: int, n_outputs: int) -> None:
        super().__init__()
        learned: Any = nn.utils.skip_init(nn.Linear, n_values, n_outputs)  # type: ignore[no-untyped-call]
        self.head: nn.Linear = learned  # its weights are copied in

    def embed(self, x: Tensor) -> Tensor:
        """Return the values themselves, flattened."""
        return x.flatten(1)


class Ensemble(Network):
    """The mean output of several networks, written as one: their embeddings side by side, one head."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        heads: list[Any] = [m.head for m in members]
        self.head = nn.Linear(sum(h.in_features for h in heads), heads[0].out_features)
        with torch.no_grad():
            self.head.weight.copy_(torch.cat([h.weight for h in heads], dim=1) / len(heads))
            self.head.bias.copy_(torch.stack([h.bias for h in heads]).mean(dim=0))

    def embed(self, x: Tensor) -> Tensor:
        """Put the members' embeddings side by side."""
        return torch.cat([m.embed(x) for m in self.members], dim=1)  # type: ignore[operator]


@dataclass(frozen=True)
class Settings:
    """How a network is trained; what the user leaves open comes from the model's own ``SCHEDULE``."""

    n_epochs: int = 80
    patience: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    n_members: int = 1
    clip_norm: float = 0.0
    augment: bool = False
    pretrain: str = "none"
    synthetic: str = "none"
    n_synthetic: float = 1.0
    synthetic_options: Mapping[str, Any] = field(default_factory=dict)
    class_weights: bool = True
    remove_confounds: bool = False
    start_from: str = ""
    frozen: tuple[str, ...] = ()
    harmonizer: str = "none"
    harmonizer_options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = "auto"
    checkpoint: Path | None = field(default=None, compare=False)

    @property
    def needs_confounds(self) -> bool:
        """Whether confounds or sites steer the normalisation."""
        return self.remove_confounds or self.harmonizer != "none"


def settings_for(
    definition: Mapping[str, Any], config: configuration.Config, *, checkpoint: Path | None = None
) -> Settings:
    """Lay the user's wishes over the model's schedule."""
    module = importlib.import_module(str(definition["_target_"]).rpartition(".")[0])
    wishes = {
        key: value
        for key, value in vars(config.training).items()
        if key != "class_weights" and value != configuration.Training.__dataclass_fields__[key].default
    }
    if "start_from" in wishes and origin(Path(wishes["start_from"])) != definition["_target_"]:
        wishes |= {"start_from": "", "frozen": ()}
    if "augment" in wishes:
        wishes["augment"] = wishes["augment"] == "on"
    return replace(
        Settings(), **{**getattr(module, "SCHEDULE", {}), **wishes}, class_weights=config.training.class_weights,
        remove_confounds=config.normalization.remove_confounds, harmonizer=config.harmonizer,
        harmonizer_options=config.harmonizers.of(config.harmonizer),
        synthetic_options=config.models.of(config.training.synthetic), seed=config.random_seed, device=config.run.device,
        checkpoint=checkpoint,
    )  # fmt: skip


def origin(folder: Path) -> str:
    """Read which model a bundle holds; an ensemble holds several of one.

    Raises
    ------
    MissingInputError
        If the folder is no bundle.
    """
    path = folder / "configs" / "inference.json"
    if not path.is_file():
        raise MissingInputError(f"training.start_from: {folder} is no bundle, as it has no configs/inference.json.")
    found: Any = json.loads(path.read_text(encoding="utf-8"))["network_def"]
    return str((found["members"][0] if "members" in found else found)["_target_"])


def define(model: str, shapes: Sequence[tuple[int, ...]], n_outputs: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Write down how a model is built, as a MONAI bundle does."""
    return {
        "_target_": f"bids_dl.models.{model}.build",
        "shapes": [list(s) for s in shapes],
        "n_outputs": n_outputs,
        **options,
    }


def instantiate(definition: Any, **overrides: Any) -> Any:
    """Build what a definition describes; definitions may hold definitions.

    Raises
    ------
    UsageError
        If it names something outside of this package: a bundle is data, not a way to run code.
    """
    if isinstance(definition, list):
        return [instantiate(d) for d in definition]
    if not isinstance(definition, Mapping) or "_target_" not in definition:
        return definition
    module, _, name = str(definition["_target_"]).rpartition(".")
    if not SAFE_TARGETS.fullmatch(str(definition["_target_"])):
        raise UsageError(
            f"the definition names '{definition['_target_']}', which is not part of bids_dl; this bundle is not safe."
        )
    function = getattr(importlib.import_module(module), name)
    arguments = {k: instantiate(v) for k, v in definition.items() if k != "_target_"}
    known = inspect.signature(function).parameters
    return function(**arguments, **{k: v for k, v in overrides.items() if k in known})


def without_gradients(definition: Any) -> tuple[str, ...]:
    """Name the models of a definition, members included, whose file says that no gradient reaches their inputs."""
    if isinstance(definition, list):
        return tuple(name for one in definition for name in without_gradients(one))
    if not isinstance(definition, Mapping):
        return ()
    module = str(definition.get("_target_", "")).rpartition(".")[0]
    blind = module and not getattr(importlib.import_module(module), "GRADIENTS", True)
    inside = (name for one in definition.values() for name in without_gradients(one))
    return (*([module.rpartition(".")[2]] if blind else ()), *inside)


@dataclass
class Prepared:
    """What the features alone determine, whatever the labels: shared by many trainings on one split."""

    normalization: Mapping[str, norm.Normalization]
    kernel: spans.Kernel | None = None


def prepare(cohort: Cohort, split: Split, inputs: Sequence[str], settings: Settings) -> Prepared:
    """Learn harmonisation and normalisation from the training rows (validation included) of a split."""
    split = present(cohort, split, inputs)
    pool = split.pool
    given = given_of(cohort) if settings.needs_confounds else None
    confounds = cohort.features["confounds"].values if settings.remove_confounds else None
    found = {}
    for name in inputs:
        block = cohort.features[name]
        found[name] = norm.fit(
            block.values, pool, confounds, one_scale=block.has_one_scale, steps=block.is_sequence, given=given,
            harmonization=_harmonize(cohort, name, pool, given, settings),
        )  # fmt: skip
    return Prepared(found)


def _harmonize(
    cohort: Cohort, name: str, pool: Rows, given: Array | None, settings: Settings
) -> harmonization.Harmonization | None:
    """Learn from the training rows what sets the sites apart; series are standardised by scan and confounds stay."""
    if settings.harmonizer == "none" or cohort.features[name].is_sequence or name == "confounds" or given is None:
        return None
    fit = zoo.load("harmonizers", settings.harmonizer)
    labels, n_sites = cohort.features["confounds"].labels, cohort.features["sites"].shape[0]
    found: harmonization.Harmonization = fit(
        cohort.features[name].values, pool, given, n_sites, labels, **settings.harmonizer_options
    )
    return found


def given_of(cohort: Cohort, rows: Rows | slice = slice(None)) -> Array | None:
    """Put the confounds and, a column each, the sites of some rows side by side, (participant, confound + site)."""
    blocks = [cohort.features[name].values[rows] for name in ("confounds", "sites") if name in cohort.features]
    return np.hstack(blocks) if blocks else None


def train(
    definition: Mapping[str, Any], cohort: Cohort, split: Split, inputs: Sequence[str], settings: Settings,
    prepared: Prepared | None = None,
) -> FittedModel:  # fmt: skip
    """Fit one model on the training rows of one split; the test rows are never read.

    Parameters
    ----------
    definition
        What to build, from `define`.
    cohort
        Features and target.
    split
        Rows; the validation part stops networks, and belongs to the training rows of everything else.
    inputs
        Names of the features that the module takes, in order.
    settings
        Epochs, rates, seed.
    prepared
        What `prepare` returned for the same features and split, to be used again.

    Returns
    -------
    FittedModel
        With its history: a row an epoch and member.

    Raises
    ------
    DataError
        If too few training participants have the features, or the loss stops being a number.
    """
    split = present(cohort, split, inputs)
    prepared = prepared or prepare(cohort, split, inputs, settings)
    try:
        return _fitted(cohort, split, inputs, prepared, settings, lambda data: _fit(definition, data, split, settings))
    except FloatingPointError as problem:
        name = str(definition["_target_"]).split(".")[-2]
        raise DataError(f"{name} on {', '.join(inputs)}, split {split.name}: {problem}") from problem


def _fitted(
    cohort: Cohort, split: Split, inputs: Sequence[str], prepared: Prepared, settings: Settings,
    fit: Callable[[_Data], tuple[nn.Module, Mapping[str, Any], Sequence[Mapping[str, float]]]],
) -> FittedModel:  # fmt: skip
    """Run a training on normalised rows, seeded and deterministic, and keep what a prediction needs."""
    pool = split.pool
    confounds = given_of(cohort) if settings.needs_confounds else None
    y, mean, scale = _standardised(cohort.target, pool)
    data = _Data(cohort, inputs, prepared, confounds, y, is_class=cohort.target.is_class, unit=(mean, scale))
    with torch.random.fork_rng(devices=[]), _one_answer():
        torch.manual_seed(settings.seed)
        module, definition, history = fit(data)
    target, normalization = cohort.target, prepared.normalization
    return FittedModel(
        module.eval(), definition, tuple(inputs), normalization, split, target.name, target.levels, mean, scale,
        tuple(history), _calibrate(data, mean, scale), target.ranks,
    )  # fmt: skip


def _parts(split: Split, y: Array, target: Target, n: int, seed: int) -> list[tuple[Rows, Rows]]:
    """Divide the training rows again, like the outer folds, by values ``y`` of the target's kind."""
    return splits.inner(split, y, is_class=target.is_class, n_parts=n, seed=seed, ranks=target.ranks)


def _calibrate(data: _Data, mean: float, scale: float) -> calibrations.Calibration:
    """Learn from the rows that each member was not fitted on."""
    if not data.held:
        return calibrations.Calibration()
    rows, found = (np.concatenate(parts) for parts in zip(*data.held, strict=True))
    return calibrations.learn(found, data.y[rows], len(data.cohort.target.levels), mean, scale)


def refine(
    module: nn.Module, definition: Mapping[str, Any], cohort: Cohort, split: Split, inputs: Sequence[str],
    normalization: Mapping[str, norm.Normalization], settings: Settings,
) -> FittedModel:  # fmt: skip
    """Train a module that is already built, on inputs whose normalisation is already learned: a fusion of members.

    Its weights before training compete in the early stopping, so that refining never ends below the start on the
    validation rows.
    """
    split = present(cohort, split, inputs)

    def fit(data: _Data) -> tuple[nn.Module, Mapping[str, Any], Sequence[Mapping[str, float]]]:
        _, history = _Once(definition, data, settings, 0, split.train, split.validation).on_module(module)
        return module, definition, history

    return _fitted(cohort, split, inputs, Prepared(normalization), settings, fit)


class _one_answer:
    """Ask torch for deterministic algorithms while training, and give the setting back afterwards."""

    def __enter__(self) -> None:
        self.before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True, warn_only=True)

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(self.before)


class _one_thread:
    """Let torch work alone: for layers this small, waiting for other threads costs more than they do."""

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


def present(cohort: Cohort, split: Split, inputs: Sequence[str]) -> Split:
    """Keep the rows that have the input; a model of several inputs keeps those that have any."""
    has = np.zeros(len(cohort.participants), bool)
    for name in inputs:
        has |= has_values(cohort.features[name].values)
    parts = {part: rows[has[rows]] for part in splits.PARTS if len(rows := getattr(split, part)) or part == "test"}
    kept = replace(split, **parts)
    _check_present(cohort.target, kept, " or ".join(inputs))
    return kept


def _check_present(target: Target, split: Split, what: str) -> None:
    """Refuse a split in which too few people, or no one of a class, have the input."""
    if len(split.train) < 4:
        raise DataError(
            f"split {split.name}: {len(split.train)} training participants have {what}; at least 4 are needed."
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


def _standardised(target: Target, rows: Rows) -> tuple[Array, float, float]:
    """Scale a quantity by its mean and deviation over the training rows; leave classes."""
    if target.is_class:
        return target.values, 0.0, 1.0
    mean, scale = float(target.values[rows].mean()), float(target.values[rows].std()) or 1.0
    return (target.values - mean) / scale, mean, scale


@dataclass
class _Data:
    """Normalised rows on demand: from memory where they are few, from disk where they are volumes."""

    cohort: Cohort
    inputs: Sequence[str]
    prepared: Prepared
    confounds: Array | None
    y: Array
    is_class: bool
    held: list[tuple[Rows, Array]] = field(default_factory=list)
    unit: tuple[float, float] = (0.0, 1.0)
    """Mean and deviation that a quantity, or the places of ordered levels, were standardised by."""

    @property
    def normalization(self) -> Mapping[str, norm.Normalization]:
        """Normalisation of each input."""
        return self.prepared.normalization

    def kernel(self, pool: Rows) -> spans.Kernel:
        """Inner products of the only input's training rows, computed once."""
        if self.prepared.kernel is None:
            name = self.inputs[0]
            self.prepared.kernel = spans.kernel(
                self.cohort.features[name], self.normalization[name], pool, self.confounds
            )
        return self.prepared.kernel

    def rows(self, rows: Rows) -> tuple[Tensor, ...]:
        """Return each input's normalised rows."""
        given = None if self.confounds is None else self.confounds[rows]
        return tuple(
            torch.from_numpy(self.normalization[n].apply(self.cohort.features[n].values[rows], given))
            for n in self.inputs
        )

    def kept(self, rows: Rows) -> tuple[Tensor, ...]:
        """Return the same as `rows`, made a few at a time: at no time is there a second copy of all."""
        made = [np.empty((len(rows), *shape), np.float32) for shape in self.shapes]
        for part in norm.chunks(np.arange(len(rows)), self.row_bytes):
            for whole, values in zip(made, self.rows(rows[part]), strict=True):
                whole[part[0] : part[-1] + 1] = values.numpy()
        return tuple(map(torch.from_numpy, made))

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of each input of one participant."""
        return [self.cohort.features[n].shape for n in self.inputs]

    @property
    def row_bytes(self) -> int:
        """Memory that one participant's inputs take."""
        return 4 * sum(int(np.prod(shape)) for shape in self.shapes)


def _fit(
    definition: Mapping[str, Any], data: _Data, split: Split, settings: Settings
) -> tuple[nn.Module, dict[str, Any], list[dict[str, float]]]:
    """Fit in the span of the training rows where that is smaller, else on the values themselves."""
    pool = split.pool
    probe = _without_weights(definition, is_class=data.is_class)
    small = _is_smaller(probe, data.shapes, len(pool))
    if not isinstance(probe, nn.Module):
        return _fit_estimator(definition, data, split, settings, small=small)
    if hasattr(probe, "solve"):
        return _solve(definition, data, split, settings)
    parts = _parts(split, data.y, data.cohort.target, settings.n_members, settings.seed)
    ordered = bool(data.cohort.target.ranks) and not _uses_unlabelled(definition)
    once = [
        _Once(definition, data, settings, number, *rows, _unlabelled(data.cohort.target, split, rows[0]), ordered)
        for number, rows in enumerate(parts)
    ]
    in_span = small and hasattr(probe, "first") and not getattr(probe, "on_values", False)
    if in_span and not settings.start_from and not _pretrains(settings, data.shapes):
        members, history = _fit_in_span(once, data, pool)
    else:
        fitted = [one.on_values() for one in once]
        members, history = [m for m, _ in fitted], [row for _, rows in fitted for row in rows]
    if ordered:
        return *_ordered(members, once, definition), history
    if len(members) == 1:
        return members[0], dict(definition), history
    built = {"_target_": "bids_dl.training.Ensemble", "members": [dict(definition)] * len(members)}
    return Ensemble(members), built, history


def _ordered(
    members: Sequence[nn.Module], once: Sequence[_Once], definition: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """Join members that each have thresholds between the levels; also says how the module is built."""
    n_ranks = len(once[0].data.cohort.target.ranks)
    module = ordinal.Ordered(members, n_ranks)
    module.biases.copy_(torch.stack([one.biases for one in once]))
    module.unit.copy_(torch.tensor(once[0].data.unit))
    definitions = [dict(definition)] * len(members)
    return module, {"_target_": "bids_dl.ordinal.Ordered", "members": definitions, "n_ranks": n_ranks}


def _uses_unlabelled(definition: Mapping[str, Any]) -> bool:
    """Tell whether the model's own objective learns from rows without a target."""
    module = importlib.import_module(str(definition["_target_"]).rpartition(".")[0])
    return bool(getattr(module, "USES_UNLABELLED", False))


def _is_smaller(probe: Any, shapes: Sequence[tuple[int, ...]], n_rows: int) -> bool:
    """Tell whether to train in the span of the training rows; estimators take more rows than networks."""
    most = spans.MOST_AXES if isinstance(probe, nn.Module) else spans.MOST_CORNERS
    return spans.is_smaller(shapes, n_rows, most=most)


def _pretrains(settings: Settings, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Tell whether a network is pretrained: as asked, for one input that is no volume."""
    return settings.pretrain == "masked" and not settings.start_from and len(shapes) == 1 and len(shapes[0]) < 3


def _is_joined(definition: Mapping[str, Any], cohort: Cohort, inputs: Sequence[str], settings: Settings) -> bool:
    """Tell whether synthetic participants join the training rows: as asked, for a network of one input of edges or columns."""
    zoo_name, _, model = str(definition["_target_"]).removesuffix(".build").rpartition(".")
    if settings.synthetic == "none" or zoo_name != "bids_dl.models" or len(inputs) > 1:
        return False
    dims = cohort.features[inputs[0]].dims
    return len(dims) == 1 and synthesis.takes(model, dims[0])


def _unlabelled(target: Target, split: Split, train: Rows) -> Rows:
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


def _solve(
    definition: Mapping[str, Any], data: _Data, split: Split, settings: Settings
) -> tuple[nn.Module, dict[str, Any], list[dict[str, float]]]:
    """Let a module that needs no gradients solve for what it learns; it gets inner folds to choose its options by."""
    pool = split.pool
    folds = _inner_folds(split, data, pool, settings)
    module: Any = _adopted(definition, data)
    with torch.no_grad():
        inputs = _begun(module, data, pool) if hasattr(module, "begin") else data.rows(pool)
        chosen, held = module.solve(inputs, data.y[pool], folds)
    data.held.append((pool, np.asarray(held, np.float64)))
    row = {"member": 0, "epoch": 0, "train_loss": float("nan"), "validation_loss": float("nan")}
    return module, dict(definition), [{**row, "penalty": float(chosen)}]


def _begun(module: Any, data: _Data, pool: Rows) -> tuple[Tensor, ...]:
    """Let a module that solves for little start from rows on demand; returns its ``summary`` of them, some at a time."""
    module.begin(lambda at: data.rows(pool[at]), len(pool))
    return (torch.cat([module.summary(*data.rows(rows)) for rows in norm.chunks(pool, data.row_bytes)]),)


def _fit_in_span(once: Sequence[_Once], data: _Data, pool: Rows) -> tuple[list[nn.Module], list[dict[str, float]]]:
    """Train each member on coordinates, then fold all their first layers back in one pass over the values."""
    block, normalization = data.cohort.features[data.inputs[0]], data.normalization[data.inputs[0]]
    inner = data.kernel(pool)
    small, mixings, history = [], [], []
    for one in once:
        with _one_thread():
            module, span, rows = one.on_coordinates(inner)
        mixing = np.zeros((module.first.out_features, len(pool)), np.float32)
        mixing[:, np.searchsorted(pool, span.rows)] = span.mixing(module.first.weight.detach().numpy())
        small.append(module)
        mixings.append(mixing)
        history += rows
    folded = np.split(spans.fold(np.concatenate(mixings), pool, block, normalization, data.confounds), len(once))
    members = []
    for one, module, weights in zip(once, small, folded, strict=True):
        full = _without_weights(one.definition, is_class=data.is_class)
        full.load_state_dict(module.state_dict() | {"first.weight": torch.from_numpy(weights)}, assign=True)
        members.append(full)
    return members, history


def _fit_estimator(
    definition: Mapping[str, Any], data: _Data, split: Split, settings: Settings, *, small: bool
) -> tuple[nn.Module, dict[str, Any], list[dict[str, float]]]:
    """Fit a scikit-learn baseline and keep what it learned as a linear layer."""
    pool = split.pool
    name = data.inputs[0]
    block, normalization = data.cohort.features[name], data.normalization[name]
    n_values = int(np.prod(block.shape))
    span = spans.rotated(data.kernel(pool), pool) if small else None
    x = span.coordinates(data.kernel(pool), pool) if span else np.nan_to_num(data.rows(pool)[0].flatten(1).numpy())
    weights, bias, penalty = _estimate(definition, x, data, split, settings, held_out=True)
    if span is not None:
        weights = spans.fold(span.mixing(weights), pool, block, normalization, data.confounds)
    module = Affine(n_values, len(bias))
    with torch.no_grad():
        module.head.weight.copy_(torch.from_numpy(np.ascontiguousarray(weights[:, :n_values], np.float32)))
        module.head.bias.copy_(torch.from_numpy(np.asarray(bias, np.float32)))
    built = {"_target_": "bids_dl.training.Affine", "n_values": n_values, "n_outputs": len(bias)}
    return (
        module,
        built,
        [{"member": 0, "epoch": 0, "train_loss": float("nan"), "validation_loss": float("nan"), "penalty": penalty}],
    )


def _estimate(
    definition: Mapping[str, Any], x: Array, data: _Data, split: Split, settings: Settings, *, held_out: bool = False
) -> tuple[Array, Array, float]:
    """Fit an estimator on the training rows' values or coordinates; returns weights, biases and the penalty chosen."""
    from sklearn import config_context

    pool = split.pool
    x = x if x.shape[1] else np.zeros((len(pool), 1), np.float32)
    estimator = instantiate({**definition, "shapes": [[x.shape[1]]]}, classify=data.is_class)
    _set_inner_folds(estimator, split, data, pool, settings)
    with config_context(skip_parameter_validation=True, assume_finite=True):
        estimator.fit(x, data.y[pool].astype(int) if data.is_class else data.y[pool])
    weights, bias = _linear_parts(estimator, x.shape[1], data.cohort.target.n_outputs)
    if held_out:
        data.held.append((pool, _held_by(estimator, x, data, split, settings)))
    chosen = getattr(estimator, "penalty_", float("nan"))
    return weights, bias, float(np.ravel(chosen)[0]) if np.size(chosen) else float("nan")


def held_out_scores(
    definition: Mapping[str, Any], cohort: Cohort, split: Split, inputs: Sequence[str], settings: Settings
) -> Array:
    """Predict the test rows, as `predict` does, by a model that nobody needs: linear weights are not brought to values."""
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

    What the features alone determine is computed once. Linear baselines with more values than participants never
    leave the span of the training rows: a training takes milliseconds.

    Returns
    -------
    list
        Scores of the test rows for each of ``targets``, as `predict` gives them.
    """
    usable = present(cohort, split, inputs)
    pool = usable.pool
    prepared = prepare(cohort, usable, inputs, settings)
    probe = _without_weights(definition, is_class=cohort.target.is_class)
    shapes = [cohort.features[n].shape for n in inputs]
    small = _is_smaller(probe, shapes, len(pool))
    joined = _pretrains(settings, shapes) or _is_joined(definition, cohort, inputs, settings)
    stacks = getattr(probe, "is_plain", False) and not cohort.target.ranks and not joined
    if small and stacks:
        return _null_stacked(definition, cohort, usable, split.test, inputs, settings, targets, prepared)
    if isinstance(probe, nn.Module) or not small:
        permuted = (replace(cohort, target=target) for target in targets)
        return [
            predict(train(definition, one, usable, inputs, settings, prepared), one, split.test) for one in permuted
        ]
    return _null_in_span(definition, cohort, usable, split.test, inputs, settings, targets, prepared)


def _null_stacked(
    definition: Mapping[str, Any], cohort: Cohort, split: Split, test: Rows, inputs: Sequence[str], settings: Settings,
    targets: Sequence[Target], prepared: Prepared,
) -> list[Array]:  # fmt: skip
    """Train one network for each labelling, all at once, on the coordinates of the members' training rows.

    The members' rows are divided once, by the true labels, as the splits are.
    """
    confounds = given_of(cohort) if settings.needs_confounds else None
    pool, everyone = _kernel_with_test(cohort, split, inputs[0], prepared, confounds)
    units = [_standardised(target, pool) for target in targets]
    parts = _parts(split, cohort.target.values, cohort.target, settings.n_members, settings.seed)
    data = [
        _Data(replace(cohort, target=target), inputs, prepared, confounds, y, is_class=target.is_class)
        for target, (y, _, _) in zip(targets, units, strict=True)
    ]
    total = np.zeros((len(targets), len(split.test), cohort.target.n_outputs))
    with torch.random.fork_rng(devices=[]), _one_answer():
        for number, (train, validation) in enumerate(parts):
            total += _stacked_member(definition, data, everyone, train, validation, split.test, settings, number)
    return [
        _null_score(one, outputs / len(parts), test, split.test, mean, scale)
        for one, outputs, (_, mean, scale) in zip(data, total, units, strict=True)
    ]


def _kernel_with_test(
    cohort: Cohort, split: Split, name: str, prepared: Prepared, given: Array | None
) -> tuple[Rows, spans.Kernel]:
    """Return the training rows, and the inner products of these and the test rows."""
    pool = split.pool
    rows = np.concatenate([pool, split.test])
    return pool, spans.kernel(cohort.features[name], prepared.normalization[name], rows, given)


def _null_score(data: _Data, outputs: Array, test: Rows, tested: Rows, mean: float, scale: float) -> Array:
    """Turn outputs on the rows that were tested into calibrated scores of all test rows; NaN where the input is absent."""
    n_levels = len(data.cohort.target.levels)
    found = np.full((len(test), max(1, n_levels)), np.nan)
    found[np.isin(test, tested)] = _calibrate(data, mean, scale).scores(outputs, n_levels, mean, scale)
    return found


def _stacked_member(
    definition: Mapping[str, Any], data: Sequence[_Data], everyone: spans.Kernel, train: Rows, validation: Rows, test: Rows,
    settings: Settings, number: int,
) -> Array:  # fmt: skip
    """Train one member for each labelling; returns its outputs on the test rows, (labelling, row, output)."""
    span = spans.of(everyone, train)
    x = [torch.from_numpy(span.coordinates(everyone, rows)) for rows in (train, validation, test)]
    _seed(settings, number)
    module = instantiate({**definition, "shapes": [[x[0].shape[1]]]}, classify=data[0].is_class)
    pool = np.concatenate([train, validation])
    y = [torch.tensor(np.stack([d.y[rows] for d in data]), dtype=torch.float32) for rows in (train, validation)]
    weights = [_class_weights(d, pool, weighted=settings.class_weights) for d in data] if data[0].is_class else None
    n_outputs = data[0].cohort.target.n_outputs
    labels = stacking.Labels(y[0], y[1], None if weights is None else torch.stack(weights), n_outputs)
    schedule = stacking.Schedule(
        settings.n_epochs,
        settings.patience,
        _batch_size(settings, len(train)),
        settings.learning_rate,
        settings.weight_decay,
    )
    found = stacking.train(module, x[0], x[1], {"test": x[2]}, labels, schedule, seed=settings.seed + 1000 * number)
    for one, held in zip(data, found["validation"], strict=True):
        one.held.append((validation, held))
    return found["test"]


def _null_in_span(
    definition: Mapping[str, Any], cohort: Cohort, split: Split, test: Rows, inputs: Sequence[str], settings: Settings,
    targets: Sequence[Target], prepared: Prepared,
) -> list[Array]:  # fmt: skip
    confounds = given_of(cohort) if settings.needs_confounds else None
    pool, everyone = _kernel_with_test(cohort, split, inputs[0], prepared, confounds)
    span = spans.rotated(everyone, pool)
    x, held = span.coordinates(everyone, pool), span.coordinates(everyone, split.test)
    found = []
    for target in targets:
        one = replace(cohort, target=target)
        y, mean, scale = _standardised(target, pool)
        data = _Data(one, inputs, prepared, confounds, y, is_class=target.is_class)
        weights, bias, _ = _estimate(definition, x, data, split, settings, held_out=True)
        found.append(_null_score(data, held @ weights.T + bias, test, split.test, mean, scale))
    return found


def _set_inner_folds(estimator: Any, split: Split, data: _Data, pool: Rows, settings: Settings) -> None:
    """Give an estimator that chooses a penalty its inner folds, divided like the outer ones."""
    if hasattr(estimator, "cv"):
        estimator.cv = _inner_folds(split, data, pool, settings)


def _inner_folds(split: Split, data: _Data, pool: Rows, settings: Settings) -> list[tuple[Rows, Rows]]:
    """Divide the training rows again; returns positions in ``pool``."""
    parts = _parts(split, data.y, data.cohort.target, 5, settings.seed)
    return [(np.searchsorted(pool, a), np.searchsorted(pool, b)) for a, b in parts]


def _held_by(estimator: Any, x: Array, data: _Data, split: Split, settings: Settings) -> Array:
    """Return each row's output by an inner fit without it, fitted once more where the estimator has not kept them."""
    if hasattr(estimator, "held_"):
        return np.asarray(estimator.held_, np.float64)
    pool = split.pool
    n_outputs = data.cohort.target.n_outputs
    found = np.full((len(pool), n_outputs), np.nan)
    for train, held in _inner_folds(split, data, pool, settings):
        y = data.y[pool[train]]
        if data.is_class and len(np.unique(y)) < len(data.cohort.target.levels):
            continue
        one = _as_chosen(estimator).fit(x[train], y.astype(int) if data.is_class else y)
        weights, bias = _linear_parts(one, x.shape[1], n_outputs)
        found[held] = x[held] @ weights.T + bias
    return found


def _as_chosen(estimator: Any) -> Any:
    """Return an estimator that has not seen anything, with the penalty that a fitted one has chosen."""
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression

    if hasattr(estimator, "C_"):
        penalty = float(np.ravel(estimator.C_)[0])
        return LogisticRegression(C=penalty, class_weight=estimator.class_weight, max_iter=estimator.max_iter)
    return clone(estimator)


def _linear_parts(estimator: Any, n_values: int, n_outputs: int) -> tuple[Array, Array]:
    """Read an estimator's weights (output, value) and biases; one that has none is constant."""
    if hasattr(estimator, "coef_"):
        return np.atleast_2d(estimator.coef_), np.atleast_1d(estimator.intercept_)
    if hasattr(estimator, "class_prior_"):
        prior = np.log(np.maximum(estimator.class_prior_, 1e-9))
        bias = prior if n_outputs > 1 else np.array([prior[1] - prior[0]])
    else:
        bias = np.ravel(estimator.constant_)
    return np.zeros((len(bias), n_values)), bias


@dataclass
class _Once:
    """One member's training: its rows, its own validation part, and rows without a target that it may learn from."""

    definition: Mapping[str, Any]
    data: _Data
    settings: Settings
    number: int
    train: Rows
    validation: Rows
    unlabelled: Rows = field(default_factory=lambda: np.array([], np.intp))
    ordered: bool = False
    """Whether to learn thresholds between the levels of an ordinal target, ``biases`` (rank - 1,) afterwards."""
    biases: Tensor = field(default_factory=lambda: torch.zeros(0))

    def on_coordinates(self, inner: spans.Kernel) -> tuple[Any, spans.Span | spans.Corner, list[dict[str, float]]]:
        """Train on coordinates in the span of this member's training rows."""
        span = spans.of(inner, self.train)
        _seed(self.settings, self.number)
        parts = [torch.from_numpy(span.coordinates(inner, rows)) for rows in (self.train, self.validation)]
        module: Any = instantiate({**self.definition, "shapes": [[parts[0].shape[1]]]}, classify=self.data.is_class)
        return module, span, self._loop(module, self.train, lambda at: (parts[0][at],), lambda at: (parts[1][at],))

    def on_values(self) -> tuple[nn.Module, list[dict[str, float]]]:
        """Train on the normalised values, kept in memory while they are small."""
        _seed(self.settings, self.number)
        module = _adopted(self.definition, self.data)
        if self.settings.start_from:
            _start(module, Path(self.settings.start_from), self.settings.frozen, self.number)
        if _pretrains(self.settings, self.data.shapes):
            self._pretrain(module)
        return self.on_module(module)

    def _pretrain(self, module: nn.Module) -> None:
        """Let a network reconstruct hidden values of everybody it may learn from."""
        rows = np.concatenate([self.train, self._usable()])
        device = "cuda" if self.settings.device != "cpu" and torch.cuda.is_available() else "cpu"
        pretraining.masked(
            module, lambda at: self.data.rows(rows[at]), len(rows), batch_size=_batch_size(self.settings, len(rows)),
            learning_rate=self.settings.learning_rate, seed=self.settings.seed + 1000 * self.number, device=device,
        )  # fmt: skip

    def on_module(self, module: nn.Module) -> tuple[nn.Module, list[dict[str, float]]]:
        """Train a module that is already built."""
        train = np.concatenate([self.train, self._usable()]) if _uses_unlabelled(self.definition) else self.train
        n_bytes = self.data.row_bytes * (len(train) + len(self.validation))
        kept = [self.data.kept(rows) for rows in (train, self.validation)] if n_bytes < KEPT_BYTES else None

        def getter(part: int, rows: Rows) -> Callable[[NDArray[np.intp]], tuple[Tensor, ...]]:
            if kept is not None:
                return lambda at: tuple(x[at] for x in kept[part])
            return lambda at: self.data.rows(rows[at])

        return module, self._loop(module, train, getter(0, train), getter(1, self.validation))

    def _usable(self) -> Rows:
        """Keep the rows without a target that have an input."""
        blocks = [self.data.cohort.features[name].values[self.unlabelled] for name in self.data.inputs]
        return self.unlabelled[np.any([has_values(values) for values in blocks], axis=0)]

    def _loop(
        self, module: Any, train: Rows, training: Callable[..., Any], validation: Callable[..., Any]
    ) -> list[dict[str, float]]:
        loss = self._loss(module)
        if hasattr(module, "begin") and not self.settings.start_from:  # what a bundle has learned is not learned anew
            module.begin(training, len(train))
        labels = self._labels(train)
        if _is_joined(self.definition, self.data.cohort, self.data.inputs, self.settings):
            drawn = _drawn(self.data, training, labels, self.settings, self.number)
            training, labels = drawn.behind(training, len(train)), torch.cat([labels, drawn.y])
        checkpoint = self.settings.checkpoint and self.settings.checkpoint / f"member-{self.number}.pt"
        loop = _Loop(module, self.settings, loss, checkpoint, seed=self.settings.seed + 1000 * self.number)
        history = loop.run(training, labels, validation, self._labels(self.validation))
        held = loop.outputs(validation, len(self.validation))
        if self.ordered:
            self.biases = ordinal.taken(module)
            places = ordinal.expected(torch.from_numpy(held[:, 0]), self.biases).numpy()
            held = ((places - self.data.unit[0]) / self.data.unit[1])[:, None]
        self.data.held.append((self.validation, held))
        return [{"member": self.number, **row} for row in history]

    def _loss(self, module: Any) -> Loss:
        """Choose the loss; ordered levels get thresholds, which are trained with the module."""
        rows = np.concatenate([self.train, self.validation])
        if not self.ordered:
            return _loss(self.data, rows, weighted=self.settings.class_weights)
        target, (mean, scale) = self.data.cohort.target, self.data.unit
        counts = np.bincount(target.values[rows].astype(int), minlength=len(target.ranks))
        ordinal.let_learn(module, counts.astype(np.float64))
        return lambda out, y: ordinal.coral(out[:, 0], torch.round(y * scale + mean), module.biases)

    def _labels(self, rows: Rows) -> Tensor:
        return torch.tensor(self.data.y[rows], dtype=torch.float32)  # NaN is a target that nobody knows


def _drawn(
    data: _Data, rows: Callable[..., Any], y: Tensor, settings: Settings, number: int = 0
) -> synthesis.Synthetic:
    """Draw participants like the training rows of a member, for each of which ``settings`` says how many."""
    return synthesis.draw(
        rows, y, method=settings.synthetic, options=settings.synthetic_options, n=max(1, round(settings.n_synthetic * len(y))),
        n_levels=len(data.cohort.target.levels), seed=settings.seed + 1000 * number,
    )  # fmt: skip


def beside(cohort: Cohort, split: Split, name: str, settings: Settings) -> dict[str, tuple[Array, Array]]:
    """Draw synthetic participants as a network of one member is given them on this split, and read real ones beside.

    Returns
    -------
    dict
        ``train``, ``synthetic`` and ``validation``: normalised values (participant, value), of at most
        `synthesis.MOST_ROWS` each, evenly spread, and their targets (participant,), codes of classes or standardised. The
        generative model has seen no validation row.
    """
    split = present(cohort, split, [name])
    prepared, given = prepare(cohort, split, [name], settings), given_of(cohort) if settings.needs_confounds else None
    y, _, _ = _standardised(cohort.target, split.pool)
    data = _Data(cohort, [name], prepared, given, y, is_class=cohort.target.is_class)
    labels = torch.tensor(y[split.train], dtype=torch.float32)
    with _one_thread():
        drawn = _drawn(data, lambda at: data.rows(split.train[at]), labels, settings)
    at = synthesis.evenly(len(drawn.y))
    found: dict[str, tuple[Tensor, Array]] = {"synthetic": (drawn.rows(at), drawn.y[at].numpy().astype(np.float64))}
    for part, rows in (("train", split.train), ("validation", split.validation)):
        rows = rows[synthesis.evenly(len(rows))]
        found[part] = (data.rows(rows)[0], y[rows])
    return {part: (torch.nan_to_num(x).flatten(1).numpy(), labels) for part, (x, labels) in found.items()}


def _adopted(definition: Mapping[str, Any], data: _Data) -> Any:
    """Build a model that knows the normalisation, where it asks for it."""
    module = instantiate(definition, classify=data.is_class)
    if hasattr(module, "adopt"):
        module.adopt(*(data.normalization[name] for name in data.inputs))
    return module


def _start(module: nn.Module, folder: Path, frozen: Sequence[str], number: int) -> None:
    """Begin with the weights of a bundle's member, but for a head of another size, and freeze what is to keep them.

    Raises
    ------
    UsageError
        If anything but the head does not fit, or a part to freeze does not exist.
    """
    from safetensors.torch import load_file

    given = load_file(folder / "models" / "model.safetensors")
    n_members = len({key.split(".")[1] for key in given if key.startswith("members.")})
    prefix = f"members.{number % n_members}." if n_members else ""
    own = module.state_dict()
    fitting = {k: given[prefix + k] for k in own if prefix + k in given and given[prefix + k].shape == own[k].shape}
    lacking = [key for key in own if key not in fitting and not key.startswith("head.")]
    if lacking:
        raise UsageError(
            f"training.start_from: '{lacking[0]}' of {folder.name} does not fit; it was trained on other features or with "
            "other options."
        )
    module.load_state_dict({**own, **fitting})
    parts = [name for name, _ in module.named_children()]
    for name in frozen:
        if name not in parts:
            raise UsageError(f"training.frozen: the model has no part '{name}'; {zoo.nearest(name, parts)}")
        module.get_submodule(name).requires_grad_(False)


def _without_weights(definition: Mapping[str, Any], *, is_class: bool) -> Any:
    """Build a model without drawing its weights: to look at it, or because they are about to be replaced."""
    with torch.device("meta"):
        return instantiate(definition, classify=is_class)


def _loss(data: _Data, rows: Rows, *, weighted: bool) -> Loss:
    """Choose the loss: (weighted) cross-entropy for classes, squared error for a standardised quantity."""
    target = data.cohort.target
    if not target.is_class:
        return lambda out, y: nn.functional.mse_loss(out[:, 0], y)
    weights = _class_weights(data, rows, weighted=weighted)
    if target.n_outputs > 1:
        return lambda out, y: nn.functional.cross_entropy(out, y.long(), weights.to(out.device))
    return lambda out, y: nn.functional.binary_cross_entropy_with_logits(out[:, 0], y, weights.to(out.device)[y.long()])


def _class_weights(data: _Data, rows: Rows, *, weighted: bool) -> Tensor:
    """Give each class the same say, (class,), or each participant."""
    counts = np.bincount(data.y[rows].astype(int), minlength=len(data.cohort.target.levels)).clip(1)
    shares = counts.sum() / (len(counts) * counts) if weighted else np.ones(len(counts))
    return torch.tensor(shares, dtype=torch.float32)


class _Loop:
    """Epochs with early stopping on the validation rows; the best weights are kept; a checkpoint lets it resume."""

    def __init__(
        self, module: nn.Module, settings: Settings, loss: Loss, checkpoint: Path | None, *, seed: int
    ) -> None:
        from lightning_fabric import Fabric

        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
        self.fabric = Fabric(accelerator="cpu" if settings.device == "cpu" else settings.device, devices=1)
        optimizer = torch.optim.AdamW(
            (p for p in module.parameters() if p.requires_grad),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.bare = module
        self.module, self.optimizer = self.fabric.setup(module, optimizer)
        self.settings, self.loss, self.checkpoint = settings, loss, checkpoint
        self.has_own_loss = hasattr(module, "loss")
        if self.has_own_loss:
            self.module.mark_forward_method("loss")
        self.generator = np.random.default_rng(seed)
        self.best, self.best_state = float("inf"), copy.deepcopy(module.state_dict())
        self.history: list[dict[str, float]] = []

    def run(
        self, training: Callable[..., Any], y: Tensor, validation: Callable[..., Any], y_validation: Tensor
    ) -> list[dict[str, float]]:
        """Train until the validation loss has stopped falling, then go back to its best weights.

        The untrained network counts among these, but nothing waits for it to be beaten: large first steps may carry the loss
        above it, from where it falls again.
        """
        self._resume()
        if not self.history:
            self.best = self.evaluate(validation, y_validation)
        for epoch in range(len(self.history), self.settings.n_epochs):
            fitted = self._epoch(training, y)
            held = self.evaluate(validation, y_validation)
            self.history.append({"epoch": epoch, "train_loss": fitted, "validation_loss": held})
            self._remember(held)
            if self.waited > self.settings.patience:
                break
            if self.checkpoint and epoch % CHECKPOINT_EVERY == CHECKPOINT_EVERY - 1:
                self._save()
        self.bare.load_state_dict(self.best_state)
        self.bare.to("cpu")
        if self.checkpoint:
            self.checkpoint.unlink(missing_ok=True)
        return self.history

    @property
    def waited(self) -> int:
        """How many epochs there were since the one of the lowest validation loss."""
        losses = [row["validation_loss"] for row in self.history]
        return len(losses) - 1 - int(np.argmin(losses))

    def _remember(self, held: float) -> None:
        if held < self.best:
            self.best, self.best_state = held, copy.deepcopy(self.bare.state_dict())

    def _epoch(self, rows: Callable[..., Any], y: Tensor) -> float:
        self.module.train()
        total = 0.0
        size = _batch_size(self.settings, len(y))
        for at in stacking.batches(self.generator.permutation(len(y)), size, smallest=2):
            loss = self._training_loss(self._varied(self._move(rows(at))), self._move((y[at],))[0])
            self.optimizer.zero_grad()
            self.fabric.backward(loss)
            if self.settings.clip_norm > 0:
                self.fabric.clip_gradients(self.module, self.optimizer, max_norm=self.settings.clip_norm)
            self.optimizer.step()
            total += float(loss.detach()) * len(at)
        if not np.isfinite(total):
            raise FloatingPointError(
                f"the loss became {total} in epoch {len(self.history)}; look for extreme values in the feature, or lower "
                f"training.learning_rate (now {self.settings.learning_rate:g})."
            )
        return total / len(y)

    def _varied(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Change volumes (participant, x, y, z) at random where that is asked for; no other input."""
        if not self.settings.augment:
            return inputs
        return tuple(augmentation.augment(x) if x.ndim == 4 else x for x in inputs)

    def _training_loss(self, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
        """Let a model with an objective of its own add to, or replace, the loss of its output."""
        if self.has_own_loss:
            found: Tensor = self.module.loss(inputs, y, self.loss)
            return found
        return self.loss(self.module(*inputs), y)

    def evaluate(self, rows: Callable[..., Any], y: Tensor) -> float:
        """Return the mean loss over held-out rows."""
        self.module.eval()
        with torch.no_grad():
            parts = [
                float(self.loss(self.module(*self._move(rows(at))), self._move((y[at],))[0])) * len(at)
                for at in stacking.batches(np.arange(len(y)), _together(rows))
            ]
        return sum(parts) / len(y)

    def outputs(self, rows: Callable[..., Any], n: int) -> Array:
        """Return the trained module's outputs on held-out rows, (row, output)."""
        self.bare.eval()
        with torch.no_grad():
            parts = [self.bare(*rows(at)).numpy() for at in stacking.batches(np.arange(n), _together(rows))]
        return np.asarray(np.concatenate(parts), np.float64)

    def _move(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(t.to(self.fabric.device) for t in tensors)

    def _save(self) -> None:
        assert self.checkpoint is not None
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "module": self.bare.state_dict(), "optimizer": self.optimizer.state_dict(), "best_state": self.best_state,
            "best": self.best, "history": self.history, "torch": torch.get_rng_state(),
            "numpy": self.generator.bit_generator.state, "made_by": self._made_by(),
        }  # fmt: skip
        temporary = self.checkpoint.with_suffix(".tmp")
        self.fabric.save(temporary, state)
        temporary.replace(self.checkpoint)

    def _made_by(self) -> str:
        """Say which training a checkpoint belongs to; another one begins anew."""
        shapes = [tuple(p.shape) for p in self.bare.parameters()]
        return repr((replace(self.settings, checkpoint=None, n_epochs=0), shapes))

    def _resume(self) -> None:
        """Go on from a checkpoint that an interrupted run left."""
        if not self.checkpoint or not self.checkpoint.is_file():
            return
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if state.get("made_by") != self._made_by():
            return
        self.bare.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best_state, self.best = state["best_state"], state["best"]
        self.history = state["history"]
        self.generator.bit_generator.state = state["numpy"]
        torch.set_rng_state(state["torch"])
        LOG.info("resumed after %d epochs.", len(self.history))


def _together(rows: Callable[..., tuple[Tensor, ...]]) -> int:
    """Say how many held-out rows to run at once: the memory that they take does not depend on how many there are."""
    n_bytes = sum(x.numel() * x.element_size() for x in rows(np.arange(1)))
    return int(np.clip(TOGETHER_BYTES // max(1, n_bytes), 1, MOST_TOGETHER))


def _batch_size(settings: Settings, n_rows: int) -> int:
    """Take smaller batches than asked for where participants are few."""
    return min(settings.batch_size, max(SMALLEST_BATCH, n_rows // STEPS_AN_EPOCH))


def _seed(settings: Settings, number: int) -> None:
    """Seed a member's weights and dropout, so that no member depends on how long the others trained."""
    torch.manual_seed(settings.seed + 1000 * number)


def inputs_of(fitted: FittedModel, cohort: Cohort, rows: Rows) -> tuple[Tensor, ...]:
    """Normalise some rows as the model was taught; an absent input stays NaN."""
    given = given_of(cohort, rows)
    return tuple(
        torch.from_numpy(fitted.normalization[n].apply(cohort.features[n].values[rows], given)) for n in fitted.inputs
    )


def outputs(fitted: FittedModel, cohort: Cohort, rows: Rows) -> Array:
    """Run the module, (participant, output): logits, or the standardised quantity; NaN where every input is absent."""
    head: Any = fitted.module.head
    parts = [np.zeros((0, head.out_features))]
    with torch.no_grad():
        size = _together(lambda at: inputs_of(fitted, cohort, rows[at])) if len(rows) else 1
        for at in stacking.batches(rows, size):
            inputs = inputs_of(fitted, cohort, at)
            out = fitted.module(*inputs).numpy().astype(np.float64)
            absent = np.all([torch.isnan(x.flatten(1)).all(dim=1).numpy() & bool(x[0].numel()) for x in inputs], axis=0)
            out[absent] = np.nan
            parts.append(out)
    return np.concatenate(parts)


def predict(fitted: FittedModel, cohort: Cohort, rows: Rows) -> Array:
    """Predict, (participant, level) probabilities for classes, (participant, 1) in the target's unit for a quantity."""
    return to_scores(fitted, outputs(fitted, cohort, rows))


def to_scores(fitted: FittedModel, raw: Array) -> Array:
    """Turn a module's outputs into probabilities or the target's unit."""
    known = fitted.calibration or calibrations.Calibration()
    return known.scores(raw, len(fitted.levels), fitted.target_mean, fitted.target_scale)
