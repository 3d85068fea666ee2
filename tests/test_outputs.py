"""What lies beside the results: configuration, problems, predictions, the validator's words."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bids_dl import config, outputs
from bids_dl.errors import OutputError


@pytest.fixture
def settings(tmp_path: Path) -> config.Config:
    given = {"bids_dir": str(tmp_path), "output_dir": str(tmp_path / "out"), "analysis_level": "participant"}
    return config.from_mapping(given)


def changed(settings: config.Config, **run: Any) -> config.Config:
    features = config.Methods((), {"timeseries": {"atlas": "aicha"}})
    return replace(settings, features=features, run=replace(settings.run, **run))


def test_another_configuration_is_refused_by_the_keys_that_differ(settings: config.Config) -> None:
    outputs.write_configuration(settings, "participant")
    with pytest.raises(OutputError, match=r"different: features.timeseries\).*--overwrite"):
        outputs.refuse_other_configuration(changed(settings), "participant", ("features",))


def test_differences_that_change_no_result_are_let_through(settings: config.Config) -> None:
    outputs.write_configuration(settings, "participant")
    outputs.refuse_other_configuration(changed(settings), "participant", ("bids_dir", "feature"))
    outputs.refuse_other_configuration(changed(settings), "group", ("features",))


@pytest.mark.parametrize(("level", "gone", "kept"), [("participant", "sub-1", "group"), ("group", "group", "sub-1")])
def test_overwriting_removes_the_results_of_that_level_alone(
    settings: config.Config, level: str, gone: str, kept: str
) -> None:
    for folder in ("sub-1", "group"):
        (settings.out / folder).mkdir(parents=True)
    outputs.write_configuration(settings, level)
    outputs.refuse_other_configuration(changed(settings, overwrite=True), level, ("features",))
    assert not (settings.out / gone).exists()
    assert (settings.out / kept).exists()


def test_a_second_run_into_one_work_folder_is_refused_while_the_first_is_at_work(settings: config.Config) -> None:
    with outputs.alone(settings), pytest.raises(OutputError, match="another group run is writing into"):
        outputs.alone(settings).__enter__()
    with outputs.alone(settings):
        assert settings.work.is_dir()


def test_a_second_run_is_kept_from_the_participants_of_the_first_but_not_from_others(settings: config.Config) -> None:
    """Locks are those of a process, so the second run is another one."""
    second = (
        "import sys; from bids_dl import config, outputs\n"
        f"settings = config.from_mapping({{'bids_dir': '.', 'output_dir': {str(settings.out)!r}, 'analysis_level': 'participant'}})\n"
        "with outputs.alone_with(settings, sys.argv[1:]): print('alone')"
    )
    with outputs.alone_with(settings, ["sub-01", "sub-02"]):
        others, same = (
            subprocess.run([sys.executable, "-c", second, *ids], capture_output=True, text=True, check=False)
            for ids in (["sub-03"], ["sub-03", "sub-02"])
        )
    assert others.stdout == "alone\n"
    assert "another run is at work on sub-02" in same.stderr
    with outputs.alone_with(settings, ["sub-02"]):
        pass


def test_problems_name_who_and_why(settings: config.Config) -> None:
    found = {"sub-1": None, "sub-2": {"problems": []}, "sub-3": {"problems": [{"scan": "x", "reason": "because"}]}}
    outputs.write_problems(settings.out, found)
    table = pd.read_csv(settings.out / "logs" / "problems.tsv", sep="\t")
    assert list(table["participant_id"]) == ["sub-1", "sub-3"]
    assert "stopped before" in table["reason"][0]
    assert table["reason"][1] == "because"


def test_predictions_of_a_bundle_are_one_table(settings: config.Config, capsys: pytest.CaptureFixture[str]) -> None:
    outputs.start_logging(settings)
    rows = [{"y_score": 0.75, "excluded": None}, {"y_score": None, "excluded": "was trained on it"}]
    records = [
        {"participant_id": f"sub-{n}", "predictions": [{"bundle": "dx-mlp", "row": row}]} for n, row in enumerate(rows)
    ]
    outputs.write_predictions(settings, [*records, {"participant_id": "sub-9"}])
    path = settings.out / "phenotype" / "dx-mlp.tsv"
    assert path.read_text().splitlines()[1:] == ["sub-0\t0.75\tn/a", "sub-1\tn/a\twas trained on it"]
    described = json.loads(path.with_suffix(".json").read_text())
    assert {"MeasurementToolMetadata", "y_score", "excluded"} == set(described)
    assert "dx-mlp: none for 1, the reasons are in the table. The first: was trained on it" in capsys.readouterr().err


def test_the_validator_says_what_it_found_and_does_not_stop_the_run(
    settings: config.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (Path(sys.executable).parent / "bids-validator-deno").is_file():
        pytest.skip("the validator is not installed")
    outputs.start_logging(settings)
    outputs.finish_validation(settings, outputs.start_validation(settings))
    counts = json.loads((settings.out / "logs" / "validation.json").read_text())
    assert counts["error"]
    assert "the BIDS validator found errors" in capsys.readouterr().err
    assert outputs.start_validation(settings) is None


def test_the_validator_is_left_out_where_asked(settings: config.Config) -> None:
    quick = replace(settings, select=config.Select(skip_bids_validation=True))
    one = replace(settings, select=config.Select(participant_label=("01",)))
    assert outputs.start_validation(quick) is None
    assert outputs.start_validation(one) is None
