"""A fitted model as a MONAI bundle on disk: metadata, weights, and all that a prediction needs; nothing is pickled."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bids_dl import building, derivatives
from bids_dl.calibration import Calibration
from bids_dl.cohort import FEWEST_TO_COMPARE, fingerprint
from bids_dl.errors import DataError, MissingInputError, damaged
from bids_dl.harmonization import Harmonization, Moved
from bids_dl.normalization import Normalization
from bids_dl.records import Array, Cohort, FittedModel, Split

FORMAT = 1
"""Version of the layout. A later version of bids_dl reads every earlier one; it refuses a newer one by name."""


def save(fitted: FittedModel, folder: Path, about: Mapping[str, Any]) -> Path:
    """Write a fitted model as a MONAI bundle.

    Parameters
    ----------
    fitted
        The model.
    folder
        Its folder; it appears when all is written.
    about
        JSON data that a prediction on new participants needs: ``features`` (how each input was extracted),
        ``confounds``, ``participants`` (hashes of whom it was trained on), ``scores``.
    """
    from safetensors.torch import save_file

    temporary = folder.with_name(f".{folder.name}.tmp")
    derivatives.remove([temporary])
    (temporary / "models").mkdir(parents=True)
    state = {k: v.contiguous().clone() for k, v in fitted.module.state_dict().items()}
    save_file(state, temporary / "models" / "model.safetensors")
    save_file(_learned(fitted), temporary / "models" / "normalization.safetensors")
    derivatives.write_json(temporary / "configs" / "metadata.json", _metadata(fitted, about))
    derivatives.write_json(temporary / "configs" / "inference.json", {"network_def": fitted.definition})
    derivatives.write_text(temporary / "docs" / "README.md", _readme(fitted, folder.name))
    derivatives.remove([folder])
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary.rename(folder)
    return folder


def _learned(fitted: FittedModel) -> dict[str, torch.Tensor]:
    arrays: dict[str, Array | None] = {}
    for name, normal in fitted.normalization.items():
        arrays |= {f"{name}/{key}": value for key, value in vars(normal).items() if key != "harmonization"}
        sites = normal.harmonization
        arrays |= (
            {f"{name}/harmonization/{key}": np.asarray(value) for key, value in vars(sites).items()} if sites else {}
        )
    if fitted.calibration is not None:
        arrays["calibration/nonconformity"] = fitted.calibration.nonconformity
    return {k: torch.from_numpy(np.array(v)) for k, v in arrays.items() if v is not None}


def _metadata(fitted: FittedModel, about: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the bundle with the keys that MONAI asks for, and ours under ``bids_dl``."""
    shapes = {name: list(fitted.normalization[name].mean.shape) for name in fitted.inputs}
    kind = "classification" if fitted.levels else "regression"
    formats = {
        name: {"type": "feature", "format": name, "num_channels": 1, "spatial_shape": shape, "dtype": "float32",
               "value_range": [], "is_patch_data": False, "channel_def": {"0": name}}
        for name, shape in shapes.items()
    }  # fmt: skip
    out: dict[str, Any] = {"type": "logits" if fitted.levels else "quantity", "format": kind, "num_channels": len(fitted.levels) or 1,
           "spatial_shape": [], "dtype": "float32", "value_range": [], "is_patch_data": False,
           "channel_def": {str(n): level for n, level in enumerate(fitted.levels or [fitted.target_name])}}  # fmt: skip
    known = fitted.calibration or Calibration()
    versions = {
        package: metadata.version(package) for package in ("bids_dl", "monai", "torch", "numpy", "nibabel", "nilearn")
    }
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
        "version": "1.0.0", "changelog": {"1.0.0": "written by bids_dl"}, "monai_version": versions["monai"],
        "pytorch_version": versions["torch"], "numpy_version": versions["numpy"],
        "required_packages_version": {p: versions[p] for p in ("bids_dl", "nibabel", "nilearn")},
        "name": f"{kind} of {fitted.target_name}", "task": f"{kind} of {fitted.target_name} from {', '.join(fitted.inputs)}",
        "description": "Trained by bids_dl. Not a medical device.", "authors": "the user of bids_dl",
        "copyright": "the user of bids_dl", "intended_use": "research only",
        "network_data_format": {"inputs": formats, "outputs": {"pred": out}},
        "bids_dl": {
            "format": FORMAT, "inputs": list(fitted.inputs), "target": fitted.target_name, "levels": list(fitted.levels),
            "ranks": list(fitted.ranks), "target_mean": fitted.target_mean, "target_scale": fitted.target_scale, "split": fitted.split.name,
            "temperature": known.temperature, "slope": known.slope, "offset": known.offset,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **about,
        },
    }  # fmt: skip


