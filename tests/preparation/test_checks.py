"""Tests of custom.preparation.checks."""

from __future__ import annotations

import gzip
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest

from custom.preparation.checks import PATTERN_GRID, check_file

AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


@pytest.fixture
def write(tmp_path: Path, brain):
    def save(data: np.ndarray | None = None, name: str = "a.nii.gz", affine: np.ndarray = AFFINE, **header) -> Path:
        image = nib.Nifti1Image(brain("t1") if data is None else data, affine)
        for key, value in header.items():
            image.header[key] = value
        nib.save(image, tmp_path / name)
        return tmp_path / name

    return save


class TestGood:
    def test_what_is_known(self, write, brain) -> None:
        found = check_file(write())
        data = brain("t1")
        assert found.fault is None
        assert found.remarks == ()
        assert (found.shape, found.spacing, found.dtype) == ((24, 28, 22), (4.0, 4.0, 4.0), "int16")
        assert found.extremes == (0.0, data.max())
        # ranks of a thousand voxels: the percentile lies between two of them
        assert found.usual == pytest.approx(np.percentile(data[data > 0], [0.5, 99.5]), rel=0.01)
        inside = [np.flatnonzero((data > 0).any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
        assert found.head == tuple(i[-1] - i[0] + 1 for i in inside)
        assert found.pattern.shape == (np.prod(PATTERN_GRID),)
        assert 0 <= np.nanmin(found.pattern) <= np.nanmax(found.pattern) <= 1
        assert found.picture.dtype == np.uint8
        assert found.picture_mm == (96.0, 112.0)

    @pytest.mark.parametrize("name", ["b.nii", "b.nii.gz", "b.mha", "b.nrrd"])
    def test_same_content_in_any_format(self, write, brain, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        if name.endswith((".mha", ".nrrd")):
            image = itk.image_from_array(np.ascontiguousarray(brain("t1").T))
            image.SetSpacing([4.0] * 3)
            image.SetDirection(np.diag([-1.0, -1.0, 1.0]))  # ITK's axes run to the left and back
            itk.imwrite(image, str(path))
        else:
            write(brain("t1").astype(np.float32), name)
        one, other = check_file(write()), check_file(path)
        assert other.fault is None
        assert one.digest == other.digest
        np.testing.assert_array_equal(one.pattern, other.pattern)

    def test_other_content_differs(self, write, brain) -> None:
        assert check_file(write()).digest != check_file(write(brain("t1", seed=1))).digest

    def test_pattern_does_not_depend_on_scale_or_orientation(self, write, brain) -> None:
        data = brain("t1")
        flipped = np.diag([-4.0, -4.0, 4.0, 1.0])
        expected = check_file(write(data)).pattern
        np.testing.assert_array_equal(check_file(write(data * np.float32(0.37))).pattern, expected)
        np.testing.assert_array_equal(check_file(write(data[::-1, ::-1], affine=flipped)).pattern, expected)

    def test_scaled_integers(self, write, brain) -> None:
        path = write(brain("t1"), "a.nii", scl_slope=0.5, scl_inter=-3.0)
        # nibabel drops the scaling when it saves integers: set it in the file
        content = bytearray(path.read_bytes())
        content[112:120] = np.array([0.5, -3.0], dtype="<f4").tobytes()
        path.write_bytes(content)
        assert check_file(path).extremes == (-3.0, 0.5 * brain("t1").max() - 3.0)

    def test_several_gzip_streams(self, write) -> None:
        path = write(name="a.nii")
        content = path.read_bytes()
        packed = path.with_name("two.nii.gz")
        packed.write_bytes(gzip.compress(content[:5000]) + gzip.compress(content[5000:]))
        assert check_file(packed).digest == check_file(path).digest

    def test_trailing_axis_of_one(self, write, brain) -> None:
        assert check_file(write(brain("t1")[..., None])).fault is None

    def test_label_may_be_empty(self, write) -> None:
        empty = write(np.zeros((24, 28, 22), np.uint8))
        assert check_file(empty, label=True).fault is None
        assert check_file(empty).fault[0] == "constant"

    def test_dicom_series(self, write_series, brain) -> None:
        found = check_file(write_series("scan", brain("t1"), AFFINE))
        assert found.fault is None
        assert found.shape == (24, 28, 22)


def nan(data: np.ndarray) -> np.ndarray:
    data = data.astype(np.float32)
    data[12, 14, 11] = np.nan
    return data


def test_what_is_not_finite_may_be_background(write, brain) -> None:
    data = brain("t1").astype(np.float32)
    found = check_file(write(np.where(data > 0, data, np.nan)))
    assert found.fault is None
    assert found.extremes == (data[data > 0].min(), data.max())
    assert found.usual == pytest.approx(check_file(write(data)).usual)


def overflowed(data: np.ndarray) -> np.ndarray:
    """A smooth gradient across the brain that a byte does not hold."""
    across = np.linspace(40, 320, data.shape[0])[:, None, None] + np.linspace(0, 60, data.shape[2])
    return np.where(data > 0, across, 0).astype(np.int64).astype(np.uint8)


class TestFaults:
    @pytest.mark.parametrize(
        ("change", "code", "said"),
        [
            (nan, "not_finite", "1 of 14784 voxels"),
            (lambda a: np.where(a == a.max(), np.inf, a).astype(np.float32), "not_finite", "voxels"),
            (overflowed, "overflowed", "jumps between 0 and 2"),
            (np.zeros_like, "constant", "all voxels are 0"),
            (lambda a: np.full_like(a, 7), "constant", "all voxels are 7"),
            (lambda a: (a > 0).astype(np.uint8), "mask", "0 and 1"),
            (lambda a: np.stack([a, a], -1), "not_3d", "4D, 24×28×22×2"),
            (lambda a: a[:, :, 0], "not_3d", "2D"),
            (lambda a: a.astype(np.complex64), "not_3d", "complex64"),
            (lambda a: a[:, :, :10], "too_small", "24×28×10"),
        ],
        ids=["nan", "inf", "overflow", "zero", "constant", "mask", "4d", "2d", "complex", "few_slices"],
    )
    def test_content(self, write, brain, change, code: str, said: str) -> None:
        fault = check_file(write(change(brain("t1")))).fault
        assert fault[0] == code
        assert said in fault[1]

    @pytest.mark.parametrize("spacing", [0.004, 40.0])
    def test_implausible_voxel_size(self, write, spacing: float) -> None:
        assert check_file(write(affine=np.diag([spacing] * 3 + [1.0]))).fault[0] == "spacing"

    def test_flat_affine(self, write) -> None:
        path = write(name="a.nii", sform_code=1)
        content = bytearray(path.read_bytes())
        content[280:328] = bytes(48)
        path.write_bytes(content)
        assert check_file(path).fault[0] == "spacing"

    @pytest.mark.parametrize("keep", [0.5, 0.999])
    def test_truncated_gzip(self, write, keep: float) -> None:
        path = write()
        content = path.read_bytes()
        path.write_bytes(content[: int(keep * len(content))])
        fault = check_file(path).fault
        assert fault[0] == "truncated"
        assert "ends early" in fault[1]

    def test_damaged_gzip(self, write) -> None:
        """A flipped bit that leaves a stream of the right length is found by the checksum."""
        path = write()
        content = bytearray(path.read_bytes())
        content[-6] ^= 1
        path.write_bytes(content)
        assert check_file(path).fault[0] == "truncated"

    def test_truncated_without_compression(self, write) -> None:
        path = write(name="a.nii")
        path.write_bytes(path.read_bytes()[:-100])
        code, said = check_file(path).fault
        assert (code, "bytes that its header promises" in said) == ("truncated", True)

    @pytest.mark.parametrize("content", [b"", b"no image at all", b"\x1f\x8b"])
    def test_no_image(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.nii.gz").write_bytes(content)
        assert check_file(tmp_path / "a.nii.gz").fault[0] in ("unreadable", "truncated")

    def test_missing_file(self, tmp_path: Path) -> None:
        assert check_file(tmp_path / "gone.nii.gz").fault[0] == "unreadable"

    def test_unreadable_dicom_slice(self, write_series, brain) -> None:
        folder = write_series("scan", brain("t1"), AFFINE)
        slice_file = sorted(folder.iterdir())[5]
        slice_file.write_bytes(slice_file.read_bytes()[:300])
        code, said = check_file(folder).fault
        assert code == "dicom"
        assert slice_file.name in said

    def test_missing_dicom_slice(self, write_series, brain) -> None:
        folder = write_series("scan", brain("t1"), AFFINE)
        sorted(folder.iterdir())[5].unlink()
        code, said = check_file(folder).fault
        assert code == "dicom"
        assert "slice is missing" in said

    def test_remarks(self, write, brain) -> None:
        path = write(brain("t1"), "a.nii", affine=np.diag([0.5, 0.5, 0.5, 1.0]))
        content = bytearray(path.read_bytes())
        content[252:256] = bytes(4)  # qform_code, sform_code
        path.write_bytes(content)
        assert [code for code, _ in check_file(path).remarks] == ["field_of_view", "orientation"]
