"""From BIDS datasets to the scans that features can be extracted from. The only file that knows pybids."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bids_dl import zoo
from bids_dl.config import Config, Select
from bids_dl.errors import DataError, InvalidDatasetError, MissingInputError, NothingSelectedError
from bids_dl.records import Array, Scan

IMAGE = [".nii.gz", ".nii"]
QUERIES: dict[str, dict[str, Any]] = {
    "t1w": {"suffix": "T1w", "extension": IMAGE},
    "t2w": {"suffix": "T2w", "extension": IMAGE},
    "flair": {"suffix": "FLAIR", "extension": IMAGE},
    "bold": {"suffix": "bold", "extension": [*IMAGE, ".dtseries.nii"]},
    "timeseries": {"suffix": "timeseries", "extension": [".tsv"]},
    "relmat": {"suffix": ["relmat", "matrix"], "extension": [".tsv"]},
    "dwi": {"suffix": "dwi", "extension": IMAGE},
    "dwimap": {"suffix": "dwimap", "extension": IMAGE},
    "pet": {"suffix": "pet", "extension": IMAGE},
    "meg": {"suffix": "meg", "extension": [".fif", ".sqd", ".con"]},
    "eeg": {"suffix": "eeg", "extension": [".edf", ".bdf", ".vhdr", ".set", ".fif"]},
}
"""What is looked for with pybids, by kind of scan; the keys are those of ``--bids-filter-file``.

FreeSurfer's ``stats`` (kind ``freesurfer``) and PLINK's files (``plink``) have no BIDS names: they are found by folder.
"""

PIPELINES = ("xcp_d", "giga_connectome", "halfpipe", "fmriprep", "qsirecon", "qsiprep", "petprep", "freesurfer")
"""Whose derivative is used where several have the same thing: the most finished first; others come after, by name."""

ROLES = {"gm": "label-GM_probseg", "wm": "label-WM_probseg", "csf": "label-CSF_probseg"}
"""What belongs to a prepared T1w, by the end of its name."""

SENSORS = ("meg", "eeg")
"""Kinds of scan that are measured by sensors over time, of whose rhythms tables are made."""

SPACES = ("MNI152NLin2009cAsym", "MNI152NLin6Asym", "MNI152NLin2009aAsym", "MNI152NLin2009aSym", "MNI152Lin", "MNI")
SYNONYMS = {"seg": "atlas", "meas": "stat"}
FEW = 16
"""Up to so many participants are indexed folder by folder."""

PYBIDS_NAMES = {"sub": "subject", "ses": "session"}
SHORT_NAMES = {"subject": "sub", "session": "ses", "acquisition": "acq", "processing": "proc"}


def entities(path: Path) -> dict[str, str]:
    """Read the entities of a BIDS name, in their short form, with suffix and datatype.

    Older tools' ``seg-`` and ``meas-`` are read as today's ``atlas-`` and ``stat-``.
    """
    stem = path.name.split(".")[0]
    parts = [part.partition("-") for part in stem.split("_")]
    found = {SYNONYMS.get(key, key): value for key, dash, value in parts if dash}
    datatype = path.parent.name if not path.parent.name.startswith(("sub-", "ses-")) else ""
    return found | {"suffix": parts[-1][0], "datatype": datatype}


def description(folder: Path) -> dict[str, Any]:
    """Read dataset_description.json.

    Raises
    ------
    InvalidDatasetError
        If it is missing, or not JSON with a Name and a BIDSVersion.
    """
    file = folder / "dataset_description.json"
    if not file.is_file():
        raise InvalidDatasetError(f"{folder} has no dataset_description.json; it is not a BIDS dataset.")
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as problem:
        raise InvalidDatasetError(f"{file} is not JSON: {problem}.") from problem
    missing = {"Name", "BIDSVersion"} - set(content)
    if missing:
        raise InvalidDatasetError(f"{file} lacks {' and '.join(sorted(missing))}; add it.")
    return content


def is_derivative(folder: Path) -> bool:
    """Tell whether a dataset says that it is derived from another."""
    content = description(folder)
    return content.get("DatasetType") == "derivative" or "GeneratedBy" in content or "PipelineDescription" in content


def datasets(config: Config) -> dict[str, Path]:
    """List the datasets to look in: the one given, those named, and those in its derivatives folder.

    An output of bids_dl, whose tables would come before the images that they were made of, is looked in only where it is named.

    Raises
    ------
    MissingInputError, InvalidDatasetError
        If one that was named cannot be used.
    """
    found = {"bids": config.bids}
    description(config.bids)
    for name, path in config.select.derivatives.items():
        if not Path(path).is_dir():
            raise MissingInputError(f"the derivative dataset {name}={path} does not exist.")
        description(Path(path))
        found[name] = Path(path)
    nested = config.bids / "derivatives"
    if nested.is_dir() and not config.select.no_derivatives:
        for folder in sorted(nested.iterdir()):
            usable = (folder / "dataset_description.json").is_file() and folder != config.out
            if usable and folder not in found.values() and not _is_own(folder):
                found.setdefault(folder.name, folder)
    return found


def _is_own(folder: Path) -> bool:
    """Tell whether bids_dl made a dataset; one that cannot be read is refused when a scan of it is chosen."""
    try:
        return pipeline(folder) == "bids_dl"
    except InvalidDatasetError:
        return False


def participant_ids(config: Config) -> list[str]:
    """List the participants asked for: folders of the datasets, or labels checked against them.

    Raises
    ------
    NothingSelectedError
        If a label is unknown (naming the nearest), or there is nobody.
    """
    roots = list(datasets(config).values())
    asked = sorted({f"sub-{label.removeprefix('sub-')}" for label in config.select.participant_label})
    unknown = [label for label in asked if not any((root / label).is_dir() for root in roots)]
    if asked and not unknown:
        return _included(config, asked)
    known = sorted({name for root in roots for name in _folders(root)})
    if unknown:
        raise NothingSelectedError(
            f"participant '{unknown[0]}' is not in {config.bids}; {zoo.nearest(unknown[0], known)}"
        )
    if not known:
        raise NothingSelectedError(f"{config.bids} holds no folder sub-*; is it the dataset's root?")
    return _included(config, known)


def _folders(root: Path) -> list[str]:
    """Name the participants' folders of a dataset."""
    with os.scandir(root) as entries:
        return [e.name for e in entries if e.name.startswith("sub-") and e.is_dir()]


