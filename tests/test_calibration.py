import numpy as np
import pytest
from scipy import stats

from bids_dl import calibration
from bids_dl.calibration import Calibration

GENERATOR = np.random.default_rng(0)


def overconfident(n=4000, times=3.0):
    """Logits that are too large by a known number, and classes drawn as the smaller ones say."""
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(n, 1))
    truth = (generator.random(n) < 1 / (1 + np.exp(-logits[:, 0]))).astype(float)
    return times * logits, truth


def test_temperature_undoes_a_known_overconfidence():
    outputs, truth = overconfident()
    assert calibration.temperature(outputs, truth, 2) == pytest.approx(3, rel=0.15)


def test_temperature_of_three_classes_is_the_minimum_that_a_search_finds():
    generator = np.random.default_rng(2)
    outputs, truth = generator.normal(size=(200, 3)), generator.integers(0, 3, 200).astype(float)

    def surprise(t):
        p = np.exp(outputs / t)
        p /= p.sum(axis=1, keepdims=True)
        return -np.log(p[np.arange(200), truth.astype(int)]).sum() + (np.log(t) / np.log(2)) ** 2 / 2

    grid = np.geomspace(0.05, 20, 4000)
    assert calibration.temperature(outputs, truth, 3) == pytest.approx(
        grid[np.argmin([surprise(t) for t in grid])], rel=0.01
    )


def shrunk(n=300, *, noise=0.3, seed=5):
    """Outputs that lie too close to the mean and too high, and the truth."""
    generator = np.random.default_rng(seed)
    known = generator.normal(size=n)
    return 0.4 * known + 0.2, known + noise * generator.normal(size=n)


def test_line_undoes_a_known_shrinkage_and_shift():
    slope, offset = calibration.line(*shrunk(3000))
    assert slope == pytest.approx(2.5, rel=0.03)
    assert offset == pytest.approx(-0.5, abs=0.03)


def test_line_is_the_most_likely_one_of_a_grid():
    outputs, truth = shrunk(40)

    def likely(slope, offset, spread):
        errors = stats.t.logpdf((truth - slope * outputs - offset) / spread, 4) - np.log(spread)
        return errors.sum() + stats.norm.logpdf(np.log(slope) / np.log(2)) + stats.norm.logpdf(offset / 0.25)

    grid = [(s, o, e) for s in np.arange(1.5, 3.2, 0.02) for o in np.arange(-0.7, 0.1, 0.02) for e in (0.24, 0.27, 0.3)]
    best = max(grid, key=lambda at: likely(*at))
    slope, offset = calibration.line(outputs, truth)
    assert (slope, offset) == pytest.approx(best[:2], abs=0.05)
    spreads = np.geomspace(0.1, 1, 200)
    assert max(likely(slope, offset, e) for e in spreads) >= likely(*best) - 1e-3


def test_new_rows_have_a_smaller_error_after_slope_and_offset():
    outputs, truth = shrunk()
    learned = calibration.learn(outputs[:100, None], truth[:100], 0, 50, 10)
    before, after = (c.scores(outputs[100:, None], 0, 50, 10)[:, 0] for c in (Calibration(), learned))
    errors = [np.abs(50 + 10 * truth[100:] - said).mean() for said in (before, after)]
    assert errors[1] < 0.5 * errors[0]


def test_slope_stays_positive_where_outputs_are_the_wrong_way_round():
    outputs, truth = shrunk()
    assert 0 < calibration.line(-outputs, truth)[0] < 0.3


def test_few_rows_hardly_change_a_quantity():
    outputs, truth = shrunk(4, noise=1.0)
    free = np.polyfit(outputs, truth, 1)[0]
    slope, offset = calibration.line(outputs, truth)
    assert abs(np.log(slope)) < 0.5 * abs(np.log(abs(free)))
    assert abs(offset) < 0.25


def test_outputs_that_hardly_vary_stay_as_they_are():
    assert calibration.line(0.1 * GENERATOR.normal(size=50), np.full(50, 0.1)) == (1, 0)


def test_a_few_wild_rows_do_not_decide_the_line():
    outputs, truth = shrunk()
    wild = truth.copy()
    wild[np.argsort(outputs)[:9]] += 40
    least_squares, robust = np.polyfit(outputs, wild, 1)[0], calibration.line(outputs, wild)[0]
    assert least_squares < 0.5
    assert robust == pytest.approx(calibration.line(outputs, truth)[0], rel=0.1)


def test_gradient_of_the_line_is_that_of_its_differences():
    outputs, truth = shrunk(30)
    at = np.array([0.3, -0.1, -0.5])
    value, gradient = calibration._unlikely(at, outputs, truth)
    for k, step in enumerate(1e-6 * np.eye(3)):
        assert (calibration._unlikely(at + step, outputs, truth)[0] - value) / 1e-6 == pytest.approx(
            gradient[k], abs=0.01
        )


