"""The steps of the participant level as they run in workers: a scan prepared, features extracted, bundles applied."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from bids_dl import config as configuration
from bids_dl import derivatives, networks, quality, query, zoo
from bids_dl.config import Config
from bids_dl.errors import DISK_FULL, BidsDLError, DataError, no_room
from bids_dl.records import Feature, Scan

MATRIX_OF = ("ses", "task", "acq", "dir", "run", "atlas")
"""What a series and its connectome have in common."""


def process_batch(config: dict[str, Any], scans: dict[str, list[dict[str, Any]]], bundles: list[str]) -> str:
    """Extract a few participants' features one after another; a failure is noted and the next one goes on.

    Returns
    -------
    str
        Empty, or what the system said when there was no room to write; the rest of the batch is then left.
    """
    settings = configuration.from_mapping(config)
    derivatives.remove(record_path(settings.out, participant_id) for participant_id in scans)
    for participant_id, packed in scans.items():
        try:
            record = process(settings, participant_id, [unpacked(p) for p in packed])
            if bundles:
                record["predictions"] = _predict(settings, participant_id, bundles, record)
            derivatives.write_json(record_path(settings.out, participant_id), record)
            report_on(settings, participant_id)
        except OSError as problem:
            said = no_room(problem)
            record_path(settings.out, participant_id).unlink(missing_ok=True)
            return f"{participant_id}: {said}"
    return ""


def prepare_batch(config: dict[str, Any], scans: dict[str, list[dict[str, Any]]]) -> str:
    """Prepare the BOLDs that networks are fitted on; why one cannot be is noted by the batch that comes after.

    Returns
    -------
    str
        Empty, or what the system said when there was no room to write.
    """
    try:
        _bolds(configuration.from_mapping(config), scans)
    except OSError as problem:
        return no_room(problem)
    return ""


def fit_networks(config: dict[str, Any], scans: dict[str, list[dict[str, Any]]]) -> str:
    """Fit networks on the BOLDs of all participants given; why it failed is noted, and other features go on.

    Returns
    -------
    str
        Empty, or what the system said when there was no room to write.
    """
    settings = configuration.from_mapping(config)
    asked, reason = settings.networks, ""
    old = networks.fitted(settings.out, asked.n_components)
    derivatives.remove([old] if old else [])
    try:
        networks.fit(
            _bolds(settings, scans), settings.out, n_components=asked.n_components, smoothing_mm=asked.smoothing_mm,
            random_seed=settings.random_seed,
        )  # fmt: skip
    except BidsDLError as problem:
        reason = str(problem)
    except OSError as problem:
        return f"networks: {no_room(problem)}"
    derivatives.write_json(networks_note(settings.out), {"participants": sorted(scans), "reason": reason})
    return ""


def _bolds(config: Config, scans: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[Scan]]:
    """List the prepared BOLDs of each participant."""
    found = {}
    for participant_id, packed in scans.items():
        record: dict[str, Any] = {"features": [], "problems": [], "preparations": []}
        ready = _ready(config, record, [unpacked(p) for p in packed], {"bold"})
        found[participant_id] = [s for s in ready if s.kind == "bold"]
    return found


def process(config: Config, participant_id: str, scans: Sequence[Scan]) -> dict[str, Any]:
    """Extract one participant's features and note for each what it came from, or why there is none."""
    record: dict[str, Any] = {"participant_id": participant_id, "features": [], "problems": [], "preparations": []}
    wanted = features_of(config)
    ready = _ready(config, record, scans, {kind for name in wanted for kind in says(name, "TAKES")})
    ready = [_with_modulated(config, record, _with_networks(config, s)) for s in ready]
    for name in wanted:
        taken = [s for s in ready if _takes(name, s) and _options(config, name, s)]
        for scan in [s for s in taken if _has_needed(config, name, s, taken)]:
            _extract(config, record, name, scan)
        for scan in _followed(config, record, name, scans):
            _extract(config, record, name, scan)
    sources = {entry["source"] for entry in record["features"]}
    measured = [s for s in ready if str(s.path) in sources and s.kind in quality.MEASURED]
    record["quality"] = [quality.noted(s, record["features"]) for s in measured]
    if not record["features"] and not record["problems"]:
        record["problems"].append({"scan": participant_id, "reason": "no file that a feature could be extracted from."})
    return record


def _with_networks(config: Config, scan: Scan) -> Scan:
    """Give a BOLD the networks that were fitted for it, where there are some."""
    path = networks.fitted(config.out, config.networks.n_components) if config.networks.n_components else None
    return replace(scan, related={**scan.related, "networks": path}) if path and scan.kind == "bold" else scan


