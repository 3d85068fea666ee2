"""participants.tsv and the features of every participant become one memory-mapped table of rows."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_dl import derivatives, quality, query, zoo
from bids_dl.config import Config
from bids_dl.errors import DataError, NothingSelectedError
from bids_dl.features.phenotype import described as said_of
from bids_dl.features.phenotype import encoded
from bids_dl.records import STEPS, Array, Block, Cohort, Target

LOG = logging.getLogger("bids_dl")
TARGETS = ("diagnosis", "group", "dx", "dx_group", "diag", "label", "condition", "patient", "age", "sex", "gender")
COVARIATES = ("age", "sex", "gender", "site", "scanner", "mean_fd", "fd_mean")
FAMILIES = ("family_id", "family", "familyid")
MAX_CLASSES = 12
FEWEST_RANKS = 3
CONFOUNDS, SITES = "confounds", "sites"
MAPS = ("network", "x", "y", "z")
MOVING = ("window", *MAPS)
KINDS = {
    "edge": "connectomes (connectivity, structural_connectivity)",
    "column": "columns (morphometry, regional, phenotype, snp)",
    "volume": "volumes (t1w, grey_matter, fa, alff, …)",
    "maps": "maps of networks (network_maps)",
    "moving_maps": "maps of networks in windows (dynamic_network_maps)",
    "sequence": "regional series (timeseries, dual_regression)",
    "windows": "windows of connectomes (dynamic_connectivity)",
}
"""What models take, and the features that are it."""
SEQUENCES = {"sequence": ("time", "roi"), "windows": ("window", "edge"), "moving_maps": MOVING}
DECODERS = ("linear", "mean_mlp", "lstm")
Content = tuple[tuple[str, str], ...]
OF_A_RUN = {"sub", "ses", "run"}
"""What tells files of one content apart; what else differs makes another feature."""
FEWEST_TO_COMPARE = 10
"""Values from which on two participants with equal ones are the same scan."""


@dataclass(frozen=True)
class Variant:
    """One feature under one set of entities (task, atlas, kind of matrix …): its files a participant.

    ``kind`` is what it looks like to a model, as the models' ``SUITS`` call it: ``volume``, ``maps`` (a volume a
    network), ``edge``, ``column``, ``sequence`` (regional series), ``windows`` (a connectome a window) or ``moving_maps``
    (maps a window). ``n_steps`` is the length of the longest sequence, all runs together, as `together` joins them.
    """

    name: str
    feature: str
    entities: Mapping[str, str]
    files: Mapping[str, Sequence[str]]
    n_files: int = 0
    kind: str = "column"
    n_steps: int = 0


@dataclass(frozen=True)
class Plan:
    """What the cohort will hold; made from names alone, before any feature is read.

    ``orders`` are the Levels that participants.json lists of ordinal targets, from low to high.
    """

    participant_ids: tuple[str, ...]
    variants: tuple[Variant, ...]
    columns: Mapping[str, Sequence[Any]]
    excluded: tuple[Mapping[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    tables: Mapping[str, str] = field(default_factory=dict)
    orders: Mapping[str, Sequence[str]] = field(default_factory=dict)


def plan(config: Config) -> Plan:
    """Find out who takes part, with which features; everyone left out is listed with the reason.

    Raises
    ------
    NothingSelectedError
        If the participant level has left nothing for the participants asked for.
    """
    records = _records(config)
    people = query.participants_table(config.bids)
    ids = [i for i in query.participant_ids(config) if i in records or i in people.index]
    excluded = [_left_out(i, "no row in participants.tsv") for i in ids if i not in people.index]
    excluded += [
        _left_out(i, "the participant level has not been run for this participant") for i in ids if i not in records
    ]
    kept = [i for i in ids if i in records and i in people.index]
    sites = quality.sites_of(config.bids, config.splits.site_column)
    unfit, unjudged = quality.exclusions(config.quality, {i: records[i] for i in kept}, sites)
    excluded += [_left_out(i, reason) for i, reason in unfit.items()]
    nowhere = {i for i in kept if i not in sites} if config.splits.kind == "leave-site-out" and sites else set()
    excluded += [
        _left_out(i, "no site, and whole sites are left out in turn") for i in kept if i in nowhere - unfit.keys()
    ]
    kept = [i for i in kept if i not in unfit and i not in nowhere]
    variants = _variants(config, {i: records[i] for i in kept})
    tables = _tables(config)
    empty = [i for i in kept if not any(i in v.files for v in variants)] if variants else ([] if tables else kept)
    excluded += [_left_out(i, _why_empty(records[i])) for i in empty]
    kept = [i for i in kept if i not in set(empty)]
    if not kept:
        raise NothingSelectedError(
            f"no features in {config.out}; run `bids_dl {config.bids} {config.out} participant` first"
            + (f" ({excluded[0]['participant_id']}: {excluded[0]['reason']})." if excluded else ".")
        )
    columns = {c: people.loc[kept, c].tolist() for c in people.columns}
    columns |= _displacement(records, kept, columns)
    return Plan(
        tuple(kept), tuple(variants), columns, tuple(excluded), unjudged, {k: str(v) for k, v in tables.items()},
        _orders(config),
    )  # fmt: skip


def _orders(config: Config) -> dict[str, list[str]]:
    """Read the Levels of ordinal targets in the order in which participants.json lists them."""
    wanted = [name for name, kind in config.targets.kinds.items() if kind == "ordinal"]
    said = said_of(config.bids / "participants.tsv") if wanted else {}
    return {
        name: [str(v) for v in levels if v != "n/a"] for name in wanted if (levels := said.get(name, {}).get("Levels"))
    }


def _left_out(participant_id: str, reason: str) -> dict[str, str]:
    return {"participant_id": participant_id, "target": "", "reason": reason}


def _why_empty(record: Mapping[str, Any]) -> str:
    return " ".join(p["reason"] for p in record["problems"]) or "none of the features asked for"


def _records(config: Config) -> dict[str, dict[str, Any]]:
    """Read what the participant level noted, in the output and in other bids_dl outputs that were named."""
    found: dict[str, dict[str, Any]] = {}
    for root in [config.out, *map(Path, config.select.derivatives.values())]:
        for path in sorted((root / "logs" / "participants").glob("sub-*.json")):
            record = json.loads(path.read_text(encoding="utf-8"))
            for entry in record["features"]:
                entry["path"] = str(root / entry["path"])
            found.setdefault(record["participant_id"], record)
    return found


def _variants(config: Config, records: Mapping[str, Mapping[str, Any]]) -> list[Variant]:
    """Sort every file into the feature and the entities that it shares with the other participants'."""
    wanted, taken = _wanted(config), kinds_taken(config)
    _refuse_untaken(config.features.names, taken, records)
    files: dict[tuple[str, tuple[tuple[str, str], ...]], dict[str, list[str]]] = {}
    kinds: dict[tuple[str, tuple[tuple[str, str], ...]], str] = {}
    lengths: dict[str, int] = {}
    for participant_id, record in records.items():
        for entry in record["features"]:
            names, kind = query.entities(Path(entry["path"])), _kind(entry)
            if entry["feature"] not in wanted or kind not in taken or not _selected(config, names):
                continue
            key = entry["feature"], _content(names)
            files.setdefault(key, {}).setdefault(participant_id, []).append(entry["path"])
            kinds[key] = kind
            lengths[entry["path"]] = entry["shape"][_step_axis(kind)] if kind in SEQUENCES else 0
    named = _short_names(list(files))
    return [
        _variant(named[key], key, {i: _of_one_row(config, paths) for i, paths in mine.items()}, kinds[key], lengths)
        for key, mine in sorted(files.items(), key=lambda item: named[item[0]])
    ]


