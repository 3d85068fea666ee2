"""scale.py WORK {edges,volumes} [--participants N] [--models MODEL…] [--whole]: seconds and peak memory of a large cohort.

``edges``: connectomes of 200 regions (19,900 edges) of 10,000 participants; ``volumes``: 24×24×24 voxels, of 50 and of
2,000 participants. Each lies as the participant level would leave it, with a planted effect of a class and a quantity. The
cohort is laid out and filled as the group level does it, then each model is fitted as one of its workers fits it: on the
training rows of the first of five folds, with the prediction of its test rows, and its bundle. Prints seconds, peak memory
without and with the pages of files, and the AUC or r of the test rows. ``--whole`` runs the group level itself in the place of
these steps: all folds, scores, explanations, bundles and the report, in one process.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import measure
import numpy as np
import pandas as pd

from bids_dl import cohort, config, derivatives, fits, metrics, splits

N_REGIONS, GRID = 200, (24, 24, 24)
FEATURES = {"edges": "connectivity", "volumes": "grey_matter"}
MODELS = {"edges": ("linear", "mlp"), "volumes": ("cnn3d",)}
SIZES = {"edges": (10_000,), "volumes": (50, 2_000)}
TARGETS = ("diagnosis", "age")
EFFECT = {"edges": 0.03, "volumes": 0.5}
ROWS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("kind", choices=FEATURES)
    parser.add_argument("--participants", type=int, nargs="+", help="sizes of the cohort")
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--targets", nargs="+", default=["diagnosis"], choices=TARGETS)
    parser.add_argument("--epochs", type=int, default=0, help="at most so many; the model's own number if not given")
    parser.add_argument("--whole", action="store_true", help="run the group level from its start to the report")
    parser.add_argument("--stage", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        stage(options.work, options.kind, options.epochs, *options.stage)
        return
    print("participants | step | seconds | GB | GB with pages of files")
    for n in options.participants or SIZES[options.kind]:
        work = options.work / f"{options.kind}-{n}"
        models = options.models or MODELS[options.kind]
        fits = [["fill"], *(["fit", t, m] for t in options.targets for m in models)]
        for step in [["write", str(n)], *([["group"]] if options.whole else fits)]:
            if step[0] == "write" and (work / "data" / "participants.tsv").is_file():
                continue
            again = [__file__, str(work), options.kind, "--epochs", str(options.epochs), "--stage", *step]
            took = measure.run(
                [sys.executable, *(group(work, options, models) if step == ["group"] else again)], every=0.05
            )
            if took.code:
                sys.exit(f"{' '.join(step)} failed with exit code {took.code}.")
            print(
                n, " ".join(step), f"{took.seconds:.1f} | {took.own_gb:.3f} | {took.peak_gb:.3f}", sep=" | ", flush=True
            )


def group(work: Path, options: argparse.Namespace, models: Sequence[str]) -> list[str]:
    """Write the arguments of the group level's command."""
    shutil.rmtree(work / "out" / "group", ignore_errors=True)
    given = ["--features", FEATURES[options.kind], "--models", *models, "--target", *options.targets, "--nprocs", "1"]
    asked = work / "asked.toml"
    asked.write_text(f"[training]\nn_epochs = {options.epochs}\n", encoding="utf-8")
    return [
        "-m",
        "bids_dl",
        str(work / "data"),
        str(work / "out"),
        "group",
        "--config-file",
        str(asked),
        "--clean-workdir",
        *given,
    ]


def stage(work: Path, kind: str, epochs: int, name: str, *arguments: str) -> None:
    """Do one step in this process."""
    if name == "write":
        write(work, kind, int(arguments[0]))
    elif name == "fill":
        fill(settings(work, kind, epochs))
    else:
        fit(settings(work, kind, epochs), FEATURES[kind], *arguments)


def settings(work: Path, kind: str, epochs: int) -> config.Config:
    given = {"bids_dir": str(work / "data"), "output_dir": str(work / "out"), "analysis_level": "group"}
    named = {"features": {"names": [FEATURES[kind]]}, "targets": {"names": list(TARGETS)}}
    return config.from_mapping({**given, **named, "training": {"n_epochs": epochs}, "run": {"device": "cpu"}})


