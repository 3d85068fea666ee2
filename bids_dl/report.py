"""HTML reports and the methods text, made from the files in the output folder alone."""

from __future__ import annotations

import base64
import io
import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
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
MISSING, BLANK = N_SHADES, N_SHADES + 1
TITLES = {"t1w": "T1-weighted brain", "timeseries": "Regional time series", "connectivity": "Connectivity"}


# Pictures straight from arrays


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
    return {"uri": uri, "low": low, "high": high, "stops": colours, "rows": rows, "columns": columns, "key": hash(uri) % 10**8}


def _matrix(values: Array) -> Json:
    """Draw a connectome: diverging about 0 if it has negative edges, else sequential."""
    edges = values[~np.eye(len(values), dtype=bool)]
    edges = edges[np.isfinite(edges)]
    if edges.size == 0:
        return _picture(values, GREY, 0, 1, diagonal=True)
    if edges.min() < 0:
        limit = float(np.percentile(np.abs(edges), 98))
        return _picture(values, DIVERGING, -limit, limit, diagonal=True)
    return _picture(values, SEQUENTIAL, float(edges.min()), float(np.percentile(edges, 99)), diagonal=True)


def _histogram(edges: Array, n_bins: int = 40) -> Json:
    """Count edge values in bars of an SVG 292 wide and 110 high."""
    low, high = np.percentile(edges, [0.2, 99.8])
    high = high if high > low else low + 1
    counts, _ = np.histogram(edges, n_bins, (low, high))
    step = 292 / n_bins
    heights = np.round(110 * counts / counts.max(initial=1), 1)
    zero = round(4 + 292 * float(-low / (high - low)), 1) if low < 0 < high else None
    bars = [(round(4 + i * step, 1), float(h)) for i, h in enumerate(heights)]
    return {"bars": bars, "width": round(step - 0.8, 1), "low": float(low), "high": float(high), "zero": zero}


# The participant's page


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
    verdict, tone = _verdict_participant(out, features, problems)
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

    folder = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True, auto_reload=False
    )
    environment.filters["brief"] = _brief
    environment.globals["style"] = (folder / "style.css").read_text(encoding="utf-8")
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
    sources = [str(s.get("URL", "")).removeprefix("file://") for s in description.get("SourceDatasets", [])]
    when = f"{datetime.fromtimestamp(made.stat().st_mtime):%Y-%m-%d %H:%M}" if made.exists() else ""
    return {
        "version": generated[0].get("Version", "?"), "dataset": ", ".join(sources), "made": when,
        "methods": (out / "logs" / "CITATION.html").is_file() or (out / "logs" / f"{made.stem}.toml").is_file(),
    }  # fmt: skip


def _verdict_participant(out: Path, features: Sequence[Json], problems: Sequence[Json]) -> tuple[str, str]:
    """Say in a sentence what was extracted from what, and how good that is: '', ``caution`` or ``bad``."""
    if not features:
        return "No feature could be extracted from this participant.", "bad"
    counts = Counter((_title(f).lower(), _origin(out, f)) for f in features)
    parts = [f"{title}{f' ×{n}' if n > 1 else ''} ({origin})" for (title, origin), n in counts.items()]
    said = f"Extracted: {', '.join(parts)}."
    if problems:
        return f"{said} {_count(len(problems), 'scan')} could not be used:", "caution"
    return f"{said} No problem was found.", ""


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _title(entry: Json) -> str:
    return TITLES.get(entry["feature"], entry["feature"])


def _origin(out: Path, entry: Json) -> str:
    """Say how near to the raw data the source of a feature lies."""
    if str(entry.get("source", "")).startswith(f"{out}/"):
        return "computed here from the time series"
    return "from a derivative" if entry.get("prepared") else "prepared here from a raw scan"


def _card(out: Path, entry: Json) -> Json:
    """Describe one feature; a file that is missing or cannot be read leaves a card that says so."""
    path = out / entry["path"]
    shape = " × ".join(map(str, entry.get("shape", [])))
    rows = (("source", entry.get("source")), ("written", entry["path"]), ("shape", shape), ("unit", entry.get("unit")))
    labels = query.entities(path)
    told = [labels[k] for k in ("ses", "task", "run", "stat") if labels.get(k)] if len(labels) else []
    card: Json = {"title": " · ".join([_title(entry), *told]), "facts": [("Shape", shape)], "provenance": rows}
    draw = next((f for end, f in DRAWN.items() if path.name.endswith(end)), None)
    if draw is None:
        return card
    try:
        return card | draw(path, entry, _json(derivatives.sidecar_path(path)))
    except Exception as problem:  # a picture that fails must not cost the page
        return card | {"failure": f"{path.name} cannot be shown: {problem}"}


