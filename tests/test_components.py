import numpy as np
import pandas as pd
import pytest
import torch

from bids_dl import training
from bids_dl.components import Components, class_logits, codes
from bids_dl.records import Block, Cohort, Split, Target
from bids_dl.settings import Settings


def learned(x, n_components):
    module = Components(x.shape[1], n_components)
    module.begin(lambda at: (x[at],), len(x))
    return module


@pytest.mark.parametrize("shape", [(30, 7), (9, 40)])
def test_coordinates_are_those_of_a_singular_value_decomposition(shape):
    torch.manual_seed(0)
    x = torch.randn(shape) * torch.linspace(1, 3, shape[1])
    module = learned(x, 5)
    u, s, vt = np.linalg.svd(x.numpy(), full_matrices=False)
    unit = np.sqrt(np.mean(s[:5] ** 2) / len(x))
    np.testing.assert_allclose(np.abs(module(x)), np.abs(u[:, :5] * s[:5]) / unit, atol=1e-4)
    np.testing.assert_allclose(module.spread, s[:5] / np.sqrt(len(x)) / unit, rtol=1e-4)
    np.testing.assert_allclose(module.restored(module(x)), x.numpy() @ vt[:5].T @ vt[:5], atol=1e-4)


def test_rows_in_the_span_of_the_components_come_back():
    torch.manual_seed(0)
    x = torch.randn(20, 6)
    module = learned(x, 6)
    torch.testing.assert_close(module.restored(module(x)), x, atol=1e-5, rtol=1e-4)
    assert module(x).square().mean() == pytest.approx(1, rel=1e-4)


def test_axes_that_few_rows_do_not_have_are_empty():
    torch.manual_seed(0)
    module = learned(torch.randn(3, 10), 8)
    assert (module.spread > 0).tolist() == [True] * 3 + [False] * 5
    assert (module(torch.randn(4, 10))[:, 3:] == 0).all()


def test_rows_that_never_vary_give_zeros():
    module = learned(torch.zeros(5, 4), 3)
    assert (module(torch.zeros(2, 4)) == 0).all()


def test_missing_values_count_as_the_mean():
    torch.manual_seed(0)
    x = torch.randn(12, 4)
    module, gappy, filled = learned(x, 3), x.clone(), x.clone()
    gappy[2, 1], filled[2, 1] = torch.nan, 0.0
    torch.testing.assert_close(module(gappy), module(filled))


def test_many_rows_are_thinned_out_evenly():
    asked = []
    Components(2, 2).begin(lambda at: asked.append(at) or (torch.randn(len(at), 2),), 5000)
    assert (asked[0][0], asked[0][-1], len(asked[0])) == (0, 4999, 1000)
    assert np.ptp(np.diff(asked[0])) <= 1


def test_labels_are_written_as_conditions():
    y = torch.tensor([0.0, 2.0, 1.0])
    assert codes(y, 3).tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert codes(y, 1).tolist() == [[0], [2], [1]]


def test_one_logit_spelled_out_as_two_has_the_same_probability():
    logit = torch.linspace(-4, 4, 9)[:, None]
    torch.testing.assert_close(torch.softmax(class_logits(logit), dim=1)[:, 1:], torch.sigmoid(logit))
    assert class_logits(torch.zeros(2, 3)).shape == (2, 3)


def first_axis(model, *, unlabelled):
    """Six labels in forty noisy columns that shift with the class, two hundred more participants without a label."""
    generator = np.random.default_rng(0)
    y = np.arange(240) % 2.0
    x = (generator.normal(size=(240, 40)) + 0.3 * (2 * y - 1)[:, None]).astype(np.float32)
    y[40:] = np.nan
    x[40:] = x[40:] if unlabelled else np.nan
    people = pd.DataFrame({"participant_id": [f"sub-{i:03d}" for i in range(240)]})
    data = Cohort(people, {"input": Block(x, ("column",))}, Target("target", y, ("control", "patient")))
    split = Split(np.arange(6), np.arange(6, 20), np.arange(20, 40), "one")
    definition = training.define(model, [(40,)], 1, {"n_components": 6})
    fitted = training.train(definition, data, split, ["input"], Settings(n_epochs=1, device="cpu"))
    return fitted.module.components.axes[0].numpy()


@pytest.mark.parametrize("model", ["gan", "vae"])
def test_participants_without_a_label_show_the_axis_along_which_the_classes_differ(model):
    classes = np.full(40, 1 / np.sqrt(40))
    assert abs(first_axis(model, unlabelled=True) @ classes) > 0.9
    assert abs(first_axis(model, unlabelled=False) @ classes) < 0.8
