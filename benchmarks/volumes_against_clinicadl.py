"""volumes_against_clinicadl.py --clinicadl-python PYTHON: one epoch of the same 3-D CNN, ours and ClinicaDL's trainer, in one run.

Both train on the same random volumes, batches of 8, on the CPU with one thread and full precision, and look at a fifth
of them for validation. Ours reads a memory-mapped array and its seconds include learning the normalisation; ClinicaDL
reads the tensors that its own `to_tensors` has written, which is its fast way and is not timed. Seconds are those of the
call that trains, without imports; peak memory is the process's, libraries included. PYTHON has clinicadl 2.0.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CHANNELS, WIDTH, DROPOUT, POOL = (8, 16), 32, 0.5, 2


def make(folder: Path, n: int, grid: tuple[int, ...]) -> None:
    import nibabel as nib
    import pandas as pd

    generator = np.random.default_rng(0)
    values = generator.normal(size=(n, *grid)).astype(np.float32)
    np.save(folder / "volumes.npy", values)
    bids = folder / "bids"
    bids.mkdir()
    (bids / "dataset_description.json").write_text(
        json.dumps({"Name": "volumes", "BIDSVersion": "1.10.0", "DatasetType": "raw"})
    )
    rows = [{"participant_id": f"sub-{i:03d}", "session_id": "ses-M000", "label": float(i % 2)} for i in range(n)]
    pd.DataFrame(rows).to_csv(bids / "metadata.tsv", sep="\t", index=False)
    for row, one in zip(rows, values, strict=True):
        stem = f"{row['participant_id']}_{row['session_id']}"
        path = bids / row["participant_id"] / row["session_id"] / "anat" / f"{stem}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(one, np.eye(4)), path)


def ours(folder: Path) -> dict[str, float]:
    import lightning_fabric  # noqa: F401
    import pandas as pd

    import bids_dl.models.cnn3d  # noqa: F401
    from bids_dl import training
    from bids_dl.records import Block, Cohort, Split, Target
    from bids_dl.settings import Settings

    values = np.load(folder / "volumes.npy", mmap_mode="r")
    n = len(values)
    people = pd.DataFrame({"participant_id": [f"sub-{i:03d}" for i in range(n)]})
    data = Cohort(people, {"volume": Block(values, ())}, Target("label", np.arange(n) % 2.0, ("0", "1")))
    definition = training.define("cnn3d", [values.shape[1:]], 1, {"channels": CHANNELS, "width": WIDTH, "pool": POOL})
    rows = np.arange(n)
    split = Split(rows[n // 5 :], rows[: n // 5], rows[:0], "one")
    settings = Settings(n_epochs=1, batch_size=8, n_members=1, device="cpu")
    started = time.perf_counter()
    fitted = training.train(definition, data, split, ["volume"], settings)
    return measured(started, fitted.module)


def theirs(folder: Path) -> dict[str, float]:
    from clinicadl.data.datasets import BidsDataset
    from clinicadl.io.bids import BidsFileType
    from clinicadl.models import SupervisedModel
    from clinicadl.optim import OptimizationConfig
    from clinicadl.optim.optimizers.config import AdamConfig
    from clinicadl.split.split import Split
    from clinicadl.train import ComputationalConfig, Trainer
    from torch import nn

    table = folder / "bids" / "metadata.tsv"
    kind = BidsFileType(data_type="anat", suffix="T1w")
    everyone = BidsDataset(folder / "bids", file_type=kind, data=table, columns=["label"])
    tensors = everyone.to_tensors(conversion_name="plain")
    n = len(tensors.df)
    split = Split(0, tensors.subset(tensors.df[n // 5 :]), tensors.subset(tensors.df[: n // 5]))
    split.build_train_loader(batch_size=8, shuffle=True, pin_memory=False)
    split.build_val_loader(batch_size=64, shuffle=False, pin_memory=False)
    network = same_network(tuple(np.load(folder / "volumes.npy", mmap_mode="r").shape[1:]))
    model = SupervisedModel(network, nn.BCEWithLogitsLoss(), AdamConfig(lr=1e-3), label_key="label")
    trainer = Trainer(folder / "maps", model, optimization=OptimizationConfig(num_epochs=1))
    computational = ComputationalConfig(gpu=False, amp=False, channels_last=False, seed=0)
    started = time.perf_counter()
    trainer.train(split, computational)
    return measured(started, network)


def same_network(grid: tuple[int, ...]):
    """The layers of `bids_dl.models.cnn3d`, for an environment without bids_dl."""
    import torch
    from torch import nn

    layers: list[nn.Module] = [nn.AvgPool3d(POOL)]
    for before, after in zip([1, *CHANNELS], CHANNELS, strict=False):
        layers += [nn.Conv3d(before, after, 3, stride=2, padding=1), nn.ReLU()]
    n_cells = nn.Sequential(*layers)(torch.zeros(1, 1, *grid)).numel()
    drop, squeeze = nn.Dropout(DROPOUT), nn.Linear(n_cells, WIDTH)
    return nn.Sequential(*layers, nn.Flatten(), drop, squeeze, nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(WIDTH, 1))


def measured(started: float, module) -> dict[str, float]:
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"seconds": seconds, "peak_gb": peak, "parameters": sum(p.numel() for p in module.parameters())}


def run(python: str, who: str, folder: Path) -> dict[str, float]:
    command = [python, str(Path(__file__).resolve()), "--worker", who, "--folder", str(folder)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clinicadl-python")
    parser.add_argument("--n-volumes", type=int, default=80)
    parser.add_argument("--grid", type=int, nargs=3, default=(46, 55, 46))
    parser.add_argument("--worker", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps({"ours": ours, "theirs": theirs}[options.worker](options.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.n_volumes, tuple(options.grid))
        found = {"bids_dl": run(sys.executable, "ours", Path(folder))}
        if options.clinicadl_python:
            found["ClinicaDL"] = run(options.clinicadl_python, "theirs", Path(folder))
    for name, one in found.items():
        print(f"{name}: {one['seconds']:.1f} s an epoch, peak {one['peak_gb']:.2f} GB, {one['parameters']:.0f} weights")
    if len(found) == 2:
        one, other = found.values()
        print(
            f"ratio ours / theirs: seconds {one['seconds'] / other['seconds']:.2f}, "
            f"memory {one['peak_gb'] / other['peak_gb']:.2f}"
        )


if __name__ == "__main__":
    main()
