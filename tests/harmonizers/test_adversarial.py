"""What location and spread leave is hidden too: sites in which other values belong together."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from bids_dl import bundle, material, normalization, span, training
from bids_dl.harmonizers import adversarial, combat
from bids_dl.records import Block, Cohort, Split, Target
from bids_dl.settings import Settings

N, N_VALUES, N_TRAIN = 2600, 40, 600
TRAIN, SEEN, NEW = np.arange(N_TRAIN), np.arange(N_TRAIN, 1600), np.arange(1600, N)


def sites_that_mix(n=N, seed=1):
    """Three sites with their own location, spread and correlations; the first ten values know the diagnosis."""
    generator = np.random.default_rng(seed)
    site, sick = np.arange(n) % 3, generator.integers(0, 2, n)
    values = generator.normal(size=(n, N_VALUES))
    values[:, :10] += 0.8 * (sick[:, None] - 0.5)
    for s, shared in ((1, 0.8), (2, -0.8)):
        mine = site == s
        values[mine, 20:30] = shared * values[mine, 10:20] + np.sqrt(1 - shared**2) * values[mine, 20:30]
    own, width = np.random.default_rng(99).normal(size=(3, N_VALUES)) * 2, np.array([0.6, 1, 1.8])
    values = values * width[site][:, None] + own[site]
    return values.astype(np.float32), np.eye(3, dtype=np.float32)[site], site, sick


def told(values, site, products=False):
    """Part of new participants whose site a linear classifier tells, from values or also from products of two."""
    x = np.hstack([values, *(values * np.roll(values, k, axis=1) for k in range(11))]) if products else values
    return LogisticRegression(C=0.05, max_iter=300).fit(x[SEEN], site[SEEN]).score(x[NEW], site[NEW])


def auc(values, sick):
    model = LogisticRegression(C=0.1).fit(values[SEEN], sick[SEEN])
    return roc_auc_score(sick[NEW], model.decision_function(values[NEW]))


def test_sites_that_combat_leaves_are_hidden_and_the_diagnosis_stays():
    values, given, site, sick = sites_that_mix()
    by_values = combat.fit(values, TRAIN, given, 3).apply(values, given)
    moved = adversarial.fit(values, TRAIN, given, 3).apply(values, given)
    assert told(values, site) > 0.95
    assert told(by_values, site, products=True) > 0.75  # chance is 1/3
    assert told(moved, site) < 0.5
    assert told(moved, site, products=True) < 0.68
    assert auc(moved, sick) > auc(by_values, sick) - 0.02 > 0.9


def test_without_steps_it_is_combat():
    values, given, *_ = sites_that_mix(300)
    one = adversarial.fit(values, np.arange(200), given, 3, n_steps=0).apply(values, given)
    np.testing.assert_allclose(one, combat.fit(values, np.arange(200), given, 3).apply(values, given), atol=1e-5)


def test_saved_network_moves_as_the_trained_one_does():
    values, given, *_ = sites_that_mix(300)
    learned = adversarial.fit(values, np.arange(200), given, 3, n_steps=20)
    base = combat.fit(values, np.arange(200), given, 3)
    z = (base.apply(values, given) - base.explained(given)) / learned.unit @ learned.axes.T / learned.size
    mover = adversarial._Mover(len(learned.size), 3, len(learned.into_bias))
    names = {"mix": "mix", "into.weight": "into", "into.bias": "into_bias", "out.weight": "out", "out.bias": "out_bias"}
    mover.load_state_dict({key: torch.from_numpy(getattr(learned, name)) for key, name in names.items()})
    with torch.no_grad():
        moves = mover(torch.from_numpy(z.astype(np.float32)), torch.from_numpy(given)).numpy()
    expected = base.apply(values, given) + moves * learned.size @ learned.axes * learned.unit
    np.testing.assert_allclose(learned.apply(values, given), expected, atol=1e-4)
    assert np.abs(moves).max() > 1e-3


def test_equal_rows_give_equal_moves_and_another_seed_others():
    values, given, *_ = sites_that_mix(300)
    one, same, other = (
        adversarial.fit(values, np.arange(200), given, 3, n_steps=10, seed=seed).apply(values, given)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_values_that_never_vary_stay():
    values, given, *_ = sites_that_mix(60)
    values[:, 3] = 7
    after = adversarial.fit(values, np.arange(60), given, 3, n_steps=5).apply(values, given)
    np.testing.assert_allclose(after[:, 3], 7, atol=1e-4)


@pytest.fixture
def cohort():
    """More edges than participants, of two sites."""
    generator = np.random.default_rng(0)
    site, y = np.arange(60) % 2, np.arange(60) // 2 % 2.0
    values = generator.normal(size=(60, 200)) + site[:, None] + 0.7 * y[:, None] * (np.arange(200) < 30)
    people = pd.DataFrame({"participant_id": [f"sub-{k:02d}" for k in range(60)]})
    blocks = {"edges": Block(values.astype(np.float32), ("edge",)), "sites": Block(np.eye(2)[site], ("column",), ("A", "B")),
              "confounds": Block(np.zeros((60, 0), np.float32), ("column",))}  # fmt: skip
    return Cohort(people, blocks, Target("group", y, ("a", "b")))


SPLIT = Split(np.arange(30), np.arange(30, 40), np.arange(40, 60), "one")
SETTINGS = Settings(n_members=1, device="cpu", harmonizer="adversarial", harmonizer_options={"n_steps": 30})


def test_span_holds_the_inner_products_of_moved_rows(cohort, monkeypatch):
    monkeypatch.setattr(span, "CHUNK_BYTES", 60 * 4 * 7)
    monkeypatch.setattr(normalization, "CHUNK_BYTES", 200 * 4 * 7)
    block, given = cohort.features["edges"], material.given_of(cohort)
    normal = training.prepare(cohort, SPLIT, ["edges"], SETTINGS).normalization["edges"]
    x = normal.apply(block.values, given).astype(np.float64)
    inner = span.kernel(block, normal, np.arange(60), given)
    np.testing.assert_allclose(inner.values, x @ x.T, rtol=1e-4, atol=1e-3)
    mixing = np.random.default_rng(1).normal(size=(2, 60))
    np.testing.assert_allclose(span.fold(mixing, np.arange(60), block, normal, given), mixing @ x, atol=1e-3)


@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_bundle_predicts_what_the_trained_model_does(cohort, model, tmp_path):
    definition = training.define(model, [(200,)], 1, {})
    fitted = training.train(definition, cohort, SPLIT, ["edges"], SETTINGS)
    found = bundle.load(bundle.save(fitted, tmp_path / "bundle", {}))
    predicted = training.predict(fitted, cohort, SPLIT.test)
    np.testing.assert_allclose(training.predict(found, cohort, SPLIT.test), predicted, atol=1e-6)
    assert roc_auc_score(cohort.target.values[SPLIT.test], predicted[:, 1]) > 0.8
