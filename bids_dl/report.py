"""HTML reports and the methods text, made from the files in the output folder alone."""

from __future__ import annotations

import base64
import io
import json
import re
import tomllib
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bids_dl import derivatives, query

Array = NDArray[Any]
Json = dict[str, Any]

DIVERGING = ("#2166ac", "#67a9cf", "#d1e5f0", "#f7f7f7", "#fddbc7", "#ef8a62", "#b2182b")
SEQUENTIAL = ("#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725")
GREY = ("#101418", "#f4f5f6")
HEAT = ("#8c1d04", "#dd5a05", "#fcae1e", "#fcf3a6")
N_SHADES = 25
"""Shades of a picture: what the eye tells apart in noise, at half the bytes of 256."""
TIMES = "\N{MULTIPLICATION SIGN}"
MISSING, BLANK = N_SHADES, N_SHADES + 1
TEMPLATES = Path(__file__).parent / "templates"
TITLES = {"t1w": "T1-weighted brain", "timeseries": "regional time series", "connectivity": "connectivity"}


def _ramp(anchors: Sequence[str], n: int) -> Array:
    """Interpolate hex colours: (n, 3) in uint8."""
    colours = np.array([[int(a[i : i + 2], 16) for i in (1, 3, 5)] for a in anchors], float)
    at = np.linspace(0, len(anchors) - 1, n)
    return np.stack([np.interp(at, np.arange(len(anchors)), c) for c in colours.T], axis=1).astype(np.uint8)


def _png(indices: Array, palette: Array) -> str:
    """Encode an image of palette indices; Huffman coding only, as noise does not repeat."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(indices, np.uint8))
    image.putpalette(palette.astype(np.uint8).tobytes())
    return _uri(image, "png", compress_type=2 if indices.size > 4096 else 0)


def _uri(image: Any, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _shrink(values: Array, side: int = 400) -> Array:
    """Average blocks of rows and columns until neither side is longer than ``side``."""
    for axis in (0, 1):
        n = values.shape[axis]
        starts = np.arange(0, n, -(-n // side))
        if len(starts) < n:
            width = np.diff([*starts, n])
            values = np.add.reduceat(values, starts, axis) / (width[:, None] if axis == 0 else width)
    return values


def _picture(values: Array, colours: Sequence[str], low: float, high: float, *, diagonal: bool = False) -> Json:
    """Draw a matrix as PNG; missing values are grey and, if asked, the diagonal is blank."""
    shown = _shrink(values)
    known = np.isfinite(shown)
    scaled = (np.where(known, shown, low) - low) * ((N_SHADES - 1) / max(high - low, 1e-12))
    indices = np.where(known, np.clip(np.rint(scaled), 0, N_SHADES - 1), MISSING)
    if diagonal:
        np.fill_diagonal(indices, BLANK)
    palette = np.vstack([_ramp(colours, N_SHADES), [[176, 182, 190], [255, 255, 255]]])
    uri = _png(indices, palette)
    rows, columns = values.shape
    return {
        "uri": uri,
        "low": low,
        "high": high,
        "stops": colours,
        "rows": rows,
        "columns": columns,
        "key": zlib.crc32(uri.encode()),
    }


def _matrix(values: Array) -> Json:
    """Draw a connectome: diverging about 0 if it has negative edges, else sequential."""
    edges = values[np.triu_indices(len(values), 1)] if len(values) == values.shape[1] else values.ravel()
    edges = edges[np.isfinite(edges)]
    if edges.size == 0:
        return _picture(values, GREY, 0, 1, diagonal=True)
    if edges.min() < 0:
        limit = float(np.percentile(np.abs(edges[:: max(1, edges.size // 20000)]), 98))
        return _picture(values, DIVERGING, -limit, limit, diagonal=True)
    return _picture(values, SEQUENTIAL, float(edges.min()), float(np.percentile(edges, 99)), diagonal=True)


def _histogram(edges: Array, n_bins: int = 40) -> Json:
    """Count edge values in bars of an SVG 292 wide and 110 high."""
    low, high = np.percentile(edges[:: max(1, edges.size // 20000)], [0.2, 99.8])
    high = high if high > low else low + 1
    counts = np.bincount(
        ((edges - low) * (n_bins / (high - low))).clip(-1, n_bins).astype(int) + 1, minlength=n_bins + 2
    )[1:-1]
    step = 292 / n_bins
    heights = np.round(110 * counts / counts.max(initial=1), 1)
    zero = round(4 + 292 * float(-low / (high - low)), 1) if low < 0 < high else None
    bars = [(round(4 + i * step, 1), float(h)) for i, h in enumerate(heights)]
    return {"bars": bars, "width": round(step - 0.8, 1), "low": float(low), "high": float(high), "zero": zero}


def write_participant(out: Path, participant_id: str) -> Path:
    """Write one participant's page: what was extracted from what, pictures of it, and what went wrong.

    Parameters
    ----------
    out
        The output folder.
    participant_id
        With ``sub-``. A participant without a record gets a page that says so.

    Returns
    -------
    Path
        ``OUT/sub-X.html``, some 200 kB, complete in itself.
    """
    path = out / "logs" / "participants" / f"{participant_id}.json"
    record = _json(path)
    features, problems = record.get("features", []), list(record.get("problems", []))
    if not record:
        problems.append({"reason": f"there is no record of this participant ({path.relative_to(out)})."})
    verdict, tone = _verdict_participant(features, problems)
    page = _template("participant.html.j2").render(
        participant_id=participant_id, verdict=verdict, tone=tone, problems=problems,
        cards=[_card(out, entry) for entry in features],
        predictions=[_prediction(entry) for entry in record.get("predictions", [])],
        about=_about(out, path), configuration=_text(out / "logs" / "bids_dl_participant.toml"),
    )  # fmt: skip
    return derivatives.write_text(out / f"{participant_id}.html", page)


@lru_cache(maxsize=1)
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters["brief"] = _brief
    environment.globals["style"] = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    return environment


def _template(name: str) -> Any:
    return _environment().get_template(name)


def _brief(value: Any, digits: int = 3) -> str:
    """Write a number in a few digits, and anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        return "" if value is None else str(value)
    if not np.isfinite(value):
        return "n/a"
    return f"{value:,}" if isinstance(value, (int, np.integer)) else f"{round(float(value), 12):.{digits}g}"


