"""Level 2: read as the list of steps. Each step is a task of one graph; what each does stands in `fits`."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bids_dl import attributions, decoding, derivatives, engine, outputs, quality, query, splits, transfer, windows, zoo
from bids_dl import cohort as cohorts
from bids_dl import config as configuration
from bids_dl.config import Config
from bids_dl.errors import DataError, UsageError
from bids_dl.records import Split, Target

LOG = logging.getLogger("bids_dl")
ROWS_PER_TASK, MOST_FILLS = 32, 250
"""Participants whose features one task reads, more where there would be too many tasks: each reads the plan of all."""
SMALL_COHORT = 200
N_RETRAINED = 99
BASELINES = ("dummy", "confounds_only", "linear")
DECISIVE = ("features", "targets", "decoding", "quality", "harmonizers", "models", "fusions", "explainers", "normalization", "splits",
            "training", "metrics",
            "random_seed", "bids_dir", "test_dataset",
            "select.include", "select.participant_label", "select.session_label", "select.task_id")  # fmt: skip


@dataclass(frozen=True)
class Model:
    """One model on one feature, or a fusion of such models.

    A fusion waits for its ``members``; ``parts`` has the feature and the method of each. Of those of one feature each split chooses.
    """

    id: str
    method: str
    inputs: tuple[str, ...]
    role: str
    members: tuple[str, ...] = ()
    parts: tuple[tuple[str, str], ...] = ()


def run(config: Config, modes: frozenset[str]) -> int:
    """Train, validate, fuse and explain models over the participants, and write the report.

    Returns
    -------
    int
        0, or 1 where a step failed; the report says which.
    """
    outputs.start_logging(config)
    if modes & {"reports_only", "boilerplate_only"}:
        return outputs.reports_only(config, modes)
    plan = cohorts.plan(config)
    plan = decoding.plan(config, plan) if config.decodes else plan
    chosen = _choose(config, plan)
    device = _device(config)
    _check_start(config, plan, chosen)
    held = _plan_test(config, plan, chosen)
    for line in (*chosen.said, *(held.said if held else ())):
        LOG.info(line)
    LOG.info(device)
    if "dry_run" in modes:
        print("\n".join([*chosen.said, *(held.said if held else ())]))
        return 0
    with outputs.alone(config):
        return _write(config, plan, chosen, held)


def _write(config: Config, plan: cohorts.Plan, chosen: Choices, held: HeldDataset | None) -> int:
    """Write everything into the output folder, which is this run's alone meanwhile."""
    outputs.refuse_other_configuration(config, "group", DECISIVE)
    outputs.write_configuration(config, "group")
    derivatives.write_description(config.out, query.datasets(config))
    digest = _lay_out(config, plan)
    _write_choices(config, plan, chosen, held)
    tasks = _tasks(config, plan, chosen, digest)
    tasks += _test_tasks(config, chosen, held, digest) if held else []
    tasks += [_synthetic_task(config, plan, chosen, t, digest) for t, _ in chosen.targets if _draws(config)]
    for target, _ in chosen.targets if config.metrics.learning_curve else ():
        tasks += _growth_tasks(config, chosen, target, digest)
    done = engine.run(config, "group", tasks)
    _write_excluded(config, plan, chosen, done)
    if held:
        _write_test_excluded(config, held, done)
    return _conclude(config, tasks, done, digest)


def _check_start(config: Config, plan: cohorts.Plan, chosen: Choices) -> None:
    """Refuse a bundle to start from that no model of the run can use, or that has seen these participants.

    Raises
    ------
    UsageError, DataError
        Naming the models, or how many participants it has seen.
    """
    if not config.training.start_from:
        return
    from bids_dl import building, bundle

    folder = Path(config.training.start_from)
    zoo_name, method = building.origin(folder).split(".")[-3:-1]
    if zoo_name != "models" or not zoo.has_epochs(method):
        raise UsageError(
            f"training.start_from: {folder.name} was not trained epoch by epoch: baselines, fusions and models that solve for their "
            "weights do not go on from others; name a network's bundle."
        )
    if method not in {m.method for m in chosen.models}:
        raise UsageError(
            f"training.start_from: {folder.name} holds a {method}, and this run trains none; add --models {method}."
        )
    dataset, known = str(query.description(config.bids)["Name"]), set(bundle.about(folder)["participants"])
    seen = [i for i in _people(plan) if bundle.identity(dataset, i) in known]
    if seen:
        raise DataError(
            f"training.start_from: {folder.name} was trained on {len(seen)} of these participants ({', '.join(seen[:3])}, …); "
            "start from a model of other people, or its results will flatter."
        )


def _device(config: Config) -> str:
    """Say where networks will run; refuse a GPU that is asked for and not there."""
    import torch

    if torch.cuda.is_available() and config.run.device != "cpu":
        return f"networks run on the GPU {torch.cuda.get_device_name(0)}."
    if config.run.device == "cuda":
        raise UsageError("--device cuda was asked for, but PyTorch sees no CUDA device here; use --device auto or cpu.")
    return "networks run on the CPU" + (" as asked." if config.run.device == "cpu" else ": no GPU was found.")


@dataclass(frozen=True)
class Choices:
    """What the analysis is made of, and the sentences that say so."""

    targets: tuple[tuple[Target, str], ...]
    covariates: tuple[str, ...]
    models: tuple[Model, ...]
    splits: Mapping[str, Sequence[Split]]
    final: Mapping[str, Split]
    groups: str
    site: str
    said: tuple[str, ...]
    refused: tuple[Mapping[str, str], ...] = ()
    """Who is never predicted, or not trained on, as the harmonizer refuses the site: rows of ``excluded.tsv``."""


