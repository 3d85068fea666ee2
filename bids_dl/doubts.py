"""What makes a result hard to believe, in plain sentences: confounds, scans on two sides, small samples, published results."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bids_dl import prose, written
from bids_dl.written import Json

SMALL = 200
"""Held-out participants below which a score's error bars are told: an accuracy of 200 is known to 7 % only."""
PERFECT = 0.99
SHOWN = 3
DOUBTFUL = (0.01, 0.05)
"""Between these, p-values of fixed models are no evidence: of linear models of noise, 11 to 14 % had p ≤ 0.05 in five folds
of 150 participants, as the folds share training rows."""


class Published(NamedTuple):
    """What is plausible for a target, by words in its name or levels: the highest AUC, and who says so."""

    words: str
    ceiling: float
    said: str


PUBLISHED = (
    Published(
        r"mdd|depress",
        0.75,
        "in 1,868 participants depression was told from brain structure with an accuracy of 61 %, and small test sets "
        "overestimate (Flint et al., 2021, doi:10.1038/s41386-021-01020-7)",
    ),
    Published(
        r"schizo|scz|psychos|bipolar|autis|\basd\b|adhd|\bocd\b|ptsd|anxi|psychiatr",
        0.85,
        "higher values for psychiatric disorders come from small or single-site samples, and fall as samples grow (Wolfers et "
        "al., 2015, doi:10.1016/j.neubiorev.2015.08.001; Varoquaux, 2018, doi:10.1016/j.neuroimage.2017.06.061)",
    ),
)
"""Deliberately short: only targets for which reviews or large samples say what to expect. The first that fits counts."""
EASY = re.compile(r"sex|gender", re.IGNORECASE)
"""Targets that can be told nearly without error from a T1w."""


def of_target(out: Path, choices: Json, target: Json, scores: Any, main: str, best: str) -> list[str]:
    """List what speaks against taking a target's best result at its word.

    Parameters
    ----------
    out
        The output folder.
    choices
        What was chosen: models, features.
    target
        The target's description there.
    scores
        Rows of the main metric, one a model.
    main, best
        Name of the metric, and of the best model.
    """
    if scores.empty:
        return []
    models = {m["id"]: m for m in choices.get("models", [])}
    row = scores[scores["model"] == best].iloc[0]
    removed = bool(choices.get("remove_confounds"))
    return [*_confounded(scores, models, row, main, removed=removed), *_on_two_sides(out, target), *_implausible(target, row, main),
            *_rare_levels(choices.get("splits", {}), target), *_fixed(target, row), *_small(target, row)]  # fmt: skip


def _confounded(scores: Any, models: Mapping[str, Json], row: Any, main: str, *, removed: bool) -> Iterator[str]:
    """Tell where a result above chance is no farther than the interval of confounds that are above it too."""
    sign = -1 if main in prose.LOWER_IS_BETTER else 1
    rival = prose.rival_model(scores, models, main, row["model"], "confounds_only")
    low = min(sign * row["ci_low"], sign * row["ci_high"])
    if not rival or not low > sign * row["chance"]:
        return
    other = scores[scores["model"] == rival].iloc[0]
    tells = sign * other["value"] > sign * row["chance"]
    if tells and max(sign * other["ci_low"], sign * other["ci_high"]) >= low:
        remedy = (
            "What they explain linearly was removed from features without a time axis; match the participants to rule out the rest."
            if removed
            else "Match the participants, or repeat the run with normalization.remove_confounds = true."
        )
        yield (
            f"The confounds alone reach {prose.with_interval(other['value'], other['ci_low'], other['ci_high'])}, an interval that "
            f"overlaps that of {row['model']}: the prediction may be theirs. {remedy}"
        )


