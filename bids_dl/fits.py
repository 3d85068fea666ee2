"""The steps of the group level as they run in workers: each reads files, does one thing, writes files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bids_dl import (
    attributions,
    building,
    bundle,
    comparison,
    decoding,
    derivatives,
    descriptions,
    growth,
    material,
    member,
    metrics,
    nulls,
    query,
    resemblance,
    shifting,
    splits,
    training,
    transfer,
    windows,
    zoo,
)
from bids_dl import calibration as calibrations
from bids_dl import cohort as cohorts
from bids_dl import config as configuration
from bids_dl.config import Config
from bids_dl.errors import DataError
from bids_dl.records import Array, Cohort, FittedModel, Split, Target
from bids_dl.settings import Settings as TrainingSettings
from bids_dl.settings import settings_for

Settings = Mapping[str, Any]


def gather(folder: str) -> dict[str, list[dict[str, str]]]:
    """Collect the features that did not fit into the cohort, and scans that are there twice."""
    refused: list[dict[str, str]] = []
    for path in sorted(Path(folder).glob("refused_*.json")):
        refused += query.read_json_list(path)
    return {"refused": refused, "duplicates": cohorts.duplicates(Path(folder))}


def gather_test(folder: str, trained: str) -> dict[str, Any]:
    """Collect what did not fit into the test dataset's cohort, and who has a scan of the training dataset."""
    found = {**gather(folder), "seen": transfer.seen(Path(folder), Path(trained))}
    derivatives.write_json(Path(folder) / "seen.json", found["seen"])
    return found