def test_few_rows_that_are_all_right_do_not_make_a_model_certain():
    truth = (np.arange(12) % 2).astype(float)
    assert calibration.temperature((4 * truth - 2)[:, None], truth, 2) > 0.4


def test_outputs_that_hardly_differ_keep_their_temperature():
    outputs = 0.4 + 0.01 * GENERATOR.normal(size=(30, 1))
    assert calibration.temperature(outputs, np.ones(30), 2) == 1.0


def test_calibrated_probabilities_have_a_smaller_error():
    outputs, truth = overconfident()
    learned = calibration.learn(outputs[:2000], truth[:2000], 2)
    before, after = (calibration.scores(outputs[2000:], 2, 0, 1, t) for t in (1.0, learned.temperature))
    error = [calibration.expected_error(truth[2000:], p) for p in (before, after)]
    assert error[0] > 0.1
    assert error[1] < 0.05


def test_expected_error_follows_its_definition_bin_by_bin():
    said, truth = np.linspace(0.05, 0.95, 20), (np.arange(20) % 3 == 0).astype(float)
    total = 0.0
    for start in range(0, 20, 4):
        mine = slice(start, start + 4)
        total += 4 / 20 * abs(said[mine].mean() - truth[mine].mean())
    found = calibration.expected_error(truth, np.column_stack([1 - said, said]), n_bins=5)
    assert found == pytest.approx(total)


@pytest.mark.parametrize("n_levels", [2, 4])
def test_order_of_participants_is_no_error_of_whoever_says_the_same_of_all(n_levels):
    """A table that lists controls first must not make the class frequencies look badly calibrated."""
    truth = np.repeat(np.arange(n_levels), 30)
    assert calibration.expected_error(truth, np.full((len(truth), n_levels), 1 / n_levels)) == pytest.approx(0)


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_reach_is_the_order_statistic_of_the_book(coverage):
    scores = np.sort(GENERATOR.random(37))
    k = int(np.ceil(38 * coverage))
    assert Calibration(1.0, scores).reach(coverage) == sorted(scores)[k - 1]


def test_reach_that_too_few_rows_cannot_promise_is_infinite():
    assert Calibration(1.0, np.sort(GENERATOR.random(8))).reach(0.9) == float("inf")
    assert Calibration().reach(0.5) == float("inf")


@pytest.mark.parametrize("n_levels", [0, 2, 3])
def test_sets_and_intervals_cover_new_rows_as_often_as_promised(n_levels):
    generator, coverages = np.random.default_rng(3), []
    for _ in range(60):
        outputs, truth = drawn(generator, n_levels, 400)
        learned = calibration.learn(outputs[:100], truth[:100], n_levels, 10.0, 2.0)
        said = learned.scores(outputs[100:], n_levels, 10.0, 2.0)
        seen = truth[100:] if n_levels else truth[100:] * 2 + 10
        holds = calibration.covers(seen, said, np.full(300, learned.reach(0.8)), n_levels)
        coverages.append(holds.mean())
    assert np.mean(coverages) == pytest.approx(0.8, abs=0.025)


def drawn(generator, n_levels, n):
    if not n_levels:
        truth = generator.normal(size=n)
        return (truth + generator.normal(size=n))[:, None], truth
    outputs = generator.normal(size=(n, 1 if n_levels == 2 else n_levels))
    probabilities = calibration.scores(outputs, n_levels, 0, 1)
    return outputs, np.array([generator.choice(n_levels, p=p) for p in probabilities]).astype(float)


def test_width_of_a_quantity_is_in_its_unit():
    learned = calibration.learn(np.zeros((9, 1)), np.full(9, 2.0), 0, 50.0, 10.0)
    reach = np.full(1, learned.reach(0.9))
    assert calibration.sizes(np.array([[50.0]]), reach, 0) == [40.0]


def test_sets_hold_the_classes_that_are_likely_enough():
    said = np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]])
    assert calibration.in_set(said, np.array([0.7, 0.7])).tolist() == [[True, False, False], [True, True, False]]


def test_place_among_levels_goes_to_the_nearest_that_exists_and_up_from_between():
    said = np.array([-0.7, 0.49, 0.5, 1.5, 2.2, 9.0])
    assert calibration.nearest_rank(said, 3).tolist() == [0, 0, 1, 2, 2, 2]


def test_set_of_levels_holds_the_truth_exactly_where_the_interval_does():
    generator = np.random.default_rng(0)
    truth, said = generator.integers(0, 4, 200).astype(float), generator.normal(1.5, 1.5, (200, 1))
    reach = generator.uniform(0.1, 2, 200)
    holds = calibration.ranks_within(said, reach, 4)
    assert holds[np.arange(200), truth.astype(int)].tolist() == calibration.covers(truth, said, reach, 0).tolist()
    assert calibration.sizes(said, reach, 0, 4).tolist() == holds.sum(axis=1).tolist()
    assert not holds[(said[:, 0] > 3 + reach)].any()
