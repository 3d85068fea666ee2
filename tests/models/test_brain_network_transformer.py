import connectomes
import numpy as np
import planted
import pytest
import torch

from bids_dl.errors import UsageError
from bids_dl.models.brain_network_transformer import ClusterReadout, Coded, Layer, build


def slow_attention(layer, h):
    """Scaled dot-product attention, head by head and region by region (Vaswani et al. 2017, equation 1)."""
    n, width = h.shape
    query, key, value = np.split(h @ layer.mix.weight.detach().numpy().T + layer.mix.bias.detach().numpy(), 3, axis=1)
    size, mixed = width // layer.n_heads, np.zeros((n, width))
    for head in range(layer.n_heads):
        at = slice(head * size, (head + 1) * size)
        for i in range(n):
            exps = np.exp([query[i, at] @ key[j, at] / np.sqrt(size) for j in range(n)])
            mixed[i, at] = sum(e / exps.sum() * value[j, at] for j, e in enumerate(exps))
    return mixed @ layer.out.weight.detach().numpy().T + layer.out.bias.detach().numpy()


def test_attention_follows_the_paper_word_for_word():
    torch.manual_seed(0)
    layer, h = Layer(8, 2, 0.0), torch.randn(3, 5, 8)
    np.testing.assert_allclose(layer.attend(h).detach(), [slow_attention(layer, one) for one in h.numpy()], atol=1e-5)


def test_readout_follows_the_paper_word_for_word():
    torch.manual_seed(0)
    readout, h = ClusterReadout(3, 8), torch.randn(2, 5, 8)
    centres, expected = readout.centres.detach().numpy(), np.zeros((2, 3, 8))
    for one in range(2):
        for region in h[one].numpy():
            exps = np.exp([region @ centre for centre in centres])
            for cluster in range(3):
                expected[one, cluster] += exps[cluster] / exps.sum() * region
    np.testing.assert_allclose(readout(h).detach(), expected, atol=1e-5)


def test_regions_are_told_by_a_few_numbers():
    torch.manual_seed(0)
    module, h = Coded(5 * 8, 3), torch.randn(20, 5, 8)
    told = module(h).flatten(1).detach()
    assert module(h).shape == h.shape
    assert torch.linalg.matrix_rank(told - told.mean(dim=0), rtol=1e-4) == 3


def test_centres_start_orthonormal():
    centres = build([(28,)], 1).readout.centres
    torch.testing.assert_close(centres @ centres.T, torch.eye(len(centres)), atol=1e-5, rtol=0)


def test_order_of_the_regions_does_not_matter_if_the_projection_is_moved_with_them():
    torch.manual_seed(0)
    module = build([(28,)], 1, n_codes=0).eval()
    x, order = torch.randn(3, 28), torch.randperm(8)
    expected = module(x)
    assert not torch.allclose(
        module(connectomes.moved(x, order)), expected, atol=1e-4
    )  # a region is known by its column
    with torch.no_grad():
        module.project.weight.copy_(module.project.weight[:, order].clone())
    torch.testing.assert_close(module(connectomes.moved(x, order)), expected, atol=1e-5, rtol=1e-4)


def test_heads_that_do_not_divide_the_units_are_refused():
    with pytest.raises(UsageError, match="3 heads do not divide 64 units"):
        build([(28,)], 1, n_heads=3)


def test_more_clusters_than_units_are_refused():
    with pytest.raises(UsageError, match="80 clusters are more than 64 units"):
        build([(28,)], 1, n_clusters=80)


@pytest.mark.slow
def test_product_of_two_sets_of_edges_is_learned_where_a_linear_model_cannot():
    assert planted.auc("brain_network_transformer") > 0.8
    assert planted.linear_auc("brain_network_transformer") < 0.65