def _choose(config: Config, plan: cohorts.Plan) -> Choices:
    """Choose targets, confounds, models and splits: as the user says, else what suits the data."""
    named = cohorts.choose_targets(config, plan.columns)
    covariates = (decoding.MINUTES,) if config.decodes else tuple(cohorts.choose_covariates(config, plan.columns))
    make = decoding.target_of if config.decodes else cohorts.target_of
    targets = tuple((make(config, plan, name), why) for name, why in named)
    models = choose_models(config, plan, has_confounds=bool(covariates))
    _refuse_alike("targets", [name for name, _ in named])
    _refuse_alike("models", [m.id for m in models])
    site = _column(plan, config.splits.site_column, quality.SITE_COLUMNS, needed=_needs_sites(config))
    _refuse_site_as_target(config, site, [name for name, _ in named])
    groups = decoding.TIES if config.decodes else _column(plan, config.splits.group_column, cohorts.FAMILIES, needed="")
    made = {t.name: _splits(config, plan, t, groups, site) for t, _ in targets}
    final = {
        t.name: splits.final(
            t, plan.participant_ids, config.splits, seed=config.random_seed, groups=_cells(plan, groups)
        )
        for t, _ in targets
    }
    refused = []
    if _refuses(config):
        known = _of_known_sites(config, plan, made, site)
        refused = [row for name in made for row in _unpredicted(config, plan, name, made[name], known[name], site)]
        made = known
        final = {name: splits.of_known_sites(one, _sites(plan, site)) for name, one in final.items()}
    said = [
        f"{len(_people(plan))} participants, {len(plan.excluded)} left out.",
        *(plan.notes if config.decodes else ()),
        *([f"{len(refused)} are not predicted: {refused[0]['reason']}."] if refused else []),
    ]
    said += [f"target: {t.name} ({_said_levels(t)}): {why}." for t, why in targets]
    said += [
        f"confounds: {', '.join(covariates) or 'none found'}; features: {', '.join(_feature_names(plan)) or 'none'}."
    ]
    said += [
        f"models: {', '.join(m.id for m in models)}.",
        *_said_synthetic(config, plan, models),
        *_said_as_is(config, plan),
    ]
    return Choices(targets, covariates, tuple(models), made, final, groups, site, tuple(said), tuple(refused))


def _refuses(config: Config) -> bool:
    """Tell whether participants of sites without training participants are refused; series are never harmonised."""
    return not config.decodes and config.harmonizers.of(config.harmonizer).get("unseen") == "refuse"


def _sites(plan: cohorts.Plan, site: str) -> list[str]:
    """Name the site of each row; empty where there is none."""
    return [c if isinstance(c, str) else "" for c in plan.columns.get(site, [""] * len(plan.participant_ids))]


def _of_known_sites(
    config: Config, plan: cohorts.Plan, made: Mapping[str, Sequence[Split]], site: str
) -> dict[str, list[Split]]:
    """Take out of every split whom the harmonizer refuses there.

    Raises
    ------
    UsageError
        If nobody is left to test.
    """
    sites = _sites(plan, site)
    found = {
        name: [one for s in each if len((one := splits.of_known_sites(s, sites)).test)] for name, each in made.items()
    }
    if not all(found.values()):
        raise UsageError(
            f"harmonizers.{config.harmonizer}.unseen is 'refuse', and no test participant has a site that is trained on: nobody would "
            "be predicted; choose 'pooled' or 'adapt', or splits that leave no whole site out."
        )
    return found


def _unpredicted(
    config: Config, plan: cohorts.Plan, target: str, before: Sequence[Split], after: Sequence[Split], site: str
) -> list[dict[str, str]]:
    """List who would have been tested but for the harmonizer, with the reason."""
    tested, left = (set(np.concatenate([s.test for s in each]).tolist()) for each in (before, after))
    sites = _sites(plan, site)
    return [
        {"participant_id": plan.participant_ids[row], "target": target, "reason": transfer.refusal(config, sites[row])}
        for row in sorted(tested - left)
    ]


def _draws(config: Config) -> bool:
    """Tell whether synthetic participants are asked for."""
    return config.training.synthetic != "none"


def _joined(plan: cohorts.Plan, models: Sequence[Model]) -> list[Model]:
    """Name the networks whose training rows synthetic participants may join."""
    from bids_dl import synthesis

    return [m for m in models if m.role == "network" and synthesis.takes(m.method, _kind(plan, m.inputs[0]))]


def _said_synthetic(config: Config, plan: cohorts.Plan, models: Sequence[Model]) -> list[str]:
    """Say which models train with synthetic participants, and which without.

    Raises
    ------
    UsageError
        If none does.
    """
    if not _draws(config):
        return []
    joined = [m.id for m in _joined(plan, models)]
    if not joined:
        raise UsageError(
            f"training.synthetic: no model of this run ({', '.join(m.id for m in models)}) takes synthetic participants; networks "
            "of connectomes and columns such as mlp do. Add one with --models, or leave the option out."
        )
    others = [m.id for m in models if m.role != "baseline" and m.id not in joined]
    given = config.training
    said = f"synthetic participants, {given.n_synthetic:g} for each that trains, drawn by {given.synthetic}, join the training rows of "
    said += ", ".join(joined)
    return [
        f"{said}; {', '.join([*others, 'baselines'])} are trained without, as they do not suit."
        if others
        else f"{said} only."
    ]


def _said_as_is(config: Config, plan: cohorts.Plan) -> list[str]:
    """Say which features keep what sites and confounds did to them, where these are to be removed."""
    asked = [] if config.harmonizer == "none" else [f"harmonised ({config.harmonizer})"]
    asked += ["freed of confounds"] if config.normalization.remove_confounds else []
    kept = [v.name for v in plan.variants if v.kind in cohorts.SEQUENCES]
    if not asked or not kept:
        return []
    return [
        f"{', '.join(kept)} {'is' if len(kept) == 1 else 'are'} not {' nor '.join(asked)}: only features without a time axis are."
    ]


