"""Atlases by name, path and folder; one pass over a volume gives every region's mean."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import AFFINE, write_image
from nibabel import cifti2
from nilearn.image import smooth_img
from nilearn.maskers import NiftiLabelsMasker

from bids_dl import regions
from bids_dl.errors import DataError, MissingInputError, UsageError


def blocks(shape: tuple[int, ...] = (6, 6, 6)) -> np.ndarray:
    labels = np.zeros(shape, np.int32)
    labels[:3, :3], labels[3:, :3], labels[:3, 3:] = 2, 5, 7
    return labels


def test_atlases_that_are_shipped_have_names_and_regions() -> None:
    atlas = regions.load_atlas("aal")
    assert atlas.name == "AAL"
    assert "Hippocampus_L" in atlas.labels
    assert len(atlas.indices) == len(atlas.labels)


def test_an_atlas_is_read_by_its_path_with_the_names_beside(tmp_path: Path) -> None:
    path = write_image(tmp_path / "my_parcels.nii.gz", blocks())
    (tmp_path / "my_parcels.tsv").write_text("index\tname\n2\tleft\n5\tright\n")
    atlas = regions.load_atlas(str(path))
    assert (atlas.name, atlas.labels) == ("MyParcels", ("left", "right", "region007"))


def test_an_atlas_is_read_from_a_bids_folder(tmp_path: Path) -> None:
    write_image(tmp_path / "atlas-Six_space-MNI152NLin6Asym_dseg.nii.gz", blocks())
    (tmp_path / "atlas-Six_dseg.tsv").write_text("index\tname\n2\ta\n5\tb\n7\tc\n")
    atlas = regions.load_atlas(str(tmp_path))
    assert (atlas.name, atlas.labels) == ("Six", ("a", "b", "c"))


def test_a_probabilistic_atlas_gives_a_voxel_to_its_likeliest_region(tmp_path: Path) -> None:
    chances = np.zeros((4, 4, 4, 3), np.float32)
    chances[0, ..., 1], chances[0, ..., 2], chances[1, ..., 0], chances[2, ..., 2] = 60, 100, 30, 20
    path = write_image(tmp_path / "chance.nii.gz", chances)
    (tmp_path / "chance.tsv").write_text("index\tname\n0\ta\n1\tb\n2\tc\n")
    atlas = regions.load_atlas(str(path))
    assert atlas.labels == ("a", "c")
    labels = regions.on_grid(atlas, (4, 4, 4), AFFINE)
    assert labels[:, 0, 0].tolist() == [2, 1, 0, 0]


@pytest.mark.parametrize("name", list(regions.shipped()))
def test_every_shipped_atlas_can_be_used(name: str) -> None:
    atlas = regions.load_atlas(name)
    assert sum(label.startswith("region") for label in atlas.labels) <= 2


def test_an_unknown_atlas_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="harvard_oxford"):
        regions.load_atlas("harvard_oxfor")
    with pytest.raises(MissingInputError):
        regions.load_atlas(str(tmp_path / "none.nii.gz"))
    with pytest.raises(DataError, match="no region"):
        regions.load_atlas(str(write_image(tmp_path / "zero.nii.gz", np.zeros((3, 3, 3), np.int16))))


def test_means_equal_a_loop_over_voxels_and_nilearn(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    image = nib.Nifti1Image(generator.integers(1, 2000, (6, 6, 6, 9)).astype(np.int16), AFFINE)
    image.header.set_slope_inter(0.5, 3.0)
    nib.save(image, tmp_path / "b.nii.gz")
    atlas_path = write_image(tmp_path / "a.nii.gz", blocks())
    atlas = regions.load_atlas(str(atlas_path))
    loaded = nib.load(tmp_path / "b.nii.gz")
    series, coverage = regions.regional_means(loaded, regions.on_grid(atlas, loaded.shape, loaded.affine), 3)
    slow = np.stack([loaded.get_fdata()[blocks() == value].mean(axis=0) for value in (2, 5, 7)], axis=1)
    np.testing.assert_allclose(series, slow, rtol=1e-9)
    np.testing.assert_array_equal(coverage, 1)
    np.testing.assert_allclose(series, NiftiLabelsMasker(atlas_path).fit_transform(loaded), rtol=1e-5)


def test_voxels_without_signal_do_not_count_and_uncovered_regions_stay(tmp_path: Path) -> None:
    data = np.ones((6, 6, 6, 4), np.float32) * np.arange(1, 5)
    data[:3, :3, :3] = 0
    data[3:, :3] = np.nan
    series, coverage = regions.regional_means(nib.Nifti1Image(data, AFFINE), _labels(), 3)
    np.testing.assert_allclose(coverage, [0.5, 0, 1])
    np.testing.assert_allclose(series[:, [0, 2]], np.arange(1, 5)[:, None] * [1, 1])
    assert np.isnan(series[:, 1]).all()


def _labels() -> np.ndarray:
    labels = np.zeros((6, 6, 6), np.int32)
    labels[:3, :3], labels[3:, :3], labels[:3, 3:] = 1, 2, 3
    return labels


def test_a_mask_limits_the_voxels() -> None:
    data = np.broadcast_to(np.arange(6.0)[:, None, None, None], (6, 6, 6, 3)) + 1
    mask = np.zeros((6, 6, 6), bool)
    mask[0] = True
    series, coverage = regions.regional_means(nib.Nifti1Image(data.copy(), AFFINE), _labels(), 3, mask)
    np.testing.assert_allclose(series[:, 0], 1)
    np.testing.assert_allclose(coverage, [1 / 3, 0, 1 / 3])


def test_an_atlas_is_brought_to_another_grid(tmp_path: Path) -> None:
    atlas = regions.load_atlas(str(write_image(tmp_path / "a.nii.gz", blocks())))
    fine = AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
    labels = regions.on_grid(atlas, (12, 12, 12), fine)
    np.testing.assert_array_equal(labels[::2, ::2, ::2], _labels())


def test_a_damaged_or_flat_file_is_named(tmp_path: Path) -> None:
    path = write_image(
        tmp_path / "sub-9_bold.nii.gz", np.random.default_rng(0).integers(1, 99, (6, 6, 6, 30)).astype(np.int16)
    )
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match="sub-9_bold.nii.gz ends early"):
        regions.regional_means(nib.load(path), _labels(), 3)
    with pytest.raises(DataError, match="3 dimensions"):
        regions.regional_means(nib.Nifti1Image(np.ones((6, 6, 6)), AFFINE), _labels(), 3)


def test_a_corrupted_file_is_named(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(1, 9999, (12, 12, 12, 60)).astype(np.int16)
    path = write_image(tmp_path / "sub-9_bold.nii.gz", data)
    content = bytearray(path.read_bytes())
    content[-30_000:-29_000] = bytes(1000)
    path.write_bytes(content)
    with pytest.raises(DataError, match="sub-9_bold.nii.gz ends early or is damaged"):
        regions.regional_means(nib.load(path), np.ones((12, 12, 12), np.int32), 1)


@pytest.mark.parametrize("kind", ["<i2", ">i2", "<f4", ">f8", "u1"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_every_way_of_storing_gives_the_same_means(tmp_path: Path, kind: str, ending: str) -> None:
    data = np.random.default_rng(0).integers(1, 200, (6, 6, 6, 4))
    path = write_image(tmp_path / f"b{ending}", data.astype(kind))
    series, _ = regions.regional_means(nib.load(path), _labels(), 3)
    np.testing.assert_allclose(series, np.stack([data[_labels() == n].mean(axis=0) for n in (1, 2, 3)], 1), rtol=1e-6)


@pytest.fixture
def parcels(tmp_path: Path) -> Path:
    """Label five vertices and a voxel: two parcels and the rest."""
    voxel = np.zeros((2, 2, 2))
    voxel[1, 0, 0] = 1
    axis = cifti2.BrainModelAxis.from_mask(np.ones(5), name="CortexLeft")
    axis += cifti2.BrainModelAxis.from_mask(voxel, name="ThalamusLeft", affine=AFFINE)
    names = {0: ("???", (0, 0, 0, 0)), 2: ("a", (1, 0, 0, 1)), 9: ("b", (0, 1, 0, 1)), 11: ("unused", (0, 0, 1, 1))}
    path = tmp_path / "atlas-Two_dseg.dlabel.nii"
    labels = np.array([[9, 9, 0, 2, 2, 2]], np.float32)
    nib.save(nib.Cifti2Image(labels, (cifti2.LabelAxis(["parcels"], [names]), axis)), path)
    return path


def test_parcels_have_the_names_of_their_file(parcels: Path) -> None:
    atlas = regions.load_atlas(str(parcels))
    assert (atlas.name, atlas.labels, atlas.indices) == ("Two", ("a", "b"), (2, 9))
    assert atlas.is_dense
    with pytest.raises(DataError, match="needs a NIfTI atlas"):
        regions.on_grid(atlas, (6, 6, 6), AFFINE)


def test_parcel_means_equal_a_loop_and_still_grayordinates_do_not_count(parcels: Path) -> None:
    values = np.random.default_rng(0).normal(9, 1, (7, 4)).astype(np.float32)
    values[:, 3] = 0
    axis = cifti2.BrainModelAxis.from_mask(np.array([1, 1, 0, 1, 1]) > 0, name="CortexLeft")
    image = nib.Cifti2Image(values, (cifti2.SeriesAxis(0, 2.0, 7), axis))
    series, coverage = regions.parcel_means(image, regions.load_atlas(str(parcels)))
    np.testing.assert_allclose(series, np.stack([values[:, 2], values[:, :2].mean(axis=1)], axis=1), rtol=1e-6)
    np.testing.assert_allclose(coverage, [1 / 3, 1])


def test_a_series_of_other_structures_shares_no_parcel(parcels: Path) -> None:
    axis = cifti2.BrainModelAxis.from_mask(np.ones(5), name="CortexRight")
    image = nib.Cifti2Image(np.ones((7, 5), np.float32), (cifti2.SeriesAxis(0, 2.0, 7), axis))
    with pytest.raises(DataError, match="share no grayordinate"):
        regions.parcel_means(image, regions.load_atlas(str(parcels)))


def test_means_of_a_map_leave_out_what_was_not_measured() -> None:
    volume = np.random.default_rng(0).random((6, 6, 6)) + 1
    volume[0, :3], volume[1, :3], volume[3:, :3] = 0, np.nan, 0
    means, coverage = regions.map_means(volume, _labels(), 4)
    np.testing.assert_allclose(means, [volume[2, :3].mean(), np.nan, volume[:3, 3:].mean(), np.nan])
    np.testing.assert_allclose(coverage, [1 / 3, 0, 1, 0])


def test_smoothing_before_averaging_equals_averaging_smoothed_volumes() -> None:
    image = nib.Nifti1Image(np.random.default_rng(0).normal(9, 1, (6, 6, 6, 4)).astype(np.float32), AFFINE)
    series, _ = regions.regional_means(image, _labels(), 3, smoothing_mm=25.0)
    slow, _ = regions.regional_means(smooth_img(image, 25.0), _labels(), 3)
    np.testing.assert_allclose(series, slow, rtol=1e-5)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make TemplateFlow's folder: an atlas in two resolutions, one of two thresholds, and one that was not downloaded."""
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    regions.load_atlas.cache_clear()
    folder = tmp_path / "tpl-MNI152NLin2009cAsym"
    start = "tpl-MNI152NLin2009cAsym"
    for resolution, size in (("01", 1.0), ("02", 2.0)):
        name = f"{start}_res-{resolution}_atlas-Cells_desc-3Parcels_dseg.nii.gz"
        write_image(folder / name, blocks(), np.diag([size, size, size, 1.0]))
    for threshold in (0, 25):
        write_image(folder / f"{start}_res-01_atlas-Odds_desc-th{threshold}_dseg.nii.gz", blocks())
    (folder / f"{start}_res-01_atlas-Absent_dseg.nii.gz").touch()
    write_image(folder / f"{start}_res-01_desc-carpet_dseg.nii.gz", blocks())
    (folder / f"{start}_atlas-Cells_desc-3Parcels_dseg.tsv").write_text("index\tname\n2\ta\n5\tb\n7\tc\n")
    (folder / f"{start}_atlas-Cells_dseg.tsv").write_text("index\tname\n2\tx\n5\ty\n7\tz\n")
    (folder / f"{start}_atlas-Odds_dseg.tsv").write_text("index\tname\n2\td\n5\te\n7\tf\n")
    (folder / f"{start}_atlas-Odds_desc-th25_dseg.tsv").touch()
    return folder


