"""Tests of custom.inference.inputs: which files a path means, and what their translations are called."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import pydicom
import pytest

from custom.data.datalist import load_datalist
from custom.data.names import image_stem
from custom.inference.inputs import inference_inputs
from custom.inference.provenance import read_provenance


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


def test_default_is_a_held_out_subject_which_is_said(brats_folder: Callable, caplog) -> None:
    root = brats_folder(dict.fromkeys("abc", ("t2", "flair")))
    chosen = found(dataset_dir=root)
    assert not (root / "datalist.json").exists()  # a translation leaves nothing in the data's folder
    held_out = Path(load_datalist(root, "test")[0]["t2"])
    assert chosen == {held_out.name.removesuffix(".nii.gz"): held_out}
    assert f"no --image was given: {held_out}" in caplog.text


NO_SCANS = {
    "BraTS-GLI-00001-000-seg.nii.gz": "a segmentation or mask",
    "UCSF-PDGM-0004_tumor_segmentation.nii.gz": "a segmentation or mask",
    "patient1_GOLD_STANDARD.nii.gz": "a segmentation or mask",
    "patient1_consensus_gt.nii.gz": "a segmentation or mask",
    "brainmask.nii": "a segmentation or mask",
    "sub-1_dseg.mha": "a segmentation or mask",
    "._T1.nii.gz": "hidden",
    ".tmpabc.part.nii.gz": "hidden",
}


@pytest.mark.parametrize(("name", "why"), NO_SCANS.items())
def test_what_is_no_scan_is_passed_over_in_folders_and_refused_when_named(
    write_volume: Callable, tmp_path: Path, caplog, name: str, why: str
) -> None:
    scan = write_volume("in/mask_free_t1.nii.gz")  # a name that only holds such a word
    other = tmp_path / "in" / name
    other.write_bytes(scan.read_bytes())
    assert found(tmp_path / "in") == {"mask_free_t1": scan}
    assert f"1 passed over ({why}" in caplog.text
    assert name in caplog.text
    with pytest.raises(ValueError, match=f"expected a scan; found {why}"):
        inference_inputs(other)


def test_translations_are_known_by_their_header_and_taken_when_named(write_volume: Callable, tmp_path: Path) -> None:
    image = nib.load(write_volume("in/renamed.nii.gz"))
    image.header["descrip"] = b"SYNTHETIC t2 from brain_mri_modality_translation v0.2.0"
    nib.save(nib.Nifti1Image(image.get_fdata(), image.affine, image.header), tmp_path / "in" / "renamed.nii.gz")
    scan = write_volume("in/scan.nii.gz")
    assert found(tmp_path / "in") == {"scan": scan}
    assert found(tmp_path / "in" / "renamed.nii.gz") == {"renamed": tmp_path / "in" / "renamed.nii.gz"}


def test_links(write_volume: Callable, tmp_path: Path, caplog) -> None:
    """A link to a subject's folder is followed; one that points nowhere is said, as archives leave behind."""
    scan = write_volume("archive/s1/t1.nii.gz")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "s1").symlink_to(tmp_path / "archive" / "s1")
    (tmp_path / "in" / "gone.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    assert [file.resolve() for file in found(tmp_path / "in").values()] == [scan]
    assert "1 passed over (a link that points nowhere): gone.nii.gz" in caplog.text
    with pytest.raises(FileNotFoundError, match="found a link that points nowhere"):
        inference_inputs(tmp_path / "in" / "gone.nii.gz")


def test_nothing_is_named() -> None:
    with pytest.raises(ValueError, match=r"expected a file, .*; found none"):
        inference_inputs([])
    with pytest.raises(ValueError, match="Add --image"):
        inference_inputs()


@pytest.mark.parametrize("image", ["", [""], ["scan.nii.gz", ""], True, 3])
def test_an_empty_path_or_none_is_no_scan(image: object, brats_folder: Callable, monkeypatch, tmp_path: Path) -> None:
    """A shell's unset variable would else translate the working directory, or phantoms that are made first."""
    root = brats_folder({"a": ("t1",)})
    monkeypatch.chdir(root)
    with pytest.raises(ValueError, match="image: expected a file or a folder; found"):
        inference_inputs(image, dataset_dir=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.nii\.gz: expected an image or a folder"):
        inference_inputs(tmp_path / "gone.nii.gz")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "found none"),
        (("a_seg.nii.gz", "a_t2_synthetic.nii.gz"), r"1 passed over \(a segmentation.*a_seg.*1 passed over \(a transl"),
    ],
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


def test_damaged_beginning_is_left_to_the_reader(write_volume: Callable) -> None:
    """Whether it is a translation cannot be told from a header that cannot be decompressed; that is no fault here."""
    file = write_volume("folder/scan.nii.gz")
    content = bytearray(file.read_bytes())
    content[20:60] = b"\xff" * 40
    file.write_bytes(content)
    assert [item["image"] for item in inference_inputs(file.parent)] == [str(file)]
    assert read_provenance(file) is None


def test_a_pipe_is_refused_before_it_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "scan.nii")
    with pytest.raises(ValueError, match=r"scan.nii: expected a file or a folder; found a pipe"):
        inference_inputs(tmp_path / "scan.nii")