def _text(path: Path) -> str:
    """Read a text file; empty where there is none."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _json(path: Path) -> Json:
    """Read a JSON object; empty where there is none or it is broken."""
    try:
        content = json.loads(_text(path) or "{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _about(out: Path, made: Path) -> Json:
    """Collect the version, the dataset and the time of what a page is about."""
    description = _json(out / "dataset_description.json")
    generated = description.get("GeneratedBy") or [{}]
    name = _json(out / "group" / "choices.json").get("dataset") if made.stem.endswith("group") else None
    sources = [str(s.get("URL", "")).removeprefix("file://") for s in description.get("SourceDatasets", [])]
    when = f"{datetime.fromtimestamp(made.stat().st_mtime):%Y-%m-%d %H:%M}" if made.exists() else ""
    return {
        "version": generated[0].get("Version", "?"), "dataset": " · ".join(filter(None, [name, ", ".join(sources)])), "made": when,
    }  # fmt: skip


def _verdict_participant(features: Sequence[Json], problems: Sequence[Json]) -> tuple[str, str]:
    """Say in a sentence what was extracted from what, and how good that is: '', ``caution`` or ``bad``."""
    if not features:
        return "No feature could be extracted from this participant.", "bad"
    counts = Counter((_title(f), _origin(f)) for f in features)
    parts = [f"{title}{f' {TIMES}{n}' if n > 1 else ''} ({origin})" for (title, origin), n in counts.items()]
    said = f"Extracted: {', '.join(parts)}."
    if problems:
        return f"{said} {_count(len(problems), 'scan')} could not be used:", "caution"
    return f"{said} No problem was found.", ""


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _title(entry: Json) -> str:
    return TITLES.get(entry["feature"], str(entry["feature"]))


def _origin(entry: Json) -> str:
    """Say how near to the raw data the source of a feature lies."""
    if _is_derived(entry):
        return "computed here from the time series"
    return "from a derivative" if entry.get("prepared") else "prepared here from a raw scan"


def _is_derived(entry: Json) -> bool:
    """Tell whether a connectome was computed from a series, wherever the output lies today."""
    return entry.get("feature") == "connectivity" and str(entry.get("source", "")).endswith("_timeseries.tsv")


def _card(out: Path, entry: Json) -> Json:
    """Describe one feature; a file that is missing or cannot be read leaves a card that says so."""
    path = out / entry["path"]
    shape = f" {TIMES} ".join(map(str, entry.get("shape", [])))
    rows = (("source", entry.get("source")), ("written", entry["path"]), ("shape", shape), ("unit", entry.get("unit")))
    labels = query.entities(path)
    told = [
        labels[k] for k in ("ses", "task", "run", "stat") if labels.get(k) not in {None, "mean", "pearsoncorrelation"}
    ]
    title = _title(entry)
    card: Json = {
        "title": " · ".join([title[:1].upper() + title[1:], *told]),
        "facts": [("Shape", shape)],
        "provenance": rows,
    }
    draw = next((f for end, f in DRAWN.items() if path.name.endswith(end)), None)
    if draw is None:
        return card
    try:
        return card | draw(path, _json(derivatives.sidecar_path(path)) | entry)
    except Exception as problem:  # a picture that fails must not cost the page
        return card | {"failure": f"{path.name} cannot be shown: {problem}"}


def _draw_matrix(path: Path, said: Json) -> Json:
    labels, values = query.read_matrix(path)
    edges = values[np.triu_indices(len(values), 1)]
    edges = edges[np.isfinite(edges)]
    missing = int(((~np.isfinite(values)).sum(axis=0) >= len(values) - 1).sum())
    facts = [("Measure", said.get("RelationshipMeasure", "not said")), ("Regions", len(labels)), *_atlas(path)]
    facts += (
        [("Mean edge", f"{edges.mean():.3g} (SD {edges.std():.3g})"), ("Negative", f"{(edges < 0).mean():.0%}")]
        if edges.size
        else []
    )
    return {
        "matrix": _matrix(values), "facts": [*facts, ("Regions missing", missing)],
        "histogram": _histogram(edges) if edges.size else None, "what": "Regions in the order of the atlas; the diagonal is left blank.",
    }  # fmt: skip


def _atlas(path: Path) -> list[tuple[str, str]]:
    labels = query.entities(path)
    return [
        (name, labels[key])
        for key, name in (("atlas", "Atlas"), ("space", "Space"), ("task", "Task"))
        if labels.get(key)
    ]


def _standardized(values: Array) -> Array:
    """Give each column mean 0 and standard deviation 1 over its finite values; missing ones stay NaN."""
    known = np.isfinite(values)
    n = np.maximum(known.sum(axis=0), 1)
    centred = values - np.where(known, values, 0).sum(axis=0) / n
    spread = np.sqrt((np.where(known, centred, 0) ** 2).sum(axis=0) / n)
    scaled: Array = centred / np.where(spread > 0, spread, 1)
    return scaled


def _draw_series(path: Path, said: Json) -> Json:
    labels, values = query.read_matrix(path)
    z = _standardized(values)
    step, n = said.get("RepetitionTime"), len(values)
    facts = [("Volumes", n), ("Regions", len(labels)), *_atlas(path)]
    if step:
        facts += [("Repetition time", f"{step:g} s"), ("Duration", f"{n * step / 60:.1f} min")]
    facts += [("Mean displacement", f"{said['mean_fd']:.3f} mm")] if said.get("mean_fd") is not None else []
    facts += [("Regions missing", said.get("n_missing", 0)), *_coverage(path)]
    return {
        "carpet": _picture(z.T, GREY, -2, 2), "facts": facts, "change": _change(z), "regions": len(labels),
        "last": n * step if step else n, "axis": "time (s)" if step else "volume",
        "what": "Every row is a region, z-scored over time, black at -2 and white at 2. "
        "Vertical stripes are what all regions share, often motion.",
    }  # fmt: skip


def _change(z: Array) -> str:
    """Draw the root mean square change from each volume to the next as points of an SVG line."""
    steps = np.diff(z, axis=0)
    known = np.isfinite(steps)
    change = np.sqrt((np.where(known, steps, 0) ** 2).sum(axis=1) / np.maximum(known.sum(axis=1), 1))
    change = change[:: max(1, len(change) // 700)]
    x = 46 + 706 * (np.arange(len(change)) + 1) / (len(change) + 1)
    y = 66 - 48 * change / max(float(change.max(initial=0)), 1e-12)
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _coverage(path: Path) -> list[tuple[str, str]]:
    """Read what share of each region the scan covers, where that was written."""
    covered = path.with_name(path.name.replace("stat-mean_timeseries", "stat-coverage_bold"))
    if covered == path or not covered.is_file():
        return []
    share = query.read_matrix(covered)[1].ravel()
    return [("Coverage", f"median {np.nanmedian(share):.0%}; {int((share < 0.5).sum())} regions below half")]


def _draw_volume(path: Path, said: Json) -> Json:
    import nibabel as nib

    image = nib.as_closest_canonical(nib.load(path))  # type: ignore[no-untyped-call]
    values = np.asarray(image.dataobj, np.float32)
    voxel = f" {TIMES} ".join(f"{v:.3g}" for v in image.header.get_zooms()[:3])
    facts = [("Grid", f"{f' {TIMES} '.join(map(str, values.shape))} voxels of {voxel} mm"), *_atlas(path)]
    described = str(said.get("Description", ""))
    warning = "This scan is not registered to the template: voxels do not match between participants."
    return {
        "mosaic": _mosaic(_grey(values), values != 0, image.affine), "warning": warning if "NOT registered" in described else "",
        "facts": [*facts, ("In the brain", f"{(values != 0).mean():.0%} of the grid"), *([("Values", described)] if described else [])],
        "what": "Axial, then coronal and sagittal slices, positions in mm; left is left.",
    }  # fmt: skip


def _grey(values: Array) -> Array:
    """Scale to 0 to 255 between the 1st and 99th percentile of what is not 0, which stays black: (x, y, z, 3)."""
    inside = values != 0
    low, high = np.percentile(values[inside][:: max(1, inside.sum() // 20000)], [1, 99.5]) if inside.any() else (0, 1)
    scaled = np.clip((values - low) / max(float(high - low), 1e-9), 0, 1) * 225 + 30
    return np.repeat(np.where(inside, scaled, 0).astype(np.uint8)[..., None], 3, axis=3)


def _mosaic(colours: Array, inside: Array, affine: Array, width: int = 1080) -> Json:
    """Lay slices of a volume (x, y, z, rgb) out in two strips with their positions."""
    spans = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {a}))) for a in range(3)]
    low, high = zip(
        *((int(s[0]), int(s[-1])) if len(s) else (0, n - 1) for s, n in zip(spans, inside.shape, strict=True)),
        strict=True,
    )
    shares = {2: np.linspace(0.14, 0.92, 8), 1: np.linspace(0.2, 0.82, 3), 0: np.linspace(0.24, 0.76, 4)}
    at = {a: np.rint(low[a] + (high[a] - low[a]) * s).astype(int) for a, s in shares.items()}
    box = tuple(slice(max(0, a - 1), b + 2) for a, b in zip(low, high, strict=True))
    strips, y = [], 0
    for axes in ((2,), (1, 0)):
        tiles = [
            (a, i, np.take(colours, i, a)[tuple(s for b, s in enumerate(box) if b != a)]) for a in axes for i in at[a]
        ]
        strips.append(_strip(tiles, affine, width, y))
        y += strips[-1]["height"] + 20
    return {"strips": strips, "width": width, "height": y}


def _strip(tiles: Sequence[tuple[int, int, Array]], affine: Array, width: int, y: int) -> Json:
    """Join slices side by side, enlarge them smoothly, and name each by its position in mm."""
    from PIL import Image

    shown = [np.rot90(t) for _, _, t in tiles]
    tall = max(t.shape[0] for t in shown)
    padded = [np.pad(t, (((tall - t.shape[0]) // 2, -(-(tall - t.shape[0]) // 2)), (1, 1), (0, 0))) for t in shown]
    joined = np.ascontiguousarray(np.concatenate(padded, axis=1))
    scale = width / joined.shape[1]
    image = Image.fromarray(joined).resize((width, round(tall * scale)), Image.Resampling.BICUBIC)
    edges = np.cumsum([0, *(p.shape[1] for p in padded)]) * scale
    names = [f"{'xyz'[a]} = {affine[a, a] * i + affine[a, 3]:.0f}" for a, i, _ in tiles]
    labels = [(round(float(x), 1), n) for x, n in zip((edges[1:] + edges[:-1]) / 2, names, strict=True)]
    return {"uri": _uri(image, "jpeg", quality=82), "y": y, "height": image.height, "labels": labels}


DRAWN: dict[str, Callable[[Path, Json], Json]] = {
    ".nii.gz": _draw_volume, "_timeseries.tsv": _draw_series, "_relmat.tsv": _draw_matrix,
}  # fmt: skip


def _prediction(entry: Json) -> Json:
    """Turn a bundle's row into gauges: one for the score of a class, none for a quantity."""
    row = entry.get("row", {})
    scores = {k.removeprefix("score_"): v for k, v in row.items() if k.startswith("score_") and v is not None}
    quantity = isinstance(row.get("prediction"), (int, float))
    if not scores and not quantity and row.get("y_score") is not None:
        scores = {"positive class": row["y_score"]}
    gauges = [(name, min(max(float(v), 0), 1)) for name, v in scores.items()]
    return {
        "bundle": entry.get("bundle"),
        "excluded": row.get("excluded"),
        "prediction": _brief(row.get("prediction")),
        "gauges": gauges,
    }


