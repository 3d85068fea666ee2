"""From datasets as tools leave them to the scans that features come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_derivative, write_description, write_series

from bids_dl import config, derivatives, query
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


@pytest.mark.parametrize("n", [2, query.FEW + 4])
@pytest.mark.parametrize("kept", [False, True])
def test_an_output_inside_of_the_dataset_is_no_source(xcpd, tmp_path: Path, n: int, kept: bool) -> None:
    root = xcpd(n)
    own = "sub-01_task-rest_space-MNI152NLin6Asym_atlas-Seven_stat-mean_timeseries.tsv"
    write_series(root / "results" / "sub-01" / "func" / own, np.zeros((30, 6)))
    found = names(root, **({"bids_database_dir": str(tmp_path / "index")} if kept else {}))
    assert [len(mine) for mine in found.values()] == [1] * n


def test_an_output_of_bids_dl_is_a_source_only_where_it_is_named(fmriprep, xcpd) -> None:
    root = fmriprep(1)
    earlier = xcpd(1, folder="data/derivatives/bids_dl")
    assert not any("timeseries" in name for name in names(root)["sub-01"])
    assert any("timeseries" in name for name in names(root, derivatives={"earlier": str(earlier)})["sub-01"])


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
    query._files_ending.cache_clear()
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


def test_names_that_are_numbers_are_names_in_tables_of_this_program(tmp_path: Path) -> None:
    file = derivatives.write_matrix(tmp_path / "m.tsv", np.array([[0.5, 1.5], [2.5, 3.5]]), ["1", "2"])
    labels, values = query.read_matrix(file, own=True)
    assert labels == ("1", "2")
    np.testing.assert_array_equal(values, [[0.5, 1.5], [2.5, 3.5]])


def test_a_kept_index_is_not_made_again(xcpd, tmp_path: Path) -> None:
    root, kept = xcpd(2), str(tmp_path / "index")
    first = names(root, bids_database_dir=kept)
    old = next(root.rglob("sub-01*.tsv"))
    write_series(old.with_name(old.name.replace("rest", "late")), np.zeros((3, 6)))
    assert names(root, bids_database_dir=kept) == first
    assert len(names(root)["sub-01"]) == 2


def test_two_datasets_of_one_name_have_an_index_each(xcpd, tmp_path: Path) -> None:
    kept = str(tmp_path / "index")
    one, other = xcpd(2, folder="a/prep"), xcpd(3, folder="b/prep")
    assert len(names(one, bids_database_dir=kept)) == 2
    found = query.find(settings(other, bids_database_dir=kept))
    assert {scan.path.is_relative_to(other) for scans in found.values() for scan in scans} == {True}


def test_a_malformed_file_of_somebody_else_does_not_matter(xcpd) -> None:
    root = xcpd(2)
    next(root.rglob("sub-02*.json")).write_text("{broken")
    next(root.rglob("sub-02*.tsv")).write_bytes(b"\xff\xfe")
    (root / "sub-02" / "func" / "no BIDS name.tsv").touch()
    assert len(names(root, participant_label=["01"])["sub-01"]) == 1


def test_a_connectome_supersedes_its_raw_bold(fmriprep, tmp_path: Path) -> None:
    root, connectomes = fmriprep(1), tmp_path / "connectomes"
    write_derivative(connectomes)
    write_series(connectomes / "sub-01" / "func" / "sub-01_task-rest_seg-Six_meas-P_relmat.tsv", np.eye(6))
    found = names(root, no_derivatives=True, derivatives={"c": str(connectomes)})
    assert found == {"sub-01": ["sub-01_task-rest_seg-Six_meas-P_relmat.tsv"]}


@pytest.mark.parametrize(("kind", "suffix", "other"), [("bold", "bold", "T1w"), ("t1w", "T1w", "bold")])
def test_filters_apply_to_their_kind_of_file_alone(fmriprep, kind: str, suffix: str, other: str) -> None:
    (scans,) = query.find(settings(fmriprep(1), bids_filter={kind: {"space": "nowhere"}})).values()
    prepared = {s.entities["suffix"] for s in scans if s.prepared}
    assert suffix not in prepared
    assert other in prepared


def test_a_relmat_can_be_filtered_by_its_atlas(tmp_path: Path) -> None:
    root = tmp_path / "d"
    write_derivative(root)
    for atlas in ("Six", "Seven"):
        write_series(root / "sub-1" / "func" / f"sub-1_task-rest_atlas-{atlas}_relmat.tsv", np.eye(6))
    assert names(root, bids_filter={"relmat": {"atlas": "Six"}}) == {"sub-1": ["sub-1_task-rest_atlas-Six_relmat.tsv"]}


@pytest.mark.parametrize(("content", "message"), [(b"participant_id\n\xff\n", "UTF-8"), (b"", "No columns")])
def test_participants_tsv_that_is_no_table_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "participants.tsv").write_bytes(content)
    with pytest.raises(DataError, match=rf"participants.tsv cannot be read.*{message}"):
        query.participants_table(tmp_path)


def test_space_around_a_cell_is_no_part_of_it_and_what_is_blank_is_missing(tmp_path: Path) -> None:
    rows = [
        "participant_id\tgroup\tage",
        "sub-1\thc \t 22",
        "2\t hc\tNA",
        "sub-3\t\tNaN",
        "sub-4 \tN/A\t",
        "sub-5\tn/a\t7",
    ]
    (tmp_path / "participants.tsv").write_text("\n".join(rows) + "\n")
    found = query.participants_table(tmp_path)
    assert list(found.index) == [f"sub-{n}" for n in range(1, 6)]
    assert list(found["group"].dropna()) == ["hc", "hc"]
    assert list(found["age"].dropna()) == ["22", "7"]


def people_of(tmp_path: Path, text: str, encoding: str = "utf-8") -> dict[str, dict[str, str]]:
    (tmp_path / "participants.tsv").write_bytes(text.encode(encoding))
    table = query.participants_table(tmp_path)
    return {i: row.dropna().to_dict() for i, row in table.iterrows()}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_participants_tsv_of_a_spreadsheet_is_read_as_it_is_meant(tmp_path: Path, ends: str, encoding: str) -> None:
    lines = ["participant_id \tage\t diagnosis", " sub-01\t20 \tpatient ", "02\t\t n/a", "\t\t", "\t\t"]
    found = people_of(tmp_path, ends.join(lines), encoding)
    assert found == {"sub-01": {"age": "20", "diagnosis": "patient"}, "sub-02": {}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "participant_id;age\nsub-01;20\n",
            "no column participant_id; its columns, which tabs separate, are participant_id;age",
        ),
        ("participant_id\tage\nsub-01\t20\n\t\n\t30\n", "row 3 has no participant_id"),
        ("participant_id\tage\nsub-01\t20\n01\t30\n", "sub-01 stands in more than one row"),
    ],
)
def test_participants_tsv_that_names_nobody_or_somebody_twice_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        people_of(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[]", "lacks BIDSVersion and Name"), ('{"Name": "x"}', "lacks BIDSVersion"), ("{", "not JSON")],
)
def test_a_wrong_description_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "dataset_description.json").write_text(text)
    with pytest.raises(InvalidDatasetError, match=message):
        query.description(tmp_path)


def test_events_of_the_raw_dataset_reach_the_preprocessed_run(fmriprep) -> None:
    root = fmriprep(1)
    config = settings(root)
    assert not find_bold(config).related
    general = root / "task-rest_events.tsv"
    general.write_text("onset\tduration\ttrial_type\n")
    assert find_bold(config).related["events"] == general
    own = root / "sub-01" / "func" / "sub-01_task-rest_events.tsv"
    own.write_text("onset\tduration\ttrial_type\n")
    assert find_bold(config).related["events"] == own


def test_confounds_under_their_older_name_are_found(fmriprep) -> None:
    root = fmriprep(1)
    (table,) = root.glob("derivatives/fmriprep/sub-01/func/*_desc-confounds_timeseries.tsv")
    older = table.rename(table.with_name(table.name.replace("_timeseries", "_regressors")))
    assert find_bold(settings(root)).confounds == older


def find_bold(config):
    return next(s for s in query.find(config)["sub-01"] if s.kind == "bold")


def test_raw_scans_alone_are_kept_where_that_is_asked(fmriprep) -> None:
    (scans,) = query.find(settings(fmriprep(1), raw_only=True)).values()
    assert [(s.kind, s.prepared, s.why) for s in scans] == [("bold", False, "raw scan")]


def test_the_more_finished_pipeline_comes_first_and_the_reason_is_told(tmp_path: Path) -> None:
    root = tmp_path / "d"
    write_description(root)
    for name in ("giga_connectome", "xcp_d", "aaa"):
        write_derivative(root / "derivatives" / name)
        file = "sub-1_task-rest_space-MNI152NLin6Asym_atlas-Six_stat-mean_timeseries.tsv"
        write_series(root / "derivatives" / name / "sub-1" / "func" / file, np.eye(6))
    (root / "sub-1").mkdir()
    (scan,) = query.find(settings(root))["sub-1"]
    assert scan.dataset.name == "xcp_d"
    assert scan.why == "derivative of xcp_d; chosen over giga_connectome's, aaa's"


def test_freesurfers_folders_are_found_where_fmriprep_leaves_them(fmriprep) -> None:
    root = fmriprep(1)
    stats = root / "derivatives" / "fmriprep" / "sourcedata" / "freesurfer" / "sub-01" / "stats"
    stats.mkdir(parents=True)
    found = [s for s in query.find(settings(root))["sub-01"] if s.kind == "freesurfer"]
    assert [(s.path, s.participant_id, s.prepared) for s in found] == [(stats, "sub-01", True)]


def test_freesurfers_root_is_listed_once_for_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "subjects"
    write_derivative(root)
    for folder in ("sub-1", "sub-1_ses-2", "sub-1_ses-1", "sub-10_ses-1", "sub-2", "sub-3"):
        (root / folder / "stats").mkdir(parents=True)
    ids, listed, glob = ["sub-1", "sub-10", "sub-2", "sub-3"], [], Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: listed.append(self) or glob(self, pattern))
    found = [s.path.parent.name for s in query._freesurfer(settings(root), ids)]
    assert found == ["sub-1", "sub-1_ses-1", "sub-1_ses-2", "sub-10_ses-1", "sub-2", "sub-3"]
    assert listed.count(root) == 1


def test_genotypes_of_the_dataset_belong_to_everybody(fmriprep) -> None:
    root = fmriprep(2)
    (root / "genetics").mkdir()
    (root / "genetics" / "chip.bed").write_bytes(b"")
    assert [[s.path.name for s in scans if s.kind == "plink"] for scans in query.find(settings(root)).values()] == [
        ["chip.bed"]
    ] * 2


def test_gradients_belong_to_a_raw_diffusion_scan(tmp_path: Path) -> None:
    root = tmp_path / "d"
    write_description(root)
    folder = root / "sub-1" / "dwi"
    folder.mkdir(parents=True)
    for end in ("nii.gz", "bval", "bvec"):
        (folder / f"sub-1_dwi.{end}").write_bytes(b"")
    (scan,) = query.find(settings(root))["sub-1"]
    assert (scan.kind, scan.prepared, set(scan.related)) == ("dwi", False, {"bval", "bvec"})


def test_gradients_are_inherited_from_the_nearest_level_that_applies(tmp_path: Path) -> None:
    root = tmp_path / "d"
    write_description(root)
    one, two = root / "sub-1" / "dwi" / "sub-1_acq-a_dwi", root / "sub-1" / "dwi" / "sub-1_acq-b_dwi"
    files = ["dwi.bval", "dwi.bvec", "acq-b_dwi.bvec", "task-x_dwi.bvec", "T1w.bval", "sub-1/sub-1_dwi.bval"]
    for path in [*(root / f for f in files), *(Path(f"{s}.nii.gz") for s in (one, two)), Path(f"{one}.bval")]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    found = {
        s.name: {k: str(p.relative_to(root)) for k, p in s.related.items()} for s in query.find(settings(root))["sub-1"]
    }
    assert found == {
        "sub-1_acq-a_dwi": {"bval": "sub-1/dwi/sub-1_acq-a_dwi.bval", "bvec": "dwi.bvec"},
        "sub-1_acq-b_dwi": {"bval": "sub-1/sub-1_dwi.bval", "bvec": "acq-b_dwi.bvec"},
    }


def test_gradients_that_are_not_there_yet_are_not_replaced_by_more_general_ones(tmp_path: Path) -> None:
    root = recordings(tmp_path / "d", "dwi.bval", "sub-1/dwi/sub-1_dwi.nii.gz")
    (root / "sub-1" / "dwi" / "sub-1_dwi.bval").symlink_to("nowhere")
    (scan,) = query.find(settings(root))["sub-1"]
    assert scan.related == {}


def recordings(root: Path, *files: str) -> Path:
    write_description(root)
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_recordings_are_found_with_what_belongs_to_them(tmp_path: Path) -> None:
    stem = "sub-1/eeg/sub-1_task-rest"
    root = recordings(tmp_path / "d", f"{stem}_eeg.vhdr", f"{stem}_eeg.eeg", f"{stem}_eeg.vmrk", f"{stem}_channels.tsv")
    (scan,) = query.find(settings(root))["sub-1"]
    assert (scan.kind, scan.prepared, set(scan.related)) == ("eeg", False, {"signal", "channels"})


def test_what_is_no_recording_of_a_participant_is_passed_over(tmp_path: Path) -> None:
    ends = ("task-rest_split-01", "task-rest_split-02", "acq-crosstalk", "task-noise")
    root = recordings(tmp_path / "d", *(f"sub-1/meg/sub-1_{end}_meg.fif" for end in ends))
    (scan,) = query.find(settings(root))["sub-1"]
    assert scan.path.name == "sub-1_task-rest_split-01_meg.fif"
    assert scan.why == "raw scan"


@pytest.mark.parametrize(
    "select", [{}, {"task_id": ["rest"]}, {"session_label": ["2"]}, {"bids_filter": {"meg": {"session": "2"}}}]
)
def test_recordings_that_are_folders_are_found_and_chosen_as_others_are(tmp_path: Path, select: dict[str, Any]) -> None:
    stems = [
        f"sub-1/ses-{s}/meg/sub-1_ses-{s}_task-{t}_meg.ds/sub-1_ses-{s}_task-{t}_meg.meg4" for s, t in ("1a", "2b")
    ]
    stems.append("sub-1/ses-2/meg/sub-1_ses-2_task-rest_meg.ds/sub-1_ses-2_task-rest_meg.meg4")
    found = query.find(settings(recordings(tmp_path / "d", *stems), **select))["sub-1"]
    kept = [
        s for s in stems if ("task_id" not in select or "rest" in s) and (set(select) < {"task_id"} or "ses-2" in s)
    ]
    assert {s.path.name for s in found} == {Path(s).parent.name for s in kept}
    assert all(s.related["samples"].is_file() for s in found)


def test_an_eeg_inside_the_scanner_stays_apart_from_its_bold(tmp_path: Path) -> None:
    root = recordings(
        tmp_path / "d", "sub-1/func/sub-1_task-rest_bold.nii.gz", "sub-1/eeg/sub-1_task-rest_eeg.edf",
        "sub-2/func/sub-2_task-rest_bold.nii.gz", "sub-2/eeg/sub-2_task-rest_eeg.edf",
    )  # fmt: skip
    write_derivative(root / "derivatives" / "bids_dl")
    table = root / "derivatives" / "bids_dl" / "sub-1" / "eeg" / "sub-1_task-rest_atlas-eegAlpha"
    for end in ("stat-mean", "desc-envelope"):
        write_series(Path(f"{table}_{end}_timeseries.tsv"), np.ones((4, 6)))
    found = names(root, derivatives={"bids_dl": str(root / "derivatives" / "bids_dl")})
    assert found["sub-1"] == ["sub-1_task-rest_atlas-eegAlpha_stat-mean_timeseries.tsv", "sub-1_task-rest_bold.nii.gz"]
    assert found["sub-2"] == ["sub-2_task-rest_bold.nii.gz", "sub-2_task-rest_eeg.edf"]
