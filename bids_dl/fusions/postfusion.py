"""Late fusion: what each modality's network has learned is joined before one output; missing modalities are allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from bids_dl import building, calibration, loop, material, stacking, training
from bids_dl.calibration import Calibration
from bids_dl.layers import Fixed
from bids_dl.records import Cohort, FittedModel, Split
from bids_dl.settings import Settings

SCHEDULE = {
    "n_epochs": 60,
    "patience": 8,
    "batch_size": 16,
    "learning_rate": 3e-4,
    "weight_decay": 1e-2,
    "n_members": 1,
}


class Members(Fixed, nn.ModuleList):
    """Frozen members side by side: (participant, sum of widths + modality), embeddings and which modalities there are."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__(members)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Members:  # noqa: ARG002
        """Stay in evaluation mode: they are trained already."""
        super().train(False)
        return self

    def forward(self, *inputs: Tensor) -> Tensor:
        """Represent participants; of an absent modality (all NaN) the embedding means nothing."""
        if self.are_given:
            return inputs[0]
        has = torch.stack([~torch.isnan(x.flatten(1)).all(dim=1) for x in inputs], dim=1)  # (participant, modality)
        parts = [member.embed(torch.nan_to_num(x)) for member, x in zip(self, inputs, strict=True)]  # type: ignore[operator]
        return torch.cat([*parts, has.to(parts[0].dtype)], dim=1)


