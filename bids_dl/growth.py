"""What more participants would bring: scores over sizes of the training set, and where an inverse power law leads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bids_dl import metrics
from bids_dl.metrics import LEVEL, LOWER_IS_BETTER, Predictions
from bids_dl.records import Array

FARTHER = (2, 4)
"""How many times the participants the curve is followed to."""
FEWEST_SIZES = 3
TOLERATED = 0.05
"""Part of the measured gain by which a fitted law may miss a score that was measured."""
RATES = np.linspace(0.05, 2, 196)
"""Exponents that are tried: theory says 0.5 to 1, and less where a problem is hard."""


@dataclass(frozen=True)
class PowerLaw:
    """Inverse power laws a - b n^-c of scores of which more is better; each array is (draw,)."""

    a: Array
    b: Array
    c: Array

    def at(self, n: float) -> Array:
        """Follow each law to a size of the training set, (draw,)."""
        return np.asarray(self.a - self.b * n**-self.c)


def power_law(n: Array, values: Array, best: float) -> PowerLaw:
    """Fit a - b n^-c by weighted least squares [1]_, the larger sets weighing more [2]_.

    Parameters
    ----------
    n
        (size,): training participants, ascending.
    values
        (draw, size): scores, more is better.
    best
        What no model can pass: a is not above it; b is not below 0.

    References
    ----------
    .. [1] Cortes et al. (1994), Advances in Neural Information Processing Systems 6, 327-334.
    .. [2] Figueroa et al. (2012), BMC Medical Informatics and Decision Making 12:8. doi:10.1186/1472-6947-12-8
    """
    weights = np.arange(1, len(n) + 1) / len(n)
    x = (n / n[-1]) ** -RATES[:, None]  # (rate, size)
    mean_x, mean_y = x @ weights / weights.sum(), values @ weights / weights.sum()
    centred = x - mean_x[:, None]
    slope = ((values - mean_y[:, None]) * weights) @ centred.T / (centred**2 @ weights)  # (draw, rate)
    b = np.maximum(-slope, 0)
    a = mean_y[:, None] + b * mean_x
    bound = np.maximum(((best - values) * weights) @ x.T / (x**2 @ weights), 0)
    b, a = np.where(a > best, bound, b), np.minimum(a, best)
    errors = ((values[:, None] - a[..., None] + b[..., None] * x) ** 2) @ weights
    chosen = (np.arange(len(values)), errors.argmin(axis=1))
    rate = RATES[chosen[1]]
    return PowerLaw(a[chosen], b[chosen] * n[-1] ** rate, rate)


def curve(parts: Mapping[int, Predictions], metric: str, *, n_draws: int, seed: int) -> list[dict[str, Any]]:
    """Score every size on the same test participants, and extrapolate where the curve allows it.

    Participants are drawn with replacement, the same for all sizes. The fitted models are held fixed: the intervals say
    nothing of other training subsets.

    Parameters
    ----------
    parts
        Training participants → held-out predictions.
    metric
        Which score.

    Returns
    -------
    list
        Rows with ``kind`` (measured, extrapolated, not extrapolated), ``n_train``, ``value``, ``ci_low``, ``ci_high``,
        ``note``: why it was not extrapolated.
    """
    sizes = np.array(sorted(parts), float)
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    found = np.stack([metrics.score(parts[int(n)])[metric][0] for n in sizes])
    drawn = metrics.drawn([parts[int(n)] for n in sizes], metric, n=n_draws, seed=seed)
    rows = [_row("measured", n, v, drawn[:, k]) for k, (n, v) in enumerate(zip(sizes, found, strict=True))]
    refused = _refused(sizes, sign * found, sign * drawn)
    if not refused:
        law, laws = (power_law(sizes, values, _best(metric)) for values in (sign * found[None], sign * drawn))
        refused = _missed(sizes, sign * found, sign * drawn, law, laws)
    if refused:
        nothing = {"n_train": np.nan, "value": np.nan, "ci_low": np.nan, "ci_high": np.nan}
        return [*rows, {"kind": "not extrapolated", **nothing, "note": refused}]
    farther = [times * sizes[-1] for times in FARTHER]
    return rows + [_row("extrapolated", n, sign * law.at(n)[0], sign * laws.at(n)) for n in farther]


def _best(metric: str) -> float:
    """What no model can pass, in scores of which more is better."""
    return 0.0 if metric in LOWER_IS_BETTER else 1.0


def _missed(sizes: Array, values: Array, drawn: Array, law: PowerLaw, laws: PowerLaw) -> str:
    """Say which measured score (more is better) the fitted law misses, beyond its uncertainty; empty where none."""
    gain = abs(values[-1] - values[0])
    for k, n in enumerate(sizes):
        off, offs = float(law.at(n)[0] - values[k]), laws.at(n) - drawn[:, k]
        low, high = np.percentile(offs, [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2])
        if abs(off) > TOLERATED * gain and low * high > 0:
            return (
                f"the scores follow no inverse power law: it gives {abs(values[k] + off):.3g} at {n:.0f} training participants, "
                f"where {abs(values[k]):.3g} was measured."
            )
    return ""


def _row(kind: str, n: float, value: float, drawn: Array) -> dict[str, Any]:
    low, high = np.percentile(drawn, [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2]) if len(drawn) else (np.nan, np.nan)
    return {
        "kind": kind,
        "n_train": int(n),
        "value": float(value),
        "ci_low": float(low),
        "ci_high": float(high),
        "note": "",
    }


def _refused(sizes: Array, values: Array, drawn: Array) -> str:
    """Say why a curve (more is better) cannot be followed farther; empty where it can."""
    if len(sizes) < FEWEST_SIZES:
        return f"{len(sizes)} sizes of the training set were measured; at least {FEWEST_SIZES} show a curve."
    if not np.isfinite(values).all() or len(drawn) < 10:
        return "the score is undefined for one of the sizes."
    gain = np.percentile(drawn[:, -1] - drawn[:, 0], 100 * (1 - LEVEL) / 2)
    if gain <= 0:
        return (
            f"from {sizes[0]:.0f} to {sizes[-1]:.0f} training participants the score does not rise beyond its uncertainty: "
            "a flat or noisy curve leads nowhere."
        )
    return ""


def told(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write a curve in a line: the sizes that were measured, then those it leads to, or why it leads nowhere."""
    measured = ", ".join(f"{r['value']:.3f} at {r['n_train']}" for r in rows if r["kind"] == "measured")
    farther = ", ".join(
        f"{r['value']:.3f} [{r['ci_low']:.3f}, {r['ci_high']:.3f}] at {r['n_train']}"
        for r in rows
        if r["kind"] == "extrapolated"
    )
    return f"{measured}; " + (f"extrapolated {farther}" if farther else f"not extrapolated: {rows[-1]['note']}")