def _readme(fitted: FittedModel, name: str) -> str:
    return (
        f"# {name}\n\nPredicts `{fitted.target_name}` from {', '.join(fitted.inputs)}. Apply it to any BIDS dataset:\n\n"
        f"    bids_dl DATASET OUTPUT participant --bundle {name}\n\nFor research only.\n"
    )


def about(folder: Path) -> dict[str, Any]:
    """Read what a bundle says of itself.

    Raises
    ------
    MissingInputError, DataError
        If it is no bundle of bids_dl, or damaged, or of a newer version.
    """
    path = folder / "configs" / "metadata.json"
    if not path.is_file():
        raise MissingInputError(
            f"{folder} is no bundle: it has no configs/metadata.json; give a folder of OUTPUT_DIR/group/bundles."
        )
    found = _json(path).get("bids_dl")
    if not found:
        raise DataError(
            f"{folder} is a MONAI bundle that bids_dl did not write; it does not say how its inputs are made."
        )
    if found["format"] > FORMAT:
        raise DataError(
            f"{folder} was written by a newer bids_dl (format {found['format']}, this one reads {FORMAT}); upgrade bids_dl."
        )
    return dict(found)


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as problem:
        raise damaged(str(path), problem) from problem


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as problem:
        raise damaged(str(path), problem) from problem


def load(folder: Path) -> FittedModel:
    """Read a fitted model back, in any process and on any machine.

    Raises
    ------
    MissingInputError, DataError
        As `about` does, or if one of its files is not there or damaged.
    """
    said = about(folder)
    definition = _json(folder / "configs" / "inference.json")["network_def"]
    with torch.device("meta"):
        module = building.instantiate(definition, classify=bool(said["levels"]))
    module.load_state_dict(_tensors(folder / "models" / "model.safetensors"), assign=True)
    learned = _tensors(folder / "models" / "normalization.safetensors")
    normalization = {name: _normalization(learned, name) for name in said["inputs"]}
    nobody = np.array([], np.intp)
    split = Split(nobody, nobody, nobody, said["split"])
    return FittedModel(
        module.eval(), definition, tuple(said["inputs"]), normalization, split, said["target"], tuple(said["levels"]),
        said["target_mean"], said["target_scale"], calibration=_calibration(said, learned),
        ranks=tuple(said.get("ranks", ())),
    )  # fmt: skip


def _calibration(said: Mapping[str, Any], learned: Mapping[str, torch.Tensor]) -> Calibration:
    """Read the calibration back; a bundle of an earlier version has none, or none of quantities."""
    known = learned.get("calibration/nonconformity", torch.zeros(0))
    return Calibration(said.get("temperature", 1.0), known.numpy(), said.get("slope", 1.0), said.get("offset", 0.0))


def _normalization(learned: Mapping[str, torch.Tensor], name: str) -> Normalization:
    sites = _under(learned, f"{name}/harmonization")
    kind = Moved if "axes" in sites else Harmonization
    harmonization = kind(**{**sites, "refuses": bool(sites["refuses"])}) if sites else None
    return Normalization(**_under(learned, name), harmonization=harmonization)


def _under(learned: Mapping[str, torch.Tensor], name: str) -> dict[str, Any]:
    return {key.rpartition("/")[2]: value.numpy() for key, value in learned.items() if key.rpartition("/")[0] == name}


def identity(*parts: str) -> str:
    """Hash who somebody is, so that a bundle can recognise its own participants without naming them."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def trained_on(cohort: Cohort, rows: Sequence[int], inputs: Sequence[str], dataset: str) -> list[str]:
    """List the hashes of participants and of their features."""
    ids = cohort.participants["participant_id"].tolist()
    return sorted({identity(dataset, ids[row]) for row in rows} | prints(cohort, rows, inputs))


def prints(cohort: Cohort, rows: Sequence[int], inputs: Sequence[str]) -> set[str]:
    """Hash the features of participants; a few columns, which many people share, tell of nobody."""
    found: set[str] = set()
    for name in inputs:
        block = cohort.features[name]
        if block.dims != ("column",) or block.values[:1].size >= FEWEST_TO_COMPARE:
            found |= {fingerprint(block.values[row]) for row in rows if np.isfinite(block.values[row]).any()}
    return found
