import math

import mixture
import numpy as np
import planted
import pytest
import torch
from torch.distributions import Categorical, Normal, kl_divergence

from bids_dl.models.vae import build


def made(n_outputs=1, **options):
    torch.manual_seed(0)
    module = build([(6,)], n_outputs, **{"hidden": (8,), "n_latent": 3, "dropout": 0.0, **options}).train()
    with torch.no_grad():
        module.log_noise.normal_()
    return module


def test_misfit_is_the_negative_log_density_of_a_gaussian():
    module, x, z = made(), torch.randn(5, 6), torch.randn(5, 3)
    density = Normal(module.decoder(z), (module.log_noise / 2).exp()).log_prob(x).sum(dim=1)
    torch.testing.assert_close(module.misfit(x, z), -density)


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_divergence_is_that_of_the_papers_written_as_loops(n_outputs):
    """A known label has its own prior; without one, every class counts by its probability, less how sure that is."""
    module, n_classes = made(n_outputs), max(2, n_outputs)
    mean, log_variance, output = torch.randn(6, 3), torch.randn(6, 3), torch.randn(6, n_outputs)
    y = torch.arange(6.0) % n_classes
    y[::2] = torch.nan
    found = module.divergence(mean, log_variance, output, y)
    for row in range(6):
        each = []
        for level in range(n_classes):
            code = torch.tensor([float(level)]) if n_outputs == 1 else torch.eye(n_classes)[level]
            latent = Normal(mean[row], (log_variance[row] / 2).exp())
            each.append(float(kl_divergence(latent, Normal(module.prior(code), 1.0)).sum().detach()))
        logits = output[row] if n_outputs > 1 else torch.stack([torch.zeros(()), output[row, 0]])
        said, even = Categorical(logits=logits), Categorical(logits=torch.zeros(n_classes))
        guessed = sum(float(p) * d for p, d in zip(said.probs, each, strict=True)) + float(kl_divergence(said, even))
        expected = guessed if math.isnan(y[row]) else each[int(y[row])]
        assert float(found[row].detach()) == pytest.approx(expected, rel=1e-4)


def test_units_are_drawn_only_while_training():
    module, x = made(), torch.randn(5, 6)
    assert not torch.equal(module.embed(x), module.embed(x))
    module.eval()
    assert torch.equal(module.embed(x), module.embed(x))
    torch.testing.assert_close(module.embed(x), module.latent(module.components(x))[0])


def test_drawn_units_have_the_mean_and_variance_that_the_encoder_says():
    module = made()
    mean, log_variance = torch.tensor([[1.0, -2.0, 0.0]]), torch.tensor([[0.0, 1.0, -1.0]])
    drawn = module.drawn(mean.expand(20_000, -1), log_variance.expand(20_000, -1))
    torch.testing.assert_close(drawn.mean(dim=0), mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.var(dim=0), log_variance[0].exp(), atol=0.1, rtol=0.05)


def test_synthetic_participants_repeat_with_their_generator_and_differ_by_class():
    module = made()
    one, again, other = (module.synthesise(5, v, torch.Generator().manual_seed(3)) for v in (0, 0, 1))
    assert one.shape == (5, 6)
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


def test_axes_that_no_row_has_are_neither_fitted_nor_drawn():
    module, x = build([(10,)], 1, n_components=8), torch.randn(4, 10)
    module.begin(lambda at: (x[at],), 4)
    drawn = module.components(module.synthesise(50, 1.0))
    assert (drawn[:, 4:] == 0).all()
    module.loss((x,), torch.tensor([0.0, 1.0, 0.0, 1.0]), lambda out, y: (out[:, 0] - y).square().mean()).backward()
    assert (module.log_noise.grad[4:] == 0).all()


def test_synthetic_participants_follow_a_quantity():
    """x = y a + noise: whoever is synthesised with a value lies, on average, where that value is."""
    torch.manual_seed(0)
    y, a = torch.randn(400), torch.tensor([1.0, -0.5])
    x = y[:, None] * a + 0.5 * torch.randn(400, 2)
    module = build([(2,)], 1, classify=False, hidden=(16,), n_latent=2, dropout=0.0).train()
    module.begin(lambda at: (x[at],), 400)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        module.loss((x,), y, lambda out, t: (out[:, 0] - t).square().mean()).backward()
        optimizer.step()
    for value in (-1.0, 1.0):
        drawn = module.synthesise(2000, value, torch.Generator().manual_seed(0))
        np.testing.assert_allclose(drawn.mean(dim=0), value * a, atol=0.2)


def test_product_of_two_edges_is_told_and_by_no_linear_model():
    assert planted.auc("vae") > 0.8
    assert planted.linear_auc("vae") < 0.65


@pytest.mark.slow
def test_synthetic_classes_have_the_means_and_covariances_of_a_mixture():
    means, covariances = mixture.distances("vae")
    assert means < 0.25
    assert covariances < 0.35
