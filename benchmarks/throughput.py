"""throughput.py [WORK] [--participants N] [--only SOURCE…]: what a feature of a source takes, and what a second process saves.

Simulates a dataset (``bids_dl.simulate`` with T1w, BOLD, DWI, PET and genotypes, raw and as fMRIPrep leaves them; EEG by
mne), and runs level 1 for each source and feature. Prints seconds a participant and the peak memory of all processes on
one process, and how many times faster two processes are; each process has one thread. The first feature of a raw source
includes the preparation; the others, and sources that follow the T1w, find it done. Every run includes the start of the
program, whose time the first line gives. With one participant nothing is said of two processes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import measure
import numpy as np
import pandas as pd

from bids_dl.simulate import simulate

SERIES = ("timeseries", "connectivity", "dynamic_connectivity", "alff", "falff", "reho", "regional", "network_maps",
          "dual_regression")  # fmt: skip
HZ, SECONDS = 250, 300
SENSORS = (
    "Fp1",
    "Fp2",
    "F7",
    "F3",
    "Fz",
    "F4",
    "F8",
    "T7",
    "C3",
    "Cz",
    "C4",
    "T8",
    "P7",
    "P3",
    "Pz",
    "P4",
    "P8",
    "O1",
    "O2",
)
NETWORKS = 5


@dataclass(frozen=True)
class Source:
    """One kind of data, where it lies, and the features that are measured of it, the first with its preparation."""

    folder: str
    features: tuple[str, ...]
    arguments: tuple[str, ...] = ()


SOURCES = {
    "T1w, fMRIPrep": Source("simulated", ("t1w", "slices")),
    "BOLD, fMRIPrep": Source("simulated", SERIES),
    "T1w, raw": Source("simulated", ("t1w", "grey_matter", "morphometry", "slices"), ("--raw-only",)),
    "BOLD, raw": Source("simulated", SERIES, ("--raw-only",)),
    "DWI, raw": Source("simulated", ("fa", "md", "structural_connectivity"), ("--raw-only",)),
    "PET, raw": Source("simulated", ("pet",), ("--raw-only",)),
    "genotypes": Source("simulated", ("snp",)),
    "EEG, raw": Source("eeg", ("timeseries", "connectivity")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, nargs="?", help="an empty folder to work in; a temporary one if not given")
    parser.add_argument("--participants", type=int, default=4)
    parser.add_argument("--n-volumes", type=int, default=120, help="fewer than about 90 leave nothing for network_maps")
    parser.add_argument("--only", nargs="+", choices=SOURCES, default=list(SOURCES))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        make(work, options.participants, options.n_volumes)
        labels = [f"{k + 1:02d}" for k in range(options.participants)]
        print(
            f"start of the program (--dry-run): {started(work, labels):.1f} s; {len(labels)} participants a row",
            flush=True,
        )
        rows = [row for name in options.only for row in rows_of(work, name, labels)]
    print(pd.DataFrame(rows).set_index(["source", "feature"]).to_string(na_rep=""))


def make(work: Path, n_participants: int, n_volumes: int) -> None:
    """Simulate both datasets, and write the settings that some features need."""
    everything = ("t1w", "bold", "dwi", "pet", "snp")
    n = max(4, n_participants)
    simulate(
        work / "simulated", n_participants=n, n_volumes=n_volumes, modalities=everything, n_lacking=0, truncated=False
    )
    for number in range(n):
        write_eeg(work / "eeg", f"sub-{number + 1:02d}", np.random.default_rng(number))
    shutil.copy(work / "simulated" / "dataset_description.json", work / "eeg" / "dataset_description.json")
    (work / "networks.toml").write_text(f"[networks]\nn_components = {NETWORKS}\n")


def write_eeg(root: Path, participant_id: str, generator: np.random.Generator) -> None:
    """Write noise with an alpha rhythm at the back of the head, in the places of the 10-20 system."""
    import mne

    mne.set_log_level("ERROR")
    signal = 5e-6 * generator.standard_normal((len(SENSORS), HZ * SECONDS))
    signal[-2:] += 2e-5 * np.sin(2 * np.pi * 10 * np.arange(HZ * SECONDS) / HZ)
    raw = mne.io.RawArray(signal, mne.create_info(list(SENSORS), HZ, "eeg"))
    raw.set_montage("standard_1020")
    folder = root / participant_id / "eeg"
    folder.mkdir(parents=True)
    stem = folder / f"{participant_id}_task-rest"
    raw.save(f"{stem}_eeg.fif")
    described = {"TaskName": "rest", "SamplingFrequency": HZ, "PowerLineFrequency": 50, "EEGReference": "average",
                 "SoftwareFilters": "n/a"}  # fmt: skip
    Path(f"{stem}_eeg.json").write_text(json.dumps(described))
    table = pd.DataFrame({"name": SENSORS, "type": "EEG", "units": "V", "status": "good"})
    table.to_csv(f"{stem}_channels.tsv", sep="\t", index=False)


def rows_of(work: Path, name: str, labels: Sequence[str]) -> list[dict[str, object]]:
    """Measure each feature of a source; what was prepared for the first is kept for all that come later."""
    rows = []
    for feature in SOURCES[name].features:
        out, one = run(work, name, feature, labels, 1)
        two = run(work, name, feature, labels, 2)[1] if len(labels) > 1 else None
        keep(out, work / "prepared")
        rows.append(
            {
                "source": name,
                "feature": feature,
                "prepares": seconds_of_preparation(out),
                "s/participant": round(one.seconds / len(labels), 1),
                "peak GB": round(one.peak_gb, 2),
                "2 processes": round(one.seconds / two.seconds, 2) if two else np.nan,
                "written": f"{written(out, feature)}/{len(labels)}",
            }
        )
        print(*rows[-1].values(), sep=" | ", file=sys.stderr, flush=True)
    return rows


def run(work: Path, name: str, feature: str, labels: Sequence[str], nprocs: int) -> tuple[Path, measure.Run]:
    """Run level 1 for one feature, with the earlier sources' preparations at hand."""
    source = SOURCES[name]
    out = work / f"{name.replace(', ', '_')}_{feature}_{nprocs}".lower()
    keep(work / "prepared", out)
    (out / "logs").mkdir(parents=True, exist_ok=True)
    more = ["--config-file", str(work / "networks.toml")] if feature in {"network_maps", "dual_regression"} else []
    return out, measure.run(
        command(
            work / source.folder, out, labels, "--nprocs", str(nprocs), "--features", feature, *source.arguments, *more
        )
    )


