import numpy as np
import pandas as pd
import pytest

from bids_dl import doubts

MODELS = [
    {"id": "confounds_only", "model": "confounds_only", "role": "baseline"},
    {"id": "connectivity_mlp", "model": "mlp", "role": "network"},
]
CHOICES = {"models": MODELS}


def target(name="diagnosis", levels=("control", "patient")):
    kind = "classification" if levels else "regression"
    return {"name": name, "kind": kind, "levels": list(levels)}


def said(tmp_path, best, confounds=(0.5, 0.4, 0.55), *, n=1000, main="auc", chance=0.5, of=None):
    rows = [("connectivity_mlp", *best), ("confounds_only", *confounds)]
    table = pd.DataFrame(rows, columns=["model", "value", "ci_low", "ci_high"]).assign(n=n, chance=chance, metric=main)
    return doubts.of_target(tmp_path, CHOICES, of or target(), table, main, "connectivity_mlp")


def test_plain_result_of_many_is_not_doubted(tmp_path):
    assert said(tmp_path, (0.7, 0.65, 0.75)) == []


@pytest.mark.parametrize(
    ("main", "best", "confounds", "chance", "overlaps"),
    [
        ("auc", (0.7, 0.65, 0.75), (0.6, 0.55, 0.66), 0.5, True),
        ("auc", (0.7, 0.65, 0.75), (0.6, 0.55, 0.64), 0.5, False),
        ("auc", (0.52, 0.45, 0.6), (0.5, 0.4, 0.6), 0.5, False),
        ("auc", (0.74, 0.57, 0.88), (0.44, 0.27, 0.61), 0.5, False),
        ("mae", (3.0, 2.5, 3.5), (4.0, 3.4, 4.5), 6.0, True),
        ("mae", (3.0, 2.5, 3.5), (5.0, 3.6, 5.5), 6.0, False),
    ],
)
def test_confounds_whose_interval_overlaps_are_named(tmp_path, main, best, confounds, chance, overlaps):
    found = said(
        tmp_path, best, confounds, main=main, chance=chance, of=target(levels=("a", "b") if main == "auc" else ())
    )
    assert any("The confounds alone reach" in sentence for sentence in found) == overlaps


@pytest.mark.parametrize("removed", [False, True])
def test_confounds_that_were_removed_are_not_to_be_removed_again(tmp_path, monkeypatch, removed):
    monkeypatch.setitem(CHOICES, "remove_confounds", removed)
    (found,) = said(tmp_path, (0.7, 0.65, 0.75), (0.6, 0.55, 0.66))
    assert ("repeat the run with normalization.remove_confounds" in found) != removed
    assert ("match the participants to rule out the rest" in found) == removed


@pytest.mark.parametrize(
    ("p", "retrained", "doubted"),
    [(0.03, np.nan, True), (0.03, 0.02, False), (0.001, np.nan, False), (0.2, np.nan, False)],
)
def test_p_just_below_a_twentieth_of_fixed_models_is_doubted(tmp_path, p, retrained, doubted):
    row = {"model": "connectivity_mlp", "value": 0.7, "ci_low": 0.65, "ci_high": 0.75, "n": 1000, "chance": 0.5}
    table = pd.DataFrame([row | {"p_value": p, "p_value_retrained": retrained}])
    found = doubts.of_target(tmp_path, CHOICES, target(), table, "auc", "connectivity_mlp")
    assert any("Train again under permuted labels" in sentence for sentence in found) == doubted


@pytest.mark.parametrize(("other_part", "named"), [("test", True), ("train", False), ("n/a", False)])
def test_scan_on_two_sides_of_a_split_is_named(tmp_path, other_part, named):
    (tmp_path / "group" / "splits").mkdir(parents=True)
    table = pd.DataFrame({"participant_id": ["sub-1", "sub-2"], "fold-1": ["validation", other_part]})
    table.to_csv(tmp_path / "group" / "splits" / "target-diagnosis_splits.tsv", sep="\t", index=False)
    twice = pd.DataFrame({"participant_id": ["sub-2"], "same_as": ["sub-1"], "feature": ["t1w"]})
    twice.to_csv(tmp_path / "group" / "duplicates.tsv", sep="\t", index=False)
    found = said(tmp_path, (0.7, 0.65, 0.75))
    assert any("sub-2 and sub-1. The scores are too good" in sentence for sentence in found) == named