class Step:
    """What every step needs: the configuration, the cohort with its target, the splits and the folders."""

    def __init__(self, config: Settings, target: str, covariates: Sequence[str], site: str, groups: str) -> None:
        self.config: Config = configuration.from_mapping(config)
        self.target, self.site, self.groups = target, site, groups
        self.folder = self.config.work / "cohort"
        self.cohort = self._cohort(covariates)

    def _cohort(self, covariates: Sequence[str]) -> Cohort:
        if self.config.decodes:
            made = decoding.read_plan(self.folder)
            return windows.load(self.folder, decoding.target_of(self.config, made, self.target))
        plan = cohorts.read_plan(self.folder)
        target = cohorts.target_of(self.config, plan, self.target)
        columns = self.config.features.of("phenotype").get("columns", ())
        return cohorts.load(self.folder, target, covariates, columns=columns, site=self.site)

    @property
    def ids(self) -> list[str]:
        """Participants, in the order of the rows."""
        return list(self.cohort.participants["participant_id"])

    @property
    def owners(self) -> list[str]:
        """Participants that the rows belong to, where rows are moments of theirs; else the participants."""
        return list(self.cohort.participants[decoding.PERSON]) if self.config.decodes else self.ids

    def people(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Number the participants that rows belong to."""
        return shifting.codes_of(self.owners)[rows] if self.config.decodes else rows

    def runs(self, rows: NDArray[np.intp]) -> NDArray[np.intp] | None:
        """Number the runs that rows are moments of; nothing where they are participants."""
        return shifting.codes_of(self.cohort.participants[decoding.RUN])[rows] if self.config.decodes else None

    def families(self, rows: NDArray[np.intp]) -> NDArray[np.intp] | None:
        """Number the families that rows belong to; nothing where no column tells."""
        told = self.groups in self.cohort.participants
        return shifting.codes_of(self._ties(self.groups))[rows] if told else None

    def split(self, name: str) -> Split:
        """Read one split back from its table."""
        path = (
            self.config.work / "final" / f"{self.target}.tsv"
            if name == "final"
            else self.config.out / "group" / "splits" / f"target-{self.target}_splits.tsv"
        )
        sites = self._ties(self.site if self.config.splits.kind == "leave-site-out" else "")
        return splits.read_one(path, name, self.ids, self.cohort.target, groups=self._ties(self.groups), sites=sites)

    def _ties(self, column: str) -> tuple[str, ...]:
        if not column:
            return ()
        cells = self.cohort.participants[column]
        return tuple(c if isinstance(c, str) else f"alone-{i}" for c, i in zip(cells, self.owners, strict=True))

    def fit_folder(self, model: str, split: str) -> Path:
        """Where a fit lies."""
        return self.config.fits / self.target / model / split

    def emptied(self, model: str, split: str, *names: str) -> Path:
        """Remove what an earlier fit left: one that fails must not look like it. Returns the folder."""
        folder = self.fit_folder(model, split)
        folder.mkdir(parents=True, exist_ok=True)
        derivatives.remove([folder / name for name in names])
        return folder

    def definition(self, model: Settings) -> dict[str, Any]:
        """Write down how a model is built for this cohort."""
        blocks = [self.cohort.features[name] for name in model["inputs"]]
        return training.define(
            model["method"], [block.shape for block in blocks], self.cohort.target.n_outputs,
            self.config.models.of(model["method"]), directed=any(block.is_directed for block in blocks),
        )  # fmt: skip

    def stem(self, kind: str, model: str) -> Path:
        """Begin the name of a result."""
        return self.config.out / "group" / kind / f"target-{self.target}_model-{model}"


def fit(model: Settings, split: str, **common: Any) -> dict[str, float]:
    """Fit one model on one split, and predict the split's test participants."""
    step = Step(**common)
    started = time.perf_counter()
    chosen = step.split(split)
    folder = step.emptied(model["id"], split, "model", "predictions.npz", "history.json")
    fitted = _fuse(step, model, chosen) if model["role"] == "fusion" else _train(step, model, chosen)
    seconds = time.perf_counter() - started
    bundle.save(fitted, folder / "model", {})
    _predict(step, fitted, chosen, folder / "predictions.npz")
    derivatives.write_json(folder / "history.json", list(fitted.history))
    return {"seconds": seconds}


def _predict(step: Step, fitted: FittedModel, split: Split, path: Path, cohort: Cohort | None = None) -> None:
    """Predict a split's test participants, as the model's outputs are and calibrated, and say how far it may be off."""
    known = fitted.calibration or calibrations.Calibration()
    raw = training.outputs(fitted, cohort or step.cohort, split.test)
    before = calibrations.scores(raw, len(fitted.levels), fitted.target_mean, fitted.target_scale)
    reach = np.full(len(split.test), known.reach(step.config.metrics.coverage))
    np.savez(
        path, rows=split.test, truth=step.cohort.target.values[split.test], scores=training.to_scores(fitted, raw),
        uncalibrated=before, reach=reach, n_train=len(fitted.split.pool),
    )  # fmt: skip


def fit_part(model: Settings, split: str, part: float, **common: Any) -> int:
    """Fit one model on a part of a split's training participants, and predict the same test participants."""
    step = Step(**common)
    chosen = splits.part_of(step.split(split), step.cohort.target, part, seed=step.config.random_seed)
    folder = step.emptied(model["id"], chosen.name, "predictions.npz")
    fitted = _train(step, model, chosen)
    _predict(step, fitted, chosen, folder / "predictions.npz")
    return len(chosen.pool)


def grow(models: Sequence[Settings], splits: Sequence[str], parts: Sequence[float], **common: Any) -> list[str]:
    """Draw up the learning curve of every model over the number of training participants."""
    import pandas as pd

    step = Step(**common)
    rows, said = [], []
    for model in models:
        found = {}
        for end in (*(f"_part-{part:g}" for part in parts), ""):
            held = _joined(step, model["id"], [f"{name}{end}" for name in splits])
            if held is not None:
                found[round(float(np.mean(held.n_train)))] = held.predictions
        if not found:
            continue
        given = step.config.metrics
        names = next(iter(found.values())).names
        curves = {m: growth.curve(found, m, n_draws=given.n_bootstraps, seed=step.config.random_seed) for m in names}
        rows += [{"model": model["id"], "metric": m, **row} for m, curve in curves.items() for row in curve]
        said.append(f"learning curve: {step.target}: {model['id']}: {names[0]} {growth.told(curves[names[0]])}")
    path = step.config.out / "group" / "metrics" / f"target-{step.target}_learningcurve.tsv"
    derivatives.write_table(path, pd.DataFrame(rows).replace("", np.nan), {**METRIC_COLUMNS, **GROWTH_COLUMNS})
    return said


GROWTH_COLUMNS = {
    "kind": "measured on held-out participants, extrapolated by an inverse power law, or not extrapolated",
    "n_train": "Participants of a split who have the input and trained, validation included; their mean over splits",
    "value": "Value at this size",
    "note": "Why the curve was not extrapolated",
}  # fmt: skip


class OnTest(Step):
    """A step on the participants of the test dataset; fits are still those of the training dataset."""

    def _cohort(self, covariates: Sequence[str]) -> Cohort:
        self.trained, root = super()._cohort(covariates), transfer.folder(self.config)
        target, _ = transfer.target_of(self.config, cohorts.read_plan(root), self.trained.target)
        columns = self.config.features.of("phenotype").get("columns", ())
        return transfer.load(root, self.trained, target, columns=columns, site=self.site, adapts=self.adapts)

    @property
    def adapts(self) -> bool:
        """Whether sites of the test dataset that were not trained on are learned from its own rows."""
        options = self.config.harmonizers.of(self.config.harmonizer)
        return cohorts.SITES in self.trained.features and options.get("unseen") == "adapt"

    def adapted(self, fitted: FittedModel) -> tuple[FittedModel, Cohort]:
        """Let a model learn the sites of the test dataset, where that is asked for."""
        if not self.adapts:
            return fitted, self.cohort
        ids = list(self.trained.participants["participant_id"])
        path = self.config.work / "final" / f"{self.target}.tsv"
        final = splits.read_one(path, "final", ids, self.trained.target)
        return training.adapted(fitted, self.trained, final, self.cohort, settings_for(fitted.definition, self.config))

    def rows(self, fitted: FittedModel, refused: Sequence[str]) -> NDArray[np.intp]:
        """Number those who have the target, no scan of the training dataset, and no site that is refused."""
        seen = query.read_json(transfer.folder(self.config) / "seen.json")
        judged = np.isfinite(self.cohort.target.values) & ~np.isin(self.ids, [*seen, *refused])
        given = material.given_of(self.cohort)
        for one in fitted.normalization.values():
            if one.harmonization is not None and given is not None:
                judged &= ~one.harmonization.refused(given)
        return np.flatnonzero(judged)


TEST = "test"


def test(models: Sequence[Settings], refused: Sequence[str] = (), **common: Any) -> list[str]:
    """Judge every model that was trained on everybody, once, on participants of another dataset whose sites are not ``refused``."""
    import pandas as pd

    step = OnTest(**common)
    nobody, rows, said, levels, sureness = np.array([], np.intp), [], [], [], []
    found: dict[str, metrics.Predictions] = {}
    given = step.config.metrics
    for model in models:
        final = step.fit_folder(model["id"], "final") / "model"
        if not final.is_dir():
            continue
        fitted, cohort = step.adapted(bundle.load(final))
        path = step.fit_folder(model["id"], TEST) / "predictions.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        _predict(step, fitted, Split(nobody, nobody, step.rows(fitted, refused), TEST), path, cohort)
        held = _joined(step, model["id"], [TEST])
        if held is None:
            continue
        found[model["id"]] = held.predictions
        _write_predictions(step, model["id"], held, [TEST], TEST)
        table = metrics.table(
            held.predictions, n_bootstraps=given.n_bootstraps, n_permutations=given.n_permutations, seed=step.config.random_seed
        )  # fmt: skip
        rows += [{"model": model["id"], **row} for row in table]
        levels += [{"model": model["id"], **row} for row in _by_level(step, held)]
        sureness += [{"model": model["id"], **row} for row in _sureness(step, held)]
        said.append(f"test dataset: {_sentence(step.target, model['id'], table[0])}")
    shown = pd.DataFrame(rows).drop(columns="p_value_retrained", errors="ignore")
    _write_test(step, TEST, shown, {c: METRIC_COLUMNS[c] for c in shown} | TEST_COLUMNS)
    _write_test(step, f"{TEST}comparisons", pd.DataFrame(_compared_once(step, models, found)), TEST_COMPARISON_COLUMNS)
    for name, table in (("subgroups", levels), ("calibration", sureness)):
        _write_test(step, f"{TEST}{name}", pd.DataFrame(table), {**METRIC_COLUMNS, **TABLE_COLUMNS[name]})
    return said


def _write_test(step: Step, name: str, table: Any, columns: Mapping[str, str]) -> None:
    """Write one table about the test dataset; where nobody was judged, remove what an earlier run left."""
    path = step.config.out / "group" / "metrics" / f"target-{step.target}_{name}.tsv"
    if table.empty:
        derivatives.remove([path, path.with_suffix(".json")])
    else:
        derivatives.write_table(path, table, columns)


TEST_COLUMNS = {"value": "Value over the participants of the test dataset"}
TEST_COMPARISON_COLUMNS = {
    "model": "Model", "other": "Model it is compared with, on the same participants", "metric": "Metric",
    "difference": "Difference over the participants of the test dataset that both predict",
    "ci_low": "Lower end of the 95 % interval of the difference, over draws of participants",
    "ci_high": "Upper end of the 95 % interval of the difference, over draws of participants",
    "p_value": "Two-sided p-value over the same draws of participants for both models",
    "n": "Participants that both predict", "p_holm": "The same, adjusted for all comparisons of this target (Holm)",
}  # fmt: skip


def _train(step: Step, model: Settings, chosen: Split) -> FittedModel:
    definition = step.definition(model)
    checkpoint = step.fit_folder(model["id"], chosen.name) / "checkpoints"
    settings = settings_for(definition, step.config, checkpoint=checkpoint)
    if settings.start_from:
        _check_start(step, Path(settings.start_from), model["inputs"], chosen)
    return training.train(definition, step.cohort, chosen, model["inputs"], settings)


def _check_start(step: Step, started: Path, inputs: Sequence[str], split: Split) -> None:
    """Refuse weights that were learned from other regions, or from somebody who is tested here under another name.

    Raises
    ------
    DataError
        Naming the bundle.
    """
    said = bundle.about(started)
    features: Settings = said.get("features", {})
    learned: list[str] = next((one["labels"] for one in features.values() if "labels" in one), [])
    mine = list(step.cohort.features[inputs[0]].labels)
    if learned and mine and learned != mine:
        raise DataError(
            f"training.start_from: {started.name} was trained on other regions or columns than {inputs[0]} has "
            f"({', '.join(learned[:3])}, … and {', '.join(mine[:3])}, …); its weights would be taken for those of others."
        )
    people = sorted({step.owners[row] for row in split.test})
    prints = (
        set(windows.prints_of(step.folder, people))
        if step.config.decodes
        else bundle.prints(step.cohort, split.test.tolist(), inputs)
    )
    if prints & set(said["participants"]):
        raise DataError(
            f"training.start_from: {started.name} was trained on scans of participants that are tested in {split.name}, under other "
            "names; start from a model of other people, or its results will flatter."
        )


def _fuse(step: Step, model: Settings, chosen: Split) -> FittedModel:
    """Fuse the members' fits on the same split, of each feature the best one."""
    method = model["method"]
    members = [
        bundle.load(step.fit_folder(member, chosen.name) / "model") for member in _best(step, model, chosen.name)
    ]
    settings = settings_for({"_target_": f"bids_dl.fusions.{method}.build"}, step.config)
    fused: FittedModel = zoo.load("fusions", method)(
        members, step.cohort, chosen, settings, **step.config.fusions.of(method)
    )
    return fused


def _best(step: Step, model: Settings, split: str) -> list[str]:
    """Choose of each feature the network with the lowest validation loss, on training rows that it was not fitted on."""
    found: dict[str, list[tuple[float, str]]] = {feature: [] for feature in model["inputs"]}
    for member_id, (feature, _) in zip(model["members"], model["parts"], strict=True):
        lowest: dict[int, float] = {}
        for row in query.read_json_list(step.fit_folder(member_id, split) / "history.json"):
            lowest[row["member"]] = min(row["validation_loss"], lowest.get(row["member"], np.inf))
        found[feature].append((float(np.mean(list(lowest.values()))), member_id))
    return [min(networks)[1] for networks in found.values()]


def retrain(model: Settings, split: str, n: int, names: Sequence[str], **common: Any) -> int:
    """Train a model again under permuted labels, which the same permutation number gives to every split of ``names``."""
    step = Step(**common)
    folds = np.full(len(step.ids), -1)
    for number, name in enumerate(names):
        folds[step.split(name).test] = number
    chosen = step.split(split)
    folder = step.emptied(model["id"], split, "null.npz")
    definition = step.definition(model)
    settings = settings_for(definition, step.config)
    families = step.families(np.arange(len(step.ids)))
    targets = [_permuted(step, folds, families, step.config.random_seed + 1 + number) for number in range(n)]
    scores = nulls.null_scores(definition, step.cohort, chosen, model["inputs"], settings, targets)
    np.savez(
        folder / "null.npz",
        rows=chosen.test,
        truths=np.array([t.values[chosen.test] for t in targets]),
        scores=np.array(scores),
    )
    return n


def _permuted(step: Step, folds: NDArray[np.intp], families: NDArray[np.intp] | None, seed: int) -> Target:
    if step.config.decodes:
        return shifting.shifted_target(step.cohort.target, list(step.cohort.participants[decoding.RUN]), seed)
    return permuted(step.cohort.target, folds, seed, families)


def permuted(target: Target, folds: NDArray[np.intp], seed: int, families: NDArray[np.intp] | None = None) -> Target:
    """Give the labels to other participants of the same fold, (participant,): folds stay as alike as stratifying made them.

    Labels that moved between folds would make these differ, and every retrained model worse than chance. Relatives change
    places with each other, and families with those of their size.
    """
    values = target.values.copy()
    known = np.flatnonzero(np.isfinite(values))
    generator = np.random.default_rng(seed)
    mine = None if families is None else families[known]
    values[known] = metrics.permuted(values[known], metrics.strata_of(folds[known]), generator, mine)
    return replace(target, values=values)


def score(
    models: Sequence[Settings], splits: Sequence[str], retrained: Sequence[str] = (), **common: Any
) -> list[str]:  # fmt: skip
    """Join the splits' predictions of every model and score them, with intervals, p-values and per-site values.

    ``retrained`` are the splits on which models were trained again under permuted labels.
    """
    import pandas as pd

    step = Step(**common)
    rows, levels, said, sureness = [], [], [], []
    found: dict[str, Held] = {}
    for model in models:
        held = _joined(step, model["id"], splits)
        if held is None:
            continue
        found[model["id"]], joined = held, held.predictions
        _write_predictions(step, model["id"], held, splits)
        _write_history(step, model["id"], splits)
        sureness += [{"model": model["id"], **row} for row in _sureness(step, held)]
        settings = step.config.metrics
        again = np.isin(joined.folds, [splits.index(name) for name in retrained])
        null = _null(step, model["id"], retrained, metrics.some(joined, again))
        table = metrics.table(
            joined,
            n_bootstraps=settings.n_bootstraps,
            n_permutations=settings.n_permutations,
            seed=step.config.random_seed,
            retrained=null,
        )
        rows += [{"model": model["id"], **row, **_over_folds(held, row["metric"])} for row in table]
        levels += [{"model": model["id"], **row} for row in _by_level(step, held)]
        said.append(_sentence(step.target, model["id"], table[0]))
    folder = step.config.out / "group" / "metrics"
    derivatives.write_table(folder / f"target-{step.target}_metrics.tsv", pd.DataFrame(rows), METRIC_COLUMNS)
    for name, table in (
        ("subgroups", levels),
        ("calibration", sureness),
        ("comparisons", _compared(step, models, found)),
    ):
        if table:
            path = folder / f"target-{step.target}_{name}.tsv"
            derivatives.write_table(path, pd.DataFrame(table), {**METRIC_COLUMNS, **TABLE_COLUMNS[name]})
    return said


TABLE_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "subgroups": {"column": "Column of participants.tsv", "level": "Level of the column, or range of a quantity"},
    "calibration": {
        "metric": "ece: expected calibration error, ece_before: the same before the temperature; mae: mean absolute error, "
        "mae_before: the same before slope and offset; coverage: part of the participants whose set or interval holds the "
        "truth; size: classes in a set, or width of an interval",
        "value": "Value over all held-out predictions", "promised": "Coverage that was asked for",
    },
    "comparisons": {
        "other": "Model it is compared with, on the same folds and participants", "difference": "Mean difference over folds",
        "t": "Corrected resampled t statistic", "dof": "Degrees of freedom",
        "p_value": "Two-sided p-value of the corrected resampled t-test",
        "p_holm": "The same, adjusted for all comparisons of this target (Holm)", "n_folds": "Folds in which both are defined",
        "ci_low": "Lower end of the 95 % interval of the difference", "ci_high": "Upper end of the 95 % interval of the difference",
    },
}  # fmt: skip
METRIC_COLUMNS = {
    "model": "Model", "metric": "Metric", "value": "Value over all held-out predictions",
    "ci_low": "Lower end of the 95 % interval over participants",
    "ci_high": "Upper end of the 95 % interval over participants",
    "folds_low": "Lower end of the 95 % interval of the folds' mean, in which what was trained on varies too (corrected resampled)",
    "folds_high": "Upper end of the same",
    "p_value": "Part of the label permutations that do as well, the models held fixed",
    "p_value_retrained": "Part of the trainings on labels permuted within folds that do as well, over splits that test nobody twice (of "
    "several repeats the first); n/a where none was made",
    "n": "Participants", "chance": "What a model that knows nothing reaches",
}  # fmt: skip


