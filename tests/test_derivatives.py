"""What is written is whole, named as BIDS wants it, and reads back."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_dl import derivatives, query
from bids_dl.errors import OutputError
from bids_dl.records import Feature, Scan


@pytest.mark.parametrize("scale", [1e-30, 1e-13, 1e-9, 1e-3, 1.0, 37.0, 1e5, 1e12, 1e19, 1e30])
def test_matrices_read_back_to_seven_digits(tmp_path: Path, scale: float) -> None:
    values = scale * np.random.default_rng(0).standard_normal((17, 5))
    values[3, 2], values[4], values[0, 0] = np.nan, 0, -scale
    path = derivatives.write_matrix(tmp_path / "m.tsv", values, list("abcde"))
    labels, found = query.read_matrix(path)
    assert labels == tuple("abcde")
    np.testing.assert_allclose(found, values, atol=1e-6 * np.nanmax(np.abs(values)))


def test_a_missing_number_is_written_as_bids_writes_it(tmp_path: Path) -> None:
    path = derivatives.write_matrix(tmp_path / "m.tsv", np.array([[np.nan, -0.5], [10, 0.25]]), ["a", "b"])
    assert path.read_text().splitlines() == ["a\tb", "n/a\t-0.50000", "10.00000\t0.25000"]


def test_only_missing_numbers_can_be_written(tmp_path: Path) -> None:
    path = derivatives.write_matrix(tmp_path / "m.tsv", np.full((2, 2), np.nan), ["a", "b"])
    assert path.read_text().splitlines()[1:] == ["n/a\tn/a"] * 2


def test_entities_stand_in_the_order_of_the_specification() -> None:
    given = {"desc": "x", "atlas": "A", "sub": "1", "run": "", "space": "M", "task": "rest", "ses": "2"}
    assert (
        derivatives.name(given, "timeseries", ".tsv") == "sub-1_ses-2_task-rest_space-M_atlas-A_desc-x_timeseries.tsv"
    )


def test_a_full_disk_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    path = tmp_path / "m.tsv"
    path.write_text("old")
    with pytest.raises(OSError, match="No space"), derivatives.atomic(path) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_holds_no_nan(tmp_path: Path) -> None:
    path = derivatives.write_json(tmp_path / "x.json", {"a": np.float32("nan"), "b": np.arange(2), "c": Path("/x")})
    assert json.loads(path.read_text()) == {"a": None, "b": [0, 1], "c": "/x"}


def test_somebody_elses_dataset_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "dataset_description.json").write_text('{"Name": "other"}')
    with pytest.raises(OutputError, match="did not write"):
        derivatives.write_description(tmp_path, {"bids": tmp_path})


def test_labels_of_64_bits_are_written_with_32(tmp_path: Path) -> None:
    labels = np.arange(8).reshape(2, 2, 2)
    image = nib.load(derivatives.write_image(tmp_path / "x.nii.gz", labels, np.eye(4)))
    assert image.get_data_dtype() == np.int32
    assert np.array_equal(np.asarray(image.dataobj), labels)


def test_a_feature_points_to_its_source(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    derivatives.write_description(out, {"bids": data, "prep": tmp_path / "prep"})
    entities = {"sub": "1", "suffix": "timeseries", "datatype": "func", "task": "rest"}
    scan = Scan(tmp_path / "prep" / "sub-1" / "x.tsv", entities, tmp_path / "prep")
    feature = Feature(
        np.zeros((2, 2)), ("time", "roi"), "timeseries", "", ("a", "b"), {"atlas": "A"}, coverage=np.ones(2)
    )
    path = derivatives.write_feature(out, scan, feature)
    assert path.relative_to(out).as_posix() == "sub-1/func/sub-1_task-rest_atlas-A_timeseries.tsv"
    assert json.loads(path.with_suffix(".json").read_text())["Sources"] == ["bids:prep:sub-1/x.tsv"]


@pytest.mark.parametrize("seed", range(8))
def test_any_matrix_reads_back(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((9, 4)) * 10.0 ** generator.uniform(-6, 6, (9, 4))
    values[generator.random((9, 4)) < 0.2] = np.nan
    values[generator.random((9, 4)) < 0.2] = 0
    _, found = query.read_matrix(derivatives.write_matrix(tmp_path / "m.tsv", values, list("abcd")))
    np.testing.assert_allclose(found, values, atol=1e-6 * np.nanmax(np.abs(values)))


def test_name_becomes_the_value_of_an_entity():
    assert derivatives.word("target-group_model-edges_mlp") == "TargetGroupModelEdgesMlp"
