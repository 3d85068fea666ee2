"""Reports: made from files alone, complete in themselves, honest, and whole even where files are missing."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bids_dl import charts, derivatives, outputs, query, report, written

MODELS = {
    "dummy": ("dummy", "confounds", "baseline"),
    "confounds_only": ("confounds_only", "confounds", "baseline"),
    "connectivity_linear": ("linear", "connectivity", "baseline"),
    "connectivity_mlp": ("mlp", "connectivity", "network"),
    "postfusion": ("postfusion", "connectivity, t1w", "fusion"),
}
SKILL = {"dummy": 0.0, "confounds_only": 0.25, "connectivity_linear": 0.8, "connectivity_mlp": 0.9, "postfusion": 1.1}
VALUES = {
    "dummy": 0.5,
    "confounds_only": 0.57,
    "connectivity_linear": 0.701,
    "connectivity_mlp": 0.722,
    "postfusion": 0.743,
}
HALF_WIDTH = 0.05


def make_participant(out: Path, *, n_regions: int = 30, n_volumes: int = 40) -> str:
    """One participant with a series, a connectome, a brain, a prediction and a problem."""
    rng = np.random.default_rng(0)
    stem = "sub-01/func/sub-01_task-rest_space-MNI152NLin6Asym_atlas-aal_stat-"
    series = rng.standard_normal((n_volumes, n_regions)) + rng.standard_normal((n_volumes, 1))
    series[:, 3] = np.nan
    labels = [f"region{i}" for i in range(n_regions)]
    derivatives.write_matrix(out / f"{stem}mean_timeseries.tsv", series, labels)
    derivatives.write_json(out / f"{stem}mean_timeseries.json", {"RepetitionTime": 2.0})
    derivatives.write_matrix(out / f"{stem}coverage_bold.tsv", rng.uniform(0.4, 1, (1, n_regions)), labels)
    with np.errstate(invalid="ignore"):
        edges = np.corrcoef(series.T)
    derivatives.write_matrix(out / f"{stem}pearsoncorrelation_relmat.tsv", edges, labels)
    derivatives.write_json(
        out / f"{stem}pearsoncorrelation_relmat.json", {"RelationshipMeasure": "Pearson correlation, Fisher z"}
    )
    brain = np.zeros((20, 24, 20), np.float32)
    brain[4:16, 4:20, 4:16] = rng.standard_normal((12, 16, 12))
    affine = np.diag([4.0, 4, 4, 1])
    derivatives.write_image(out / "sub-01/anat/sub-01_desc-brain_T1w.nii.gz", brain, affine)
    derivatives.write_json(out / "sub-01/anat/sub-01_desc-brain_T1w.json", {"Description": "raw scan, NOT registered"})
    features = [
        {"feature": "timeseries", "path": f"{stem}mean_timeseries.tsv", "source": "/data/sub-01_bold.nii.gz", "prepared": True,
         "shape": list(series.shape), "unit": "arbitrary", "n_missing": 1, "mean_fd": 0.123},
        {"feature": "connectivity", "path": f"{stem}pearsoncorrelation_relmat.tsv", "source": f"{out}/{stem}mean_timeseries.tsv",
         "prepared": True, "shape": list(edges.shape), "unit": "none", "n_missing": 1},
        {"feature": "t1w", "path": "sub-01/anat/sub-01_desc-brain_T1w.nii.gz", "source": "/data/sub-01_T1w.nii.gz", "prepared": False,
         "shape": list(brain.shape), "unit": "standard deviation", "n_missing": 0},
    ]  # fmt: skip
    record = {
        "participant_id": "sub-01", "features": features,
        "problems": [{"scan": "sub-01_run-2_bold", "feature": "timeseries", "reason": "only <b>3</b> volumes remain."}],
        "predictions": [{"bundle": "autism", "row": {"y_score": 0.81, "prediction": "autism", "excluded": None}},
                        {"bundle": "age", "row": {"y_score": None, "prediction": None, "excluded": "no T1w on this grid"}}],
    }  # fmt: skip
    derivatives.write_json(out / "logs" / "participants" / "sub-01.json", record)
    return "sub-01"


def make_group(out: Path, *, n: int = 60, n_regions: int = 12, n_splits: int = 5) -> None:
    """The output of a group level: a classification and a regression target, five models, four sites."""
    rng = np.random.default_rng(1)
    people = pd.DataFrame({
        "participant_id": [f"sub-{i:04d}" for i in range(n)], "diagnosis": np.where(rng.random(n) < 0.5, "autism", "control"),
        "age": rng.uniform(8, 40, n).round(1), "site": rng.choice(["NYU", "UCLA", "KKI", "LEUVEN"], n),
        "feature:connectivity": 1, "feature:t1w": (rng.random(n) < 0.8).astype(int),
    })  # fmt: skip
    group = out / "group"
    derivatives.write_table(group / "participants.tsv", people)
    excluded = [
        (f"sub-9{i:03d}", t, f"sub-9{i:03d}: <i>no</i> value of {t}") for i in range(9) for t in ("diagnosis", "age")
    ]
    derivatives.write_table(
        group / "excluded.tsv", pd.DataFrame(excluded, columns=["participant_id", "target", "reason"])
    )
    derivatives.write_json(group / "choices.json", _choices(people, n_splits))
    fold = rng.integers(0, n_splits, n)
    for name in ("diagnosis", "age"):
        parts = {"participant_id": people["participant_id"]}
        for k in range(n_splits):
            parts[f"repeat-1_fold-{k + 1}"] = np.where(
                fold == k, "test", np.where(rng.random(n) < 0.2, "validation", "train")
            )
        derivatives.write_table(group / "splits" / f"target-{name}_splits.tsv", pd.DataFrame(parts))
        for model in MODELS:
            _results(group, people, name, model, fold, rng)
        _scores(group, people, name, rng)
    _explained(group, n_regions, rng)
    (group / "bundles" / "target-diagnosis_model-connectivity_mlp").mkdir(parents=True)
    derivatives.write_text(
        out / "logs" / "bids_dl_group.toml", "[metrics]\nn_bootstraps = 2000\nn_permutations = 2000\n"
    )
    derivatives.write_json(out / "logs" / "validation.json", {"error": {"SIDECAR_KEY_REQUIRED": 4}, "warning": {}})
    problem = {"participant_id": "sub-9001", "scan": "sub-9001_T1w", "feature": "t1w", "reason": "the file is cut off."}
    derivatives.write_table(out / "logs" / "problems.tsv", pd.DataFrame([problem]))
    description = {
        "GeneratedBy": [{"Name": "bids_dl", "Version": "0.1.0"}],
        "SourceDatasets": [{"URL": "file:///data/abide"}],
    }
    derivatives.write_json(out / "dataset_description.json", description)


def _choices(people: pd.DataFrame, n_splits: int) -> dict[str, object]:
    counts = {k: int(v) for k, v in people["diagnosis"].value_counts().sort_index().items()}
    age = people["age"]
    return {
        "targets": [
            {"name": "diagnosis", "kind": "classification", "levels": ["control", "autism"], "positive": "autism", "counts": counts,
             "n": len(people), "why": "It is the only column with two levels."},
            {"name": "age", "kind": "regression", "levels": [], "positive": None, "n": len(people), "why": "Asked for.",
             "counts": {"mean": age.mean(), "sd": age.std(), "min": age.min(), "max": age.max()}},
        ],
        "covariates": ["sex", "site"],
        "features": [
            {"name": "connectivity", "kind": "connectivity", "files": len(people), "shape": [12, 12], "dims": ["roi", "roi"],
             "n_participants": len(people), "space": "MNI152NLin6Asym", "atlas": "CC400"},
            {"name": "t1w", "kind": "t1w", "files": 45, "shape": [45, 54, 45], "dims": ["x", "y", "z"],
             "n_participants": int(people["feature:t1w"].sum()), "space": "MNI152NLin2009cAsym", "atlas": None},
        ],
        "models": [{"id": i, "model": m, "feature": f, "role": r, "summary": f"Summary of {m} [1]_."} for i, (m, f, r) in MODELS.items()],
        "splits": {"kind": "kfold", "n_folds": n_splits, "n_repeats": 1, "groups": "family", "site": "site", "n_splits": n_splits},
        "notes": ["handedness was left out: 40 % are <missing>."],
        "seconds": {"cohort": 3.2, "training": 211.0, "explanations": 40.1},
    }  # fmt: skip


def _results(
    group: Path, people: pd.DataFrame, name: str, model: str, fold: np.ndarray, rng: np.random.Generator
) -> None:
    """Predictions and histories."""
    n = len(people)
    truth = people[name]
    if name == "diagnosis":
        latent = SKILL[model] * ((truth == "autism") - 0.5) + rng.standard_normal(n)
        score = 1 / (1 + np.exp(-1.2 * latent)) if model != "dummy" else np.full(n, 0.5)
    else:
        score = truth.mean() + 0.4 * SKILL[model] * (truth - truth.mean()) + 3 * SKILL[model] * rng.standard_normal(n)
    splits = [f"repeat-1_fold-{k + 1}" for k in fold]
    table = pd.DataFrame(
        {"participant_id": people["participant_id"], "split": splits, "y_true": truth, "y_score": score}
    )
    derivatives.write_table(group / "predictions" / f"target-{name}_model-{model}_predictions.tsv", table)
    steps = range(1 if MODELS[model][2] == "baseline" else 30)
    history = pd.DataFrame([
        {"split": f"repeat-1_fold-{k + 1}", "member": m, "epoch": e,
         "train_loss": np.nan if len(steps) == 1 else 0.7 * np.exp(-e / 12) + 0.02 * rng.random(),
         "validation_loss": np.nan if len(steps) == 1 else 0.55 + 0.2 * np.exp(-e / 5) + 0.004 * e + 0.03 * rng.random()}
        for k in range(3) for m in range(2) for e in steps
    ])  # fmt: skip
    derivatives.write_table(group / "histories" / f"target-{name}_model-{model}_history.tsv", history)


def _scores(group: Path, people: pd.DataFrame, name: str, rng: np.random.Generator) -> None:
    """Metrics with intervals, and scores at each site."""
    metrics = ["auc", "balanced_accuracy", "f1", "brier", "accuracy"] if name == "diagnosis" else ["mae", "r2", "r"]
    rows, sites = [], []
    for model, value in VALUES.items():
        for metric in metrics:
            v = {"mae": 9 - 4 * value, "r2": (value - 0.55), "r": 2 * (value - 0.5)}.get(metric, value)
            chance = {"mae": 7.0, "r2": 0.0, "r": 0.0}.get(metric, 0.5)
            rows.append(
                (
                    model,
                    metric,
                    v,
                    v - HALF_WIDTH,
                    v + HALF_WIDTH,
                    0.0005 if value > 0.6 else 0.21,
                    np.nan,
                    len(people),
                    chance,
                )
            )
            sites += [
                (model, s, metric, v + 0.05 * rng.standard_normal(), k)
                for s, k in people["site"].value_counts().items()
            ]
    columns = ["model", "metric", "value", "ci_low", "ci_high", "p_value", "p_value_retrained", "n", "chance"]
    scored = pd.DataFrame(rows, columns=columns)
    scored = scored.assign(folds_low=scored["ci_low"] - 0.031, folds_high=scored["ci_high"] + 0.031)
    derivatives.write_table(group / "metrics" / f"target-{name}_metrics.tsv", scored)
    table = pd.DataFrame(sites, columns=["model", "level", "metric", "value", "n"]).assign(column="site")
    derivatives.write_table(group / "metrics" / f"target-{name}_subgroups.tsv", table)
    compared = {
        "model": "connectivity_mlp", "other": "confounds_only", "metric": metric, "difference": 0.12, "ci_low": 0.02,
        "ci_high": 0.22, "t": 3.1, "dof": 4, "p_value": 0.03, "p_holm": 0.06, "n_folds": 5,
    }  # fmt: skip
    derivatives.write_table(group / "metrics" / f"target-{name}_comparisons.tsv", pd.DataFrame([compared]))
    sure = [("connectivity_mlp", m, v, 0.9, 40) for m, v in (("ece_before", 0.11), ("ece", 0.04), ("coverage", 0.91))]
    table = pd.DataFrame(sure, columns=["model", "metric", "value", "promised", "n"])
    derivatives.write_table(group / "metrics" / f"target-{name}_calibration.tsv", table)


def _explained(group: Path, n_regions: int, rng: np.random.Generator) -> None:
    """A map on the template's grid, and edges with their regions."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, k) for k in (45, 54, 45)), indexing="ij"))
    blobs = np.exp(-((grid - np.array([0.4, 0.1, 0]).reshape(3, 1, 1, 1)) ** 2).sum(0) / 0.05) - 0.6 * np.exp(
        -((grid - np.array([-0.4, -0.3, 0.2]).reshape(3, 1, 1, 1)) ** 2).sum(0) / 0.04
    )
    affine = np.array([[4.0, 0, 0, -90], [0, 4, 0, -126], [0, 0, 4, -72], [0, 0, 0, 1]])
    folder = group / "explanations"
    derivatives.write_image(
        folder / "target-diagnosis_model-postfusion_feature-t1w_desc-occlusion_statmap.nii.gz", blobs, affine
    )
    names = [f"{i:03d}_Frontal_Mid_{'LR'[i % 2]}" for i in range(n_regions)]
    a, b = np.triu_indices(n_regions, 1)
    weight = rng.standard_gamma(0.5, len(a))
    edges = pd.DataFrame({
        "region_a": np.array(names)[a], "region_b": np.array(names)[b], "share": weight / weight.sum(), "mean_abs": weight,
        "signed": weight * rng.choice([-1, 1], len(a)), "slope": weight * rng.choice([-1, 1], len(a)),
    })  # fmt: skip
    stem = "target-diagnosis_model-postfusion_feature-connectivity_desc-integrated_gradients"
    derivatives.write_table(folder / f"{stem}_edges.tsv", edges)
    share = rng.dirichlet(np.ones(n_regions) * 0.5)
    regions = pd.DataFrame({"region": names, "share": share, "mean_abs": share, "signed": share})
    derivatives.write_table(folder / f"{stem}_regions.tsv", regions)


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("out")
    return out, report.write_participant(out, make_participant(out)).read_text()


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("out")
    make_group(out)
    return out, _without_plotly(report.write_group(out).read_text())


