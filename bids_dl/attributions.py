"""Attributions of many participants become maps and tables: which values the predictions rest on, and how much."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bids_dl import cohort as cohorts
from bids_dl import derivatives, query, regions, zoo
from bids_dl.config import Config
from bids_dl.records import Array, Attribution, Block, Cohort, FittedModel, Split, Target

COLUMNS = {
    "share": "Part of the variance of the output over held-out participants that this value accounts for",
    "mean_abs": "Mean absolute attribution over held-out participants, in units of the output",
    "signed": "Mean attribution over held-out participants, in units of the output; near 0 where they are like those trained on",
}
SLOPE = (
    "How much {} rises with the value (of a region or network: with all of its values), in units of the output for one standard "
    "deviation as the model sees it: slope of the attribution on the value over held-out participants"
)

MOVED_ONE = "Attribution of one prediction, in units of the output"
LOOKED_ONE = "Part of the network's attention that this value has; without a sign"
LOOKED = "Part of the network's attention that this value has, mean over held-out participants; without a sign"
OF_COURSES = {
    "participant_id": "Participant, or the moment that is decoded; who was held out several times has the mean",
    "onset": "Seconds from the start of the run, several runs one after another; of moments, from the volume that is decoded; "
    "n/a where no RepetitionTime is known",
    "share": "Part of the network's attention that this step of the series has, of 1 for all of them; without a sign",
}
OF_SLICES = {
    "slice": "Number of the slice, from 0",
    "x": "Centre of the slice in mm, right positive",
    "y": "Centre of the slice in mm, front positive",
    "z": "Centre of the slice in mm, up positive",
    "share": LOOKED,
}
Onsets = Callable[[str], Array]
"""When each step of a participant's series was, (step,) in seconds."""


def output_of(target: Target) -> str:
    """Say which output is explained, and what is more of it."""
    if len(target.levels) == 2:
        two = f"'{target.levels[1]}' against '{target.levels[0]}'"
        return f"The output is the score of {two} before calibration: a logit, of kernels a decision value"
    if target.levels:
        return (
            "The output is the score of the class that is predicted of a participant, before calibration; means are over "
            "participants of whom different classes are predicted"
        )
    what = f"place among {' < '.join(target.ranks)}" if target.ranks else f"'{target.name}'"
    return f"The output is the predicted {what} in standard deviations of the training participants, before calibration"


