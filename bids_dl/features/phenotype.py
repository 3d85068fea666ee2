"""Columns of participants.tsv and phenotype/*.tsv as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bids_dl import query
from bids_dl.errors import DataError
from bids_dl.records import Array, Feature, Scan

MAX_LEVELS = 12


def extract(scan: Scan, *, columns: Sequence[str] = ()) -> Feature:
    """Read a participant's row of a table: numbers as they are, words as one column a level.

    Parameters
    ----------
    scan
        participants.tsv or a table of ``phenotype/``.
    columns
        Columns to use; empty means all but participant_id and those that hold free text.

    Returns
    -------
    Feature
        ``phenotype``, (column,), in each column's own unit; NaN where a cell is n/a.

    Raises
    ------
    DataError
        If the participant has no row, or a column does not exist.
    """
    labels, values, people = encoded(scan.path, tuple(columns))
    if scan.participant_id not in people:
        raise DataError(f"{scan.participant_id} has no row in {scan.path.name}.")
    return Feature(values[people[scan.participant_id]], ("column",), "phenotype", "mixed", labels)


def encoded(file: Any, columns: tuple[str, ...]) -> tuple[tuple[str, ...], Array, dict[str, int]]:
    """Turn a whole table into numbers: labels (column,), values (row, column), row of each participant."""
    table = query.read_people(file)
    chosen = columns or tuple(c for c in table.columns)
    missing = [c for c in chosen if c not in table]
    if missing:
        raise DataError(f"{file.name} has no column '{missing[0]}'; it has {', '.join(table.columns[:12])}.")
    parts = [part for c in chosen for part in _column(c, table[c], asked=bool(columns))]
    labels = tuple(label for label, _ in parts)
    values = np.column_stack([v for _, v in parts]) if parts else np.zeros((len(table), 0))
    return labels, values, {p: n for n, p in enumerate(table.index)}


def _column(name: str, cells: Any, *, asked: bool) -> list[tuple[str, Array]]:
    """Encode one column; text with too many levels is refused if it was asked for, else left out."""
    import pandas as pd

    numbers = pd.to_numeric(cells, errors="coerce").to_numpy(np.float64)
    known = cells.notna().to_numpy()
    if known.any() and np.isfinite(numbers[known]).all():
        return [(name, numbers)]
    levels = sorted(cells.dropna().unique())
    if len(levels) > MAX_LEVELS:
        if asked:
            raise DataError(
                f"column '{name}' holds text with {len(levels)} different values; at most {MAX_LEVELS} can be encoded."
            )
        return []
    shown = levels[1:] if len(levels) == 2 else levels
    return [(f"{name}={level}", np.where(known, (cells == level).to_numpy(np.float64), np.nan)) for level in shown]
