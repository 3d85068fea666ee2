"""Arrays become PNG and SVG: slices, matrices, carpets, histograms."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bids_dl.written import Json

Array = NDArray[Any]


DIVERGING = ("#2166ac", "#67a9cf", "#d1e5f0", "#f7f7f7", "#fddbc7", "#ef8a62", "#b2182b")
SEQUENTIAL = ("#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725")
GREY = ("#101418", "#f4f5f6")
HEAT = ("#8c1d04", "#dd5a05", "#fcae1e", "#fcf3a6")
N_SHADES = 25
"""Shades of a picture: what the eye tells apart in noise, at half the bytes of 256."""
MISSING, BLANK = N_SHADES, N_SHADES + 1


def _ramp(anchors: Sequence[str], n: int) -> Array:
    """Interpolate hex colours: (n, 3) in uint8."""
    colours = np.array([[int(a[i : i + 2], 16) for i in (1, 3, 5)] for a in anchors], float)
    at = np.linspace(0, len(anchors) - 1, n)
    return np.stack([np.interp(at, np.arange(len(anchors)), c) for c in colours.T], axis=1).astype(np.uint8)


def _png(indices: Array, palette: Array) -> str:
    """Encode an image of palette indices; Huffman coding only, as noise does not repeat."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(indices, np.uint8))
    image.putpalette(palette.astype(np.uint8).tobytes())
    return _uri(image, "png", compress_type=2 if indices.size > 4096 else 0)


