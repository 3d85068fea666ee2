import numpy as np
import planted
import pytest
import torch

from bids_dl.models.attention_rnn import build


@pytest.mark.parametrize("lstm", [False, True])
def test_second_direction_is_the_first_over_time_turned_round(lstm):
    torch.manual_seed(0)
    module, x = build([(9, 4)], 1, hidden=3, lstm=lstm).eval(), torch.randn(2, 9, 4)
    module.recurrent.backwards.load_state_dict(module.recurrent.forwards.state_dict())
    there, back = module.states(x)[0].split(3, dim=2)
    again = module.states(x.flip(1))[0][..., :3].flip(1)
    torch.testing.assert_close(back, again)
    assert (there - back).abs().max() > 1e-3


@pytest.mark.parametrize("lstm", [False, True])
def test_states_are_those_of_a_bidirectional_layer(lstm):
    torch.manual_seed(0)
    module, x = build([(9, 4)], 1, width=5, hidden=3, lstm=lstm).eval(), torch.randn(2, 9, 4)
    peer = (torch.nn.LSTM if lstm else torch.nn.GRU)(5, 3, batch_first=True, bidirectional=True)
    ways = module.recurrent.forwards[0].state_dict(), module.recurrent.backwards[0].state_dict()
    peer.load_state_dict(
        {k + tail: v for way, tail in zip(ways, ("", "_reverse"), strict=True) for k, v in way.items()}
    )
    torch.testing.assert_close(module.states(x)[0], peer(module.project(x))[0])


@pytest.mark.parametrize("lstm", [False, True])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_neither_direction_sees_padding(lstm, n_layers):
    torch.manual_seed(0)
    module, x = build([(9, 4)], 2, lstm=lstm, n_layers=n_layers).eval(), torch.randn(3, 9, 4)
    padded = torch.cat([x, torch.full((3, 5, 4), float("nan"))], dim=1)
    torch.testing.assert_close(module(padded), module(x))
    torch.testing.assert_close(module.states(padded)[0][:, :9], module.states(x)[0])


def test_weights_belong_to_the_time_points_they_stand_at():
    torch.manual_seed(0)
    module, x = build([(9, 4)], 1).eval(), torch.randn(3, 9, 4)
    scrubbed = torch.cat([x[:, :4], torch.full((3, 2, 4), float("nan")), x[:, 4:]], dim=1)
    weights = module.weights(scrubbed)
    assert (weights[:, 4:6] == 0).all()
    torch.testing.assert_close(weights[:, [0, 1, 2, 3, 6, 7, 8, 9, 10]], module.weights(x))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3))


def test_attention_follows_the_paper_word_for_word():
    torch.manual_seed(0)
    module, x = build([(9, 4)], 1).eval(), torch.randn(2, 9, 4)
    states = module.states(x)[0].detach().double().numpy()
    w, b = (p.detach().double().numpy() for p in module.pool.project.parameters())
    v = module.pool.score.weight.detach().double().numpy()[0]
    for row in range(2):
        energy = np.array([v @ np.tanh(w @ h + b) for h in states[row]])
        share = np.exp(energy) / np.exp(energy).sum()
        np.testing.assert_allclose(module.weights(x)[row].detach(), share, atol=1e-6)
        np.testing.assert_allclose(module.embed(x)[row].detach(), share @ states[row], atol=1e-6)


def test_order_of_states_is_told_where_connectivity_is_alike():
    assert planted.auc("attention_rnn") > 0.8
    assert planted.linear_auc("attention_rnn") < 0.65
