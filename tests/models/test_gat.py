import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from bids_dl import training, zoo
from bids_dl.errors import UsageError
from bids_dl.layers import Connectome
from bids_dl.models.gat import GraphAttention, build
from bids_dl.records import Block, Cohort, Split, Target

SETTINGS = {"n_epochs": 40, "patience": 40, "learning_rate": 3e-3, "batch_size": 32}


def cohort(edges, y):
    people = pd.DataFrame({"participant_id": [f"sub-{i:03d}" for i in range(len(y))]})
    return Cohort(people, {"edges": Block(edges, ("edge",))}, Target("target", y.astype(float), ("a", "b")))


def held_out_auc(model, data, **options):
    n = len(data.target.values)
    split = Split(np.arange(0, n // 2), np.arange(n // 2, 3 * n // 5), np.arange(3 * n // 5, n), "one")
    definition = training.define(model, [data.features["edges"].shape], 1, options)
    asked = {**(zoo.constant("models", model, "SCHEDULE") or {}), **SETTINGS} if model != "linear" else {}
    fitted = training.train(definition, data, split, ["edges"], training.Settings(**asked, device="cpu"))
    return roc_auc_score(data.target.values[split.test], training.predict(fitted, data, split.test)[:, 1])


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


def moved(edges, order):
    """Give the regions another order: the edges of the matrix whose rows and columns are moved."""
    connectome = Connectome(edges.shape[1])
    matrix = connectome(edges)[:, order][:, :, order]
    return matrix[:, connectome.row, connectome.column]


def test_order_of_the_regions_does_not_matter_where_only_degrees_are_known():
    torch.manual_seed(0)
    module = build([(28,)], 1, node_features="degree", pooling="mean", density=0.3).eval()
    x, order = torch.randn(3, 28), torch.randperm(8)
    torch.testing.assert_close(module(moved(x, order)), module(x), atol=1e-5, rtol=1e-4)


def test_order_of_the_regions_does_not_matter_if_the_projection_is_moved_with_them():
    torch.manual_seed(0)
    module = build([(28,)], 1, pooling="mean", density=0.3).eval()
    x, order = torch.randn(3, 28), torch.randperm(8)
    expected = module(x)
    assert not torch.allclose(module(moved(x, order)), expected, atol=1e-4)  # a region is known by its column
    with torch.no_grad():
        module.features.project.weight.copy_(module.features.project.weight[:, order].clone())
    torch.testing.assert_close(module(moved(x, order)), expected, atol=1e-5, rtol=1e-4)


def test_heads_that_do_not_divide_the_units_are_refused():
    with pytest.raises(UsageError, match="gat: 3 heads do not divide 16 units"):
        build([(28,)], 1, n_heads=3)


def product_of_two_parts(n=400, n_regions=12, shift=1.0, seed=0):
    """Two sets of edges are both up or both down in one class, else one up and one down: no edge differs in its mean."""
    generator = np.random.default_rng(seed)
    first, second = generator.choice([-1, 1], (2, n))
    edges = generator.normal(size=(n, n_regions * (n_regions - 1) // 2)).astype(np.float32)
    row, column = np.triu_indices(n_regions, 1)
    edges[:, (row < 4) & (column < 4)] += shift * first[:, None]
    edges[:, (row >= 8) & (column >= 8)] += shift * second[:, None]
    return cohort(edges, first * second > 0)


@pytest.mark.slow
def test_product_of_two_sets_of_edges_is_learned_where_a_linear_model_cannot():
    data = product_of_two_parts()
    assert held_out_auc("linear", data) < 0.65
    assert held_out_auc("gat", data) > 0.8
