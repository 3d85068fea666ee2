"""How many threads the linear algebra of numpy and scipy takes: one, unless what it works on is large enough for more."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

LARGE = 2**20
"""Values from which several threads are worth it. Below, they wait for one another longer than they work, and where others use the
cores too, the eigenvalues of 400 regions took two threads 90 times the CPU time of one."""


def for_values(n: int) -> AbstractContextManager[Any]:
    """Take one thread of BLAS for fewer than `LARGE` values, and as many as OpenMP has (``--omp-nthreads``) for more."""
    many = int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))
    limited: AbstractContextManager[Any] = _blas().limit(limits=many if n >= LARGE else 1)
    return limited


@cache
def _blas() -> Any:
    """Find the BLAS libraries, which are loaded by now; looking for them takes as long as a small fit."""
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController().select(user_api="blas")
