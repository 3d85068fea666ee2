"""Trained models applied to new participants: predictions and attributions, or the reason why there are none."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bids_dl import attributions, building, bundle, calibration, query, timeline, training
from bids_dl import cohort as cohorts
from bids_dl import config as configuration
from bids_dl.config import Config
from bids_dl.errors import BidsDLError, DataError, InvalidDatasetError
from bids_dl.records import Array, Block, Cohort, FittedModel, Target


@lru_cache(maxsize=2)
def _loaded(folder: Path) -> tuple[FittedModel, dict[str, Any]]:
    return bundle.load(folder), bundle.about(folder)


def predict_participant(folder: Path, config: Config, participant_id: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Apply a bundle to one participant: a row of predictions, or the reason why there is none.

    Attributions by the explainers that are asked for, else by integrated gradients, are written beside the participant's
    features; by occlusion where no gradient passes the model.
    """
    name = folder.name
    try:
        fitted, said = _loaded(folder)
        _refuse_unlike(said, config, participant_id)
        if "decoding" in said:
            return {"bundle": name, **_predict_moments(folder, config, participant_id, record)}
        one = _cohort_of_one(fitted, said, config, participant_id, record)
        _refuse_known(bundle.prints(one, [0], _features_of(fitted)), said, config, participant_id)
        scores = training.predict(fitted, one, np.array([0]))
        row = _row(fitted, scores[0]) | _limits(fitted, scores, config.metrics.coverage)
    except InvalidDatasetError:
        raise
    except BidsDLError as problem:
        return {"bundle": name, "row": {**_empty_row(folder), "excluded": str(problem)}}
    return {
        "bundle": name,
        "row": {**row, "excluded": None},
        "attributions": _explain(folder, config, participant_id, record, one),
    }


def _refuse_unlike(said: Mapping[str, Any], config: Config, participant_id: str) -> None:
    """Refuse features that were made by other options than those that the bundle was trained on.

    Raises
    ------
    DataError
        Naming the options.
    """
    made = configuration.to_mapping(config)["features"]
    wanted = said.get("feature_options") or made
    names = dict.fromkeys(one["feature"] for one in said["features"].values())
    if found := [one for name in names for one in configuration.unlike(name, made, wanted)]:
        raise DataError(
            f"{participant_id}: {'; '.join(dict.fromkeys(found))} as in the training of this bundle; extract the features as there."
        )


