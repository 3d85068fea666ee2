"""From a definition to a fitted model: scikit-learn's baselines and torch's networks alike, in the span or on values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bids_dl import building, estimating, harmonization, loop, material, member, ordinal, stacking, synthesis, zoo
from bids_dl import calibration as calibrations
from bids_dl import normalization as norm
from bids_dl import span as spans
from bids_dl.errors import DataError
from bids_dl.layers import Network
from bids_dl.material import Material, Prepared, Rows
from bids_dl.member import Member
from bids_dl.records import Array, Cohort, FittedModel, Split
from bids_dl.settings import Settings

History = list[dict[str, float]]
"""A row an epoch and member."""
Fit = tuple[nn.Module, dict[str, Any], History]
"""A trained module, how it is built, and its history."""


class Affine(Network):
    """What a linear estimator has learned, as a layer: it explains and saves like any network."""

    def __init__(self, n_values: int, n_outputs: int) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # where there are no confounds
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


def define(
    model: str, shapes: Sequence[tuple[int, ...]], n_outputs: int, options: Mapping[str, Any], *, directed: bool = False
) -> dict[str, Any]:
    """Write down how a model is built, as a MONAI bundle does; whether edges have a direction, for who asks for it."""
    told = {"directed": True} if directed and zoo.takes("models", model, "directed") else {}
    return {
        "_target_": f"bids_dl.models.{model}.build",
        "shapes": [list(s) for s in shapes],
        "n_outputs": n_outputs,
        **told,
        **options,
    }


def prepare(cohort: Cohort, split: Split, inputs: Sequence[str], settings: Settings) -> Prepared:
    """Learn harmonisation and normalisation from the training rows (validation included) of a split."""
    split = material.present(cohort, split, inputs)
    pool = split.pool
    given = material.given_of(cohort) if settings.needs_confounds else None
    found = {}
    for name in inputs:
        block = cohort.features[name]
        removes = settings.remove_confounds and name != "confounds"  # what they tell by themselves is asked of them
        confounds = cohort.features["confounds"].values if removes else None
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
    split = material.present(cohort, split, inputs)
    prepared = prepared or prepare(cohort, split, inputs, settings)
    try:
        return _fitted(cohort, split, inputs, prepared, settings, lambda data: _fit(definition, data, split, settings))
    except FloatingPointError as problem:
        name = str(definition["_target_"]).split(".")[-2]
        raise DataError(f"{name} on {', '.join(inputs)}, split {split.name}: {problem}") from problem


def refine(
    module: nn.Module, definition: Mapping[str, Any], cohort: Cohort, split: Split, inputs: Sequence[str],
    normalization: Mapping[str, norm.Normalization], settings: Settings,
) -> FittedModel:  # fmt: skip
    """Train a module that is already built, on inputs whose normalisation is already learned: a fusion of members.

    Its weights before training compete in the early stopping, so that refining never ends below the start on the
    validation rows. What it learns of the validation rows' outputs flatters where members were fitted on these rows.
    """
    split = material.present(cohort, split, inputs)

    def fit(data: Material) -> Fit:
        _, history = Member(definition, data, settings, 0, split.train, split.validation).on_module(module)
        return module, dict(definition), history

    return _fitted(cohort, split, inputs, Prepared(normalization), settings, fit)


def new_rows(fitted: FittedModel, cohort: Cohort, split: Split, seed: int) -> list[Rows]:
    """Name the rows that each network of an ensemble was not fitted on, as `train` divided the rows of ``split`` by ``seed``."""
    split = material.present(cohort, split, fitted.inputs)
    y, *_ = material.standardised(cohort.target, split.pool)
    n = len(fitted.definition.get("members", (None,)))
    return [rows for _, rows in material.parts(split, y, cohort.target, n, seed)]


def _fitted(
    cohort: Cohort, split: Split, inputs: Sequence[str], prepared: Prepared, settings: Settings,
    fit: Callable[[Material], Fit],
) -> FittedModel:  # fmt: skip
    """Run a training on normalised rows, seeded and deterministic, and keep what a prediction needs."""
    data = material.lay_out(cohort, inputs, prepared, settings, split.pool)
    with torch.random.fork_rng(devices=[]), loop.one_answer():
        torch.manual_seed(settings.seed)
        module, definition, history = fit(data)
    target = cohort.target
    return FittedModel(
        module.eval(), definition, tuple(inputs), prepared.normalization, split, target.name, target.levels, *data.unit,
        tuple(history), data.calibration(), target.ranks,
    )  # fmt: skip


def _fit(definition: Mapping[str, Any], data: Material, split: Split, settings: Settings) -> Fit:
    """Fit in the span of the training rows where that is smaller, else on the values themselves."""
    pool = split.pool
    probe = building.without_weights(definition, is_class=data.is_class)
    small = is_smaller(probe, data.shapes, len(pool))
    if not isinstance(probe, nn.Module):
        return _estimate(definition, data, split, settings, small=small)
    if hasattr(probe, "solve"):
        return _solve(definition, data, split, settings)
    once = _members(definition, data, split, settings)
    in_span = small and hasattr(probe, "first") and not getattr(probe, "on_values", False)
    if in_span and not settings.start_from and not member.pretrains(settings, data.shapes):
        members, history = _fit_in_span(once, data, pool)
    else:
        fitted = [one.on_values() for one in once]
        members, history = [m for m, _ in fitted], [row for _, rows in fitted for row in rows]
    if once[0].ordered:
        return *_ordered(members, once, definition), history
    if len(members) == 1:
        return members[0], dict(definition), history
    built = {"_target_": "bids_dl.training.Ensemble", "members": [dict(definition)] * len(members)}
    return Ensemble(members), built, history


def is_smaller(probe: Any, shapes: Sequence[tuple[int, ...]], n_rows: int) -> bool:
    """Tell whether to train in the span of the training rows; estimators take more rows than networks."""
    most = spans.MOST_AXES if isinstance(probe, nn.Module) else spans.MOST_CORNERS
    return spans.is_smaller(shapes, n_rows, most=most)


def _members(definition: Mapping[str, Any], data: Material, split: Split, settings: Settings) -> list[Member]:
    """Divide the training rows between the members of an ensemble."""
    parts = material.parts(split, data.y, data.target, settings.n_members, settings.seed)
    ordered = bool(data.target.ranks) and not member.uses_unlabelled(definition)
    return [
        Member(definition, data, settings, number, *rows, member.unlabelled(data.target, split, rows[0]), ordered)
        for number, rows in enumerate(parts)
    ]


def _fit_in_span(once: Sequence[Member], data: Material, pool: Rows) -> tuple[list[nn.Module], History]:
    """Train each member on coordinates, then fold all their first layers back in one pass over the values."""
    inner = data.kernel(pool)
    small, mixings, history = [], [], []
    for one in once:
        with loop.one_thread():
            module, span, rows = one.on_coordinates(inner)
        mixing = np.zeros((module.first.out_features, len(pool)), np.float32)
        mixing[:, np.searchsorted(pool, span.rows)] = span.mixing(module.first.weight.detach().numpy())
        small.append(module)
        mixings.append(mixing)
        history += rows
    folded = np.split(data.folded(np.concatenate(mixings), pool), len(once))
    members = []
    for one, module, weights in zip(once, small, folded, strict=True):
        full = building.without_weights(one.definition, is_class=data.is_class)
        full.load_state_dict(module.state_dict() | {"first.weight": torch.from_numpy(weights)}, assign=True)
        members.append(full)
    return members, history


def _ordered(
    members: Sequence[nn.Module], once: Sequence[Member], definition: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """Join members that each have thresholds between the levels; also says how the module is built."""
    n_ranks = len(once[0].data.target.ranks)
    module = ordinal.Ordered(members, n_ranks)
    module.biases.copy_(torch.stack([one.biases for one in once]))
    module.unit.copy_(torch.tensor(once[0].data.unit))
    definitions = [dict(definition)] * len(members)
    return module, {"_target_": "bids_dl.ordinal.Ordered", "members": definitions, "n_ranks": n_ranks}


def _solve(definition: Mapping[str, Any], data: Material, split: Split, settings: Settings) -> Fit:
    """Let a module that needs no gradients solve for what it learns; it gets inner folds to choose its options by."""
    pool = split.pool
    folds = estimating.inner_folds(split, data, settings)
    module: Any = building.adopted(definition, data.normalizations, is_class=data.is_class)
    with torch.no_grad():
        inputs = _begun(module, data, pool) if hasattr(module, "begin") else data.rows(pool)
        chosen, held = module.solve(inputs, data.y[pool], folds)
    data.held.append((pool, np.asarray(held, np.float64)))
    return module, dict(definition), _history_of(float(chosen))


def _begun(module: Any, data: Material, pool: Rows) -> tuple[Tensor, ...]:
    """Let a module that solves for little start from rows on demand; returns its ``summary`` of them, some at a time."""
    module.begin(lambda at: data.rows(pool[at]), len(pool))
    return (torch.cat([module.summary(*data.rows(rows)) for rows in norm.chunks(pool, data.row_bytes)]),)


def _estimate(definition: Mapping[str, Any], data: Material, split: Split, settings: Settings, *, small: bool) -> Fit:
    """Fit a scikit-learn baseline and keep what it learned as a linear layer."""
    weights, bias, penalty = estimating.fit(definition, data, split, settings, small=small)
    n_values, n_outputs = int(np.prod(data.shapes[0])), len(bias)
    module = Affine(n_values, n_outputs)
    with torch.no_grad():
        module.head.weight.copy_(torch.from_numpy(np.ascontiguousarray(weights, np.float32)))
        module.head.bias.copy_(torch.from_numpy(np.asarray(bias, np.float32)))
    built = {"_target_": "bids_dl.training.Affine", "n_values": n_values, "n_outputs": n_outputs}
    return module, built, _history_of(penalty)


def _history_of(penalty: float) -> History:
    """Write the history of what has no epochs: one row with the penalty that was chosen."""
    nothing = float("nan")
    return [{"member": 0, "epoch": 0, "train_loss": nothing, "validation_loss": nothing, "penalty": penalty}]


def adapted(
    fitted: FittedModel, trained: Cohort, split: Split, other: Cohort, settings: Settings
) -> tuple[FittedModel, Cohort]:
    """Learn what sets the sites of another cohort apart from its own rows, without their labels.

    What was learned of the sites trained on stays as it is. A harmonization that learns all sites together stays whole.

    Parameters
    ----------
    fitted
        A model whose harmonizer adapts to sites without training participants.
    trained, split
        What it was trained on.
    other
        Participants with features of the same shapes; its ``sites`` have the columns of ``trained``, then those of its own.

    Returns
    -------
    tuple
        The model for ``other``, and ``other`` with the columns of sites that the model takes.
    """
    theirs, n_known = other.features["sites"], trained.features["sites"].shape[0]
    learned = {n: one for n, one in fitted.normalization.items() if one.harmonization is not None}
    if not learned or not all(one.by_value for one in learned.values()):
        return fitted, replace(
            other, features={**other.features, "sites": replace(theirs, values=theirs.values[:, :n_known])}
        )
    found = dict(fitted.normalization)
    for name, one in learned.items():
        pool = material.present(trained, split, [name]).pool
        both = _below_each_other(trained, pool, other, name)
        made = _harmonize(both, name, np.arange(len(pool)), material.given_of(both), settings)
        found[name] = replace(one, harmonization=made)
    return replace(fitted, normalization=found), other


def _below_each_other(trained: Cohort, pool: Rows, other: Cohort, name: str) -> Cohort:
    """Put the training rows of one feature, of the confounds and of the sites above those of another cohort."""
    n, features = len(pool) + len(other.participants), {}
    for key in (name, "confounds", "sites"):
        above, below = trained.features[key], other.features[key]
        both = np.zeros((n, *below.shape), np.float32) if key != name else _on_disk((n, *below.shape))
        for at in norm.chunks(np.arange(n), 4 * int(np.prod(below.shape))):
            mine, others = pool[at[at < len(pool)]], at[at >= len(pool)]
            both[at[: len(mine)], : above.shape[0]] = above.values[mine]  # sites of the other cohort come last
            both[others] = below.values[others - len(pool)]
        features[key] = replace(above, values=both)
    people = trained.participants.iloc[np.r_[pool, np.zeros(n - len(pool), int)]]
    return Cohort(people, features, trained.target)


def _on_disk(shape: tuple[int, ...]) -> Array:
    """Make room in a file that vanishes with it: a cohort of volumes does not fit in memory."""
    with TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=shape)


def beside(cohort: Cohort, split: Split, name: str, settings: Settings) -> dict[str, tuple[Array, Array]]:
    """Draw synthetic participants as a network of one member is given them on this split, and read real ones beside.

    Returns
    -------
    dict
        ``train``, ``synthetic`` and ``validation``: normalised values (participant, value), of at most
        `synthesis.MOST_ROWS` each, evenly spread, and their targets (participant,), codes of classes or standardised. The
        generative model has seen no validation row.
    """
    split = material.present(cohort, split, [name])
    data = material.lay_out(cohort, [name], prepare(cohort, split, [name], settings), settings, split.pool)
    with loop.one_thread():
        drawn = member.draw(data, lambda at: data.rows(split.train[at]), data.labels(split.train), settings)
    at = synthesis.evenly(len(drawn.y))
    found: dict[str, tuple[Tensor, Array]] = {"synthetic": (drawn.rows(at), drawn.y[at].numpy().astype(np.float64))}
    for part, rows in (("train", split.train), ("validation", split.validation)):
        rows = rows[synthesis.evenly(len(rows))]
        found[part] = (data.rows(rows)[0], data.y[rows])
    return {part: (torch.nan_to_num(x).flatten(1).numpy(), labels) for part, (x, labels) in found.items()}


def inputs_of(fitted: FittedModel, cohort: Cohort, rows: Rows) -> tuple[Tensor, ...]:
    """Normalise some rows as the model was taught; an absent input stays NaN."""
    given = material.given_of(cohort, rows)
    return tuple(
        torch.from_numpy(fitted.normalization[n].apply(cohort.features[n].values[rows], given)) for n in fitted.inputs
    )


def chosen_output(fitted: FittedModel, inputs: tuple[Tensor, ...]) -> tuple[Array, Array, Tensor]:
    """Return the output to explain, (participant,): the only one or the predicted class's; that of the mean; its number.

    The mean is that of the training rows; an input or a step that a participant lacks is absent there too.
    """
    with torch.no_grad():
        out, mean = fitted.module(*inputs), fitted.module(*(0 * x for x in inputs))
    chosen = out.argmax(dim=1)
    return *(found.gather(1, chosen[:, None])[:, 0].numpy() for found in (out, mean)), chosen


def outputs(fitted: FittedModel, cohort: Cohort, rows: Rows) -> Array:
    """Run the module, (participant, output): logits, or the standardised quantity; NaN where every input is absent."""
    head: Any = fitted.module.head
    parts = [np.zeros((0, head.out_features))]
    with torch.no_grad():
        size = loop.n_together(lambda at: inputs_of(fitted, cohort, rows[at])) if len(rows) else 1
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
