import numpy as np
import pandas as pd
import planted
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from bids_dl import training
from bids_dl.errors import UsageError
from bids_dl.models.mlp import build, hoyer, pretrain
from bids_dl.records import Block, Cohort, Split, Target
from bids_dl.settings import Settings


def test_perceptron_is_its_formula():
    """Without dropout: W3 relu(W2 relu(W1 x + b1) + b2) + b3."""
    torch.manual_seed(0)
    module = build([(7,)], 2, hidden=[5, 3]).eval()
    x, w = torch.randn(4, 7), module.state_dict()
    h = torch.relu(x @ w["first.weight"].T + w["first.bias"])
    h = torch.relu(h @ w["rest.2.weight"].T + w["rest.2.bias"])
    torch.testing.assert_close(module(x), h @ w["head.weight"].T + w["head.bias"])


@pytest.mark.parametrize("hidden", [(4,), (6, 5, 4)])
def test_hidden_layers_have_the_widths_asked_for(hidden):
    module = build([(7,)], 1, hidden=hidden)
    widths = [layer.out_features for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    assert widths == [*hidden, 1]


def test_dropout_acts_only_while_training():
    torch.manual_seed(0)
    module, x = build([(20,)], 1), torch.randn(3, 20)
    assert not torch.equal(module.train()(x), module(x))
    assert torch.equal(module.eval()(x), module(x))


def test_matrix_is_flattened():
    assert build([(4, 5)], 1)(torch.randn(2, 4, 5)).shape == (2, 1)


def test_hoyer_sparsity_is_its_formula():
    weights = torch.tensor([[3.0, -1.0], [0.0, 2.0]])
    n, l1, l2 = 4, 3 + 1 + 2, (9 + 1 + 4) ** 0.5
    assert float(hoyer(weights)) == pytest.approx((n**0.5 - l1 / l2) / (n**0.5 - 1))
    assert float(hoyer(torch.full((5, 5), -0.2))) == pytest.approx(0, abs=1e-5)
    assert float(hoyer(torch.tensor([0.0, 0.0, 7.0]))) == pytest.approx(1)


def fitted(options, n_values=300, n=60, **wishes):
    """Train on fewer rows than values, of which few matter."""
    generator = np.random.default_rng(0)
    y = np.arange(n) % 2.0
    x = generator.normal(size=(n, n_values)).astype(np.float32)
    x[:, :10] += 2 * y[:, None]
    data = Cohort(
        pd.DataFrame({"participant_id": [f"sub-{i}" for i in range(n)]}), {"edges": Block(x, ("edge",))},
        Target("target", y, ("a", "b")),
    )  # fmt: skip
    settings = Settings(**{"n_epochs": 40, "patience": 40, "device": "cpu", "learning_rate": 5e-3, **wishes})
    split = Split(np.arange(40), np.arange(40, 50), np.arange(50, n), "one")
    return training.train(training.define("mlp", [(n_values,)], 1, options), data, split, ["edges"], settings), data


@pytest.mark.parametrize("sparsity", [0.5, 0.8])
def test_every_hidden_layer_comes_near_the_sparsity_asked_for(sparsity):
    torch.manual_seed(0)
    x, y = torch.randn(40, 200), torch.arange(40) % 2.0
    module = build([(200,)], 1, hidden=[16, 16], sparsity=sparsity, dropout=0.2)
    assert all(hoyer(layer.weight) < 0.3 for layer in module.hidden_layers)
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-3)
    for _ in range(400):
        optimizer.zero_grad()
        module.loss((x,), y, lambda out, y: binary_cross_entropy_with_logits(out[:, 0], y)).backward()
        optimizer.step()
    found = [hoyer(layer.weight).item() for layer in module.eval().hidden_layers]
    assert found == pytest.approx([sparsity] * 2, abs=0.1)


def stepped(module, n=1):
    """What the training does to a module, less its gradients."""
    for _ in range(n):
        module.loss((torch.zeros(2, 6),), torch.zeros(2), lambda out, y: out.sum())
    return module.eval()


def test_step_takes_every_weight_nearer_to_0_by_the_strength():
    module = build([(6,)], 1, hidden=[4], sparsity=0.5)
    module.strength.fill_(0.1)
    expected = [[max(abs(w) - 0.1, 0) * (1 if w > 0 else -1) for w in row] for row in module.first.weight.tolist()]
    head = module.head.weight.clone()
    stepped(module)
    torch.testing.assert_close(module.first.weight, torch.tensor(expected))
    assert torch.equal(module.head.weight, head)