def _without_plotly(page: str) -> str:
    return re.sub(r"<script>.{1000000,}?</script>", "", page, flags=re.DOTALL)


def _loaded(page: str) -> list[str]:
    """Whatever a page names, but papers that a reader may follow a link to."""
    links = re.findall(r'(<a )?(?:src|href)="([^"]*)"', page)
    return [link for anchor, link in links if not (anchor and link.startswith(PAPERS))]


PAPERS = ("https://doi.org/10.", "https://arxiv.org/abs/", "https://www.jstor.org/", "https://www.jmlr.org/")


def test_methods_page_links_each_paper_of_its_list(tmp_path):
    make_group(tmp_path, n=24, n_splits=3)
    report.write_methods(tmp_path, "group")
    page, text = ((tmp_path / "logs" / f"CITATION.{end}").read_text() for end in ("html", "md"))
    assert '<a href="https://doi.org/10.1038/nature14539">doi:10.1038/nature14539</a>' in page
    assert "connectivity_mlp (Summary of mlp [LeCun et al., 2015; Kim et al., 2016])" in page
    assert "[@LeCun2015; @Kim2016]" in text
    links = re.findall("https://\\S+", text.partition("# References")[2])
    assert len(links) == len(set(links))
    assert all(f'<a href="{link}">' in page for link in links)


