from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import seen
from trained import SMALL, cohort, split_of, train

from bids_dl import bundle, derivatives, fits, metrics, nulls, splits, training
from bids_dl import cohort as cohorts
from bids_dl import config as configuration
from bids_dl.metrics import Predictions
from bids_dl.records import Block, Cohort, Split, Target
from bids_dl.settings import Settings


def test_training_participants_are_counted_where_they_have_the_input(tmp_path):
    """The test of overlapping training sets, and the learning curve, must not count those who taught nothing."""
    data = cohort()
    split = split_of(data)
    data.features["columns"].values[split.train[::2]] = np.nan
    step = SimpleNamespace(cohort=data, config=configuration.from_mapping(
        {"bids_dir": "a", "output_dir": "b", "analysis_level": "group"}
    ))  # fmt: skip
    fits._predict(step, train("linear", "columns", data, split), split, tmp_path / "predictions.npz")
    with np.load(tmp_path / "predictions.npz") as found:
        assert found["n_train"] == len(split.pool) - len(split.train[::2])


def connectomes(n_regions, *, directed):
    """Twenty people with 210 edges: 21 regions, or 15 with an edge in each direction."""
    edges = np.random.default_rng(0).normal(size=(20, 210)).astype(np.float32)
    block = Block(edges, ("edge",), tuple(f"r{i}" for i in range(n_regions)), {"directed": "true"} if directed else {})
    people = pd.DataFrame({"participant_id": [f"sub-{i:02d}" for i in range(20)]})
    return Cohort(people, {"edges": block}, Target("target", np.arange(20.0) % 2, ("a", "b")))


@pytest.mark.parametrize("method", ["gcn", "gat", "brainnetcnn", "brain_network_transformer"])
@pytest.mark.parametrize(("n_regions", "directed"), [(21, False), (15, True)])
@pytest.mark.parametrize("pretrain", ["none", "masked"])
def test_a_directed_connectome_is_no_larger_undirected_one(
    tmp_path, monkeypatch, method, n_regions, directed, pretrain
):
    """No number of edges tells: 210 are those of 21 regions, and of 15 in both directions."""
    monkeypatch.setattr("bids_dl.pretraining.N_EPOCHS", 1)
    data = connectomes(n_regions, directed=directed)
    given = {"bids_dir": "a", "output_dir": "b", "analysis_level": "group"}
    step = SimpleNamespace(cohort=data, config=configuration.from_mapping(given))
    definition = fits.Step.definition(step, {"method": method, "inputs": ["edges"]})
    split = Split(np.arange(12), np.arange(12, 16), np.arange(16, 20), "one")
    settings = Settings(n_epochs=1, n_members=1, device="cpu", pretrain=pretrain)
    fitted = training.train(definition, data, split, ["edges"], settings)
    again = bundle.load(bundle.save(fitted, tmp_path / "one", {}))
    for module in (fitted.module, again.module):
        assert (module.connectome.n, module.connectome.directed) == (n_regions, directed)
    np.testing.assert_array_equal(training.outputs(fitted, data, split.test), training.outputs(again, data, split.test))


def test_only_models_that_ask_are_told_of_directions():
    assert "directed" not in training.define("mlp", [(210,)], 1, {}, directed=True)
    assert "directed" not in training.define("gcn", [(210,)], 1, {})


def test_a_fusion_takes_of_each_feature_the_network_of_the_lowest_validation_loss(tmp_path):
    losses = {"a_mlp": [[0.6, 0.5, 0.9], [0.7, 0.7]], "a_gcn": [[0.4, 0.9], [0.9, 0.9]], "b_cnn3d": [[0.8]]}
    for name, members in losses.items():
        rows = [{"member": k, "epoch": e, "validation_loss": v} for k, m in enumerate(members) for e, v in enumerate(m)]
        derivatives.write_json(tmp_path / name / "one" / "history.json", rows)
    step = SimpleNamespace(fit_folder=lambda model, split: tmp_path / model / split)
    model = {"inputs": ("a", "b"), "members": list(losses), "parts": [("a", "mlp"), ("a", "gcn"), ("b", "cnn3d")]}
    assert fits._best(step, model, "one") == ["a_mlp", "b_cnn3d"]  # 0.6 on average, not 0.65


