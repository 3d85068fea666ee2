"""Adversarial network on a vector of features: a discriminator that classifies, a generator of each class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

from bids_dl.components import Components, class_logits, codes, perceptron

SUITS = ("edge", "column")
USES_UNLABELLED = True
SYNTHESISES = {"n_components": 16, "dropout": 0.0}
"""Options with which its participants are nearest to real ones, unless named otherwise."""
SCHEDULE = {
    "n_epochs": 80,
    "patience": 15,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "weight_decay": 1e-2,
    "n_members": 3,
}


class Generator(nn.Module):
    """Noise bent by what a class is like: untrained, it draws nearly the Gaussian of all training rows."""

    def __init__(self, components: Components, n_codes: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.bend = perceptron(components.n + n_codes, widths, 0.0).append(nn.Linear(widths[-1], components.n))

    def forward(self, noise: Tensor, code: Tensor, spread: Tensor) -> Tensor:
        """Return coordinates, (participant, component)."""
        bent: Tensor = self.bend(torch.cat([noise, code], dim=1))
        return spread * (noise + bent)


class Discriminator(nn.Module):
    """Tells classes apart and, by the same units, real participants from synthetic ones."""

    def __init__(
        self, n_values: int, n_outputs: int, widths: tuple[int, ...], dropout: float, *, classify: bool
    ) -> None:
        super().__init__()
        self.classify = classify
        self.trunk = perceptron(n_values, widths, dropout)
        self.head = nn.Linear(widths[-1], n_outputs)
        self.critic = nn.Linear(widths[-1], 1)
        self.match = nn.Linear(widths[-1], n_outputs, bias=False)

    def forward(self, coordinates: Tensor, code: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Return the units and the logit of being real, (participant,); a label that is known must fit too."""
        h = self.trunk(coordinates)
        logit = self.critic(h)[:, 0] + known * (self.match(h) * code).sum(dim=1)
        if self.classify:
            logits = class_logits(self.head(h))
            logit = logit + torch.logsumexp(logits, dim=1) - math.log(logits.shape[1])
        return h, logit


def moments(h: Tensor, code: Tensor) -> Tensor:
    """Average units over participants, and units times the condition: together, the mean of every class."""
    return torch.cat([h.mean(dim=0, keepdim=True), code.T @ h / len(h)])  # (1 + code, unit)


