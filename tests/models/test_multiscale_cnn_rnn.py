import numpy as np
import planted
import pytest
import torch

from bids_dl.models.multiscale_cnn_rnn import build


def patterns_by_the_book(x, module, pool):
    """Each filter at each time point, by loops; then the largest of every few neighbours; x is (time, roi)."""
    found = []
    for scale, convolution in zip(module.scales, module.convolutions, strict=True):
        weight, bias = (p.detach().double().numpy() for p in (convolution.weight, convolution.bias))
        for kernel, b in zip(weight, bias, strict=True):
            course = []
            for time in range(len(x)):
                total = b
                for lag in range(scale):
                    at = time + lag - (scale - 1) // 2
                    total += kernel[:, lag] @ x[at] if 0 <= at < len(x) else 0
                course.append(max(0.0, total))
            found.append([max(course[start : start + pool]) for start in range(0, len(x), pool)])
    return np.array(found).T


@pytest.mark.parametrize("n", [9, 10])
def test_patterns_follow_the_textbook(n):
    torch.manual_seed(0)
    module, x = build([(12, 4)], 1, n_filters=2).eval(), torch.randn(2, 12, 4)
    x[1, n:] = float("nan")
    found, mask = module.patterns(x)
    for row, length in enumerate((12, n)):
        expected = patterns_by_the_book(x[row, :length].double().numpy(), module, 3)
        assert int(mask[row].sum()) == len(expected)
        np.testing.assert_allclose(found[row, : len(expected)].detach(), expected, atol=1e-5)


@pytest.mark.parametrize("extra", [1, 2, 3, 7])
def test_padding_changes_nothing(extra):
    torch.manual_seed(0)
    module, x = build([(10, 4)], 2).eval(), torch.randn(3, 10, 4)
    padded = torch.cat([x, torch.full((3, extra, 4), float("nan"))], dim=1)
    torch.testing.assert_close(module(padded), module(x))


def test_every_scale_counts():
    torch.manual_seed(0)
    module, x = build([(12, 4)], 1, n_filters=4).eval(), torch.randn(3, 12, 4)
    before = module(x)
    for convolution in module.convolutions:
        kept = convolution.weight.detach().clone()
        torch.nn.init.zeros_(convolution.weight)
        assert (module(x) - before).abs().max() > 1e-4
        convolution.weight.data.copy_(kept)


def test_order_of_states_is_told_where_connectivity_is_alike():
    assert planted.auc("multiscale_cnn_rnn") > 0.8
    assert planted.linear_auc("multiscale_cnn_rnn") < 0.65
