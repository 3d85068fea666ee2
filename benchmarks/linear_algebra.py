"""linear_algebra.py {judge,age,diagnosis} [--participants N] [--edges P]: CPU seconds of linear models on edges in memory.

``judge``: site (of eight) and diagnosis told before and after ComBat, in 5 and 15 splits (507 participants × 76,636 edges);
``age`` and ``diagnosis``: ridge and logistic regression on one split (10,000 × 19,900). Edges are noise with a planted effect.
Run it with one thread (OMP_NUM_THREADS=1): beside other work, more wait for each other. ``--save`` keeps the predictions of
``age`` and ``diagnosis``, to be compared with those of another version.
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from bids_dl import config, fits, splits, training
from bids_dl.records import Block, Cohort, Target
from bids_dl.settings import Settings

N_SITES, ROWS = 8, 500
SIZES = {"judge": (507, 76_636), "age": (10_000, 19_900), "diagnosis": (10_000, 19_900)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=SIZES)
    parser.add_argument("--participants", type=int)
    parser.add_argument("--edges", type=int)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    n, p = options.participants or SIZES[options.what][0], options.edges or SIZES[options.what][1]
    data = cohort(n, p, options.what)
    began, clock = time.process_time(), time.perf_counter()
    (judge if options.what == "judge" else fit)(data, options.save)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{options.what}, {n} x {p}: {time.process_time() - began:.1f} CPU s, {time.perf_counter() - clock:.1f} s, {peak:.2f} GB"
    )


def cohort(n: int, p: int, what: str) -> Cohort:
    """Draw correlations; sites shift all edges, every tenth knows the diagnosis and every other tenth the age."""
    generator = np.random.default_rng(0)
    site, sick, age = generator.integers(0, N_SITES, n), np.arange(n) % 2, generator.normal(50, 10, n)
    own = generator.normal(size=(N_SITES, p)).astype(np.float32) * (0.15 if what == "judge" else 0)
    values = np.empty((n, p), np.float32)
    for start in range(0, n, ROWS):
        rows = slice(start, start + ROWS)
        values[rows] = generator.standard_normal(values[rows].shape, np.float32) * 0.2 + 0.2 + own[site[rows]]
        values[rows, ::10] += 0.03 * (sick[rows, None] - 0.5).astype(np.float32)
        values[rows, 5::10] += 0.03 * (age[rows, None] / 20 - 2.5).astype(np.float32)
    names = [f"site{k}" for k in range(N_SITES)]
    member = np.eye(N_SITES, dtype=np.float32)[site]
    people = pd.DataFrame({"participant_id": [f"sub-{k:05d}" for k in range(n)], "site": np.array(names)[site]})
    columns = np.column_stack([age, generator.integers(0, 2, n), member]).astype(np.float32)
    features = {
        "connectivity": Block(values, ("edge",), entities={"stat": "pearsoncorrelation"}),
        "confounds": Block(columns, ("column",), ("age", "sex=F", *(f"site={name}" for name in names))),
        "sites": Block(member, ("column",), tuple(names)),
    }
    classes = Target("diagnosis", sick.astype(float), ("control", "patient"))
    return Cohort(people, features, Target("age", age) if what == "age" else classes)


def divided(data: Cohort, n_repeats: int) -> list:
    ids = list(data.participants["participant_id"])
    return splits.make(data.target, ids, config.Splits(n_folds=5, n_repeats=n_repeats), seed=0)


def judge(data: Cohort, save: Path | None) -> None:
    given = {"bids_dir": ".", "output_dir": ".", "analysis_level": "group", "run": {"device": "cpu"}}
    asked = config.from_mapping({**given, "harmonizers": {"names": ["combat"]}})
    step = SimpleNamespace(cohort=data, config=asked, site="site")
    site = fits._site_target(step)
    for target, n_repeats in ((site, 1), (data.target, 3)):
        parts = divided(replace(data, target=target), n_repeats)
        print(target.name, fits._before_and_after(step, "connectivity", target, parts))


def fit(data: Cohort, save: Path | None) -> None:
    split = divided(data, 1)[0]
    definition = training.define("linear", [data.features["connectivity"].shape], 1, {})
    fitted = training.train(definition, data, split, ["connectivity"], Settings(device="cpu"))
    scores = training.predict(fitted, data, split.test)[:, -1]
    print(f"r with the truth {np.corrcoef(scores, data.target.values[split.test])[0, 1]:.4f}")
    if save:
        np.save(save, scores)


if __name__ == "__main__":
    main()
