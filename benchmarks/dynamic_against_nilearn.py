"""dynamic_against_nilearn.py: sliding-window correlations, ours against a loop over nilearn's ConnectivityMeasure, in one run.

392 regions, 200 volumes, rectangular windows of 30 volumes, step 1. nilearn's default covariance is shrunk (Ledoit-Wolf), so that its
correlations are not Pearson's; with scikit-learn's EmpiricalCovariance they are, and ours must equal those to 1e-6. All are timed.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from nilearn.connectome import ConnectivityMeasure
from sklearn.covariance import EmpiricalCovariance

from bids_dl.features import dynamic_connectivity as dynamic

ESTIMATORS = {
    "Pearson (EmpiricalCovariance)": EmpiricalCovariance,
    "Pearson, without the precision that it computes and drops": lambda: EmpiricalCovariance(store_precision=False),
    "shrunk (nilearn's default; other numbers)": lambda: None,
}


def nilearn_loop(series: np.ndarray, window: int, make) -> np.ndarray:
    found = []
    for start in range(len(series) - window + 1):
        measure = ConnectivityMeasure(kind="correlation", cov_estimator=make())
        matrix = measure.fit_transform([series[start : start + window]])[0]
        found.append(matrix[np.triu_indices(series.shape[1], 1)])
    return np.array(found)


def timed(function, repeats: int) -> tuple[float, np.ndarray]:
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        value = function()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds)), value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-regions", type=int, default=392)
    parser.add_argument("--n-volumes", type=int, default=200)
    parser.add_argument("--window", type=int, default=30)
    options = parser.parse_args()
    series = np.random.default_rng(0).standard_normal((options.n_volumes, options.n_regions))
    weight = dynamic.weights(options.window, 0.0)
    ours, mine = timed(lambda: dynamic.edges(series, weight, 1), repeats=9)
    print(f"bids_dl {ours * 1000:.1f} ms for {len(mine)} windows of {mine.shape[1]} edges")
    for name, make in ESTIMATORS.items():
        theirs, other = timed(lambda make=make: nilearn_loop(series, options.window, make), repeats=1)
        print(
            f"{name}: nilearn {theirs:.2f} s; ratio {theirs / ours:.0f}; largest difference {abs(mine - other).max():.1e}"
        )


if __name__ == "__main__":
    main()