class GAN(nn.Module):
    """``loss`` trains both players; ``embed`` and ``head`` are the discriminator's."""

    def __init__(
        self, n_values: int, n_outputs: int, *, n_components: int, hidden: Sequence[int], dropout: float,
        adversarial: float, matching: float, smoothing: float, classify: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.n_outputs = n_outputs
        self.adversarial, self.matching, self.smoothing = adversarial, matching, smoothing
        self.components = Components(n_values, n_components)
        self.discriminator = Discriminator(self.components.n, n_outputs, tuple(hidden), dropout, classify=classify)
        self.generator = Generator(self.components, n_outputs, tuple(hidden))

    @property
    def head(self) -> nn.Linear:
        """The discriminator's layer for the target."""
        return self.discriminator.head

    def begin(self, rows: Callable[[Any], tuple[Tensor, ...]], n: int) -> None:
        """Learn the components from the training rows."""
        self.components.begin(rows, n)

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant by the discriminator's last hidden layer."""
        h: Tensor = self.discriminator.trunk(self.components(x))  # (participant, unit)
        return h

    def forward(self, x: Tensor) -> Tensor:
        """Return (participant, output)."""
        out: Tensor = self.head(self.embed(x))  # (participant, output)
        return out

    def loss(self, inputs: tuple[Tensor, ...], y: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Add the discriminator's, the generator's and the labelled rows' losses; each player has its own gradient."""
        real, known = self.components(inputs[0]), torch.isfinite(y)
        code = codes(torch.where(known, y, self._guess(real)), self.n_outputs)
        fake = self.generator(torch.randn_like(real), code, self.components.spread)
        found = self.adversarial * (self.judging(real, fake, code, known) + self.deceiving(real, fake, code, known))
        if known.any():
            found = found + criterion(self.head(self.discriminator.trunk(real[known])), y[known])
        return found

    def judging(self, real: Tensor, fake: Tensor, code: Tensor, known: Tensor) -> Tensor:
        """Return the discriminator's loss; the generator gets no gradient of it."""
        real = real.detach().requires_grad_()
        _, of_real = self.discriminator(real, code, known)
        _, of_fake = self.discriminator(fake.detach(), code, known)
        (slope,) = torch.autograd.grad(of_real.sum(), real, create_graph=True)
        steepness = slope.square().sum(dim=1).mean()
        return softplus(-of_real).mean() + softplus(of_fake).mean() + self.smoothing / 2 * steepness

    def deceiving(self, real: Tensor, fake: Tensor, code: Tensor, known: Tensor) -> Tensor:
        """Return the generator's loss, with the discriminator's units matched; the discriminator gets no gradient."""
        frozen = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        h, logit = functional_call(self.discriminator, frozen, (fake, code, known))
        with torch.no_grad():
            target = moments(self.discriminator.trunk(real), code)
        return softplus(-logit).mean() + self.matching * (moments(h, code) - target).square().mean()

    @torch.no_grad()
    def _guess(self, real: Tensor) -> Tensor:
        """Say what target the discriminator would give (participant,): a class drawn by its probability."""
        output: Tensor = self.head(self.discriminator.trunk(real))
        if not self.discriminator.classify:
            return output[:, 0]
        return torch.multinomial(torch.softmax(class_logits(output), dim=1), 1)[:, 0].to(torch.float32)

    @torch.no_grad()
    def synthesise(self, n: int, value: float, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` participants of a class's code or a standardised quantity, (participant, value), normalised."""
        noise = torch.randn(n, self.components.n, generator=generator)
        code = codes(torch.full((n,), float(value)), self.n_outputs)
        return self.components.restored(self.generator(noise, code, self.components.spread))


def build(
    shapes: Sequence[tuple[int, ...]],
    n_outputs: int,
    *,
    classify: bool = True,
    n_components: int = 128,
    hidden: Sequence[int] = (64, 64),
    dropout: float = 0.5,
    adversarial: float = 0.3,
    matching: float = 10.0,
    smoothing: float = 1.0,
) -> GAN:
    """Build a discriminator and a generator of connectivity, each a few full layers, for classification as in [1]_.

    Both work on principal components of the training rows. As in [2]_, what is real is told by how sure the class is,
    and the generator matches the mean of the discriminator's units; pairs of participant and label are judged by a
    projection [3]_. Participants without a label are learned from too. ``synthesise`` draws new participants; what lies
    outside of the components is not drawn.

    Parameters
    ----------
    shapes
        One input; its values are flattened.
    n_outputs
        One logit for two classes or a quantity, else one a class.
    classify
        Whether the target is a class; set by the training.
    n_components
        Principal components of the training rows that both players see; few, such as 6, where few participants
        have a label, as more are learned by heart.
    hidden
        Units of each hidden layer, of the discriminator and of the generator.
    dropout
        Part of the discriminator's units that is left out at each step of the training.
    adversarial
        Weight of the two players' game against the loss of the labelled rows.
    matching
        Weight of the feature matching within the generator's loss.
    smoothing
        Weight of the discriminator's squared slope at real participants, which lets the game settle [4]_.

    References
    ----------
    .. [1] Zhao et al. (2020), J. Neurosci. Methods 341. doi:10.1016/j.jneumeth.2020.108756
    .. [2] Salimans et al. (2016), NeurIPS. arXiv:1606.03498
    .. [3] Miyato and Koyama (2018), ICLR. arXiv:1802.05637
    .. [4] Mescheder, Geiger and Nowozin (2018), ICML. arXiv:1801.04406
    """
    return GAN(
        int(np.prod(shapes[0])), n_outputs, n_components=n_components, hidden=hidden, dropout=dropout,
        adversarial=adversarial, matching=matching, smoothing=smoothing, classify=classify,
    )  # fmt: skip
