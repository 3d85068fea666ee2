"""Tables become plotly figures: the interactive part of the group's page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_dl import prose, written
from bids_dl.written import Json

Array = NDArray[Any]


ROLES = {"network": "#0072b2", "fusion": "#d55e00", "baseline": "#8b95a3"}
"""Okabe and Ito's colours, told apart by colour-blind eyes."""


FLAGGED = "#d55e00"
MOST_POINTS = 400
"""Points of a strip: more are thinned out, so that a page of thousands of scans stays light; flagged ones are all drawn."""


def script() -> str:
    """Return plotly's JavaScript, to be written into the page."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _layout(height: int, x: str = "", y: str = "", **more: Any) -> Json:
    """Give every figure one calm look."""
    font = {"family": 'system-ui, "DejaVu Sans", sans-serif', "size": 12, "color": "#5b6675"}
    axis = {
        "gridcolor": "#eceff3",
        "zeroline": False,
        "linecolor": "#c4cbd4",
        "automargin": True,
        "title": {"standoff": 8},
    }
    base = {
        "height": height, "font": font, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "showlegend": False,
        "margin": {"l": 50, "r": 16, "t": 30 if "title" in more else 12, "b": 44}, "hoverlabel": {"font": {"size": 12}},
        "xaxis": axis | {"title": {"text": x, "standoff": 8}}, "yaxis": axis | {"title": {"text": y, "standoff": 8}},
    }  # fmt: skip
    for key, value in more.items():
        old = base.get(key)
        base[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return base


def _figure(data: list[Json], layout: Json) -> Json:
    """Join traces and layout, with NaN as null and numbers short."""
    return {"data": _plain(data), "layout": _plain(layout)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)) or type(value).__module__.startswith("pandas"):
        return [_plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.4g}") if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def _heading(text: str) -> Json:
    place = {"x": 0, "xanchor": "left", "xref": "paper", "y": 1, "yanchor": "top", "yref": "container", "pad": {"t": 8}}
    return {"text": text, "font": {"size": 13, "color": "#1c2430"}, **place}


def distribution(people: Any, target: Json) -> Json:
    """Show how many have each level, or how the quantity is spread."""
    name, what = target["name"], "volumes" if target.get("rows") else "participants"
    if target["kind"] != "regression":
        levels = [str(v) for v in target["levels"]]
        counts = written.as_levels(people[name], levels).value_counts()
        n = [int(counts.get(v, 0)) for v in levels]
        bar = {
            "type": "bar",
            "x": n,
            "y": levels,
            "orientation": "h",
            "text": n,
            "marker": {"color": "#7ba7c7"},
            "width": 0.6,
        }
        return _figure(
            [bar],
            _layout(110 + 34 * len(levels), what, title=_heading(name), yaxis={"autorange": "reversed"}),
        )
    values = people[name].dropna().astype(float)
    bars = {"type": "histogram", "x": values, "marker": {"color": "#7ba7c7"}, "nbinsx": 30}
    return _figure([bars], _layout(210, name, "participants", title=_heading(name), bargap=0.05))


def strip(scans: Any, name: str, unit: str, limit: float | None = None) -> Json:
    """Draw one measure of quality: a box over all scans, a point each, those flagged in orange; the limit of a rule dotted.

    ``scans`` has the columns ``scan``, ``flags``, ``reason`` and the measure, of scans of one kind.
    """
    rows = scans[scans[name].notna()]
    flagged = np.array([name in str(f).split(", ") for f in rows["flags"]], bool)
    spread = 0.3 * (2 * (np.arange(len(rows)) * 0.618034 % 1) - 1)  # golden steps: even, and the same in every run
    thinned = np.flatnonzero(~flagged)[:: -(-len(rows) // MOST_POINTS)]
    data = [_box(rows[name].to_numpy(float))]
    for picked, colour, size in ((thinned, "#7ba7c7", 5), (np.flatnonzero(flagged), FLAGGED, 8)):
        mine = rows.iloc[picked]
        whys = [f"<br>{why}" if colour == FLAGGED else "" for why in mine["reason"]]
        said = [f"{s}: {prose.brief(v)}{why}" for s, v, why in zip(mine["scan"], mine[name], whys, strict=True)]
        data.append({
            "type": "scatter", "mode": "markers", "x": mine[name], "y": spread[picked], "hoverinfo": "text",
            "hovertext": said, "marker": {"color": colour, "size": size, "opacity": 0.8},
        })  # fmt: skip
    axes: Json = {"yaxis": {"visible": False, "range": [-0.6, 0.6], "fixedrange": True}, "margin": {"l": 10}}
    if limit is not None:
        line = {"type": "line", "x0": limit, "x1": limit, "yref": "paper", "y0": 0, "y1": 1}
        axes["shapes"] = [line | {"line": {"dash": "dot", "color": "#5b6675", "width": 1.5}}]
    return _figure(data, _layout(140, "" if unit == "1" else unit, title=_heading(name), **axes))


def _box(values: Array) -> Json:
    """Draw quartiles and the farthest values within one and a half interquartile ranges, without the values themselves."""
    q1, median, q3 = np.percentile(values, (25, 50, 75))
    near = values[(values >= q1 - 1.5 * (q3 - q1)) & (values <= q3 + 1.5 * (q3 - q1))]
    return {
        "type": "box", "orientation": "h", "y": [0], "q1": [q1], "median": [median], "q3": [q3], "lowerfence": [near.min()],
        "upperfence": [near.max()], "width": 0.9, "line": {"color": "#8b95a3", "width": 1.2}, "fillcolor": "#eef2f6",
        "hoverinfo": "skip",
    }  # fmt: skip


@dataclass(frozen=True)
class View:
    """One target's results: where they lie, the models by id, the main metric, which model is best by it and beside which baselines."""

    out: Path
    target: Json
    models: Mapping[str, Json]
    main: str
    best: str
    rivals: Sequence[str]
    n_drawn: int

    def read(self, kind: str, end: str) -> Any:
        """Read a table of this target."""
        return written.read_table(self.out / "group" / kind / f"target-{self.target['name']}_{end}.tsv")

    def colour(self, model: str) -> str:
        """Colour a model by its role."""
        return ROLES.get(prose.role_of(self.models, model), ROLES["network"])

    def method(self, model: str) -> str:
        """Name the method of a model."""
        return str(self.models.get(model, {}).get("model"))