@dataclass
class Summary:
    """Attributions of one input, gathered over splits: shares and means, each in the input's shape.

    ``slopes`` has, by the name of the column, how much the output rises with a value, or the score of each of several classes
    above the mean of all. ``each`` has, where steps of a sequence were weighed, how often each participant was explained and
    the mean course. ``shared`` is the sum of products of attributions and outputs, ``spread`` that of the outputs' squares,
    both about their means; ``output`` is the mean output, ``n_sloped`` how many predictions had a slope.
    """

    share: Array
    mean_abs: Array
    signed: Array
    n: int = 0
    slopes: dict[str, Array] = field(default_factory=dict)
    looked: bool = False
    each: dict[str, tuple[int, Array]] = field(default_factory=dict)
    shared: Array = field(default_factory=lambda: np.zeros(()))
    spread: float = 0.0
    output: float = 0.0
    n_sloped: int = 0

    @property
    def said(self) -> dict[str, str]:
        """What its columns mean."""
        return {"share": LOOKED} if self.looked else COLUMNS | {name: _said_slope(name) for name in self.slopes}

    @property
    def columns(self) -> dict[str, Array]:
        """What tables tell, by the name of the column."""
        if self.looked:
            return {"share": self.share}
        return {name: getattr(self, name) for name in COLUMNS} | self.slopes

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> Summary:
        """Start with nobody."""
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(shape))

    def look(self, shares: Array, ids: Sequence[str] = ()) -> None:
        """Add where a model looked in one split's participants, (participant, …); ``ids`` names those whose own is kept."""
        self.looked, self.n = True, self.n + len(shares)
        self.share = self.share + (shares - self.share).sum(axis=0) / max(self.n, 1)
        for one, mine in zip(ids, shares, strict=False):
            n, mean = self.each.get(one, (0, np.zeros_like(mine)))
            self.each[one] = (n + 1, mean + (mine - mean) / (n + 1))

    def add(self, values: Array, outputs: Array, slopes: Mapping[str, Array] | None = None) -> None:
        """Add one split's participants; ``outputs`` (participant,) are those beyond the output of the training mean.

        The mean of attributions says little of a direction, as most of what lies above the training mean in one lies below
        it in another: that is what ``slopes`` are for. ``share`` is cov(attribution, output) / var(output) over all
        participants, joined split by split as in [1]_: for additive attributions it sums to 1 over all values, since they sum
        to the output; it needs no label.

        References
        ----------
        .. [1] Chan, Golub and LeVeque (1983), The American Statistician 37(3). doi:10.1080/00031305.1983.10483115
        """
        n = len(values)
        centred, mean = outputs - outputs.mean(), values.mean(axis=0)
        apart, weight = float(outputs.mean()) - self.output, n / (self.n + n)
        self.shared = (
            self.shared + np.tensordot(centred, values, axes=(0, 0)) + self.n * weight * apart * (mean - self.signed)
        )
        self.spread += float((centred**2).sum()) + self.n * weight * apart**2
        self.share = self.shared / (self.spread or 1.0)
        self.output += weight * apart
        self.mean_abs = self.mean_abs + weight * (np.abs(values).mean(axis=0) - self.mean_abs)
        self.signed = self.signed + weight * (mean - self.signed)
        self.n += n
        self.n_sloped += n if slopes else 0
        for name, slope in (slopes or {}).items():
            known = self.slopes.get(name, np.zeros_like(slope))
            self.slopes[name] = known + n / self.n_sloped * (slope - known)


def summarise(
    models: Iterable[tuple[FittedModel, Split]], cohort: Cohort, method: str, options: Mapping[str, Any]
) -> tuple[dict[str, Summary], bool]:
    """Explain the test participants of every split, each by the model that has not seen them; one model at a time.

    Of several classes each participant's own is explained; which of them a value speaks for is told by a slope for each.
    """
    explain = zoo.load("explainers", method)
    summaries: dict[str, Summary] = {}
    additive = True
    for fitted, split in models:
        found: Attribution = explain(fitted, cohort, split, **options)
        additive = found.additive
        if not found.participant_ids:
            continue
        for name, given in found.values.items():
            steps = cohort.features[name].is_sequence
            if found.shares:
                ids = found.participant_ids if steps else ()
                summaries.setdefault(name, Summary.empty(given.shape[1:])).look(given, ids)
                continue
            values = over_steps(given, additive=additive) if steps else given
            sloped = name in found.slopes and len(given) > 1  # one participant alone has no slope
            slopes = _by_class(found.slopes[name], cohort.target) if sloped else None
            summaries.setdefault(name, Summary.empty(values.shape[1:])).add(
                values, found.outputs - found.at_mean, slopes
            )
    return summaries, additive


def _by_class(slopes: Array, target: Target) -> dict[str, Array]:
    """Name the columns of slopes (output, …); scores of classes count above the mean of all, as probabilities depend on that alone."""
    if target.n_outputs == 1:
        return {"slope": slopes[0]}
    names = (f"slope_{level}" for level in target.levels)
    return dict(zip(names, slopes - slopes.mean(axis=0), strict=True))


def _said_slope(name: str) -> str:
    level = name.partition("_")[2]
    return SLOPE.format(f"the score of '{level}', above the mean of all classes," if level else "the output")


def atlas_of(method: str, options: Mapping[str, Any]) -> str:
    """Name the atlas whose regions an explainer takes of volumes, as asked for or by default; AAL where it takes none."""
    return str((zoo.options("explainers", method) | dict(options)).get("atlas", "aal"))


def over_steps(values: Array, *, additive: bool) -> Array:
    """Join the steps of sequences, (participant, step, …): what is not additive has the whole course's change at each."""
    return np.asarray(values.sum(axis=1) if additive else values.mean(axis=1))


