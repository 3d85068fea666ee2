"""Attention: where a network looked, read from its own weights."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from bids_dl import attributions, group, training, zoo
from bids_dl.config import from_mapping
from bids_dl.errors import UsageError
from bids_dl.records import Block, Cohort, Split, Target
from bids_dl.settings import Settings

AFFINE = np.diag([20.0, 20, 20, 1]) + np.array([[0, 0, 0, -90], [0, 0, 0, -126], [0, 0, 0, -72], [0, 0, 0, 0]])
SPLIT = Split(np.arange(0, 14), np.arange(14, 20), np.arange(20, 26), "one")


@pytest.fixture(scope="module")
def made():
    """Two members of a network on volumes, and a linear model on the same."""
    generator = np.random.default_rng(0)
    block = Block(generator.normal(size=(26, 9, 11, 9)).astype(np.float32), ("x", "y", "z"), affine=AFFINE)
    people = pd.DataFrame({"participant_id": [f"sub-{i:02d}" for i in range(26)]})
    data = Cohort(people, {"t1w": block}, Target("target", np.arange(26) % 2.0, ("a", "b")))
    settings = Settings(n_epochs=1, n_members=2, device="cpu")
    fitted = [
        training.train(training.define(name, [block.shape], 1, {}), data, SPLIT, ["t1w"], settings)
        for name in ("attention_cnn3d", "linear")
    ]
    return data, *fitted


def test_shares_are_the_mean_of_the_members_maps(made):
    data, fitted, _ = made
    found = zoo.load("explainers", "attention")(fitted, data, SPLIT)
    x = training.inputs_of(fitted, data, SPLIT.test)
    with torch.no_grad():
        maps = [member.attention(*x).numpy() for member in fitted.module.members]
    np.testing.assert_allclose(found.values["t1w"], (maps[0] + maps[1]) / 2, atol=1e-7)
    np.testing.assert_allclose(found.values["t1w"].sum(axis=(1, 2, 3)), 1, rtol=1e-5)
    assert found.shares


def test_group_map_and_regions_are_mean_shares_without_sign_or_slope(made, tmp_path):
    data, fitted, _ = made
    found, additive = attributions.summarise([(fitted, SPLIT), (fitted, SPLIT)], data, "attention", {})
    one = zoo.load("explainers", "attention")(fitted, data, SPLIT).values["t1w"]
    np.testing.assert_allclose(found["t1w"].share, one.mean(axis=0), atol=1e-8)
    assert found["t1w"].n == 12
    image, regions = attributions.write_group(found["t1w"], data.features["t1w"], tmp_path / "x", additive=additive)
    table = pd.read_csv(regions, sep="\t")
    assert list(table) == ["region", "share"]
    assert 0 < table["share"].sum() <= 1
    assert all(
        "attention" in path.with_name(path.name.split(".")[0] + ".json").read_text() for path in (image, regions)
    )


def test_a_model_that_weighs_no_places_is_refused(made):
    data, _, linear = made
    with pytest.raises(UsageError, match="weighs no places"):
        zoo.load("explainers", "attention")(linear, data, SPLIT)


@pytest.fixture(scope="module")
def series():
    """Two members of a network on series of 8 time points, of which some participants have 5."""
    values = np.random.default_rng(0).normal(size=(26, 8, 4)).astype(np.float32)
    values[::2, 5:] = np.nan
    people = pd.DataFrame({"participant_id": [f"sub-{i:02d}" for i in range(26)]})
    block = Block(values, ("time", "roi"), tuple("ABCD"))
    data = Cohort(people, {"timeseries": block}, Target("target", np.arange(26) % 2.0, ("a", "b")))
    definition = training.define("attention_rnn", [block.shape], 1, {})
    settings = Settings(n_epochs=1, n_members=2, device="cpu")
    return data, training.train(definition, data, SPLIT, ["timeseries"], settings)


def test_padding_has_no_weight_and_the_steps_that_there_are_share_all(series):
    data, fitted = series
    found = zoo.load("explainers", "attention")(fitted, data, SPLIT).values["timeseries"]
    assert found.shape == (6, 8, 1)
    assert not found[::2, 5:].any()
    np.testing.assert_allclose(found.sum(axis=(1, 2)), 1, rtol=1e-5)


def test_course_of_each_participant_is_written_with_its_onsets(series, tmp_path):
    data, fitted = series
    found, additive = attributions.summarise([(fitted, SPLIT), (fitted, SPLIT)], data, "attention", {})
    n_steps = {f"sub-{row}": 5 if row % 2 == 0 else 8 for row in SPLIT.test}
    (path,) = attributions.write_group(
        found["timeseries"], data.features["timeseries"], tmp_path / "x", additive=additive, output="a logit",
        when=lambda one: np.arange(n_steps[one]) * 2.5,
    )  # fmt: skip
    table = pd.read_csv(path, sep="\t")
    assert path.name == "x_courses.tsv"
    assert table.groupby("participant_id").size().to_dict() == n_steps
    one = zoo.load("explainers", "attention")(fitted, data, SPLIT).values["timeseries"][1, :, 0]
    mine = table[table["participant_id"] == "sub-21"]
    np.testing.assert_allclose(mine["share"], one, rtol=1e-4)
    assert mine["onset"].tolist() == [0, 2.5, 5, 7.5, 10, 12.5, 15, 17.5]
    said = json.loads((tmp_path / "x_courses.json").read_text())
    assert "Seconds" in said["onset"]["Description"]
    assert "Output" not in said  # attention is not of an output


@pytest.mark.parametrize(("axis", "name", "first", "step"), [(0, "x", -90, 20), (1, "y", -126, 20), (2, "z", -72, 20)])
def test_slices_are_a_table_of_their_places(made, axis, name, first, step, tmp_path):
    data = made[0]
    block = data.features["t1w"]
    definition = training.define("cnn2d", [block.shape], 1, {"axis": axis})
    fitted = training.train(definition, data, SPLIT, ["t1w"], Settings(n_epochs=1, n_members=2, device="cpu"))
    found, additive = attributions.summarise([(fitted, SPLIT)], data, "attention", {})
    (path,) = attributions.write_group(found["t1w"], block, tmp_path / "x", additive=additive)
    table = pd.read_csv(path, sep="\t")
    assert list(table) == ["slice", name, "share"]
    np.testing.assert_allclose(table[name], first + step * np.arange(block.shape[axis]))
    assert table["share"].sum() == pytest.approx(1, abs=1e-5)
    x = training.inputs_of(fitted, data, SPLIT.test)[0]
    votes = torch.stack([m.votes(m.slices(x)) for m in fitted.module.members]).mean(dim=(0, 1))
    np.testing.assert_allclose(table["share"], votes.detach(), rtol=1e-4)


def test_cnn2d_attends_only_where_its_option_says_so(made):
    data = made[0]
    definition = training.define("cnn2d", [(9, 11, 9)], 1, {"attention": False})
    fitted = training.train(definition, data, SPLIT, ["t1w"], Settings(n_epochs=1, n_members=1, device="cpu"))
    with pytest.raises(UsageError, match="weighs no places"):
        zoo.load("explainers", "attention")(fitted, data, SPLIT)


def test_whether_a_model_attends_is_told_by_its_file_and_options():
    assert zoo.attends("attention_rnn", {})
    assert zoo.attends("cnn2d", {"axis": 1})
    assert not zoo.attends("cnn2d", {"attention": False})
    assert not zoo.attends("lstm", {})


@pytest.mark.parametrize("attention", [True, False])
def test_the_group_level_asks_for_attention_where_the_options_of_a_model_have_it(attention):
    given = {
        "bids_dir": "a",
        "output_dir": "b",
        "analysis_level": "group",
        "models": {"cnn2d": {"attention": attention}},
    }
    model = group.Model("t1w_cnn2d", "cnn2d", ("t1w",), "network")
    assert ("attention" in group._explainers(from_mapping(given), model)) == attention


@pytest.mark.parametrize(("attention", "expected"), [(True, ("attention", "occlusion")), (False, ("occlusion",))])
def test_only_a_model_that_weighs_places_is_explained_by_attention(attention, expected):
    assert attributions.able(("attention", "occlusion"), gradients=True, attention=attention) == expected
    assert attributions.able(("attention",), gradients=True, attention=attention) == expected[:1]