def _included(config: Config, ids: list[str]) -> list[str]:
    """Keep the participants whose columns have the values that ``select.include`` names."""
    if not config.select.include:
        return ids
    table = participants_table(config.bids)
    keep = np.ones(len(table), bool)
    for column, values in config.select.include.items():
        if column not in table:
            raise DataError(
                f"select.include: participants.tsv has no column '{column}'; {zoo.nearest(column, table.columns)}"
            )
        keep &= (
            table[column].isin([str(v) for v in (values if isinstance(values, (list, tuple)) else [values])]).to_numpy()
        )
    kept = sorted(set(ids) & set(table.index[keep]))
    if not kept:
        raise NothingSelectedError(f"no participant has {dict(config.select.include)}; look at participants.tsv.")
    return kept


def participants_table(folder: Path) -> Any:
    """Read participants.tsv as text, indexed by participant_id.

    Raises
    ------
    MissingInputError, DataError
        If it is missing, lacks participant_id, or names someone twice.
    """
    return read_people(folder / "participants.tsv")


MISSING = ("n/a", "N/A", "NA", "NaN", "nan", "")
"""How tables say that nothing is known: BIDS, then R, pandas and spreadsheets; none is ever a class."""


@lru_cache(maxsize=32)
def read_people(file: Path) -> Any:
    """Read a table with a row a participant, all cells as text without space around them; cells of `MISSING` are NaN."""
    import pandas as pd

    if not file.is_file():
        raise MissingInputError(
            f"{file} is missing; a row for each participant is needed, with the columns to predict."
        )
    try:
        table = pd.read_csv(file, sep="\t", dtype=str, na_filter=False, encoding="utf-8-sig")
    except ValueError as problem:  # not UTF-8, empty, or with more cells than columns
        raise DataError(f"{file} cannot be read as a table of UTF-8 text: {str(problem).strip()}.") from problem
    table = table.rename(columns=str.strip).apply(lambda cells: cells.str.strip())
    table = table.mask(table.isin(MISSING)).dropna(how="all")
    if "participant_id" not in table:
        raise DataError(
            f"{file} has no column participant_id; its columns, which tabs separate, are {', '.join(table.columns[:8])}."
        )
    nameless = table.index[table["participant_id"].isna()]
    if len(nameless):
        raise DataError(f"{file}: row {nameless[0] + 1} has no participant_id; add it, or remove the row.")
    table["participant_id"] = "sub-" + table["participant_id"].str.removeprefix("sub-")
    twice = table["participant_id"][table["participant_id"].duplicated()].unique()
    if len(twice):
        raise DataError(f"{file}: {', '.join(twice[:5])} stands in more than one row; keep one row a participant.")
    return table.set_index("participant_id")


