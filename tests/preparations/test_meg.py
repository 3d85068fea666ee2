"""Magnetometers and gradiometers are taken apart, in their own units, from a FIF file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bids_dl import derivatives, query
from bids_dl.errors import DataError, UsageError
from bids_dl.preparations import eeg, meg
from bids_dl.records import Scan

mne = pytest.importorskip("mne")
HZ, SECONDS = 100, 20
NAMES, TYPES = ["MEG0111", "MEG0121", "MEG0112", "MEG0122", "STI"], ["mag", "mag", "grad", "grad", "stim"]
SI = np.array([1e-15, 1e-15, 1e-13, 1e-13])


def recording() -> mne.io.BaseRaw:
    """Plant an alpha rhythm of 100 fT in the first magnetometer, and of 100 fT/cm in the first gradiometer."""
    at = np.arange(SECONDS * HZ) / HZ
    values = np.random.default_rng(0).standard_normal((4, len(at)))
    values[[0, 2]] += 100 * np.sin(2 * np.pi * 10 * at)
    info = mne.create_info(NAMES, HZ, TYPES)
    return mne.io.RawArray(np.vstack([values * SI[:, None], np.zeros(len(at))]), info, verbose="critical")


def write(root: Path, raw: mne.io.BaseRaw, status: str = "good", kind: str = "meg") -> Scan:
    path = root / "sub-01" / kind / f"sub-01_task-rest_{kind}.fif"
    path.parent.mkdir(parents=True)
    raw.save(path, verbose="critical")
    called = {"mag": "MEGMAG\tT", "grad": "MEGGRADPLANAR\tT/m"}
    rows = "".join(f"{n}\t{called[t]}\t{status}\n" for n, t in zip(NAMES[1:4], TYPES[1:4], strict=True))
    path.with_name("sub-01_task-rest_channels.tsv").write_text(
        f"name\ttype\tunits\tstatus\n{NAMES[0]}\tMEGMAG\tT\tgood\n{rows}{NAMES[4]}\tTRIG\tV\tgood\n"
    )
    derivatives.write_description(root / "out", {"bids": root})
    return Scan(path, query.entities(path), root, prepared=False)


@pytest.mark.parametrize(("sensors", "unit"), [("mag", "fT"), ("grad", "fT/cm")])
def test_each_kind_of_sensor_has_its_own_columns_and_unit(tmp_path: Path, sensors: str, unit: str) -> None:
    made = meg.prepare(write(tmp_path, recording()), None, tmp_path / "out", sensors=sensors)
    labels, alpha = query.read_matrix(made[2].path)
    assert made[2].entities["atlas"] == "megAlpha"
    assert labels == tuple(n for n, t in zip(NAMES, TYPES, strict=True) if t == sensors)
    np.testing.assert_allclose(alpha[:, 0], 100, rtol=0.05)
    assert np.abs(alpha[:, 1]).max() < 5
    assert query.read_json(made[2].path.with_suffix(".json"))["Units"] == unit


def test_gaps_of_an_acquisition_are_left_out(tmp_path: Path) -> None:
    raw = recording()
    raw.set_annotations(mne.Annotations([5], [4], ["BAD_ACQ_SKIP"]))
    made = meg.prepare(write(tmp_path, raw), None, tmp_path / "out", bands=["alpha 8-13"])
    assert query.read_matrix(made[0].path)[1].shape == (28, 2)


def test_a_fif_file_among_the_eegs_is_read_with_the_bad_channels_it_names(tmp_path: Path) -> None:
    info = mne.create_info(["Fz", "Cz", "Pz"], HZ, "eeg")
    raw = mne.io.RawArray(1e-5 * np.random.default_rng(0).standard_normal((3, 2000)), info, verbose="critical")
    raw.info["bads"] = ["Cz"]
    made = eeg.prepare(write(tmp_path, raw, kind="eeg"), None, tmp_path / "out", bands=["alpha 8-13"])
    _, alpha = query.read_matrix(made[0].path)
    assert np.isnan(alpha).all(axis=0).tolist() == [False, True, False]


def test_too_few_good_sensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sub-01_task-rest_meg: 1 of 2 mag channels are good"):
        meg.prepare(write(tmp_path, recording(), "bad"), None, tmp_path / "out")


def test_a_kind_of_sensor_that_the_recording_lacks_is_named_with_those_it_has(tmp_path: Path) -> None:
    raw = recording().pick(["MEG0111", "MEG0121", "STI"])
    scan = write(tmp_path, raw)
    scan.path.with_name("sub-01_task-rest_channels.tsv").unlink()
    with pytest.raises(DataError, match="no channel of the type grad, only mag, stim"):
        meg.prepare(scan, None, tmp_path / "out", sensors="grad")


def test_an_unknown_kind_of_sensor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"preparations\.meg\.sensors is 'opm'"):
        meg.prepare(write(tmp_path, recording()), None, tmp_path / "out", sensors="opm")


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    scan = write(tmp_path, recording())
    scan.path.write_bytes(scan.path.read_bytes()[:200])
    with pytest.raises(DataError, match="sub-01_task-rest_meg cannot be read"):
        meg.prepare(scan, None, tmp_path / "out")
