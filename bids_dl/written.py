"""What earlier steps left in the output, read leniently: what is missing or broken is empty."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

Json = dict[str, Any]

REFERENCE = re.compile(r"(,?( (as [^,\[]*|after|(in the way )?of))?\s*\[\d+\]_)+")
"""A mark such as ``[1]_``, with the words that lead to it."""

TEMPLATES = Path(__file__).parent / "templates"


def located(out: Path, path: str) -> Path:
    """Find a file that a record names; one that the output itself holds is found after the output was moved, too."""
    named = Path(path)
    start = next((i for i, part in enumerate(named.parts) if part.startswith("sub-")), 0)
    inside = out.joinpath(*named.parts[start:]) if start else named
    return inside if not named.is_file() and inside.is_file() else named


def read_text(path: Path) -> str:
    """Read a text file; empty where there is none."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def read_json(path: Path) -> Json:
    """Read a JSON object; empty where there is none or it is broken."""
    try:
        content = json.loads(read_text(path) or "{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def read_toml(path: Path) -> Json:
    """Read a TOML file; empty where there is none or it is broken."""
    try:
        return tomllib.loads(read_text(path))
    except ValueError:
        return {}


def about(out: Path, made: Path) -> Json:
    """Collect the version, the dataset and the time of what a page is about."""
    description = read_json(out / "dataset_description.json")
    generated = description.get("GeneratedBy") or [{}]
    name = read_json(out / "group" / "choices.json").get("dataset") if made.stem.endswith("group") else None
    sources = [str(s.get("URL", "")).removeprefix("file://") for s in description.get("SourceDatasets", [])]
    when = f"{datetime.fromtimestamp(made.stat().st_mtime):%Y-%m-%d %H:%M}" if made.exists() else ""
    return {
        "version": generated[0].get("Version", "?"), "dataset": " · ".join(filter(None, [name, ", ".join(sources)])), "made": when,
    }  # fmt: skip


def read_choices(out: Path) -> Json:
    """Read what was chosen; marks of references in the models' summaries are dropped."""
    choices = read_json(out / "group" / "choices.json")
    for model in choices.get("models", []):
        model["summary"] = REFERENCE.sub("", model.get("summary") or "")
    return choices


def read_table(path: Path) -> Any:
    """Read a table as pandas does, names of people and levels as text; empty where there is none."""
    import pandas as pd

    if not path.is_file() or not path.stat().st_size:
        return pd.DataFrame()
    text = dict.fromkeys(
        ("participant_id", "y_true", "y_pred", "split", "site", "model", "metric", "target", "reason"), str
    )
    return pd.read_csv(path, sep="\t", na_values=["n/a", ""], keep_default_na=False, dtype=text)


def read_people(path: Path) -> Any:
    """Read a table of the group level, a row a participant: of moments (``sub-01@t0012``) the first one stands for all."""
    table = read_table(path)
    if "participant_id" not in table:
        return table
    return table.assign(participant_id=table["participant_id"].str.partition("@")[0]).drop_duplicates("participant_id")


def as_levels(cells: Any, levels: Iterable[Any]) -> Any:
    """Name the level of each cell of a column: numbers that were read as 1.0 are the level 1."""
    numbers = {float(level): str(level) for level in levels if NUMBER.fullmatch(str(level))}
    return cells.map(lambda cell: str(cell) if isinstance(cell, str) else numbers.get(cell, str(cell)))


NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")
NAMED = re.compile(
    r"target-(?P<target>.+?)_model-(?P<model>.+?)_feature-(?P<feature>.+?)_desc-(?P<method>.+?)"
    r"_(?P<kind>statmap|edges|regions|columns|slices|courses)\.(nii\.gz|tsv)$"
)


def explanations(out: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Walk the explanations that lie in the output, with what their names say."""
    for path in sorted((out / "group" / "explanations").glob("target-*")):
        if found := NAMED.match(path.name):
            yield path, found.groupdict()
