import numpy as np
import planted
import pytest
import sequences
import torch
from sklearn.decomposition import FastICA

from bids_dl.errors import UsageError
from bids_dl.models.rnn_ica import MOST_STEPS, NARROWEST, build, stretches


def drawn(seed=0, **options):
    source, series = sequences.sources_with_a_past(**options, seed=seed)
    return source, torch.from_numpy(series)


def matched(found, true):
    """How well each true source is found, by its correlation with the one that is most like it."""
    both = np.corrcoef(found.reshape(-1, 4).T, true.reshape(-1, 4).T)
    return np.abs(both[:4, 4:]).max(axis=0)


def unmixed(series, **options):
    torch.manual_seed(0)
    module = build([tuple(series.shape[1:])], 1, n_sources=4, hidden=8, **options)
    module.begin(lambda at: (series[at],), len(series))
    return module.eval()


def softplus(z):
    return np.log1p(np.exp(z))


def surprise_by_the_book(series, module):
    """Each step's logistic density, one source after the other; the hidden state is run on by hand."""
    rotation = module.rotation.detach().double().numpy()
    unmixing = rotation / np.sqrt((rotation**2).sum(axis=1, keepdims=True))
    whitening, cell = module.whitening.double().numpy(), module.recurrent
    step_on = torch.nn.GRUCell(module.n, cell.hidden_size)
    step_on.load_state_dict({key.removesuffix("_l0"): value for key, value in cell.state_dict().items()})
    total, n_steps = 0.0, 0
    for participant in series.numpy():
        h, before = torch.zeros(1, cell.hidden_size), np.zeros(module.n)
        for now in participant[~np.isnan(participant).any(axis=1)]:
            h = step_on(torch.tensor(before, dtype=torch.float32)[None], h)
            told = module.density(h)[0].detach().double().numpy()
            before = unmixing @ whitening @ now
            for k in range(module.n):
                scale = softplus(told[module.n + k]) + NARROWEST
                z = (before[k] - told[k]) / scale
                total -= np.log(np.exp(-z) / (scale * (1 + np.exp(-z)) ** 2))
            n_steps += 1
    return (total / n_steps - np.log(abs(np.linalg.det(unmixing)))) / module.n


@torch.no_grad()
def test_surprise_is_the_likelihood_of_the_textbook():
    torch.manual_seed(0)
    module, x = build([(9, 6)], 1, n_sources=3, hidden=5), torch.randn(3, 9, 6)
    x[1, 6:], x[2, 3] = torch.nan, torch.nan
    np.testing.assert_allclose(module.surprise(x), surprise_by_the_book(x, module), rtol=1e-5)


