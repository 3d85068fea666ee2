"""HTML reports, made from the files in the output folder alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_dl import charts, derivatives, doubts, pictures, prose, quality, query, written
from bids_dl.written import Json

Array = NDArray[Any]


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
        ``OUT/sub-X.html``, some 600 kB, complete in itself.
    """
    path = out / "logs" / "participants" / f"{participant_id}.json"
    record = written.read_json(path)
    features, problems = record.get("features", []), list(record.get("problems", []))
    measured = record.get("quality", [])
    if not record:
        problems.append({"reason": f"there is no record of this participant ({path.relative_to(out)})."})
    told = _safely(_quality, out, participant_id, measured)
    verdict, tone = prose.verdict_of_participant(features, problems, told.get("flagged", 0))
    page = _template("participant.html.j2").render(
        participant_id=participant_id, verdict=verdict, tone=tone, problems=problems,
        cards=[_card(out, _with_measured(out, entry, measured)) for entry in features],
        quality=told, placed=[_safely(_placed, out, entry) for entry in measured],
        sources=_sources(record),
        predictions=[_prediction(entry) for entry in record.get("predictions", [])],
        about=written.about(out, path), configuration=written.read_text(out / "logs" / "bids_dl_participant.toml"),
    )  # fmt: skip
    return derivatives.write_text(out / f"{participant_id}.html", page)


def _with_measured(out: Path, entry: Json, measured: Sequence[Json]) -> Json:
    """Add to a feature what was noted of the scan it comes from."""
    mine = next((q for q in measured if q.get("path") == entry.get("source")), {})
    return entry | {"confounds": written.located(out, mine["confounds"]) if "confounds" in mine else None}


def _quality(out: Path, participant_id: str, measured: Sequence[Json]) -> Json:
    """List what was measured of each scan, with the flags that the whole cohort gave rise to."""
    path = out / "quality.tsv"
    flags = _flags(path, tuple(query.versions([path]))).get(participant_id, {})
    scans = [
        {
            "name": q["scan"], "failure": q.get("failure"),
            "rows": [(*prose.said_measure(name, v), name in flags.get(q["scan"], ())) for name, v in q["measures"].items()],
        }
        for q in measured
    ]  # fmt: skip
    return {"scans": scans, "flagged": sum(map(len, flags.values()))}


@lru_cache(maxsize=1)
def _flags(path: Path, version: tuple[object, ...]) -> dict[str, dict[str, list[str]]]:
    """Read who has which measures flagged, of which scan: once for all pages, as long as the table is of that ``version``."""
    table = written.read_table(path)
    found: dict[str, dict[str, list[str]]] = {}
    rows = table[table["flags"].notna()] if "flags" in table else table.head(0)
    for person, scan, flags in rows.reindex(columns=["participant_id", "scan", "flags"]).itertuples(index=False):
        found.setdefault(person, {})[str(scan)] = str(flags).split(", ")
    return found


def _placed(out: Path, entry: Json) -> Json:
    """Show how a prepared scan lies on the template; of a series, its reference or else its first volume."""
    path = written.located(out, entry["path"])
    if not query.entities(path).get("space", "").startswith("MNI"):
        return {}
    reference = path.with_name(path.name.replace("_desc-preproc_bold", "_boldref"))
    image = reference if reference.is_file() else path
    if not image.is_file():
        return {"scan": entry["scan"], "failure": f"{path} is no longer there."}
    named = {"mask": entry.get("mask"), **{t: entry.get("related", {}).get(t) for t in ("gm", "wm")}}
    beside = {role: written.located(out, p) for role, p in named.items() if p}
    outlined = {role: p for role, p in beside.items() if p.is_file()}
    legend = [(prose.OUTLINED[role], pictures.OUTLINES[role]) for role in outlined]
    return {"scan": entry["scan"], "picture": pictures.draw_registration(image, outlined), "legend": legend}


def _sources(record: Json) -> Json:
    """Say from which file each feature comes, why that one was chosen, and what had to be prepared."""
    features = [(prose.title_of(e), e.get("source", ""), e.get("why", "")) for e in record.get("features", [])]
    prepared = [(p["scan"], p["path"], p.get("why", ""), p.get("seconds")) for p in record.get("preparations", [])]
    return {"features": features, "preparations": prepared}


