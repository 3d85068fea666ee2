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
    """What one command took; ``own_gb`` leaves out the pages of files, which the system takes back when it needs them."""

    seconds: float
    peak_gb: float
    code: int
    own_gb: float = 0.0


def run(command: Sequence[str], *, every: float = 0.25) -> Run:
    """Run a command to its end; memory is the sum of the processes' proportional set sizes, so shared pages count once."""
    started = time.perf_counter()
    process = psutil.Popen(list(command), stdout=sys.stderr)
    peak, own = 0, 0
    while True:
        try:
            code = process.wait(timeout=every)
            break
        except (psutil.TimeoutExpired, subprocess.TimeoutExpired):
            total, anonymous = _memory(process)
            peak, own = max(peak, total), max(own, anonymous)
    return Run(time.perf_counter() - started, peak / 1e9, code, own / 1e9)


def _memory(process: psutil.Popen) -> tuple[int, int]:
    """Sum over a process and its children: all pages, and those that no file backs."""
    total, anonymous = 0, 0
    for one in [process, *process.children(recursive=True)]:
        try:
            found = one.memory_full_info()
            total += found.pss
            anonymous += max(0, found.rss - found.shared)
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            continue
    return total, anonymous
