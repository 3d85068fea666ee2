"""Connectomes in which no edge differs between classes."""

import numpy as np
import pandas as pd
from scipy.linalg import hadamard

from bids_dl.layers import Connectome
from bids_dl.records import Block, Cohort, Target


def cohort(edges, y, **entities):
    people = pd.DataFrame({"participant_id": [f"sub-{i:03d}" for i in range(len(y))]})
    block = Block(edges.astype(np.float32), ("edge",), entities=entities)
    return Cohort(people, {"edges": block}, Target("target", y.astype(float), ("a", "b")))


def moved(edges, order):
    """Give the regions another order: the edges of the matrix whose rows and columns are moved."""
    connectome = Connectome(edges.shape[1])
    matrix = connectome(edges)[:, order][:, :, order]
    row, column = np.triu_indices(connectome.n, 1)
    return matrix[:, row, column]


def product_of_two_edges(n=360, n_edges=10, seed=0):
    """Two edges are both above or both below their mean in one class, else one above and one below."""
    edges = np.random.default_rng(seed).normal(size=(n, n_edges))
    return cohort(edges, edges[:, 0] * edges[:, 1] > 0)


def product_of_two_parts(n=400, n_regions=12, shift=1.0, seed=0):
    """Two sets of edges are both up or both down in one class, else one up and one down: no edge differs in its mean."""
    generator = np.random.default_rng(seed)
    first, second = generator.choice([-1, 1], (2, n))
    edges = generator.normal(size=(n, n_regions * (n_regions - 1) // 2)).astype(np.float32)
    row, column = np.triu_indices(n_regions, 1)
    edges[:, (row < 4) & (column < 4)] += shift * first[:, None]
    edges[:, (row >= 8) & (column >= 8)] += shift * second[:, None]
    return cohort(edges, first * second > 0)


def one_module_or_two(n=300, n_regions=32, seed=0):
    """One module of 21 regions or two of 15, 210 edges each way, wherever they lie: no edge differs in its mean."""
    generator = np.random.default_rng(seed)
    y, edges = generator.permutation(np.arange(n) % 2), []
    row, column = np.triu_indices(n_regions, 1)
    for one in y:
        member = np.zeros(n_regions, int)
        member[:30] = [1] * 15 + [2] * 15 if one else [1] * 21 + [0] * 9
        member = generator.permutation(member)
        inside = (member[row] == member[column]) & (member[row] > 0)
        edges.append(inside + generator.normal(0, 0.5, len(row)))
    return cohort(np.array(edges), y)


def ratios_of_eigenvalues(n=360, seed=0):
    """Whether two eigenvalues' product is above or below a third one's square; each varies widely."""
    generator = np.random.default_rng(seed)
    y = np.arange(n) % 2.0
    axes = hadamard(8) / np.sqrt(8)  # they leave every region the same variance
    common, apart = 0.3 * generator.normal(size=n), 1.7 * generator.normal(size=n)
    logs = 0.05 * generator.normal(size=(n, 8))
    logs[:, 1] += common + apart + 0.3 * (y - 0.5)
    logs[:, 2] += common - apart + 0.3 * (y - 0.5)
    logs[:, 3] += common
    matrices = np.einsum("ik,pk,jk->pij", axes, np.exp(logs), axes)
    edges = matrices[:, *np.triu_indices(8, 1)] / matrices[:, 0, 0][:, None]
    return cohort(np.arctanh(edges.clip(-0.999, 0.999)), y, stat="correlation")
