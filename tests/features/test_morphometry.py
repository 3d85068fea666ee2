"""FreeSurfer's tables are read whole, grey matter is summed over regions, and what is damaged is named."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import write_image

from bids_dl import config as configuration
from bids_dl import extraction
from bids_dl.errors import DataError
from bids_dl.features.morphometry import extract
from bids_dl.records import Scan

ASEG = """# Title Segmentation Statistics
#
# generating_program mri_segstats
# cmdline mri_segstats --seg mri/aseg.mgz --sum stats/aseg.stats --pv mri/norm.mgz --empty
# anatomy_type volume
#
# Measure BrainSeg, BrainSegVol, Brain Segmentation Volume, 1126237.000000, mm^3
# Measure Cortex, CortexVol, Total cortical gray matter volume, 475525.620074, mm^3
# Measure BrainSegVol-to-eTIV, BrainSegVol-to-eTIV, Ratio of BrainSegVol to eTIV, 0.714302, unitless
# Measure lhSurfaceHoles, lhSurfaceHoles, Number of defect holes in lh surfaces prior to fixing, 13, unitless
# Measure EstimatedTotalIntraCranialVol, eTIV, Estimated Total Intracranial Volume, 1576698.123456, mm^3
# SegVolFile mri/aseg.mgz
# TableCol  1 ColHeader Index
# TableCol  4 Units     mm^3
# NRows 3
# NTableCols 10
# ColHeaders  Index SegId NVoxels Volume_mm3 StructName normMean normStdDev normMin normMax normRange
  1   4      7521     7694.1  Left-Lateral-Ventricle            37.5141    13.8206     9.0000    88.0000    79.0000
  2  10      7870     8120.9  Left-Thalamus-Proper              88.7654    10.4114    37.0000   117.0000    80.0000
  3  17      4212     4268.0  Left-Hippocampus                  74.9412     9.0361    29.0000   112.0000    83.0000
"""
APARC = """# Table of FreeSurfer cortical parcellation anatomical statistics
#
# generating_program mris_anatomical_stats
# anatomy_type surface
# hemi {side}
# AnnotationFile ../label/{side}.aparc.annot
#
# Measure Cortex, NumVert, Number of Vertices, 129041, unitless
# Measure Cortex, WhiteSurfArea, White Surface Total Area, 84302.4, mm^2
# Measure Cortex, MeanThickness, Mean Thickness, 2.46123, mm
# Measure BrainSeg, BrainSegVol, Brain Segmentation Volume, 1126237.000000, mm^3
# NTableCols 10
# TableCol  5 ColHeader ThickAvg
# TableCol  5 Units     mm
# ColHeaders StructName NumVert SurfArea GrayVol ThickAvg ThickStd MeanCurv GausCurv FoldInd CurvInd
bankssts                                 1407    933   2328  2.631 0.397     0.085     0.015        6     0.9
caudalanteriorcingulate                   645    449   1291  {thickness} 0.572     0.124     0.028        9     0.9
"""


def stats(root: Path, folder: str = "sub-1_ses-2") -> Scan:
    """Write what recon-all leaves of one participant."""
    place = root / folder / "stats"
    place.mkdir(parents=True)
    (place / "aseg.stats").write_text(ASEG)
    for side, thickness in (("lh", "2.624"), ("rh", "2.500")):
        (place / f"{side}.aparc.stats").write_text(APARC.format(side=side, thickness=thickness))
    return Scan(place, {"sub": "1", "ses": "2", "suffix": "stats", "datatype": "anat"}, root)


def modulated(root: Path, values: np.ndarray, **related: Path) -> Scan:
    """Make a prepared T1w whose modulated grey matter is known."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-90, -126, -72)
    folder = root / "sub-1" / "anat"
    t1w = write_image(folder / "sub-1_space-MNI_desc-preproc_T1w.nii.gz", np.ones((4, 4, 4), np.float32))
    mapped = write_image(folder / "sub-1_space-MNI_label-GM_desc-modulated_probseg.nii.gz", values, affine)
    names = {"sub": "1", "space": "MNI", "desc": "preproc", "suffix": "T1w", "datatype": "anat"}
    return Scan(t1w, names, root, related={"modulated": mapped, **related})


def test_every_number_has_its_region_measure_and_unit(tmp_path: Path) -> None:
    found = extract(stats(tmp_path))
    values = dict(zip(found.labels, found.values, strict=True))
    assert values["lh_bankssts_thickness"] == 2.631
    assert values["rh_caudalanteriorcingulate_thickness"] == 2.5
    assert values["lh_bankssts_area"] == 933
    assert values["lh_bankssts_volume"] == 2328
    assert values["Left-Hippocampus"] == 4268.0
    assert values["eTIV"] == 1576698.123456
    assert values["lh_MeanThickness_thickness"] == 2.46123
    assert values["rh_WhiteSurfArea_area"] == 84302.4
    units = found.metadata["Units"]
    assert [units[n] for n in ("lh_bankssts_area", "lh_bankssts_thickness", "eTIV")] == ["mm²", "mm", "mm³"]
    assert not {"lhSurfaceHoles", "BrainSegVol-to-eTIV"} & set(found.labels)


def test_thalamus_has_the_name_of_newer_versions(tmp_path: Path) -> None:
    assert "Left-Thalamus" in extract(stats(tmp_path)).labels


