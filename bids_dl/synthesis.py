"""A generative model learns the training rows of one network, and draws participants that nobody is beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bids_dl import stacking, zoo
from bids_dl.components import Components

MOST_COMPONENTS = 512
"""Axes in which participants are drawn; the variance beyond them is missing in who is synthetic."""
N_STEPS, BATCH_SIZE, LEARNING_RATE = 800, 32, 3e-3
MOST_ROWS = 1000
"""Participants of a kind whose values are returned at once to be looked at."""
KINDS = ("edge", "column")
Read = Callable[[Any], tuple[Tensor, ...]]
Loss = Callable[[Tensor, Tensor], Tensor]


def takes(model: str, kind: str) -> bool:
    """Tell whether a model's training rows may be joined by synthetic ones, by its file and the kind of its only input.

    Networks of edges and columns do whose weights the training loop learns, but for those that draw participants
    themselves; what solves for its weights, and every baseline, does not.
    """
    return kind in KINDS and zoo.has_epochs(model) and not zoo.constant("models", model, "SYNTHESISES")


@dataclass(frozen=True)
class Synthetic:
    """Drawn participants: ``coordinates`` (participant, component) on axes of the training rows, and their label ``y``.

    ``shape`` is that of one participant's values.
    """

    coordinates: Tensor
    y: Tensor
    components: Components
    shape: tuple[int, ...]

    def rows(self, at: NDArray[np.intp]) -> Tensor:
        """Return the normalised values of some of them, (participant, …)."""
        return self.components.restored(self.coordinates[at]).view(len(at), *self.shape)

    def behind(self, rows: Read, n: int) -> Read:
        """Return what reads ``n`` real participants, and after them the synthetic ones."""

        def read(at: Any) -> tuple[Tensor, ...]:
            at = np.asarray(at)
            real = at < n
            found = torch.empty((len(at), *self.shape))
            found[real], found[~real] = rows(at[real])[0], self.rows(at[~real] - n)
            return (found,)

        return read


def draw(
    rows: Read, y: Tensor, *, method: str, options: Mapping[str, Any], n: int, n_levels: int, seed: int
) -> Synthetic:
    """Train a generative model on all the rows that it is given, and draw participants of the same targets.

    It sees principal components of the rows, so that it does the same on values as on coordinates in their span, and
    trains for a fixed number of steps: no validation row stops it. Axes beyond those that the model itself looks at are
    drawn independently, with the spread of the training rows. Runs on the CPU, and leaves torch's random state alone.

    Parameters
    ----------
    rows
        Returns the normalised values (participant, …) of some of the ``len(y)`` training rows.
    y
        A class's code or a standardised quantity, (participant,); none is missing.
    method, options
        A model that says ``SYNTHESISES``, and its options; those left open are what its file finds best for drawing.
    n
        How many to draw: their targets are spread over those of the training rows, so that classes keep their shares.
    n_levels
        Classes, 0 for a quantity.
    seed
        Of weights, steps and draws.

    Returns
    -------
    Synthetic
        ``n`` participants, in random order.
    """
    shape = tuple(rows(np.arange(1))[0].shape[1:])
    with torch.random.fork_rng(devices=[]):
        components = Components(int(np.prod(shape)), min(MOST_COMPONENTS, max(1, len(y) - 1)))
        components.begin(rows, len(y))
        z = components.of(rows, stacking.batches(np.arange(len(y)), 256))
        torch.manual_seed(seed)  # only now: how much was drawn for the components depends on the values
        module = _fitted(z, y, method, options, n_levels, seed)
        given = spread_over(y, n, np.random.default_rng(seed))
        drawn = _drawn(module, z, given, torch.Generator().manual_seed(seed))
    return Synthetic(drawn, given, components, shape)


def evenly(n: int) -> NDArray[np.intp]:
    """Choose at most `MOST_ROWS` of ``n`` rows, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, MOST_ROWS)).astype(np.intp))


def spread_over(y: Tensor, n: int, generator: np.random.Generator) -> Tensor:
    """Take ``n`` targets evenly from the sorted ones: every class keeps its share to within one; in random order."""
    at = ((np.arange(n) + 0.5) * len(y) / n).astype(np.intp)
    return y.sort().values[generator.permutation(at)]


def _fitted(z: Tensor, y: Tensor, method: str, options: Mapping[str, Any], n_levels: int, seed: int) -> Any:
    """Train a generative model on coordinates for its own objective."""
    n_outputs = n_levels if n_levels > 2 else 1
    options = {**(zoo.constant("models", method, "SYNTHESISES") or {}), **options}
    module = zoo.load("models", method)([z.shape[1:]], n_outputs, **options, classify=n_levels > 0).train()
    module.begin(lambda at: (z[at],), len(z))
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE)
    generator, criterion = np.random.default_rng(seed), _criterion(n_levels)
    order: list[NDArray[np.intp]] = []
    for _ in range(N_STEPS):
        order = order or list(stacking.batches(generator.permutation(len(z)), BATCH_SIZE, smallest=2))
        at = order.pop()
        loss = module.loss((z[at],), y[at], criterion)
        optimizer.zero_grad()
        cast(Callable[[], None], loss.backward)()
        optimizer.step()
    return module.eval()


def _criterion(n_levels: int) -> Loss:
    """Choose what a generative model's output is judged by beside its own objective."""
    if n_levels > 2:
        return lambda out, y: nn.functional.cross_entropy(out, y.long())
    judge = nn.functional.binary_cross_entropy_with_logits if n_levels else nn.functional.mse_loss
    return lambda out, y: judge(out[:, 0], y)


@torch.no_grad()
def _drawn(module: Any, z: Tensor, given: Tensor, generator: torch.Generator) -> Tensor:
    """Draw coordinates for each target, and noise where the model's own components do not reach."""
    found = torch.empty(len(given), z.shape[1])
    for value in np.unique(given.numpy()):
        mine = given == float(value)
        found[mine] = module.synthesise(int(mine.sum()), float(value), generator)
    left: Tensor = z - module.components.restored(module.components(z))
    return found + torch.randn(found.shape, generator=generator) * left.square().mean(dim=0).sqrt()
