"""BIDS names, sidecars and dataset descriptions: everything that is written goes through here, whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_dl.errors import OutputError
from bids_dl.records import Array, Feature, Scan

ENTITY_ORDER = (
    "sub", "ses", "sample", "task", "tracksys", "acq", "ce", "trc", "stain", "rec", "dir", "run", "mod", "echo",
    "flip", "inv", "mt", "part", "proc", "hemi", "space", "split", "recording", "chunk", "atlas", "seg", "scale",
    "res", "den", "from", "to", "mode", "model", "param", "stat", "label", "desc",
)  # fmt: skip
LARGEST_TABLE, WIDEST_TABLE = 2_000_000, 10_000
"""Numbers, and columns, that a TSV may hold; larger features become .npy files."""

BIDS_VERSION = "1.10.0"
CODE_URL = "https://github.com/bids-dl/bids_dl"
IGNORED = (
    "*.html", "*.toml", "group", "figures", "log", "logs", "work", "work/**", "*_xfm.*", "*_dwimap.*",
    "*_dwi.bval", "*_dwi.bvec", "*_snp.*", "genetics", "*_morphometry.*", "*_volumes.*", "*_timeseries.*",
    "*_relmat.*", "*_mixing.*", "*_components.*", "*_statmap.*", "*_attention.*",
    "*_boldmap.*", "*_edges.*", "*_regions.*", "*_stat-coverage_bold.*", "quality.*",
)  # fmt: skip


def name(entities: Mapping[str, str], suffix: str, extension: str) -> str:
    """Join entities in the order of the specification."""
    parts = [f"{key}-{entities[key]}" for key in ENTITY_ORDER if entities.get(key)]
    return "_".join([*parts, suffix]) + extension


def word(text: str) -> str:
    """Make a value of an entity of any text: its words run together, each with a capital."""
    return "".join(part[:1].upper() + part[1:] for part in "".join(c if c.isalnum() else " " for c in text).split())


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; the final name appears only when all is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    extension = "".join(path.suffixes[-2:]) if path.name.endswith(".gz") else path.suffix
    temporary = path.with_name(f".{path.name.removesuffix(extension)}.{os.getpid()}.tmp{extension}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write a text file, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, content: Any) -> Path:
    """Write JSON; NaN becomes null."""
    return write_text(path, json.dumps(_jsonable(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_jsonable(v) for v in value]
    if isinstance(value, (np.generic,)):
        return _jsonable(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def write_table(path: Path, table: Any, columns: Mapping[str, str] | None = None) -> Path:
    """Write a pandas table as BIDS TSV, and a JSON beside it that describes its columns; one without any gets these."""
    if columns and not len(table.columns):
        table = table.reindex(columns=list(columns))
    with atomic(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False, na_rep="n/a", float_format="%.6g")
    if columns:
        write_json(path.with_suffix(".json"), {k: {"Description": v} for k, v in columns.items()})
    return path


def write_matrix(path: Path, values: Array, labels: Sequence[str]) -> Path:
    """Write numbers as TSV with a header, to seven digits of the largest, NaN as n/a.

    Each number takes a few vectorised steps instead of a call of ``format``: 392×392 in some 20 ms.
    """
    header = "\t".join(labels).encode() + b"\n"
    numbers = np.asarray(values, np.float64)
    largest = np.abs(numbers[np.isfinite(numbers)]).max(initial=0.0)
    body = _digits(numbers) if largest == 0 or 1e-8 < largest < 1e15 else _exponents(numbers)
    with atomic(path) as temporary:
        temporary.write_bytes(header + body)
    return path


def _exponents(values: Array) -> bytes:
    """Format numbers that are too small or too large to write without an exponent."""
    rows = ("\t".join(f"{v:.6e}" if np.isfinite(v) else "n/a" for v in row) for row in values)
    return "".join(f"{row}\n" for row in rows).encode()


def _digits(values: Array) -> bytes:
    """Format a matrix as TSV lines through integers: sign, digits and point are columns of an array of bytes."""
    missing = ~np.isfinite(values)
    largest = float(np.abs(values[~missing]).max(initial=0.0))
    decimals = int(np.clip(6 - (np.floor(np.log10(largest)) if largest > 0 else 0), 0, 15))
    whole = np.rint(np.where(missing, 0, values) * 10.0**decimals).astype(np.int64)
    n_digits = max(len(str(int(np.abs(whole).max(initial=0)))), decimals + 1)
    cells = np.full((*whole.shape, n_digits + 3), ord(" "), np.uint8)
    cells[..., 0][whole < 0] = ord("-")
    rest, column = np.abs(whole), n_digits + 1
    for digit in range(n_digits):
        if digit == decimals and decimals:
            cells[..., column] = ord(".")
            column -= 1
        rest, last = np.divmod(rest, 10)
        shown = last + ord("0")
        cells[..., column] = shown if digit <= decimals else np.where((rest > 0) | (last > 0), shown, ord(" "))
        column -= 1
    cells[missing] = ord("?")
    cells[..., -1] = ord("\t")
    cells[:, -1, -1] = ord("\n")
    return cells.tobytes().replace(b" ", b"").replace(b"?" * (n_digits + 2), b"n/a")


def write_array(path: Path, values: NDArray[Any]) -> Path:
    """Write a NumPy array: whole numbers in their own type, others in float32."""
    with atomic(path) as temporary:
        np.save(temporary, values if values.dtype.kind in "iu" else np.asarray(values, np.float32))
    return path


def write_image(path: Path, values: NDArray[Any], affine: Array, repetition_time: float = 0.0) -> Path:
    """Write a NIfTI volume, or a series, of several values too, with its repetition time (s): float32, or integers.

    Integers of 64 bits, which few programs read, become 32; labels are far below that.
    """
    import nibabel as nib

    data = values if values.dtype.kind in "iu" else values.astype(np.float32)
    data = data.astype(f"{data.dtype.kind}4") if data.dtype.itemsize > 4 else data
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm", "sec")
    if values.ndim > 3:
        zooms = image.header.get_zooms()
        image.header.set_zooms((*zooms[:3], repetition_time, *zooms[4:]))
    image.set_sform(affine, 4)
    image.set_qform(affine, 4)
    with atomic(path) as temporary:
        nib.save(image, temporary)
    return path


def keep(file: str, path: Path) -> Path:
    """Copy a file that another program wrote into the output."""
    with atomic(path) as temporary:
        shutil.copyfile(file, temporary)
    return path


def write_description(out: Path, sources: Mapping[str, Path]) -> None:
    """Write dataset_description.json, README and .bidsignore of the output."""
    own = out / "dataset_description.json"
    if own.is_file() and "bids_dl" not in own.read_text(encoding="utf-8"):
        raise OutputError(f"{out} holds a dataset that bids_dl did not write; choose another output folder.")
    version = metadata.version("bids_dl")
    container = (
        {"Container": {"Type": "docker", "Tag": os.environ["BIDS_DL_CONTAINER"]}}
        if "BIDS_DL_CONTAINER" in os.environ
        else {}
    )
    write_json(own, {
        "Name": "bids_dl: features, models and reports", "BIDSVersion": BIDS_VERSION, "DatasetType": "derivative",
        "License": "CC0", "Authors": ["bids_dl"],
        "GeneratedBy": [{"Name": "bids_dl", "Version": version, "CodeURL": CODE_URL, **container}],
        "SourceDatasets": [{"URL": Path(path).as_uri()} for path in sources.values()],
        "DatasetLinks": {key if key != "bids" else "raw": Path(path).as_uri() for key, path in sources.items()},
    })  # fmt: skip
    write_text(out / ".bidsignore", "\n".join(IGNORED) + "\n")
    write_text(out / "README", "Written by bids_dl. Open group.html, or sub-*.html for one participant.\n")


def feature_path(out: Path, scan: Scan, feature: Feature) -> Path:
    """Name the file that a feature of a scan is written to."""
    named = {k: v for k, v in scan.entities.items() if k not in {"suffix", "datatype"}} | dict(feature.entities)
    named = {k: v for k, v in named.items() if v}
    extension = ".nii.gz" if feature.affine is not None else ".npy" if _is_long(feature) else ".tsv"
    datatype = scan.entities["datatype"] or ("anat" if feature.affine is not None else "func")
    return folder_of(out, scan) / datatype / name(named, feature.suffix, extension)


def folder_of(out: Path, scan: Scan) -> Path:
    """Name the folder of a scan's participant and session."""
    return out / f"sub-{scan.entities['sub']}" / (f"ses-{scan.entities['ses']}" if scan.entities.get("ses") else "")


