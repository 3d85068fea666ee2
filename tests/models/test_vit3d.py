import numpy as np
import planted
import pytest
import torch

from bids_dl.errors import UsageError
from bids_dl.models.vit3d import build


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 21, 19), (46, 55, 46)])
def test_any_grid_is_taken(shape):
    with torch.no_grad():
        assert build([shape], 1).eval()(torch.randn(2, *shape)).shape == (2, 1)


@pytest.mark.slow
def test_grid_of_two_millimetres_is_taken():
    with torch.no_grad():
        assert build([(91, 109, 91)], 1).eval()(torch.randn(1, 91, 109, 91)).shape == (1, 1)


def test_input_that_is_no_volume_is_refused_with_its_shape():
    with pytest.raises(UsageError, match=r"vit3d takes one volume .* has the shape \(45,\)"):
        build([(45,)], 1)


def test_cubes_are_read_one_by_one_in_order():
    torch.manual_seed(0)
    module, x = build([(8, 12, 4)], 1, patch=4).eval(), torch.randn(1, 8, 12, 4)
    weights, bias = (p.detach().numpy() for p in module.cubes.parameters())
    cubes = [x[0, a : a + 4, b : b + 4].numpy() for a in (0, 4) for b in (0, 4, 8)]
    tokens = np.stack([np.einsum("oxyz,xyz->o", weights[:, 0], cube) + bias for cube in cubes])
    with torch.no_grad():
        expected = module.transformer(torch.tensor(tokens)[None] + module.position).mean(dim=1)
        torch.testing.assert_close(module.embed(x), expected, atol=1e-5, rtol=1e-4)


def test_border_that_no_whole_cube_covers_is_seen():
    torch.manual_seed(0)
    module, x = build([(17, 16, 19)], 1).eval(), torch.zeros(1, 17, 16, 19)
    before = module(x)
    x[0, 16, 15, 18] = 5
    assert not torch.allclose(module(x), before, atol=1e-4)


def test_order_of_the_cubes_matters_by_their_positions_alone():
    torch.manual_seed(0)
    module, x = build([(16, 16, 16)], 1).eval(), torch.randn(2, 16, 16, 16)
    assert not torch.allclose(module(x.roll(8, 1)), module(x), atol=1e-4)
    module.position.data.zero_()
    torch.testing.assert_close(module(x.roll(8, 1)), module(x), atol=1e-5, rtol=1e-4)


def test_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(UsageError, match="width is 30, n_heads 4; choose a multiple"):
        build([(16, 16, 16)], 1, width=30)


def test_lesion_in_a_random_cube_is_found_where_a_linear_model_sees_nothing():
    assert planted.auc("vit3d") > 0.8
    assert planted.linear_auc("vit3d") < 0.65
