"""t1w_preparation.py BIDS_DIR OUT [--segmentations FOLDER] [--nprocs N]: raw T1w to grey matter, timed and compared.

Prints seconds and peak memory of the whole run, and for each scan the overlap (Dice) of its registered brain with the
template's. With segmentations of the same scans (``sub-*/anat/*_dseg.nii.gz``, DLMUSE's labels), also the overlap of
the brain masks in the scan's own space, and for each region that the AAL atlas and DLMUSE share the correlation of the
volumes over the scans, with and without the size of the head, and their mean ratio. With age and sex in
participants.tsv, prints the known directions. ``--reuse`` reads an OUT that is there and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import measure
import nibabel as nib
import numpy as np
import pandas as pd
from scipy import stats

from bids_dl import registration
from bids_dl.quality import dice

CORTEX = [*range(100, 208)]
"""DLMUSE's labels of the cortex; its table of labels leaves out a few numbers, which no voxel has."""

REGIONS: dict[str, tuple[tuple[str, ...], list[int]]] = {
    "hippocampus": (("Hippocampus",), [47, 48]),
    "amygdala": (("Amygdala",), [31, 32]),
    "caudate": (("Caudate",), [36, 37]),
    "putamen": (("Putamen",), [57, 58]),
    "pallidum": (("Pallidum",), [55, 56]),
    "thalamus": (("Thalamus",), [59, 60]),
    "insula": (("Insula",), [102, 103, 172, 173]),
    "precuneus": (("Precuneus",), [168, 169]),
    "cuneus": (("Cuneus",), [114, 115]),
    "fusiform": (("Fusiform",), [122, 123, 160, 161]),
    "lingual": (("Lingual",), [134, 135]),
    "cerebellum (grey)": (("Cerebelum", "Vermis"), [38, 39, 71, 72, 73]),
    "all grey matter": (("gm",), [23, *range(30, 33), *range(36, 40), 47, 48, *range(55, 61), *range(71, 77), *CORTEX]),
    "all white matter": (("wm",), [40, 41, 61, 62, *range(81, 96)]),
    "all CSF": (("csf",), [1, 4, 11, 46, *range(49, 53)]),
    "whole head": (("icv",), [*range(1, 208)]),
}
"""Region → starts of our columns, DLMUSE's labels (NiChart_DLMUSE, shared/dicts/MUSE_mapping_derived_rois.csv)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bids_dir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--segmentations", type=Path)
    parser.add_argument("--nprocs", default="2")
    parser.add_argument("--reuse", action="store_true")
    options = parser.parse_args()
    command = [sys.executable, "-m", "bids_dl", str(options.bids_dir), str(options.out), "participant", "--raw-only",
               "--features", "t1w", "grey_matter", "morphometry", "--skip-bids-validation", "--nprocs", options.nprocs]  # fmt: skip
    one = None if options.reuse else measure.run(command)
    rows = [row_of(options.out, path) for path in sorted(options.out.glob("logs/preparations/*_T1w.json"))]
    table = pd.DataFrame(rows).set_index("participant_id")
    if one:
        print(f"{len(table)} scans: {one.seconds:.0f} s, {one.seconds / max(1, len(table)):.1f} s a scan, "
              f"peak {one.peak_gb:.2f} GB, exit {one.code}")  # fmt: skip
    if options.segmentations:
        compare(table, options.out, options.segmentations)
        compare_regions(options.out, options.segmentations, list(table.index))
    print(table.round(3).to_string())
    print("smallest overlap with the template:", round(table["dice_template"].min(), 4))
    people = options.bids_dir / "participants.tsv"
    if people.is_file():
        directions(table, pd.read_csv(people, sep="\t", na_values=["n/a"]).set_index("participant_id"))


def row_of(out: Path, noted: Path) -> dict[str, float]:
    scan = json.loads(noted.read_text())["scans"][0]
    mask = np.asarray(nib.load(scan["mask"]).dataobj) > 0
    template = registration.template(2).mask.values > 0
    record = json.loads((out / "logs" / "participants" / f"sub-{scan['entities']['sub']}.json").read_text())
    seconds = next((p["seconds"] for p in record["preparations"] if p["kind"] == "t1w"), None)
    volumes = json.loads(Path(scan["related"]["volumes"]).read_text())
    return {
        "participant_id": record["participant_id"],
        "seconds": seconds,
        "dice_template": dice(mask, template),
        **volumes,
    }


def compare(table: pd.DataFrame, out: Path, segmentations: Path) -> None:
    for participant_id in table.index:
        reference = nib.as_closest_canonical(nib.load(next(segmentations.glob(f"{participant_id}/**/*_dseg.nii.gz"))))
        mask = nib.load(next(out.glob(f"{participant_id}/**/{participant_id}_desc-brain_mask.nii.gz")))
        labels = np.asarray(reference.dataobj)
        table.loc[participant_id, "dice_reference"] = dice(np.asarray(mask.dataobj) > 0, labels > 0)
        table.loc[participant_id, "reference_ml"] = (
            (labels > 0).sum() * np.prod(reference.header.get_zooms()[:3]) / 1000
        )
    print(f"brain masks against the segmentations: Dice mean {table['dice_reference'].mean():.4f}, "
          f"least {table['dice_reference'].min():.4f}; volume r = {table['icv_ml'].corr(table['reference_ml']):.3f}")  # fmt: skip


def compare_regions(out: Path, segmentations: Path, ids: list[str]) -> None:
    """Print how our regional volumes go with the segmentations': r, r of the shares of the head, and mean ratio."""
    ours = pd.DataFrame({i: our_volumes(out, i) for i in ids}).T
    theirs = pd.DataFrame({i: their_volumes(segmentations, i) for i in ids}).T
    heads = ours["whole head"], theirs["whole head"]
    table = pd.DataFrame(
        {
            "ours_ml": ours.mean(),
            "theirs_ml": theirs.mean(),
            "r": ours.corrwith(theirs),
            "r_share": ours.div(heads[0], axis=0).corrwith(theirs.div(heads[1], axis=0)),
            "ratio": (ours / theirs).mean(),
        }
    )
    print(f"volumes against the segmentations, {len(ids)} scans:\n{table.loc[list(REGIONS)].round(3).to_string()}")


