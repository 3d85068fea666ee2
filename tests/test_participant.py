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
from conftest import write_confounds, write_derivative, write_image, write_series

from bids_dl import cli, derivatives, extraction, participant, query
from bids_dl.records import Scan

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
    run(data, one, "--atlas", "aicha")
    run(data, two, "--config-file", one / "logs" / "bids_dl_participant.toml")
    for path in one.glob("sub-01/func/*.tsv"):
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()
    assert list(one.glob("sub-01/func/*atlas-Aicha*"))


def test_a_damaged_file_is_listed_and_the_rest_goes_on(fmriprep, tmp_path: Path) -> None:
    data, out = fmriprep(3), tmp_path / "out"
    bold = next((data / "derivatives").rglob("sub-02*_bold.nii.gz"))
    bold.write_bytes(bold.read_bytes()[:-3000])
    assert run(data, out) == 1
    assert list(problems(out)) == ["sub-02"]
    assert "ends early" in problems(out)["sub-02"]
    assert len(list(out.rglob("*_relmat.tsv"))) == 2
    assert "ends early" in (out / "sub-02.html").read_text()


def with_grey_matter(data: Path, *, transform: bool) -> None:
    """Give fMRIPrep's T1w its grey matter and, where asked, a composite transform that doubles every length."""
    ants = pytest.importorskip("ants")
    for path in data.rglob("sub-*_desc-preproc_T1w.nii.gz"):
        write_image(Path(str(path).replace("desc-preproc_T1w", "label-GM_probseg")), np.ones((9, 11, 9), np.float32))
        if transform:
            affine = ants.new_ants_transform(precision="float", dimension=3, transform_type="AffineTransform")
            affine.set_parameters(np.append(2 * np.eye(3).ravel(), [0.0, 0.0, 0.0]))
            affine.set_fixed_parameters([0.0, 0.0, 0.0])
            name = f"{path.name.split('_')[0]}_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.h5"
            ants.write_transform(ants.compose_ants_transforms([affine]), str(path.with_name(name)))


def test_grey_matter_of_fmriprep_is_modulated_and_measured(fmriprep, tmp_path: Path) -> None:
    data, out = fmriprep(1), tmp_path / "out"
    with_grey_matter(data, transform=True)
    assert run(data, out, "--features", "grey_matter", "morphometry") == 0
    name = "sub-01_space-MNI152NLin2009cAsym_label-GM_desc-modulated_probseg.nii.gz"
    modulated = np.asarray(nib.load(out / "sub-01" / "anat" / name).dataobj)
    assert modulated[2:-2, 2:-2, 2:-2] == pytest.approx(8, rel=1e-3)
    assert len(list(out.rglob("*_morphometry.tsv"))) == len(list(out.rglob("*_res-4_label-GM*.nii.gz"))) == 1


def test_grey_matter_of_fmriprep_without_its_transform_is_passed_over_with_the_reason(fmriprep, tmp_path: Path) -> None:
    data, out = fmriprep(1), tmp_path / "out"
    with_grey_matter(data, transform=False)
    assert run(data, out, "--features", "grey_matter", "t1w") == 1
    assert "from-T1w_to-…_xfm.h5, which must both lie beside it" in problems(out)["sub-01"]
    assert not list(out.rglob("*modulated*"))


def test_damaged_transform_of_fmriprep_is_listed_and_the_rest_goes_on(fmriprep, tmp_path: Path) -> None:
    data, out = fmriprep(1), tmp_path / "out"
    with_grey_matter(data, transform=True)
    next(data.rglob("*_xfm.h5")).write_bytes(b"")
    assert run(data, out, "--features", "grey_matter", "t1w") == 1
    assert "xfm.h5 ends early" in (out / "logs" / "problems.tsv").read_text()
    assert list(out.rglob("*_desc-brain_T1w.nii.gz"))


