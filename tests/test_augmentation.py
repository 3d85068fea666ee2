from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import affine_transform, map_coordinates
from scipy.spatial.transform import Rotation

from bids_dl import config as configuration
from bids_dl import splits, training
from bids_dl.augmentation import KNOTS, STILL, Strengths, augment, changed, draw, rotations
from bids_dl.records import Block, Cohort, Target
from bids_dl.settings import Settings, settings_for

GRID = (9, 12, 7)


def volumes(n=3, seed=0):
    return torch.randn(n, *GRID, generator=torch.Generator().manual_seed(seed))


def still(n=3):
    return draw(torch.Size((n, *GRID)), STILL)


@pytest.mark.parametrize("grid", [GRID, (16, 16, 16), (5, 1, 8)])
def test_strengths_of_nothing_change_nothing(grid):
    x = torch.randn(2, *grid)
    torch.testing.assert_close(augment(x, STILL), x, atol=1e-5, rtol=1e-5)


def test_default_changes_every_volume_a_little():
    x = torch.nn.functional.interpolate(volumes()[:, None], scale_factor=3, mode="trilinear")[:, 0]
    torch.manual_seed(0)
    found = augment(x)
    correlation = [np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(x, found, strict=True)]
    assert all(0.5 < r < 0.999 for r in correlation)


@pytest.mark.parametrize("angles", [(20.0, 0.0, 0.0), (0.0, -15.0, 0.0), (0.0, 0.0, 30.0), (8.0, -12.0, 20.0)])
def test_rotation_and_shift_are_those_of_scipy(angles):
    """Also where the grid has another number of voxels along each axis."""
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    shift, x = np.array([0.7, -1.2, 0.4]), volumes(1)
    matrix = 1.1 * turn
    drawn = replace(still(1), matrix=torch.tensor(matrix[None]).float(), shift=torch.tensor(shift[None]).float())
    centre = (np.array(GRID) - 1) / 2
    expected = affine_transform(x[0].numpy(), matrix, centre - matrix @ centre + shift, order=1, mode="grid-constant")
    np.testing.assert_allclose(changed(x, drawn)[0], expected, atol=1e-4)


def test_rotations_are_about_x_then_y_then_z():
    angles = np.random.default_rng(0).normal(size=(5, 3))
    expected = Rotation.from_euler("xyz", angles).as_matrix()
    np.testing.assert_allclose(rotations(torch.tensor(angles).float()), expected, atol=1e-6)


def test_shift_of_a_voxel_moves_by_a_voxel_and_fills_with_zero():
    x = volumes()
    found = changed(x, replace(still(), shift=torch.tensor([1.0, 0, 0]).repeat(3, 1)))
    torch.testing.assert_close(found[:, :-1], x[:, 1:], atol=1e-5, rtol=1e-5)
    assert found[:, -1].abs().max() < 1e-5


def test_bend_moves_each_place_by_its_own_shift():
    """A bend that is the same everywhere is a shift; one that grows along x stretches."""
    bend = torch.zeros(3, 3, KNOTS, KNOTS, KNOTS)
    bend[:, 1] = 1.0
    x = volumes()
    torch.testing.assert_close(
        changed(x, replace(still(), bend=bend)),
        changed(x, replace(still(), shift=torch.tensor([0, 1.0, 0]).repeat(3, 1))),
        atol=1e-5,
        rtol=1e-5,
    )
    ramp = torch.zeros_like(bend)
    ramp[:, 0] = torch.linspace(-1, 1, KNOTS)[:, None, None]
    line = torch.arange(GRID[0], dtype=torch.float32)[None, :, None, None].expand(1, *GRID)
    found = changed(line, replace(still(1), bend=ramp[:1]))[0, 1:-1, 3, 3]
    expected = np.arange(1, GRID[0] - 1) + np.linspace(-1, 1, GRID[0])[1:-1]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_bias_multiplies_by_the_exponential_of_a_field_that_is_linear_between_its_knots():
    x, field = volumes() + 5, torch.randn(3, 1, KNOTS, KNOTS, KNOTS)
    ratio = torch.log(changed(x, replace(still(), bias=field)) / x)
    places = np.stack(np.meshgrid(*(np.linspace(0, KNOTS - 1, size) for size in GRID), indexing="ij"))
    expected = [map_coordinates(one[0].numpy(), places, order=1) for one in field]
    np.testing.assert_allclose(ratio, expected, atol=1e-4)


