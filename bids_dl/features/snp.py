"""How many copies of an allele a person carries at each variant, from PLINK's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_dl.errors import DataError
from bids_dl.records import Array, Feature, Scan

TAKES = ("plink",)
COPIES = np.array([2, np.nan, 1, 0], np.float32)
"""Copies of the first allele by the two bits of a genotype."""


@dataclass(frozen=True)
class Panel:
    """Who and what a .bed holds: rows of each person, names and chromosomes of the variants in their order."""

    rows: Mapping[str, Sequence[int]]
    n_people: int
    variants: NDArray[Any]
    chromosomes: NDArray[Any]


def extract(scan: Scan, *, file: str = "", chromosomes: Sequence[str] = (), max_variants: int = 0) -> Feature:
    """Read one person's genotypes [1]_ as copies of the allele that the .bim names first.

    The .bed lists all people variant by variant; the one byte in which each variant has this person is read, and no
    other. Nothing is filtered by frequency or missingness: both depend on who is counted, so that such filters belong to
    the training rows of the group level.

    Parameters
    ----------
    scan
        A .bed beside its .bim and .fam; in the .fam, people have their BIDS label, with or without ``sub-``.
    file
        Path of the .bed, where it does not lie in the dataset's folder ``genetics``.
    chromosomes
        Chromosomes to read, as the .bim calls them; empty for all.
    max_variants
        Variants at most, evenly spaced over those that are there; 0 for all.

    Returns
    -------
    Feature
        ``snp``, (variant,), 0 to 2 copies, NaN where the genotype is missing. A label is the variant and its counted
        allele, so that another dataset that counts the other allele does not pass for the same. Variants that share
        both are named by their place, if need be with the other allele.

    Raises
    ------
    DataError
        If the person is not in the .fam or twice, a file is missing, damaged or ends early, or no variant is left.

    References
    ----------
    .. [1] Chang et al. (2015), GigaScience 4(1). doi:10.1186/s13742-015-0047-8
    """
    stamp = _stamp(scan.path)
    panel = _panel(scan, stamp)
    row = _row(scan, panel)
    columns, labels = _chosen(scan.path, stamp, tuple(map(str, chromosomes)), max_variants)
    if not len(columns):
        raise DataError(
            f"{scan.participant_id}: {scan.path.name} has no variant on {', '.join(map(str, chromosomes)) or 'any'} "
            f"chromosome; it has {', '.join(dict.fromkeys(panel.chromosomes[:: max(1, len(panel.chromosomes) // 50)]))}."
        )
    values = _genotypes(scan.path, panel, row, columns)
    if not np.isfinite(values).any():
        raise DataError(f"{scan.participant_id} has no genotype in {scan.path.name}; remove the person from it.")
    return Feature(
        values, ("variant",), "snp", "copies", labels, {}, {"Description": "Copies of the allele in each label"}
    )


def _stamp(path: Path) -> tuple[int, ...]:
    """Tell when the three files were last written: they are read anew when one changes."""
    files = [path.with_suffix(end) for end in (".bed", ".bim", ".fam")]
    return tuple(file.stat().st_mtime_ns for file in files if file.is_file())


def _panel(scan: Scan, stamp: tuple[int, ...]) -> Panel:
    try:
        return open_panel(scan.path, stamp)
    except DataError as problem:
        raise DataError(f"{scan.participant_id}: {problem}") from problem


@lru_cache(maxsize=4)
def open_panel(path: Path, stamp: tuple[int, ...]) -> Panel:
    """Read who and what a .bed holds, once a process and stamp.

    Raises
    ------
    DataError
        If a file is missing or damaged, or the .bed has not the size that people and variants make.
    """
    from bed_reader import open_bed

    lacking = [end for end in (".bed", ".bim", ".fam") if not path.with_suffix(end).is_file()]
    if lacking:
        raise DataError(f"{path.name} lacks its {lacking[0]}; PLINK's three files belong beside each other.")
    try:
        with open_bed(path) as bed:
            people, names, chromosomes, positions = bed.iid, bed.sid, bed.chromosome, bed.bp_position
            counted, other = bed.allele_1, bed.allele_2
    except (ValueError, IndexError, OSError) as problem:
        raise DataError(
            f"{path.name} or its tables cannot be read ({problem}); write them anew with PLINK."
        ) from problem
    _refuse_size(path, len(people), len(names))
    places = chromosomes.astype(object) + ":" + positions.astype(str).astype(object)
    variants = _names(names.astype(object), places, counted.astype(object), other.astype(object))
    rows: dict[str, list[int]] = {}
    for row, person in enumerate(people.tolist()):
        rows.setdefault(person.removeprefix("sub-"), []).append(row)
    return Panel(rows, len(people), variants, chromosomes)


def _names(
    names: NDArray[np.object_], places: NDArray[np.object_], counted: NDArray[np.object_], other: NDArray[np.object_]
) -> NDArray[np.object_]:
    """Name each variant with its counted allele; those that share both by place, then other allele, then row."""
    import pandas as pd

    labels = np.where(names == ".", places, names) + "_" + counted
    for tail in (lambda _: "", lambda at: ":" + other[at], lambda at: ":" + at.astype(str).astype(object)):
        again = np.flatnonzero(pd.Series(labels).duplicated(keep=False))
        if not len(again):
            break
        labels[again] = places[again] + tail(again) + "_" + counted[again]
    return np.asarray(labels)


def _refuse_size(path: Path, n_people: int, n_variants: int) -> None:
    with path.open("rb") as file:
        if file.read(3)[2:] != b"\x01":
            raise DataError(f"{path.name} lists variants person by person, as PLINK once did; run plink --make-bed.")
    size, expected = path.stat().st_size, 3 + n_variants * -(-n_people // 4)
    if size != expected:
        raise DataError(
            f"{path.name} has {size:,} bytes where {n_people:,} people and {n_variants:,} variants make {expected:,}; "
            "it ends early or belongs to other tables: copy the three files again."
        )


def _row(scan: Scan, panel: Panel) -> int:
    """Find the person's row in the .fam."""
    found = panel.rows.get(scan.participant_id.removeprefix("sub-"), ())
    if len(found) == 1:
        return found[0]
    table = scan.path.with_suffix(".fam").name
    if found:
        raise DataError(f"{scan.participant_id} stands in {len(found)} rows of {table}; keep one.")
    raise DataError(
        f"{scan.participant_id} is not among the {panel.n_people:,} people of {table} ({', '.join(list(panel.rows)[:3])}, …); "
        "its second column must hold the BIDS labels, with or without sub-."
    )


@lru_cache(maxsize=4)
def _chosen(
    path: Path, stamp: tuple[int, ...], chromosomes: tuple[str, ...], max_variants: int
) -> tuple[NDArray[np.intp], tuple[str, ...]]:
    """Choose the variants, with their names: all, those of some chromosomes, or some of them evenly spaced."""
    panel = open_panel(path, stamp)
    columns = np.flatnonzero(np.isin(panel.chromosomes, chromosomes)) if chromosomes else np.arange(len(panel.variants))
    if 0 < max_variants < len(columns):
        columns = columns[np.linspace(0, len(columns) - 1, max_variants).round().astype(int)]
    return columns, tuple(panel.variants[columns].tolist())


def _genotypes(path: Path, panel: Panel, row: int, columns: NDArray[np.intp]) -> Array:
    """Read the two bits of one person in each variant's row of bytes, (variant,)."""
    packed = np.memmap(path, np.uint8, "r", offset=3, shape=(len(panel.variants), -(-panel.n_people // 4)))
    held = packed[:, row // 4] if len(columns) == len(packed) else packed[columns, row // 4]
    copies: Array = COPIES[(held >> 2 * (row % 4)) & 3]
    return copies
