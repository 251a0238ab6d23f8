"""Tests of custom.inference.sources: what several files of one subject are, and what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from custom.inference.inputs import inference_inputs
from custom.inference.sources import one_subject, set_name
from custom.utils.modalities import BRATS_MODALITIES


def items(image: object, **kwargs: object) -> list[dict]:
    return inference_inputs(image, modalities=BRATS_MODALITIES, **kwargs)


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (("a/p1_t1.nii.gz", "a/p1_flair.nii.gz"), "p1"),
        (("a/sub-01_ses-2_T1w.nii.gz", "a/sub-01_ses-2_T2w.nii.gz"), "sub-01_ses-2"),
        (("BraTS-GLI-00001-000-t1c.nii.gz", "BraTS-GLI-00001-000-t2f.nii.gz"), "BraTS-GLI-00001-000"),
        (("a/patient7/t1.nii.gz", "a/patient7/flair.nii"), "patient7"),
        (("a/patient7/t1_pre.nii.gz", "a/patient7/t1_post.nii.gz"), "patient7"),  # t1 would be one source's name
        (("patient7/anat/t1.nii", "patient7/later/t2.nii"), "patient7"),
        (("p1.nii.gz", "p1_flair.nii.gz"), "p1"),
        (("p1_t1.nii.gz",), "p1_t1"),
    ],
)
def test_name_of_a_set(files: tuple[str, ...], name: str) -> None:
    for order in (files, files[::-1]):
        assert set_name([Path(file) for file in order]) == name


def test_a_list_is_one_subject_in_an_order_of_its_own(write_volume: Callable, write_series: Callable) -> None:
    files = [write_volume("in/p_t1.nii.gz"), write_volume("in/p_flair.nii.gz"), write_series("in/p_t2")]
    expected = {"image": [str(files[1]), str(files[0]), str(files[2])], "name": "p"}
    for order in (files, files[::-1]):
        assert items(order, targets="t1ce") == items([str(file) for file in order]) == [expected]


def test_a_folder_in_a_list_is_a_series(write_volume: Callable, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_volume(f"in/{name}.nii.gz")
    with pytest.raises(ValueError, match=r"in: expected one scan, .*; found a folder with 2.*--layout"):
        items([tmp_path / "in"])


def test_a_target_among_the_sources_is_refused(write_volume: Callable) -> None:
    files = [write_volume(name) for name in ("p_T1w.nii.gz", "p_FLAIR.nii.gz")]
    with pytest.raises(ValueError, match=r"p_FLAIR\.nii\.gz: expected sources of other contrasts.*found flair.*Copy"):
        items(files, targets=["t2", "flair"])
    assert items(files[1], targets="flair")  # a scan by itself may be anything, as its name need not tell
    unnamed = [write_volume(name) for name in ("one.nii.gz", "two.nii.gz")]
    assert items(unnamed, targets="flair")


def test_what_is_missing_by_the_names(write_volume: Callable) -> None:
    files = [write_volume(name) for name in ("p_T1w.nii.gz", "p_ce-gd_T1w.nii.gz", "p_FLAIR_to_T1.nii.gz")]
    bids = [f.rename(f.with_name(f"sub-{f.name}")) for f in files]
    [item] = items(bids, targets="missing")
    assert item["targets"] == "t2"
    assert item["name"] == "sub-p"
    with pytest.raises(ValueError, match=r"other\.nii\.gz: expected a name that tells the contrast"):
        items([bids[0], write_volume("other.nii.gz")], targets="missing")
    with pytest.raises(ValueError, match="expected contrasts; found missing, which is for subjects"):
        items(bids[0], targets="missing")
    every = [write_volume(f"q_{m}.nii.gz") for m in BRATS_MODALITIES]
    with pytest.raises(ValueError, match="q: expected a contrast that is missing; found all of"):
        items(every, targets="missing")


def test_sources_of_two_patients_are_refused(write_volume: Callable, write_series: Callable) -> None:
    files = [write_volume(name) for name in ("sub-01_T1w.nii.gz", "sub-02_T2w.nii.gz")]
    with pytest.raises(
        ValueError, match=r"sub-02.*expected the sources of one subject; found patient '02' in its name"
    ):
        items(files)
    folders = [write_volume(f"sub-0{n}/anat/{name}.nii.gz") for n, name in ((1, "T1w"), (2, "T2w"))]
    with pytest.raises(ValueError, match="found patient '02' in its name, and '01'"):
        items(folders)
    other = write_series("b", edit=lambda dataset, _: setattr(dataset, "PatientID", "P2"))
    with pytest.raises(ValueError, match=r"b: expected the sources of one subject; found patient 'P2' in its DICOM"):
        items([write_series("a"), other])
    assert items([write_series("c"), write_series("d")])


def test_a_layout_gives_each_subject_what_it_has(brats_folder: Callable, caplog) -> None:
    root = brats_folder({"a": ("t1", "flair"), "b": BRATS_MODALITIES, "c": ("t1ce", "seg", "other")})
    (root / "a" / "a_t2_synthetic.nii.gz").write_bytes((root / "a" / "a_t1.nii.gz").read_bytes())
    found = items(root, layout="brats2021", targets="missing")
    assert [(item["name"], item["targets"]) for item in found] == [("a", "t1ce,t2"), ("c", "t1,t2,flair")]
    assert [[Path(file).name for file in item["image"]] for item in found] == [
        ["a_t1.nii.gz", "a_flair.nii.gz"], ["c_t1ce.nii.gz"]
    ]  # fmt: skip
    assert "1 of 3 subjects lack none of the targets and are passed over: b" in caplog.text
    assert "1 passed over (a translation already): a_t2_synthetic.nii.gz" in caplog.text
    [only] = items(root, layout="brats2021", targets=["t1", "flair"])
    assert (only["name"], only["targets"]) == ("c", "t1,flair")


def test_a_pattern_of_ones_own(write_volume: Callable, tmp_path: Path) -> None:
    for name in ("x/v1/T1w", "x/v2/T2w", "x/v2/FLAIR"):
        write_volume(f"in/{name}.nii.gz")
    found = items(tmp_path / "in", layout="plain", pattern="{subject}/{session}/{modality}.nii.gz", targets="t1ce")
    assert {item["name"]: len(item["image"]) for item in found} == {"x_v1": 1, "x_v2": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "brats"}, "layout: expected one of brats2021, brats2023, ixi, plain; found 'brats'"),
        ({"layout": "ixi"}, "expected subjects in the ixi layout, such as IXI-T2/.*; found none"),
        ({"pattern": "{subject}_{modality}.nii"}, "pattern: expected --layout plain beside it"),
    ],
    ids=["unknown", "none", "pattern alone"],
)
def test_layouts_that_do_not_fit(brats_folder: Callable, options: dict, message: str) -> None:
    root = brats_folder({"a": ("t1", "flair")})
    with pytest.raises(ValueError, match=message):
        items(root, targets="missing", **options)


def test_a_layout_is_of_a_folder(write_volume: Callable) -> None:
    for image in ([write_volume("a.nii.gz")], None):
        with pytest.raises(ValueError, match="image: expected the folder of the subjects beside --layout ixi"):
            items(image, targets="t1", layout="ixi")


def test_a_subject_with_two_files_of_one_contrast_is_its_own_fault(brats_folder: Callable, write_volume) -> None:
    root = brats_folder({"a": ("t1",), "b": ("t1",)})
    (root / "more" / "a").mkdir(parents=True)
    (root / "more" / "a" / "a_t1.nii.gz").write_bytes((root / "a" / "a_t1.nii.gz").read_bytes())
    faults = {item["name"]: item.get("fault", "") for item in items(root, layout="brats2021", targets="missing")}
    assert "expected one t1 file for subject a; found" in faults["a"]
    assert faults["b"] == ""


def test_a_set_for_dicom_output_is_dicom(write_series: Callable, write_volume: Callable) -> None:
    with pytest.raises(ValueError, match=r"b\.nii\.gz: expected a DICOM series"):
        items([write_series("a"), write_volume("b.nii.gz")], output_format="dicom")


def test_targets_are_not_needed_to_know_the_files(write_volume: Callable) -> None:
    assert "targets" not in one_subject([write_volume("p_t1.nii.gz"), write_volume("p_t2.nii.gz")], BRATS_MODALITIES)