def test_moments_of_one_scan_on_two_sides_of_a_split_are_named(tmp_path):
    (tmp_path / "group" / "splits").mkdir(parents=True)
    moments = [f"sub-{k}@t{volume:04d}" for k in (1, 2) for volume in range(3)]
    table = pd.DataFrame({"participant_id": moments, "fold-1": ["train"] * 3 + ["test"] * 3})
    table.to_csv(tmp_path / "group" / "splits" / "target-diagnosis_splits.tsv", sep="\t", index=False)
    twice = pd.DataFrame({"participant_id": ["sub-2"], "same_as": ["sub-1"], "feature": ["timeseries"]})
    twice.to_csv(tmp_path / "group" / "duplicates.tsv", sep="\t", index=False)
    assert any("sub-2 and sub-1. The scores are too good" in sentence for sentence in said(tmp_path, (0.7, 0.65, 0.75)))


@pytest.mark.parametrize(
    ("name", "levels", "auc", "source"),
    [
        ("diagnosis", ("hc", "mdd"), 0.8, "Flint et al., 2021"),
        ("diagnosis", ("hc", "mdd"), 0.74, ""),
        ("autism", ("0", "1"), 0.9, "Wolfers et al., 2015"),
        ("dx", ("ASD", "TD"), 0.84, ""),
        ("sex", ("F", "M"), 0.97, ""),
    ],
)
def test_result_above_what_was_published_names_the_source(tmp_path, name, levels, auc, source):
    found = said(tmp_path, (auc, auc - 0.01, auc + 0.01), of=target(name, levels))
    assert [source in sentence for sentence in found] == ([True] if source else [])


@pytest.mark.parametrize(("name", "doubted"), [("group", True), ("sex", False)])
def test_nearly_perfect_result_is_doubted_but_for_sex(tmp_path, name, doubted):
    found = said(tmp_path, (0.995, 0.99, 1.0), of=target(name))
    assert any("nearly perfect" in sentence for sentence in found) == doubted


def test_few_participants_are_told_with_the_error_bars_of_a_binomial(tmp_path):
    found = said(tmp_path, (0.7, 0.65, 0.75), n=100)
    half = 1.96 * np.sqrt(0.5 * 0.5 / 100)
    assert f"100 participants are few: from sampling alone an accuracy is known to ±{half:.0%}" in found[0]
    assert (
        "±0.20"
        in said(tmp_path, (0.3, 0.2, 0.4), (0.0, -0.1, 0.1), n=100, main="r2", chance=0.0, of=target(levels=()))[0]
    )


@pytest.mark.parametrize(
    ("counts", "kind", "expected"),
    [
        ((30, 1, 20, 0), "kfold", ["Level 'mild' has 1 participant for 5 folds: how it is told from its neighbours cannot be "
                                   "judged. Join it with 'none' or 'moderate' in participants.tsv, or lower splits.n_folds."]),
        ((30, 20, 20, 4), "kfold", ["Level 'severe' has 4 participants for 5 folds: how it is told from its neighbours cannot be "
                                    "judged. Join it with 'moderate' in participants.tsv, or lower splits.n_folds."]),
        ((30, 20, 0, 5), "kfold", []),
        ((30, 1, 20, 0), "leave-site-out", []),
    ],
)  # fmt: skip
def test_level_rarer_than_folds_is_told_with_its_neighbours(counts, kind, expected):
    levels = dict(zip(("none", "mild", "moderate", "severe"), counts, strict=True))
    given = {"kind": kind, "n_folds": 5}
    assert list(doubts._rare_levels(given, {"name": "x", "kind": "ordinal", "counts": levels})) == expected
    assert not list(doubts._rare_levels(given, {"name": "x", "kind": "classification", "counts": levels}))
