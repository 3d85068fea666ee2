import numpy as np
import planted
import torch

from bids_dl.models.lstm import build


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def lstm_by_the_book(x, cell):
    """Run the equations of the paper, with forget gates, one step after the other; x is (time, value)."""
    (w_i, w_f, w_g, w_o), (u_i, u_f, u_g, u_o) = (
        np.split(w.detach().double().numpy(), 4) for w in (cell.weight_ih_l0, cell.weight_hh_l0)
    )
    b_i, b_f, b_g, b_o = np.split((cell.bias_ih_l0 + cell.bias_hh_l0).detach().double().numpy(), 4)
    h, c, states = np.zeros(len(b_i)), np.zeros(len(b_i)), []
    for now in x:
        i = sigmoid(w_i @ now + u_i @ h + b_i)
        f = sigmoid(w_f @ now + u_f @ h + b_f)
        g = np.tanh(w_g @ now + u_g @ h + b_g)
        o = sigmoid(w_o @ now + u_o @ h + b_o)
        c = f * c + i * g
        h = o * np.tanh(c)
        states.append(h)
    return np.array(states)


def test_states_follow_the_equations_of_the_paper():
    torch.manual_seed(0)
    module, x = build([(9, 4)], 1, width=5, hidden=3).eval(), torch.randn(2, 9, 4)
    x[1, 6:] = float("nan")
    states, _ = module.states(x)
    projected = module.project(torch.nan_to_num(x)).detach().double().numpy()
    for row, n in enumerate((9, 6)):
        expected = lstm_by_the_book(projected[row, :n], module.recurrent.forwards[0])
        np.testing.assert_allclose(states[row, :n].detach(), expected, atol=1e-6)
        np.testing.assert_allclose(module.embed(x)[row].detach(), expected.mean(axis=0), atol=1e-6)


def test_second_layer_reads_the_states_of_the_first():
    torch.manual_seed(0)
    module, x = build([(7, 4)], 1, width=5, hidden=3, n_layers=2).eval(), torch.randn(1, 7, 4)
    h = module.project(x)[0].detach().double().numpy()
    for cell in module.recurrent.forwards:
        h = lstm_by_the_book(h, cell)
    np.testing.assert_allclose(module.states(x)[0][0].detach(), h, atol=1e-6)


def test_padding_changes_nothing():
    torch.manual_seed(0)
    module, x = build([(9, 4)], 2, attention=True).eval(), torch.randn(3, 9, 4)
    padded = torch.cat([x, torch.full((3, 5, 4), float("nan"))], dim=1)
    torch.testing.assert_close(module(padded), module(x))


def test_time_point_that_is_missing_within_is_skipped():
    torch.manual_seed(0)
    module, x = build([(9, 4)], 2).eval(), torch.randn(3, 9, 4)
    scrubbed = torch.cat([x[:, :4], torch.full((3, 2, 4), float("nan")), x[:, 4:]], dim=1)
    torch.testing.assert_close(module(scrubbed), module(x))


def test_future_does_not_change_the_state_at_a_time_point():
    torch.manual_seed(0)
    module, x = build([(9, 4)], 1).eval(), torch.randn(2, 9, 4)
    changed = x.clone()
    changed[:, 6:] += 1
    torch.testing.assert_close(module.states(changed)[0][:, :6], module.states(x)[0][:, :6])
    assert (module.states(changed)[0][:, 6:] - module.states(x)[0][:, 6:]).abs().max() > 1e-3


def test_order_of_states_is_told_where_connectivity_is_alike():
    assert planted.auc("lstm") > 0.8
    assert planted.linear_auc("lstm") < 0.65