class PostFusion(nn.Module):
    """Frozen members' embeddings, each through its own layer, averaged over the modalities that a participant has."""

    def __init__(
        self, members: Sequence[nn.Module], modality_dropout: float, units: Sequence[tuple[float, float]] = ()
    ) -> None:
        super().__init__()
        self.members = Members(members)
        heads: list[Any] = [m.head for m in members]
        self.widths = [h.in_features for h in heads]
        self.head = nn.Linear(sum(self.widths) + len(heads), heads[0].out_features, bias=False)
        self.modality_dropout = modality_dropout
        self._start_as_mean(heads, units or [(1.0, 0.0)] * len(heads))

    def _start_as_mean(self, heads: Sequence[Any], units: Sequence[tuple[float, float]]) -> None:
        """Begin with the mean of the members' own outputs, each brought to common units (times, plus)."""
        with torch.no_grad():
            weights = torch.cat([h.weight * times for h, (times, _) in zip(heads, units, strict=True)], dim=1)
            biases = [h.bias * times + plus for h, (times, plus) in zip(heads, units, strict=True)]
            self.head.weight.copy_(torch.cat([weights, torch.stack(biases, dim=1)], dim=1))

    def embed(self, *inputs: Tensor) -> Tensor:
        """Join the embeddings; an absent modality (NaN) counts nothing and the others count more."""
        return self.joined(self.members(*inputs))

    def joined(self, made: Tensor) -> Tensor:
        """Join what the members make of participants, (participant, sum of widths + modality)."""
        *parts, flags = self.apart(made)
        has = flags > 0  # (participant, modality)
        if self.training and self.modality_dropout > 0:
            has = has & ~self._dropped(has)
        share = has.float() / has.float().sum(dim=1, keepdim=True).clamp(min=1)
        shared = [part * share[:, [m]] for m, part in enumerate(parts)]
        return torch.cat([*shared, share], dim=1)  # (participant, sum of widths + modality)

    def apart(self, made: Tensor) -> tuple[Tensor, ...]:
        """Divide what members make of participants: the embedding of each modality, then which modalities there are."""
        return torch.split(made, [*self.widths, len(self.widths)], dim=1)

    def _dropped(self, has: Tensor) -> Tensor:
        """Draw modalities to leave out, never the last one that a participant has."""
        drop = torch.rand(has.shape) < self.modality_dropout
        drop = drop.to(has.device) & has
        return drop & (has & ~drop).any(dim=1, keepdim=True)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return (participant, output)."""
        out: Tensor = self.head(self.embed(*inputs))  # (participant, output)
        return out

    def varying(self, position: int, *inputs: Tensor) -> Callable[[Tensor], Tensor]:
        """Return what gives the outputs for one input changed again and again, (time × participant, …).

        Whoever has it has it whatever it becomes. The other members represent their inputs once.
        """
        parts = list(self.apart(self.members(*inputs)))
        member: Any = self.members[position]

        def run(x: Tensor) -> Tensor:
            many = [part.repeat(len(x) // len(part), 1) for part in parts]
            many[position] = member.embed(torch.nan_to_num(x))
            with self.members.given():
                out: Tensor = self(torch.cat(many, dim=1))
            return out

        return run


def build(members: Sequence[nn.Module], modality_dropout: float = 0.2) -> PostFusion:
    """Rebuild the module from rebuilt members."""
    return PostFusion(members, modality_dropout)


def fuse(
    members: Sequence[FittedModel], cohort: Cohort, split: Split, settings: Settings, *, modality_dropout: float = 0.2
) -> FittedModel:  # fmt: skip
    """Join members that were trained on the same split into one model, and refine the joint output layer [1]_.

    The joint layer starts as the mean of the members' outputs over the modalities that a participant has, and
    is trained with early stopping; the members stay as they are.

    Parameters
    ----------
    members
        One fitted model a modality, of the same target.
    cohort, split
        Rows to train on; a participant with any of the modalities takes part.
    settings
        How the joint layer is trained.
    modality_dropout
        How often a modality is left out at a training step, so that the output does not lean on one.

    Returns
    -------
    FittedModel
        Takes all members' inputs.

    References
    ----------
    .. [1] Yan et al. (2022), IEEE Signal Processing Magazine 39(2). doi:10.1109/MSP.2021.3128348
    """
    definition: Mapping[str, Any] = {
        "_target_": "bids_dl.fusions.postfusion.build", "members": [dict(m.definition) for m in members],
        "modality_dropout": modality_dropout,
    }  # fmt: skip
    module = PostFusion([_copy(m) for m in members], modality_dropout, _units(members, cohort, split))
    inputs = [name for m in members for name in m.inputs]
    given = {name: m.normalization[name] for m in members for name in m.inputs}
    fused = training.refine(module, definition, cohort, split, inputs, given, settings)
    return replace(fused, calibration=_calibration(fused, members, cohort, split, settings.seed))


def _calibration(
    fused: FittedModel, members: Sequence[FittedModel], cohort: Cohort, split: Split, seed: int
) -> Calibration:
    """Learn from validation rows as nobody was fitted on them: of an ensemble, the networks that were say nothing there."""
    module, rows = cast(PostFusion, fused.module), fused.split.validation
    weights = [_of_new(m, training.new_rows(m, cohort, split, seed), rows) for m in members]
    outputs = []
    with torch.no_grad():
        size = loop.n_together(lambda at: training.inputs_of(fused, cohort, rows[at]))
        for at in stacking.batches(np.arange(len(rows)), size):
            *parts, flags = module.apart(module.members(*training.inputs_of(fused, cohort, rows[at])))
            new = [part * weight[at] for part, weight in zip(parts, weights, strict=True)]
            outputs.append(module.head(module.joined(torch.cat([*new, flags], dim=1))).numpy().astype(np.float64))
    y = (cohort.target.values[rows] - fused.target_mean) / fused.target_scale
    return calibration.learn(np.concatenate(outputs), y, len(fused.levels), fused.target_mean, fused.target_scale)


def _of_new(member: FittedModel, new: Sequence[material.Rows], rows: material.Rows) -> Tensor:
    """Weigh the units of an ensemble's networks, (row, unit): those that the row is new to stand for all, others count 0."""
    networks: Any = getattr(member.module, "members", [member.module])
    n_units = member.module.head.in_features // len(networks)  # type: ignore[union-attr, operator]
    known = np.stack([np.isin(rows, some) for some in new], axis=1) * float(len(networks))  # (row, network)
    return torch.from_numpy(known.astype(np.float32)).repeat_interleave(n_units, dim=1)


def _units(members: Sequence[FittedModel], cohort: Cohort, split: Split) -> list[tuple[float, float]]:
    """Find what brings each member's output to common units, as calibrated on rows that it was not fitted on.

    A logit is then worth what it says, and who knows less is less loud; quantities are in the standardisation of all
    participants who have any of the modalities.
    """
    known = [m.calibration or Calibration() for m in members]
    if cohort.target.is_class:
        return [(1 / one.temperature, 0.0) for one in known]
    usable = material.present(cohort, split, [name for m in members for name in m.inputs])
    values = cohort.target.values[np.concatenate([usable.train, usable.validation])]
    mean, scale = float(values.mean()), float(values.std()) or 1.0
    return [
        (one.slope * m.target_scale / scale, (one.offset * m.target_scale + m.target_mean - mean) / scale)
        for one, m in zip(known, members, strict=True)
    ]


def _copy(member: FittedModel) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        module: nn.Module = building.instantiate(dict(member.definition))
    module.load_state_dict(member.module.state_dict())
    return module