def _over_folds(held: Held, metric: str) -> dict[str, float]:
    low, high = comparison.spread(held.predictions, metric, held.n_train)
    return {"folds_low": low, "folds_high": high}


def _sentence(target: str, model: str, row: Mapping[str, Any]) -> str:
    interval = f"[{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
    return f"{target}: {model}: {row['metric']} {row['value']:.3f} {interval}, p = {row['p_value']:.4f}, n = {row['n']}"


@dataclass(frozen=True)
class Held:
    """A model's held-out predictions over all splits, before and after calibration, and how far each may be off.

    ``n_train`` is how many of each split had the input and were trained on.
    """

    predictions: metrics.Predictions
    rows: NDArray[np.intp]
    uncalibrated: Array
    reach: Array
    n_train: tuple[int, ...]


def _joined(step: Step, model: str, names: Sequence[str]) -> Held | None:
    """Read a model's held-out predictions of all splits; participants without the feature are left out."""
    parts, n_train = [], []
    for fold, name in enumerate(names):
        path = step.fit_folder(model, name) / "predictions.npz"
        if not path.is_file():
            return None
        with np.load(path) as found:
            known = np.isfinite(found["scores"]).all(axis=1) & np.isfinite(found["truth"])
            columns = [found[key][known] for key in ("truth", "scores", "rows", "uncalibrated", "reach")]
            parts.append([*columns, np.full(known.sum(), fold)])
            n_train.append(int(found["n_train"]))
    truth, scores, rows, before, reach, folds = (np.concatenate(column) for column in zip(*parts, strict=True))
    target = step.cohort.target
    predictions = metrics.Predictions(
        truth,
        scores,
        step.people(rows),
        folds,
        len(target.levels),
        step.runs(rows),
        len(target.ranks),
        step.families(rows),
    )
    return Held(predictions, rows, before, reach, tuple(n_train)) if len(truth) else None


