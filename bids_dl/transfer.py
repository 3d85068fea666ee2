"""A second dataset in the shape of the first: the same features, confounds and classes, and nobody who is in both."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bids_dl import cohort as cohorts
from bids_dl import config as configuration
from bids_dl import quality, query
from bids_dl.cohort import Plan, Variant
from bids_dl.config import Config, Select
from bids_dl.errors import DataError, MissingInputError, NothingSelectedError
from bids_dl.records import STEPS, Block, Cohort, Target

FEWEST_OF_A_QUANTITY = 3


def folder(config: Config) -> Path:
    """Name the folder of the memory-mapped participants of the test dataset."""
    return config.work / "test_cohort"


def config_of(config: Config) -> Config:
    """Make the configuration that reads the test dataset: the same features and rules, another place.

    Raises
    ------
    MissingInputError
        If the folder is no output of the participant level, or its participants.tsv is nowhere.
    """
    root = Path(config.test_dataset)
    made = root / "logs" / "bids_dl_participant.toml"
    if not made.is_file():
        raise MissingInputError(
            f"--test-dataset {root} is no output of the participant level, as it has no logs/{made.name}; run "
            f"`bids_dl TEST_DATA {root} participant` first."
        )
    bids = Path(tomllib.loads(made.read_text(encoding="utf-8"))["bids_dir"])
    bids = root if (root / "participants.tsv").is_file() else bids
    if not (bids / "participants.tsv").is_file():
        raise MissingInputError(f"--test-dataset {root} was made from {bids}, which has no participants.tsv any more; "
                                f"put a copy of it into {root}.")  # fmt: skip
    return replace(config, bids_dir=str(bids), output_dir=str(root), test_dataset="", select=Select())


def plan(config: Config, trained: Plan, covariates: Sequence[str]) -> Plan:
    """Find out who of the test dataset takes part, with the features of the training dataset under its names.

    Raises
    ------
    DataError
        If a feature, a table or a confound of the training dataset is missing, or a feature has other regions.
    NothingSelectedError
        If everybody takes part in the training dataset too.
    """
    other = config_of(config)
    _refuse_unlike(config, {v.feature for v in trained.variants})
    found = cohorts.plan(other)
    variants = [_matched(config, v, found.variants) for v in trained.variants]
    lacking = [c for c in covariates if c not in found.columns] + [t for t in trained.tables if t not in found.tables]
    if lacking:
        raise DataError(
            f"--test-dataset {config.test_dataset}: its participants.tsv or phenotype/ has no '{lacking[0]}', which the models "
            "are trained with; add it there, or name what both datasets have with --covariates or --features."
        )
    for column in covariates:
        _refuse_other_words(config, column, trained.columns[column], found.columns[column])
    names = [str(query.description(c.bids)["Name"]) for c in (config, other)]
    both = set(trained.participant_ids) & set(found.participant_ids) if names[0] == names[1] else set()
    excluded = [
        {"participant_id": i, "target": "", "reason": f"takes part in the training dataset '{names[0]}' under the same label"}
        for i in sorted(both)
    ]  # fmt: skip
    if len(both) == len(found.participant_ids):
        raise NothingSelectedError(
            f"--test-dataset {config.test_dataset}: everybody in it takes part in the training dataset '{names[0]}'; name a "
            "dataset of other people."
        )
    return _without(both, replace(found, variants=tuple(variants), excluded=(*found.excluded, *excluded)))


def _refuse_other_words(config: Config, column: str, trained: Sequence[Any], cells: Sequence[Any]) -> None:
    """Refuse a confound of which no cell means anything here, but sites, which are others: F and M, and female and male."""
    mine, theirs = ({c for c in some if isinstance(c, str)} for some in (trained, cells))
    numbers = cohorts.are_numbers(mine)
    fits = any(cohorts.are_numbers([cell]) for cell in theirs) if numbers else bool(mine & theirs)
    if fits or not theirs or quality.is_site(column, config.splits.site_column):
        return
    raise DataError(
        f"--test-dataset {config.test_dataset}: its column '{column}' holds {', '.join(sorted(theirs)[:3])}, and that of the "
        f"training dataset {'numbers' if numbers else ', '.join(sorted(mine)[:3])}; both must write them alike."
    )


def _refuse_unlike(config: Config, features: Collection[str]) -> None:
    """Refuse features that the participant level made by other options than those of the training dataset."""
    roots = config.out, Path(config.test_dataset)
    paths = [root / "logs" / "bids_dl_participant.toml" for root in roots]
    if not paths[0].is_file():
        return
    wanted, made = (configuration.read_toml(path).get("features", {}) for path in paths)
    if found := [one for name in sorted(features) for one in configuration.unlike(name, made, wanted)]:
        raise DataError(
            f"--test-dataset {config.test_dataset}: {'; '.join(dict.fromkeys(found))} as in the training dataset; run its participant "
            "level with the options of this one."
        )


def _without(ids: set[str], made: Plan) -> Plan:
    """Leave some participants out of a plan."""
    kept = [k for k, i in enumerate(made.participant_ids) if i not in ids]
    columns = {name: [cells[k] for k in kept] for name, cells in made.columns.items()}
    variants = [replace(v, files={i: f for i, f in v.files.items() if i not in ids}) for v in made.variants]
    return replace(
        made, participant_ids=tuple(made.participant_ids[k] for k in kept), columns=columns, variants=tuple(variants)
    )


def _matched(config: Config, wanted: Variant, others: Sequence[Variant]) -> Variant:
    """Find the test dataset's files of one feature; tasks may be called differently where that leaves one choice."""
    same = [o for o in others if (o.feature, o.kind) == (wanted.feature, wanted.kind)]
    fitting = [o for o in same if cohorts.same_content(o.entities, wanted.entities)]
    exact = [o for o in fitting if o.entities.get("task") == wanted.entities.get("task")]
    found = exact if len(exact) == 1 else fitting
    if len(found) == 1:
        return replace(found[0], name=wanted.name)
    what = ", ".join(f"{key}-{value}" for key, value in wanted.entities.items() if key not in {"suffix", "datatype"})
    there = ", ".join(sorted(" ".join([o.feature, *map("-".join, o.entities.items())]) for o in found or others))
    raise DataError(
        f"--test-dataset {config.test_dataset}: the feature '{wanted.name}' ({what}) is "
        f"{'there more than once' if found else 'not there'}; it has {there or 'none'}. Run its participant "
        "level with the features and atlas of this one, or choose with --features."
    )