def forest(scores: Any, view: View) -> Json | None:
    """Draw every model's main score with its interval, by role, beside the line of chance."""
    if scores.empty:
        return None
    main, models = view.main, view.models
    rows = prose.ordered_models(scores, models, main)
    names = [f"<b>{m}</b>" if m == view.best else m for m in rows["model"]]
    hover = [
        f"{m}<br>{prose.as_in_papers(r, main)}<br>{models.get(m, {}).get('summary', '')}"
        for m, (_, r) in zip(rows["model"], rows.iterrows(), strict=True)
    ]
    colours = [view.colour(m) for m in rows["model"]]
    ranges = list(zip(rows["value"], rows["ci_low"], rows["ci_high"], strict=True))
    data = [_line(r[1:], [n] * 2, c, hoverinfo="skip") for r, n, c in zip(ranges, names, colours, strict=True)]
    points = {"mode": "markers", "marker": {"color": colours, "size": 10}, "hovertext": hover, "hoverinfo": "text"}
    data.append({"type": "scatter", "x": rows["value"], "y": names, **points})
    note = {"x": 1.01, "xref": "paper", "xanchor": "left", "showarrow": False, "font": {"size": 12}}
    notes = [note | {"y": n, "text": f"  {prose.with_interval(*r)}"} for n, r in zip(names, ranges, strict=True)]
    ends = [float(f(rows[["ci_low", "ci_high", "chance", "value"]].to_numpy())) for f in (np.nanmin, np.nanmax)]
    margin = 0.04 * (ends[1] - ends[0])
    at = {"x0": rows["chance"].iloc[0], "x1": rows["chance"].iloc[0], "yref": "paper", "y0": 0, "y1": 1}
    line = {"type": "line", **at, "line": {"dash": "dot", "color": "#5b6675", "width": 1.5}}
    axes: Json = {"xaxis": {"range": [ends[0] - margin, ends[1] + margin]}, "yaxis": {"autorange": "reversed"}}
    axes |= {"shapes": [line], "annotations": notes, "margin": {"r": 150}}
    return _figure(data, _layout(70 + 30 * len(rows), prose.METRICS.get(main, main), **axes))


