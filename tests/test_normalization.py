import warnings

import numpy as np
import pytest

from bids_dl import normalization
from bids_dl.normalization import Normalization

TRAIN = np.arange(0, 24)
TEST = np.arange(24, 30)


@pytest.fixture
def values():
    """Edges (participant, edge) with offsets far from 0, some missing cells and one absent participant."""
    generator = np.random.default_rng(0)
    values = generator.normal(50, 3, (30, 12))
    values[generator.random(values.shape) < 0.1] = np.nan
    values[7] = np.nan
    return values


@pytest.fixture
def confounds():
    return np.random.default_rng(1).normal(size=(30, 2)) * [10, 0.1] + [40, 0.2]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


def test_mean_and_scale_are_those_of_the_training_rows(values):
    fitted = normalization.fit(values, TRAIN)
    np.testing.assert_allclose(fitted.mean, np.nanmean(values[TRAIN], axis=0), rtol=1e-6)
    np.testing.assert_allclose(fitted.scale, np.nanstd(values[TRAIN], axis=0), rtol=1e-6)


def test_one_scale_keeps_the_values_that_vary_more_larger():
    values = np.random.default_rng(0).normal(0, [1, 2, 4, 0], (30, 4))
    scale = normalization.fit(values, TRAIN, one_scale=True).scale
    np.testing.assert_allclose(scale[:3], np.sqrt((values[TRAIN, :3].var(axis=0)).mean()), rtol=1e-6)
    assert np.isinf(scale[3])


def test_far_offset_costs_no_digits():
    values = np.random.default_rng(0).normal(1e5, 1, (30, 5))
    np.testing.assert_allclose(normalization.fit(values, TRAIN).scale, values[TRAIN].std(axis=0), rtol=1e-5)


