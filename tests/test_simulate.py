import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from shutil import which

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from bids_dl import simulate as simulation
from bids_dl.errors import OutputError, UsageError
from bids_dl.preparations import dwi
from bids_dl.query import entities
from bids_dl.records import Scan
from bids_dl.simulate import simulate

SMALL = {"n_participants": 6, "n_volumes": 30, "random_seed": 3}
T1W = "anat/{0}_space-MNI152NLin2009cAsym_res-4_desc-preproc_T1w.nii.gz"
BOLD = "func/{0}_task-rest_space-MNI152NLin2009cAsym_res-6_desc-preproc_bold.nii.gz"
CONFOUNDS = "func/{0}_task-rest_desc-confounds_timeseries.tsv"
MOTION = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The effect and the confounding, with one participant lacking each modality and one truncated file."""
    return simulate(tmp_path_factory.mktemp("planted"), **SMALL, n_lacking=1)


@pytest.fixture(scope="module")
def null(tmp_path_factory):
    """The same participants with nothing planted."""
    return simulate(tmp_path_factory.mktemp("null"), **SMALL, effect=0, confounding=0, truncated=False)


def settings(**changed):
    asked = {"n_participants": 48, "random_seed": 0, "effect": 1.0, "confounding": 1.0, "n_volumes": 120,
             "modalities": simulation.MODALITIES, "n_lacking": 4, "truncated": True}  # fmt: skip
    return simulation.Settings(out=Path("unused"), **{**asked, **changed})


def table(path):
    return pd.read_csv(path, sep="\t", na_values="n/a")


def group(out, diagnosis):
    people = table(out / "participants.tsv")
    return people["participant_id"][people["diagnosis"] == diagnosis].tolist()


def derived(out, name, participant_id):
    return out / "derivatives" / "fmriprep" / participant_id / name.format(participant_id)


def volume(out, name, participant_id):
    return np.asanyarray(nib.load(derived(out, name, participant_id)).dataobj).astype(float)


def truth(out):
    return json.loads((out / "sourcedata" / "truth" / "truth.json").read_text())


def brightness(out, participant_id):
    """Mean of the atrophy mask in standard deviations of the participant's brain."""
    image = volume(out, T1W, participant_id)
    brain, mask = image[image > 0], nib.load(out / "sourcedata/truth/t1w_mask.nii.gz").get_fdata() > 0
    return (image[mask & (image > 0)].mean() - brain.mean()) / brain.std()


@pytest.mark.parametrize("folder", [".", "derivatives/fmriprep"])
def test_raw_and_derivative_are_valid_bids(planted, tmp_path, folder):
    validator = Path(sys.executable).with_name("bids-validator-deno")
    command = str(validator) if validator.exists() else which("bids-validator-deno")
    if command is None:
        pytest.skip("bids-validator-deno is not installed")
    options = ["--ignoreWarnings", "--format", "json", "-o", str(tmp_path / "report.json")]
    done = subprocess.run([command, str(planted / folder), *options], capture_output=True, text=True)
    assert done.returncode == 0, (tmp_path / "report.json").read_text()[:2000]


def test_same_seed_gives_same_tables_and_images(null, tmp_path):
    again = simulate(tmp_path / "again", **SMALL, effect=0, confounding=0, truncated=False, nprocs=2)
    files = [p.relative_to(null) for p in sorted(null.rglob("*")) if p.is_file()]
    assert files == [p.relative_to(again) for p in sorted(again.rglob("*")) if p.is_file()]
    for path in files:
        if path.name.endswith(".nii.gz"):
            a, b = (nib.load(folder / path) for folder in (null, again))
            assert np.array_equal(np.asanyarray(a.dataobj), np.asanyarray(b.dataobj))
            assert np.array_equal(a.affine, b.affine)
        else:
            assert (null / path).read_bytes() == (again / path).read_bytes(), path