def write(work: Path, kind: str, n: int) -> None:
    """Write the features as the participant level does, one noise with an effect in some of its values each."""
    shutil.rmtree(work, ignore_errors=True)
    generator = np.random.default_rng(0)
    ids = [f"sub-{k:05d}" for k in range(n)]
    sick, age = np.arange(n) % 2, generator.normal(50, 10, n).round(1)
    for participant_id, one, years in zip(ids, sick, age, strict=True):
        (work / "data" / participant_id).mkdir(parents=True)
        entry = (connectome if kind == "edges" else volume)(work / "out", participant_id, one, years, generator)
        record = {"participant_id": participant_id, "features": [entry], "problems": [], "quality": []}
        derivatives.write_json(work / "out" / "logs" / "participants" / f"{participant_id}.json", record)
    people = pd.DataFrame({"participant_id": ids, "diagnosis": np.where(sick, "patient", "control"), "age": age})
    people["sex"], people["site"] = (
        generator.choice(["F", "M"], n),
        [f"site{k:02d}" for k in generator.integers(0, 20, n)],
    )
    derivatives.write_table(work / "data" / "participants.tsv", people)
    derivatives.write_json(work / "data" / "dataset_description.json", {"Name": "scale", "BIDSVersion": "1.10.0"})


def connectome(out: Path, participant_id: str, sick: int, age: float, generator: np.random.Generator) -> dict:
    """Correlations, Fisher z: every tenth edge knows the class, every other tenth the age."""
    rows, columns = cohort.edge_index(N_REGIONS)
    edges = generator.normal(0.2, 0.2, len(rows))
    edges[::10] += EFFECT["edges"] * (sick - 0.5)
    edges[5::10] += EFFECT["edges"] * (age - 50) / 20
    values = np.zeros((N_REGIONS, N_REGIONS))
    values[rows, columns] = values[columns, rows] = edges
    name = (
        f"{participant_id}/func/{participant_id}_task-rest_atlas-made_stat-pearsoncorrelation_desc-fisherz_relmat.tsv"
    )
    derivatives.write_matrix(out / name, values, [f"r{k}" for k in range(N_REGIONS)])
    return {"feature": "connectivity", "path": name, "shape": [N_REGIONS, N_REGIONS]}


def volume(out: Path, participant_id: str, sick: int, age: float, generator: np.random.Generator) -> dict:
    """Noise, with a cube that is brighter in patients and another that follows the age."""
    values = generator.normal(1, 1, GRID).astype(np.float32)
    values[4:10, 4:10, 4:10] += EFFECT["volumes"] * (sick - 0.5)
    values[14:20, 14:20, 14:20] += EFFECT["volumes"] * (age - 50) / 20
    name = f"{participant_id}/anat/{participant_id}_space-made_label-GM_probseg.nii.gz"
    derivatives.write_image(out / name, values, np.diag([8.0, 8.0, 8.0, 1.0]))
    return {"feature": "grey_matter", "path": name, "shape": list(GRID)}


def fill(asked: config.Config) -> None:
    """Lay the cohort out and fill it, a task's rows at a time, and divide the participants."""
    plan = cohort.plan(asked)
    folder = asked.work / "cohort"
    cohort.write(plan, folder)
    for start in range(0, len(plan.participant_ids), ROWS):
        assert not cohort.fill(str(folder), start, start + ROWS)
    for name in TARGETS:
        made = splits.make(cohort.target_of(asked, plan, name), plan.participant_ids, asked.splits, seed=0)
        path = asked.out / "group" / "splits" / f"target-{name}_splits.tsv"
        derivatives.write_table(path, splits.to_table(made[:1], plan.participant_ids))


def fit(asked: config.Config, feature: str, target: str, method: str) -> None:
    """Fit one model as a worker of the group level does, and score its test rows."""
    path = asked.out / "group" / "splits" / f"target-{target}_splits.tsv"
    split = pd.read_csv(path, sep="\t", nrows=1).columns[1]
    model = {"id": f"{feature}_{method}", "method": method, "inputs": (feature,), "role": "network", "members": ()}
    common = {"config": config.to_mapping(asked), "target": target, "covariates": [], "site": "", "groups": ""}
    took = fits.fit(model, split, **common)
    with np.load(asked.work / "fits" / target / model["id"] / split / "predictions.npz") as found:
        folds = np.zeros(len(found["rows"]), int)
        n_levels = 2 if target == "diagnosis" else 0
        scored = metrics.score(metrics.Predictions(found["truth"], found["scores"], found["rows"], folds, n_levels))
    metric = "auc" if n_levels else "r"
    print(
        f"{target} {method}: {metric} {float(scored[metric][0]):.3f}, training {took['seconds']:.1f} s", file=sys.stderr
    )


if __name__ == "__main__":
    main()