def _sureness(step: Step, held: Held) -> list[dict[str, Any]]:
    """Judge the probabilities, and the sets or intervals that promise to hold the truth."""
    p = held.predictions
    holds = calibrations.covers(p.truth, p.scores, held.reach, p.n_levels)
    size = calibrations.sizes(p.scores, held.reach, p.n_levels, p.n_ranks)
    values = {"coverage": float(holds.mean()), "size": float(size.mean())}
    if p.n_levels:
        errors = (calibrations.expected_error(p.truth, s) for s in (held.uncalibrated, p.scores))
        values |= dict(zip(("ece_before", "ece"), errors, strict=True))
    else:
        values |= {"mae_before": float(np.abs(p.truth - held.uncalibrated[:, 0]).mean())}
        values |= {"mae": float(np.abs(p.truth - p.scores[:, 0]).mean())}
    n = len(np.unique(p.participants))
    return [{"metric": k, "value": v, "promised": step.config.metrics.coverage, "n": n} for k, v in values.items()]


def _compared(step: Step, models: Sequence[Settings], found: Mapping[str, Held]) -> list[dict[str, Any]]:
    """Compare networks and fusions with their baselines, and count how many comparisons that makes."""
    rows = []
    for one, other in comparison.pairs([m for m in models if m["id"] in found]):
        ours, theirs = found[one].predictions, found[other].predictions
        metric = _compared_by(step, ours)
        n_train = np.minimum(found[one].n_train, found[other].n_train)
        compared = comparison.compare(ours, theirs, metric, n_train.tolist())
        rows.append({"model": one, "other": other, **compared})
    return comparison.counted(rows)