def test_series_that_do_not_vary_are_listed(xcpd, tmp_path: Path) -> None:
    data, out = xcpd(3), tmp_path / "out"
    write_series(next(data.rglob("sub-03*.tsv")), np.full((30, 6), np.nan))
    assert run(data, out) == 1
    assert "no region varies" in problems(out)["sub-03"]


def test_raw_bold_is_listed_not_dropped(tmp_path: Path, fmriprep) -> None:
    data, out = fmriprep(1), tmp_path / "out"
    assert run(data, out, "--no-derivatives") == 18
    assert "no brain was found" in problems(out)["sub-01"] or "the brain found" in problems(out)["sub-01"]


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
    assert run(data, out, "--atlas", "aicha") == 73
    assert "features.timeseries" in capsys.readouterr().err
    assert run(data, out, "--atlas", "aicha", "--overwrite") == 0
    assert {query.entities(p)["atlas"] for p in out.rglob("*_relmat.tsv")} == {"Aicha"}


def test_what_is_no_bundle_and_two_bundles_of_one_name_are_refused_before_anything_is_done(
    xcpd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = xcpd(1), tmp_path / "out"
    assert run(data, out, "--bundle", data) == 66
    assert "is no bundle" in capsys.readouterr().err
    for folder in "ab":
        (tmp_path / folder / "mlp").mkdir(parents=True)
    assert run(data, out, "--bundle", tmp_path / "a" / "mlp", tmp_path / "b" / "mlp") == 64
    assert "both called 'mlp'" in capsys.readouterr().err
    assert not (out / "logs").exists()


@pytest.mark.parametrize("other", [("--task-id", "rest"), ("--no-derivatives",)])
def test_another_choice_of_scans_is_refused_as_it_would_take_the_place_of_the_first(
    fmriprep, tmp_path: Path, capsys, other: tuple[str, ...]
) -> None:
    data, out = fmriprep(1), tmp_path / "out"
    assert run(data, out) == 0
    before = (out / "logs" / "participants" / "sub-01.json").read_text()
    assert run(data, out, *other) == 73
    assert "select." in capsys.readouterr().err
    assert (out / "logs" / "participants" / "sub-01.json").read_text() == before


def test_a_second_run_goes_on_where_the_first_one_stopped(xcpd, tmp_path: Path) -> None:
    data, out = xcpd(2), tmp_path / "out"
    run(data, out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*_relmat.tsv")}
    assert run(data, out) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    (out / "logs" / "participants" / "sub-01.json").unlink()
    assert run(data, out) == 0
    assert (out / "logs" / "participants" / "sub-01.json").is_file()


@pytest.mark.parametrize("changed", ["task-rest_bold.json", "halves.nii.gz", "halves.tsv"])
def test_a_changed_file_that_features_depend_on_makes_them_anew(fmriprep, tmp_path: Path, changed: str) -> None:
    data, out = fmriprep(1), tmp_path / "out"
    labels = np.zeros((9, 11, 9), np.int16)
    labels[:4], labels[4:] = 1, 2
    write_image(tmp_path / "halves.nii.gz", labels)
    (tmp_path / "halves.tsv").write_text("index\tname\n1\tleft\n2\tright\n")
    (data / "derivatives" / "fmriprep" / "task-rest_bold.json").write_text("{}")
    run(data, out, "--atlas", tmp_path / "halves.nii.gz")
    (series,) = out.rglob("*_stat-mean_timeseries.tsv")
    before = series.stat().st_mtime_ns
    run(data, out, "--atlas", tmp_path / "halves.nii.gz")
    assert series.stat().st_mtime_ns == before
    (file,) = [*data.rglob(changed), *tmp_path.glob(changed)]
    file.touch()
    run(data, out, "--atlas", tmp_path / "halves.nii.gz")
    assert series.stat().st_mtime_ns > before


def test_participants_can_be_added_one_after_another(xcpd, tmp_path: Path) -> None:
    data, out = xcpd(3), tmp_path / "out"
    assert run(data, out, "--participant-label", "01") == 0
    assert run(data, out, "--participant-label", "02") == 0
    assert {p.name for p in out.glob("sub-*") if p.is_dir()} == {"sub-01", "sub-02"}


def test_connectomes_alone_still_get_their_series(xcpd, tmp_path: Path) -> None:
    assert run(xcpd(1), tmp_path / "out", "--features", "connectivity") == 0
    assert list((tmp_path / "out").rglob("*_relmat.tsv"))


def test_a_feature_that_was_asked_for_and_nobody_has_is_named(xcpd, tmp_path: Path, capsys) -> None:
    assert run(xcpd(1), tmp_path / "out", "--features", "connectivity", "morphometry") == 0
    said = capsys.readouterr().err
    assert (
        "morphometry was asked for and comes from nobody: no scan that it is made of was found (freesurfer or t1w)"
        in said
    )
    assert "connectivity was" not in said


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


DAMAGED = {
    "3-D": (lambda p: write_image(p, np.ones((9, 11, 9), np.float32)), "3 dimensions"),
    "constant": (lambda p: write_image(p, np.full((9, 11, 9, 40), 7, np.int16)), "no region varies"),
    "not a number": (lambda p: write_image(p, np.full((9, 11, 9, 40), np.nan, np.float32)), "no region varies"),
    "short": (lambda p: write_image(p, noise(5)), "5 volumes"),
    "without a time": (lambda p: write_image(p, noise(40), period=0.0), "RepetitionTime"),
    "empty": (lambda p: p.write_bytes(b""), "cannot be opened"),
    "a broken link": (lambda p: p.unlink() or p.symlink_to("annex"), "is not there"),
}


def noise(n_volumes: int) -> np.ndarray:
    return np.random.default_rng(0).normal(500, 10, (9, 11, 9, n_volumes)).astype(np.float32)


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_bold_that_cannot_be_used_is_listed_with_its_reason(fmriprep, tmp_path: Path, kind: str) -> None:
    data, out = fmriprep(2), tmp_path / "out"
    damage, reason = DAMAGED[kind]
    damage(next((data / "derivatives").rglob("sub-02*_bold.nii.gz")))
    # no confounds: their length would be the first thing noticed in a short run
    settings = tmp_path / "c.toml"
    settings.write_text('[features]\nnames = ["connectivity"]\n[features.timeseries]\nconfounds = "none"\n')
    assert run(data, out, "--config-file", settings) == 1
    assert list(problems(out)) == ["sub-02"]
    assert "sub-02" in problems(out)["sub-02"]
    assert reason in problems(out)["sub-02"]
    assert [p.parent.parent.name for p in out.rglob("*_relmat.tsv")] == ["sub-01"]


def test_a_bold_on_another_grid_than_its_mask_is_listed(fmriprep, tmp_path: Path) -> None:
    data, out = fmriprep(2), tmp_path / "out"
    write_image(next((data / "derivatives").rglob("func/sub-02*_mask.nii.gz")), np.ones((4, 4, 4), np.uint8))
    assert run(data, out) == 1
    assert "one grid" in problems(out)["sub-02"]


@pytest.mark.parametrize("nprocs", [1, 2])
def test_a_disk_full_in_a_worker_leaves_nothing_half_written(fmriprep, tmp_path: Path, nprocs: int) -> None:
    data, out = fmriprep(2), tmp_path / "out"
    limited = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "from bids_dl import cli\nsys.exit(cli.main(sys.argv[1:]))"
    )
    flags = ["participant", "--nprocs", str(nprocs), "--skip-bids-validation"]
    done = subprocess.run([sys.executable, "-c", limited, str(data), str(out), *flags], capture_output=True, text=True)
    assert done.returncode == 74, done.stderr
    assert "sub-01: stopped before it was written" in done.stderr
    assert not list(out.rglob("*_relmat.tsv"))
    assert not list(out.rglob(".*.tmp*"))
    assert run(data, out) == 0
    assert len(list(out.rglob("*_relmat.tsv"))) == 2


def test_problems_of_earlier_runs_stay_listed_until_they_are_mended(xcpd, tmp_path: Path) -> None:
    data, out = xcpd(3), tmp_path / "out"
    broken = next(data.rglob("sub-01*.tsv"))
    good = broken.read_bytes()
    write_series(broken, np.zeros((30, 6)))
    assert run(data, out, "--participant-label", "01", "02") == 1
    assert run(data, out, "--participant-label", "03") == 0
    assert list(problems(out)) == ["sub-01"]
    broken.write_bytes(good)
    assert run(data, out) == 0
    assert problems(out) == {}


def test_other_confounds_are_another_result(fmriprep, tmp_path: Path) -> None:
    data, out = fmriprep(1), tmp_path / "out"
    run(data, out)
    before = next(out.rglob("*_timeseries.tsv")).read_bytes()
    write_confounds(next(data.rglob("*_desc-confounds_timeseries.tsv")), 40, np.random.default_rng(9))
    run(data, out)
    assert next(out.rglob("*_timeseries.tsv")).read_bytes() != before


def test_a_matrix_of_one_session_leaves_the_other_to_be_computed(tmp_path: Path) -> None:
    data, out = tmp_path / "d", tmp_path / "out"
    write_derivative(data)
    generator = np.random.default_rng(0)
    for session in "12":
        folder = data / "sub-1" / f"ses-{session}" / "func"
        write_series(folder / f"sub-1_ses-{session}_task-rest_atlas-Six_timeseries.tsv", generator.normal(size=(30, 6)))
    write_series(data / "sub-1/ses-1/func/sub-1_ses-1_task-rest_atlas-Six_stat-partial_relmat.tsv", np.eye(6) + 1)
    assert run(data, out) == 0
    found = {(e["ses"], e["stat"]) for e in map(query.entities, out.rglob("*_relmat.tsv"))}
    assert found == {("1", "partial"), ("2", "pearsoncorrelation")}


def test_an_atlas_of_ones_own_is_used_from_a_relative_path(
    fmriprep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = fmriprep(1)
    labels = np.zeros((9, 11, 9), np.int16)
    labels[:4], labels[4:] = 1, 2
    write_image(tmp_path / "halves.nii.gz", labels)
    (tmp_path / "halves.tsv").write_text("index\tname\n1\tleft\n2\tright\n")
    monkeypatch.chdir(tmp_path)
    assert run(data, tmp_path / "out", "--atlas", "halves.nii.gz") == 0
    (series,) = (tmp_path / "out").rglob("*_atlas-Halves_stat-mean_timeseries.tsv")
    assert query.read_matrix(series)[0] == ("left", "right")


def test_each_atlas_gives_its_own_files_and_the_features_that_follow_are_made_of_each(fmriprep, tmp_path: Path) -> None:
    data, out, alone = fmriprep(1), tmp_path / "out", tmp_path / "alone"
    for name, edge in (("four", 4), ("sixty", 60)):
        labels = np.arange(9 * 11 * 9).reshape(9, 11, 9) % edge + 1
        write_image(tmp_path / f"{name}.nii.gz", labels.astype(np.int16))
    config = tmp_path / "c.toml"
    config.write_text(f'[features.regional]\natlas = ["{tmp_path}/sixty.nii.gz", "{tmp_path}/four.nii.gz"]\n')
    features = ("--features", "timeseries", "connectivity", "dynamic_connectivity", "regional", "alff")
    both = ("--atlas", tmp_path / "four.nii.gz", tmp_path / "sixty.nii.gz")
    assert run(data, out, *features, "--config-file", config, *both) == 0
    assert run(data, alone, "--features", "timeseries", "connectivity", *both[:2]) == 0
    made = {(query.entities(p)["suffix"], query.entities(p).get("atlas")) for p in out.glob("sub-01/func/*.tsv")}
    kinds = ("timeseries", "relmat", "edges", "bold", "regions")
    assert made == {(kind, atlas) for kind in kinds for atlas in ("FOUR", "Sixty")}
    for path in alone.glob("sub-01/func/*.tsv"):
        assert path.read_bytes() == (out / path.relative_to(alone)).read_bytes()


def test_a_table_is_read_once_however_many_atlases_are_named(xcpd, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(xcpd(1), out, "--features", "timeseries", "--atlas", "aal", "aicha") == 0
    record = json.loads((out / "logs" / "participants" / "sub-01.json").read_text())
    assert [query.entities(Path(f["path"]))["atlas"] for f in record["features"]] == ["Six"]


def test_an_atlas_that_fails_leaves_the_files_of_the_others(fmriprep, tmp_path: Path) -> None:
    data, out = fmriprep(1), tmp_path / "out"
    far = np.eye(4)
    far[:3, 3] = 900
    away = write_image(tmp_path / "away.nii.gz", np.ones((3, 3, 3), np.int16), far)
    assert run(data, out, "--features", "timeseries", "--atlas", away, "aicha") == 1
    assert {query.entities(p).get("atlas") for p in out.rglob("*_timeseries.tsv")} == {"Aicha"}
    assert "no region varies over time, of the atlas AWAY" in problems(out)["sub-01"]


def test_a_damaged_file_is_listed_once_however_many_atlases_are_named(fmriprep, tmp_path: Path) -> None:
    data, out = fmriprep(1), tmp_path / "out"
    bold = next((data / "derivatives").rglob("*_bold.nii.gz"))
    bold.write_bytes(bold.read_bytes()[:-3000])
    run(data, out, "--features", "timeseries", "t1w", "--atlas", "aal", "aicha")
    assert problems(out)["sub-01"].count("ends early") == 1
    assert len((out / "logs" / "problems.tsv").read_text().splitlines()) == 2


def test_grayordinates_and_voxels_each_take_the_atlases_that_fit(tmp_path: Path) -> None:
    settings = cli.parse(["d", "o", "participant", "--atlas", "aal", "x.dlabel.nii", "aicha"])[0]
    folder = tmp_path / "sub-1" / "func"
    names = {"bold": "bold.nii.gz", "cifti": "bold.dtseries.nii", "timeseries": "atlas-Six_timeseries.tsv"}
    scans = {k: Scan(p := folder / f"sub-1_task-rest_{n}", query.entities(p), tmp_path) for k, n in names.items()}
    laid = {kind: [o["atlas"] for o in extraction._options(settings, "timeseries", s)] for kind, s in scans.items()}
    assert laid == {"bold": ["aal", "aicha"], "cifti": ["x.dlabel.nii"], "timeseries": ["aal"]}


def test_two_atlases_of_one_name_are_refused(fmriprep, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("one", "two"):
        write_image(tmp_path / folder / "atlas-Two_dseg.nii.gz", np.ones((3, 3, 3), np.int16))
    assert run(fmriprep(1), tmp_path / "out", "--atlas", tmp_path / "one", tmp_path / "two") == 64
    said = capsys.readouterr().err
    assert "both called 'Two'" in said
    assert str(tmp_path / "two") in said


def test_a_newcomer_changes_no_batch_but_its_own() -> None:
    ids = [f"sub-{number:03d}" for number in range(200)]
    before = list(participant._batches({i: [] for i in ids}))
    after = list(participant._batches({i: [] for i in ["sub-0000", *ids]}))
    assert [i for batch in before for i in batch] == ids
    assert 4 < len(ids) / len(before) < 16
    assert len([batch for batch in before if batch not in after]) <= 1