def our_volumes(out: Path, participant_id: str) -> dict[str, float]:
    """Sum our columns for each shared region, in mL."""
    columns = pd.read_csv(next(out.glob(f"{participant_id}/**/*_atlas-AAL_morphometry.tsv")), sep="\t").iloc[0]
    return {
        region: columns[[c for c in columns.index if belongs(c, starts)]].sum()
        for region, (starts, _) in REGIONS.items()
    }


def belongs(column: str, starts: tuple[str, ...]) -> bool:
    return column.split("_")[0] in starts


def their_volumes(segmentations: Path, participant_id: str) -> dict[str, float]:
    """Count the labels of each shared region, in mL."""
    image = nib.load(next(segmentations.glob(f"{participant_id}/**/*_dseg.nii.gz")))
    counts = np.bincount(np.asarray(image.dataobj).astype(int).ravel(), minlength=208)
    voxel_ml = float(np.prod(image.header.get_zooms()[:3])) / 1000
    return {region: counts[labels].sum() * voxel_ml for region, (_, labels) in REGIONS.items()}


def directions(table: pd.DataFrame, people: pd.DataFrame) -> None:
    joined = table.join(people)
    sex = next((c for c in ("sex", "gender") if c in joined), None)
    if sex:
        groups = {str(k).lower()[0]: v for k, v in joined.groupby(sex)["icv_ml"]}
        if {"m", "f"} <= set(groups) and min(map(len, groups.values())) > 1:
            t, p = stats.ttest_ind(groups["m"], groups["f"])
            print(
                f"intracranial volume: men {groups['m'].mean():.0f} mL, women {groups['f'].mean():.0f} mL (t = {t:.2f}, p = {p:.2g})"
            )
    if "age" in joined and joined["age"].notna().sum() > 3:
        share = joined["gm_ml"] / joined["icv_ml"]
        r, p = stats.pearsonr(joined["age"], share)
        print(f"grey matter as a share of the intracranial volume against age: r = {r:.3f} (p = {p:.2g})")


if __name__ == "__main__":
    main()
