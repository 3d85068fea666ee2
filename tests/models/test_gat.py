import connectomes
import numpy as np
import planted
import pytest
import torch

from bids_dl.errors import UsageError
from bids_dl.models.gat import GraphAttention, build


def slow_attention(layer, h, graph):
    """Follow Veličković et al. region by region, neighbour by neighbour; the heads side by side."""
    own, other = layer.own.detach().numpy(), layer.other.detach().numpy()
    n_heads, width = own.shape
    found = np.zeros_like(h)
    for head in range(n_heads):
        part = h[:, head * width : (head + 1) * width]
        for i in range(len(h)):
            near = [j for j in range(len(h)) if graph[i, j]]
            scores = [own[head] @ part[i] + other[head] @ part[j] for j in near]
            exps = [np.exp(s if s > 0 else 0.2 * s) for s in scores]
            shares = [e / sum(exps) for e in exps]
            found[i, head * width : (head + 1) * width] = sum(a * part[j] for a, j in zip(shares, near, strict=True))
    return found


def looped(n_participants, n_regions):
    return (torch.rand(n_participants, n_regions, n_regions) > 0.6) | torch.eye(n_regions, dtype=torch.bool)


def test_attention_follows_the_paper_word_for_word():
    torch.manual_seed(0)
    layer, h, graph = GraphAttention(6, 2), 2 * torch.randn(3, 7, 6), looped(3, 7)
    expected = [slow_attention(layer, *pair) for pair in zip(h.numpy(), graph.numpy(), strict=True)]
    np.testing.assert_allclose(layer(h, graph).detach(), expected, atol=1e-5)


def test_shares_sum_to_one_and_lie_on_neighbours_only_however_large_the_scores_are():
    torch.manual_seed(0)
    layer, graph = GraphAttention(6, 2), looped(2, 7)
    for size in (1.0, 1e4):
        shares = layer.weights(size * torch.randn(2, 7, 6), torch.ones(2, 7, 7, dtype=torch.bool))
        torch.testing.assert_close(shares.sum(dim=3), torch.ones(2, 2, 7))
    shares = layer.weights(torch.randn(2, 7, 6), graph)
    assert not shares[(~graph).unsqueeze(1).expand_as(shares)].any()


def test_order_of_the_regions_does_not_matter_where_only_degrees_are_known():
    torch.manual_seed(0)
    module = build([(28,)], 1, node_features="degree", pooling="mean", density=0.3).eval()
    x, order = torch.randn(3, 28), torch.randperm(8)
    torch.testing.assert_close(module(connectomes.moved(x, order)), module(x), atol=1e-5, rtol=1e-4)


def test_order_of_the_regions_does_not_matter_if_the_projection_is_moved_with_them():
    torch.manual_seed(0)
    module = build([(28,)], 1, pooling="mean", density=0.3).eval()
    x, order = torch.randn(3, 28), torch.randperm(8)
    expected = module(x)
    assert not torch.allclose(
        module(connectomes.moved(x, order)), expected, atol=1e-4
    )  # a region is known by its column
    with torch.no_grad():
        module.features.project.weight.copy_(module.features.project.weight[:, order].clone())
    torch.testing.assert_close(module(connectomes.moved(x, order)), expected, atol=1e-5, rtol=1e-4)


def test_heads_that_do_not_divide_the_units_are_refused():
    with pytest.raises(UsageError, match="gat: 3 heads do not divide 16 units"):
        build([(28,)], 1, n_heads=3)


@pytest.mark.slow
def test_product_of_two_sets_of_edges_is_learned_where_a_linear_model_cannot():
    assert planted.auc("gat") > 0.8
    assert planted.linear_auc("gat") < 0.65