def test_gradient_without_a_past_is_that_of_infomax():
    torch.manual_seed(0)
    module, x = build([(50, 4)], 1, n_sources=3, hidden=2), torch.randn(6, 50, 4)
    for parameter in module.density.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.constant_(module.density.bias[3:], np.log(np.expm1(1 - NARROWEST)))
    white = (x @ module.whitening.T).reshape(-1, 3).double()
    w = module.rotation.detach().double()
    classic = torch.linalg.inv(w).T + torch.mean(
        (1 - 2 * torch.sigmoid(white @ w.T))[:, :, None] * white[:, None], dim=0
    )
    along = classic - (classic * w).sum(dim=1, keepdim=True) * w  # the rows keep length 1
    module.surprise(x).backward()
    torch.testing.assert_close(module.rotation.grad.double(), -along / 3, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("lasting", [0.5, 0.95])
def test_sources_are_found_where_principal_components_mix_them(lasting):
    true, series = drawn(0, lasting=lasting)
    module = unmixed(series)
    found = module.sources(series).detach().numpy()
    assert matched(found, true).min() > 0.98
    assert matched((series @ module.whitening.T).numpy(), true).min() < 0.8
    np.testing.assert_allclose(found.reshape(-1, 4).std(axis=0), 1, atol=1e-2)


def test_sources_that_only_the_past_tells_apart_are_missed_by_ica_without_order():
    true, series = drawn(0, lasting=0.95)
    ica = FastICA(4, whiten="unit-variance", random_state=0, max_iter=200, tol=1e-3)
    assert matched(ica.fit_transform(series.reshape(-1, 7).numpy()), true).min() < 0.8


def test_sources_and_maps_give_the_series_back():
    _, series = drawn(1, lasting=0.5)
    module = unmixed(series, n_pretraining=20)
    assert module.maps().shape == (4, 7)
    torch.testing.assert_close(module.sources(series) @ module.maps(), series, atol=0.1, rtol=0.0)


def test_own_maps_are_the_least_squares_of_a_participants_series_on_their_courses():
    _, series = drawn(1, lasting=0.5, n=3, n_steps=60)
    series[1, 40:], series[2, 5] = torch.nan, torch.nan
    module = unmixed(series, n_pretraining=20)
    found = module.describe(series)
    for row in range(3):
        there = ~torch.isnan(series[row]).any(dim=1)
        course = module.sources(series)[row, there].detach().numpy()
        expected = np.linalg.lstsq(course, series[row, there].numpy(), rcond=None)[0]
        np.testing.assert_allclose(found["maps"][0][row], expected, atol=1e-4)
        np.testing.assert_array_equal(found["courses"][0][row, there], course)
    assert [dims for _, dims in found.values()] == [("time", "source"), ("source", "roi")]
    torch.testing.assert_close(module.parts(), module.maps())


def test_embedding_has_the_mean_state_and_the_correlations_of_the_sources():
    torch.manual_seed(0)
    module, x = build([(9, 6)], 1, n_sources=3, hidden=5).eval(), torch.randn(2, 9, 6)
    x[1, 7:] = torch.nan
    found = module.embed(x).detach().numpy() * np.sqrt(1 + module.standard.eps)
    for row, n in enumerate((9, 7)):
        course = module.sources(x)[row, :n].detach().numpy()
        np.testing.assert_allclose(
            found[row, 5:], np.arctanh(np.corrcoef(course.T)[np.triu_indices(3, 1)]), atol=1e-4, rtol=1e-4
        )
        states = module.recurrent(torch.tensor(np.vstack([np.zeros(3, np.float32), course[:-1]]))[None])[0][0]
        np.testing.assert_allclose(found[row, :5], states.mean(dim=0).detach(), atol=1e-5)


@torch.no_grad()
def test_padding_changes_nothing():
    torch.manual_seed(0)
    module, x = build([(10, 6)], 2, n_sources=3).eval(), torch.randn(3, 10, 6)
    padded = torch.cat([x, torch.full((3, 5, 6), torch.nan)], dim=1)
    torch.testing.assert_close(module(padded), module(x))
    torch.testing.assert_close(module.surprise(padded), module.surprise(x))
    torch.testing.assert_close(module.sources(padded)[:, :10], module.sources(x))
    assert module.sources(padded)[:, 10:].isnan().all()


def test_what_a_bundle_brought_along_is_not_learned_anew():
    _, series = drawn(2, lasting=0.5, n=6, n_steps=20)
    module = unmixed(series, n_pretraining=5)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    module.begin(lambda at: (-2 * series[at],), len(series))
    torch.testing.assert_close(dict(module.state_dict()), before)


def test_axes_that_the_training_rows_lack_stay_empty():
    series = torch.randn(5, 20, 2, generator=torch.Generator().manual_seed(0)) @ torch.ones(2, 6)
    module = unmixed(series, n_pretraining=5)
    assert torch.isfinite(module.whitening).all()
    assert (module.whitening[1:] == 0).all()
    assert torch.isfinite(module.surprise(series))


def test_one_source_is_refused():
    with pytest.raises(UsageError, match="at least two sources; n_sources is 1"):
        build([(9, 6)], 1, n_sources=1)


@pytest.mark.slow
def test_direction_of_time_is_told_where_connectivity_is_alike():
    assert planted.auc("rnn_ica") > 0.8
    assert planted.linear_auc("rnn_ica") < 0.65


def test_one_long_series_does_not_leave_the_others_unlearned():
    """Stretches were cut at one place for all: where one series was long, most lay in the padding of the others."""
    source, series = drawn(lasting=0.5)
    padded = torch.cat([series, torch.full((40, 900, 7), torch.nan)], dim=1)
    padded[0] = series[0].repeat(10, 1)
    found = unmixed(padded).sources(padded)[:, :100].detach().numpy()
    assert (matched(found, source) > 0.99).all()


def test_stretches_lie_within_each_series():
    torch.manual_seed(0)
    x = torch.full((40, 3 * MOST_STEPS, 1), torch.nan)
    n_steps = torch.linspace(MOST_STEPS // 2, 3 * MOST_STEPS, 40).long()
    for row, n in enumerate(n_steps):
        x[row, :n, 0] = torch.arange(n)
    cut = stretches(x)[..., 0]
    assert cut.shape == (40, MOST_STEPS)
    assert (torch.isfinite(cut).sum(dim=1) == n_steps.clamp(max=MOST_STEPS)).all()
    whole = n_steps >= MOST_STEPS
    assert (cut[whole].diff(dim=1) == 1).all()
    assert len(cut[whole, 0].unique()) > 10
    assert cut[whole, -1].max() < n_steps.max()
