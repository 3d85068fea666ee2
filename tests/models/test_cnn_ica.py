import lesions
import numpy as np
import planted
import pytest
import torch

from bids_dl.errors import UsageError
from bids_dl.models.cnn_ica import build, correlation_information, dependence, moments, standardised, surprise
from bids_dl.normalization import fit

SIZE, N_SOURCES, N_MAPS = 10, 3, 5
CUBE = (SIZE,) * 3
EVERYWHERE = torch.ones(CUBE, dtype=torch.bool)


def drawn(seed=0, n=20):
    """Sources that participants share in part, and maps that mix them; the outermost voxels are no brain."""
    generator = np.random.default_rng(seed)
    source = 0.8 * lesions.patchy(generator, N_SOURCES) + 0.6 * np.stack(
        [lesions.patchy(generator, N_SOURCES) for _ in range(n)]
    )
    mixing = generator.normal(size=(N_MAPS, N_SOURCES))
    maps = np.einsum("ms,psxyz->pmxyz", mixing, source)
    brain = np.zeros(CUBE, bool)
    brain[1:-1, 1:-1, 1:-1] = True
    return source * brain, ((maps + 0.1 * generator.normal(size=maps.shape)) * brain).astype(np.float32), brain


@torch.enable_grad()
def unmixed(maps, **options):
    torch.manual_seed(0)
    options = {"n_sources": N_SOURCES, "width": 4, "n_blocks": 1, "pool": 1, **options}
    module = build([maps.shape[1:]], 1, **options)
    normalization = fit(maps, np.arange(len(maps)), steps=maps.ndim == 6)
    module.adopt(normalization)
    x = torch.from_numpy(normalization.apply(maps))
    module.begin(lambda at: (x[at],), len(x))
    return module.eval(), x


def matched(found, true, brain):
    """How well each true source is found, by its correlation with the one most like it."""
    rows = [np.moveaxis(np.asarray(v)[..., brain], 1, 0).reshape(v.shape[1], -1) for v in (found, true)]
    return np.abs(np.corrcoef(*rows)[: len(rows[0]), len(rows[0]) :]).max(axis=0)


def test_dependence_is_that_of_the_textbook():
    values = lesions.patchy(np.random.default_rng(0), 3).reshape(3, -1)
    values[1] += 0.7 * values[0]
    z = standardised(torch.tensor(values).reshape(1, 3, *CUBE), EVERYWHERE)
    expected = -0.5 * np.log(np.linalg.det(np.corrcoef(values)))
    scale = np.sqrt(3) / np.pi  # of a logistic density of deviation 1
    for one in values:
        u = (one - one.mean()) / one.std() / scale
        expected -= np.mean(np.log(np.exp(-u) / (scale * (1 + np.exp(-u)) ** 2)))
        expected -= 0.5 * np.log(2 * np.pi * np.e)
    np.testing.assert_allclose(dependence(z), [expected], rtol=1e-4)


def test_correlated_gaussians_share_the_information_of_the_closed_form():
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(2, 200_000))
    z = torch.tensor(np.stack([one, 0.6 * one + 0.8 * other]))[None]
    np.testing.assert_allclose(correlation_information(z), -np.log(1 - 0.6**2) / 2, atol=5e-3)


def test_logistic_source_has_the_least_surprise_its_entropy():
    generator = np.random.default_rng(0)
    z = torch.tensor(generator.logistic(scale=np.sqrt(3) / np.pi, size=400_000))
    np.testing.assert_allclose(surprise(z), np.log(np.sqrt(3) / np.pi) + 2, atol=5e-3)


@torch.no_grad()
def test_sources_are_found_where_principal_axes_mix_them_and_are_as_independent_as_the_true_ones():
    source, maps, brain = drawn()
    module, x = unmixed(maps)
    white = torch.einsum("sm,pmxyz->psxyz", module.whitening, module.measured(x))
    assert matched(module.sources(x), source, brain).min() > 0.95
    assert matched(white, source, brain).min() < 0.85
    inside = torch.from_numpy(brain)
    found, true, before = (
        float(dependence(standardised(torch.as_tensor(v, dtype=torch.float32), inside)).mean())
        for v in (module.sources(x), source, white)
    )
    assert found < before - 0.05
    assert abs(found - true) < 0.02


