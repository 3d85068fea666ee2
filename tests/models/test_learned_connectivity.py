import math

import numpy as np
import planted
import torch

from bids_dl.models.learned_connectivity import build


def test_connectivity_follows_the_paper_word_for_word():
    torch.manual_seed(0)
    module, x = build([(6, 4)], 1, n_states=3, n_scores=5).eval(), torch.randn(2, 6, 4)
    x[1, 4:] = float("nan")
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    found = module.connectivity(x)
    for row, n in enumerate((6, 4)):
        courses = [x[row : row + 1, :n, [roi]] for roi in range(4)]
        states = [module.course(one, torch.ones(1, n, dtype=torch.bool))[0] for one in courses]
        matrices = np.zeros((n, 4, 4))
        for time in range(n):
            for target in range(4):
                query = module.query(states[target][time])
                scores = [float(query @ module.key(states[source][time])) / math.sqrt(5) for source in range(4)]
                matrices[time, target] = np.exp(scores) / np.exp(scores).sum()
        flat = torch.from_numpy(matrices * 4 - 1).float().reshape(n, 16)
        energy = np.array([float(module.pool.score(torch.tanh(module.pool.project(one)))) for one in flat])
        share = np.exp(energy) / np.exp(energy).sum()
        np.testing.assert_allclose(module.weights(x)[row, :n], share, atol=1e-6)
        np.testing.assert_allclose(found[row], np.tensordot(share, matrices, 1), atol=1e-6)


def test_sources_of_a_target_share_one_and_the_direction_matters():
    torch.manual_seed(0)
    module, x = build([(6, 4)], 1).eval(), torch.randn(3, 6, 4)
    found = module.connectivity(x)
    torch.testing.assert_close(found.sum(dim=2), torch.ones(3, 4))
    assert (found - found.transpose(1, 2)).abs().max() > 1e-4


def test_matrices_follow_the_order_of_the_regions():
    torch.manual_seed(0)
    module, x = build([(6, 5)], 1).eval(), torch.randn(3, 6, 5)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(module.dynamic(x[:, :, order])[0], module.dynamic(x)[0][:, :, order][:, :, :, order])


def test_padding_changes_nothing():
    torch.manual_seed(0)
    module, x = build([(9, 4)], 2).eval(), torch.randn(3, 9, 4)
    padded = torch.cat([x, torch.full((3, 5, 4), float("nan"))], dim=1)
    torch.testing.assert_close(module(padded), module(x))
    assert (module.weights(padded)[:, 9:] == 0).all()


def test_many_regions_are_combined_to_networks_by_weights_that_learn():
    torch.manual_seed(0)
    module, x = build([(6, 9)], 1, n_networks=4), torch.randn(3, 6, 9)
    assert module.connectivity(x).shape == (3, 4, 4)
    module(x).sum().backward()
    assert module.combine.weight.grad.abs().sum() > 0


def test_direction_is_told_where_connectivity_is_alike():
    assert planted.auc("learned_connectivity") > 0.8
    assert planted.linear_auc("learned_connectivity") < 0.65
