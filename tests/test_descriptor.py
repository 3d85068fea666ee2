"""The Boutiques descriptor says what the command line says, and platforms accept it."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import bids_dl
from bids_dl import cli

SHIPPED = Path(bids_dl.__file__).parent / "descriptor.json"
TOP = Path(__file__).parents[1] / "descriptor.json"
BIN = Path(sys.executable).parent
NOT_FOR_PLATFORMS = {"-h", "--version", "--bids-exec-spec", "--describe"}


@pytest.fixture(scope="module")
def descriptor() -> dict[str, Any]:
    return json.loads(SHIPPED.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def actions() -> list[argparse.Action]:
    every = cli.build_parser()._actions
    shown = [a for a in every if a.option_strings and a.help != argparse.SUPPRESS]
    return [a for a in shown if not NOT_FOR_PLATFORMS & set(a.option_strings)]


def bosh(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HOME": str(cwd)}
    command = [str(BIN / "bosh"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, text=True, capture_output=True, check=False)


def invocation(folder: Path, **values: Any) -> Path:
    given = {"bids_dir": str(folder / "in"), "output_dir_name": str(folder / "out"), "analysis_level": "participant"}
    file = folder / "invocation.json"
    file.write_text(json.dumps(given | values))
    return file


def of(action: argparse.Action, descriptor: dict[str, Any]) -> list[dict[str, Any]]:
    return [i for i in descriptor["inputs"] if i.get("command-line-flag") in action.option_strings]


def test_every_option_is_exactly_one_input(descriptor: dict[str, Any], actions: list[argparse.Action]) -> None:
    assert {a.option_strings[-1]: len(of(a, descriptor)) for a in actions} == {a.option_strings[-1]: 1 for a in actions}


def test_every_flag_of_an_input_is_an_option(descriptor: dict[str, Any], actions: list[argparse.Action]) -> None:
    options = {option for a in actions for option in a.option_strings}
    assert {i["command-line-flag"] for i in descriptor["inputs"] if "command-line-flag" in i} <= options


def test_inputs_take_the_values_that_the_options_take(
    descriptor: dict[str, Any], actions: list[argparse.Action]
) -> None:
    for action in actions:
        (found,) = of(action, descriptor)
        assert found["optional"], found["id"]
        assert (found["type"] == "Flag") == (action.nargs == 0), found["id"]
        assert (found["type"] == "Number") == (action.type is int), found["id"]
        assert found.get("list", False) == (action.nargs == "+"), found["id"]
        assert found.get("value-choices", []) == list(action.choices or []), found["id"]


def test_positional_arguments_come_first_and_every_key_is_used_once(descriptor: dict[str, Any]) -> None:
    _, _, line = descriptor["command-line"].partition("; ")
    assert line.startswith("bids_dl [BIDS_DIR] [OUTPUT_DIR] [ANALYSIS_LEVEL] [PARTICIPANT_LABEL] [SESSION_LABEL] ")
    assert sorted(line.split()[1:]) == sorted({i["value-key"] for i in descriptor["inputs"]})


def test_analysis_levels_are_those_of_the_program(descriptor: dict[str, Any]) -> None:
    (level,) = [i for i in descriptor["inputs"] if i["id"] == "analysis_level"]
    assert tuple(level["value-choices"]) == cli.LEVELS


def test_top_level_descriptor_is_the_shipped_one() -> None:
    assert TOP.read_bytes() == SHIPPED.read_bytes()


def test_versions_are_the_installed_one(descriptor: dict[str, Any]) -> None:
    version = metadata.version("bids_dl")
    assert descriptor["tool-version"] == version
    assert descriptor["custom"]["BIDSApplicationVersion"] == version
    assert descriptor["container-image"]["image"].endswith(f":{version}")


@pytest.mark.parametrize("flags", [(), ("-b",)], ids=["boutiques", "bids"])
def test_bosh_validates(flags: tuple[str, ...], tmp_path: Path) -> None:
    done = bosh("validate", *flags, SHIPPED, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_simulated_command_is_one_that_the_program_parses(tmp_path: Path) -> None:
    given = invocation(tmp_path, participant_label=["01", "02"], device="cpu", random_seed=3, verbose=True)
    done = bosh("exec", "simulate", SHIPPED, "-i", given, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    config, _ = cli.parse(done.stdout.rpartition("; bids_dl ")[2].split())
    assert (config.bids, config.out) == (tmp_path / "in", tmp_path / "out")
    assert config.select.participant_label == ("01", "02")
    assert (config.run.device, config.random_seed, config.run.verbose) == ("cpu", 3, 1)


def test_invocation_without_output_folder_is_refused(tmp_path: Path) -> None:
    given = invocation(tmp_path)
    given.write_text(json.dumps({"bids_dir": "in", "analysis_level": "group"}))
    done = bosh("exec", "simulate", SHIPPED, "-i", given, cwd=tmp_path)
    assert done.returncode != 0
    assert "output_dir" in done.stdout + done.stderr


def test_launch_passes_the_exit_code_on(tmp_path: Path) -> None:
    launch = ("exec", "launch", "--no-container", "--skip-data-collection", "-s", SHIPPED)
    done = bosh(*launch, invocation(tmp_path), cwd=tmp_path)
    assert done.returncode == 66, done.stdout + done.stderr  # there is no dataset


def test_bids_exec_spec_prints_the_descriptor(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--bids-exec-spec"])
    assert left.value.code == 0
    assert capsys.readouterr().out == SHIPPED.read_text(encoding="utf-8")