def describe(config: Config, trained: Plan, made: Plan) -> dict[str, dict[str, Any]]:
    """Describe the features of the test dataset as those of the training dataset are.

    Raises
    ------
    DataError
        If the first participant's file of a feature has other regions or another grid.
    """
    described = {v.name: cohorts.describe(v) for v in trained.variants}
    for variant in made.variants:
        mine = described[variant.name]
        try:
            for files in list(variant.files.values())[:1]:
                cohorts.joined(files, mine)
        except DataError as problem:
            raise DataError(
                f"--test-dataset {config.test_dataset} does not fit the training dataset: {problem}"
            ) from problem
        if mine["dims"][0] in STEPS:
            mine["shape"] = [variant.n_steps, *mine["shape"][1:]]
    return described


def target_of(config: Config, made: Plan, trained: Target) -> tuple[Target, list[dict[str, str]]]:
    """Read the test dataset's target with the classes that were trained on, and list who has none of them.

    Raises
    ------
    DataError
        If the column is missing, or holds too little to be judged.
    """
    import pandas as pd

    where = f"--test-dataset {config.test_dataset}"
    if trained.name not in made.columns:
        raise DataError(
            f"{where}: its participants.tsv has no column '{trained.name}'; rename the column there that means the same."
        )
    cells = list(made.columns[trained.name])
    names = trained.levels or trained.ranks
    codes = {level: float(code) for code, level in enumerate(names)}
    known = [codes.get(str(c), np.nan) for c in cells] if codes else pd.to_numeric(pd.Series(cells), errors="coerce")
    target = replace(trained, values=np.asarray(known, np.float64))
    finite = target.values[np.isfinite(target.values)]
    absent = next((level for code, level in enumerate(trained.levels) if code not in finite), None)
    if absent is not None or (not trained.is_class and len(finite) < FEWEST_OF_A_QUANTITY):
        who = (
            f"nobody of class '{absent}'"
            if absent is not None
            else f"{len(finite)} participants with {'one of the levels' if codes else 'a number'}"
        )
        raise DataError(f"{where}: its column '{trained.name}' has {who}; the training dataset has "
                        f"{', '.join(names) or 'a quantity'}, and both must write them alike.")  # fmt: skip
    unlike = {"classification": "none of the classes trained on", "ordinal": "none of the levels trained on"}
    strange = f"'{trained.name}' is {unlike.get(trained.kind, 'no number')}"
    return target, [
        {"participant_id": i, "target": trained.name, "reason": f"{strange}: {c}" if isinstance(c, str) else f"'{trained.name}' is n/a"}
        for i, c, value in zip(made.participant_ids, cells, target.values, strict=True) if np.isnan(value)
    ]  # fmt: skip