def _said_levels(target: Target) -> str:
    return ", ".join(target.levels) or " < ".join(target.ranks) or "a quantity"


def _people(plan: cohorts.Plan) -> tuple[str, ...]:
    """Name the participants whose features are laid out; rows may be windows of theirs."""
    return plan.stored.participant_ids if isinstance(plan, decoding.Plan) else plan.participant_ids


def _owners(plan: cohorts.Plan) -> Sequence[str]:
    """Name whose each row is."""
    return plan.columns[decoding.PERSON] if isinstance(plan, decoding.Plan) else plan.participant_ids


def _feature_names(plan: cohorts.Plan) -> list[str]:
    return [v.name for v in plan.variants] + list(plan.tables)


def _kind(plan: cohorts.Plan, feature: str) -> str:
    """Say what a feature looks like to a model: a volume, edges, or columns."""
    return next((v.kind for v in plan.variants if v.name == feature), "column")


def _suits(plan: cohorts.Plan, model: str, feature: str) -> bool:
    """Tell whether a model takes a feature: what it looks like, and of connectomes the kind."""
    stat = next((v.entities.get("stat", "") for v in plan.variants if v.name == feature), "")
    suits, unsuited = (zoo.constant("models", model, key) or () for key in ("SUITS", "UNSUITED"))
    return _kind(plan, feature) in suits and stat not in unsuited


def choose_models(config: Config, plan: cohorts.Plan, *, has_confounds: bool) -> list[Model]:
    """Put each model on each feature it suits, the baselines beside them, then the fusions over the networks.

    Raises
    ------
    UsageError
        If a model that was named suits none of the features.
    """
    features = _feature_names(plan)
    wanted = cohorts.models_named(config)
    models = [
        Model(n, n, (cohorts.CONFOUNDS,), "baseline")
        for n in ("dummy", "confounds_only")
        if has_confounds or n == "dummy"
    ]
    for name in dict.fromkeys(("linear", *wanted)):
        if name in ("dummy", "confounds_only"):
            continue
        mine = [f for f in features if _suits(plan, name, f)]
        if not mine and name in config.models.names:
            suits, unsuited = (zoo.constant("models", name, key) or () for key in ("SUITS", "UNSUITED"))
            but = f", but no {' or '.join(unsuited)}" if unsuited else ""
            raise UsageError(
                f"the model '{name}' suits none of the features ({', '.join(features) or 'none'}); it takes "
                f"{' or '.join(cohorts.KINDS[kind] for kind in suits)}{but}."
            )
        models += [Model(f"{f}_{name}", name, (f,), "baseline" if name in BASELINES else "network") for f in mine]
    return models + _fusions(config, models)


def _fusions(config: Config, models: Sequence[Model]) -> list[Model]:
    """Fuse one network a feature, where there are two features or more: each split chooses it by the validation loss.

    Models that solve for their weights are left out: no training row is new to them, on which to learn how to join them.
    """
    members = [m for m in models if m.role == "network" and zoo.has_epochs(m.method)]
    inputs = tuple(dict.fromkeys(m.inputs[0] for m in members))
    wanted = config.fusions.names or (zoo.names("fusions") if len(inputs) > 1 else ())
    if wanted and len(inputs) < 2:
        solved = sorted({m.method for m in models if m.role == "network" and not zoo.has_epochs(m.method)})
        raise UsageError(
            f"a fusion needs networks on at least two features; there is {', '.join(inputs) or 'none'}"
            + (f" ({', '.join(solved)} cannot be fused: no training row is new to them)." if solved else ".")
        )
    ids, parts = tuple(m.id for m in members), tuple((m.inputs[0], m.method) for m in members)
    return [Model(name, name, inputs, "fusion", ids, parts) for name in wanted]


@dataclass(frozen=True)
class HeldDataset:
    """Another dataset that the final models are judged on once: who takes part, and what its features look like."""

    name: str
    plan: cohorts.Plan
    described: Mapping[str, dict[str, Any]]
    excluded: tuple[Mapping[str, str], ...]
    refused: tuple[Mapping[str, str], ...] = ()
    """Who has a target, and a site that the harmonizer refuses."""
    of_sites: tuple[str, ...] = ()
    """What becomes of participants whose site the harmonizer has not learned."""

    @property
    def said(self) -> tuple[str, ...]:
        """Say who is in it."""
        return (
            f"test dataset: {self.name}, {len(self.plan.participant_ids)} participants, {len(self.plan.excluded)} left out.",
            *(f"test dataset: {one}" for one in self.of_sites),
        )


def _plan_test(config: Config, plan: cohorts.Plan, chosen: Choices) -> HeldDataset | None:
    """Bring the test dataset into the shape of this one, where one is named; refuse what cannot be.

    Raises
    ------
    UsageError, DataError, MissingInputError, NothingSelectedError
        Naming what the test dataset lacks.
    """
    if not config.test_dataset:
        return None
    if config.decodes:
        raise UsageError(
            "--test-dataset judges models of participants, not decoding; leave it out, or name other targets."
        )
    other = transfer.plan(config, plan, chosen.covariates)
    described = transfer.describe(config, plan, other)
    excluded, refused = [], []
    for target, _ in chosen.targets:
        theirs, without = transfer.target_of(config, other, target)
        excluded += without
        if _refuses(config):
            cells = _sites(plan, chosen.site)
            known = {cells[row] for row in chosen.final[target.name].pool}
            refused += transfer.refused(config, theirs, other.participant_ids, _sites(other, chosen.site), known)
    name = str(query.description(transfer.config_of(config).bids)["Name"])
    said = _said_of_sites(config, _sites(plan, chosen.site), _sites(other, chosen.site), refused)
    return HeldDataset(name, other, described, tuple(excluded), tuple(refused), said)


