"""Tests of custom.data.layouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from custom.data.layouts import discover
from custom.utils.modalities import BRATS_MODALITIES


def test_finds_subjects_and_segmentations(brats_folder) -> None:
    root = brats_folder({"B_2": ("t1", "t1ce", "t2", "flair", "seg"), "A_1": ("t1", "flair")})
    entries = discover(root)
    assert [e["subject"] for e in entries] == ["A_1", "B_2"]
    assert set(entries[0]) == {"subject", "t1", "flair"}
    assert set(entries[1]) == {"subject", *BRATS_MODALITIES, "seg"}
    assert entries[1]["t1ce"] == str(root.resolve() / "B_2" / "B_2_t1ce.nii.gz")


def test_aliases_and_case(brats_folder) -> None:
    root = brats_folder({"a": ("T1", "T1Gd", "t2w", "other")})
    assert set(discover(root)[0]) == {"subject", "t1", "t1ce", "t2"}


def test_vocabulary_limits_what_is_taken(brats_folder) -> None:
    root = brats_folder({"a": ("t1", "t2", "flair")})
    assert set(discover(root, ["t1", "t2"])[0]) == {"subject", "t1", "t2"}


def test_files_outside_their_subjects_folder_are_ignored(brats_folder) -> None:
    root = brats_folder({"a": ("t1", "t2")})
    (root / "a" / "b_flair.nii.gz").touch()
    (root / "a" / "a_flair_old.nii.gz").touch()
    assert set(discover(root)[0]) == {"subject", "t1", "t2"}


def test_one_modality_only_is_left_out_with_a_message(brats_folder, caplog) -> None:
    root = brats_folder({"good": ("t1", "t2"), "poor": ("t1", "seg")})
    assert [e["subject"] for e in discover(root)] == ["good"]
    assert "subject poor is left out" in caplog.text


def test_two_files_for_one_modality(brats_folder) -> None:
    with pytest.raises(ValueError, match="expected one t1ce file for subject a"):
        discover(brats_folder({"a": ("t1", "t1c", "t1ce")}))


def test_nothing_usable(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected subjects in the brats2021 layout"):
        discover(tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="found no folder"):
        discover(tmp_path / "gone")


def test_unknown_layout(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layout: expected one of brats2021"):
        discover(tmp_path, layout="unknown")
