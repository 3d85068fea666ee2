import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from bids_dl import training
from bids_dl.errors import UsageError
from bids_dl.explainers.occlusion import explain, region_members
from bids_dl.fusions.postfusion import fuse
from bids_dl.records import Block, Cohort, Split, Target
from bids_dl.settings import Settings

N = 20
SPLIT = Split(np.arange(0, 12), np.arange(12, 15), np.arange(15, 20), "one")
EDGES = [(i, j) for i in range(4) for j in range(i + 1, 4)]


def explained(block, **options):
    """A linear model of one input, its weights, its normalised test rows, and its attribution."""
    y = np.random.default_rng(1).normal(50, 10, N)
    people = pd.DataFrame({"participant_id": [f"sub-{i:02d}" for i in range(N)]})
    data = Cohort(people, {"input": block}, Target("age", y))
    definition = training.define("linear", [block.shape], 1, {"strongest": 0.1})
    fitted = training.train(definition, data, SPLIT, ["input"], Settings(device="cpu"))
    x = training.inputs_of(fitted, data, SPLIT.test)[0].flatten(1).numpy()
    w = fitted.module.head.weight.detach().numpy()[0]
    found = explain(fitted, data, SPLIT, **options)
    return w, x, found.values["input"].reshape(len(x), -1), found


def noise(*shape):
    return np.random.default_rng(0).normal(size=(N, *shape)).astype(np.float32)


def test_column_of_a_linear_model_counts_weight_times_value():
    w, x, found, attribution = explained(Block(noise(5), ("column",), tuple("abcde")))
    np.testing.assert_allclose(found, w * x, atol=1e-5)
    assert not attribution.additive


def test_edge_of_a_linear_model_has_the_mean_of_its_two_regions():
    w, x, found, _ = explained(Block(noise(6), ("edge",), tuple("ABCD")))
    region = [sum(w[k] * x[:, k] for k, edge in enumerate(EDGES) if r in edge) for r in range(4)]
    expected = np.column_stack([(region[i] + region[j]) / 2 for i, j in EDGES])
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_directed_edges_belong_to_both_their_regions():
    block = Block(noise(6), ("edge",), tuple("ABC"), {"directed": "true"})
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    expected = [[k for k, pair in enumerate(pairs) if region in pair] for region in range(3)]
    assert [m.tolist() for m in region_members(block, "aal")] == expected


def test_region_of_windows_is_all_edges_that_touch_it_in_every_window():
    block = Block(noise(2, 6), ("window", "edge"), tuple("abcdef"))
    expected = [[k + 6 * window for window in range(2) for k, edge in enumerate(EDGES) if r in edge] for r in range(4)]
    assert [m.tolist() for m in region_members(block, "aal")] == expected


@pytest.fixture
def atlas(tmp_path):
    """Two regions and a background, on the volumes' own grid."""
    labels = np.zeros((4, 4, 4), np.int16)
    labels[:2], labels[3] = 1, 2
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "atlas-two_dseg.nii.gz")
    return str(tmp_path / "atlas-two_dseg.nii.gz"), labels.ravel()


def test_voxel_of_a_linear_model_has_the_sum_of_its_region(atlas):
    path, labels = atlas
    w, x, found, _ = explained(Block(noise(4, 4, 4), ("x", "y", "z"), affine=np.eye(4)), atlas=path)
    expected = np.zeros_like(x)
    for region in (1, 2):
        at = labels == region
        expected[:, at] = (w[at] * x[:, at]).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not found[:, labels == 0].any()


def test_region_of_several_maps_is_that_region_in_all_of_them(atlas):
    path, labels = atlas
    block = Block(noise(3, 4, 4, 4), ("network", "x", "y", "z"), affine=np.eye(4))
    w, x, found, _ = explained(block, atlas=path)
    expected = np.zeros_like(x)
    for region in (1, 2):
        at = np.tile(labels == region, 3)
        expected[:, at] = (w[at] * x[:, at]).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_regions_in_few_batches_equal_regions_one_by_one(atlas, monkeypatch):
    from bids_dl.explainers import occlusion

    block = Block(noise(4, 4, 4), ("x", "y", "z"), affine=np.eye(4))
    together = explained(block, atlas=atlas[0])[2]
    monkeypatch.setattr(occlusion, "ROWS_BYTES", 1)
    np.testing.assert_allclose(explained(block, atlas=atlas[0])[2], together, atol=1e-6)


def test_of_a_fusion_only_the_member_whose_input_is_occluded_runs_again():
    features = {name: Block(noise(5), ("column",), tuple("abcde")) for name in ("one", "other")}
    features["other"].values[17] = np.nan
    people = pd.DataFrame({"participant_id": [f"sub-{i:02d}" for i in range(N)]})
    data = Cohort(people, features, Target("age", np.random.default_rng(1).normal(50, 10, N)))
    definition, settings = (
        training.define("mlp", [(5,)], 1, {"hidden": [4]}),
        Settings(n_epochs=2, n_members=1, device="cpu"),
    )
    fitted = fuse(
        [training.train(definition, data, SPLIT, [name], settings) for name in features], data, SPLIT, settings
    )
    rows = {"one": 0, "other": 0}
    for name, member in zip(rows, fitted.module.members, strict=True):
        embed = member.embed

        def counted(x, name=name, embed=embed):
            rows[name] += len(x)
            return embed(x)

        member.embed = counted
    found = explain(fitted, data, SPLIT).values
    assert rows == {"one": 5 * (5 + 2 + 2), "other": 5 * (5 + 2 + 2)}  # each region, the start, once beside each input
    inputs = training.inputs_of(fitted, data, SPLIT.test)
    with torch.no_grad():
        before = fitted.module(*inputs)[:, 0]
        for position, (name, x) in enumerate(zip(features, inputs, strict=True)):
            for column in range(5):
                blanked = x.clone()
                blanked[:, column] *= 0
                after = fitted.module(*(blanked if p == position else one for p, one in enumerate(inputs)))[:, 0]
                np.testing.assert_allclose(found[name][:, column], before - after, atol=1e-6)
    assert not found["other"][2].any()  # who lacks the input


def test_unknown_atlas_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="'aall' is no known atlas; did you mean 'aal'"):
        explained(Block(noise(4, 4, 4), ("x", "y", "z"), affine=np.eye(4)), atlas="aall")


def test_missing_value_of_a_participant_has_no_attribution():
    values = noise(5)
    values[16, 2] = np.nan
    _, _, found, _ = explained(Block(values, ("column",), tuple("abcde")))
    assert found[1, 2] == pytest.approx(0, abs=1e-6)
    assert torch.from_numpy(found).isfinite().all()
