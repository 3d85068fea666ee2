import planted
import torch

from bids_dl.models.mean_mlp import build


def test_order_of_the_time_points_does_not_matter():
    torch.manual_seed(0)
    module, x = build([(9, 4)], 1).eval(), torch.randn(3, 9, 4)
    torch.testing.assert_close(module(x[:, torch.randperm(9)]), module(x))


def test_padding_changes_nothing():
    torch.manual_seed(0)
    module, x = build([(9, 4)], 2).eval(), torch.randn(3, 9, 4)
    padded = torch.cat([x, torch.full((3, 5, 4), float("nan"))], dim=1)
    torch.testing.assert_close(module(padded), module(x))


def test_output_is_the_mean_of_the_outputs_at_each_time_point():
    torch.manual_seed(0)
    module, x = build([(9, 4)], 1).eval(), torch.randn(3, 9, 4)
    alone = torch.stack([module(x[:, [t]]) for t in range(9)]).mean(dim=0)
    torch.testing.assert_close(module(x), alone)


def test_bursts_are_told_where_connectivity_is_alike():
    assert planted.auc("mean_mlp") > 0.8
    assert planted.linear_auc("mean_mlp") < 0.65
