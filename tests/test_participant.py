"""Level 1 from end to end: one bad participant never stops the others and never vanishes."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import write_image, write_series

from bids_dl import cli, derivatives, query

BIN = Path(sys.executable).parent


def run(data: Path, out: Path, *more: object) -> int:
    return cli.main([str(data), str(out), "participant", "--nprocs", "1", "--skip-bids-validation", *map(str, more)])


def problems(out: Path) -> dict[str, str]:
    lines = (out / "logs" / "problems.tsv").read_text().splitlines()[1:]
    return {line.split("\t")[0]: line.split("\t")[-1] for line in lines}


def test_every_feature_is_written_and_the_output_is_valid(fmriprep, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(fmriprep(2), out) == 0
    written = {
        p.name.rpartition("_")[2] for p in (out / "sub-01").rglob("*.*") if not p.name.endswith((".json", ".toml"))
    }
    assert written >= {"timeseries.tsv", "relmat.tsv", "T1w.nii.gz", "bold.tsv"}
    assert (out / "sub-01.html").is_file()
    report = tmp_path / "r.json"
    tool = [str(BIN / "bids-validator-deno"), str(out), "--ignoreWarnings", "--format", "json", "-o", str(report)]
    assert subprocess.run(tool, capture_output=True, check=False).returncode == 0, report.read_text()[:2000]


def test_the_resolved_configuration_gives_the_same_tables(fmriprep, tmp_path: Path) -> None:
    data, one, two = fmriprep(1), tmp_path / "one", tmp_path / "two"
    run(data, one, "--atlas", "harvard_oxford")
    run(data, two, "--config-file", one / "logs" / "bids_dl_participant.toml")
    for path in one.glob("sub-01/func/*.tsv"):
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()
    assert list(one.glob("sub-01/func/*atlas-HarvardOxford*"))


def test_a_damaged_file_is_listed_and_the_rest_goes_on(fmriprep, tmp_path: Path) -> None:
    data, out = fmriprep(3), tmp_path / "out"
    bold = next((data / "derivatives").rglob("sub-02*_bold.nii.gz"))
    bold.write_bytes(bold.read_bytes()[:-3000])
    assert run(data, out) == 1
    assert list(problems(out)) == ["sub-02"]
    assert "ends early" in problems(out)["sub-02"]
    assert len(list(out.rglob("*_relmat.tsv"))) == 2
    assert "ends early" in (out / "sub-02.html").read_text()


def test_series_that_do_not_vary_are_listed(xcpd, tmp_path: Path) -> None:
    data, out = xcpd(3), tmp_path / "out"
    write_series(next(data.rglob("sub-03*.tsv")), np.full((30, 6), np.nan))
    assert run(data, out) == 1
    assert "no region varies" in problems(out)["sub-03"]


def test_raw_bold_is_listed_not_dropped(tmp_path: Path, fmriprep) -> None:
    data, out = fmriprep(1), tmp_path / "out"
    assert run(data, out, "--no-derivatives") == 18
    assert "raw BOLD" in problems(out)["sub-01"]


def test_a_surprise_leaves_a_crash_file_and_a_reason(xcpd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = xcpd(2), tmp_path / "out"
    real = query.read_matrix

    def surprise(path: Path):
        if "sub-02" in path.name:
            raise ZeroDivisionError("strange")
        return real(path)

    monkeypatch.setattr(query, "read_matrix", surprise)
    assert run(data, out) == 1
    assert "unexpected ZeroDivisionError: strange" in problems(out)["sub-02"]
    assert list((out / "logs").glob("crash-*"))


def test_a_full_disk_is_said_with_its_code(xcpd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    data, out = xcpd(2), tmp_path / "out"
    real = derivatives.write_matrix

    def full(path: Path, values: np.ndarray, labels: tuple[str, ...]) -> Path:
        if "sub-02" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, values, labels)

    monkeypatch.setattr(derivatives, "write_matrix", full)
    assert run(data, out) == 74
    assert "sub-02: writing" in capsys.readouterr().err
    assert not list(out.glob("sub-02/func/*.tsv"))
    assert list(out.glob("sub-01/func/*_relmat.tsv"))


def test_another_configuration_is_refused_and_overwrite_replaces(fmriprep, tmp_path: Path, capsys) -> None:
    data, out = fmriprep(1), tmp_path / "out"
    assert run(data, out) == 0
    assert run(data, out, "--atlas", "harvard_oxford") == 73
    assert "features.timeseries" in capsys.readouterr().err
    assert run(data, out, "--atlas", "harvard_oxford", "--overwrite") == 0
    assert {query.entities(p)["atlas"] for p in out.rglob("*_relmat.tsv")} == {"HarvardOxford"}


def test_a_second_run_goes_on_where_the_first_one_stopped(xcpd, tmp_path: Path) -> None:
    data, out = xcpd(2), tmp_path / "out"
    run(data, out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*_relmat.tsv")}
    assert run(data, out) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    (out / "logs" / "participants" / "sub-01.json").unlink()
    assert run(data, out) == 0
    assert (out / "logs" / "participants" / "sub-01.json").is_file()


def test_participants_can_be_added_one_after_another(xcpd, tmp_path: Path) -> None:
    data, out = xcpd(3), tmp_path / "out"
    assert run(data, out, "--participant-label", "01") == 0
    assert run(data, out, "--participant-label", "02") == 0
    assert {p.name for p in out.glob("sub-*") if p.is_dir()} == {"sub-01", "sub-02"}


def test_connectomes_alone_still_get_their_series(xcpd, tmp_path: Path) -> None:
    assert run(xcpd(1), tmp_path / "out", "--features", "connectivity") == 0
    assert list((tmp_path / "out").rglob("*_relmat.tsv"))


def test_a_given_matrix_is_not_computed_again(xcpd, tmp_path: Path) -> None:
    data, out = xcpd(1), tmp_path / "out"
    series = next(data.rglob("*_timeseries.tsv"))
    name = series.name.replace("stat-mean_timeseries", "stat-partial_relmat")
    write_series(series.with_name(name), np.eye(6) + 0.5)
    assert run(data, out) == 0
    (found,) = out.rglob("*_relmat.tsv")
    assert query.entities(found)["stat"] == "partial"


def test_sessions_keep_their_folders(tmp_path: Path, xcpd) -> None:
    data, out = xcpd(1), tmp_path / "out"
    image = nib.load(write_image(tmp_path / "t.nii.gz", np.random.default_rng(0).normal(9, 1, (9, 11, 9))))
    for session in "12":
        path = (
            data
            / "sub-01"
            / f"ses-{session}"
            / "anat"
            / f"sub-01_ses-{session}_space-MNI152Lin_desc-preproc_T1w.nii.gz"
        )
        write_image(path, image.get_fdata())
    assert run(data, out) == 0
    assert len(list(out.glob("sub-01/ses-*/anat/*_T1w.nii.gz"))) == 2


def test_what_was_found_is_noted_for_the_group_level(fmriprep, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(fmriprep(1), out)
    record = json.loads((out / "logs" / "participants" / "sub-01.json").read_text())
    assert {f["feature"] for f in record["features"]} == {"timeseries", "connectivity", "t1w"}
    assert next(f for f in record["features"] if f["feature"] == "timeseries")["mean_fd"] == 0.25