def _predict_moments(folder: Path, config: Config, participant_id: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Apply a bundle that decodes to every run of one participant, and write a table a run; moments are not explained.

    Raises
    ------
    DataError
        If there are no such series, the bundle was trained on them, or nothing of them can be decoded.
    """
    fitted, said = _loaded(folder)
    runs = timeline.read(said, config, participant_id, record)
    _refuse_known(set(cohorts.fingerprints([run.series for run in runs])), said, config, participant_id)
    scores = timeline.decode(fitted, said, runs, participant_id)
    row = timeline.row_of(timeline.named(np.concatenate(scores), fitted.levels), fitted.levels)
    written = [
        timeline.write(run, mine, said, config, bundle=folder.name) for run, mine in zip(runs, scores, strict=True)
    ]
    return {"row": {**row, "excluded": None}, "attributions": [], "series": written}


def _row(fitted: FittedModel, scores: Array) -> dict[str, Any]:
    if fitted.ranks:
        nearest = int(calibration.nearest_rank(scores, len(fitted.ranks))[0])
        return {"y_score": float(scores[0]), "prediction": fitted.ranks[nearest], "levels": " < ".join(fitted.ranks)}
    if not fitted.levels:
        return {"y_score": float(scores[0]), "prediction": float(scores[0])}
    row: dict[str, Any] = {"y_score": float(scores[-1]), "prediction": fitted.levels[int(scores.argmax())]}
    return row | (
        {f"score_{level}": float(s) for level, s in zip(fitted.levels, scores, strict=True)}
        if len(fitted.levels) > 2
        else {}
    )


def _limits(fitted: FittedModel, scores: Array, coverage: float) -> dict[str, Any]:
    """Write the set or the interval that holds the truth with this probability; ends that nothing bounds are None."""
    reach = np.array([(fitted.calibration or calibration.Calibration()).reach(coverage)])
    found = calibration.limits(scores, reach, fitted.levels or fitted.ranks, len(fitted.ranks))
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, (v,) in found.items()}


def _empty_row(folder: Path) -> dict[str, Any]:
    said = bundle.about(folder)
    levels = said["levels"]
    if "decoding" in said:
        return timeline.row_of(np.array([], object), levels)
    limits = ("y_set",) if levels or said.get("ranks") else ("y_low", "y_high")
    return {"y_score": None, "prediction": None, **dict.fromkeys(limits)} | (
        {f"score_{level}": None for level in levels} if len(levels) > 2 else {}
    )


def _cohort_of_one(
    fitted: FittedModel, said: Mapping[str, Any], config: Config, participant_id: str, record: Mapping[str, Any]
) -> Cohort:
    """Gather the bundle's inputs for one participant; an input that is missing is NaN.

    Raises
    ------
    DataError
        If none of the inputs is there, or a confound that the model removes is unknown.
    """
    import pandas as pd

    blocks = {
        name: _block_of_one(fitted, said["features"][name], name, config, participant_id, record)
        for name in fitted.inputs
        if name != cohorts.CONFOUNDS
    }
    if fitted.inputs != (cohorts.CONFOUNDS,) and not any(np.isfinite(b.values).any() for b in blocks.values()):
        raise DataError(
            f"{participant_id} has none of the features that the bundle takes ({', '.join(fitted.inputs)})."
        )
    people = pd.DataFrame({"participant_id": [participant_id]})
    harmonizes = said.get("harmonizer", "none") != "none"
    if said["uses_confounds"] or harmonizes:
        blocks[cohorts.CONFOUNDS] = _confounds_of_one(said, config, participant_id, record)
    if harmonizes:
        table = query.participants_table(config.bids)
        cell = table[said["site_column"]].get(participant_id) if said["site_column"] in table else None
        blocks[cohorts.SITES] = cohorts.sites_block([cell], said["sites"])
    return Cohort(people, blocks, Target(fitted.target_name, np.array([np.nan]), fitted.levels, fitted.ranks))


def _block_of_one(
    fitted: FittedModel,
    described: Mapping[str, Any],
    name: str,
    config: Config,
    participant_id: str,
    record: Mapping[str, Any],
) -> Block:
    values = np.full((1, *described.get("shape", fitted.normalization[name].mean.shape)), np.nan, np.float32)
    if described["feature"] == "phenotype":
        table = config.bids / described["table"]
        if table.is_file():
            return cohorts.columns_as(table, [participant_id], described["labels"])
        return Block(values, ("column",), tuple(described["labels"]))
    if files := cohorts.files_of(config.out, record, described):
        values = np.asarray(cohorts.joined([str(f) for f in files], described)[None], np.float32)
    affine = np.asarray(described["affine"]) if "affine" in described else None
    entities = {"directed": "true"} if described.get("directed") else {}
    return Block(values, tuple(described["dims"]), tuple(described["labels"]), entities, affine)


def _confounds_of_one(said: Mapping[str, Any], config: Config, participant_id: str, record: Mapping[str, Any]) -> Block:
    people = query.participants_table(config.bids)
    motion = [e["mean_fd"] for e in record["features"] if "mean_fd" in e]
    found = {}
    for label in said["confounds"]:
        column, _, level = label.partition("=")
        cell = people[column].get(participant_id, np.nan) if column in people else np.nan
        if column == "mean_fd" and not isinstance(cell, str) and motion:
            cell = str(float(np.mean(motion)))
        if not isinstance(cell, str):
            raise DataError(f"{participant_id} has no '{column}' in participants.tsv, which this bundle needs.")
        levels = said.get("confound_levels", {}).get(column, [cell])
        if level and cell not in levels and column != said.get("site_column"):
            raise DataError(
                f"{participant_id} has '{cell}' as '{column}' in participants.tsv, and this bundle knows {', '.join(levels)}."
            )
        known = float(cell == level) if cell in levels else np.nan
        found[label] = known if level else _number(cell, participant_id, column)
    return Block(np.array([list(found.values())], np.float32).reshape(1, -1), ("column",), tuple(found))


def _number(cell: str, participant_id: str, column: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise DataError(
            f"{participant_id} has '{cell}' as '{column}' in participants.tsv, and this bundle needs a number."
        ) from None


def _features_of(fitted: FittedModel) -> list[str]:
    """Name the features that a bundle takes."""
    return [name for name in fitted.inputs if name != cohorts.CONFOUNDS]


def _refuse_known(prints: set[str], said: Mapping[str, Any], config: Config, participant_id: str) -> None:
    """Refuse a participant that the bundle was trained on: the prediction would flatter it.

    Raises
    ------
    DataError
        Naming the participant.
    """
    dataset, known = str(query.description(config.bids)["Name"]), set(said["participants"])
    by_name = bundle.identity(dataset, participant_id) in known
    if by_name or prints & known:
        how = f"the dataset of both is called '{dataset}'" if by_name else "the features are the same"
        raise DataError(
            f"{participant_id} was among the participants this bundle was trained on ({how}); its prediction would be too good."
        )


def _explain(
    folder: Path, config: Config, participant_id: str, record: Mapping[str, Any], one: Cohort
) -> list[str]:  # fmt: skip
    """Write the attributions of one participant's prediction beside the features."""
    fitted, said = _loaded(folder)
    asked = config.explainers.names or ("integrated_gradients",)
    methods = attributions.able(
        asked,
        gradients=not building.without_gradients(fitted.definition),
        attention=building.attends(fitted.definition),
    )

    def when(name: str) -> Array:
        return cohorts.onsets(cohorts.files_of(config.out, record, said["features"][name]))

    return attributions.write_participant(fitted, said, one, config, participant_id, folder.name, methods, when)
