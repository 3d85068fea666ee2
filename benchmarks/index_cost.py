"""index_cost.py: the time to find one participant's scans in a dataset of 50 and in one of 5,000 participants."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np

from bids_dl import config, query

FILES = (
    "anat/{s}_space-MNI152NLin2009cAsym_desc-preproc_T1w.nii.gz",
    "func/{s}_task-rest_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz",
    "func/{s}_task-rest_desc-confounds_timeseries.tsv",
    "func/{s}_task-rest_space-MNI152NLin2009cAsym_atlas-AAL_stat-mean_timeseries.tsv",
)


def make(folder: Path, n: int) -> Path:
    folder.mkdir()
    (folder / "dataset_description.json").write_text(
        json.dumps(
            {"Name": "index", "BIDSVersion": "1.10.0", "DatasetType": "derivative", "GeneratedBy": [{"Name": "x"}]}
        )
    )
    for number in range(n):
        for name in FILES:
            path = folder / f"sub-{number:05d}" / name.format(s=f"sub-{number:05d}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return folder


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        folders = {n: make(Path(root) / str(n), n) for n in (50, 5000)}
        settings = {n: config.from_mapping({"bids_dir": str(f), "output_dir": root, "analysis_level": "participant",
                    "select": {"participant_label": ["00007"]}}) for n, f in folders.items()}  # fmt: skip
        query.find(settings[50])
        seconds: dict[int, list[float]] = {50: [], 5000: []}
        for _ in range(7):
            for n, one in settings.items():
                started = time.perf_counter()
                found = query.find(one)
                seconds[n].append(time.perf_counter() - started)
                assert len(found["sub-00007"]) == 2, found
    middle = {n: float(np.median(v)) for n, v in seconds.items()}
    print(f"one of 50: {middle[50]:.3f} s; one of 5,000: {middle[5000]:.3f} s; ratio {middle[5000] / middle[50]:.2f}")


if __name__ == "__main__":
    main()
