"""regions_against_nilearn.py: regional series of one 4-D image, ours against nilearn's NiftiLabelsMasker, in one run.

The image is made here (99×117×95×200, int16, gzip), 0 outside of the regions as after fMRIPrep, with a table of confounds; both regress
out nilearn's strategy "simple", detrend, keep 0.01-0.1 Hz and z-score. The three are timed in turns, since other work on a machine
comes and goes. Prints median and least seconds, their ratios, the smallest correlation over regions, and what reading alone takes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn.interfaces.fmriprep import load_confounds_strategy
from nilearn.maskers import NiftiLabelsMasker

from bids_dl import query, regions
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
    write_confounds(path.with_name("sub-01_task-rest_desc-confounds_timeseries.tsv"), n_volumes, generator)
    return path


def write_confounds(path: Path, n_volumes: int, generator: np.random.Generator) -> None:
    table = {}
    for name in [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"] + ["csf", "white_matter"]:
        values = generator.standard_normal(n_volumes).cumsum()
        change = np.append(np.nan, np.diff(values))
        ends = {"": values, "_derivative1": change, "_power2": values**2, "_derivative1_power2": change**2}
        table |= {name + end: column for end, column in ends.items()}
    table |= {f"cosine{k:02d}": np.cos(np.pi * (k + 1) * (np.arange(n_volumes) + 0.5) / n_volumes) for k in range(6)}
    pd.DataFrame(table).to_csv(path, sep="\t", index=False, na_rep="n/a")
    path.with_suffix(".json").write_text("{}")


def timed_in_turns(functions: dict[str, Callable[[], object]], repeats: int) -> tuple[dict, dict]:
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    values: dict[str, object] = {}
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            values[name] = function()
            seconds[name].append(time.perf_counter() - started)
    return seconds, values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-volumes", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = make(Path(folder), options.n_volumes)
        table = path.with_name("sub-01_task-rest_desc-confounds_timeseries.tsv")
        scan = Scan(path, query.entities(path) | {"datatype": "func"}, Path(folder), confounds=table)
        atlas = regions.load_atlas("aal").path

        def nilearns() -> np.ndarray:
            columns, sample = load_confounds_strategy(str(path), denoise_strategy="simple")
            masker = NiftiLabelsMasker(
                atlas, detrend=True, standardize="zscore_sample", low_pass=0.1, high_pass=0.01, t_r=PERIOD,
                resampling_target="data",
            )  # fmt: skip
            return masker.fit_transform(str(path), confounds=columns, sample_mask=sample)

        seconds, values = timed_in_turns(
            {
                "reading": lambda: nib.load(path).get_fdata(dtype=np.float32),
                "reading unscaled": lambda: nib.load(path).dataobj.get_unscaled(),
                "bids_dl": lambda: timeseries.extract(scan, min_coverage=0.0).values,
                "nilearn": nilearns,
            },
            options.repeats,
        )
    report(seconds, values["bids_dl"], values["nilearn"])


def report(seconds: dict[str, list[float]], mine: np.ndarray, theirs: np.ndarray) -> None:
    median = {name: float(np.median(taken)) for name, taken in seconds.items()}
    least = {name: min(taken) for name, taken in seconds.items()}
    for name in seconds:
        print(f"{name}: median {median[name]:.2f} s, least {least[name]:.2f} s")
    for peer in ("nilearn", "reading", "reading unscaled"):
        print(
            f"{peer} / bids_dl: medians {median[peer] / median['bids_dl']:.2f}, least {least[peer] / least['bids_dl']:.2f}"
        )
    r = [np.corrcoef(mine[:, k], theirs[:, k])[0, 1] for k in range(min(mine.shape[1], theirs.shape[1]))]
    print(f"smallest r over {len(r)} regions {np.nanmin(r):.7f}")


if __name__ == "__main__":
    main()
