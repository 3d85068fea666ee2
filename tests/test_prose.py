"""Verdicts say what speaks against a result; the methods text cites what it names."""

import numpy as np
import pandas as pd

from bids_dl import prose

MODELS = {
    "dummy": ("dummy", "confounds", "baseline"),
    "confounds_only": ("confounds_only", "confounds", "baseline"),
    "connectivity_linear": ("linear", "connectivity", "baseline"),
    "connectivity_mlp": ("mlp", "connectivity", "network"),
    "postfusion": ("postfusion", "connectivity, t1w", "fusion"),
}
ROLES = {i: {"id": i, "model": m, "feature": f, "role": r} for i, (m, f, r) in MODELS.items()}


def scores(*rows: tuple[str, float, float, float]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["model", "value", "ci_low", "ci_high"])
    return table.assign(metric="auc", p_value=0.01, p_value_retrained=np.nan, n=100, chance=0.5)


def test_interval_that_covers_chance_is_said():
    said, tone = prose.verdict_of_target(
        scores(("connectivity_mlp", 0.53, 0.47, 0.59)), ROLES, "auc", "connectivity_mlp"
    )
    assert "covers chance" in " ".join(said)
    assert tone == "caution"


def test_network_no_better_than_linear_or_confounds_is_said():
    table = scores(
        ("connectivity_mlp", 0.7, 0.65, 0.75),
        ("connectivity_linear", 0.72, 0.67, 0.77),
        ("confounds_only", 0.68, 0.6, 0.7),
    )
    said, tone = prose.verdict_of_target(table, ROLES, "auc", "connectivity_mlp")
    assert "A linear model reaches 0.72 (connectivity_linear): connectivity_mlp is not better." in said
    assert (
        "The confounds alone reach 0.68 (confounds_only): connectivity_mlp is better, but not beyond its interval."
        in said
    )
    assert tone == "caution"


def test_clear_result_gets_no_caution():
    table = scores(
        ("connectivity_mlp", 0.8, 0.75, 0.85),
        ("connectivity_linear", 0.7, 0.65, 0.75),
        ("confounds_only", 0.55, 0.5, 0.6),
    )
    said, tone = prose.verdict_of_target(table, ROLES, "auc", "connectivity_mlp")
    assert tone == ""
    assert (
        said[0]
        == "Best: connectivity_mlp, AUC 0.80 [0.75, 0.85], p = 0.01 in 100 held-out participants; chance is 0.50."
    )


def test_references_have_different_keys():
    keys = [r.key for r in prose.references().values()]
    assert len(set(keys)) == len(keys)


def test_a_flag_makes_a_participants_verdict_cautious():
    features = [{"feature": "t1w", "prepared": True}]
    assert prose.verdict_of_participant(features, [])[1] == ""
    said, tone = prose.verdict_of_participant(features, [], 2)
    assert said.endswith("2 measures of quality lie far from the others'.")
    assert tone == "caution"


def test_rules_of_quality_are_told_only_where_they_were_set():
    assert prose._said_quality({"quality": {"max_mean_fd_mm": 0.0, "exclude_flagged": False}}) == ""
    said = prose._said_quality({"quality": {"max_mean_fd_mm": 0.3, "exclude_flagged": True}})
    assert "exceeded 0.3 mm, or a measure of quality" in said
