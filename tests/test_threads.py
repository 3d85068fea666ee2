"""One thread of BLAS for what is small, those of the run for what is large."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from bids_dl import logistic, ridge, span, threads


def n_threads() -> set[int]:
    return {found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"}


@pytest.mark.parametrize(
    ("n_values", "n_cores", "expected"), [(threads.LARGE - 1, 3, 1), (threads.LARGE, 3, 3), (threads.LARGE, 1, 1)]
)
def test_what_is_large_takes_the_threads_of_the_run_but_no_more_than_there_are_cores(
    monkeypatch: pytest.MonkeyPatch, n_values: int, n_cores: int, expected: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(n_cores)))
    with threadpool_limits(2, user_api="blas"):
        with threads.for_values(n_values):
            inside = n_threads()
        assert (inside, n_threads()) == ({expected}, {2})


def test_solvers_that_go_step_by_step_are_large_later(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, x = [], np.random.default_rng(0).normal(size=(60, 20))
    monkeypatch.setattr(threads, "for_values", lambda n: asked.append(n) or nullcontext())
    logistic.path(x, (x[:, 0] > 0).astype(int), [1.0], n_outputs=1)
    span._axes(span.Kernel(x @ x.T, np.arange(60)), np.arange(60))
    assert asked == [x.size // threads.VECTORS, 60**2 // threads.VECTORS]


def test_any_number_of_threads_gives_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(300, 200))
    few = ridge.of_values(x, x[:, 0], [1.0])[0]
    monkeypatch.setattr(threads, "LARGE", 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    np.testing.assert_allclose(ridge.of_values(x, x[:, 0], [1.0])[0], few, atol=1e-9)
