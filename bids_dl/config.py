"""One frozen configuration: what the flags and the TOML file say, checked, and written to every output."""

from __future__ import annotations

import dataclasses
import json
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bids_dl import zoo
from bids_dl.errors import MissingInputError, UsageError

ZOOS = ("preparations", "features", "harmonizers", "models", "fusions", "explainers")
TARGET_KINDS = ("classification", "regression", "ordinal")
OPTION_PATHS = ("atlas", "template", "file")
"""Options of methods that may be the path of a file or folder."""
MOST_SYNTHETIC = 10
"""Synthetic participants for each that trains, at most."""


@dataclass(frozen=True)
class Select:
    """Which participants and files are looked at."""

    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    task_id: tuple[str, ...] = ()
    include: Mapping[str, Any] = field(default_factory=dict)
    bids_filter: Mapping[str, Any] = field(default_factory=dict)
    derivatives: Mapping[str, str] = field(default_factory=dict)
    bids_database_dir: str = ""
    skip_bids_validation: bool = False
    no_derivatives: bool = False
    raw_only: bool = False


@dataclass(frozen=True)
class Run:
    """How and where it runs; nothing here changes a result."""

    nprocs: int = 0
    omp_nthreads: int = 0
    mem_mb: int = 0
    use_plugin: str = ""
    work_dir: str = ""
    clean_workdir: bool = False
    write_graph: bool = False
    stop_on_first_crash: bool = False
    resource_monitor: bool = False
    overwrite: bool = False
    device: str = "auto"
    verbose: int = 0


@dataclass(frozen=True)
class Methods:
    """The methods chosen from one zoo, and the options of those that differ from their defaults."""

    names: tuple[str, ...] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def of(self, name: str) -> dict[str, Any]:
        """Return the options given for one method."""
        return dict(self.options.get(name, {}))


@dataclass(frozen=True)
class Networks:
    """Networks by group ICA, fitted once on the participants named, else on all of the run; 0 components is off."""

    n_components: int = 0
    participants: tuple[str, ...] = ()
    smoothing_mm: float = 6.0


@dataclass(frozen=True)
class Targets:
    """What is predicted, and which columns are confounds; empty means chosen from participants.tsv.

    ``kinds`` says of a column that it is a ``classification``, a ``regression`` or ``ordinal``: levels with an order, that
    of the column's Levels in participants.json, else of its numbers. ``positive`` names the class that is looked for.
    """

    names: tuple[str, ...] = ()
    covariates: tuple[str, ...] = ()
    positive: Mapping[str, Any] = field(default_factory=dict)
    kinds: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoding:
    """How conditions are decoded from series, where ``targets.names`` is ``["events"]``.

    A row is a ``context`` of volumes: if ``causal`` it ends with the volume that is decoded and series are standardised by
    the past alone, of which the first ``baseline_s`` are not decoded; else it lies around the volume. Every ``stride``-th
    volume is a row. Events count ``delay_s`` late. ``conditions`` are told apart, all if empty; volumes without any belong
    to the class named in ``rest``, or are left out.
    """

    context: int = 8
    stride: int = 1
    delay_s: float = 5.0
    causal: bool = True
    baseline_s: float = 20.0
    conditions: tuple[str, ...] = ()
    rest: str = ""


@dataclass(frozen=True)
class Quality:
    """Which participants the group level leaves out for their scans' quality; 0 and false leave out nobody."""

    max_mean_fd_mm: float = 0.0
    min_mask_dice: float = 0.0
    exclude_flagged: bool = False


@dataclass(frozen=True)
class Normalize:
    """What is learned from the training rows before a model sees them."""

    remove_confounds: bool = False


@dataclass(frozen=True)
class Splits:
    """How participants are divided into training, validation and test."""

    kind: str = "kfold"
    n_folds: int = 5
    n_repeats: int = 1
    validation_fraction: float = 0.2
    group_column: str = ""
    site_column: str = ""
    file: str = ""


