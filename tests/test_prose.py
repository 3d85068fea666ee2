"""Verdicts say what speaks against a result; the methods text cites what it names."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bids_dl import prose, zoo

MODELS = {
    "dummy": ("dummy", "confounds", "baseline"),
    "confounds_only": ("confounds_only", "confounds", "baseline"),
    "connectivity_linear": ("linear", "connectivity", "baseline"),
    "connectivity_mlp": ("mlp", "connectivity", "network"),
    "postfusion": ("postfusion", "connectivity, t1w", "fusion"),
}
ROLES = {i: {"id": i, "model": m, "feature": f, "role": r} for i, (m, f, r) in MODELS.items()}


def scores(*rows: tuple[str, float, float, float]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["model", "value", "ci_low", "ci_high"])
    return table.assign(metric="auc", p_value=0.01, p_value_retrained=np.nan, n=100, chance=0.5)


def test_interval_that_covers_chance_is_said():
    said, tone = prose.verdict_of_target(
        scores(("connectivity_mlp", 0.53, 0.47, 0.59)), ROLES, "auc", "connectivity_mlp"
    )
    assert "covers chance" in " ".join(said)
    assert tone == "caution"


def test_network_no_better_than_linear_or_confounds_is_said():
    table = scores(
        ("connectivity_mlp", 0.7, 0.65, 0.75),
        ("connectivity_linear", 0.72, 0.67, 0.77),
        ("confounds_only", 0.68, 0.6, 0.7),
    )
    said, tone = prose.verdict_of_target(table, ROLES, "auc", "connectivity_mlp")
    assert "A linear model reaches 0.72 (connectivity_linear): connectivity_mlp is not better." in said
    assert (
        "The confounds alone reach 0.68 (confounds_only): connectivity_mlp is better, but not beyond its interval."
        in said
    )
    assert tone == "caution"


def test_clear_result_gets_no_caution():
    table = scores(
        ("connectivity_mlp", 0.8, 0.75, 0.85),
        ("connectivity_linear", 0.7, 0.65, 0.75),
        ("confounds_only", 0.55, 0.5, 0.6),
    )
    said, tone = prose.verdict_of_target(table, ROLES, "auc", "connectivity_mlp")
    assert tone == ""
    assert (
        said[0]
        == "Best: connectivity_mlp, AUC 0.80 [0.75, 0.85], p = 0.01 in 100 held-out participants; chance is 0.50."
    )


def resembling(auc: float, *, high: float = 0.6, nearness: float = 1.0) -> str:
    rows = [("x", kind, "all", a, high, r) for kind, a, r in (("synthetic", auc, nearness), ("train", 0.52, np.nan))]
    columns = ["feature", "rows", "level", "auc", "chance_high", "nearness"]
    return prose.said_resemblance(pd.DataFrame(rows, columns=columns))[0]


def test_what_is_told_of_synthetic_participants_follows_the_numbers():
    assert "AUC of 0.50 on average, beyond chance in 0 of 1 splits; real training participants with 0.52" in resembling(
        0.5
    )
    assert "beyond chance in 1 of 1 splits" in resembling(0.9)
    assert "they are no copies" in resembling(0.5)
    assert "0.10 times as far" in resembling(0.5, nearness=0.1)
    assert "some nearly are copies" in resembling(0.5, nearness=0.1)
    assert "too few participants" in resembling(np.nan)


ZOOS = ("models", "harmonizers", "fusions", "explainers")
PAPERS = [(folder, name) for folder in ZOOS for name in zoo.names(folder) if "[1]_" in zoo.summary(folder, name)]


@pytest.mark.parametrize(("folder", "name"), PAPERS)
def test_papers_that_a_summary_marks_are_read_from_the_file(folder, name):
    found = prose.of_method(folder, name)
    assert len(found) == zoo.summary(folder, name).count("]_")
    for paper in found:
        assert paper.url.startswith(("https://doi.org/10.", "https://arxiv.org/abs/")), paper
        assert paper.authors[0].isupper()
        assert paper.venue


def test_a_paper_has_one_line_in_all_files():
    found = {r for folder, name in PAPERS for r in prose.of_method(folder, name)} | set(prose.references().values())
    links = [r.link for r in found if r.link]
    assert sorted(set(links)) == sorted(links)


def test_text_cites_what_a_method_marks_and_nobody_twice():
    text = [
        "Trained [@pytorch]: x_gcn (Build it [@models.gcn]); x_gat (Build it [@models.gat]); own (Build [@models.own])."
    ]
    assert prose.readable(text) == [
        "Trained (Paszke et al., 2019): x_gcn (Build it [Kipf and Welling, 2017; Cui et al., 2022]); "
        "x_gat (Build it [Veličković et al., 2018; Cui et al., 2022]); own (Build)."
    ]
    listed = [f"{r.plain()} {r.url}" for r in prose.cited_in(text)]
    assert listed[:2] == [
        "Cui et al. (2022). IEEE Transactions on Medical Imaging 42(2). https://doi.org/10.1109/TMI.2022.3218745",
        "Kipf; Welling (2017). ICLR. https://arxiv.org/abs/1609.02907",
    ]
    assert len(listed) == 4
    assert [r.key for r in prose.cited_in(text)][3] == "Velickovic2018"
    assert "author = {Kipf and Welling}" in prose.cited_in(text)[1].bibtex()
    assert "title" not in prose.cited_in(text)[1].bibtex()


def test_what_latex_would_stumble_over_is_escaped():
    made = prose.of_method("models", "boosting")[1].bibtex()
    assert r"journal = {Computational Statistics \& Data Analysis 38(4)}" in made
    assert "doi = {10.1016/S0167-9473(01)00065-2}" in made


def test_papers_of_one_author_and_year_are_told_apart():
    text = ["Of ICA [@atlas-ica], in the tangent space [@models.tangent_linear]."]
    keys = [r.key for r in prose.cited_in(text)]
    assert keys == ["Dadi2019", "Varoquaux2010a", "Varoquaux2010b"]
    assert prose.readable(text)[0].startswith(
        "Of ICA (Varoquaux et al., 2010b), in the tangent space (Varoquaux et al., 2010a;"
    )


def test_a_paper_of_the_table_keeps_its_title():
    assert prose.of_method("fusions", "postfusion")[0].title.startswith("Deep learning in neuroimaging")


def test_a_flag_makes_a_participants_verdict_cautious():
    features = [{"feature": "t1w", "prepared": True}]
    assert prose.verdict_of_participant(features, [])[1] == ""
    said, tone = prose.verdict_of_participant(features, [], 2)
    assert said.endswith("2 measures of quality are flagged.")
    assert tone == "caution"


def test_rules_of_quality_are_told_only_where_they_were_set():
    assert prose._said_quality({"quality": {"max_mean_fd_mm": 0.0, "exclude_flagged": False}}) == ""
    said = prose._said_quality({"quality": {"max_mean_fd_mm": 0.3, "exclude_flagged": True}})
    assert "exceeded 0.3 mm, or a measure of quality" in said


def entry(feature: str, path: str, **more: object) -> dict:
    return {"feature": feature, "path": path, "who": "sub-1", "source": "sub-1_eeg.edf", "prepared": False, **more}


@pytest.mark.parametrize(("device", "band"), [("eeg", "Alpha"), ("meg", "LowGamma")])
def test_the_rhythms_of_sensors_are_never_called_regional(device, band):
    series = entry("timeseries", f"sub-1/{device}/sub-1_atlas-{device}{band}_stat-mean_timeseries.tsv")
    edges = entry("connectivity", f"sub-1/{device}/sub-1_atlas-{device}{band}_relmat.tsv", source="x_timeseries.tsv")
    name = f"{device.upper()} {band[0].lower()}{band[1:]} amplitudes"
    assert prose.title_of(series) == name
    assert prose.title_of(edges) == f"connectivity of {name}"
    for one in (series, edges):
        said = prose._said_feature(Path("/out"), [one])
        assert name in said
        assert "region" not in said.lower()
        assert "atlas" not in said


def test_a_table_of_sensors_from_elsewhere_is_not_said_to_be_amplitudes():
    taken = entry("timeseries", "sub-1/eeg/sub-1_atlas-1020_timeseries.tsv", prepared=True)
    assert prose.title_of(taken) == "EEG time series"
    assert "MNE" not in prose._said_feature(Path("/out"), [taken])


def cited(feature: dict) -> list[str]:
    return [r.link for r in prose.cited_in([prose._said_feature(Path("/out"), [feature])])]


def test_mne_and_mne_bids_are_cited_where_they_read_a_recording():
    links = cited(entry("timeseries", "sub-1/eeg/sub-1_atlas-eegAlpha_timeseries.tsv"))
    assert links == ["doi:10.21105/joss.01896", "doi:10.3389/fnins.2013.00267"]
    assert cited(entry("timeseries", "sub-1/func/sub-1_atlas-AAL_timeseries.tsv")) == ["doi:10.1006/nimg.2001.0978"]


@pytest.mark.parametrize("feature", ["dual_regression", "network_maps", "dynamic_network_maps"])
def test_networks_of_group_ica_and_their_regression_are_cited(feature):
    taken = entry(feature, "sub-1/func/sub-1_task-rest_atlas-ICA20_stat-dualregression_boldmap.nii.gz")
    assert cited(taken) == ["doi:10.3389/fnins.2017.00115", "doi:10.1016/j.neuroimage.2010.02.010"]
    said = prose.readable([prose._said_feature(Path("/out"), [taken])])[0]
    assert "of the networks ICA20 (Varoquaux et al., 2010)" in said
    assert "region" not in said
    assert prose.title_of(taken).startswith("network")


def test_a_connectome_of_networks_is_said_to_come_from_their_courses():
    edges = entry("connectivity", "sub-1/func/sub-1_atlas-ICA20_relmat.tsv", source="x_timeseries.tsv",
                  why="from the feature dual_regression")  # fmt: skip
    said = prose._said_feature(Path("/out"), [edges])
    assert "of the networks ICA20" in said
    assert "computed from the courses of the networks" in said


def test_what_was_computed_here_is_not_said_to_be_taken_from_derivatives():
    moving = entry(
        "dynamic_connectivity", "sub-1/func/sub-1_atlas-AAL_edges.npy", source="x_timeseries.tsv", prepared=True
    )
    said = prose._said_feature(Path("/out"), [moving])
    assert said.startswith("Connectivity matrices in sliding windows in the regions of the AAL atlas")
    assert said.endswith("were computed from the regional time series.")
    assert prose._origin(moving) == "computed here from the time series"
    means = entry("regional", "sub-1/func/sub-1_atlas-AAL_stat-alff_regional.tsv", why="from the feature alff", prepared=True,
                  source="x_alff.nii.gz")  # fmt: skip
    assert prose._said_feature(Path("/out"), [means]).endswith("were computed from the feature alff.")


def test_the_rule_of_flags_tells_its_limits():
    said = prose._said_quality({"quality": {"exclude_flagged": True}})
    assert "3.5 robust standard deviations" in said
    assert "fewer than 20 degrees of freedom" in said


def test_each_rule_that_was_set_tells_how_many_it_left_out():
    given = {"quality": {"max_mean_fd_mm": 0.3, "min_mask_dice": 0.0, "exclude_flagged": True}}
    reasons = {"sub-1": "x (quality.max_mean_fd_mm = 0.3); y (quality.exclude_flagged)", "sub-2": "no value of age"}
    assert prose.said_rules(given, {**reasons, "sub-3": "z (quality.max_mean_fd_mm = 0.3)"}) == [
        "quality.max_mean_fd_mm = 0.3 left out 2 participants.",
        "quality.exclude_flagged = true left out 1 participant.",
    ]
    assert prose.said_rules(given, {})[0] == "quality.max_mean_fd_mm = 0.3 left out nobody."
    assert "No rule of quality was set" in prose.said_rules({"quality": {"exclude_flagged": False}}, reasons)[0]


def test_flags_are_counted_by_scan_and_by_participant():
    table = pd.DataFrame({"participant_id": ["sub-1", "sub-1", "sub-2"], "flags": ["tsnr", "cnr", None]})
    assert prose.said_flags(table) == "3 scans of 2 participants were measured; 2 scans of 1 participant are flagged."
    assert prose.said_flags(table[1:]).endswith("1 scan of 1 participant is flagged.")
    assert prose.said_flags(table.assign(flags=None)).endswith("none is flagged.")


def test_methods_of_decoding_tell_what_a_prediction_sees_and_what_stays_together():
    chosen = {"targets": [{"name": "events", "kind": "classification", "n": 90, "rows": "volumes of 3 participants",
                           "counts": {"face": 45, "house": 45}}],
              "splits": {"kind": "kfold", "n_folds": 3, "groups": "family_or_participant"}}  # fmt: skip
    causal = {"context": 6, "stride": 2, "delay_s": 5.0, "causal": True, "baseline_s": 20.0, "rest": ""}
    said = prose._said_targets(chosen, {"targets": {"names": ["events"]}, "decoding": causal})
    assert "from 6 volumes that ended with it; an event counted 5 s late" in said
    assert "by the volumes up to each one, of which the first 20 s were not predicted. One volume in 2" in said
    assert "Volumes with none or more than one condition were left out" in said
    assert "all volumes of a participant, and of participants of one family" in said
    assert "family_or_participant" not in said
    later = prose._said_targets(
        chosen, {"targets": {"names": ["events"]}, "decoding": {**causal, "causal": False, "rest": "rest"}}
    )
    assert "around it" in later
    assert "standardised over the whole run" in later
    assert "the class 'rest'; those with more than one condition" in later