def test_measures_and_parcellation_are_chosen(tmp_path: Path) -> None:
    scan = stats(tmp_path)
    for side in ("lh", "rh"):
        text = APARC.format(side=side, thickness="3.1").replace("bankssts", "G_and_S_frontomargin")
        (scan.path / f"{side}.aparc.a2009s.stats").write_text(text)
    found = extract(scan, parcellation="aparc.a2009s", measures=("thickness",))
    assert len(found.labels) == 6
    assert found.labels[0] == "lh_G_and_S_frontomargin_thickness"
    assert found.entities == {"atlas": "aparca2009s"}


def test_missing_table_is_named_with_what_there_is(tmp_path: Path) -> None:
    scan = stats(tmp_path)
    with pytest.raises(DataError, match=r"sub-1_ses-2.*no lh.aparc.a2009.stats.*choose from|did you mean 'lh.aparc'"):
        extract(scan, parcellation="aparc.a2009")
    (scan.path / "aseg.stats").unlink()
    with pytest.raises(DataError, match=r"sub-1_ses-2.*no aseg.stats; run recon-all"):
        extract(scan)
    assert extract(scan, measures=("area",)).labels


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("lh.aparc.stats", "0.015        6     0.9\n", "0.0"),
        ("lh.aparc.stats", "# ColHeaders", "# Columns"),
        ("rh.aparc.stats", "2328", "23z8"),
        ("rh.aparc.stats", APARC.split("CurvInd\n")[1].format(thickness="2.500"), ""),
        ("aseg.stats", "# NRows 3", "# NRows 45"),
        ("aseg.stats", "1126237.000000, mm^3", ""),
    ],
)
def test_damaged_table_is_named(file: str, old: str, new: str, tmp_path: Path) -> None:
    scan = stats(tmp_path)
    text = (scan.path / file).read_text()
    assert old in text
    (scan.path / file).write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=f"sub-1_ses-2: {file} is damaged"):
        extract(scan)


def test_table_that_is_no_text_is_named(tmp_path: Path) -> None:
    scan = stats(tmp_path)
    (scan.path / "aseg.stats").write_bytes(b"\x1f\x8b\xff\xfe")
    with pytest.raises(DataError, match=r"aseg.stats is damaged"):
        extract(scan)


def test_unknown_measure_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'thicknes'; did you mean 'thickness'"):
        extract(stats(tmp_path), measures=("thicknes",))


def test_volume_of_a_region_is_the_sum_of_its_voxels_in_ml(tmp_path: Path) -> None:
    from bids_dl import regions

    values = np.random.default_rng(0).random((46, 54, 46)).astype(np.float32)
    scan = modulated(tmp_path, values)
    found = extract(scan)
    atlas = regions.load_atlas("aal")
    labels = regions.on_grid(atlas, values.shape, nib.load(scan.related["modulated"]).affine)
    for number in (1, 40, 90):
        expected = sum(float(v) for v in values[labels == number]) * 4**3 / 1000
        assert found.values[number - 1] == pytest.approx(expected, rel=1e-5)
    assert (found.unit, found.labels) == ("mL", atlas.labels)
    assert found.entities == {"atlas": "AAL", "space": "", "res": "", "desc": ""}


def test_totals_of_the_preparation_follow_the_regions(tmp_path: Path) -> None:
    measured = {"gm_ml": 650.5, "wm_ml": 500.0, "csf_ml": None, "icv_ml": 1400.0}
    noted = tmp_path / "volumes.json"
    noted.write_text(json.dumps(measured))
    found = extract(modulated(tmp_path, np.ones((46, 54, 46), np.float32), volumes=noted))
    assert found.labels[-3:] == ("gm", "wm", "icv")
    assert found.values[-3:].tolist() == [650.5, 500, 1400]


def test_region_outside_the_image_is_missing_not_nought(tmp_path: Path) -> None:
    found = extract(modulated(tmp_path, np.ones((46, 54, 20), np.float32)))
    assert np.isnan(found.values).any()
    assert (found.values[np.isfinite(found.values)] > 0).all()


def test_t1w_without_modulated_grey_matter_and_a_damaged_map_are_named(tmp_path: Path) -> None:
    scan = modulated(tmp_path, np.ones((46, 54, 46), np.float32))
    scan.related["modulated"].write_bytes(scan.related["modulated"].read_bytes()[:200])
    with pytest.raises(DataError, match="sub-1_space-MNI_desc-preproc_T1w: its modulated grey matter is damaged"):
        extract(scan)
    with pytest.raises(DataError, match=r"sub-1_space-MNI_desc-preproc_T1w has no modulated .* --raw-only"):
        extract(Scan(scan.path, scan.entities, tmp_path))


def asked(root: Path, scans: list[Scan], *names: str) -> tuple[list[str], list[str]]:
    """Extract as the participant level does: the sources that were used, and the reasons for the others."""
    given = {"bids_dir": str(root), "output_dir": str(root / "out"), "analysis_level": "participant"}
    record = extraction.process(configuration.from_mapping({**given, "features": {"names": names}}), "sub-1", scans)
    return [Path(f["source"]).name for f in record["features"]], [p["reason"] for p in record["problems"]]


def test_t1w_that_lacks_the_map_is_passed_over_beside_freesurfer_and_named_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dataset_description.json").write_text('{"DatasetLinks": {}}')
    tables, t1w = stats(tmp_path), modulated(tmp_path, np.ones((4, 4, 4), np.float32))
    bare = Scan(t1w.path, t1w.entities, tmp_path)
    assert asked(tmp_path, [tables, bare], "morphometry") == (["stats"], [])
    sources, reasons = asked(tmp_path, [bare], "morphometry")
    assert (sources, "no modulated grey matter" in reasons[0]) == ([], True)
    assert set(asked(tmp_path, [tables, t1w], "morphometry")[0]) == {"stats", t1w.path.name}
