"""Series and windows whose connectivity, or whose mean, has the same law in both classes: what happens over time tells.

Each patient's sequence is drawn like a control's and then turned round (in time, or in its sign). Lengths differ, and what is
missing at a sequence's end is NaN.
"""

import numpy as np
import pandas as pd

from bids_dl.records import Block, Cohort, Target

N = 360
CORNERS = np.array([[1.0, 0.0], [-0.5, np.sqrt(0.75)], [-0.5, -np.sqrt(0.75)]])
"""Three states whose mean is 0."""
OPPOSITE = np.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
"""One in the middle of the two others."""


def padded(sequences):
    found = np.full((len(sequences), max(map(len, sequences)), sequences[0].shape[1]), np.nan, np.float32)
    for row, one in zip(found, sequences, strict=True):
        row[: len(one)] = one
    return found


def cohort(values, y, dims=("time", "roi")):
    people = pd.DataFrame({"participant_id": [f"sub-{i:03d}" for i in range(len(y))]})
    return Cohort(people, {"sequence": Block(values, dims)}, Target("target", y, ("control", "patient")))


def connectivity(block):
    """Correlate every pair of regions: what a linear model usually takes of series."""
    first, second = np.triu_indices(block.shape[1], 1)
    edges = [np.corrcoef(one[~np.isnan(one).all(axis=1)].T)[first, second] for one in block.values]
    return Block(np.array(edges, np.float32), ("edge",))


def mean_window(block):
    """Average the windows: what a linear model usually takes of them."""
    return Block(np.nanmean(block.values, axis=1), ("edge",))


def standardised(series):
    return (series - series.mean(axis=0)) / series.std(axis=0)


def ordered_states(n=N, seed=0):
    """Three states that follow one another in a circle, and in the other direction in patients."""
    generator = np.random.default_rng(seed)
    y = np.arange(n) % 2.0
    patterns = np.linalg.qr(generator.normal(size=(8, 3)))[0].T * 3  # (state, roi)
    series = []
    for label in y:
        state = (np.arange(generator.integers(24, 33)) // 3 + generator.integers(3)) % 3
        one = standardised(patterns[state] + generator.normal(size=(len(state), 8)))
        series.append(one[::-1] if label else one)
    return cohort(padded(series), y)


def ordered_windows(n=N, seed=0):
    """The same states in windows of eight edges."""
    data = ordered_states(n, seed)
    return cohort(data.features["sequence"].values, data.target.values, ("window", "edge"))


def two_halves(n=N, seed=0):
    """One state in the first half and another in the second, in patients the other way round."""
    generator = np.random.default_rng(seed)
    y = np.arange(n) % 2.0
    patterns = np.linalg.qr(generator.normal(size=(8, 2)))[0].T * 3  # (state, roi)
    series = []
    for label in y:
        n_steps = generator.integers(24, 33)
        state = np.minimum(np.arange(n_steps) // (n_steps // 2), 1)
        one = standardised(patterns[state] + generator.normal(size=(n_steps, 8)))
        series.append(one[::-1] if label else one)
    return cohort(padded(series), y)


def leading_region(n=N, seed=0):
    """Region 1 follows region 0 a step later, in patients region 0 follows region 1."""
    generator = np.random.default_rng(seed)
    y = np.arange(n) % 2.0
    series = []
    for label in y:
        one = generator.normal(size=(generator.integers(24, 33), 4))
        one[1:, 1] = one[:-1, 0] + 0.3 * one[1:, 1]
        series.append(standardised(one[::-1] if label else one))
    return cohort(padded(series), y)


def bursts(n=N, seed=0):
    """Two of eight regions are quiet but for short bursts upwards, in patients downwards; six are Gaussian noise."""
    generator = np.random.default_rng(seed)
    y = np.arange(n) % 2.0
    series = []
    for label in y:
        one = generator.normal(size=(generator.integers(24, 33), 8))
        one[:, :2] = generator.exponential(size=(len(one), 2))
        series.append(standardised(-one if label else one))
    return cohort(padded(series), y)


def in_order(generator, label):
    """Each state for four windows, one after another: in patients the other way round."""
    state = (np.arange(generator.integers(9, 13) * 4) // 4 + generator.integers(3)) % 3
    return state[::-1] if label else state


def by_share(generator, label):
    """The state in the middle most of the time, in patients the two ends as often as one another."""
    n = generator.integers(18, 25)
    return generator.permutation(np.repeat(np.arange(3), (n // 3, n, n) if label else (3 * n, n // 3, n // 3)))


def visited(draw, corners, n=120, n_edges=10, seed=0):
    """Windows of participants who visit states, padded to the longest; and who was where, -1 in the padding."""
    generator = np.random.default_rng(seed)
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(n_edges, 2)))[0]
    y = np.arange(n) % 2.0
    states = [draw(generator, label) for label in y]
    truth = np.full((n, max(map(len, states))), -1)
    windows = []
    for row, state in enumerate(states):
        windows.append(4 * corners[state] @ axes.T + 0.5 * generator.normal(size=(len(state), n_edges)))
        truth[row, : len(state)] = state
    return padded(windows), truth, y


def visited_in_order(n=120, seed=0):
    """Three states visited in a circle, in patients the other way round; a participant's mean window is near 0."""
    windows, _, y = visited(in_order, CORNERS, n, seed=seed)
    return cohort(windows, y, ("window", "edge"))


def sources_with_a_past(lasting, n=40, n_steps=100, n_sources=4, n_regions=7, seed=0):
    """Sources that keep a part of what they were and add Laplacian surprises; and regions that mix them."""
    generator = np.random.default_rng(seed)
    source = generator.laplace(size=(n, n_steps, n_sources))
    for step in range(1, n_steps):
        source[:, step] += lasting * source[:, step - 1]
    series = source @ generator.normal(size=(n_sources, n_regions))
    series = series + 0.01 * generator.normal(size=(n, n_steps, n_regions))
    return source, ((series - series.mean(axis=(0, 1))) / series.std(axis=(0, 1))).astype(np.float32)
