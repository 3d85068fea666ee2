"""What is missing or broken is empty; what was moved with the output is found."""

import re

import pytest

from bids_dl import derivatives, written, zoo


def test_missing_and_broken_files_are_empty(tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text('{"a": ')
    assert written.read_json(broken) == {}
    assert written.read_json(tmp_path / "none.json") == {}
    assert written.read_text(tmp_path / "none.txt") == ""
    assert written.read_table(tmp_path / "none.tsv").empty


def test_names_of_people_stay_text(tmp_path):
    path = tmp_path / "people.tsv"
    path.write_text("participant_id\tsite\tage\n001\t02\t7\nsub-NA\tn/a\t8\n")
    table = written.read_table(path)
    assert table["participant_id"].tolist() == ["001", "sub-NA"]
    assert table["site"].tolist()[0] == "02"
    assert table["age"].tolist() == [7, 8]


def test_explanations_are_read_from_their_names(tmp_path):
    folder = tmp_path / "group" / "explanations"
    folder.mkdir(parents=True)
    (folder / "target-dx_model-a_b_feature-t1w_desc-gradcam_statmap.nii.gz").touch()
    (folder / "target-dx_notes.txt").touch()
    found = [said for _, said in written.explanations(tmp_path)]
    assert found == [{"target": "dx", "model": "a_b", "feature": "t1w", "method": "gradcam", "kind": "statmap"}]


def test_a_file_of_a_moved_output_is_found(tmp_path):
    moved = tmp_path / "moved" / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    moved.parent.mkdir(parents=True)
    moved.touch()
    out = tmp_path / "moved"
    assert written.located(out, "/gone/out/sub-01/anat/sub-01_T1w.nii.gz") == moved
    assert not written.located(out, "/gone/out/sub-02/anat/sub-02_T1w.nii.gz").exists()
    assert written.located(out, str(moved)) == moved


def test_a_broken_toml_is_empty(tmp_path):
    path = tmp_path / "a.toml"
    assert written.read_toml(path) == {}
    path.write_text("[quality]\nmin_mask_dice = 0.8\n")
    assert written.read_toml(path) == {"quality": {"min_mask_dice": 0.8}}
    path.write_text("[quality\n")
    assert written.read_toml(path) == {}


@pytest.mark.parametrize("name", zoo.names("models"))
def test_summary_of_a_model_ends_in_no_word_that_led_to_a_reference(name, tmp_path):
    choices = {"models": [{"id": name, "summary": zoo.summary("models", name)}]}
    derivatives.write_json(tmp_path / "group" / "choices.json", choices)
    said = written.read_choices(tmp_path)["models"][0]["summary"]
    assert not re.search(r"\[\d|,[.,]|\b(in|of|as|after)[.,]", said)
