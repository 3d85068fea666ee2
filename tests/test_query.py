"""From datasets as tools leave them to the scans that features come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_derivative, write_description, write_series

from bids_dl import config, query
from bids_dl.errors import DataError, InvalidDatasetError, MissingInputError, NothingSelectedError


def settings(root: Path, **select: Any) -> config.Config:
    given = {
        "bids_dir": str(root),
        "output_dir": str(root.parent / "out"),
        "analysis_level": "participant",
        "select": select,
    }
    return config.from_mapping(given)


def names(root: Path, **select: Any) -> dict[str, list[str]]:
    return {i: [s.path.name for s in scans] for i, scans in query.find(settings(root, **select)).items()}


def test_older_names_are_read_as_todays() -> None:
    path = Path("sub-1/func/sub-1_task-rest_seg-Schaefer100_meas-PearsonCorrelation_desc-denoiseSimple_relmat.tsv")
    found = query.entities(path)
    assert (found["atlas"], found["stat"], found["suffix"], found["datatype"]) == (
        "Schaefer100",
        "PearsonCorrelation",
        "relmat",
        "func",
    )


def test_a_derivative_is_a_dataset_of_its_own(xcpd) -> None:
    found = names(xcpd(2))
    assert [len(v) for v in found.values()] == [1, 1]


def test_preprocessed_images_are_found_unaided_and_come_before_raw_ones(fmriprep) -> None:
    (scans,) = query.find(settings(fmriprep(1))).values()
    kinds = {s.entities["suffix"]: s for s in scans}
    assert set(kinds) == {"bold", "T1w"}
    assert all(s.prepared and s.mask for s in scans)
    assert kinds["bold"].confounds is not None
    assert kinds["T1w"].confounds is None


def test_derivatives_can_be_left_out(fmriprep) -> None:
    (scans,) = query.find(settings(fmriprep(1), no_derivatives=True)).values()
    assert [s.prepared for s in scans] == [False]


def test_named_derivatives_are_looked_in(fmriprep, xcpd) -> None:
    root = fmriprep(2)
    found = names(root, derivatives={"xcpd": str(xcpd(2))})
    assert all(any("timeseries" in n for n in mine) and not any("bold" in n for n in mine) for mine in found.values())
    with pytest.raises(MissingInputError, match="nowhere"):
        names(root, derivatives={"x": "/nowhere"})
    with pytest.raises(InvalidDatasetError):
        (root.parent / "empty").mkdir()
        names(root, derivatives={"x": str(root.parent / "empty")})


def test_labels_work_with_and_without_their_prefix(xcpd) -> None:
    root = xcpd(4)
    assert list(names(root, participant_label=["sub-02", "01"])) == ["sub-01", "sub-02"]
    with pytest.raises(NothingSelectedError, match="'sub-05'.*did you mean 'sub-0"):
        names(root, participant_label=["05"])


def test_the_others_folders_are_not_entered(xcpd, monkeypatch: pytest.MonkeyPatch) -> None:
    root = xcpd(4)
    entered: list[str] = []
    real = query._layout
    monkeypatch.setattr(query, "_layout", lambda folder, *a: entered.append(folder.name) or real(folder, *a))
    names(root, participant_label=["03"])
    assert entered == ["sub-03"]


def test_many_participants_are_found_in_one_index(xcpd) -> None:
    assert len(names(xcpd(query.FEW + 4))) == query.FEW + 4
    assert (
        len(names(xcpd(query.FEW + 4), participant_label=[f"{k + 1:02d}" for k in range(query.FEW + 2)]))
        == query.FEW + 2
    )


def test_an_index_is_kept_and_used_again(xcpd, tmp_path: Path) -> None:
    root, kept = xcpd(2), tmp_path / "index"
    first = names(root, bids_database_dir=str(kept))
    assert list(kept.rglob("*.sqlite"))
    assert names(root, bids_database_dir=str(kept)) == first
    assert list(names(root, bids_database_dir=str(kept), participant_label=["02"])) == ["sub-02"]


def test_sessions_runs_and_tasks_are_told_apart(tmp_path: Path) -> None:
    root = tmp_path / "d"
    write_derivative(root)
    for session in "12":
        for task, run in (("rest", "1"), ("rest", "2"), ("nback", "1")):
            name = f"sub-1_ses-{session}_task-{task}_run-{run}_atlas-Six_timeseries.tsv"
            write_series(root / "sub-1" / f"ses-{session}" / "func" / name, np.zeros((3, 6)))
    assert len(names(root)["sub-1"]) == 6
    assert len(names(root, session_label=["ses-2"])["sub-1"]) == 3
    assert len(names(root, task_id=["task-rest"], session_label=["1"])["sub-1"]) == 2
    assert len(names(root, bids_filter={"timeseries": {"run": 2}})["sub-1"]) == 2
    with pytest.raises(NothingSelectedError, match="stroop"):
        names(root, task_id=["stroop"])
    with pytest.raises(DataError, match="timeseries"):
        names(root, bids_filter={"timeserie": {"run": 2}})


def test_participants_can_be_chosen_by_a_column(xcpd) -> None:
    root = xcpd(4)
    assert list(names(root, include={"diagnosis": ["patient"]})) == ["sub-02", "sub-04"]
    with pytest.raises(DataError, match="did you mean 'diagnosis'"):
        names(root, include={"diagnose": ["patient"]})
    with pytest.raises(NothingSelectedError):
        names(root, include={"diagnosis": ["nobody"]})


def test_halfpipe_and_giga_connectome_matrices_are_found(tmp_path: Path) -> None:
    root = tmp_path / "d"
    write_derivative(root)
    folder = root / "sub-1" / "func"
    folder.mkdir(parents=True)
    for name in (
        "sub-1_task-rest_atlas-Six_desc-correlation_matrix",
        "sub-1_task-rest_seg-Six_meas-P_desc-simple_relmat",
    ):
        np.savetxt(folder / f"{name}.tsv", np.eye(3), delimiter="\t")
    (folder / "sub-1_task-rest_desc-confounds_timeseries.tsv").write_text("a\n1\n")
    assert len(names(root)["sub-1"]) == 2


def test_participants_tsv_is_checked(tmp_path: Path) -> None:
    root = tmp_path / "d"
    write_description(root)
    with pytest.raises(MissingInputError, match="participants.tsv"):
        query.participants_table(root)
    (root / "participants.tsv").write_text("participant_id\tage\nsub-1\t3\nsub-1\t4\n")
    with pytest.raises(DataError, match="sub-1 stands in more than one row"):
        query.participants_table(root)
    query.read_people.cache_clear()
    (root / "participants.tsv").write_text("subject\tage\nsub-1\t3\n")
    with pytest.raises(DataError, match="no column participant_id"):
        query.participants_table(root)


def test_metadata_is_inherited_and_the_nearer_file_wins(tmp_path: Path) -> None:
    folder = tmp_path / "sub-1" / "func"
    folder.mkdir(parents=True)
    (tmp_path / "task-rest_bold.json").write_text(json.dumps({"RepetitionTime": 2, "A": 1}))
    (tmp_path / "task-nback_bold.json").write_text(json.dumps({"RepetitionTime": 9}))
    (folder / "sub-1_task-rest_bold.json").write_text(json.dumps({"RepetitionTime": 3}))
    query._json_files.cache_clear()
    assert query.sidecar(folder / "sub-1_task-rest_bold.nii.gz", tmp_path) == {"RepetitionTime": 3, "A": 1}


def test_matrices_with_and_without_names_are_read(tmp_path: Path) -> None:
    file = tmp_path / "m.tsv"
    file.write_text("Node\ta\tb\na\t1\tn/a\nb\t3\t4\n")
    labels, values = query.read_matrix(file)
    assert labels == ("a", "b")
    np.testing.assert_array_equal(values, [[1, np.nan], [3, 4]])
    file.write_text("1\t2\n3\t4\n")
    assert query.read_matrix(file)[0] == ("region001", "region002")
    file.write_text("a\tb\n1\tx\n")
    with pytest.raises(DataError, match="column b"):
        query.read_matrix(file)
