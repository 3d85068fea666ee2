"""A T2w follows the T1w, and needs one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from bids_dl import cli, derivatives, registration
from bids_dl.errors import DataError
from bids_dl.preparations import t2w
from bids_dl.records import Scan


def test_moved_head_with_another_contrast_lands_on_the_template(planted: Any, anatomy: Scan, tmp_path: Path) -> None:
    other = planted.template.csf.values * 3 + planted.template.gm.values * 2 + planted.template.wm.values
    scan = planted.scan(planted.place(500 * other, (6, -5, 4)), tmp_path, "anat", "T2w")
    derivatives.write_description(tmp_path / "out", {"bids": tmp_path})
    done = t2w.prepare(scan, anatomy, tmp_path / "out", resolution_mm=4)
    inside = ndimage.binary_erosion(planted.template.mask.values > 0)
    assert np.corrcoef(np.asarray(nib.load(done.path).dataobj)[inside], other[inside])[0, 1] > 0.85
    assert (done.prepared, done.kind) == (True, "t2w")


def test_it_follows_the_t1w_of_fmriprep_into_its_space(planted: Any, tmp_path: Path) -> None:
    other = planted.template.csf.values * 3 + planted.template.gm.values * 2 + planted.template.wm.values
    scan = planted.scan(planted.place(500 * other, (6, -5, 4)), tmp_path, "anat", "T2w")
    derivatives.write_description(tmp_path / "out", {"bids": tmp_path})
    done = t2w.prepare(scan, planted.fmriprep(tmp_path / "fmriprep"), tmp_path / "out", resolution_mm=4)
    assert "space-MNI152NLin2009cAsym" in done.path.name
    moved, template = registration.read(done.path), planted.template.mask
    there, held = (registration.resample(template.like(v), moved).values for v in (other, template.values))
    inside = ndimage.binary_erosion(held > 0.9)
    assert np.corrcoef(moved.values[inside], there[inside])[0, 1] > 0.85


def test_raw_t2w_beside_fmriprep_becomes_a_feature(planted: Any, tmp_path: Path) -> None:
    root, prep, out = tmp_path / "data", tmp_path / "data" / "derivatives" / "fmriprep", tmp_path / "out"
    planted.scan(planted.place(500 * planted.template.wm.values, (6, -5, 4)), root, "anat", "T2w")
    planted.fmriprep(prep)
    for folder, more in ((root, {}), (prep, {"GeneratedBy": [{"Name": "fMRIPrep"}]})):
        text = json.dumps({"Name": folder.name, "BIDSVersion": "1.10.0", **more})
        (folder / "dataset_description.json").write_text(text)
    command = [str(root), str(out), "participant", "--features", "t2w", "--nprocs", "1", "--skip-bids-validation"]
    assert cli.main(command) == 0
    assert [p.name for p in out.rglob("*_desc-brain_T2w.nii.gz")] == [
        "sub-01_space-MNI152NLin2009cAsym_res-4_desc-brain_T2w.nii.gz"
    ]


@pytest.mark.parametrize("lacking", ["head", "composite"])
def test_a_t1w_in_standard_space_alone_leads_nowhere(planted: Any, tmp_path: Path, lacking: str) -> None:
    scan = planted.scan(planted.head(), tmp_path, "anat", "T2w")
    anatomy = planted.fmriprep(tmp_path / "fmriprep")
    rest = {role: path for role, path in anatomy.related.items() if role != lacking}
    with pytest.raises(DataError, match="sub-01_T2w needs a T1w of the same participant.*fMRIPrep's"):
        t2w.prepare(scan, replace(anatomy, related=rest), tmp_path)


def test_damaged_transform_of_fmriprep_is_named(planted: Any, tmp_path: Path) -> None:
    scan = planted.scan(planted.head(), tmp_path, "anat", "T2w")
    anatomy = planted.fmriprep(tmp_path / "fmriprep")
    anatomy.related["composite"].write_bytes(b"")
    with pytest.raises(DataError, match=r"from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm\.h5 ends early"):
        t2w.prepare(scan, anatomy, tmp_path, resolution_mm=4)


def test_without_a_t1w_it_is_refused(planted: Any, tmp_path: Path) -> None:
    scan = planted.scan(planted.head(), tmp_path, "anat", "T2w")
    with pytest.raises(DataError, match="sub-01_T2w needs a T1w"):
        t2w.prepare(scan, None, tmp_path)
