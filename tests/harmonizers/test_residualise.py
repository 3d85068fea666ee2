import numpy as np
import pytest

from bids_dl.harmonizers import residualise


def test_what_is_subtracted_is_each_sites_mean_where_nothing_is_protected():
    generator = np.random.default_rng(0)
    site = np.arange(30) % 3
    values = generator.normal(size=(30, 5)) + site[:, None]
    given = np.eye(3)[site]
    after = residualise.fit(values, np.arange(30), given, 3).apply(values, given)
    for s in range(3):
        expected = values[site == s] - values[site == s].mean(axis=0) + values.mean(axis=0)
        np.testing.assert_allclose(after[site == s], expected, atol=1e-5)


def test_constant_covariate_changes_nothing():
    generator = np.random.default_rng(1)
    site = np.arange(30) % 3
    values, member = generator.normal(size=(30, 5)), np.eye(3)[site]
    with_age = np.column_stack([np.full(30, 40.0), member])
    one = residualise.fit(values, np.arange(30), with_age, 3, ("age",)).apply(values, with_age)
    other = residualise.fit(values, np.arange(30), member, 3).apply(values, member)
    np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("holes", [False, True])
def test_effects_that_site_and_covariate_tell_alike_are_no_part_of_the_mean(holes):
    """Each site scanned one sex, men's more people: the values' mean, far from 0, must not become an effect of sex."""
    generator = np.random.default_rng(2)
    site = generator.choice(9, 120, p=np.array([1, 6, 1, 6, 1, 6, 1, 6, 1]) / 29)
    sex = (site % 2).astype(np.float32)
    values = 100 + generator.normal(size=(120, 40))
    if holes:
        values[generator.random(values.shape) < 0.05] = np.nan
    given = np.column_stack([sex, np.eye(9)[site]]).astype(np.float32)
    fitted = residualise.fit(values, np.arange(120), given, 9, ("sex=M",))
    assert np.abs(fitted.slopes).max() < 2
    assert np.nanmax(np.abs(fitted.apply(values, given) - 100)) < 6


def test_levels_of_a_covariate_that_sum_to_one_give_no_huge_numbers():
    for seed in range(40):
        generator = np.random.default_rng(seed)
        n, n_sites = int(generator.integers(20, 1500)), int(generator.integers(2, 30))
        site, sex = generator.integers(n_sites, size=n), generator.integers(3, size=n)
        given = np.column_stack([np.eye(3)[sex], np.eye(n_sites)[site]]).astype(np.float32)
        values = 100 + generator.normal(size=(n, 5))
        fitted = residualise.fit(values, np.arange(n), given, n_sites, ("sex=a", "sex=b", "sex=c"))
        assert np.abs(fitted.shift).max() < 10
        assert np.abs(fitted.slopes).max() < 10
