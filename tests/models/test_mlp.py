import pytest
import torch

from bids_dl.models.mlp import build


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
