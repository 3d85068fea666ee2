"""Windows of participants' series: laid out once, end to end, and cut only when a row is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from bids_dl import cohort as cohorts
from bids_dl import config as configuration
from bids_dl import decoding, derivatives, query
from bids_dl.errors import DataError
from bids_dl.records import Array, Block, Cohort, Target

MOST_EXPLAINED = 2000


def write(made: decoding.Plan, folder: Path, settings: configuration.Decoding) -> None:
    """Lay out the participants' series, and write down where each row's window begins."""
    described = cohorts.write(made.stored, folder)
    series, flat = made.variants
    one = described[series.name]
    context, regions = series.n_steps, one["labels"]
    columns = [f"{region} {step - decoding.n_before(settings):+d}" for step in range(context) for region in regions]
    described = {
        series.name: one | {"shape": [context, len(regions)]},
        flat.name: one | {"shape": [len(columns)], "dims": ["column"], "labels": columns},
    }
    derivatives.write_json(folder / "features.json", described)
    listed = {key: value for key, value in asdict(made).items() if key in cohorts.Plan.__dataclass_fields__}
    derivatives.write_json(folder / "rows.json", listed)
    runs = {"repetition_time": made.repetition_time, "regions": regions, "n_volumes": made.n_volumes}
    derivatives.write_json(folder / "runs.json", runs)
    np.save(folder / "starts.npy", np.asarray(made.starts, np.int64))


def fill(folder: str, start: int, stop: int, causal: bool) -> list[dict[str, str]]:
    """Write some participants' series into the cohort; returns those that do not fit, with the reason."""
    root = Path(folder)
    made, runs = cohorts.read_plan(root), query.read_json(root / "runs.json")
    variant, refused, prints = made.variants[0], [], {}
    values: Any = np.lib.format.open_memmap(root / f"{variant.name}.npy", mode="r+")  # type: ignore[no-untyped-call]
    for row, person in list(enumerate(made.participant_ids))[start:stop]:
        try:
            parts = [
                volumes_of(Path(file), runs["regions"], causal=causal, n_volumes=n)
                for file, n in zip(variant.files[person], runs["n_volumes"][person], strict=True)
            ]
            found = np.concatenate(parts)
            values[row, : len(found)] = found
            prints[person] = cohorts.fingerprints(parts)
        except DataError as problem:
            refused.append({"participant_id": person, "feature": variant.name, "reason": str(problem)})
    values.flush()
    derivatives.write_json(root / f"refused_{start:07d}.json", refused)
    derivatives.write_json(root / f"prints_{start:07d}.json", {variant.name: prints})
    return refused


def volumes_of(file: Path, regions: Sequence[str], *, causal: bool, n_volumes: int | None = None) -> Array:
    """Read one run, (volume, region), standardised; a censored volume is NaN, so that steps keep their distance.

    Raises
    ------
    DataError
        If it has other regions than those given, or another length than its events.
    """
    values, labels, _ = cohorts.read(file)
    if list(labels) != list(regions):
        raise DataError(
            f"{file.name} has other regions than the other participants' series; extract it with the same atlas."
        )
    censored = cohorts.said_beside(file).get("CensoredVolumes", [])
    if n_volumes is not None and len(values) + len(censored) != n_volumes:
        raise DataError(
            f"{file.name} has {len(values)} volumes and {len(censored)} censored ones, its events {n_volumes}; extract both "
            "from the same run."
        )
    whole = np.full((len(values) + len(censored), values.shape[1]), np.nan)
    whole[np.setdiff1d(np.arange(len(whole)), censored)] = values
    return standardised_so_far(whole) if causal else cohorts.standardised(whole)


def standardised_so_far(series: Array) -> Array:
    """Bring each region to mean 0 and deviation 1 of the volumes up to each one, (volume, region).

    A value depends on what came before it and on nothing later, as in real time. Sums start from the first known value,
    so that a large mean costs no digits.
    """
    known = np.isfinite(series)
    first = np.take_along_axis(series, known.argmax(axis=0)[None], axis=0)
    shifted = np.where(known, series - first, 0)
    n = np.cumsum(known, axis=0).clip(1)
    mean = np.cumsum(shifted, axis=0) / n
    variance = np.cumsum(shifted**2, axis=0) / n - mean**2
    deviation = np.sqrt(np.where(variance > 0, variance, np.inf))
    return np.asarray((series - first - mean) / deviation, np.float32)