def test_evaluating_again_changes_no_weight():
    module = stepped(build([(6,)], 1, hidden=[4], sparsity=0.5))
    before = module.first.weight.clone()
    assert torch.equal(module.eval().train().eval().first.weight, before)


def test_penalty_grows_while_weights_are_too_dense_and_shrinks_after():
    module = build([(6,)], 1, hidden=[4], sparsity=0.5)
    before = module.strength.item()
    stepped(module)
    assert module.strength.item() > before
    with torch.no_grad():
        module.first.weight.zero_()[0, 0] = 1.0
    stepped(module)
    assert module.strength.item() == pytest.approx(before)


def test_sparse_weights_are_those_on_values_and_lie_where_the_effect_is():
    """Within the span of the training rows no single weight can go to 0."""
    sparse, _ = fitted({"sparsity": 0.8, "hidden": [8], "dropout": 0.3}, patience=100)
    dense, _ = fitted({"hidden": [8], "dropout": 0.3})
    shares = [
        float(m.module.first.weight.detach()[:, :10].abs().sum() / m.module.first.weight.detach().abs().sum())
        for m in (sparse, dense)
    ]
    assert hoyer(sparse.module.first.weight) > hoyer(dense.module.first.weight) + 0.2
    assert shares[0] > 2 * shares[1]


def test_neither_option_changes_a_training_that_does_not_ask_for_it():
    module = build([(6,)], 1)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    module.begin(lambda rows: (torch.randn(len(rows), 6),), 5)
    assert "strength" not in before  # a bundle of an earlier version has none
    assert not module.on_values
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    x, y = torch.randn(5, 6), torch.randn(5)
    module.eval()
    assert torch.equal(module.loss((x,), y, lambda out, y: out.sum()), module(x).sum())


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_autoencoder_brings_back_inputs_of_few_dimensions(noise):
    torch.manual_seed(0)
    x = torch.randn(100, 2) @ torch.randn(2, 20)
    layer = torch.nn.Linear(20, 12)
    decoder = pretrain(layer, x, n_epochs=300, noise=noise)
    error = (decoder(torch.relu(layer(x))) - x).square().mean() / x.square().mean()
    assert error.item() < 0.1


def test_denoising_lowers_the_error_on_noisy_inputs():
    """Two dimensions in twenty: most of the noise lies outside, and can be told from the input."""
    torch.manual_seed(0)
    x = torch.randn(100, 2) @ torch.randn(2, 20)
    noisy = x + x.std() * torch.randn_like(x)
    errors = []
    for noise in (0.0, 1.0):
        torch.manual_seed(1)
        layer = torch.nn.Linear(20, 12)
        decoder = pretrain(layer, x, n_epochs=300, noise=noise)
        errors.append((decoder(torch.relu(layer(noisy))) - x).square().mean().item())
    assert errors[1] < 0.7 * errors[0]


def test_every_hidden_layer_is_pretrained_on_what_the_one_before_gives_and_the_head_is_not():
    torch.manual_seed(0)
    module, x = build([(6,)], 1, hidden=[5, 4], pretrain_epochs=30, noise=0.0), torch.randn(30, 6)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    module.begin(lambda rows: (x[rows],), 30)
    after = module.state_dict()
    assert {key for key in after if not torch.equal(after[key], before[key])} == {
        "first.weight", "first.bias", "rest.2.weight", "rest.2.bias",
    }  # fmt: skip
    assert module.hidden_layers == [module.first, module.rest[2]]


def test_pretraining_in_the_span_of_the_training_rows_is_folded_back_to_values():
    """Weights on values that training rows do not span would be 0: every row of the first layer is a mix of them."""
    model, data = fitted({"pretrain_epochs": 20, "hidden": [8]}, n_epochs=1)
    weights = model.module.first.weight.detach().numpy()
    x = training.inputs_of(model, data, np.arange(40))[0].numpy()
    mixed = np.linalg.lstsq(x.T, weights.T, rcond=None)[0]
    np.testing.assert_allclose(x.T @ mixed, weights.T, atol=1e-4)


def test_product_of_two_edges_is_told_and_by_no_linear_model():
    assert planted.auc("mlp") > 0.8
    assert planted.linear_auc("mlp") < 0.65


@pytest.mark.parametrize("sparsity", [-0.1, 1.0])
def test_sparsity_out_of_range_is_refused(sparsity):
    with pytest.raises(UsageError, match=f"sparsity is {sparsity}"):
        build([(10,)], 1, sparsity=sparsity)