def layouts(folder: Path, ids: Sequence[str], select: Select) -> Iterator[Any]:
    """Index a dataset with pybids: the whole of it, or only the folders of the few participants that are asked for.

    The whole is indexed where an index is kept for later (``--bids-database-dir``) or many are asked for; else the
    cost follows the participants, not the size of the dataset.
    """
    if select.bids_database_dir:
        place = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
        yield _layout(folder, "sub-", Path(select.bids_database_dir) / f"{folder.name}-{place}")
    elif len(ids) <= FEW:
        yield from (_layout(folder / participant_id) for participant_id in ids)
    else:
        yield _layout(folder, rf"sub-(?:{'|'.join(re.escape(i.removeprefix('sub-')) for i in ids)})(?:/|$)")


def _layout(root: Path, only: str = "", stored: Path | None = None) -> Any:
    """Index a folder. Of what lies right in it ``only`` names that begin so: an output inside of a dataset is none of it."""
    import bids

    ignore = [re.compile(r"/\."), re.compile(rf"^/(?!{only}).")]
    indexer = bids.BIDSLayoutIndexer(validate=False, ignore=ignore, index_metadata=False)
    return bids.BIDSLayout(
        root, validate=False, indexer=indexer, database_path=stored, is_derivative=True, config=["bids", "derivatives"]
    )


def find(config: Config) -> dict[str, list[Scan]]:
    """Find, for each participant, the scans that the features can use: the best source of each kind.

    Returns
    -------
    dict
        participant_id → scans; a participant with nothing usable has an empty list.

    Raises
    ------
    NothingSelectedError
        If the labels and filters leave no file at all.
    """
    ids = participant_ids(config)
    found: dict[str, list[Scan]] = {i: [] for i in ids}
    for folder in datasets(config).values():
        present = [i for i in ids if (folder / i).is_dir()]
        if present:
            for index in layouts(folder, present, config.select):
                for path in _files(index, present, config.select):
                    scan = _scan(path, folder)
                    found[scan.participant_id].append(scan)
    for scan in [*_freesurfer(config, ids), *_plink(config, ids), *_ctf(config, ids)]:
        found[scan.participant_id].append(scan)
    if config.select.raw_only:
        found = {i: [s for s in scans if not s.prepared] for i, scans in found.items()}
    if not any(found.values()):
        raise NothingSelectedError(_nothing(config))
    return {i: [_with_events(s, config) for s in best(scans)] for i, scans in found.items()}


def _with_events(scan: Scan, config: Config) -> Scan:
    """Give a BOLD the events of the raw dataset, which a derivative does not repeat: its own file, or the task's."""
    if scan.kind != "bold" or "events" in scan.related or not scan.entities.get("task"):
        return scan
    names = [scan.entities.get(k) and f"{k}-{scan.entities[k]}" for k in ("sub", "ses", "task", "acq", "dir", "run")]
    folder = config.bids.joinpath(*[n for n in names[:2] if n], "func")
    own = folder / ("_".join(n for n in names if n) + "_events.tsv")
    for path in (own, config.bids / f"task-{scan.entities['task']}_events.tsv"):
        if path.is_file():
            return replace(scan, related={**scan.related, "events": path})
    return scan


