"""Variational autoencoder on a vector of features, whose latent units predict the target."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bids_dl.components import Components, class_logits, codes, perceptron
from bids_dl.layers import Network

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


class VAE(Network):
    """Encoder and decoder of principal components; a target shifts the mean of the latent units' prior.

    ``embed`` is the mean of the latent units, and, while training, a draw around it.
    """

    def __init__(
        self, n_values: int, n_outputs: int, *, n_components: int, hidden: Sequence[int], n_latent: int, dropout: float,
        generative: float, classify: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = tuple(hidden)
        self.generative, self.classify = generative, classify
        self.components = Components(n_values, n_components)
        self.encoder = perceptron(self.components.n, widths, dropout)
        self.mean = nn.Linear(widths[-1], n_latent)
        self.log_variance = nn.Linear(widths[-1], n_latent)
        self.head = nn.Linear(n_latent, n_outputs)
        self.prior = nn.Linear(n_outputs, n_latent)
        self.decoder = perceptron(n_latent, widths[::-1], 0.0).append(nn.Linear(widths[0], self.components.n))
        self.log_noise = nn.Parameter(torch.zeros(self.components.n))

    def begin(self, rows: Callable[[Any], tuple[Tensor, ...]], n: int) -> None:
        """Learn the components from the training rows."""
        self.components.begin(rows, n)

    def latent(self, coordinates: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the log variance of the latent units, (participant, unit) each."""
        h = self.encoder(coordinates)
        return self.mean(h), self.log_variance(h)

    def drawn(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Draw latent units around their mean while training; else return the mean."""
        return mean + torch.randn_like(mean) * (log_variance / 2).exp() if self.training else mean

    def embed(self, x: Tensor) -> Tensor:
        """Represent each participant by the latent units."""
        return self.drawn(*self.latent(self.components(x)))  # (participant, unit)

    def loss(self, inputs: tuple[Tensor, ...], y: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Add the labelled rows' loss and the negative evidence lower bound a component, averaged over participants."""
        coordinates, known = self.components(inputs[0]), torch.isfinite(y)
        mean, log_variance = self.latent(coordinates)
        z = self.drawn(mean, log_variance)
        output = self.head(z)
        bound = self.misfit(coordinates, z) + self.divergence(mean, log_variance, output, y)
        found = self.generative * bound.mean() / self.components.n
        return found + criterion(output[known], y[known]) if known.any() else found

    def misfit(self, coordinates: Tensor, z: Tensor) -> Tensor:
        """Return the negative log density (participant,) of coordinates given latent units; axes without spread count 0."""
        error = (coordinates - self.decoder(z)).square() * (-self.log_noise).exp()
        each: Tensor = (error + self.log_noise + math.log(2 * math.pi)) / 2  # (participant, component)
        return (each * (self.components.spread > 0)).sum(dim=1)

    def divergence(self, mean: Tensor, log_variance: Tensor, output: Tensor, y: Tensor) -> Tensor:
        """Return how far the latent units and, where no label is known, the label lie from their prior, (participant,)."""
        known = torch.isfinite(y)
        if not self.classify:
            return self._from_prior(mean, log_variance, codes(torch.where(known, y, output[:, 0]), 1))
        logits = class_logits(output)
        n_classes, n_outputs = logits.shape[1], output.shape[1]
        everyone = torch.arange(n_classes, dtype=mean.dtype, device=mean.device)
        each = torch.stack([
            self._from_prior(mean, log_variance, code.expand(len(mean), -1)) for code in codes(everyone, n_outputs)
        ], dim=1)  # (participant, class)  # fmt: skip
        share, log_share = torch.softmax(logits, dim=1), torch.log_softmax(logits, dim=1)
        guessed = (share * (each + log_share + math.log(n_classes))).sum(dim=1)
        told = each.gather(1, torch.where(known, y, 0).long()[:, None])[:, 0]
        return torch.where(known, told, guessed)

    def _from_prior(self, mean: Tensor, log_variance: Tensor, code: Tensor) -> Tensor:
        """Return the divergence of Gaussian latent units from those of a target, (participant,)."""
        distance: Tensor = (mean - self.prior(code)).square()
        return (distance + log_variance.exp() - log_variance - 1).sum(dim=1) / 2

    @torch.no_grad()
    def synthesise(self, n: int, value: float, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` participants of a class's code or a standardised quantity, (participant, value), normalised."""
        code = codes(torch.full((n,), float(value)), self.head.out_features)
        z = self.prior(code) + torch.randn(n, self.head.in_features, generator=generator)
        noise = torch.randn(n, self.components.n, generator=generator) * (self.log_noise / 2).exp()
        return self.components.restored((self.decoder(z) + noise) * (self.components.spread > 0))


def build(
    shapes: Sequence[tuple[int, ...]],
    n_outputs: int,
    *,
    classify: bool = True,
    n_components: int = 128,
    hidden: Sequence[int] = (64,),
    n_latent: int = 16,
    dropout: float = 0.5,
    generative: float = 1.0,
) -> VAE:
    """Build a variational autoencoder [1]_ that learns from participants with and without a label, in the way of [2]_.

    Encoder and decoder work on principal components of the training rows. A target shifts the prior of the latent units
    that the output is read from, so that a participant without a label is a mixture of the classes. ``synthesise`` draws
    new participants, with the noise that the decoder leaves; what lies outside of the components is not drawn.

    Parameters
    ----------
    shapes
        One input; its values are flattened.
    n_outputs
        One logit for two classes or a quantity, else one a class.
    classify
        Whether the target is a class; set by the training.
    n_components
        Principal components of the training rows that are encoded and decoded; few, such as 6, where few participants
        have a label, as more are learned by heart.
    hidden
        Units of each hidden layer of the encoder; the decoder's are the same, the other way round.
    n_latent
        Latent units.
    dropout
        Part of the encoder's units that is left out at each step of the training.
    generative
        Weight of the evidence lower bound, divided by the number of components, against the loss of the labelled rows.

    References
    ----------
    .. [1] Kingma and Welling (2014), ICLR. arXiv:1312.6114
    .. [2] Kingma et al. (2014), NeurIPS. arXiv:1406.5298
    """
    return VAE(
        int(np.prod(shapes[0])), n_outputs, n_components=n_components, hidden=hidden, n_latent=n_latent, dropout=dropout,
        generative=generative, classify=classify,
    )  # fmt: skip
