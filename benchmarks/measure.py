"""Run a command and measure its wall time and the peak memory of its whole process tree."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Run:
    """What one command took."""

    seconds: float
    peak_gb: float
    code: int


def run(command: Sequence[str], *, every: float = 0.25) -> Run:
    """Run a command to its end; memory is the sum of the processes' proportional set sizes, so shared pages count once."""
    started = time.perf_counter()
    process = psutil.Popen(list(command), stdout=sys.stderr)
    peak = 0
    while True:
        try:
            code = process.wait(timeout=every)
            break
        except (psutil.TimeoutExpired, subprocess.TimeoutExpired):
            peak = max(peak, _memory(process))
    return Run(time.perf_counter() - started, peak / 1e9, code)


def _memory(process: psutil.Popen) -> int:
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            continue
    return total