def test_participant_page_shows_a_figure_of_each_feature(person):
    _, page = person
    assert page.count("data:image/png;base64,") == 2  # carpet and matrix
    assert page.count("data:image/jpeg;base64,") == 2  # two strips of slices
    assert "cannot be shown" not in page


def test_participant_page_names_the_problem_and_its_scan(person):
    _, page = person
    assert "sub-01_run-2_bold" in page
    assert "volumes remain" in page
    assert "not registered to the template" in page


def test_participant_page_states_motion_missing_regions_and_coverage(person):
    _, page = person
    assert "0.123 mm" in page
    assert "regions below half" in page
    assert "<dt>Regions missing</dt><dd>1</dd>" in page


def test_participant_page_shows_the_prediction_and_why_there_is_none(person):
    _, page = person
    assert "0.81" in page
    assert "no T1w on this grid" in page


def test_participant_page_names_an_ordered_level_among_all_and_draws_no_gauge():
    row = {"y_score": 0.8, "prediction": "mild", "levels": "none < mild < severe"}
    shown = report._prediction({"bundle": "severity", "row": row})
    assert shown["prediction"] == "mild of none < mild < severe"
    assert shown["gauges"] == []


def test_levels_that_are_numbers_are_counted_however_the_table_was_read(tmp_path):
    (tmp_path / "people.tsv").write_text("participant_id\tstage\nsub-1\t1\nsub-2\t0.5\nsub-3\tn/a\nsub-4\t1\n")
    people = written.read_table(tmp_path / "people.tsv")
    target = {"name": "stage", "kind": "ordinal", "levels": ["0.5", "1", "2"]}
    assert charts.distribution(people, target)["data"][0]["x"] == [1, 2, 0]


