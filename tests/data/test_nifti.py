"""Tests of custom.data.nifti: a damaged file is never read as a good one, whatever it is called."""

from __future__ import annotations

import gzip
import random
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from custom.data import nifti
from custom.data.damage import DamagedFileError
from custom.data.nifti import load_header, load_nifti
from custom.data.readers import ASSUMED_KEY, read_shape, read_volume, volume_of_image

DATA = np.random.default_rng(0).integers(0, 900, (16, 14, 12)).astype(np.int16)
AFFINE = np.diag([1.0, 2.0, 1.5, 1.0])


@pytest.fixture
def scan(write_volume) -> Path:
    return write_volume("scan.nii.gz", DATA, AFFINE)


def refused(path: Path, content: bytes) -> str:
    """What is said of a file with this content."""
    path.write_bytes(content)
    with pytest.raises(DamagedFileError) as caught:
        read_volume(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: expected ")
    assert "\n" not in said
    return said


class TestGzip:
    def test_every_changed_byte(self, scan: Path) -> None:
        """One byte of each place changed: refused, or the same voxels (what gzip's header says of the time, say)."""
        content, random_bits = scan.read_bytes(), random.Random(0)
        places = [
            *range(24),
            *random_bits.sample(range(24, len(content) - 8), 250),
            *range(len(content) - 8, len(content)),
        ]
        accepted = []
        for place in places:
            changed = bytearray(content)
            changed[place] ^= 1 << random_bits.randrange(8)
            scan.write_bytes(changed)
            try:
                volume = read_volume(scan)
            except ValueError:
                continue
            accepted.append(place)
            np.testing.assert_array_equal(volume[0].numpy(), DATA)
        header = range(10 + len("scan.nii") + 1)  # RFC 1952; elsewhere some bits mean the same either way
        assert len(set(accepted) - {*header}) <= 3

    @pytest.mark.parametrize("cut", [1, 8, 9, 300, 2000])
    def test_cut(self, scan: Path, cut: int) -> None:
        assert "ends early" in refused(scan, scan.read_bytes()[:-cut])

    def test_followed_by_something_else(self, scan: Path) -> None:
        refused(scan, scan.read_bytes() + b"something else")

    def test_filled_up_with_zeros(self, scan: Path) -> None:
        scan.write_bytes(scan.read_bytes() + bytes(2**18 + 300))
        np.testing.assert_array_equal(read_volume(scan)[0].numpy(), DATA)

    @pytest.mark.parametrize("damage", ["none", "cut", "checksum"])
    def test_several_streams(self, scan: Path, damage: str) -> None:
        content = gzip.decompress(scan.read_bytes())
        streams = b"".join(gzip.compress(content[i : i + 2000]) for i in range(0, len(content), 2000))
        if damage == "none":
            scan.write_bytes(streams)
            np.testing.assert_array_equal(read_volume(scan)[0].numpy(), DATA)
        else:
            refused(scan, streams[:-9] if damage == "cut" else streams[:-6] + b"\0" + streams[-5:])

    @pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"no image at all" * 99])
    def test_no_image(self, scan: Path, content: bytes) -> None:
        refused(scan, content)

    def test_image_of_nibabel_that_is_not_read_yet(self, scan: Path) -> None:
        image = nib.load(scan)
        np.testing.assert_array_equal(volume_of_image(image)[0].numpy(), DATA)
        content = bytearray(scan.read_bytes())
        content[-6] ^= 1
        scan.write_bytes(content)
        with pytest.raises(DamagedFileError, match="incorrect data check"):
            volume_of_image(nib.load(scan))
        in_memory = nib.Nifti1Image(DATA, AFFINE)
        np.testing.assert_array_equal(volume_of_image(in_memory)[0].numpy(), DATA)


class TestSize:
    @pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
    @pytest.mark.parametrize("change", [-100, 100])
    def test_differs_from_the_header(self, write_volume, name: str, change: int) -> None:
        path = write_volume(name, DATA, AFFINE)
        content = path.read_bytes() if name == "scan.nii" else gzip.decompress(path.read_bytes())
        content = content[:change] if change < 0 else content + bytes(change)
        assert "bytes that its header promises" in refused(
            path, content if name == "scan.nii" else gzip.compress(content)
        )

    @pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
    def test_header_that_promises_what_no_file_holds(self, write_volume, name: str) -> None:
        """Refused before memory is taken: 900³ numbers would be 1.4 GB."""
        path = write_volume(name, DATA, AFFINE)
        content = bytearray(path.read_bytes() if name == "scan.nii" else gzip.decompress(path.read_bytes()))
        content[42:48] = np.array([900] * 3, "<i2").tobytes()
        assert "1,458,000,352 bytes" in refused(path, content if name == "scan.nii" else gzip.compress(content))
        content[42:48] = np.array([30_000] * 3, "<i2").tobytes()
        path.write_bytes(content if name == "scan.nii" else gzip.compress(content))
        with pytest.raises(ValueError, match=r"expected 1 to 1,073,741,824 voxels .*; found 27,000,000,000,000 in its"):
            read_volume(path)

    def test_stream_that_never_ends(self, scan: Path) -> None:
        """A small file that swells up is left as soon as it holds more than its header says."""
        header = gzip.decompress(scan.read_bytes())[:352]
        said = refused(scan, gzip.compress(header + bytes(2**24), compresslevel=1))
        assert said.endswith("found more. Fetch the file again, or write it anew.")


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_a_header_is_read_once(write_volume, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, opened, start = write_volume(name, DATA, AFFINE), [], nifti._start
    monkeypatch.setattr(nifti, "_start", lambda file, most: opened.append(file) or start(file, most))
    np.testing.assert_array_equal(load_header(path).affine, AFFINE)
    assert opened == [path]


def test_extensions_of_a_header_are_read(write_volume) -> None:
    path = write_volume("scan.nii.gz", DATA, AFFINE)
    image, text = nib.load(path), b"x" * 5000
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", text))
    nib.save(image, path.with_name("long.nii.gz"))
    assert load_header(path.with_name("long.nii.gz")).header.extensions[0].get_content() == text


def test_voxel_size_of_nothing(write_volume) -> None:
    """nibabel takes it as 1 mm."""
    path = write_volume("scan.nii", DATA, AFFINE, sform=0)
    content = bytearray(path.read_bytes())
    content[80:84] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"scan\.nii: expected voxel sizes in mm; found \[0\.0, 2\.0, 1\.5\]"):
        read_volume(path)


