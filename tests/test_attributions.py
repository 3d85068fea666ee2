import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_dl import attributions
from bids_dl.attributions import Summary
from bids_dl.records import Block, Target

LABELS = ("A", "B", "C", "D")


def table(path):
    return pd.read_csv(path, sep="\t")


def summary(shape, seed=0):
    generator = np.random.default_rng(seed)
    return Summary(*(generator.normal(size=shape) for _ in range(3)), n=5)


def test_shares_of_additive_attributions_sum_to_1():
    generator = np.random.default_rng(0)
    found = Summary.empty((4, 3))
    for n in (10, 15):
        values = generator.normal(size=(n, 4, 3))
        found.add(values, values.sum(axis=(1, 2)) + 7)
    assert found.share.sum() == pytest.approx(1)
    assert found.n == 25


def test_share_is_the_covariance_with_the_output():
    values = np.random.default_rng(0).normal(size=(20, 3))
    outputs = values.sum(axis=1)
    found = Summary.empty((3,))
    found.add(values, outputs)
    expected = [np.cov(values[:, k], outputs)[0, 1] / np.var(outputs, ddof=1) for k in range(3)]
    np.testing.assert_allclose(found.share, expected)


@pytest.mark.parametrize(
    ("levels", "ranks", "said"),
    [
        (("control", "patient"), (), "score of 'patient' against 'control'"),
        (("a", "b", "c"), (), "score of the class that is predicted"),
        ((), (), "predicted 'stage' in standard deviations"),
        ((), ("low", "high"), "predicted place among low < high in standard deviations"),
    ],
)
def test_output_that_is_explained_is_named_beside_each_file(levels, ranks, said, tmp_path, atlas):
    output = attributions.output_of(Target("stage", np.zeros(5), levels, ranks))
    assert said in output
    for shape, dims, affine in (((6,), ("edge",), None), ((4, 4, 4), ("x", "y", "z"), np.eye(4))):
        block = Block(np.zeros((5, *shape)), dims, LABELS, affine=affine)
        for path in attributions.write_group(
            summary(shape), block, tmp_path / "x", additive=True, atlas=atlas[0], output=output
        ):
            beside = json.loads((tmp_path / f"{path.name.split('.')[0]}.json").read_text())
            assert beside["Output"] == output
            assert beside["NumberOfExplainedPredictions"] == 5


def test_regions_of_a_volume_are_those_that_were_occluded():
    """Regions of another atlas were listed under the names of AAL."""
    assert attributions.atlas_of("occlusion", {"atlas": "aicha"}) == "aicha"
    assert attributions.atlas_of("occlusion", {}) == "aal"
    assert attributions.atlas_of("integrated_gradients", {"n_steps": 8}) == "aal"


def test_splits_count_by_their_participants():
    values = np.random.default_rng(0).normal(size=(30, 3))
    found = Summary.empty((3,))
    for part in (slice(0, 8), slice(8, 30)):
        found.add(values[part], values[part].sum(axis=1))
    np.testing.assert_allclose(found.mean_abs, np.abs(values).mean(axis=0))
    np.testing.assert_allclose(found.signed, values.mean(axis=0))


def test_slopes_are_averaged_over_splits_and_written(tmp_path):
    found, generator = Summary.empty((6,)), np.random.default_rng(0)
    for n, slope in ((10, 1.0), (30, 3.0)):
        values = generator.normal(size=(n, 6))
        found.add(values, values.sum(axis=1), {"slope": np.full(6, slope)})
    edges, regions = attributions.write_group(
        found, Block(np.zeros((5, 6)), ("edge",), LABELS), tmp_path / "x", additive=True
    )
    np.testing.assert_allclose(table(edges)["slope"], 2.5)
    np.testing.assert_allclose(table(regions)["slope"], 7.5)  # all three edges of a region rise
    assert "slope" in json.loads((tmp_path / "x_edges.json").read_text())


def test_equal_outputs_have_no_share():
    found = Summary.empty((3,))
    found.add(np.ones((4, 3)), np.ones(4))
    assert not found.share.any()
    assert found.mean_abs.tolist() == [1, 1, 1]


@pytest.mark.parametrize("sizes", [[1] * 12, [2] * 6, [5, 1, 6]])
def test_shares_are_those_of_all_participants_however_few_a_split_tests(sizes):
    """Of splits of one participant there was nothing; of two, the quotient of two differences could be of any size."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=(12, 3))
    outputs = values.sum(axis=1) + 5
    found, whole = Summary.empty((3,)), Summary.empty((3,))
    whole.add(values, outputs)
    for part in np.split(np.arange(12), np.cumsum(sizes)[:-1]):
        found.add(values[part], outputs[part])
    assert found.n == 12
    for name in attributions.COLUMNS:
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name))
    np.testing.assert_allclose(found.share, np.cov(values.T, outputs)[3, :3] / outputs.var(ddof=1))


def test_edges_are_named_by_their_regions_with_the_largest_share_first(tmp_path):
    found = summary((6,))
    edges, regions = attributions.write_group(
        found, Block(np.zeros((5, 6)), ("edge",), LABELS), tmp_path / "x", additive=True
    )
    written = table(edges)
    names = [(a, b) for i, a in enumerate(LABELS) for b in LABELS[i + 1 :]]
    order = np.argsort(-np.abs(found.share))
    assert list(zip(written["region_a"], written["region_b"], strict=True)) == [names[k] for k in order]
    np.testing.assert_allclose(written["share"], found.share[order], rtol=1e-5)
    assert table(regions)["share"].sum() == pytest.approx(found.share.sum(), rel=1e-5)


def test_regions_of_edges_that_are_not_additive_are_their_mean(tmp_path):
    """Each edge of the occluded region has the region's whole effect: a sum over edges would count it again and again."""
    block = Block(np.zeros((1, 6), np.float32), ("edge",), ("a", "b", "c", "d"))
    share = np.array([0.3, 0.3, 0.3, 0.0, 0.0, 0.0])  # the edges of a
    found = attributions.Summary(share, share, share, 1)
    _, regions = attributions.write_group(found, block, tmp_path / "x", additive=False)
    assert table(regions).set_index("region")["share"].to_dict() == pytest.approx(
        {"a": 0.3, "b": 0.1, "c": 0.1, "d": 0.1}
    )


