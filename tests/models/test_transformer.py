import math

import numpy as np
import planted
import pytest
import torch

from bids_dl.errors import UsageError
from bids_dl.models.transformer import build


def normed(h, layer):
    weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
    return (h - h.mean(axis=-1, keepdims=True)) / np.sqrt(h.var(axis=-1, keepdims=True) + layer.eps) * weight + bias


def linear(h, weight, bias):
    return h @ weight.detach().double().numpy().T + bias.detach().double().numpy()


def attention_by_the_book(h, attention):
    """Scaled dot products of every two time points, head by head; h is (time, unit)."""
    q, k, v = np.split(linear(h, attention.in_proj_weight, attention.in_proj_bias), 3, axis=1)
    size = q.shape[1] // attention.num_heads
    found = np.zeros_like(h)
    for head in range(attention.num_heads):
        at = slice(head * size, (head + 1) * size)
        for time in range(len(h)):
            scores = np.array([q[time, at] @ k[other, at] / math.sqrt(size) for other in range(len(h))])
            share = np.exp(scores - scores.max())
            share /= share.sum()
            found[time, at] = sum(s * v[other, at] for other, s in enumerate(share))
    return linear(found, attention.out_proj.weight, attention.out_proj.bias)


def encoder_by_the_book(h, layer):
    h = normed(h + attention_by_the_book(h, layer.self_attn), layer.norm1)
    inner = np.maximum(0, linear(h, layer.linear1.weight, layer.linear1.bias))
    return normed(h + linear(inner, layer.linear2.weight, layer.linear2.bias), layer.norm2)


def positions_by_the_book(n, width):
    return np.array(
        [
            [(math.sin, math.cos)[unit % 2](time / 10_000 ** ((unit - unit % 2) / width)) for unit in range(width)]
            for time in range(n)
        ]
    )


@pytest.mark.parametrize("training", [False, True], ids=["fast path", "with gradient"])
def test_embedding_follows_the_paper_word_for_word(training):
    torch.manual_seed(0)
    module, x = build([(6, 4)], 1, width=8, n_heads=2, n_layers=2, dropout=0.0).train(training), torch.randn(2, 6, 4)
    x[1, 4:] = float("nan")
    with torch.set_grad_enabled(training):
        found = module.embed(x).detach()
    projected = module.project(torch.nan_to_num(x)).detach().double().numpy()
    for row, n in enumerate((6, 4)):
        h = projected[row, :n] + positions_by_the_book(n, 8)
        for layer in module.encoder.layers:
            h = encoder_by_the_book(h, layer)
        np.testing.assert_allclose(found[row], h.mean(axis=0), atol=1e-5)


def test_padding_changes_nothing():
    torch.manual_seed(0)
    module, x = build([(9, 4)], 2).eval(), torch.randn(3, 9, 4)
    padded = torch.cat([x, torch.full((3, 5, 4), float("nan"))], dim=1)
    torch.testing.assert_close(module(padded), module(x))


def test_participant_without_a_time_point_leaves_the_gradient_finite():
    torch.manual_seed(0)
    module, x = build([(9, 4)], 1), torch.randn(3, 9, 4)
    x[1] = float("nan")
    module(x).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())


def test_without_positions_order_would_not_matter_and_with_them_it_does():
    torch.manual_seed(0)
    module, x = build([(9, 4)], 1).eval(), torch.randn(3, 9, 4)
    assert (module(x.flip(1)) - module(x)).abs().min() > 1e-4


def test_heads_that_cannot_share_the_units_are_refused_with_a_width_that_works():
    with pytest.raises(UsageError, match="width 30 is not a multiple of n_heads 4; use width 28"):
        build([(9, 4)], 1, width=30)


def test_order_of_states_is_told_where_connectivity_is_alike():
    assert planted.auc("transformer") > 0.8
    assert planted.linear_auc("transformer") < 0.65
