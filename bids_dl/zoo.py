"""The zoos: list a folder's methods and read their options without importing them, so that ``--help`` is instant."""

from __future__ import annotations

import ast
import difflib
import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bids_dl.errors import UsageError

ENTRY = {
    "preparations": "prepare",
    "features": "extract",
    "harmonizers": "fit",
    "models": "build",
    "fusions": "fuse",
    "explainers": "explain",
}
"""Each zoo's folder and the one function that every file in it defines."""

SEVERAL = (("features", "atlas"),)
"""Options that may be a list: the method knows one value, and is called with each in turn."""


@cache
def names(zoo: str) -> tuple[str, ...]:
    """List the methods of a zoo: one file is one method."""
    folder = Path(__file__).parent / zoo
    return tuple(sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")))


def nearest(word: str, valid: Iterable[str]) -> str:
    """Phrase the closest valid words as a hint; the full list where nothing is close."""
    valid = sorted(map(str, valid))
    listed = ", ".join(valid[:12]) + (", …" if len(valid) > 12 else "")
    return closest(word, valid) or f"choose from: {listed or 'nothing available'}."


def closest(word: str, valid: Iterable[str]) -> str:
    """Phrase the closest valid word as a question; empty where nothing is close."""
    close = difflib.get_close_matches(word, sorted(map(str, valid)), n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else ""


def check(zoo: str, name: str) -> None:
    """Refuse a method that does not exist, naming the nearest one.

    Raises
    ------
    UsageError
        If no file of the zoo has this name.
    """
    if name not in names(zoo):
        raise UsageError(f"'{name}' is not one of the {zoo}; {nearest(name, names(zoo))}")


def load(zoo: str, name: str) -> Callable[..., Any]:
    """Import one method and return its function."""
    check(zoo, name)
    method: Callable[..., Any] = getattr(importlib.import_module(f"bids_dl.{zoo}.{name}"), ENTRY[zoo])
    return method


@cache
def _statements(zoo: str, name: str) -> list[ast.stmt]:
    return ast.parse((Path(__file__).parent / zoo / f"{name}.py").read_text(encoding="utf-8")).body


@cache
def _definition(zoo: str, name: str) -> ast.FunctionDef:
    check(zoo, name)
    return next(n for n in _statements(zoo, name) if isinstance(n, ast.FunctionDef) and n.name == ENTRY[zoo])


def options(zoo: str, name: str) -> dict[str, Any]:
    """Read a method's options and their defaults: the keyword-only arguments of its function."""
    arguments = _definition(zoo, name).args
    return {
        argument.arg: ast.literal_eval(default)
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if default is not None
    }


def takes(zoo: str, name: str, argument: str) -> bool:
    """Tell whether a method is told something that is no option: one of its function's positional arguments."""
    return argument in {one.arg for one in _definition(zoo, name).args.args}


def constant(zoo: str, name: str, key: str) -> Any:
    """Read a constant of a method's file, such as the kinds of input it suits; None if there is none."""
    found = [n for n in _statements(zoo, name) if isinstance(n, ast.Assign)]
    values = [n.value for n in found if getattr(n.targets[0], "id", "") == key]
    return ast.literal_eval(values[0]) if values else None


def attends(model: str, given: Mapping[str, Any]) -> bool:
    """Tell whether a model weighs places: its file says so by ``ATTENTION``, or names there the option that switches it on."""
    said = constant("models", model, "ATTENTION")
    return bool((options("models", model) | dict(given))[said] if isinstance(said, str) else said)


def has_epochs(model: str) -> bool:
    """Tell whether a model is trained epoch by epoch, and stopped by validation rows: else it solves for its weights."""
    return "n_epochs" in (constant("models", model, "SCHEDULE") or {})


def declaring(zoo: str, key: str) -> tuple[str, ...]:
    """List the methods whose file has a constant of this name, such as the models that can draw participants."""
    return tuple(name for name in names(zoo) if constant(zoo, name, key) is not None)


def summary(zoo: str, name: str) -> str:
    """Read the first line of a method's docstring."""
    return (ast.get_docstring(_definition(zoo, name)) or "").split("\n")[0]


def references(zoo: str, name: str) -> dict[str, str]:
    """Read the papers that a method's summary marks, such as ``[1]_``, by their numbers, from the list that ends its docstring."""
    listed = (ast.get_docstring(_definition(zoo, name)) or "").partition("\nReferences\n")[2]
    papers = dict(re.findall(r"^\.\. \[(\d+)\] (.+)$", listed, flags=re.MULTILINE))
    return {mark: papers[mark] for mark in re.findall(r"\[(\d+)\]_", summary(zoo, name))}


def check_options(zoo: str, name: str, given: Mapping[str, Any]) -> None:
    """Refuse options the method does not have, or of another type than its default.

    Raises
    ------
    UsageError
        Naming the option and the nearest valid one, or the type expected.
    """
    known = options(zoo, name)
    for key, value in given.items():
        if key not in known:
            raise UsageError(f"{zoo}.{name} has no option '{key}'; {nearest(key, known)}")
        values = several(value) if (zoo, key) in SEVERAL else (value,)
        if not values or not all(_fits(one, known[key]) for one in values):
            raise UsageError(f"{zoo}.{name}.{key} is {value!r}; expected a value like {known[key]!r}.")


def several(value: Any) -> tuple[Any, ...]:
    """List the values of an option that may be one value or a list."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _fits(value: Any, default: Any) -> bool:
    """Tell whether a value has the kind of its default; None as a default leaves the kind open."""
    if default is None or value is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, (int, float)):
        return isinstance(value, (int, float)) and (isinstance(default, float) or float(value).is_integer())
    if isinstance(default, (list, tuple)):
        return isinstance(value, (list, tuple))
    return isinstance(value, type(default))
