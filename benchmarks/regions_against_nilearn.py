"""regions_against_nilearn.py: regional series of one 4-D image, ours against nilearn's NiftiLabelsMasker, in one run.

The image is made here (99×117×95×200, int16, gzip), 0 outside of the regions as after fMRIPrep; both clean by detrending, 0.01-0.1 Hz and
z-scores. Prints seconds, their ratio, the smallest correlation over regions, and the time that reading alone takes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from nilearn.maskers import NiftiLabelsMasker

from bids_dl import regions
from bids_dl.features import timeseries
from bids_dl.records import Scan

SHAPE, PERIOD = (99, 117, 95), 2.0


def make(folder: Path, n_volumes: int) -> Path:
    generator = np.random.default_rng(0)
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = (-98, -134, -72)
    labels = regions.on_grid(regions.load_atlas("aal"), SHAPE, affine)
    signals = generator.standard_normal((labels.max() + 1, n_volumes)).cumsum(axis=1)
    data = np.empty((*SHAPE, n_volumes), np.int16, order="F")
    for t in range(n_volumes):
        values = 1000 + 5 * signals[labels, t] + generator.integers(-20, 20, SHAPE)
        data[..., t] = np.where(labels > 0, values, 0)
    image = nib.Nifti1Image(data, affine)
    image.header.set_zooms((2, 2, 2, PERIOD))
    path = folder / "sub-01_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
    nib.save(image, path)
    return path


def timed(function, repeats: int = 3) -> tuple[float, object]:
    best, value = np.inf, None
    for _ in range(repeats):
        started = time.perf_counter()
        value = function()
        best = min(best, time.perf_counter() - started)
    return best, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-volumes", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = make(Path(folder), options.n_volumes)
        atlas = regions.load_atlas("aal").path
        scan = Scan(path, {"sub": "01", "suffix": "bold", "datatype": "func"}, Path(folder))
        reading, _ = timed(lambda: nib.load(path).dataobj.get_unscaled())
        ours, feature = timed(lambda: timeseries.extract(scan, confounds="none", min_coverage=0.0))
        masker = NiftiLabelsMasker(
            atlas, detrend=True, standardize="zscore_sample", low_pass=0.1, high_pass=0.01, t_r=PERIOD, resampling_target="data"
        )  # fmt: skip
        theirs, series = timed(lambda: masker.fit_transform(str(path)))
    mine = feature.values
    common = min(mine.shape[1], series.shape[1])
    r = [np.corrcoef(mine[:, k], series[:, k])[0, 1] for k in range(common)]
    print(f"reading alone {reading:.2f} s; bids_dl {ours:.2f} s; nilearn {theirs:.2f} s")
    print(f"ratio nilearn / bids_dl {theirs / ours:.2f}; smallest r over {common} regions {np.nanmin(r):.7f}")


if __name__ == "__main__":
    main()
