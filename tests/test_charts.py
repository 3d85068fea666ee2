"""Figures of the group page agree with their closed forms."""

import json

import numpy as np
import pandas as pd
import pytest

from bids_dl import charts


def test_mean_roc_has_the_area_of_the_pairs_in_order():
    rng = np.random.default_rng(3)
    truth = rng.choice(["a", "b"], 400)
    score = (truth == "b") + rng.standard_normal(400)
    mean, folds = charts.mean_roc(pd.DataFrame({"split": "one", "y_true": truth, "y_score": score}), "y_score", "b")
    pairs = (score[truth == "b"][:, None] > score[truth == "a"][None]).mean()
    assert len(folds) == 1
    assert np.trapezoid(mean, charts.GRID) == pytest.approx(pairs, abs=0.01)


def measured(n: int) -> pd.DataFrame:
    """Draw up scans of which the two last are flagged in tsnr, and the one before for another measure."""
    table = pd.DataFrame({"scan": [f"s{i}" for i in range(n)], "tsnr": np.random.default_rng(0).normal(50, 5, n)})
    table["flags"] = [None] * (n - 3) + ["cnr", "cnr, tsnr", "tsnr"]
    return table.assign(reason=table["flags"].map(lambda f: f"because of {f}" if f else None))


def test_a_strip_has_the_quartiles_of_its_measure_and_all_its_scans():
    table = measured(60)
    table.loc[4, "tsnr"] = np.nan
    box, plain, flagged = charts.strip(table, "tsnr", "1")["data"]
    known = table["tsnr"].dropna()
    assert [box[k][0] for k in ("q1", "median", "q3")] == pytest.approx(np.percentile(known, (25, 50, 75)), rel=1e-3)
    assert box["lowerfence"][0] >= box["q1"][0] - 1.5 * (box["q3"][0] - box["q1"][0])
    assert len(plain["x"]) == 57
    assert [text.split(":")[0] for text in flagged["hovertext"]] == ["s58", "s59"]
    assert flagged["hovertext"][1].endswith("<br>because of tsnr")


def test_a_strip_of_thousands_is_thinned_but_keeps_the_flagged():
    figure = charts.strip(measured(20_000), "tsnr", "1")
    _, plain, flagged = figure["data"]
    assert len(plain["x"]) <= charts.MOST_POINTS
    assert len(flagged["x"]) == 2
    assert len(json.dumps(figure)) < 40_000


def test_the_limit_of_a_rule_is_drawn_only_where_there_is_one():
    assert "shapes" not in charts.strip(measured(12), "tsnr", "1")["layout"]
    assert charts.strip(measured(12), "tsnr", "1", 40)["layout"]["shapes"][0]["x0"] == 40


def test_synthetic_and_training_participants_are_a_point_a_split():
    rows = [("x", r, f"fold-{k}", "all", 0.4 + k / 10, 0.3, 0.7) for r in ("synthetic", "train") for k in range(3)]
    columns = ["feature", "rows", "split", "level", "auc", "chance_low", "chance_high"]
    table = pd.DataFrame([*rows, ("x", "synthetic", "fold-3", "a", 0.9, 0.3, 0.7)], columns=columns)
    figure = charts.resemblance(table)
    assert [trace["x"] for trace in figure["data"]] == [[0.4, 0.5, 0.6]] * 2
    assert figure["layout"]["yaxis"]["ticktext"] == ["x"]
    assert charts.resemblance(table.assign(auc=np.nan)) is None


def test_bars_of_states_have_each_levels_mean_and_deviation(tmp_path):
    rows = [
        (measure, state, level, 0.1 * state + offset, 0.05, 8)
        for measure in ("occupancy", "dwell", "transition") for level, offset in (("hc", 0.0), ("mdd", 0.3)) for state in (1, 2)
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["measure", "state", "level", "mean", "sd", "n"])
    path = tmp_path / "group" / "descriptions" / "target-group_model-windows_dynamic_states_states.tsv"
    path.parent.mkdir(parents=True)
    table.to_csv(path, sep="\t", index=False)
    models = {"windows_dynamic_states": {}, "edges_linear": {}}
    figures = charts.state_bars(charts.View(tmp_path, {"name": "group"}, models, "auc", "edges_linear", [], 2))
    titles = [figure["layout"]["title"]["text"] for figure in figures]
    assert titles == ["windows_dynamic_states: occupancy", "windows_dynamic_states: mean dwell time"]
    hc, mdd = figures[0]["data"]
    assert (hc["name"], hc["y"], hc["error_y"]["array"]) == ("hc (n = 8)", [0.1, 0.2], [0.05, 0.05])
    assert mdd["y"] == [0.4, 0.5]


def test_ranges_of_a_quantity_stand_in_their_order_and_words_in_that_of_the_scores(tmp_path):
    levels = {"age": {"6 to 11": 0.7, "11 to 14": 0.9, "14 to 60": 0.6}, "site": {"A": 0.7, "B": 0.5}}
    rows = [
        ("edges_linear", column, level, "auc", value, 9) for column, of in levels.items() for level, value in of.items()
    ]
    table = pd.DataFrame(rows, columns=["model", "column", "level", "metric", "value", "n"])
    path = tmp_path / "group" / "metrics" / "target-group_subgroups.tsv"
    path.parent.mkdir(parents=True)
    table.to_csv(path, sep="\t", index=False)
    view = charts.View(tmp_path, {"name": "group"}, {"edges_linear": {}}, "auc", "edges_linear", [], 2)
    age, site = (figure["layout"]["yaxis"]["categoryarray"] for figure in charts.subgroup_dots(view))
    assert age == ["6 to 11", "11 to 14", "14 to 60"]
    assert site == ["B", "A"]