def _with_modulated(config: Config, record: dict[str, Any], scan: Scan) -> Scan:
    """Modulate the grey matter of another program's T1w where a feature needs that; a failure is noted."""
    needed = {need.rpartition(":")[2] for name in features_of(config) for need in says(name, "NEEDS")}
    if scan.kind != "t1w" or not {"gm", "composite"} <= set(scan.related) or "modulated" not in needed:
        return scan
    from bids_dl import registration

    try:
        return registration.modulate(scan, config.out)
    except BidsDLError as problem:
        record["problems"].append({"scan": scan.name, "feature": "modulated grey matter", "reason": str(problem)})
    return scan


def of_networks() -> tuple[str, ...]:
    """List the features of networks, which are fitted first where no template is named.

    ``OF_NETWORKS`` is ``fitted`` for those that are extracted whenever networks are, and ``named`` for the others.
    """
    return zoo.declaring("features", "OF_NETWORKS")


def features_of(config: Config) -> tuple[str, ...]:
    """Return the features asked for, all that are extracted from scans unless named.

    One that follows others follows those of them that are asked for, and needs the first where none is.
    """
    named = config.features.names or tuple(n for n in zoo.names("features") if _is_default(n))
    if config.networks.n_components:
        named = (*named, *(n for n in of_networks() if zoo.constant("features", n, "OF_NETWORKS") == "fitted"))
    needed = {f[0] for n in named if (f := says(n, "FOLLOWS")) and not {*f} & {*named}}
    return tuple(sorted({*named, *needed}, key=lambda n: (bool(says(n, "FOLLOWS")), n)))


def says(name: str, key: str) -> tuple[str, ...]:
    """Read what a feature's file says: ``TAKES`` kinds of scan that have all ``NEEDS``, or ``FOLLOWS`` other features."""
    return tuple(zoo.constant("features", name, key) or ())


def _is_default(name: str) -> bool:
    """Tell whether a feature is extracted without being named."""
    taken = says(name, "TAKES") or says(name, "FOLLOWS")
    return bool(taken) and zoo.constant("features", name, "BY_DEFAULT") is not False


def _takes(name: str, scan: Scan) -> bool:
    """Tell whether a feature is extracted from this kind of scan, and from this parameter of a model's maps."""
    of = says(name, "PARAM")
    return scan.kind in says(name, "TAKES") and (not of or scan.entities.get("param", "").lower() in of)


def _options(config: Config, name: str, scan: Scan) -> list[dict[str, Any]]:
    """List the options to extract a feature with: once with each atlas that fits the scan, once where none is laid over it."""
    known, given = zoo.options("features", name), config.features.of(name)
    if "atlas" not in known:
        return [given]
    fitting = [a for a in zoo.several(given.get("atlas", known["atlas"])) if _fits(name, scan, str(a))]
    is_laid_over = scan.kind in (says(name, "ATLAS_FOR") or (scan.kind,))
    return [{**given, "atlas": atlas} for atlas in (fitting if is_laid_over else fitting[:1])]


def _fits(name: str, scan: Scan, atlas: str) -> bool:
    """Leave grayordinates to an atlas of grayordinates, and volumes to an atlas of voxels."""
    return name != "timeseries" or scan.kind != ("bold" if atlas.endswith(".dlabel.nii") else "cifti")


def _has_needed(config: Config, name: str, scan: Scan, taken: Sequence[Scan]) -> bool:
    """Tell whether a scan has what a feature needs beside it: of every scan, or of one kind as in ``t1w:modulated``.

    Asked for by name, the feature itself says what lacks, unless there is a scan of another kind that it takes.
    """
    needed = {role for kind, _, role in (n.rpartition(":") for n in says(name, "NEEDS")) if kind in {"", scan.kind}}
    if needed <= set(scan.related):
        return True
    return name in config.features.names and all(s.kind == scan.kind for s in taken)


def _followed(config: Config, record: Mapping[str, Any], name: str, scans: Sequence[Scan]) -> Iterator[Scan]:
    """List what was written of the features that this one follows from, but for matrices that a derivative gave."""
    given = {tuple(s.entities.get(k) for k in MATRIX_OF) for s in scans if s.kind == "relmat"}
    for entry in [f for f in record["features"] if f["feature"] in says(name, "FOLLOWS")]:
        path = config.out / entry["path"]
        names = query.entities(path)
        if "relmat" not in says(name, "TAKES") or tuple(names.get(k) for k in MATRIX_OF) not in given:
            yield Scan(path, names, config.out, why=f"from the feature {entry['feature']}")


