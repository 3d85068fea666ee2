"""What every file of harmonizers/ promises; a new file is tested here without a line more."""

import inspect

import numpy as np
import pytest

from bids_dl import zoo
from bids_dl.errors import DataError, UsageError

HARMONIZERS = zoo.names("harmonizers")
AT_WORK = tuple(name for name in HARMONIZERS if name != "none")
N, N_VALUES = 300, 40


def scans(seed=0, n=N):
    """Three sites with their own location and spread; age moves the values too."""
    generator = np.random.default_rng(seed)
    site = np.arange(n) % 3
    age = generator.normal(40, 10, n)
    own = generator.normal(size=(3, N_VALUES)) * 2
    width = np.array([0.6, 1.0, 1.8])
    slope = generator.normal(size=N_VALUES) * 0.1
    clean = 5 + (age[:, None] - 40) * slope + generator.normal(size=(n, N_VALUES))
    values = clean + own[site] + (width[site] - 1)[:, None] * (clean - clean.mean(axis=0))
    given = np.column_stack([age, np.eye(3)[site]])
    return values.astype(np.float32), given.astype(np.float32), site, age, slope


TRAIN = np.arange(200)


def fitted(name, values, given, **options):
    return zoo.load("harmonizers", name)(values, TRAIN, given, 3, ("age",), **options)


@pytest.mark.parametrize("name", AT_WORK)
def test_sites_lie_together_afterwards_also_in_new_rows(name):
    values, given, site, *_ = scans()
    after = fitted(name, values, given).apply(values, given)
    for rows in (TRAIN, np.arange(200, N)):
        means = [np.stack([v[rows][site[rows] == s].mean(axis=0) for s in range(3)]) for v in (values, after)]
        before, now = (m.std(axis=0).mean() for m in means)
        assert now < 0.35 * before


@pytest.mark.parametrize("name", AT_WORK)
def test_effect_of_a_protected_covariate_stays(name):
    values, given, _, age, slope = scans()
    after = fitted(name, values, given).apply(values, given)
    found = [np.polyfit(age, after[:, k], 1)[0] for k in range(N_VALUES)]
    assert np.corrcoef(found, slope)[0, 1] > 0.9
    assert np.polyfit(slope, found, 1)[0] == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("name", AT_WORK)
def test_test_rows_teach_nothing(name):
    values, given, *_ = scans()
    altered = values.copy()
    altered[200:] = 99
    one, other = fitted(name, values, given), fitted(name, altered, given)
    for key in vars(one):
        np.testing.assert_array_equal(getattr(one, key), getattr(other, key))


@pytest.mark.parametrize("name", AT_WORK)
def test_a_range_of_values_gets_what_the_whole_gets(name):
    values, given, *_ = scans()
    learned = fitted(name, values, given)
    part = slice(7, 19)
    if not learned.by_value:
        with pytest.raises(ValueError, match="needs all values of a participant; read whole rows"):
            learned.apply(values[:, part], given, part)
        return
    np.testing.assert_allclose(
        learned.apply(values[:, part], given, part), learned.apply(values, given)[:, part], rtol=1e-5
    )


@pytest.mark.parametrize("name", AT_WORK)
def test_missing_values_stay_missing_and_the_shape_stays(name):
    values, given, *_ = scans()
    values[3, 4] = np.nan
    cubes = values.reshape(N, 2, 4, 5)
    after = fitted(name, cubes, given).apply(cubes, given)
    assert after.shape == cubes.shape
    assert np.isnan(after).sum() == 1


def unseen_site(values, given):
    """Nobody of the third site is in the training rows."""
    rows = TRAIN[given[TRAIN, 3] == 0]
    return rows, np.flatnonzero(given[:, 3] > 0)


@pytest.mark.parametrize("name", AT_WORK)
def test_unseen_site_keeps_its_values_or_is_refused_or_is_learned_as_was_asked(name):
    values, given, *_ = scans()
    rows, new = unseen_site(values, given)
    fit = zoo.load("harmonizers", name)
    pooled = fit(values, rows, given, 3, ("age",))
    np.testing.assert_allclose(pooled.apply(values, given)[new], values[new], rtol=1e-4, atol=1e-4)
    with pytest.raises(DataError, match="100 participants are from a site without training participants"):
        fit(values, rows, given, 3, ("age",), unseen="refuse").apply(values, given)
    adapted = fit(values, rows, given, 3, ("age",), unseen="adapt").apply(values, given)
    gaps = [np.abs(v[new].mean(axis=0) - v[rows].mean(axis=0)).mean() for v in (values, adapted)]
    assert gaps[1] < 0.4 * gaps[0]


@pytest.mark.parametrize("name", AT_WORK)
def test_unknown_policy_is_refused(name):
    values, given, *_ = scans()
    with pytest.raises(UsageError, match="unseen is 'guess'; choose from pooled, refuse, adapt"):
        fitted(name, values, given, unseen="guess")


@pytest.mark.parametrize("name", HARMONIZERS)
def test_every_option_and_argument_is_described(name):
    function = zoo.load("harmonizers", name)
    described = inspect.getdoc(function)
    assert all(argument in described for argument in inspect.signature(function).parameters)
    assert zoo.summary("harmonizers", name).endswith(".")