def _draw_matrix(path: Path, entry: Json, sidecar: Json) -> Json:
    labels, values = query.read_matrix(path)
    edges = values[np.triu_indices(len(values), 1)]
    edges = edges[np.isfinite(edges)]
    missing = int((~np.isfinite(values)).sum(axis=0).__ge__(len(values) - 1).sum())
    facts = [("Measure", sidecar.get("RelationshipMeasure", "not said")), ("Regions", len(labels)), *_atlas(path)]
    facts += [("Mean edge", f"{edges.mean():.3g} (SD {edges.std():.3g})"), ("Negative", f"{(edges < 0).mean():.0%}")] if edges.size else []
    return {
        "matrix": _matrix(values), "facts": [*facts, ("Regions missing", missing)],
        "histogram": _histogram(edges) if edges.size else None, "what": "Regions in the order of the atlas; the diagonal is left blank.",
    }  # fmt: skip


def _atlas(path: Path) -> list[tuple[str, str]]:
    labels = query.entities(path)
    return [(name, labels[key]) for key, name in (("atlas", "Atlas"), ("space", "Space"), ("task", "Task")) if labels.get(key)]


def _standardized(values: Array) -> Array:
    """Give each column mean 0 and standard deviation 1 over its finite values; missing ones stay NaN."""
    known = np.isfinite(values)
    n = np.maximum(known.sum(axis=0), 1)
    centred = values - np.where(known, values, 0).sum(axis=0) / n
    spread = np.sqrt((np.where(known, centred, 0) ** 2).sum(axis=0) / n)
    return centred / np.where(spread > 0, spread, 1)


def _draw_series(path: Path, entry: Json, sidecar: Json) -> Json:
    labels, values = query.read_matrix(path)
    z = _standardized(values)
    step, n = sidecar.get("RepetitionTime"), len(values)
    facts = [("Volumes", n), ("Regions", len(labels)), *_atlas(path)]
    if step:
        facts += [("Repetition time", f"{step:g} s"), ("Duration", f"{n * step / 60:.1f} min")]
    facts += [("Mean displacement", f"{entry['mean_fd']:.3f} mm")] if entry.get("mean_fd") is not None else []
    facts += [("Regions missing", entry.get("n_missing", 0)), *_coverage(path)]
    return {
        "carpet": _picture(z.T, GREY, -2, 2), "facts": facts, "change": _change(z), "regions": len(labels),
        "last": n * step if step else n, "axis": "time (s)" if step else "volume",
        "what": "Every row is a region, z-scored over time; grey level from −2 to 2. Vertical stripes are what all regions share, often motion.",
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


def _draw_volume(path: Path, entry: Json, sidecar: Json) -> Json:
    import nibabel as nib

    image = nib.as_closest_canonical(nib.load(path))
    values = np.asarray(image.dataobj, np.float32)
    voxel = " × ".join(f"{v:.3g}" for v in image.header.get_zooms()[:3])
    facts = [("Grid", f"{' × '.join(map(str, values.shape))} voxels of {voxel} mm"), *_atlas(path)]
    said = str(sidecar.get("Description", ""))
    warned = "This scan is not registered to the template: voxels do not match between participants." if "NOT registered" in said else ""
    return {
        "mosaic": _mosaic(_grey(values), values != 0, image.affine), "warning": warned,
        "facts": [*facts, ("In the brain", f"{(values != 0).mean():.0%} of the grid"), *([("Values", said)] if said else [])],
        "what": "Axial, then coronal and sagittal slices, positions in mm; left is left.",
    }  # fmt: skip


def _grey(values: Array) -> Array:
    """Scale to 0–255 between the 1st and 99th percentile of what is not 0, which stays black: (x, y, z, 3)."""
    inside = values != 0
    low, high = np.percentile(values[inside][:: max(1, inside.sum() // 20000)], [1, 99.5]) if inside.any() else (0, 1)
    scaled = np.clip((values - low) / max(float(high - low), 1e-9), 0, 1) * 225 + 30
    return np.repeat(np.where(inside, scaled, 0).astype(np.uint8)[..., None], 3, axis=3)


def _mosaic(colours: Array, inside: Array, affine: Array, width: int = 1080) -> Json:
    """Lay slices of a volume (x, y, z, rgb) out in two strips with their positions."""
    spans = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {a}))) for a in range(3)]
    low, high = zip(*((int(s[0]), int(s[-1])) if len(s) else (0, n - 1) for s, n in zip(spans, inside.shape, strict=True)), strict=True)
    shares = {2: np.linspace(0.14, 0.92, 8), 1: np.linspace(0.2, 0.82, 3), 0: np.linspace(0.24, 0.76, 4)}
    at = {a: np.rint(low[a] + (high[a] - low[a]) * s).astype(int) for a, s in shares.items()}
    box = tuple(slice(max(0, a - 1), b + 2) for a, b in zip(low, high, strict=True))
    strips, y = [], 0
    for axes in ((2,), (1, 0)):
        tiles = [(a, i, np.take(colours, i, a)[tuple(s for b, s in enumerate(box) if b != a)]) for a in axes for i in at[a]]
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


DRAWN: dict[str, Callable[[Path, Json, Json], Json]] = {
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
    return {"bundle": entry.get("bundle"), "excluded": row.get("excluded"), "prediction": _brief(row.get("prediction")), "gauges": gauges}
