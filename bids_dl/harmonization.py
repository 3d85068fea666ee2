"""What a harmonizer has learned: for each site how far its values lie off, and how much wider they spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bids_dl.errors import DataError, UsageError
from bids_dl.records import Array

TOLERANCE, MOST_STEPS = 1e-4, 200
SAME = 1e-5
"""Part of the longest axis of sites and covariates below which another is rounding: columns that tell the same."""
MOST_PEERS = 2000
"""Values that stand for all when no distribution is assumed."""
POLICIES = ("pooled", "refuse", "adapt")
"""For sites without training participants: leave their values, refuse them, or learn from their unlabelled rows."""


@dataclass(frozen=True)
class Harmonization:
    """Location and spread of each site's values, flattened, beside what protected covariates explain.

    ``centre`` is (value,), ``slopes`` (covariate, value), ``covariate_mean`` (covariate,), ``covariates`` their columns
    among the confounds, ``shift`` and ``spread`` (site, value), ``known`` (site,): whether there is something to apply.
    """

    centre: Array
    slopes: Array
    covariate_mean: Array
    covariates: NDArray[np.intp]
    shift: Array
    spread: Array
    known: NDArray[np.bool_]
    refuses: bool = False
    by_value: ClassVar[bool] = True
    """Whether a value can be harmonised without the participant's others."""

    def apply(self, values: Array, given: Array, columns: slice = slice(None)) -> Array:
        """Bring rows to the location and spread of all sites together; missing values stay missing.

        Parameters
        ----------
        values
            (participant, …), or with ``columns`` a range of the flattened values.
        given
            (participant, confound + site): the confounds, then 1 in the column of a participant's site.

        Raises
        ------
        DataError
            If a participant's site is not known, and such sites are refused.
        """
        explained = self.explained(given, columns)
        left = np.asarray(values, np.float32).reshape(len(values), -1) - explained
        for row, site in enumerate(self._sites(given)):
            if site >= 0:
                left[row] -= self.shift[site, columns]
                left[row] /= self.spread[site, columns]
        left += explained
        return left.reshape(np.shape(values))

    def explained(self, given: Array, columns: slice = slice(None)) -> Array:
        """Return what protected covariates explain, with the mean over all sites, (participant, value) in float32."""
        covariates = centred(given[:, self.covariates], self.covariate_mean)
        found: Array = covariates.astype(np.float32) @ self.slopes[:, columns].astype(np.float32, copy=False)
        found += self.centre[columns]
        return found

    def refused(self, given: Array) -> NDArray[np.bool_]:
        """Tell which rows are refused, as their site is not known."""
        return np.asarray(self.refuses & ~self._member(given).any(axis=1))

    def _member(self, given: Array) -> Array:
        """Return the columns of the sites that are known, (participant, site)."""
        return np.asarray(np.nan_to_num(given[:, -len(self.known) :]) * self.known)

    def _sites(self, given: Array) -> NDArray[np.intp]:
        """Find each row's site, -1 for one that is not known."""
        member = self._member(given)
        found = np.where(member.any(axis=1), member.argmax(axis=1), -1)
        if n_refused := int(self.refused(given).sum()):
            raise DataError(
                f"{n_refused} participants are from a site without training participants, which this harmonisation "
                "refuses; choose unseen = 'pooled' or 'adapt'."
            )
        return found


