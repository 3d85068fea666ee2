import numpy as np
import planted
import pytest
import torch

from bids_dl.models.brainnetcnn import EdgeToEdge, EdgeToNode, build, weighed


def slow_edge_to_edge(layer, matrix):
    """Kawahara et al., equation 1: every edge, every filter, every channel, every region."""
    row, column, bias = (p.detach().numpy() for p in (layer.row, layer.column, layer.bias))
    n_out, n_in, n = row.shape
    found = np.zeros((n_out, n, n))
    for o in range(n_out):
        for i in range(n):
            for j in range(n):
                cross = [
                    row[o, c, k] * matrix[c, i, k] + column[o, c, k] * matrix[c, k, j]
                    for c in range(n_in)
                    for k in range(n)
                ]
                found[o, i, j] = sum(cross) + bias[o]
    return found


def slow_edge_to_node(layer, matrix):
    """Kawahara et al., equation 2."""
    row, bias = layer.row.detach().numpy(), layer.bias.detach().numpy()
    column = np.zeros_like(row) if layer.column is None else layer.column.detach().numpy()
    n_out, n_in, n = row.shape
    found = np.zeros((n_out, n))
    for o in range(n_out):
        for i in range(n):
            star = [
                row[o, c, k] * matrix[c, i, k] + column[o, c, k] * matrix[c, k, i]
                for c in range(n_in)
                for k in range(n)
            ]
            found[o, i] = sum(star) + bias[o]
    return found


def randomised(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def as_edges(near, far):
    """Lay out every edge of every filter, (participant, filter, region, region)."""
    return torch.nn.functional.leaky_relu(near.unsqueeze(3) + far.unsqueeze(2), 0.33)


def test_first_edge_to_edge_layer_follows_the_paper_word_for_word():
    torch.manual_seed(0)
    layer, matrix = randomised(EdgeToEdge(5, 1, 3)), torch.randn(2, 5, 5)
    rows, columns = layer(matrix)
    expected = [slow_edge_to_edge(layer, one) for one in matrix.unsqueeze(1).numpy()]
    np.testing.assert_allclose((rows.unsqueeze(3) + columns.unsqueeze(2)).detach(), expected, atol=1e-4)


def test_later_edge_to_edge_layer_follows_the_paper_word_for_word():
    torch.manual_seed(0)
    layer, near, far = randomised(EdgeToEdge(5, 2, 3)), torch.randn(2, 2, 5), torch.randn(2, 2, 5)
    rows, columns = layer(near, far)
    expected = [slow_edge_to_edge(layer, one) for one in as_edges(near, far).numpy()]
    np.testing.assert_allclose((rows.unsqueeze(3) + columns.unsqueeze(2)).detach(), expected, atol=1e-4)


def test_later_edge_to_edge_layer_is_the_two_convolutions_that_others_write():
    torch.manual_seed(0)
    layer, near, far = randomised(EdgeToEdge(5, 2, 3)), torch.randn(2, 2, 5), torch.randn(2, 2, 5)
    rows, columns = layer(near, far)
    edges = as_edges(near, far)
    by_rows = torch.nn.functional.conv2d(edges, layer.row.unsqueeze(2), layer.bias)  # (participant, filter, 5, 1)
    by_columns = torch.nn.functional.conv2d(edges, layer.column.unsqueeze(3))  # (participant, filter, 1, 5)
    found = rows.unsqueeze(3) + columns.unsqueeze(2)
    torch.testing.assert_close(found, by_rows + by_columns, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("directed", [False, True])
def test_edge_to_node_follows_the_paper_word_for_word(directed):
    torch.manual_seed(0)
    layer = randomised(EdgeToNode(5, 2, 3, directed=directed))
    near, far = torch.randn(2, 2, 5), torch.randn(2, 2, 5)
    expected = [slow_edge_to_node(layer, one) for one in as_edges(near, far).numpy()]
    np.testing.assert_allclose(layer(near, far).detach(), expected, atol=1e-4)


def test_sums_over_sorted_regions_have_the_gradients_of_those_over_all_edges():
    torch.manual_seed(0)
    given = [torch.randn(3, 4, 50), torch.randn(3, 4, 50), torch.randn(6, 4, 50)]
    sums, slow_sums = [], []
    for made, of in (
        (sums, weighed),
        (slow_sums, lambda near, far, weight: torch.einsum("pcik,ock->poi", as_edges(near, far), weight)),
    ):
        leaves = [one.clone().requires_grad_() for one in given]
        found = of(*leaves)
        (found**2).sum().backward()
        made.extend([found.detach(), *(leaf.grad for leaf in leaves)])
    for fast, slow in zip(sums, slow_sums, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-3, rtol=1e-4)


def test_edges_that_are_exactly_zero_or_alike_are_counted_once():
    near, far = torch.tensor([[[0.0, 1.0, -1.0]]]), torch.tensor([[[0.0, -1.0, 1.0]]])
    weight = torch.ones(1, 1, 3)
    expected = torch.einsum("pcik,ock->poi", as_edges(near, far), weight)
    torch.testing.assert_close(weighed(near, far, weight), expected)


def test_direction_of_an_edge_matters_where_there_is_one():
    torch.manual_seed(0)
    module, x = build([(12,)], 1, True).eval(), torch.randn(2, 12)
    off = ~torch.eye(module.connectome.n, dtype=torch.bool)
    turned = module.connectome(x).transpose(1, 2)[:, off]
    assert not torch.allclose(module(turned), module(x))


def test_several_edge_to_edge_layers_follow_one_another():
    torch.manual_seed(0)
    module, x = build([(28,)], 1, edge_filters=(3, 2)).eval(), torch.randn(2, 28)
    edges = module.connectome(x).unsqueeze(1).detach()
    for layer in module.edges:
        found = np.stack([slow_edge_to_edge(layer, one) for one in edges.numpy()]).astype(np.float32)
        edges = torch.nn.functional.leaky_relu(torch.from_numpy(found), 0.33)
    regions = np.stack([slow_edge_to_node(module.nodes, one) for one in edges.numpy()]).astype(np.float32)
    regions = torch.nn.functional.leaky_relu(torch.from_numpy(regions), 0.33).flatten(1)
    expected = torch.nn.functional.leaky_relu(module.graph(regions), 0.33)
    assert edges.shape == (2, 2, 8, 8)
    torch.testing.assert_close(module.embed(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_product_of_two_sets_of_edges_is_learned_where_a_linear_model_cannot():
    assert planted.auc("brainnetcnn") > 0.8
    assert planted.linear_auc("brainnetcnn") < 0.65
