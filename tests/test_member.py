import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from trained import SMALL, TARGETS, THREE, TWO, N, cohort, same, split_of, train, with_altered_test_rows

from bids_dl import calibration, material, member, normalization, splits, training
from bids_dl import loop as loops
from bids_dl.layers import Fixed
from bids_dl.records import Block, Cohort, Split, Target
from bids_dl.settings import Settings


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
    found = member.unlabelled(plain.target, split, split.train)
    assert found.tolist() == list(range(30, 40))


def test_participants_without_a_target_and_without_the_feature_are_passed_over():
    data, split = half_unlabelled(also=range(20, 30))
    fitted = train("vae", "columns", data, split, n_epochs=2)
    assert np.isfinite([row["train_loss"] for row in fitted.history]).all()
    altered, _ = half_unlabelled(also=range(20, 40))
    assert not same(fitted, train("vae", "columns", altered, split, n_epochs=2))


@pytest.mark.parametrize("levels", [TWO, THREE], ids=["two classes", "three classes"])
def test_class_weights_give_each_class_the_same_say(levels):
    """A constant network: with weights the best constant is even, without them it is the classes' frequencies."""
    counts = np.array([24, 9, 7]) if len(levels) == 3 else np.array([30, 10])
    y = np.repeat(np.arange(len(levels)), counts).astype(float)
    data = replace(cohort(levels), target=Target("target", y, levels))
    rows = np.arange(N)
    for weighted, expected in ((True, np.full(len(levels), 1 / len(levels))), (False, counts / N)):
        given = material.Material(data, [], material.Prepared({}), None, y)
        loss = member.loss_of(given, rows, weighted=weighted)
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


def test_member_trained_alone_is_the_one_of_the_ensemble():
    data = cohort(effect=0.5)
    split = split_of(data)
    whole = train("mlp", "columns", data, split)
    definition = training.define("mlp", [(5,)], 1, SMALL["mlp"])
    settings = Settings(n_epochs=6, n_members=2, learning_rate=1e-2, device="cpu")
    parts = splits.inner(split, data.target.values, is_class=True, n_parts=2, seed=0)
    prepared = training.prepare(data, split, ["columns"], settings)
    given = material.Material(data, ["columns"], prepared, None, data.target.values)
    with torch.random.fork_rng():
        alone, _ = member.Member(definition, given, settings, 1, *parts[1]).on_values()
    expected = whole.module.members[1].state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in alone.state_dict().items())


def volumes_on_disk(folder, n):
    """As the group level has them: a memory-mapped block."""
    path = folder / f"{n}.npy"
    np.save(path, np.random.default_rng(0).normal(size=(n, 20, 20, 20)).astype(np.float32))
    people = pd.DataFrame({"participant_id": [f"sub-{i:03d}" for i in range(n)]})
    y = np.arange(n) % 2.0
    return Cohort(people, {"volume": Block(np.load(path, mmap_mode="r"), ())}, Target("target", y, TWO))


def train_and_predict(data):
    split = split_of(data)
    fitted = train("cnn3d", "volume", data, split, n_epochs=1, n_members=1, batch_size=4)
    training.predict(fitted, data, split.test)


def peak_of_training(data):
    """Most bytes that NumPy and Python held at once, over training and prediction."""
    tracemalloc.start()
    train_and_predict(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_of_volumes_does_not_grow_with_the_participants(tmp_path, monkeypatch):
    """Of 40 volumes two batches of all kinds are there already, one of them read ahead; of 240 no more, though six times as many."""
    for module, name in ((member, "KEPT_BYTES"), (loops, "TOGETHER_BYTES"), (normalization, "CHUNK_BYTES")):
        monkeypatch.setattr(module, name, 2**17)
    few, many = (volumes_on_disk(tmp_path, n) for n in (40, 240))
    train_and_predict(few)  # what is loaded and kept once is not counted
    assert peak_of_training(many) < 1.25 * peak_of_training(few)


def test_rows_that_stay_in_memory_are_those_read_batch_by_batch(tmp_path, monkeypatch):
    data = volumes_on_disk(tmp_path, 40)
    found = []
    for kept in (2**26, 0):
        monkeypatch.setattr(member, "KEPT_BYTES", kept)
        found.append(train("cnn3d", "volume", data, split_of(data), n_members=1))
    assert same(*found)


def test_rows_are_read_ahead_only_where_they_are_not_kept(tmp_path, monkeypatch):
    data, made = volumes_on_disk(tmp_path, 40), []
    monkeypatch.setattr(loops, "ThreadPoolExecutor", lambda **given: made.append(1) or ThreadPoolExecutor(**given))
    for kept, expected in ((2**26, False), (0, True)):
        monkeypatch.setattr(member, "KEPT_BYTES", kept)
        train("cnn3d", "volume", data, split_of(data), n_members=1, n_epochs=1)
        assert bool(made) == expected


def test_a_network_on_coordinates_is_float32_whatever_is_asked():
    """So that it is trained as permuted networks are, in their stack."""
    data = cohort(effect=0.5)
    for feature, is_equal in (("edges", True), ("columns", False)):
        one, other = (train("mlp", feature, data, split_of(data), precision=p) for p in ("32", "bf16"))
        assert same(one, other) == is_equal


@pytest.mark.parametrize("model", ["vae", "gan"])
def test_components_are_found_once_and_nothing_else_changes(model, monkeypatch):
    """The slow twin brings every batch to its components again."""
    data = cohort(effect=0.5)
    split = split_of(data)
    definition = training.define(model, [data.features["edges"].shape], 1, {"hidden": [8]})
    wishes = Settings(n_epochs=4, n_members=1, learning_rate=1e-2, device="cpu")

    def scores():
        fitted = training.train(definition, data, split, ["edges"], wishes)
        return training.predict(fitted, data, split.test)

    fast = scores()
    monkeypatch.setattr(member.Member, "_shortened", lambda self, fixed, rows, n: rows)
    monkeypatch.setattr(Fixed, "given", nullcontext)
    np.testing.assert_allclose(scores(), fast, atol=1e-5)