def test_each_true_level_is_a_row_of_parts_that_add_up():
    frame = pd.DataFrame(
        {"participant_id": list("abcd"), "y_true": ["low", "low", "low", "top"], "y_pred": ["low", "mid", "mid", "top"]}
    )
    (cells,) = charts._confusion(frame, {"levels": ["low", "mid", "top"]}, "linear")["data"]
    np.testing.assert_allclose(cells["z"], [[1 / 3, 2 / 3, 0], [0, 0, 0], [0, 0, 1]], atol=1e-3)
    assert cells["y"] == ["low (n = 3)", "mid (n = 0)", "top (n = 1)"]


def test_text_from_data_is_escaped(person, group):
    assert "only <b>3</b>" not in person[1]
    assert "only &lt;b&gt;3&lt;/b&gt;" in person[1]
    assert "<i>no</i>" not in group[1]
    assert "<missing>" not in group[1]


def test_pages_load_nothing_from_outside(person, group):
    for page in (person[1], group[1]):
        assert _loaded(page)
        assert all(link.startswith(("data:", "#", "logs/")) for link in _loaded(page))


def test_participant_page_is_small_for_a_whole_brain_connectome(tmp_path):
    make_participant(tmp_path, n_regions=392, n_volumes=200)
    assert report.write_participant(tmp_path, "sub-01").stat().st_size < 260_000


def test_participant_page_is_the_same_when_written_again(person):
    out, page = person
    assert report.write_participant(out, "sub-01").read_text() == page


def test_missing_feature_files_leave_a_page_that_names_them(tmp_path):
    make_participant(tmp_path)
    for path in [*tmp_path.rglob("*.tsv"), *tmp_path.rglob("*.nii.gz")]:
        path.unlink()
    page = report.write_participant(tmp_path, "sub-01").read_text()
    assert page.count("cannot be shown") == 3


def test_participant_without_a_record_gets_a_page_that_says_so(tmp_path):
    assert "no record of this participant" in report.write_participant(tmp_path, "sub-07").read_text()


def test_group_page_contains_the_numbers(group):
    _, page = group
    assert "cannot be shown" not in page
    for model, value in VALUES.items():
        assert model in page
        assert f"{value:.2f} [{value - HALF_WIDTH:.2f}, {value + HALF_WIDTH:.2f}]" in page
    for expected in (
        "p = 0.0005",
        "SIDECAR_KEY_REQUIRED (4)",
        "bids_dl NEW_DATA OUT participant --bundle",
        "autism",
        "UCLA",
    ):
        assert expected in page


def test_group_page_counts_who_was_left_out_for_which_reason(group):
    _, page = group
    assert "9 \N{MULTIPLICATION SIGN} &lt;i&gt;no&lt;/i&gt; value of diagnosis" in page
    assert "the file is cut off." in page


def test_group_page_has_a_figure_of_every_kind(group):
    _, page = group
    figures = [
        json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    ]
    titles = [figure["layout"].get("title", {}).get("text", "") for figure in figures]
    assert any("ROC" in t for t in titles)
    assert any("Calibration" in t for t in titles)
    assert "connectivity_mlp" in titles  # learning curves
    assert page.count("data:image/jpeg;base64,") == 2  # the map on the template
    assert "strongest edges" in page


def test_group_page_is_below_eight_megabytes(group):
    out, _ = group
    assert (out / "group.html").stat().st_size < 8_000_000


GROUP_FILES = (
    "participants.tsv",
    "excluded.tsv",
    "choices.json",
    "splits",
    "predictions",
    "metrics",
    "histories",
    "explanations",
)


@pytest.mark.parametrize("missing", GROUP_FILES)
def test_missing_group_files_do_not_crash(tmp_path, missing):
    make_group(tmp_path, n=24, n_splits=3)
    path = tmp_path / "group" / missing
    path.rename(tmp_path / "elsewhere")
    page = _without_plotly(report.write_group(tmp_path).read_text())
    assert "cannot be shown" not in page


def test_broken_table_costs_only_its_own_part(tmp_path):
    make_group(tmp_path, n=24, n_splits=3)
    (tmp_path / "group" / "excluded.tsv").write_text("participant_id\nsub-1\n")
    page = _without_plotly(report.write_group(tmp_path).read_text())
    assert page.count("cannot be shown") == 1
    assert "AUC" in page