def _compared_once(
    step: Step, models: Sequence[Settings], found: Mapping[str, metrics.Predictions]
) -> list[dict[str, Any]]:
    """Compare the same pairs of models on the participants of the test dataset, drawn with replacement."""
    given, rows = step.config.metrics, []
    for one, other in comparison.pairs([m for m in models if m["id"] in found]):
        ours, theirs = found[one], found[other]
        compared = comparison.compare_once(
            ours, theirs, _compared_by(step, ours), n=given.n_bootstraps, seed=step.config.random_seed
        )
        rows.append({"model": one, "other": other, **compared})
    return comparison.counted(rows)


def _compared_by(step: Step, predictions: metrics.Predictions) -> str:
    """Name the metric that models are compared by."""
    return "r" if step.cohort.target.kind == "regression" else predictions.names[0]


def _null(step: Step, model: str, names: Sequence[str], joined: metrics.Predictions) -> Callable[[str], float] | None:
    """Score every retraining under permuted labels; returns the p-value of a metric over the same splits."""
    found = [dict(np.load(p)) for n in names if (p := step.fit_folder(model, n) / "null.npz").is_file()]
    if not found or len(found) < len(names):
        return None
    observed = metrics.score(joined)
    values: dict[str, list[float]] = {m: [] for m in joined.names}
    for number in range(len(found[0]["truths"])):
        parts = [
            (f["truths"][number], f["scores"][number], f["rows"], np.full(len(f["rows"]), k))
            for k, f in enumerate(found)
        ]
        truth, scores, rows, folds = (np.concatenate(c) for c in zip(*parts, strict=True))
        known = np.isfinite(scores).all(axis=1)
        one = replace(
            joined, truth=truth[known], scores=scores[known], participants=rows[known], folds=folds[known], runs=None,
            families=None,
        )  # fmt: skip
        scored = metrics.score(one)
        for metric in values:
            values[metric].append(float(scored[metric][0]))
    return lambda metric: (
        (1 + int(metrics.as_good(np.array(values[metric]), observed[metric][0], metric).sum()))
        / (1 + len(values[metric]))
    )


def _write_predictions(step: Step, model: str, held: Held, names: Sequence[str], suffix: str = "predictions") -> None:
    import pandas as pd

    target, joined = step.cohort.target, held.predictions
    levels = np.asarray(target.levels, dtype=object)
    named = np.asarray(target.levels or target.ranks, dtype=object)
    table = pd.DataFrame({
        "participant_id": np.asarray(step.ids, dtype=object)[held.rows], "split": np.asarray(names, dtype=object)[joined.folds],
        "y_true": named[joined.truth.astype(int)] if len(named) else joined.truth, "y_score": joined.scores[:, -1],
    })  # fmt: skip
    if len(levels) > 2:
        for code, level in enumerate(levels):
            table[f"score_{level}"] = joined.scores[:, code]
    if target.ranks:
        table["y_pred"] = named[calibrations.nearest_rank(joined.scores[:, 0], len(named)).astype(int)]
    for column, cells in calibrations.limits(joined.scores, held.reach, list(named), joined.n_ranks).items():
        table[column] = cells
    described = {"split": "Split whose model made the prediction", "y_true": "True value",
                 "y_score": "Probability of the last class, predicted value, or place among ordered levels, 0 the lowest",
                 "y_pred": "Nearest level",
                 "y_set": f"Classes or levels that hold the truth with probability {step.config.metrics.coverage}",
                 "y_low": f"Lower end of the interval that holds the truth with probability {step.config.metrics.coverage}",
                 "y_high": "Upper end of that interval"}  # fmt: skip
    derivatives.write_table(Path(f"{step.stem('predictions', model)}_{suffix}.tsv"), table, described)


