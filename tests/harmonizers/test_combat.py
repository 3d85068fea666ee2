import numpy as np
import pytest

from bids_dl import harmonization
from bids_dl.harmonizers import combat

N, V, SITES = 24, 6, 3


def data(seed=0):
    generator = np.random.default_rng(seed)
    site, age = np.arange(N) % SITES, generator.normal(40, 9, N)
    values = generator.normal(3, 1, (N, V)) + generator.normal(size=(SITES, V))[site] * (1 + site[:, None] / 2)
    return values + 0.05 * age[:, None], site, age


def textbook(values, site, age, steps=300):
    """ComBat as Johnson et al. write it down, a value and a site at a time, with the parametric prior."""
    design = np.column_stack([*(site == s for s in range(SITES)), age - age.mean()]).astype(float)
    n = [int((site == s).sum()) for s in range(SITES)]
    adjusted = np.empty_like(values)
    alpha, beta, sigma, z = (np.empty((N, V)) for _ in range(4))
    for g in range(V):
        weights = np.linalg.lstsq(design, values[:, g], rcond=None)[0]
        alpha[:, g] = sum(n[s] / N * weights[s] for s in range(SITES))
        beta[:, g] = design[:, -1] * weights[-1]
        sigma[:, g] = np.sqrt(np.mean((values[:, g] - design @ weights) ** 2))
        z[:, g] = (values[:, g] - alpha[:, g] - beta[:, g]) / sigma[:, g]
    for s in range(SITES):
        rows = site == s
        gamma = np.array([z[rows, g].mean() for g in range(V)])
        # the residuals' variance within the site, after the covariate
        residual = np.array([(z[rows, g] - gamma[g]) for g in range(V)])
        delta = (residual**2).sum(axis=1) / (n[s] - 1)
        mean, tau, m, s2 = gamma.mean(), gamma.var(ddof=1), delta.mean(), delta.var(ddof=1)
        shape, rate = (2 * s2 + m**2) / s2, (m * s2 + m**3) / s2
        for g in range(V):
            location, scale = gamma[g], delta[g]
            for _ in range(steps):
                location = (n[s] * tau * gamma[g] + scale * mean) / (n[s] * tau + scale)
                total = ((z[rows, g] - location) ** 2).sum()
                scale = (rate + total / 2) / (n[s] / 2 + shape - 1)
            moved = (z[rows, g] - location) / np.sqrt(scale)
            adjusted[rows, g] = sigma[rows, g] * moved + alpha[rows, g] + beta[rows, g]
    return adjusted


def test_values_are_those_of_the_paper_word_for_word():
    values, site, age = data()
    # least squares gives each site's mean residual as 0, so that its z-scores' mean is the site's coefficient
    given = np.column_stack([age, np.eye(SITES)[site]])
    learned = combat.fit(values, np.arange(N), given, SITES, ("age",))
    np.testing.assert_allclose(learned.apply(values, given), textbook(values, site, age), atol=2e-3)


def test_without_shrinking_each_site_gets_the_common_mean_and_variance():
    values, site, _ = data()
    given = np.eye(SITES)[site]
    after = combat.fit(values, np.arange(N), given, SITES, shrink=False).apply(values, given)
    for s in range(SITES):
        np.testing.assert_allclose(after[site == s].mean(axis=0), values.mean(axis=0), atol=1e-4)
    spreads = [after[site == s].var(axis=0, ddof=1) for s in range(SITES)]
    np.testing.assert_allclose(spreads[0], spreads[2], rtol=1e-3)


def test_prior_pulls_a_small_site_towards_its_other_values():
    generator = np.random.default_rng(1)
    site = np.r_[np.zeros(40, int), np.ones(4, int)]
    values = generator.normal(size=(44, 200)) + 1.0 * site[:, None]
    given = np.eye(2)[site]
    free, shrunk = (combat.fit(values, np.arange(44), given, 2, shrink=s).shift[1] for s in (False, True))
    common = np.median(free)
    assert np.abs(shrunk - common).mean() < 0.7 * np.abs(free - common).mean()


