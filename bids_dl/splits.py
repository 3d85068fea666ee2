"""Who is trained on, who stops the training, who is tested: stratified, grouped, by site, saved and reloadable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_dl.config import Splits
from bids_dl.errors import DataError, MissingInputError
from bids_dl.records import Array, Split, Target

Rows = NDArray[np.intp]
N_BINS = 4
PARTS = ("train", "validation", "test")
FEWEST = 4
"""Training participants, validation aside, below which nothing is trained."""


def make(
    target: Target,
    ids: Sequence[str],
    settings: Splits,
    *,
    seed: int,
    groups: Sequence[str] = (),
    sites: Sequence[str] = (),
) -> list[Split]:
    """Divide the participants who have the target.

    Parameters
    ----------
    target
        Values (participant,); rows without a value take part in nothing.
    ids
        participant_id of each row.
    settings
        Kind, folds, repeats.
    seed
        Equal seeds give equal splits.
    groups
        Family or the like of each row, kept on one side.
    sites
        Site of each row; each in turn is the test for ``leave-site-out``.

    Returns
    -------
    list of Split
        Every repeat and fold.

    Raises
    ------
    DataError
        If a class is smaller than the folds, or there are too few groups or sites.
    """
    rows = np.flatnonzero(np.isfinite(target.values))
    left_out = tuple(sites) if settings.kind == "leave-site-out" else ()
    _check(target, rows, settings, left_out or groups)
    strata = _strata(target)
    splits = []
    for name, train, test in _outer(rows, strata, settings, left_out or groups, seed):
        _check_fold(target, train, name)
        fit, validation = _validation(train, strata, groups, settings.validation_fraction, seed)
        _refuse_few(target, name, fit, validation, test)
        splits.append(Split(fit, validation, test, name, tuple(ids), tuple(groups), left_out))
    return splits


def _strata(target: Target) -> NDArray[np.intp]:
    """Classes, ranks, or quarters of a quantity, so that every fold sees the whole range."""
    if target.is_class:
        return np.nan_to_num(target.values, nan=-1).astype(np.intp)
    if target.ranks:  # their values may be standardised
        return np.unique(target.values, return_inverse=True)[1]
    edges = np.nanquantile(target.values, np.linspace(0, 1, N_BINS + 1)[1:-1])
    return np.digitize(np.nan_to_num(target.values), edges)  # rows without a value are never divided


def _check(target: Target, rows: Rows, settings: Splits, tied: Sequence[str]) -> None:
    if len(rows) < FEWEST + 2:
        raise DataError(
            f"target '{target.name}': {len(rows)} participants have it and a feature; at least {FEWEST + 2} are needed, "
            f"{FEWEST} to train on, one to stop the training and one to test."
        )
    n_needed = len(set(np.asarray(tied)[rows])) if tied else len(rows)
    n_folds = 2 if settings.kind == "leave-site-out" else settings.n_folds
    what = "site" if settings.kind == "leave-site-out" else "group" if tied else "participant"
    if n_needed < n_folds:
        raise DataError(f"target '{target.name}': {n_needed} {what}s for {n_folds} folds; lower splits.n_folds.")
    if not target.is_class:
        return
    counts = np.bincount(target.values[rows].astype(int), minlength=len(target.levels))
    small = int(np.argmin(counts))
    if counts[small] < n_folds + 1:
        raise DataError(
            f"target '{target.name}': class '{target.levels[small]}' has {counts[small]} participants, and {n_folds} folds "
            f"need {n_folds + 1}; {'leave the class out or ' if len(counts) > 2 else ''}lower splits.n_folds."
        )


def _check_fold(target: Target, train: Rows, name: str) -> None:
    """Refuse a training part in which a class is missing."""
    if target.is_class and len(set(target.values[train])) < len(target.levels):
        absent = next(level for code, level in enumerate(target.levels) if code not in target.values[train])
        raise DataError(
            f"split {name}: nobody of class '{absent}' is left to train on; use other groups or fewer folds."
        )


def _refuse_few(target: Target, name: str, train: Rows, validation: Rows, test: Rows) -> None:
    """Refuse a split that no model could be trained on, before anything is trained."""
    if len(train) < FEWEST:
        raise DataError(
            f"target '{target.name}', split {name}: {len(test)} participants are tested, {len(validation)} stop the training, "
            f"and {len(train)} are left to train on; at least {FEWEST} are needed: have more participants, or more folds."
        )


def _outer(
    rows: Rows, strata: NDArray[np.intp], settings: Splits, tied: Sequence[str], seed: int
) -> Iterator[tuple[str, Rows, Rows]]:
    if settings.kind == "leave-site-out":
        labels = np.asarray(tied)
        for site in sorted(set(labels[rows])):
            yield f"site-{site}".replace("/", "-"), rows[labels[rows] != site], rows[labels[rows] == site]
        return
    for repeat in range(settings.n_repeats):
        folds = partition(rows, strata, settings.n_folds, tied=tied, seed=seed + repeat)
        for fold, test in enumerate(folds, 1):
            yield f"repeat-{repeat + 1}_fold-{fold}", np.setdiff1d(rows, test), test


def partition(
    rows: Rows, strata: NDArray[np.intp], n_parts: int, *, tied: Sequence[str] = (), seed: int = 0
) -> list[Rows]:
    """Divide rows into stratified parts, fewer if there are fewer ties; rows with the same tie stay in one part.

    Raises
    ------
    DataError
        If all rows hang together.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    n_parts = min(n_parts, len({tied[row] for row in rows}) if tied else len(rows))
    if n_parts < 2:
        raise DataError(f"{len(rows)} participants of one group cannot be divided; use other groups or fewer folds.")
    chosen = strata[rows]
    if np.bincount(chosen).max() < n_parts:
        chosen = np.zeros(len(rows), np.intp)
    if tied:
        folds = StratifiedGroupKFold(n_parts, shuffle=True, random_state=seed).split(
            rows, chosen, np.asarray(tied)[rows]
        )
    else:
        folds = StratifiedKFold(n_parts, shuffle=True, random_state=seed).split(rows, chosen)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the rarest class may be smaller than the inner parts
        return [rows[np.sort(part)] for _, part in folds]


