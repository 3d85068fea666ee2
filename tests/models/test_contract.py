"""What every file of models/ promises; a new file is tested here without a line more."""

import inspect

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from bids_dl import building, bundle, training, zoo
from bids_dl.config import from_mapping
from bids_dl.errors import UsageError
from bids_dl.records import Block, Cohort, Split, Target
from bids_dl.settings import Settings

SHAPES = {
    "volume": (16, 16, 16),
    "edge": (45,),
    "column": (6,),
    "sequence": (12, 6),
    "windows": (7, 15),
    "maps": (5, 12, 12, 12),
    "moving_maps": (6, 5, 8, 8, 8),
}
DIMS = {
    "volume": (), "maps": ("network", "x", "y", "z"), "sequence": ("time", "roi"), "windows": ("window", "edge"),
    "moving_maps": ("window", "network", "x", "y", "z"),
}  # fmt: skip
PADDED = {"sequence", "windows", "moving_maps"}
MODELS = zoo.names("models")
TARGETS = {
    "two classes": ("control", "patient"),
    "three classes": ("a", "b", "c"),
    "quantity": (),
}


def suited(name):
    """The kind of input that is named, ``model on kind``, else the first one that the model takes."""
    model, _, kind = name.partition(" on ")
    if zoo.constant("models", model, "INPUT"):
        return "column"
    return kind or (zoo.constant("models", model, "SUITS") or ("edge",))[0]


def said(name, key):
    return zoo.constant("models", name.partition(" on ")[0], key)


def defined(name, shapes, n_outputs=1):
    return training.define(name.partition(" on ")[0], shapes, n_outputs, {})


def built(name, n_outputs=1):
    return building.instantiate(defined(name, [SHAPES[suited(name)]], n_outputs))


TRIED = {suited(name) for name in MODELS}
CASES = [*MODELS, *(f"{m} on {kind}" for m in MODELS for kind in said(m, "SUITS") or () if kind not in TRIED)]
"""Every model on its first kind of input, and on those that are no model's first."""

NETWORKS = [name for name in CASES if isinstance(built(name), nn.Module)]
BY_GRADIENTS = [name for name in NETWORKS if not hasattr(built(name), "solve")]


def values(kind, n, generator):
    """Make inputs; sequences have their own lengths, padded with NaN."""
    made = generator.normal(size=(n, *SHAPES[kind])).astype(np.float32)
    for row in range(1, n) if kind in PADDED else ():
        made[row, generator.integers(4, SHAPES[kind][0] + 1) :] = np.nan
    return made


def cohort(kind, levels, n=24):
    generator = np.random.default_rng(0)
    y = generator.permutation(np.arange(n) % len(levels)) if levels else generator.normal(50, 10, n)
    features = {
        "input": Block(values(kind, n, generator), DIMS.get(kind, (kind,))),
        "confounds": Block(generator.normal(size=(n, 2)).astype(np.float32), ("column",), ("age", "site=b")),
    }
    people = pd.DataFrame({"participant_id": [f"sub-{i:02d}" for i in range(n)]})
    return Cohort(people, features, Target("target", y.astype(float), levels))


SPLIT = Split(np.arange(0, 14), np.arange(14, 18), np.arange(18, 24), "one")


@pytest.fixture(scope="module")
def fitted():
    """Each model, trained for two epochs, once a target."""
    found = {}

    def fit(name, levels):
        if (name, levels) not in found:
            data = cohort(suited(name), levels)
            inputs = [said(name, "INPUT") or "input"]
            definition = defined(name, [data.features[i].shape for i in inputs], data.target.n_outputs)
            settings = Settings(n_epochs=2, n_members=2, device="cpu")
            found[name, levels] = training.train(definition, data, SPLIT, inputs, settings), data
        return found[name, levels]

    return fit


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_network_returns_a_row_a_participant_and_a_column_an_output(name, n_outputs):
    module = built(name, n_outputs).eval()
    x = torch.randn(5, *SHAPES[suited(name)])
    assert module(x).shape == (5, n_outputs)
    assert module.embed(x).shape == (5, module.head.in_features)
    torch.testing.assert_close(module.head(module.embed(x)), module(x))


def loss_of(module, x, y):
    """What the training would minimise: a model's own objective where it has one."""
    if hasattr(module, "loss"):
        return module.loss((x,), y, lambda out, y: nn.functional.cross_entropy(out, y.long()))
    return module(x).square().sum()


@pytest.mark.parametrize("name", BY_GRADIENTS)
def test_gradient_reaches_every_parameter(name):
    torch.manual_seed(0)
    module, x = built(name, 3).train(), torch.randn(16, *SHAPES[suited(name)])
    loss_of(module, x, torch.arange(16.0) % 3).backward()
    still = [p for p, value in module.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0]
    assert not still