def _nothing(config: Config) -> str:
    asked = {
        "tasks": config.select.task_id,
        "sessions": config.select.session_label,
        "filters": config.select.bids_filter,
    }
    said = "; ".join(f"{k}: {v}" for k, v in asked.items() if v)
    return f"{config.bids}: no scan that a feature is extracted from is left{f' by {said}' if said else ''}."


def _files(index: Any, ids: list[str], select: Select) -> list[Path]:
    """Ask the index for every kind of file, with the filters."""
    limits: dict[str, Any] = {"subject": [i.removeprefix("sub-") for i in ids]} if select.bids_database_dir else {}
    if select.session_label:
        limits["session"] = [s.removeprefix("ses-") for s in select.session_label]
    paths: list[Path] = []
    for kind, query in QUERIES.items():
        asked = {**limits, **query, **_filter(select.bids_filter, kind)}
        if select.task_id and kind in {"bold", "timeseries", *SENSORS}:
            asked["task"] = [t.removeprefix("task-") for t in select.task_id]
        paths += [Path(p) for p in index.get(return_type="filename", **asked)]
    return [p for p in paths if p.name.startswith("sub-")]


def _filter(filters: Mapping[str, Any], kind: str) -> dict[str, Any]:
    unknown = set(filters) - set(QUERIES)
    if unknown:
        name = sorted(unknown)[0]
        raise DataError(f"the filter file has the query '{name}'; {zoo.nearest(name, QUERIES)}")
    return {PYBIDS_NAMES.get(k, k): v for k, v in filters.get(kind, {}).items()}


def _scan(path: Path, dataset: Path) -> Scan:
    """Describe one file, with the mask and confounds that lie beside it."""
    names = entities(path)
    return _with_companions(Scan(path, names, dataset, prepared=_is_prepared(path, names)))


def _is_prepared(path: Path, names: Mapping[str, str]) -> bool:
    """Tell whether a file is ready for a feature: a table, a derived map, a surface series, or a preprocessed image."""
    tables = names["suffix"] in {"timeseries", "relmat", "matrix", "dwimap"}
    return (
        tables or path.name.endswith(".dtseries.nii") or (names.get("desc") == "preproc" and names["suffix"] != "dwi")
    )


def _with_companions(scan: Scan) -> Scan:
    """Add the mask, confounds, probabilities, gradients and events that lie beside a scan."""
    path, names = scan.path, scan.entities
    stem = path.name.split(".")[0]
    mask = path.with_name(path.name.replace("desc-preproc", "desc-brain").replace(f"_{names['suffix']}.", "_mask."))
    table = (
        re.sub(r"(_space-[^_]+|_res-[^_]+|_den-[^_]+|_hemi-[^_]+)", "", stem).split("_desc-")[0].removesuffix("_bold")
    )
    tables = [path.with_name(f"{table}_desc-confounds_{end}.tsv") for end in ("timeseries", "regressors")]
    confounds = next((t for t in tables if t.is_file()), None)  # regressors: fMRIPrep before 20.2
    related = {}
    if scan.kind == "t1w" and scan.prepared:
        related = {r: path.with_name(path.name.replace("desc-preproc_T1w", end)) for r, end in ROLES.items()}
        own = re.sub(r"(_space-[^_]+|_res-[^_]+)", "", path.name).split("_desc-")[0]
        to_space = f"{own}_from-T1w_to-{names.get('space')}_mode-image_xfm.h5"
        related |= {"composite": path.with_name(to_space)}
        related |= {"head": path.with_name(f"{own}_desc-preproc_T1w.nii.gz")} if "space" in names else {}
    if scan.kind == "dwi":
        related = {end: inherited(path, scan.dataset, f".{end}") for end in ("bval", "bvec")}
    if scan.kind in SENSORS:
        ends = {
            "channels": f"{stem.removesuffix(f'_{scan.kind}')}_channels.tsv",
            "signal": f"{stem}.eeg",
            "data": f"{stem}.fdt",
            "samples": f"{path.name}/{stem}.meg4",
        }
        related = {role: path.parent / name for role, name in ends.items()}
    if scan.kind == "bold":
        related = {"events": path.with_name(f"{table}_events.tsv")}
    return replace(
        scan, mask=mask if scan.prepared and mask != path and mask.is_file() else None,
        confounds=confounds if scan.kind in {"bold", "cifti"} else None,
        related={role: p for role, p in related.items() if p.is_file()},
    )  # fmt: skip


