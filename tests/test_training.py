from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from trained import CASES, SMALL, TARGETS, TWO, N, absent, cohort, same, split_of, train, with_altered_test_rows

from bids_dl import building, splits, training
from bids_dl import config as configuration
from bids_dl.errors import DataError
from bids_dl.fusions.postfusion import fuse
from bids_dl.records import Block, Target
from bids_dl.settings import Settings


def fused(data, split, **wishes):
    members = [train(m, f, data, split, n_members=1) for m, f in (("mlp", "edges"), ("cnn3d", "volume"))]
    return fuse(members, data, split, Settings(n_epochs=4, device="cpu", **wishes))


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
    settings = Settings(n_epochs=60, n_members=4, learning_rate=3e-3, device="cpu")
    fitted = training.train(definition, data, split, ["edges"], settings)
    truth = data.target.values[split.test]
    raw = training.outputs(fitted, data, split.test)[:, 0] * fitted.target_scale + fitted.target_mean
    said = training.predict(fitted, data, split.test)[:, 0]
    assert np.polyfit(raw, truth, 1)[0] > 1.2
    assert fitted.calibration.slope > 1.1
    assert np.abs(said - truth).mean() < 0.95 * np.abs(raw - truth).mean()
    assert np.corrcoef(said, raw)[0, 1] == pytest.approx(1)


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


@pytest.mark.parametrize(("model", "feature"), CASES)
def test_batch_of_one_is_trained_and_predicted(model, feature):
    data = cohort(effect=0.5)
    split = split_of(data)
    fitted = train(model, feature, data, split, batch_size=1, n_epochs=1)
    alone = training.predict(fitted, data, split.test[:1])
    np.testing.assert_allclose(alone, training.predict(fitted, data, split.test)[:1], atol=1e-5)


@pytest.mark.parametrize(("model", "feature"), CASES)
def test_participant_without_the_feature_is_not_predicted(model, feature):
    data = cohort()
    split = split_of(data)
    gone = [split.train[0], split.test[1]]
    fitted = train(model, feature, absent(data, feature, gone), split)
    scores = training.predict(fitted, absent(data, feature, gone), split.test)
    assert np.isnan(scores[1]).all()
    assert np.isfinite(np.delete(scores, 1, axis=0)).all()


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


def test_ensemble_is_the_mean_of_its_members():
    members = [building.instantiate(training.define("mlp", [(5,)], 3, {})).eval() for _ in range(3)]
    x = torch.randn(4, 5)
    expected = torch.stack([m(x) for m in members]).mean(dim=0)
    torch.testing.assert_close(training.Ensemble(members).eval()(x), expected)


def test_loss_that_stops_being_a_number_names_model_feature_split_and_epoch():
    data = cohort()
    split = split_of(data)
    with pytest.raises(DataError, match=rf"mlp on edges, split {split.name}: the loss became (nan|inf) in epoch \d"):
        train("mlp", "edges", data, split, learning_rate=1e30, n_epochs=20)


def with_sites(data, codes, labels):
    sites = np.array([[float(c == k) for k in range(len(labels))] for c in codes], np.float32)
    return replace(data, features={**data.features, "sites": Block(sites, ("column",), labels)})


@pytest.mark.parametrize("feature", ["edges", "volume"])
def test_sites_of_another_cohort_are_learned_from_its_rows_and_the_others_stay(feature):
    """A site that lies far off is brought to the others; labels of the other cohort are not looked at."""
    data = with_sites(cohort(effect=1.0), np.arange(N) % 2, ("a", "b"))
    split = split_of(data)
    given = {"harmonizer": "combat", "harmonizer_options": {"unseen": "adapt"}}
    fitted = train("linear", feature, data, split, **given)
    other = cohort(effect=1.0, seed=1)
    other.features[feature].values[:] = 3 * other.features[feature].values + 5
    other = replace(other, target=replace(other.target, values=np.full(N, np.nan)))
    other = with_sites(other, np.full(N, 2), ("a", "b", "c"))
    made, shown = training.adapted(fitted, data, split, other, Settings(**given))
    before, after = (one.normalization[feature].harmonization for one in (fitted, made))
    np.testing.assert_array_equal(after.shift[:2], before.shift)
    np.testing.assert_array_equal(after.spread[:2], before.spread)
    assert after.known.tolist() == [True, True, True]
    values = training.inputs_of(made, shown, np.arange(N))[0].numpy().reshape(N, -1)
    assert np.abs(values.mean(axis=0)).mean() < 0.5
    assert 0.8 < values.std() < 1.2


def test_a_harmonization_that_learns_all_sites_together_learns_none_later():
    data = with_sites(cohort(effect=1.0), np.arange(N) % 2, ("a", "b"))
    split = split_of(data)
    given = {"harmonizer": "adversarial", "harmonizer_options": {"unseen": "adapt", "n_steps": 2}}
    fitted = train("linear", "edges", data, split, **given)
    other = with_sites(cohort(seed=1), np.full(N, 2), ("a", "b", "c"))
    made, shown = training.adapted(fitted, data, split, other, Settings(**given))
    assert made is fitted
    assert shown.features["sites"].shape == (2,)
    assert np.isfinite(training.predict(made, shown, np.arange(N))).all()


def test_removing_confounds_from_the_features_leaves_what_they_tell_by_themselves():
    data = cohort(TWO)
    tells = Block(
        np.stack([data.target.values + np.arange(N) % 3, np.arange(N)], axis=1).astype(np.float32), ("column",)
    )
    data = replace(data, features={**data.features, "confounds": tells})
    definition, split = training.define("confounds_only", [(2,)], 1, {}), split_of(data)
    found = [
        training.predict(training.train(definition, data, split, ["confounds"], one), data, split.test)
        for one in (Settings(), Settings(remove_confounds=True))
    ]
    np.testing.assert_array_equal(*found)
    assert np.ptp(found[0]) > 0.1
