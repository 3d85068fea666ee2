import pytest
import torch

from bids_dl import building, training, zoo
from bids_dl.errors import UsageError

KINDS = {"volume": (), "maps": (3,), "moving_maps": (2, 3)}
OF_GRIDS = {
    name: kind
    for name in zoo.names("models")
    for kind in (zoo.constant("models", name, "SUITS") or ())[:1]
    if kind in KINDS and zoo.has_epochs(name)
}
GRIDS = [(1, 1, 1), (5, 6, 5), (9, 9, 9), (12, 13, 40), (64, 64, 4), (4, 20, 20), (20, 20, 1)]


def build(model, grid, **options):
    shape = (*KINDS[OF_GRIDS[model]], *grid)
    return building.instantiate(training.define(model, [shape], 1, options)), shape


@pytest.mark.parametrize("model", OF_GRIDS)
@pytest.mark.parametrize("grid", GRIDS)
def test_a_small_or_flat_grid_is_predicted_or_refused_with_what_to_do(model, grid):
    try:
        module, shape = build(model, grid)
    except UsageError as problem:
        size = " x ".join(map(str, grid))
        assert f"{model} takes at least" in str(problem)
        assert f"along each axis; this grid has {size}. " in str(problem)
        assert f"models.{model}." in str(problem)
    else:
        assert torch.isfinite(module.train()(torch.randn(3, *shape))).all()
        assert torch.isfinite(module.eval()(torch.randn(1, *shape))).all()


@pytest.mark.parametrize(("blocks", "least"), [((2,), 1), ((2, 2), 5), ((2, 2, 2), 13), ((1, 1, 1, 1), 29)])
def test_densenet_refuses_no_grid_that_it_could_take(blocks, least):
    module, shape = build("densenet3d", (least, 30, 30), block_config=blocks)
    assert module.eval()(torch.zeros(1, *shape)).shape == (1, 1)
    if least > 1:
        with pytest.raises(UsageError, match=f"densenet3d takes at least {least} voxels"):
            build("densenet3d", (30, 30, least - 1), block_config=blocks)


def test_what_is_refused_on_a_flat_grid_says_what_helps():
    with pytest.raises(UsageError, match="Lower models.cnn3d.pool, which is 4, or use resnet3d"):
        build("cnn3d", (64, 64, 3), pool=4)
    module, shape = build("cnn3d", (64, 64, 1), pool=1)
    assert module(torch.zeros(2, *shape)).shape == (2, 1)
