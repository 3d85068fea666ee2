"""Occlusion: how far the output falls when one region is set to the training mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bids_dl import cohort as cohorts
from bids_dl import regions, training
from bids_dl.layers import n_regions
from bids_dl.records import Array, Attribution, Block, Cohort, FittedModel, Split

ROWS_BYTES = 2**23
"""Occluded rows that are run at once: far more do not stay in a processor's cache, far fewer read large weights too often."""


def explain(
    fitted: FittedModel, cohort: Cohort, split: Split, *, atlas: str = "aal", max_participants: int = 12
) -> Attribution:  # fmt: skip
    """Replace one region after another by its training mean and note the change of the output [1]_.

    A region of a volume is an atlas region, of several maps that region in all of them; a region of a connectome is all
    edges that touch it, in all windows where there are several; of a table, each column stands for itself; of a sequence,
    each region's whole course does.

    Parameters
    ----------
    fitted
        Any fitted model, fused or not.
    cohort
        Its features.
    split
        The test participants are explained.
    atlas
        Regions of volumes, as for ``timeseries``.
    max_participants
        At most this many test participants, evenly spread.

    Returns
    -------
    Attribution
        Each voxel has its region's change, each edge the mean of its two regions', each step that of the whole course. Not
        additive.

    References
    ----------
    .. [1] Zeiler and Fergus (2014), ECCV. doi:10.1007/978-3-319-10590-1_53
    """
    rows = split.tested(max_participants)
    ids = tuple(cohort.participants["participant_id"].iloc[rows])
    if not len(rows):
        nobody = {name: np.zeros((0, *cohort.features[name].shape)) for name in fitted.inputs}
        return Attribution(nobody, ids, "occlusion", np.zeros(0), np.zeros(0), additive=False)
    inputs = training.inputs_of(fitted, cohort, rows)
    before, at_mean, chosen = training.chosen_output(fitted, inputs)
    with torch.no_grad():
        values = {
            name: _changes(
                fitted, cohort.features[name], inputs, position, torch.from_numpy(before), chosen[:, None], atlas
            )
            for position, name in enumerate(fitted.inputs)
        }
    return Attribution(values, ids, "occlusion", before, at_mean, additive=False)


def _changes(
    fitted: FittedModel, block: Block, inputs: tuple[Tensor, ...], position: int, before: Tensor, chosen: Tensor, atlas: str
) -> Array:  # fmt: skip
    """Occlude each region of one input and give its change to its voxels, edges or column."""
    shape = inputs[position].shape
    n_values = int(np.prod(shape[1:]))
    total, count = np.zeros((shape[0], n_values), np.float32), np.zeros(n_values, np.float32)
    members = region_members(block, atlas)
    run: Any = fitted.module.varying(position, *inputs) if len(inputs) > 1 else fitted.module  # type: ignore[operator]
    step = max(1, ROWS_BYTES // (4 * total.size))
    for start in range(0, len(members), step):
        some = members[start : start + step]
        after = _outputs_without(run, inputs[position], some, chosen)  # (region, participant)
        for region, out in zip(some, after, strict=True):
            total[:, region] += torch.nan_to_num(before - out).numpy()[:, None]
            count[region] += 1
    mean: Array = total / np.maximum(count, 1)
    mean[torch.isnan(inputs[position].flatten(1)).all(dim=1).numpy()] = 0  # an absent input moved nothing
    return mean.reshape(shape)


def _outputs_without(
    run: Callable[[Tensor], Tensor], x: Tensor, members: list[NDArray[np.intp]], chosen: Tensor
) -> Tensor:
    """Run the model with each of several regions blanked, (region, participant); an absent input stays absent."""
    n, n_members = len(chosen), len(members)
    blanked = x.flatten(1).repeat(n_members, 1)
    for number, region in enumerate(members):
        rows = slice(number * n, (number + 1) * n)
        blanked[rows, region] = blanked[rows, region] * 0
    out: Tensor = run(blanked.reshape(n_members * n, *x.shape[1:])).gather(1, chosen.repeat(n_members, 1))[:, 0]
    return out.reshape(n_members, n)


def region_members(block: Block, atlas: str) -> list[NDArray[np.intp]]:
    """List the flattened positions that belong to each region of a feature."""
    if block.affine is not None:
        chosen = regions.load_atlas(atlas)
        labels = regions.on_grid(chosen, block.shape[-3:], block.affine).ravel()
        ends = np.cumsum(np.bincount(labels, minlength=len(chosen.labels) + 1))
        voxels = np.split(np.argsort(labels, kind="stable"), ends[:-1])[1:]  # without those of no region
        maps = np.arange(int(np.prod(block.shape[:-3])))[:, None] * labels.size
        return [(maps + one).ravel() for one in voxels if len(one)]
    if block.dims == ("edge",):
        first, second = cohorts.edge_index(len(block.labels), directed=block.is_directed)
        return [np.flatnonzero((first == r) | (second == r)) for r in range(len(block.labels))]
    if block.dims == ("window", "edge"):
        n_windows, n_edges = block.shape
        first, second = cohorts.edge_index(n_regions(n_edges))
        touching = [np.flatnonzero((first == r) | (second == r)) for r in range(second[-1] + 1)]
        return [(np.arange(n_windows)[:, None] * n_edges + edges).ravel() for edges in touching]
    if block.is_sequence:
        n_steps, n_values = block.shape
        return [np.arange(n_steps) * n_values + value for value in range(n_values)]
    return [np.array([n]) for n in range(int(np.prod(block.shape)))]