def _is_long(feature: Feature) -> bool:
    """Tell whether a feature is no table, or too large to be read as text: it is written as a NumPy array."""
    wide = feature.values.shape[-1] > WIDEST_TABLE
    return feature.values.ndim > 2 or wide or feature.values.size > LARGEST_TABLE


def write_feature(out: Path, scan: Scan, feature: Feature) -> Path:
    """Write one feature with its sidecar; regional coverage goes beside it."""
    path = feature_path(out, scan, feature)
    described = {"Sources": [bids_uri(out, scan)], **feature.metadata}
    if feature.affine is not None:
        write_image(path, feature.values, feature.affine, feature.metadata.get("StepDuration", 0.0))
    elif path.suffix == ".npy":
        write_array(path, feature.values)
        described |= {"Dimensions": feature.dims, "Labels": feature.labels}
    else:
        write_matrix(path, np.atleast_2d(feature.values), feature.labels)
    write_json(sidecar_path(path), described)
    if feature.coverage is not None:
        covered = path.with_name(re.sub(r"(_stat-[^_]+)?(_desc-[^_]+)?_timeseries", "_stat-coverage_bold", path.name))
        write_matrix(covered, feature.coverage[None], feature.labels)
    return path


def bids_uri(out: Path, scan: Scan) -> str:
    """Point to a scan by the name that the output's DatasetLinks give to its dataset."""
    links = (
        json.loads((out / "dataset_description.json").read_text(encoding="utf-8"))["DatasetLinks"]
        if scan.dataset != out
        else {}
    )
    name = next((key for key, link in links.items() if link == scan.dataset.as_uri()), None)
    if name is None and links:
        return scan.path.as_uri()  # what lies outside of the datasets: a file that was named, FreeSurfer's folder
    return f"bids:{name or ''}:{scan.path.relative_to(scan.dataset)}"


def sidecar_path(path: Path) -> Path:
    """Name the JSON beside a file."""
    return path.with_name(path.name.split(".")[0] + ".json")


def find(out: Path, suffix: str, extension: str) -> Iterator[Path]:
    """Walk the features of an output folder in order of participant."""
    for person in sorted(p for p in out.glob("sub-*") if p.is_dir()):
        yield from sorted(person.rglob(f"*_{suffix}{extension}"))


def remove(paths: Iterable[Path]) -> None:
    """Remove files and folders that exist."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
