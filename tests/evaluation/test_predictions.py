from __future__ import annotations

from pathlib import Path

import pytest

from custom.evaluation.predictions import find_truths, match_predictions


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("names", "subject"),
    [
        (
            ("BraTS2021_00001/BraTS2021_00001_t1.nii.gz", "BraTS2021_00001/BraTS2021_00001_seg.nii.gz"),
            "BraTS2021_00001",
        ),
        (("a-b-000-t1n.nii.gz", "a-b-000-seg.nii.gz"), "a-b-000"),
        (("sub-07/T1w.nii", "sub-07/seg.nii"), "sub-07"),
    ],
)
def test_truths_are_found_by_their_names(tmp_path, names, subject):
    truths = find_truths(touch(tmp_path, *names, "readme.txt", "other.nii.gz"))
    assert truths == {subject: {"t1": tmp_path / names[0], "seg": tmp_path / names[1]}}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("s_1_t1_t2.nii.gz", ("s_1", "t1", "t2")),
        ("s_1_T1_to_T2.nrrd", ("s_1", "t1", "t2")),
        ("s_1_t1_t2_synthetic.nii.gz", ("s_1", "t1", "t2")),
        ("s_1_t2w.nii.gz", ("s_1", "", "t2")),
        ("s_1/pred_t2.nii.gz", ("s_1", "", "t2")),
        ("s_10_t1_t2.nii.gz", ("s_10", "t1", "t2")),
    ],
)
def test_predictions_are_matched(tmp_path, name, expected):
    truths = {s: {"t1": Path("a"), "t2": Path("b"), "seg": Path("c")} for s in ("s_1", "s_10")}
    (found,) = match_predictions(touch(tmp_path, name), truths).files
    assert found[:3] == expected
    assert found.path == tmp_path / name


def test_a_subject_with_one_true_image_needs_no_modality(tmp_path):
    (found,) = match_predictions(touch(tmp_path, "s.nii.gz"), {"s": {"t2": Path("b")}}).files
    assert found[:3] == ("s", "", "t2")


def test_what_does_not_match_is_named_with_the_reason(tmp_path):
    touch(tmp_path, "other_t2.nii.gz", "s_pd.nii.gz", "s_x.nii.gz")
    matched = match_predictions(tmp_path, {"s": {"t1": Path("a"), "t2": Path("b")}})
    assert matched.files == []
    assert matched.unmatched == {
        "other_t2.nii.gz": "no true subject has the beginning of its name",
        "s_pd.nii.gz": "no true pd of s",
        "s_x.nii.gz": "its name holds no modality",
    }


def test_clear_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the folder of true images"):
        find_truths(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="expected a folder of predictions"):
        match_predictions(tmp_path / "absent", {})
    with pytest.raises(ValueError, match="expected images named <subject>_<modality>"):
        find_truths(touch(tmp_path / "empty", "x.nii"))
    with pytest.raises(ValueError, match="expected one t1 of subject s"):
        find_truths(touch(tmp_path / "two", "s_t1.nii.gz", "s_t1w.nii.gz"))
    with pytest.raises(ValueError, match="expected one prediction of t2 for s"):
        match_predictions(touch(tmp_path / "twice", "s_t2.nii.gz", "s_t2.nrrd"), {"s": {"t2": Path("a"), "t1": Path()}})