def score_curves(view: View) -> list[Json]:
    """Draw ROC and calibration of classes, or predicted against true of a quantity."""
    target = view.target
    frame = view.read("predictions", f"model-{view.best}_predictions")
    if frame.empty:
        return []
    if target["kind"] == "ordinal":
        return [_confusion(frame, target, view.best)]
    if target["kind"] != "classification":
        return [_scatter(frame, view.best)]
    if len(target["levels"]) > 2:
        return [_roc_levels(frame, target)]
    tables = {m: view.read("predictions", f"model-{m}_predictions") for m in view.rivals} | {view.best: frame}
    shown = {m: t for m, t in tables.items() if not t.empty}
    return [_roc(shown, view), _calibration(shown, view)]


def _positive(target: Json) -> str:
    return str(target["positive"] if target.get("positive") is not None else target["levels"][-1])


def _truth(frame: Any, level: str) -> Array:
    return np.asarray(frame["y_true"].astype(str) == level)


GRID = np.linspace(0, 1, 101)
FROM_ORIGIN = np.r_[0, GRID]


def mean_roc(frame: Any, column: str, level: str) -> tuple[Array, list[Array]]:
    """Average the folds' ROC curves, weighted by their pairs as the AUC is; also return each fold's."""
    folds, weights = [], []
    for _, rows in frame.groupby("split"):
        truth, score = _truth(rows, level), rows[column].to_numpy(float)
        if 0 < truth.sum() < len(truth):
            order = np.argsort(-score, kind="stable")
            last = np.flatnonzero(np.diff(score[order], append=np.nan))
            hits = np.r_[0, np.cumsum(truth[order])[last] / truth.sum()]
            alarms = np.r_[0, np.cumsum(~truth[order])[last] / (~truth).sum()]
            folds.append(np.interp(GRID, alarms, hits))
            weights.append(truth.sum() * (~truth).sum())
    return (np.average(folds, axis=0, weights=weights) if folds else GRID), folds


def _line(x: Any, y: Any, colour: str, width: float = 2, **more: Any) -> Json:
    return {
        "type": "scatter",
        "x": x,
        "y": y,
        "mode": "lines",
        "line": {"color": colour, "width": width, **more.pop("line", {})},
        **more,
    }


