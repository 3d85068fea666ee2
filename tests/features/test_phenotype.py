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


def test_each_listed_level_has_its_column_also_one_that_nobody_has(scan: Scan) -> None:
    levels = {"R": "right", "L": "left", "B": "both", "N": "neither", "n/a": "unknown"}
    found = extract(
        with_json(scan, sex={"Levels": {"M": "male", "F": "female"}}, hand={"Levels": levels}), columns=("sex", "hand")
    )
    assert found.labels == ("sex=M", "hand=B", "hand=L", "hand=N", "hand=R")
    np.testing.assert_array_equal(found.values, [0, 0, 1, 0, 0])


def test_columns_do_not_depend_on_who_is_there_or_on_the_order_of_levels(tmp_path: Path) -> None:
    for number, (sex, levels) in enumerate([("M", ["M", "F"]), ("F", ["F", "M"]), ("n/a", ["M", "F"])]):
        file = tmp_path / str(number) / "participants.tsv"
        file.parent.mkdir()
        file.write_text(f"participant_id\tsex\nsub-1\t{sex}\n")
        scan = with_json(Scan(file, {"sub": "1"}, tmp_path), sex={"Levels": dict.fromkeys(levels, "")})
        assert extract(scan).labels == ("sex=M",)


def test_many_levels_are_encoded_where_they_are_listed(tmp_path: Path) -> None:
    file = tmp_path / "t.tsv"
    file.write_text("participant_id\tsite\n" + "".join(f"sub-{k}\tsite{k}\n" for k in range(20)))
    scan = with_json(Scan(file, {"sub": "1"}, tmp_path), site={"Levels": {f"site{k}": "" for k in range(20)}})
    assert len(extract(scan, columns=("site",)).labels) == 20


def test_numbers_stay_numbers_whatever_is_said_of_some(scan: Scan) -> None:
    assert extract(with_json(scan, age={"Levels": {"999": "unknown"}}), columns=("age",)).labels == ("age",)


def test_word_that_is_not_among_the_levels_is_named(scan: Scan) -> None:
    with pytest.raises(DataError, match=r"participants\.tsv: column 'hand' holds 'B', .* \(L, R\); mend"):
        extract(with_json(scan, hand={"Levels": {"R": "right", "L": "left"}}), columns=("hand",))


def test_units_are_told_of_the_columns_that_have_one(scan: Scan) -> None:
    said = {"age": {"Units": "year"}, "sex": {"Levels": {"M": "male", "F": "female"}}, "note": {"Units": "none"}}
    found = extract(with_json(scan, **said, version="2"), columns=("age", "sex"))
    assert found.metadata["Units"] == {"age": "year"}


def test_json_that_is_none_is_named(scan: Scan) -> None:
    scan.path.with_suffix(".json").write_text("{")
    with pytest.raises(DataError, match="participants.json is not JSON"):
        extract(scan)
