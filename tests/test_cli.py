"""Arguments become a configuration; whatever a person can mend becomes one sentence and an exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_description

from bids_dl import cli, query
from bids_dl.errors import UsageError

HEAVY = {"torch", "monai", "nilearn", "pandas", "numpy", "nibabel", "bids", "sklearn", "nipype"}


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = cli.main([str(a) for a in arguments])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--help", "--version", "--bids-exec-spec"])
def test_help_and_version_import_nothing_heavy(flag: str) -> None:
    code = (
        "import sys\nfrom bids_dl import cli\n"
        f"try: cli.main(['{flag}'])\nexcept SystemExit as e: assert not e.code\n"
        f"print('LOADED', sorted(set(sys.modules) & {HEAVY!r}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "LOADED []" in out


def test_unknown_flag_names_the_nearest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, message = said(capsys, tmp_path, tmp_path / "o", "participant", "--participant-labl", "01")
    assert code == 64
    assert "--participant-label" in message


def test_unknown_level_has_its_code(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert said(capsys, tmp_path, tmp_path / "o", "session")[0] == 17


def test_missing_dataset_has_its_code(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, message = said(capsys, tmp_path / "none", tmp_path / "o", "participant")
    assert (code, "does not exist" in message) == (66, True)


def test_a_file_is_no_dataset(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    code, message = said(capsys, file, tmp_path / "o", "participant")
    assert (code, "is a file" in message) == (66, True)


def test_dataset_without_description_is_invalid(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "sub-01").mkdir(parents=True)
    code, message = said(capsys, data, tmp_path / "o", "participant")
    assert (code, "dataset_description.json" in message) == (16, True)
    (data / "dataset_description.json").write_text("{not json")
    assert said(capsys, data, tmp_path / "o", "participant")[0] == 16


def test_output_may_not_be_the_dataset(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert said(capsys, tmp_path, tmp_path, "participant")[0] == 73


def test_work_folder_may_not_lie_in_the_dataset(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, message = said(capsys, tmp_path, tmp_path / "../o", "participant", "-w", tmp_path / "work")
    assert (code, "inside the dataset" in message) == (73, True)


def test_output_that_cannot_be_made_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "data").mkdir()
    code, message = said(capsys, tmp_path / "data", tmp_path / "file" / "o", "participant")
    assert (code, "cannot write" in message) == (73, True)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[target]\nnames = ['x']", "targets"),
        ("[models]\nnames = ['mpl']", "mlp"),
        ("[models.mlp]\nhiden = [3]", "hidden"),
        ("[splits]\nn_folds = 'five'", "int"),
        ("[splits]\nn_folds = 1", "at least 2"),
        ("random_seed = [", "TOML"),
        ("[run]\ndevice = 'cud'", "cuda"),
    ],
)
def test_a_wrong_configuration_is_refused_with_a_hint(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, hint: str
) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text.replace("'", '"'))
    code, message = said(capsys, tmp_path, tmp_path / "o", "group", "--config-file", file)
    assert code == 64
    assert hint in message


def test_missing_configuration_file_has_its_code(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert said(capsys, tmp_path, tmp_path / "o", "group", "--config-file", tmp_path / "no.toml")[0] == 66


def test_flags_win_over_the_file_and_underscores_are_flags_too(tmp_path: Path) -> None:
    file, filters = tmp_path / "c.toml", tmp_path / "f.json"
    file.write_text('random_seed = 3\n[run]\nnprocs = 4\n[select]\ntask_id = ["nback"]\n')
    filters.write_text(json.dumps({"bold": {"run": 1}}))
    given = [str(tmp_path), str(tmp_path / "o"), "participant", "--config-file", str(file), "-t", "rest"]
    config, modes = cli.parse(
        [*given, "--participant_label", "01", "sub-02", "--bids_filter_file", str(filters), "--dry-run"]
    )
    assert (config.random_seed, config.run.nprocs, config.select.task_id) == (3, 4, ("rest",))
    assert config.select.participant_label == ("01", "sub-02")
    assert config.select.bids_filter == {"bold": {"run": 1}}
    assert modes == {"dry_run"}


def test_derivatives_are_read_as_pairs(tmp_path: Path) -> None:
    config, _ = cli.parse([str(tmp_path), str(tmp_path / "o"), "group", "-d", "a=/x", "/y/b"])
    assert config.select.derivatives == {"a": "/x", "b": "/y/b"}


def test_describe_knows_the_methods(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.build_parser().parse_args(["--describe", "models.mlp"])
    assert "hidden" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.build_parser().parse_args(["--describe", "models.gcn"])
    said = capsys.readouterr().out
    assert "[1] Kipf" in said
    assert "]_" not in said
    with pytest.raises(UsageError, match="models"):
        cli.build_parser().parse_args(["--describe", "model"])


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    given = [sys.executable, "-m", "bids_dl", "--describe", "models"]
    with subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_dry_run_writes_no_result(capsys: pytest.CaptureFixture[str], xcpd, tmp_path: Path) -> None:
    out = tmp_path / "o"
    assert cli.main([str(xcpd()), str(out), "participant", "--dry-run"]) == 0
    assert "sub-01" in capsys.readouterr().out
    assert not list(out.glob("sub-*"))


def test_an_empty_dataset_selects_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_description(tmp_path / "data")
    assert said(capsys, tmp_path / "data", tmp_path / "o", "participant")[0] == 18


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--models", "mpl"], 64, "did you mean 'mlp'"),
        (["--features", "conectivity"], 64, "did you mean 'connectivity'"),
        (["--nprocs", "many"], 64, "invalid int value"),
        (["--nprocs", "-2"], 64, "run.nprocs"),
        (["--device", "tpu"], 64, "invalid choice"),
        (["--atlas", "harvard_oxfor", "--participant-label", "1"], 18, "participant 'sub-1'"),
        (["--participant-label", "99"], 18, "did you mean"),
        (["--derivatives", "x=/nowhere"], 66, "x=/nowhere does not exist"),
        (["--bundle", "/nowhere"], 66, "/nowhere does not exist"),
        (["--bids-filter-file", "/nowhere.json"], 66, "/nowhere.json cannot be read"),
        (["--atlas", "/nowhere.nii.gz"], 66, "atlas /nowhere.nii.gz does not exist"),
        (["--atlas", "harvard_oxfor"], 64, "did you mean 'harvard_oxford'"),
        (["-t", "stroop", "--features", "timeseries"], 18, "no feature"),
    ],
)
def test_what_does_not_exist_has_its_code_and_is_named(
    capsys: pytest.CaptureFixture[str], fmriprep, tmp_path: Path, flags: list[str], code: int, message: str
) -> None:
    given, said_so = said(capsys, fmriprep(2), tmp_path / "o", "participant", "--skip-bids-validation", *flags)
    assert given == code
    assert message in said_so


@pytest.mark.parametrize(("flag", "what"), [("--work-dir", "work"), ("--bids-database-dir", "index")])
def test_folders_that_cannot_be_made_are_named(
    capsys: pytest.CaptureFixture[str], xcpd, tmp_path: Path, flag: str, what: str
) -> None:
    (tmp_path / "file").touch()
    code, message = said(capsys, xcpd(1), tmp_path / "o", "participant", flag, tmp_path / "file" / "x")
    assert (code, f"cannot write to the {what} folder" in message) == (73, True)


def test_somebody_elses_output_is_left_alone(capsys: pytest.CaptureFixture[str], xcpd, tmp_path: Path) -> None:
    write_description(tmp_path / "o")
    before = (tmp_path / "o" / "dataset_description.json").read_bytes()
    code, message = said(capsys, xcpd(1), tmp_path / "o", "participant", "--skip-bids-validation")
    assert (code, "did not write" in message) == (73, True)
    assert (tmp_path / "o" / "dataset_description.json").read_bytes() == before


def test_relative_paths_are_made_absolute(xcpd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.nii.gz").touch()
    given = ["d", "o", "participant", "--atlas", "mine.nii.gz", "--bundle", "b", "-w", "w", "--bids-database-dir", "i"]
    config, _ = cli.parse(given)
    found = [config.bids_dir, config.features.of("timeseries")["atlas"], *config.bundles, config.run.work_dir]
    assert found == [str(tmp_path / name) for name in ("d", "mine.nii.gz", "b", "w")]
    assert config.select.bids_database_dir == str(tmp_path / "i")
    assert cli.parse(["d", "o", "participant", "--atlas", "aal"])[0].features.of("timeseries") == {"atlas": "aal"}


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (None, 66, "participants.tsv is missing"),
        ("participant_id\tage\nsub-01\t3\nsub-01\t4\n", 65, "sub-01 stands in more than one row"),
    ],
)
def test_group_needs_one_row_a_participant(
    capsys: pytest.CaptureFixture[str], xcpd, tmp_path: Path, content: str | None, code: int, message: str
) -> None:
    data, out = xcpd(2), tmp_path / "o"
    assert cli.main([str(data), str(out), "participant", "--skip-bids-validation", "--nprocs", "1"]) == 0
    (data / "participants.tsv").unlink()
    if content:
        (data / "participants.tsv").write_text(content)
    query.read_people.cache_clear()
    given, said_so = said(capsys, data, out, "group", "--nprocs", "1")
    assert (given, message in said_so) == (code, True)


@pytest.mark.parametrize(("given", "expected"), [(None, cli.SPINS), ("7", "7")])
def test_threads_without_work_sleep_soon_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str | None, expected: str
) -> None:
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path)} | ({"GOMP_SPINCOUNT": given} if given else {}))
    cli.quiet_environment(cli.parse(["d", str(tmp_path / "o"), "participant", "--omp-nthreads", "3"])[0])
    assert (os.environ["GOMP_SPINCOUNT"], os.environ["OMP_NUM_THREADS"]) == (expected, "3")
    assert os.environ["OPENBLAS_NUM_THREADS"] == "1"


def test_one_atlas_is_a_name_and_more_are_a_list() -> None:
    given = {name: cli.parse(["d", "o", "participant", "--atlas", *name.split()])[0] for name in ("aal", "aal aicha")}
    assert [c.features.of("timeseries")["atlas"] for c in given.values()] == ["aal", ["aal", "aicha"]]