def _said_of_sites(
    config: Config, known: Sequence[str], others: Sequence[str], refused: Sequence[Mapping[str, str]]
) -> tuple[str, ...]:
    """Say what becomes of the participants of a test dataset whose sites were not trained on."""
    if refused:
        reasons = " and ".join(dict.fromkeys(row["reason"] for row in refused))
        n = len({row["participant_id"] for row in refused})
        return (f"{n} participants are not predicted: {reasons}; choose 'pooled' or 'adapt' to predict them.",)
    new = [site for site in others if site not in set(known) - {""}]
    if config.harmonizer == "none" or not new:
        return ()
    unseen = config.harmonizers.of(config.harmonizer).get("unseen", "pooled")
    adapts = unseen == "adapt" and not zoo.constant("harmonizers", config.harmonizer, "TOGETHER")
    done = (
        "what sets the site apart is learned from their own features, unlabelled"
        if adapts
        else "their values stay as they are"
    )
    why = f"harmonizers.{config.harmonizer}.unseen is '{unseen}'"
    if unseen == "adapt" and not adapts:
        why = f"{config.harmonizer} learns all sites together, and can adapt to none later"
    named = ", ".join(sorted({f"'{site}'" for site in new if site})) or "none that is named"
    return (f"{len(new)} participants are of sites that were not trained on ({named}): {done}, as {why}.",)


def _column(plan: cohorts.Plan, named: str, candidates: Sequence[str], *, needed: str) -> str:
    """Find the column of sites or families: as named, else by its usual names; ``needed`` says what for."""
    if named and named not in plan.columns:
        raise DataError(f"participants.tsv has no column '{named}'; {zoo.nearest(named, plan.columns)}")
    lower = {str(c).lower(): str(c) for c in plan.columns}
    found = named or next((lower[c] for c in candidates if c in lower), "")
    if needed and not found:
        raise DataError(
            f"{needed} needs a column of sites; participants.tsv has {', '.join(plan.columns)}. Name it in splits.site_column."
        )
    return found


def _needs_sites(config: Config) -> str:
    """Say what cannot do without a column of sites."""
    if config.splits.kind == "leave-site-out":
        return "leave-site-out"
    return "" if config.harmonizer == "none" else f"the harmonizer {config.harmonizer}"


def _refuse_site_as_target(config: Config, site: str, targets: Sequence[str]) -> None:
    """Refuse to predict what the harmonizer takes out of the features.

    Raises
    ------
    UsageError
        Naming the column, and the option that turns harmonisation off.
    """
    if config.harmonizer != "none" and site in targets:
        raise UsageError(
            f"the target '{site}' is the column of sites whose differences the harmonizer {config.harmonizer} removes; predict "
            "another column, or predict it with --harmonizers none (the report of a harmonised run tells how well the site "
            "is still predicted)."
        )


def _cells(plan: cohorts.Plan, column: str) -> tuple[str, ...]:
    """Read a column of ties; somebody without a value is tied to nobody."""
    if not column:
        return ()
    return tuple(
        c if isinstance(c, str) else f"alone-{i}" for c, i in zip(plan.columns[column], _owners(plan), strict=True)
    )


def _splits(config: Config, plan: cohorts.Plan, target: Target, groups: str, site: str) -> list[Split]:
    tied, seed = _cells(plan, groups), config.random_seed
    made = (
        splits.read(Path(config.splits.file), plan.participant_ids, target, groups=tied)
        if config.splits.kind == "file"
        else splits.make(target, plan.participant_ids, config.splits, seed=seed, groups=tied, sites=_cells(plan, site))
    )
    _refuse_alike("splits", [split.name for split in made], ("final", "test"))
    return made


def _refuse_alike(what: str, names: Sequence[str], own: Sequence[str] = ()) -> None:
    """Refuse names that would make one step and file of two, as they differ in punctuation alone; ``own`` are this program's.

    Raises
    ------
    DataError
        Naming two of them.
    """
    taken = {name: f"this program's own '{name}'" for name in own}
    for name in names:
        step = task_name(name)
        if step in taken:
            raise DataError(
                f"of the {what}, '{name}' cannot be told from {taken[step]} by letters and digits; rename the column, site or table "
                "that it is called after."
            )
        taken[step] = f"'{name}'"


def _lay_out(config: Config, plan: cohorts.Plan) -> str:
    """Lay out the cohort in the work folder; a changed plan or file begins anew. Returns a digest of both."""
    digest, folder = _digest(plan), cohort_folder(config)
    if isinstance(plan, decoding.Plan):
        write: Callable[[], object] = partial(windows.write, plan, folder, config.decoding)
    else:
        write = partial(cohorts.write, plan, folder)
    _renew(folder, digest, write, [config.fits])
    return digest


def _digest(plan: cohorts.Plan, *more: Any) -> str:
    """Hash a plan and the stamps of its files, of tables and what describes their columns too."""
    files = [Path(f) for v in plan.variants for paths in v.files.values() for f in paths]
    files += [
        f for table in plan.tables.values() for f in (Path(table), Path(table).with_suffix(".json")) if f.is_file()
    ]
    stamps = {str(f): (s := f.stat()).st_size + s.st_mtime_ns for f in files}
    return hashlib.sha256(json.dumps([asdict(plan), stamps, *more], sort_keys=True, default=str).encode()).hexdigest()[
        :16
    ]


def _digest_of(*rows: Any) -> str:
    return hashlib.sha256(b"|".join(np.asarray(one, np.int64).tobytes() for one in rows)).hexdigest()[:16]


def _renew(folder: Path, digest: str, write: Callable[[], object], stale: Sequence[Path] = ()) -> None:
    """Write a folder anew where it was made from something else, and remove what depended on it."""
    mark = folder / "digest"
    if mark.is_file() and mark.read_text(encoding="utf-8") == digest:
        return
    derivatives.remove([folder, *stale])
    write()
    (folder / "fresh").touch()
    derivatives.write_text(mark, digest)  # last: a run that is killed before begins anew