def _on_two_sides(out: Path, target: Json) -> Iterator[str]:
    """Name scans that stand twice, once among the participants trained on and once among those tested."""
    twice = written.read_table(out / "group" / "duplicates.tsv")
    parts = written.read_people(out / "group" / "splits" / f"target-{target['name']}_splits.tsv")
    if twice.empty or parts.empty:
        return
    parts = parts.set_index("participant_id")
    pairs = dict.fromkeys(zip(twice["participant_id"], twice["same_as"], strict=True))
    sides = parts.replace("validation", "train")
    apart = [
        f"{a} and {b}" for a, b in pairs
        if {a, b} <= set(sides.index) and any({x, y} == {"train", "test"} for x, y in zip(sides.loc[a], sides.loc[b], strict=True))
    ]  # fmt: skip
    if apart:
        more = f" and {len(apart) - SHOWN} more pairs" if len(apart) > SHOWN else ""
        yield (
            f"The same scan was trained on and tested: {', '.join(apart[:SHOWN])}{more}. The scores are too good; remove one of "
            "each pair, or tie them with splits.group_column."
        )


def _implausible(target: Json, row: Any, main: str) -> Iterator[str]:
    """Compare with what was published for such a target; what is nearly perfect is doubted for any but sex."""
    named = " ".join([target["name"], *map(str, target.get("levels", ()))])
    perfect = {"auc": PERFECT, "r2": PERFECT, "rho": PERFECT}.get(main, np.inf)
    if row["value"] >= perfect and not EASY.search(named):
        yield (
            f"{prose.METRICS[main]} {prose.short(row['value'])} is nearly perfect: look for the target among the features, for "
            "groups that were scanned or prepared differently, and for scans under two names."
        )
        return
    found = next((p for p in PUBLISHED if re.search(p.words, named, re.IGNORECASE)), None)
    if main == "auc" and found and row["value"] > found.ceiling:
        yield f"AUC {prose.short(row['value'])} is more than published results make plausible: {found.said}."


def _rare_levels(given: Json, target: Json) -> Iterator[str]:
    """Tell which levels with an order have fewer participants than there are folds: most folds are tested without them."""
    if target["kind"] != "ordinal" or given.get("kind") != "kfold":
        return
    counts = list(target.get("counts", {}).items())  # from low to high
    for at, (level, n) in enumerate(counts):
        if not 0 < n < given["n_folds"]:
            continue
        beside = "' or '".join(name for name, _ in (*counts[max(0, at - 1) : at], *counts[at + 1 : at + 2]))
        yield (
            f"Level '{level}' has {n} participant{'' if n == 1 else 's'} for {given['n_folds']} folds: how it is told from its neighbours "
            f"cannot be judged. Join it with '{beside}' in participants.tsv, or lower splits.n_folds."
        )


def _fixed(target: Json, row: Any) -> Iterator[str]:
    """Tell that a p-value just below 0.05 is too small where no training was repeated under permuted labels."""
    p = row.get("p_value", np.nan)
    if target.get("rows") or not DOUBTFUL[0] < p <= DOUBTFUL[1] or np.isfinite(row.get("p_value_retrained", np.nan)):
        return
    yield (
        f"p = {p:.3f} is from labels permuted against held-out predictions, which takes the folds' models for independent: where "
        "nothing is there, one result in eight reaches 0.05. Train again under permuted labels with metrics.n_retrained = 99."
    )


def _small(target: Json, row: Any) -> Iterator[str]:
    """Tell how wide sampling alone makes the error bars of few participants."""
    n = int(row["n"])
    if n >= SMALL or target.get("rows"):
        return
    if target["kind"] == "classification":
        width = f"an accuracy is known to ±{1.96 * np.sqrt(0.25 / n):.0%} at best"
    else:
        width = f"a correlation near 0 is known to ±{1.96 / np.sqrt(max(n - 3, 1)):.2f} at best"
    yield (
        f"{n} participants are few: from sampling alone {width}, and cross-validation within one dataset does not show it (Varoquaux, "
        "2018, doi:10.1016/j.neuroimage.2017.06.061)."
    )
