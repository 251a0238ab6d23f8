"""Tests of custom.data.itk_reader: NRRD and MetaImage that are damaged, and what their headers do not say."""

from __future__ import annotations

import locale
import random
from pathlib import Path

import itk
import numpy as np
import pytest

from custom.data.itk_reader import _plain_numbers
from custom.data.readers import ASSUMED_KEY, read_shape, read_volume

DATA = np.random.default_rng(0).integers(0, 900, (16, 14, 12)).astype(np.int16)
SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")


def write(path: Path, *, compression: bool = False, data: np.ndarray = DATA) -> Path:
    """Path of the file that holds the voxels."""
    itk.imwrite(itk.image_from_array(np.ascontiguousarray(data.T)), str(path), compression=compression)
    return next((f for f in path.parent.iterdir() if f != path), path)


def change_header(path: Path, old: str, new: str) -> None:
    content = path.read_bytes()
    assert old.encode() in content
    path.write_bytes(content.replace(old.encode(), new.encode(), 1))


@pytest.mark.parametrize(
    ("said", "found"), [("= 1", "1"), ("= 999999999", "999999999"), ("=", "no number"), (": 3", "no number")]
)
def test_other_numbers_of_axes_are_refused_before_itk_makes_room_for_them(
    tmp_path: Path, monkeypatch, said: str, found: str
) -> None:
    """Of hundreds it ends the process."""
    path = tmp_path / "scan.mha"
    write(path)
    change_header(path, "NDims = 3", f"NDims {said}")
    monkeypatch.setattr(itk, "ImageIOFactory", None)
    with pytest.raises(ValueError, match=rf"scan\.mha: expected 3 axes; found {found} in its header"):
        read_volume(path)
    assert read_shape(path) == ()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("scan.vtk", "DIMENSIONS 16 14 12", "DIMENSIONS 1000 1000 1000"),
        ("scan.nrrd", "encoding: raw", "encoding: raw\nline skip: 1"),  # where its voxels begin, only ITK finds out
    ],
)
def test_more_voxels_than_a_file_can_hold_are_refused_before_itk_reads_them(
    tmp_path: Path, monkeypatch, name: str, old: str, new: str
) -> None:
    write(tmp_path / name)
    change_header(tmp_path / name, old, new)
    if name == "scan.nrrd":
        change_header(tmp_path / name, "sizes: 16 14 12", "sizes: 160 140 12")
    monkeypatch.setattr(itk, "imread", None)
    with pytest.raises(ValueError, match=rf"{name}: expected the [\d,]+ bytes that its header promises; found"):
        read_volume(tmp_path / name)


