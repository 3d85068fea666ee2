"""Multilayer perceptron on a vector of features, such as the edges of a connectome."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from bids_dl.errors import UsageError
from bids_dl.layers import Network

SUITS = ("edge", "column")
BY_DEFAULT = True
SCHEDULE = {
    "n_epochs": 80,
    "patience": 10,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "weight_decay": 1e-2,
    "n_members": 5,
}


START, RATE = 1e-5, 0.1
"""First strength of the L1 penalty, in units of a weight a step, and how fast its logarithm follows what is missing."""

PRETRAINING_BATCH, PRETRAINING_RATE = 32, 1e-3


class MLP(Network):
    """Layers of units with dropout; ``first`` is the only layer that sees the input, and it is linear.

    Training rows fewer than values span all that ``first`` can learn, unless single weights are driven to 0:
    ``on_values`` says so to the training. ``is_plain`` says that the loss of its output is all that trains it.
    """

    strength: Tensor

    def __init__(
        self, n_values: int, n_outputs: int, hidden: Sequence[int], dropout: float, *, sparsity: float = 0.0,
        pretrain_epochs: int = 0, noise: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = list(hidden)
        self.input_dropout = nn.Dropout(dropout)
        self.first = nn.Linear(n_values, widths[0])
        layers: list[nn.Module] = [nn.ReLU()]
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Dropout(dropout), nn.Linear(before, after), nn.ReLU()]
        self.rest = nn.Sequential(*layers, nn.Dropout(dropout))
        self.head = nn.Linear(widths[-1], n_outputs)
        self.sparsity, self.pretrain_epochs, self.noise = sparsity, pretrain_epochs, noise
        self.on_values, self.is_stepping = sparsity > 0, False
        self.is_plain = not sparsity and not pretrain_epochs
        if sparsity > 0:
            self.register_buffer("strength", torch.full((len(widths),), START))

    @property
    def hidden_layers(self) -> list[nn.Linear]:
        """Every layer but the head, from the input on."""
        return [self.first, *(layer for layer in self.rest if isinstance(layer, nn.Linear))]

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant by the last hidden layer."""
        h: Tensor = self.rest(self.first(self.input_dropout(x.flatten(1))))  # (participant, hidden)
        return h

    def begin(self, rows: Callable[..., tuple[Tensor, ...]], n: int) -> None:
        """Start each hidden layer as the encoder of an autoencoder of what the layer before it gives."""
        if not self.pretrain_epochs:
            return
        h = rows(np.arange(n))[0].flatten(1)
        for layer in self.hidden_layers:
            pretrain(layer, h, n_epochs=self.pretrain_epochs, noise=self.noise)
            with torch.no_grad():
                h = torch.relu(layer(h))  # (participant, hidden)

    def loss(self, inputs: tuple[Tensor, ...], y: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return the loss of the output; the L1 penalty has no part in it, but follows each step."""
        self._shrink()
        self.is_stepping = self.sparsity > 0
        return criterion(self(*inputs), y)

    def train(self, mode: bool = True) -> MLP:
        """End the last step before anything is evaluated."""
        if not mode:
            self._shrink()
        super().train(mode)
        return self

    def _shrink(self) -> None:
        """End a step on the loss by the penalty's own, which leaves weights at 0, and see whether it should be stronger.

        The gradient of an L1 norm would only make weights jump around 0, in steps as long as any other of Adam's.
        """
        if not self.is_stepping:
            return
        self.is_stepping = False
        with torch.no_grad():
            for layer, strength in zip(self.hidden_layers, self.strength, strict=True):
                weight = layer.weight
                if not weight.requires_grad:  # frozen
                    continue
                weight.copy_(weight.sign() * (weight.abs() - strength).clamp(min=0))
                strength *= torch.exp(RATE * torch.sign(self.sparsity - hoyer(weight)))


def hoyer(weights: Tensor) -> Tensor:
    """Measure how sparse weights are [1]_: 0 where all are of one size, 1 where only one is not 0.

    References
    ----------
    .. [1] Hoyer (2004), Journal of Machine Learning Research 5:1457-1469.
    """
    if weights.numel() < 2:
        return torch.ones((), device=weights.device)
    root = math.sqrt(weights.numel())
    return (root - weights.abs().sum() / weights.square().sum().sqrt().clamp(min=1e-12)) / (root - 1)


def pretrain(layer: nn.Linear, x: Tensor, *, n_epochs: int, noise: float) -> nn.Linear:
    """Train a layer to keep what its input says: as the encoder of a (denoising) autoencoder [1]_.

    Parameters
    ----------
    layer
        The encoder, followed by a rectifier; changed in place.
    x
        Inputs (participant, value).
    n_epochs
        Passes over the inputs.
    noise
        Standard deviation of the noise that the encoder sees, in units of the inputs' own; the clean input is the goal.

    Returns
    -------
    decoder
        The linear layer that brings the inputs back.

    References
    ----------
    .. [1] Vincent et al. (2010), Journal of Machine Learning Research 11:3371-3408.
    """
    decoder = nn.Linear(layer.out_features, layer.in_features)
    optimizer = torch.optim.Adam([*layer.parameters(), *decoder.parameters()], lr=PRETRAINING_RATE)
    spread = noise * x.std()
    for _ in range(n_epochs):
        for at in torch.split(torch.randperm(len(x)), PRETRAINING_BATCH):
            seen = x[at] + spread * torch.randn_like(x[at])
            error = nn.functional.mse_loss(decoder(torch.relu(layer(seen))), x[at])
            optimizer.zero_grad()
            cast(Callable[[], None], error.backward)()
            optimizer.step()
    return decoder


def build(
    shapes: Sequence[tuple[int, ...]], n_outputs: int, *, hidden: Sequence[int] = (64,), dropout: float = 0.7,
    sparsity: float = 0.0, pretrain_epochs: int = 0, noise: float = 0.5,
) -> MLP:  # fmt: skip
    """Build a perceptron [1]_, with the sparse weights and the pretraining of [2]_ where asked for.

    Parameters
    ----------
    shapes
        One input; its values are flattened.
    n_outputs
        One logit for two classes or a quantity, else one a class.
    hidden
        Units of each hidden layer.
    dropout
        Part of the input and of the units that is left out at each step of the training.
    sparsity
        Sparsity, by Hoyer's measure, that each hidden layer's weights are driven to: 0 asks for none, values near 1
        leave few weights. The strength of each layer's L1 penalty follows it from step to step [2]_, and the penalty
        is taken by its proximal operator [3]_. Single weights go to 0 only if they are trained, so that the first
        layer is trained on all values, not within the span of the training rows: that takes some
        twenty times as long for a connectome of 400 regions.
    pretrain_epochs
        Passes over the training rows for each layer's autoencoder before the training itself; 0 for none. With more
        values than rows it works, as the training does, within the span of the training rows, where the error of a
        reconstruction is the same.
    noise
        Standard deviation of the noise that the autoencoders see, in units of their input's; 0 for plain autoencoders.

    Raises
    ------
    UsageError
        If the sparsity is not from 0 to below 1.

    References
    ----------
    .. [1] LeCun, Bengio and Hinton (2015), Nature 521. doi:10.1038/nature14539
    .. [2] Kim et al. (2016), NeuroImage 124. doi:10.1016/j.neuroimage.2015.05.018
    .. [3] Parikh and Boyd (2014), Foundations and Trends in Optimization 1(3). doi:10.1561/2400000003
    """
    if not 0 <= sparsity < 1:
        raise UsageError(f"models.mlp.sparsity is {sparsity}; give a number from 0 (off) to below 1.")
    return MLP(
        int(np.prod(shapes[0])), n_outputs, hidden, dropout, sparsity=sparsity, pretrain_epochs=pretrain_epochs, noise=noise
    )  # fmt: skip
