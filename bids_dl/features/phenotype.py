"""Columns of participants.tsv and phenotype/*.tsv as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bids_dl import query
from bids_dl.errors import DataError
from bids_dl.records import Array, Feature, Scan

MAX_LEVELS = 12


def extract(scan: Scan, *, columns: Sequence[str] = ()) -> Feature:
    """Read a participant's row of a table: numbers as they are, words as one column a level.

    Where the JSON beside the table lists the ``Levels`` of a column of words, each has its column, whether or not
    anybody has it, so that columns are the same at every site. Levels are sorted; of two, the first has no column.
    Numbers stay numbers.

    Parameters
    ----------
    scan
        participants.tsv or a table of ``phenotype/``, with its JSON beside it.
    columns
        Columns to use; empty means all but participant_id and those that hold free text.

    Returns
    -------
    Feature
        ``phenotype``, (column,), in each column's own unit, told in ``Units``; NaN where a cell is n/a.

    Raises
    ------
    DataError
        If the participant has no row, a column does not exist or holds a word that is not among its Levels, or the JSON
        is none.
    """
    labels, values, people = encoded(scan.path, tuple(columns))
    if scan.participant_id not in people:
        raise DataError(f"{scan.participant_id} has no row in {scan.path.name}.")
    units = {c: said["Units"] for c, said in described(scan.path).items() if c in labels and "Units" in said}
    row = values[people[scan.participant_id]]
    return Feature(row, ("column",), "phenotype", "mixed", labels, {}, {"Units": units})


def described(file: Path) -> dict[str, Mapping[str, Any]]:
    """Read what the JSON beside a table says of each column; empty where there is none."""
    return {column: said for column, said in query.sidecar(file, file.parent).items() if isinstance(said, Mapping)}


def encoded(file: Path, columns: tuple[str, ...]) -> tuple[tuple[str, ...], Array, dict[str, int]]:
    """Turn a whole table into numbers: labels (column,), values (row, column), row of each participant."""
    table = query.read_people(file)
    chosen = columns or tuple(c for c in table.columns)
    missing = [c for c in chosen if c not in table]
    if missing:
        raise DataError(f"{file.name} has no column '{missing[0]}'; it has {', '.join(table.columns[:12])}.")
    said = described(file)
    listed = {c: {str(level) for level in said.get(c, {}).get("Levels", ())} - {"n/a"} for c in chosen}
    parts = [part for c in chosen for part in _column(file.name, c, table[c], listed[c], asked=bool(columns))]
    labels = tuple(label for label, _ in parts)
    values = np.column_stack([v for _, v in parts]) if parts else np.zeros((len(table), 0))
    return labels, values, {p: n for n, p in enumerate(table.index)}


def _column(table: str, name: str, cells: Any, listed: set[str], *, asked: bool) -> list[tuple[str, Array]]:
    """Encode one column; text with too many levels that are not listed is refused if it was asked for, else left out."""
    import pandas as pd

    numbers = pd.to_numeric(cells, errors="coerce").to_numpy(np.float64)
    known = cells.notna().to_numpy()
    if known.any() and np.isfinite(numbers[known]).all():
        return [(name, numbers)]
    found = set(cells.dropna())
    if listed and found - listed:
        raise DataError(
            f"{table}: column '{name}' holds '{min(found - listed)}', which is not among its Levels "
            f"({', '.join(sorted(listed))}); mend the cell, or add it to the JSON beside the table."
        )
    levels = sorted(listed or found)
    if len(levels) > MAX_LEVELS and not listed:
        if asked:
            raise DataError(
                f"column '{name}' holds text with {len(levels)} different values; at most {MAX_LEVELS} can be encoded."
            )
        return []
    shown = levels[1:] if len(levels) == 2 else levels
    return [(f"{name}={level}", np.where(known, (cells == level).to_numpy(np.float64), np.nan)) for level in shown]
