import numpy as np

from bids_dl.harmonizers import none


def test_nothing_is_learned():
    assert none.fit(np.zeros((4, 2)), np.arange(4), np.eye(4), 4) is None
