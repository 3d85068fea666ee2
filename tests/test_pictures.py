"""Pictures show what the numbers say."""

import base64
import io

import numpy as np
from PIL import Image

from bids_dl import pictures


def test_missing_values_are_grey_and_the_diagonal_is_blank():
    values = np.array([[1.0, 0.5, np.nan], [0.5, 1.0, -0.5], [np.nan, -0.5, 1.0]])
    picture = pictures.draw_matrix(values)
    shown = np.asarray(Image.open(_bytes(picture["uri"])).convert("RGB"))
    assert (shown[np.eye(3, dtype=bool)] == 255).all()
    assert tuple(shown[0, 2]) == (176, 182, 190)
    assert shown[0, 1, 0] > shown[0, 1, 2]  # positive is red
    assert shown[1, 2, 0] < shown[1, 2, 2]  # negative is blue


def _bytes(uri: str):
    return io.BytesIO(base64.b64decode(uri.partition(",")[2]))


def test_large_matrices_are_averaged_in_blocks():
    values = np.arange(900.0 * 900).reshape(900, 900)
    small = pictures.shrink(values)
    assert small.shape == (300, 300)
    assert small[0, 0] == values[:3, :3].mean()


def test_a_contour_runs_where_a_mask_ends_and_nowhere_else():
    affine = np.diag([2.0, 2, 2, 1])
    ball = np.linalg.norm(np.indices((40, 40, 40)) - 19.5, axis=0)
    grey = pictures.to_grey((ball < 18).astype(float))
    strip = pictures.draw_mosaic(grey, ball < 18, affine, contours={"#ff0000": ball < 9})["strips"][0]
    shown = np.asarray(Image.open(_bytes(strip["contours"])).convert("RGBA")).astype(int)
    drawn = shown[..., 3] > 128
    assert (shown[drawn][:, 0] > 200).all()
    assert (shown[drawn][:, 1:3] < 60).all()
    joined, _ = pictures._joined(
        ball, [(2, int(i)) for i in np.rint(2 + 35 * np.linspace(0.14, 0.92, 8))], [slice(0, 40)] * 3
    )
    height = shown.shape[0] / joined.shape[0]
    distance = joined[(np.argwhere(drawn) / height).astype(int)[:, 0], (np.argwhere(drawn) / height).astype(int)[:, 1]]
    assert np.abs(distance - 9).max() < 2


def test_the_template_covers_itself():
    template = pictures._template_brain()
    path = pictures._background()
    assert template.shape == path.shape
    assert 1500 < (template > 0).sum() * 8 / 1000 < 2100


def test_long_runs_keep_their_largest_displacement():
    displaced = np.full(5000, 0.1)
    displaced[0], displaced[2503] = np.nan, 4.0
    drawn = pictures.draw_displacement(displaced, 0.5)
    heights = [float(p.split(",")[1]) for p in drawn["points"].split()]
    assert len(heights) < 800
    assert min(heights) == 18
