"""Level 1: features of every participant, and trained models applied to them. What each batch does stands in `extraction`."""

from __future__ import annotations

import json
import logging
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bids_dl import config as configuration
from bids_dl import derivatives, engine, extraction, networks, outputs, quality, query, regions, zoo
from bids_dl.config import Config
from bids_dl.errors import DiskError, NothingSelectedError, OutputError, UsageError
from bids_dl.records import Scan

LOG = logging.getLogger("bids_dl")
BATCH = 8
"""Participants a node on average: enough to pay for the node, few enough to resume and to spread well."""


def run(config: Config, modes: frozenset[str]) -> int:
    """Extract features from every participant asked for, apply bundles, write reports.

    Returns
    -------
    int
        0, or 1 where some participants failed; they are listed in ``logs`` and in the reports.
    """
    outputs.start_logging(config)
    if modes & {"reports_only", "boilerplate_only"}:
        return outputs.reports_only(config, modes)
    scans = query.find(config)
    _check_atlas(config)
    bundles = [str(Path(b).resolve()) for b in config.bundles]
    _check_bundles(bundles)
    if "dry_run" in modes:
        return _say_plan(config, scans)
    with outputs.alone_with(config, list(scans)):
        return _write(config, scans, bundles)


def _write(config: Config, scans: dict[str, list[Scan]], bundles: list[str]) -> int:
    """Write everything of these participants, who are this run's alone meanwhile."""
    decisive = (
        "features", "preparations", "select.derivatives", "select.raw_only", "select.no_derivatives", "select.session_label",
        "select.task_id", "select.bids_filter", "bids_dir", "networks.n_components", "networks.smoothing_mm",
    )  # fmt: skip
    outputs.refuse_other_configuration(config, "participant", decisive)
    _refuse_other_networks(config, scans)
    derivatives.write_description(config.out, query.datasets(config))
    validation = outputs.start_validation(config)
    outputs.write_configuration(config, "participant")
    tasks = _tasks(config, scans, bundles)
    done = engine.run(config, "participant", tasks, unit="batch")
    outputs.finish_validation(config, validation)
    _say_networks(config)
    everybody = _all_records(config.out)
    records = {i: everybody.get(i) for i in scans}
    if bundles:
        outputs.write_predictions(config, list(everybody.values()))
    sites = quality.sites_of(config.bids, config.splits.site_column)
    for participant_id in outputs.write_quality(config.out, everybody, sites):
        extraction.report_on(config, participant_id)
    outputs.write_methods(config, "participant")
    _list(config, records)
    outputs.write_problems(config.out, dict(sorted({**everybody, **records}.items())))
    full = [said for said in done.values() if said]
    if full:
        raise DiskError(f"{full[0]}; free space and run again: what is finished is kept.")
    return _conclude(list(records.values()))


def _check_atlas(config: Config) -> None:
    """Refuse an atlas, or a template of networks, that does not exist at once: it would fail for everybody."""
    wanted = extraction.features_of(config)
    for name in wanted:
        _refuse_one_name(name, [str(a) for a in zoo.several(config.features.of(name).get("atlas", ()))])
    for name in [n for n in wanted if n in extraction.of_networks()]:
        template = config.features.of(name).get("template")
        if template:
            networks.load(str(template))
        elif not config.networks.n_components:
            raise UsageError(
                f"the feature {name} needs networks: set features.{name}.template to the path of a 4-D NIfTI of maps, or "
                "networks.n_components to the number that group ICA is to find."
            )


def _refuse_one_name(feature: str, asked: Sequence[str]) -> None:
    """Refuse two atlases of one name, whose files would take each other's place."""
    named: dict[str, str] = {}
    for spec in asked:
        name = regions.load_atlas(spec).name
        if name in named:
            raise UsageError(
                f"features.{feature}.atlas: '{named[name]}' and '{spec}' are both called '{name}', and so would be their "
                "files; rename one."
            )
        named[name] = spec