def cohort_folder(config: Config) -> Path:
    """Name the folder of the memory-mapped cohort."""
    return config.work / "cohort"


def _write_choices(config: Config, plan: cohorts.Plan, chosen: Choices, held: HeldDataset | None = None) -> None:
    """Write who takes part, what was chosen and why, and the splits."""
    import pandas as pd

    folder = config.out / "group"
    used = list(
        dict.fromkeys(
            [
                *(t.name for t, _ in chosen.targets),
                *chosen.covariates,
                *filter(None, (chosen.site, chosen.groups)),
                *((decoding.PERSON, decoding.RUN) if config.decodes else ()),
            ]
        )
    )
    people = pd.DataFrame({"participant_id": plan.participant_ids, **{c: plan.columns[c] for c in used}})
    for variant in plan.variants:
        people[f"feature:{variant.name}"] = [int(i in variant.files) for i in _owners(plan)]
    for name, path in plan.tables.items():
        rows = set(query.read_people(Path(path)).index)
        people[f"feature:{name}"] = [int(i in rows) for i in plan.participant_ids]
    derivatives.write_table(folder / "participants.tsv", people)
    for target, _ in chosen.targets:
        table = splits.to_table(chosen.splits[target.name], plan.participant_ids)
        derivatives.write_table(
            splits_path(config.out, target.name), table, dict.fromkeys(table.columns[1:], "Part of the split")
        )
        final = splits.to_table([chosen.final[target.name]], plan.participant_ids)
        derivatives.write_table(config.work / "final" / f"{target.name}.tsv", final)
    test = {"test": {"dataset": held.name, "n_participants": len(held.plan.participant_ids)}} if held else {}
    described = _described(config, plan, chosen) | test
    described["notes"] += [f"Of the test dataset, {one}" for one in (held.of_sites if held else ())]
    derivatives.write_json(folder / "choices.json", described)


def splits_path(out: Path, target: str) -> Path:
    """Name the table of a target's splits."""
    return out / "group" / "splits" / f"target-{target}_splits.tsv"


def _described(config: Config, plan: cohorts.Plan, chosen: Choices) -> dict[str, Any]:
    described = json.loads((cohort_folder(config) / "features.json").read_text(encoding="utf-8"))
    features = [
        {"name": v.name, "kind": _kind(plan, v.name), "files": v.n_files,
         "shape": described[v.name]["shape"], "dims": described[v.name]["dims"],
         "n_participants": len(v.files), "space": v.entities.get("space"), "atlas": v.entities.get("atlas"),
         "n_regions": len(described[plan.variants[0].name if isinstance(plan, decoding.Plan) else v.name]["labels"])}
        for v in plan.variants
    ]  # fmt: skip
    features += [{"name": n, "kind": "column", "files": 1, "shape": [], "dims": ["column"], "n_participants": len(plan.participant_ids),
                  "space": None, "atlas": None} for n in plan.tables]  # fmt: skip
    first = next(iter(chosen.splits.values()))
    return {
        "dataset": query.description(config.bids)["Name"],
        "targets": [_described_target(t, why) | _described_rows(plan) for t, why in chosen.targets],
        "covariates": list(chosen.covariates), "features": features, "harmonizer": config.harmonizer,
        "remove_confounds": config.normalization.remove_confounds,
        "models": [{"id": m.id, "model": m.method, "feature": ", ".join(m.inputs), "role": m.role,
                    "summary": zoo.summary("fusions" if m.role == "fusion" else "models", m.method)} for m in chosen.models],
        "splits": {"kind": config.splits.kind, "n_folds": config.splits.n_folds, "n_repeats": config.splits.n_repeats,
                   "groups": chosen.groups or None, "site": chosen.site or None, "n_splits": len(first)},
        "notes": _notes(config, plan, chosen),
    }  # fmt: skip


def _described_target(target: Target, why: str) -> dict[str, Any]:
    known = target.values[np.isfinite(target.values)]
    names = target.levels or target.ranks
    if names:
        counts: dict[str, Any] = {level: int((known == code).sum()) for code, level in enumerate(names)}
    else:
        counts = {"mean": known.mean(), "sd": known.std(), "min": known.min(), "max": known.max()}
    positive = target.levels[1] if len(target.levels) == 2 else None
    return {
        "name": target.name,
        "kind": target.kind,
        "levels": list(names),
        "positive": positive,
        "counts": counts,
        "n": len(known),
        "why": why,
    }


def _described_rows(plan: cohorts.Plan) -> dict[str, str]:
    """Say what the rows are, where they are not participants."""
    if not isinstance(plan, decoding.Plan):
        return {}
    return {"rows": f"volumes of {len(set(plan.columns[decoding.PERSON]))} participants"}


def _notes(config: Config, plan: cohorts.Plan, chosen: Choices) -> list[str]:
    notes = list(plan.notes)
    if config.metrics.shuffle_labels:
        notes.append("The labels were shuffled on purpose: every result should lie at chance.")
    if plan.tables:
        notes.append("Phenotype tables are features here: make sure that none of their columns restates a target.")
    notes += [
        f"{s[:1].upper()}{s[1:]}" for s in (*_said_synthetic(config, plan, chosen.models), *_said_as_is(config, plan))
    ]
    if not chosen.covariates:
        notes.append("No confounds were found in participants.tsv, so what they alone would reach is unknown.")
    if chosen.site and config.splits.kind == "kfold":
        notes.append(
            f'Participants of one {chosen.site} are on both sides of the splits; splits.kind = "leave-site-out" tells how a model travels.'
        )
    return notes