def test_methods_text_names_only_what_was_done(tmp_path):
    make_participant(tmp_path)
    report.write_methods(tmp_path, "participant")
    text, bib = (tmp_path / "logs" / f"CITATION.{end}" for end in ("md", "bib"))
    assert "BIDS App" in text.read_text()
    assert "Fisher z" in text.read_text()
    assert "TzourioMazoyer2002" in bib.read_text()
    for undone in ("PyTorch", "bootstrap", "permutation", "Captum", "cross-validation"):
        assert undone not in text.read_text()
    make_group(tmp_path, n=24, n_splits=3)
    report.write_methods(tmp_path, "group")
    done = text.read_text()
    for said in (
        "PyTorch",
        "3-fold cross-validation",
        "2000 bootstrap",
        "gradients [@Sundararajan2017; @Kokhlikyan2020]",
        "scikit-learn",
        "intervals of the folds' mean, corrected for overlapping training sets [@Nadeau2003]",
        "corrected resampled t-test [@Nadeau2003], its p-values adjusted for all comparisons of a target by Holm's method [@Holm1979]",
        "The calibration (probabilities by a temperature [@Guo2017]) and sets or intervals that hold the truth in 90 % of the cases",
    ):
        assert said in done
    assert "regressed out" not in done
    assert "repeated the training" not in done
    assert "[1]_" not in done


def test_methods_text_says_whose_predictions_are_explained_and_of_which_class(tmp_path):
    make_group(tmp_path, n=24, n_splits=3)
    toml = "[explainers.occlusion]\nmax_participants = 5\n"
    derivatives.write_text(tmp_path / "logs" / "bids_dl_group.toml", toml)
    report.write_methods(tmp_path, "group")
    text = (tmp_path / "logs" / "CITATION.md").read_text()
    assert "[@Sundararajan2017; @Kokhlikyan2020] (at most 32 participants a split, evenly spread) and by" in text
    assert "occlusion [@Zeiler2014] (at most 5 participants a split, evenly spread)." in text
    path = tmp_path / "group" / "choices.json"
    choices = json.loads(path.read_text())
    choices["targets"][0]["levels"].append("other")
    derivatives.write_json(path, choices)
    report.write_methods(tmp_path, "group")
    text = (tmp_path / "logs" / "CITATION.md").read_text()
    assert (
        "evenly spread); of several classes the predicted one was explained, and slopes tell the direction of each."
        in text
    )
    assert "attend" not in text
    stem = "target-diagnosis_model-timeseries_attention_rnn_feature-timeseries_desc-attention"
    derivatives.write_text(tmp_path / "group" / "explanations" / f"{stem}_courses.tsv", "share\n")
    report.write_methods(tmp_path, "group")
    text = (tmp_path / "logs" / "CITATION.md").read_text()
    assert "The weights of networks that attend [@Ilse2018] were read for them as well." in text


def test_explanation_says_which_output_and_how_many_predictions(tmp_path):
    paths = {"regions": tmp_path / "x_regions.tsv"}
    said = {"Output": "The output is the logit of 'b' against 'a'", "NumberOfExplainedPredictions": 9}
    derivatives.write_table(paths["regions"], pd.DataFrame({"region": ["A"], "share": [1.0]}))
    assert report._explanation(paths)["note"] == ""
    derivatives.write_json(tmp_path / "x_regions.json", said)
    note = "The output is the logit of 'b' against 'a'. 9 predictions of held-out participants are explained."
    assert report._explanation(paths)["note"] == note
    assert report._explanation(paths, method="occlusion")["note"].startswith(f"{note} Regions are occluded one by one")


def test_region_says_whether_the_output_rises_with_it(tmp_path):
    table = pd.DataFrame({"region": ["A", "B"], "share": [0.6, 0.4], "slope": [-0.1, 2.0]})
    derivatives.write_table(tmp_path / "x_regions.tsv", table)
    shown = report._explanation({"regions": tmp_path / "x_regions.tsv"})
    assert [said for _, _, said in shown["regions"]] == ["60.00% ↓", "40.00% ↑"]
    assert "↑: the output rises with it." in shown["note"]
    table = table.drop(columns="slope").assign(slope_ad=[0.2, -0.1], slope_mci=[0.1, 0.4])
    derivatives.write_table(tmp_path / "x_regions.tsv", table)
    shown = report._explanation({"regions": tmp_path / "x_regions.tsv"})
    assert [said for _, _, said in shown["regions"]] == ["60.00% ↑ ad", "40.00% ↑ mci"]


def test_courses_are_averaged_in_time_and_slices_drawn_in_millimetres(tmp_path):
    """One participant has volumes of 2 s, the other of 3 s and the first one censored: a bin is 3 s."""
    table = pd.DataFrame({
        "participant_id": ["a"] * 4 + ["b"] * 2, "onset": [0, 2, 4, 6, 3, 6], "share": [0.1, 0.2, 0.3, 0.4, 0.75, 0.25],
    })  # fmt: skip
    derivatives.write_table(tmp_path / "x_courses.tsv", table)
    shown = report._explanation({"courses": tmp_path / "x_courses.tsv"}, method="attention")
    _, share = shown["figure"]["data"]
    assert share["x"] == [0, 3, 6]
    np.testing.assert_allclose(share["y"], [(0.1 + 0.2) / 0.5, (0.3 + 0.75) / 0.75, (0.4 + 0.25) / 0.75], rtol=1e-3)
    assert "each participant's own course" in shown["note"]
    derivatives.write_table(tmp_path / "x_courses.tsv", table.assign(onset=np.nan))
    unknown = report._explanation({"courses": tmp_path / "x_courses.tsv"}, method="attention")["figure"]
    assert unknown["data"][1]["x"] == [0, 1, 2, 3]
    assert unknown["layout"]["xaxis"]["title"]["text"] == "time point"
    slices = pd.DataFrame({"slice": [0, 1], "z": [-20.0, 10.0], "share": [0.25, 0.75]})
    derivatives.write_table(tmp_path / "x_slices.tsv", slices)
    _, share = report._explanation({"slices": tmp_path / "x_slices.tsv"}, method="attention")["figure"]["data"]
    assert (share["x"], share["y"]) == ([-20, 10], [0.5, 1.5])