@lru_cache(maxsize=1)
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(written.TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters["brief"] = prose.brief
    environment.globals["style"] = (written.TEMPLATES / "style.css").read_text(encoding="utf-8")
    return environment


def _template(name: str) -> Any:
    return _environment().get_template(name)


def _card(out: Path, entry: Json) -> Json:
    """Describe one feature; a file that is missing or cannot be read leaves a card that says so."""
    path = out / entry["path"]
    shape = f" {prose.TIMES} ".join(map(str, entry.get("shape", [])))
    rows = (
        ("source", entry.get("source")),
        ("chosen", entry.get("why")),
        ("written", entry["path"]),
        ("shape", shape),
        ("unit", entry.get("unit")),
    )
    labels = query.entities(path)
    told = [
        labels[k] for k in ("ses", "task", "run", "stat") if labels.get(k) not in {None, "mean", "pearsoncorrelation"}
    ]
    title = prose.title_of(entry)
    card: Json = {
        "title": " · ".join([title[:1].upper() + title[1:], *told]),
        "facts": [("Shape", shape)],
        "provenance": rows,
    }
    draw = next((f for end, f in DRAWN.items() if path.name.endswith(end)), None)
    if draw is None:
        return card
    try:
        return card | draw(path, written.read_json(derivatives.sidecar_path(path)) | entry)
    except Exception as problem:  # a picture that fails must not cost the page
        return card | {"failure": f"{path.name} cannot be shown: {problem}"}


def _draw_matrix(path: Path, said: Json) -> Json:
    labels, values = query.read_matrix(path, own=True)
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
        "matrix": pictures.draw_matrix(values), "facts": [*facts, ("Regions missing", missing)],
        "histogram": pictures.draw_histogram(edges) if edges.size else None,
        "what": "Regions in the order of the atlas; the diagonal is left blank.",
    }  # fmt: skip


def _atlas(path: Path) -> list[tuple[str, str]]:
    labels = query.entities(path)
    return [
        (name, labels[key])
        for key, name in (("atlas", "Atlas"), ("space", "Space"), ("task", "Task"))
        if labels.get(key)
    ]


def _draw_series(path: Path, said: Json) -> Json:
    labels, values = query.read_matrix(path, own=True)
    z = pictures.standardized(values)
    step, n = said.get("RepetitionTime"), len(values)
    facts = [("Volumes", n), ("Regions", len(labels)), *_atlas(path)]
    if step:
        facts += [("Repetition time", f"{step:g} s"), ("Duration", f"{n * step / 60:.1f} min")]
    facts += [("Mean displacement", f"{said['mean_fd']:.3f} mm")] if said.get("mean_fd") is not None else []
    facts += [("Regions missing", said.get("n_missing", 0)), *_coverage(path)]
    return {
        "carpet": pictures.draw_values(z.T, pictures.GREY, -2, 2), "facts": facts, "change": pictures.draw_change(z),
        "rows": "region" if query.entities(path).get("atlas") else "column", "regions": len(labels),
        "displacement": _displacement(said.get("confounds"), n), "covered": _least_covered(path),
        "last": n * step if step else n, "axis": "time (s)" if step else "volume",
        "what": "Every row is one column of the table, mostly a region, z-scored over time, black at -2 and white at 2. "
        "Vertical stripes are what all regions share, often motion.",
    }  # fmt: skip


def _displacement(confounds: Path | None, n_volumes: int) -> Json | None:
    """Draw the framewise displacement of the run, where its table is there and as long as the series."""
    if confounds is None or not confounds.is_file():
        return None
    displaced = query.framewise_displacement(confounds)
    if len(displaced) != n_volumes or n_volumes < 2:
        return None
    return pictures.draw_displacement(displaced, quality.MOVED_MM)


def _shares(path: Path) -> tuple[tuple[str, ...], Array]:
    """Read what share of each region the scan covers; empty where that was not written."""
    covered = path.with_name(path.name.replace("stat-mean_timeseries", "stat-coverage_bold"))
    if covered == path or not covered.is_file():
        return (), np.empty(0)
    labels, share = query.read_matrix(covered, own=True)
    return labels, share.ravel()


def _coverage(path: Path) -> list[tuple[str, str]]:
    _, share = _shares(path)
    if not len(share):
        return []
    return [("Coverage", f"median {np.nanmedian(share):.0%}; {int((share < 0.5).sum())} regions below half")]


def _least_covered(path: Path, most: int = 8) -> list[tuple[str, float, str]]:
    """Name the regions that the scan covers least, as bars."""
    labels, share = _shares(path)
    order = [i for i in np.argsort(np.nan_to_num(share), kind="stable")[:most] if not share[i] >= 0.95]
    return [(labels[i], float(np.nan_to_num(share[i])), f"{np.nan_to_num(share[i]):.0%}") for i in order]


def _draw_volume(path: Path, said: Json) -> Json:
    import nibabel as nib

    image = nib.as_closest_canonical(nib.load(path))  # type: ignore[no-untyped-call]
    further = image.shape[3:]
    values = np.asarray(image.dataobj[(..., *[0] * len(further))], np.float32)
    voxel = f" {prose.TIMES} ".join(f"{v:.3g}" for v in image.header.get_zooms()[:3])
    facts = [("Grid", f"{f' {prose.TIMES} '.join(map(str, values.shape))} voxels of {voxel} mm"), *_atlas(path)]
    facts += [
        ("Shown", f"the first of {n} {of}") for of, n in zip(("networks", "windows"), further[::-1], strict=False)
    ]
    described = str(said.get("Description", ""))
    warning = "This scan is not registered to the template: voxels do not match between participants."
    return {
        "mosaic": pictures.draw_mosaic(pictures.to_grey(values), values != 0, image.affine),
        "warning": warning if "NOT registered" in described else "",
        "facts": [*facts, ("In the brain", f"{(values != 0).mean():.0%} of the grid"), *([("Values", described)] if described else [])],
        "what": "Axial, then coronal and sagittal slices, positions in mm; left is left.",
    }  # fmt: skip


