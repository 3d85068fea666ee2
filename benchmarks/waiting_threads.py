"""waiting_threads.py [--busy N] [--model M]: a training step on two threads, alone and beside busy programs, by how long threads wait.

A thread of GNU OpenMP that has no work asks for some 300,000 times before it sleeps, unless ``GOMP_SPINCOUNT`` says otherwise,
as bids_dl does. Prints CPU time and seconds of a step for both, and for one thread.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

SHAPES = {"lstm": (296, 392), "gru": (296, 392), "transformer": (296, 392), "gcn": (76636,), "cnn3d": (46, 55, 46)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--busy", type=int, default=5)
    parser.add_argument("--model", default="lstm", choices=list(SHAPES))
    parser.add_argument("--here", action="store_true", help="time the steps in this process")
    options = parser.parse_args()
    if options.here:
        print(step(options.model))
        return
    for n_busy in (0, options.busy):
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n_busy)]
        try:
            for threads, spins in ((2, ""), (2, "1000"), (1, "")):
                setting = {"OMP_NUM_THREADS": str(threads)} | ({"GOMP_SPINCOUNT": spins} if spins else {})
                given = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"} | setting
                command = [sys.executable, __file__, "--here", "--model", options.model]
                said = subprocess.run(command, env=given, capture_output=True, text=True, check=True).stdout.strip()
                print(f"{options.model}, {n_busy} busy programs, {setting}: {said}", flush=True)
        finally:
            for other in others:
                other.kill()


def step(model: str, n_steps: int = 8) -> str:
    """Time the mean training step of 16 participants."""
    import torch

    from bids_dl import zoo

    shape = SHAPES[model]
    x, y = torch.randn(16, *shape), torch.randint(0, 2, (16,)).float()
    net = zoo.load("models", model)([shape], 1)

    def train() -> None:
        torch.nn.functional.binary_cross_entropy_with_logits(net(x)[:, 0], y).backward()

    train()
    cpu, clock = time.process_time(), time.perf_counter()
    for _ in range(n_steps):
        train()
    return f"{(time.process_time() - cpu) / n_steps:.3f} CPU s, {(time.perf_counter() - clock) / n_steps:.3f} s"


if __name__ == "__main__":
    main()
