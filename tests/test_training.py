import tracemalloc
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score

from bids_dl import bundle, calibration, normalization, splits, stacking, training
from bids_dl import config as configuration
from bids_dl.errors import DataError, MissingInputError, UsageError
from bids_dl.fusions.postfusion import fuse
from bids_dl.records import Block, Cohort, Split, Target

N = 40
SHAPES = {"edges": (60,), "columns": (5,), "volume": (8, 8, 8)}
TWO, THREE = ("control", "patient"), ("a", "b", "c")
SMALL = {
    "linear": {"n_penalties": 3},
    "mlp": {"hidden": [8]},
    "vae": {"hidden": [8]},
    "cnn3d": {"channels": [4], "width": 4},
}
CASES = [("linear", "edges"), ("linear", "columns"), ("mlp", "edges"), ("mlp", "columns"), ("cnn3d", "volume")]
TARGETS = {"two classes": TWO, "three classes": THREE, "quantity": ()}


def cohort(levels=TWO, *, effect=0.0, seed=0, n=N):
    """Features of every kind with an effect on a tenth of their values; the confounds know nothing."""
    generator = np.random.default_rng(seed)
    y = generator.permutation(np.arange(n) % len(levels)).astype(float) if levels else generator.normal(50, 10, n)
    z = (y - y.mean()) / y.std()
    features = {"confounds": Block(generator.normal(size=(n, 2)).astype(np.float32), ("column",))}
    for name, shape in SHAPES.items():
        values = generator.normal(size=(n, *shape)).astype(np.float32).reshape(n, -1)
        values[:, : max(1, values.shape[1] // 10)] += effect * z[:, None].astype(np.float32)
        features[name] = Block(values.reshape(n, *shape), {"edges": ("edge",), "columns": ("column",)}.get(name, ()))
    people = pd.DataFrame({"participant_id": [f"sub-{i:03d}" for i in range(n)]})
    return Cohort(people, features, Target("target", y, levels))


def split_of(data, seed=0, n_folds=4):
    ids = data.participants["participant_id"].tolist()
    return splits.make(data.target, ids, configuration.Splits(n_folds=n_folds), seed=seed)[0]


def train(model, feature, data, split, *, checkpoint=None, **wishes):
    definition = training.define(model, [data.features[feature].shape], data.target.n_outputs, SMALL[model])
    asked = {"n_epochs": 6, "n_members": 2, "learning_rate": 1e-2, "device": "cpu", "checkpoint": checkpoint}
    return training.train(definition, data, split, [feature], training.Settings(**{**asked, **wishes}))


def fused(data, split, **wishes):
    members = [train(m, f, data, split, n_members=1) for m, f in (("mlp", "edges"), ("cnn3d", "volume"))]
    return fuse(members, data, split, training.Settings(n_epochs=4, device="cpu", **wishes))


def same(one, other):
    """Bit for bit: weights, normalisation, history with the chosen penalty, units of the target, calibration."""
    a, b = one.module.state_dict(), other.module.state_dict()
    weights = all(torch.equal(a[key], b[key]) for key in a)
    learned = [
        np.array_equal(x, y)
        for name in one.normalization
        for x, y in zip(vars(one.normalization[name]).values(), vars(other.normalization[name]).values(), strict=True)
        if x is not None
    ]
    history = pd.DataFrame(one.history).equals(pd.DataFrame(other.history))
    calibrated = [
        np.array_equal(x, y)
        for x, y in zip(vars(one.calibration).values(), vars(other.calibration).values(), strict=True)
    ]
    return weights and all(learned) and history and one.target_mean == other.target_mean and all(calibrated)


def as_trained(fitted, data, rows):
    """Probabilities before the temperature."""
    return calibration.scores(training.outputs(fitted, data, rows), len(fitted.levels), 0, 1)


def with_altered_test_rows(data, split):
    """Other values, other labels and other confounds for those who are tested."""
    features = {}
    for name, block in data.features.items():
        values = block.values.copy()
        values[split.test] = np.random.default_rng(9).normal(7, 30, values[split.test].shape)
        features[name] = replace(block, values=values)
    y = data.target.values.copy()
    y[split.test] = (y[split.test] + 1) % len(data.target.levels) if data.target.is_class else y[split.test] * 50
    return Cohort(data.participants, features, replace(data.target, values=y))


@pytest.mark.parametrize("levels", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize(("model", "feature"), CASES)
def test_altered_test_rows_change_nothing_that_is_learned(model, feature, levels):
    data = cohort(levels, effect=0.5)
    split = split_of(data)
    wishes = {"remove_confounds": True, "patience": 2}
    one, other = (train(model, feature, d, split, **wishes) for d in (data, with_altered_test_rows(data, split)))
    assert same(one, other)


@pytest.mark.parametrize("levels", [TWO, ()], ids=["classes", "quantity"])
def test_altered_test_rows_change_nothing_in_a_fusion(levels):
    data = cohort(levels, effect=0.5)
    split = split_of(data)
    assert same(fused(data, split), fused(with_altered_test_rows(data, split), split))


def test_quantity_that_dropout_predicts_too_close_to_its_mean_is_stretched():
    data = cohort((), effect=0.6, n=240)
    split = split_of(data)
    given = {**SMALL["mlp"], "hidden": [16], "dropout": 0.8}
    definition = training.define("mlp", [data.features["edges"].shape], 1, given)
    settings = training.Settings(n_epochs=60, n_members=4, learning_rate=3e-3, device="cpu")
    fitted = training.train(definition, data, split, ["edges"], settings)
    truth = data.target.values[split.test]
    raw = training.outputs(fitted, data, split.test)[:, 0] * fitted.target_scale + fitted.target_mean
    said = training.predict(fitted, data, split.test)[:, 0]
    assert np.polyfit(raw, truth, 1)[0] > 1.2
    assert fitted.calibration.slope > 1.1
    assert np.abs(said - truth).mean() < 0.95 * np.abs(raw - truth).mean()
    assert np.corrcoef(said, raw)[0, 1] == pytest.approx(1)


def half_unlabelled(levels=TWO, *, alter=(), also=()):
    """Twenty participants with a target, then twenty without; returns the cohort and a split of the first."""
    data = cohort(levels, effect=0.5)
    y = data.target.values.copy()
    y[20:] = np.nan
    features = {name: replace(block, values=block.values.copy()) for name, block in data.features.items()}
    for row in alter:
        features["columns"].values[row] = np.random.default_rng(row).normal(size=5)
    features["columns"].values[list(also)] = np.nan
    split = Split(np.arange(0, 10), np.arange(10, 14), np.arange(14, 20), "one")
    return Cohort(data.participants, features, replace(data.target, values=y)), split


@pytest.mark.parametrize("levels", TARGETS.values(), ids=TARGETS)
def test_participants_without_a_target_teach_only_models_that_say_so(levels):
    (plain, split), (altered, _) = half_unlabelled(levels), half_unlabelled(levels, alter=range(20, 40))
    assert not same(*(train("vae", "columns", data, split, n_epochs=2) for data in (plain, altered)))
    assert same(*(train("mlp", "columns", data, split, n_epochs=2) for data in (plain, altered)))


def test_participants_without_a_target_change_no_normalisation_and_test_rows_change_nothing():
    (plain, split), (altered, _) = half_unlabelled(), half_unlabelled(alter=range(20, 40))
    one, other = (train("vae", "columns", data, split, n_epochs=2) for data in (plain, altered))
    np.testing.assert_array_equal(one.normalization["columns"].mean, other.normalization["columns"].mean)
    assert same(one, train("vae", "columns", with_altered_test_rows(plain, split), split, n_epochs=2))


@pytest.mark.parametrize("part", ["test", "validation"])
def test_relatives_of_those_held_out_teach_nothing_though_they_have_no_target(part):
    """Rows 20 to 29 belong to families of the held-out part, the others to nobody's."""
    families = [f"family-{row}" for row in range(N)]
    plain, split = half_unlabelled()
    for row in range(20, 30):
        families[row] = families[getattr(split, part)[row % 4]]
    split = replace(split, groups=tuple(families))
    related, _ = half_unlabelled(alter=range(20, 30))
    others, _ = half_unlabelled(alter=range(30, 40))
    fitted = [train("vae", "columns", data, split, n_epochs=2, n_members=1) for data in (plain, related, others)]
    assert same(fitted[0], fitted[1])
    assert not same(fitted[0], fitted[2])


def test_nobody_without_a_target_comes_from_the_site_that_is_tested():
    plain, split = half_unlabelled()
    sites = ["a"] * 14 + ["b"] * 6 + ["b"] * 10 + ["c"] * 10
    split = replace(split, sites=tuple(sites))
    found = training._unlabelled(plain.target, split, split.train)
    assert found.tolist() == list(range(30, 40))


def test_participants_without_a_target_and_without_the_feature_are_passed_over():
    data, split = half_unlabelled(also=range(20, 30))
    fitted = train("vae", "columns", data, split, n_epochs=2)
    assert np.isfinite([row["train_loss"] for row in fitted.history]).all()
    altered, _ = half_unlabelled(also=range(20, 40))
    assert not same(fitted, train("vae", "columns", altered, split, n_epochs=2))


@pytest.mark.parametrize(("model", "feature"), CASES)
def test_altered_training_rows_do_change_what_is_learned(model, feature):
    """The leakage tests above would also pass if nothing were learned."""
    data = cohort(effect=0.5)
    split = split_of(data)
    other = with_altered_test_rows(data, replace(split, test=split.train[:5], train=split.test))
    assert not same(train(model, feature, data, split), train(model, feature, other, split))


def held_out_auc(model, feature, data, n_epochs=6):
    ids = data.participants["participant_id"].tolist()
    found = []
    for split in splits.make(data.target, ids, configuration.Splits(n_folds=2), seed=0):
        fitted = train(model, feature, data, split, n_members=1, n_epochs=n_epochs)
        scores = training.predict(fitted, data, split.test)[:, 1]
        found.append(roc_auc_score(data.target.values[split.test], scores))
    return np.mean(found)


@pytest.mark.parametrize(("model", "feature"), CASES[:4])
def test_no_effect_gives_chance(model, feature):
    found = [held_out_auc(model, feature, cohort(seed=seed)) for seed in range(10)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.09)


@pytest.mark.parametrize(("model", "feature"), CASES[:4])
def test_shuffled_labels_give_chance_and_true_ones_do_not(model, feature):
    data = cohort(effect=2.5)
    found = []
    for seed in range(10):
        y = np.random.default_rng(seed).permutation(data.target.values)
        found.append(held_out_auc(model, feature, replace(data, target=replace(data.target, values=y))))
    assert np.mean(found) == pytest.approx(0.5, abs=0.09)
    assert held_out_auc(model, feature, data, n_epochs=20) > 0.8


@pytest.mark.parametrize(("model", "feature"), [*CASES, ("fusion", "")])
def test_same_seed_gives_the_same_bits_and_leaves_torchs_own_state(model, feature):
    data = cohort(effect=0.5)
    split = split_of(data)
    before = torch.get_rng_state()
    one, other = (fused(data, split) if model == "fusion" else train(model, feature, data, split) for _ in range(2))
    assert same(one, other)
    assert model == "fusion" or torch.equal(before, torch.get_rng_state())
    assert not torch.are_deterministic_algorithms_enabled()


def test_another_seed_gives_another_network():
    data = cohort(effect=0.5)
    split = split_of(data)
    assert not same(train("mlp", "columns", data, split), train("mlp", "columns", data, split, seed=1))


@pytest.mark.parametrize(("model", "feature"), [("mlp", "edges"), ("mlp", "columns"), ("cnn3d", "volume")])
def test_kept_weights_are_those_of_the_best_epoch(model, feature):
    """Training far too fast: the last epoch is worse than an earlier one, whose loss the kept weights have."""
    data = cohort(effect=0.5)
    split = split_of(data)
    fitted = train(
        model, feature, data, split, n_epochs=40, patience=5, learning_rate=0.1, n_members=1, class_weights=False
    )
    losses = [row["validation_loss"] for row in fitted.history]
    p = as_trained(fitted, data, split.validation)[:, 1]
    y = data.target.values[split.validation]
    kept = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
    assert losses[-1] > min(losses)
    assert kept <= min(losses) + 1e-4
    assert len(losses) < 40


def test_training_stops_after_its_patience():
    data = cohort()
    fitted = train("mlp", "columns", data, split_of(data), n_epochs=60, patience=3, learning_rate=0.3, n_members=1)
    losses = [row["validation_loss"] for row in fitted.history]
    assert len(losses) <= int(np.argmin(losses)) + 3 + 2


def test_a_loss_that_leaps_at_first_and_then_falls_is_waited_for():
    """The first steps carry the loss far above the untrained network's: it falls from there, and is not given up."""
    told = [0.7, 3.0, 2.5, 2.0, 1.5, 1.0, 0.8, 0.6, 0.9, 0.8, 0.7]
    module, y = torch.nn.Linear(1, 1), torch.zeros(4)
    settings = training.Settings(n_epochs=20, patience=2, batch_size=4, device="cpu")
    run = training._Loop(module, settings, lambda out, y: out.square().mean(), None, seed=0)
    run.evaluate = lambda rows, y: told.pop(0)
    history = run.run(lambda at: (torch.ones(len(at), 1),), y, lambda at: (), y)
    assert [row["validation_loss"] for row in history] == [3.0, 2.5, 2.0, 1.5, 1.0, 0.8, 0.6, 0.9, 0.8, 0.7]
    assert run.best == 0.6


@pytest.mark.parametrize("levels", [TWO, THREE], ids=["two classes", "three classes"])
def test_class_weights_give_each_class_the_same_say(levels):
    """A constant network: with weights the best constant is even, without them it is the classes' frequencies."""
    counts = np.array([24, 9, 7]) if len(levels) == 3 else np.array([30, 10])
    y = np.repeat(np.arange(len(levels)), counts).astype(float)
    data = replace(cohort(levels), target=Target("target", y, levels))
    rows = np.arange(N)
    for weighted, expected in ((True, np.full(len(levels), 1 / len(levels))), (False, counts / N)):
        given = training._Data(data, [], training.Prepared({}), None, y, is_class=True)
        loss = training._loss(given, rows, weighted=weighted)
        logits = torch.zeros(1, data.target.n_outputs, requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], max_iter=50, line_search_fn="strong_wolfe")
        labels = torch.tensor(y, dtype=torch.long if len(levels) == 3 else torch.float32)

        def closure(logits=logits, optimizer=optimizer, loss=loss, labels=labels):
            optimizer.zero_grad()
            value = loss(logits.expand(N, -1), labels)
            value.backward()
            return value

        optimizer.step(closure)
        scores = calibration.scores(logits.detach().numpy(), len(levels), 0.0, 1.0)[0]
        np.testing.assert_allclose(scores, expected, atol=1e-3)


def test_quantity_is_scaled_by_the_training_rows_and_predicted_in_its_unit():
    data = cohort((), effect=3.0)
    split = split_of(data)
    fitted = train("linear", "edges", data, split)
    pool = np.concatenate([split.train, split.validation])
    assert fitted.target_mean == pytest.approx(data.target.values[pool].mean())
    assert fitted.target_scale == pytest.approx(data.target.values[pool].std())
    predicted = training.predict(fitted, data, split.test)[:, 0]
    assert np.corrcoef(predicted, data.target.values[split.test])[0, 1] > 0.9
    assert np.abs(predicted - data.target.values[split.test]).mean() < 5


@pytest.mark.parametrize("feature", ["edges", "columns"])
def test_linear_regression_is_ridge_with_the_penalty_that_its_history_names(feature):
    data = cohort((), effect=0.5)
    split = split_of(data)
    fitted = train("linear", feature, data, split)
    pool = np.sort(np.concatenate([split.train, split.validation]))
    x = fitted.normalization[feature].apply(data.features[feature].values).astype(float)
    y = (data.target.values - fitted.target_mean) / fitted.target_scale
    candidates = [Ridge(alpha=a).fit(x[pool], y[pool]).coef_ for a in np.geomspace(1e-6, 1e8, 400)]
    weights = fitted.module.head.weight.detach().numpy()[0]
    nearest = min(np.abs(c - weights).max() / np.abs(weights).max() for c in candidates)
    assert nearest < 0.05
    assert np.isfinite(fitted.history[0]["penalty"])


def test_linear_classifier_is_logistic_regression_with_the_chosen_penalty():
    data = cohort(effect=0.5)
    split = split_of(data)
    fitted = train("linear", "columns", data, split)
    pool = np.sort(np.concatenate([split.train, split.validation]))
    x = fitted.normalization["columns"].apply(data.features["columns"].values)
    peer = LogisticRegression(C=fitted.history[0]["penalty"], class_weight="balanced", max_iter=500)
    peer.fit(x[pool], data.target.values[pool])
    expected = peer.predict_proba(x[split.test])
    np.testing.assert_allclose(as_trained(fitted, data, split.test), expected, atol=1e-3)


def test_dummy_predicts_the_training_rows_frequencies_and_mean():
    for levels in (TWO, THREE, ()):
        data = cohort(levels)
        split = split_of(data)
        pool = np.concatenate([split.train, split.validation])
        settings = training.Settings(device="cpu")
        definition = training.define("dummy", [(2,)], data.target.n_outputs, {})
        scores = training.predict(training.train(definition, data, split, ["confounds"], settings), data, split.test)
        y = data.target.values[pool]
        expected = np.bincount(y.astype(int)) / len(pool) if levels else [y.mean()]
        np.testing.assert_allclose(scores, np.tile(expected, (len(split.test), 1)), rtol=1e-5)


@pytest.mark.parametrize("levels", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("feature", ["edges", "columns"])
def test_training_under_the_true_labels_again_gives_the_same_scores(feature, levels):
    """What the permutation test retrains is the very model that is tested."""
    data = cohort(levels, effect=0.5)
    split = split_of(data)
    definition = training.define("linear", [data.features[feature].shape], data.target.n_outputs, {})
    settings = training.Settings(device="cpu")
    (scores,) = training.null_scores(definition, data, split, [feature], settings, [data.target])
    fitted = training.train(definition, data, split, [feature], settings)
    np.testing.assert_allclose(scores, training.predict(fitted, data, split.test), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_scores_without_a_kept_model_are_those_of_one_that_is_kept(model):
    """Somebody of the test rows lacks the feature: there is no score in their place."""
    data = cohort(effect=0.5)
    split = split_of(data)
    data.features["edges"].values[split.test[1]] = np.nan
    definition = training.define(model, [data.features["edges"].shape], 1, SMALL[model])
    settings = training.Settings(n_epochs=3, device="cpu")
    scores = training.held_out_scores(definition, data, split, ["edges"], settings)
    expected = training.predict(training.train(definition, data, split, ["edges"], settings), data, split.test)
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-4)
    assert np.flatnonzero(np.isnan(scores).any(axis=1)).tolist() == [1]


class InterruptionError(Exception):
    pass


def loop(checkpoint, rows, seed=0, learning_rate=1e-2):
    """One network's loop over three columns, from the same first weights."""
    torch.manual_seed(seed)
    module = training.instantiate(training.define("mlp", [(3,)], 1, {"hidden": [4]}))
    settings = training.Settings(n_epochs=14, patience=50, batch_size=8, learning_rate=learning_rate, device="cpu")
    squared = torch.nn.functional.mse_loss
    run = training._Loop(module, settings, lambda out, y: squared(out[:, 0], y), checkpoint, seed=seed)
    x, y = torch.randn(30, 3), torch.randn(30)
    history = run.run(lambda at: (rows(x, at),), y[:20], lambda at: (x[20:][at],), y[20:])
    return module.state_dict(), history


@pytest.fixture
def path(tmp_path):
    """The checkpoint of a training that was interrupted in its eighth epoch."""
    rows_read = []

    def stops_in_epoch_8(x, at):
        rows_read.append(len(at))
        if sum(rows_read) > 20 * 7 + 10:
            raise InterruptionError
        return x[at]

    with pytest.raises(InterruptionError):
        loop(tmp_path / "member-0.pt", stops_in_epoch_8)
    return tmp_path / "member-0.pt"


def test_interrupted_training_resumes_to_the_same_result(path):
    whole = loop(None, lambda x, at: x[at])
    assert path.is_file()
    rows_read = []
    resumed = loop(path, lambda x, at: rows_read.append(len(at)) or x[at])
    assert sum(rows_read) == 20 * (14 - training.CHECKPOINT_EVERY)
    assert resumed[1] == whole[1]
    assert all(torch.equal(resumed[0][key], whole[0][key]) for key in whole[0])


def test_checkpoint_of_other_settings_is_not_resumed(path):
    whole = loop(None, lambda x, at: x[at], learning_rate=1e-4)
    resumed = loop(path, lambda x, at: x[at], learning_rate=1e-4)
    assert all(torch.equal(resumed[0][key], whole[0][key]) for key in whole[0])


def test_finished_training_leaves_no_checkpoint(tmp_path):
    data = cohort()
    train("mlp", "columns", data, split_of(data), checkpoint=tmp_path)
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize(("model", "feature"), CASES)
def test_batch_of_one_is_trained_and_predicted(model, feature):
    data = cohort(effect=0.5)
    split = split_of(data)
    fitted = train(model, feature, data, split, batch_size=1, n_epochs=1)
    alone = training.predict(fitted, data, split.test[:1])
    np.testing.assert_allclose(alone, training.predict(fitted, data, split.test)[:1], atol=1e-5)


def absent(data, feature, rows):
    values = data.features[feature].values.copy()
    values[rows] = np.nan
    return replace(data, features={**data.features, feature: replace(data.features[feature], values=values)})


@pytest.mark.parametrize(("model", "feature"), CASES)
def test_participant_without_the_feature_is_not_predicted(model, feature):
    data = cohort()
    split = split_of(data)
    gone = [split.train[0], split.test[1]]
    fitted = train(model, feature, absent(data, feature, gone), split)
    scores = training.predict(fitted, absent(data, feature, gone), split.test)
    assert np.isnan(scores[1]).all()
    assert np.isfinite(np.delete(scores, 1, axis=0)).all()


def test_few_training_participants_are_counted():
    data = cohort()
    split = split_of(data)
    with pytest.raises(DataError, match="2 training participants have edges; at least 4 are needed"):
        train("mlp", "edges", absent(data, "edges", split.train[2:]), split)


@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_feature_that_never_varies_gives_a_constant_prediction(model):
    data = cohort()
    still = replace(data.features["edges"], values=np.ones((N, 60), np.float32))
    data = replace(data, features={**data.features, "edges": still})
    scores = training.predict(train(model, "edges", data, split_of(data)), data, np.arange(N))
    assert np.isfinite(scores).all()
    assert np.ptp(scores[:, 1]) < 1e-6


@pytest.mark.parametrize(("model", "feature"), CASES)
def test_rare_class_that_some_inner_parts_lack_is_trained(model, feature):
    y = np.zeros(N)
    y[:5] = 1
    data = replace(cohort(), target=Target("target", y, TWO))
    split = split_of(data)
    assert np.isfinite(training.predict(train(model, feature, data, split), data, split.test)).all()


def test_rows_with_any_value_are_found():
    values = np.full((4, 200), np.nan)
    values[1, 199] = 0.0
    values[2] = 1.0
    assert training.has_values(values).tolist() == [False, True, True, False]
    assert training.has_values(np.zeros((3, 0))).tolist() == [True] * 3


def test_wishes_of_the_user_win_over_the_models_schedule():
    definition = training.define("mlp", [(5,)], 1, {})
    given = {"bids_dir": "a", "output_dir": "b", "analysis_level": "group", "random_seed": 7}
    plain = training.settings_for(definition, configuration.from_mapping(given))
    asked = training.settings_for(definition, configuration.from_mapping(
        {**given, "training": {"n_epochs": 3, "weight_decay": 0.0, "class_weights": False}}
    ))  # fmt: skip
    from bids_dl.models.mlp import SCHEDULE

    assert {key: getattr(plain, key) for key in SCHEDULE} == SCHEDULE
    assert (plain.seed, plain.class_weights) == (7, True)
    assert (asked.n_epochs, asked.weight_decay, asked.class_weights) == (3, 0.0, False)
    assert asked.patience == plain.patience


def test_ensemble_is_the_mean_of_its_members():
    members = [training.instantiate(training.define("mlp", [(5,)], 3, {})).eval() for _ in range(3)]
    x = torch.randn(4, 5)
    expected = torch.stack([m(x) for m in members]).mean(dim=0)
    torch.testing.assert_close(training.Ensemble(members).eval()(x), expected)


def test_definition_outside_of_the_package_is_refused():
    for target in ("os.system", "bids_dlevil.build", "subprocess.run"):
        with pytest.raises(UsageError, match=f"names '{target}', which is not part of bids_dl"):
            training.instantiate({"_target_": target, "command": "true"})


@pytest.mark.parametrize("target", ["bids_dl.engine.call", "bids_dl.derivatives.remove", "bids_dl.cli.main"])
def test_definition_of_something_that_is_no_model_is_refused(target):
    """A bundle is data: ``engine.call`` would import and run anything that it names."""
    with pytest.raises(UsageError, match=target):
        training.instantiate({"_target_": target, "step": "os:getcwd", "arguments": "{}", "stamp": "", "upstream": []})


def test_present_rows_have_any_of_the_inputs():
    data = absent(absent(cohort(), "edges", [0, 1]), "volume", [1, 2])
    split = Split(np.arange(0, 20), np.arange(20, 30), np.arange(30, 40), "one")
    assert training.present(data, split, ["edges", "volume"]).train.tolist() == [0, *range(2, 20)]
    assert training.present(data, split, ["edges"]).train.tolist() == list(range(2, 20))


def test_loss_that_stops_being_a_number_names_model_feature_split_and_epoch():
    data = cohort()
    split = split_of(data)
    with pytest.raises(DataError, match=rf"mlp on edges, split {split.name}: the loss became (nan|inf) in epoch \d"):
        train("mlp", "edges", data, split, learning_rate=1e30, n_epochs=20)


def test_last_row_alone_joins_the_batch_before():
    sizes = [len(b) for b in stacking.batches(np.arange(9), 4, smallest=2)]
    assert sizes == [4, 5]
    assert [len(b) for b in stacking.batches(np.arange(1), 4, smallest=2)] == [1]


def test_model_with_an_objective_of_its_own_is_trained_by_it(monkeypatch):
    from bids_dl.models.mlp import MLP

    seen = []

    def loss(self, inputs, y, criterion):
        seen.append(len(y))
        return criterion(self(*inputs), y)

    data = cohort()
    plain = train("mlp", "columns", data, split_of(data))
    monkeypatch.setattr(MLP, "loss", loss, raising=False)
    assert same(train("mlp", "columns", data, split_of(data)), plain)
    assert seen


@pytest.mark.parametrize("levels", TARGETS.values(), ids=TARGETS)
def test_networks_trained_in_a_stack_are_those_trained_one_by_one(levels):
    data = cohort(levels, effect=0.3)
    split = split_of(data)
    generator = np.random.default_rng(1)
    targets = [replace(data.target, values=generator.permutation(data.target.values)) for _ in range(4)]
    targets = [t for t in targets if not levels or len(set(t.values[split.train])) == len(levels)]
    definition = training.define("mlp", [(60,)], data.target.n_outputs, {"hidden": [8]})
    settings = training.Settings(n_epochs=9, patience=2, n_members=1, learning_rate=1e-2, device="cpu", seed=3)
    stacked = training.null_scores(definition, data, split, ["edges"], settings, targets)
    for target, found in zip(targets, stacked, strict=True):
        one = training.train(definition, replace(data, target=target), split, ["edges"], settings)
        expected = training.predict(one, data, split.test)
        np.testing.assert_allclose(found, expected, atol=1e-4 * max(1, np.abs(expected).max()))


def test_member_trained_alone_is_the_one_of_the_ensemble():
    data = cohort(effect=0.5)
    split = split_of(data)
    whole = train("mlp", "columns", data, split)
    definition = training.define("mlp", [(5,)], 1, SMALL["mlp"])
    settings = training.Settings(n_epochs=6, n_members=2, learning_rate=1e-2, device="cpu")
    parts = splits.inner(split, data.target.values, is_class=True, n_parts=2, seed=0)
    prepared = training.prepare(data, split, ["columns"], settings)
    given = training._Data(data, ["columns"], prepared, None, data.target.values, is_class=True)
    with torch.random.fork_rng():
        alone, _ = training._Once(definition, given, settings, 1, *parts[1]).on_values()
    expected = whole.module.members[1].state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in alone.state_dict().items())


@pytest.fixture
def started(tmp_path):
    """A bundle of an ensemble, trained on one cohort."""
    data = cohort(effect=0.5)
    fitted = train("mlp", "columns", data, split_of(data))
    return bundle.save(fitted, tmp_path / "start", {"participants": []}), fitted


def test_training_starts_from_a_bundles_weights_member_by_member(started):
    folder, fitted = started
    data = cohort(effect=0.5, seed=7)
    tuned = train("mlp", "columns", data, split_of(data), n_epochs=0, start_from=str(folder))
    for one, other in zip(tuned.module.members, fitted.module.members, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_frozen_parts_keep_the_bundles_weights_and_the_others_learn(started):
    folder, fitted = started
    data = cohort(effect=-3.0, seed=7)
    tuned = train("mlp", "columns", data, split_of(data), n_epochs=8, start_from=str(folder), frozen=("first",))
    one, other = tuned.module.members[0], fitted.module.members[0]
    assert torch.equal(one.first.weight, other.first.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_head_of_another_target_begins_anew(started):
    folder, fitted = started
    data = cohort(THREE, effect=0.5, seed=7)
    tuned = train("mlp", "columns", data, split_of(data), n_epochs=0, start_from=str(folder))
    assert torch.equal(tuned.module.members[0].first.weight, fitted.module.members[0].first.weight)
    assert tuned.module.members[0].head.out_features == 3


def test_bundle_of_other_features_and_unknown_parts_are_refused(started):
    folder, _ = started
    data = cohort()
    with pytest.raises(UsageError, match="'first.weight' of start does not fit"):
        train("mlp", "edges", data, split_of(data), start_from=str(folder))
    with pytest.raises(UsageError, match="the model has no part 'frist'; did you mean 'first'"):
        train("mlp", "columns", data, split_of(data), start_from=str(folder), frozen=("frist",))
    assert training.origin(folder) == "bids_dl.models.mlp.build"
    with pytest.raises(MissingInputError, match="is no bundle"):
        training.origin(folder / "models")


def test_what_a_model_begins_with_is_not_learned_anew_where_it_starts_from_a_bundle(tmp_path):
    definition = training.define("vae", [(60,)], 1, {"n_components": 4})
    settings = training.Settings(n_epochs=1, n_members=1, device="cpu")
    data = cohort(effect=0.5)
    fitted = training.train(definition, data, split_of(data), ["edges"], settings)
    folder = bundle.save(fitted, tmp_path / "start", {"participants": []})
    other = cohort(effect=0.5, seed=8)
    tuned = training.train(definition, other, split_of(other), ["edges"], replace(settings, start_from=str(folder)))
    before, after = fitted.module.state_dict(), tuned.module.state_dict()
    axes = [key for key in before if key.endswith("axes")]
    assert axes
    assert all(torch.equal(before[key], after[key]) for key in axes)


def volumes_on_disk(folder, n):
    """As the group level has them: a memory-mapped block."""
    path = folder / f"{n}.npy"
    np.save(path, np.random.default_rng(0).normal(size=(n, 20, 20, 20)).astype(np.float32))
    people = pd.DataFrame({"participant_id": [f"sub-{i:03d}" for i in range(n)]})
    y = np.arange(n) % 2.0
    return Cohort(people, {"volume": Block(np.load(path, mmap_mode="r"), ())}, Target("target", y, TWO))


def train_and_predict(data):
    split = split_of(data)
    fitted = train("cnn3d", "volume", data, split, n_epochs=1, n_members=1, batch_size=8)
    training.predict(fitted, data, split.test)


def peak_of_training(data):
    """Most bytes that NumPy and Python held at once, over training and prediction."""
    tracemalloc.start()
    train_and_predict(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_of_volumes_does_not_grow_with_the_participants(tmp_path, monkeypatch):
    """Of 40 volumes more than the limits hold already; of 240 six times as much."""
    for module, name in ((training, "KEPT_BYTES"), (training, "TOGETHER_BYTES"), (normalization, "CHUNK_BYTES")):
        monkeypatch.setattr(module, name, 2**18)
    few, many = (volumes_on_disk(tmp_path, n) for n in (40, 240))
    train_and_predict(few)  # what is loaded and kept once is not counted
    assert peak_of_training(many) < 1.25 * peak_of_training(few)


def test_rows_that_stay_in_memory_are_those_read_batch_by_batch(tmp_path, monkeypatch):
    data = volumes_on_disk(tmp_path, 40)
    found = []
    for kept in (2**26, 0):
        monkeypatch.setattr(training, "KEPT_BYTES", kept)
        found.append(train("cnn3d", "volume", data, split_of(data), n_members=1))
    assert same(*found)


def test_large_rows_go_through_a_network_a_few_at_a_time():
    assert training._together(lambda at: (torch.zeros(len(at), 10),)) == training.MOST_TOGETHER
    assert training._together(lambda at: (torch.zeros(len(at), 2**21),)) == 4
    assert training._together(lambda at: (torch.zeros(len(at), 2**24),)) == 1
