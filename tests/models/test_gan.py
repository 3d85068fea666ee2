import math

import mixture
import planted
import pytest
import torch

from bids_dl.building import instantiate
from bids_dl.models.gan import build, moments


def binary(out, y):
    return torch.nn.functional.binary_cross_entropy_with_logits(out[:, 0], y)


def players(n_outputs=1, **options):
    torch.manual_seed(0)
    module = build([(6,)], n_outputs, **{"hidden": (8, 8), "dropout": 0.0, **options}).train()
    real, y = torch.randn(12, 6), torch.arange(12.0) % max(2, n_outputs)
    code = torch.nn.functional.one_hot(y.long(), n_outputs).float() if n_outputs > 1 else y[:, None]
    known = torch.arange(12) % 4 != 0
    fake = module.generator(torch.randn(12, 6), code, module.components.spread)
    return module, real, fake, code, known


def moved(player):
    return [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in player.parameters()]


def test_discriminators_loss_gives_the_generator_no_gradient():
    module, *arguments = players()
    module.judging(*arguments).backward()
    assert not any(moved(module.generator))
    assert all(moved(module.discriminator))


def test_generators_loss_gives_the_discriminator_no_gradient():
    module, *arguments = players()
    module.deceiving(*arguments).backward()
    assert all(moved(module.generator))
    assert not any(moved(module.discriminator))


def test_one_loss_gives_each_player_the_gradient_of_its_own_game():
    module, real, *_ = players(adversarial=1.0, n_components=6)
    y = torch.arange(12.0) % 2
    torch.manual_seed(5)
    module.loss((real,), y, binary).backward()
    found = {name: p.grad.clone() for name, p in module.named_parameters()}
    module.zero_grad()
    torch.manual_seed(5)
    seen, known, code = module.components(real), torch.ones(12, dtype=torch.bool), y[:, None]
    module._guess(seen)
    fake = module.generator(torch.randn_like(seen), code, module.components.spread)
    module.deceiving(seen, fake, code, known).backward()
    (module.judging(seen, fake, code, known) + binary(module(real), y)).backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_discriminator_is_more_certain_of_what_it_can_classify(n_outputs):
    """Salimans et al., equation of D: Z / (Z + 1) with Z the sum of exp logits; a known label adds its projection."""
    module, real, _, code, known = players(n_outputs)
    module.requires_grad_(False)
    h, logit = module.discriminator(real, code, known)
    for row in range(len(real)):
        outputs = module.head(h[row]).tolist()
        outputs = outputs if n_outputs > 1 else [-outputs[0] / 2, outputs[0] / 2]
        expected = math.log(sum(math.exp(o) for o in outputs) / len(outputs)) + float(
            module.discriminator.critic(h[row])
        )
        if known[row]:
            weights = module.discriminator.match.weight
            expected += sum(float(weights[c] @ h[row]) * float(code[row, c]) for c in range(n_outputs))
        assert float(logit[row]) == pytest.approx(expected, abs=1e-5)


def test_discriminators_loss_follows_the_papers_word_for_word():
    module, real, fake, code, known = players(smoothing=2.0)
    total = 0.0
    for row in range(12):
        one, its, tells = real[row : row + 1].clone().requires_grad_(), code[row : row + 1], known[row : row + 1]
        logit = module.discriminator(one, its, tells)[1].sum()
        (slope,) = torch.autograd.grad(logit, one)
        of_fake = module.discriminator(fake[row : row + 1], its, tells)[1].sum()
        total -= math.log(1 / (1 + math.exp(-float(logit.detach())))) + math.log(
            1 / (1 + math.exp(float(of_fake.detach())))
        )
        total += 2.0 / 2 * sum(float(s) ** 2 for s in slope[0])
    assert float(module.judging(real, fake, code, known).detach()) == pytest.approx(total / 12, rel=1e-5)


def test_moments_are_the_means_of_the_classes():
    h, y = torch.randn(12, 4), torch.arange(12) % 3
    found = moments(h, torch.nn.functional.one_hot(y, 3).float())
    torch.testing.assert_close(found[0], h.mean(dim=0))
    for level in range(3):
        torch.testing.assert_close(found[1 + level], h[y == level].mean(dim=0) / 3)


def test_synthetic_participants_repeat_with_their_generator_and_differ_by_class():
    module, *_ = players()
    one, again, other = (module.synthesise(5, v, torch.Generator().manual_seed(3)) for v in (0, 0, 1))
    assert one.shape == (5, 6)
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


def test_quantity_is_judged_without_classes():
    module = instantiate({"_target_": "bids_dl.models.gan.build", "shapes": [[6]], "n_outputs": 1}, classify=False)
    assert not module.discriminator.classify
    h, logit = module.eval().discriminator(torch.randn(4, 6), torch.randn(4, 1), torch.zeros(4, dtype=torch.bool))
    torch.testing.assert_close(logit, module.discriminator.critic(h)[:, 0])


def test_product_of_two_edges_is_told_and_by_no_linear_model():
    assert planted.auc("gan") > 0.8
    assert planted.linear_auc("gan") < 0.65


@pytest.mark.slow
def test_synthetic_classes_have_the_means_and_covariances_of_a_mixture():
    means, covariances = mixture.distances("gan")
    assert means < 0.25
    assert covariances < 0.35
