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
