"""Planted motion is found again."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from bids_dl import motion
from bids_dl.registration import Volume

AFFINE = np.array([[3.0, 0, 0, -60], [0, 3, 0, -70], [0, 0, 3.5, -50], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def head():
    """A smooth blob with structure inside, (x, y, z), and its mask."""
    generator = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(generator.standard_normal((40, 46, 32)), 2)
    at = np.indices(noise.shape) - np.array([20, 23, 16])[:, None, None, None]
    inside = (at**2 / np.array([15, 18, 11])[:, None, None, None] ** 2).sum(axis=0) < 1
    return ndimage.gaussian_filter(np.where(inside, 100 + 400 * noise / noise.std() * 0.1, 0), 0.7), inside


def moved(volume, parameters, centre):
    """Move a head by cubic interpolation: a point x of the reference lands at M x."""
    back = np.linalg.inv(AFFINE) @ np.linalg.inv(motion.matrix(parameters, centre)) @ AFFINE
    return ndimage.affine_transform(volume, back[:3, :3], back[:3, 3], order=3)


def test_planted_motion_is_found_to_a_twentieth_of_a_millimetre(head):
    volume, mask = head
    centre = motion.centre_of(mask, AFFINE)
    generator = np.random.default_rng(1)
    planted = np.cumsum(generator.normal(0, [0.1] * 3 + [0.002] * 3, (12, 6)), axis=0)
    planted -= planted.mean(axis=0)
    series = np.stack([moved(volume, p, centre) + generator.normal(0, 1, volume.shape) for p in planted], axis=-1)
    found = motion.estimate(series, AFFINE, mask)
    apart = (found - found.mean(axis=0) - planted) * [1, 1, 1, 50, 50, 50]
    assert np.abs(apart).max() < 0.05


def test_still_head_does_not_move(head):
    volume, mask = head
    found = motion.estimate(np.stack([volume] * 3, axis=-1), AFFINE, mask)
    assert np.abs(found).max() < 1e-3


def test_resampling_undoes_a_motion(head):
    volume, mask = head
    centre = motion.centre_of(mask, AFFINE)
    parameters = np.array([1.0, -2.0, 0.5, 0.02, -0.01, 0.03])
    back = motion.resampled(moved(volume, parameters, centre), AFFINE, parameters, centre)
    inner = ndimage.binary_erosion(mask, iterations=3)
    assert np.corrcoef(back[inner], volume[inner])[0, 1] > 0.99


def test_parameters_survive_their_matrix():
    parameters, centre = np.array([1.0, 2, 3, 0.1, -0.2, 0.3]), np.array([5.0, -4, 3])
    np.testing.assert_allclose(motion.parameters(motion.matrix(parameters, centre), centre), parameters, atol=1e-12)


def test_displacement_is_powers_sum():
    still = np.zeros((3, 6))
    still[1] = [1, 0, 0, 0.02, 0, 0]
    np.testing.assert_allclose(motion.displacement(still)[1:], [1 + 50 * 0.02] * 2)
    assert np.isnan(motion.displacement(still)[0])


def test_points_are_read_where_the_head_went(head):
    volume, mask = head
    centre = motion.centre_of(mask, AFFINE)
    parameters = np.array([3.0, 0, 0, 0, 0, 0])
    points = np.argwhere(mask)[::500] @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    read = motion.at_points(
        Volume(moved(volume, parameters, centre), AFFINE), points, motion.matrix(parameters, centre), order=1
    )
    np.testing.assert_allclose(read, volume[tuple(np.argwhere(mask)[::500].T)], atol=1e-3)