@dataclass(frozen=True)
class Moved(Harmonization):
    """Sites made alike value by value, and then moved by a small network that sees components of all values.

    ``axes`` (component, value) are orthonormal, of residuals in units of ``unit`` (value,); ``size`` (component,) is their
    deviation. In these units a participant of site s at z moves by ``mix[s].T @ z`` + ``out`` tanh(``into`` [z, s] +
    ``into_bias``) + ``out_bias``; somebody of an unknown site does not move.
    """

    unit: Array = field(kw_only=True)
    axes: Array = field(kw_only=True)
    size: Array = field(kw_only=True)
    mix: Array = field(kw_only=True)
    into: Array = field(kw_only=True)
    into_bias: Array = field(kw_only=True)
    out: Array = field(kw_only=True)
    out_bias: Array = field(kw_only=True)
    by_value: ClassVar[bool] = False

    def apply(self, values: Array, given: Array, columns: slice = slice(None)) -> Array:
        """Harmonise rows, (participant, …); missing values stay missing.

        Raises
        ------
        DataError
            If a participant's site is not known, and such sites are refused.
        ValueError
            If the rows are a range of the values: where a participant is moved to depends on all of them.
        """
        if columns != slice(None):
            raise ValueError("this harmonisation needs all values of a participant; read whole rows.")
        level = super().apply(values, given).reshape(len(values), -1)
        left = np.nan_to_num(level - self.explained(given)) / self.unit
        step = self._step(left @ self.axes.T / self.size, self._sites(given))
        moved = level + (step * self.size) @ self.axes * self.unit
        return np.asarray(moved, np.float32).reshape(np.shape(values))

    def _step(self, z: Array, sites: NDArray[np.intp]) -> Array:
        """Say how far to move, in units of the components, (participant, component)."""
        member = np.eye(len(self.known), dtype=np.float32)[sites]
        bent = np.tanh(np.hstack([z, member]) @ self.into.T + self.into_bias) @ self.out.T + self.out_bias
        turned = np.einsum("ij,ijk->ik", z, self.mix[sites])
        return np.where((sites >= 0)[:, None], bent + turned, 0)


