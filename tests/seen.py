"""What a person sees shows in two of five regions, over noise: runs with events, and what is decoded of new people."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from bids_dl import cohort as cohorts
from bids_dl import config as configuration
from bids_dl import decoding, shifting, splits, training, windows
from bids_dl.metrics import Predictions
from bids_dl.settings import settings_for

N, N_VOLUMES, N_REGIONS, PERIOD = 10, 96, 5, 2.0
LABELS = [f"r{k}" for k in range(N_REGIONS)]
SETTINGS = {"context": 6, "baseline_s": 16.0}


def course(generator: np.random.Generator) -> np.ndarray:
    """Blocks of 6 volumes, of face, house or neither, in an order of their own; (volume, condition)."""
    blocks = generator.permutation(np.repeat([0, 1, 2], N_VOLUMES // 18 + 1))[: N_VOLUMES // 6]
    return np.repeat(np.eye(3)[blocks][:, :2], 6, axis=0)


def write_run(
    out: Path, person: str, series: np.ndarray, on: np.ndarray, *, session: str = "", run: str = "", **said: object
) -> list[dict]:
    """Write one run's series and events as the participant level does; returns what it notes."""
    folder = out / person / "func"
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{person}{session}_task-see{run}"
    tables = {
        f"{stem}_atlas-five_stat-mean_timeseries.tsv": ("timeseries", pd.DataFrame(series, columns=LABELS), said),
        f"{stem}_desc-alignedevents_timeseries.tsv": (
            "events",
            pd.DataFrame(on.astype(int), columns=["face", "house"]),
            {"HaemodynamicDelay": 5.0},
        ),
    }
    noted = []
    for name, (feature, table, sidecar) in tables.items():
        table.to_csv(folder / name, sep="\t", index=False, float_format="%.4f")  # as the participant level writes
        (folder / name.replace(".tsv", ".json")).write_text(json.dumps({"RepetitionTime": PERIOD, **sidecar}))
        noted.append({"feature": feature, "path": f"{person}/func/{name}", "shape": list(table.shape)})
    return noted


def write_outputs(
    root: Path,
    *,
    effect: float = 1.5,
    n: int = N,
    sessions: tuple[str, ...] = ("",),
    runs: tuple[str, ...] = ("",),
    seed: int = 0,
) -> tuple[Path, Path]:
    """A dataset and its participant level: two regions answer to what is seen, over a slow noise."""
    generator = np.random.default_rng(seed)
    bids, out = root / "bids", root / "out"
    bids.mkdir()
    (bids / "dataset_description.json").write_text(json.dumps({"Name": "seen", "BIDSVersion": "1.10.0"}))
    ids = [f"sub-{k + 1:02d}" for k in range(n)]
    people = pd.DataFrame(
        {"participant_id": ids, "age": np.arange(n) + 20, "sex": list("MF" * n)[:n], "site": list("ABC" * n)[:n]}
    )
    people.to_csv(bids / "participants.tsv", sep="\t", index=False)
    (out / "logs" / "participants").mkdir(parents=True)
    for person in ids:
        (bids / person).mkdir()
        features = []
        for session, run in itertools.product(sessions, runs):
            on = course(generator)
            series = generator.normal(size=(N_VOLUMES, N_REGIONS))
            series[:, :2] += effect * on
            features += write_run(out, person, 100 + 5 * series, on, session=session, run=run)
        record = {"participant_id": person, "features": features, "problems": [], "preparations": [], "quality": []}
        (out / "logs" / "participants" / f"{person}.json").write_text(json.dumps(record))
    return bids, out


def config_of(bids: Path, out: Path, **more: object) -> configuration.Config:
    given = {
        "bids_dir": str(bids), "output_dir": str(out), "analysis_level": "group", "targets": {"names": ["events"]},
        "decoding": SETTINGS, "features": {"names": ["timeseries", "events"]}, "splits": {"n_folds": 2},
    }  # fmt: skip
    return configuration.from_mapping(configuration.merge(given, more))


def planned(config: configuration.Config) -> decoding.Plan:
    return decoding.plan(config, cohorts.plan(config))


def filled(config: configuration.Config, folder: Path) -> tuple[decoding.Plan, cohorts.Cohort]:
    made = planned(config)
    windows.write(made, folder, config.decoding)
    assert windows.fill(str(folder), 0, 99, config.decoding.causal) == []
    return made, windows.load(folder, decoding.target_of(config, made))


def held_out(
    config: configuration.Config, cohort: cohorts.Cohort, model: str, feature: str = "timeseries", seed: int = 0
) -> Predictions:
    """Train on half of the participants, predict the other half."""
    people = cohort.participants[decoding.PERSON]
    split = splits.make(
        cohort.target, list(cohort.participants["participant_id"]), config.splits, seed=seed, groups=tuple(people)
    )[0]
    definition = training.define(model, [cohort.features[feature].shape], cohort.target.n_outputs, {})
    settings = replace(settings_for(definition, config), n_members=1, n_epochs=12, seed=seed)
    scores = training.predict(training.train(definition, cohort, split, [feature], settings), cohort, split.test)
    person, run = (shifting.codes_of(cohort.participants[c])[split.test] for c in (decoding.PERSON, decoding.RUN))
    return Predictions(cohort.target.values[split.test], scores, person, np.zeros(len(run), np.intp), 2, run)