def without_steps(block: Block) -> Block:
    """Describe what the steps of a sequence are by themselves: moving maps are maps, windows a connectome with named regions."""
    if block.dims == cohorts.MOVING:
        return Block(block.values[:, 0], cohorts.MAPS, block.labels, block.entities, block.affine)
    if block.dims != ("window", "edge"):
        return block
    first, second = zip(*(label.partition("~")[::2] for label in block.labels), strict=True)
    return Block(block.values[:, 0], ("edge",), tuple(dict.fromkeys([*first, *second])), block.entities)


def write_group(
    summary: Summary, block: Block, stem: Path, *, additive: bool, atlas: str = "aal", output: str = "",
    when: Onsets | None = None,
) -> list[Path]:  # fmt: skip
    """Write one input's attributions: a volume as a map and its regions, a connectome as edges and regions, a table as columns.

    ``atlas`` names the regions of volumes; ``output`` says what is explained, for the JSON beside each file. Attention to
    whole slices is a table of slices, that to time points the course of each participant: ``when`` gives their onsets.
    Those of a sequence are joined over its steps: regions for series, a connectome for windows, maps for moving maps. Those
    of several networks' maps are written for each of them, and joined as one map: summed, or averaged where they are not
    additive. Only additive ones tell the networks apart in a table.
    """
    if summary.looked and summary.share.shape != block.shape:
        written = [_write_looked(summary, block, stem, when)]
    else:
        written = _write_files(summary, without_steps(block), stem, atlas, additive=additive)
    output_said = {} if summary.looked else {"Output": output}
    for path in written:
        beside = derivatives.sidecar_path(path)
        said = {"Description": summary.said["share"]} if path.name.endswith(".nii.gz") else query.read_json(beside)
        derivatives.write_json(beside, {**said, **output_said, "NumberOfExplainedPredictions": summary.n})
    return written


def _write_looked(summary: Summary, block: Block, stem: Path, when: Onsets | None) -> Path:
    """Write the weights of slices, or each participant's course of weights over time."""
    import pandas as pd

    if not block.is_sequence:
        return _write_described(stem.with_name(f"{stem.name}_slices.tsv"), slices_of(summary.share, block), OF_SLICES)
    assert when is not None
    courses = [course_of(share, when(one)).assign(participant_id=one) for one, (_, share) in summary.each.items()]
    table = pd.concat(courses)[list(OF_COURSES)]
    return _write_described(stem.with_name(f"{stem.name}_courses.tsv"), table, OF_COURSES)


def _write_described(path: Path, table: Any, said: Mapping[str, str]) -> Path:
    return derivatives.write_table(path, table, {column: said[column] for column in table})


def slices_of(share: Array, block: Block) -> Any:
    """Make a table of weights of slices, (x, y, z) of which two have the length 1, with where they lie in mm.

    The axis is that of space which the slices follow most closely.
    """
    import pandas as pd

    assert block.affine is not None
    axis = int(np.argmax(share.shape))
    voxels = np.tile((np.array(block.shape) - 1) / 2, (share.size, 1))
    voxels[:, axis] = np.arange(share.size)
    world = int(np.abs(block.affine[:3, axis]).argmax())
    places = (voxels @ block.affine[:3, :3].T + block.affine[:3, 3])[:, world]
    return pd.DataFrame({"slice": np.arange(share.size), "xyz"[world]: places, "share": share.ravel()})


def course_of(share: Array, onsets: Array) -> Any:
    """Make a table of the weights of a participant's steps, (step, 1), without those that only pad."""
    import pandas as pd

    return pd.DataFrame({"onset": onsets, "share": share.ravel()[: len(onsets)]})


def _write_files(summary: Summary, block: Block, stem: Path, atlas: str, *, additive: bool) -> list[Path]:
    if len(block.shape) == 4 and block.affine is not None:
        return _write_maps(summary, block, stem, atlas, additive=additive)
    if len(block.shape) == 3 and block.affine is not None:
        written = [derivatives.write_image(stem.with_name(f"{stem.name}_statmap.nii.gz"), summary.share, block.affine)]
        return [*written, _write_volume_regions(summary, block, stem, atlas, additive=additive)]
    if block.dims == ("edge",):
        return [_write_edges(summary, block, stem), _write_edge_regions(summary, block, stem, additive=additive)]
    kind = "region" if block.is_sequence else "column"
    return [_write(summary, stem, f"{kind}s", {kind: list(block.labels)}, summary.columns)]


