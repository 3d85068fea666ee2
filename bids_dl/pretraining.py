"""A network learns what belongs together from participants without a target, before it learns the target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from bids_dl import stacking

N_EPOCHS, MASKED = 60, 0.3
SEQUENCE = 2
"""Dimensions of a sequence's values, (step, value)."""
Read = Callable[[Any], tuple[Tensor, ...]]


def masked(
    module: Any, rows: Read, n: int, *, batch_size: int, learning_rate: float, seed: int, device: str
) -> list[float]:
    """Train ``embed`` to tell hidden values from the others [1]_, through a decoder that is thrown away.

    Of each participant, values drawn at random are set to the training mean, 0; of a sequence, whole steps. The error
    counts where values were hidden.

    Parameters
    ----------
    module
        A network with ``embed``, (participant, …) to (participant, unit); changed in place.
    rows
        Returns the normalised inputs of some of ``n`` rows, at positions 0 to ``n`` - 1.
    n
        Rows, with a target or without.
    batch_size, learning_rate, seed
        As for the training itself.
    device
        Where the training takes place; the module ends on the CPU.

    Returns
    -------
    list
        Mean squared error of each epoch, in units of the values' variance.

    References
    ----------
    .. [1] Vincent et al. (2010), Journal of Machine Learning Research 11:3371-3408.
    """
    generator = np.random.default_rng(seed)
    shape = rows(np.arange(1))[0].shape[1:]
    decoder = nn.Linear(module.head.in_features, int(np.prod(shape))).to(device)
    module.to(device).train()
    optimizer = torch.optim.AdamW([*module.parameters(), *decoder.parameters()], lr=learning_rate)
    errors = []
    for _ in range(N_EPOCHS):
        total = 0.0
        for at in stacking.batches(generator.permutation(n), batch_size, smallest=2):
            x = rows(at)[0].to(device)
            seen, hidden = _hide(x, generator)
            error = _error(decoder(module.embed(seen)), x, hidden)
            optimizer.zero_grad()
            cast(Callable[[], None], error.backward)()
            optimizer.step()
            total += float(error.detach()) * len(at)
        errors.append(total / n)
    module.to("cpu")
    return errors


def _hide(x: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return inputs with some values set to 0, and which; padding stays what it is."""
    shape = (*x.shape[:2], 1) if x.ndim == SEQUENCE + 1 else x.shape
    drawn = torch.from_numpy(generator.random(shape) < MASKED).to(x.device).expand(x.shape)
    hidden = drawn & ~torch.isnan(x)
    return x.masked_fill(hidden, 0.0), hidden


def _error(found: Tensor, x: Tensor, hidden: Tensor) -> Tensor:
    """Average the squared error over hidden values."""
    weight = hidden.to(found.dtype)
    difference = found.view(x.shape) - torch.nan_to_num(x)
    return (difference.square() * weight).sum() / weight.sum().clamp(min=1)
