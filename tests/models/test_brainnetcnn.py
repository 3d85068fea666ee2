import numpy as np
import planted
import pytest
import torch

from bids_dl.models.brainnetcnn import EdgeToEdge, EdgeToNode, build


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


@pytest.mark.parametrize("n_in", [1, 2])
def test_edge_to_edge_follows_the_paper_word_for_word(n_in):
    torch.manual_seed(0)
    layer, matrix = randomised(EdgeToEdge(5, n_in, 3)), torch.randn(2, n_in, 5, 5)
    expected = [slow_edge_to_edge(layer, one) for one in matrix.numpy()]
    np.testing.assert_allclose(layer(matrix).detach(), expected, atol=1e-4)


def test_edge_to_edge_is_the_two_convolutions_that_others_write():
    torch.manual_seed(0)
    layer, matrix = randomised(EdgeToEdge(5, 2, 3)), torch.randn(2, 2, 5, 5)
    rows = torch.nn.functional.conv2d(matrix, layer.row.unsqueeze(2), layer.bias)  # (participant, filter, 5, 1)
    columns = torch.nn.functional.conv2d(matrix, layer.column.unsqueeze(3))  # (participant, filter, 1, 5)
    torch.testing.assert_close(layer(matrix), rows + columns, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("directed", [False, True])
def test_edge_to_node_follows_the_paper_word_for_word(directed):
    torch.manual_seed(0)
    layer, matrix = randomised(EdgeToNode(5, 2, 3, directed=directed)), torch.randn(2, 2, 5, 5)
    expected = [slow_edge_to_node(layer, one) for one in matrix.numpy()]
    np.testing.assert_allclose(layer(matrix).detach(), expected, atol=1e-4)


def test_direction_of_an_edge_matters_where_there_is_one():
    torch.manual_seed(0)
    module, x = build([(12,)], 1, True).eval(), torch.randn(2, 12)
    off = ~torch.eye(module.connectome.n, dtype=torch.bool)
    turned = module.connectome(x).transpose(1, 2)[:, off]
    assert not torch.allclose(module(turned), module(x))


def test_several_edge_to_edge_layers_follow_one_another():
    torch.manual_seed(0)
    module, x = build([(28,)], 1, edge_filters=(3, 2)).eval(), torch.randn(2, 28)
    h = module.connectome(x).unsqueeze(1)
    for layer in module.edges:
        h = torch.nn.functional.leaky_relu(layer(h), 0.33)
    regions = torch.nn.functional.leaky_relu(module.nodes(h), 0.33).flatten(1)
    expected = torch.nn.functional.leaky_relu(module.graph(regions), 0.33)
    assert h.shape == (2, 2, 8, 8)
    torch.testing.assert_close(module.embed(x), expected)


@pytest.mark.slow
def test_product_of_two_sets_of_edges_is_learned_where_a_linear_model_cannot():
    assert planted.auc("brainnetcnn") > 0.8
    assert planted.linear_auc("brainnetcnn") < 0.65