def _variant(
    name: str, key: tuple[str, tuple[tuple[str, str], ...]], files: Mapping[str, Sequence[str]], kind: str,
    lengths: Mapping[str, int],
) -> Variant:  # fmt: skip
    between = int(kind == "windows")  # a missing window between runs
    n_steps = max(sum(lengths[path] for path in paths) + between * (len(paths) - 1) for paths in files.values())
    return Variant(name, key[0], dict(key[1]), files, sum(map(len, files.values())), kind, n_steps)


def _wanted(config: Config) -> tuple[str, ...]:
    """Name the features to model; beside sequences stand connectomes, for the linear baseline."""
    named = config.features.names or tuple(n for n in zoo.names("features") if _is_default(n))
    return (*named, "connectivity") if {"timeseries", "dynamic_connectivity"} & set(config.features.names) else named


def kinds_taken(config: Config) -> set[str]:
    """Name the kinds of feature that the models of this run take."""
    suited = (zoo.constant("models", name, "SUITS") or () for name in ("linear", *models_named(config)))
    return {kind for kinds in suited for kind in kinds} | ({"sequence"} if config.decodes else set())


def models_named(config: Config) -> tuple[str, ...]:
    """Name the models to train: as the user says, else those that suit a first look."""
    if config.decodes and not config.models.names:
        return DECODERS
    return config.models.names or tuple(n for n in zoo.names("models") if zoo.constant("models", n, "BY_DEFAULT"))


def _is_default(name: str) -> bool:
    """Tell whether a feature is modelled without being named: ``phenotype`` may restate the target."""
    return name != "phenotype" and zoo.constant("features", name, "BY_DEFAULT") is not False


def _kind(entry: Mapping[str, Any]) -> str:
    """Say what a feature looks like to a model, from its file's name and shape; empty for what no model takes."""
    name, n_dims = Path(entry["path"]).name, len(entry.get("shape", ()))
    if n_dims == 2 and entry["feature"] in {"timeseries", "dual_regression"} and name.endswith("_timeseries.tsv"):
        return "sequence"
    if entry["feature"] == "dynamic_connectivity":
        return "windows"
    if name.endswith(".nii.gz"):
        return {0: "volume", 3: "volume", 4: "maps", 5: "moving_maps"}.get(n_dims, "")
    if "_relmat." in name:
        return "edge"
    return "column" if n_dims < 2 else ""


def _step_axis(kind: str) -> int:
    """Say which axis of a sequence's file is time or windows: an image has space first."""
    return 3 if kind == "moving_maps" else 0


def _refuse_untaken(names: Sequence[str], taken: set[str], records: Mapping[str, Mapping[str, Any]]) -> None:
    """Pass over features that no model of this run takes; refuse where no other is named."""
    entries = [entry for record in records.values() for entry in record["features"] if entry["feature"] in names]
    kinds = {entry["feature"]: _kind(entry) for entry in entries}
    untaken = sorted(feature for feature, kind in kinds.items() if kind not in taken)
    if untaken and set(untaken) == set(names):
        able = [m for m in zoo.names("models") if kinds[untaken[0]] in (zoo.constant("models", m, "SUITS") or ())]
        advice = f"name one that does with --models: {', '.join(able)}" if able else "name others, e.g. connectivity"
        raise DataError(f"no model of this run takes the feature '{untaken[0]}'; {advice}.")
    if untaken:
        LOG.info("no model of this run takes %s: passed over.", ", ".join(untaken))


