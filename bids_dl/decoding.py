"""States from moments: a row of the cohort becomes a window of a participant's series, its target what was going on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_dl import cohort as cohorts
from bids_dl import config as configuration
from bids_dl import derivatives, quality, query, shifting, zoo
from bids_dl.config import Config
from bids_dl.errors import DataError, UsageError
from bids_dl.records import Target

EVENTS, PERSON, RUN, MINUTES = "events", "participant", "run", "minutes"
"""The target, and the columns that tell whose a row is, of which run, and when in it."""

CONTEXT = "context"
"""Ends the name of the feature that holds the same windows as columns, for models that know no time."""

KEPT = ("sex", "gender", "age", *quality.SITE_COLUMNS)
OF_A_RUN = ("ses", "task", "acq", "ce", "rec", "dir", "run", "echo")
NONE, SEVERAL, OTHER, UNKNOWN = -1, -2, -3, -4
LEFT = {
    UNKNOWN: "what was on is not known",
    NONE: "no condition was on",
    SEVERAL: "several conditions were on",
    OTHER: "a condition was on that is not decoded",
}
BEYOND, BASELINE, CENSORED = "the context reached beyond the run", "the baseline had not ended", "it was censored"


@dataclass(frozen=True)
class Plan(cohorts.Plan):
    """A plan whose rows are windows; ``stored`` is that of the participants whose series are laid out.

    ``starts`` (row,) are the windows' first volumes, ``n_volumes`` the length of each run of a participant, censored
    volumes included, and ``repetition_time`` that of all runs in seconds.
    """

    stored: cohorts.Plan = field(kw_only=True)
    starts: tuple[int, ...] = field(kw_only=True)
    n_volumes: Mapping[str, Sequence[int]] = field(kw_only=True)
    repetition_time: float = field(kw_only=True)


@dataclass(frozen=True)
class Run:
    """One run: what was on, (volume, condition), where that is ``unknown`` (volume,), censored volumes, repetition time in seconds.

    ``file`` has its series. ``late_s`` is how many seconds late events really count: they are moved by whole volumes.
    ``n_late`` events begin after the end of the scan.
    """

    file: Path
    name: str
    on: NDArray[np.bool_]
    unknown: NDArray[np.bool_]
    conditions: tuple[str, ...]
    censored: frozenset[int]
    period: float
    late_s: float = 0.0
    n_late: int = 0

    def codes(self, chosen: Sequence[str]) -> NDArray[np.intp]:
        """Return the number of the condition that is on at each volume, below 0 where it is not exactly one of these."""
        number = np.array([chosen.index(c) if c in chosen else OTHER for c in self.conditions], np.intp)
        count = self.on.sum(axis=1)
        found = np.where(count == 1, number[self.on.argmax(axis=1)], np.where(count > 1, SEVERAL, NONE))
        return np.where(self.unknown, UNKNOWN, found)


def plan(config: Config, given: cohorts.Plan) -> Plan:
    """Cut the participants' series into windows, each with the condition that was on; what is left out is counted.

    Raises
    ------
    UsageError
        If something is asked for that has no meaning within a participant.
    DataError
        If there are no series with events beside them, several kinds of them, or runs of differing repetition times.
    """
    _refuse_meaningless(config)
    variant = _series(given)
    runs, lacking = _runs(given, variant, config.decoding.delay_s)
    _refuse_unlike(runs)
    variant = replace(variant, files={i: [str(run.file) for run in mine] for i, mine in runs.items()})
    chosen = _chosen(config.decoding, runs)
    people = [i for i in given.participant_ids if i in runs]
    n_steps = max(sum(len(run.on) for run in runs[i]) for i in people)
    rows, left = [], Counter[str]()
    for number, person in enumerate(people):
        found, reasons = _rows_of(person, runs[person], chosen, config.decoding)
        rows += [(*row[:3], row[3] + number * n_steps, row[4]) for row in found]
        left += reasons
    if not rows:
        raise DataError(
            f"no volume is left to decode ({said_left(left)}); shorten decoding.context or look at the events."
        )
    stored = replace(
        given,
        participant_ids=tuple(people),
        variants=(replace(variant, n_steps=n_steps),),
        columns={},
        excluded=(),
        tables={},
    )
    some = [reason for i, reasons in lacking.items() for reason in reasons if i in runs]
    problems = [_without_events(i, reasons) for i, reasons in lacking.items() if i not in runs]
    said = _notes(config, len(rows), len({row[0] for row in rows}), chosen, left, runs)
    told = f"Runs of these participants that are left out, as they have no events: {len(some)}. {' '.join(some[:1])}"
    notes = (*given.notes, *said, *([told] if some else []))
    n_volumes = {i: [len(run.on) for run in runs[i]] for i in people}
    return Plan(
        tuple(_row_id(row, runs) for row in rows), _features(stored.variants[0], config.decoding.context),
        _columns(config, given, rows, runs), (*given.excluded, *problems), notes, {},
        stored=stored, starts=tuple(row[3] for row in rows), n_volumes=n_volumes, repetition_time=_period(runs),
    )  # fmt: skip


def _refuse_meaningless(config: Config) -> None:
    if config.targets.covariates:
        raise UsageError(
            f"targets.covariates {', '.join(config.targets.covariates)}: a participant's are the same at every time point "
            "and cannot explain what changes; leave them out of decoding."
        )
    if config.harmonizer != "none":
        raise UsageError("harmonizers.names: series are standardised by run, so leave harmonizers out of decoding.")


def _series(given: cohorts.Plan) -> cohorts.Variant:
    found = [v for v in given.variants if v.kind == "sequence"]
    if not found:
        raise DataError("decoding needs regional series; run the participant level with --features timeseries events.")
    if len(found) > 1:
        raise DataError(
            f"decoding takes one kind of series, and there are {', '.join(v.name for v in found)}; choose by features.names, "
            "select.task_id or another output folder."
        )
    return found[0]


def _runs(
    given: cohorts.Plan, variant: cohorts.Variant, delay_s: float
) -> tuple[dict[str, list[Run]], dict[str, list[str]]]:
    """Read the events of every participant's runs; also returns, by participant, why runs have none."""
    found: dict[str, list[Run]] = {}
    lacking: dict[str, list[str]] = {}
    for person in given.participant_ids:
        for file in map(Path, variant.files.get(person, ())):
            try:
                run = _run(file, delay_s)
                found.setdefault(person, []).append(run)
            except DataError as problem:
                lacking.setdefault(person, []).append(str(problem))
    if not found:
        said = next((reasons[0] for reasons in lacking.values()), f"nobody has {variant.name}.")
        raise DataError(f"no participant has series with events: {said}")
    return found, lacking