def _ready(config: Config, record: dict[str, Any], scans: Sequence[Scan], kinds: set[str]) -> list[Scan]:
    """Prepare the raw scans of the kinds that are wanted: T1w first, others through the T1w of their session."""
    able = set(zoo.names("preparations"))
    wanted = [s for s in scans if _is_wanted(s, kinds)]
    raw = [s for s in wanted if not s.prepared and s.kind in able]
    anatomies = [
        s for s in scans if s.kind == "t1w" and (s in wanted or any(r.kind not in {"t1w", *query.SENSORS} for r in raw))
    ]
    seen: dict[str, Scan] = {}
    for scan in anatomies:
        for done in [scan] if scan.prepared else _prepare(config, record, scan, None):
            seen.setdefault(scan.entities.get("ses", ""), done)
            seen[str(scan.path)] = done
    ready = [seen[str(s.path)] for s in wanted if s.kind == "t1w" and str(s.path) in seen]
    for scan in [s for s in wanted if s.kind != "t1w"]:
        anatomy = seen.get(scan.entities.get("ses", "")) or next(iter(seen.values()), None)
        anatomy = None if scan.kind in query.SENSORS else anatomy
        made = _prepare(config, record, scan, anatomy) if scan in raw else [scan]
        ready += [s for s in made if s.kind == scan.kind or not _is_given(s, scans)]
    return ready


def _is_wanted(scan: Scan, kinds: set[str]) -> bool:
    """Tell whether a feature takes a scan, or another kind that its preparation ``GIVES``."""
    if scan.kind in kinds or scan.prepared or scan.kind not in zoo.names("preparations"):
        return scan.kind in kinds
    return bool(kinds & set(zoo.constant("preparations", scan.kind, "GIVES") or ()))


def _is_given(made: Scan, scans: Sequence[Scan]) -> bool:
    """Tell whether a derivative has the map already that a preparation made."""
    same = ("ses", "task", "atlas", "param")
    return any(s.kind == made.kind and all(s.entities.get(k) == made.entities.get(k) for k in same) for s in scans)


def _prepare(config: Config, record: dict[str, Any], scan: Scan, anatomy: Scan | None) -> list[Scan]:
    """Prepare one raw scan, or find what an earlier run prepared from the same file; a failure is noted."""
    started = time.perf_counter()
    try:
        done, is_new = _prepared(config, scan, anatomy)
    except BidsDLError as problem:
        record["problems"].append({"scan": scan.name, "feature": f"preparation {scan.kind}", "reason": str(problem)})
        return []
    except Exception as problem:  # one participant's surprise must not stop the others
        _note_crash(config, record, scan, f"preparation-{scan.kind}", problem)
        return []
    seconds = round(time.perf_counter() - started, 1) if is_new else None
    first, also = done[0], [str(more.path) for more in done[1:]]
    record["preparations"].append(
        {"scan": scan.name, "kind": scan.kind, "seconds": seconds, **packed(first), "also": also}
    )
    return done


def _prepared(config: Config, scan: Scan, anatomy: Scan | None) -> tuple[list[Scan], bool]:
    """Call the preparation; one that makes several scans returns a list, the scan itself first."""
    if not scan.path.exists():
        raise DataError(_not_there(scan))
    place = config.out / "logs" / "preparations" / f"{scan.name}.json"
    options = config.preparations.of(scan.kind)
    made_of = [scan.path, *scan.related.values(), *query.sidecars(scan.path, scan.dataset)]
    made_of += [*([anatomy.path] if anatomy else []), *configuration.option_files(config)]
    stamp = json.dumps([metadata.version("bids_dl"), options, query.versions(made_of)])
    noted = query.read_json(place) if place.is_file() else {}
    if noted.get("stamp") == stamp:
        kept = [unpacked(one) for one in noted["scans"]]
        if all(p.is_file() for one in kept for p in (one.path, *one.related.values())):
            return kept, False
    derivatives.remove([place, *(config.out / file for file in noted.get("files", ()))])
    folder = config.out / f"sub-{scan.entities['sub']}"
    before = _files(folder)
    made = zoo.load("preparations", scan.kind)(scan, anatomy, config.out, **options)
    done = made if isinstance(made, list) else [made]
    files = [str(p.relative_to(config.out)) for p, written in _files(folder).items() if before.get(p) != written]
    derivatives.write_json(place, {"stamp": stamp, "scans": [packed(one) for one in done], "files": files})
    return done, True