def _selected(config: Config, names: Mapping[str, str]) -> bool:
    sessions = {s.removeprefix("ses-") for s in config.select.session_label}
    tasks = {t.removeprefix("task-") for t in config.select.task_id}
    return (not sessions or names.get("ses") in sessions) and (not tasks or names.get("task", "") in tasks | {""})


def same_content(names: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Match a file by what makes its content the same: atlas, kind of matrix, space; tasks may be called differently."""
    keys = ("atlas", "model", "param", "stat", "space", "res", "label", "desc")
    return all(names.get(k, "") == wanted.get(k, "") for k in keys)


def _content(names: Mapping[str, str]) -> Content:
    """Keep the entities that make a file another feature than the next one, not another run of it."""
    return tuple(sorted((k, v) for k, v in names.items() if k not in OF_A_RUN))


def files_of(
    out: Path, record: Mapping[str, Any], described: Mapping[str, Any], *, sessions: bool = False
) -> list[Path]:
    """List a participant's files of a feature, as it is described: the runs of the first session, or of all ``sessions``.

    A task may be called differently where that leaves one choice.

    Raises
    ------
    DataError
        If it leaves several.
    """
    files = [out / e["path"] for e in record["features"] if e["feature"] == described["feature"]]
    kinds: dict[Content, list[Path]] = {}
    for file in files:
        names = query.entities(file)
        if same_content(names, described["entities"]):
            kinds.setdefault(_content(names), []).append(file)
    wanted = described["entities"]
    exact = [kind for kind in kinds if dict(kind) == dict(wanted)]
    task = [kind for kind in kinds if dict(kind).get("task") == wanted.get("task")]
    chosen = exact or (task if len(task) == 1 else list(kinds))
    if len(chosen) > 1:
        there = "; ".join(
            " ".join(f"{k}-{v}" for k, v in kind if v != wanted.get(k)) or "as trained on" for kind in chosen
        )
        raise DataError(
            f"{record['participant_id']} has the feature '{described['feature']}' more than once ({there}), and the bundle was trained "
            f"on task-{wanted.get('task', 'unknown')}; choose by --task-id or --bids-filter-file."
        )
    found = [str(file) for kind in chosen for file in kinds[kind]]
    return [Path(f) for f in (found if sessions or not found else _first_session(found))]


def _of_one_row(config: Config, paths: Sequence[str]) -> list[str]:
    """Keep what one row is made of: the runs of the first session, or all of them where rows are moments."""
    return sorted(paths) if config.decodes else _first_session(paths)


def _first_session(paths: Sequence[str]) -> list[str]:
    """Keep the runs of the first session: a participant is one row, never two."""
    first = min(query.entities(Path(p)).get("ses", "") for p in paths)
    return sorted(p for p in paths if query.entities(Path(p)).get("ses", "") == first)


def _short_names(keys: Sequence[tuple[str, tuple[tuple[str, str], ...]]]) -> dict[Any, str]:
    """Name each variant by its feature, and by those entities in which it differs from its siblings."""
    named = {}
    for feature, shared in keys:
        siblings = [dict(s) for f, s in keys if f == feature]
        differing = [
            k
            for k in ("task", "acq", "rec", "dir", "space", "atlas", "model", "param", "stat", "res", "label", "desc")
            if len({s.get(k) for s in siblings}) > 1
        ]
        named[feature, shared] = "+".join([feature, *(v for k in differing if (v := dict(shared).get(k)))])
    return named


def _tables(config: Config) -> dict[str, Path]:
    """Find the tables that the feature ``phenotype`` reads, where it is asked for: a questionnaire may restate a target.

    participants.tsv is read only where columns of it are named.
    """
    if "phenotype" not in config.features.names:
        return {}
    found = {f"phenotype+{p.stem}": p for p in sorted((config.bids / "phenotype").glob("*.tsv"))}
    if config.features.of("phenotype").get("columns"):
        found = {"phenotype": config.bids / "participants.tsv"}
    return {"phenotype": next(iter(found.values()))} if len(found) == 1 else found


def _displacement(records: Mapping[str, Any], ids: Sequence[str], columns: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Give each participant the mean framewise displacement of the BOLD runs, where participants.tsv has none."""
    measured = {i: [e["mean_fd"] for e in records[i]["features"] if "mean_fd" in e] for i in ids}
    if "mean_fd" in columns or not any(measured.values()):
        return {}
    return {"mean_fd": [str(float(np.mean(measured[i]))) if measured[i] else np.nan for i in ids]}


def write(made: Plan, folder: Path, known: Mapping[str, dict[str, Any]] | None = None) -> dict[str, dict[str, Any]]:
    """Lay out the cohort on disk, each feature an array of NaN that `fill` writes into; returns their descriptions.

    ``known`` describes the features of a cohort that this one is to be like.
    """
    folder.mkdir(parents=True, exist_ok=True)
    described: dict[str, dict[str, Any]] = {}
    for variant in made.variants:
        described[variant.name] = describe(variant) if known is None else known[variant.name]
        shape = (len(made.participant_ids), *described[variant.name]["shape"])
        _blank(folder / f"{variant.name}.npy", shape)
    derivatives.write_json(folder / "plan.json", asdict(made))
    derivatives.write_json(folder / "features.json", described)
    return described


def _blank(path: Path, shape: tuple[int, ...]) -> None:
    if path.is_file() and np.load(path, mmap_mode="r").shape == shape:
        return
    values = _open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    step = max(1, 2**26 // max(1, int(np.prod(shape[1:]))))
    for start in range(0, shape[0], step):
        values[start : start + step] = np.nan
    values.flush()


def _open_memmap(path: Path, **options: Any) -> Any:
    return np.lib.format.open_memmap(path, **options)  # type: ignore[no-untyped-call]


def describe(variant: Variant) -> dict[str, Any]:
    """Look at a few participants' files to learn the shape and the names that most have."""
    sequence = variant.kind in SEQUENCES
    seen: list[tuple[tuple[int, ...], tuple[str, ...], tuple[float, ...]]] = []
    directed = False
    for path in [paths[0] for paths in list(variant.files.values())[:15]]:
        values, labels, affine = read(Path(path))
        square = not sequence and values.ndim == 2 and values.shape[0] == values.shape[1] > 1
        directed |= square and not np.allclose(values, values.T, rtol=1e-4, atol=1e-6, equal_nan=True)
        grid = () if affine is None else tuple(np.round(affine, 3).ravel().tolist())
        seen.append((_without_steps(values.shape, variant.kind), labels, grid))
    shape, labels, grid = Counter(seen).most_common(1)[0][0]
    common = {
        "labels": list(labels),
        "feature": variant.feature,
        "entities": dict(variant.entities),
        "file_shape": list(shape),
    }
    if variant.kind == "moving_maps":
        affine = np.reshape(grid, (4, 4))
        return common | {"shape": [variant.n_steps, shape[4], *shape[:3]], "dims": list(MOVING), "affine": affine}
    if sequence:
        return common | {"shape": [variant.n_steps, shape[1]], "dims": list(SEQUENCES[variant.kind])}
    if len(shape) == 1:
        return common | {"shape": list(shape), "dims": ["column"]}
    if len(shape) == 2:
        n = shape[0] * (shape[0] - 1)
        return common | {"shape": [n if directed else n // 2], "dims": ["edge"], "directed": directed}
    affine = np.reshape(grid, (4, 4))
    if len(shape) == 4:
        return common | {"shape": [shape[3], *shape[:3]], "dims": list(MAPS), "affine": affine}
    return common | {"shape": list(shape), "dims": ["x", "y", "z"], "affine": affine}


def _without_steps(shape: Sequence[int], kind: str) -> tuple[int, ...]:
    """Write 0 for the number of steps in the shape of a sequence's file."""
    axis = _step_axis(kind) if kind in SEQUENCES else None
    return tuple(0 if number == axis else n for number, n in enumerate(shape))


def read(path: Path) -> tuple[Array, tuple[str, ...], Array | None]:
    """Read a feature's file as it was written: values, names, of several maps too, and the affine of an image."""
    if path.suffix == ".tsv":
        labels, values = _read_row(path) or query.read_matrix(path, own=True)
        return values, labels, None
    if path.suffix == ".npy":
        said = query.read_json(derivatives.sidecar_path(path))
        return np.asarray(np.load(path), np.float32), tuple(map(str, said["Labels"])), None
    import nibabel as nib

    image = nib.load(path)
    values, beside = np.asarray(image.dataobj, np.float32), derivatives.sidecar_path(path)
    said = query.read_json(beside) if values.ndim > 3 and beside.is_file() else {}
    return values, tuple(map(str, said.get("Networks", ()))), np.asarray(image.affine)


def _read_row(path: Path) -> tuple[tuple[str, ...], Array] | None:
    """Read a table of one row, (column,); None where there are more. pandas takes seconds for 100,000 columns."""
    with path.open(encoding="utf-8") as lines:
        header, row, more = (lines.readline().rstrip("\n") for _ in range(3))
    if more or not row:
        return None
    return tuple(header.split("\t")), np.array(row.replace("n/a", "nan").split("\t"), np.float64)


def edge_index(n_regions: int, *, directed: bool = False) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the row and the column of each edge, in the order in which a connectome is stored."""
    if directed:
        rows, columns = np.nonzero(~np.eye(n_regions, dtype=bool))
        return rows, columns
    return np.triu_indices(n_regions, 1)


def fill(folder: str, start: int, stop: int) -> list[dict[str, str]]:
    """Write the features of some rows into the cohort; returns those that do not fit, with the reason."""
    root = Path(folder)
    made = json.loads((root / "plan.json").read_text(encoding="utf-8"))
    described = json.loads((root / "features.json").read_text(encoding="utf-8"))
    refused = []
    prints: dict[str, dict[str, list[str]]] = {v["name"]: {} for v in made["variants"]}
    for variant in made["variants"]:
        values = _open_memmap(root / f"{variant['name']}.npy", mode="r+")
        for row in range(start, min(stop, len(made["participant_ids"]))):
            participant_id = made["participant_ids"][row]
            try:
                if participant_id in variant["files"]:
                    runs = runs_of(variant["files"][participant_id], described[variant["name"]])
                    found = together(runs, described[variant["name"]])
                    values[(row, slice(len(found))) if described[variant["name"]]["dims"][0] in STEPS else row] = found
                    prints[variant["name"]][participant_id] = fingerprints(runs)
            except DataError as problem:
                refused.append({"participant_id": participant_id, "feature": variant["name"], "reason": str(problem)})
        values.flush()
    derivatives.write_json(root / f"refused_{start:07d}.json", refused)
    derivatives.write_json(root / f"prints_{start:07d}.json", prints)
    return refused


def duplicates(folder: Path) -> list[dict[str, str]]:
    """List participants one of whose runs has the values of another one's: the same scan under two names."""
    seen: dict[tuple[str, str], str] = {}
    found: dict[tuple[str, str, str], None] = {}
    for feature, participant_id, print_ in printed(folder):
        first = seen.setdefault((feature, print_), participant_id)
        if first != participant_id:
            found[participant_id, first, feature] = None
    return [dict(zip(("participant_id", "same_as", "feature"), one, strict=True)) for one in found]


def printed(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Walk the fingerprints of a laid-out cohort: feature, participant, fingerprint of one run."""
    for path in sorted(folder.glob("prints_*.json")):
        for feature, mine in query.read_json(path).items():
            yield from ((feature, participant_id, one) for participant_id, runs in mine.items() for one in runs)


def fingerprints(runs: Sequence[Array]) -> list[str]:
    """Hash each run; a few values, which many people share, and none at all tell of nobody."""
    return [fingerprint(run) for run in runs if run.size >= FEWEST_TO_COMPARE and np.isfinite(run).any()]


def fingerprint(values: Array) -> str:
    """Hash a feature's values, to four decimals: the same scan is recognised under another name.

    Steps that only pad a sequence, those without any value, do not count.
    """
    held = values[np.isfinite(values).any(axis=1)] if values.ndim == 2 else values
    known = np.nan_to_num(np.asarray(held, np.float64).ravel())
    return hashlib.sha256((np.round(known, 4) + 0.0).astype(np.float32).tobytes()).hexdigest()[:24]


def joined(files: Sequence[str], described: Mapping[str, Any]) -> Array:
    """Read a participant's runs of one feature, and join them in the shape that the cohort stores."""
    return together(runs_of(files, described), described)


def runs_of(files: Sequence[str], described: Mapping[str, Any]) -> list[Array]:
    """Read each run of a participant.

    Raises
    ------
    DataError
        If a file has other regions or another grid than the feature of the other participants.
    """
    read_one = steps_of if described["dims"][0] in STEPS else row_of
    return [read_one(Path(file), described) for file in files]


def together(runs: Sequence[Array], described: Mapping[str, Any]) -> Array:
    """Join runs: their mean, sequences end to end, windows of connectomes with a missing one between: no state goes over."""
    if tuple(described["dims"]) == SEQUENCES["windows"]:
        missing = np.full((1, runs[0].shape[1]), np.nan)
        return np.concatenate([part for run in runs for part in (missing, run)][1:])
    if described["dims"][0] in STEPS:
        return np.concatenate(runs)
    if len(runs) == 1:
        return runs[0]
    known = np.isfinite(runs).sum(axis=0)
    return np.where(known > 0, np.nansum(runs, axis=0) / np.maximum(known, 1), np.nan)


def steps_of(file: Path, described: Mapping[str, Any]) -> Array:
    """Read one run of a sequence, (step, value) or (window, network, x, y, z).

    Each region's series is standardised within the run: its mean and scale are the scanner's, not the brain's. Censored
    volumes leave a series; a window of which censoring left too little keeps its place, as what is next to it is not next
    to each other.
    """
    if tuple(described["dims"]) == MOVING:
        return _moving(file, described)
    values, labels, _ = read(file)
    if values.ndim != 2 or list(labels) != list(described["labels"]):
        like = {**described, "file_shape": [len(values), len(described["labels"])]}
        raise DataError(f"{file.name}: {_difference(values.shape, labels, like)}; extract it with the same atlas.")
    if described["dims"][0] == "window":
        return values
    kept = values[np.isfinite(values).any(axis=1)]
    return standardised(kept) if len(kept) else kept


def said_beside(file: Path) -> dict[str, Any]:
    """Read the sidecar of a feature's file; nothing where there is none."""
    sidecar = derivatives.sidecar_path(file)
    return query.read_json(sidecar) if sidecar.is_file() else {}


def onsets(files: Sequence[Path]) -> Array:
    """Say when each step of a participant's series was, (step,), in seconds from the start of its run, runs end to end.

    Steps that hold nothing are none, as in `steps_of`; NaN where the sidecar has no RepetitionTime.
    """
    found = [np.zeros(0)]
    for file in files:
        said = said_beside(file)
        held = np.asarray(np.isfinite(read(file)[0]).any(axis=1))
        censored = said.get("CensoredVolumes", [])
        volumes = np.setdiff1d(np.arange(len(held) + len(censored)), censored)
        found.append(volumes[held] * float(said.get("RepetitionTime", np.nan)))
    return np.concatenate(found)


def _moving(file: Path, described: Mapping[str, Any]) -> Array:
    """Read the maps of one run's windows, (window, network, x, y, z)."""
    values, labels, affine = read(file)
    x, y, z, _, n_networks = described["file_shape"]
    like = {**described, "file_shape": [x, y, z, *values.shape[3:4], n_networks]}
    _refuse_unlike(file, values.shape, labels, affine, like)
    found: Array = np.moveaxis(values, (3, 4), (0, 1))
    return found[np.isfinite(found).reshape(len(found), -1).any(axis=1)]


def standardised(series: Array) -> Array:
    """Bring each region to mean 0 and deviation 1 over the run, (volume, region)."""
    known = np.isfinite(series)
    n = known.sum(axis=0).clip(1)
    centred = series - np.where(known, series, 0).sum(axis=0) / n
    deviation = np.sqrt((np.where(known, centred, 0) ** 2).sum(axis=0) / n)
    return np.asarray(centred / np.where(deviation > 0, deviation, np.inf), np.float32)


def row_of(file: Path, described: Mapping[str, Any]) -> Array:
    """Read one file into the shape that the cohort stores: a connectome as its edges, maps before space, columns by name."""
    values, labels, affine = read(file)
    if values.ndim == 1 and _has_most(labels, described["labels"]):
        return _by_name(values, labels, described["labels"])
    _refuse_unlike(file, values.shape, labels, affine, described)
    if len(described["dims"]) == 1 and values.ndim == 2:
        edges: Array = values[edge_index(len(values), directed=described["directed"])]
        return edges
    return np.moveaxis(values, -1, 0) if tuple(described["dims"]) == MAPS else values


def _refuse_unlike(
    file: Path, shape: tuple[int, ...], labels: Sequence[str], affine: Array | None, described: Mapping[str, Any]
) -> None:
    """Refuse a file of another shape, other names or another grid than the other participants' have."""
    if tuple(shape) != tuple(described["file_shape"]) or list(labels) != list(described["labels"]):
        raise DataError(
            f"{file.name}: {_difference(shape, labels, described)}; extract it with the same atlas and grid."
        )
    if affine is not None and not np.allclose(affine, np.asarray(described["affine"]), atol=1e-3):
        raise DataError(f"{file.name} lies on another grid than the other participants' ({described['affine']}).")


def _has_most(labels: Sequence[str], wanted: Sequence[str]) -> bool:
    """Tell whether a row has at least half of the others' columns: fewer come of another atlas."""
    return 2 * len(set(labels) & set(wanted)) >= len(wanted)


def _by_name(values: Array, labels: Sequence[str], wanted: Sequence[str]) -> Array:
    """Put a row's columns where the others have them; one that it lacks, such as a region not found, is missing."""
    if list(labels) == list(wanted):
        return values
    known = dict(zip(labels, values, strict=True))
    return np.array([known.get(label, np.nan) for label in wanted])


def _difference(shape: Sequence[int], labels: Sequence[str], described: Mapping[str, Any]) -> str:
    if tuple(shape) != tuple(described["file_shape"]):
        return f"{'×'.join(map(str, shape))} values where the others have {'×'.join(map(str, described['file_shape']))}"
    if len(labels) != len(described["labels"]):
        return f"{len(labels)} names where the others have {len(described['labels'])}"
    other = next((a, b) for a, b in zip(labels, described["labels"], strict=True) if a != b)
    return f"region '{other[0]}' stands where the others have '{other[1]}'"


def load(
    folder: Path, target: Target, covariates: Sequence[str], *, columns: Sequence[str] = (), site: str = ""
) -> Cohort:
    """Open a cohort that `write` and `fill` made; volumes and edges stay on disk until they are used."""
    import pandas as pd

    made = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    described = json.loads((folder / "features.json").read_text(encoding="utf-8"))
    blocks = {
        name: Block(
            np.load(folder / f"{name}.npy", mmap_mode="r"), tuple(d["dims"]), tuple(d["labels"]),
            d["entities"] | ({"directed": "true"} if d.get("directed") else {}),
            np.asarray(d["affine"]) if "affine" in d else None,
        )
        for name, d in described.items()
    }  # fmt: skip
    people = pd.DataFrame({"participant_id": made["participant_ids"], **made["columns"]})
    for name, path in made["tables"].items():
        blocks[name] = phenotype_block(Path(path), made["participant_ids"], columns)
    blocks[CONFOUNDS] = confounds_block(people, [c for c in covariates if c != target.name], site)
    if site and site != target.name:
        blocks[SITES] = sites_block(people[site])
    return Cohort(people, blocks, target)


def phenotype_block(path: Path, ids: Sequence[str], columns: Sequence[str]) -> Block:
    """Read a table's columns as a feature; a participant without a row is absent (NaN)."""
    labels, values, rows = encoded(path, tuple(columns))
    chosen = np.full((len(ids), len(labels)), np.nan, np.float32)
    for row, participant_id in enumerate(ids):
        if participant_id in rows:
            chosen[row] = values[rows[participant_id]]
    return Block(chosen, ("column",), labels)


def columns_as(path: Path, ids: Sequence[str], labels: Sequence[str]) -> Block:
    """Encode a table's columns as another table's were: a level's column is 0 for all other words, whoever is in this table.

    A column that is not there, and a cell that is n/a or no number where numbers were, is NaN.
    """
    import pandas as pd

    people = query.read_people(path).reindex(list(ids))
    parts = []
    for label in labels:
        column, _, level = label.partition("=")
        cells = people[column] if column in people else pd.Series(np.nan, index=people.index, dtype=object)
        known = (cells == level).astype(float).where(cells.notna()) if level else pd.to_numeric(cells, errors="coerce")
        parts.append(known.to_numpy(np.float32))
    return Block(np.stack(parts, axis=1), ("column",), tuple(labels))


def sites_block(cells: Any, levels: Sequence[str] = ()) -> Block:
    """Write each participant's site as 1 in its column; somebody without a site, or of another one, has only 0."""
    found = tuple(levels or sorted({c for c in cells if isinstance(c, str)}))
    values = np.array([[float(cell == level) for level in found] for cell in cells], np.float32)
    return Block(values.reshape(len(values), len(found)), ("column",), found)


def confounds_block(people: Any, covariates: Sequence[str], site: str = "") -> Block:
    """Encode the confounds: numbers as they are, words as one column a level; sites are words, though they be called by numbers."""
    labels, parts = [], []
    for name in covariates:
        for label, values in encode_covariate(name, people[name], are_words=quality.is_site(name, site)):
            labels.append(label)
            parts.append(values)
    values = np.column_stack(parts).astype(np.float32) if parts else np.zeros((len(people), 0), np.float32)
    return Block(values, ("column",), tuple(labels))


def encode_covariate(name: str, cells: Any, *, are_words: bool = False) -> list[tuple[str, Array]]:
    """Encode one covariate."""
    import pandas as pd

    known = cells.notna().to_numpy()
    if not are_words and are_numbers(cells[known]):
        return [(name, pd.to_numeric(cells, errors="coerce").to_numpy(np.float64))]
    found = sorted(cells.dropna().unique())
    shown = found[1:] if len(found) == 2 else found
    return [(f"{name}={level}", np.where(known, (cells == level).to_numpy(np.float64), np.nan)) for level in shown]


def are_numbers(cells: Iterable[Any]) -> bool:
    """Tell whether there are cells, and all hold finite numbers."""
    import pandas as pd

    numbers = pd.to_numeric(pd.Series(list(cells), dtype=object), errors="coerce").to_numpy(np.float64)
    return len(numbers) > 0 and bool(np.isfinite(numbers).all())


def choose_targets(config: Config, columns: Mapping[str, Sequence[Any]]) -> list[tuple[str, str]]:
    """Choose what to predict, and say why.

    Raises
    ------
    DataError
        If a column that was named does not exist (naming the nearest), or nothing can be chosen.
    """
    for name in config.targets.names:
        if name not in columns:
            raise DataError(f"participants.tsv has no column '{name}'; {zoo.nearest(name, columns)}")
        if "/" in name:
            raise DataError(
                f"target '{name}' has a '/', which no file's name can have; rename the column in participants.tsv."
            )
    if config.targets.names:
        return [(name, "named by the user") for name in dict.fromkeys(config.targets.names)]
    lower = {str(c).lower(): str(c) for c in columns}
    for candidate in TARGETS:
        column = lower.get(candidate)
        if column and len({v for v in columns[column] if isinstance(v, str)}) > 1:
            return [
                (column, f"no target was named; '{column}' is the first of {', '.join(TARGETS)} in participants.tsv")
            ]
    raise DataError(f"participants.tsv holds no column to predict among {', '.join(TARGETS)}; name one with --target.")


def choose_covariates(config: Config, columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """Choose the confounds: those named, else age, sex, site and motion where they are."""
    for name in config.targets.covariates:
        if name not in columns:
            raise DataError(f"covariate '{name}' is not in participants.tsv; {zoo.nearest(name, columns)}")
    lower = {str(c).lower(): str(c) for c in columns}
    found = list(dict.fromkeys(config.targets.covariates)) or [lower[c] for c in COVARIATES if c in lower]
    for name in found:
        if not quality.is_site(name, config.splits.site_column) and (word := _among_numbers(columns[name])):
            raise DataError(f"covariate '{name}' holds '{word}' among numbers; mend the cell, or write n/a.")
    return [c for c in found if len({v for v in columns[c] if isinstance(v, str)}) > 1]


def _among_numbers(cells: Sequence[Any]) -> str:
    """Find a cell that is no number in a column of quantities, which it would turn into words; empty where none is."""
    import pandas as pd

    known = pd.Series([c for c in cells if isinstance(c, str)], dtype=object)
    numbers = np.isfinite(pd.to_numeric(known, errors="coerce").to_numpy(np.float64))
    is_quantity = numbers.mean() > 0.5 and known[numbers].nunique() > MAX_CLASSES if len(known) else False
    return next(iter(known[~numbers]), "") if is_quantity else ""


def make_target(
    name: str, cells: Sequence[Any], *, positive: str = "", kind: str = "", order: Sequence[str] = ()
) -> Target:
    """Turn a column into a target: a quantity, ranks, or classes; of two, the one named, or that is no control, is positive.

    Parameters
    ----------
    name
        The column.
    cells
        (row,): its cells, NaN where there is none.
    positive
        The class that comes last.
    kind
        ``classification``, ``regression`` or ``ordinal``; empty chooses between the first two.
    order
        Levels of an ordinal target from low to high; empty means by their numbers.

    Raises
    ------
    DataError
        If the column is empty, has one class, holds text with very many values, or has no order where one is needed.
    """
    import pandas as pd

    series = pd.Series(cells, dtype=object)
    numbers = pd.to_numeric(series, errors="coerce").to_numpy(np.float64)
    known = series.notna().to_numpy()
    if not known.any():
        raise DataError(f"target '{name}' is n/a for everybody; choose another column.")
    if kind == "ordinal":
        return _ranked(name, series, numbers, order)
    if word := _among_numbers(cells):
        raise DataError(f"target '{name}' holds '{word}' among numbers; mend the cell, or write n/a.")
    levels = sorted(series[known].unique(), key=str)
    numeric = bool(np.isfinite(numbers[known]).all())
    if kind == "regression" or (kind != "classification" and numeric and len(levels) > 5):
        if not numeric or np.ptp(numbers[known]) == 0:
            raise DataError(
                f"target '{name}' {'holds text' if not numeric else 'has one value'}; it cannot be a quantity to predict."
            )
        return Target(name, numbers)
    if len(levels) < 2 or len(levels) > MAX_CLASSES:
        raise DataError(
            f"target '{name}' has {len(levels)} class{'' if len(levels) == 1 else 'es'} ({', '.join(map(str, levels[:4]))}"
            f"{' …' if len(levels) > 4 else ''}); between 2 and {MAX_CLASSES} are needed."
        )
    _refuse_alike(name, levels)
    ordered = _ordered(name, levels, positive)
    codes = {level: code for code, level in enumerate(ordered)}
    return Target(
        name,
        np.array([codes[c] if k else np.nan for c, k in zip(series, known, strict=True)]),
        tuple(map(str, ordered)),
    )


def _refuse_alike(name: str, levels: Sequence[Any]) -> None:
    """Refuse classes that are one, written in two ways: in another case, or as another number."""
    written: dict[str, str] = {}
    for level in map(str, levels):
        try:
            same = f"{float(level):g}"
        except ValueError:
            same = level.casefold()
        if same in written:
            raise DataError(
                f"target '{name}' has the classes '{written[same]}' and '{level}', which differ only in how they are written; write "
                "them alike in participants.tsv."
            )
        written[same] = level


def _ranked(name: str, series: Any, numbers: Array, order: Sequence[str]) -> Target:
    """Turn levels into their places among all, 0 the lowest; a level that is listed and nobody has keeps its place."""
    known = series.notna().to_numpy()
    ranks = tuple(order) or _by_number(name, list(series[known]), numbers[known])
    strange = sorted(set(series[known]) - set(ranks)) if order else []
    if strange:
        raise DataError(
            f"target '{name}' holds '{strange[0]}', which is not among its Levels in participants.json ({', '.join(ranks)}); "
            "mend the cell, or add it there in its place."
        )
    if not FEWEST_RANKS <= len(ranks) <= MAX_CLASSES or series[known].nunique() < 2:
        found = f"{len(ranks)} levels, {series[known].nunique()} of them in use"
        raise DataError(
            f"target '{name}' has {found}; an ordinal target needs {FEWEST_RANKS} to {MAX_CLASSES}, two in use: call fewer a "
            "classification and more a regression in targets.kinds."
        )
    places = {level: float(place) for place, level in enumerate(ranks)}
    by_number = {} if order else {float(level): place for level, place in places.items()}
    values = [places.get(c, by_number.get(x, np.nan)) for c, x in zip(series, numbers, strict=True)]
    return Target(name, np.array(values), ranks=ranks)


def _by_number(name: str, cells: Sequence[Any], numbers: Array) -> tuple[str, ...]:
    """Name levels that are numbers, from low to high; 1 and 1.0 are one level."""
    if not np.isfinite(numbers).all():
        raise DataError(
            f"target '{name}' holds words, whose order is unknown; list its Levels from low to high in participants.json."
        )
    return tuple(np.format_float_positional(number, trim="-") for number in np.unique(numbers))


NEGATIVE = {
    "control",
    "controls",
    "hc",
    "healthy",
    "td",
    "cn",
    "con",
    "ctrl",
    "hv",
    "0",
    "no",
    "false",
    "negative",
    "m",
    "male",
}


def _ordered(name: str, levels: Sequence[Any], positive: str) -> list[Any]:
    """Order two classes so that the positive one comes last: as named, else the one that is no control."""
    if positive and positive not in levels:
        raise DataError(f"targets.positive.{name} is '{positive}'; {zoo.nearest(positive, map(str, levels))}")
    if len(levels) == 2:
        last = positive or next((lv for lv in levels if str(lv).lower() not in NEGATIVE), levels[1])
        return [next(lv for lv in levels if lv != last), last]
    return list(levels)


def target_of(config: Config, made: Plan, name: str) -> Target:
    """Make a target from the plan's column, as the configuration wants it."""
    target = make_target(
        name,
        made.columns[name],
        positive=str(config.targets.positive.get(name, "")),
        kind=str(config.targets.kinds.get(name, "")),
        order=made.orders.get(name, ()),
    )
    if not config.metrics.shuffle_labels:
        return target
    known = np.isfinite(target.values)
    shuffled = target.values.copy()
    shuffled[known] = np.random.default_rng(config.random_seed).permutation(target.values[known])
    return replace(target, values=shuffled)


def read_plan(folder: Path, name: str = "plan.json") -> Plan:
    """Read a plan back from the cohort's folder."""
    made = json.loads((folder / name).read_text(encoding="utf-8"))
    made["variants"] = [Variant(**v) for v in made["variants"]]
    listed = {key: tuple(made[key]) for key in ("participant_ids", "variants", "excluded", "notes")}
    return Plan(**{**made, **listed})