def test_permuted_labels_stay_in_their_fold():
    data, folds = cohort(()), np.arange(40) % 4
    moved = fits.permuted(data.target, folds, 1).values
    assert not np.array_equal(moved, data.target.values)
    for fold in range(4):
        assert sorted(moved[folds == fold]) == sorted(data.target.values[folds == fold])
    alone = fits.permuted(data.target, np.arange(40), 1).values
    assert sorted(alone) == sorted(data.target.values)
    assert not np.array_equal(alone, data.target.values)


def test_permuted_labels_stay_with_families_of_their_size():
    data, folds, families = cohort(()), np.zeros(40, int), np.repeat(np.arange(20), 2)
    moved = fits.permuted(data.target, folds, 1, families).values
    assert not np.array_equal(moved, data.target.values)
    assert sorted(map(tuple, np.sort(moved.reshape(20, 2)))) == sorted(
        map(tuple, np.sort(data.target.values.reshape(20, 2)))
    )


def test_a_quantity_that_nothing_tells_is_as_good_as_its_retrained_null():
    """Labels that moved between stratified folds gave p of 0.1 and less in three of ten such cohorts."""
    extreme = []
    for seed in range(30):
        data = cohort((), seed=seed)
        parts = splits.make(
            data.target, data.participants["participant_id"].tolist(), configuration.Splits(n_folds=4), seed=seed
        )
        folds = np.zeros(40, int)
        for number, part in enumerate(parts):
            folds[part.test] = number
        targets = [data.target, *(fits.permuted(data.target, folds, 100 * seed + k) for k in range(9))]
        definition = training.define("linear", [data.features["edges"].shape], 1, SMALL["linear"])
        held = [nulls.null_scores(definition, data, p, ["edges"], Settings(device="cpu"), targets) for p in parts]
        rows = np.concatenate([p.test for p in parts])
        r2 = [
            metrics.score(Predictions(t.values[rows], np.concatenate([h[k] for h in held]), rows, folds[rows]))["r2"][0]
            for k, t in enumerate(targets)
        ]
        extreme.append(sum(value >= r2[0] for value in r2[1:]) == 0)
    assert np.mean(extreme) < 0.2


def test_onsets_of_moments_are_seconds_from_the_volume_that_is_decoded(tmp_path):
    bids, out = seen.write_outputs(tmp_path)
    for causal, first in ((True, -10), (False, -6)):
        config = seen.config_of(bids, out, decoding={"context": 6, "causal": causal})
        seen.filled(config, tmp_path / "cohort")
        when = fits._onsets(SimpleNamespace(config=config, folder=tmp_path / "cohort"), "timeseries")
        np.testing.assert_allclose(when("sub-01@t0013"), first + 2.0 * np.arange(6))


def test_onsets_of_participants_are_those_of_their_files(tmp_path):
    path = derivatives.write_matrix(tmp_path / "sub-01_timeseries.tsv", np.ones((3, 2)), ["A", "B"])
    derivatives.write_json(tmp_path / "sub-01_timeseries.json", {"RepetitionTime": 2.5})
    variant = cohorts.Variant("timeseries", "timeseries", {}, {"sub-01": [str(path)]}, 1, "sequence", 3)
    plan = cohorts.Plan(("sub-01",), (variant,), {})
    cohorts.write(plan, tmp_path / "cohort")
    config = configuration.from_mapping({"bids_dir": "a", "output_dir": "b", "analysis_level": "group"})
    when = fits._onsets(SimpleNamespace(config=config, folder=tmp_path / "cohort"), "timeseries")
    assert when("sub-01").tolist() == [0, 2.5, 5]


def test_sites_called_by_numbers_are_scored_by_themselves_not_in_thirds():
    n = 40
    people = pd.DataFrame({"centre": [str(11000 + k % 10) for k in range(n)], "age": [str(20 + k) for k in range(n)]})
    known = Predictions(np.arange(n) % 2.0, np.full((n, 2), 0.5), np.arange(n), np.zeros(n, int), 2)
    step = SimpleNamespace(cohort=SimpleNamespace(participants=people), site="centre", target="diagnosis")
    rows = fits._by_level(step, SimpleNamespace(rows=np.arange(n), predictions=known))
    found = {column: {row["level"] for row in rows if row["column"] == column} for column in ("centre", "age")}
    assert found["centre"] == set(people["centre"])
    assert len(found["age"]) == 3