def covariates_of(given: Array, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> tuple[Array, Array]:
    """Centre the protected covariates by their mean over some rows; returns (participant, covariate) and the mean."""
    chosen = given[:, columns]
    known = np.isfinite(chosen[rows])
    mean = np.where(known, chosen[rows], 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return centred(chosen, mean), mean


def centred(values: Array, mean: Array) -> Array:
    """Take the mean off; a missing value is the mean."""
    return np.where(np.isfinite(values), values - mean, 0)


def ranges(n_values: int, n_rows: int, n_bytes: int = 2**23) -> list[slice]:
    """Cut values into ranges that stay small for all rows: large ones cost more to allocate than to compute with."""
    step = max(1, n_bytes // (8 * max(1, n_rows)))
    return [slice(start, min(n_values, start + step)) for start in range(0, n_values, step)]


@dataclass(frozen=True)
class Estimate:
    """Ordinary least squares of values on sites and protected covariates.

    ``centre`` is the mean over all rows, (value,); ``shift`` (site, value) each site's deviation from it; ``variance``
    (value,) of the residuals, ``within`` (site, value) theirs in each site; ``n`` (site,) the rows, ``counts`` (site, value)
    those that hold the value: missing ones say nothing.
    """

    centre: Array
    slopes: Array
    shift: Array
    variance: Array
    within: Array
    n: NDArray[np.intp]
    counts: Array
    covariates: NDArray[np.intp]
    covariate_mean: Array


def estimate(
    values: Array, rows: NDArray[np.intp], given: Array, n_sites: int, labels: Sequence[str], protect: Sequence[str],
    unseen: str,
) -> Estimate:  # fmt: skip
    """Estimate what sites and protected covariates explain, a range of values at a time.

    Parameters
    ----------
    values, rows, given, n_sites, labels, protect, unseen
        As the harmonizers' ``fit`` takes them.

    Raises
    ------
    UsageError
        If the policy for unseen sites is none of those there are.
    """
    if unseen not in POLICIES:
        raise UsageError(f"harmonizers: unseen is '{unseen}'; choose from {', '.join(POLICIES)}.")
    columns = np.array([k for k, name in enumerate(labels) if name.partition("=")[0] in protect], np.intp)
    covariates, mean = covariates_of(given, rows, columns)
    member = np.nan_to_num(given[:, given.shape[1] - n_sites :])
    rows = rows[member[rows].any(axis=1)]
    flat = values.reshape(len(values), -1)
    made = _empty(flat.shape[1], n_sites, columns, mean, member[rows].sum(axis=0).astype(np.intp))
    for part in ranges(flat.shape[1], len(rows)):
        _estimate_range(np.asarray(flat[rows, part], np.float64), member[rows], covariates[rows], made, part)
    if unseen == "adapt":
        _adapt(flat, rows, member, covariates, made)
    return made


def _empty(n_values: int, n_sites: int, columns: NDArray[np.intp], mean: Array, n: NDArray[np.intp]) -> Estimate:
    centre, variance = np.zeros(n_values, np.float32), np.zeros(n_values, np.float32)
    slopes = np.zeros((len(columns), n_values), np.float32)
    shift, within = np.zeros((n_sites, n_values), np.float32), np.zeros((n_sites, n_values), np.float32)
    counts = np.zeros((n_sites, n_values), np.float32)
    return Estimate(centre, slopes, shift, variance, within, n, counts, columns, mean)


def _estimate_range(x: Array, member: Array, covariates: Array, made: Estimate, part: slice) -> None:
    """Regress one range of values and write it into the estimate."""
    known = np.isfinite(x)
    holed = ~known.all(axis=0)
    design = np.hstack([member, covariates])
    counts = member.T @ known if holed.any() else np.broadcast_to(made.n[:, None], (len(made.n), x.shape[1]))
    n_sites, total = member.shape[1], np.maximum(counts.sum(axis=0), 1)
    mean = np.where(known, x, 0).sum(axis=0) / total  # covariates that sites tell share effects with them, not the mean
    x = np.where(known, x - mean, 0)
    far = np.concatenate([np.zeros(n_sites), made.covariate_mean])
    size = np.sqrt((design**2).mean(axis=0) + far**2)  # with the mean: what does not vary stays small
    size[size == 0] = 1
    weights = np.linalg.pinv(design / size, rcond=SAME) @ x / size[:, None]  # (site + covariate, value)
    if holed.any():
        weights[:, holed] = _least_squares(design / size, x[:, holed], known[:, holed]) / size[:, None]
    off = (counts * weights[:n_sites]).sum(axis=0) / total
    made.counts[:, part] = counts
    made.centre[part] = mean + off
    made.shift[:, part] = np.where(counts > 0, weights[:n_sites] - off, 0)
    made.slopes[:, part] = weights[n_sites:]
    squares = (x - design @ weights) ** 2
    squares[~known] = 0
    made.variance[part] = squares.sum(axis=0) / total
    made.within[:, part] = (member.T @ squares) / np.maximum(counts - 1, 1)


def _least_squares(design: Array, x: Array, known: NDArray[np.bool_]) -> Array:
    """Regress each value on the rows that hold it, (column, value); values that the same rows hold are solved together."""
    patterns, which = np.unique(known, axis=1, return_inverse=True)
    products = (design[:, :, None] * design[:, None]).reshape(len(x), -1)
    gram = (patterns.T.astype(float) @ products).reshape(-1, *2 * design.shape[1:])
    solved = np.linalg.pinv(gram, rcond=SAME**2, hermitian=True)
    return np.asarray(np.einsum("vij,jv->iv", solved[which.reshape(-1)], design.T @ x))


def _adapt(flat: Array, rows: NDArray[np.intp], member: Array, covariates: Array, made: Estimate) -> None:
    """Learn the location and spread of sites without training rows from their unlabelled ones."""
    for site in np.flatnonzero(made.n == 0):
        mine = np.flatnonzero(member[:, site] > 0)
        if not len(mine):
            continue
        made.n[site] = len(mine)
        for part in ranges(flat.shape[1], len(mine)):
            explained = made.centre[part] + covariates[mine] @ made.slopes[:, part]
            left = np.asarray(flat[mine, part], np.float64) - explained
            known = np.isfinite(left)
            counts = known.sum(axis=0)
            made.counts[site, part] = counts
            made.shift[site, part] = np.where(known, left, 0).sum(axis=0) / np.maximum(counts, 1)
            squares = np.where(known, left - made.shift[site, part], 0) ** 2
            made.within[site, part] = squares.sum(axis=0) / np.maximum(counts - 1, 1)


def locations(found: Estimate, *, parametric: bool = True, shrink: bool = True) -> tuple[Array, Array]:
    """Estimate each site's shift and spread, (site, value) each, by empirical Bayes where they are shrunk [1]_.

    References
    ----------
    .. [1] Johnson, Li and Rabinovic (2007), Biostatistics 8(1). doi:10.1093/biostatistics/kxj037
    """
    varies = found.variance > 0
    deviation = np.sqrt(np.where(varies, found.variance, 1))
    shift, spread = np.zeros_like(found.shift), np.ones_like(found.shift)
    for site in np.flatnonzero(found.n > 0):
        location, scale = _site(found, site, deviation, varies, parametric=parametric, shrink=shrink)
        shift[site, varies] = location * deviation[varies]
        spread[site, varies] = np.sqrt(scale)
    return shift, spread


def _site(
    found: Estimate, site: int, deviation: Array, varies: NDArray[np.bool_], *, parametric: bool, shrink: bool
) -> tuple[Array, Array]:
    """Estimate one site's location and variance in units of the residuals' deviation, (value,) each."""
    n = found.counts[site][varies].astype(np.float64)
    location = (found.shift[site] / deviation)[varies].astype(np.float64)
    variance = (found.within[site] / deviation**2)[varies].astype(np.float64)
    variance[n < 2] = 1  # one participant has no spread
    if not shrink or len(location) < 2:
        return location, np.maximum(variance, 1e-6)
    return (_parametric if parametric else _empirical)(location, variance, n)


def _parametric(location: Array, variance: Array, n: Array) -> tuple[Array, Array]:
    """Alternate between the posterior means of location and variance until neither moves; ``n`` is (value,)."""
    seen = location[_or_all(n > 0)]
    mean, spread = seen.mean(), seen.var(ddof=1)
    shape, rate = _inverse_gamma(variance[_or_all(n > 1)])
    new, scale = location, variance
    for _ in range(MOST_STEPS):
        before = new, scale
        new = (n * spread * location + scale * mean) / (n * spread + scale)
        squares = np.maximum(n - 1, 0) * variance + n * (location - new) ** 2
        scale = (rate + squares / 2) / (n / 2 + shape - 1)
        if max(np.abs(new - before[0]).max(), np.abs(scale - before[1]).max()) < TOLERANCE:
            break
    return new, np.maximum(scale, 1e-6)


def _or_all(at: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Number the values that a prior can be learned from: those of ``at``, or all where these are fewer than two."""
    return np.flatnonzero(at) if at.sum() > 1 else np.arange(len(at))


def _inverse_gamma(variance: Array) -> tuple[float, float]:
    """Find shape and rate by the moments of the variances over values."""
    mean, spread = float(variance.mean()), float(variance.var(ddof=1))
    if spread <= 1e-12:
        return 1e6, 1e6 * mean
    return (2 * spread + mean**2) / spread, (mean * spread + mean**3) / spread


def _empirical(location: Array, variance: Array, n: Array) -> tuple[Array, Array]:
    """Weigh other values' estimates by how likely they make this value's rows, of which there are ``n`` (value,)."""
    known = _or_all(n > 1)
    peers = known[np.linspace(0, len(known) - 1, min(MOST_PEERS, len(known))).astype(int)]
    theirs, scales = location[peers], np.maximum(variance[peers], 1e-6)
    new, scale = np.empty_like(location), np.empty_like(variance)
    for start in range(0, len(location), 1024):
        mine = slice(start, start + 1024)
        own = n[mine, None]
        squares = np.maximum(own - 1, 0) * variance[mine, None] + own * (location[mine, None] - theirs) ** 2
        likely = -own / 2 * np.log(scales) - squares / (2 * scales)
        weight = np.exp(likely - likely.max(axis=1, keepdims=True))
        weight *= np.arange(len(location))[mine, None] != peers  # a value is no peer of itself
        weight /= np.maximum(weight.sum(axis=1, keepdims=True), 1e-300)
        new[mine], scale[mine] = weight @ theirs, weight @ scales
    return new, np.maximum(scale, 1e-6)
