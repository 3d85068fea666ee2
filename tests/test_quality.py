"""Measures of quality agree with closed forms; outliers are flagged and left out only where asked for."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_dl import cohort, config, outputs, participant, quality
from bids_dl.config import Quality
from bids_dl.errors import DataError, NothingSelectedError, UsageError
from bids_dl.records import Scan

SHAPE = (12, 14, 12)
AFFINE = np.diag([16.0, 16.0, 16.0, 1.0])
AFFINE[:3, 3] = (-90, -126, -72)


def save(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values.astype(np.float32), affine), path)
    return path


def make_scan(
    folder: Path, suffix: str, values: np.ndarray, mask: np.ndarray | None = None, **related: np.ndarray
) -> Scan:
    names = {"sub": "01", "space": "MNI152NLin2009cAsym", "suffix": suffix, "datatype": "anat"}
    stem = "sub-01_space-MNI152NLin2009cAsym"
    path = save(folder / f"{stem}_desc-preproc_{suffix}.nii.gz", values)
    held = save(folder / f"{stem}_desc-brain_mask.nii.gz", mask) if mask is not None else None
    beside = {role: save(folder / f"{stem}_{role}.nii.gz", v) for role, v in related.items()}
    return Scan(path, names, folder, mask=held, related=beside)


def confounds(folder: Path, displaced: list[float]) -> Path:
    path = folder / "sub-01_desc-confounds_timeseries.tsv"
    pd.DataFrame({"framewise_displacement": displaced}).to_csv(path, sep="\t", index=False, na_rep="n/a")
    return path


def test_dice_of_half_a_mask_is_two_thirds():
    whole = np.ones((4, 4, 4), bool)
    half = whole.copy()
    half[:2] = False
    assert quality.dice(whole, half) == pytest.approx(2 / 3)
    assert quality.dice(whole, whole) == 1
    assert quality.dice(half, ~half) == 0


def test_the_templates_own_mask_overlaps_itself_and_a_shifted_one_does_not(tmp_path):
    from nilearn.datasets import load_mni152_brain_mask

    mask = load_mni152_brain_mask(resolution=4)
    shifted = np.array(mask.affine)
    shifted[0, 3] += 60
    dices = []
    for folder, affine in ((tmp_path / "a", mask.affine), (tmp_path / "b", shifted)):
        scan = make_scan(folder, "T1w", np.ones(mask.shape))
        held = save(folder / "mask.nii.gz", mask.get_fdata(), affine)
        dices.append(quality.measure(Scan(scan.path, scan.entities, folder, mask=held))["mask_dice"])
    assert dices[0] > 0.97
    assert dices[1] < 0.7


def test_contrast_and_noise_of_two_tissues_are_their_textbook_ratios(tmp_path):
    generator = np.random.default_rng(0)
    grey, white = generator.normal(600, 30, 40_000), generator.normal(900, 40, 40_000)
    found = quality.tissue_contrast(grey, white)
    assert found["snr_wm"] == pytest.approx(900 / 40, rel=0.02)
    assert found["cnr"] == pytest.approx(300 / 50, rel=0.02)


def test_a_t1w_is_measured_where_a_tissue_is_likely_and_in_the_mask(tmp_path):
    generator = np.random.default_rng(1)
    values = generator.normal(100, 1, SHAPE)
    gm, wm, mask = np.zeros(SHAPE), np.zeros(SHAPE), np.ones(SHAPE)
    gm[:4], wm[8:] = 0.9, 1
    gm[4:8] = 0.5
    values[:4], values[8:] = generator.normal(60, 3, (4, 14, 12)), generator.normal(90, 4, (4, 14, 12))
    mask[:, 0] = 0
    values[:, 0] = 10_000
    found = quality.measure(make_scan(tmp_path, "T1w", values, mask, gm=gm, wm=wm))
    grey, white = (values[s, 1:].astype(np.float32).ravel().astype(float) for s in (slice(4), slice(8, None)))
    assert found["snr_wm"] == pytest.approx(white.mean() / white.std(ddof=1), rel=1e-4)
    noise = np.sqrt(white.var(ddof=1) + grey.var(ddof=1))
    assert found["cnr"] == pytest.approx((white.mean() - grey.mean()) / noise, rel=1e-4)
    assert found["mask_ml"] == pytest.approx(12 * 13 * 12 * 16**3 / 1000)


def test_brain_volume_is_that_of_the_scan_not_of_the_template(tmp_path):
    volumes = tmp_path / "volumes.json"
    volumes.write_text('{"gm_ml": 650.0, "wm_ml": 480.5, "csf_ml": 300.0}')
    made = make_scan(tmp_path, "T1w", np.random.default_rng(0).normal(100, 1, SHAPE), np.ones(SHAPE))
    found = quality.measure(Scan(made.path, made.entities, tmp_path, mask=made.mask, related={"volumes": volumes}))
    assert found["brain_ml"] == 1130.5


def test_temporal_measures_agree_with_slow_formulas(tmp_path):
    generator = np.random.default_rng(2)
    series = 1000 + 20 * generator.standard_normal((*SHAPE, 30))
    mask = np.zeros(SHAPE)
    mask[3:9, 3:9, 3:9] = 1
    found = quality.measure(make_scan(tmp_path, "bold", series, mask))
    x = series.astype(np.float32).astype(float)[mask > 0]
    assert found["tsnr"] == pytest.approx(np.median(x.mean(1) / x.std(1, ddof=1)), rel=1e-5)
    dvars = [np.sqrt(np.mean((x[:, t] - x[:, t - 1]) ** 2)) for t in range(1, 30)]
    assert found["dvars_percent"] == pytest.approx(100 * np.mean(dvars) / x.mean(), rel=1e-5)
    assert found["dvars_percent"] == pytest.approx(100 * 20 * np.sqrt(2) / 1000, rel=0.03)  # white noise
    assert found["n_volumes"] == 30


def test_a_large_offset_costs_no_precision(tmp_path):
    series = 30_000 + np.random.default_rng(3).integers(-1, 2, (*SHAPE, 40))
    x = series.reshape(-1, 40).astype(float)
    found = quality.measure(make_scan(tmp_path, "bold", series, np.ones(SHAPE)))
    assert found["tsnr"] == pytest.approx(np.median(x.mean(1) / x.std(1, ddof=1)), rel=1e-4)


def test_displacement_is_summarised_over_the_known_volumes(tmp_path):
    made = make_scan(tmp_path, "bold", np.random.default_rng(0).normal(100, 1, (*SHAPE, 5)))
    scan = Scan(made.path, made.entities, tmp_path, confounds=confounds(tmp_path, [np.nan, 0.1, 0.7, 0.2, 1.0]))
    found = quality.measure(scan)
    moved = {name: found[name] for name in ("mean_fd_mm", "max_fd_mm", "moved_share")}
    assert moved == pytest.approx({"mean_fd_mm": 0.5, "max_fd_mm": 1.0, "moved_share": 2 / 5})


def test_a_series_without_a_mask_is_measured_inside_the_templates_brain(tmp_path):
    series = np.random.default_rng(0).normal(100, 10, (*SHAPE, 20))
    inside = quality._expected(SHAPE, AFFINE)
    series[~inside] = 1e6
    found = quality.measure(make_scan(tmp_path, "bold", series))
    x = series.astype(np.float32).astype(float)[inside]
    assert found["tsnr"] == pytest.approx(np.median(x.mean(1) / x.std(1, ddof=1)), rel=1e-4)
    assert "mask_dice" not in found


def test_the_b0_volumes_of_a_dwi_give_its_noise(tmp_path):
    generator = np.random.default_rng(4)
    series = 200 + 5 * generator.standard_normal((*SHAPE, 8))
    series[..., 4:] = 3
    made = make_scan(tmp_path, "dwi", series, np.ones(SHAPE))
    bval = tmp_path / "dwi.bval"
    bval.write_text("0 5 0 0 1000 1000 1000 1000\n")
    found = quality.measure(Scan(made.path, made.entities, tmp_path, mask=made.mask, related={"bval": bval}))
    x = series[..., :4].astype(np.float32).reshape(-1, 4).astype(float)
    assert found["snr_b0"] == pytest.approx(np.median(x.mean(1) / x.std(1, ddof=1)), rel=1e-4)
    assert found["n_volumes"] == 8


@pytest.mark.parametrize("suffix", ["T1w", "bold"])
def test_still_or_empty_images_give_no_nan(tmp_path, suffix):
    shape = SHAPE if suffix == "T1w" else (*SHAPE, 4)
    for number, (value, inside) in enumerate([(0, 1), (5, 1), (5, 0)]):
        scan = make_scan(tmp_path / str(number), suffix, np.full(shape, value), np.full(SHAPE, inside))
        assert all(np.isfinite(v) for v in quality.measure(scan).values())


def test_a_table_is_measured_by_nothing(tmp_path):
    names = {"sub": "01", "suffix": "timeseries", "datatype": "func"}
    assert quality.measure(Scan(tmp_path / "sub-01_timeseries.tsv", names, tmp_path)) == {}


def test_a_mask_on_another_grid_is_named(tmp_path):
    scan = make_scan(tmp_path, "bold", np.ones((*SHAPE, 3)), np.ones((3, 3, 3)))
    with pytest.raises(DataError, match=r"sub-01_space.*bold has the shape .* but its mask"):
        quality.measure(scan)


def test_a_failure_is_a_sentence_of_the_record(tmp_path):
    scan = make_scan(tmp_path, "bold", np.random.default_rng(0).random((*SHAPE, 9)), np.ones(SHAPE))
    scan.path.write_bytes(scan.path.read_bytes()[:-4000])
    entry = quality.noted(scan)
    assert entry["measures"] == {}
    assert "ends early or is damaged" in entry["failure"]


def records(values: list[float], name: str = "mean_fd_mm") -> dict[str, dict]:
    entry = {"scan": "x_bold", "kind": "bold"}
    return {f"sub-{i:02d}": {"quality": [{**entry, "measures": {name: v}}]} for i, v in enumerate(values)}


def test_robust_z_is_the_ordinary_one_for_normal_values():
    values = np.random.default_rng(5).normal(7, 3, (100_000, 1))
    z = quality.robust_z(values)
    assert z.std() == pytest.approx(1, abs=0.02)
    assert np.median(z) == pytest.approx(0, abs=1e-9)


def test_an_outlier_among_ten_is_flagged_and_among_nine_is_not():
    for n, expected in ((10, "mean_fd_mm"), (9, None)):
        table = quality.table(records([*np.linspace(0.1, 0.2, n - 1), 3.0]))
        assert table["flags"].tolist() == [None] * (n - 1) + [expected]


def test_one_short_run_among_equal_ones_is_flagged():
    table = quality.table(records([200] * 19 + [80], "n_volumes"))
    assert table["flags"].tolist() == [None] * 19 + ["n_volumes"]


def test_outliers_are_sought_within_a_site_of_ten():
    low, high = np.linspace(0.1, 0.2, 10), np.linspace(2.0, 2.1, 30)
    given = records([*low, 1.0, *high])
    sites = dict(zip(given, ["quiet"] * 11 + ["loud"] * 30, strict=True))
    table = quality.table(given, sites)
    assert table.index[table["flags"].notna()].tolist() == [10]  # a usual value of the cohort, a far one of its site
    assert table["reason"][10].startswith("mean_fd_mm 1 mm (robust z +")
    assert table["reason"][10].endswith("among 11 bold scans of site quiet)")
    assert set(range(11)) == set(quality.table(given).index[quality.table(given)["flags"].notna()])


def test_participants_of_a_small_site_are_compared_with_everybody():
    given = records([*np.linspace(0.1, 0.2, 12), 0.15, 3.0])
    sites = dict(zip(given, ["large"] * 12 + ["small"] * 2, strict=True))
    table = quality.table(given, sites)
    assert table.index[table["flags"].notna()].tolist() == [13]
    assert table["reason"][13].endswith("among 14 bold scans of all sites)")
    assert quality.table(given)["reason"][13].endswith("among 14 bold scans of the cohort)")


def test_a_site_of_nine_is_no_cohort_of_its_own():
    given = records([*np.linspace(0.1, 0.2, 8), 3.0])
    assert quality.table(given, dict.fromkeys(given, "only"))["flags"].isna().all()


def test_sites_are_read_from_their_usual_column_or_the_one_named(tmp_path):
    (tmp_path / "participants.tsv").write_text("participant_id\tSite\tcoil\nsub-1\tA\t8\nsub-2\tn/a\t32\n")
    assert quality.sites_of(tmp_path) == {"sub-1": "A"}
    assert quality.sites_of(tmp_path, "coil") == {"sub-1": "8", "sub-2": "32"}
    assert quality.sites_of(tmp_path / "absent") == {}


def test_few_degrees_of_freedom_are_flagged_whatever_the_others_have():
    table = quality.table(records([12.0, 12.0, 20.0], "degrees_of_freedom"))
    assert table["flags"].tolist() == ["degrees_of_freedom", "degrees_of_freedom", None]
    assert table["reason"][0] == "degrees_of_freedom 12 (fewer than 20)"


def test_two_unrelated_series_of_so_few_values_correlate_as_the_limit_says():
    generator = np.random.default_rng(0)
    one, other = generator.standard_normal((2, 4000, quality.FEWEST_FREE))
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(one, other, strict=True)]
    assert np.mean(np.abs(r) > 0.44) == pytest.approx(0.05, abs=0.01)


def test_the_fewest_degrees_of_freedom_of_a_scans_features_are_its_measure(tmp_path):
    scan = make_scan(tmp_path, "bold", np.random.default_rng(0).normal(100, 1, (*SHAPE, 12)), np.ones(SHAPE))
    features = [
        {"source": str(scan.path), "degrees_of_freedom": 31.5},
        {"source": str(scan.path), "degrees_of_freedom": 28},
        {"source": str(scan.path)},
        {"source": "another", "degrees_of_freedom": 3},
    ]
    assert quality.noted(scan, features)["measures"]["degrees_of_freedom"] == 28
    assert "degrees_of_freedom" not in quality.noted(scan)["measures"]


def test_kinds_of_scans_are_compared_with_their_own():
    mixed = records([*np.linspace(0.9, 0.95, 12)], "mask_dice")
    for i, record in enumerate(mixed.values()):
        record["quality"].append({"scan": "x_T1w", "kind": "t1w", "measures": {"mask_dice": 0.5 + i / 1000}})
    assert quality.table(mixed)["flags"].isna().all()


def test_nobody_is_left_out_unless_asked():
    assert quality.exclusions(Quality(), records([0.1] * 11 + [9.0])) == ({}, ())


def test_each_rule_names_its_participant_and_its_reason():
    given = records([*np.linspace(0.1, 0.2, 11), 3.0])
    for rules in (Quality(max_mean_fd_mm=0.5), Quality(exclude_flagged=True)):
        reasons, notes = quality.exclusions(rules, given)
        assert list(reasons) == ["sub-11"]
        assert notes == ()
    assert "x_bold is flagged: mean_fd_mm 3 mm (robust z" in reasons["sub-11"]
    assert reasons["sub-11"].endswith("of the cohort) (quality.exclude_flagged)")
    low = records([0.9, 0.4], "mask_dice")
    reasons, _ = quality.exclusions(Quality(min_mask_dice=0.8), low)
    assert "0.40" in reasons["sub-01"]
    assert "quality.min_mask_dice = 0.8" in reasons["sub-01"]


def test_those_who_cannot_be_judged_are_counted():
    given = records([0.1, 0.2])
    given["sub-09"] = {"features": []}
    reasons, notes = quality.exclusions(Quality(max_mean_fd_mm=0.15), given)
    assert list(reasons) == ["sub-01"]
    assert notes == ("1 of 3 participants have no mean_fd_mm; the rule of the section quality did not touch them.",)


def test_the_participant_level_writes_a_table_and_the_group_level_leaves_out_by_it(fmriprep, tmp_path):
    root, out = fmriprep(2), tmp_path / "out"
    run = {"run": {"nprocs": 1}, "select": {"skip_bids_validation": True}}
    given = {"bids_dir": str(root), "output_dir": str(out), "analysis_level": "participant", **run}
    assert participant.run(config.from_mapping(given), frozenset()) == 0
    table = pd.read_csv(out / "quality.tsv", sep="\t")
    assert table["participant_id"].tolist() == ["sub-01", "sub-01", "sub-02", "sub-02"]
    assert table["mean_fd_mm"].dropna().tolist() == pytest.approx([0.25, 0.25])
    assert table["degrees_of_freedom"].notna().tolist() == table["mean_fd_mm"].notna().tolist()
    strict = config.from_mapping({**given, "quality": {"max_mean_fd_mm": 0.1}})
    with pytest.raises(
        NothingSelectedError, match=r"mean framewise displacement 0.25 mm \(quality.max_mean_fd_mm = 0.1\)"
    ):
        cohort.plan(strict)
    assert cohort.plan(config.from_mapping(given)).excluded == ()


def test_rules_out_of_range_are_refused():
    given = {"bids_dir": "a", "output_dir": "b", "analysis_level": "group"}
    with pytest.raises(UsageError, match="min_mask_dice"):
        config.from_mapping({**given, "quality": {"min_mask_dice": 1.5}})


def test_the_table_is_described_and_names_those_whose_flags_are_new(tmp_path):
    given = records([*np.linspace(0.1, 0.2, 11), 3.0])
    assert outputs.write_quality(tmp_path, given) == ["sub-11"]
    assert outputs.write_quality(tmp_path, given) == []
    given["sub-11"]["quality"][0]["measures"]["mean_fd_mm"] = 0.15
    assert outputs.write_quality(tmp_path, given) == ["sub-11"]
    described = json.loads((tmp_path / "quality.json").read_text())
    columns = pd.read_csv(tmp_path / "quality.tsv", sep="\t").columns
    assert set(columns) - {"participant_id"} == set(described)
    assert described["mean_fd_mm"]["Units"] == "mm"
