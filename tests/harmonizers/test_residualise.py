import numpy as np

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