def _without_events(person: str, reasons: Sequence[str]) -> dict[str, str]:
    """List somebody none of whose runs has events."""
    return {"participant_id": person, "target": EVENTS, "reason": " ".join(reasons)}


def _run(series: Path, delay_s: float) -> Run:
    """Read the events that belong to a run, moved so that they come ``delay_s`` late in all.

    Moved forward, they tell nothing of the last volumes; nor do trials without a type.

    Raises
    ------
    DataError
        If there are none.
    """
    file = _events_file(series)
    said = query.read_json(derivatives.sidecar_path(file))
    conditions, values = query.read_matrix(file, own=True)
    period = float(said["RepetitionTime"])
    later = round((delay_s - float(said["HaemodynamicDelay"])) / period)
    source = np.arange(len(values)) - later
    told = (source >= 0) & (source < len(values))
    on, unknown = np.zeros(values.shape, bool), source >= len(values)
    on[told], unknown[told] = values[source[told]] > 0, np.isnan(values[source[told]]).any(axis=1)
    censored = frozenset(cohorts.said_beside(series).get("CensoredVolumes", ()))
    late_s = float(said["HaemodynamicDelay"]) + later * period
    return Run(series, _run_name(series), on, unknown, conditions, censored, period, late_s, said.get("LateEvents", 0))


def _events_file(series: Path) -> Path:
    wanted = of_a_run(series)
    for file in sorted(series.parent.glob("*_desc-alignedevents_timeseries.tsv")):
        if of_a_run(file) == wanted:
            return file
    raise DataError(
        f"{series.name} has no events beside it; run the participant level with --features timeseries events, look for the "
        "run's events.tsv, and in logs/problems.tsv for why it was refused if it is there."
    )