def _freesurfer(config: Config, ids: Sequence[str]) -> Iterator[Scan]:
    """Find FreeSurfer's folders of statistics: a subjects folder as a dataset, or inside one's sourcedata."""
    roots = dict.fromkeys(
        place
        for root in [*datasets(config).values(), config.bids / "derivatives" / "freesurfer"]
        for place in (root, root / "sourcedata" / "freesurfer")
        if place == root or place.is_dir()
    )
    if config.select.no_derivatives:
        roots.pop(config.bids / "derivatives" / "freesurfer", None)
    sessions = {s.removeprefix("ses-") for s in config.select.session_label}
    for root in roots:
        sessions_of: dict[str, list[Path]] = {}
        for folder in sorted(root.glob("sub-*_ses-*")):  # once a root, not once a participant: each lists all folders
            sessions_of.setdefault(folder.name.partition("_ses-")[0], []).append(folder)
        for participant_id in ids:
            for folder in [root / participant_id, *sessions_of.get(participant_id, ())]:
                names = entities(folder) | {"suffix": "stats", "datatype": "anat"}
                if (folder / "stats").is_dir() and (not sessions or names.get("ses", "") in sessions):
                    yield Scan(folder / "stats", names, root, why="FreeSurfer's statistics")


def _ctf(config: Config, ids: Sequence[str]) -> Iterator[Scan]:
    """Find CTF's recordings, which are folders: pybids lists files alone."""
    sessions = {s.removeprefix("ses-") for s in config.select.session_label}
    tasks = {t.removeprefix("task-") for t in config.select.task_id}
    asked = {SHORT_NAMES.get(k, k): v for k, v in _filter(config.select.bids_filter, "meg").items()}
    for participant_id in ids:
        folder = config.bids / participant_id
        for path in sorted([*folder.glob("meg/*_meg.ds"), *folder.glob("ses-*/meg/*_meg.ds")]):
            names = entities(path)
            chosen = all(names.get(k, "") in {str(x) for x in np.atleast_1d(v)} for k, v in asked.items())
            if chosen and (not sessions or names.get("ses") in sessions) and (not tasks or names.get("task") in tasks):
                yield _scan(path, config.bids)


def _plink(config: Config, ids: Sequence[str]) -> Iterator[Scan]:
    """Find PLINK's files: the one that ``features.snp.file`` names, else those of BIDS_DIR/genetics."""
    named = config.features.of("snp").get("file")
    for path in [Path(named)] if named else sorted((config.bids / "genetics").glob("*.bed")):
        for participant_id in ids:
            names = {"sub": participant_id.removeprefix("sub-"), "suffix": "bed", "datatype": "genetics"}
            yield Scan(path, names, path.parent if named else config.bids, why="genotypes of the whole dataset")


def _usable(scan: Scan) -> bool:
    """Pass over tables that are no regional series, and images in a participant's own space."""
    names = scan.entities
    if names["suffix"] == "timeseries":
        return "atlas" in names and names.get("desc") != "envelope"  # bids_dl's own, with stat-mean beside it
    if names["suffix"] == "meg" and (names.get("acq") == "crosstalk" or names.get("task") == "noise"):
        return False
    if names.get("split", "1").strip("0") != "1":
        return False  # the first part leads to the others
    if names["suffix"] == "matrix":
        return names.get("desc") == "correlation"
    if names["suffix"] in {"dwi", "bed", "stats"}:
        return names.get("desc") in {None, "preproc"}
    if scan.kind == "cifti":
        return names.get("den") == "91k"
    if scan.prepared and names["suffix"] not in {"relmat", "matrix"}:
        return names.get("space", "").startswith("MNI")
    return "desc" not in names or names["suffix"] == "relmat"


