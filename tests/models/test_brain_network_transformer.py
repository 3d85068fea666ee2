import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from bids_dl import training, zoo
from bids_dl.errors import UsageError
from bids_dl.layers import Connectome
from bids_dl.models.brain_network_transformer import ClusterReadout, Layer, build
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


def test_centres_start_orthonormal():
    centres = build([(28,)], 1).readout.centres
    torch.testing.assert_close(centres @ centres.T, torch.eye(len(centres)), atol=1e-5, rtol=0)


def moved(edges, order):
    """Give the regions another order: the edges of the matrix whose rows and columns are moved."""
    connectome = Connectome(edges.shape[1])
    matrix = connectome(edges)[:, order][:, :, order]
    return matrix[:, connectome.row, connectome.column]


def test_order_of_the_regions_does_not_matter_if_the_projection_is_moved_with_them():
    torch.manual_seed(0)
    module = build([(28,)], 1).eval()
    x, order = torch.randn(3, 28), torch.randperm(8)
    expected = module(x)
    assert not torch.allclose(module(moved(x, order)), expected, atol=1e-4)  # a region is known by its column
    with torch.no_grad():
        module.project.weight.copy_(module.project.weight[:, order].clone())
    torch.testing.assert_close(module(moved(x, order)), expected, atol=1e-5, rtol=1e-4)


def test_heads_that_do_not_divide_the_units_are_refused():
    with pytest.raises(UsageError, match="3 heads do not divide 32 units"):
        build([(28,)], 1, n_heads=3)


def test_more_clusters_than_units_are_refused():
    with pytest.raises(UsageError, match="40 clusters are more than 32 units"):
        build([(28,)], 1, n_clusters=40)


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
    assert held_out_auc("brain_network_transformer", data) > 0.8