def test_directed_edges_are_drawn_in_the_row_that_they_leave(monkeypatch):
    drawn = []
    monkeypatch.setattr(report.pictures, "draw_matrix", drawn.append)
    edges = pd.DataFrame({"region_a": ["A", "B"], "region_b": ["B", "A"], "slope": [1.0, -2.0], "share": [0.0, 0.0]})
    report._edge_matrix(edges, pd.DataFrame())
    report._edge_matrix(edges[:1], pd.DataFrame())
    assert drawn[0].tolist() == [[0, 1], [-2, 0]]
    assert drawn[1].tolist() == [[0, 1], [1, 0]]


def test_methods_text_calls_nothing_a_network_that_is_none(tmp_path):
    make_group(tmp_path, n=24, n_splits=3)
    path = tmp_path / "group" / "choices.json"
    choices = json.loads(path.read_text())
    solved = [{"id": f"connectivity_{m}", "model": m, "feature": "connectivity", "role": "network", "summary": f"Solve {m}."}
              for m in ("boosting", "tangent_linear")]  # fmt: skip
    derivatives.write_json(path, {**choices, "models": [*choices["models"], *solved]})
    report.write_methods(tmp_path, "group")
    text = (tmp_path / "logs" / "CITATION.md").read_text()
    networks = text[text.index("Neural networks") : text.index("Training with AdamW")]
    assert "connectivity_mlp" in networks
    assert "postfusion" in networks
    assert "boosting" not in networks
    assert (
        "solved for, were fitted on the same splits: connectivity_boosting (Solve boosting [@Friedman2001; @Friedman2002]); conn"
        in text
    )


@pytest.mark.parametrize(("augment", "said"), [("on", True), ("auto", False)])
def test_methods_text_says_that_volumes_were_changed_at_random(tmp_path, augment, said):
    make_group(tmp_path, n=24, n_splits=3)
    derivatives.write_text(tmp_path / "logs" / "bids_dl_group.toml", f'[training]\naugment = "{augment}"\n')
    report.write_methods(tmp_path, "group")
    assert ("Training volumes, and no others, were rotated" in (tmp_path / "logs" / "CITATION.md").read_text()) is said


def test_methods_text_says_that_relatives_are_drawn_together(tmp_path):
    make_group(tmp_path, n=24, n_splits=3)
    path = tmp_path / "group" / "choices.json"
    choices = json.loads(path.read_text())
    choices["splits"]["groups"] = "family_id"
    path.write_text(json.dumps(choices))
    report.write_methods(tmp_path, "group")
    assert (
        "samples of participants, those of one 'family_id' together" in (tmp_path / "logs" / "CITATION.md").read_text()
    )


@pytest.mark.parametrize("bits", [16, 32])
def test_methods_text_says_what_networks_were_computed_in(tmp_path, bits):
    make_group(tmp_path, n=24, n_splits=3)
    path = next(p for p in (tmp_path / "group" / "histories").glob("*.tsv") if "mlp" in p.name)
    derivatives.write_table(path, pd.read_csv(path, sep="\t").assign(bits=bits))
    report.write_methods(tmp_path, "group")
    text = (tmp_path / "logs" / "CITATION.md").read_text()
    assert ("computed in bfloat16, with weights in float32" in text) is (bits == 16)


@pytest.mark.parametrize(
    ("dims", "said"),
    [
        (["roi", "roi"], "were regressed out of the features,"),
        (["time", "roi"], "were regressed out of t1w,"),
        (None, "were regressed"),
    ],
)
def test_methods_text_names_what_confounds_were_taken_out_of(tmp_path, dims, said):
    make_group(tmp_path, n=24, n_splits=3)
    path = tmp_path / "group" / "choices.json"
    choices = json.loads(path.read_text())
    for feature in choices["features"]:
        if feature["name"] == "connectivity" or dims is None:
            feature["dims"] = dims or ["window", "edge"]
    derivatives.write_json(path, choices)
    derivatives.write_text(tmp_path / "logs" / "bids_dl_group.toml", "[normalization]\nremove_confounds = true\n")
    report.write_methods(tmp_path, "group")
    assert (said in (tmp_path / "logs" / "CITATION.md").read_text()) is (dims is not None)


def test_every_citation_in_the_text_has_its_entry(tmp_path):
    make_group(tmp_path, n=24, n_splits=3)
    report.write_methods(tmp_path, "group")
    cited = set(re.findall(r"@(\w+\d{4})", (tmp_path / "logs" / "CITATION.md").read_text()))
    entries = set(re.findall(r"@article\{(\w+),", (tmp_path / "logs" / "CITATION.bib").read_text()))
    assert cited == entries


def test_all_participants_with_a_record_get_a_page(tmp_path):
    make_participant(tmp_path)
    derivatives.write_json(
        tmp_path / "logs" / "participants" / "sub-02.json", {"participant_id": "sub-02", "features": [], "problems": []}
    )
    report.write_all(tmp_path, "participant")
    assert sorted(p.name for p in tmp_path.glob("*.html")) == ["sub-01.html", "sub-02.html"]