def _draw_table(path: Path, said: Json) -> Json:
    """Show numbers that are neither series nor connectome: one row as a histogram with its ends, more as a picture."""
    labels, values = _read_table(path, said)
    known = values[np.isfinite(values)]
    facts = [*_atlas(path), ("Values", f"{values.size:,}"), ("Missing", f"{values.size - known.size:,}")]
    facts += [("Mean", f"{known.mean():.3g} (SD {known.std():.3g})")] if known.size else []
    if len(values) == 1:
        histogram = pictures.draw_histogram(known) if known.size else None
        return {"facts": facts, "histogram": histogram, "of": "value", "largest": _largest(labels, values[0])}
    dims = said.get("Dimensions", ["row", "column"])
    return {
        "matrix": pictures.draw_matrix(values), "facts": facts, "of": dims[1],
        "what": f"Rows: {dims[0]}; columns: {dims[1]}.",
    }  # fmt: skip


def _read_table(path: Path, said: Json) -> tuple[Sequence[str], Array]:
    if path.suffix == ".tsv":
        return query.read_matrix(path, own=True)
    values = np.load(path, mmap_mode="r")
    if values.ndim > 2:
        raise ValueError(f"it has {values.ndim} dimensions")
    return said.get("Labels", ()), np.atleast_2d(np.asarray(values, float))


def _largest(labels: Sequence[str], values: Array, most: int = 12) -> list[tuple[str, float, str]]:
    """Name the values of largest size, as bars."""
    size = np.abs(np.nan_to_num(values))
    order = np.argsort(-size, kind="stable")[:most]
    return [(labels[i], float(size[i] / max(size.max(), 1e-12)), prose.brief(values[i])) for i in order if size[i] > 0]


DRAWN: dict[str, Callable[[Path, Json], Json]] = {
    ".nii.gz": _draw_volume, "_timeseries.tsv": _draw_series, "_relmat.tsv": _draw_matrix, ".tsv": _draw_table,
    ".npy": _draw_table,
}  # fmt: skip
"""By the end of a file's name; the first that fits."""


def _prediction(entry: Json) -> Json:
    """Turn a bundle's row into gauges: one for the score of a class, none for a quantity or an ordered level."""
    row = entry.get("row", {})
    if row.get("n_decoded"):
        return _decoded(entry, row)
    scores = {k.removeprefix("score_"): v for k, v in row.items() if k.startswith("score_") and v is not None}
    quantity = isinstance(row.get("prediction"), (int, float))
    if not scores and not quantity and not row.get("levels") and row.get("y_score") is not None:
        scores = {"positive class": row["y_score"]}
    gauges = [(name, min(max(float(v), 0), 1)) for name, v in scores.items()]
    return {
        "bundle": entry.get("bundle"),
        "excluded": row.get("excluded"),
        "prediction": prose.brief(row.get("prediction")) + (f" of {row['levels']}" if row.get("levels") else ""),
        "gauges": gauges,
    }


def _decoded(entry: Json, row: Json) -> Json:
    """Say how many volumes a bundle decoded, with a gauge for the part of each condition."""
    gauges = [(k.removeprefix("part_"), float(v)) for k, v in row.items() if k.startswith("part_") and v is not None]
    said = f"a condition at each of {row['n_decoded']:,} of {row['n_volumes']:,} volumes, of which these parts"
    return {"bundle": entry.get("bundle"), "excluded": row.get("excluded"), "prediction": said, "gauges": gauges}


P_VALUES = {"p_value": "p", "p_value_retrained": "p retrained"}
MAIN = ("auc", "balanced_accuracy", "rho", "r2", "r", "mae")
MAX_ROWS = 2000
MAX_EXPLANATIONS = 20
"""Over all targets; more are named but not drawn, so that the page stays below 8 MB."""
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
    choices = written.read_choices(out)
    targets = [_safely(_target, out, choices, target) for target in choices.get("targets", [])]
    sections = {
        f.__name__.strip("_"): _safely(f, out, choices) for f in (_summary, _who, _data, _measured, _splits, _methods)
    }
    page = _template("group.html.j2").render(
        **sections, targets=targets, bundles=_bundles(out), roles=list(charts.ROLES.items()), plotly=charts.script(),
        about=written.about(out, out / "logs" / "bids_dl_group.toml"),
        configuration=written.read_text(out / "logs" / "bids_dl_group.toml"),
    )  # fmt: skip
    return derivatives.write_text(out / "group.html", page)


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


def _table(frame: Any, titles: Mapping[str, str] | None = None) -> Json | None:
    """Lay a pandas table out for the page; long ones are cut and say so."""
    if frame.empty:
        return None
    shown = frame.head(MAX_ROWS)
    numeric = [kind.kind in "fiu" for kind in frame.dtypes]
    rows = [[prose.brief(cell if cell == cell else None) for cell in row] for row in shown.itertuples(index=False)]
    names = [(titles or {}).get(c, str(c).replace("_", " ")) for c in frame.columns]
    return {"columns": names, "rows": rows, "numeric": numeric, "hidden": len(frame) - len(shown)}