def _uri(image: Any, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def shrink(values: Array, side: int = 400) -> Array:
    """Average blocks of rows and columns until neither side is longer than ``side``."""
    for axis in (0, 1):
        n = values.shape[axis]
        starts = np.arange(0, n, -(-n // side))
        if len(starts) < n:
            width = np.diff([*starts, n])
            values = np.add.reduceat(values, starts, axis) / (width[:, None] if axis == 0 else width)
    return values


def draw_values(values: Array, colours: Sequence[str], low: float, high: float, *, diagonal: bool = False) -> Json:
    """Draw a matrix as PNG; missing values are grey and, if asked, the diagonal is blank."""
    shown = shrink(values)
    known = np.isfinite(shown)
    scaled = (np.where(known, shown, low) - low) * ((N_SHADES - 1) / max(high - low, 1e-12))
    indices = np.where(known, np.clip(np.rint(scaled), 0, N_SHADES - 1), MISSING)
    if diagonal:
        np.fill_diagonal(indices, BLANK)
    palette = np.vstack([_ramp(colours, N_SHADES), [[176, 182, 190], [255, 255, 255]]])
    uri = _png(indices, palette)
    rows, columns = values.shape
    return {
        "uri": uri,
        "low": low,
        "high": high,
        "stops": colours,
        "rows": rows,
        "columns": columns,
        "key": zlib.crc32(uri.encode()),
    }


def draw_matrix(values: Array) -> Json:
    """Draw a connectome or another table: diverging about 0 if it has negative values, else sequential."""
    square = len(values) == values.shape[1]
    edges = values[np.triu_indices(len(values), 1)] if square else values.ravel()
    edges = edges[np.isfinite(edges)]
    if edges.size == 0:
        return draw_values(values, GREY, 0, 1, diagonal=square)
    if edges.min() < 0:
        limit = float(np.percentile(np.abs(edges[:: max(1, edges.size // 20000)]), 98))
        return draw_values(values, DIVERGING, -limit, limit, diagonal=square)
    return draw_values(values, SEQUENTIAL, float(edges.min()), float(np.percentile(edges, 99)), diagonal=square)


def draw_histogram(edges: Array, n_bins: int = 40) -> Json:
    """Count edge values in bars of an SVG 292 wide and 110 high."""
    low, high = np.percentile(edges[:: max(1, edges.size // 20000)], [0.2, 99.8])
    high = high if high > low else low + 1
    counts = np.bincount(
        ((edges - low) * (n_bins / (high - low))).clip(-1, n_bins).astype(int) + 1, minlength=n_bins + 2
    )[1:-1]
    step = 292 / n_bins
    heights = np.round(110 * counts / counts.max(initial=1), 1)
    zero = round(4 + 292 * float(-low / (high - low)), 1) if low < 0 < high else None
    bars = [(round(4 + i * step, 1), float(h)) for i, h in enumerate(heights)]
    return {"bars": bars, "width": round(step - 0.8, 1), "low": float(low), "high": float(high), "zero": zero}


def standardized(values: Array) -> Array:
    """Give each column mean 0 and standard deviation 1 over its finite values; missing ones stay NaN."""
    known = np.isfinite(values)
    n = np.maximum(known.sum(axis=0), 1)
    centred = values - np.where(known, values, 0).sum(axis=0) / n
    spread = np.sqrt((np.where(known, centred, 0) ** 2).sum(axis=0) / n)
    scaled: Array = centred / np.where(spread > 0, spread, 1)
    return scaled


def draw_change(z: Array) -> str:
    """Draw the root mean square change from each volume to the next as points of an SVG line."""
    steps = np.diff(z, axis=0)
    known = np.isfinite(steps)
    change = np.sqrt((np.where(known, steps, 0) ** 2).sum(axis=1) / np.maximum(known.sum(axis=1), 1))
    return _points(change, len(change) + 1, max(float(change.max(initial=0)), 1e-12))


def draw_displacement(displaced: Array, limit: float) -> Json:
    """Draw the framewise displacement (time,), in mm, as points of an SVG line, with the height of a limit."""
    top = max(float(np.nanmax(displaced, initial=0)), 1.2 * limit)
    line = _points(np.nan_to_num(displaced[1:]), len(displaced), top)
    return {"points": line, "limit": limit, "limit_y": round(66 - 48 * limit / top, 1), "top": top}


def _points(values: Array, n: int, top: float) -> str:
    """Lay values that begin at the second of ``n`` volumes over the carpet; where they are many, the largest stay."""
    step = max(1, len(values) // 700)
    values = np.maximum.reduceat(values, np.arange(0, len(values), step)) if len(values) else values
    x = 46 + 706 * (np.arange(len(values)) * step + 1) / n
    y = 66 - 48 * values / top
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def to_grey(values: Array) -> Array:
    """Scale to 0 to 255 between the 1st and 99th percentile of what is not 0, which stays black: (x, y, z, 3)."""
    inside = values != 0
    low, high = np.percentile(values[inside][:: max(1, inside.sum() // 20000)], [1, 99.5]) if inside.any() else (0, 1)
    scaled = np.clip((values - low) / max(float(high - low), 1e-9), 0, 1) * 225 + 30
    return np.repeat(np.where(inside, scaled, 0).astype(np.uint8)[..., None], 3, axis=3)


def draw_mosaic(
    colours: Array,
    inside: Array,
    affine: Array,
    *,
    width: int = 1080,
    margin: int = 1,
    contours: Mapping[str, Array] | None = None,
) -> Json:
    """Lay slices of a volume (x, y, z, rgb) out in two strips with their positions.

    Parameters
    ----------
    colours
        What is shown.
    inside
        What the slices are spread over and cut to, (x, y, z).
    affine
        Voxels to mm.
    width
        Of a strip, in pixels.
    margin
        Voxels around ``inside`` that are shown.
    contours
        Colour → what is outlined where it passes 0.5, (x, y, z): a second, transparent picture a strip.
    """
    spans = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {a}))) for a in range(3)]
    low, high = zip(
        *((int(s[0]), int(s[-1])) if len(s) else (0, n - 1) for s, n in zip(spans, inside.shape, strict=True)),
        strict=True,
    )
    shares = {2: np.linspace(0.14, 0.92, 8), 1: np.linspace(0.2, 0.82, 3), 0: np.linspace(0.24, 0.76, 4)}
    at = {a: np.rint(low[a] + (high[a] - low[a]) * s).astype(int) for a, s in shares.items()}
    box = tuple(slice(max(0, a - margin), b + 1 + margin) for a, b in zip(low, high, strict=True))
    strips, y = [], 0
    for axes in ((2,), (1, 0)):
        slices = [(a, int(i)) for a in axes for i in at[a]]
        strip = _strip(colours, slices, box, affine, width) | {"y": y}
        if contours:
            strip["contours"] = _outlines(contours, slices, box, (width, strip["height"]))
        strips.append(strip)
        y += strip["height"] + 20
    return {"strips": strips, "width": width, "height": y}


def _joined(volume: Array, slices: Sequence[tuple[int, int]], box: Sequence[slice]) -> tuple[Array, list[int]]:
    """Put slices of a volume side by side, upright; return where each ends as well."""
    shown = [np.rot90(np.take(volume, i, a)[tuple(s for b, s in enumerate(box) if b != a)]) for a, i in slices]
    tall = max(t.shape[0] for t in shown)
    rows = [((tall - t.shape[0]) // 2, -(-(tall - t.shape[0]) // 2)) for t in shown]
    padded = [np.pad(t, (r, (1, 1), *[(0, 0)] * (t.ndim - 2))) for t, r in zip(shown, rows, strict=True)]
    return np.ascontiguousarray(np.concatenate(padded, axis=1)), [p.shape[1] for p in padded]


def _strip(colours: Array, slices: Sequence[tuple[int, int]], box: Sequence[slice], affine: Array, width: int) -> Json:
    """Join slices side by side, enlarge them smoothly, and name each by its position in mm."""
    from PIL import Image

    joined, widths = _joined(colours, slices, box)
    scale = width / joined.shape[1]
    image = Image.fromarray(joined).resize((width, round(joined.shape[0] * scale)), Image.Resampling.BICUBIC)
    edges = np.cumsum([0, *widths]) * scale
    names = [f"{'xyz'[a]} = {affine[a, a] * i + affine[a, 3]:.0f}" for a, i in slices]
    labels = [(round(float(x), 1), n) for x, n in zip((edges[1:] + edges[:-1]) / 2, names, strict=True)]
    return {"uri": _uri(image, "jpeg", quality=82), "height": image.height, "labels": labels}


def _outlines(
    contours: Mapping[str, Array], slices: Sequence[tuple[int, int]], box: Sequence[slice], size: tuple[int, int]
) -> str:
    """Draw lines of two pixels along 0.5, at twice the size and then averaged, so that they are smooth."""
    from PIL import Image

    drawn = np.zeros((size[1], size[0], 4))
    for colour, volume in contours.items():
        image = Image.fromarray(_joined(np.asarray(volume, np.float32), slices, box)[0])
        above = np.asarray(image.resize((2 * size[0], 2 * size[1]), Image.Resampling.BICUBIC)) > 0.5
        line = above & ~ndimage.binary_erosion(above, iterations=3)
        opacity = line.reshape(size[1], 2, size[0], 2).mean(axis=(1, 3))[..., None]
        drawn = drawn * (1 - opacity) + opacity * np.array([*_ramp((colour, colour), 1)[0], 255])
    drawn[..., :3] /= np.maximum(drawn[..., 3:], 1) / 255  # colours were mixed with transparent black
    return _transparent(drawn)


def _transparent(drawn: Array) -> str:
    """Encode few colours and degrees of transparency as a PNG."""
    from PIL import Image

    image = Image.fromarray(np.rint(drawn).clip(0, 255).astype(np.uint8))
    return _uri(image.quantize(32, method=Image.Quantize.FASTOCTREE), "png", optimize=True)


PARTS = {"train": "#bcd7ea", "validation": "#f0c95c", "test": "#b5471b"}


def draw_splits(name: str, table: Any, people: Any, site: str | None) -> Json:
    """Draw who is in which part: a row a split, a column a participant, by site and then test fold."""
    codes = np.stack([table[c].map({p: i for i, p in enumerate(PARTS)}).fillna(3).to_numpy(int) for c in table])
    order = np.lexsort((codes != 2)[::-1])
    by_site = bool(site) and site in people
    if by_site:
        of = people.set_index("participant_id")[site].astype(str).reindex(table.index).fillna("").to_numpy()
        order = np.lexsort([*(codes != 2)[::-1], of])
    shown = codes[:, order][:, :: max(1, codes.shape[1] // 1600)]
    palette = np.vstack([_ramp(tuple(PARTS.values()), 3), [[245, 247, 249]]])
    height = int(np.clip(14 * len(codes), 40, 320))
    order_said = " within each site" if by_site else ""
    return {"name": name, "uri": _png(shown, palette), "n": codes.shape[1], "height": height, "order": order_said}


@lru_cache(maxsize=1)
def _background() -> Any:
    from nilearn.datasets import load_mni152_template

    return load_mni152_template(resolution=2)


OUTLINES = {"mask": "#ffd54f", "gm": "#4fc3f7", "wm": "#ff7043"}
"""Colours of contours: the brain mask, grey and white matter."""


def draw_registration(image: Path, outlined: Mapping[str, Path]) -> Json:
    """Show an image in MNI space, the template on the same slices, and contours over both.

    Parameters
    ----------
    image
        One volume, or a series, of which the first is shown.
    outlined
        Masks or probabilities by the names of `OUTLINES`.
    """
    template = _background()
    values = _template_brain()
    contours = {OUTLINES[role]: _on_template(path) for role, path in outlined.items()}
    cut: Json = {"inside": values > 0, "affine": template.affine, "margin": 4}
    below = draw_mosaic(to_grey(values), **cut)
    shown = draw_mosaic(to_grey(_on_template(image)), contours=contours, **cut)
    for strip, other in zip(shown["strips"], below["strips"], strict=True):
        strip["template"] = other["uri"]
    return shown


def _on_template(path: Path) -> Array:
    """Interpolate the first volume of a file linearly onto the template's grid of 2 mm."""
    import nibabel as nib

    image, template = nib.load(path), _background()
    first = image.dataobj[(..., *[0] * (len(image.shape) - 3))]
    values = np.nan_to_num(np.squeeze(np.asarray(first, np.float32)))
    matrix = np.linalg.inv(image.affine) @ template.affine
    moved: Array = ndimage.affine_transform(
        values, matrix[:3, :3], matrix[:3, 3], output_shape=template.shape, order=1, mode="constant"
    )
    return moved


def _template_brain() -> Array:
    """Return the template's intensities, 0 outside the brain."""
    values = np.asarray(_background().dataobj, np.float32)
    brain: Array = np.where(values > 0.2 * values.max(), values, 0)
    return brain


def draw_overlay(path: Path) -> Json:
    """Lay a map over the MNI152 template, the more opaque the larger it is."""
    import nibabel as nib
    from nilearn.image import resample_to_img

    template = _background()
    values = resample_to_img(
        nib.load(path), template, interpolation="linear", force_resample=True, copy_header=True
    ).get_fdata()
    grey = _template_brain()
    limit = float(np.percentile(np.abs(values[values != 0]), 99.5)) if (values != 0).any() else 1.0
    two_sided = bool((values < -0.02 * limit).any())
    colours, low = (("#56b4e9", "#0b3d66", "#000000", *HEAT[0::2]), -limit) if two_sided else (HEAT, 0.0)
    index = np.clip((values - low) / (limit - low) * 255, 0, 255).astype(int)
    alpha = np.clip((np.abs(values) / limit - 0.15) / 0.5, 0, 0.9)[..., None]
    blended = to_grey(grey) * (1 - alpha) + _ramp(colours, 256)[index] * alpha
    said = "Shares on the MNI152 template: axial, then coronal and sagittal slices, positions in mm; left is left."
    mosaic = draw_mosaic(blended.astype(np.uint8), grey > 0, template.affine)
    return {"mosaic": mosaic, "what": said, "stops": colours, "low": low, "high": limit}
