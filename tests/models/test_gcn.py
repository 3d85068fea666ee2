import itertools

import connectomes
import numpy as np
import planted
import pytest
import torch

from bids_dl.layers import Connectome
from bids_dl.models.gcn import build
from bids_dl.normalization import Normalization


def slow_graph(values, density):
    """Keep the strongest edges, in units of their mean, add loops, divide by the roots of the strengths."""
    n = Connectome(len(values)).n
    threshold = sorted(values, reverse=True)[round(density * len(values)) - 1]
    kept = [v if v >= threshold and v > 0 else 0.0 for v in values]
    mean, matrix = sum(kept) / sum(v > 0 for v in kept), np.eye(n)
    for value, (i, j) in zip(kept, itertools.combinations(range(n), 2), strict=True):
        matrix[i, j] = matrix[j, i] = value / mean
    strength = matrix.sum(axis=1)
    return np.array([[matrix[i, j] / np.sqrt(strength[i] * strength[j]) for j in range(n)] for i in range(n)])


def slow_regions(module, x, measured):
    """Follow Kipf and Welling region by region: h_i = relu(sum_j A_ij W h_j)."""
    graph, profiles = slow_graph(measured, module.density), module.connectome(x[None])[0].numpy()
    h = list(profiles)
    for layer in (module.features.project, *module.layers):
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        h = [np.maximum(sum(graph[i, j] * (weight @ h[j] + bias) for j in range(len(h))), 0) for i in range(len(h))]
    return np.array(h)


def test_convolutions_follow_the_paper_word_for_word():
    torch.manual_seed(0)
    module, generator = build([(28,)], 1, density=0.3).eval(), np.random.default_rng(0)
    mean, scale = generator.normal(0.3, 0.2, 28).astype(np.float32), np.full(28, 0.5, np.float32)
    module.adopt(Normalization(mean, scale))
    x = torch.randn(3, 28)
    expected = [slow_regions(module, one, one.numpy() * scale + mean) for one in x]
    np.testing.assert_allclose(module.regions(x).detach(), expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_order_of_the_regions_does_not_matter_where_only_degrees_are_known(pooling):
    torch.manual_seed(0)
    module = build([(28,)], 1, node_features="degree", pooling=pooling, density=0.3).eval()
    x, order = torch.randn(3, 28), torch.randperm(8)
    torch.testing.assert_close(module(connectomes.moved(x, order)), module(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("node_features", ["profile", "identity"])
def test_order_of_the_regions_does_not_matter_if_the_projection_is_moved_with_them(node_features):
    torch.manual_seed(0)
    module = build([(28,)], 1, node_features=node_features, pooling="mean", density=0.3).eval()
    x, order = torch.randn(3, 28), torch.randperm(8)
    expected = module(x)
    assert not torch.allclose(
        module(connectomes.moved(x, order)), expected, atol=1e-4
    )  # a region is known by its column
    with torch.no_grad():
        module.features.project.weight.copy_(module.features.project.weight[:, order].clone())
    torch.testing.assert_close(module(connectomes.moved(x, order)), expected, atol=1e-5, rtol=1e-4)


def test_directed_connectome_takes_up_from_the_row():
    torch.manual_seed(0)
    module = build([(12,)], 1, True, node_features="identity", pooling="concat", hidden=(4,), density=0.1).eval()
    module.features.project.weight.data.abs_()
    x = torch.zeros(1, 12)
    x[0, 1] = 1.0  # from region 0 to 2
    regions, none = module.regions(x)[0], module.regions(torch.zeros(1, 12))[0]
    changed = ~torch.isclose(regions, none).all(dim=1)
    assert changed.tolist() == [True, False, True, False]  # 2 is weakened by its strength as a column alone
    own = torch.relu(module.features.project.weight[:, 2] / 2**0.5)
    torch.testing.assert_close(regions[2], own)


@pytest.mark.slow
def test_number_of_modules_is_learned_where_a_linear_model_cannot():
    data = connectomes.one_module_or_two()
    options = {"node_features": "degree", "pooling": "mean", "density": 0.4, "hidden": [16, 16]}
    assert planted.auc_of(planted.fit("linear", data), data) < 0.65
    assert planted.auc_of(planted.fit("gcn", data, options, **planted.GRAPH), data) > 0.8


@pytest.mark.slow
def test_product_of_two_sets_of_edges_is_learned_where_a_linear_model_cannot():
    assert planted.auc("gcn") > 0.8
    assert planted.linear_auc("gcn") < 0.65