def test_background_gets_no_noise():
    x = volumes()
    x[:, :3] = 0
    found = augment(x, replace(STILL, noise=1.0))
    assert not found[:, :3].any()
    assert (found - x)[:, 3:].std() == pytest.approx(1.0, abs=0.15)


def test_flip_swaps_left_and_right_of_some_and_only_when_asked():
    x = volumes(40)
    torch.manual_seed(0)
    found = augment(x, replace(STILL, flip=True))
    swapped = [torch.allclose(one, other.flip(0), atol=1e-5) for one, other in zip(found, x, strict=True)]
    kept = [torch.allclose(one, other, atol=1e-5) for one, other in zip(found, x, strict=True)]
    assert 10 < sum(swapped) < 30
    assert sum(swapped) + sum(kept) == 40
    assert not draw(x.shape, Strengths()).flipped.any()


def test_absent_participant_stays_absent_and_changes_nobody():
    x = volumes()
    torch.manual_seed(0)
    alone = augment(x)
    x[1] = torch.nan
    torch.manual_seed(0)
    found = augment(x)
    assert torch.isnan(found[1]).all()
    assert torch.equal(found[[0, 2]], alone[[0, 2]])


def test_same_seed_gives_the_same_volumes_and_another_seed_others():
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(augment(volumes()))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def cohort(n=40, grid=(8, 8, 8)):
    generator = np.random.default_rng(0)
    y = generator.permutation(np.arange(n) % 2).astype(float)
    x = generator.normal(size=(n, *grid)).astype(np.float32)
    people = pd.DataFrame({"participant_id": [f"sub-{i:03d}" for i in range(n)]})
    blocks = {"volume": Block(x, ()), "columns": Block(x[:, 0, 0, :5], ("column",))}
    return Cohort(people, blocks, Target("target", y, ("control", "patient")))


def trained(model, feature, options, **wishes):
    data = cohort()
    ids = data.participants["participant_id"].tolist()
    split = splits.make(data.target, ids, configuration.Splits(n_folds=4), seed=0)[0]
    definition = training.define(model, [data.features[feature].shape], 1, options)
    settings = Settings(n_epochs=3, n_members=1, device="cpu", **wishes)
    return training.train(definition, data, split, [feature], settings), data, split


def losses(fitted, part):
    return [row[f"{part}_loss"] for row in fitted.history]


SMALL = {"channels": [4], "width": 4, "dropout": 0.0}


def test_training_rows_alone_are_augmented():
    """The network stands still: what its losses do from epoch to epoch is the augmentation's work."""
    wishes = {"learning_rate": 0.0, "weight_decay": 0.0, "batch_size": 64}
    fitted, *_ = trained("cnn3d", "volume", SMALL, augment=True, **wishes)
    plain, *_ = trained("cnn3d", "volume", SMALL, **wishes)
    assert len({round(loss, 6) for loss in losses(fitted, "train")}) == 3
    assert len({round(loss, 6) for loss in losses(plain, "train")}) == 1
    assert losses(fitted, "validation") == losses(plain, "validation")


def test_prediction_of_a_test_row_is_that_of_the_row_itself():
    fitted, data, split = trained("cnn3d", "volume", SMALL, augment=True)
    one, other = (training.outputs(fitted, data, split.test) for _ in range(2))
    x = fitted.normalization["volume"].apply(data.features["volume"].values[split.test])
    with torch.no_grad():
        expected = fitted.module(torch.from_numpy(x))
    assert np.array_equal(one, other)
    np.testing.assert_allclose(one, expected, atol=1e-6)


def test_input_that_is_no_volume_is_left_as_it_is():
    one, *_ = trained("mlp", "columns", {}, augment=True)
    other, *_ = trained("mlp", "columns", {})
    assert one.history == other.history


def test_same_seed_gives_the_same_augmented_training():
    assert len({str(trained("cnn3d", "volume", SMALL, augment=True)[0].history) for _ in range(2)}) == 1


@pytest.mark.parametrize(("asked", "expected"), [("auto", False), ("on", True), ("off", False)])
def test_configuration_turns_augmentation_on_and_off(asked, expected):
    given = {"bids_dir": "a", "output_dir": "b", "analysis_level": "group", "training": {"augment": asked}}
    definition = training.define("cnn3d", [(8, 8, 8)], 1, {})
    assert settings_for(definition, configuration.from_mapping(given)).augment is expected
