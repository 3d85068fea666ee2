"""Attention: where a network looked, by the weights that it gave to places, slices or time points itself."""

from __future__ import annotations

import numpy as np
import torch

from bids_dl import building, training
from bids_dl.errors import UsageError
from bids_dl.records import Array, Attribution, Cohort, FittedModel, Split

ATTENTION = True


def explain(
    fitted: FittedModel, cohort: Cohort, split: Split, *, max_participants: int = 200, batch_size: int = 4
) -> Attribution:  # fmt: skip
    """Read the weights by which a network averages what it sees [1]_; of an ensemble, the members' mean.

    They tell where it looked, not what it made of it: they have no sign, and a place may be looked at whatever the output.

    Parameters
    ----------
    fitted
        A model whose module has ``attention``: ``attention_cnn3d`` (places), ``cnn2d`` (slices), ``attention_rnn`` and
        ``learned_connectivity`` (time points).
    cohort
        Its features.
    split
        The test participants are explained.
    max_participants
        At most this many test participants, evenly spread.
    batch_size
        Participants at a time.

    Returns
    -------
    Attribution
        ``shares``, which sum to 1 for each participant, in the shape of the input but for the axes that a model does not
        choose along: these have the length 1. Steps that pad a sequence have 0.

    Raises
    ------
    UsageError
        If the model weighs no places.

    References
    ----------
    .. [1] Ilse, Tomczak and Welling (2018), ICML. arXiv:1802.04712
    """
    if not building.attends(fitted.definition):
        raise UsageError("the model weighs no places; explain it by integrated gradients or by occlusion.")
    members = list(getattr(fitted.module, "members", [fitted.module]))
    rows = split.tested(max_participants)
    ids = tuple(cohort.participants["participant_id"].iloc[rows])
    outputs: list[Array] = [np.zeros(0)]
    at_mean: list[Array] = [np.zeros(0)]
    maps = [] if len(rows) else [np.zeros((0, *cohort.features[fitted.inputs[0]].shape), np.float32)]
    for start in range(0, len(rows), batch_size):
        inputs = training.inputs_of(fitted, cohort, rows[start : start + batch_size])
        out, mean, _ = training.chosen_output(fitted, inputs)
        with torch.no_grad():
            maps.append(torch.stack([m.attention(*inputs) for m in members]).mean(dim=0).numpy())
        outputs.append(out)
        at_mean.append(mean)
    return Attribution(
        {fitted.inputs[0]: np.concatenate(maps)}, ids, "attention", np.concatenate(outputs), np.concatenate(at_mean),
        shares=True,
    )  # fmt: skip