def _write_maps(summary: Summary, block: Block, stem: Path, atlas: str, *, additive: bool) -> list[Path]:
    """Write several maps as they are, a row a network, and what they are together as one volume and its regions."""
    assert block.affine is not None
    join = np.sum if additive else np.mean
    each = summary.columns
    together = replace(
        summary,
        share=join(summary.share, axis=0),
        mean_abs=join(summary.mean_abs, axis=0),
        signed=join(summary.signed, axis=0),
        slopes={name: join(slope, axis=0) for name, slope in summary.slopes.items()},
    )
    names = list(block.labels) or [str(number + 1) for number in range(block.shape[0])]
    path = stem.with_name(f"{stem.name}_maps.nii.gz")
    written = [derivatives.write_image(path, np.moveaxis(summary.share, 0, -1), block.affine)]
    if additive:
        written.append(
            _write(
                summary, stem, "columns", {"column": names}, {name: v.sum(axis=(1, 2, 3)) for name, v in each.items()}
            )
        )
    one = Block(block.values[:, 0], block.dims[1:], affine=block.affine)
    return [*written, *_write_files(together, one, stem, atlas, additive=additive)]


def _write(
    summary: Summary, stem: Path, kind: str, names: Mapping[str, Any], columns: Mapping[str, Array]
) -> Path:  # fmt: skip
    """Write a table, the largest shares first."""
    import pandas as pd

    table = pd.DataFrame({**names, **columns})
    table = table.iloc[np.argsort(-np.abs(columns["share"]), kind="stable")]
    described = dict.fromkeys(names, "Name") | {name: summary.said[name] for name in columns}
    return derivatives.write_table(stem.with_name(f"{stem.name}_{kind}.tsv"), table, described)


def _write_edges(summary: Summary, block: Block, stem: Path) -> Path:
    first, second = cohorts.edge_index(len(block.labels), directed=block.is_directed)
    labels = np.asarray(block.labels, dtype=object)
    names = {"region_a": labels[first], "region_b": labels[second]}
    return _write(summary, stem, "edges", names, summary.columns)


def _write_edge_regions(summary: Summary, block: Block, stem: Path, *, additive: bool) -> Path:
    """Give each region half of each of its edges, but their whole slopes; where edges are not additive, their mean."""
    first, second = cohorts.edge_index(len(block.labels), directed=block.is_directed)
    n = len(block.labels)
    parts = 2 if additive else np.bincount(first, minlength=n) + np.bincount(second, minlength=n)
    found = {
        name: (np.bincount(first, values, n) + np.bincount(second, values, n))
        / (1 if name in summary.slopes else parts)
        for name, values in summary.columns.items()
    }
    return _write(summary, stem, "regions", {"region": list(block.labels)}, found)


def _write_volume_regions(summary: Summary, block: Block, stem: Path, atlas: str, *, additive: bool) -> Path:
    """Sum a map over atlas regions; maps that are not additive are averaged."""
    assert block.affine is not None
    chosen = regions.load_atlas(atlas)
    labels = regions.on_grid(chosen, block.shape, block.affine).ravel()
    size = np.bincount(labels, minlength=len(chosen.labels) + 1)[1:]
    kept = np.flatnonzero(size)
    sums = {n: np.bincount(labels, v.ravel(), len(size) + 1)[1:][kept] for n, v in summary.columns.items()}
    found = {name: np.asarray(s if additive else s / size[kept], float) for name, s in sums.items()}
    return _write(summary, stem, "regions", {"region": [chosen.labels[k] for k in kept]}, found)


