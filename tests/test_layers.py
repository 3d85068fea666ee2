import math

import numpy as np
import pytest
import torch

from bids_dl import layers
from bids_dl.normalization import Normalization


def test_mean_over_steps_is_that_of_the_steps_that_are_there():
    x = torch.tensor([[[1.0, 2.0], [3.0, float("nan")], [float("nan")] * 2], [[float("nan")] * 2] * 3])
    values, mask = layers.masked(x)
    assert mask.tolist() == [[True, True, False], [False, False, False]]
    torch.testing.assert_close(layers.masked_mean(values, mask), torch.tensor([[2.0, 1.0], [0.0, 0.0]]))


def test_attention_shares_one_out_over_the_steps_that_are_there():
    torch.manual_seed(0)
    pool = layers.AttentionPool(3)
    mask = torch.tensor([[True, True, False, True]])
    weights = pool.weights(torch.randn(1, 4, 3), mask)
    assert weights[0, 2] == 0
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))


def test_attention_pool_follows_the_paper_word_for_word():
    torch.manual_seed(0)
    pool, h = layers.AttentionPool(3, 5), torch.randn(2, 4, 3)
    for one in range(2):
        energies = [float(pool.score(torch.tanh(pool.project(h[one, t]))).detach()) for t in range(4)]
        shares = np.exp(energies) / np.exp(energies).sum()
        expected = sum(s * h[one, t].numpy() for t, s in enumerate(shares))
        found = pool(h, torch.ones(2, 4, dtype=torch.bool))[one].detach()
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_positions_follow_the_paper_word_for_word():
    encoded = layers.positions(7, 6)
    for step in range(7):
        for unit in range(6):
            angle = step / 10_000 ** (2 * (unit // 2) / 6)
            expected = math.sin(angle) if unit % 2 == 0 else math.cos(angle)
            assert math.isclose(float(encoded[step, unit]), expected, abs_tol=1e-5)


@pytest.mark.parametrize(("n_edges", "expected"), [(45, (10, False)), (90, (10, True)), (76_636, (392, False))])
def test_number_of_regions_follows_from_the_edges(n_edges, expected):
    assert layers.n_regions(n_edges) == expected


def test_number_that_is_no_connectome_is_refused():
    with pytest.raises(ValueError, match="17 values are no connectome's edges"):
        layers.n_regions(17)


@pytest.mark.parametrize("directed", [False, True])
def test_connectome_is_laid_out_as_it_was_read(directed):
    matrix = torch.randn(2, 5, 5)
    matrix = (matrix if directed else matrix + matrix.transpose(1, 2)) * (1 - torch.eye(5))
    at = ~np.eye(5, dtype=bool) if directed else np.triu(np.ones((5, 5), bool), 1)
    edges = matrix[:, torch.from_numpy(at)]
    torch.testing.assert_close(layers.Connectome(edges.shape[1])(edges), matrix)


def test_measured_connectome_undoes_the_normalisation():
    values = np.random.default_rng(0).normal(size=(4, 10)).astype(np.float32)
    normal = Normalization(values.mean(axis=0), np.append(np.full(9, 2.0), np.inf).astype(np.float32))
    connectome = layers.Connectome(10)
    connectome.learn(normal)
    found = connectome.measured(torch.from_numpy(normal.apply(values)))[:, connectome.row, connectome.column]
    np.testing.assert_allclose(found[:, :9], values[:, :9], atol=1e-6)
    np.testing.assert_allclose(found[:, 9], np.full(4, values[:, 9].mean()), atol=1e-6)


class Kept(layers.Grown):
    def __init__(self):
        super().__init__()
        self.register_buffer("kept", torch.zeros(0))


def test_grown_buffer_is_loaded_in_the_size_it_was_saved():
    one, other = Kept(), Kept()
    one.kept = torch.arange(5.0)
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(other.kept, one.kept)
