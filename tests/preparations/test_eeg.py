"""A planted rhythm is found again from a BIDS dataset to connectomes; recordings that cannot be used are named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from bids_dl import cli, derivatives, query
from bids_dl.errors import DataError
from bids_dl.features import connectivity, timeseries
from bids_dl.preparations import eeg
from bids_dl.records import Scan

HZ, SECONDS = 100, 60
NAMES = ("Fp1", "Fp2", "C3", "C4", "P3", "P4", "O1", "O2")
BANDS = ("Delta", "Theta", "Alpha", "Beta", "Lowgamma")


def course(seconds: int = SECONDS) -> np.ndarray:
    """Vary slowly between 0.3 and 1.7, a value a sample."""
    return 1 + 0.7 * np.sin(2 * np.pi * 0.05 * np.arange(seconds * HZ) / HZ)


def planted(seconds: int = SECONDS, seed: int = 0) -> np.ndarray:
    """Give O1 and O2 an alpha rhythm (µV), each of its own phase and frequency, whose strength follows one course."""
    signal = 3 * np.random.default_rng(seed).standard_normal((len(NAMES), seconds * HZ))
    at = np.arange(seconds * HZ) / HZ
    for sensor, hz in ((6, 10.0), (7, 11.0)):
        signal[sensor] += 20 * course(seconds) * np.sin(2 * np.pi * hz * at + sensor)
    return signal


def write_eeg(
    root: Path, signal: np.ndarray, sub: str = "01", *, hz: float = HZ, names: Sequence[str] = NAMES,
    status: Mapping[str, str] | None = None, events: str = "",
) -> Path:  # fmt: skip
    """Write a BrainVision recording (µV) with its channels.tsv and events.tsv, as BIDS wants them."""
    stem = root / f"sub-{sub}" / "eeg" / f"sub-{sub}_task-rest"
    stem.parent.mkdir(parents=True, exist_ok=True)
    raw = Path(f"{stem}_eeg.vhdr")
    channels = "".join(f"Ch{k + 1}={name},,1,µV\n" for k, name in enumerate(names))
    raw.write_text(
        "Brain Vision Data Exchange Header File Version 1.0\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={raw.stem}.eeg\nMarkerFile={raw.stem}.vmrk\nDataFormat=BINARY\nDataOrientation=MULTIPLEXED\n"
        f"NumberOfChannels={len(names)}\nSamplingInterval={1e6 / hz}\n[Binary Infos]\nBinaryFormat=IEEE_FLOAT_32\n"
        f"[Channel Infos]\n{channels}",
        encoding="utf-8",
    )
    raw.with_suffix(".vmrk").write_text(
        "Brain Vision Data Exchange Marker File, Version 1.0\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={raw.stem}.eeg\n[Marker Infos]\nMk1=New Segment,,1,1,0\n"
    )
    raw.with_suffix(".eeg").write_bytes(signal.T.astype("<f4").tobytes())
    given = status or {}
    rows = "".join(f"{name}\tEEG\tµV\t{given.get(name, 'good')}\n" for name in names)
    Path(f"{stem}_channels.tsv").write_text(f"name\ttype\tunits\tstatus\n{rows}", encoding="utf-8")
    if events:
        Path(f"{stem}_events.tsv").write_text(f"onset\tduration\ttrial_type\n{events}")
    described = {"TaskName": "rest", "EEGReference": "Cz", "SamplingFrequency": hz, "PowerLineFrequency": 50,
                 "SoftwareFilters": "n/a"}  # fmt: skip
    raw.with_suffix(".json").write_text(json.dumps(described))
    (root / "dataset_description.json").write_text('{"Name": "eeg", "BIDSVersion": "1.10.0", "DatasetType": "raw"}')
    return raw


def prepare(tmp_path: Path, signal: np.ndarray, **more: object) -> dict[str, Scan]:
    """Prepare a recording; the tables by their atlas."""
    options = {k: more.pop(k) for k in ("bands", "envelope_hz", "average_reference") if k in more}
    path, out = write_eeg(tmp_path / "raw", signal, **more), tmp_path / "out"  # type: ignore[arg-type]
    derivatives.write_description(out, {"bids": tmp_path / "raw"})
    scan = Scan(path, query.entities(path), tmp_path / "raw", prepared=False)
    return {s.entities["atlas"]: s for s in eeg.prepare(scan, None, out, **options)}  # type: ignore[arg-type]


def test_the_planted_course_is_recovered_in_its_band_and_its_unit(tmp_path: Path) -> None:
    made = prepare(tmp_path, planted(), average_reference=False)
    labels, alpha = query.read_matrix(made["eegAlpha"].path)
    assert labels == NAMES
    wanted = 20 * course().reshape(-1, HZ // 2).mean(axis=1)[2:-2]
    for sensor in (6, 7):
        assert np.corrcoef(alpha[:, sensor], wanted)[0, 1] > 0.95
        assert np.abs(alpha[:, sensor] / wanted - 1).mean() < 0.1
    assert abs(np.corrcoef(query.read_matrix(made["eegBeta"].path)[1][:, 6], wanted)[0, 1]) < 0.5


def test_what_rises_and_falls_together_is_connected_in_its_band_alone(tmp_path: Path) -> None:
    made = prepare(tmp_path, planted())
    found = {}
    for name in ("eegAlpha", "eegBeta"):
        series = timeseries.extract(made[name])
        path = derivatives.write_feature(tmp_path / "out", made[name], series)
        scan = Scan(path, query.entities(path), tmp_path / "out")
        found[name] = connectivity.extract(scan, fisher_z=False).values[6, 7]
    assert found["eegAlpha"] > 0.9
    assert abs(found["eegBeta"]) < 0.5


def test_the_tables_of_the_bands_keep_apart_and_say_how_they_were_made(tmp_path: Path) -> None:
    made = prepare(tmp_path, planted())
    assert list(made) == [f"eeg{b}" for b in BANDS]
    assert len({s.path for s in made.values()}) == len(BANDS)
    assert {s.kind for s in made.values()} == {"timeseries"}
    said = query.read_json(made["eegAlpha"].path.with_suffix(".json"))
    assert (said["RepetitionTime"], said["SamplingFrequency"], said["Units"]) == (0.5, 2.0, "µV")
    assert said["Band"] == {"Name": "alpha", "Low": 8, "High": 13, "Units": "Hz"}
    assert "average" in said["Reference"]
    assert said["Sources"] == ["bids:raw:sub-01/eeg/sub-01_task-rest_eeg.vhdr"]


def test_bad_flat_and_broken_electrodes_are_missing_and_leave_the_reference_alone(tmp_path: Path) -> None:
    signal = planted()
    signal[1] *= 1e4
    signal[2], signal[3, 7] = 5.0, np.nan
    made = prepare(tmp_path, signal, status={"Fp2": "bad"}, bands=["alpha 8-13"])
    labels, alpha = query.read_matrix(made["eegAlpha"].path)
    assert [n for n, column in zip(labels, alpha.T, strict=True) if np.isnan(column).all()] == ["Fp2", "C3", "C4"]
    assert np.nanmax(alpha) < 60
    assert query.read_json(made["eegAlpha"].path.with_suffix(".json"))["BadChannels"] == ["Fp2", "C3", "C4"]


def test_segments_marked_bad_are_left_out(tmp_path: Path) -> None:
    made = prepare(tmp_path, planted(), events="20\t5\tBAD_movement\n40\t1\tstimulus\n", bands=["alpha 8-13"])
    assert query.read_matrix(made["eegAlpha"].path)[1].shape == (106, 8)
    assert query.read_json(made["eegAlpha"].path.with_suffix(".json"))["NumberOfWindowsLeftOut"] == 14


def test_electrodes_with_numbers_for_names_stay_a_header(tmp_path: Path) -> None:
    made = prepare(tmp_path, planted(20), names=[str(k + 1) for k in range(8)], bands=["alpha 8-13"])
    labels, values = query.read_matrix(made["eegAlpha"].path)
    assert (labels[0], len(values)) == ("EEG1", 36)


REFUSED = {
    "short": ({"signal": planted(9)}, "9 s"),
    "all bad": ({"signal": planted(12), "status": dict.fromkeys(NAMES, "bad")}, "0 of 8 eeg channels are good"),
    "flat": ({"signal": np.ones((8, 1200))}, "0 of 8 eeg channels are good"),
    "bad for most of the time": ({"signal": planted(12), "events": "1\t9\tBAD\n"}, "at least 10 s"),
    "slow": ({"signal": planted(30), "hz": 50}, "too few for the band beta"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_recording_that_cannot_be_used_is_named_with_the_reason(tmp_path: Path, kind: str) -> None:
    given, reason = REFUSED[kind]
    with pytest.raises(DataError, match=f"sub-01_task-rest_eeg.*{reason}"):
        prepare(tmp_path, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("end", [".vhdr", ".eeg"])
def test_a_damaged_recording_is_named(tmp_path: Path, end: str) -> None:
    path = write_eeg(tmp_path, planted(12))
    if end == ".vhdr":
        path.write_text("nothing")
    else:
        path.with_suffix(end).unlink()
    with pytest.raises(DataError, match="sub-01_task-rest_eeg cannot be read"):
        eeg.prepare(Scan(path, query.entities(path), tmp_path, prepared=False), None, tmp_path / "out")


def write_edf(path: Path, signal: np.ndarray) -> None:
    """Write a recording (µV) in the European Data Format, a second a record."""
    n_sensors, n_seconds = len(signal), signal.shape[1] // HZ
    fields = [("0", 8), ("X X X X", 80), ("Startdate X X X X", 80), ("01.01.20", 8), ("00.00.00", 8),
              (256 * (n_sensors + 1), 8), ("", 44), (n_seconds, 8), (1, 8), (n_sensors, 4)]  # fmt: skip
    for given, width in (("uV", 8), (-500, 8), (500, 8), (-32768, 8), (32767, 8), ("", 80), (HZ, 8), ("", 32)):
        if given == "uV":
            fields += [(name, 16) for name in NAMES] + [("", 80)] * n_sensors
        fields += [(given, width)] * n_sensors
    stored = np.round((signal + 500) / 1000 * 65535 - 32768).astype("<i2")
    records = [stored[:, k * HZ : (k + 1) * HZ].tobytes() for k in range(n_seconds)]
    path.write_bytes(b"".join(str(value).ljust(width).encode() for value, width in fields) + b"".join(records))


def test_an_edf_gives_what_a_brainvision_gives_and_one_cut_short_is_refused(tmp_path: Path) -> None:
    made = prepare(tmp_path, planted(20), bands=["alpha 8-13"])
    path = tmp_path / "edf" / "sub-01" / "eeg" / "sub-01_task-rest_eeg.edf"
    path.parent.mkdir(parents=True)
    write_edf(path, planted(20))
    scan = Scan(path, query.entities(path), tmp_path / "edf", prepared=False)
    (again,) = eeg.prepare(scan, None, tmp_path / "edf", bands=["alpha 8-13"])
    np.testing.assert_allclose(query.read_matrix(again.path)[1], query.read_matrix(made["eegAlpha"].path)[1], atol=0.02)
    path.write_bytes(path.read_bytes()[:-8000])
    with pytest.raises(DataError, match="sub-01_task-rest_eeg cannot be read .*than its header says"):
        eeg.prepare(scan, None, tmp_path / "edf")


def test_a_table_of_channels_that_does_not_fit_is_named_in_one_sentence(tmp_path: Path) -> None:
    path = write_eeg(tmp_path, planted(12))
    table = path.with_name("sub-01_task-rest_channels.tsv")
    table.write_text(table.read_text().replace("Fp1", "F9"))
    with pytest.raises(DataError, match=r"sub-01_task-rest_eeg cannot be read \(Channel mismatch [^()]*\); mend"):
        eeg.prepare(Scan(path, query.entities(path), tmp_path, prepared=False), None, tmp_path / "out")


def test_without_mne_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mne_bids", None)
    with pytest.raises(DataError, match=r"sub-01_task-rest_eeg .*pip install 'bids_dl\[meeg\]'"):
        prepare(tmp_path, planted(12))


def test_the_package_is_imported_without_mne() -> None:
    code = "import sys; import bids_dl.preparations.eeg, bids_dl.preparations.meg; sys.exit('mne' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_eeg_dataset_gives_series_and_connectomes_of_every_band(tmp_path: Path) -> None:
    root, out = tmp_path / "data", tmp_path / "out"
    for k, sub in enumerate(("01", "02")):
        write_eeg(root, planted(20, seed=k), sub, status={"Fp1": "bad"})
    (root / "participants.tsv").write_text("participant_id\tage\nsub-01\t30\nsub-02\t40\n")
    (root / "README").write_text("A planted rhythm.\n")
    assert cli.main([str(root), str(out), "participant", "--nprocs", "1", "--skip-bids-validation"]) == 0
    for suffix in ("stat-mean_timeseries", "stat-pearsoncorrelation_desc-fisherz_relmat"):
        for sub in ("01", "02"):
            names = {p.name for p in (out / f"sub-{sub}" / "eeg").glob(f"*_{suffix}.tsv")}
            assert names == {f"sub-{sub}_task-rest_atlas-eeg{b}_{suffix}.tsv" for b in BANDS}
    report = tmp_path / "r.json"
    tool = [Path(sys.executable).parent / "bids-validator-deno", out, "--ignoreWarnings", "--format", "json"]
    assert subprocess.run([*map(str, tool), "-o", str(report)], check=False).returncode == 0, report.read_text()[:2000]


def test_another_configuration_keeps_what_was_prepared_and_nothing_else(tmp_path: Path) -> None:
    root, out = tmp_path / "data", tmp_path / "out"
    write_eeg(root, planted(20), "01")
    (root / "participants.tsv").write_text("participant_id\tage\nsub-01\t30\n")
    command = [str(root), str(out), "participant", "--nprocs", "1", "--skip-bids-validation"]
    assert cli.main(command) == 0
    noted = query.read_json(next((out / "logs" / "preparations").glob("*.json")))
    prepared = {out / file: (out / file).stat().st_mtime_ns for file in noted["files"]}
    extracted = {p for p in (out / "sub-01").rglob("*_relmat.tsv") if p not in prepared}
    assert prepared
    assert extracted
    kind = ["--features", "timeseries", "connectivity", "--config-file", str(tmp_path / "c.toml")]
    (tmp_path / "c.toml").write_text('[features.connectivity]\nkind = "covariance"\n')
    assert cli.main([*command, *kind, "--overwrite"]) == 0
    assert {p: p.stat().st_mtime_ns for p in prepared} == prepared
    assert not any(p.exists() for p in extracted)
    assert list((out / "sub-01").rglob("*_stat-covariance*_relmat.tsv"))
    (tmp_path / "c.toml").write_text("[preparations.eeg]\nenvelope_hz = 4.0\n")
    assert cli.main([*command, "--config-file", str(tmp_path / "c.toml"), "--overwrite"]) == 0
    assert any(not p.exists() or p.stat().st_mtime_ns != then for p, then in prepared.items())
