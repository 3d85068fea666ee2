import numpy as np
import planted
import torch

from bids_dl.models.gru import build


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def gru_by_the_book(x, cell):
    """Run the equations one step after the other; as in cuDNN, the reset gate acts on the transformed state."""
    (w_r, w_z, w_n), (u_r, u_z, u_n), (b_r, b_z, b_n), (c_r, c_z, c_n) = (
        np.split(w.detach().double().numpy(), 3)
        for w in (cell.weight_ih_l0, cell.weight_hh_l0, cell.bias_ih_l0, cell.bias_hh_l0)
    )
    h, states = np.zeros(len(b_r)), []
    for now in x:
        r = sigmoid(w_r @ now + b_r + u_r @ h + c_r)
        z = sigmoid(w_z @ now + b_z + u_z @ h + c_z)
        new = np.tanh(w_n @ now + b_n + r * (u_n @ h + c_n))
        h = (1 - z) * new + z * h
        states.append(h)
    return np.array(states)


def test_states_follow_the_equations():
    torch.manual_seed(0)
    module, x = build([(9, 4)], 1, width=5, hidden=3).eval(), torch.randn(2, 9, 4)
    x[1, 6:] = float("nan")
    states, _ = module.states(x)
    projected = module.project(torch.nan_to_num(x)).detach().double().numpy()
    for row, n in enumerate((9, 6)):
        expected = gru_by_the_book(projected[row, :n], module.recurrent.forwards[0])
        np.testing.assert_allclose(states[row, :n].detach(), expected, atol=1e-6)
        np.testing.assert_allclose(module.embed(x)[row].detach(), expected.mean(axis=0), atol=1e-6)


def test_attention_weighs_the_states_that_there_are():
    torch.manual_seed(0)
    module, x = build([(9, 4)], 1, attention=True).eval(), torch.randn(2, 9, 4)
    x[1, 6:] = float("nan")
    states, weights = module.states(x)[0], module.weights(x)
    assert (weights[1, 6:] == 0).all()
    assert weights.std(dim=1).min() > 0
    expected = torch.stack(
        [sum(w * h for w, h in zip(*pair, strict=True)) for pair in zip(weights, states, strict=True)]
    )
    torch.testing.assert_close(module.embed(x), expected)


def test_padding_changes_nothing():
    torch.manual_seed(0)
    module, x = build([(9, 4)], 2).eval(), torch.randn(3, 9, 4)
    padded = torch.cat([x, torch.full((3, 5, 4), float("nan"))], dim=1)
    torch.testing.assert_close(module(padded), module(x))


def test_order_of_states_is_told_where_connectivity_is_alike():
    assert planted.auc("gru") > 0.8
    assert planted.linear_auc("gru") < 0.65