def _write_history(step: Step, model: str, names: Sequence[str]) -> None:
    import pandas as pd

    rows = [
        {"split": name, **row}
        for name in names
        for row in query.read_json_list(step.fit_folder(model, name) / "history.json")
    ]
    described = {"split": "Split", "member": "Member of the ensemble", "epoch": "Epoch, from 0", "train_loss": "Loss on the training rows",
                 "validation_loss": "Loss on the validation rows", "bits": "Bits of the numbers computed with: 16 is bfloat16",
                 "penalty": "Chosen inverse penalty, or number of rounds"}  # fmt: skip
    table = pd.DataFrame(rows)
    derivatives.write_table(
        Path(f"{step.stem('histories', model)}_history.tsv"), table, {c: described[c] for c in table.columns}
    )


def _by_level(step: Step, held: Held) -> list[dict[str, Any]]:
    """Score sites, sexes and thirds of age by themselves."""
    people = step.cohort.participants
    named = {c for c in people if str(c).lower() in SUBGROUPS} | ({step.site} & set(people))
    rows = []
    for column in sorted(named - {step.target}):
        cells = people[column]
        of_all = _named(cells) if column == step.site else _levels_of(cells)
        labels = np.asarray(of_all, dtype=object)[held.rows]
        if len(set(labels)) > 1:
            rows += [{"column": column, **row} for row in metrics.by_level(held.predictions, list(labels))]
    return rows


SUBGROUPS = {"sex", "gender", "age"}
MAX_LEVELS = 8


def _named(cells: Any) -> list[str]:
    """Name each participant's level as the cell does; a site that is called by a number is no quantity. Nothing is empty."""
    return [c if isinstance(c, str) else "" for c in cells]


def _levels_of(cells: Any) -> list[str]:
    """Name each participant's level of a column; a quantity's are its thirds, nothing is empty."""
    import pandas as pd

    numbers = pd.to_numeric(cells, errors="coerce")
    if numbers.notna().sum() < cells.notna().sum() or numbers.nunique() <= MAX_LEVELS:
        return _named(cells)
    edges = np.unique(np.quantile(numbers.dropna(), [0, 1 / 3, 2 / 3, 1]))
    at = np.clip(np.searchsorted(edges, numbers.to_numpy(), side="right") - 1, 0, len(edges) - 2)
    names = [f"{a:.3g} to {b:.3g}" for a, b in zip(edges, edges[1:], strict=False)]
    return [names[k] if known else "" for k, known in zip(at, numbers.notna(), strict=True)]


def resemble(features: Sequence[str], names: Sequence[str], **common: Any) -> list[str]:
    """Write how well synthetic participants are told from real ones in each split, drawn as for a network of one member."""
    import pandas as pd

    step = Step(**common)
    settings = settings_for({"_target_": f"bids_dl.models.{step.config.training.synthetic}.build"}, step.config)
    rows = []
    for feature in features:
        for name in names:
            samples = training.beside(step.cohort, step.split(name), feature, settings)
            generator = np.random.default_rng(settings.seed)
            compared = resemblance.compare(samples, step.cohort.target.levels, generator)
            rows += [{"feature": feature, "generator": settings.synthetic, "split": name, **row} for row in compared]
    table = pd.DataFrame(rows)
    path = step.config.out / "group" / "metrics" / f"target-{step.target}_synthetic.tsv"
    derivatives.write_table(path, table, RESEMBLANCE_COLUMNS)
    everyone = table[table["level"] == "all"].groupby(["feature", "rows"], sort=False)["auc"].mean()
    return [
        f"synthetic: {step.target}: {f}: {rows} rows told from validation rows, AUC {v:.3f}"
        for (f, rows), v in everyone.items()
    ]


RESEMBLANCE_COLUMNS = {
    "feature": "Feature", "generator": "Model that drew the synthetic participants, trained on the training rows of the split",
    "split": "Split", "level": "Class that is compared, or all",
    "rows": "What is told from the validation rows: synthetic participants, or as a reference the real ones of the training rows",
    "auc": "How well a classifier tells them apart, cross-validated within the split: 0.5 not at all, 1 always",
    "chance_low": "Lower end of the middle 95 % of the same where membership is drawn by lot",
    "chance_high": "Upper end of the same",
    "nearness": "Median distance of synthetic participants to the nearest training participant, divided by that of validation "
    "participants: 1 as far as other people, 0 copies",
    "n_axes": "Principal axes of the training rows that the classifier sees, with their squares: those that one half of them "
    "shares with the other", "n": "Participants that are told apart from those of the validation rows",
    "n_validation": "Participants of the validation rows, which the generative model has not seen",
}  # fmt: skip


JUDGED_PENALTIES = 3
SMALLEST_SITE = 6


def judge(features: Sequence[str], names: Sequence[str], **common: Any) -> int:
    """Write how well a linear model tells the site, and the target, from each feature before and after harmonisation."""
    import pandas as pd

    step = Step(**common)
    site = _site_target(step)
    own = [] if site is None else _splits_of(site, step.ids, step.config.splits, step.config.random_seed)
    given = [step.split(name) for name in names]
    rows = []
    for feature in features:
        for what, target, parts in (("site", site, own), ("target", step.cohort.target, given)):
            if target is not None and parts:
                rows.append({"feature": feature, "predicted": what, **_before_and_after(step, feature, target, parts)})
    path = step.config.out / "group" / "metrics" / f"target-{step.target}_harmonization.tsv"
    derivatives.write_table(path, pd.DataFrame(rows), HARMONIZATION_COLUMNS)
    return len(rows)