def _summary(out: Path, choices: Json) -> Json:
    """Count what there is, and pass on the notes of the run and the validator's words."""
    people, n_splits = (
        written.read_people(out / "group" / "participants.tsv"),
        choices.get("splits", {}).get("n_splits", 0),
    )
    moments = next(({"volume": t["n"]} for t in choices.get("targets", []) if t.get("rows")), {})
    counted = {
        "participant": len(people),
        **moments,
        **{k: len(choices.get(f"{k}s", [])) for k in ("feature", "target", "model")},
    }
    tiles = [(prose.brief(n), noun if n == 1 else f"{noun}s") for noun, n in {**counted, "split": n_splits}.items()]
    validation = written.read_json(out / "logs" / "validation.json")
    errors = ", ".join(f"{code} ({n})" for code, n in validation.get("error", {}).items())
    found = f"errors in the dataset: {errors}" if errors else "no error in the dataset"
    said = f"The BIDS validator found {found}." if validation else ""
    failed = written.read_json(out / "group" / "failed.json")
    return {
        "tiles": tiles, "notes": choices.get("notes", []), "validation": said, "failed": failed.get("failed", []),
        "reasons": failed.get("reasons", {}),
    }  # fmt: skip


def _who(out: Path, choices: Json) -> Json:
    """Follow the participants from those found to those used, and show what they are like."""
    import pandas as pd

    rows, people, excluded = (
        written.read_table(out / "group" / "participants.tsv"),
        written.read_people(out / "group" / "participants.tsv"),
        written.read_table(out / "group" / "excluded.tsv"),
    )
    ids = set(people.get("participant_id", ())) | set(excluded.get("participant_id", ()))
    flow = [_flow(out, t, ids, excluded) for t in choices.get("targets", [])]
    known = [t for t in choices.get("targets", []) if t["name"] in people]
    site = choices.get("splits", {}).get("site") or next((c for c in people if c in {"site", "center", "centre"}), None)
    sites = _sites_table(people, rows, site, known) if site and site in people else pd.DataFrame()
    return {
        "flow": flow,
        "figures": [charts.distribution(rows, t) for t in known],
        "sites": _table(sites),
        "excluded": _table(excluded),
        "duplicates": _table(written.read_table(out / "group" / "duplicates.tsv")),
    }


def _flow(out: Path, target: Json, ids: set[str], excluded: Any) -> Json:
    """Count who was found, left out for which reason, and used for one target."""
    parts = written.read_people(out / "group" / "splits" / f"target-{target['name']}_splits.tsv")
    used = (
        set()
        if parts.empty
        else set(parts.loc[parts.drop(columns="participant_id").notna().any(axis=1), "participant_id"])
    )
    reasons: dict[str, str] = {}
    if not excluded.empty:
        mine = excluded[excluded["target"].isin([target["name"]]) | excluded["target"].isna()]
        reasons = {
            i: prose.plain_reason(i, r)
            for i, r in zip(mine["participant_id"], mine["reason"], strict=True)
            if i not in used
        }
    n_used = len(used) or (None if target.get("rows") else target.get("n")) or len(ids) - len(reasons)
    n_unsaid = max(len(ids) - n_used - len(reasons), 0)
    plain = Counter(reasons.values()).most_common(8) + ([("no reason noted", n_unsaid)] if n_unsaid else [])
    return {"name": target["name"], "found": len(ids), "out": len(ids) - n_used, "used": n_used, "reasons": plain}


def _sites_table(people: Any, rows: Any, site: str, targets: Sequence[Json]) -> Any:
    """Count each site's participants, and its rows by level of each class and with the mean of each quantity."""
    import pandas as pd

    groups = people.groupby(people[site].astype(str))
    columns = {"site": list(groups.groups), "participants": groups.size().to_list()}
    for target in targets:
        name = target["name"]
        if target["kind"] != "regression":
            counts = pd.crosstab(rows[site].astype(str), written.as_levels(rows[name], target["levels"]))
            columns |= {
                f"{name}: {level}{' (volumes)' if target.get('rows') else ''}": counts.get(
                    str(level), counts.sum(axis=1) * 0
                ).to_list()
                for level in target["levels"]
            }
        else:
            columns[f"{name}: mean"] = groups[name].mean().round(2).to_list()
            columns[f"{name}: SD"] = groups[name].std().round(2).to_list()
    return pd.DataFrame(columns)


def _data(out: Path, choices: Json) -> Json:
    """List the features, and who has which."""
    import pandas as pd

    rows = [_feature_row(f) for f in choices.get("features", [])]
    people, problems = (
        written.read_people(out / "group" / "participants.tsv"),
        written.read_table(out / "logs" / "problems.tsv"),
    )
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
        "shape": f" {prose.TIMES} ".join(f"{n:,} {d}" for n, d in shape),
        "space": feature.get("space"),
        "atlas": feature.get("atlas"),
    }
    return row | {"regions": feature.get("n_regions") if feature.get("atlas") else None}


RULED = {"max_mean_fd_mm": "mean_fd_mm", "min_mask_dice": "mask_dice"}
"""Rules of quality that set a limit, and the measure that each looks at."""


