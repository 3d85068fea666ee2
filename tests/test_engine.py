"""Tasks run once, in order; one that fails takes nobody with it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bids_dl import config, engine

STEPS = """
from pathlib import Path
def add(value, log):
    with open(log, "a") as lines: lines.write(f"{value}\\n")
    return value + 1
def fail(log): raise ValueError("on purpose")
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> config.Config:
    (tmp_path / "made_up_steps.py").write_text(STEPS)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("made_up_steps", None)
    return config.from_mapping(
        {"bids_dir": "/none", "output_dir": str(tmp_path / "out"), "analysis_level": "group", "run": {"nprocs": 1}}
    )


def add(name: str, tmp_path: Path, **more: object) -> engine.Task:
    return engine.Task(name, "made_up_steps:add", {"value": 1, "log": str(tmp_path / "log")}, **more)  # type: ignore[arg-type]


def runs(tmp_path: Path) -> int:
    return len((tmp_path / "log").read_text().splitlines())


def test_a_second_run_does_nothing_again_unless_told_to(settings: config.Config, tmp_path: Path) -> None:
    assert engine.run(settings, "x", [add("one", tmp_path)]) == {"one": 2}
    assert engine.run(settings, "x", [add("one", tmp_path)]) == {"one": 2}
    assert runs(tmp_path) == 1
    engine.run(settings, "x", [add("one", tmp_path, redo=True)])
    assert runs(tmp_path) == 2
    engine.run(settings, "x", [add("one", tmp_path, stamp="another file")])
    assert runs(tmp_path) == 3


def test_a_failure_leaves_the_others_and_a_crash_file(settings: config.Config, tmp_path: Path) -> None:
    bad = engine.Task("bad", "made_up_steps:fail", {"log": ""})
    done = engine.run(settings, "x", [bad, add("one", tmp_path), add("waits", tmp_path, after=["bad"])])
    assert done == {"one": 2}
    crash = next((settings.out / "logs").glob("crash-*"))
    assert "on purpose" in crash.read_text()


def test_tasks_wait_for_those_they_name(settings: config.Config, tmp_path: Path) -> None:
    first = engine.Task("first", "made_up_steps:add", {"value": 5, "log": str(tmp_path / "log")})
    second = engine.Task("second", "made_up_steps:add", {"value": 6, "log": str(tmp_path / "log")}, after=["first"])
    assert engine.run(settings, "x", [first, second]) == {"first": 6, "second": 7}
    assert (tmp_path / "log").read_text() == "5\n6\n"