@pytest.mark.parametrize("suffix", SUFFIXES)
class TestDamage:
    @pytest.mark.parametrize("dtype", [np.uint8, ">i2", np.float32])
    def test_whole(self, tmp_path: Path, suffix: str, dtype: str) -> None:
        data = (DATA % 200).astype(dtype)
        write(tmp_path / f"scan{suffix}", compression=True, data=data.astype(data.dtype.newbyteorder("=")))
        np.testing.assert_array_equal(read_volume(tmp_path / f"scan{suffix}")[0].numpy(), data)
        assert read_shape(tmp_path / f"scan{suffix}") == DATA.shape

    def test_changed_bytes_of_compressed_voxels(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"scan{suffix}"
        voxels = write(path, compression=True)
        content, choose = voxels.read_bytes(), random.Random(0)
        accepted = 0
        for place in [*choose.sample(range(len(content) - 4000, len(content) - 8), 60), *range(-8, 0)]:
            changed = bytearray(content)
            changed[place] ^= 1 << choose.randrange(8)
            voxels.write_bytes(changed)
            try:
                volume = read_volume(path)
            except ValueError:
                continue
            accepted += 1
            np.testing.assert_array_equal(volume[0].numpy(), DATA)
        assert accepted <= 4  # bits of a stream that do not count, such as those after its end

    @pytest.mark.parametrize("compression", [False, True])
    @pytest.mark.parametrize("change", [-2000, -4, -1, 1, 300])
    def test_another_size(self, tmp_path: Path, suffix: str, compression: bool, change: int) -> None:
        path = tmp_path / f"scan{suffix}"
        voxels = write(path, compression=compression)
        content = voxels.read_bytes()
        voxels.write_bytes(content[:change] if change < 0 else content + b"x" * change)
        with pytest.raises(ValueError, match=r"^\S*scan\.\S+: expected"):
            read_volume(path)

    def test_header_that_promises_what_no_file_holds(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"scan{suffix}"
        write(path)
        change_header(path, "16 14 12", "900 900 900")
        with pytest.raises(ValueError, match="expected the 1,458,000,000 bytes that its header promises"):
            read_volume(path)
        change_header(path, "900 900 900", "1000000 1000000 1000000")
        with pytest.raises(ValueError, match=r"scan\.\w+: expected"):
            read_volume(path)

    def test_voxels_elsewhere(self, tmp_path: Path, suffix: str) -> None:
        if suffix in (".mha", ".nrrd"):
            return
        path = tmp_path / f"scan{suffix}"
        voxels = write(path)
        key = "ElementDataFile = " if suffix == ".mhd" else "data file: "
        for place, said in (("../x.raw", "beside it"), ("/dev/zero", "beside it"), ("x%d.raw 1 9 1", "a list")):
            write(path)
            change_header(path, f"{key}{voxels.name}", f"{key}{place}")
            with pytest.raises(ValueError, match=rf"scan{suffix}: expected its voxels in .*{said}"):
                read_volume(path)
        write(path)
        voxels.unlink()
        with pytest.raises(FileNotFoundError, match=rf"scan{suffix}: expected its voxels in .*; found no file"):
            read_volume(path)


class TestOrientation:
    @pytest.mark.parametrize(
        ("suffix", "old", "new"),
        [
            (".mha", "TransformMatrix = 1 0 0 0 1 0 0 0 1\n", ""),
            (".nrrd", "space: left-posterior-superior\n", "space dimension: 3\n"),
            (".nrrd", "space directions: (1,0,0) (0,1,0) (0,0,1)\n", "spacings: 1 1 1\n"),
        ],
    )
    def test_default_is_said(self, tmp_path: Path, caplog, suffix: str, old: str, new: str) -> None:
        path = tmp_path / f"scan{suffix}"
        write(path)
        assert ASSUMED_KEY not in read_volume(path).meta
        assert not caplog.records
        change_header(path, old, new)
        if "spacings" in new:
            change_header(path, "space: left-posterior-superior\n", "")
            change_header(path, "space origin: (0,0,0)\n", "")
        image = read_volume(path)
        assert image.meta[ASSUMED_KEY] is True
        assert f"{path}: it does not say how its axes lie in the patient" in caplog.text

    def test_formats_that_never_state_it(self, tmp_path: Path, caplog) -> None:
        write(tmp_path / "scan.vtk")
        assert read_volume(tmp_path / "scan.vtk").meta[ASSUMED_KEY] is True
        assert "scan.vtk: it does not say" in caplog.text

    @pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".vtk"])
    def test_decimal_commas_of_the_locale_change_nothing(
        self, tmp_path: Path, suffix: str, decimal_comma: None
    ) -> None:
        image, path = itk.image_from_array(DATA), tmp_path / f"scan{suffix}"
        image.SetSpacing([0.9375, 1.25, 1.5])
        image.SetOrigin([-10.5, 20.25, 3.125])
        with _plain_numbers():
            itk.imwrite(image, str(path))
        affine = read_volume(path).affine.numpy()
        np.testing.assert_array_equal(np.abs(np.diag(affine)), [0.9375, 1.25, 1.5, 1])
        np.testing.assert_array_equal(affine[:3, 3], [10.5, -20.25, 3.125])
        assert read_shape(path) == DATA.shape[::-1]
        assert locale.localeconv()["decimal_point"] == ","

    def test_vtk_leaves_the_locale(self, tmp_path: Path) -> None:
        write(tmp_path / "scan.vtk")
        before = locale.setlocale(locale.LC_ALL)
        try:
            read_volume(tmp_path / "scan.vtk")
            assert locale.setlocale(locale.LC_ALL) == before
        finally:
            locale.setlocale(locale.LC_ALL, before)
