import planted
import pytest
import torch

from bids_dl.errors import UsageError
from bids_dl.models.cnn3d import build


@pytest.mark.parametrize("shapes", [[(45,)], [(10, 10)], [(4, 16, 16, 16, 4)]])
def test_input_that_is_no_volume_is_refused_with_its_shape(shapes):
    with pytest.raises(UsageError, match=r"cnn3d takes one volume .* has the shape \(.*Use mlp or linear"):
        build(shapes, 1)


@torch.no_grad()
def test_a_map_is_a_volume_and_several_maps_are_channels():
    torch.manual_seed(0)
    one = build([(16, 17, 16)], 1).eval()
    same = build([(1, 16, 17, 16)], 1).eval()
    same.load_state_dict(one.state_dict())
    x = torch.randn(3, 16, 17, 16)
    torch.testing.assert_close(same(x[:, None]), one(x))
    assert build([(5, 16, 17, 16)], 2)(torch.randn(3, 5, 16, 17, 16)).shape == (3, 2)


def test_two_volumes_are_refused():
    with pytest.raises(UsageError, match="takes one volume"):
        build([(16, 16, 16), (16, 16, 16)], 1)


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 20, 15), (9, 33, 8)])
def test_any_grid_is_taken(shape):
    assert build([shape], 1).eval()(torch.randn(2, *shape)).shape == (2, 1)


def test_place_of_a_pattern_matters():
    """Registered brains: the same blob elsewhere is another finding."""
    torch.manual_seed(0)
    module, x = build([(16, 16, 16)], 1).eval(), torch.zeros(2, 16, 16, 16)
    x[0, 2:6, 2:6, 2:6] = x[1, 10:14, 10:14, 10:14] = 3
    here, there = module(x)[:, 0]
    assert not torch.isclose(here, there)


def test_region_changed_either_way_is_told_where_a_linear_model_sees_nothing():
    assert planted.auc("cnn3d") > 0.8
    assert planted.linear_auc("cnn3d") < 0.65
