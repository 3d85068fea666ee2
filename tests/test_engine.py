"""Tasks run once, in order; one that fails takes nobody with it."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bids_dl import config, engine, outputs
from bids_dl.errors import BidsDLError

STEPS = """
from pathlib import Path
def add(value, log):
    with open(log, "a") as lines: lines.write(f"{value}\\n")
    return value + 1
def fail(log): raise ValueError("on purpose")
def wait(log):
    import time
    try:
        Path(log).write_text("begun")
        time.sleep(60)
    finally:
        Path(log).unlink()
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


def test_another_version_does_it_again(
    settings: config.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.run(settings, "x", [add("one", tmp_path)])
    monkeypatch.setattr(engine, "VERSION", "99")
    engine.run(settings, "x", [add("one", tmp_path)])
    assert runs(tmp_path) == 2


def test_a_failure_leaves_the_others_and_a_crash_file(settings: config.Config, tmp_path: Path) -> None:
    bad = engine.Task("bad", "made_up_steps:fail", {"log": ""})
    done = engine.run(settings, "x", [bad, add("one", tmp_path), add("waits", tmp_path, after=["bad"])])
    assert done == {"one": 2}
    crash = next((settings.out / "logs").glob("crash-*"))
    assert "on purpose" in crash.read_text()


def test_a_task_runs_despite_those_that_failed_and_others_that_wait_do_not(
    settings: config.Config, tmp_path: Path
) -> None:
    bad = engine.Task("bad", "made_up_steps:fail", {"log": ""})
    waits = [add("waits", tmp_path, after=["bad"]), add("later", tmp_path, after=["waits"])]
    joins = add("joins", tmp_path, after=["bad", "one", "later"], despite=True)
    done = engine.run(settings, "x", [bad, add("one", tmp_path), *waits, joins])
    assert done == {"one": 2, "joins": 2}
    assert "on purpose" in engine.crash_path(settings, "bad").read_text()
    assert not engine.crash_path(settings, "waits").exists()
    mended = engine.Task("bad", "made_up_steps:add", {"value": 1, "log": str(tmp_path / "log")})
    done = engine.run(settings, "x", [mended, add("one", tmp_path), *waits, joins])
    assert done == dict.fromkeys(("bad", "one", "waits", "later", "joins"), 2)
    assert not engine.crash_path(settings, "bad").exists()


def test_the_first_crash_stops_the_run_where_that_is_asked_for(settings: config.Config, tmp_path: Path) -> None:
    asked = replace(settings, run=replace(settings.run, stop_on_first_crash=True))
    bad = engine.Task("bad", "made_up_steps:fail", {"log": ""})
    done = engine.run(asked, "x", [bad, add("joins", tmp_path, after=["bad"], despite=True)])
    assert done == {}


def test_tasks_wait_for_those_they_name(settings: config.Config, tmp_path: Path) -> None:
    first = engine.Task("first", "made_up_steps:add", {"value": 5, "log": str(tmp_path / "log")})
    second = engine.Task("second", "made_up_steps:add", {"value": 6, "log": str(tmp_path / "log")}, after=["first"])
    assert engine.run(settings, "x", [first, second]) == {"first": 6, "second": 7}
    assert (tmp_path / "log").read_text() == "5\n6\n"


def test_a_result_of_an_earlier_run_is_not_taken_for_this_ones(settings: config.Config, tmp_path: Path) -> None:
    good, waits = add("one", tmp_path), add("waits", tmp_path, after=["one"])
    assert engine.run(settings, "x", [good, waits]) == {"one": 2, "waits": 2}
    bad = engine.Task("one", "made_up_steps:fail", {"log": ""})
    assert engine.run(settings, "x", [bad, waits]) == {}


@pytest.mark.parametrize("nprocs", [1, 2])
def test_the_first_crash_stops_the_rest_where_asked(settings: config.Config, tmp_path: Path, nprocs: int) -> None:
    asked = replace(settings, run=replace(settings.run, stop_on_first_crash=True, nprocs=nprocs))
    bad = engine.Task("bad", "made_up_steps:fail", {"log": ""})
    more = [add("waits", tmp_path, after=["bad"]), add("more", tmp_path, after=["waits"])]
    assert engine.run(asked, "x", [bad, *more]) == {}
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(("seconds", "said"), [(0.0, ["x: 1 of 3 steps", "x: 2 of 3 steps"]), (60.0, [])])
def test_progress_is_told_where_there_is_no_terminal(
    settings: config.Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    seconds: float, said: list[str],
) -> None:  # fmt: skip
    outputs.start_logging(settings)
    monkeypatch.setattr(engine, "SAID_EVERY_S", seconds)
    engine.run(settings, "x", [add(name, tmp_path) for name in ("one", "two", "three")])
    lines = [line for line in capsys.readouterr().err.splitlines() if "steps are done" in line]
    assert len(lines) == len(said)
    assert all(one in line for one, line in zip(said, lines, strict=True))


STOPPED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test that runs in the background has it ignored
from bids_dl import cli, config, engine
def run(arguments):
    given = {"bids_dir": "/none", "output_dir": sys.argv[1], "analysis_level": "group", "run": {"nprocs": 2}}
    engine.run(config.from_mapping(given), "x", [engine.Task("one", "made_up_steps:wait", {"log": sys.argv[2]})])
cli.run = run
sys.exit(cli.main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_cleans_up_and_leaves_no_worker(
    settings: config.Config, tmp_path: Path, number: int
) -> None:
    begun, away = tmp_path / "begun", tmp_path.as_posix()
    command = [sys.executable, "-c", STOPPED, str(settings.out), str(begun)]
    one = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": f"{away}:."},
    )
    until = time.monotonic() + 60
    while not begun.exists() and time.monotonic() < until:
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(one.pid, number)  # a terminal tells everybody
    else:
        one.send_signal(number)
    _, said = one.communicate(timeout=50)  # to the end of the pipe, which every worker holds
    assert (one.returncode, said) == (130, "bids_dl: stopped; run the same command again to go on.\n")
    assert not begun.exists()


def test_several_processes_give_what_one_gives(settings: config.Config, tmp_path: Path) -> None:
    asked = replace(settings, run=replace(settings.run, nprocs=2))
    bad = engine.Task("bad", "made_up_steps:fail", {"log": ""})
    assert engine.run(asked, "x", [bad, add("one", tmp_path), add("two", tmp_path)]) == {"one": 2, "two": 2}


@pytest.mark.parametrize(
    ("text", "message"), [("plugin: [", "not YAML"), ("a: 1", "needs a line 'plugin"), (None, "does not exist")]
)
def test_a_wrong_plugin_file_is_named(settings: config.Config, tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "plugin.yml"
    if text:
        file.write_text(text)
    asked = replace(settings, run=replace(settings.run, use_plugin=str(file)))
    with pytest.raises(BidsDLError, match=rf"plugin.yml.*{message}"):
        engine.run(asked, "x", [add("one", tmp_path)])


def test_a_plugin_file_chooses_the_engine(settings: config.Config, tmp_path: Path) -> None:
    (tmp_path / "plugin.yml").write_text("plugin: Linear")
    asked = replace(settings, run=replace(settings.run, use_plugin=str(tmp_path / "plugin.yml")))
    assert engine.run(asked, "x", [add("one", tmp_path)]) == {"one": 2}


def test_the_garbage_collector_passes_over_the_graph_while_it_runs(settings: config.Config) -> None:
    found = engine.run(settings, "x", [engine.Task("one", "gc:get_freeze_count", {})])
    assert found["one"] > 1000
    assert gc.get_freeze_count() == 0
