import lesions
import numpy as np
import planted
import pytest
import torch

from bids_dl import training
from bids_dl.errors import UsageError
from bids_dl.models.attention_cnn3d import build


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 21, 19), (46, 55, 46)])
def test_any_grid_is_taken(shape):
    with torch.no_grad():
        assert build([shape], 1).eval()(torch.randn(2, *shape)).shape == (2, 1)


@pytest.mark.slow
def test_grid_of_two_millimetres_is_taken():
    with torch.no_grad():
        assert build([(91, 109, 91)], 1).eval()(torch.randn(1, 91, 109, 91)).shape == (1, 1)


def test_input_that_is_no_volume_is_refused_with_its_shape():
    with pytest.raises(UsageError, match=r"attention_cnn3d takes one volume .* has the shape \(45,\)"):
        build([(45,)], 1)


def test_cells_are_weighed_by_the_softmax_of_their_gated_scores():
    torch.manual_seed(0)
    module, x = build([(16, 16, 16)], 1).eval(), torch.randn(1, 16, 16, 16)
    with torch.no_grad():
        cells = module.backbone(x[:, None])[0].flatten(1).T.numpy()  # (cell, width)
    plain = {name: p.detach().numpy()[:, :, 0, 0, 0] for name, p in module.named_parameters() if p.ndim == 5}
    signal, gate = (getattr(module, name).bias.detach().numpy() for name in ("signal", "gate"))
    scores = []
    for cell in cells:
        opened = 1 / (1 + np.exp(-(plain["gate.weight"] @ cell + gate)))
        scores.append((plain["score.weight"] @ (np.tanh(plain["signal.weight"] @ cell + signal) * opened)).item())
    weights = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(module.embed(x)[0].detach(), weights @ cells, atol=1e-5)


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 21, 19)])
def test_map_is_on_the_grid_of_the_input_and_sums_to_one(shape):
    torch.manual_seed(0)
    with torch.no_grad():
        found = build([shape], 1).eval().attention(torch.randn(3, *shape))
    assert found.shape == (3, *shape)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(dim=(1, 2, 3)), torch.ones(3))


@pytest.mark.parametrize("size", [17, 23])
def test_map_lies_where_the_cells_are_on_a_grid_that_they_do_not_divide(size, monkeypatch):
    """The second cell sees voxels 8 to 15, however far the last one reaches beyond the grid."""
    module = build([(size, 16, 16)], 1).eval()

    def second(h):
        weights = torch.zeros(len(h), 1, *h.shape[2:])
        weights[:, :, 1] = 1
        return weights

    monkeypatch.setattr(module, "weights", second)
    along = module.attention(torch.zeros(1, size, 16, 16))[0].sum(dim=(1, 2))
    assert along.topk(2).indices.sort().values.tolist() == [11, 12]


def test_lesion_at_a_random_place_is_found_and_the_map_shows_where():
    """Only labels were given; the map of held-out patients peaks at most a cell (8 voxels) from the lesion."""
    data, corners = lesions.cohort(scattered=True)
    assert planted.linear_auc("attention_cnn3d") < 0.65
    fitted = planted.fit("attention_cnn3d", data)
    test = fitted.split.test
    assert planted.auc_of(fitted, data) > 0.8
    ill = test[data.target.values[test] == 1]
    maps = fitted.module.attention(training.inputs_of(fitted, data, ill)[0]).detach().numpy()
    peaks = np.array([np.unravel_index(one.argmax(), one.shape) for one in maps])
    off = np.abs(peaks - (corners[ill] + 2)).max(axis=1)
    assert (off <= 8).mean() > 0.7  # a peak anywhere would be so near in a quarter of them
