"""Tests of custom.inference.saver; what it does in a workflow is in test_inference."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from custom.data.readers import read_volume
from custom.inference.provenance import translation_record
from custom.inference.saver import save_synthetic

RECORD = translation_record("t2", {})
DATA = np.random.default_rng(0).integers(0, 900, (8, 7, 5)).astype(np.int16)


def analyze(folder: Path) -> Path:
    nib.save(nib.AnalyzeImage(DATA, np.diag([1.0, 2.0, 1.5, 1.0])), folder / "scan.img")
    return folder / "scan.img"


def meta_image(folder: Path) -> Path:
    header = "NDims = 3\nDimSize = 8 7 5\nElementSpacing = 1 2 1.5\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (folder / "scan.mha").write_bytes(header.encode() + DATA.tobytes(order="F"))
    return folder / "scan.mha"


def nifti(folder: Path) -> Path:
    image = nib.Nifti1Image(DATA, None)
    image.header["pixdim"][1:4] = 1, 2, 1.5
    nib.save(image, folder / "scan.nii")
    return folder / "scan.nii"


@pytest.mark.parametrize("write", [analyze, meta_image, nifti])
def test_orientation_that_is_not_stated_is_not_invented(tmp_path: Path, write) -> None:
    source = write(tmp_path)
    volume = read_volume(source)
    save_synthetic(torch.rand(8, 7, 5), tmp_path / "out.nii.gz", str(source), volume.meta, RECORD)
    header = nib.load(tmp_path / "out.nii.gz").header
    assert int(header["sform_code"]) == int(header["qform_code"]) == 0
    assert header["descrip"].item() == f"{RECORD['Description']}; orientation assumed".encode()
    np.testing.assert_allclose(header.get_zooms(), (1, 2, 1.5))


def test_source_called_as_it_is_not(tmp_path: Path, write_volume) -> None:
    """A compressed file without the suffix, and one with it that is not compressed: the result has its header."""
    for name, other in (("a.nii.gz", "a.nii"), ("b.nii", "b.nii.gz")):
        source = write_volume(name, DATA, qform=2, sform=4).rename(tmp_path / other)
        save_synthetic(torch.rand(8, 7, 5), tmp_path / "out.nii", str(source), read_volume(source).meta, RECORD)
        header = nib.load(tmp_path / "out.nii").header
        assert (int(header["qform_code"]), int(header["sform_code"])) == (2, 4)
        assert header["descrip"].item() == RECORD["Description"].encode()