def test_prior_from_the_values_themselves_follows_its_formula():
    generator = np.random.default_rng(2)
    location, variance, n = generator.normal(size=12), generator.gamma(4, 0.25, 12), 7
    found, scale = harmonization._empirical(location, variance, np.full(12, n))
    for g in range(12):
        weights = np.zeros(12)
        for k in range(12):
            if k != g:
                squares = (n - 1) * variance[g] + n * (location[g] - location[k]) ** 2
                weights[k] = variance[k] ** (-n / 2) * np.exp(-squares / (2 * variance[k]))
        weights /= weights.sum()
        assert found[g] == pytest.approx(weights @ location)
        assert scale[g] == pytest.approx(weights @ variance)


def test_site_with_one_participant_keeps_its_spread():
    values, site, _ = data()
    site = np.where(np.arange(N) == 5, 2, site % 2)
    learned = combat.fit(values, np.arange(N), np.eye(SITES)[site], SITES, shrink=False)
    np.testing.assert_allclose(learned.spread[2], 1)
    assert np.isfinite(learned.shift).all()


@pytest.mark.parametrize("columns", [slice(None), slice(2, 5)])
def test_rows_are_harmonised_as_the_formula_says_one_value_at_a_time(columns):
    """A missing value stays missing, and somebody of a site that is not known keeps their values."""
    values, site, age = data()
    values[3, 4] = np.nan
    given = np.column_stack([age, np.eye(SITES)[site]])
    given[5, 1:] = 0
    learned = combat.fit(values, np.arange(N), given, SITES, ("age",))
    after = learned.apply(values[:, columns], given, columns)
    for row in range(N):
        for k, value in enumerate(range(V)[columns]):
            explained = learned.centre[value] + (age[row] - learned.covariate_mean[0]) * learned.slopes[0, value]
            s = site[row]
            expected = (values[row, value] - explained - learned.shift[s, value]) / learned.spread[s, value] + explained
            expected = values[row, value] if row == 5 else expected
            assert after[row, k] == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert np.isnan(after).sum() == 1


def test_value_that_a_site_lacks_here_and_there_is_harmonised_by_those_who_have_it():
    """Each value alone, over the rows that hold it, gives the same as all values together."""
    values, site, age = data()
    values[np.flatnonzero(site == 2)[:5], 1:4] = np.nan
    values[3, 2] = np.nan
    given = np.column_stack([age, np.eye(SITES)[site]])
    after = combat.fit(values, np.arange(N), given, SITES, ("age",), shrink=False).apply(values, given)
    for k in range(V):
        has = np.flatnonzero(np.isfinite(values[:, k]))
        mean_age = age[has] - age[has].mean() + age.mean()  # a covariate's mean is that of all rows
        alone = np.column_stack([mean_age, given[has, 1:]])
        one = combat.fit(values[has, k : k + 1], np.arange(len(has)), alone, SITES, ("age",), shrink=False)
        expected = one.apply(values[has, k : k + 1], alone)[:, 0]
        np.testing.assert_allclose(np.ptp(after[has, k] - expected), 0, atol=2e-4)


@pytest.mark.parametrize("options", [{}, {"shrink": False}, {"parametric": False}], ids=["prior", "free", "values"])
def test_values_that_no_training_row_of_a_site_holds_are_not_blown_up_in_new_rows(options):
    generator = np.random.default_rng(3)
    site = np.arange(90) % SITES
    values = generator.normal(size=(90, 40)) + 1.0 * site[:, None]
    training = values.copy()
    training[np.ix_(site == 2, np.arange(20))] = np.nan
    learned = combat.fit(training, np.arange(90), np.eye(SITES)[site], SITES, **options)
    after = learned.apply(values, np.eye(SITES)[site])[site == 2]
    assert 0.7 < after[:, :20].std() < 1.5
    assert np.abs(after).max() < 6