def refusal(config: Config, site: str) -> str:
    """Say why the harmonizer refuses somebody of a site, empty for none."""
    who = f"site '{site}' has no training participants" if site else "no site is known"
    return f"{who}, and harmonizers.{config.harmonizer}.unseen is 'refuse'"


def refused(
    config: Config, target: Target, ids: Sequence[str], sites: Sequence[str], known: Collection[str]
) -> list[dict[str, str]]:
    """List who has the target and is of no site that was trained on, with the reason."""
    return [
        {"participant_id": i, "target": target.name, "reason": refusal(config, site)}
        for i, site, value in zip(ids, sites, target.values, strict=True) if np.isfinite(value) and site not in known
    ]  # fmt: skip


def load(
    root: Path, trained: Cohort, target: Target, *, columns: Sequence[str] = (), site: str = "", adapts: bool = False
) -> Cohort:
    """Open the test dataset's participants with the confounds, sites and columns of the training cohort.

    A site that the training cohort does not know is 0 in every column; where the harmonizer ``adapts``, such sites get
    columns of their own after the others.
    """
    found = cohorts.load(root, target, (), columns=columns)
    people, features = found.participants, dict(found.features)
    features[cohorts.CONFOUNDS] = _confounds(people, trained)
    if cohorts.SITES in trained.features:
        cells = people[site] if site in people else [None] * len(people)
        known = trained.features[cohorts.SITES].labels
        new = {c for c in cells if isinstance(c, str)} - set(known) if adapts else ()
        features[cohorts.SITES] = cohorts.sites_block(cells, (*known, *sorted(new)))
    for name, table in cohorts.read_plan(root).tables.items():
        features[name] = cohorts.columns_as(Path(table), list(people["participant_id"]), trained.features[name].labels)
    return Cohort(people, features, target)


def _confounds(people: Any, trained: Cohort) -> Block:
    """Encode the confounds as the training cohort's are; a level that nobody there has is unknown, NaN."""
    import pandas as pd

    labels, parts = trained.features[cohorts.CONFOUNDS].labels, []
    for label in labels:
        column, _, level = label.partition("=")
        cells = people[column]
        known = cells.isin(trained.participants[column].dropna())
        numbers = (cells == level).astype(float).where(known) if level else pd.to_numeric(cells, errors="coerce")
        parts.append(numbers.to_numpy(np.float32))
    return Block(
        np.stack(parts, axis=1) if parts else np.zeros((len(people), 0), np.float32), ("column",), tuple(labels)
    )


def seen(root: Path, trained: Path) -> dict[str, str]:
    """Find who of the test dataset has the same scan as somebody of the training dataset: participant → that one."""
    known = {(feature, mark): i for feature, i, mark in cohorts.printed(trained)}
    return {i: known[feature, mark] for feature, i, mark in cohorts.printed(root) if (feature, mark) in known}
