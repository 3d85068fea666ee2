import numpy as np
import pytest

from bids_dl import growth, metrics
from bids_dl.metrics import Predictions

SIZES = np.array([12.0, 25, 50, 100])


@pytest.mark.parametrize(("a", "b", "c"), [(0.9, 1.2, 0.6), (0.8, 2.0, 1.0), (0.7, 0.5, 0.3)])
def test_known_power_law_is_recovered_and_followed(a, b, c):
    law = growth.power_law(SIZES, (a - b * SIZES**-c)[None], 1.0)
    assert (law.a[0], law.b[0], law.c[0]) == pytest.approx((a, b, c), rel=1e-6)
    for n in (200, 400):
        assert law.at(n)[0] == pytest.approx(a - b * n**-c, abs=1e-9)


def test_fit_is_the_best_of_a_slow_search():
    generator = np.random.default_rng(0)
    values = 0.85 - 1.1 * SIZES**-0.7 + 0.01 * generator.normal(size=4)
    weights = np.arange(1, 5) / 4

    def loss(a, b, c):
        return (weights * (values - a + b * SIZES**-c) ** 2).sum()

    law = growth.power_law(SIZES, values[None], 1.0)
    found = loss(law.a[0], law.b[0], law.c[0])
    grid = [(a, b, c) for a in np.linspace(0.7, 1, 61) for b in np.linspace(0, 4, 81) for c in np.linspace(0.05, 2, 40)]
    assert found <= min(loss(*at) for at in grid) + 1e-12


@pytest.mark.parametrize("values", [[0.5, 0.7, 0.9, 1.1], [0.9, 0.8, 0.7, 0.6]])
def test_limits_are_kept_where_scores_ask_for_more(values):
    law = growth.power_law(SIZES, np.array([values]), 1.0)
    assert law.a[0] <= 1
    assert law.b[0] >= 0


def predictions(n_train, *, quantity=True, seed=0, law=lambda n: 0.4 + 12 / n):
    """Absolute errors that follow a law over the size of the training set; everybody has the same share of them."""
    generator = np.random.default_rng(seed)
    truth = generator.normal(size=200)
    errors = law(n_train) * np.abs(1 + 0.1 * generator.normal(size=200))
    rows = np.arange(200)
    return Predictions(truth, (truth + errors)[:, None], rows, rows % 4)


def test_curve_that_follows_a_law_is_extrapolated_to_two_and_four_times_the_participants():
    rows = growth.curve({int(n): predictions(n) for n in SIZES}, "mae", n_draws=200, seed=0)
    assert [(r["kind"], r["n_train"]) for r in rows] == [("measured", n) for n in SIZES] + [
        ("extrapolated", 200), ("extrapolated", 400),
    ]  # fmt: skip
    for row, n in zip(rows, [*SIZES, 200, 400], strict=True):
        assert row["value"] == pytest.approx(metrics.score(predictions(n))["mae"][0], rel=0.01)
        assert row["ci_low"] <= row["value"] <= row["ci_high"]


@pytest.mark.parametrize(
    ("sizes", "law", "said"),
    [
        ((50, 100), lambda n: 0.4 + 12 / n, "2 sizes of the training set were measured; at least 3"),
        ((12, 25, 50, 100), lambda n: 1.0, "does not rise beyond its uncertainty"),
        ((12, 25, 50, 100), lambda n: 1 + n / 100, "does not rise beyond its uncertainty"),
        ((12, 25, 50, 100), lambda n: 2.0 if n < 40 else 1.0, "the scores follow no inverse power law"),
    ],
)
def test_curve_that_leads_nowhere_is_not_extrapolated_and_says_why(sizes, law, said):
    rows = growth.curve({n: predictions(n, law=law) for n in sizes}, "mae", n_draws=100, seed=0)
    assert [r["kind"] for r in rows] == ["measured"] * len(sizes) + ["not extrapolated"]
    assert said in rows[-1]["note"]
    assert said in growth.told(rows)