def best(scans: list[Scan]) -> list[Scan]:
    """Choose one source of each acquisition: regional tables before images, prepared before raw.

    Among spaces, MNI152NLin2009cAsym comes first, then the other MNI spaces; among resolutions, the first name.
    """
    groups: dict[tuple[str, ...], list[Scan]] = {}
    for scan in filter(_usable, scans):
        e = scan.entities
        kind = {"timeseries": "bold"}.get(scan.kind, scan.kind)
        acquisition = [e.get(k, "") for k in ("ses", "task", "acq", "rec", "dir", "run", "model", "param")]
        if kind in {"t1w", "t2w", "flair"}:
            acquisition = [e.get("ses", ""), e.get("run", "")]
        if scan.kind == "plink":
            acquisition += [scan.path.name]
        if scan.kind in {"relmat", "timeseries"}:
            acquisition += [e.get(k, "") for k in ("atlas", "stat", "desc", "datatype")]
        groups.setdefault((kind, *acquisition), []).append(scan)
    chosen = [_chosen(group) for group in groups.values()]
    tables = {(s.entities["suffix"], _acquisition(s)) for s in chosen if s.path.suffix == ".tsv"}
    kept = [s for s in chosen if s.entities["suffix"] not in {"bold", *SENSORS} or not _is_superseded(s, tables)]
    return sorted(kept, key=lambda s: s.path.name)


def _is_superseded(scan: Scan, tables: set[tuple[str, tuple[str, ...]]]) -> bool:
    """Tell whether a scan has its regional series already; a raw one, of no use itself, also by its connectome."""
    better = ("timeseries",) if scan.prepared else ("timeseries", "relmat", "matrix")
    return any((suffix, _acquisition(scan)) in tables for suffix in better)


def _acquisition(scan: Scan) -> tuple[str, ...]:
    """Say what a scan shares with what was made of it; BOLD, EEG and MEG of one task, taken at once, stay apart."""
    device = scan.entities["datatype"] if scan.entities["datatype"] in SENSORS else ""
    return (device, *(scan.entities.get(k, "") for k in ("ses", "task", "acq", "dir", "run")))


def _rank(scan: Scan) -> tuple[bool, int, str, int, str]:
    space, made_by = scan.entities.get("space", ""), pipeline(scan.dataset)
    order = PIPELINES.index(made_by) if made_by in PIPELINES else len(PIPELINES)
    return (
        not scan.prepared,
        order,
        made_by,
        SPACES.index(space) if space in SPACES else len(SPACES),
        scan.path.name,
    )


@lru_cache(maxsize=256)
def pipeline(dataset: Path) -> str:
    """Name the program that made a derivative dataset, in small letters; empty for raw data."""
    if not (dataset / "dataset_description.json").is_file():
        return ""
    made_by = description(dataset).get("GeneratedBy") or [description(dataset).get("PipelineDescription") or {}]
    name = made_by[0].get("Name", "") if isinstance(made_by, list) and isinstance(made_by[0], dict) else ""
    return str(name).lower().replace("-", "_").replace("xcp_abcd", "xcp_d")


def _chosen(group: Sequence[Scan]) -> Scan:
    """Take the best source of one acquisition, and say what else there was."""
    first, *others = sorted(group, key=_rank)
    if first.why:
        return first
    origin = f"derivative of {pipeline(first.dataset) or first.dataset.name}" if first.prepared else "raw scan"
    over = list(dict.fromkeys(_shown(first, other) for other in others))
    return replace(first, why=origin + (f"; chosen over {', '.join(over)}" if over else ""))


def _shown(first: Scan, other: Scan) -> str:
    if not other.prepared:
        return "the raw scan"
    if other.dataset != first.dataset:
        return f"{pipeline(other.dataset) or other.dataset.name}'s"
    return f"space {s}" if (s := other.entities.get("space")) != first.entities.get("space") else other.path.name


def sidecar(path: Path, dataset: Path) -> dict[str, Any]:
    """Read a file's metadata by BIDS inheritance: from the dataset's root down, the nearer file wins."""
    metadata: dict[str, Any] = {}
    for found in sidecars(path, dataset):
        metadata |= _json(found)
    return metadata


def sidecars(path: Path, dataset: Path) -> list[Path]:
    """List the JSON files that apply to a file by BIDS inheritance, from the dataset's root down."""
    stem = path.name.split(".")[0]
    return [found for folder in _levels(path, dataset) for found in _candidates(folder, stem, ".json")]