def test_another_seed_gives_other_images(null, tmp_path):
    other = simulate(tmp_path / "other", n_participants=4, random_seed=4, modalities=["t1w"])
    assert not np.array_equal(volume(null, T1W, "sub-01"), volume(other, T1W, "sub-01"))


def test_participant_does_not_depend_on_the_number_of_others(null, tmp_path):
    asked = {**SMALL, "n_participants": 4, "effect": 0, "confounding": 0, "truncated": False}
    fewer = simulate(tmp_path / "fewer", **asked, modalities=["bold"])
    assert np.array_equal(volume(null, BOLD, "sub-02"), volume(fewer, BOLD, "sub-02"))
    assert table(fewer / "participants.tsv").equals(table(null / "participants.tsv")[:4])


def test_exactly_one_bold_is_cut_short_in_raw_and_derivative(planted):
    broken = []
    for path in sorted(planted.rglob("*_bold.nii.gz")):
        try:
            gzip.decompress(path.read_bytes())
        except EOFError:
            broken.append(path.name)
    [named] = truth(planted)["truncated"]
    assert len(broken) == 2 and all(name.startswith(f"{named}_") for name in broken)


def test_who_lacks_a_modality_is_told_and_nobody_lacks_both(planted):
    lacking = truth(planted)["lacking"]
    [without_t1w], [without_bold] = lacking["t1w"], lacking["bold"]
    assert without_t1w != without_bold
    assert [derived(planted, name, without_t1w).exists() for name in (T1W, BOLD)] == [False, True]
    assert [derived(planted, name, without_bold).exists() for name in (T1W, BOLD)] == [True, False]


def test_absence_and_background_do_not_tell_the_diagnosis():
    people = pd.DataFrame([vars(p) for p in simulation.design(settings())])
    for column in ("sex", "site", "lacks"):
        counts = pd.crosstab(people[column], people["diagnosis"])
        assert (counts["control"] == counts["patient"]).all(), column
    ages = people.groupby("diagnosis")["age"].mean()
    assert abs(ages["control"] - ages["patient"]) < 3


def test_atrophy_darkens_the_mask_of_patients_alone(planted, null):
    lacking = truth(planted)["lacking"]["t1w"]
    change = {
        d: [brightness(planted, p) - brightness(null, p) for p in group(null, d) if p not in lacking]
        for d in simulation.ORDERS
    }
    assert np.allclose(change["control"], 0)
    assert np.mean(change["patient"]) < -0.1


def test_without_effect_the_groups_have_equal_means(null):
    means = {d: np.array([brightness(null, p) for p in group(null, d)]) for d in simulation.ORDERS}
    error = np.sqrt(sum(m.var(ddof=1) / len(m) for m in means.values()))
    assert abs(means["control"].mean() - means["patient"].mean()) < 3 * error


def test_motion_parameters_remove_the_artefact(null, tmp_path):
    asked = {**SMALL, "effect": 0, "confounding": 3, "truncated": False, "modalities": ["bold"]}
    shaken = simulate(tmp_path / "shaken", **asked)
    for person in group(null, "control"):
        assert np.array_equal(volume(null, BOLD, person), volume(shaken, BOLD, person))
    person = group(null, "patient")[0]
    artefact = volume(shaken, BOLD, person) - volume(null, BOLD, person)
    artefact = artefact[np.ptp(artefact, axis=3) > 0].T
    motion = table(derived(shaken, CONFOUNDS, person))[MOTION].to_numpy()
    columns = np.column_stack([np.ones(len(motion)), motion])
    left = artefact - columns @ np.linalg.lstsq(columns, artefact, rcond=None)[0]
    assert artefact.std() > 5
    assert left.std() < 0.6  # two images rounded to whole numbers differ by this much