@dataclass(frozen=True)
class Training:
    """The one training loop's settings; 0 and "auto" leave the choice to the model.

    ``augment`` changes volumes a little each time they are trained on: "auto", "on" or "off". ``start_from`` is a bundle
    whose weights a model of the same method begins with; the parts named in ``frozen`` keep them. ``pretrain`` "masked"
    lets a network of edges, columns or sequences first reconstruct hidden values, of participants without a target too.
    ``synthetic`` "vae" or "gan" lets such a model learn the training rows of every network of edges or columns and draw
    more of them, ``n_synthetic`` for each real one; `[models.vae]` and `[models.gan]` hold its options. ``precision`` "bf16"
    computes networks in bfloat16 where that is safe, with weights in float32, but for small ones on coordinates of the
    training rows' span; "32" does not; "auto" does on a GPU that has bfloat16.
    """

    n_epochs: int = 0
    patience: int = 0
    batch_size: int = 0
    learning_rate: float = 0.0
    weight_decay: float = -1.0
    n_members: int = 0
    augment: str = "auto"
    precision: str = "auto"
    pretrain: str = "none"
    synthetic: str = "none"
    n_synthetic: float = 1.0
    start_from: str = ""
    frozen: tuple[str, ...] = ()
    class_weights: bool = True


@dataclass(frozen=True)
class Metrics:
    """Intervals and permutation tests. ``n_retrained`` 0 retrains cheap models on small cohorts, -1 none.

    ``coverage`` is how often the sets and intervals of predictions are to hold the truth. ``learning_curve`` lists the
    parts of the training participants that models are trained on as well; none if empty.
    """

    n_bootstraps: int = 2000
    n_permutations: int = 2000
    n_retrained: int = 0
    coverage: float = 0.9
    shuffle_labels: bool = False
    learning_curve: tuple[float, ...] = ()


@dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    bids_dir: str
    output_dir: str
    analysis_level: str
    random_seed: int = 0
    bundles: tuple[str, ...] = ()
    test_dataset: str = ""
    select: Select = field(default_factory=Select)
    run: Run = field(default_factory=Run)
    preparations: Methods = field(default_factory=Methods)
    features: Methods = field(default_factory=Methods)
    networks: Networks = field(default_factory=Networks)
    targets: Targets = field(default_factory=Targets)
    decoding: Decoding = field(default_factory=Decoding)
    quality: Quality = field(default_factory=Quality)
    harmonizers: Methods = field(default_factory=Methods)
    models: Methods = field(default_factory=Methods)
    fusions: Methods = field(default_factory=Methods)
    explainers: Methods = field(default_factory=Methods)
    normalization: Normalize = field(default_factory=Normalize)
    splits: Splits = field(default_factory=Splits)
    training: Training = field(default_factory=Training)
    metrics: Metrics = field(default_factory=Metrics)

    @property
    def harmonizer(self) -> str:
        """The one harmonizer of the run, or ``none``."""
        return self.harmonizers.names[0] if self.harmonizers.names else "none"

    @property
    def decodes(self) -> bool:
        """Whether the target is what was going on at each time point, not a column of participants.tsv."""
        return self.targets.names == ("events",)

    @property
    def bids(self) -> Path:
        """The dataset's folder."""
        return Path(self.bids_dir)

    @property
    def out(self) -> Path:
        """The output folder."""
        return Path(self.output_dir)

    @property
    def work(self) -> Path:
        """The work folder, inside the output unless named."""
        return Path(self.run.work_dir) if self.run.work_dir else self.out / "work"

    @property
    def fits(self) -> Path:
        """Where fits lie, a folder a target, model and split."""
        return self.work / "fits"