@dataclass(frozen=True)
class Windows:
    """Windows of series that are read when they are asked for; it is indexed like an array, (row, step, value).

    ``series`` is (volume, value), all participants' end to end; ``flat`` makes it (row, step × value).
    """

    series: Array
    starts: NDArray[np.int64]
    context: int
    flat: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of all windows together."""
        n_values = self.series.shape[1]
        return (len(self.starts), self.context * n_values) if self.flat else (len(self.starts), self.context, n_values)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, key: Any) -> Array:
        rows, *rest = key if isinstance(key, tuple) else (key,)
        starts = self.starts[rows]
        if self.flat and rest:
            columns = np.arange(self.shape[1])[rest[0]]
            return np.asarray(self.series.reshape(-1)[starts[..., None] * self.series.shape[1] + columns])
        view = np.lib.stride_tricks.sliding_window_view(self.series, self.context, axis=0)
        found = np.swapaxes(view[starts], -1, -2)
        found = found.reshape(*starts.shape, -1) if self.flat else found
        return np.asarray(found[(..., *rest)] if rest else found)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self[:], dtype)

    def reshape(self, *shape: Any) -> Windows:
        """Flatten the windows; any other shape is refused."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        if len(wanted) != 2 or wanted[0] != len(self):
            raise ValueError(f"windows of shape {self.shape} are only flattened, not brought to {wanted}")
        return replace(self, flat=True)


def load(folder: Path, target: Target) -> Cohort:
    """Open the windows of a cohort that `write` and `fill` made."""
    import pandas as pd

    made, described = decoding.read_plan(folder), query.read_json(folder / "features.json")
    stored = np.load(folder / f"{made.variants[0].name}.npy", mmap_mode="r")
    starts = np.load(folder / "starts.npy")
    people = pd.DataFrame({"participant_id": list(made.participant_ids), **made.columns})
    context = int(described[made.variants[0].name]["shape"][0])
    blocks = blocks_of(
        Windows(stored.reshape(-1, stored.shape[2]), starts, context), described, people[decoding.MINUTES]
    )
    return Cohort(people, blocks, target)


def blocks_of(windows: Windows, described: Mapping[str, Mapping[str, Any]], minutes: Any) -> dict[str, Block]:
    """Give windows as the features that are described, sequences or columns, with the time in the run as confounds."""
    blocks = {
        name: Block(
            cast(Array, replace(windows, flat=tuple(said["dims"]) == ("column",))),
            tuple(said["dims"]),
            tuple(said["labels"]),
            said["entities"],
        )
        for name, said in described.items()
    }
    return blocks | {cohorts.CONFOUNDS: time_block(minutes)}


def time_block(minutes: Any) -> Block:
    """Write the time in the run and its powers as confounds: what a slow drift could tell."""
    t = np.asarray(minutes, np.float64)
    return Block(np.stack([t, t**2, t**3], axis=1).astype(np.float32), ("column",), ("minutes", "minutes²", "minutes³"))


def prints_of(folder: Path, people: Sequence[str]) -> Iterator[str]:
    """Hash every run of some participants as it was trained on, so that it is recognised under another name."""
    made, n_volumes = cohorts.read_plan(folder), query.read_json(folder / "runs.json")["n_volumes"]
    stored = np.load(folder / f"{made.variants[0].name}.npy", mmap_mode="r")
    for person in people:
        ends = np.cumsum(n_volumes[person])
        yield from cohorts.fingerprints(np.split(stored[made.participant_ids.index(person), : ends[-1]], ends[:-1]))


def thinned(rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """Keep some of the windows, evenly spread, to explain: neighbours say the same."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST_EXPLAINED)).astype(np.intp)]