def command(data: Path, out: Path, labels: Sequence[str], *more: str) -> list[str]:
    os.environ["OMP_NUM_THREADS"] = "1"
    return [sys.executable, "-m", "bids_dl", str(data), str(out), "participant", "--participant-label", *labels,
            "--skip-bids-validation", "--omp-nthreads", "1", *more]  # fmt: skip


def started(work: Path, labels: Sequence[str]) -> float:
    return measure.run(command(work / "simulated", work / "nothing", labels, "--dry-run")).seconds


def keep(source: Path, target: Path) -> None:
    """Copy the notes by which an output finds what was prepared; the images stay in the output that made them."""
    for note in source.glob("logs/preparations/*.json"):
        place = target / "logs" / "preparations" / note.name
        if not place.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(note, place)


def records(out: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(out.glob("logs/participants/*.json"))]


def seconds_of_preparation(out: Path) -> str:
    """Say what was prepared in this run and how long it took, averaged over the participants."""
    table = pd.DataFrame([p for record in records(out) for p in record["preparations"]], columns=["kind", "seconds"])
    means = table.dropna().groupby("kind")["seconds"].mean()
    return ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in means.items())


def written(out: Path, feature: str) -> int:
    """Count the participants who have the feature."""
    return sum(any(f["feature"] == feature for f in record["features"]) for record in records(out))


if __name__ == "__main__":
    main()