def _tasks(config: Config, plan: cohorts.Plan, chosen: Choices, digest: str) -> list[engine.Task]:
    """Write the steps down, in their order."""
    folder = cohort_folder(config)
    fill = f"bids_dl.{'windows' if config.decodes else 'cohort'}:fill"
    causal = {"causal": config.decoding.causal} if config.decodes else {}
    n_rows = len(_people(plan)) if plan.variants else 0
    fills = _fills("fill", fill, folder, n_rows, digest, **causal)
    fresh = (folder / "fresh").is_file()
    given = {"folder": str(folder)}
    names = tuple(t.name for t in fills)
    tasks = [*fills, engine.Task("cohort", "bids_dl.fits:gather", given, names, stamp=digest, redo=fresh)]
    for target, _ in chosen.targets:
        tasks += _target_tasks(config, chosen, target, digest)
    return tasks


def _fills(name: str, function: str, folder: Path, n_rows: int, digest: str, **more: Any) -> list[engine.Task]:
    """Write down the steps that read every participant's features into a cohort's folder."""
    fresh, step = (folder / "fresh").is_file(), max(ROWS_PER_TASK, -(-n_rows // MOST_FILLS))
    return [
        engine.Task(
            f"{name}_{start}", function, {"folder": str(folder), **more, "start": start, "stop": start + step},
            stamp=digest, redo=fresh,
        )
        for start in range(0, n_rows, step)
    ]  # fmt: skip


def _test_tasks(config: Config, chosen: Choices, held: HeldDataset, digest: str) -> list[engine.Task]:
    """Write down the steps that lay the test dataset out, and judge the models trained on everybody on it."""
    folder, own = transfer.folder(config), _digest(held.plan, held.described, digest)
    _renew(folder, own, partial(cohorts.write, held.plan, folder, held.described))
    n_rows = len(held.plan.participant_ids) if held.plan.variants else 0
    fills = _fills("test_fill", "bids_dl.cohort:fill", folder, n_rows, own)
    both = {"folder": str(folder), "trained": str(cohort_folder(config))}
    waits = ("cohort", *(t.name for t in fills))
    fresh = (folder / "fresh").is_file()
    tasks = [*fills, engine.Task("test_cohort", "bids_dl.fits:gather_test", both, waits, stamp=own, redo=fresh)]
    for target, _ in chosen.targets:
        refused = [row["participant_id"] for row in held.refused if row["target"] == target.name]
        given = {**_common(config, chosen, target), "models": [asdict(m) for m in chosen.models], "refused": refused}
        waits = ("test_cohort", *(task_name("fit", target.name, m.id, "final") for m in chosen.models))
        name = task_name("test", target.name)
        tasks.append(engine.Task(name, "bids_dl.fits:test", given, waits, stamp=own, despite=True))
    return tasks


FEWEST_IN_PART = 5
"""Training participants of the smallest class, or of a quarter of a quantity's range, below which a part is not trained on."""


def parts_of(config: Config, chosen: Choices, target: Target) -> list[float]:
    """Choose the parts of the training participants that are large enough in every split, ascending."""
    smallest = min(
        int(np.bincount(target.values[s.pool].astype(int)).min()) if target.is_class else len(s.pool) // splits.N_BINS
        for s in chosen.splits[target.name]
    )
    return [f for f in sorted(config.metrics.learning_curve) if f * smallest >= FEWEST_IN_PART]


def _growth_tasks(config: Config, chosen: Choices, target: Target, digest: str) -> list[engine.Task]:
    """Write down the steps of the learning curve: the models on parts of the training participants, then the curve."""
    parts, names = parts_of(config, chosen, target), [s.name for s in chosen.splits[target.name]]
    models = [m for m in chosen.models if m.role != "fusion" and m.method != "dummy"]
    steps = _TargetSteps(config, chosen, target, digest)
    tasks = [steps.part(model, split, part) for model in models for split in names for part in parts]
    waits = [t.name for t in tasks] + [task_name("fit", target.name, m.id, split) for m in models for split in names]
    given = {**steps.common, "models": [asdict(m) for m in models], "splits": names, "parts": parts}
    return [
        *tasks,
        engine.Task(task_name("grow", target.name), "bids_dl.fits:grow", given, waits, stamp=digest, despite=True),
    ]


def _synthetic_task(config: Config, plan: cohorts.Plan, chosen: Choices, target: Target, digest: str) -> engine.Task:
    """Write down the step that tells synthetic participants from real ones, for each feature that they are drawn of."""
    features = list(dict.fromkeys(m.inputs[0] for m in _joined(plan, chosen.models)))
    names = [s.name for s in chosen.splits[target.name]]
    given = {**_common(config, chosen, target), "features": features, "names": names}
    return engine.Task(
        task_name("resemble", target.name), "bids_dl.fits:resemble", given, ["cohort"], stamp=digest, memory_gb=0.6
    )


def _common(config: Config, chosen: Choices, target: Target) -> dict[str, Any]:
    """Collect what every step of a target is told."""
    settings = configuration.to_mapping(config)
    settings["run"] = {k: v for k, v in settings["run"].items() if k in {"device", "work_dir"}}
    return {
        "config": settings,
        "target": target.name,
        "covariates": list(chosen.covariates),
        "site": chosen.site,
        "groups": chosen.groups,
    }


def _target_tasks(config: Config, chosen: Choices, target: Target, digest: str) -> list[engine.Task]:
    """Write down one target's steps: fits, permuted fits, scores, the harmonizer's judgement, explanations, bundles."""
    steps = _TargetSteps(config, chosen, target, digest)
    fits = [task for model in chosen.models for task in (*steps.fits(model), *steps.nulls(model))]
    told = [task for model in chosen.models if model.inputs != (cohorts.CONFOUNDS,) for task in steps.told(model)]
    return [*fits, steps.score([t.name for t in fits]), *steps.judged(), *told]


class _TargetSteps:
    """The steps of one target, each kind written down by itself."""

    def __init__(self, config: Config, chosen: Choices, target: Target, digest: str) -> None:
        self.config, self.chosen, self.target, self.digest = config, chosen, target, digest
        self.common = _common(config, chosen, target)
        named = {s.name: s for s in (*chosen.splits[target.name], chosen.final[target.name])}
        self.splits = [s.name for s in chosen.splits[target.name]]
        once = chosen.splits[target.name] if config.decodes else splits.first_round(chosen.splits[target.name])
        self.retrained = [s.name for s in once]
        self.rows = {name: _digest_of(s.train, s.validation, s.test) for name, s in named.items()}
        self.start = _stamp_of_start(config)

    def fits(self, model: Model) -> list[engine.Task]:
        """Fit a model on every split, and on everybody; a fusion waits for its members."""
        return [
            self._trained(
                "fit", model, split, "predictions.npz", waits=self._names("fit", model.members, split) or ["cohort"]
            )
            for split in [*self.splits, "final"]
        ]

    def nulls(self, model: Model) -> list[engine.Task]:
        """Retrain a model on permuted labels, where that is done, on splits that test nobody twice."""
        n = n_retrained(self.config, model, int(np.isfinite(self.target.values).sum()))
        names = self.retrained if n else []
        return [self._trained("null", model, split, "null.npz", waits=["cohort"], n=n, names=names) for split in names]

    def part(self, model: Model, split: str, part: float) -> engine.Task:
        """Fit a model on a part of a split's training participants."""
        return self._trained("part", model, split, "predictions.npz", f"_part-{part:g}", waits=["cohort"], part=part)

    def score(self, waits: Sequence[str]) -> engine.Task:
        """Score all models, once all are fitted."""
        models = [asdict(m) for m in self.chosen.models]
        given = {**self.common, "models": models, "splits": self.splits, "retrained": self.retrained}
        name = task_name("score", self.target.name)
        return engine.Task(name, "bids_dl.fits:score", given, waits, stamp=self.digest, despite=True)

    def judged(self) -> list[engine.Task]:
        """Judge the features before and after harmonisation, where there is one."""
        if self.config.harmonizer == "none":
            return []
        features = list(dict.fromkeys(m.inputs[0] for m in self.chosen.models if m.method == "linear"))
        given = {**self.common, "features": features, "names": self.splits}
        name = task_name("judge", self.target.name)
        return [engine.Task(name, "bids_dl.fits:judge", given, ["cohort"], stamp=self.digest, memory_gb=0.6)]

    def told(self, model: Model) -> list[engine.Task]:
        """Explain a model of features, describe its parts where it has some, and keep it as a bundle."""
        fits = [name for split in self.splits for name in self._names("fit", [model.id], split)]
        final = self._names("fit", [model.id], "final")
        tasks = [
            self._task("explain", model, method, waits=fits, memory_gb=0.8, splits=self.splits, method=method)
            for method in _explainers(self.config, model)
        ]
        if not self.config.decodes and model.role == "network" and zoo.constant("models", model.method, "PARTS"):
            tasks.append(self._task("describe", model, waits=[*fits, *final], memory_gb=0.8, splits=self.splits))
        waits = [*final, task_name("score", self.target.name)]
        return [*tasks, self._task("bundle", model, waits=waits, memory_gb=0.25)]

    def _names(self, kind: str, models: Sequence[str], split: str) -> list[str]:
        return [task_name(kind, self.target.name, model, split) for model in models]

    def _trained(
        self, kind: str, model: Model, split: str, file: str, end: str = "", *, waits: Sequence[str], **more: Any
    ) -> engine.Task:
        """Write down a step that trains: it is known by what the fit depends on, and done again where its file is missing."""
        folder = self.config.fits / self.target.name / model.id / f"{split}{end}"
        own = configuration.of_fit(self.config, self.target.name, [model.method])
        given = {**_common(own, self.chosen, self.target), "model": asdict(model), "split": split, **more}
        return engine.Task(
            task_name(kind, self.target.name, model.id, f"{split}{end}"),
            FUNCTIONS[kind], given, waits, redo=not (folder / file).is_file(),
            stamp=f"{self.digest}-{self.rows[split]}{self.start}",
            memory_gb=0.6,
        )  # fmt: skip

    def _task(
        self, kind: str, model: Model, *parts: str, waits: Sequence[str], memory_gb: float = 0.6, **more: Any
    ) -> engine.Task:
        """Write one model's step down; ``more`` is what the function is told beside the model."""
        name = task_name(kind, self.target.name, model.id, *parts)
        given = {**self.common, "model": asdict(model), **more}
        return engine.Task(name, FUNCTIONS[kind], given, waits, stamp=self.digest, memory_gb=memory_gb)


def _stamp_of_start(config: Config) -> str:
    """Describe the bundle that networks start from: another one at the same place trains anew; empty without one."""
    folder = config.training.start_from
    return f"-{query.versions([Path(folder) / 'models' / 'model.safetensors'])}" if folder else ""


FUNCTIONS = {
    "fit": "bids_dl.fits:fit", "null": "bids_dl.fits:retrain", "part": "bids_dl.fits:fit_part", "explain": "bids_dl.fits:explain",
    "describe": "bids_dl.fits:describe", "bundle": "bids_dl.fits:keep",
}  # fmt: skip


def _explainers(config: Config, model: Model) -> tuple[str, ...]:
    """Explain every model by integrated gradients, and the networks by all that suits them, unless named otherwise.

    A model that no gradient passes, or a fusion with one, is explained by what needs none, by occlusion at least.
    """
    asked = config.explainers.names or (
        ("integrated_gradients",) if model.role == "baseline" else zoo.names("explainers")
    )
    methods = [method for _, method in model.parts] or [model.method]
    gradients = all(zoo.constant("models", one, "GRADIENTS") is not False for one in methods)
    attention = model.role == "network" and zoo.attends(model.method, config.models.of(model.method))
    return attributions.able(asked, gradients=gradients, attention=attention)


def n_retrained(config: Config, model: Model, n_participants: int) -> int:
    """How often a model is trained on permuted labels: as asked, else the linear models of small cohorts."""
    if model.role == "fusion" or model.method == "dummy" or config.metrics.n_retrained < 0:
        return 0
    if config.metrics.n_retrained:
        return config.metrics.n_retrained
    return N_RETRAINED if model.method in BASELINES and n_participants <= SMALL_COHORT else 0


def task_name(*parts: str) -> str:
    """Name a task so that nipype takes it: letters, digits, underscores."""
    return "__".join("".join(c if c.isalnum() else "_" for c in part) for part in parts)


def _write_excluded(config: Config, plan: cohorts.Plan, chosen: Choices, done: Mapping[str, Any]) -> None:
    """List everyone who was left out of something, with the reason."""
    import pandas as pd

    gathered = done.get("cohort") or {"refused": [], "duplicates": []}
    rows = [dict(e) for e in (*plan.excluded, *chosen.refused)]
    rows += [
        {"participant_id": r["participant_id"], "target": "", "reason": f"{r['feature']}: {r['reason']}"}
        for r in gathered["refused"]
    ]
    for target, _ in chosen.targets:
        missing = np.flatnonzero(~np.isfinite(target.values))
        rows += [
            {"participant_id": plan.participant_ids[m], "target": target.name, "reason": f"'{target.name}' is n/a"}
            for m in missing
        ]
    table = pd.DataFrame(rows, columns=["participant_id", "target", "reason"])
    derivatives.write_table(config.out / "group" / "excluded.tsv", table.replace("", np.nan))
    twice = pd.DataFrame(gathered["duplicates"], columns=["participant_id", "same_as", "feature"])
    derivatives.write_table(config.out / "group" / "duplicates.tsv", twice, DUPLICATE_COLUMNS)
    for row in gathered["duplicates"][:5]:
        LOG.warning(
            "%s has the same %s as %s: one scan under two names can be on both sides of a split.",
            row["participant_id"], row["feature"], row["same_as"],
        )  # fmt: skip


def _write_test_excluded(config: Config, held: HeldDataset, done: Mapping[str, Any]) -> None:
    """List everyone of the test dataset who was not judged, with the reason."""
    import pandas as pd

    gathered = done.get("test_cohort") or {"refused": [], "seen": {}}
    refused = [(r["participant_id"], f"{r['feature']}: {r['reason']}") for r in gathered["refused"]]
    refused += [(i, f"has the same scan as {other} of the training dataset") for i, other in gathered["seen"].items()]
    rows = [dict(e) for e in (*held.plan.excluded, *held.excluded, *held.refused)]
    rows += [{"participant_id": i, "target": "", "reason": reason} for i, reason in refused]
    table = pd.DataFrame(rows, columns=["participant_id", "target", "reason"])
    derivatives.write_table(config.out / "group" / "test_excluded.tsv", table.replace("", np.nan))
    if gathered["seen"]:
        LOG.warning(
            "%d participants of the test dataset have a scan of the training dataset: left out.", len(gathered["seen"])
        )


DUPLICATE_COLUMNS = {
    "participant_id": "Participant",
    "same_as": "Participant whose values are equal to four decimals",
    "feature": "Feature",
}


MOST_FAILED = 20
"""Steps that are named on the terminal."""


def _why(config: Config, task: engine.Task, done: Mapping[str, Any]) -> str:
    """Say what became of a step that did not finish."""
    if lost := [before for before in task.after if before not in done]:
        return f"was left out, as {lost[0]} did not finish"
    return f"did not finish{_reason(config, task.name)}; see {config.out / 'logs'}"


def _first_of_each(reasons: Mapping[str, str]) -> dict[str, str]:
    """Keep of each kind of step, target and model the first, so that no model's reason is lost; what failed itself leads."""
    found: dict[tuple[str, ...], tuple[str, str]] = {}
    for name, reason in sorted(reasons.items(), key=lambda item: item[1].startswith("was left out")):
        found.setdefault(tuple(name.split("__")[:3]), (name, reason))
    return dict(found.values())


def _reason(config: Config, name: str) -> str:
    """Say why a step failed which others ran despite: the last line of what it left behind."""
    path = engine.crash_path(config, name)
    if not path.is_file():
        return ""
    line = path.read_text(encoding="utf-8").strip().splitlines()[-1].removeprefix("bids_dl.errors.").rstrip(".")
    return f": {line}"


def _conclude(config: Config, tasks: Sequence[engine.Task], done: Mapping[str, Any], digest: str) -> int:
    """Write texts and report; say what failed."""
    from bids_dl import report

    unfinished = [t for t in tasks if t.name not in done]
    reasons = {t.name: _why(config, t, done) for t in unfinished}
    first = _first_of_each(reasons)
    derivatives.write_json(config.out / "group" / "failed.json", {"failed": list(reasons), "reasons": first})
    if "cohort" in done:
        (cohort_folder(config) / "fresh").unlink(missing_ok=True)
    if "test_cohort" in done:
        (transfer.folder(config) / "fresh").unlink(missing_ok=True)
    outputs.write_methods(config, "group")
    report.write_all(config.out, "group")
    for name, reason in list(first.items())[:MOST_FAILED]:
        LOG.error("step %s %s.", name, reason)
    if len(reasons) > (n_said := min(len(first), MOST_FAILED)):
        LOG.error("… and %d more steps; all are in group/failed.json.", len(reasons) - n_said)
    for name, lines in done.items():
        if name.startswith(("score__", "test__", "grow__", "resemble__")):
            for line in lines:
                LOG.info(line)
    for sentence in report.doubted(config.out):
        LOG.warning(sentence)
    LOG.info("report: %s (cohort %s).", config.out / "group.html", digest)
    return 1 if unfinished else 0