HARMONIZATION_COLUMNS = {
    "feature": "Feature", "predicted": "What a linear model predicts: the site, or the target",
    "metric": "Metric, over held-out participants", "before": "Value without harmonisation", "after": "Value with it",
    "chance": "What a model that knows nothing reaches", "n": "Participants",
}  # fmt: skip


def _site_target(step: Step) -> Target | None:
    """Make the site a target: those with enough participants for five folds."""
    cells = list(step.cohort.participants[step.site])
    levels = [lv for lv in step.cohort.features[cohorts.SITES].labels if cells.count(lv) >= SMALLEST_SITE]
    if len(levels) < 2:
        return None
    codes = np.array([levels.index(c) if c in levels else np.nan for c in cells], float)
    return Target(step.site, codes, tuple(levels))


def _splits_of(target: Target, ids: Sequence[str], given: configuration.Splits, seed: int) -> list[Split]:
    return splits.make(
        target, ids, replace(given, kind="kfold", n_repeats=1, n_folds=min(5, SMALLEST_SITE - 1)), seed=seed
    )


def _before_and_after(step: Step, feature: str, target: Target, parts: Sequence[Split]) -> dict[str, Any]:
    """Predict one target from one feature, twice."""
    one = replace(step.cohort, target=target)
    definition = training.define(
        "linear", [one.features[feature].shape], target.n_outputs, {"n_penalties": JUDGED_PENALTIES}
    )
    settings = settings_for(definition, step.config)
    values: dict[str, Any] = {}
    for name, harmonizer in (("before", "none"), ("after", settings.harmonizer)):
        options = settings.harmonizer_options if name == "after" else {}
        found = _predictions_of(
            one, definition, feature, parts, replace(settings, harmonizer=harmonizer, harmonizer_options=options)
        )
        metric = {"classification": "balanced_accuracy", "ordinal": "rho"}.get(target.kind, "r")
        values |= {
            name: float(metrics.score(found)[metric][0]),
            "metric": metric,
            "chance": metrics.chance(found, metric),
        }
    return values | {"n": len(np.unique(found.participants))}


def _predictions_of(
    one: Cohort, definition: Settings, feature: str, parts: Sequence[Split], settings: TrainingSettings
) -> metrics.Predictions:
    columns = []
    for fold, part in enumerate(parts):
        scores = nulls.held_out_scores(definition, one, part, [feature], settings)
        known = np.isfinite(scores).all(axis=1)
        rows = part.test[known]
        columns.append((one.target.values[rows], scores[known], rows, np.full(len(rows), fold)))
    truth, scores, rows, folds = (np.concatenate(c) for c in zip(*columns, strict=True))
    target = one.target
    return metrics.Predictions(truth, scores, rows, folds, len(target.levels), n_ranks=len(target.ranks))


def explain(model: Settings, splits: Sequence[str], method: str, **common: Any) -> list[str]:
    """Explain the held-out participants' predictions, each by the model that has not seen them."""
    step = Step(**common)
    options = step.config.explainers.of(method)
    atlas, output = attributions.atlas_of(method, options), attributions.output_of(step.cohort.target)
    found, additive = attributions.summarise(_held_out(step, model["id"], splits), step.cohort, method, options)
    written: list[Path] = []
    for name, summary in found.items():
        stem = step.stem("explanations", model["id"])
        stem = stem.with_name(f"{stem.name}_feature-{name}_desc-{method.replace('_', '')}")
        written += attributions.write_group(
            summary, step.cohort.features[name], stem, additive=additive, atlas=atlas, output=output,
            when=_onsets(step, name) if summary.each else None,
        )  # fmt: skip
    return [str(path) for path in written]


def _onsets(step: Step, name: str) -> attributions.Onsets:
    """Tell when the steps of each participant's series were, or of moments those around the volume that is decoded."""
    if step.config.decodes:
        place = np.arange(step.config.decoding.context) - decoding.n_before(step.config.decoding)
        around: Array = place * _decoding(step)["repetition_time"]
        return lambda _: around
    files = next(v.files for v in cohorts.read_plan(step.folder).variants if v.name == name)
    return lambda participant_id: cohorts.onsets([Path(file) for file in files[participant_id]])


def describe(model: Settings, splits: Sequence[str], **common: Any) -> list[str]:
    """Write what the models say of held-out participants beside a prediction: courses and maps, or figures by level."""
    step = Step(**common)
    part = zoo.constant("models", model["method"], "PARTS")
    reference = bundle.load(step.fit_folder(model["id"], "final") / "model")
    block, stem = step.cohort.features[model["inputs"][0]], step.stem("descriptions", model["id"])
    files = next(v.files for v in cohorts.read_plan(step.folder).variants if v.name == model["inputs"][0])
    written, kept = [descriptions.write_parts(reference, block, stem, part)], []
    for told in descriptions.held_out(_held_out(step, model["id"], splits), step.cohort, reference, part):
        written += descriptions.write_participant(
            told, block, files[step.ids[told.row]], step.config.out, model=model["id"], target=step.target, part=part
        )
        kept.append(
            replace(told, values={k: v for k, v in told.values.items() if descriptions.is_figure(told.dims[k], part)})
        )
    kept.sort(key=lambda told: step.cohort.target.values[told.row])  # levels in the target's order
    written += descriptions.write_figures(
        kept, step.ids, _target_levels(step), stem, part, confounds=step.cohort.features[cohorts.CONFOUNDS].values,
        n_permutations=step.config.metrics.n_permutations, seed=step.config.random_seed,
    )  # fmt: skip
    return [str(path) for path in written]


