import itertools
import math

import numpy as np
import pytest
import torch

from bids_dl import layers
from bids_dl.errors import UsageError
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


@pytest.mark.parametrize(
    ("n_edges", "directed", "expected"),
    [(45, False, 10), (90, True, 10), (76_636, False, 392), (210, False, 21), (210, True, 15), (242_556, True, 493)],
)
def test_number_of_regions_follows_from_the_edges_and_whether_they_are_directed(n_edges, directed, expected):
    assert layers.n_regions(n_edges, directed=directed) == expected


@pytest.mark.parametrize(("n_edges", "directed", "kind"), [(17, False, "undirected"), (45, True, "directed")])
def test_number_that_is_no_connectome_is_refused(n_edges, directed, kind):
    with pytest.raises(ValueError, match=f"{n_edges} values are no {kind} connectome's edges"):
        layers.n_regions(n_edges, directed=directed)


@pytest.mark.parametrize(("n", "directed"), [(5, False), (5, True), (21, False), (15, True)])
def test_connectome_is_laid_out_as_it_was_read(n, directed):
    matrix = torch.randn(2, n, n)
    matrix = (matrix if directed else matrix + matrix.transpose(1, 2)) * (1 - torch.eye(n))
    at = ~np.eye(n, dtype=bool) if directed else np.triu(np.ones((n, n), bool), 1)
    edges = matrix[:, torch.from_numpy(at)]
    torch.testing.assert_close(layers.Connectome(edges.shape[1], directed=directed)(edges), matrix)


def test_measured_connectome_undoes_the_normalisation():
    values = np.random.default_rng(0).normal(size=(4, 10)).astype(np.float32)
    normal = Normalization(values.mean(axis=0), np.append(np.full(9, 2.0), np.inf).astype(np.float32))
    connectome = layers.Connectome(10)
    connectome.learn(normal)
    row, column = np.triu_indices(connectome.n, 1)
    found = connectome.measured(torch.from_numpy(normal.apply(values)))[:, row, column]
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


def slow_strongest(values, density):
    """Sort, keep, divide by the mean: one participant's edges as a matrix, written as a person would do it."""
    n = layers.n_regions(len(values))
    keep = sorted(range(len(values)), key=lambda e: -values[e])[: round(density * len(values))]
    keep = [e for e in keep if values[e] > 0]
    matrix, mean = np.zeros((n, n)), np.mean([values[e] for e in keep]) if keep else 1
    for edge, (i, j) in enumerate(itertools.combinations(range(n), 2)):
        if edge in keep:
            matrix[i, j] = matrix[j, i] = values[edge] / mean
    return matrix


def slow_normalised(adjacency):
    n = len(adjacency)
    looped = adjacency + np.eye(n)
    return np.array(
        [[looped[i, j] / math.sqrt(looped[i].sum() * looped[:, j].sum()) for j in range(n)] for i in range(n)]
    )


@pytest.mark.parametrize("density", [0.1, 0.4, 1.0])
def test_strongest_edges_are_those_that_sorting_finds_in_the_unit_of_measurement(density):
    generator = np.random.default_rng(0)
    measured = generator.normal(0.2, 1, (4, 28)).astype(np.float32)
    mean, scale = generator.normal(size=28).astype(np.float32), generator.uniform(0.5, 2, 28).astype(np.float32)
    connectome = layers.Connectome(28)
    connectome.learn(Normalization(mean, scale))
    found = connectome.strongest(torch.from_numpy((measured - mean) / scale), density)
    np.testing.assert_allclose(found, [slow_strongest(m, density) for m in measured], atol=1e-5)


def test_connectome_without_positive_edges_has_no_strongest_one():
    connectome = layers.Connectome(10)
    assert not connectome.strongest(-torch.ones(2, 10), 0.5).any()


def test_unit_of_a_connectome_does_not_change_its_graph():
    connectome, edges = layers.Connectome(10), torch.rand(3, 10)
    torch.testing.assert_close(connectome.strongest(1000 * edges, 0.5), connectome.strongest(edges, 0.5))


def test_profiles_of_a_directed_connectome_tell_both_directions():
    connectome = layers.Connectome(12, directed=True)
    edges = torch.arange(12.0)[None]
    matrix, profiles = connectome(edges), connectome.profiles(edges)
    assert profiles.shape == (1, 4, 8)
    assert profiles.shape[2] == connectome.n_profile
    torch.testing.assert_close(profiles[0, 1], torch.cat([matrix[0, 1], matrix[0, :, 1]]))


def test_normalised_adjacency_follows_the_paper_word_for_word():
    adjacency = torch.rand(2, 5, 5) * (torch.rand(2, 5, 5) > 0.5)
    symmetric = adjacency + adjacency.transpose(1, 2)
    for matrices in (symmetric, adjacency):
        expected = [slow_normalised(m.double().numpy()) for m in matrices]
        np.testing.assert_allclose(layers.normalised(matrices), expected, atol=1e-6)


def test_degree_profile_follows_the_paper_word_for_word():
    connectome = layers.Connectome(28)
    torch.manual_seed(0)
    adjacency = connectome.strongest(torch.randn(2, 28), 0.3)
    found = layers.degree_profile(adjacency, 0.3).numpy()
    for one, matrix in enumerate(adjacency.numpy()):
        strength = matrix.sum(axis=1) / (0.3 * 7) - 1
        for region in range(8):
            near = strength[matrix[region] > 0] if (matrix[region] > 0).any() else strength[[region]]
            expected = [strength[region], near.min(), near.max(), near.mean(), near.std()]
            np.testing.assert_allclose(found[one, region], expected, atol=1e-4)


def test_degree_profile_moves_with_the_regions():
    torch.manual_seed(0)
    adjacency, order = layers.Connectome(28).strongest(torch.randn(2, 28), 0.3), torch.randperm(8)
    moved = layers.degree_profile(adjacency[:, order][:, :, order], 0.3)
    torch.testing.assert_close(moved, layers.degree_profile(adjacency, 0.3)[:, order])


def test_identity_of_a_region_is_its_own_column_of_the_projection():
    features = layers.RegionFeatures(layers.Connectome(10), "identity", 0.5, 3)
    found = features(torch.randn(2, 5, 5), torch.zeros(2, 5, 5))
    torch.testing.assert_close(found[1], features.project(torch.eye(5)))


def test_pooling_and_features_and_density_that_do_not_exist_are_refused():
    with pytest.raises(UsageError, match="pooling is 'sum'; choose from: mean, max, concat"):
        layers.n_pooled(5, 3, "sum")
    with pytest.raises(UsageError, match="node_features is 'age'; choose from: profile"):
        layers.RegionFeatures(layers.Connectome(10), "age", 0.5, 3)
    with pytest.raises(UsageError, match="density is 1.5; give the share"):
        layers.RegionFeatures(layers.Connectome(10), "profile", 1.5, 3)


@pytest.mark.parametrize("pooling", layers.POOLS)
def test_pooled_has_as_many_values_as_counted(pooling):
    h = torch.randn(2, 5, 3)
    assert layers.pooled(h, pooling).shape == (2, layers.n_pooled(5, 3, pooling))
