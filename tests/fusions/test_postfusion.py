from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from bids_dl import building, calibration, member, training
from bids_dl.calibration import Calibration
from bids_dl.fusions.postfusion import _of_new, build, fuse
from bids_dl.layers import Fixed
from bids_dl.records import Block, Cohort, Split, Target
from bids_dl.settings import Settings


def members(n_outputs=1):
    torch.manual_seed(0)
    return [building.instantiate(training.define("mlp", [(k,)], n_outputs, {"hidden": [4]})) for k in (7, 5)]


def inputs(n=6):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 7, generator=generator), torch.randn(n, 5, generator=generator)]


def without(x, rows):
    x = x.clone()
    x[rows] = float("nan")
    return x


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_untrained_fusion_is_the_mean_of_its_members(n_outputs):
    both = [m.eval() for m in members(n_outputs)]
    module, (a, b) = build(both).eval(), inputs()
    torch.testing.assert_close(module(a, b), (both[0](a) + both[1](b)) / 2)


def test_missing_modality_leaves_the_output_to_the_other():
    both = [m.eval() for m in members()]
    module, (a, b) = build(both).eval(), inputs()
    out = module(without(a, [0]), without(b, [1]))
    torch.testing.assert_close(out[0], both[1](b)[0])
    torch.testing.assert_close(out[1], both[0](a)[1])
    torch.testing.assert_close(out[2], (both[0](a) + both[1](b))[2] / 2)


def test_modality_dropout_never_takes_the_last_one():
    module, (a, b) = build(members(), modality_dropout=1.0).train(), inputs()
    has = torch.tensor([[True, False], [False, True], [True, True]]).repeat(50, 1)
    for _ in range(20):
        left = has & ~module._dropped(has)
        assert left.any(dim=1).all()
    assert torch.isfinite(module(without(a, [0]), without(b, [1]))).all()


def test_modality_dropout_acts_only_while_training():
    module, (a, b) = build(members(), modality_dropout=0.5), inputs(64)
    assert not torch.equal(module.train()(a, b), module(a, b))
    assert torch.equal(module.eval()(a, b), module(a, b))


def test_members_represent_participants_once_and_nothing_else_changes(monkeypatch):
    """The slow twin lets the members see every batch again; somebody lacks a modality, members have dropout."""
    cohort = two_modalities(np.arange(N) % 2.0, ("a", "b"))
    cohort.features["two"].values[::7] = np.nan
    seen = []
    fitted = [
        training.train(training.define("mlp", [(8,)], 1, {"hidden": [4]}), cohort, SPLIT, [name], SETTINGS)
        for name in ("one", "two")
    ]

    def scores():
        fused = fuse(fitted, cohort, SPLIT, SETTINGS)
        return training.predict(fused, cohort, SPLIT.test)

    embed = type(fitted[0].module).embed
    monkeypatch.setattr(type(fitted[0].module), "embed", lambda self, x: seen.append(len(x)) or embed(self, x))
    fast, n_fast = scores(), sum(seen)
    seen.clear()
    monkeypatch.setattr(member.Member, "_shortened", lambda self, fixed, rows, n: rows)
    monkeypatch.setattr(Fixed, "given", nullcontext)
    np.testing.assert_allclose(scores(), fast, atol=1e-5)
    assert n_fast < sum(seen) / 3


def test_only_the_joint_layer_is_trained():
    module = build(members()).train()
    assert [n for n, p in module.named_parameters() if p.requires_grad] == ["head.weight"]
    assert not any(m.training for m in module.members)


N = 240
SPLIT = Split(np.arange(0, 100), np.arange(100, 120), np.arange(120, 240), "one")
SETTINGS = Settings(n_epochs=20, n_members=1, learning_rate=1e-2, device="cpu")


def two_modalities(y, levels, seed=0):
    """Each modality sees the target through noise of its own."""
    generator = np.random.default_rng(seed)
    z = (y - y.mean()) / y.std()
    features = {
        name: Block((0.3 * z[:, None] + generator.normal(size=(N, 8))).astype(np.float32), ("column",))
        for name in ("one", "two")
    }
    people = pd.DataFrame({"participant_id": [f"sub-{i:03d}" for i in range(N)]})
    return Cohort(people, features, Target("target", y, levels))


def trained(data):
    shape, n_outputs = [(8,)], data.target.n_outputs
    return [
        training.train(training.define("mlp", shape, n_outputs, {}), data, SPLIT, [f], SETTINGS) for f in data.features
    ]


def auc(model, data):
    return roc_auc_score(data.target.values[SPLIT.test], training.predict(model, data, SPLIT.test)[:, 1])