def _check_bundles(bundles: Sequence[str]) -> None:
    """Refuse at once a bundle that cannot be read, and two of one name, whose predictions would stand in one table."""
    from bids_dl import bundle

    named: dict[str, str] = {}
    for path in bundles:
        name = Path(path).name
        if name in named:
            raise UsageError(
                f"the bundles '{named[name]}' and '{path}' are both called '{name}', and so would be their tables; rename one."
            )
        named[name] = path
    for path in bundles:
        bundle.load(Path(path))


def _trained_on(config: Config, scans: Mapping[str, Any]) -> list[str]:
    """List the participants that networks are fitted on: those named, else all of this run."""
    return sorted({f"sub-{label.removeprefix('sub-')}" for label in config.networks.participants} or scans)


def _say_networks(config: Config) -> None:
    """Warn where networks could not be fitted."""
    note = extraction.networks_note(config.out)
    if config.networks.n_components and note.is_file() and (reason := query.read_json(note)["reason"]):
        LOG.warning("%s", reason)


def _refuse_other_networks(config: Config, scans: Mapping[str, Any]) -> None:
    """Refuse to fit networks anew on other participants beside features of the old ones, or on someone not in this run."""
    if not config.networks.n_components:
        return
    asked, note = _trained_on(config, scans), extraction.networks_note(config.out)
    before = query.read_json(note)["participants"] if note.is_file() else asked
    absent = [i for i in asked if i not in scans]
    if absent and not (note.is_file() and before == asked):
        raise NothingSelectedError(
            f"networks.participants: '{absent[0]}' is not in this run; {zoo.nearest(absent[0], scans)}"
        )
    if before != asked and not config.run.overwrite:
        raise OutputError(
            f"{config.out} holds networks that were fitted on {len(before)} participants, other than the {len(asked)} of "
            "this run; name those in networks.participants, choose another output folder, or pass --overwrite."
        )
    if before != asked:
        outputs.discard_features(config.out)
        derivatives.remove([note])


def _say_plan(config: Config, scans: Mapping[str, Sequence[Scan]]) -> int:
    for participant_id, mine in scans.items():
        print(participant_id, *(f"\n  {s.path}" for s in mine) if mine else ("(nothing usable)",))
    print(f"{len(scans)} participants; features: {', '.join(extraction.features_of(config))}; output: {config.out}")
    return 0


def _tasks(config: Config, scans: Mapping[str, list[Scan]], bundles: list[str]) -> list[engine.Task]:
    """Group participants into tasks. A task's stamp changes when one of its files does."""
    run_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    tasks = []
    for mine in _batches(scans):
        given = configuration.to_mapping(config)
        given["run"] = {}
        arguments = {
            "config": given,
            "scans": {i: [extraction.packed(s) for s in scans[i]] for i in mine},
            "bundles": bundles,
        }
        missing = any(not extraction.record_path(config.out, i).is_file() for i in mine)
        name = f"{mine[0]}_and_{len(mine) - 1}".replace("-", "_").replace("+", "_")
        tasks.append(
            engine.Task(
                name, "bids_dl.extraction:process_batch", arguments, redo=missing, stamp=_stamp(config, scans, mine)
            )
        )
    outputs.note_run(config, run_id)
    return _after_networks(config, scans, tasks) if config.networks.n_components else tasks


def _after_networks(config: Config, scans: Mapping[str, list[Scan]], tasks: Sequence[engine.Task]) -> list[engine.Task]:
    """Let the batches wait for networks, and those for the raw BOLDs that are prepared first, each in its own task."""
    mine = [i for i in _trained_on(config, scans) if i in scans]
    if mine != _trained_on(config, scans):
        return list(tasks)
    given = {**configuration.to_mapping(config), "run": {}}
    packed = {i: [extraction.packed(s) for s in scans[i]] for i in mine}
    raw = [i for i in mine if any(s.kind == "bold" and not s.prepared for s in scans[i])]
    first = [
        engine.Task(f"prepare_{i}".replace("-", "_").replace("+", "_"), "bids_dl.extraction:prepare_batch",
                    {"config": given, "scans": {i: packed[i]}}, stamp=_stamp(config, scans, [i]))
        for i in raw
    ]  # fmt: skip
    missing = networks.fitted(config.out, config.networks.n_components) is None
    fit = engine.Task(
        "networks", "bids_dl.extraction:fit_networks", {"config": given, "scans": packed}, [t.name for t in first],
        missing, 2.0, _stamp(config, scans, mine),
    )  # fmt: skip
    return [*first, fit, *(replace(t, after=["networks"], stamp=t.stamp + fit.stamp) for t in tasks)]


