"""A FLAIR follows the T1w, and needs one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_dl import derivatives
from bids_dl.errors import DataError
from bids_dl.preparations import flair
from bids_dl.records import Scan


def test_moved_head_with_another_contrast_lands_on_the_template(planted: Any, anatomy: Scan, tmp_path: Path) -> None:
    other = planted.template.csf.values * 3 + planted.template.gm.values * 2 + planted.template.wm.values
    scan = planted.scan(planted.place(500 * other, (6, -5, 4)), tmp_path, "anat", "FLAIR")
    derivatives.write_description(tmp_path / "out", {"bids": tmp_path})
    done = flair.prepare(scan, anatomy, tmp_path / "out", resolution_mm=4)
    inside = ndimage.binary_erosion(planted.template.mask.values > 0)
    assert np.corrcoef(np.asarray(nib.load(done.path).dataobj)[inside], other[inside])[0, 1] > 0.85
    assert (done.prepared, done.kind) == (True, "flair")


def test_it_follows_the_t1w_of_fmriprep_into_its_space(planted: Any, tmp_path: Path) -> None:
    scan = planted.scan(planted.place(500 * planted.template.wm.values, (6, -5, 4)), tmp_path, "anat", "FLAIR")
    derivatives.write_description(tmp_path / "out", {"bids": tmp_path})
    done = flair.prepare(scan, planted.fmriprep(tmp_path / "fmriprep"), tmp_path / "out", resolution_mm=4)
    assert (done.entities["space"], done.kind) == ("MNI152NLin2009cAsym", "flair")


def test_without_a_t1w_it_is_refused(planted: Any, tmp_path: Path) -> None:
    scan = planted.scan(planted.head(), tmp_path, "anat", "FLAIR")
    with pytest.raises(DataError, match="sub-01_FLAIR needs a T1w"):
        flair.prepare(scan, None, tmp_path)
