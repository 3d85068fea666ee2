"""How many threads the linear algebra of numpy and scipy takes: one, unless what it works on is large enough for more."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

LARGE = 2**20
"""Values from which several threads are worth it. Below, they wait for one another longer than they work, and where others use the
cores too, the eigenvalues of 400 regions took two threads 90 times the CPU time of one."""


VECTORS = 16
"""How many times more they have to be where each step multiplies them by one vector: it reads a value for each product."""


def for_vectors(n: int) -> AbstractContextManager[Any]:
    """Take threads as `for_values` does, for work step by step: solvers by gradients, and eigenvalues.

    Beside other programs, two threads took 28 times the CPU time of one for a logistic path over 1,600 rows and coordinates,
    4 times for the eigenvalues of as many rows, and as long as one from 8,000 on.
    """
    return for_values(n // VECTORS)


def for_values(n: int) -> AbstractContextManager[Any]:
    """Take one thread of BLAS for fewer than `LARGE` values, and as many as OpenMP has (``--omp-nthreads``) for more.

    Never more than there are cores: three threads on two idle cores had not finished after a minute what two did in 3 s.
    """
    cores = len(os.sched_getaffinity(0))
    many = min(cores, int(os.environ.get("OMP_NUM_THREADS", cores)))
    limited: AbstractContextManager[Any] = _blas().limit(limits=many if n >= LARGE else 1)
    return limited


@cache
def _blas() -> Any:
    """Find the BLAS libraries, which are loaded by now; looking for them takes as long as a small fit."""
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController().select(user_api="blas")