def _validation(
    train: Rows, strata: NDArray[np.intp], tied: Sequence[str], fraction: float, seed: int
) -> tuple[Rows, Rows]:
    """Set a validation part of the training rows aside, for early stopping."""
    parts = partition(train, strata, max(2, round(1 / fraction)), tied=tied, seed=seed)
    return np.setdiff1d(train, parts[0]), parts[0]


def inner(
    split: Split, values: Array, *, is_class: bool, n_parts: int, seed: int, ranks: tuple[str, ...] = ()
) -> list[tuple[Rows, Rows]]:
    """Divide the training and validation rows again: each part in turn is held out.

    Classes, and levels of a target with ``ranks``, are shared out evenly, and so are the quarters of a quantity.

    Returns
    -------
    list
        (training rows, validation rows) of each member; never a test row, and no test row's value is looked at.
    """
    pool = split.pool
    if n_parts < 2:
        return [(split.train, split.validation)]
    known = np.full(len(values), np.nan)
    known[pool] = values[pool]
    strata = _strata(Target("", known, ("0", "1") if is_class else (), ranks))
    parts = partition(pool, strata, n_parts, tied=split.groups, seed=seed)
    return [(np.setdiff1d(pool, part), part) for part in parts]


def final(target: Target, ids: Sequence[str], settings: Splits, *, seed: int, groups: Sequence[str] = ()) -> Split:
    """Put everybody on the training side, for the model that is kept."""
    rows = np.flatnonzero(np.isfinite(target.values))
    fit, validation = _validation(rows, _strata(target), groups, settings.validation_fraction, seed)
    return Split(fit, validation, np.array([], np.intp), "final", tuple(ids), tuple(groups))


def part_of(split: Split, target: Target, fraction: float, *, seed: int) -> Split:
    """Keep a stratified part of the training and of the validation rows; a smaller part lies within every larger one.

    The test rows stay, and none of their values is looked at.
    """
    known = np.full(len(target.values), np.nan)
    known[split.pool] = target.values[split.pool]
    strata = _strata(replace(target, values=known))
    train, validation = (_leading(rows, strata, fraction, seed) for rows in (split.train, split.validation))
    return replace(split, train=train, validation=validation, name=f"{split.name}_part-{fraction:g}")