@pytest.mark.parametrize("with_confounds", [False, True])
def test_reading_in_chunks_equals_reading_at_once(values, confounds, with_confounds, monkeypatch):
    given = confounds if with_confounds else None
    at_once = normalization.fit(values, TRAIN, given)
    monkeypatch.setattr(normalization, "CHUNK_BYTES", 5 * values.shape[1] * 8)
    for a, b in zip(vars(normalization.fit(values, TRAIN, given)).values(), vars(at_once).values(), strict=True):
        assert (a is None and b is None) or np.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_chunks_cover_every_row_once():
    parts = list(normalization.chunks(TRAIN, normalization.CHUNK_BYTES // 7))
    assert [len(p) for p in parts] == [7, 7, 7, 3]
    assert np.concatenate(parts).tolist() == TRAIN.tolist()


def test_missing_value_becomes_0_and_absent_participant_stays_absent(values):
    normal = normalization.fit(values, TRAIN).apply(values)
    absent = np.isnan(values).all(axis=1)
    assert (normal[np.isnan(values) & ~absent[:, None]] == 0).all()
    assert np.isnan(normal[absent]).all()
    assert np.isfinite(normal[~absent]).all()


def test_normalised_training_rows_have_mean_0_and_deviation_1(values):
    values = np.random.default_rng(2).normal(5, 2, (30, 12))
    normal = normalization.fit(values, TRAIN).apply(values[TRAIN])
    np.testing.assert_allclose(normal.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(normal.std(axis=0), 1, rtol=1e-4)


def test_constant_value_becomes_0_for_new_participants_too(values):
    values[TRAIN, 3] = 0.1
    normal = normalization.fit(values, TRAIN).apply(values[TEST])
    assert (normal[:, 3] == 0).all()
    assert normal.any()


def test_value_that_nobody_in_training_has_becomes_0(values):
    values[TRAIN, 3] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        normal = normalization.fit(values, TRAIN).apply(values[TEST])
    assert (normal[:, 3] == 0).all()


def test_columns_in_very_different_units_all_count():
    values = np.random.default_rng(0).normal(size=(30, 3)) * [1e4, 1e4, 1e-2]
    assert np.isfinite(normalization.fit(values, TRAIN).scale).all()


def test_background_of_a_volume_becomes_0():
    volumes = np.random.default_rng(0).normal(100, 10, (30, 3, 3, 3)).astype(np.float32)
    volumes[:, 0, 0, 0] = 1e-3 * np.random.default_rng(1).random(30)
    normal = normalization.fit(volumes, TRAIN).apply(volumes[TEST])
    assert (normal[:, 0, 0, 0] == 0).all()
    assert (normal[:, 1, 1, 1] != 0).all()


def test_background_of_a_map_is_judged_by_its_own_map():
    maps = np.random.default_rng(0).normal(100, 10, (30, 2, 3, 3, 3)).astype(np.float32)
    maps[:, 1] *= 1e-4  # a network whose unit is small
    maps[:, 1, 0, 0, 0] = 1e-7 * np.random.default_rng(1).random(30)
    normal = normalization.fit(maps, TRAIN).apply(maps[TEST])
    assert (normal[:, 1, 0, 0, 0] == 0).all()
    assert (normal[:, :, 1:] != 0).all()


def test_removed_confounds_leave_the_residuals_of_least_squares(confounds):
    """Slow and by the book: numpy's lstsq on the training rows, its residuals scaled, on every row."""
    generator = np.random.default_rng(3)
    values = confounds @ generator.normal(size=(2, 12)) + generator.normal(size=(30, 12))
    design = np.column_stack([np.ones(30), confounds])
    coefficients = np.linalg.lstsq(design[TRAIN], values[TRAIN], rcond=None)[0]
    residuals = values - design @ coefficients
    expected = residuals / residuals[TRAIN].std(axis=0)
    fitted = normalization.fit(values, TRAIN, confounds)
    np.testing.assert_allclose(fitted.apply(values, confounds), expected, atol=2e-4)


def test_confounds_and_normalised_training_rows_are_uncorrelated(confounds):
    values = confounds @ np.random.default_rng(3).normal(size=(2, 4)) + np.random.default_rng(4).normal(size=(30, 4))
    normal = normalization.fit(values, TRAIN, confounds).apply(values[TRAIN], confounds[TRAIN])
    correlations = np.corrcoef(confounds[TRAIN].T, normal.T)[:2, 2:]
    np.testing.assert_allclose(correlations, 0, atol=1e-4)


def test_unknown_confound_leaves_the_value_as_it_is(confounds):
    values = confounds @ np.ones((2, 4)) + np.random.default_rng(4).normal(size=(30, 4))
    fitted = normalization.fit(values, TRAIN, confounds)
    plain = Normalization(fitted.mean, fitted.scale)
    unknown = np.full((6, 2), np.nan)
    np.testing.assert_array_equal(fitted.apply(values[TEST], unknown), plain.apply(values[TEST]))


def test_confound_that_nobody_in_training_has_changes_nothing(values, confounds):
    confounds[TRAIN, 1] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = normalization.fit(values, TRAIN, confounds)
    assert np.isfinite(fitted.apply(values[TEST], confounds[TEST])).all()


@pytest.mark.parametrize("with_confounds", [False, True])
def test_altered_test_rows_change_nothing_that_is_learned(values, confounds, with_confounds):
    given = [None, None]
    altered = values.copy()
    altered[TEST] = np.random.default_rng(9).normal(-1e3, 100, altered[TEST].shape)
    if with_confounds:
        other = confounds.copy()
        other[TEST] = 1e6
        given = [confounds, other]
    assert same(normalization.fit(values, TRAIN, given[0]), normalization.fit(altered, TRAIN, given[1]))


def test_range_of_values_is_normalised_as_in_the_whole(values, confounds):
    values[7] = 50.0
    fitted = normalization.fit(values, TRAIN, confounds)
    part = fitted.apply(values[:, 4:9], confounds, slice(4, 9))
    np.testing.assert_allclose(part, fitted.apply(values, confounds)[:, 4:9], atol=1e-6)


def test_values_handed_over_are_not_changed(values):
    before = values.copy()
    normalization.fit(values, TRAIN).apply(values)
    np.testing.assert_array_equal(values, before)


def test_sequence_is_scaled_by_its_steps_and_padding_stays_missing():
    generator = np.random.default_rng(3)
    values = generator.normal(4, 2, (5, 7, 3)).astype(np.float32)
    values[0, 5:] = np.nan
    values[1, :, 2] = np.nan
    learned = normalization.fit(values, np.arange(4), steps=True)
    np.testing.assert_allclose(learned.mean, np.nanmean(values[:4].reshape(-1, 3), axis=0), rtol=1e-5)
    np.testing.assert_allclose(learned.scale, np.nanstd(values[:4].reshape(-1, 3), axis=0), rtol=1e-5)
    applied = learned.apply(values[:2])
    assert np.isnan(applied[0, 5:]).all()
    assert (applied[1, :, 2] == 0).all()
    longer = np.concatenate([values[4], values[4]])[None]
    np.testing.assert_allclose(learned.apply(longer)[0, 7:], learned.apply(values[4:5])[0])


def test_levels_that_nobody_in_training_has_count_as_the_mean_however_many_columns_tell_the_same():
    for seed in range(20):
        generator = np.random.default_rng(seed)
        n, n_sites = int(generator.integers(60, 900)), int(generator.integers(4, 15))
        shares = generator.dirichlet(np.ones(n_sites))
        site = np.concatenate([np.arange(n_sites), generator.choice(n_sites, n - n_sites, p=shares)])
        scanner = np.eye(2)[site % 2]
        given = np.column_stack([generator.normal(40, 10, n), np.eye(n_sites)[site], scanner]).astype(np.float32)
        values = generator.normal(size=(n, 5)) + site[:, None]
        rows, new = np.flatnonzero(site > 0), given[site == 0]
        fitted = normalization.fit(values, rows, given)
        unknown = new.copy()
        unknown[:, 1 : 1 + n_sites] = np.nan
        found, expected = (fitted.apply(values[site == 0], g) * fitted.scale for g in (new, unknown))
        np.testing.assert_allclose(found, expected, atol=1e-3)
        design = np.column_stack([np.ones(n), given]).astype(float)
        residuals = values[rows] - design[rows] @ np.linalg.lstsq(design[rows], values[rows], rcond=1e-9)[0]
        np.testing.assert_allclose(fitted.apply(values[rows], given[rows]) * fitted.scale, residuals, atol=1e-3)
