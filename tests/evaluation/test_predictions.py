from __future__ import annotations

from pathlib import Path

import pytest

from custom.data.names import sidecar_of
from custom.evaluation.predictions import find_truths, match_predictions
from custom.inference.provenance import sidecar_text, translation_record, uncertainty_record


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
        ("s_1_t2_from_t1.nii.gz", ("s_1", "t1", "t2")),
        ("s_1_from_t1_to_t2.nii.gz", ("s_1", "t1", "t2")),
        ("s_1_from_t1_t2_epoch9.nii.gz", ("s_1", "t1", "t2")),
    ],
)
def test_predictions_are_matched(tmp_path, name, expected):
    truths = {s: {"t1": Path("a"), "t2": Path("b"), "seg": Path("c")} for s in ("s_1", "s_10")}
    (found,) = match_predictions(touch(tmp_path, name), truths).files
    assert found[:3] == expected
    assert found.path == tmp_path / name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sub-01_ses-2_T2w.nii.gz", ("", "t2")),
        ("sub-01_ses-2_acq-t1_desc-pred_T2w.nii.gz", ("", "t2")),
        ("sub-01_ses-2_from-T1w_desc-pred_T2w.nii.gz", ("t1", "t2")),
        ("sub-01_ses-2_T1w_t2_synthetic.nii.gz", ("t1", "t2")),
        ("sub-01_ses-2_ce-gadolinium_T1w_t2_synthetic.nii.gz", ("t1ce", "t2")),
        ("sub-01_ses-2_T2w_from_T1w.nii.gz", ("t1", "t2")),
    ],
)
def test_names_of_bids(tmp_path, name, expected):
    anat = "sub-01/ses-2/anat"
    true = {"t1": "sub-01_ses-2_T1w", "t1ce": "sub-01_ses-2_ce-gd_T1w", "t2": "sub-01_ses-2_acq-tse_T2w"}
    touch(tmp_path / "truth", *(f"{anat}/{stem}.nii.gz" for stem in true.values()), f"{anat}/sub-01_ses-2_dwi.nii.gz")
    truths = find_truths(tmp_path / "truth")
    assert truths == {"sub-01_ses-2": {m: tmp_path / f"truth/{anat}/{stem}.nii.gz" for m, stem in true.items()}}
    (found,) = match_predictions(touch(tmp_path / "pred", f"{anat}/{name}"), truths).files
    assert found[:3] == ("sub-01_ses-2", *expected)


def test_what_is_guessed_from_names_is_said(tmp_path):
    touch(tmp_path / "order", "s_t1_t2.nii.gz", "s_t2_to_t1.nii.gz")
    guesses = match_predictions(tmp_path / "order", {"s": {"t1": Path("a"), "t2": Path("b")}}).guesses
    assert [(guess.partition(",")[0], names) for guess, names in guesses.items()] == [
        ("read as <source>_<target>", ["s_t1_t2.nii.gz"])
    ]
    (guess,) = match_predictions(touch(tmp_path / "one", "s.nii.gz"), {"s": {"t2": Path("b")}}).guesses
    assert guess.startswith("taken for the one contrast")
    ours = match_predictions(touch(tmp_path / "ours", "s_t1_t2_synthetic.nii.gz"), {"s": {"t2": Path("b")}})
    assert ours.guesses == {}


def test_a_subject_with_one_true_image_needs_no_modality(tmp_path):
    (found,) = match_predictions(touch(tmp_path, "s.nii.gz"), {"s": {"t2": Path("b")}}).files
    assert found[:3] == ("s", "", "t2")


def test_what_does_not_match_is_named_with_the_reason(tmp_path):
    touch(tmp_path, "other_t2.nii.gz", "s_pd.nii.gz", "s_x.nii.gz", "s_t1_t2_pd.nii.gz", "s_from_t1.nii.gz")
    matched = match_predictions(tmp_path, {"s": {"t1": Path("a"), "t2": Path("b")}})
    assert matched.files == []
    assert matched.unmatched == {
        "other_t2.nii.gz": "no true subject has the beginning of its name",
        "s_from_t1.nii.gz": "its name holds a source and no target",
        "s_pd.nii.gz": "no true pd of s",
        "s_t1_t2_pd.nii.gz": "its name holds 3 modalities: expected <subject>_<source>_to_<target>",
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


TRUTHS = {"s": {"t1": Path("s_t1.nii.gz"), "t2": Path("s_t2.nii.gz"), "flair": Path("s_flair.nii.gz")}}


def recorded(folder: Path, name: str, record: dict) -> None:
    touch(folder, name)
    sidecar_of(folder / name).write_text(sidecar_text(record))


@pytest.mark.parametrize(
    ("sources", "source"),
    [
        (["s_flair.nii.gz", "s_t1.nii.gz"], "t1+flair"),
        (["a/T1w.nii.gz", "a/scan_t2f.nii.gz"], "t1+flair"),
        (["s_t1.nii.gz"], "t1"),
        (["scan.nii.gz"], ""),
    ],
)
def test_a_record_goes_before_the_name(tmp_path, sources, source):
    recorded(tmp_path, "s_pd_t2_synthetic.nii.gz", translation_record("t2", {}, sources=sources))
    (found,) = match_predictions(tmp_path, TRUTHS).files
    assert found == ("s", source, "t2", tmp_path / "s_pd_t2_synthetic.nii.gz", True)


def test_several_sources_that_are_not_known_are_left_out(tmp_path):
    record = translation_record("t2", {}, sources=["s_t1.nii.gz", "scan.nii.gz"])
    recorded(tmp_path, "s_t2_synthetic.nii.gz", record)
    recorded(tmp_path, "s_t1_t2_synthetic.nii.gz", {**record, "Sources": [], "SourceSHA": ["a", "b"]})
    matched = match_predictions(tmp_path, TRUTHS)
    assert matched.files == []
    assert matched.unmatched == {
        "s_t2_synthetic.nii.gz": "it was made of 2 sources, of which the names do not tell the contrasts "
        "(s_t1.nii.gz, scan.nii.gz)",
        "s_t1_t2_synthetic.nii.gz": "it was made of 2 sources, of which the names do not tell the contrasts "
        "(images in memory)",
    }


def test_error_maps_are_passed_over(tmp_path):
    touch(tmp_path, "s_t1_t2_synthetic.nii.gz", "s_t1_t2_synthetic_uncertainty.nii.gz")
    recorded(tmp_path, "s_error_t2.nii.gz", uncertainty_record(translation_record("t2", {}, sources=["s_t1.nii.gz"])))
    matched = match_predictions(tmp_path, TRUTHS)
    assert [file.path.name for file in matched.files] == ["s_t1_t2_synthetic.nii.gz"]
    assert set(matched.unmatched) == {"s_t1_t2_synthetic_uncertainty.nii.gz", "s_error_t2.nii.gz"}
    assert set(matched.unmatched.values()) == {"an error map, no prediction"}