def make_measured(out: Path, *, flags: str = "tsnr") -> Path:
    """A participant with two prepared scans beside the output, measured, one flagged, one prepared here."""
    make_participant(out)
    from nilearn.datasets import load_mni152_brain_mask

    mask = load_mni152_brain_mask(resolution=6)
    brain, elsewhere = mask.get_fdata() > 0, out.parent / "elsewhere"
    noise = np.random.default_rng(7).normal(100, 20, (*brain.shape, 3)).astype(np.float32) * brain[..., None]
    stem = elsewhere / "sub-01_space-MNI152NLin6Asym"
    derivatives.write_image(Path(f"{stem}_desc-preproc_T1w.nii.gz"), noise[..., 0], mask.affine)
    derivatives.write_image(Path(f"{stem}_task-rest_desc-preproc_bold.nii.gz"), noise, mask.affine)
    derivatives.write_image(Path(f"{stem}_desc-brain_mask.nii.gz"), brain.astype(np.uint8), mask.affine)
    derivatives.write_image(Path(f"{stem}_label-GM_probseg.nii.gz"), 0.7 * brain, mask.affine)
    confounds = elsewhere / "sub-01_task-rest_desc-confounds_timeseries.tsv"
    derivatives.write_table(confounds, pd.DataFrame({"framewise_displacement": [np.nan, *np.linspace(0, 1.3, 39)]}))
    place = out / "logs" / "participants" / "sub-01.json"
    record = json.loads(place.read_text())
    bold = f"{stem}_task-rest_desc-preproc_bold.nii.gz"
    held = {"mask": f"{stem}_desc-brain_mask.nii.gz"}
    record["features"][0] |= {"source": bold, "why": "derivative of fmriprep; chosen over <the> raw scan"}
    record["quality"] = [
        {"scan": "sub-01_T1w", "kind": "t1w", "path": f"{stem}_desc-preproc_T1w.nii.gz", **held,
         "related": {"gm": f"{stem}_label-GM_probseg.nii.gz"}, "measures": {"mask_ml": 1833.4, "mask_dice": 0.9637}},
        {"scan": "sub-01_bold", "kind": "bold", "path": bold, **held, "confounds": str(confounds), "related": {},
         "measures": {"tsnr": 12.3, "moved_share": 0.25, "n_volumes": 40.0}},
        {"scan": "sub-01_run-2_bold", "kind": "bold", "path": "x_bold.nii.gz", "related": {}, "measures": {},
         "failure": "it is <cut> off."},
    ]  # fmt: skip
    record["preparations"] = [
        {"scan": "sub-01_T1w", "kind": "t1w", "seconds": 61.3, "path": "/o/sub-01_T1w.nii.gz", "why": "prepared here"},
        {"scan": "sub-01_bold", "kind": "bold", "seconds": None, "path": "/o/sub-01_bold.nii.gz", "why": "prepared here"},
    ]  # fmt: skip
    derivatives.write_json(place, record)
    table = pd.DataFrame({"participant_id": ["sub-01", "sub-01", "sub-02"], "scan": ["sub-01_bold", "sub-01_T1w", "sub-01_T1w"],
                          "kind": ["bold", "t1w", "t1w"], "flags": [flags, None, "mask_dice"]})  # fmt: skip
    derivatives.write_table(out / "quality.tsv", table)
    return elsewhere


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("measured") / "out"
    make_measured(out)
    return out, report.write_participant(out, "sub-01").read_text()


def test_measures_stand_with_their_units_and_only_this_participants_flags(measured):
    section = html.unescape(measured[1].partition('id="quality"')[2].partition("</section>")[0])
    rows = re.findall(r'<tr( class="flag")?><td>(.*?)</td><td class="number">(.*?)</td>', section)
    shown = {said.split(",")[0].split(";")[0]: (value, bool(flag)) for flag, said, value in rows}
    assert shown == {
        "Volume of the brain mask in template space": ("1,833 mL", False),
        "Dice overlap of the brain mask with the template's": ("0.964", False),
        "Temporal signal-to-noise ratio": ("12.3", True),
        "Share of volumes whose framewise displacement exceeds 0.5 mm": ("25%", False),
        "Volumes of the run": ("40", False),
    }


def test_the_table_of_quality_is_read_once_for_all_pages_until_it_changes(tmp_path, monkeypatch):
    read, paths = written.read_table, []
    monkeypatch.setattr(written, "read_table", lambda path: paths.append(path) or read(path))
    for flags in ("tsnr", "tsnr, dvars_percent"):
        table = pd.DataFrame({"participant_id": ["sub-1", "sub-2"], "scan": ["a", "b"], "flags": [None, flags]})
        derivatives.write_table(tmp_path / "quality.tsv", table)
        assert [report._quality(tmp_path, i, [])["flagged"] for i in ("sub-1", "sub-2")] == [0, len(flags.split(", "))]
    assert len(paths) == 2


def test_a_scan_that_could_not_be_measured_says_why(measured):
    assert "It could not be measured: it is &lt;cut&gt; off." in measured[1]


def test_each_prepared_scan_is_laid_over_the_template_with_its_contours(measured):
    _, page = measured
    assert page.count('class="template"') == 4  # two strips for each of two scans
    assert page.count('class="contours"') == 4
    assert page.count("grey matter</span>") == 1
    assert page.count("brain mask</span>") == 2
    assert "cannot be shown" not in page


