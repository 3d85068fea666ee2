import numpy as np
import planted
import pytest
import torch

from bids_dl.errors import UsageError
from bids_dl.models.cnn2d import build

SHAPE = (16, 17, 12)


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 21, 19), (46, 55, 46)])
def test_any_grid_is_taken(shape):
    with torch.no_grad():
        assert build([shape], 1).eval()(torch.randn(2, *shape)).shape == (2, 1)


@pytest.mark.slow
def test_grid_of_two_millimetres_is_taken():
    with torch.no_grad():
        assert build([(91, 109, 91)], 1).eval()(torch.randn(1, 91, 109, 91)).shape == (1, 1)


def test_input_that_is_no_volume_is_refused_with_its_shape():
    with pytest.raises(UsageError, match=r"cnn2d takes one volume .* has the shape \(45,\)"):
        build([(45,)], 1)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_volume_is_the_weighted_mean_of_its_slices_each_alone(axis):
    """Slice by slice, with the attention written out as a softmax of scores."""
    torch.manual_seed(0)
    module, x = build([SHAPE], 1, axis=axis).eval(), torch.randn(1, *SHAPE)
    units, scores = [], []
    for number in range(SHAPE[axis]):
        h = module.convolutions(x[0].select(axis, number)[None, None])[0]
        unit = module.squeeze(torch.cat([h.flatten(1).mean(dim=1), h.flatten(1).max(dim=1).values]))
        units.append(unit.detach().numpy())
        scores.append(module.pool.score(torch.tanh(module.pool.project(unit))).item())
    weights = np.exp(scores) / np.exp(scores).sum()
    expected = sum(w * u for w, u in zip(weights, units, strict=True))
    np.testing.assert_allclose(module.embed(x)[0].detach(), expected, atol=1e-5)


def test_without_attention_every_slice_counts_the_same():
    module, x = build([SHAPE], 1, attention=False).eval(), torch.randn(2, *SHAPE)
    torch.testing.assert_close(module.embed(x), module.slices(x).mean(dim=1))


def test_order_of_the_slices_does_not_matter_but_that_within_them_does():
    torch.manual_seed(0)
    module, x = build([SHAPE], 1, axis=2).eval(), torch.randn(2, *SHAPE)
    torch.testing.assert_close(module(x[:, :, :, torch.randperm(12)]), module(x), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(module(x[:, torch.randperm(16)]), module(x), atol=1e-4)


def test_axis_that_a_volume_lacks_is_refused():
    with pytest.raises(UsageError, match=r"cnn2d.axis is 3; choose 0"):
        build([SHAPE], 1, axis=3)


def test_lesion_at_a_random_place_is_found_where_a_linear_model_sees_nothing():
    assert planted.auc("cnn2d") > 0.8
    assert planted.linear_auc("cnn2d") < 0.65