def _target_levels(step: Step) -> list[str]:
    """Name each row's level of the target; a quantity's are its thirds, nothing is empty."""
    import pandas as pd

    target = step.cohort.target
    named = target.levels or target.ranks
    if not named:
        return _levels_of(pd.Series([f"{v:g}" if np.isfinite(v) else None for v in target.values], dtype=object))
    return [named[int(v)] if np.isfinite(v) else "" for v in target.values]


def _held_out(step: Step, model: str, names: Sequence[str]) -> Iterator[tuple[FittedModel, Split]]:
    """Load each split's model when its turn comes: many repeats take no more memory than one."""
    for name in names:
        fitted = bundle.load(step.fit_folder(model, name) / "model")
        split = material.present(step.cohort, step.split(name), fitted.inputs)
        yield fitted, replace(split, test=windows.thinned(split.test)) if step.config.decodes else split


def keep(model: Settings, **common: Any) -> str:
    """Write the final model, trained on everybody, as a bundle with all that a prediction needs."""
    step = Step(**common)
    fitted = bundle.load(step.fit_folder(model["id"], "final") / "model")
    split = material.present(step.cohort, step.split("final"), fitted.inputs)
    rows = split.pool
    dataset = str(query.description(step.config.bids)["Name"])
    described = query.read_json(step.folder / "features.json")
    plan = cohorts.read_plan(step.folder)
    moments = {"decoding": _decoding(step)} if step.config.decodes else {}
    features = {
        name: described.get(name) or _table_described(step, plan, name)
        for name in fitted.inputs
        if name != cohorts.CONFOUNDS
    }
    said = {
        "features": features, "feature_options": _options_of_participants(step.config),
        "uses_confounds": step.config.normalization.remove_confounds or cohorts.CONFOUNDS in fitted.inputs,
        "harmonizer": step.config.harmonizer, "site_column": step.site,
        "sites": list(step.cohort.features[cohorts.SITES].labels) if cohorts.SITES in step.cohort.features else [],
        "confounds": list(step.cohort.features[cohorts.CONFOUNDS].labels), "confound_levels": _confound_levels(step.cohort),
        "participants": _trained_on(step, _taught_by(step, model, split), fitted, dataset),
        "n_participants": len(set(step.people(rows))), "model": model["method"], "scores": _scores(step, model["id"]),
        **moments,
    }  # fmt: skip
    return str(
        bundle.save(fitted, step.config.out / "group" / "bundles" / f"target-{step.target}_model-{model['id']}", said)
    )


def _confound_levels(cohort: Cohort) -> dict[str, list[str]]:
    """List the levels of each confound of words: of two, one has no column."""
    named = {
        column
        for column, is_word, _ in (lb.partition("=") for lb in cohort.features[cohorts.CONFOUNDS].labels)
        if is_word
    }
    return {column: sorted(cohort.participants[column].dropna().unique()) for column in sorted(named)}


def _options_of_participants(config: Config) -> dict[str, Any]:
    """Read how the participant level made the features; empty where it was not run into this output."""
    made = config.out / "logs" / "bids_dl_participant.toml"
    return dict(configuration.read_toml(made).get("features", {})) if made.is_file() else {}


def _decoding(step: Step) -> dict[str, Any]:
    """Say how moments are cut out of a series, so that a new one is cut alike."""
    runs = query.read_json(step.folder / "runs.json")
    return asdict(step.config.decoding) | {key: runs[key] for key in ("regions", "repetition_time")}


def _taught_by(step: Step, model: Settings, split: Split) -> NDArray[np.intp]:
    """Number the rows that a model has seen: the training rows, and those without a target where these teach it."""
    methods = [method for _, method in model["parts"]]
    asked = step.config.training.pretrain != "none" and model["role"] != "baseline"
    if not asked and not any(zoo.constant("models", m, "USES_UNLABELLED") for m in methods or [model["method"]]):
        return split.pool
    return np.union1d(split.pool, member.unlabelled(step.cohort.target, split, split.pool))


def _trained_on(step: Step, rows: NDArray[np.intp], fitted: FittedModel, dataset: str) -> list[str]:
    """List the hashes of those who were trained on, and of their features or of the runs that moments were cut from.

    Those whom the bundle that it started from had seen are among them.
    """
    started = step.config.training.start_from
    before = (
        bundle.about(Path(started))["participants"]
        if started and building.began(fitted.definition, Path(started))
        else ()
    )
    if not step.config.decodes:
        return sorted({*before, *bundle.trained_on(step.cohort, rows.tolist(), fitted.inputs, dataset)})
    people = sorted({step.owners[row] for row in rows})
    own = {bundle.identity(dataset, i) for i in people} | set(windows.prints_of(step.folder, people))
    return sorted({*before, *own})


def _table_described(step: Step, plan: cohorts.Plan, name: str) -> dict[str, Any]:
    block = step.cohort.features[name]
    table = str(Path(plan.tables[name]).relative_to(step.config.bids))
    return {
        "feature": "phenotype",
        "table": table,
        "columns": list(step.config.features.of("phenotype").get("columns", ())),
        "labels": list(block.labels),
    }


def _scores(step: Step, model: str) -> list[dict[str, Any]]:
    """Read what the model reached on held-out participants, for whoever uses the bundle."""
    import pandas as pd

    table = pd.read_csv(step.config.out / "group" / "metrics" / f"target-{step.target}_metrics.tsv", sep="\t")
    mine: list[dict[str, Any]] = table[table["model"] == model][["metric", "value", "ci_low", "ci_high"]].to_dict(
        "records"
    )
    return mine