def versions(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Tell which version of files is there: path, size (bytes) and time of the last change (ns); of a folder, its files'."""
    every = [one for f in files for one in (sorted(f.iterdir()) if f.is_dir() else [f])]  # FreeSurfer's tables, CTF
    return [(str(f), (s := f.stat()).st_size, s.st_mtime_ns) for f in every if f.is_file()]


def inherited(path: Path, dataset: Path, ending: str) -> Path:
    """Find the file of an ending that applies to a scan by BIDS inheritance: the nearest one, and the most particular there.

    Where there is none, it is the file that would lie beside the scan.
    """
    stem = path.name.split(".")[0]
    own = path.with_name(stem + ending)
    if own.is_file():
        return own
    applying = [p for folder in _levels(path, dataset) for p in _candidates(folder, stem, ending)]
    return applying[-1] if applying else own


def _levels(path: Path, dataset: Path) -> list[Path]:
    """List the folders from the dataset's root down to a file."""
    return [dataset, *reversed([p for p in path.parents if p.is_relative_to(dataset) and p != dataset])]


def _candidates(folder: Path, stem: str, ending: str) -> list[Path]:
    """List the files of a folder that apply to a name, the most general first."""
    own = set(stem.split("_"))
    fitting = [
        p
        for p in _files_ending(folder, ending)
        if set(p.stem.split("_")) <= own and p.stem.split("_")[-1] == stem.split("_")[-1]
    ]
    return sorted(fitting, key=lambda p: len(p.stem.split("_")))


@lru_cache(maxsize=4096)
def _files_ending(folder: Path, ending: str) -> tuple[Path, ...]:
    return tuple(folder.glob(f"*{ending}"))


@lru_cache(maxsize=4096)
def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as problem:
        raise DataError(f"{path} is not JSON: {problem}; mend or remove it.") from problem
    return content if isinstance(content, dict) else {}


def read_matrix(path: Path, *, own: bool = False) -> tuple[tuple[str, ...], Array]:
    """Read a table of numbers: names of its columns, and values (row, column) as float64.

    A first column of names (XCP-D's ``Node``) is left out; a table without a header gets numbered names. Of this program's
    ``own`` tables the first line holds the names, though they be numbers: regions ``1``, ``2``, or trial types.

    Raises
    ------
    DataError
        If the table is empty or holds text.
    """
    import pandas as pd

    with path.open(encoding="utf-8-sig") as lines:
        first = lines.readline().rstrip("\n\r").split("\t")
    header = 0 if own or not all(map(_is_number, first)) else None
    try:
        table = pd.read_csv(path, sep="\t", header=header, na_values=["n/a"], encoding="utf-8-sig", low_memory=False)
    except (ValueError, OSError) as problem:
        raise DataError(f"{path.name} cannot be read as a table: {problem}.") from problem
    if header == 0 and table.shape[1] and table.dtypes.iloc[0].kind not in "fiu":
        table = table.iloc[:, 1:]
    text = [str(c) for c, kind in zip(table.columns, table.dtypes, strict=True) if kind.kind not in "fiu"]
    if text or table.empty:
        raise DataError(
            f"{path.name} {'is empty' if table.empty else f'holds text in column {text[0]}'}; expected numbers or n/a."
        )
    names = tuple(str(c) if header == 0 else f"region{int(c) + 1:03d}" for c in table.columns)
    return names, table.to_numpy(np.float64)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell == "n/a"
    return True


def framewise_displacement(confounds: Path) -> Array:
    """Read the framewise displacement of each volume, in mm: (time,), NaN for the first; empty if it was not measured."""
    import pandas as pd

    table = pd.read_csv(
        confounds, sep="\t", usecols=lambda c: c == "framewise_displacement", na_values=["n/a"], encoding="utf-8-sig"
    )
    return table.to_numpy(float).ravel() if table.shape[1] else np.empty(0)


def displacement(confounds: Path) -> float:
    """Average the framewise displacement of a confounds table, in mm; NaN where it was not measured."""
    displaced = framewise_displacement(confounds)
    known = displaced[~np.isnan(displaced)]
    return float(known.mean()) if len(known) else float("nan")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that this program wrote."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """Read a JSON file that this program wrote, holding a list."""
    content: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return content
