"""What a run leaves beside its results: logs, the resolved configuration, the validator's words, predictions, methods."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bids_dl import config as configuration
from bids_dl import derivatives, quality, query
from bids_dl.config import Config
from bids_dl.errors import OutputError

LOG = logging.getLogger("bids_dl")
FITS = ("fit__", "null__", "part__")
"""How the names of steps begin that train something."""


def start_logging(config: Config) -> None:
    """Say what happens on stderr, a line a step."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
    LOG.handlers = [handler]
    LOG.setLevel(logging.DEBUG if config.run.verbose else logging.INFO)
    LOG.propagate = False


def configuration_path(out: Path, level: str) -> Path:
    """Name the resolved configuration of a level."""
    return out / "logs" / f"bids_dl_{level}.toml"


def refuse_other_configuration(config: Config, level: str, decisive: Sequence[str]) -> None:
    """Refuse to mix results of two configurations in one folder.

    Parameters
    ----------
    config
        The present one.
    level
        ``participant`` or ``group``.
    decisive
        Keys, or sections of them, that change results.

    Raises
    ------
    OutputError
        Naming the keys that differ.
    """
    path = configuration_path(config.out, level)
    if not path.is_file():
        return
    old = tomllib.loads(path.read_text(encoding="utf-8"))
    new = tomllib.loads(configuration.to_toml(config))
    changed = [k for k in configuration.differences(old, new) if any(k == d or k.startswith(f"{d}.") for d in decisive)]
    if not changed:
        return
    if not config.run.overwrite:
        raise OutputError(
            f"{config.out} holds {level} results of another configuration (different: {', '.join(changed[:6])}); "
            "choose another output folder, or pass --overwrite to replace them"
            + (": fits that the difference does not touch are kept." if level == "group" else ".")
        )
    _discard(config, level)


@contextmanager
def alone(config: Config) -> Iterator[None]:
    """Keep a second group run out of the work folder: both would write the same fits.

    Raises
    ------
    OutputError
        If another run is at work there. A file system without locks refuses nobody.
    """
    config.work.mkdir(parents=True, exist_ok=True)
    with (config.work / "group.lock").open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"another group run is writing into {config.work}; wait for its end, or choose another output folder."
            ) from None
        except OSError as problem:
            LOG.debug("%s cannot be locked: %s", config.work, problem)
        yield


@contextmanager
def alone_with(config: Config, ids: Sequence[str]) -> Iterator[None]:
    """Keep a second run away from the participants of this one; others may be worked on beside it, as clusters do.

    Of one file each participant locks the byte whose place is their hash, so that thousands need one open file.

    Raises
    ------
    OutputError
        If another run is at work on one of them. A file system without locks refuses nobody.
    """
    config.work.mkdir(parents=True, exist_ok=True)
    with (config.work / "participants.lock").open("w") as held:
        for participant_id in ids:
            place = int(hashlib.sha256(participant_id.encode()).hexdigest()[:12], 16)
            try:
                fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except (BlockingIOError, PermissionError):
                raise OutputError(
                    f"another run is at work on {participant_id} in {config.work}; wait for its end, name other participants, "
                    "or choose another output folder."
                ) from None
            except OSError as problem:
                LOG.debug("%s cannot be locked: %s", config.work, problem)
        yield


def _discard(config: Config, level: str) -> None:
    """Remove the results that are about to be replaced; fits stay where they are, and are known by their arguments."""
    out, steps = config.out, config.work / "group"
    if level == "group":
        told = [step for step in steps.glob("*__*") if not step.name.startswith(FITS)]
        derivatives.remove([out / "group", out / "group.html", *told, *config.fits.glob("*/*/*/checkpoints")])
    else:
        discard_features(out)