def of_a_run(file: Path) -> dict[str, str]:
    """Read the entities that tell a participant's runs apart."""
    names = query.entities(file)
    return {key: names[key] for key in OF_A_RUN if key in names}


def _run_name(series: Path) -> str:
    return "_".join(f"{key}-{value}" for key, value in of_a_run(series).items())


def _refuse_unlike(runs: Mapping[str, Sequence[Run]]) -> None:
    """Refuse runs whose volumes do not take the same time: a context would span more in one than in the other."""
    periods = [(run.period, f"{person} {run.name}") for person, mine in runs.items() for run in mine]
    (fast, fastest), (slow, slowest) = min(periods), max(periods)
    if slow > 1.01 * fast:
        raise DataError(
            f"repetition times differ: {fast:g} s in {fastest}, {slow:g} s in {slowest}; choose by select.participant_label, "
            "select.session_label or select.task_id."
        )


def _period(runs: Mapping[str, Sequence[Run]]) -> float:
    return next(iter(runs.values()))[0].period


def _chosen(settings: configuration.Decoding, runs: Mapping[str, Sequence[Run]]) -> list[str]:
    """Name the conditions that are told apart: as the user says, else all."""
    known = sorted({c for mine in runs.values() for run in mine for c in run.conditions})
    for name in settings.conditions:
        if name not in known:
            raise DataError(f"decoding.conditions: no run has the condition '{name}'; {zoo.nearest(name, known)}")
    return list(settings.conditions) or known


Row = tuple[str, str, int, int, str]
"""Participant, run, volume in the run, first volume of the window among the participant's, condition."""


def _rows_of(
    person: str, runs: Sequence[Run], chosen: Sequence[str], settings: configuration.Decoding
) -> tuple[list[Row], Counter[str]]:
    """List one participant's rows, and count the volumes that are none by their reason."""
    rows: list[Row] = []
    left, at = Counter[str](), 0
    for run in runs:
        codes = run.codes(chosen)
        for volume in range(0, len(codes), settings.stride):
            code = int(codes[volume])
            rest = code == NONE and settings.rest
            reason = why_left(run, volume, settings) or ("" if rest else LEFT.get(code, ""))
            left[reason] += 1
            if not reason:
                start = at + volume - n_before(settings)
                rows.append((person, run.name, volume, start, settings.rest if rest else chosen[code]))
        at += len(codes)
    del left[""]
    return rows, left


def why_left(run: Run, volume: int, settings: configuration.Decoding) -> str:
    """Say why a volume cannot be decoded, whatever was on; empty if it can."""
    start = volume - n_before(settings)
    if start < 0 or start + settings.context > len(run.on):
        return BEYOND
    if settings.causal and start * run.period < settings.baseline_s:
        return BASELINE
    return CENSORED if volume in run.censored else ""


def n_before(settings: configuration.Decoding) -> int:
    """Count the volumes of a window before the one that is decoded: all others, or half of them."""
    return settings.context - 1 if settings.causal else settings.context // 2


def _row_id(row: Row, runs: Mapping[str, Sequence[Run]]) -> str:
    """Name a row, ``sub-01@t0012``; where there are several runs, with the run."""
    person, run, volume = row[:3]
    return f"{person}@{f'{run}_' if len(runs[person]) > 1 else ''}t{volume:04d}"


def _columns(
    config: Config, given: cohorts.Plan, rows: Sequence[Row], runs: Mapping[str, Sequence[Run]]
) -> dict[str, list[Any]]:
    """Give each row its condition, whose it is, which run, when in it, and what sets people apart."""
    number = {person: k for k, person in enumerate(given.participant_ids)}
    kept = {c: v for c, v in given.columns.items() if str(c).lower() in KEPT or c == config.splits.site_column}
    family = next(
        (c for c in given.columns if c == config.splits.group_column or str(c).lower() in cohorts.FAMILIES), ""
    )
    ties = given.columns.get(family, [None] * len(number))
    period = {person: mine[0].period for person, mine in runs.items()}
    return {
        EVENTS: [row[4] for row in rows],
        PERSON: [row[0] for row in rows],
        RUN: [f"{row[0]} {row[1]}" for row in rows],
        MINUTES: [minutes(row[2], period[row[0]]) for row in rows],
        TIES: [tie if isinstance(tie := ties[number[row[0]]], str) else row[0] for row in rows],
        **{c: [v[number[row[0]]] for row in rows] for c, v in kept.items()},
    }