ROLES = {"network": "#0072b2", "fusion": "#d55e00", "baseline": "#8b95a3"}
"""Okabe and Ito's colours, told apart by colour-blind eyes."""
PARTS = {"train": "#bcd7ea", "validation": "#f0c95c", "test": "#b5471b"}
METRICS = {
    "auc": "AUC", "balanced_accuracy": "Balanced accuracy", "accuracy": "Accuracy", "f1": "F1", "brier": "Brier score",
    "r2": "R²", "r": "Correlation r", "mae": "Mean absolute error", "rmse": "Root mean square error",
}  # fmt: skip
P_VALUES = {"p_value": "p", "p_value_retrained": "p retrained"}
LOWER_IS_BETTER = {"brier", "mae", "rmse"}
MAIN = ("auc", "balanced_accuracy", "r2", "r", "mae")
MAX_ROWS = 2000
MAX_EXPLANATIONS = 20
"""Over all targets; more are named but not drawn, so that the page stays below 8 MB."""
NOT_BETTER, NOT_CLEARLY = "is not better", "is better, but not beyond its interval"
COVERS_CHANCE = "The interval covers chance: these data do not show that this target can be predicted."
BELOW_CHANCE = "It is below chance: look for few participants or unlike folds before any meaning."
TOO_MANY = "it was not drawn, to keep this page small; its files are in group/explanations."


def write_group(out: Path) -> Path:
    """Write the page of the group level: who, data, splits, and for each target scores, curves and explanations.

    Parameters
    ----------
    out
        The output folder. Whatever is missing in ``group/`` is left out of the page.

    Returns
    -------
    Path
        ``OUT/group.html``, complete in itself, some 5 MB of which are plotly.
    """
    from plotly.offline import get_plotlyjs

    choices = _choices(out)
    targets = [_safely(_target, out, choices, target) for target in choices.get("targets", [])]
    sections = {f.__name__.strip("_"): _safely(f, out, choices) for f in (_summary, _who, _data, _splits, _methods)}
    page = _template("group.html.j2").render(
        **sections, targets=targets, bundles=_bundles(out), roles=list(ROLES.items()), plotly=get_plotlyjs(),
        about=_about(out, out / "logs" / "bids_dl_group.toml"), configuration=_text(out / "logs" / "bids_dl_group.toml"),
    )  # fmt: skip
    return derivatives.write_text(out / "group.html", page)


def _choices(out: Path) -> Json:
    """Read what was chosen; marks of references in the models' summaries are dropped."""
    choices = _json(out / "group" / "choices.json")
    for model in choices.get("models", []):
        model["summary"] = re.sub(r"\s*(as in )?\[\d+\]_", "", model.get("summary") or "")
    return choices


def write_all(out: Path, level: str) -> None:
    """Write the page of every participant that has a record, or the group's page."""
    if level == "group":
        write_group(out)
        return
    for path in sorted((out / "logs" / "participants").glob("*.json")):
        write_participant(out, path.stem)


def _safely(make: Callable[..., Json], *arguments: Any) -> Json:
    """Make one part of a page; one that fails says why and leaves the others alone."""
    name = {k: v for a in arguments[2:] if isinstance(a, dict) for k, v in a.items() if k == "name"}
    try:
        return name | make(*arguments)
    except Exception as problem:  # a broken file must cost its own part of the page only
        return name | {"failure": f"{type(problem).__name__}: {problem}"}


def _tsv(path: Path) -> Any:
    """Read a table as pandas does, names of people and levels as text; empty where there is none."""
    import pandas as pd

    if not path.is_file() or not path.stat().st_size:
        return pd.DataFrame()
    text = dict.fromkeys(("participant_id", "y_true", "split", "site", "model", "metric", "target", "reason"), str)
    return pd.read_csv(path, sep="\t", na_values=["n/a", ""], keep_default_na=False, dtype=text)


def _table(frame: Any, titles: Mapping[str, str] | None = None) -> Json | None:
    """Lay a pandas table out for the page; long ones are cut and say so."""
    if frame.empty:
        return None
    shown = frame.head(MAX_ROWS)
    numeric = [kind.kind in "fiu" for kind in frame.dtypes]
    rows = [[_brief(cell if cell == cell else None) for cell in row] for row in shown.itertuples(index=False)]
    names = [(titles or {}).get(c, str(c).replace("_", " ")) for c in frame.columns]
    return {"columns": names, "rows": rows, "numeric": numeric, "hidden": len(frame) - len(shown)}


def _summary(out: Path, choices: Json) -> Json:
    """Count what there is, and pass on the notes of the run and the validator's words."""
    people, n_splits = _tsv(out / "group" / "participants.tsv"), choices.get("splits", {}).get("n_splits", 0)
    counted = {"participant": len(people), **{k: len(choices.get(f"{k}s", [])) for k in ("feature", "target", "model")}}
    tiles = [(_brief(n), noun if n == 1 else f"{noun}s") for noun, n in {**counted, "split": n_splits}.items()]
    validation = _json(out / "logs" / "validation.json")
    errors = ", ".join(f"{code} ({n})" for code, n in validation.get("error", {}).items())
    found = f"errors in the dataset: {errors}" if errors else "no error in the dataset"
    said = f"The BIDS validator found {found}." if validation else ""
    failed = _json(out / "group" / "failed.json").get("failed", [])
    return {"tiles": tiles, "notes": choices.get("notes", []), "validation": said, "failed": failed}


