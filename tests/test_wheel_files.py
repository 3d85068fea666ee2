"""Real files that lie inside installed packages go through, or the record says why not; none stops the run.

Whole heads are left to benchmarks: extracting a brain takes longer than all of these.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import AFFINE, write_derivative, write_description, write_image

from bids_dl import cli

NIBABEL, DIPY, PYBIDS = "nibabel/tests/data/", "dipy/data/files/", "bids/tests/data/images/"
NILEARN, CONFOUNDS, PLINK = "nilearn/datasets/data/", "nilearn/interfaces/fmriprep/data/", "bed_reader/tests/data/"
BOLD, TASK = "func/sub-1_task-rest_bold", "sub-1_task-rest"
STANDARD = "anat/sub-1_space-MNI152NLin2009aSym"


def wheel_file(name: str) -> Path:
    """Find a file of an installed package; a distribution that leaves its test data out is passed over."""
    package, _, inside = name.partition("/")
    found = find_spec(package)
    place = Path(found.origin or "").parent / inside if found else Path(inside)
    if not place.is_file():
        pytest.skip(f"{package} is installed without {inside}")
    return place


def lay_out(root: Path, files: Mapping[str, str], participant: str = "sub-1") -> Path:
    """Copy wheel files to their BIDS names, given below the participant's folder or, with a slash first, the root."""
    write_description(root)
    (root / participant).mkdir()
    for source, name in files.items():
        target = root / (name[1:] if name.startswith("/") else f"{participant}/{name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(wheel_file(source), target)
    return root


def record_of(root: Path, out: Path, *more: object, participant: str = "sub-1") -> dict:
    """Run level 1 and return what was found for the participant."""
    cli.main([str(root), str(out), "participant", "--nprocs", "1", "--skip-bids-validation", *map(str, more)])
    return json.loads((out / "logs" / "participants" / f"{participant}.json").read_text())


def dwi(name: str, extension: str) -> dict[str, str]:
    parts = {extension: extension, ".bval": ".bval", ".bvec": ".bvec"}
    return {f"{DIPY}{name}{end}": f"dwi/sub-1_dwi{end}" for end in parts}


RAW = {
    "two volumes as T1w": ({NIBABEL + "example4d.nii.gz": "anat/sub-1_T1w.nii.gz"}, "(128, 96, 24, 2); one volume"),
    "a header without voxels": ({PYBIDS + "3d.nii.gz": "anat/sub-1_T1w.nii.gz"}, "ends early or is damaged"),
    "three slices of BOLD": ({NIBABEL + "functional.nii": BOLD + ".nii"}, "brain found in the mean volume has 0 voxels"),
    "two volumes as BOLD": ({NIBABEL + "example4d.nii.gz": BOLD + ".nii.gz"}, "has 2 volumes; at least 10"),
    "NIfTI-2": ({NIBABEL + "example_nifti2.nii.gz": BOLD + ".nii.gz"}, "has 2 volumes; at least 10"),
    "a series without voxels": ({PYBIDS + "4d.nii.gz": BOLD + ".nii.gz"}, "ends early or is damaged"),
    "coefficients as BOLD": ({DIPY + "func_coef.nii.gz": BOLD + ".nii.gz"}, "has 0 voxels; look at the image"),
    "labels as BOLD": ({DIPY + "func_discrete.nii.gz": BOLD + ".nii.gz"}, "has 0 voxels; look at the image"),
    "25 directions": (dwi("small_25", ".nii.gz"), "brain measures 1 mL, not 300 to 2600"),
    "64 directions": (dwi("small_64D", ".nii"), "brain measures 1 mL, not 300 to 2600"),
    "101 directions": (dwi("small_101D", ".nii.gz"), "brain measures 1 mL, not 300 to 2600"),
    "no gradients": ({DIPY + "small_64D.nii": "dwi/sub-1_dwi.nii"}, "has no .bval file beside it"),
    "others' gradients": (
        {**dwi("small_64D", ".nii"), DIPY + "small_25.bval": "dwi/sub-1_dwi.bval"}, "65 volumes, but 26 b-values"),
}  # fmt: skip


@pytest.mark.parametrize("case", RAW)
def test_raw_file_that_is_no_whole_brain_is_named_with_its_reason(case: str, tmp_path: Path) -> None:
    files, reason = RAW[case]
    record = record_of(lay_out(tmp_path / "data", files), tmp_path / "out")
    assert not record["features"]
    assert reason in record["problems"][0]["reason"]
    assert "unexpected" not in record["problems"][0]["reason"]


PREPARED = {
    "t1w": {NILEARN + "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz": f"{STANDARD}_desc-preproc_T1w.nii.gz"},
    "fa": {NILEARN + "image_10426.nii.gz": "dwi/sub-1_space-MNI152NLin2009cAsym_model-tensor_param-fa_dwimap.nii.gz"},
    "pet": {NILEARN + "image_10426.nii.gz": "pet/sub-1_space-MNI152NLin2009cAsym_desc-preproc_pet.nii.gz"},
}


@pytest.mark.parametrize("feature", PREPARED)
def test_map_in_standard_space_goes_through(feature: str, tmp_path: Path) -> None:
    record = record_of(lay_out(tmp_path / "data", PREPARED[feature]), tmp_path / "out", "--features", feature)
    assert [f["feature"] for f in record["features"]] == [feature], record["problems"]


@pytest.mark.parametrize(
    ("strategy", "reason"), [("motion", ""), ("simple", "confounds leave nothing of"), ("none", "")]
)
@pytest.mark.parametrize(
    "name",
    [
        "test_desc-confounds_regressors.tsv",
        "test-v21_desc-confounds_timeseries.tsv",
        "no_nonsteady_desc-confounds_regressors.tsv",
    ],
)
def test_confounds_of_real_short_runs_clean_a_series_or_say_that_they_are_too_many(
    name: str, strategy: str, reason: str, tmp_path: Path
) -> None:
    root, table, chosen = tmp_path / "fmriprep", wheel_file(CONFOUNDS + name), tmp_path / "chosen.toml"
    write_derivative(root)
    chosen.write_text(f'[features.timeseries]\nconfounds = "{strategy}"\n')
    stem, n_volumes = root / "sub-1" / "func" / TASK, len(table.read_text().splitlines()) - 1
    series = 500 + 10 * np.random.default_rng(0).standard_normal((9, 11, 9, n_volumes))
    write_image(Path(f"{stem}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"), series.astype(np.int16), AFFINE)
    shutil.copyfile(table, Path(f"{stem}_desc-{name.split('desc-')[1]}"))
    record = record_of(root, tmp_path / "out", "--features", "timeseries", "--config-file", chosen)
    assert [f["feature"] for f in record["features"]] == ([] if reason else ["timeseries"]), record["problems"]
    assert [reason in p["reason"] for p in record["problems"]] == ([True] if reason else [])


def genotypes(name: str, *, bed: str = "", ends: tuple[str, ...] = (".bim", ".fam")) -> dict[str, str]:
    return {f"{PLINK}{name}{end}": f"/genetics/all{end}" for end in ends} | {
        f"{PLINK}{bed or name}.bed": "/genetics/all.bed"
    }


@pytest.mark.parametrize(
    ("name", "participant", "n_variants"),
    [("toydata.5chrom", "sub-per0", 10_000), ("plink_sim_10s_100v_10pmiss", "sub-0", 100), ("small", "sub-iid1", 4)],
)
def test_genotypes_of_plink_go_through(name: str, participant: str, n_variants: int, tmp_path: Path) -> None:
    root = lay_out(tmp_path / "data", genotypes(name), participant)
    record = record_of(root, tmp_path / "out", "--features", "snp", participant=participant)
    assert [f["shape"] for f in record["features"]] == [[n_variants]], record["problems"]


@pytest.mark.parametrize(
    ("files", "participant", "reason"),
    [
        (genotypes("small", bed="empty"), "sub-iid1", "Not a valid .bed file"),
        (genotypes("small", bed="badfile"), "sub-iid1", "Not a valid .bed file"),
        (genotypes("small", bed="small_too_short"), "sub-iid1", "has 6 bytes where 3 people and 4 variants make 7"),
        (genotypes("small", bed="smallmode0"), "sub-iid1", "person by person"),
        (genotypes("small", bed="smallmodebad"), "sub-iid1", "Not a valid .bed file"),
        (genotypes("small", ends=(".fam",)), "sub-iid1", "all.bed lacks its .bim"),
        (genotypes("sparse"), "sub-1", "not among the 10 people of all.fam"),
    ],
    ids=["empty", "no magic number", "too short", "person by person", "unknown order", "no variants' names", "nobody"],
)
def test_genotypes_that_cannot_be_read_are_named(
    files: dict[str, str], participant: str, reason: str, tmp_path: Path
) -> None:
    root = lay_out(tmp_path / "data", files, participant)
    record = record_of(root, tmp_path / "out", "--features", "snp", participant=participant)
    assert not record["features"]
    assert reason in record["problems"][0]["reason"]
    assert "unexpected" not in record["problems"][0]["reason"]
