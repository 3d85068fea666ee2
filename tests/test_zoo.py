"""A zoo is its folder; nothing is registered, nothing is imported to list it."""

from __future__ import annotations

import inspect

import pytest

from bids_dl import zoo
from bids_dl.errors import UsageError

EVERY = [(folder, name) for folder in zoo.ENTRY for name in zoo.names(folder)]


@pytest.mark.parametrize(("folder", "name"), EVERY)
def test_every_file_defines_its_function_and_says_what_it_does(folder: str, name: str) -> None:
    function = zoo.load(folder, name)
    assert inspect.getdoc(function)
    assert zoo.summary(folder, name).endswith((".", "]_."))


@pytest.mark.parametrize(("folder", "name"), EVERY)
def test_options_read_from_the_text_equal_the_signature(folder: str, name: str) -> None:
    signature = inspect.signature(zoo.load(folder, name))
    real = {k: p.default for k, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert zoo.options(folder, name) == real


@pytest.mark.parametrize(("folder", "name"), EVERY)
def test_every_option_stands_in_the_docstring(folder: str, name: str) -> None:
    doc = inspect.getdoc(zoo.load(folder, name)) or ""
    for option in zoo.options(folder, name):
        assert option in doc, f"{folder}.{name}: {option} is not documented"


def test_a_misspelt_method_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'linear'"):
        zoo.load("models", "liner")


def test_nearest_lists_the_choice_where_nothing_is_close() -> None:
    assert zoo.nearest("zzz", ["alpha", "beta"]) == "choose from: alpha, beta."


def test_constants_are_read_without_importing() -> None:
    assert zoo.constant("models", "cnn3d", "SUITS") == ("volume", "maps")
    assert zoo.constant("models", "cnn3d", "ABSENT") is None


def test_an_atlas_may_be_one_or_several_and_other_options_may_not() -> None:
    zoo.check_options("features", "timeseries", {"atlas": "aal"})
    zoo.check_options("features", "timeseries", {"atlas": ["aal", "aicha"]})
    for wrong in ({"atlas": []}, {"atlas": ["aal", 3]}, {"confounds": ["simple", "motion"]}):
        with pytest.raises(UsageError, match="expected a value like"):
            zoo.check_options("features", "timeseries", wrong)
    with pytest.raises(UsageError, match="occlusion.atlas"):
        zoo.check_options("explainers", "occlusion", {"atlas": ["aal", "aicha"]})
