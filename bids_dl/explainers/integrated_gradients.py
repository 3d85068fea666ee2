"""Integrated gradients: the output's path from the training mean to the participant, shared out over the values."""

from __future__ import annotations

import numpy as np
import torch
from captum.attr import IntegratedGradients

from bids_dl import building, training
from bids_dl.errors import UsageError
from bids_dl.records import Array, Attribution, Cohort, FittedModel, Split

GRADIENTS = True


def explain(
    fitted: FittedModel, cohort: Cohort, split: Split, *, n_steps: int = 16, max_participants: int = 32, batch_size: int = 4
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
        An absent input has zeros. Of several classes, the predicted one is explained.

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
    values: dict[str, list[Array]] = {name: [] for name in fitted.inputs}
    given: dict[str, list[Array]] = {name: [] for name in fitted.inputs}
    outputs: list[Array] = [np.zeros(0)]
    at_mean: list[Array] = [np.zeros(0)]
    for start in range(0, len(rows), batch_size):
        inputs = training.inputs_of(fitted, cohort, rows[start : start + batch_size])
        out, mean, chosen = training.chosen_output(fitted, inputs)
        found = method.attribute(inputs, tuple(torch.zeros_like(x) for x in inputs), target=chosen, n_steps=n_steps)
        for name, attribution, x in zip(fitted.inputs, found, inputs, strict=True):
            given[name].append(x.numpy())
            values[name].append(torch.nan_to_num(attribution).detach().numpy().astype(np.float32))
        outputs.append(out)
        at_mean.append(mean)
    ids = cohort.participants["participant_id"].iloc[rows]
    joined, normalised = (
        {
            name: np.concatenate(parts) if parts else np.zeros((0, *cohort.features[name].shape))
            for name, parts in lists.items()
        }
        for lists in (values, given)
    )
    return Attribution(
        joined, tuple(ids), "integratedgradients", np.concatenate(outputs), np.concatenate(at_mean), inputs=normalised
    )  # fmt: skip