def test_displacement_stands_over_the_carpet(measured):
    _, page = measured
    line = re.search(r'<polyline points="([^"]*)" fill="none" stroke="#b5471b"', page)[1]
    heights = [float(point.split(",")[1]) for point in line.split()]
    assert len(heights) == 39
    assert heights[0] == 66
    assert heights[-1] == 18
    assert (66 - heights[-1]) / 1.3 == pytest.approx((66 - float(re.search(r'y1="([\d.]+)"', page)[1])) / 0.5, rel=0.01)


def test_sources_and_preparations_say_why_and_how_long(measured):
    _, page = measured
    assert "chosen over &lt;the&gt; raw scan" in page
    assert "61 s" in page
    assert "kept from an earlier run" in page


def test_least_covered_regions_are_named(measured):
    out, page = measured
    labels, share = query.read_matrix(next(out.rglob("*coverage_bold.tsv")))
    assert labels[int(share.argmin())] in page
    assert f"{share.min():.0%}" in page


def test_page_with_all_pictures_is_small_and_loads_nothing_from_outside(measured):
    assert len(measured[1]) < 1_000_000
    assert all(link.startswith(("data:", "#", "logs/")) for link in _loaded(measured[1]))


def test_a_source_that_has_gone_costs_its_picture_only(tmp_path):
    elsewhere = make_measured(tmp_path / "out")
    for path in elsewhere.iterdir():
        path.unlink()
    page = report.write_participant(tmp_path / "out", "sub-01").read_text()
    assert page.count("is no longer there") == 2
    assert "carpet" in page or "frame-to-frame change" in page


def test_other_tables_are_drawn_too(tmp_path):
    stem = tmp_path / "sub-01" / "func" / "sub-01_atlas-aal_stat-reho"
    derivatives.write_matrix(Path(f"{stem}_regions.tsv"), np.array([[0.1, -0.9, np.nan]]), ["near", "far", "gone"])
    derivatives.write_array(Path(f"{stem}_edges.npy"), np.random.default_rng(0).normal(size=(40, 700)))
    derivatives.write_json(Path(f"{stem}_edges.json"), {"Dimensions": ["window", "edge"], "Labels": []})
    features = [{"feature": n, "path": str(Path(f"{stem}{end}").relative_to(tmp_path)), "shape": [3], "why": "from the feature reho"}
                for n, end in (("regional", "_regions.tsv"), ("dynamic_connectivity", "_edges.npy"))]  # fmt: skip
    derivatives.write_json(tmp_path / "logs" / "participants" / "sub-01.json", {"features": features, "problems": []})
    page = report.write_participant(tmp_path, "sub-01").read_text()
    assert "cannot be shown" not in page
    assert re.findall(r"<span>(near|far|gone)</span>", page) == ["far", "near"]
    assert "Rows: window; columns: edge." in page
    assert "dynamic connectivity (computed here from the feature reho)" in page


def test_comparisons_and_calibration_are_shown(group):
    page = group[1]
    assert "Models compared" in page
    assert "coverage (promised: 90%)" in page


def with_quality(out: Path, rules: str) -> str:
    """Write a group's output with twelve measured scans of three participants a site, one of them far off; its page."""
    make_group(out)
    values = [*np.linspace(0.1, 0.2, 11), 3.0]
    entry = {"scan": "sub_task-rest_bold", "kind": "bold"}
    records = {
        f"sub-{i:04d}": {"quality": [{**entry, "measures": {"mean_fd_mm": v, "n_volumes": 200.0}}]}
        for i, v in enumerate(values)
    }
    outputs.write_quality(out, records)
    path = out / "group" / "excluded.tsv"
    excluded = pd.read_csv(path, sep="\t")
    excluded.loc[len(excluded)] = ["sub-0011", "n/a", "moved (quality.max_mean_fd_mm = 0.5)"]
    derivatives.write_table(path, excluded)
    derivatives.write_text(out / "logs" / "bids_dl_group.toml", rules)
    return _without_plotly(report.write_group(out).read_text())


def test_quality_is_drawn_and_flagged_participants_are_named_with_the_reason(tmp_path):
    page = with_quality(tmp_path, "")
    section = page[page.index('<section id="quality">') : page.index('<section id="splits">')]
    figures = [json.loads(f) for f in re.findall(r'<script type="application/json">(.*?)</script>', section)]
    assert [f["layout"]["title"]["text"] for f in figures] == ["mean_fd_mm"]
    assert "The same in every scan: Volumes of the run: 200." in section
    rows = re.findall(r"<tr><td>(sub-\d+)</td>.*?</tr>", section, flags=re.DOTALL)
    assert rows == ["sub-0011"]
    assert "among 12 bold scans of the cohort" in section
    assert "No rule of quality was set" in section


def test_what_the_rules_of_quality_left_out_is_counted_and_their_limit_is_drawn(tmp_path):
    page = with_quality(tmp_path, "[quality]\nmax_mean_fd_mm = 0.5\n")
    assert "quality.max_mean_fd_mm = 0.5 left out 1 participant." in page
    section = page[page.index('<section id="quality">') : page.index('<section id="splits">')]
    figure = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', section)[0])
    assert figure["layout"]["shapes"][0]["x0"] == 0.5


def test_a_group_without_measures_has_no_section_on_quality(group):
    assert "#quality" not in group[1]
    assert 'id="quality"' not in group[1]


def test_a_bar_below_zero_has_the_colour_that_maps_have_there() -> None:
    shown = (
        report._environment()
        .get_template("macros.html.j2")
        .module.bars([("A", 1.0, "5%"), ("B", 0.4, "-2%"), ("C", 0.1, 3)], "#d55e00")
    )
    assert re.findall("background: (#[0-9a-f]+)", shown) == ["#d55e00", "#56b4e9", "#d55e00"]
