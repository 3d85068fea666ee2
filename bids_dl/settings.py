"""How a network is trained: the user's wishes laid over the model's own schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bids_dl import building
from bids_dl import config as configuration

SMALLEST_BATCH, STEPS_AN_EPOCH = 4, 10
"""Few participants are cut into batches smaller than asked, so that an epoch still has some ten steps."""


@dataclass(frozen=True)
class Settings:
    """How a network is trained; what the user leaves open comes from the model's own ``SCHEDULE``."""

    n_epochs: int = 80
    patience: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    n_members: int = 1
    clip_norm: float = 0.0
    augment: bool = False
    precision: str = "auto"
    pretrain: str = "none"
    synthetic: str = "none"
    n_synthetic: float = 1.0
    synthetic_options: Mapping[str, Any] = field(default_factory=dict)
    class_weights: bool = True
    remove_confounds: bool = False
    start_from: str = ""
    frozen: tuple[str, ...] = ()
    harmonizer: str = "none"
    harmonizer_options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    device: str = "auto"
    checkpoint: Path | None = field(default=None, compare=False)

    @property
    def needs_confounds(self) -> bool:
        """Whether confounds or sites steer the normalisation."""
        return self.remove_confounds or self.harmonizer != "none"

    def batch_of(self, n_rows: int) -> int:
        """Take smaller batches than asked for where participants are few."""
        return min(self.batch_size, max(SMALLEST_BATCH, n_rows // STEPS_AN_EPOCH))

    def seed_of(self, member: int) -> int:
        """Seed a member by itself, so that none depends on how long the others trained."""
        return self.seed + 1000 * member


def settings_for(
    definition: Mapping[str, Any], config: configuration.Config, *, checkpoint: Path | None = None
) -> Settings:
    """Lay the user's wishes over the model's schedule."""
    wishes = {
        key: value
        for key, value in vars(config.training).items()
        if key != "class_weights" and value != configuration.Training.__dataclass_fields__[key].default
    }
    if "start_from" in wishes and building.origin(Path(wishes["start_from"])) != definition["_target_"]:
        wishes |= {"start_from": "", "frozen": ()}
    if "augment" in wishes:
        wishes["augment"] = wishes["augment"] == "on"
    schedule = getattr(building.file_of(definition), "SCHEDULE", {})
    return replace(
        Settings(), **{**schedule, **wishes}, class_weights=config.training.class_weights,
        remove_confounds=config.normalization.remove_confounds, harmonizer=config.harmonizer,
        harmonizer_options=config.harmonizers.of(config.harmonizer),
        synthetic_options=config.models.of(config.training.synthetic), seed=config.random_seed, device=config.run.device,
        checkpoint=checkpoint,
    )  # fmt: skip
