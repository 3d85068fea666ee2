"""Volumes and maps in which a patient has one bright cube at a random place: no voxel differs between groups, one filter tells."""

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

from bids_dl.records import Block, Cohort, Target


def cohort(n=150, size=24, *, edge=5, step=1, brighter=2.5, seed=0, scattered=False):
    """Noise; a cube of a patient's voxels is brighter, and each voxel of a control's cube lies at a place of its own.

    So every voxel is as bright on average in both, also where cubes at random places overlap most, in the middle.
    Where voxels are ``scattered``, everyone has as many bright ones anywhere and controls have no cube, whole or not;
    what a cube adds to each voxel on average is taken from every patient: the cube alone tells.

    Returns the cohort and, for each participant, the lesion's first corner (a control's is -1).
    """
    generator = np.random.default_rng(seed)
    y = generator.permutation(np.arange(n) % 2).astype(float)
    values = generator.normal(size=(n, size, size, size)).astype(np.float32)
    corners, inside = np.full((n, 3), -1), np.indices((edge,) * 3).reshape(3, -1).T  # (voxel, axis)
    for row, ill in enumerate(y):
        places = step * generator.integers(0, (size - edge) // step + 1, (len(inside), 3))
        if ill:
            corners[row] = places = places[0]
        if ill or not scattered:
            np.add.at(values[row], tuple((places + inside).T), brighter)
        if scattered:
            values[row].reshape(-1)[generator.choice(size**3, edge**3, replace=False)] += brighter
            values[row] -= ill * brighter * coverage(size, edge, step)
    people = pd.DataFrame({"participant_id": [f"sub-{i:03d}" for i in range(n)]})
    return Cohort(people, {"volume": Block(values, ())}, Target("target", y, ("control", "patient"))), corners


def coverage(size, edge, step):
    """How often a cube at a random place covers each voxel, (x, y, z)."""
    voxel, starts = np.arange(size), step * np.arange((size - edge) // step + 1)[:, None]
    along = ((starts <= voxel) & (voxel < starts + edge)).mean(axis=0)
    return along[:, None, None] * along[:, None] * along


def anywhere(seed=0):
    """A lesion at any place; controls have as many scattered bright voxels."""
    return cohort(seed=seed)[0]


def among_scattered(seed=0):
    """A lesion at any place; everyone has scattered bright voxels, and the same mean at each voxel."""
    return cohort(seed=seed, scattered=True)[0]


def in_a_cube(seed=0):
    """A fainter lesion that fills one of 27 cubes of 8 voxels."""
    return cohort(edge=8, step=8, brighter=1.5, seed=seed)[0]


def either_way(n=150, size=16, edge=6, shift=1.0, seed=0):
    """One known region is brighter in half of the patients and darker in the others; in controls it is as usual."""
    generator = np.random.default_rng(seed)
    y = generator.permutation(np.arange(n) % 2).astype(float)
    values = generator.normal(size=(n, size, size, size)).astype(np.float32)
    sign = generator.permutation(np.arange((y == 1).sum()) % 2) * 2 - 1
    values[y == 1, 3 : 3 + edge, 3 : 3 + edge, 3 : 3 + edge] += shift * sign[:, None, None, None]
    people = pd.DataFrame({"participant_id": [f"sub-{i:03d}" for i in range(n)]})
    return Cohort(people, {"volume": Block(values, ())}, Target("target", y, ("control", "patient")))


def patchy(generator, n, size=10):
    """Smooth volumes of few strong patches, deviation 1."""
    found = np.stack([gaussian_filter(generator.laplace(size=(size,) * 3) ** 3, 1.0) for _ in range(n)])
    return found / found.std(axis=(1, 2, 3), keepdims=True)


def of_one_network(n=160, size=12, edge=4, seed=0):
    """Each patient's second map has one bright cube at a random place, each control's as many bright voxels, scattered."""
    generator = np.random.default_rng(seed)
    y = generator.permutation(np.arange(n) % 2).astype(float)
    base = 2 * patchy(generator, 3, size)
    maps = (base + generator.normal(size=(n, 3, size, size, size))).astype(np.float32)
    for row, ill in enumerate(y):
        if ill:
            # what leaves on one side comes back on the other: no voxel is likelier
            cube = ((corner + np.arange(edge)) % size for corner in generator.integers(0, size, 3))
            maps[row, 1][np.ix_(*cube)] += 2.5
        else:
            maps[row, 1].reshape(-1)[generator.choice(size**3, edge**3, replace=False)] += 2.5
    people = pd.DataFrame({"participant_id": [f"sub-{i:03d}" for i in range(n)]})
    block = Block(maps, ("network", "x", "y", "z"), ("one", "two", "three"))
    return Cohort(people, {"maps": block}, Target("target", y, ("control", "patient")))


PLACES = (slice(1, 5),) * 3, (slice(7, 11),) * 3
"""Where the cube of a moving map may be."""


def moving(n=160, size=12, brighter=2.5, seed=0):
    """The second map has a bright cube here in some windows and there in as many; a control's is half as bright in both places.

    So a participant's mean map has the same law in both classes. There are 4, 6 or 8 windows, padded to 8, in any order.

    Returns the cohort and where each patient's cube was, (participant, window): 0 or 1, -1 for controls and padding.
    """
    generator = np.random.default_rng(seed)
    y = generator.permutation(np.arange(n) % 2).astype(float)
    base = 2 * patchy(generator, 3, size)
    maps, where = np.full((n, 8, 3, size, size, size), np.nan, np.float32), np.full((n, 8), -1)
    for row, ill in enumerate(y):
        there = generator.permutation(np.arange(2 * generator.integers(2, 5)) % 2)
        maps[row, : len(there)] = base + generator.normal(size=(len(there), *base.shape))
        for window, place in enumerate(there):
            for number, cube in enumerate(PLACES):
                maps[(row, window, 1, *cube)] += brighter * (number == place if ill else 0.5)
        where[row, : len(there)] = there if ill else -1
    people = pd.DataFrame({"participant_id": [f"sub-{i:03d}" for i in range(n)]})
    block = Block(maps, ("window", "network", "x", "y", "z"), ("one", "two", "three"))
    return Cohort(people, {"maps": block}, Target("target", y, ("control", "patient"))), where


def that_move(seed=0):
    """Maps of windows alone."""
    return moving(seed=seed)[0]


def mean_maps(block):
    """Average the windows: what a linear model usually takes of them, as of the whole run."""
    return Block(np.nanmean(block.values, axis=1), block.dims[1:], block.labels)
