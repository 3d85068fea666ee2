"""Synthetic participants come from training rows alone, join training rows alone, and do no harm."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from bids_dl import config, loop, material, member, nulls, span, synthesis, training, zoo
from bids_dl.errors import UsageError
from bids_dl.records import Block, Cohort, Split, Target
from bids_dl.settings import Settings, settings_for

LEVELS = ("a", "b")


def drawn_from(x, y, n=None, n_levels=2, method="vae", seed=0, **options):
    x, y = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y, dtype=torch.float32)
    return synthesis.draw(
        lambda at: (x[at],), y, method=method, options=options, n=n or len(y), n_levels=n_levels, seed=seed
    )


def two_classes(seed, n=60, n_values=40, apart=1.5):
    """Three sources move all values; the first has another mean in each class."""
    generator = np.random.default_rng(seed)
    y = np.arange(n) % 2.0
    sources = generator.normal(size=(n, 3))
    sources[:, 0] += apart * (y - 0.5)
    mixing = np.random.default_rng(99).normal(size=(3, n_values)) / np.sqrt(3)
    return (sources @ mixing + generator.normal(size=(n, n_values))).astype(np.float32), y


def cohort(x, y, levels=LEVELS, dims=("edge",)):
    people = pd.DataFrame({"participant_id": [f"sub-{k:04d}" for k in range(len(y))]})
    return Cohort(people, {"x": Block(x, dims)}, Target("t", np.asarray(y, float), levels))


def split_of(n, n_train, n_validation):
    edges = (n_train, n_train + n_validation)
    return Split(np.arange(edges[0]), np.arange(*edges), np.arange(edges[1], n), "one")


def fit(data, split, model="mlp", prepared=None, **wishes):
    schedule = zoo.constant("models", model, "SCHEDULE") or {}
    settings = Settings(**{**schedule, "n_members": 1, "device": "cpu", "synthetic": "vae", **wishes})
    definition = training.define(model, [data.features["x"].shape], data.target.n_outputs, {})
    return training.train(definition, data, split, ["x"], settings, prepared)


def weights(fitted):
    return torch.cat([p.detach().flatten() for p in fitted.module.parameters()])


def changed(data, rows):
    values = data.features["x"].values.copy()
    values[rows] = np.random.default_rng(9).normal(5, 20, values[rows].shape)
    return replace(data, features={"x": replace(data.features["x"], values=values)})


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(synthesis, "N_STEPS", 20)


@pytest.mark.parametrize("method", zoo.declaring("models", "SYNTHESISES"))
def test_classes_lie_where_those_of_the_training_rows_do(method):
    x, y = two_classes(0, n=200)
    x -= x.mean(axis=0)
    found = drawn_from(x, y, n=1000, method=method)
    values, label = found.rows(np.arange(1000)).numpy(), found.y.numpy()
    real, made = (v[t == 1].mean(axis=0) - v[t == 0].mean(axis=0) for v, t in ((x, y), (values, label)))
    assert np.corrcoef(real, made)[0, 1] > 0.9
    assert 0.6 < np.linalg.norm(made) / np.linalg.norm(real) < 1.4
    assert values.std(axis=0).mean() == pytest.approx(x.std(axis=0).mean(), rel=0.15)


def test_a_quantity_moves_who_is_synthetic_as_it_moves_the_training_rows():
    generator = np.random.default_rng(0)
    y = generator.normal(size=150)
    x = y[:, None] * np.linspace(-1, 1, 12) + generator.normal(size=(150, 12))
    found = drawn_from(x - x.mean(axis=0), y, n=600, n_levels=0)
    values = found.rows(np.arange(600)).numpy()
    slope = [np.polyfit(t, v[:, 11], 1)[0] for v, t in ((x, y), (values, found.y.numpy()))]
    assert slope[1] == pytest.approx(slope[0], abs=0.3)


def test_classes_keep_their_shares_and_quantities_are_those_of_training_rows():
    generator = np.random.default_rng(0)
    y = torch.tensor([0.0] * 30 + [1.0] * 9 + [2.0])
    for n in (7, 40, 95):
        counts = np.bincount(synthesis.spread_over(y, n, generator).numpy().astype(int), minlength=3)
        np.testing.assert_allclose(counts, np.array([30, 9, 1]) * n / 40, atol=1)
    quantity = torch.randn(25)
    assert np.array_equal(np.sort(synthesis.spread_over(quantity, 25, generator)), np.sort(quantity))


def test_seeds_repeat_and_torchs_random_state_is_left_alone(quick):
    x, y = two_classes(0)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, again, other = (drawn_from(x, y, seed=s).rows(np.arange(60)) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


def test_coordinates_in_the_span_of_training_rows_give_the_same_participants_as_values():
    """The span is a rotation, and so are the components: what is drawn does not depend on it."""
    x, y = two_classes(0, n=30, n_values=80)
    products = span.Kernel((x.astype(float) @ x.T), np.arange(30))
    turned = span.of(products, np.arange(30))
    at = turned.coordinates(products, np.arange(30))
    on_values, on_span = drawn_from(x, y).rows(np.arange(30)), drawn_from(at, y).rows(np.arange(30))
    back = on_span.numpy() @ turned.mixing(np.eye(at.shape[1])) @ x * turned.scale**2
    assert np.corrcoef(back.ravel(), on_values.numpy().ravel())[0, 1] > 0.99


def test_rows_beyond_the_real_ones_are_synthetic_and_keep_their_order(quick):
    x, y = two_classes(0, n=10)
    rows = torch.from_numpy(x)
    found = drawn_from(x, y)
    (read,) = found.behind(lambda at: (rows[at],), 10)(np.array([12, 3, 19, 0]))
    torch.testing.assert_close(read[[1, 3]], rows[[3, 0]])
    torch.testing.assert_close(read[[0, 2]], found.rows(np.array([2, 9])))


def test_noise_fills_the_axes_that_the_model_does_not_look_at():
    x = np.random.default_rng(0).normal(size=(200, 30)).astype(np.float32)
    found = drawn_from(x, np.arange(200) % 2, n=2000, n_components=4)
    assert found.rows(np.arange(2000)).std() == pytest.approx(float(x.std()), rel=0.1)


def test_neither_test_nor_validation_rows_reach_the_generative_model(quick):
    x, y = two_classes(0, n=60)
    data, split = cohort(x, y), split_of(60, 30, 12)
    settings = Settings(synthetic="vae", device="cpu")
    one = training.beside(data, split, "x", settings)["synthetic"]
    tested = training.beside(changed(data, split.test), split, "x", settings)["synthetic"]
    np.testing.assert_array_equal(tested[0], one[0])
    # normalisation knows the validation rows, as everywhere; the generative model does not
    data = material.Material(data, ["x"], training.prepare(data, split, ["x"], settings), None, y)
    held = replace(data, cohort=changed(data.cohort, split.validation), y=np.where(np.arange(60) < 30, y, 1 - y))
    drawn = [
        member.draw(d, lambda at, d=d: d.rows(split.train[at]), torch.tensor(d.y[split.train]).float(), settings)
        for d in (data, held)
    ]
    assert torch.equal(*(d.rows(np.arange(30)) for d in drawn))


@pytest.mark.parametrize("n_values", [20, 90])
def test_test_rows_change_no_weight_and_synthetic_rows_do(quick, n_values):
    """On values and, where they are more than the participants, in the span of the training rows."""
    x, y = two_classes(0, n_values=n_values)
    data, split = cohort(x, y), split_of(60, 30, 10)
    one, again, tested, without = (
        weights(fit(d, split, n_epochs=3, synthetic=s))
        for d, s in ((data, "vae"), (data, "vae"), (changed(data, split.test), "vae"), (data, "none"))
    )
    torch.testing.assert_close(again, one, atol=0, rtol=0)
    torch.testing.assert_close(tested, one, atol=0, rtol=0)
    assert not torch.allclose(without, one)


def test_training_rows_alone_grow_and_nobody_else_is_counted(quick):
    x, y = two_classes(0)
    data, split = cohort(x, y), split_of(60, 30, 10)
    with_, without = (fit(data, split, n_epochs=2, synthetic=s, n_members=3) for s in ("vae", "none"))
    assert np.array_equal(with_.split.pool, without.split.pool)
    assert with_.normalization["x"].mean == pytest.approx(without.normalization["x"].mean)
    assert {row["member"] for row in with_.history} == {0, 1, 2}


@pytest.mark.parametrize(
    ("model", "dims"), [("kernel", ("edge",)), ("linear", ("edge",)), ("vae", ("edge",)), ("mlp", ("time", "roi"))]
)
def test_what_does_not_suit_trains_without(quick, model, dims):
    x, y = two_classes(0, n_values=20)
    data = cohort(x if len(dims) == 1 else x.reshape(60, 10, 2), y, dims=dims)
    one, other = (weights(fit(data, split_of(60, 30, 10), model, n_epochs=2, synthetic=s)) for s in ("gan", "none"))
    torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_networks_of_edges_and_columns_take_synthetic_rows_and_generative_ones_do_not():
    taking = {m for m in zoo.names("models") if any(synthesis.takes(m, kind) for kind in ("edge", "column"))}
    assert {"mlp", "gcn", "gat", "brainnetcnn", "brain_network_transformer"} <= taking
    assert not taking & {"gan", "vae", "kernel", "boosting", "tangent_linear", "linear", "dummy"}
    assert not synthesis.takes("cnn3d", "volume")


def test_an_interrupted_training_goes_on_with_the_same_synthetic_rows(quick, tmp_path, monkeypatch):
    x, y = two_classes(0, n_values=20)
    data, split = cohort(x, y), split_of(60, 30, 10)
    wishes = {"n_epochs": 8, "patience": 20}
    whole = weights(fit(data, split, **wishes))
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 2)
    step, calls = loop.Loop._epoch, []

    def stopping(run, rows, labels):
        calls.append(len(labels))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(run, rows, labels)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_epoch", stopping)
        with pytest.raises(KeyboardInterrupt):
            fit(data, split, **wishes, checkpoint=tmp_path)
    assert set(calls) == {60}
    torch.testing.assert_close(weights(fit(data, split, **wishes, checkpoint=tmp_path)), whole, atol=0, rtol=0)


def test_permuted_labels_draw_their_own_participants_as_the_true_ones_do(quick):
    x, y = two_classes(0, n_values=90)
    data, split = cohort(x, y), split_of(60, 30, 10)
    settings = Settings(n_epochs=2, device="cpu", synthetic="vae", n_members=2)
    definition = training.define("mlp", [data.features["x"].shape], 1, {})
    null = nulls.null_scores(definition, data, split, ["x"], settings, [data.target])[0]
    fitted = training.train(definition, data, split, ["x"], settings)
    np.testing.assert_allclose(null, training.predict(fitted, data, split.test), atol=1e-6)


def aucs_of(problem, synthetic, seeds, **wishes):
    found = []
    for seed in range(seeds):
        data, split = problem(seed)
        fitted = fit(data, split, seed=seed, synthetic=synthetic, **wishes)
        truth = data.target.values[split.test]
        found.append(roc_auc_score(truth, training.predict(fitted, data, split.test)[:, 1]))
    return found


def shuffled(seed):
    x, y = two_classes(seed, n=340)
    return cohort(x, np.random.default_rng(seed).permutation(y)), split_of(340, 30, 10)


def few(seed):
    x, y = two_classes(seed, n=340)
    return cohort(x, y), split_of(340, 30, 10)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gan", "vae"])
def test_shuffled_labels_stay_at_chance(method):
    aucs = aucs_of(shuffled, method, 8)
    assert abs(np.mean(aucs) - 0.5) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gan", "vae"])
def test_few_participants_are_not_worse_off_with_synthetic_ones(method):
    without, with_ = (np.mean(aucs_of(few, synthetic, 6)) for synthetic in ("none", method))
    assert without > 0.7
    assert with_ > without - 0.02


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"synthetic": "vea"}, r"'training.synthetic' is 'vea'; did you mean 'vae'"),
        ({"synthetic": "kernel"}, r"'training.synthetic' is 'kernel'; .*vae"),
        ({"synthetic": "vae", "n_synthetic": 0.0}, r"'training.n_synthetic' is 0; choose above 0"),
        ({"synthetic": "vae", "n_synthetic": 50}, r"at most 10"),
        ({"n_synthetic": 2.0}, r"nobody is drawn; write synthetic"),
    ],
)
def test_wishes_that_cannot_be_are_refused(given, message):
    whole = {"bids_dir": "", "output_dir": "", "analysis_level": "group", "training": given}
    with pytest.raises(UsageError, match=message):
        config.from_mapping(whole)


def test_decoding_with_synthetic_participants_is_refused():
    given = {"bids_dir": "", "output_dir": "", "analysis_level": "group", "training": {"synthetic": "vae"}}
    with pytest.raises(UsageError, match=r"'training.synthetic' draws participants .* decoding"):
        config.from_mapping({**given, "targets": {"names": ["events"]}})


def test_options_of_the_generative_model_are_those_of_its_table():
    given = {"bids_dir": "", "output_dir": "", "analysis_level": "group"}
    settings = config.from_mapping(
        {**given, "training": {"synthetic": "gan", "n_synthetic": 0.5}, "models": {"gan": {"hidden": [8]}}}
    )
    found = settings_for({"_target_": "bids_dl.models.mlp.build"}, settings)
    assert (found.synthetic, found.n_synthetic, found.synthetic_options) == ("gan", 0.5, {"hidden": [8]})


def test_ordered_levels_are_drawn_from_those_of_training_rows_and_learned_by_thresholds(quick):
    x, _ = two_classes(0, n_values=90)
    data = replace(cohort(x, np.zeros(60), ()), target=Target("t", np.arange(60) % 3.0, (), ("low", "mid", "high")))
    fitted = fit(data, split_of(60, 30, 12), n_epochs=2, n_members=2)
    samples = training.beside(data, split_of(60, 30, 12), "x", Settings(synthetic="gan", device="cpu"))
    assert set(np.unique(samples["synthetic"][1].round(4))) == set(np.unique(samples["train"][1].round(4)))
    assert np.isfinite(training.predict(fitted, data, np.arange(42, 60))).all()