class TestNames:
    def test_compressed_without_the_suffix(self, scan: Path) -> None:
        path = scan.rename(scan.with_name("scan.nii"))
        np.testing.assert_array_equal(read_volume(path)[0].numpy(), DATA)
        assert read_shape(path) == load_header(path).shape == DATA.shape

    def test_suffix_without_compression(self, write_volume) -> None:
        path = write_volume("scan.nii", DATA, AFFINE)
        path = path.rename(path.with_name("scan.nii.gz"))
        np.testing.assert_array_equal(read_volume(path)[0].numpy(), DATA)
        refused(path, path.read_bytes()[:-1])

    def test_trailing_axes_of_one(self, write_volume) -> None:
        assert read_volume(write_volume("scan.nii.gz", DATA[..., None, None], AFFINE)).shape == (1, *DATA.shape)


class TestPairs:
    @pytest.mark.parametrize("suffix", [".hdr", ".img"])
    @pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.AnalyzeImage, nib.Spm99AnalyzeImage])
    def test_as_nibabel_reads_it(self, tmp_path: Path, kind: type, suffix: str, caplog) -> None:
        nib.save(kind(DATA, AFFINE), tmp_path / "scan.img")
        (tmp_path / "scan.mat").unlink(missing_ok=True)
        image, expected = read_volume(tmp_path / f"scan{suffix}"), nib.load(tmp_path / f"scan{suffix}")
        np.testing.assert_array_equal(image[0].numpy(), DATA)
        np.testing.assert_array_equal(image.affine.numpy(), expected.affine)
        assert (
            (ASSUMED_KEY in image.meta) == ("does not say how its axes lie" in caplog.text) == (kind != nib.Nifti1Pair)
        )

    def test_affine_of_spm_is_stated(self, tmp_path: Path) -> None:
        nib.save(nib.Spm99AnalyzeImage(DATA, AFFINE), tmp_path / "scan.img")
        image = read_volume(tmp_path / "scan.img")
        np.testing.assert_allclose(image.affine.numpy(), AFFINE)
        assert ASSUMED_KEY not in image.meta

    def test_damage(self, tmp_path: Path) -> None:
        nib.save(nib.Nifti1Pair(DATA, AFFINE), tmp_path / "scan.img")
        content = (tmp_path / "scan.img").read_bytes()
        refused(tmp_path / "scan.img", content[:-1])
        (tmp_path / "scan.img").unlink()
        with pytest.raises(FileNotFoundError, match=r"scan\.hdr: expected scan\.img beside it"):
            read_volume(tmp_path / "scan.hdr")
        packed = bytearray(gzip.compress(content))
        (tmp_path / "scan.img.gz").write_bytes(packed)
        np.testing.assert_array_equal(load_nifti(tmp_path / "scan.hdr").dataobj, DATA)
        refused(tmp_path / "scan.img.gz", packed[:-8] + b"\0" + packed[-7:])


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "u1", "<f4", ">f8"])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_scaled_numbers_of_every_type(tmp_path: Path, dtype: str, name: str) -> None:
    image = nib.Nifti1Image((DATA % 200).astype(dtype), AFFINE, nib.Nifti1Header(endianness=dtype[0].replace("u", "<")))
    image.header.set_data_dtype(dtype)
    image.header.set_slope_inter(0.25, -3)
    nib.save(image, tmp_path / name)
    read, expected = load_nifti(tmp_path / name), nib.load(tmp_path / name)
    np.testing.assert_array_equal(read.get_fdata(), expected.get_fdata())
    assert np.asarray(read.dataobj).dtype == np.asarray(expected.dataobj).dtype
    assert read.header == expected.header


def test_real_scans_are_whole(shared_data: Path, tmp_path: Path) -> None:
    file = min(shared_data.rglob("*.nii.gz"), key=lambda scan: scan.stat().st_size)
    copy = Path(shutil.copy(file, tmp_path))
    np.testing.assert_array_equal(load_nifti(copy).dataobj, nib.load(file).dataobj)
    middle = bytearray(file.read_bytes())
    middle[len(middle) // 2] ^= 1
    refused(copy, middle)
