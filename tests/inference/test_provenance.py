"""Tests of custom.inference.provenance."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, ScaleIntensityRanged, ScaleIntensityRangePercentilesd
from torch import nn

from custom.data.names import sidecar_of
from custom.data.tolerant import TolerantDataset
from custom.inference.inferer import TranslationInferer
from custom.inference.provenance import (
    PLACE,
    Provenance,
    check_replaceable,
    pending_inputs,
    read_provenance,
    read_record,
    sidecar_text,
    translation_record,
    write_provenance,
)
from custom.inference.saver import SaveImageTranslationsd
from custom.utils.precision import fast_bfloat16


def network(steps: int = 1) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Linear(2, 2)
    made.num_inference_steps = steps
    return made


def provenance(
    made: nn.Module | None = None, lower: float = 0.5, targets: str = "t2", folder: str = "out", **changes: Any
) -> Provenance:
    inferer = TranslationInferer(targets, **{"seed": 0, **changes})
    saver = SaveImageTranslationsd("pred", folder, targets)
    return Provenance(
        made or network(),
        Compose([ScaleIntensityRangePercentilesd("image", lower, 99.5, -1.0, 1.0)]),
        inferer=inferer,
        postprocessing=Compose([ScaleIntensityRanged("pred", -1.0, 1.0, 0.0, 1.0), saver]),
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "scan.nii.gz").write_bytes(b"voxels")
    return tmp_path / "scan.nii.gz"


def test_equal_contents_and_settings_give_equal_records(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.nii.gz"
    copy.write_bytes(source.read_bytes())
    first, *others = (
        json.loads(p.of(s))
        for p, s in ((provenance(), source), (provenance(), copy), (provenance(network().eval()), copy))
    )
    for other in others:  # but for where the source lies
        assert first[PLACE] != other.pop(PLACE)
        assert other.items() <= first.items()


def test_what_changes_no_voxel_does_not_count(source: Path) -> None:
    expected = provenance().of(source)
    assert provenance(targets="flair").of(source) == expected  # of another translation
    assert provenance(folder="elsewhere").of(source) == expected
    assert provenance(amp="auto").of(source) == provenance(amp=fast_bfloat16(torch.device("cpu"))).of(source)


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"num_samples": 2}, {"amp": True}, {"lower": 1.0}, {"modalities": ["t2", "t1"]}],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_decides_the_result_changes_the_record(source: Path, changes: dict[str, Any]) -> None:
    assert provenance(**changes).of(source) != provenance().of(source)


def test_source_and_network_change_the_record(source: Path) -> None:
    before, made = provenance().of(source), network()
    assert provenance(network(2)).of(source) != before
    made.weight.data[0, 0] += 1e-3
    assert provenance(made).of(source) != before
    source.write_bytes(b"others")
    assert provenance().of(source) != before


def test_no_path_is_recorded(source: Path) -> None:
    assert str(source.parent) not in provenance(folder=str(source.parent)).of(source)


def test_record_in_a_header(write_volume, head, tmp_path: Path) -> None:
    image = nib.load(write_volume("a.nii.gz"))
    other = nib.nifti1.Nifti1Extension(6, b"somebody's comment")
    image.header.extensions.append(other)
    for record in ({"Seed": 1}, {"Seed": 22}):
        write_provenance(image.header, record)
    nib.save(image, tmp_path / "b.nii.gz")
    again = nib.load(tmp_path / "b.nii.gz")
    assert read_provenance(tmp_path / "b.nii.gz") == {"Seed": 22}
    assert [e.get_code() for e in again.header.extensions] == [6, 6]
    torch.testing.assert_close(torch.from_numpy(again.get_fdata()), torch.from_numpy(head()).double())


def test_no_record(write_volume, tmp_path: Path) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    for path in (tmp_path / "none.nii.gz", tmp_path / "broken.nii.gz", write_volume("a.nii.gz")):
        assert read_provenance(path) is None


@pytest.fixture
def translated(source: Path, write_volume, tmp_path: Path) -> list[dict[str, str]]:
    """One input with its translation into t2 in ``tmp_path/out``."""
    image = nib.load(write_volume("plain.nii.gz"))
    write_provenance(image.header, translation_record("t2", {}, provenance=provenance().of(source)))
    (tmp_path / "out").mkdir()
    nib.save(image, tmp_path / "out" / "case_t2_synthetic.nii.gz")
    return [{"image": str(source), "name": "case"}]


def test_what_is_done_is_passed_over(translated, tmp_path: Path) -> None:
    assert pending_inputs(translated, provenance(), tmp_path / "out", "t2w") == []
    assert pending_inputs(translated, provenance(), tmp_path / "out", ["t2", "flair"]) == translated
    assert pending_inputs(translated, provenance(), tmp_path / "elsewhere", "t2") == translated
    assert pending_inputs(translated, provenance(), tmp_path / "out", "t2", skip_done="false") == translated
    # what lies there is NIfTI
    assert pending_inputs(translated, provenance(), tmp_path / "out", "t2", output_format="dicom") == translated


def test_what_is_stale_is_redone_and_said(translated, source: Path, tmp_path: Path, caplog) -> None:
    changed = provenance(seed=1, lower=1.0)
    assert pending_inputs(translated, changed, tmp_path / "out", "t2") == translated
    assert "1 of 1 files are translated anew: made with another preprocessing, inferer" in caplog.text
    source.write_bytes(b"another scan")
    assert pending_inputs(translated, provenance(), tmp_path / "out", "t2") == translated
    assert "made with another source" in caplog.text


def test_a_file_of_another_subject_with_this_name_replaces_nothing(translated, source: Path, tmp_path: Path) -> None:
    """Of a loop over subjects whose scans are all called alike; a data set that was moved is the same one."""
    other = tmp_path / "subject2" / "scan.nii.gz"
    other.parent.mkdir()
    other.write_bytes(b"another subject's voxels")
    items = [{"image": str(other), "name": "case"}]
    for skip in (True, False):
        [item] = pending_inputs(items, provenance(seed=1), tmp_path / "out", "t2", skip_done=skip)
        assert "expected a result of its own; found" in item["fault"]
        assert "case_t2_synthetic.nii.gz, which was made of another file of that name" in item["fault"]
        assert TolerantDataset([item], transform=None)[0] == {"fault": item["fault"]}
    other.write_bytes(source.read_bytes())
    assert pending_inputs(items, provenance(), tmp_path / "out", "t2") == []


def test_a_series_of_another_study_replaces_nothing(write_series: Callable, tmp_path: Path) -> None:
    folders = [write_series(f"{place}/t1") for place in ("one", "two", "out")]
    shutil.rmtree(folders[2])
    shutil.copytree(folders[0], tmp_path / "out" / "t1_t2_synthetic")
    for folder, refused in zip(folders[:2], (False, True), strict=True):
        items = [{"image": str(folder), "name": "t1"}]
        [item] = pending_inputs(items, provenance(), tmp_path / "out", "t2", output_format="dicom")
        assert ("fault" in item) == refused


def test_what_differs_is_named_and_nothing_else(translated, tmp_path: Path, caplog) -> None:
    pending_inputs(translated, provenance(seed=1, num_samples=2), tmp_path / "out", "t2")
    assert caplog.messages == ["1 of 1 files are translated anew: made with another inferer (num_samples, seed)"]


def test_what_is_done_is_said(translated, tmp_path: Path, caplog) -> None:
    pending_inputs(translated, provenance(), tmp_path / "out", "t2")
    said = f"1 of 1 files are translated already, in {tmp_path / 'out'}: case. --skip_done false translates them anew."
    assert caplog.messages == [said]


def test_a_record_of_something_else_is_stale(translated, source: Path, write_volume, tmp_path: Path, caplog) -> None:
    for number, entry in enumerate(('{"brain_mri_modality_translation": 1}', '{"brain_mri_modality_translation": ')):
        image = nib.load(write_volume(f"plain{number}.nii.gz"))
        image.header.extensions.append(nib.nifti1.Nifti1Extension(6, entry.encode()))
        nib.save(image, tmp_path / "out" / "case_t2_synthetic.nii.gz")
        assert pending_inputs(translated, provenance(), tmp_path / "out", "t2") == translated
    assert "made with another record" in caplog.text


def test_record_tells_the_settings(source: Path) -> None:
    record = json.loads(provenance(seed=3, amp=False).of(source))
    assert record["settings"]["inferer"]["seed"] == 3
    assert record["settings"]["inferer"]["amp"] is False
    assert len(json.dumps(record)) < 1000


def test_record_without_a_file(tmp_path: Path) -> None:
    for sources in ([], [tmp_path / "gone.nii.gz"]):
        record = translation_record("t2", {"Seed": 1}, sources=sources, warnings=["a skull"])
        assert record["SourceSHA"] is None
        assert record["Sources"] == [source.name for source in sources]
        assert record["Warnings"] == ["a skull"]
        assert "Identity" not in record
    image = torch.rand(2, 3, 4)
    contents = [json.loads(provenance().of(i))["source"] for i in (image, image.clone(), image + 1)]
    assert contents[0] == contents[1] != contents[2]


def test_only_translations_are_replaced(tmp_path, write_volume):
    scan = write_volume("scan.nii.gz", np.ones((3, 3, 3), np.float32))
    with pytest.raises(ValueError, match=r"scan\.nii\.gz: expected no file, or an earlier translation.*Choose another"):
        check_replaceable(scan)
    image = nib.load(scan)
    write_provenance(image.header, translation_record("t2", {}))
    nib.save(image, tmp_path / "ours.nii.gz")
    check_replaceable(tmp_path / "ours.nii.gz")
    check_replaceable(tmp_path / "none.nii.gz")


def test_the_record_is_read_from_the_header_or_from_beside(tmp_path, write_volume):
    scan = write_volume("scan.nii.gz", np.ones((3, 3, 3), np.float32))
    assert read_record(scan) is None
    beside = sidecar_of(scan)
    for text in (
        "no JSON",
        "[]",
        '{"Sources": ["bids::a.nii"]}',
        '{"Synthetic": true, "GeneratedBy": [{"Name": "a"}]}',
    ):
        beside.write_text(text)
        assert read_record(scan) is None
    record = translation_record("t2", {"Method": "reg_gan"}, version="1.2")
    beside.write_text(sidecar_text(record))
    assert read_record(scan) == record
    image = nib.load(scan)
    write_provenance(image.header, translation_record("pd", {}))
    nib.save(image, scan)
    assert read_record(scan)["Target"] == "pd"