def test_fusion_of_two_independent_views_beats_each():
    differences = []
    for seed in range(3):
        data = two_modalities(np.tile([0.0, 1.0], N // 2), ("a", "b"), seed)
        single = trained(data)
        differences.append(auc(fuse(single, data, SPLIT, SETTINGS), data) - max(auc(m, data) for m in single))
    assert np.mean(differences) > 0.02


def test_a_modality_that_tells_nothing_is_less_loud_before_anything_is_refined():
    found, single = [], []
    for seed in range(3):
        data = two_modalities(np.tile([0.0, 1.0], N // 2), ("a", "b"), seed)
        data.features["two"].values[:] = np.random.default_rng(seed + 99).normal(size=(N, 8))
        members = trained(data)
        found.append(auc(fuse(members, data, SPLIT, Settings(n_epochs=0, device="cpu")), data))
        single.append(auc(members[0], data))
    assert np.mean(found) > np.mean(single) - 0.05


def test_refining_never_ends_below_the_start_on_the_validation_rows():
    """A rate that only harms: the weights from before the training are kept."""
    data = two_modalities(np.tile([0.0, 1.0], N // 2), ("a", "b"))
    single = trained(data)
    still = fuse(single, data, SPLIT, Settings(n_epochs=0, device="cpu"))
    wild = fuse(single, data, SPLIT, Settings(n_epochs=3, learning_rate=100.0, device="cpu"))
    y = data.target.values[SPLIT.validation]

    def loss(model):
        p = training.predict(model, data, SPLIT.validation)[:, 1].clip(1e-9, 1 - 1e-9)
        return -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))

    assert loss(wild) <= loss(still) + 1e-6


def test_quantity_is_in_its_unit_where_a_modality_is_missing_for_the_old():
    y = np.random.default_rng(0).permutation(np.repeat([30.0, 70.0], N // 2)) + np.random.default_rng(1).normal(size=N)
    data = two_modalities(y, ())
    data.features["one"].values[y > 50] = np.nan
    fused = fuse(trained(data), data, SPLIT, Settings(n_epochs=0, device="cpu"))
    models = [replace(model, calibration=Calibration()) for model in (fused, trained(data)[1])]
    predicted, single = (training.predict(model, data, SPLIT.test)[:, 0] for model in models)
    old = y[SPLIT.test] > 50
    np.testing.assert_allclose(predicted[old].mean(), single[old].mean(), atol=5)


@pytest.mark.parametrize("levels", [("a", "b"), ()])
def test_sets_and_intervals_hold_though_ensembles_have_learned_their_rows_by_heart(levels):
    """Of five networks of a member, four were fitted on each row: what they make of it says nothing of new people."""
    held = []
    for seed in range(3):
        y = np.tile([0.0, 1.0], N // 2) if levels else np.random.default_rng(seed).normal(50, 10, N)
        data = two_modalities(y, levels, seed)
        for block in data.features.values():
            block.values[:, 4:] = np.random.default_rng(seed + 9).normal(size=(N, 4))
        noise = Block(np.random.default_rng(seed).normal(size=(N, 40)).astype(np.float32), ("column",))
        wide = {k: replace(b, values=np.hstack([b.values, noise.values])) for k, b in data.features.items()}
        data = replace(data, features=wide)
        definition = training.define("mlp", [(48,)], 1, {"hidden": [16], "dropout": 0.0})
        several = replace(SETTINGS, n_members=5, n_epochs=15)
        fused = fuse([training.train(definition, data, SPLIT, [f], several) for f in wide], data, SPLIT, SETTINGS)
        scores = training.predict(fused, data, SPLIT.test)
        reach = np.full(len(SPLIT.test), fused.calibration.reach(0.9))
        held.append(calibration.covers(data.target.values[SPLIT.test], scores, reach, len(levels)).mean())
    assert np.mean(held) > 0.75  # from 20 rows it varies by 0.07 a seed


def test_units_of_networks_that_a_row_is_new_to_stand_for_all():
    data = two_modalities(np.tile([0.0, 1.0], N // 2), ("a", "b"))
    settings = replace(SETTINGS, n_members=3, n_epochs=1)
    one = training.train(training.define("mlp", [(8,)], 1, {"hidden": [4]}), data, SPLIT, ["one"], settings)
    new = training.new_rows(one, data, SPLIT, settings.seed)
    assert sorted(np.concatenate(new)) == list(range(120))
    rows = SPLIT.validation
    weights = _of_new(one, new, rows)
    networks = [one.module.members[next(k for k in range(3) if row in new[k])] for row in rows]
    alone = [
        network(training.inputs_of(one, data, np.array([row]))[0]) - network.head.bias
        for network, row in zip(networks, rows, strict=True)
    ]
    made = one.module.embed(training.inputs_of(one, data, rows)[0]) * weights @ one.module.head.weight.T
    torch.testing.assert_close(made, torch.cat(alone))
