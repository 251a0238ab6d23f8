"""Tests of custom.inference.inputs: which files a path means, and what their translations are called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest

from custom.data.datalist import load_datalist
from custom.data.names import image_stem
from custom.inference.inputs import inference_inputs


def found(*args: object, **kwargs: object) -> dict[str, Path]:
    return {item["name"]: Path(item["image"]) for item in inference_inputs(*args, **kwargs)}


@pytest.mark.parametrize(
    ("path", "stem"),
    [("a/b.c.nii.gz", "b.c"), ("a.NRRD", "a"), ("scan.dcm", "scan"), ("1.2.840.5", "1.2.840.5"), ("a/dir.1", "dir.1")],
)
def test_image_stem(path: str, stem: str) -> None:
    assert image_stem(path) == stem


def test_a_folder_of_everything(
    write_volume: Callable, write_series: Callable, write_enhanced: Callable, tmp_path: Path
) -> None:
    expected = {
        "a": write_volume("in/a.nii.gz"),
        "b": write_volume("in/deep/b.nii"),
        "series": write_series("in/deep/series"),
        "one": write_enhanced("in/frames/one"),
        "two": write_enhanced("in/frames/two.dcm"),
    }
    write_volume("in/a_seg.nii.gz")
    write_volume("in/a_t2_synthetic.nii.gz")
    write_series("in/series_t2_synthetic")
    (tmp_path / "in" / "deep" / "notes.txt").write_text("not an image")
    assert found(tmp_path / "in") == expected


def test_a_series_by_itself(write_series: Callable) -> None:
    folder = write_series("series")
    assert found(folder, output_format="dicom") == {"series": folder}


def test_multi_frame_files_beside_other_dicom(write_series: Callable, write_enhanced: Callable) -> None:
    """Each multi-frame file is an image; the folder is one if it holds slices; a report is none, wherever it sorts."""
    folder = write_enhanced("mixed/m1.dcm").parent
    write_enhanced("mixed/m2.dcm")
    report = pydicom.dcmread(folder / "m1.dcm")
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"  # Basic Text SR
    for keyword in ("Rows", "Columns", "NumberOfFrames", "PixelData"):
        del report[keyword]
    report.save_as(folder / "a_report.dcm")
    assert [Path(i["image"]) for i in inference_inputs(folder)] == [folder / "m1.dcm", folder / "m2.dcm"]
    next(write_series("slices").iterdir()).rename(folder / "0.dcm")
    assert [Path(i["image"]) for i in inference_inputs(folder)] == [folder / "m1.dcm", folder / "m2.dcm", folder]


def test_equal_names_are_told_apart_by_their_folders(write_volume: Callable, tmp_path: Path) -> None:
    files = [write_volume(f"in/{patient}/{name}.nii.gz") for patient in ("p1", "p2") for name in ("t1", patient)]
    names = ("p1_t1", "p1", "p2_t1", "p2")
    assert found(tmp_path / "in") == dict(zip(names, files, strict=True))


def test_equal_names_without_a_common_folder(write_volume: Callable) -> None:
    files = [write_volume(f"{patient}/t1.nii.gz") for patient in ("p1", "p2")]
    assert found([files[0], files[0]]) == {"t1": files[0]}
    with pytest.raises(ValueError, match=r"p2/t1\.nii\.gz: expected files whose names differ.*found .*p1/t1"):
        inference_inputs(files)


def test_default_is_a_held_out_subject(brats_folder: Callable) -> None:
    root = brats_folder(dict.fromkeys("abc", ("t2", "flair")))
    held_out = Path(load_datalist(root, "test")[0]["t2"])
    assert found(dataset_dir=root) == {held_out.name.removesuffix(".nii.gz"): held_out}


def test_nothing_is_named() -> None:
    with pytest.raises(ValueError, match=r"expected a file, .*; found \[\]"):
        inference_inputs([])
    with pytest.raises(ValueError, match="Add --image"):
        inference_inputs()


@pytest.mark.parametrize("image", ["", [""], ["scan.nii.gz", ""], True, 3])
def test_an_empty_path_or_none_is_no_scan(image: object, brats_folder: Callable, monkeypatch, tmp_path: Path) -> None:
    """A shell's unset variable would else translate the working directory, or phantoms that are made first."""
    root = brats_folder({"a": ("t1",)})
    monkeypatch.chdir(root)
    with pytest.raises(ValueError, match="image: expected a file, a list of files or a folder; found"):
        inference_inputs(image, dataset_dir=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.nii\.gz: expected an image or a folder"):
        inference_inputs(tmp_path / "gone.nii.gz")


@pytest.mark.parametrize(
    ("names", "message"),
    [((), "found none"), (("a_seg.nii.gz", "a_t2_synthetic.nii.gz"), "only 2 segmentations and translations")],
)
def test_nothing_to_translate(write_volume: Callable, tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    (tmp_path / "in").mkdir()
    for name in names:
        write_volume(f"in/{name}")
    with pytest.raises(ValueError, match=message):
        inference_inputs(tmp_path / "in")


def test_dicom_output_of_another_format(write_volume: Callable) -> None:
    with pytest.raises(ValueError, match=r"a\.nii\.gz: expected a DICOM series"):
        inference_inputs(write_volume("a.nii.gz"), output_format="dicom")
