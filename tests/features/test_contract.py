"""Every feature names its dimensions and unit, and refuses what it cannot use with a sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bed_reader import to_bed
from conftest import write_confounds, write_image, write_series

from bids_dl import query, zoo
from bids_dl.errors import DataError
from bids_dl.records import Scan

VOLUMES = {
    "t1w": "desc-preproc_T1w", "t2w": "desc-preproc_T2w", "flair": "desc-preproc_FLAIR", "pet": "desc-preproc_pet",
    "fa": "model-tensor_param-fa_dwimap", "md": "model-tensor_param-md_dwimap", "grey_matter": "desc-preproc_T1w",
    "slices": "desc-preproc_T1w",
}  # fmt: skip
"""Features that are volumes, and how the name of the image ends that each is extracted from."""


def scan(path: Path, root: Path, **more: object) -> Scan:
    return Scan(path, query.entities(path), root, **more)  # type: ignore[arg-type]


def bold(root: Path, values: np.ndarray) -> Scan:
    """Make a BOLD with confounds and events beside it."""
    stem = root / "sub-1" / "func" / "sub-1_task-rest"
    path = write_image(Path(f"{stem}_space-MNI152Lin_desc-preproc_bold.nii.gz"), values)
    confounds, events = Path(f"{stem}_desc-confounds_timeseries.tsv"), Path(f"{stem}_events.tsv")
    write_confounds(confounds, values.shape[-1], np.random.default_rng(0))
    events.write_text("onset\tduration\ttrial_type\n4\t10\tface\n")
    return scan(path, root, confounds=confounds, related={"events": events})


def with_networks(made: Scan) -> Scan:
    """Give a BOLD two networks to look for."""
    maps = np.random.default_rng(1).random((9, 11, 9, 2)).astype(np.float32)
    path = write_image(made.dataset / "atlas-Two_probseg.nii.gz", maps)
    return replace(made, related={**made.related, "networks": path})


def volume(root: Path, end: str, values: np.ndarray) -> Scan:
    """Make an image in standard space, which is its own modulated grey matter too."""
    path = write_image(root / "sub-1" / "anat" / f"sub-1_space-MNI152Lin_{end}.nii.gz", values)
    return scan(path, root, related={"modulated": path})


def bundle(root: Path, fa: float) -> Scan:
    """Make the tensor maps of a bundle that runs from left to right through the template, in its space."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-90, -126, -72)
    values, evec = np.zeros((46, 54, 46), np.float32), np.zeros((46, 54, 46, 3), np.float32)
    values[10:36, 24:28, 24:28] = fa
    evec[..., 0] = values > 0
    folder = root / "sub-1" / "dwi"
    path = write_image(folder / "sub-1_desc-preproc_dwi.nii.gz", values[..., None], affine)
    maps = {role: write_image(folder / f"{role}.nii.gz", v, affine) for role, v in (("fa", values), ("evec", evec))}
    (folder / "way.json").write_text('{"Transforms": [], "Invert": []}')
    related = {
        "fa": maps["fa"],
        "fa_native": maps["fa"],
        "evec_native": maps["evec"],
        "from_standard": folder / "way.json",
    }
    return scan(path, root, related=related)


def freesurfer(root: Path, rows: str) -> Scan:
    """Write FreeSurfer's tables of one participant."""
    folder = root / "sub-1" / "stats"
    folder.mkdir(parents=True)
    for side in ("lh", "rh"):
        (folder / f"{side}.aparc.stats").write_text(
            f"# ColHeaders StructName NumVert SurfArea GrayVol ThickAvg\n{rows}"
        )
    (folder / "aseg.stats").write_text("# ColHeaders Index SegId NVoxels Volume_mm3 StructName\n1 4 9 9.5 CSF\n")
    return Scan(folder, {"sub": "1", "suffix": "stats", "datatype": "anat"}, root)