def _leading(rows: Rows, strata: NDArray[np.intp], fraction: float, seed: int) -> Rows:
    """Shuffle each stratum, interleave them in proportion, and take the first rows."""
    generator = np.random.default_rng(seed)
    place, tie = np.empty(len(rows)), generator.random(len(rows))
    for stratum in np.unique(strata[rows]):
        at = np.flatnonzero(strata[rows] == stratum)
        place[at[np.argsort(tie[at])]] = (np.arange(len(at)) + 0.5) / len(at)
    return np.sort(rows[np.lexsort((tie, place))[: max(1, round(fraction * len(rows)))]])


def of_known_sites(split: Split, sites: Sequence[str]) -> Split:
    """Leave out rows without a site, and test rows of sites without training rows; ``sites`` is empty for none."""
    labels = np.asarray(sites, dtype=object)
    train, validation = (rows[labels[rows] != ""] for rows in (split.train, split.validation))
    known = set(labels[np.concatenate([train, validation])])
    test = split.test[[label in known for label in labels[split.test]]] if len(split.test) else split.test
    return replace(split, train=train, validation=validation, test=test)


def first_round(made: Sequence[Split]) -> list[Split]:
    """Take the first splits that test nobody twice: of several repeats the first one, of left out sites all."""
    tested: set[int] = set()
    found = []
    for split in made:
        mine = set(split.test.tolist())
        if not mine & tested:
            tested |= mine
            found.append(split)
    return found


def to_table(splits: Sequence[Split], ids: Sequence[str]) -> Any:
    """Lay splits out as a table: a row a participant, a column a split."""
    import pandas as pd

    table = pd.DataFrame({"participant_id": list(ids)})
    for split in splits:
        column = np.full(len(ids), "n/a", dtype=object)
        for part in PARTS:
            column[getattr(split, part)] = part
        table[split.name] = column
    return table


def read_one(
    path: Path, name: str, ids: Sequence[str], target: Target, *, groups: Sequence[str] = (), sites: Sequence[str] = ()
) -> Split:
    """Read one column of a saved table of splits; the final split has no test part."""
    table = _table(path, ids)
    if name not in table:
        raise DataError(f"{path} has no split '{name}'; it has {', '.join(map(str, table.columns[:8]))}.")
    return _column(path, name, table[name].to_numpy(), ids, target, groups, sites)


def read(
    path: Path, ids: Sequence[str], target: Target, *, groups: Sequence[str] = (), sites: Sequence[str] = ()
) -> list[Split]:
    """Read splits that were saved, for the participants at hand; rows of others are passed over.

    A row of a participant stands for all moments of theirs (``sub-01@t0012``) that have none of their own.

    Raises
    ------
    MissingInputError, DataError
        If the file is missing, names somebody twice, or a cell is none of train, validation, test, n/a.
    """
    table = _table(path, ids)
    return [_column(path, column, table[column].to_numpy(), ids, target, groups, sites) for column in table.columns]


def _table(path: Path, ids: Sequence[str]) -> Any:
    import pandas as pd

    if not path.is_file():
        raise MissingInputError(f"the splits file {path} does not exist.")
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    people = "sub-" + table["participant_id"].str.removeprefix("sub-") if "participant_id" in table else None
    if people is None or people.duplicated().any():
        raise DataError(f"{path} needs a column participant_id that names nobody twice.")
    table = table.drop(columns="participant_id").set_index(people)
    found = table.reindex([i if i in table.index else i.partition("@")[0] for i in ids]).fillna("n/a")
    return found.set_axis(list(ids))


def _column(
    path: Path, name: str, cells: Any, ids: Sequence[str], target: Target, groups: Sequence[str], sites: Sequence[str]
) -> Split:
    unknown = set(cells) - {*PARTS, "n/a"}
    if unknown:
        raise DataError(f"{path}, column {name}: '{sorted(unknown)[0]}' is none of train, validation, test, n/a.")
    known = np.isfinite(target.values)
    train, validation, test = (np.flatnonzero((cells == part) & known) for part in PARTS)
    if not len(train) or (not len(test) and name != "final"):
        raise DataError(f"{path}, column {name}: no participant with '{target.name}' is in train and in test.")
    if not len(validation):
        train, validation = _validation(train, _strata(target), groups, 0.2, 0)
    return Split(train, validation, test, name, tuple(ids), tuple(groups), tuple(sites))
