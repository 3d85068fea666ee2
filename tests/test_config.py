"""The configuration is one frozen thing that reproduces itself."""

from __future__ import annotations

import tomllib
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


def test_merging_lays_the_second_over_the_first() -> None:
    assert config.merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}) == {"a": {"b": 1, "c": 3}}


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
