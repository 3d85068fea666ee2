"""tables.py: seconds to read one participant's FreeSurfer tables and genotypes, and to write a connectome as a table."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from bed_reader import open_bed, to_bed

from bids_dl import derivatives
from bids_dl.features import morphometry, snp
from bids_dl.records import Scan

N_PEOPLE, N_VARIANTS, N_REGIONS = 1_000, 100_000, 392


def median_seconds(step: Callable[[], object], times: int = 9) -> float:
    """Time a step, the first call aside."""
    step()
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        step()
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))


def freesurfer(root: Path) -> Scan:
    """Write tables of the size that recon-all leaves: 45 structures, 34 regions a hemisphere."""
    folder = root / "sub-0" / "stats"
    folder.mkdir(parents=True)
    head = "".join(f"# Measure M{k}, Measure{k}Vol, Volume {k}, {k}.25, mm^3\n" for k in range(22))
    rows = "".join(f"{k + 1:3d} {k:3d} 4212 4268.0 Structure-{k} 74.9 9.0 29.0 112.0 83.0\n" for k in range(45))
    columns = "Index SegId NVoxels Volume_mm3 StructName normMean normStdDev normMin normMax normRange"
    (folder / "aseg.stats").write_text(f"{head}# NRows 45\n# ColHeaders {columns}\n{rows}")
    rows = "".join(f"region{k} 1407 933 2328 2.631 0.397 0.085 0.015 6 0.9\n" for k in range(34))
    columns = "StructName NumVert SurfArea GrayVol ThickAvg ThickStd MeanCurv GausCurv FoldInd CurvInd"
    for side in ("lh", "rh"):
        (folder / f"{side}.aparc.stats").write_text(f"{head}# ColHeaders {columns}\n{rows}")
    return Scan(folder, {"sub": "0", "suffix": "stats", "datatype": "anat"}, root)


def genotypes(root: Path) -> Scan:
    """Write PLINK's files of many people."""
    values = np.random.default_rng(0).integers(0, 3, (N_PEOPLE, N_VARIANTS), dtype=np.int8)
    properties = {"iid": [f"{k:04d}" for k in range(N_PEOPLE)], "sid": [f"rs{k}" for k in range(N_VARIANTS)]}
    to_bed(root / "all.bed", values, properties=properties)
    return Scan(root / "all.bed", {"sub": "0500", "suffix": "bed", "datatype": "genetics"}, root)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        tables, genes = freesurfer(root), genotypes(root)
        seconds = median_seconds(lambda: morphometry.extract(tables))
        print(f"FreeSurfer's three tables of one participant: {1000 * seconds:.1f} ms")
        started = time.perf_counter()
        found = snp.extract(genes)
        first = time.perf_counter() - started
        ours = median_seconds(lambda: snp.extract(genes))
        with open_bed(genes.path, num_threads=1) as bed:
            assert np.array_equal(found.values, bed.read(np.s_[500, :], dtype="float32")[0])
            theirs = median_seconds(lambda: bed.read(np.s_[500, :], dtype="int8"))
        print(
            f"one of {N_PEOPLE:,} people, {N_VARIANTS:,} variants: {1000 * first:.0f} ms with the tables (once a process), "
            f"{1000 * ours:.1f} ms a person after; bed-reader's read of the row {1000 * theirs:.1f} ms; ratio {ours / theirs:.2f}"
        )
        matrix = np.random.default_rng(0).standard_normal((N_REGIONS, N_REGIONS))
        labels = [f"region{k}" for k in range(N_REGIONS)]
        ours = median_seconds(lambda: derivatives.write_matrix(root / "x_relmat.tsv", matrix, labels), 20)
        theirs = median_seconds(
            lambda: pd.DataFrame(matrix, columns=labels).to_csv(root / "y.tsv", sep="\t", index=False), 20
        )
        print(
            f"a {N_REGIONS}×{N_REGIONS} connectome written as TSV: {1000 * ours:.1f} ms (at most 20 are meant); pandas' "
            f"to_csv {1000 * theirs:.1f} ms; ratio {ours / theirs:.2f}"
        )


if __name__ == "__main__":
    main()
