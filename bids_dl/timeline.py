"""A bundle that decodes, applied to a participant: what was going on at each volume, as a table for each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_dl import cohort as cohorts
from bids_dl import config as configuration
from bids_dl import decoding, derivatives, training, windows
from bids_dl.config import Config
from bids_dl.errors import DataError
from bids_dl.records import Array, Cohort, FittedModel, Target

MOST_UNLIKE = 1.01
"""Ratio of repetition times from which on a context spans another time than the one that was learned."""


@dataclass(frozen=True)
class Course:
    """A run to decode: its file, its series (volume, region) as the model was taught, and what it lacks."""

    file: Path
    series: Array
    run: decoding.Run


def read(said: Mapping[str, Any], config: Config, participant_id: str, record: Mapping[str, Any]) -> list[Course]:
    """Read every run of a participant that the bundle can decode, in order of their names.

    Raises
    ------
    DataError
        If there is none, or one has other regions or another repetition time than those that were trained on.
    """
    described = next(iter(said["features"].values()))
    files = cohorts.files_of(config.out, record, described, sessions=True)
    if not files:
        raise DataError(
            f"{participant_id} has none of the features that the bundle takes ({described['feature']}, atlas "
            f"{described['entities'].get('atlas', 'unknown')})."
        )
    return [_course(file, said["decoding"]) for file in sorted(files)]


def _course(file: Path, asked: Mapping[str, Any]) -> Course:
    beside = cohorts.said_beside(file)
    period = float(beside.get("RepetitionTime", np.nan))
    _refuse_other_period(file, period, asked["repetition_time"])
    series = windows.volumes_of(file, asked["regions"], causal=asked["causal"])
    no_condition, censored = np.zeros((len(series), 0), bool), frozenset(beside.get("CensoredVolumes", ()))
    return Course(
        file, series, decoding.Run(file, file.stem, no_condition, np.ones(len(series), bool), (), censored, period)
    )


def _refuse_other_period(file: Path, period: float, wanted: float) -> None:
    if not wanted / MOST_UNLIKE <= period <= wanted * MOST_UNLIKE:
        found = f"a repetition time of {period:g} s" if np.isfinite(period) else "no RepetitionTime in its sidecar"
        raise DataError(
            f"{file.name} has {found}, and the bundle decodes volumes of {wanted:g} s; choose runs by --task-id, or train on "
            "runs like these."
        )


def decode(fitted: FittedModel, said: Mapping[str, Any], runs: Sequence[Course], participant_id: str) -> list[Array]:
    """Predict every volume that has its context, in windows cut as they were for the training.

    Returns
    -------
    list
        For each run (volume, level), probabilities; NaN where nothing can be said.

    Raises
    ------
    DataError
        If that is so of every volume.
    """
    settings = _settings(said)
    places = _places(runs, settings)
    scores = [np.full((len(run.series), len(fitted.levels)), np.nan) for run in runs]
    if len(places):
        cohort = _cohort(fitted, said, runs, places, settings)
        for (number, volume), row in zip(places, training.predict(fitted, cohort, np.arange(len(places))), strict=True):
            scores[number][volume] = row
    if not np.isfinite(np.concatenate(scores)).any():
        raise DataError(
            f"{participant_id}: no volume can be decoded; a run needs more than {_n_needed(settings, said)} volumes, not all of "
            "them censored."
        )
    return scores


def _settings(said: Mapping[str, Any]) -> configuration.Decoding:
    given = {f.name: said["decoding"][f.name] for f in fields(configuration.Decoding)}
    return configuration.Decoding(**{**given, "conditions": tuple(given["conditions"])})


def _places(runs: Sequence[Course], settings: configuration.Decoding) -> NDArray[np.intp]:
    """List the volumes that can be decoded, (row, (run, volume))."""
    found = [
        (number, volume)
        for number, one in enumerate(runs)
        for volume in range(len(one.series))
        if not decoding.why_left(one.run, volume, settings)
    ]
    return np.array(found, np.intp).reshape(-1, 2)


def _n_needed(settings: configuration.Decoding, said: Mapping[str, Any]) -> int:
    """Count the volumes that go by before the first one that can be decoded."""
    baseline = settings.baseline_s / said["decoding"]["repetition_time"] if settings.causal else 0
    return int(np.ceil(baseline)) + settings.context - 1


def _cohort(
    fitted: FittedModel, said: Mapping[str, Any], runs: Sequence[Course], places: NDArray[np.intp],
    settings: configuration.Decoding,
) -> Cohort:  # fmt: skip
    """Make each volume a row, like those of the training."""
    import pandas as pd

    begins = np.cumsum([0, *(len(run.series) for run in runs)])
    starts = begins[places[:, 0]] + places[:, 1] - decoding.n_before(settings)
    cut = windows.Windows(np.concatenate([run.series for run in runs]), starts.astype(np.int64), settings.context)
    minutes = [decoding.minutes(int(volume), runs[number].run.period) for number, volume in places]
    rows = pd.DataFrame({"participant_id": [f"{runs[number].run.name}@{volume}" for number, volume in places]})
    target = Target(fitted.target_name, np.full(len(places), np.nan), fitted.levels)
    return Cohort(rows, windows.blocks_of(cut, said["features"], minutes), target)


def named(scores: Array, levels: Sequence[str]) -> NDArray[Any]:
    """Name the most probable level of each volume, (volume,); None where nothing can be said."""
    known = ~np.isnan(scores.sum(axis=1))
    best = np.where(known[:, None], scores, 0).argmax(axis=1)
    return np.array([levels[code] if sure else None for code, sure in zip(best, known, strict=True)], object)


def row_of(names: NDArray[Any], levels: Sequence[str]) -> dict[str, Any]:
    """Sum a participant up: how many volumes there are, how many were decoded, and the part of each level among them."""
    decoded = [name for name in names if name is not None]
    parts = {f"part_{level}": decoded.count(level) / len(decoded) if decoded else None for level in levels}
    counts = (len(names), len(decoded)) if len(names) else (None, None)
    return {"n_volumes": counts[0], "n_decoded": counts[1], **parts}


def write(course: Course, scores: Array, said: Mapping[str, Any], config: Config, *, bundle: str) -> str:
    """Write a run's predictions beside its series, a row a volume of the whole run, with a sidecar.

    Returns
    -------
    str
        ``…_desc-<bundle>_timeseries.tsv`` in the output folder.
    """
    import pandas as pd

    levels = said["levels"]
    table = pd.DataFrame({"prediction": named(scores, levels)})
    table = table.assign(**{f"score_{level}": scores[:, code] for code, level in enumerate(levels)})
    of_whom = {"sub": course.file.name.split("_")[0].removeprefix("sub-")}
    names = of_whom | decoding.of_a_run(course.file) | {"desc": derivatives.word(bundle)}
    path = derivatives.write_table(course.file.with_name(derivatives.name(names, "timeseries", ".tsv")), table)
    derivatives.write_json(derivatives.sidecar_path(path), _described(course, said, config, bundle))
    return str(path.relative_to(config.out))


def _described(course: Course, said: Mapping[str, Any], config: Config, bundle: str) -> dict[str, Any]:
    """Describe a table of predictions: whose, of what, from which volumes, and its columns."""
    settings = _settings(said)
    return {
        "Description": "Condition that was on, by a model that had not seen this participant",
        "Context": f"{settings.context} volumes, {'up to the volume' if settings.causal else 'around the volume'}",
        "Model": bundle, "Target": said["target"], "Sources": [f"bids::{course.file.relative_to(config.out)}"],
        "RepetitionTime": course.run.period, "HaemodynamicDelay": settings.delay_s, "Causal": settings.causal,
        "CensoredVolumes": sorted(course.run.censored),
        "prediction": {"Description": "Most probable condition; n/a where the context reaches beyond the run, the baseline has not ended, "
                       "or the volume was censored", "Levels": {level: level for level in said["levels"]}},
        **{f"score_{level}": {"Description": f"Probability of '{level}'"} for level in said["levels"]},
    }  # fmt: skip
