"""Trials are where they were, a delay later; events of another run are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import write_image

from bids_dl import query
from bids_dl.errors import DataError
from bids_dl.features.events import extract
from bids_dl.records import Scan


def scan(folder: Path, rows: str, header: str = "onset\tduration\ttrial_type") -> Scan:
    path = folder / "sub-1_task-faces_space-MNI152Lin_desc-preproc_bold.nii.gz"
    write_image(path, np.random.default_rng(0).normal(9, 1, (2, 2, 2, 20)))
    events = folder / "sub-1_task-faces_events.tsv"
    events.write_text(f"{header}\n{rows}\n")
    return Scan(path, query.entities(path), folder, related={"events": events})


def test_blocks_are_shifted_by_the_delay(tmp_path: Path) -> None:
    found = extract(scan(tmp_path, "0\t8\tface\n10\t6\thouse\n20\t8\tface"), delay_s=4.0)
    assert found.labels == ("face", "house")
    assert np.flatnonzero(found.values[:, 0]).tolist() == [2, 3, 4, 5, 12, 13, 14, 15]
    assert np.flatnonzero(found.values[:, 1]).tolist() == [7, 8, 9]
    assert (found.dims, found.suffix, found.entities["desc"]) == (("time", "trial_type"), "timeseries", "alignedevents")


def test_a_volume_belongs_to_the_trial_in_its_middle_as_a_loop_says(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    starts = np.cumsum(generator.uniform(2.5, 5, 8))
    rows = [f"{s:.3f}\t{d:.3f}\tx" for s, d in zip(starts, generator.uniform(2.1, 2.4, 8), strict=True)]
    found = extract(scan(tmp_path, "\n".join(rows)), delay_s=0.0).values[:, 0]
    for k in range(20):
        middle = (k + 0.5) * 2.0
        inside = any(float(r.split("\t")[0]) <= middle < sum(map(float, r.split("\t")[:2])) for r in rows)
        assert found[k] == inside


def test_trials_that_begin_with_volumes_are_as_long_as_they_were_and_do_not_overlap(tmp_path: Path) -> None:
    rows = [f"{2 * k}\t2\t{'ab'[k % 2]}" for k in range(2, 14)]
    found = extract(scan(tmp_path, "\n".join(rows)), delay_s=5.0).values
    assert found.sum(axis=1).tolist() == [0.0] * 4 + [1.0] * 12 + [0.0] * 4
    assert np.flatnonzero(found[:, 0]).tolist() == [4, 6, 8, 10, 12, 14]


def test_brief_events_have_one_volume_and_those_out_of_view_none(tmp_path: Path) -> None:
    found = extract(scan(tmp_path, "-30\t1\ta\n4\tn/a\ta\n9\t0\ta\n39\t0\ta"), delay_s=5.0).values
    assert np.flatnonzero(found[:, 0]).tolist() == [4, 7]


def test_events_after_a_scan_that_was_stopped_are_counted_and_leave_the_others(tmp_path: Path) -> None:
    found = extract(scan(tmp_path, "0\t8\tface\n10\t6\thouse\n41\t8\tface\n50\t8\tlate"), delay_s=4.0)
    assert np.flatnonzero(found.values[:, 0]).tolist() == [2, 3, 4, 5]
    assert found.metadata["LateEvents"] == 2
    assert not found.values[:, found.labels.index("late")].any()


def test_a_table_without_trial_types_has_one_column_and_rows_without_are_left_out(tmp_path: Path) -> None:
    assert extract(scan(tmp_path, "0\t8", "onset\tduration")).labels == ("event",)
    assert extract(scan(tmp_path, "0\t8\tn/a\n3\t4\tb")).labels == ("b",)


def test_a_trial_without_a_type_is_unknown_where_no_other_is_under_way(tmp_path: Path) -> None:
    found = extract(scan(tmp_path, "0\t8\tface\n4\t0\tn/a\n10\t6\tn/a\n20\t8\thouse"), delay_s=0.0).values
    assert np.flatnonzero(np.isnan(found).all(axis=1)).tolist() == [5, 6, 7]
    assert np.flatnonzero(np.isnan(found).any(axis=1)).tolist() == [5, 6, 7]
    assert np.flatnonzero(found[:, 0] == 1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ("10\t2\ta\n40\t2\ta\n5000\t2\ta", "onset\tduration\ttrial_type", "2 of 3 events begin after.*40 s"),
        ("soon\t2\ta", "onset\tduration\ttrial_type", "onset in line 2"),
        ("2\ta", "onset\ttrial_type", "lacks duration"),
        ("2\t1\tn/a", "onset\tduration\ttrial_type", "names no trial type"),
    ],
)
def test_events_that_cannot_be_placed_are_named(tmp_path: Path, rows: str, header: str, message: str) -> None:
    with pytest.raises(DataError, match=f"sub-1.*{message}"):
        extract(scan(tmp_path, rows, header))


def test_a_scan_without_events_is_named(tmp_path: Path) -> None:
    bold = scan(tmp_path, "0\t1\ta")
    with pytest.raises(DataError, match="sub-1.*no events.tsv"):
        extract(Scan(bold.path, bold.entities, tmp_path))
