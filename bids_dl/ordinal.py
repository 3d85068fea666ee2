"""Levels with an order, for networks: one score, and a threshold between each two neighbouring levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bids_dl.layers import Network
from bids_dl.records import Array


def start(counts: Array) -> Tensor:
    """Return the biases that alone give the levels' frequencies, (rank - 1,), from how many have each level (rank,)."""
    n = counts.sum()
    above = np.clip((n - counts.cumsum()[:-1]) / n, 1 / (2 * n), 1 - 1 / (2 * n))
    return torch.tensor(np.log(above / (1 - above)), dtype=torch.float32)


def beyond(score: Tensor, biases: Tensor) -> Tensor:
    """Return the logits of lying beyond each threshold, (…, rank - 1), from scores (…,).

    Biases fall from threshold to threshold at the minimum of the loss [1]_; sorted, they do so on the way there too, and no
    probability of a higher level is above that of a lower one.
    """
    return score[..., None] + biases.sort(descending=True).values


def coral(score: Tensor, place: Tensor, biases: Tensor) -> Tensor:
    """Return the consistent rank logits loss [1]_, averaged over participants.

    Parameters
    ----------
    score
        (participant,): the network's only output.
    place
        (participant,): 0 for the lowest level.
    biases
        (rank - 1,), which all participants share.

    References
    ----------
    .. [1] Cao, Mirjalili and Raschka (2020), Pattern Recognition Letters 140. doi:10.1016/j.patrec.2020.11.008
    """
    is_beyond = place[:, None] > torch.arange(len(biases), device=place.device)  # (participant, rank - 1)
    logits = beyond(score, biases)
    total = nn.functional.binary_cross_entropy_with_logits(logits, is_beyond.to(logits.dtype), reduction="none")
    return total.sum(dim=1).mean()


def expected(score: Tensor, biases: Tensor) -> Tensor:
    """Return the expected place, (…,), between 0 and the highest: the sum of the probabilities of lying beyond each."""
    return torch.sigmoid(beyond(score, biases)).sum(dim=-1)


class Ordered(Network):
    """Networks of one score each, with their own thresholds: its output is their mean expected place, standardised.

    ``biases`` is (member, rank - 1); ``unit`` (2,) the mean and the deviation of the training rows' places. The embedding
    is each member's expected place, so that the head only averages.
    """

    biases: Tensor
    unit: Tensor

    def __init__(self, members: Sequence[nn.Module], n_ranks: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("biases", torch.zeros(len(members), n_ranks - 1))
        self.register_buffer("unit", torch.tensor([0.0, 1.0]))
        self.head = nn.Linear(len(members), 1)
        with torch.no_grad():
            self.head.weight.fill_(1 / len(members))
            self.head.bias.zero_()

    def embed(self, x: Tensor) -> Tensor:
        """Return each member's expected place, standardised, (participant, member)."""
        places = [expected(m(x)[:, 0], b) for m, b in zip(self.members, self.biases, strict=True)]
        return (torch.stack(places, dim=1) - self.unit[0]) / self.unit[1]


def let_learn(network: Any, counts: Array) -> None:
    """Give a network biases that are trained with it."""
    network.biases = nn.Parameter(start(counts))


def taken(network: Any) -> Tensor:
    """Take the biases out of a trained network, which is as it was built again."""
    found: Tensor = network.biases.detach().cpu().clone()
    del network.biases
    return found