def test_confounding_makes_patients_move_more(tmp_path):
    moved = {}
    for confounding in (0.0, 1.0):
        chosen = settings(confounding=confounding)
        moved[confounding] = {d: [] for d in simulation.ORDERS}
        for person in simulation.design(chosen):
            motion = simulation._motion(person.rng(chosen, simulation.MOTION), chosen, person)
            step = np.abs(np.diff(motion, axis=0)) @ simulation.ARC_MM
            moved[confounding][person.diagnosis].append(np.log(step.mean()))
    ratio = {c: np.exp(np.mean(m["patient"]) - np.mean(m["control"])) for c, m in moved.items()}
    assert 0.75 < ratio[0.0] < 1.33
    assert ratio[1.0] == pytest.approx(2 * ratio[0.0])


def test_nilearn_finds_the_confounds(planted):
    from nilearn.interfaces.fmriprep import load_confounds

    [person] = truth(planted)["truncated"]
    strategy = {"motion": "full", "wm_csf": "full", "global_signal": "full"}
    bold = str(derived(planted, BOLD, person))
    found, _ = load_confounds(bold, strategy=("high_pass", *strategy), **strategy)
    assert len(found) == SMALL["n_volumes"] and {*MOTION, "csf_power2", "cosine00"} <= set(found)
    shown = table(derived(planted, CONFOUNDS, person))["framewise_displacement"]
    assert np.isnan(shown[0]) and (shown[1:] > 0).all()


def test_states_are_visited_equally_often_in_both_groups():
    rng, share = np.random.default_rng(0), {}
    for diagnosis, order in simulation.ORDERS.items():
        drawn = [simulation.state_sequence(rng, settings(), diagnosis) for _ in range(200)]
        assert {name for name, _ in drawn} == {order}
        counts = Counter("".join(sequence for _, sequence in drawn))
        share[diagnosis] = np.array([counts[s] for s in "ABC"]) / sum(counts.values())
    assert np.allclose([share["control"], share["patient"]], 1 / 3, atol=0.01)


def test_order_of_states_is_a_coin_toss_without_effect():
    rng = np.random.default_rng(1)
    for diagnosis in simulation.ORDERS:
        drawn = [simulation.state_sequence(rng, settings(effect=0.0), diagnosis)[0] for _ in range(400)]
        assert abs(drawn.count("ABC") - 200) < 50


def test_one_order_of_states_is_the_other_backwards(planted):
    states = table(planted / "sourcedata" / "truth" / "states.tsv")
    assert set(states["state_order"]) == {"ABC", "ACB"}
    for row in states.itertuples():
        visits = "".join(s for s, before in zip(row.states, " " + row.states, strict=False) if s != before)
        cycle = row.state_order * len(visits)
        assert visits in cycle and visits[::-1] not in cycle


def test_truth_names_regions_of_the_atlas_and_no_region_twice(planted):
    regions, edges = (table(planted / f"sourcedata/truth/{name}.tsv") for name in ("regions", "edges"))
    assert len(regions) == 120 and regions["network"].nunique() == 8
    assert set(edges["region_a"]) | set(edges["region_b"]) == set(regions["name"][regions["in_edges"] == 1])
    assert Counter(edges["change"]) == {1: 36, -1: 36}
    assert not (regions["in_edges"] & regions["in_states"]).any() and regions["in_states"].sum() == 18


def test_every_region_of_a_planted_effect_exists_on_the_grid():
    names = [group for groups in (simulation.EDGE_SETS, simulation.STATES) for group in groups.values()]
    for named in [*names, simulation.ATROPHY]:
        rows = simulation._rows(named)
        assert len(rows) == 2 * len(named)
        assert np.isin(rows + 1, simulation.anatomy(simulation.BOLD_MM).regions).all()


def test_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(OutputError, match="already holds something"):
        simulate(tmp_path, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"n_participants": 3}, "too few"), ({"n_volumes": 5}, "too few"), ({"modalities": ["meg"]}, "meg"),
     ({"modalities": []}, "unknown modalities"), ({"n_runs": 0}, "too few"), ({"n_lacking": 3}, "cannot lack")],
)  # fmt: skip
def test_impossible_request_is_refused(tmp_path, changed, message):
    with pytest.raises(UsageError, match=message):
        simulate(tmp_path / "out", **{**SMALL, **changed})
    assert not (tmp_path / "out").exists()


