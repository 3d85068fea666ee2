"""A model that cannot be trained leaves the others their scores, and is named with its reason."""

import json

import pandas as pd
import pytest
from test_group import CONFIG, run, table, write_dataset

from bids_dl import group

ONE_TARGET = CONFIG.replace('["group", "age", "subtype"]', '["group"]').replace("n_retrained = 2", "n_retrained = -1")
DIVERGING = ONE_TARGET.replace("n_epochs = 2", "n_epochs = 2\nlearning_rate = 1e38")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Both levels, with a network whose first step goes beyond all numbers."""
    folder = tmp_path_factory.mktemp("failing")
    bids = write_dataset(folder / "bids")
    assert run(bids, folder / "out", "participant") == 0
    (folder / "config.toml").write_text(DIVERGING)
    code = run(bids, folder / "out", "group", "--config-file", folder / "config.toml")
    return bids, folder / "out", code


def test_others_are_scored(first):
    _, out, code = first
    scores = table(out / "group" / "metrics" / "target-group_metrics.tsv")
    assert code == 1
    assert set(scores["model"]) == {"dummy", "confounds_only", "connectivity_linear"}
    assert (out / "group" / "bundles" / "target-group_model-connectivity_linear").is_dir()
    assert not (out / "group" / "bundles" / "target-group_model-connectivity_mlp").exists()


def test_what_failed_is_listed_with_its_reason(first):
    _, out, _ = first
    failed = json.loads((out / "group" / "failed.json").read_text())["failed"]
    fits = [f"fit__group__connectivity_mlp__{name}" for name in ("repeat_1_fold_1", "repeat_1_fold_2", "final")]
    assert set(fits) <= set(failed)
    assert not any("linear" in name or "score" in name for name in failed)
    reason = (out / "logs" / f"crash-{fits[0]}.txt").read_text()
    assert "mlp on connectivity, split repeat-1_fold-1: the loss became" in reason
    page = (out / "group.html").read_text()
    assert "Steps that did not finish" in page
    assert f"{fits[0]} did not finish: DataError: mlp on connectivity, split repeat-1_fold-1: the loss became" in page


def test_no_model_is_hidden_behind_the_many_steps_of_another():
    fits = {f"fit__y__{model}__fold_{k}": f"did not finish: {model}" for model in ("mlp", "gru") for k in range(30)}
    left = {f"bundle__y__{model}": "was left out, as it did" for model in ("mlp", "gru")}
    assert list(group._first_of_each(left | fits)) == [
        "fit__y__mlp__fold_0", "fit__y__gru__fold_0", "bundle__y__mlp", "bundle__y__gru",
    ]  # fmt: skip


def test_a_failing_fit_does_not_leave_an_earlier_one_in_its_place(first, capsys):
    bids, out, _ = first
    config = out.parent / "config.toml"
    config.write_text(ONE_TARGET)
    assert run(bids, out, "group", "--config-file", config, "--overwrite") == 0
    assert "connectivity_mlp" in set(table(out / "group" / "metrics" / "target-group_metrics.tsv")["model"])
    config.write_text(DIVERGING)
    capsys.readouterr()
    assert run(bids, out, "group", "--config-file", config, "--overwrite") == 1
    assert "connectivity_mlp" not in set(table(out / "group" / "metrics" / "target-group_metrics.tsv")["model"])
    said = capsys.readouterr().err
    assert "fit__group__connectivity_mlp__repeat_1_fold_1 did not finish: " in said
    assert "lower training.learning_rate" in said
    left_out = "bundle__group__connectivity_mlp was left out, as fit__group__connectivity_mlp__final did not finish."
    assert left_out in said


def test_a_dataset_without_confounds_is_no_failure(tmp_path):
    bids = write_dataset(tmp_path / "bids")
    people = pd.read_csv(bids / "participants.tsv", sep="\t")
    people[["participant_id", "group"]].to_csv(bids / "participants.tsv", sep="\t", index=False)
    (tmp_path / "config.toml").write_text(ONE_TARGET.replace('covariates = ["sex"]', ""))
    assert run(bids, tmp_path / "out", "participant") == 0
    assert run(bids, tmp_path / "out", "group", "--config-file", tmp_path / "config.toml") == 0
    scores = table(tmp_path / "out" / "group" / "metrics" / "target-group_metrics.tsv")
    assert set(scores["model"]) == {"dummy", "connectivity_linear", "connectivity_mlp"}
