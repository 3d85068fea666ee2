"""Two Gaussian classes, and how far what a generative model draws lies from them."""

import numpy as np
import torch

from bids_dl import building, training

CLASSES = (
    (torch.tensor([-1.0, 0.0]), torch.tensor([[1.0, 0.0], [0.8, 0.4]])),
    (torch.tensor([1.0, 0.6]), torch.tensor([[0.5, 0.0], [-0.3, 0.9]])),
)
"""Mean and square root of the covariance of each."""

LEARNED = {
    "gan": ({"hidden": [32, 32], "dropout": 0.0, "adversarial": 1.0}, 2e-3, 800),
    "vae": ({"hidden": [32], "n_latent": 2, "dropout": 0.0}, 5e-3, 1500),
}
"""A model's options, learning rate and number of steps."""


def distances(model, seed=0):
    """Train a generative model; the largest errors of its classes' means and of their covariances."""
    options, learning_rate, n_steps = LEARNED[model]
    torch.manual_seed(seed)
    y = torch.arange(1000) % 2
    x = torch.stack([CLASSES[label][0] + CLASSES[label][1] @ torch.randn(2) for label in y])
    mean, scale = x.mean(dim=0), x.std(dim=0)
    module = building.instantiate(training.define(model, [(2,)], 1, options)).train()
    module.begin(lambda at: ((x[at] - mean) / scale,), len(x))
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate)
    binary = torch.nn.functional.binary_cross_entropy_with_logits
    for _ in range(n_steps):
        at = torch.randint(1000, (256,))
        optimizer.zero_grad()
        module.loss(((x[at] - mean) / scale,), y[at].float(), lambda out, t: binary(out[:, 0], t)).backward()
        optimizer.step()
    found = []
    for label, (centre, root) in enumerate(CLASSES):
        drawn = module.synthesise(4000, label, torch.Generator().manual_seed(1)) * scale + mean
        off = torch.cov(drawn.T) - root @ root.T
        found.append((float((drawn.mean(dim=0) - centre).abs().max()), float(off.abs().max())))
    return np.max(found, axis=0)