def test_command_line_explains_a_refusal_in_one_line(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep me")
    assert simulation.main([str(tmp_path)]) == OutputError.exit_code
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    """Raw T1w, diffusion, PET and genotypes."""
    asked = {**SMALL, "n_participants": 4, "modalities": ["t1w", "dwi", "pet", "snp"]}
    return simulate(tmp_path_factory.mktemp("more"), **asked)


def test_further_modalities_are_valid_bids(more, tmp_path):
    test_raw_and_derivative_are_valid_bids(more, tmp_path, ".")
    assert truth(more)["truncated"] == [] and not any(truth(more)["lacking"].values())


def designed(person):
    """The participant as `more` has it."""
    chosen = settings(random_seed=SMALL["random_seed"], n_participants=4, n_lacking=0, truncated=False)
    return chosen, next(p for p in simulation.design(chosen) if p.participant_id == person)


def planted_in(out, person):
    return table(out / "sourcedata" / "truth" / "participants.tsv").set_index("participant_id").loc[person]


@pytest.mark.parametrize("diagnosis", simulation.ORDERS)
def test_diffusion_has_the_planted_tensor_in_the_tract_and_beside_it(more, diagnosis):
    person = group(more, diagnosis)[0]
    path = more / person / "dwi" / f"{person}_dwi.nii.gz"
    related = {end: path.with_name(f"{person}_dwi.{end}") for end in ("bval", "bvec")}
    data = dwi.load(Scan(path, entities(path), more, prepared=False, related=related))
    _, at = simulation.dwi_points(*designed(person))
    white = simulation.anatomy(4).white > 0.5
    tract, white = (
        ndimage.map_coordinates(m.astype(float), at, order=1) > 0.5 for m in (simulation.tract_mask(), white)
    )
    maps, row = dwi.tensor_maps(data, data.b0 > 100), planted_in(more, person)
    assert (row["fa_tract"] < row["fa_white"]) == (diagnosis == "patient")
    assert tract.sum() > 30
    assert np.median(maps["fa"][tract]) == pytest.approx(row["fa_tract"], rel=0.05)
    assert np.median(maps["md"][tract]) == pytest.approx(row["md_tract"], rel=0.05)
    assert np.median(maps["fa"][white & ~tract]) == pytest.approx(row["fa_white"], rel=0.05)


def test_fibres_turn_with_the_head(more):
    person = group(more, "control")[1]
    path = more / person / "dwi" / f"{person}_dwi.nii.gz"
    related = {end: path.with_name(f"{person}_dwi.{end}") for end in ("bval", "bvec")}
    data = dwi.load(Scan(path, entities(path), more, prepared=False, related=related))
    assert np.allclose(data.directions, simulation.gradients()[1], atol=1e-5)
    linear, at = simulation.dwi_points(*designed(person))
    there = np.stack([ndimage.map_coordinates(c, at, order=0) for c in simulation.fibres()], axis=-1)
    expected = there @ np.linalg.inv(linear).T
    expected /= np.maximum(np.linalg.norm(expected, axis=-1, keepdims=True), 1e-9)
    deep = ndimage.map_coordinates((simulation.anatomy(4).white > 0.5).astype(float), at, order=1) > 0.9
    agreement = np.abs((dwi.tensor_maps(data, data.b0 > 100)["evec"] * expected).sum(axis=-1))[deep]
    assert np.median(agreement) > np.cos(np.radians(5))


def test_uptake_over_the_cerebellum_is_what_was_planted_at_any_dose(more):
    regions = simulation.anatomy(4).regions
    target = np.isin(regions, simulation._rows(simulation.UPTAKE) + 1)
    names = simulation.region_table()["name"].str.startswith("Cerebelum")
    reference = np.isin(regions, np.flatnonzero(names) + 1)
    doses = []
    for person in group(more, "patient") + group(more, "control"):
        chosen, designed_person = designed(person)
        *_, points = simulation._head(designed_person.rng(chosen, simulation.T1W), chosen, designed_person)
        image = nib.load(more / person / "pet" / f"{person}_pet.nii.gz").get_fdata()
        means = [
            image[ndimage.map_coordinates(ndimage.binary_erosion(m).astype(float), points, order=1) > 0.9].mean()
            for m in (target, reference)
        ]
        row = planted_in(more, person)
        assert means[0] / means[1] == pytest.approx(simulation.SUVR[0] + row["suvr_gain"], rel=0.05)
        assert means[1] == pytest.approx(row["dose"], rel=0.05)
        doses.append(row["dose"])
    assert max(doses) > 1.2 * min(doses)


def test_plink_files_hold_the_counts_that_were_written(tmp_path):
    from bed_reader import open_bed

    counts = np.random.default_rng(0).integers(0, 3, (7, 9))
    simulation.write_plink(tmp_path / "few", counts, [f"sub-{k}" for k in range(7)], [f"rs{k}" for k in range(9)])
    with open_bed(tmp_path / "few.bed") as bed:
        assert np.array_equal(bed.read(), counts)
        assert bed.iid.tolist() == [f"sub-{k}" for k in range(7)] and bed.sid[8] == "rs8"


def test_patients_have_the_causal_alleles_more_often(tmp_path):
    from bed_reader import open_bed

    out = simulate(tmp_path / "out", n_participants=200, modalities=["snp"], effect=1)
    variants = table(out / "sourcedata" / "truth" / "variants.tsv")
    with open_bed(out / "genetics" / "simulated.bed") as bed:
        counts = bed.read()
    patient = (table(out / "participants.tsv")["diagnosis"] == "patient").to_numpy()
    more_often = counts[patient].mean(axis=0) / 2 - counts[~patient].mean(axis=0) / 2
    causal = variants["causal"].to_numpy() == 1
    assert causal.sum() == simulation.N_CAUSAL
    assert more_often[causal].mean() == pytest.approx(simulation.ALLELE_GAIN, abs=0.05)
    assert abs(more_often[~causal].mean()) < 0.02


def test_sessions_and_runs_have_their_entities_and_their_own_signals(tmp_path):
    asked = {"n_participants": 4, "n_volumes": 20, "truncated": True, "n_lacking": 0}
    once, often = simulate(tmp_path / "once", **asked), simulate(tmp_path / "often", **asked, n_sessions=2, n_runs=2)
    test_raw_and_derivative_are_valid_bids(often, tmp_path, ".")
    test_raw_and_derivative_are_valid_bids(often, tmp_path, "derivatives/fmriprep")
    names = sorted(p.name for p in (often / "sub-02").rglob("*.nii.gz"))
    assert names == [
        f"sub-02_ses-{s}_{end}.nii.gz" for s in "12" for end in ("T1w", "task-rest_run-1_bold", "task-rest_run-2_bold")
    ]
    [cut] = truth(often)["truncated"]
    person = next(p for p in ("sub-01", "sub-02") if p != cut)
    runs = [
        nib.load(often / person / "ses-1" / "func" / f"{person}_ses-1_task-rest_run-{r}_bold.nii.gz").get_fdata()
        for r in (1, 2)
    ]
    first = nib.load(once / person / "func" / f"{person}_task-rest_bold.nii.gz").get_fdata()
    assert np.array_equal(first, runs[0]) and not np.array_equal(*runs)
    states = table(often / "sourcedata" / "truth" / "states.tsv")
    assert states.groupby("participant_id").size().eq(4).all() and {"session", "run"} <= set(states)
