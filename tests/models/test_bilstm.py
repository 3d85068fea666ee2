import planted
import torch

from bids_dl.models.bilstm import build


def test_states_of_every_window_count_alike():
    torch.manual_seed(0)
    module, x = build([(7, 15)], 1).eval(), torch.randn(2, 7, 15)
    x[1, 5:] = float("nan")
    states, _ = module.states(x)
    torch.testing.assert_close(module.embed(x), torch.stack([states[0].mean(dim=0), states[1, :5].mean(dim=0)]))
    torch.testing.assert_close(module.weights(x)[1], torch.tensor([0.2] * 5 + [0.0] * 2))


def test_state_of_a_window_knows_those_before_and_after_it():
    torch.manual_seed(0)
    module, x = build([(7, 15)], 1, hidden=4).eval(), torch.randn(1, 7, 15)
    changed = x.clone()
    changed[:, 3] += 1
    moved = (module.states(changed)[0] - module.states(x)[0]).abs()[0]
    assert (moved[:3, :4] == 0).all() and (moved[3:, :4] > 0).any(dim=1).all()
    assert (moved[4:, 4:] == 0).all() and (moved[:4, 4:] > 0).any(dim=1).all()


def test_neither_direction_sees_padding():
    torch.manual_seed(0)
    module, x = build([(7, 15)], 2, attention=True).eval(), torch.randn(3, 7, 15)
    padded = torch.cat([x, torch.full((3, 4, 15), float("nan"))], dim=1)
    torch.testing.assert_close(module(padded), module(x))


def test_order_of_states_is_told_where_mean_connectivity_is_alike():
    assert planted.auc("bilstm") > 0.8
    assert planted.linear_auc("bilstm") < 0.65
