import planted
import pytest
import torch
from torch.nn.functional import conv3d

from bids_dl.errors import UsageError
from bids_dl.models.resnet3d import build


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 21, 19), (46, 55, 46)])
def test_any_grid_is_taken(shape):
    with torch.no_grad():
        assert build([shape], 1).eval()(torch.randn(2, *shape)).shape == (2, 1)


@pytest.mark.slow
def test_grid_of_two_millimetres_is_taken():
    with torch.no_grad():
        assert build([(91, 109, 91)], 1).eval()(torch.randn(1, 91, 109, 91)).shape == (1, 1)


def test_input_that_is_no_volume_is_refused_with_its_shape():
    with pytest.raises(UsageError, match=r"resnet3d takes one volume .* has the shape \(45,\)"):
        build([(45,)], 1)


def by_batch(x):
    """Each channel with mean 0 and deviation 1 over the voxels of everyone in the batch."""
    axes = (0, 2, 3, 4)
    return (x - x.mean(axes, keepdim=True)) / (x.var(axes, correction=0, keepdim=True) + 1e-5).sqrt()


def test_block_adds_what_it_found_to_its_shortcut():
    torch.manual_seed(0)
    block, x = build([(16, 16, 16)], 1).blocks[0], torch.randn(2, 8, 7, 6, 5)
    found = by_batch(conv3d(x, block.conv1.weight, stride=2, padding=1)).relu()
    found = by_batch(conv3d(found, block.conv2.weight, padding=1))
    shortcut = torch.einsum("oc,ncxyz->noxyz", block.downsample.weight[:, :, 0, 0, 0], x[:, :, ::2, ::2, ::2])
    shortcut = shortcut + block.downsample.bias[None, :, None, None, None]
    torch.testing.assert_close(block(x), (found + shortcut).relu(), atol=1e-4, rtol=1e-4)


def test_lesion_at_a_random_place_is_found_where_a_linear_model_sees_nothing():
    assert planted.auc("resnet3d") > 0.8
    assert planted.linear_auc("resnet3d") < 0.65