def _who(out: Path, choices: Json) -> Json:
    """Follow the participants from those found to those used, and show what they are like."""
    import pandas as pd

    people, excluded = _tsv(out / "group" / "participants.tsv"), _tsv(out / "group" / "excluded.tsv")
    ids = set(people.get("participant_id", ())) | set(excluded.get("participant_id", ()))
    flow = [_flow(out, t, ids, excluded) for t in choices.get("targets", [])]
    known = [t for t in choices.get("targets", []) if t["name"] in people]
    site = choices.get("splits", {}).get("site") or next((c for c in people if c in {"site", "center", "centre"}), None)
    sites = _sites_table(people, site, known) if site and site in people else pd.DataFrame()
    return {
        "flow": flow,
        "figures": [_distribution(people, t) for t in known],
        "sites": _table(sites),
        "excluded": _table(excluded),
    }


def _flow(out: Path, target: Json, ids: set[str], excluded: Any) -> Json:
    """Count who was found, left out for which reason, and used for one target."""
    parts = _tsv(out / "group" / "splits" / f"target-{target['name']}_splits.tsv")
    used = (
        set()
        if parts.empty
        else set(parts.loc[parts.drop(columns="participant_id").notna().any(axis=1), "participant_id"])
    )
    reasons: dict[str, str] = {}
    if not excluded.empty:
        mine = excluded[excluded["target"].isin([target["name"]]) | excluded["target"].isna()]
        reasons = {
            i: _plain_reason(i, r) for i, r in zip(mine["participant_id"], mine["reason"], strict=True) if i not in used
        }
    n_used = len(used) or target.get("n", len(ids) - len(reasons))
    n_unsaid = max(len(ids) - n_used - len(reasons), 0)
    plain = Counter(reasons.values()).most_common(8) + ([("no reason noted", n_unsaid)] if n_unsaid else [])
    return {"name": target["name"], "found": len(ids), "out": len(ids) - n_used, "used": n_used, "reasons": plain}


def _plain_reason(participant_id: str, reason: str) -> str:
    """Drop the name from a reason, so that equal reasons can be counted."""
    return re.sub(rf"^{re.escape(str(participant_id))}[\w-]*:?\s*", "", str(reason))


def _sites_table(people: Any, site: str, targets: Sequence[Json]) -> Any:
    """Count each site's participants, by level of each class and with the mean of each quantity."""
    import pandas as pd

    groups = people.groupby(people[site].astype(str))
    columns = {"site": list(groups.groups), "participants": groups.size().to_list()}
    for target in targets:
        name = target["name"]
        if target["kind"] == "classification":
            counts = pd.crosstab(people[site].astype(str), people[name].astype(str))
            columns |= {
                f"{name}: {level}": counts.get(str(level), counts.sum(axis=1) * 0).to_list()
                for level in target["levels"]
            }
        else:
            columns[f"{name}: mean"] = groups[name].mean().round(2).to_list()
            columns[f"{name}: SD"] = groups[name].std().round(2).to_list()
    return pd.DataFrame(columns)


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
    return {"text": text, "font": {"size": 13, "color": "#1c2430"}, "x": 0, "xanchor": "left", "xref": "paper"}


def _distribution(people: Any, target: Json) -> Json:
    """Show how many have each level, or how the quantity is spread."""
    name = target["name"]
    if target["kind"] == "classification":
        counts = people[name].astype(str).value_counts()
        levels = [str(v) for v in target["levels"]]
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
            _layout(110 + 34 * len(levels), "participants", title=_heading(name), yaxis={"autorange": "reversed"}),
        )
    values = people[name].dropna().astype(float)
    bars = {"type": "histogram", "x": values, "marker": {"color": "#7ba7c7"}, "nbinsx": 30}
    return _figure([bars], _layout(210, name, "participants", title=_heading(name), bargap=0.05))


def _data(out: Path, choices: Json) -> Json:
    """List the features, and who has which."""
    import pandas as pd

    rows = [_feature_row(f) for f in choices.get("features", [])]
    people, problems = _tsv(out / "group" / "participants.tsv"), _tsv(out / "logs" / "problems.tsv")
    flags = [c for c in people if str(c).startswith("feature:")]
    has = people[flags].fillna(0).astype(bool) if flags else pd.DataFrame()
    n = max(len(people), 1)
    counts = [(c.removeprefix("feature:"), float(has[c].mean()), f"{int(has[c].sum())} of {n}") for c in flags]
    names = np.array([c.removeprefix("feature:") for c in flags])
    patterns = Counter(" + ".join(names[row]) or "none" for row in has.to_numpy())
    shares = [(name, k / n, str(k)) for name, k in patterns.most_common(10)]
    features = _table(pd.DataFrame(rows).dropna(axis=1, how="all"))
    return {"features": features, "available": counts, "patterns": shares, "problems": _table(problems)}


def _feature_row(feature: Json) -> Json:
    shape = zip(feature.get("shape", []), feature.get("dims", []), strict=False)
    row = {"feature": feature["name"], "participants": feature.get("n_participants"), "files": feature.get("files")}
    row |= {
        "shape": f" {TIMES} ".join(f"{n:,} {d}" for n, d in shape),
        "space": feature.get("space"),
        "atlas": feature.get("atlas"),
    }
    return row | {"regions": feature.get("n_regions") if feature.get("atlas") else None}


def _splits(out: Path, choices: Json) -> Json:
    """Say how participants were divided, and draw it."""
    import pandas as pd

    given = choices.get("splits", {})
    counts, pictures = [], []
    for name in [t["name"] for t in choices.get("targets", [])]:
        table = _tsv(out / "group" / "splits" / f"target-{name}_splits.tsv")
        if table.empty:
            continue
        table = table.set_index("participant_id")
        pictures.append(_splits_picture(name, table, _tsv(out / "group" / "participants.tsv"), given.get("site")))
        counts += [{"target": name, "split": c, **{p: int((table[c] == p).sum()) for p in PARTS}} for c in table]
    legend = [*PARTS.items(), ("not used", "#f5f7f9")]
    return {"said": _said_splits(given), "pictures": pictures, "legend": legend, "counts": _table(pd.DataFrame(counts))}