@torch.no_grad()
def test_maps_are_mixtures_of_the_sources_and_lie_in_the_brain():
    _, maps, brain = drawn()
    module, x = unmixed(maps)
    np.testing.assert_array_equal(module.inside, brain)
    inside = torch.from_numpy(brain)
    sources, measured = module.sources(x)[..., inside], module.measured(x)[..., inside]
    np.testing.assert_allclose(module.unit[:, None] * measured, maps[..., brain], atol=1e-4)
    centred = sources - sources.mean(dim=2, keepdim=True)
    missed = module.mixing @ centred - (measured - measured.mean(dim=2, keepdim=True))
    assert missed.square().mean() < 0.05
    assert module.parts().shape == (N_SOURCES, N_MAPS)


@torch.no_grad()
def test_parcellation_shares_1_out_and_gives_a_voxel_to_its_strongest_source():
    _, maps, brain = drawn()
    module, x = unmixed(maps)
    found = module.parcellation(x[:2])
    np.testing.assert_allclose(found.sum(dim=1), np.broadcast_to(brain, (2, *CUBE)), atol=1e-6)
    sources = module.sources(x[:2]).numpy()[..., brain]
    z = (sources - sources.mean(axis=2, keepdims=True)) / sources.std(axis=2, keepdims=True)
    np.testing.assert_array_equal(found.numpy()[..., brain].argmax(axis=1), np.abs(z).argmax(axis=1))


@torch.no_grad()
def test_embedding_has_the_mean_of_each_cell_and_the_correlations_over_voxels():
    _, maps, brain = drawn(n=6)
    module, x = unmixed(maps, n_cells=2, n_pretraining=3)
    found = module.embed(x).numpy() * np.sqrt(1 + module.standard.eps)
    half = SIZE // 2
    sources = module.sources(x).numpy()
    for row in range(len(x)):
        cells = [
            one[i * half : (i + 1) * half, j * half : (j + 1) * half, k * half : (k + 1) * half].mean()
            for one in sources[row] for i in (0, 1) for j in (0, 1) for k in (0, 1)
        ]  # fmt: skip
        np.testing.assert_allclose(found[row, 4 : 4 + len(cells)], cells, atol=1e-5)
        r = np.corrcoef(sources[row][:, brain])[np.triu_indices(N_SOURCES, 1)]
        np.testing.assert_allclose(found[row, 4 + len(cells) :], np.arctanh(r), atol=1e-3)


def test_what_a_bundle_brought_along_is_not_learned_anew():
    _, maps, _ = drawn(n=6)
    module, x = unmixed(maps, n_pretraining=3)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    module.begin(lambda at: (-2 * x[at],), len(x))
    torch.testing.assert_close(dict(module.state_dict()), before)


def test_map_that_is_empty_and_one_that_repeats_another_leave_numbers():
    _, maps, _ = drawn(n=6)
    maps[:, 3], maps[:, 4] = 0, maps[:, 0]
    module, x = unmixed(maps, n_sources=5, n_pretraining=5)
    assert torch.isfinite(module(x)).all()
    assert torch.isfinite(module.misfit(*module._sources(x)[:2]))


@pytest.mark.parametrize(
    ("shape", "n_sources"), [((12, 12, 12), 5), ((1, 12, 12, 12), 5), ((4, 12, 12, 12), 1), ((9, 1, 12, 12, 12), 5)]
)
def test_input_that_cannot_be_unmixed_is_refused(shape, n_sources):
    with pytest.raises(UsageError, match=r"cnn_ica takes maps .* shape \(.*n_sources is \d. Use it on network_maps"):
        build([shape], 1, n_sources=n_sources)


def windowed(n=20, n_windows=3):
    """The same maps as windows of fewer participants, the last window of the first one missing."""
    source, maps, brain = drawn(n=n * n_windows)
    maps = maps.reshape(n, n_windows, *maps.shape[1:])
    maps[0, -1] = np.nan
    return source.reshape(n, n_windows, *source.shape[1:]), maps, brain


