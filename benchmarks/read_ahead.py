"""Does it pay to read a batch of volumes while the one before is trained on? One epoch, with and without, in turn.

Volumes are read from a memory-mapped file, more of them than stay in memory. ``--wait`` puts a pause in the place of the
network: the time in which a GPU works and the CPU has nothing to do.

    python benchmarks/read_ahead.py /tmp/volumes.npy
    python benchmarks/read_ahead.py /tmp/volumes.npy --wait 0.008
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from bids_dl import loop, training
from bids_dl.records import Block, Cohort, Split, Target
from bids_dl.settings import Settings

N, EDGE, ROUNDS = 200, 64, 7


def volumes(path: Path) -> np.ndarray:
    if not path.exists():
        made = np.lib.format.open_memmap(path, "w+", np.float32, (N, EDGE, EDGE, EDGE))
        generator = np.random.default_rng(0)
        for row in range(N):
            made[row] = generator.normal(size=made.shape[1:])
    return np.load(path, mmap_mode="r")


def cohort(path: Path) -> tuple[Cohort, Split]:
    people = pd.DataFrame({"participant_id": [f"sub-{row:03d}" for row in range(N)]})
    y, rows = np.arange(N) % 2.0, np.random.default_rng(1).permutation(N)
    split = Split(np.sort(rows[N // 5 :]), np.sort(rows[: N // 5]), rows[:0], "one")
    return Cohort(people, {"volume": Block(volumes(path), ())}, Target("target", y, ("a", "b"))), split


class Switched(loop.Loop):
    """The loop, with reading ahead switched off where that is asked for, and a network that may only wait."""

    on, wait = True, 0.0

    def __init__(self, *given: Any, reads_ahead: bool = False, **more: Any) -> None:
        super().__init__(*given, reads_ahead=reads_ahead and self.on, **more)

    def _training_loss(self, inputs: tuple[torch.Tensor, ...], y: torch.Tensor) -> torch.Tensor:
        if not self.wait:
            return super()._training_loss(inputs, y)
        time.sleep(self.wait)
        return sum((p.sum() * 0 for p in self.bare.parameters()), torch.zeros(()))

    def evaluate(self, rows: Any, y: torch.Tensor) -> float:
        """Judge the network, where there is one."""
        return 0.0 if self.wait else super().evaluate(rows, y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="where the volumes lie, or are written (210 MB)")
    parser.add_argument("--wait", type=float, default=0.0, help="seconds a batch; 0 trains the network")
    given = parser.parse_args()
    data, split = cohort(given.file)
    training.member.Loop, Switched.wait = Switched, given.wait
    definition = training.define("cnn3d", [data.features["volume"].shape], 1, {})
    settings = Settings(n_epochs=1, n_members=1, batch_size=8, device="cpu")
    prepared = training.prepare(data, split, ["volume"], settings)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(-1, ROUNDS):  # the first round is not counted
        for Switched.on in (True, False) if number % 2 else (False, True):
            started = time.perf_counter()
            training.train(definition, data, split, ["volume"], settings, prepared)
            seconds[Switched.on].append(time.perf_counter() - started)
    ahead, plain = (np.array(seconds[on][1:]) for on in (True, False))
    for name, found in (("read ahead", ahead), ("one after the other", plain)):
        print(f"{name}: {np.median(found):.2f} s (from {found.min():.2f} to {found.max():.2f})")
    print(f"ratio of medians {np.median(plain) / np.median(ahead):.2f}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