def genotypes(root: Path, who: str) -> Scan:
    """Write PLINK's files of one person."""
    to_bed(root / "all.bed", np.array([[0, 1, 2]], np.int8), properties={"iid": [who]})
    return Scan(root / "all.bed", {"sub": "1", "suffix": "bed", "datatype": "genetics"}, root)


def usable(name: str, root: Path) -> Scan:
    generator = np.random.default_rng(0)
    folder = root / "sub-1" / "func"
    if name == "structural_connectivity":
        return bundle(root, 0.8)
    if name in {"alff", "falff", "reho", "events"}:
        return bold(root, generator.normal(500, 10, (6, 6, 6, 40)).astype(np.float32))
    if name in {"dual_regression", "network_maps", "dynamic_network_maps"}:
        return with_networks(bold(root, generator.normal(500, 10, (9, 11, 9, 120)).astype(np.float32)))
    if name == "regional":
        image = generator.normal(100, 5, (9, 11, 9)).astype(np.float32)
        return scan(write_image(folder / "sub-1_space-MNI152Lin_stat-alff_boldmap.nii.gz", image), root)
    if name == "morphometry":
        return freesurfer(root, "bankssts 1407 933 2328 2.631\n")
    if name == "snp":
        return genotypes(root, "1")
    if name in VOLUMES:
        return volume(root, VOLUMES[name], generator.normal(100, 5, (9, 11, 9)).astype(np.float32))
    if name == "phenotype":
        (root / "participants.tsv").write_text("participant_id\tage\nsub-1\t30\n")
        return Scan(root / "participants.tsv", {"sub": "1"}, root)
    values = generator.standard_normal((40, 6))
    return scan(write_series(folder / "sub-1_task-rest_atlas-Six_timeseries.tsv", values), root)


def unusable(name: str, root: Path) -> Scan:
    folder = root / "sub-1" / "func"
    if name == "structural_connectivity":
        return bundle(root, 0.1)
    if name in {"alff", "falff", "reho", "events"}:
        return bold(root, np.ones((6, 6, 6, 5), np.float32))
    if name in {"dual_regression", "network_maps", "dynamic_network_maps"}:
        return with_networks(bold(root, np.ones((9, 11, 9, 40), np.float32)))
    if name == "regional":
        return scan(write_image(folder / "sub-1_space-MNI152Lin_stat-alff_boldmap.nii.gz", np.zeros((4, 4, 4))), root)
    if name == "morphometry":
        return freesurfer(root, "bankssts 1407\n")
    if name == "snp":
        return genotypes(root, "2")
    if name in VOLUMES:
        return volume(root, VOLUMES[name], np.ones((4, 4, 4, 2), np.float32))
    if name == "phenotype":
        (root / "participants.tsv").write_text("participant_id\tage\nsub-2\t30\n")
        return Scan(root / "participants.tsv", {"sub": "1"}, root)
    return scan(write_series(folder / "sub-1_task-rest_atlas-Six_timeseries.tsv", np.ones((20, 6))), root)


@pytest.mark.parametrize("name", zoo.names("features"))
def test_a_feature_has_a_dimension_for_each_axis_and_a_unit(name: str, tmp_path: Path) -> None:
    feature = zoo.load("features", name)(usable(name, tmp_path))
    assert len(feature.dims) == feature.values.ndim
    assert feature.unit
    assert feature.suffix
    if feature.affine is None and feature.values.ndim < 3:
        assert len(feature.labels) == feature.values.shape[-1]


@pytest.mark.parametrize("name", zoo.names("features"))
def test_an_unusable_scan_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sub-1"):
        zoo.load("features", name)(unusable(name, tmp_path))


@pytest.mark.parametrize("name", zoo.names("features"))
def test_an_atlas_is_laid_over_kinds_that_the_feature_takes(name: str) -> None:
    laid_over = zoo.constant("features", name, "ATLAS_FOR") or ()
    assert set(laid_over) <= set(zoo.constant("features", name, "TAKES") or ())
    assert not laid_over or "atlas" in zoo.options("features", name)
