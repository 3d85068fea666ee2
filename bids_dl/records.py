"""The nouns that every step hands to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bids_dl.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from bids_dl.calibration import Calibration
    from bids_dl.normalization import Normalization

Array = NDArray[np.floating[Any]]

STEPS = ("time", "window")
"""Dimensions along which participants may have different numbers of values."""

KINDS = {"matrix": "relmat", "stats": "freesurfer", "bed": "plink"}
"""Kinds of scan whose name is not that of their suffix."""


@dataclass(frozen=True)
class Scan:
    """One file of a BIDS dataset that a feature can be extracted from, with what belongs to it.

    ``prepared`` says that it lies in standard space, ready for a feature. ``related`` holds files that belong to it by
    their role: ``bval`` and ``bvec`` of diffusion, ``events`` of BOLD, ``gm``, ``wm``, ``csf`` (probabilities) and
    ``modulated`` (grey matter times the Jacobian) of a prepared T1w, ``to_standard`` (a transform), ``head`` and
    ``composite`` (fMRIPrep's native T1w, and its transform to standard space). ``why`` is a phrase for the report: why
    this source was chosen.
    """

    path: Path
    entities: Mapping[str, str]
    dataset: Path
    prepared: bool = True
    mask: Path | None = None
    confounds: Path | None = None
    related: Mapping[str, Path] = field(default_factory=dict)
    why: str = ""

    @property
    def kind(self) -> str:
        """Which kind of scan it is, as `bids_dl.query.QUERIES` and the features' ``TAKES`` call it."""
        if self.path.name.endswith(".dtseries.nii"):
            return "cifti"
        return KINDS.get(self.entities["suffix"], self.entities["suffix"].lower())

    @property
    def participant_id(self) -> str:
        """The BIDS participant, with its prefix."""
        return f"sub-{self.entities['sub']}"

    @property
    def name(self) -> str:
        """The file as a person would call it in a message."""
        return self.path.name.split(".")[0]


@dataclass(frozen=True)
class Feature:
    """What was measured from one scan: values with named dimensions, and how BIDS calls them."""

    values: Array
    dims: tuple[str, ...]
    suffix: str
    unit: str
    labels: tuple[str, ...] = ()
    entities: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    affine: Array | None = None
    coverage: Array | None = None


@dataclass(frozen=True)
class Block:
    """One feature of every participant: the first axis is the participant, a row of NaN is an absent one."""

    values: Array
    dims: tuple[str, ...]
    labels: tuple[str, ...] = ()
    entities: Mapping[str, str] = field(default_factory=dict)
    affine: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one participant's values."""
        return tuple(self.values.shape[1:])

    @property
    def is_sequence(self) -> bool:
        """Whether the first axis is time or windows: steps of NaN pad those who have fewer."""
        return self.dims[:1] in {(step,) for step in STEPS}

    @property
    def is_directed(self) -> bool:
        """Whether it is a connectome with an edge in each direction: no number of edges tells."""
        return "directed" in self.entities

    @property
    def has_one_scale(self) -> bool:
        """Whether the values have one unit and, but for real differences, one sampling variance: correlations do."""
        return self.dims[-1:] == ("edge",) and "correlation" in self.entities.get("stat", "").lower()


@dataclass(frozen=True)
class Target:
    """What is predicted: a column, with its levels if it is a class, or its ranks if its levels have an order.

    An ordinal target is a quantity, the place 0, 1, … of each level among ``ranks``, low to high; networks also learn a
    threshold between each two (`bids_dl.ordinal`).
    """

    name: str
    values: Array
    levels: tuple[str, ...] = ()
    ranks: tuple[str, ...] = ()

    @property
    def is_class(self) -> bool:
        """Whether the target is a class rather than a quantity."""
        return bool(self.levels)

    @property
    def kind(self) -> str:
        """What it is, as ``targets.kinds`` calls it."""
        return "classification" if self.levels else "ordinal" if self.ranks else "regression"

    @property
    def n_outputs(self) -> int:
        """Outputs a model needs: one logit for two classes, one a class beyond, one for a quantity or a rank."""
        return len(self.levels) if len(self.levels) > 2 else 1


@dataclass(frozen=True)
class Cohort:
    """The participants of one analysis, row by row, with their features (memory-mapped) and one target."""

    participants: pd.DataFrame
    features: Mapping[str, Block]
    target: Target

    def __post_init__(self) -> None:
        n = len(self.participants)
        for name, block in self.features.items():
            if len(block.values) != n:
                raise DataError(
                    f"feature '{name}' has {len(block.values)} rows for {n} participants; rebuild the cohort."
                )


@dataclass(frozen=True)
class Split:
    """Row numbers of the training, validation and test participants of one fold.

    ``groups`` (families) keep to one part; ``sites``, where they are given, to one side: training or test.
    """

    train: NDArray[np.intp]
    validation: NDArray[np.intp]
    test: NDArray[np.intp]
    name: str
    participant_ids: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()

    @property
    def pool(self) -> NDArray[np.intp]:
        """Everybody on the training side, validation included, in order."""
        return np.sort(np.concatenate([self.train, self.validation]))

    def tested(self, most: int) -> NDArray[np.intp]:
        """Choose at most so many test rows, evenly spread: the first ones may be of one site or class."""
        n = len(self.test)
        return self.test[np.linspace(0, n - 1, min(most, n)).astype(np.intp)]

    def __post_init__(self) -> None:
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        sides = {"train": np.concatenate([self.train, self.validation]), "test": self.test}
        _refuse_shared("participant", self.participant_ids, parts, self.name)
        _refuse_shared("group", self.groups, parts, self.name)
        _refuse_shared("site", self.sites, sides, self.name)


def _refuse_shared(what: str, ids: tuple[str, ...], parts: Mapping[str, NDArray[np.intp]], name: str) -> None:
    """Refuse a split in which two parts share a participant or a group."""
    found: dict[Any, str] = {}
    for part, rows in parts.items():
        for one in {ids[row] if ids else int(row) for row in rows} if (ids or what == "participant") else ():
            if one in found:
                raise DataError(
                    f"split {name}: {what} '{one}' is in {found[one]} and in {part}; "
                    f"keep every {what} on one side of a split."
                )
            found[one] = part


@dataclass(frozen=True)
class FittedModel:
    """A trained module with all that a prediction needs; a fusion of models is one too.

    ``definition`` rebuilds the module: a mapping with ``_target_``, as MONAI bundles write it.
    The module takes the inputs in their order, normalised, (participant, …) each, and returns (participant, output).
    ``calibration`` is what training rows that the module was not fitted on taught about its outputs.
    """

    module: nn.Module
    definition: Mapping[str, Any]
    inputs: tuple[str, ...]
    normalization: Mapping[str, Normalization]
    split: Split
    target_name: str
    levels: tuple[str, ...] = ()
    target_mean: float = 0.0
    target_scale: float = 1.0
    history: tuple[Mapping[str, float], ...] = ()
    calibration: Calibration | None = None
    ranks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attribution:
    """How much each value of the inputs moved the output, for some participants.

    ``values`` has for each input (participant, …) in the input's shape, in units of ``outputs`` (participant,): the
    logit of a class, or the standardised quantity. ``at_mean`` (participant,) is the same output of the training mean,
    with what is absent of the participant absent. ``additive`` promises that the values of a participant sum to its
    output, less ``at_mean``. ``slopes`` has for each input (output, …), of every output of the model, how much it rises with a value: those
    of the attributions on the normalised values that they are of.
    ``shares`` says that values are parts of 1 instead: where a model looked; an axis that it does not choose along, such
    as the regions of a time point, has the length 1.
    """

    values: Mapping[str, Array]
    participant_ids: tuple[str, ...]
    method: str
    outputs: Array
    at_mean: Array
    additive: bool = True
    shares: bool = False
    slopes: Mapping[str, Array] = field(default_factory=dict)