def _files(folder: Path) -> dict[Path, int]:
    """List the files below a folder with the time of their last change, ns."""
    return {p: p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


def _not_there(scan: Scan) -> str:
    return (
        f"{scan.name}: {scan.path} is not there; fetch it if it is a link (datalad get), or make the index of "
        "--bids-database-dir anew."
    )


def _extract(config: Config, record: dict[str, Any], name: str, scan: Scan) -> None:
    """Extract one feature of one scan, with each of its atlases."""
    for options in _options(config, name, scan):
        _extract_once(config, record, name, scan, options)


def _extract_once(config: Config, record: dict[str, Any], name: str, scan: Scan, options: Mapping[str, Any]) -> None:
    """Extract one feature of one scan; whatever goes wrong is noted for this scan and nothing else."""
    try:
        if not scan.path.exists():
            raise DataError(_not_there(scan))
        feature: Feature = zoo.load("features", name)(scan, **options)
        path = derivatives.write_feature(config.out, scan, feature)
    except BidsDLError as problem:
        noted = {"scan": scan.name, "feature": name, "reason": str(problem)}
        record["problems"] += [] if noted in record["problems"] else [noted]  # a damaged file fails with every atlas
        return
    except Exception as problem:  # one participant's surprise must not stop the others
        _note_crash(config, record, scan, name, problem)
        return
    record["features"].append(_noted(config, record, name, scan, feature, path))


def _note_crash(config: Config, record: dict[str, Any], scan: Scan, name: str, problem: Exception) -> None:
    """Keep an unexpected error in a file of its own, and a sentence in the record; a full disk goes on up."""
    if isinstance(problem, OSError) and problem.errno in DISK_FULL:
        raise problem
    crash = config.out / "logs" / f"crash-{scan.name}-{name}.txt"
    derivatives.write_text(crash, "".join(traceback.format_exception(problem)))
    reason = f"{scan.name}: unexpected {type(problem).__name__}: {problem}; details in logs/{crash.name}."
    record["problems"].append({"scan": scan.name, "feature": name, "reason": reason})


def _is_from_derivative(config: Config, record: Mapping[str, Any], scan: Scan) -> bool:
    """Tell whether another program prepared what a feature comes from, if need be through the feature it follows."""
    for entry in record["features"]:
        if config.out / entry["path"] == scan.path:
            return bool(entry["prepared"])
    return str(scan.path) not in {path for p in record["preparations"] for path in (p["path"], *p.get("also", ()))}


def _noted(
    config: Config, record: Mapping[str, Any], name: str, scan: Scan, feature: Feature, path: Path
) -> dict[str, Any]:
    """Describe a feature that was written, for the report and for the group level."""
    import numpy as np

    noted = {
        "feature": name, "path": str(path.relative_to(config.out)), "source": str(scan.path), "why": scan.why,
        "prepared": _is_from_derivative(config, record, scan),
        "shape": list(feature.values.shape), "unit": feature.unit, "n_missing": int(np.isnan(feature.values).any(axis=0).sum())
        if feature.affine is None else 0,
    }  # fmt: skip
    told = {"mean_fd": "MeanFramewiseDisplacement", "degrees_of_freedom": "DegreesOfFreedom"}
    return noted | {key: feature.metadata[name] for key, name in told.items() if name in feature.metadata}


def _predict(
    config: Config, participant_id: str, bundles: Sequence[str], record: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Apply each bundle to this participant's features; a refusal is an entry with its reason."""
    from bids_dl import prediction

    return [prediction.predict_participant(Path(path), config, participant_id, record) for path in bundles]


def report_on(config: Config, participant_id: str) -> None:
    """Write a participant's report."""
    from bids_dl import report

    report.write_participant(config.out, participant_id)


def record_path(out: Path, participant_id: str) -> Path:
    """Name the file that says what was found for a participant."""
    return out / "logs" / "participants" / f"{participant_id}.json"


def networks_note(out: Path) -> Path:
    """Name the file that says on whom networks were to be fitted, and why it failed if it did."""
    return out / "logs" / "networks.json"


def packed(scan: Scan) -> dict[str, Any]:
    """Write a scan as JSON can hold it."""
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in vars(scan).items() if v is not None}
    return plain | {"related": {role: str(path) for role, path in scan.related.items()}}


def unpacked(given: Mapping[str, Any]) -> Scan:
    """Read a scan back, the inverse of `packed`."""
    paths = {k: Path(given[k]) for k in ("path", "dataset", "mask", "confounds") if k in given}
    related = {role: Path(path) for role, path in given.get("related", {}).items()}
    return Scan(**{**given, **paths, "related": related})