def minutes(volume: int, period: float) -> str:
    """Write when in its run a volume was taken; ``period`` is the repetition time in seconds."""
    return str(round(volume * period / 60, 4))


TIES = "family_or_participant"
"""Column of what keeps to one side of a split: a family, or the participant alone."""


def _features(series: cohorts.Variant, context: int) -> tuple[cohorts.Variant, ...]:
    """Name the windows twice: as sequences, and as columns for models that know no time."""
    return (
        replace(series, n_steps=context),
        replace(series, name=f"{series.name}+{CONTEXT}", kind="column", n_steps=0),
    )


def _notes(
    config: Config, n_rows: int, n_people: int, chosen: Sequence[str], left: Counter[str],
    runs: Mapping[str, Sequence[Run]],
) -> list[str]:  # fmt: skip
    """Say what is decoded from what, what was left out, and what the results do not show."""
    s = config.decoding
    period = _period(runs)
    where = "that ends with it" if s.causal else "around it"
    named = ", ".join(dict.fromkeys([*chosen, *([s.rest] if s.rest else [])]))
    notes = [
        f"Decoded: which of {named} was on at each of {n_rows:,} volumes of {n_people} participants, from the context of "
        f"{s.context} volumes ({s.context * period:g} s) {where}. Events count {_said_late(s.delay_s, runs)} late, as the blood does.",
        f"Left out: {said_left(left)}." if left else "No volume was left out.",
        "p-values compare with circular shifts of each run's conditions, which keep how long they last; a drift that goes "
        "with the order of conditions is not ruled out. confounds_only predicts from the time in the run: look what it reaches.",
    ]
    if s.causal:
        notes.append(
            "Series are standardised by what came before, never by later volumes. Cleaning at the participant level (filter, "
            "confound regression) has seen the whole run; for a claim about real time, extract with it switched off."
        )
    n_late = sum(run.n_late for mine in runs.values() for run in mine)
    notes += [f"Events that begin after the end of their scan, and tell of no volume: {n_late}."] if n_late else []
    return notes + ([ONE_ORDER] if _same_order(runs) else [])


def _said_late(asked_s: float, runs: Mapping[str, Sequence[Run]]) -> str:
    """Say how many seconds late events count, and where that is not what was asked for."""
    found = sorted({round(run.late_s, 3) for mine in runs.values() for run in mine})
    if all(abs(late - asked_s) < HARDLY_S for late in found):
        return f"{asked_s:g} s"
    said = " or ".join(f"{late:g} s" for late in found)
    return f"{said} (asked for: {asked_s:g} s, which whole volumes do not allow; set features.events.delay_s at the participant level)"


HARDLY_S = 0.1
"""Seconds between delays that make no difference."""
ONE_ORDER = "All runs have the same conditions at the same times: what goes with time in the run cannot be told from the conditions."


def _same_order(runs: Mapping[str, Sequence[Run]]) -> bool:
    """Tell whether every run has one and the same course of conditions."""
    courses = {(run.conditions, run.on.tobytes()) for mine in runs.values() for run in mine}
    return len(courses) == 1 and sum(map(len, runs.values())) > 1


def said_left(left: Mapping[str, int]) -> str:
    """Say how many volumes are left out for which reason."""
    return "; ".join(f"{n:,} volumes because {reason}" for reason, n in left.items())


def read_plan(folder: Path) -> cohorts.Plan:
    """Read the plan of the rows back from the cohort's folder."""
    return cohorts.read_plan(folder, "rows.json")


def target_of(config: Config, made: cohorts.Plan, name: str = EVENTS) -> Target:
    """Make the target; labels that are shuffled on purpose are shifted within each run."""
    honest = replace(config, metrics=replace(config.metrics, shuffle_labels=False))
    target = cohorts.target_of(honest, made, name)
    if not config.metrics.shuffle_labels:
        return target
    return shifting.shifted_target(target, made.columns[RUN], config.random_seed)