def _section(cls: type, given: Mapping[str, Any], where: str) -> Any:
    """Build one section, refusing unknown keys and values of another kind."""
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    for key in given:
        if key not in known:
            raise UsageError(f"the configuration has no key '{where}{key}'; {zoo.nearest(key, known)}")
    return cls(**{key: _value(hints[key], value, f"{where}{key}") for key, value in given.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """Convert one TOML value to the field's type."""
    if hint is Methods:
        return _methods(value, where)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UsageError(f"'{where}' is a section of the configuration: write [{where}] with keys below it.")
        return _section(typing.cast(type, hint), value, f"{where}.")
    origin = typing.get_origin(hint) or hint
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UsageError(f"'{where}' is {value!r}; expected a list.")
        if typing.get_args(hint)[:1] == (float,):
            return tuple(_value(float, v, f"{where}[{k}]") for k, v in enumerate(value))
        return tuple(str(v) for v in value)
    kinds = {float: (int, float), int: (int,), bool: (bool,), str: (str,)}.get(origin, (Mapping,))
    if not isinstance(value, kinds) or (isinstance(value, bool) and origin is not bool):
        raise UsageError(f"'{where}' is {value!r}; expected {getattr(origin, '__name__', origin)}.")
    return dict(value) if isinstance(value, Mapping) else origin(value)


def _methods(value: Any, where: str) -> Methods:
    """Read a zoo's section: ``names`` and a table of options a method."""
    if not isinstance(value, Mapping):
        raise UsageError(f"'{where}' is a section: write [{where}] names = [...] and [{where}.METHOD] for options.")
    names = value.get("names", ())
    if not isinstance(names, (list, tuple)):
        raise UsageError(f"'{where}.names' is {names!r}; expected a list.")
    tables = {k: v for k, v in value.items() if k not in {"names", "options"}} | dict(value.get("options", {}))
    for name in [*tables, *(n.split("+")[0] for n in names)]:
        zoo.check(where, name)
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            raise UsageError(f"'{where}.{name}' is {table!r}; expected a table of options.")
        zoo.check_options(where, name, table)
    return Methods(tuple(map(str, names)), {k: dict(v) for k, v in tables.items()})


def read_toml(path: Path) -> dict[str, Any]:
    """Read a configuration file.

    Raises
    ------
    MissingInputError
        If there is no such file.
    UsageError
        If it is not TOML.
    """
    if not path.is_file():
        raise MissingInputError(f"the configuration file {path} does not exist.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise UsageError(f"{path} is not valid TOML: {problem}.") from problem


def from_mapping(given: Mapping[str, Any]) -> Config:
    """Build and check a configuration from nested mappings.

    Raises
    ------
    UsageError
        For unknown keys and values, naming the nearest valid one.
    """
    config: Config = _section(Config, given, "")
    _check_ranges(config)
    return config


def _check_ranges(config: Config) -> None:
    choices = {
        "training.pretrain": (config.training.pretrain, ("none", "masked")),
        "training.augment": (config.training.augment, ("auto", "on", "off")),
        "training.precision": (config.training.precision, ("auto", "32", "bf16")),
        "run.device": (config.run.device, ("auto", "cpu", "cuda")),
        "splits.kind": (config.splits.kind, ("kfold", "leave-site-out", "file")),
    }
    for where, (value, valid) in choices.items():
        if value not in valid:
            raise UsageError(f"'{where}' is '{value}'; {zoo.nearest(value, valid)}")
    for key in ("nprocs", "omp_nthreads", "mem_mb"):
        if getattr(config.run, key) < 0:
            raise UsageError(f"'run.{key}' is {getattr(config.run, key)}; choose 0 (as many as there are) or more.")
    if config.splits.n_folds < 2:
        raise UsageError(f"'splits.n_folds' is {config.splits.n_folds}; at least 2 folds are needed.")
    if config.quality.max_mean_fd_mm < 0 or not 0 <= config.quality.min_mask_dice <= 1:
        raise UsageError(
            "'quality.max_mean_fd_mm' must be 0 (off) or more, and 'quality.min_mask_dice' from 0 (off) to 1."
        )
    if config.networks.n_components < 0 or config.networks.n_components == 1 or config.networks.smoothing_mm < 0:
        raise UsageError(
            "'networks.n_components' must be 0 (off) or at least 2, and 'networks.smoothing_mm' 0 (off) or more."
        )
    _check_kinds(config.targets)
    _check_decoding(config)
    _check_synthetic(config)
    if len(config.harmonizers.names) > 1:
        raise UsageError(f"'harmonizers.names' has {len(config.harmonizers.names)} names; a run has one harmonizer.")
    if not 0 < config.metrics.coverage < 1:
        raise UsageError(f"'metrics.coverage' is {config.metrics.coverage}; choose between 0 and 1.")
    curve = config.metrics.learning_curve
    if not all(0 < one < 1 for one in curve) or len(set(curve)) < len(curve):
        raise UsageError(
            f"'metrics.learning_curve' is {list(curve)}; list parts of the training participants between 0 and 1, each once "
            "(all of them are always measured)."
        )
    if config.training.frozen and not config.training.start_from:
        raise UsageError(
            "'training.frozen' keeps the weights of a bundle, and none is named; set training.start_from, or leave it out."
        )
    if not 0 < config.splits.validation_fraction < 1:
        raise UsageError(
            f"'splits.validation_fraction' is {config.splits.validation_fraction}; choose between 0 and 1."
        )


def _check_synthetic(config: Config) -> None:
    given = config.training
    if given.synthetic != "none" and given.synthetic not in (drawing := zoo.declaring("models", "SYNTHESISES")):
        raise UsageError(
            f"'training.synthetic' is '{given.synthetic}'; {zoo.nearest(given.synthetic, ('none', *drawing))}"
        )
    if not 0 < given.n_synthetic <= MOST_SYNTHETIC:
        raise UsageError(
            f"'training.n_synthetic' is {given.n_synthetic:g}; choose above 0 and at most {MOST_SYNTHETIC} synthetic participants "
            "for each one that trains."
        )
    if given.synthetic == "none" and given.n_synthetic != Training.n_synthetic:
        raise UsageError(
            '\'training.n_synthetic\' is set, but nobody is drawn; write synthetic = "vae" or "gan" in [training].'
        )
    if given.synthetic != "none" and config.decodes:
        raise UsageError(
            "'training.synthetic' draws participants with edges or columns, and decoding trains on volumes of a series; leave it "
            "out."
        )


def _check_kinds(given: Targets) -> None:
    for name, kind in given.kinds.items():
        if kind not in TARGET_KINDS:
            raise UsageError(f"'targets.kinds.{name}' is {kind!r}; {zoo.nearest(str(kind), TARGET_KINDS)}")
        if kind == "ordinal" and name in given.positive:
            raise UsageError(
                f"'targets.positive.{name}' is set, and ordered levels have no positive class; leave it out."
            )


def _check_decoding(config: Config) -> None:
    given = config.decoding
    if config.decodes and config.metrics.learning_curve:
        raise UsageError("'metrics.learning_curve' counts participants, and decoding trains on volumes; leave it out.")
    if "events" in config.targets.names and not config.decodes:
        raise UsageError(
            "'targets.names' has events beside others; decode in a run of its own, with another output folder."
        )
    if config.decodes and config.targets.kinds.get("events") == "ordinal":
        raise UsageError("'targets.kinds.events' is 'ordinal', and conditions have no order; leave it out.")
    if given != Decoding() and not config.decodes:
        raise UsageError('[decoding] is set, but nothing is decoded; write names = ["events"] in [targets].')
    for key in ("context", "stride"):
        if getattr(given, key) < 1:
            raise UsageError(f"'decoding.{key}' is {getattr(given, key)}; choose 1 volume or more.")
    for key in ("delay_s", "baseline_s"):
        if not 0 <= getattr(given, key) < float("inf"):
            raise UsageError(f"'decoding.{key}' is {getattr(given, key):g}; choose 0 seconds or more.")


def of_fit(config: Config, target: str, methods: Sequence[str]) -> Config:
    """Keep what a fit of these methods depends on, beside its rows; the rest becomes the default.

    A fit is known again by it, whatever else is asked for: other models, more repeats, other explanations.
    """
    targets, splits, metrics = config.targets, config.splits, config.metrics
    return dataclasses.replace(
        Config(config.bids_dir, config.output_dir, config.analysis_level), random_seed=config.random_seed,
        targets=Targets(targets.names if config.decodes else (target,), (), *(
            {name: one for name, one in given.items() if name == target} for given in (targets.positive, targets.kinds)
        )),
        decoding=config.decoding, features=Methods((), config.features.options), harmonizers=config.harmonizers,
        models=_options_of(config.models, [*methods, config.training.synthetic]), fusions=_options_of(config.fusions, methods),
        normalization=config.normalization, training=config.training,
        splits=dataclasses.replace(splits, n_folds=Splits.n_folds, n_repeats=Splits.n_repeats, file=""),
        metrics=Metrics(coverage=metrics.coverage, shuffle_labels=metrics.shuffle_labels),
        run=Run(device=config.run.device, work_dir=config.run.work_dir),
    )  # fmt: skip


def _options_of(given: Methods, names: Sequence[str]) -> Methods:
    return Methods((), {name: options for name, options in given.options.items() if name in names})


def absolute(config: Config) -> Config:
    """Make every path absolute: workers run in other folders, and the written configuration is used elsewhere.

    An atlas or a template is a path only where such a file or folder exists; else it is a name.
    """
    run, select, splits = config.run, config.select, config.splits
    methods: dict[str, Any] = {name: _with_absolute_options(getattr(config, name)) for name in ZOOS}
    return dataclasses.replace(
        config, bids_dir=_absolute(config.bids_dir), output_dir=_absolute(config.output_dir),
        bundles=tuple(map(_absolute, config.bundles)), test_dataset=_absolute(config.test_dataset), **methods,
        run=dataclasses.replace(run, work_dir=_absolute(run.work_dir), use_plugin=_absolute(run.use_plugin)),
        select=dataclasses.replace(
            select, bids_database_dir=_absolute(select.bids_database_dir),
            derivatives={name: _absolute(path) for name, path in select.derivatives.items()},
        ),
        splits=dataclasses.replace(splits, file=_absolute(splits.file)),
        training=dataclasses.replace(config.training, start_from=_absolute(config.training.start_from)),
    )  # fmt: skip


SERIES = {"connectivity": "timeseries", "dynamic_connectivity": "timeseries"}
"""Features that are computed of others."""


def unlike(feature: str, made: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Name the options in which a feature, and the series it is computed of, were made otherwise than wanted.

    ``made`` and ``wanted`` are sections ``features`` of the participant level. Paths are not compared: an atlas is told by its regions.
    """
    found = []
    for name in filter(None, (feature, SERIES.get(feature))):
        defaults = {k: v for k, v in zoo.options("features", name).items() if k not in OPTION_PATHS}
        one, other = ({**defaults, **section.get(name, {})} for section in (made, wanted))
        found += [f"features.{name}.{k} is {one[k]!r}, not {other[k]!r}" for k in defaults if one[k] != other[k]]
    return found


def option_files(config: Config) -> list[Path]:
    """List what options of features and preparations name: atlases and tables, each with what lies beside it by its name."""
    given = [o for methods in (config.features, config.preparations) for o in methods.options.values()]
    named = [Path(v) for o in given for key in OPTION_PATHS for v in zoo.several(o.get(key, ())) if isinstance(v, str)]
    beside = {p for one in named if one.is_file() for p in one.parent.glob(f"{one.name.split('.')[0]}.*")}
    return sorted(beside | {one for one in named if one.is_dir()})


def _with_absolute_options(methods: Methods) -> Methods:
    options = {
        name: {key: _located(value) if key in OPTION_PATHS else value for key, value in given.items()}
        for name, given in methods.options.items()
    }
    return dataclasses.replace(methods, options=options)


def _located(value: Any) -> Any:
    """Make a path that exists absolute, or those of a list; leave a name as it is."""
    if isinstance(value, (list, tuple)):
        return [_located(one) for one in value]
    return _absolute(value) if isinstance(value, str) and Path(value).expanduser().exists() else value


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve()) if path else ""


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one nested mapping over another; the second wins."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def to_mapping(config: Config) -> dict[str, Any]:
    """Return the configuration as nested plain mappings, the inverse of `from_mapping`."""
    plain = dataclasses.asdict(config)
    for name in ZOOS:
        plain[name] = {"names": list(plain[name]["names"]), **plain[name]["options"]}
    return _plain(plain)  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def to_toml(config: Config) -> str:
    """Write the configuration as TOML that reproduces the run."""
    plain = to_mapping(config)
    head = {k: v for k, v in plain.items() if not isinstance(v, dict)}
    tables = {k: v for k, v in plain.items() if isinstance(v, dict)}
    return "\n".join([*_lines(head), *(line for k, v in tables.items() for line in _table(k, v))]) + "\n"


def _lines(values: Mapping[str, Any]) -> list[str]:
    return [f"{_key(k)} = {_inline(v)}" for k, v in values.items() if v is not None]


def _table(name: str, values: Mapping[str, Any]) -> list[str]:
    return ["", f"[{name}]", *_lines(values)]


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(_lines(value)) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Name the keys in which two configurations differ."""
    found: list[str] = []
    for key in sorted({*one, *other}):
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}")
    return found
