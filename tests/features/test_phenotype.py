"""Columns become numbers; words become one column a level."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bids_dl.errors import DataError
from bids_dl.features.phenotype import extract
from bids_dl.records import Scan

TABLE = "participant_id\tage\tsex\thand\tnote\nsub-1\t30\tM\tR\t{0}\nsub-2\tn/a\tF\tL\t{1}\nsub-3\t4\tF\tB\t{2}\n"


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    file = tmp_path / "participants.tsv"
    file.write_text(TABLE.format("x", "y", "z"))
    return Scan(file, {"sub": "2"}, tmp_path)


def test_numbers_stay_and_words_are_encoded(scan: Scan) -> None:
    found = extract(scan, columns=("age", "sex", "hand"))
    assert found.labels == ("age", "sex=M", "hand=B", "hand=L", "hand=R")
    np.testing.assert_array_equal(found.values, [np.nan, 0, 0, 1, 0])


def test_free_text_is_left_out_unless_it_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "t.tsv"
    file.write_text("participant_id\tnote\n" + "".join(f"sub-{k}\ttext{k}\n" for k in range(20)))
    scan = Scan(file, {"sub": "2"}, tmp_path)
    assert extract(scan).labels == ()
    with pytest.raises(DataError, match="note.*20 different"):
        extract(scan, columns=("note",))


def test_unknown_columns_and_people_are_named(scan: Scan, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'iq'"):
        extract(scan, columns=("iq",))
    with pytest.raises(DataError, match="sub-9 has no row"):
        extract(Scan(scan.path, {"sub": "9"}, tmp_path))


def with_json(scan: Scan, **said: Any) -> Scan:
    scan.path.with_suffix(".json").write_text(json.dumps(said))
    return scan


def test_levels_of_the_json_give_the_order_and_those_that_nobody_has(scan: Scan) -> None:
    levels = {"R": "right", "L": "left", "B": "both", "N": "neither", "n/a": "unknown"}
    found = extract(
        with_json(scan, sex={"Levels": {"M": "male", "F": "female"}}, hand={"Levels": levels}), columns=("sex", "hand")
    )
    assert found.labels == ("sex=F", "hand=R", "hand=L", "hand=B", "hand=N")
    np.testing.assert_array_equal(found.values, [1, 0, 1, 0, 0])


def test_numbers_that_the_json_calls_levels_are_categories(tmp_path: Path) -> None:
    file = tmp_path / "scanners.tsv"
    file.write_text("participant_id\tscanner\nsub-1\t7\nsub-2\t3\n")
    scan = with_json(Scan(file, {"sub": "1"}, tmp_path), scanner={"Levels": {"3": "old", "5": "new", "7": "newest"}})
    found = extract(scan)
    assert found.labels == ("scanner=3", "scanner=5", "scanner=7")
    np.testing.assert_array_equal(found.values, [0, 0, 1])


def test_list_of_levels_that_lacks_a_value_is_passed_over(scan: Scan) -> None:
    found = extract(with_json(scan, sex={"Levels": {"male": "M", "female": "F"}}, age={"Levels": {"999": "unknown"}}))
    assert found.labels[:2] == ("age", "sex=M")


def test_units_are_told_of_the_columns_that_have_one(scan: Scan) -> None:
    said = {"age": {"Units": "year"}, "sex": {"Levels": {"M": "male", "F": "female"}}, "note": {"Units": "none"}}
    found = extract(with_json(scan, **said, version="2"), columns=("age", "sex"))
    assert found.metadata["Units"] == {"age": "year"}


def test_json_that_is_none_is_named(scan: Scan) -> None:
    scan.path.with_suffix(".json").write_text("{")
    with pytest.raises(DataError, match="participants.json is not JSON"):
        extract(scan)
