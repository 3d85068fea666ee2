"""Fits are known by what they depend on: asking for more keeps those that are there."""

import shutil
from dataclasses import replace

import pytest
from test_group import CONFIG, run, tables, write_dataset

from bids_dl import config as configuration
from bids_dl import training
from bids_dl.settings import settings_for

ONE_TARGET = CONFIG.replace('["group", "age", "subtype"]', '["group"]').replace('["linear", "mlp"]', '["linear"]')


@pytest.fixture
def first(tmp_path):
    """A dataset, and both levels run with linear alone on two folds."""
    bids = write_dataset(tmp_path / "bids")
    assert run(bids, tmp_path / "out", "participant") == 0
    assert again(bids, tmp_path / "out", ONE_TARGET) == 0
    return bids, tmp_path / "out"


def again(bids, out, text, *more):
    path = out.parent / "config.toml"
    path.write_text(text)
    return run(bids, out, "group", "--config-file", path, "--work-dir", out.parent / "work", *more)


def made_at(work, name="predictions.npz"):
    """When each fit was written."""
    return {str(f.parent.relative_to(work)): f.stat().st_mtime_ns for f in work.glob(f"fits/**/{name}")}


@pytest.mark.parametrize(
    ("old", "new", "n_fits"),
    [
        ('["linear"]', '["linear", "mlp"]', 12),
        ("n_bootstraps = 20", "n_bootstraps = 30", 9),
        ("n_folds = 2", "n_folds = 2\nn_repeats = 2", 15),
        ("[training]", '[explainers]\nnames = ["occlusion"]\n[training]', 9),
    ],
)
def test_asking_for_more_keeps_the_fits_that_are_there(first, old, new, n_fits):
    bids, out = first
    work = out.parent / "work"
    before, nulls = made_at(work), made_at(work, "null.npz")
    assert again(bids, out, ONE_TARGET.replace(old, new), "--overwrite") == 0
    after = made_at(work)
    kept = {name: after[name] for name in before}
    assert kept == before
    assert nulls.items() <= made_at(work, "null.npz").items()
    assert set(tables(out)) >= {"group/metrics/target-group_metrics.tsv"}


def test_results_after_asking_for_more_are_those_of_a_fresh_run(first, tmp_path):
    bids, out = first
    more = ONE_TARGET.replace('["linear"]', '["linear", "mlp"]')
    assert again(bids, out, more, "--overwrite") == 0
    fresh = tmp_path / "fresh" / "out"
    assert run(bids, fresh, "participant") == 0
    assert again(bids, fresh, more) == 0
    assert tables(out) == tables(fresh)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[splits]", "[models.linear]\nn_penalties = 3\n[splits]"),
        ("n_folds = 2", "n_folds = 3"),
        ("[metrics]", "[metrics]\nshuffle_labels = true"),
    ],
)
def test_what_changes_a_fit_is_fitted_anew(first, old, new):
    bids, out = first
    work = out.parent / "work"
    before = made_at(work)
    assert again(bids, out, ONE_TARGET.replace(old, new), "--overwrite") == 0
    after = made_at(work)
    linear = [name for name in before if "connectivity_linear" in name and not name.endswith("final")]
    assert linear
    assert all(after[name] != before[name] for name in linear)


def test_a_fit_whose_files_are_gone_is_done_again(first):
    bids, out = first
    work = out.parent / "work"
    before = tables(out)
    gone = work / "fits" / "group" / "connectivity_linear"
    assert gone.is_dir()
    shutil.rmtree(gone)
    assert again(bids, out, ONE_TARGET) == 0
    assert gone.is_dir()
    assert tables(out) == before


def test_what_a_fit_depends_on_leaves_the_rest_at_its_default():
    given = {
        "bids_dir": "/data", "output_dir": "/out", "analysis_level": "group", "random_seed": 3,
        "models": {"names": ["mlp", "linear"], "mlp": {"hidden": [4]}, "linear": {"n_penalties": 3}},
        "targets": {"names": ["age", "group"], "positive": {"group": "mdd"}, "kinds": {"age": "ordinal"}},
        "splits": {"n_folds": 3, "n_repeats": 2, "validation_fraction": 0.3}, "metrics": {"n_bootstraps": 7, "coverage": 0.8},
    }  # fmt: skip
    own = configuration.of_fit(configuration.from_mapping(given), "group", ["mlp"])
    assert own.models == configuration.Methods((), {"mlp": {"hidden": [4]}})
    assert (own.targets.names, own.targets.positive, own.targets.kinds) == (("group",), {"group": "mdd"}, {})
    assert (own.splits.n_folds, own.splits.n_repeats, own.splits.validation_fraction) == (5, 1, 0.3)
    assert (own.metrics.n_bootstraps, own.metrics.coverage, own.random_seed) == (2000, 0.8, 3)


def test_a_fit_is_told_every_setting_of_its_training():
    """With no key of the sections that a training reads at its default."""
    given = {
        "bids_dir": "/data", "output_dir": "/out", "analysis_level": "group", "random_seed": 3, "run": {"device": "cpu"},
        "models": {"names": ["linear"], "mlp": {"hidden": [4]}, "vae": {"n_latent": 3}},
        "harmonizers": {"names": ["combat"], "combat": {"protect": ["age"]}}, "normalization": {"remove_confounds": True},
        "training": {
            "n_epochs": 3, "patience": 2, "batch_size": 5, "learning_rate": 0.1, "weight_decay": 0.2, "n_members": 2,
            "augment": "on", "precision": "32", "pretrain": "masked", "synthetic": "vae", "n_synthetic": 2.0,
            "start_from": "", "class_weights": False,
        },
    }  # fmt: skip
    whole = configuration.from_mapping(given)
    whole = replace(whole, training=replace(whole.training, frozen=("first",)))  # which needs a bundle to start from
    defaults = configuration.Training()
    assert [k for k, v in vars(whole.training).items() if v == getattr(defaults, k)] == ["start_from"]
    own = configuration.of_fit(whole, "group", ["mlp"])
    definition = training.define("mlp", [(10,)], 1, {"hidden": [4]})
    assert settings_for(definition, own) == settings_for(definition, whole)
    assert own.models.of("mlp") == {"hidden": [4]}
    assert own.decoding == whole.decoding