@torch.no_grad()
def test_windows_are_unmixed_as_maps_of_as_many_participants_are():
    _, maps, _ = windowed(n=8)
    module, x = unmixed(maps, n_pretraining=2)
    alone, flat = unmixed(maps.reshape(-1, *maps.shape[2:])[np.arange(24) != 2], n_pretraining=2)
    torch.testing.assert_close(module.whitening, alone.whitening, atol=1e-4, rtol=1e-4)
    alone.load_state_dict(
        {k: v for k, v in module.state_dict().items() if not k.startswith(("standard", "head"))}, strict=False
    )
    present = ~torch.isnan(x).flatten(2).all(dim=2)
    for told in ("sources", "parcellation"):
        found = getattr(module, told)(x)
        assert found.shape == (8, 3, N_SOURCES, *CUBE)
        assert torch.isnan(found[~present]).all()
        torch.testing.assert_close(found[present], getattr(alone, told)(flat))
    values, dims = module.describe(x)["parcellation"]
    assert dims == ("window", "source", "x", "y", "z")
    np.testing.assert_array_equal(values, module.parcellation(x))


@torch.no_grad()
def test_embedding_of_windows_has_their_mean_and_deviation_in_any_order():
    _, maps, _ = windowed(n=6)
    module, x = unmixed(maps, n_cells=2, n_pretraining=3)
    alone, _ = unmixed(maps[1:, 0], n_cells=2, n_pretraining=0)
    alone.load_state_dict(
        {k: v for k, v in module.state_dict().items() if not k.startswith(("standard", "head"))}, strict=False
    )
    unit = np.sqrt(1 + module.standard.eps)
    found = module.embed(x).numpy() * unit
    for row in range(len(x)):
        each = alone.embed(x[row][~torch.isnan(x[row]).flatten(1).all(dim=1)]).numpy() * unit
        np.testing.assert_allclose(
            found[row], [*each.mean(axis=0), *np.sqrt(each.var(axis=0, ddof=1) + 1e-6)], atol=1e-4
        )
    torch.testing.assert_close(module.embed(x.flip(1)), module.embed(x), atol=1e-5, rtol=1e-4)


def test_participant_with_one_window_or_none_has_numbers_and_gradients():
    values = torch.tensor([[2.0, 3], [4, 7], [5, 5]], requires_grad=True)
    present = torch.tensor([[True, True], [True, False], [False, False]])
    found = moments(values, present)
    np.testing.assert_allclose(
        found.detach(), [[3, 5, 2**0.5, 8**0.5], [5, 5, 0.001, 0.001], [0, 0, 0.001, 0.001]], atol=1e-5
    )
    found.sum().backward()
    assert torch.isfinite(values.grad).all()


@torch.no_grad()
def test_absent_participants_are_embedded_as_numbers():
    module, x = unmixed(windowed(n=4)[1], n_pretraining=2)
    assert torch.isfinite(module(torch.full_like(x, torch.nan))).all()
    assert torch.isnan(module.parcellation(torch.full_like(x, torch.nan))).all()


@torch.no_grad()
def test_parcellation_follows_a_source_that_moves():
    data, where = lesions.moving(n=24)
    maps = data.features["maps"].values
    module, x = unmixed(maps, n_pretraining=15)
    source = int(module.parts()[:, 1].abs().argmax())
    found = module.parcellation(x)[:, :, source].numpy()
    here, there = (found[(..., *cube)].mean(axis=(2, 3, 4)) for cube in lesions.PLACES)
    assert (where >= 0).sum() > 60
    np.testing.assert_array_equal((here > there)[where >= 0], (where == 0)[where >= 0])
    assert abs(here - there)[where >= 0].mean() > 0.1


@pytest.mark.slow
def test_patch_that_moves_between_windows_is_told_where_the_mean_map_tells_nothing():
    assert planted.auc("cnn_ica", solutions=planted.OTHERS) > 0.8
    assert planted.linear_auc("cnn_ica", solutions=planted.OTHERS) < 0.65


@pytest.mark.slow
def test_patch_at_a_random_place_of_one_networks_map_is_told():
    assert planted.auc("cnn_ica") > 0.8
    assert planted.linear_auc("cnn_ica") < 0.65