def test_an_atlas_of_templateflow_is_found_by_name_in_the_resolution_nearest_to_2_mm(cache: Path) -> None:
    atlas = regions.load_atlas("Cells_3Parcels")
    assert (atlas.name, atlas.labels, atlas.indices) == ("Cells3Parcels", ("a", "b", "c"), (2, 5, 7))
    assert "res-02" in atlas.path.name


def test_a_table_applies_to_the_images_that_share_its_entities(cache: Path) -> None:
    assert regions.load_atlas("Odds_th0").labels == ("d", "e", "f")
    assert regions.load_atlas("Odds_th25").labels == ("d", "e", "f")


def test_what_templateflow_holds_is_listed_and_what_it_has_not_downloaded_is_not(cache: Path) -> None:
    with pytest.raises(
        UsageError, match=r"'Absent' is no known atlas\. There are aal, .*holds Cells_3Parcels, Odds_th0, Odds_th25\.$"
    ):
        regions.load_atlas("Absent")
    with pytest.raises(UsageError, match="did you mean 'Cells_3Parcels'"):
        regions.load_atlas("Cells_4Parcels")


def test_without_templateflow_the_folder_looked_in_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="none/tpl-MNI152NLin2009cAsym holds none"):
        regions.load_atlas("Schaefer2018_100Parcels7Networks")
