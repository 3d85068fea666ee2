"""Columns become numbers; words become one column a level."""

from __future__ import annotations

from pathlib import Path

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