def _splits_picture(name: str, table: Any, people: Any, site: str | None) -> Json:
    """Draw who is in which part: a row a split, a column a participant, by site and then test fold."""
    codes = np.stack([table[c].map({p: i for i, p in enumerate(PARTS)}).fillna(3).to_numpy(int) for c in table])
    order = np.lexsort((codes != 2)[::-1])
    by_site = bool(site) and site in people
    if by_site:
        of = people.set_index("participant_id")[site].astype(str).reindex(table.index).fillna("").to_numpy()
        order = np.lexsort([*(codes != 2)[::-1], of])
    shown = codes[:, order][:, :: max(1, codes.shape[1] // 1600)]
    palette = np.vstack([_ramp(tuple(PARTS.values()), 3), [[245, 247, 249]]])
    height = int(np.clip(14 * len(codes), 40, 320))
    order_said = " within each site" if by_site else ""
    return {"name": name, "uri": _png(shown, palette), "n": codes.shape[1], "height": height, "order": order_said}


def _said_splits(given: Json) -> str:
    """Describe the splits in a sentence of the past tense; empty if nothing is known."""
    if not given:
        return ""
    kinds = {"kfold": f"{given.get('n_folds')}-fold cross-validation", "file": "splits given in a file"}
    said = kinds.get(given.get("kind", ""), f"{given.get('kind')} cross-validation")
    said += (
        f", repeated {given['n_repeats']} times"
        if given.get("kind") == "kfold" and given.get("n_repeats", 1) > 1
        else ""
    )
    said += f" ({given['n_splits']} splits)" if given.get("n_splits") else ""
    said += f"; participants with the same {given['groups']} were kept in one part" if given.get("groups") else ""
    return f"Models were tested by {said}. No test participant was used to train a model or to stop its training."


@dataclass(frozen=True)
class _View:
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
        return _tsv(self.out / "group" / kind / f"target-{self.target['name']}_{end}.tsv")

    def colour(self, model: str) -> str:
        """Colour a model by its role."""
        return ROLES.get(_role(self.models, model), ROLES["network"])

    def method(self, model: str) -> str:
        """Name the method of a model."""
        return str(self.models.get(model, {}).get("model"))


def _target(out: Path, choices: Json, target: Json) -> Json:
    """Collect everything about one target: verdict, scores, curves, explanations."""
    name, models = target["name"], {m["id"]: m for m in choices.get("models", [])}
    metrics = _tsv(out / "group" / "metrics" / f"target-{name}_metrics.tsv")
    main = next((m for m in MAIN if m in set(metrics.get("metric", ()))), "")
    scores = metrics[metrics["metric"] == main] if main else metrics
    best = _best(scores, models, main)
    verdict, tone = _verdict(scores, models, main, best)
    rivals = [m for kind in DASHES if (m := _rival(scores, models, main, best, kind))]
    n_drawn = max(2, MAX_EXPLANATIONS // max(len(choices.get("targets", [])), 1))
    view = _View(out, target, models, main, best, rivals, n_drawn)
    both = " and the baselines" if target["kind"] == "classification" else ""
    return {
        "said": _said_target(target), "verdict": verdict, "tone": tone, "metric": METRICS.get(main, main),
        "forest": _forest(scores, view), "metrics": _metrics_table(metrics, view), "curves": _curves(view),
        "curves_title": f"Predictions of {best}{both}", "learning": _learning(view), "sites": _site_dots(view),
        "explanations": _explanations(view),
    }  # fmt: skip


def _said_target(target: Json) -> str:
    """Describe a target: how many have each level, or the range of the quantity, and why it was chosen."""
    counts = target.get("counts", {})
    if target["kind"] == "classification":
        said = ", ".join(f"{level} {n:,}" for level, n in counts.items())
        said += f"; positive class: {target['positive']}" if target.get("positive") is not None else ""
    else:
        said = "mean {mean:.3g}, SD {sd:.3g}, range {min:.3g} to {max:.3g}".format(
            **{"mean": 0, "sd": 0, "min": 0, "max": 0, **counts}
        )
    return (
        f"{target['kind'].capitalize()} of {target.get('n', '?')} participants: {said}. {_sentence(target.get('why'))}"
    )


def _sentence(text: str | None) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""


def _role(models: Mapping[str, Json], model: str) -> str:
    return str(models.get(model, {}).get("role", "network"))


def _best(scores: Any, models: Mapping[str, Json], main: str) -> str:
    """Name the best network or fusion by the main metric, or the best baseline where there is none."""
    if scores.empty:
        return ""
    networks = scores[[_role(models, m) != "baseline" for m in scores["model"]]]
    ranked = (scores if networks.empty else networks).sort_values("value", ascending=main in LOWER_IS_BETTER)
    return str(ranked["model"].iloc[0])


def _verdict(scores: Any, models: Mapping[str, Json], main: str, best: str) -> tuple[list[str], str]:
    """Say in plain words how well it went, and what speaks against it; ``caution`` where something does."""
    if scores.empty:
        return [], ""
    row = scores[scores["model"] == best].iloc[0]
    sign = -1 if main in LOWER_IS_BETTER else 1
    low, high = sorted((sign * row["ci_low"], sign * row["ci_high"]))
    said = [
        f"Best: {best}, {_result(row, main)} in {row['n']:.0f} held-out participants; chance is {_score(row['chance'])}."
    ]
    against = []
    if not low > sign * row["chance"]:
        against.append(COVERS_CHANCE if high >= sign * row["chance"] else BELOW_CHANCE)
    for kind, name in (("confounds_only", "The confounds alone reach"), ("linear", "A linear model reaches")):
        if rival := _rival(scores, models, main, best, kind):
            value = sign * float(scores.loc[scores["model"] == rival, "value"].iloc[0])
            doubt = f": {best} {NOT_BETTER if value >= sign * row['value'] else NOT_CLEARLY}" if value >= low else ""
            (against if doubt else said).append(f"{name} {_score(sign * value)} ({rival}){doubt}.")
    n_tried = sum(_role(models, m) != "baseline" for m in scores["model"])
    if n_tried > 1 and _role(models, best) != "baseline":
        said.append(
            f"It is the best of {n_tried} compared on the same test participants; expect slightly less on new ones."
        )
    return said[:1] + against + said[1:], "caution" if against else ""


def _rival(scores: Any, models: Mapping[str, Json], main: str, best: str, kind: str) -> str:
    """Name the best baseline of one kind."""
    mine = [models.get(m, {}).get("model") == kind and m != best for m in scores.get("model", ())]
    return _best(scores[mine], models, main) if any(mine) else ""


def _score(value: float) -> str:
    if value is None or not np.isfinite(value):
        return "n/a"
    return f"{value:.4g}" if abs(value) >= 100 or value == 0 else f"{value:.2f}".replace("-0.00", "0.00")


def _result(row: Any, main: str) -> str:
    """Write a score as papers do: AUC 0.74 [0.70, 0.78], p = 0.0005."""
    known = [
        (c, said) for c, said in (("p_value_retrained", "retrained "), ("p_value", "")) if row.get(c) == row.get(c)
    ]
    p = f", {known[0][1]}p = {row[known[0][0]]:.2g}" if known else ""
    return f"{METRICS.get(main, main)} {_interval(row['value'], row['ci_low'], row['ci_high'])}{p}"


def _interval(value: float, low: float, high: float) -> str:
    return f"{_score(value)} [{_score(low)}, {_score(high)}]"


def _ordered(scores: Any, models: Mapping[str, Json], main: str) -> Any:
    """Sort models: baselines last, each group from good to bad."""
    baseline = [_role(models, m) == "baseline" for m in scores["model"]]
    value = scores["value"] * (-1 if main in LOWER_IS_BETTER else 1)
    return scores.iloc[np.lexsort((-value, baseline))]


def _forest(scores: Any, view: _View) -> Json | None:
    """Draw every model's main score with its interval, by role, beside the line of chance."""
    if scores.empty:
        return None
    main, models = view.main, view.models
    rows = _ordered(scores, models, main)
    names = [f"<b>{m}</b>" if m == view.best else m for m in rows["model"]]
    hover = [
        f"{m}<br>{_result(r, main)}<br>{models.get(m, {}).get('summary', '')}"
        for m, (_, r) in zip(rows["model"], rows.iterrows(), strict=True)
    ]
    colours = [view.colour(m) for m in rows["model"]]
    ranges = list(zip(rows["value"], rows["ci_low"], rows["ci_high"], strict=True))
    data = [_line(r[1:], [n] * 2, c, hoverinfo="skip") for r, n, c in zip(ranges, names, colours, strict=True)]
    points = {"mode": "markers", "marker": {"color": colours, "size": 10}, "hovertext": hover, "hoverinfo": "text"}
    data.append({"type": "scatter", "x": rows["value"], "y": names, **points})
    note = {"x": 1.01, "xref": "paper", "xanchor": "left", "showarrow": False, "font": {"size": 12}}
    notes = [note | {"y": n, "text": f"  {_interval(*r)}"} for n, r in zip(names, ranges, strict=True)]
    ends = [float(f(rows[["ci_low", "ci_high", "chance", "value"]].to_numpy())) for f in (np.nanmin, np.nanmax)]
    margin = 0.04 * (ends[1] - ends[0])
    at = {"x0": rows["chance"].iloc[0], "x1": rows["chance"].iloc[0], "yref": "paper", "y0": 0, "y1": 1}
    line = {"type": "line", **at, "line": {"dash": "dot", "color": "#5b6675", "width": 1.5}}
    axes: Json = {"xaxis": {"range": [ends[0] - margin, ends[1] + margin]}, "yaxis": {"autorange": "reversed"}}
    axes |= {"shapes": [line], "annotations": notes, "margin": {"r": 150}}
    return _figure(data, _layout(70 + 30 * len(rows), METRICS.get(main, main), **axes))


def _metrics_table(metrics: Any, view: _View) -> Json | None:
    """Lay out a row a model: every metric with its interval, and the p-values of the main one."""
    import pandas as pd

    if metrics.empty:
        return None
    rows, main, models = [], view.main, view.models
    for model in _ordered(metrics[metrics["metric"] == main], models, main)["model"]:
        mine = metrics[metrics["model"] == model].set_index("metric")
        said = {m: _interval(v.value, v.ci_low, v.ci_high) for m, v in mine.iterrows()}
        row = {"model": model, "feature": models.get(model, {}).get("feature"), METRICS.get(main, main): said.pop(main)}
        row |= {title: mine[c].get(main) for c, title in P_VALUES.items() if c in mine}
        rows.append(row | {METRICS.get(m, m): text for m, text in said.items()} | {"n": mine["n"].get(main)})
    frame = pd.DataFrame(rows).dropna(axis=1, how="all")
    table = _table(frame)
    return table and table | {"numeric": [c not in {"model", "feature"} for c in frame]}


def _curves(view: _View) -> list[Json]:
    """Draw ROC and calibration of classes, or predicted against true of a quantity."""
    target = view.target
    frame = view.read("predictions", f"model-{view.best}_predictions")
    if frame.empty:
        return []
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


def _roc_of(frame: Any, column: str, level: str) -> tuple[Array, list[Array]]:
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


def _roc(shown: Mapping[str, Any], view: _View) -> Json:
    """Draw the mean ROC curve of each model, and every fold's of the best."""
    data = [DIAGONAL]
    for model, frame in shown.items():
        mean, folds = _roc_of(frame, "y_score", _positive(view.target))
        if model == view.best:
            x, y = _joined((FROM_ORIGIN, [0, *f]) for f in folds)
            data.append(_line(x, y, view.colour(model), 0.6, opacity=0.45, hoverinfo="skip", showlegend=False))
        width, dash = 3 if model == view.best else 1.8, DASHES.get(view.method(model), "solid")
        data.append(_line(FROM_ORIGIN, [0, *mean], view.colour(model), width, line={"dash": dash}, name=model))
    return _figure(data, _layout(380, *RATES, title=_heading("ROC, mean over folds; thin: each fold"), **LEGEND))


def _roc_levels(frame: Any, target: Json) -> Json:
    """Draw the ROC curve of each level against the rest."""
    curves = {str(level): _roc_of(frame, f"score_{level}", str(level))[0] for level in target["levels"]}
    lines = [
        _line(FROM_ORIGIN, [0, *mean], LEVELS[i % len(LEVELS)], 2.2, name=level)
        for i, (level, mean) in enumerate(curves.items())
    ]
    return _figure(
        [DIAGONAL, *lines], _layout(380, *RATES, title=_heading("ROC of each level against the rest"), **LEGEND)
    )


def _calibration(shown: Mapping[str, Any], view: _View) -> Json:
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


def _learning(view: _View) -> list[Json]:
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
        figures.append(_figure(data, _layout(250, "epoch", "loss", title=_heading(model), **ABOVE)))
    return figures


def _site_dots(view: _View) -> Json | None:
    """Draw the main metric at each site for the best model and the baselines."""
    table = view.read("metrics", "sites")
    if table.empty:
        return None
    table = table[table["metric"] == view.main].dropna(subset=["value"])
    order = table[table["model"] == view.best].sort_values("value")["site"].tolist()
    data = [
        _dots(table[table["model"] == model], model, view, int(table["n"].max())) for model in [*view.rivals, view.best]
    ]
    axes = {"yaxis": {"categoryorder": "array", "categoryarray": order}, "margin": {"t": 40}}
    return _figure(
        data, _layout(110 + 21 * table["site"].nunique(), METRICS.get(view.main, view.main), **{**axes, **ABOVE})
    )


def _dots(rows: Any, model: str, view: _View, most: int) -> Json:
    """Draw one model's scores, the larger the more participants a site has."""
    symbol = "circle-open" if DASHES.get(view.method(model)) == "dash" else "circle"
    size = 6 + 12 * np.sqrt(rows["n"] / max(most, 1))
    sites = zip(rows["site"], rows["value"], rows["n"], strict=True)
    return {
        "type": "scatter", "x": rows["value"], "y": rows["site"], "mode": "markers", "name": model, "hoverinfo": "text",
        "hovertext": [f"{model} at {s}: {_score(v)} (n = {n})" for s, v, n in sites],
        "marker": {"size": size, "color": view.colour(model), "symbol": symbol, "opacity": 0.85},
    }  # fmt: skip


NAMED = re.compile(
    r"target-(?P<target>.+?)_model-(?P<model>.+?)_feature-(?P<feature>.+?)_desc-(?P<method>.+?)"
    r"_(?P<kind>statmap|edges|regions|columns)\.(nii\.gz|tsv)$"
)


def _explained(out: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Walk the explanations that lie in the output, with what their names say."""
    for path in sorted((out / "group" / "explanations").glob("target-*")):
        if found := NAMED.match(path.name):
            yield path, found.groupdict()


def _explanations(view: _View) -> list[Json]:
    """Show the maps, edges and regions of this target; the best model's are open."""
    groups: dict[tuple[str, str, str], dict[str, Path]] = {}
    for path, said in _explained(view.out):
        if said["target"] == view.target["name"]:
            groups.setdefault((said["model"], said["feature"], said["method"]), {})[said["kind"]] = path
    ordered = sorted(groups.items(), key=lambda g: g[0][0] != view.best)
    shown = []
    for number, ((model, feature, method), paths) in enumerate(ordered):
        title = f"{model} · {TITLES.get(feature, feature)} · {_spoken(method)}"
        drawn = (
            _safely(partial(_explanation, additive=method != "occlusion"), paths)
            if number < view.n_drawn
            else {"failure": TOO_MANY}
        )
        shown.append({"title": title, "open": model == view.best and number < 2, **drawn})
    return shown


def _spoken(method: str) -> str:
    """Write the name of an explainer as words: labels of BIDS cannot hold a space."""
    words = method.replace("_", " ")
    return re.sub(r"^(integrated|layerwise)(?=[a-z])", r"\1 ", words)


def _explanation(paths: Mapping[str, Path], *, additive: bool = True) -> Json:
    """Draw one method's result: a map on the template, or edges as table, matrix and regions."""
    shown: Json = {}
    if not additive:
        shown["note"] = "Regions are occluded one by one: their shares overlap and do not add up."
    if "statmap" in paths:
        shown |= _overlay(paths["statmap"])
    regions = next(
        (_tsv(paths[k]).rename(columns={"column": "region"}) for k in ("regions", "columns") if k in paths),
        _tsv(Path()),
    )
    if not regions.empty:
        regions = regions.iloc[np.argsort(-regions["share"].abs().fillna(0).to_numpy(), kind="stable")]
        top = regions.head(20).fillna({"share": 0})
        largest = max(float(top["share"].abs().max()), 1e-12)
        shown["regions"] = [(r, abs(s) / largest, f"{s:.2%}") for r, s in zip(top["region"], top["share"], strict=True)]
    edges = _tsv(paths["edges"]) if "edges" in paths else _tsv(Path())
    if not edges.empty:
        shown["edges"] = _table(edges.iloc[np.argsort(-edges["share"].abs().fillna(0).to_numpy(), kind="stable")[:30]])
        shown |= _edge_matrix(edges, regions)
    return shown


def _edge_matrix(edges: Any, regions: Any) -> Json:
    """Draw the edges as a matrix: signed where that was written, else their share."""
    names = (
        list(regions["region"]) if not regions.empty else list(dict.fromkeys([*edges["region_a"], *edges["region_b"]]))
    )
    place = {n: i for i, n in enumerate(names)}
    if len(names) > 400:
        return {}
    column = "signed" if "signed" in edges and edges["signed"].notna().any() else "share"
    values = np.zeros((len(names), len(names)))
    a, b = (edges[c].map(place).to_numpy(int) for c in ("region_a", "region_b"))
    values[a, b] = values[b, a] = edges[column].fillna(0)
    said = (
        "Signed attribution: red raises the model's output, blue lowers it."
        if column == "signed"
        else "Share of the prediction."
    )
    said += " Regions are ordered by their share." if len(regions) else ""
    return {"matrix": _matrix(values), "matrix_said": said}


@lru_cache(maxsize=1)
def _background() -> Any:
    from nilearn.datasets import load_mni152_template

    return load_mni152_template(resolution=2)


def _overlay(path: Path) -> Json:
    """Lay a map over the MNI152 template, the more opaque the larger it is."""
    import nibabel as nib
    from nilearn.image import resample_to_img

    template = _background()
    values = resample_to_img(
        nib.load(path), template, interpolation="linear", force_resample=True, copy_header=True
    ).get_fdata()
    grey = np.asarray(template.get_fdata())
    grey = np.where(grey > 0.2 * grey.max(), grey, 0)
    limit = float(np.percentile(np.abs(values[values != 0]), 99.5)) if (values != 0).any() else 1.0
    two_sided = bool((values < -0.02 * limit).any())
    colours, low = (("#56b4e9", "#0b3d66", "#000000", *HEAT[0::2]), -limit) if two_sided else (HEAT, 0.0)
    index = np.clip((values - low) / (limit - low) * 255, 0, 255).astype(int)
    alpha = np.clip((np.abs(values) / limit - 0.15) / 0.5, 0, 0.9)[..., None]
    blended = _grey(grey) * (1 - alpha) + _ramp(colours, 256)[index] * alpha
    said = "Group map on the MNI152 template: axial, then coronal and sagittal slices, positions in mm; left is left."
    mosaic = _mosaic(blended.astype(np.uint8), grey > 0, template.affine)
    return {"mosaic": mosaic, "what": said, "stops": colours, "low": low, "high": limit}


def _bundles(out: Path) -> list[Json]:
    """List the trained models with the command that applies each."""
    folders = sorted(p for p in (out / "group" / "bundles").glob("*") if p.is_dir())
    return [{"name": p.name, "command": f"bids_dl NEW_DATA OUT participant --bundle {p.resolve()}"} for p in folders]


class Reference(NamedTuple):
    """A paper that a method is known by."""

    authors: str
    year: int
    title: str
    venue: str
    link: str

    @property
    def key(self) -> str:
        """Name of the BibTeX entry."""
        return f"{self.authors.split(',')[0].replace(' ', '').replace('-', '')}{self.year}"

    @property
    def cited(self) -> str:
        """How the text cites it: Ojala and Garriga, 2010."""
        families = [a.split(",")[0] for a in self.authors.split(" and ")]
        few = len(families) < 3 and families[-1] != "others"
        return f"{' and '.join(families) if few else f'{families[0]} et al.'}, {self.year}"

    def plain(self) -> str:
        """Write it as a line of a list."""
        who = self.authors.replace(" and others", " et al.").replace(" and ", "; ")
        return f"{who} ({self.year}). {self.title}. {self.venue}. {self.link}".strip()

    def bibtex(self) -> str:
        """Write it as a BibTeX entry."""
        kind, identifier = (
            ("doi", self.link.removeprefix("doi:")) if self.link.startswith("doi:") else ("note", self.link)
        )
        fields = {
            "author": self.authors,
            "title": f"{{{self.title}}}",
            "journal": self.venue,
            "year": str(self.year),
            kind: identifier,
        }
        return "\n".join([f"@article{{{self.key},", *(f"  {k} = {{{v}}}," for k, v in fields.items() if v), "}"])


CITED = re.compile(r" ?\[@([\w;@-]+)\]")
"""``[@bids]`` in a paragraph cites the reference of that trigger; a trigger without one cites nothing."""


@lru_cache(maxsize=1)
def references() -> dict[str, Reference]:
    """Read the table of references, keyed by what brings each in."""
    lines = (TEMPLATES / "references.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    return {
        trigger: Reference(authors, int(year), title, venue, link)
        for trigger, authors, year, title, venue, link in rows
    }


def write_methods(out: Path, level: str) -> None:
    """Write the methods text of what was done as ``logs/CITATION.md``, ``.html`` and ``.bib``.

    Parameters
    ----------
    out
        The output folder; only what its files show to have happened is told.
    level
        ``participant``, or ``group``, whose text tells both levels.
    """
    paragraphs = _paragraphs(out, level)
    used = _used(paragraphs)
    keyed = [_with_citations(p, " [{}]", lambda reference: f"@{reference.key}") for p in paragraphs]
    listed = "\n".join(f"- {r.plain()}" for r in used)
    logs = out / "logs"
    derivatives.write_text(logs / "CITATION.md", "\n\n".join(["# Methods", *keyed, "# References", listed]) + "\n")
    derivatives.write_text(logs / "CITATION.bib", "\n\n".join(r.bibtex() for r in used) + "\n")
    page = _template("methods.html.j2").render(paragraphs=_readable(paragraphs), references=[r.plain() for r in used])
    derivatives.write_text(logs / "CITATION.html", page)


def _known(match: re.Match[str]) -> list[str]:
    return [k for k in match[1].replace("@", "").split(";") if k in references()]


def _used(paragraphs: Sequence[str]) -> list[Reference]:
    """List what the paragraphs cite, by author, once each."""
    keys = {k for p in paragraphs for m in CITED.finditer(p) for k in _known(m)}
    return sorted({references()[k] for k in keys}, key=lambda r: (r.authors.lower(), r.year))


def _with_citations(text: str, frame: str, show: Callable[[Reference], str]) -> str:
    """Put each citation of a paragraph in a frame such as ``({})``; those without a reference vanish."""

    def cite(match: re.Match[str]) -> str:
        known = [show(references()[k]) for k in _known(match)]
        return frame.format("; ".join(known)) if known else ""

    return CITED.sub(cite, text)


def _readable(paragraphs: Sequence[str]) -> list[str]:
    return [_with_citations(p, " ({})", lambda reference: reference.cited) for p in paragraphs]


def _methods(out: Path, choices: Json) -> Json:
    """Give the methods text to the group's page, with the time that each step took."""
    paragraphs = _paragraphs(out, "group")
    seconds = {k: float(v) for k, v in choices.get("seconds", {}).items()}
    longest = max(seconds.values(), default=1) or 1
    bars = [
        (k, v / longest, f"{v:.0f} s" if v < 600 else f"{v / 60:.0f} min")
        for k, v in sorted(seconds.items(), key=lambda i: -i[1])
    ]
    return {"paragraphs": _readable(paragraphs), "references": [r.plain() for r in _used(paragraphs)], "seconds": bars}


def _paragraphs(out: Path, level: str) -> list[str]:
    """Write the text, a paragraph a step that left something behind."""
    choices = _choices(out) if level == "group" else {}
    settings = tomllib.loads(_text(out / "logs" / f"bids_dl_{level}.toml"))
    said = [
        _said_data(out), _said_features(out), _said_targets(choices, settings), _said_models(out, choices),
        *([_said_scores(out, settings), _said_explanations(out)] if level == "group" else []),
    ]  # fmt: skip
    return [paragraph for paragraph in said if paragraph]


def _said_data(out: Path) -> str:
    version = _about(out, out)["version"]
    return (
        f"Data in the Brain Imaging Data Structure [@bids] were processed with bids_dl {version}, a BIDS App [@bidsapps], "
        "which found its inputs with PyBIDS [@pybids] and ran as a Nipype graph [@nipype]."
    )


KEPT = "the weights with the lowest loss in validation participants were kept"
WITH_CAPTUM = {"integratedgradients", "saliency", "gradcam", "lrp"}
SUBJECTS = {"timeseries": "Regional time series", "connectivity": "Connectivity matrices", "t1w": "T1-weighted volumes"}


def _said_features(out: Path) -> str:
    """Tell which features were extracted, a sentence a kind of file, from the participants' records."""
    records = [_json(p) for p in sorted((out / "logs" / "participants").glob("*.json"))]
    kinds: dict[tuple[str, ...], list[Json]] = {}
    for record in records:
        for entry in record.get("features", []):
            labels = query.entities(Path(entry["path"]))
            kind = (entry["feature"], *(labels.get(k, "") for k in ("task", "space", "atlas", "stat", "desc")))
            kinds.setdefault(kind, []).append(entry | {"who": record.get("participant_id")})
    said = [_said_feature(out, mine) for mine in kinds.values()]
    failed = sum(bool(r.get("problems")) for r in records)
    return " ".join(
        [*said, *([f"At least one scan of {_count(failed, 'participant')} could not be used."] if failed else [])]
    )


def _said_feature(out: Path, entries: Sequence[Json]) -> str:
    first = entries[0]
    path = out / first["path"]
    labels, sidecar = query.entities(path), _json(derivatives.sidecar_path(path))
    family = re.match(r"[a-z]*", labels.get("atlas", "").lower())
    where = (
        f" in the regions of the {labels['atlas']} atlas [@atlas-{family[0] if family else ''}]"
        if labels.get("atlas")
        else ""
    )
    where += f" in {labels['space']} space" if labels.get("space") else ""
    how = "; ".join(str(sidecar[k]) for k in ("RelationshipMeasure", "Description") if sidecar.get(k))
    how = how.replace("Fisher z", "Fisher z [@fisherz]") + (
        " [@nilearn]" if "_bold." in str(first.get("source")) else ""
    )
    motion = [e["mean_fd"] for e in entries if e.get("mean_fd") is not None]
    moved = f" Mean framewise displacement [@displacement] was {np.mean(motion):.2f} mm." if motion else ""
    n = _count(len({e["who"] for e in entries}), "participant")
    subject = SUBJECTS.get(first["feature"], f"Features '{first['feature']}'")
    return f"{subject}{where} ({n}{f'; {how}' if how else ''}) were {_said_origin(entries)}.{moved}"


def _said_origin(entries: Sequence[Json]) -> str:
    if _is_derived(entries[0]):
        return "computed from the regional time series"
    raw = sum(not e.get("prepared") for e in entries)
    if 0 < raw < len(entries):
        return f"prepared by bids_dl from {raw} raw scans and taken from derivatives for the other {len(entries) - raw}"
    return "prepared by bids_dl from raw scans" if raw else "taken from derivatives"


def _said_targets(choices: Json, settings: Json) -> str:
    said = []
    for target in choices.get("targets", []):
        counts, n = target.get("counts", {}), target.get("n", "?")
        if target["kind"] == "classification":
            levels = ", ".join(f"{k} {level}" for level, k in counts.items())
            said.append(f"'{target['name']}' was classified in {n} participants ({levels}).")
        else:
            spread = f"mean {counts.get('mean', 0):.3g}, SD {counts.get('sd', 0):.3g}"
            said.append(f"'{target['name']}' was predicted by regression in {n} participants ({spread}).")
    if settings.get("normalization", {}).get("remove_confounds") and said:
        confounds = ", ".join(choices.get("covariates", []))
        said.append(
            f"Confounds ({confounds}) were regressed out of the features, with weights learned from training participants."
        )
    return " ".join([*said, _said_splits(choices.get("splits", {}))]).strip()


def _said_models(out: Path, choices: Json) -> str:
    """Tell which models were trained, and how long, from what they left behind."""
    named: dict[bool, list[str]] = {True: [], False: []}
    for model in choices.get("models", []):
        named[model.get("role") == "baseline"].append(f"{model['id']} ({model.get('summary', '').rstrip('.')})")
    said = []
    if named[False]:
        said.append(
            f"Neural networks [@review] were trained with PyTorch [@pytorch] and MONAI [@monai]: {'; '.join(named[False])}."
        )
        tables = [t for p in sorted((out / "group" / "histories").glob("*.tsv")) if not (t := _tsv(p)).empty]
        epochs = [int(t["epoch"].max()) + 1 for t in tables if t["train_loss"].notna().any()]
        said += [f"Training with AdamW [@adamw] took at most {max(epochs)} epochs; {KEPT}."] if epochs else []
    if named[True]:
        said.append(
            f"Baselines were fitted with scikit-learn [@scikit-learn] on the same splits: {'; '.join(named[True])}."
        )
    return " ".join(said)


def _said_scores(out: Path, settings: Json) -> str:
    """Tell which scores, intervals and tests were computed, from the tables of metrics."""
    tables = [t for p in sorted((out / "group" / "metrics").glob("*_metrics.tsv")) if not (t := _tsv(p)).empty]
    if not tables:
        return ""
    names = [METRICS.get(m, m) for m in dict.fromkeys(m for t in tables for m in t["metric"])]
    names = [n if n in {"AUC", "F1", "R²", "Brier score"} else n[0].lower() + n[1:] for n in names]
    has = {c: any(c in t and t[c].notna().any() for t in tables) for c in ("ci_low", "p_value", "p_value_retrained")}
    given = settings.get("metrics", {})
    said = f"Held-out predictions were scored by {', '.join(names)}"
    n_drawn, n_permuted = (given.get(key, "many") for key in ("n_bootstraps", "n_permutations"))
    said += (
        f", with 95 % intervals from {n_drawn} bootstrap samples of participants [@bootstrap]" if has["ci_low"] else ""
    )
    said += f", and compared with {n_permuted} permutations of the labels [@permutation]" if has["p_value"] else ""
    said += "; for some models the permutation test repeated the training as well" if has["p_value_retrained"] else ""
    return said + "."


def _said_explanations(out: Path) -> str:
    methods = sorted({said["method"] for _, said in _explained(out)})
    if not methods:
        return ""
    named = [f"{_spoken(m)} [{_explainer_citation(re.sub('[^a-z]', '', m.lower()))}]" for m in methods]
    return f"Predictions of held-out participants were attributed to the input by {' and '.join(named)}."


def _explainer_citation(method: str) -> str:
    return f"@explainer-{method}" + (";@captum" if method in WITH_CAPTUM else "")
