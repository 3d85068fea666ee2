"""What models tell of participants beside a prediction: sources or states, matched over the splits, as derivatives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bids_dl import derivatives, differences, query, training
from bids_dl.records import Array, Block, Cohort, FittedModel, Split

ROWS = 16
WEIGHTS = ("source",)
"""Parts that are weights, whose sign is arbitrary; other parts are places: they are compared as they are."""

WITHOUT_SIGN = ("parcellation",)
"""What is said of weights and has no sign of its own."""

NAMES = {"source": "maps", "state": "centroids"}
SUFFIXES = {"courses": "mixing", "maps": "components", "parcellation": "probseg"}
SPACE = ("x", "y", "z")
KEPT = ("sub", "ses", "task", "acq", "rec", "dir", "run", "space", "atlas", "res")
"""Entities that a description shares with the file it was made from."""


@dataclass(frozen=True)
class Told:
    """What the model of one split says of one of its test participants: named values and their dimensions.

    Volumes have voxels whose edge is ``pool`` voxels of the feature.
    """

    row: int
    split: str
    values: Mapping[str, Array]
    dims: Mapping[str, tuple[str, ...]]
    pool: int = 1


@dataclass(frozen=True)
class Matching:
    """Which part of a model, and with which sign, is each part of another."""

    order: NDArray[np.intp]
    sign: Array

    def apply(self, values: Array, dims: Sequence[str], part: str, *, signed: bool = True) -> Array:
        """Rearrange every axis of parts, and turn the signs of what has any."""
        for axis, dim in enumerate(dims):
            if dim == part:
                shape = [-1 if a == axis else 1 for a in range(values.ndim)]
                values = np.take(values, self.order, axis) * (self.sign.reshape(shape) if signed else 1)
        return values


def teller(fitted: FittedModel) -> Any:
    """Return the module that describes: of an ensemble the first member, as no part of one is a part of another."""
    members: Any = getattr(fitted.module, "members", None)
    return fitted.module if members is None else members[0]


def in_unit(values: Array, fitted: FittedModel, part: str) -> Array:
    """Undo the normalisation, (part, …): of weights the scale, of places the mean too; what never varied has it.

    What is not over the feature's values, such as weights of whole maps, has a unit of its own and stays as it is.
    """
    normalization = fitted.normalization[fitted.inputs[0]]
    if values.shape[1:] != normalization.mean.shape:
        return values
    scaled = values * np.where(np.isfinite(normalization.scale), normalization.scale, 0)
    return np.asarray(scaled if part in WEIGHTS else scaled + normalization.mean)


def parts_of(fitted: FittedModel, part: str) -> Array:
    """Return what a model's parts are, alike for all participants, (part, …) in the feature's unit."""
    return in_unit(teller(fitted).parts().detach().numpy(), fitted, part)


def match(found: Array, reference: Array, part: str) -> Matching:
    """Pair the parts of two models so that the sum of their similarities, (part, …), is largest [1]_.

    Weights are as similar as their correlation is strong, whatever its sign; places the more the nearer.

    References
    ----------
    .. [1] Kuhn (1955), Naval Research Logistics Quarterly 2. doi:10.1002/nav.3800020109
    """
    from scipy.optimize import linear_sum_assignment

    a, b = reference.reshape(len(reference), -1), found.reshape(len(found), -1)
    if part in WEIGHTS:
        similar = _standardised(a) @ _standardised(b).T
        order = linear_sum_assignment(-np.abs(similar))[1]
        return Matching(order, np.where(similar[np.arange(len(a)), order] < 0, -1.0, 1.0))
    squares = np.square(a[:, None] - b).sum(axis=2)
    return Matching(linear_sum_assignment(squares)[1], np.ones(len(a)))


def _standardised(values: Array) -> Array:
    centred = values - values.mean(axis=1, keepdims=True)
    length = np.sqrt(np.square(centred).sum(axis=1, keepdims=True))
    return np.asarray(centred / np.where(length > 0, length, 1))


def held_out(
    models: Iterable[tuple[FittedModel, Split]], cohort: Cohort, reference: FittedModel, part: str
) -> Iterator[Told]:
    """Describe every test participant once, by the model of the first split that tests them.

    Parameters
    ----------
    models
        Each split's model, and its rows; one model at a time.
    cohort
        Its features.
    reference
        A model of everybody, which gives the parts their order and signs: what is called the first source, or state, is
        one for all participants, as far as the models agree.
    part
        What the model's file calls its ``PARTS``.
    """
    wanted, seen = parts_of(reference, part), set[int]()
    for fitted, split in models:
        rows = np.array([row for row in split.test if row not in seen], np.intp)
        seen |= set(rows.tolist())
        matching = match(parts_of(fitted, part), wanted, part)
        for at in np.array_split(rows, -(-len(rows) // ROWS)) if len(rows) else ():
            yield from _told(fitted, split.name, cohort, at, matching, part)


def _told(
    fitted: FittedModel, split: str, cohort: Cohort, rows: NDArray[np.intp], matching: Matching, part: str
) -> Iterator[Told]:
    with torch.no_grad():
        found = teller(fitted).describe(*training.inputs_of(fitted, cohort, rows))
    dims = {name: kept for name, (_, kept) in found.items()}
    for number, row in enumerate(rows):
        values = {}
        for name, (given, kept) in found.items():
            one = matching.apply(given[number].numpy(), kept, part, signed=name not in WITHOUT_SIGN)
            values[name] = in_unit(one, fitted, part) if _of_values(kept, part) else one
        yield Told(int(row), split, values, dims, getattr(teller(fitted), "pool", 1))


def _of_values(dims: Sequence[str], part: str) -> bool:
    """Tell whether something has, for each part, a value for each value of the feature."""
    return dims[0] == part and len(dims) > 1 and part not in dims[1:]


def is_figure(dims: Sequence[str], part: str) -> bool:
    """Tell whether something is a number a part, or a pair of parts, rather than a map or a course."""
    return all(dim == part for dim in dims)


def write_participant(
    told: Told, block: Block, files: Sequence[str], out: Path, *, model: str, target: str, part: str
) -> list[Path]:
    """Write one participant's courses and maps beside the features, each with its sidecar.

    Returns
    -------
    list
        ``_mixing.tsv``, (step, part), for a course; ``_components``, (part, region) or a volume a part, for maps;
        ``_probseg``, a volume a part, for a parcellation. What is told of windows has a volume a window and part, (x, y, z,
        window, part).
    """
    dropped = {"res"} if told.pool > 1 else set()
    labels = query.entities(Path(files[0]))
    names = {k: v for k, v in labels.items() if k in KEPT and k not in dropped and (k != "run" or len(files) == 1)}
    names["desc"] = derivatives.word(target) + derivatives.word(model)
    folder = out / f"sub-{names['sub']}" / (f"ses-{names['ses']}" if names.get("ses") else "") / labels["datatype"]
    common = {
        "Model": model, "Target": target, "Split": told.split, "Sources": [_uri(Path(f), out) for f in files],
        "Matched": f"Order{' and signs' if part in WEIGHTS else ''} as in the model that was trained on everybody",
    }  # fmt: skip
    written = []
    for name, dims in told.dims.items():
        if not is_figure(dims, part):
            when = _time_of(dims[0], files)
            path = _write(told, name, block, folder, names, part, when.get("StepDuration", 0.0))
            said: dict[str, Any] = {
                "Description": f"{name} by a model that had not seen this participant",
                "Dimensions": dims,
            }
            if dims[-3:] == SPACE:
                said |= {
                    "Dimensions": [*SPACE, *dims[:-3]],
                    "Resolution": f"{told.pool} times that of the feature",
                    "SkullStripped": True,
                }
            derivatives.write_json(derivatives.sidecar_path(path), said | when | common)
            written.append(path)
    return written


def _time_of(dim: str, files: Sequence[str]) -> dict[str, Any]:
    """Say when the steps of a course, or the windows of maps, were, by the features' sidecars; onsets are within a run.

    Censored volumes are missing in a course; of several runs they are told by the sidecars of the ``Sources`` alone.
    """
    if dim == "time":
        said = query.read_json(derivatives.sidecar_path(Path(files[0])))
        kept = ("RepetitionTime", "CensoredVolumes") if len(files) == 1 else ("RepetitionTime",)
        return {key: said[key] for key in kept if said.get(key)}
    if dim != "window":
        return {}
    beside = [query.read_json(derivatives.sidecar_path(Path(file))) for file in files]
    onsets = [onset for said in beside for onset in said["WindowOnsets"]]
    return {key: beside[0][key] for key in ("WindowDuration", "StepDuration")} | {"WindowOnsets": onsets}


def _write(
    told: Told, name: str, block: Block, folder: Path, names: Mapping[str, str], part: str, step_s: float
) -> Path:
    values, dims = told.values[name], told.dims[name]
    path = folder / derivatives.name(names, SUFFIXES[name], ".nii.gz" if dims[-3:] == SPACE else ".tsv")
    if dims[0] != part:
        values = values[np.isfinite(values).reshape(len(values), -1).any(axis=1)]
    if dims[-3:] == SPACE:
        assert block.affine is not None
        space_first = np.moveaxis(values, (-3, -2, -1), (0, 1, 2))
        return derivatives.write_image(path, space_first, pooled(block.affine, told.pool), step_s)
    if dims[0] == part:
        return derivatives.write_matrix(path, values, block.labels)
    return derivatives.write_matrix(path, values, labels_of(part, values.shape[1]))


def pooled(affine: Array, pool: int) -> Array:
    """Place voxels whose edge is ``pool`` voxels of a grid: the first has its centre amid the first of these."""
    step = np.diag([pool, pool, pool, 1.0])
    step[:3, 3] = (pool - 1) / 2
    return np.asarray(affine @ step)


def _uri(path: Path, out: Path) -> str:
    return f"bids::{path.relative_to(out)}" if path.is_relative_to(out) else path.as_uri()


def labels_of(part: str, n: int) -> tuple[str, ...]:
    """Name parts: state1, state2 and so on."""
    return tuple(f"{part}{number + 1}" for number in range(n))


def write_parts(reference: FittedModel, block: Block, stem: Path, part: str) -> Path:
    """Write the parts of the model of everybody, a column each, over regions, edges or networks."""
    import pandas as pd

    parts = parts_of(reference, part)
    labels: list[str] = list(block.labels) or [str(number) for number in range(parts.shape[1])]
    first, _, second = zip(*(label.partition("~") for label in labels), strict=True)
    whole = "network" if "network" in block.dims else "region"
    names = {"region_a": first, "region_b": second} if block.dims[-1:] == ("edge",) else {whole: labels}
    table = pd.DataFrame(names | dict(zip(labels_of(part, len(parts)), parts, strict=True)))
    described = dict.fromkeys(names, "Name") | dict.fromkeys(labels_of(part, len(parts)), "Weight or value of the part")
    return derivatives.write_table(stem.with_name(f"{stem.name}_{NAMES[part]}.tsv"), table, described)


def write_figures(
    told: Sequence[Told], participants: Sequence[str], levels: Sequence[str], stem: Path, part: str, *,
    confounds: Array | None = None, n_permutations: int = 2000, seed: int = 0,
) -> list[Path]:  # fmt: skip
    """Write the numbers that each participant has for each part, their mean in each level of the target, and what differs.

    Parameters
    ----------
    told
        What was said of each participant.
    participants, levels
        Each row's name and level of the target.
    stem
        How the tables' names begin; they end in ``_participants.tsv``, say ``_states.tsv``, and ``_differences.tsv``.
    part
        What the parts are called.
    confounds
        Each row's confounds, (row, confound).
    n_permutations, seed
        Of the tests for a difference between levels.
    """
    import pandas as pd

    rows = [
        {"participant_id": participants[one.row], "split": one.split, "level": levels[one.row], **cell}
        for one in told for cell in _cells(one, part)
    ]  # fmt: skip
    if not rows:
        return []
    table = pd.DataFrame(rows)
    keys = ["measure", part, "to", "level"]
    groups = table.groupby(keys, sort=False)["value"].agg(["mean", "std", "count"]).reset_index()
    groups = groups.rename(columns={"std": "sd", "count": "n"})
    given = None if confounds is None else pd.DataFrame(confounds, index=list(participants))
    tested = differences.table(table, part, given, n_permutations=n_permutations, seed=seed)
    named = {"participants": table, f"{part}s": groups, "differences": tested}
    return [
        derivatives.write_table(
            stem.with_name(f"{stem.name}_{name}.tsv"),
            one.replace("", np.nan),
            {c: COLUMNS.get(c, "Number") for c in one},
        )
        for name, one in named.items()
    ]


COLUMNS = {
    **differences.COLUMNS,
    "participant_id": "Participant", "split": "Split whose model had not seen the participant", "level": "Level of the target",
    "measure": "occupancy: part of the windows; dwell: mean length of a visit, windows; transition: of the windows in a state "
    "that another window follows, the part after which the state is the one named by 'to'",
    "to": "Of a transition, where to", "value": "Value; n/a for a dwell time or transition from a state that was not visited",
    "mean": "Mean over participants", "sd": "Standard deviation over participants", "n": "Participants who have a value",
}  # fmt: skip


def _cells(told: Told, part: str) -> Iterator[dict[str, Any]]:
    """List one participant's numbers, a row each."""
    for name, dims in told.dims.items():
        if is_figure(dims, part):
            for at, value in np.ndenumerate(told.values[name]):
                yield {"measure": name, part: at[0] + 1, "to": str(at[1] + 1) if len(at) > 1 else "", "value": value}