def _measured(out: Path, choices: Json) -> Json:
    """Show how the measures of quality are spread, who is flagged and why, and what the rules left out."""
    scans, excluded = written.read_table(out / "quality.tsv"), written.read_table(out / "group" / "excluded.tsv")
    if scans.empty:
        return {}
    settings = written.read_toml(out / "logs" / "bids_dl_group.toml")
    reasons = {} if excluded.empty else dict(zip(excluded["participant_id"], excluded["reason"], strict=True))
    given = settings.get("quality", {})
    limits = {measure: given[rule] for rule, measure in RULED.items() if given.get(rule)}
    limits["degrees_of_freedom"] = quality.FEWEST_FREE
    flagged = scans.loc[scans["flags"].notna(), ["participant_id", "scan", "reason"]]
    return {
        "said": prose.said_flags(scans), "rules": prose.said_rules(settings, reasons), "flagged": _table(flagged),
        "kinds": [_kind_measured(str(kind), rows, limits) for kind, rows in scans.groupby("kind")],
    }  # fmt: skip


def _kind_measured(kind: str, scans: Any, limits: Mapping[str, float]) -> Json:
    """Draw every measure of one kind of scan; one that is the same in all is told in words."""
    names = [name for name in quality.MEASURES if name in scans and scans[name].notna().any()]
    drawn = [name for name in names if scans[name].nunique() > 1]
    same = [": ".join(prose.said_measure(n, scans[n].dropna().iloc[0])) for n in names if n not in drawn]
    shown = [(charts.strip(scans, n, quality.MEASURES[n][1], limits.get(n)), quality.MEASURES[n][0]) for n in drawn]
    return {"kind": kind, "n": len(scans), "figures": shown, "same": same}


def _splits(out: Path, choices: Json) -> Json:
    """Say how participants were divided, and draw it."""
    import pandas as pd

    given = choices.get("splits", {})
    counts, drawn = [], []
    for name in [t["name"] for t in choices.get("targets", [])]:
        table = written.read_people(out / "group" / "splits" / f"target-{name}_splits.tsv")
        if table.empty:
            continue
        table = table.set_index("participant_id")
        drawn.append(
            pictures.draw_splits(
                name, table, written.read_people(out / "group" / "participants.tsv"), given.get("site")
            )
        )
        counts += [
            {"target": name, "split": c, **{p: int((table[c] == p).sum()) for p in pictures.PARTS}} for c in table
        ]
    legend = [*pictures.PARTS.items(), ("not used", "#f5f7f9")]
    return {
        "said": prose.said_splits(given),
        "pictures": drawn,
        "legend": legend,
        "counts": _table(pd.DataFrame(counts)),
    }


