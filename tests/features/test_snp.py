"""Genotypes are those of the person, missing ones are missing, and what does not fit is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bed_reader import open_bed, to_bed

from bids_dl.errors import DataError
from bids_dl.features.snp import extract, open_panel
from bids_dl.records import Scan

PEOPLE = ("01", "sub-02", "03", "04", "05")


def genotypes(path: Path, n_variants: int = 12, people: tuple[str, ...] = PEOPLE, **more: object) -> np.ndarray:
    """Write random genotypes with PLINK's own kind of files, and return them, (person, variant)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(-1, 3, (len(people), n_variants)).astype(np.int8)
    values[values < 0] = values[:, 2] = -127
    properties = {
        "iid": people, "sid": [f"rs{k}" for k in range(n_variants)], "bp_position": list(range(100, 100 + n_variants)),
        "chromosome": ["1" if k < 5 else "X" for k in range(n_variants)], "allele_1": list("ACGT" * n_variants)[:n_variants],
    } | more  # fmt: skip
    to_bed(path, values, properties=properties)
    return values


def scan(path: Path, who: str = "02") -> Scan:
    return Scan(path, {"sub": who, "suffix": "bed", "datatype": "genetics"}, path.parent)


@pytest.mark.parametrize("row", range(5))
def test_each_person_has_the_genotypes_that_bed_reader_reads(tmp_path: Path, row: int) -> None:
    path = tmp_path / "all.bed"
    genotypes(path)
    found = extract(scan(path, PEOPLE[row].removeprefix("sub-")))
    with open_bed(path) as bed:
        np.testing.assert_array_equal(found.values, bed.read(np.s_[row, :], dtype="float32")[0])
    assert np.isnan(found.values).any()
    assert (found.dims, found.unit, found.suffix) == (("variant",), "copies", "snp")


def test_label_is_the_variant_with_its_counted_allele_or_its_place(tmp_path: Path) -> None:
    path = tmp_path / "all.bed"
    genotypes(path, 3, sid=["rs7", ".", "rs9"])
    assert extract(scan(path)).labels == ("rs7_A", "1:101_C", "rs9_G")


def test_variants_that_share_name_and_allele_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "all.bed"
    more = {"sid": ["rs1", "rs1", ".", ".", "rs2", "rs2"], "bp_position": [10, 20, 30, 30, 50, 60]}
    more |= {"allele_1": list("AACCAG"), "allele_2": list("GGGTTT"), "chromosome": ["1"] * 6}
    genotypes(path, 6, **more)
    assert extract(scan(path)).labels == ("1:10_A", "1:20_A", "1:30:G_C", "1:30:T_C", "rs2_A", "rs2_G")
    genotypes(path, 6, sid=["."] * 6, bp_position=[7] * 6, allele_1=["A"] * 6, chromosome=["1"] * 6)
    assert len(set(extract(scan(path)).labels)) == 6


def test_chromosomes_and_a_number_of_variants_are_chosen(tmp_path: Path) -> None:
    path = tmp_path / "all.bed"
    values = genotypes(path).astype(np.float32)
    values[values < 0] = np.nan
    found = extract(scan(path), chromosomes=("X",))
    assert found.labels[0] == "rs5_C"
    np.testing.assert_array_equal(found.values, values[1, 5:])
    some = extract(scan(path), max_variants=3)
    assert [label.split("_")[0] for label in some.labels] == ["rs0", "rs6", "rs11"]
    np.testing.assert_array_equal(some.values, values[1, [0, 6, 11]])
    with pytest.raises(DataError, match="sub-02: all.bed has no variant on 23 chromosome; it has 1, X"):
        extract(scan(path), chromosomes=("23",))


def test_stranger_is_refused_with_the_ids_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "all.bed"
    genotypes(path)
    with pytest.raises(DataError, match=r"sub-99 is not among the 5 people of all.fam \(01, 02, 03, …\)"):
        extract(scan(path, "99"))


def test_person_with_two_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "all.bed"
    genotypes(path, people=("01", "sub-01", "02"))
    with pytest.raises(DataError, match="sub-01 stands in 2 rows of all.fam"):
        extract(scan(path, "01"))


def test_person_without_any_genotype_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "all.bed"
    genotypes(path)
    to_bed(path, np.full((5, 12), -127, np.int8), properties={"iid": PEOPLE})
    with pytest.raises(DataError, match="sub-02 has no genotype in all.bed"):
        extract(scan(path))


@pytest.mark.parametrize("end", [".bim", ".fam"])
def test_missing_table_is_named(tmp_path: Path, end: str) -> None:
    path = tmp_path / "all.bed"
    genotypes(path)
    path.with_suffix(end).unlink()
    with pytest.raises(DataError, match=f"sub-02: all.bed lacks its {end}"):
        extract(scan(path))


def test_truncated_file_and_one_of_another_kind_are_named(tmp_path: Path) -> None:
    path, other, old = tmp_path / "all.bed", tmp_path / "other.bed", tmp_path / "old.bed"
    for one in (path, other, old):
        genotypes(one)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="sub-02: all.bed has 23 bytes where 5 people and 12 variants make 27"):
        extract(scan(path))
    other.write_bytes(b"BED" + other.read_bytes()[3:])
    with pytest.raises(DataError, match="sub-02: other.bed or its tables cannot be read"):
        extract(scan(other))
    old.write_bytes(b"l\x1b\x00" + old.read_bytes()[3:])
    with pytest.raises(DataError, match=r"person by person.*plink --make-bed"):
        extract(scan(old))


def test_damaged_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "all.bed"
    genotypes(path)
    path.with_suffix(".bim").write_text("1\trs0\n2\n")
    with pytest.raises(DataError, match="sub-02: all.bed or its tables cannot be read"):
        extract(scan(path))


def test_tables_are_read_once_for_everybody(tmp_path: Path) -> None:
    path = tmp_path / "all.bed"
    genotypes(path)
    extract(scan(path, "01"))
    before = open_panel.cache_info().misses
    extract(scan(path, "03"))
    assert open_panel.cache_info().misses == before


def test_files_that_were_written_anew_are_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "all.bed"
    genotypes(path)
    assert extract(scan(path)).labels[0] == "rs0_A"
    values = genotypes(path, people=("02", "01", "03", "04", "05"), sid=[f"new{k}" for k in range(12)])
    found = extract(scan(path))
    assert found.labels[0] == "new0_A"
    np.testing.assert_array_equal(np.nan_to_num(found.values, nan=-127), values[0])
