"""The configuration is one frozen thing that reproduces itself."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from bids_dl import config
from bids_dl.errors import UsageError

BASE: dict[str, Any] = {"bids_dir": "/a", "output_dir": "/b", "analysis_level": "group"}


def test_written_configuration_reads_back_equal() -> None:
    given = BASE | {
        "random_seed": 7,
        "select": {"include": {"site": ["A", "Ü"]}, "bids_filter": {"bold": {"run": 1}}, "derivatives": {"x y": "/p"}},
        "models": {"names": ["mlp", "linear"], "mlp": {"hidden": [8, 4], "dropout": 0.25}},
        "targets": {"names": ["age"], "positive": {"dx": "asd"}},
        "training": {"learning_rate": 1e-4},
    }
    one = config.from_mapping(given)
    assert config.from_mapping(tomllib.loads(config.to_toml(one))) == one


def test_differences_name_the_keys() -> None:
    assert config.differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 0}) == ["a.c", "d"]


@pytest.mark.parametrize(
    ("word", "advice"), [("bf-16", "did you mean 'bf16'?"), ("half", "choose from: 32, auto, bf16.")]
)
def test_a_precision_that_is_not_there_is_refused_with_those_that_are(word: str, advice: str) -> None:
    with pytest.raises(UsageError) as refused:
        config.from_mapping(BASE | {"training": {"precision": word}})
    assert str(refused.value) == f"'training.precision' is '{word}'; {advice}"


def test_merging_lays_the_second_over_the_first() -> None:
    assert config.merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}) == {"a": {"b": 1, "c": 3}}


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ({"kinds": {"x": "oridnal"}}, "'targets.kinds.x' is 'oridnal'; did you mean 'ordinal'"),
        (
            {"kinds": {"x": "ordinal"}, "positive": {"x": "high"}},
            "'targets.positive.x' is set, and ordered levels have no",
        ),
        (
            {"names": ["events"], "kinds": {"events": "ordinal"}},
            "'targets.kinds.events' is 'ordinal', and conditions have no",
        ),
    ],
)
def test_a_kind_of_target_that_cannot_be_is_refused(targets: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        config.from_mapping(BASE | {"targets": targets})


@pytest.mark.parametrize(
    "wrong",
    [
        {"models": ["mlp"]},
        {"models": {"names": "mlp"}},
        {"models": {"mlp": 3}},
        {"models": {"mlp": {"dropout": "much"}}},
        {"models": {"mlp": {"hidden": 3}}},
        {"run": {"verbose": True}},
        {"run": {"nprocs": -1}},
        {"run": 3},
        {"targets": {"names": "age"}},
        {"splits": {"validation_fraction": 1.0}},
        {"splits": {"kind": "loo"}},
    ],
)
def test_values_of_another_kind_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        config.from_mapping(BASE | wrong)


def test_paths_among_the_options_of_methods_become_absolute_and_names_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.nii.gz", "chip.bed"):
        (tmp_path / name).touch()
    features = {"timeseries": {"atlas": ["aal", "mine.nii.gz"]}, "snp": {"file": "chip.bed"}}
    explainers = {"occlusion": {"atlas": "mine.nii.gz", "max_participants": 3}}
    made = config.absolute(config.from_mapping(BASE | {"features": features, "explainers": explainers}))
    mine = str(tmp_path / "mine.nii.gz")
    assert made.features.of("timeseries") == {"atlas": ["aal", mine]}
    assert made.features.of("snp") == {"file": str(tmp_path / "chip.bed")}
    assert made.explainers.of("occlusion") == {"atlas": mine, "max_participants": 3}


def test_several_atlases_read_back_equal() -> None:
    one = config.from_mapping(BASE | {"features": {"timeseries": {"atlas": ["aal", "aicha"]}}})
    assert config.from_mapping(tomllib.loads(config.to_toml(one))) == one