def _joined(lines: Iterable[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """Join many thin lines into one trace with gaps."""
    xs, ys = [], []
    for x, y in lines:
        xs += [*x, None]
        ys += [*y, None]
    return xs, ys


RATES = ("false positive rate", "true positive rate")
LEGEND: Json = {
    "showlegend": True,
    "legend": {
        "x": 0.98, "y": 0.04, "xanchor": "right", "yanchor": "bottom", "bgcolor": "rgba(255,255,255,.8)", "font": {"size": 11},
    },
}  # fmt: skip
ABOVE: Json = {
    "showlegend": True,
    "legend": {"x": 1, "y": 1.01, "xanchor": "right", "yanchor": "bottom", "orientation": "h", "font": {"size": 11}},
}
DIAGONAL = _line([0, 1], [0, 1], "#8b95a3", 1, line={"dash": "dot"}, hoverinfo="skip", showlegend=False)
LEVELS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#1c2430")
DASHES = {"linear": "solid", "confounds_only": "dash"}


def _roc(shown: Mapping[str, Any], view: View) -> Json:
    """Draw the mean ROC curve of each model, and every fold's of the best."""
    data = [DIAGONAL]
    for model, frame in shown.items():
        mean, folds = mean_roc(frame, "y_score", _positive(view.target))
        if model == view.best:
            x, y = _joined((FROM_ORIGIN, [0, *f]) for f in folds)
            data.append(_line(x, y, view.colour(model), 0.6, opacity=0.45, hoverinfo="skip", showlegend=False))
        width, dash = 3 if model == view.best else 1.8, DASHES.get(view.method(model), "solid")
        data.append(_line(FROM_ORIGIN, [0, *mean], view.colour(model), width, line={"dash": dash}, name=model))
    return _figure(data, _layout(380, *RATES, title=_heading("ROC, mean over folds; thin: each fold"), **LEGEND))


def _roc_levels(frame: Any, target: Json) -> Json:
    """Draw the ROC curve of each level against the rest."""
    curves = {str(level): mean_roc(frame, f"score_{level}", str(level))[0] for level in target["levels"]}
    lines = [
        _line(FROM_ORIGIN, [0, *mean], LEVELS[i % len(LEVELS)], 2.2, name=level)
        for i, (level, mean) in enumerate(curves.items())
    ]
    return _figure(
        [DIAGONAL, *lines], _layout(380, *RATES, title=_heading("ROC of each level against the rest"), **LEGEND)
    )


def _calibration(shown: Mapping[str, Any], view: View) -> Json:
    """Compare predicted probabilities with observed frequencies in ten bins of equal size."""
    data = [DIAGONAL]
    for model, frame in shown.items():
        score, truth = frame["y_score"].to_numpy(float), _truth(frame, _positive(view.target))
        order = np.argsort(score, kind="stable")
        bins = np.array_split(order, min(10, len(order)))
        said, seen = ([float(v[b].mean()) for b in bins] for v in (score, truth))
        line = _line(
            said, seen, view.colour(model), 2, line={"dash": DASHES.get(view.method(model), "solid")}, name=model
        )
        data.append(line | {"mode": "lines+markers", "marker": {"size": 6}})
    axes = {
        "xaxis": {"range": [0, 1]},
        "yaxis": {"range": [0, 1]},
        "title": _heading("Calibration: ten bins of equal size"),
    }
    return _figure(data, _layout(380, "predicted probability", "observed frequency", **{**axes, **LEGEND}))


def _scatter(frame: Any, best: str) -> Json:
    """Plot what was predicted against what is true."""
    rows = frame.iloc[:: max(1, len(frame) // 3000)]
    truth, said = rows["y_true"].astype(float), rows["y_score"].astype(float)
    ends = [float(min(truth.min(), said.min())), float(max(truth.max(), said.max()))]
    slope, base = np.polyfit(truth, said, 1) if truth.std() > 0 else (0, said.mean())
    marker = {"size": 5, "color": LEVELS[0], "opacity": 0.45}
    points = {"type": "scatter", "x": truth, "y": said, "mode": "markers", "marker": marker, "name": "participants"}
    points |= {"text": rows["participant_id"]}
    span = np.array([truth.min(), truth.max()])
    fit = _line(span, base + slope * span, LEVELS[1], 2, name="least squares")
    identity = _line(ends, ends, "#8b95a3", 1, line={"dash": "dot"}, name="identity")
    return _figure([identity, points, fit], _layout(440, "true", f"predicted by {best}", **LEGEND))


def _confusion(frame: Any, target: Json, best: str) -> Json:
    """Show, of the participants of each true level, which part was predicted at each level."""
    levels = [str(v) for v in target["levels"]]
    found = [[int(((frame["y_true"] == a) & (frame["y_pred"] == b)).sum()) for b in levels] for a in levels]
    counts = np.array(found, float)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    people = [frame.loc[frame["y_true"] == a, "participant_id"].nunique() for a in levels]
    cells = {
        "type": "heatmap", "x": levels, "y": [f"{a} (n = {n})" for a, n in zip(levels, people, strict=True)], "z": share,
        "zmin": 0, "zmax": 1, "colorscale": [[0, "#ffffff"], [1, LEVELS[0]]], "showscale": False,
        "text": [[f"{s:.0%}" for s in row] for row in share], "texttemplate": "%{text}",
        "hovertemplate": "%{text} of those with true level %{y} were predicted at %{x}<extra></extra>",
    }  # fmt: skip
    axes = {
        "xaxis": {"type": "category"}, "yaxis": {"type": "category"},
        "title": _heading("Of the participants of each true level: the part predicted at each level, a row 100 %"),
    }  # fmt: skip
    return _figure([cells], _layout(150 + 44 * len(levels), f"level predicted by {best}", "true level", **axes))


def learning_curves(view: View) -> list[Json]:
    """Draw the losses of each network over epochs."""
    figures = []
    for model in view.models:
        table = view.read("histories", f"model-{model}_history")
        if table.empty or table["train_loss"].isna().all():
            continue
        x, y = _joined((r["epoch"], r["validation_loss"]) for _, r in list(table.groupby(["split", "member"]))[:60])
        mean = table.groupby("epoch")[["train_loss", "validation_loss"]].mean()
        data = [_line(x, y, LEVELS[1], 0.5, opacity=0.35, hoverinfo="skip", showlegend=False)]
        data += [
            _line(mean.index, mean[f"{part}_loss"], LEVELS[i], 2.5, name=part)
            for i, part in enumerate(("train", "validation"))
        ]
        figures.append(_figure(data, _layout(266, "epoch", "loss", title=_heading(model), margin={"t": 50}, **ABOVE)))
    return figures


def state_bars(view: View) -> list[Json]:
    """Draw how much of the time participants of each level are in each state, and for how long at a stretch.

    A row of figures a model that has states; bars are means over participants, lines standard deviations.
    """
    tables = {model: view.read("descriptions", f"model-{model}_states") for model in view.models}
    return [
        _state_bars(table[table["measure"] == measure], f"{model}: {title}", unit)
        for model, table in tables.items() if not table.empty for measure, (title, unit) in STATE_MEASURES.items()
    ]  # fmt: skip


STATE_MEASURES = {"occupancy": ("occupancy", "part of the windows"), "dwell": ("mean dwell time", "windows")}


def _state_bars(rows: Any, title: str, unit: str) -> Json:
    bars = [
        {"type": "bar", "name": f"{level} (n = {mine['n'].max()})", "x": mine["state"], "y": mine["mean"],
         "error_y": {"type": "data", "array": mine["sd"], "thickness": 1.2, "width": 3},
         "marker": {"color": LEVELS[number % len(LEVELS)]}}
        for number, (level, mine) in enumerate(rows.astype({"level": str}).groupby("level", sort=False))
    ]  # fmt: skip
    axes = {"xaxis": {"type": "category"}, "barmode": "group", "title": _heading(title), "margin": {"t": 50}}
    return _figure(bars, _layout(270, "state", unit, **{**axes, **ABOVE}))


def attention(table: Any) -> Json:
    """Draw the share of a network's attention that each slice, or each time of all participants, has, in even shares.

    Times of participants are joined in bins of the longest repetition time among them. An even share (dotted) is what they
    would have there if all of their time points counted alike.
    """
    if "slice" in table:
        axis = next(one for one in "xyz" if one in table)
        drawn, name = table.set_index(axis)["share"] * len(table), f"{axis} (mm)"
    else:
        drawn, name = _mean_course(table)
    even = _line(drawn.index, np.ones(len(drawn)), ROLES["baseline"], 1.5, line={"dash": "dot"}, hoverinfo="skip")
    return _figure([even, _line(drawn.index, drawn, LEVELS[0])], _layout(250, name, "attention, in even shares"))


def _mean_course(table: Any) -> tuple[Any, str]:
    """Join courses of participants in bins of time, or step by step where a time is not known."""
    whose = table["participant_id"]
    n_each, order = whose.groupby(whose).transform("size"), whose.groupby(whose).cumcount()
    known = bool(table["onset"].notna().all())
    period = table.groupby("participant_id")["onset"].diff()
    width = float(period[period > 0].groupby(whose).min().max()) if known and (period > 0).any() else 1.0
    at = np.floor(table["onset"] / width + 1e-6) * width if known else order
    summed = table.assign(even=1 / n_each, at=at).groupby("at")[["share", "even"]].sum()
    return summed["share"] / summed["even"], "time (s)" if known else "time point"


RESEMBLING = {"synthetic": ("synthetic participants", "#d55e00"), "train": ("training participants, real", "#8b95a3")}


def resemblance(table: Any) -> Json | None:
    """Draw for each split how well synthetic and training participants are told from those of the validation part."""
    table = table[(table["level"] == "all") & table["auc"].notna()]
    if table.empty:
        return None
    places = {name: k for k, name in enumerate(dict.fromkeys(table["feature"]))}
    data = []
    for number, (rows, (title, colour)) in enumerate(RESEMBLING.items()):
        mine = table[table["rows"] == rows]
        spread = 0.2 * (np.arange(len(mine)) * 0.618034 % 1) - 0.1 + 0.3 * number - 0.15
        said = [
            f"{title}, {r.split}: {r.auc:.2f} (chance {r.chance_low:.2f} to {r.chance_high:.2f})"
            for r in mine.itertuples()
        ]
        data.append({
            "type": "scatter", "mode": "markers", "name": title, "x": mine["auc"], "y": mine["feature"].map(places) + spread,
            "hoverinfo": "text", "hovertext": said, "marker": {"color": colour, "size": 8, "opacity": 0.8},
        })  # fmt: skip
    line = {
        "type": "line",
        "x0": 0.5,
        "x1": 0.5,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"dash": "dot", "color": "#5b6675"},
    }
    axes: Json = {
        "xaxis": {"range": [0, 1.02]}, "shapes": [line], "margin": {"t": 40},
        "yaxis": {"tickvals": list(places.values()), "ticktext": list(places), "range": [len(places) - 0.5, -0.5]},
    }  # fmt: skip
    x = "AUC of telling them from validation participants, a point a split; dotted: not told apart"
    return _figure(data, _layout(130 + 70 * len(places), x, **{**axes, **ABOVE}))


def growth_curve(view: View) -> Json | None:
    """Draw the main metric over the number of training participants; what is extrapolated is dotted."""
    table = view.read("metrics", "learningcurve")
    if table.empty:
        return None
    table = table[(table["metric"] == view.main) & table["value"].notna()].sort_values("n_train", kind="stable")
    data = []
    for number, model in enumerate(dict.fromkeys([view.best, *view.rivals, *table["model"]])):
        rows, colour = table[table["model"] == model], LEVELS[number % len(LEVELS)]
        known = (rows["kind"] == "measured").to_numpy()
        beyond = rows[
            ~known | (np.arange(len(rows)) == known.sum() - 1)
        ]  # a dotted line begins where the measured one ends
        data.append(_with_bars(rows[known], colour, name=model))
        if len(beyond) > 1:
            data.append(_with_bars(beyond, colour, dash="dot", showlegend=False))
    axes: Json = {"xaxis": {"type": "log", "dtick": "D2"}, **ABOVE}
    return _figure(data, _layout(340, "training participants", prose.METRICS.get(view.main, view.main), **axes))


def _with_bars(rows: Any, colour: str, *, dash: str = "solid", **more: Any) -> Json:
    """Draw scores as a line with points and the ends of their intervals."""
    up, down = rows["ci_high"] - rows["value"], rows["value"] - rows["ci_low"]
    bars = {"type": "data", "array": up, "arrayminus": down, "symmetric": False, "thickness": 1, "color": colour}
    points = {"mode": "lines+markers", "marker": {"color": colour, "size": 7}, "error_y": bars}
    return _line(rows["n_train"], rows["value"], colour, 2, line={"dash": dash}, **more) | points


def subgroup_dots(view: View, kind: str = "subgroups") -> list[Json]:
    """Draw the main metric in each subgroup, a figure a column, for the best model and the baselines.

    Ranges of a quantity stand in their order, words in that of the best model's scores.
    """
    table = view.read("metrics", kind)
    if table.empty:
        return []
    table = table[table["metric"] == view.main].dropna(subset=["value"])
    return [_subgroup_dots(rows, str(column), view) for column, rows in table.groupby("column")]


def _subgroup_dots(table: Any, column: str, view: View) -> Json:
    table = table.assign(level=table["level"].astype(str))
    best = table[table["model"] == view.best]
    order = best["level"].iloc[np.argsort(_lower_ends(best["level"]) or best["value"], kind="stable")].tolist()
    data = [
        _dots(table[table["model"] == model], model, view, int(table["n"].max())) for model in [*view.rivals, view.best]
    ]
    axes = {"yaxis": {"type": "category", "categoryorder": "array", "categoryarray": order}, "margin": {"t": 68}}
    axes["title"] = _heading(column)
    height = 138 + 21 * table["level"].nunique()
    return _figure(data, _layout(height, prose.METRICS.get(view.main, view.main), **{**axes, **ABOVE}))


def _lower_ends(levels: Iterable[str]) -> list[float]:
    """Read where the ranges of a quantity, or numbers, begin; nothing where a level is a word."""
    try:
        return [float(level.partition(" to ")[0]) for level in levels]
    except ValueError:
        return []


def _dots(rows: Any, model: str, view: View, most: int) -> Json:
    """Draw one model's scores, the larger the more participants a subgroup has."""
    symbol = "circle-open" if DASHES.get(view.method(model)) == "dash" else "circle"
    size = 6 + 12 * np.sqrt(rows["n"] / max(most, 1))
    levels = zip(rows["level"], rows["value"], rows["n"], strict=True)
    return {
        "type": "scatter", "x": rows["value"], "y": rows["level"], "mode": "markers", "name": model, "hoverinfo": "text",
        "hovertext": [f"{model}, {s}: {prose.short(v)} (n = {n})" for s, v, n in levels],
        "marker": {"size": size, "color": view.colour(model), "symbol": symbol, "opacity": 0.85},
    }  # fmt: skip
