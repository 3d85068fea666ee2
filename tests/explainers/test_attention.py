"""Attention: where a network looked, read from its own weights."""

import numpy as np
import pandas as pd
import pytest
import torch

from bids_dl import attributions, training, zoo
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


@pytest.mark.parametrize(("attention", "expected"), [(True, ("attention", "occlusion")), (False, ("occlusion",))])
def test_only_a_model_that_weighs_places_is_explained_by_attention(attention, expected):
    assert attributions.able(("attention", "occlusion"), gradients=True, attention=attention) == expected
    assert attributions.able(("attention",), gradients=True, attention=attention) == expected[:1]
