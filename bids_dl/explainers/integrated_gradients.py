"""Integrated gradients: the output's path from the training mean to the participant, shared out over the values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from captum.attr import IntegratedGradients

from bids_dl import building, training
from bids_dl.errors import UsageError
from bids_dl.records import Array, Attribution, Cohort, FittedModel, Split

GRADIENTS = True
ROUNDING = 1e-9
"""Part of the squares of a value that its variance must exceed: less is no variation, but how numbers are rounded."""


def explain(
    fitted: FittedModel, cohort: Cohort, split: Split, *, n_steps: int = 16, max_participants: int = 32, batch_size: int = 2
) -> Attribution:  # fmt: skip
    """Integrate the output's gradient along the straight line from the training mean [1]_.

    Parameters
    ----------
    fitted
        Any fitted model, fused or not.
    cohort
        Its features.
    split
        The test participants are explained.
    n_steps
        Points on the line (Gauss-Legendre).
    max_participants
        At most this many test participants, evenly spread.
    batch_size
        Participants at a time.

    Returns
    -------
    Attribution
        In the shape of each input; a participant's values sum to its output less that of the training mean, but for what
        an output jumps by: graphs of the strongest edges (``gcn``, ``gat``) gain and lose edges along the line.
        An absent input has zeros. Of several classes, the predicted one is explained; their slopes need the attributions of
        all, which takes as many times as long.

    Raises
    ------
    UsageError
        If no gradient passes the model, as of trees.

    References
    ----------
    .. [1] Sundararajan, Taly and Yan (2017), ICML. arXiv:1703.01365
    """
    if blind := building.without_gradients(fitted.definition):
        raise UsageError(f"no gradient passes the model '{blind[0]}'; explain it by occlusion.")
    rows = split.tested(max_participants)
    method = IntegratedGradients(fitted.module)
    head: Any = fitted.module.head
    blocks = {name: cohort.features[name] for name in fitted.inputs}
    values: dict[str, list[Array]] = {name: [np.zeros((0, *block.shape), np.float32)] for name, block in blocks.items()}
    slopes = {n: Slopes(block.shape, head.out_features, steps=block.is_sequence) for n, block in blocks.items()}
    outputs: list[Array] = [np.zeros(0)]
    at_mean: list[Array] = [np.zeros(0)]
    for start in range(0, len(rows), batch_size):
        inputs = training.inputs_of(fitted, cohort, rows[start : start + batch_size])
        out, mean, chosen = training.chosen_output(fitted, inputs)
        zeros = tuple(torch.zeros_like(x) for x in inputs)
        explained = list(range(head.out_features)) if len(rows) > 1 else chosen.tolist()  # one alone has no slope
        found = [method.attribute(inputs, zeros, target=k, n_steps=n_steps) for k in explained]
        for name, x, *each in zip(fitted.inputs, inputs, *found, strict=True):
            every = torch.nan_to_num(torch.stack(each)).detach().numpy()  # (output, participant, …)
            own = [explained.index(k) for k in chosen.tolist()]
            values[name].append(every[own, np.arange(len(own))].astype(np.float32))
            if len(rows) > 1:
                slopes[name].add(x.numpy(), every)
        outputs.append(out)
        at_mean.append(mean)
    ids = cohort.participants["participant_id"].iloc[rows]
    return Attribution(
        {name: np.concatenate(parts) for name, parts in values.items()}, tuple(ids), "integratedgradients",
        np.concatenate(outputs), np.concatenate(at_mean), slopes={name: one.found for name, one in slopes.items()},
    )  # fmt: skip


class Slopes:
    """Slopes of attributions on the values that they are of, by least squares over participants who come some at a time.

    A linear model has its weights. With ``steps`` the first axis of ``shape`` is time or windows, and all steps count alike.
    """

    def __init__(self, shape: Sequence[int], n_outputs: int, *, steps: bool = False) -> None:
        self.steps = steps
        shape = tuple(shape[1:] if steps else shape)
        self.n, self.x, self.xx = (np.zeros(shape) for _ in range(3))
        self.y, self.xy = (np.zeros((n_outputs, *shape)) for _ in range(2))

    def add(self, values: Array, attributions: Array) -> None:
        """Add participants' values (participant, …), NaN for none, and attributions (output, participant, …)."""
        if self.steps:
            values = values.reshape(-1, *values.shape[2:])
            attributions = attributions.reshape(len(attributions), -1, *attributions.shape[3:])
        known = np.isfinite(values)
        x, y = np.where(known, values, 0).astype(np.float64), np.where(known, attributions, 0)
        self.n += known.sum(axis=0)
        self.x += x.sum(axis=0)
        self.xx += (x**2).sum(axis=0)
        self.y += y.sum(axis=1)
        self.xy += (x * y).sum(axis=1)

    @property
    def found(self) -> Array:
        """The slopes, (output, …); 0 for what does not vary."""
        mean = self.x / self.n.clip(1)
        squares = self.xx - mean * self.x
        varies = squares > ROUNDING * self.xx
        return np.asarray((self.xy - mean * self.y) / np.where(varies, squares, np.inf))
