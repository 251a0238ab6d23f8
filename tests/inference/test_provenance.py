"""Tests of custom.inference.provenance."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import pytest
import torch
from torch import nn

from custom.inference.provenance import Provenance, pending_inputs, read_provenance, write_provenance


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A source and a file of weights."""
    source, weights = tmp_path / "scan.nii.gz", tmp_path / "model.pt"
    source.write_bytes(b"voxels")
    weights.write_bytes(b"weights")
    return source, weights


def network(steps: int = 1) -> nn.Module:
    made = nn.Module()
    made.num_inference_steps = steps
    return made


def test_equal_contents_and_settings_give_equal_records(files, tmp_path: Path) -> None:
    source, weights = files
    copy = tmp_path / "copy.nii.gz"
    copy.write_bytes(source.read_bytes())
    assert Provenance(weights, network(), seed=0).of(source) == Provenance(weights, network(), seed=0).of(copy)
    assert Provenance(weights, network().eval(), seed=0).of(source) == Provenance(weights, network(), seed=0).of(copy)


@pytest.mark.parametrize("change", ["source", "weights", "setting", "network"])
def test_whatever_decides_the_result_changes_the_record(files, change: str) -> None:
    source, weights = files
    before = Provenance(weights, network(), seed=0).of(source)
    if change in ("source", "weights"):
        {"source": source, "weights": weights}[change].write_bytes(b"others")
    after = Provenance(weights, network(2 if change == "network" else 1), seed=1 if change == "setting" else 0)
    assert after.of(source) != before


def test_no_path_is_recorded(files) -> None:
    source, weights = files
    assert str(source.parent) not in Provenance(weights, network(), seed=0).of(source)


def test_record_in_a_header(write_volume, head, tmp_path: Path) -> None:
    image = nib.load(write_volume("a.nii.gz"))
    other = nib.nifti1.Nifti1Extension(6, b"somebody's comment")
    image.header.extensions.append(other)
    for record in ('{"brain_mri_modality_translation": 1}', '{"brain_mri_modality_translation": 22}'):
        write_provenance(image.header, record)
    nib.save(image, tmp_path / "b.nii.gz")
    again = nib.load(tmp_path / "b.nii.gz")
    assert read_provenance(tmp_path / "b.nii.gz") == '{"brain_mri_modality_translation": 22}'
    assert [e.get_code() for e in again.header.extensions] == [6, 6]
    torch.testing.assert_close(torch.from_numpy(again.get_fdata()), torch.from_numpy(head()).double())


def test_no_record(write_volume, tmp_path: Path) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    for path in (tmp_path / "none.nii.gz", tmp_path / "broken.nii.gz", write_volume("a.nii.gz")):
        assert read_provenance(path) is None


@pytest.fixture
def translated(files, write_volume, tmp_path: Path) -> tuple[list[dict[str, str]], Provenance]:
    """One input with its translation into t2 in ``tmp_path/out``."""
    source, weights = files
    provenance = Provenance(weights, network(), seed=0)
    image = nib.load(write_volume("plain.nii.gz"))
    write_provenance(image.header, provenance.of(source))
    (tmp_path / "out").mkdir()
    nib.save(image, tmp_path / "out" / "case_t2_synthetic.nii.gz")
    return [{"image": str(source), "name": "case"}], provenance


def test_what_is_done_is_passed_over(translated, tmp_path: Path) -> None:
    inputs, provenance = translated
    assert pending_inputs(inputs, provenance, tmp_path / "out", "t2w") == []
    assert pending_inputs(inputs, provenance, tmp_path / "out", ["t2", "flair"]) == inputs
    assert pending_inputs(inputs, provenance, tmp_path / "elsewhere", "t2") == inputs
    assert pending_inputs(inputs, provenance, tmp_path / "out", "t2", skip_done="false") == inputs
    # what lies there is NIfTI
    assert pending_inputs(inputs, provenance, tmp_path / "out", "t2", output_format="dicom") == inputs


def test_what_is_stale_is_redone(translated, files, tmp_path: Path) -> None:
    inputs, provenance = translated
    assert pending_inputs(inputs, Provenance(files[1], network(), seed=1), tmp_path / "out", "t2") == inputs
    files[0].write_bytes(b"another scan")
    assert pending_inputs(inputs, provenance, tmp_path / "out", "t2") == inputs


def test_record_is_json(files) -> None:
    record = json.loads(Provenance(files[1], network(), amp="auto").of(files[0]))
    assert record["brain_mri_modality_translation"]["settings"]["amp"] == "auto"