def discard_features(out: Path) -> None:
    """Remove what was extracted of participants, and their reports; what was prepared from raw scans took longer, and stays.

    A preparation knows by itself whether it still stands: its note holds the options and the files that it was made of.
    """
    notes = (out / "logs" / "preparations").glob("*.json")
    kept = {out / file for note in notes for file in query.read_json(note).get("files", ())}
    for one in out.glob("sub-*"):
        files = [one] if one.is_file() else sorted(one.rglob("*"), reverse=True)
        derivatives.remove(p for p in files if p.is_file() and p not in kept)
        for folder in [p for p in files if p.is_dir()] + [one]:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    derivatives.remove([out / "logs" / "participants"])


def write_configuration(config: Config, level: str) -> None:
    """Write the resolved configuration; given as --config-file it reproduces the run."""
    derivatives.write_text(configuration_path(config.out, level), configuration.to_toml(config))


def note_run(config: Config, run_id: str) -> None:
    """Keep one line for every run of a level."""
    path = config.out / "logs" / "runs.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as lines:
        lines.write(f"{run_id}\t{config.analysis_level}\n")


def start_validation(config: Config) -> subprocess.Popen[bytes] | None:
    """Start the BIDS validator beside the extraction, where it is installed and the whole dataset is asked for."""
    tool = shutil.which("bids-validator-deno") or shutil.which(
        "bids-validator-deno", path=str(Path(sys.executable).parent)
    )
    done = config.out / "logs" / "validation.json"
    if config.select.skip_bids_validation or config.select.participant_label or tool is None or done.is_file():
        return None
    raw = done.with_name("validation_raw.json")
    done.parent.mkdir(parents=True, exist_ok=True)
    command = [tool, str(config.bids), "--ignoreNiftiHeaders", "--format", "json", "-o", str(raw)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish_validation(config: Config, process: subprocess.Popen[bytes] | None) -> None:
    """Count what the validator found; an invalid dataset is said, not refused: many a good one is not valid."""
    if process is None:
        return
    try:
        process.wait(timeout=600)
    except subprocess.TimeoutExpired:
        process.kill()
        LOG.warning(
            "the BIDS validator took more than ten minutes and was stopped; --skip-bids-validation leaves it out."
        )
        return
    raw = config.out / "logs" / "validation_raw.json"
    if not raw.is_file():
        LOG.warning("the BIDS validator did not run (exit code %d).", process.returncode)
        return
    issues = json.loads(raw.read_text(encoding="utf-8")).get("issues", {}).get("issues", [])
    counts: dict[str, dict[str, int]] = {"error": {}, "warning": {}}
    for issue in issues:
        kind = counts.setdefault(issue.get("severity", "warning"), {})
        kind[issue["code"]] = kind.get(issue["code"], 0) + 1
    derivatives.write_json(config.out / "logs" / "validation.json", counts)
    raw.unlink()
    if counts["error"]:
        said = ", ".join(f"{code} ({n})" for code, n in sorted(counts["error"].items()))
        LOG.warning("the BIDS validator found errors in %s: %s.", config.bids, said)


def write_problems(out: Path, records: Mapping[str, Mapping[str, Any] | None]) -> None:
    """List every participant with a problem, and its reason; ``records`` has None for one that was not finished."""
    import pandas as pd

    rows = [
        {"participant_id": i, "scan": p.get("scan", ""), "feature": p.get("feature", ""), "reason": p["reason"]}
        for i, r in records.items()
        for p in (r["problems"] if r else [{"reason": "stopped before it was written; see logs/crash-*."}])
    ]
    table = pd.DataFrame(rows, columns=["participant_id", "scan", "feature", "reason"])
    derivatives.write_table(out / "logs" / "problems.tsv", table)


def write_quality(
    out: Path, records: Mapping[str, Mapping[str, Any]], sites: Mapping[str, str] | None = None
) -> list[str]:
    """Write ``quality.tsv``, a row a measured scan, with its description; returns participants whose flags are new."""
    table, path = quality.table(records, sites), out / "quality.tsv"
    if table.empty:
        return []
    before = _flags(path)
    derivatives.write_table(path, table)
    described = {
        "scan": {"Description": "File that was measured"},
        "kind": {"Description": "Kind of scan; outliers are sought among scans of one kind"},
        **{name: {"Description": said, "Units": unit} for name, (said, unit) in quality.MEASURES.items() if name in table},
        "flags": {"Description": f"Measures whose robust z exceeds {quality.LARGEST_Z} in size among the scans of that kind at the "
                  f"participant's site, or of the whole cohort where the site has fewer than {quality.FLAGGED_FROM} participants "
                  f"(none are sought among fewer), and degrees_of_freedom below {quality.FEWEST_FREE}"},
        "reason": {"Description": "The flags in words: the value, and what it was compared with"},
    }  # fmt: skip
    derivatives.write_json(path.with_suffix(".json"), described)
    return sorted({participant_id for participant_id, *_ in before ^ _flags(path)} & set(records))


def _flags(path: Path) -> set[tuple[str, str, str]]:
    """Read who has which flags: participant_id, scan, measures."""
    import pandas as pd

    if not path.is_file():
        return set()
    table = pd.read_csv(path, sep="\t", dtype=str, na_values=["n/a"], keep_default_na=False)
    rows = table.loc[table["flags"].notna(), ["participant_id", "scan", "flags"]]
    return set(rows.itertuples(index=False, name=None))


def write_predictions(config: Config, records: Sequence[Mapping[str, Any]]) -> None:
    """Join the participants' predictions into one table a bundle, under ``phenotype/``."""
    import pandas as pd

    rows: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        for entry in record.get("predictions", []):
            rows.setdefault(entry["bundle"], []).append({"participant_id": record["participant_id"], **entry["row"]})
    for name, entries in rows.items():
        table = pd.DataFrame(entries)
        known = PREDICTION_COLUMNS | _said_limits(config.metrics.coverage)
        described = {c: known.get(c) or _said_of_level(c) for c in table.columns}
        path = derivatives.write_table(config.out / "phenotype" / f"{name}.tsv", table)
        meta = {"MeasurementToolMetadata": {"Description": f"Predictions of the bids_dl bundle {name}"}}
        derivatives.write_json(
            path.with_suffix(".json"),
            meta | {k: {"Description": v} for k, v in described.items() if k != "participant_id"},
        )
        LOG.info("predictions for %d participants in %s.", int(table["excluded"].isna().sum()), path)
        reasons = table["excluded"].dropna()
        if len(reasons):
            LOG.warning(
                "%s: none for %d, the reasons are in the table. The first: %s", name, len(reasons), reasons.iloc[0]
            )


def _said_limits(coverage: float) -> dict[str, str]:
    promised = f"with probability {coverage:g}, for people like those that were trained on"
    return {
        "y_set": f"Classes or levels that hold the truth {promised}",
        "y_low": f"Lower end of the interval that holds the truth {promised}; n/a where too few were trained on to tell",
        "y_high": "Upper end of that interval",
    }


def _said_of_level(column: str) -> str:
    kind, _, level = column.partition("_")
    return f"Part of the decoded volumes that are '{level}'" if kind == "part" else f"Output for '{level}'"


PREDICTION_COLUMNS = {
    "participant_id": "Participant",
    "y_score": "Probability of the positive class, the predicted quantity, or the place among ordered levels, 0 the lowest",
    "prediction": "Predicted class, level or quantity",
    "levels": "All levels from low to high, where they have an order",
    "n_volumes": "Volumes of all runs, where moments are decoded",
    "n_decoded": "Volumes that were decoded: the others lack their context, or were censored",
    "excluded": "Why there is no prediction; n/a where there is one",
}


def write_methods(config: Config, level: str) -> None:
    """Write the methods text of what was done, for a paper, in Markdown."""
    from bids_dl import report

    report.write_methods(config.out, level)


def reports_only(config: Config, modes: frozenset[str]) -> int:
    """Make the texts and reports anew from what lies in the output folder."""
    from bids_dl import report

    write_methods(config, config.analysis_level)
    if "boilerplate_only" not in modes:
        report.write_all(config.out, config.analysis_level)
    return 0
