import numpy as np
import planted
import pytest
import torch
from scipy.ndimage import correlate

from bids_dl.errors import UsageError
from bids_dl.models.sfcn import build


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 21, 19), (46, 55, 46)])
def test_any_grid_is_taken(shape):
    with torch.no_grad():
        assert build([shape], 1).eval()(torch.randn(2, *shape)).shape == (2, 1)


@pytest.mark.slow
def test_grid_of_two_millimetres_is_taken():
    with torch.no_grad():
        assert build([(91, 109, 91)], 1).eval()(torch.randn(1, 91, 109, 91)).shape == (1, 1)


def test_input_that_is_no_volume_is_refused_with_its_shape():
    with pytest.raises(UsageError, match=r"sfcn takes one volume .* has the shape \(45,\)"):
        build([(45,)], 1)


def block(x, weights, bias):
    """One channel: convolve, halve the grid by the maximum, rectify; normalisation that has seen nothing divides."""
    h = (correlate(x, weights, mode="constant") + bias) / np.sqrt(1 + 1e-5)
    halved = np.zeros([(n + 1) // 2 for n in h.shape])
    for place in np.ndindex(*halved.shape):
        halved[place] = h[tuple(slice(2 * i, 2 * i + 2) for i in place)].max()
    return np.maximum(halved, 0)


def test_network_is_convolution_maximum_and_mean():
    """Two blocks of one channel, a mixing of one channel, the mean over space: written out on an odd grid."""
    torch.manual_seed(0)
    module, x = build([(9, 7, 6)], 1, channels=(1, 1), width=1).eval(), torch.randn(1, 9, 7, 6)
    parts = [p.detach().numpy() for m in module.features if isinstance(m, torch.nn.Conv3d) for p in m.parameters()]
    h = block(block(x[0].numpy(), parts[0][0, 0], parts[1]), parts[2][0, 0], parts[3])
    mixed = np.maximum((h * parts[4].item() + parts[5]) / np.sqrt(1 + 1e-5), 0)
    np.testing.assert_allclose(module.embed(x)[0, 0].item(), mixed.mean(), atol=1e-5)


def test_lesion_at_a_random_place_is_found_where_a_linear_model_sees_nothing():
    assert planted.auc("sfcn") > 0.8
    assert planted.linear_auc("sfcn") < 0.65