def _target(out: Path, choices: Json, target: Json) -> Json:
    """Collect everything about one target: verdict, scores, curves, explanations."""
    models = {m["id"]: m for m in choices.get("models", [])}
    metrics, scores, main, best = _scored(out, models, target)
    verdict, tone = prose.verdict_of_target(scores, models, main, best)
    rivals = [m for kind in charts.DASHES if (m := prose.rival_model(scores, models, main, best, kind))]
    n_drawn = max(2, MAX_EXPLANATIONS // max(len(choices.get("targets", [])), 1))
    view = charts.View(out, target, models, main, best, rivals, n_drawn)
    both = " and the baselines" if target["kind"] == "classification" else ""
    moments = bool(target.get("rows"))
    return {
        "relabelled": "circular shifts of each run's conditions" if moments else "permutation of the labels",
        "again": "the conditions shifted" if moments else "labels permuted within folds",
        "judged": "volumes" if moments else "participants",
        "doubts": doubts.of_target(out, choices, target, scores, main, best),
        "said": prose.said_target(target), "verdict": verdict, "tone": tone, "metric": prose.METRICS.get(main, main),
        "forest": charts.forest(scores, view), "metrics": _metrics_table(metrics, view), "curves": charts.score_curves(view),
        "curves_title": f"Predictions of {best}{both}", "learning": charts.learning_curves(view), "subgroups": charts.subgroup_dots(view),
        "growth": charts.growth_curve(view), "grown": _grown(view),
        "comparisons": _comparisons(view), "test": _tested(view, choices), "sureness": _sureness(view),
        "harmonization": _table(view.read("metrics", "harmonization")), "explanations": _explanations(view),
        "states": charts.state_bars(view), "differences": _differences(view),
        "synthetic": _synthetic(view),
    }  # fmt: skip


def _scored(out: Path, models: Mapping[str, Json], target: Json) -> tuple[Any, Any, str, str]:
    """Read a target's scores; returns all, those of the main metric, its name, and the best model."""
    metrics = written.read_table(out / "group" / "metrics" / f"target-{target['name']}_metrics.tsv")
    main = next((m for m in MAIN if m in set(metrics.get("metric", ()))), "")
    scores = metrics[metrics["metric"] == main] if main else metrics
    return metrics, scores, main, prose.best_model(scores, models, main)


def _doubts(out: Path, choices: Json, target: Json) -> Json:
    """List what speaks against one target's best result."""
    _, scores, main, best = _scored(out, {m["id"]: m for m in choices.get("models", [])}, target)
    return {"doubts": doubts.of_target(out, choices, target, scores, main, best)}


def doubted(out: Path) -> list[str]:
    """List what makes the results in an output folder hard to believe, a sentence each, its target before it."""
    choices = written.read_choices(out)
    targets = [_safely(_doubts, out, choices, target) for target in choices.get("targets", [])]
    return [f"{t['name']}: {sentence}" for t in targets for sentence in t.get("doubts", ())]


def _metrics_table(metrics: Any, view: charts.View) -> Json | None:
    """Lay out a row a model: every metric with its interval, and the p-values of the main one."""
    import pandas as pd

    if metrics.empty:
        return None
    rows, main, models = [], view.main, view.models
    for model in prose.ordered_models(metrics[metrics["metric"] == main], models, main)["model"]:
        mine = metrics[metrics["model"] == model].set_index("metric")
        said = {m: prose.with_interval(v.value, v.ci_low, v.ci_high) for m, v in mine.iterrows()}
        row = {
            "model": model,
            "feature": models.get(model, {}).get("feature"),
            prose.METRICS.get(main, main): said.pop(main),
        }
        if "folds_low" in mine and np.isfinite(mine["folds_low"][main]):
            row["over folds"] = "{} to {}".format(*(prose.short(mine[c][main]) for c in ("folds_low", "folds_high")))
        row |= {title: mine[c].get(main) for c, title in P_VALUES.items() if c in mine}
        rows.append(row | {prose.METRICS.get(m, m): text for m, text in said.items()} | {"n": mine["n"].get(main)})
    frame = pd.DataFrame(rows).dropna(axis=1, how="all")
    table = _table(frame)
    return table and table | {"numeric": [c not in {"model", "feature"} for c in frame]}


def _grown(view: charts.View) -> Json | None:
    """Lay out the learning curve: a row a model, a column a size of the training set, extrapolated ones marked."""
    import pandas as pd

    table = view.read("metrics", "learningcurve")
    if table.empty:
        return None
    table = table[table["metric"] == view.main]
    notes = dict(zip(table["model"], table["note"], strict=True)) if "note" in table else {}
    table = table[table["value"].notna()]
    columns = sorted({(r.kind != "measured", int(r.n_train)) for r in table.itertuples()})
    rows = []
    for model in dict.fromkeys(table["model"]):
        mine = {(r.kind != "measured", int(r.n_train)): r for r in table[table["model"] == model].itertuples()}
        cells = [prose.with_interval(r.value, r.ci_low, r.ci_high) if (r := mine.get(c)) else None for c in columns]
        note = notes.get(model)
        rows.append([model, *cells, note if isinstance(note, str) else None])
    titles = [f"{n:,}{' (extrapolated)' if beyond else ''}" for beyond, n in columns]
    return _table(pd.DataFrame(rows, columns=["model", *titles, "not extrapolated, because"]).dropna(axis=1, how="all"))


def _tested(view: charts.View, choices: Json) -> Json | None:
    """Lay out how the models trained on everybody did on another dataset, beside their cross-validated scores."""
    table, before = view.read("metrics", "test"), view.read("metrics", "metrics")
    excluded = _test_excluded(view)
    if table.empty:
        nobody = f"No model was judged on '{choices.get('test', {}).get('dataset', 'the test dataset')}'."
        return {"said": [nobody], "tone": "caution", "excluded": _table(excluded)} if len(excluded) else None
    shown = _metrics_table(table, view)
    known = before[before["metric"] == view.main].set_index("model")["value"]
    if shown:
        cells = [prose.short(known.get(row[0], np.nan)) for row in shown["rows"]]
        shown["columns"].insert(3, "cross-validated")
        shown["numeric"].insert(3, True)
        shown["rows"] = [[*row[:3], cell, *row[3:]] for row, cell in zip(shown["rows"], cells, strict=True)]
    scores = table[table["metric"] == view.main]
    said, tone = prose.verdict_of_test(scores, view.models, view.main, view.best, choices, view.target)
    compared = _comparisons(view, "testcomparisons")
    return {
        "said": said, "tone": tone, "table": shown, "comparisons": compared, "sureness": _sureness(view, "testcalibration"),
        "subgroups": charts.subgroup_dots(view, "testsubgroups"), "excluded": _table(excluded),
    }  # fmt: skip


def _test_excluded(view: charts.View) -> Any:
    """Read who of the test dataset was not judged on this target."""
    table = written.read_table(view.out / "group" / "test_excluded.tsv")
    return table[table["target"].isin([view.target["name"]]) | table["target"].isna()] if len(table) else table


def _synthetic(view: charts.View) -> Json | None:
    """Show whether synthetic participants are told from real ones, a row a feature and class, means over splits."""
    table = view.read("metrics", "synthetic")
    if table.empty:
        return None
    table = table.astype({"level": str})
    wide = table.pivot_table("auc", ["feature", "generator", "level"], "rows", sort=False).reset_index()
    drawn = table[table["rows"] == "synthetic"]
    drawn = drawn.assign(beyond=(drawn["auc"] > drawn["chance_high"]).where(drawn["auc"].notna()).astype(float))
    means = drawn.groupby(["feature", "generator", "level"], sort=False)
    more = means[["beyond", "nearness", "n", "n_validation"]].mean().round(3).reset_index()
    names = {
        "generator": "drawn by", "synthetic": "AUC of synthetic participants", "train": "AUC of training participants",
        "beyond": "splits beyond chance", "nearness": "nearest-neighbour distance ratio", "n": "synthetic", "n_validation": "validation",
    }  # fmt: skip
    shown = wide.merge(more).round(3).rename(columns=names)
    return {"table": _table(shown), "said": prose.said_resemblance(table), "figure": charts.resemblance(table)}


def _comparisons(view: charts.View, kind: str = "comparisons") -> Json | None:
    """Lay out the comparisons of models, the smallest p-values first."""
    table = view.read("metrics", kind)
    if table.empty:
        return None
    table = table.sort_values("p_value", kind="stable")
    said = [prose.with_interval(*r) for r in zip(table["difference"], table["ci_low"], table["ci_high"], strict=True)]
    names = {
        "model": "model",
        "other": "compared with",
        "p_value": "p",
        "p_holm": "p, adjusted",
        "n_folds": "folds",
        "n": "n",
    }
    shown = table[[c for c in names if c in table]].rename(columns=names)
    shown.insert(2, f"difference of {prose.METRICS.get(table['metric'].iloc[0], table['metric'].iloc[0])}", said)
    return _table(shown)


def _sureness(view: charts.View, kind: str = "calibration") -> Json | None:
    """Lay out how well calibrated each model is, and whether its sets or intervals cover what they promise."""
    table = view.read("metrics", kind)
    if table.empty:
        return None
    wide = table.pivot(index="model", columns="metric", values="value").reset_index()
    sizes = {"classification": "classes in a set", "ordinal": "levels in a set"}
    size = sizes.get(view.target["kind"], "width of the interval")
    names = {
        "model": "model", "ece_before": "calibration error, as trained", "ece": "calibration error, calibrated",
        "mae_before": "mean absolute error, as trained", "mae": "mean absolute error, calibrated",
        "coverage": f"coverage (promised: {table['promised'].iloc[0]:.0%})", "size": size,
    }  # fmt: skip
    return _table(wide[[c for c in names if c in wide]].rename(columns=names).round(3))


def _differences(view: charts.View) -> Json | None:
    """Lay out whether the states of held-out participants differ between the levels of the target."""
    import pandas as pd

    tables = {model: view.read("descriptions", f"model-{model}_differences") for model in view.models}
    found = [table.assign(model=model) for model, table in tables.items() if not table.empty]
    if not found:
        return None
    names = {"model": "model", "measure": "measure", "state": "state", "share": "part of the variance", "p_value": "p",
             "p_holm": "p adjusted", "n": "n"}  # fmt: skip
    shown = pd.concat(found)
    shown = shown[[c for c in names if c in shown]].rename(columns=names)
    return _table(shown.round({"part of the variance": 3, "p": 4, "p adjusted": 4}))


METHOD_NOTES = {
    "occlusion": " Regions are occluded one by one: their shares overlap and do not add up.",
    "attention": " Shares tell where the network looked, not what it made of it.",
}

COURSE_NOTES = {
    "courses": " Above the dotted line: more than if all time points counted alike, mean over participants. At rest no time is "
    "the same for all: each participant's own course is in the file.",
    "slices": " Above the dotted line: more than if all slices counted alike.",
}


def _explanations(view: charts.View) -> list[Json]:
    """Show the maps, edges and regions of this target; the best model's are open."""
    groups: dict[tuple[str, str, str], dict[str, Path]] = {}
    for path, said in written.explanations(view.out):
        if said["target"] == view.target["name"]:
            groups.setdefault((said["model"], said["feature"], said["method"]), {})[said["kind"]] = path
    ordered = sorted(groups.items(), key=lambda g: g[0][0] != view.best)
    shown = []
    for number, ((model, feature, method), paths) in enumerate(ordered):
        title = f"{model} · {prose.TITLES.get(feature, feature)} · {prose.spoken(method)}"
        drawn = _safely(partial(_explanation, method=method), paths) if number < view.n_drawn else {"failure": TOO_MANY}
        shown.append({"title": title, "open": model == view.best and number < 2, **drawn})
    return shown


def _explanation(paths: Mapping[str, Path], *, method: str = "") -> Json:
    """Draw one method's result: a map on the template, or edges as table, matrix and regions."""
    shown: Json = {"note": _said_output(next(iter(paths.values()))) + METHOD_NOTES.get(method, "")}
    if "statmap" in paths:
        shown |= pictures.draw_overlay(paths["statmap"])
    for kind in COURSE_NOTES.keys() & paths.keys():
        shown |= {
            "figure": charts.attention(written.read_table(paths[kind])),
            "note": shown["note"] + COURSE_NOTES[kind],
        }
    regions = next(
        (
            written.read_table(paths[k]).rename(columns={"column": "region"})
            for k in ("regions", "columns")
            if k in paths
        ),
        written.read_table(Path()),
    )
    if not regions.empty:
        regions = regions.iloc[np.argsort(-regions["share"].abs().fillna(0).to_numpy(), kind="stable")]
        top = regions.head(20).fillna({"share": 0})
        largest = max(float(top["share"].abs().max()), 1e-12)
        ways, said_ways = _ways(top) if "edges" not in paths else ([""] * len(top), "")
        shown["note"] += said_ways
        shown["regions"] = [
            (r, abs(s) / largest, f"{s:.2%}{way}") for r, s, way in zip(top["region"], top["share"], ways, strict=True)
        ]
    edges = written.read_table(paths["edges"]) if "edges" in paths else written.read_table(Path())
    if not edges.empty:
        shown["edges"] = _table(edges.iloc[np.argsort(-edges["share"].abs().fillna(0).to_numpy(), kind="stable")[:30]])
        shown |= _edge_matrix(edges, regions)
    return shown


def _ways(regions: Any) -> tuple[list[str], str]:
    """Say for each region whether the output rises with it, of several classes whose score rises most, and what that means."""
    up, down = " \N{UPWARDS ARROW}", " \N{DOWNWARDS ARROW}"
    if "slope" in regions:
        return [up if slope > 0 else down for slope in regions["slope"]], f"{up}: the output rises with it."
    if slopes := [column for column in regions if str(column).startswith("slope_")]:
        most = regions[slopes].fillna(0).to_numpy().argmax(axis=1)
        named = [f"{up} {slopes[k].removeprefix('slope_')}" for k in most]
        return named, f"{up}: the class whose score rises most with it."
    return [""] * len(regions), ""


def _said_output(path: Path) -> str:
    """Tell what is explained, and of how many predictions, where the JSON beside a file says so."""
    said = written.read_json(derivatives.sidecar_path(path))
    counted = said.get("NumberOfExplainedPredictions")
    parts = [said.get("Output"), f"{counted} predictions of held-out participants are explained" if counted else ""]
    return " ".join(f"{part}." for part in parts if part)


def _edge_matrix(edges: Any, regions: Any) -> Json:
    """Draw the edges as a matrix, their slopes where these were written, else their share; a directed one row by row."""
    names = (
        list(regions["region"]) if not regions.empty else list(dict.fromkeys([*edges["region_a"], *edges["region_b"]]))
    )
    place = {n: i for i, n in enumerate(names)}
    if len(names) > 400:
        return {}
    column = "slope" if "slope" in edges and edges["slope"].notna().any() else "share"
    values = np.zeros((len(names), len(names)))
    a, b = (edges[c].map(place).to_numpy(int) for c in ("region_a", "region_b"))
    values[b, a] = edges[column].fillna(0)
    values[a, b] = edges[column].fillna(0)  # last: of a directed connectome both directions are listed
    said = (
        "Slope: the output rises with a red edge and falls with a blue one, for one standard deviation as the model sees it."
        if column == "slope"
        else "Share of the prediction."
    )
    said += " Regions are ordered by their share." if len(regions) else ""
    return {"matrix": pictures.draw_matrix(values), "matrix_said": said}


def _bundles(out: Path) -> list[Json]:
    """List the trained models with the command that applies each."""
    folders = sorted(p for p in (out / "group" / "bundles").glob("*") if p.is_dir())
    return [{"name": p.name, "command": f"bids_dl NEW_DATA OUT participant --bundle {p.resolve()}"} for p in folders]


def write_methods(out: Path, level: str) -> None:
    """Write the methods text of what was done as ``logs/CITATION.md``, ``.html`` and ``.bib``.

    Parameters
    ----------
    out
        The output folder; only what its files show to have happened is told.
    level
        ``participant``, or ``group``, whose text tells both levels.
    """
    paragraphs = prose.methods(out, level)
    used = prose.cited_in(paragraphs)
    keyed = prose.with_citations(paragraphs, lambda reference: f"@{reference.key}", " [{}]", " [{}]")
    listed = "\n".join(f"- {r.plain()} {r.url}".rstrip() for r in used)
    logs = out / "logs"
    derivatives.write_text(logs / "CITATION.md", "\n\n".join(["# Methods", *keyed, "# References", listed]) + "\n")
    derivatives.write_text(logs / "CITATION.bib", "\n\n".join(r.bibtex() for r in used) + "\n")
    page = _template("methods.html.j2").render(paragraphs=prose.readable(paragraphs), references=used)
    derivatives.write_text(logs / "CITATION.html", page)


def _methods(out: Path, choices: Json) -> Json:
    """Give the methods text to the group's page, with the time that each step took."""
    paragraphs = prose.methods(out, "group")
    seconds = {k: float(v) for k, v in choices.get("seconds", {}).items()}
    longest = max(seconds.values(), default=1) or 1
    bars = [
        (k, v / longest, f"{v:.0f} s" if v < 600 else f"{v / 60:.0f} min")
        for k, v in sorted(seconds.items(), key=lambda i: -i[1])
    ]
    return {
        "paragraphs": prose.readable(paragraphs),
        "references": prose.cited_in(paragraphs),
        "seconds": bars,
    }