def able(asked: Sequence[str], *, gradients: bool, attention: bool) -> tuple[str, ...]:
    """Keep the explainers that a model can be explained by, and occlusion at least.

    Some need a model that ``gradients`` pass, some one that weighs places, by ``attention``.
    """
    there = {"GRADIENTS": gradients, "ATTENTION": attention}
    return tuple(
        one for one in asked if all(has or not zoo.constant("explainers", one, need) for need, has in there.items())
    ) or ("occlusion",)


def write_participant(
    fitted: FittedModel, said: Mapping[str, Any], one: Cohort, config: Config, participant_id: str, bundle: str,
    methods: Sequence[str], when: Onsets,
) -> list[str]:  # fmt: skip
    """Write the attributions of one participant's prediction: volumes as NIfTI, connectomes as matrices.

    Attention to slices or time points is a table; ``when`` gives the onsets of the steps of a feature. The files of a
    bundle that takes several features name the feature: two volumes would else have one name.
    """
    nobody = np.array([], np.intp)
    split = Split(nobody, nobody, np.array([0]), "new")
    written = []
    for method in methods:
        found: Attribution = zoo.load("explainers", method)(fitted, one, split, **config.explainers.of(method))
        for name, values in found.values.items():
            block = one.features[name]
            if name != cohorts.CONFOUNDS and np.any(values):
                desc = [bundle, *([name] if len(fitted.inputs) > 1 else []), found.method]
                described, to = said["features"][name], "".join(map(derivatives.word, desc))
                if found.shares and values.shape[1:] != block.shape:
                    table = course_of(values[0], when(name)) if block.is_sequence else slices_of(values[0], block)
                    written.append(_write_one_looked(described, table, config.out, participant_id, to))
                    continue
                joined = over_steps(values, additive=found.additive) if block.is_sequence else values
                written.append(
                    _write_one(
                        described,
                        without_steps(block),
                        joined[0],
                        config.out,
                        participant_id,
                        to,
                        {"Description": LOOKED_ONE}
                        if found.shares
                        else {"Description": MOVED_ONE, "Output": output_of(one.target)},
                    )
                )
    return [str(path.relative_to(config.out)) for path in written]


def _names_of(described: Mapping[str, Any], out: Path, participant_id: str, desc: str) -> tuple[dict[str, str], Path]:
    """Name what is written of one participant's feature, and the folder for it."""
    entities = described.get("entities", {})
    names = {k: v for k, v in entities.items() if k in {"task", "space", "atlas", "res"}}
    names |= {"sub": participant_id.removeprefix("sub-"), "desc": desc}
    return names, out / participant_id / (entities.get("datatype") or "func")


def _write_one_looked(described: Mapping[str, Any], table: Any, out: Path, participant_id: str, desc: str) -> Path:
    """Write the weights that one participant's slices or time points had."""
    names, folder = _names_of(described, out, participant_id, desc)
    path = folder / derivatives.name(names, "attention", ".tsv")
    return _write_described(path, table, OF_COURSES | OF_SLICES | {"share": LOOKED_ONE})


def _write_one(
    described: Mapping[str, Any],
    block: Block,
    values: Array,
    out: Path,
    participant_id: str,
    desc: str,
    sidecar: dict[str, Any],
) -> Path:
    names, folder = _names_of(described, out, participant_id, desc)
    if described.get("affine") is not None:
        sidecar |= {"SkullStripped": True, "Resolution": "that of the feature"}
        space_first = np.moveaxis(values, 0, -1) if values.ndim == 4 else values
        path = derivatives.write_image(
            folder / derivatives.name(names, "statmap", ".nii.gz"), space_first, np.asarray(described["affine"])
        )
    elif block.dims == ("edge",):
        matrix = np.zeros((len(block.labels),) * 2)
        first, second = cohorts.edge_index(len(block.labels), directed=bool(described.get("directed")))
        matrix[first, second] = values
        matrix = matrix if described.get("directed") else matrix + matrix.T
        path = derivatives.write_matrix(folder / derivatives.name(names, "relmat", ".tsv"), matrix, block.labels)
    else:
        path = derivatives.write_matrix(
            out / participant_id / "log" / derivatives.name(names, "columns", ".tsv"), values[None], block.labels
        )
    derivatives.write_json(derivatives.sidecar_path(path), sidecar)
    return path
