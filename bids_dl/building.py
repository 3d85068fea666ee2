"""What a definition describes, built: with weights of its own, without any, or with those of a bundle."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from bids_dl import normalization as norm
from bids_dl import zoo
from bids_dl.errors import MissingInputError, UsageError

SAFE_TARGETS = re.compile(r"bids_dl\.((models|fusions)\.\w+\.build|training\.(Affine|Ensemble)|ordinal\.Ordered)")
"""What a bundle may build: a bundle is data, not a way to run code."""


def file_of(definition: Mapping[str, Any]) -> ModuleType:
    """Import the file of the model that a definition names."""
    return importlib.import_module(str(definition["_target_"]).rpartition(".")[0])


def instantiate(definition: Any, **overrides: Any) -> Any:
    """Build what a definition describes; definitions may hold definitions.

    Raises
    ------
    UsageError
        If it names something outside of this package: a bundle is data, not a way to run code.
    """
    if isinstance(definition, list):
        return [instantiate(d) for d in definition]
    if not isinstance(definition, Mapping) or "_target_" not in definition:
        return definition
    name = str(definition["_target_"]).rpartition(".")[2]
    if not SAFE_TARGETS.fullmatch(str(definition["_target_"])):
        raise UsageError(
            f"the definition names '{definition['_target_']}', which is not part of bids_dl; this bundle is not safe."
        )
    function = getattr(file_of(definition), name)
    arguments = {k: instantiate(v) for k, v in definition.items() if k != "_target_"}
    known = inspect.signature(function).parameters
    return function(**arguments, **{k: v for k, v in overrides.items() if k in known})


def without_weights(definition: Mapping[str, Any], *, is_class: bool) -> Any:
    """Build a model without drawing its weights: to look at it, or because they are about to be replaced."""
    with torch.device("meta"):
        return instantiate(definition, classify=is_class)


def adopted(definition: Mapping[str, Any], normalizations: Sequence[norm.Normalization], *, is_class: bool) -> Any:
    """Build a model that knows the normalisation of its inputs, where it asks for it."""
    module = instantiate(definition, classify=is_class)
    adopt(module, normalizations)
    return module


def adopt(module: Any, normalizations: Sequence[norm.Normalization]) -> None:
    """Tell a model the normalisation of its inputs, where it asks for it."""
    if hasattr(module, "adopt"):
        module.adopt(*normalizations)


def without_gradients(definition: Any) -> tuple[str, ...]:
    """Name the models of a definition, members included, whose file says that no gradient reaches their inputs."""
    if isinstance(definition, list):
        return tuple(name for one in definition for name in without_gradients(one))
    if not isinstance(definition, Mapping):
        return ()
    module = str(definition.get("_target_", "")).rpartition(".")[0]
    blind = module and not getattr(importlib.import_module(module), "GRADIENTS", True)
    inside = (name for one in definition.values() for name in without_gradients(one))
    return (*([module.rpartition(".")[2]] if blind else ()), *inside)


def attends(definition: Mapping[str, Any]) -> bool:
    """Tell whether a model weighs places; an ensemble's members are alike, a fusion weighs none itself."""
    module, _, name = str(definition["_target_"]).rpartition(".")
    if name in ("Ensemble", "Ordered"):
        return attends(definition["members"][0])
    folder, _, model = module.rpartition(".")
    return folder == "bids_dl.models" and zoo.attends(model, definition)


def origin(folder: Path) -> str:
    """Read which model a bundle holds; an ensemble holds several of one.

    Raises
    ------
    MissingInputError
        If the folder is no bundle.
    """
    path = folder / "configs" / "inference.json"
    if not path.is_file():
        raise MissingInputError(f"training.start_from: {folder} is no bundle, as it has no configs/inference.json.")
    found: Any = json.loads(path.read_text(encoding="utf-8"))["network_def"]
    return str((found["members"][0] if "members" in found else found)["_target_"])


def began(definition: Any, folder: Path) -> bool:
    """Tell whether a definition, or one of its members, names the model that a bundle holds, and so began with its weights."""
    if isinstance(definition, list):
        return any(began(one, folder) for one in definition)
    if not isinstance(definition, Mapping):
        return False
    return definition.get("_target_") == origin(folder) or any(began(one, folder) for one in definition.values())


def start(module: nn.Module, folder: Path, frozen: Sequence[str], number: int) -> None:
    """Begin with the weights of a bundle's member, but for a head of another size, and freeze what is to keep them.

    Raises
    ------
    UsageError
        If anything but the head does not fit, or a part to freeze does not exist, is a head that begins anew, or leaves
        nothing to learn.
    """
    from safetensors.torch import load_file

    given = load_file(folder / "models" / "model.safetensors")
    n_members = len({key.split(".")[1] for key in given if key.startswith("members.")})
    prefix = f"members.{number % n_members}." if n_members else ""
    own = module.state_dict()
    fitting = {k: given[prefix + k] for k in own if prefix + k in given and given[prefix + k].shape == own[k].shape}
    lacking = [key for key in own if key not in fitting and not key.startswith("head.")]
    if lacking:
        raise UsageError(
            f"training.start_from: '{lacking[0]}' of {folder.name} does not fit; it was trained on other features or with "
            "other options."
        )
    module.load_state_dict({**own, **fitting})
    parts = [name for name, _ in module.named_children()]
    for name in frozen:
        if name not in parts:
            raise UsageError(f"training.frozen: the model has no part '{name}'; {zoo.nearest(name, parts)}")
        if name == "head" and not {k for k in own if k.startswith("head.")} <= fitting.keys():
            raise UsageError(
                f"training.frozen: the head of {folder.name} has another size, so that this one begins anew and must learn; "
                "do not freeze it."
            )
        module.get_submodule(name).requires_grad_(False)
    if not any(p.requires_grad for p in module.parameters()):
        raise UsageError(f"training.frozen: nothing is left to learn; leave out one of {', '.join(frozen)}.")