def test_region_has_half_of_each_of_its_edges(tmp_path):
    found = summary((6,))
    block = Block(np.zeros((5, 6)), ("edge",), LABELS)
    written = table(attributions.write_group(found, block, tmp_path / "x", additive=True)[1]).set_index("region")
    for label in LABELS:
        touching = [
            k for k, (i, j) in enumerate(zip(*np.triu_indices(4, 1), strict=True)) if label in LABELS[i] + LABELS[j]
        ]
        assert written.loc[label, "signed"] == pytest.approx(found.signed[touching].sum() / 2, rel=1e-5)


@pytest.mark.parametrize("n_steps", [1, 4])
def test_what_a_course_counts_does_not_depend_on_its_length_unless_it_adds_up(n_steps):
    change = np.random.default_rng(0).normal(size=(3, 1, 5))
    each = np.repeat(change, n_steps, axis=1)
    np.testing.assert_allclose(attributions.over_steps(each, additive=False), change[:, 0])
    np.testing.assert_allclose(attributions.over_steps(each, additive=True), n_steps * change[:, 0])


def test_windows_are_written_as_a_connectome(tmp_path):
    edges = tuple(f"{a}~{b}" for k, a in enumerate(LABELS) for b in LABELS[k + 1 :])
    windows = Block(np.zeros((2, 3, 6)), ("window", "edge"), edges)
    for one, other in zip(
        attributions.write_group(summary((6,)), windows, tmp_path / "windows", additive=False),
        attributions.write_group(
            summary((6,)), Block(np.zeros((2, 6)), ("edge",), LABELS), tmp_path / "one", additive=False
        ),
        strict=True,
    ):
        pd.testing.assert_frame_equal(table(one), table(other))


def test_columns_are_named(tmp_path):
    block = Block(np.zeros((5, 3)), ("column",), ("iq", "age", "fat"))
    (path,) = attributions.write_group(summary((3,)), block, tmp_path / "x", additive=True)
    assert sorted(table(path)["column"]) == ["age", "fat", "iq"]


@pytest.fixture
def atlas(tmp_path):
    labels = np.zeros((4, 4, 4), np.int16)
    labels[:2], labels[3] = 1, 2
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "atlas-two_dseg.nii.gz")
    (tmp_path / "atlas-two_dseg.tsv").write_text("index\tname\n1\tleft\n2\tright\n")
    return str(tmp_path / "atlas-two_dseg.nii.gz"), labels


@pytest.mark.parametrize("additive", [True, False])
def test_maps_are_written_each_and_together(tmp_path, atlas, additive):
    path, labels = atlas
    found = summary((3, 4, 4, 4))
    block = Block(
        np.zeros((5, 3, 4, 4, 4)), ("network", "x", "y", "z"), ("dmn", "salience", "visual"), affine=np.eye(4)
    )
    paths = attributions.write_group(found, block, tmp_path / "x", additive=additive, atlas=path)
    written = {p.name: p for p in paths}
    np.testing.assert_allclose(
        nib.load(written["x_maps.nii.gz"]).get_fdata()[..., 1], found.share[1], rtol=1e-5, atol=1e-7
    )
    together = found.share.sum(axis=0) if additive else found.share.mean(axis=0)
    np.testing.assert_allclose(nib.load(written["x_statmap.nii.gz"]).get_fdata(), together, rtol=1e-5, atol=1e-7)
    inside = together[labels == 2]
    share = table(written["x_regions.tsv"]).set_index("region").loc["right", "share"]
    assert share == pytest.approx(inside.sum() if additive else inside.mean(), rel=1e-4)
    assert ("x_columns.tsv" in written) == additive
    if additive:
        networks = table(written["x_columns.tsv"]).set_index("column")["share"]
        assert networks["salience"] == pytest.approx(found.share[1].sum(), rel=1e-4)


@pytest.mark.parametrize("additive", [True, False])
def test_volume_becomes_a_map_and_its_regions(tmp_path, atlas, additive):
    path, labels = atlas
    found = summary((4, 4, 4))
    block = Block(np.zeros((5, 4, 4, 4)), ("x", "y", "z"), affine=np.eye(4))
    image, regions = attributions.write_group(found, block, tmp_path / "x", additive=additive, atlas=path)
    np.testing.assert_allclose(nib.load(image).get_fdata(), found.share, rtol=1e-5)
    written = table(regions).set_index("region")
    for code, name in ((1, "left"), (2, "right")):
        inside = found.share[labels == code]
        assert written.loc[name, "share"] == pytest.approx(inside.sum() if additive else inside.mean(), rel=1e-5)
