import planted
import pytest
import torch

from bids_dl.errors import UsageError
from bids_dl.models.densenet3d import build


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 21, 19), (46, 55, 46)])
def test_any_grid_is_taken(shape):
    with torch.no_grad():
        assert build([shape], 1).eval()(torch.randn(2, *shape)).shape == (2, 1)


@pytest.mark.slow
def test_grid_of_two_millimetres_is_taken():
    with torch.no_grad():
        assert build([(91, 109, 91)], 1).eval()(torch.randn(1, 91, 109, 91)).shape == (1, 1)


def test_input_that_is_no_volume_is_refused_with_its_shape():
    with pytest.raises(UsageError, match=r"densenet3d takes one volume .* has the shape \(45,\)"):
        build([(45,)], 1)


def test_each_layer_of_a_block_sees_all_before_it():
    """A layer: normalise, rectify, mix channels, normalise, rectify, convolve; its output joins its input."""
    torch.manual_seed(0)
    block = build([(16, 16, 16)], 1, block_config=(3, 2)).features.denseblock1.train()
    x = torch.randn(2, 16, 4, 4, 4)
    everything = [x]
    for layer in block.children():
        h = over_batch(torch.cat(everything, dim=1)).relu()
        h = torch.einsum("oc,ncxyz->noxyz", layer.layers.conv1.weight[:, :, 0, 0, 0], h)
        everything.append(torch.nn.functional.conv3d(over_batch(h).relu(), layer.layers.conv2.weight, padding=1))
    assert [h.shape[1] for h in everything] == [16, 8, 8, 8]
    torch.testing.assert_close(block(x), torch.cat(everything, dim=1), atol=1e-4, rtol=1e-4)


def over_batch(x):
    """Each channel with mean 0 and deviation 1 over participants and voxels."""
    return (x - x.mean((0, 2, 3, 4), True)) / (x.var((0, 2, 3, 4), False, True) + 1e-5).sqrt()


def test_participant_does_not_depend_on_the_batch_once_trained():
    torch.manual_seed(0)
    module, x = build([(16, 16, 16)], 1), torch.randn(4, 16, 16, 16)
    module.train()(x)
    torch.testing.assert_close(module.eval()(x[:1]), module(x)[:1], atol=1e-5, rtol=1e-4)


def test_batch_of_one_is_predicted_and_one_with_several_cells_trained_on():
    assert build([(16, 16, 16)], 1).eval()(torch.randn(1, 16, 16, 16)).shape == (1, 1)
    assert build([(40, 40, 40)], 1).train()(torch.randn(1, 40, 40, 40)).shape == (1, 1)


def test_lesion_at_a_random_place_is_found_where_a_linear_model_sees_nothing():
    assert planted.auc("densenet3d") > 0.8
    assert planted.linear_auc("densenet3d") < 0.65


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lesion_is_found_on_every_seed(seed):
    assert planted.auc("densenet3d", seed=seed) > 0.9