def _batches(scans: Mapping[str, Sequence[Scan]]) -> Iterator[list[str]]:
    """Put a few participants into one task; each who has a raw scan to prepare, which takes a minute, alone."""
    able = set(zoo.names("preparations"))
    slow = [i for i, mine in scans.items() if any(not s.prepared and s.kind in able for s in mine)]
    quick = [i for i in scans if i not in set(slow)]
    yield from ([i] for i in slow)
    yield from _runs_of(quick)


def _runs_of(ids: Sequence[str]) -> Iterator[list[str]]:
    """Cut participants into runs of `BATCH` on average, by their own names: a newcomer changes no run but the one it joins."""
    run: list[str] = []
    for participant_id in ids:
        if run and zlib.crc32(participant_id.encode()) % BATCH == 0:
            yield run
            run = []
        run.append(participant_id)
    if run:
        yield run


def _stamp(config: Config, scans: Mapping[str, Sequence[Scan]], ids: Sequence[str]) -> str:
    """Describe the files that participants' features depend on: scans, their sidecars, atlases and templates."""
    mine = [s for i in ids for s in scans[i]]
    files = [f for s in mine for f in (s.path, s.mask, s.confounds, *s.related.values()) if f]
    described = dict.fromkeys(f for s in mine for f in query.sidecars(s.path, s.dataset))
    return json.dumps(query.versions([*files, *described, *configuration.option_files(config)]))


def _all_records(out: Path) -> dict[str, dict[str, Any]]:
    """Read what was found for everybody, in this run or in one before: participants may come one by one."""
    paths = sorted((out / "logs" / "participants").glob("sub-*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def _conclude(records: Sequence[dict[str, Any] | None]) -> int:
    if not any(record and record["features"] for record in records):
        raise NothingSelectedError(
            f"no feature could be extracted from any of the {len(records)} participants; the reasons are above."
        )
    return 1 if any(record is None or record["problems"] for record in records) else 0


def _list(config: Config, records: Mapping[str, dict[str, Any] | None]) -> None:
    """Say how it went: the counts, features that nobody has, then every participant with a problem."""
    failed = {i: r for i, r in records.items() if r is None or r["problems"]}
    counts: dict[str, int] = {}
    for record in records.values():
        for name in {f["feature"] for f in (record or {"features": []})["features"]}:
            counts[name] = counts.get(name, 0) + 1
    LOG.info(
        "%d participants: %s.",
        len(records),
        ", ".join(f"{k} from {v}" for k, v in sorted(counts.items())) or "no feature",
    )
    tried = {p.get("feature") for record in records.values() if record for p in record["problems"]}
    for name in [n for n in config.features.names if n not in {*counts, *tried}]:
        LOG.warning(
            "%s was asked for and comes from nobody: no scan that it is made of was found%s.", name, _made_of(name)
        )
    for participant_id, record in list(failed.items())[:20]:
        reasons = (
            [p["reason"] for p in record["problems"]]
            if record
            else ["stopped before it was written; see logs/crash-*."]
        )
        LOG.warning("%s: %s", participant_id, " ".join(reasons))
    if len(failed) > 20:
        LOG.warning("… and %d more; all are in logs/problems.tsv.", len(failed) - 20)


def _made_of(feature: str) -> str:
    """Name what a feature is made of, in brackets; empty where its file does not say."""
    kinds = extraction.says(feature, "TAKES") or extraction.says(feature, "FOLLOWS")
    return f" ({' or '.join(kinds)})" if kinds else ""
