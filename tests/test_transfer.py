import json

import numpy as np
import pandas as pd
import pytest

from bids_dl import cohort as cohorts
from bids_dl import config as configuration
from bids_dl import transfer
from bids_dl.cohort import Plan, Variant
from bids_dl.errors import DataError
from bids_dl.records import Block, Cohort, Target

CONFIG = configuration.from_mapping(
    {"bids_dir": "a", "output_dir": "b", "analysis_level": "group", "test_dataset": "/other"}
)
WANTED = Variant("connectivity", "connectivity", {"atlas": "six", "task": "rest"}, {"sub-01": ("x",)}, kind="edge")


def variant(**entities):
    return Variant("any", "connectivity", entities, {"sub-09": ("y",)}, kind="edge")


def test_a_task_of_another_name_is_taken_where_it_is_the_only_one():
    found = transfer._matched(CONFIG, WANTED, [variant(atlas="six", task="restingstate"), variant(atlas="ten")])
    assert (found.name, found.entities["task"]) == ("connectivity", "restingstate")


def test_the_task_of_the_same_name_is_preferred():
    others = [variant(atlas="six", task="nback"), variant(atlas="six", task="rest")]
    assert transfer._matched(CONFIG, WANTED, others).entities["task"] == "rest"


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([variant(atlas="six", task="nback"), variant(atlas="six", task="stroop")], "is there more than once"),
        ([variant(atlas="ten", task="rest")], r"\(atlas-six, task-rest\) is not there; it has connectivity atlas-ten"),
        ([], "is not there; it has none"),
    ],
)
def test_a_feature_that_cannot_be_matched_is_refused_with_what_is_there(others, said):
    with pytest.raises(DataError, match=said):
        transfer._matched(CONFIG, WANTED, others)


def test_classes_have_the_codes_of_the_training_dataset():
    made = Plan(("sub-1", "sub-2", "sub-3", "sub-4"), (), {"group": ["mdd", "hc", np.nan, "other"]})
    target, left_out = transfer.target_of(CONFIG, made, Target("group", np.zeros(3), ("hc", "mdd")))
    np.testing.assert_array_equal(target.values, [1, 0, np.nan, np.nan])
    assert [row["reason"] for row in left_out] == ["'group' is n/a", "'group' is none of the classes trained on: other"]


def test_levels_have_the_places_of_the_training_dataset_and_may_be_absent():
    made = Plan(("sub-1", "sub-2", "sub-3", "sub-4"), (), {"severity": ["mild", "none", "dire", "mild"]})
    trained = Target("severity", np.zeros(3), ranks=("none", "mild", "severe"))
    target, left_out = transfer.target_of(CONFIG, made, trained)
    np.testing.assert_array_equal(target.values, [1, 0, np.nan, 1])
    assert target.ranks == trained.ranks
    assert [row["reason"] for row in left_out] == ["'severity' is none of the levels trained on: dire"]
    with pytest.raises(
        DataError, match="has 0 participants with one of the levels; the training dataset has none, mild, severe"
    ):
        transfer.target_of(CONFIG, Plan(("sub-1",), (), {"severity": ["1"]}), trained)


def test_confounds_and_sites_have_the_columns_of_the_training_cohort(tmp_path):
    people = {
        "sex": ["F", "M", np.nan, "f"],
        "age": ["30", "n", "40.5", "1"],
        "site": ["north", "new", np.nan, "south"],
    }
    made = Plan(("sub-1", "sub-2", "sub-3", "sub-4"), (), people)
    cohorts.write(made, tmp_path)
    blocks = {
        "confounds": Block(np.zeros((2, 2), np.float32), ("column",), ("age", "sex=M")),
        "sites": Block(np.zeros((2, 2), np.float32), ("column",), ("north", "south")),
    }
    known = pd.DataFrame({"participant_id": ["a", "b"], "sex": ["M", "F"], "age": ["1", "2"]})
    trained = Cohort(known, blocks, Target("y", np.zeros(2)))
    found = transfer.load(tmp_path, trained, Target("y", np.zeros(4)), site="site")
    nan = np.nan
    np.testing.assert_array_equal(found.features["confounds"].values, [[30, 0], [nan, 1], [40.5, nan], [1, nan]])
    np.testing.assert_array_equal(found.features["sites"].values, [[1, 0], [0, 0], [0, 0], [0, 1]])


@pytest.mark.parametrize(
    ("column", "mine", "theirs", "said"),
    [
        ("sex", ["F", "M"], ["male", "female"], "holds female, male, and that of the training dataset F, M"),
        ("age", ["30", "4.5"], ["old", np.nan], "holds old, and that of the training dataset numbers"),
        ("age", ["30", "4.5"], ["31", "old"], ""),
        ("sex", ["F", "M"], ["F", "female"], ""),
        ("sex", ["F", "M"], [np.nan, np.nan], ""),
        ("site", ["north"], ["south"], ""),
    ],
)
def test_confounds_that_another_dataset_writes_in_other_words_are_refused(column, mine, theirs, said):
    """F and M, and female and male: everybody would be taken for the level that has no column."""
    if not said:
        transfer._refuse_other_words(CONFIG, column, mine, theirs)
        return
    with pytest.raises(DataError, match=f"its column '{column}' {said}; both must write them alike"):
        transfer._refuse_other_words(CONFIG, column, mine, theirs)


def test_the_same_scan_is_seen_only_within_one_feature(tmp_path):
    for folder, prints in (
        ("train", {"t1w": {"sub-1": ["p"], "sub-2": ["r", "q"]}}),
        ("test", {"t1w": {"x": ["q", "s"]}, "fa": {"y": ["p"]}}),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "prints_0000000.json").write_text(json.dumps(prints))
    assert transfer.seen(tmp_path / "test", tmp_path / "train") == {"x": "sub-2"}


def test_features_made_by_other_options_are_refused(tmp_path):
    for name, options in (("one", "shrinkage = 0.3"), ("other", ""), ("alike", "shrinkage = 0.3\n[features.t1w]\n")):
        (tmp_path / name / "logs").mkdir(parents=True)
        text = f"[features]\n[features.connectivity]\n{options}\n"
        (tmp_path / name / "logs" / "bids_dl_participant.toml").write_text(text)
    given = {"bids_dir": "", "output_dir": str(tmp_path / "one"), "analysis_level": "group"}
    other, alike = (
        configuration.from_mapping({**given, "test_dataset": str(tmp_path / name)}) for name in ("other", "alike")
    )
    transfer._refuse_unlike(alike, {"connectivity"})
    transfer._refuse_unlike(other, {"t1w"})
    with pytest.raises(DataError, match=r"features.connectivity.shrinkage is 0.5, not 0.3 as in the training dataset"):
        transfer._refuse_unlike(other, {"connectivity"})
