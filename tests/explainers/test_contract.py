"""What every file of explainers/ promises, for any fitted model."""

import inspect

import numpy as np
import pandas as pd
import pytest

from bids_dl import attributions, training, zoo
from bids_dl.config import from_mapping
from bids_dl.errors import UsageError
from bids_dl.records import Block, Cohort, FittedModel, Split, Target
from bids_dl.settings import Settings

EXPLAINERS = zoo.names("explainers")
N = 30
SPLIT = Split(np.arange(0, 16), np.arange(16, 22), np.arange(22, 30), "one")
AFFINE = np.array([[24.0, 0, 0, -90], [0, 24, 0, -126], [0, 0, 24, -72], [0, 0, 0, 1]])
SHAPES = {
    "edges": (15,), "columns": (4,), "volume": (8, 9, 8), "maps": (2, 8, 9, 8), "moving": (3, 2, 8, 9, 8), "series": (7, 4),
}  # fmt: skip
MODELS = [
    ("linear", "edges"),
    ("linear", "columns"),
    ("mlp", "edges"),
    ("cnn3d", "volume"),
    ("linear", "maps"),
    ("cnn3d", "maps"),
    ("cnn_ica", "moving"),
    ("attention_cnn3d", "volume"),
    ("cnn2d", "volume"),
    ("attention_rnn", "series"),
    ("learned_connectivity", "series"),
]
TARGETS = {"two classes": ("control", "patient"), "three classes": ("a", "b", "c"), "quantity": ()}


def cohort(levels):
    generator = np.random.default_rng(0)
    y = generator.permutation(np.arange(N) % len(levels)) if levels else generator.normal(50, 10, N)
    x = {name: generator.normal(size=(N, *shape)).astype(np.float32) for name, shape in SHAPES.items()}
    x["moving"][::2, 2] = np.nan  # every other participant has two windows
    x["series"][::3, 5:] = np.nan
    features = {
        "edges": Block(x["edges"], ("edge",), tuple("ABCDEF")),
        "columns": Block(x["columns"], ("column",), ("iq", "age", "size", "fat")),
        "volume": Block(x["volume"], ("x", "y", "z"), affine=AFFINE),
        "maps": Block(x["maps"], ("network", "x", "y", "z"), ("one", "two"), affine=AFFINE),
        "series": Block(x["series"], ("time", "roi"), tuple("ABCD")),
        "moving": Block(x["moving"], ("window", "network", "x", "y", "z"), ("one", "two"), affine=AFFINE),
    }
    people = pd.DataFrame({"participant_id": [f"sub-{i:02d}" for i in range(N)]})
    return Cohort(people, features, Target("target", y.astype(float), levels))


@pytest.fixture(scope="module")
def fitted():
    found = {}

    def fit(model, feature, levels) -> tuple[FittedModel, Cohort]:
        if (model, feature, levels) not in found:
            data = cohort(levels)
            definition = training.define(model, [SHAPES[feature]], data.target.n_outputs, {})
            settings = Settings(n_epochs=2, n_members=1, device="cpu")
            found[model, feature, levels] = training.train(definition, data, SPLIT, [feature], settings), data
        return found[model, feature, levels]

    return fit


def suits(name, model):
    return attributions.able((name,), gradients=True, attention=zoo.attends(model, {})) == (name,)


every = pytest.mark.parametrize("name", EXPLAINERS)
every_model = pytest.mark.parametrize(
    ("name", "model", "feature"), [(name, *model) for name in EXPLAINERS for model in MODELS if suits(name, model[0])]
)


@every_model
@pytest.mark.parametrize("levels", TARGETS.values(), ids=TARGETS)
def test_attribution_has_the_shape_of_the_input(name, model, feature, levels, fitted):
    """But for the axes that a model does not choose along."""
    model, data = fitted(model, feature, levels)
    found = zoo.load("explainers", name)(model, data, SPLIT)
    (shape,) = [values.shape for values in found.values.values()]
    assert shape[0] == 8
    assert all(n == one or (found.shares and n == 1) for n, one in zip(shape[1:], SHAPES[feature], strict=True))
    assert found.participant_ids == tuple(f"sub-{i}" for i in range(22, 30))
    assert found.outputs.shape == (8,)
    assert np.isfinite(found.values[feature]).all()
    assert found.method.isalnum()


@every
def test_outputs_are_those_of_the_explained_class(name, fitted):
    model, feature = next(one for one in MODELS if suits(name, one[0]))
    model, data = fitted(model, feature, TARGETS["three classes"])
    found = zoo.load("explainers", name)(model, data, SPLIT)
    np.testing.assert_allclose(found.outputs, training.outputs(model, data, SPLIT.test).max(axis=1), atol=1e-5)


@every_model
def test_same_call_gives_the_same_attribution_and_changes_no_weight(name, model, feature, fitted):
    model, data = fitted(model, feature, ())
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    one, other = (zoo.load("explainers", name)(model, data, SPLIT) for _ in range(2))
    np.testing.assert_array_equal(one.values[feature], other.values[feature])
    assert all((v == before[k]).all() for k, v in model.module.state_dict().items())


@every_model
def test_at_most_so_many_participants_are_explained(name, model, feature, fitted):
    model, data = fitted(model, feature, ())
    found = zoo.load("explainers", name)(model, data, SPLIT, max_participants=3)
    assert len(found.values[feature]) == 3
    assert found.participant_ids == ("sub-22", "sub-25", "sub-29")  # the first ones may be of one site or class


@every_model
def test_nobody_to_explain_gives_an_empty_attribution(name, model, feature, fitted):
    model, data = fitted(model, feature, ())
    nobody = Split(SPLIT.train, SPLIT.validation, SPLIT.test[:0], "one")
    found = zoo.load("explainers", name)(model, data, nobody)
    assert found.values[feature].shape == (0, *SHAPES[feature])
    assert found.participant_ids == ()
    assert found.outputs.shape == (0,)


@every
def test_options_are_the_keyword_only_arguments_and_unknown_ones_are_refused(name):
    parameters = inspect.signature(zoo.load("explainers", name)).parameters.values()
    assert zoo.options("explainers", name) == {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    given = {"bids_dir": "a", "output_dir": "b", "analysis_level": "group", "explainers": {name: {"steps": 3}}}
    with pytest.raises(UsageError, match=f"explainers.{name} has no option 'steps'"):
        from_mapping(given)