@pytest.mark.parametrize("known", [0, 1, 16])
@pytest.mark.parametrize("name", [name for name in CASES if said(name, "USES_UNLABELLED")])
def test_batch_with_any_number_of_labels_has_a_loss(name, known):
    torch.manual_seed(0)
    module, x, y = built(name, 3).train(), torch.randn(16, *SHAPES[suited(name)]), torch.arange(16.0) % 3
    y[known:] = torch.nan
    loss_of(module, x, y).backward()
    learns = [value.grad for value in module.parameters() if value.grad is not None]
    assert learns
    assert all(torch.isfinite(gradient).all() for gradient in learns)


@pytest.mark.parametrize("name", NETWORKS)
def test_participant_alone_gets_the_output_it_gets_among_others(name):
    torch.manual_seed(0)
    module, x = built(name).eval(), torch.randn(4, *SHAPES[suited(name)])
    torch.testing.assert_close(module(x[2:3]), module(x)[2:3], atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in CASES if said(name, "PARTS")])
def test_what_is_described_has_as_many_parts_as_the_model_on_every_axis_of_parts(name):
    part, module, x = said(name, "PARTS"), built(name).eval(), torch.randn(3, *SHAPES[suited(name)])
    n = len(module.parts())
    for values, dims in module.describe(x).values():
        assert values.shape[0] == 3
        assert values.ndim == 1 + len(dims)
        assert part in dims
        assert all(size == n for size, dim in zip(values.shape[1:], dims, strict=True) if dim == part)


@pytest.mark.parametrize("name", [name for name in NETWORKS if suited(name) in PADDED])
@torch.no_grad()
def test_padding_changes_nobodys_output(name):
    torch.manual_seed(0)
    module, x = built(name).eval(), torch.randn(3, *SHAPES[suited(name)])
    padding = torch.full((3, 4, *x.shape[2:]), torch.nan)
    x[0, 2:] = torch.nan
    torch.testing.assert_close(module(torch.cat([x, padding], dim=1)), module(x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(module(x[:1, :2]), module(x)[:1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_schedule_says_how_long_and_how_fast_to_train(name):
    assert set(said(name, "SCHEDULE")) <= set(Settings.__dataclass_fields__)


@pytest.mark.parametrize("levels", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_scores_are_probabilities_or_quantities(name, levels, fitted):
    model, data = fitted(name, levels)
    scores = training.predict(model, data, SPLIT.test)
    assert scores.shape == (6, max(1, len(levels)))
    if levels:
        np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-6)
        assert (scores >= 0).all()
    else:
        assert np.isfinite(scores).all()


@pytest.mark.parametrize("levels", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_history_has_a_row_an_epoch_and_member(name, levels, fitted):
    model, _ = fitted(name, levels)
    assert all({"member", "epoch", "train_loss", "validation_loss"} <= set(row) for row in model.history)
    assert len(model.history) == (4 if name in BY_GRADIENTS else 1)


@pytest.mark.parametrize("name", BY_GRADIENTS)
def test_training_in_bfloat16_is_close_to_that_in_float32_and_keeps_float32_weights(name, monkeypatch):
    """An epoch on values: each loss within 0.07, where losses lie around 1; later ones go ways of their own."""
    monkeypatch.setattr(training, "is_smaller", lambda *_: False)
    data, losses, weights = cohort(suited(name), ()), [], []
    definition = defined(name, [data.features["input"].shape])
    for precision in ("32", "bf16"):
        settings = Settings(n_epochs=1, device="cpu", precision=precision)
        model = training.train(definition, data, SPLIT, ["input"], settings)
        losses.append([[row["train_loss"], row["validation_loss"]] for row in model.history])
        weights.append(model.module.state_dict())
    np.testing.assert_allclose(losses[1], losses[0], atol=0.07)
    assert losses[1] != losses[0]
    assert {key: w.dtype for key, w in weights[1].items()} == {key: w.dtype for key, w in weights[0].items()}


@pytest.mark.parametrize("levels", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_saved_model_predicts_the_same(name, levels, fitted, tmp_path):
    model, data = fitted(name, levels)
    again = bundle.load(bundle.save(model, tmp_path / "model", {}))
    np.testing.assert_allclose(
        training.predict(again, data, SPLIT.test), training.predict(model, data, SPLIT.test), atol=1e-6
    )
    assert (again.inputs, again.levels, again.target_mean) == (model.inputs, model.levels, model.target_mean)


@pytest.mark.parametrize("name", MODELS)
def test_options_are_the_keyword_only_arguments(name):
    parameters = inspect.signature(zoo.load("models", name)).parameters.values()
    expected = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert zoo.options("models", name) == expected


@pytest.mark.parametrize("name", MODELS)
def test_every_option_and_argument_is_described(name):
    function = zoo.load("models", name)
    described = inspect.getdoc(function)
    assert all(argument in described for argument in inspect.signature(function).parameters)
    assert zoo.summary("models", name).endswith((".", "]_."))


@pytest.mark.parametrize("name", MODELS)
def test_unknown_option_is_refused_with_the_model_named(name):
    given = {"bids_dir": "a", "output_dir": "b", "analysis_level": "group", "models": {name: {"widht": 3}}}
    with pytest.raises(UsageError, match=f"models.{name} has no option 'widht'"):
        from_mapping(given)
