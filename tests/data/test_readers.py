"""Tests of the readers and of DICOM: grids and intensities of every format, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from pydicom.uid import ImplicitVRLittleEndian, RLELossless, generate_uid

from custom.data.dicom import read_geometry
from custom.data.dicom_files import is_dicom
from custom.data.readers import read_volume, volume_of_client
from custom.data.transforms import LoadVolumed
from custom.inference.dicom_writer import PYDICOM_2

pytestmark = pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")  # of ITK's wrapping

MM = 0.01  # what the geometry must agree to

# axes of a sagittal-like oblique slice: no axis of the grid is an axis of the patient
OBLIQUE = np.array(
    [[-0.05, 0.02, 0.99, 12.3], [0.98, 0.10, 0.05, -40.1], [0.10, -1.09, 0.02, 33.3], [0, 0, 0, 1]], dtype=float
)
OBLIQUE[:3, :3] = np.linalg.qr(OBLIQUE[:3, :3])[0] @ np.diag([0.9, 1.1, -1.4])


def corner_distance(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> float:
    """Largest distance in mm of a corner of the volume under two affines."""
    corners = np.stack(np.meshgrid(*[[0, n - 1] for n in shape], [1], indexing="ij")).reshape(4, -1)
    return float(np.abs((a - b) @ corners).max())


def same_image(image: torch.Tensor, data: np.ndarray, affine: np.ndarray) -> None:
    """Equal intensities at equal places, whichever way the slices are stacked."""
    ours = nib.as_closest_canonical(nib.Nifti1Image(image[0].numpy(), image.affine.numpy()))
    theirs = nib.as_closest_canonical(nib.Nifti1Image(data, affine))
    assert ours.shape == theirs.shape
    assert corner_distance(ours.affine, theirs.affine, ours.shape) < MM
    np.testing.assert_array_equal(ours.get_fdata(), theirs.get_fdata())


def volume(slices: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4000, (8, 7, slices)).astype(np.float32)


def save_dataset(dataset: pydicom.Dataset, path: Path, *, implicit: bool = False) -> None:
    """Write a data set as it is, with a preamble or without, by pydicom 2 or 3."""
    if PYDICOM_2:
        dataset.is_little_endian, dataset.is_implicit_VR = True, implicit
        dataset.save_as(path)
    else:
        dataset.save_as(path, implicit_vr=implicit, little_endian=True)


def write_itk(path: Path, data: np.ndarray, affine: np.ndarray) -> Path:
    lps = np.diag([-1, -1, 1, 1]) @ affine
    image = itk.image_from_array(np.ascontiguousarray(data.T))
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection(itk.matrix_from_array(lps[:3, :3] / spacing))
    itk.imwrite(image, str(path))
    return path


class TestFormats:
    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"])
    def test_files(self, tmp_path: Path, suffix: str) -> None:
        data = volume()
        path = tmp_path / f"scan{suffix}"
        if suffix.startswith(".nii"):
            nib.save(nib.Nifti1Image(data, OBLIQUE), path)
        else:
            write_itk(path, data, OBLIQUE)
        image = read_volume(path)
        assert image.shape == (1, 8, 7, 5)
        assert image.dtype == torch.float32
        assert image.meta["filename_or_obj"] == str(path)
        same_image(image, data, OBLIQUE)

    def test_dicom_series(self, write_series) -> None:
        folder = write_series("series", volume(), OBLIQUE)
        (folder / "notes.txt").write_text("not an image")
        image = read_volume(folder)
        assert image.shape == (1, 8, 7, 5)
        assert image.meta["filename_or_obj"] == str(folder)
        same_image(image, volume(), OBLIQUE)

    @pytest.mark.parametrize("order", [None, [3, 0, 4, 1, 2]], ids=["in order", "mixed"])
    def test_multi_frame_dicom(self, write_enhanced, order: list[int] | None) -> None:
        same_image(read_volume(write_enhanced("scan.dcm", volume(), OBLIQUE, order=order)), volume(), OBLIQUE)

    def test_multi_frame_alone_in_a_folder(self, write_enhanced) -> None:
        same_image(read_volume(write_enhanced("one/scan", volume(), OBLIQUE).parent), volume(), OBLIQUE)

    def test_rescale_of_each_frame(self, write_enhanced) -> None:
        slopes = [1.0, 2.0, 0.5, 3.0, 4.0]  # powers of two and three times small integers: exact in float32
        expected = volume() * np.array(slopes, dtype=np.float32)
        same_image(read_volume(write_enhanced("scan.dcm", volume(), OBLIQUE, slopes)), expected, OBLIQUE)

    def test_rescale_of_each_slice(self, write_series) -> None:
        def rescale(dataset: pydicom.Dataset, index: int) -> None:
            dataset.RescaleSlope, dataset.RescaleIntercept = index + 1, -10

        expected = volume() * np.arange(1, 6, dtype=np.float32) - 10
        same_image(read_volume(write_series("series", volume(), OBLIQUE, rescale)), expected, OBLIQUE)

    def test_decimal_commas_of_the_locale_change_no_dicom(self, write_series, decimal_comma: None) -> None:
        def rescale(dataset: pydicom.Dataset, index: int) -> None:
            dataset.RescaleSlope, dataset.RescaleIntercept = "0.25", "-1.5"

        same_image(read_volume(write_series("series", volume(), OBLIQUE, rescale)), volume() * 0.25 - 1.5, OBLIQUE)

    def test_big_endian_goes_through_a_loader(self, tmp_path: Path) -> None:
        header = nib.Nifti1Header(endianness=">")
        nib.save(nib.Nifti1Image(volume().astype(">f4"), OBLIQUE, header), tmp_path / "big.nii")
        loader = DataLoader(Dataset([{"image": str(tmp_path / "big.nii")}], LoadVolumed("image")), batch_size=1)
        np.testing.assert_array_equal(next(iter(loader))["image"][0, 0].numpy(), volume())

    def test_objects_without_an_image_are_passed_over(self, write_series) -> None:
        folder = write_series("series", volume(), OBLIQUE)
        report = pydicom.dcmread(next(folder.iterdir()))
        report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"  # Basic Text SR
        report.SeriesInstanceUID = generate_uid()
        for keyword in ("Rows", "Columns", "PixelData"):
            del report[keyword]
        report.save_as(folder / "report.dcm")
        (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
        same_image(read_volume(folder), volume(), OBLIQUE)


LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class TestVolumeOfClient:
    """What MONAI Deploy hands over: an image without a channel, with the metadata of its own operators."""

    @pytest.mark.parametrize(
        "meta",
        [
            {"affine": OBLIQUE, "space": "RAS"},
            {"affine": OBLIQUE},
            {"affine": LPS_FROM_RAS @ OBLIQUE, "space": "LPS"},
            # its operator for DICOM, asked for LPS: the inference operator puts the RAS affine in, and leaves the space
            {"affine": OBLIQUE, "original_affine": OBLIQUE, "space": "LPS", "nifti_affine_transform": OBLIQUE},
        ],
    )
    @pytest.mark.parametrize("dtype", [np.int16, np.float64])
    def test_axes_and_intensities(self, meta: dict, dtype: type, caplog) -> None:
        data = volume().astype(dtype)
        given = MetaTensor.ensure_torch_and_prune_meta(data, {**meta, "original_channel_dim": "no_channel"})
        image = LoadVolumed("image")({"image": given})["image"]
        same_image(image, data.astype(np.float32), OBLIQUE)
        assert image.dtype == torch.float32
        assert image.meta["space"] == "RAS"
        assert not caplog.records

    def test_array_without_an_affine_warns(self, caplog) -> None:
        for given in (volume(), torch.from_numpy(volume())):
            caplog.clear()
            same_image(volume_of_client(given), volume(), np.eye(4))
            assert "the client's image: it does not say how its axes lie in the patient" in caplog.text

    def test_stated_identity_is_silent(self, caplog) -> None:
        volume_of_client(MetaTensor(volume(), meta={"affine": np.eye(4), "original_affine": np.eye(4)}))
        assert not caplog.records

    def test_channel_is_moved_to_the_front(self) -> None:
        given = MetaTensor(volume()[..., None], meta={"affine": OBLIQUE, "original_channel_dim": -1})
        same_image(volume_of_client(given), volume(), OBLIQUE)

    def test_flat_grid_is_refused(self) -> None:
        with pytest.raises(ValueError, match="the client's image: expected an affine with three axes"):
            volume_of_client(MetaTensor(volume(), meta={"affine": np.diag([1.0, 1, 0, 1])}))


class TestUnstatedOrientation:
    def test_nifti_without_codes_warns(self, tmp_path: Path, caplog) -> None:
        image = nib.Nifti1Image(volume(), None)
        image.header.set_sform(None, 0)
        image.header.set_qform(None, 0)
        nib.save(image, tmp_path / "scan.nii")
        read_volume(tmp_path / "scan.nii")
        assert "scan.nii: it does not say how its axes lie in the patient" in caplog.text

    def test_stated_orientation_is_silent(self, write_volume, tmp_path: Path, caplog) -> None:
        read_volume(write_volume("scan.nii.gz"))
        read_volume(write_itk(tmp_path / "scan.nrrd", volume(), OBLIQUE))
        assert not caplog.records

    def test_nrrd_without_space_warns(self, tmp_path: Path, caplog) -> None:
        header = "NRRD0004\ntype: float\ndimension: 3\nsizes: 8 7 5\nspacings: 1 1 2\nencoding: raw\nendian: little\n\n"
        (tmp_path / "scan.nrrd").write_bytes(header.encode() + np.asfortranarray(volume()).tobytes(order="F"))
        read_volume(tmp_path / "scan.nrrd")
        assert "scan.nrrd: it does not say" in caplog.text

    def test_flat_grid_is_refused(self, write_volume) -> None:
        path = write_volume("flat.nii", qform=0)
        content = bytearray(path.read_bytes())
        content[312:328] = bytes(16)  # srow_z of the NIfTI-1 header
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"flat\.nii: expected an affine with three axes"):
            read_volume(path)


def drop(keyword: str, index: int = 2) -> Callable[[pydicom.Dataset, int], None]:
    return lambda dataset, i: dataset.pop(keyword) if i == index else None


def change(keyword: str, value: object, index: int = 2) -> Callable[[pydicom.Dataset, int], None]:
    return lambda dataset, i: setattr(dataset, keyword, value) if i == index else None


class TestRefusedSeries:
    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (drop("ImagePositionPatient"), r"014_2\.dcm: expected 3 numbers for ImagePositionPatient.*found nothing"),
            (drop("ImageOrientationPatient"), r"014_2\.dcm: expected 6 numbers for ImageOrientationPatient"),
            (drop("PixelSpacing"), "expected 2 numbers for PixelSpacing"),
            (change("PixelSpacing", [0, 1]), "expected PixelSpacing above 0"),
            (change("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "expected two perpendicular axes"),
            (change("ImageOrientationPatient", [1, 0, 0, 0, 0, -1]), "expected slices of one orientation"),
            (change("SamplesPerPixel", 3), "expected grey values; found a colour image"),
            (change("Modality", "CT"), "expected an MR image; found the modality CT"),
            (change("ImagePositionPatient", [0, 0, 0]), "expected one slice in each place"),
            (change("ImagePositionPatient", [0, 0, 4.3]), r"expected slices 2\.\d* mm apart"),
            (change("ImagePositionPatient", [0.5, 0, 4]), r"expected slices 2\.000 mm apart"),
        ],
        ids=[
            "position",
            "orientation",
            "spacing",
            "no spacing",
            "axes",
            "mixed",
            "colour",
            "CT",
            "twice",
            "uneven",
            "aside",
        ],
    )
    def test_one_slice_at_fault(self, write_series, edit: Callable, message: str) -> None:
        folder = write_series("series", volume(), edit=edit)
        with pytest.raises(ValueError, match=message) as caught:
            read_volume(folder)
        assert str(caught.value).startswith(str(folder))

    def test_missing_slice(self, write_series) -> None:
        folder = write_series("series", volume())
        next(folder.glob("*_2.dcm")).unlink()
        with pytest.raises(ValueError, match=r"mm apart; found 4\.000 mm between 007_1\.dcm and 021_3\.dcm.* missing"):
            read_volume(folder)

    @pytest.mark.parametrize("keep", [0.02, 0.3, 0.9], ids=["preamble", "header", "pixels"])
    def test_cut_off_slice(self, write_series, keep: float) -> None:
        folder = write_series("series", np.repeat(np.repeat(volume(), 4, axis=0), 4, axis=1))
        file = next(folder.glob("*_2.dcm"))
        content = file.read_bytes()
        file.write_bytes(content[: int(keep * len(content))])
        with pytest.raises(ValueError, match=r"014_2\.dcm: expected a readable DICOM slice; found a damaged file"):
            read_volume(folder)

    def test_slice_of_another_kind(self, write_series) -> None:
        folder = write_series("series", volume())
        next(folder.glob("*_2.dcm")).write_text("not DICOM at all")
        with pytest.raises(ValueError, match=r"014_2\.dcm: expected a readable DICOM slice"):
            read_volume(folder)

    def test_two_series(self, write_series) -> None:
        folder = write_series("series", volume())
        other = write_series("other", volume(), edit=lambda dataset, i: setattr(dataset, "SeriesDescription", "t2"))
        for file in other.iterdir():
            file.rename(folder / f"other_{file.name}")
        with pytest.raises(ValueError, match=r"expected one DICOM series; found 2: 't1 sag' \(5 files.*'t2' \(5 files"):
            read_volume(folder)

    def test_copy_of_a_slice(self, write_series) -> None:
        folder = write_series("series", volume())
        shutil.copy(folder / "014_2.dcm", folder / "014_2 (1).dcm")
        with pytest.raises(
            ValueError, match=r"014_2 \(1\)\.dcm and 014_2\.dcm in the same: one is a copy of the other"
        ):
            read_volume(folder)

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (
                None,
                ", with no echo, time or direction that tells them apart: the series seems to be here twice. Remove",
            ),
            (lambda d, _: setattr(d, "EchoTime", 9), r"; EchoTime is 3.5 and 9.* A series with several echoes"),
        ],
        ids=["exported again", "echoes"],
    )
    def test_series_twice(self, write_series, edit: Callable | None, message: str) -> None:
        folder, other = write_series("series", volume()), write_series("other", volume(), edit=edit)
        uid = pydicom.dcmread(next(folder.iterdir())).SeriesInstanceUID
        for file in other.iterdir():
            dataset = pydicom.dcmread(file)
            dataset.SeriesInstanceUID = uid
            dataset.save_as(folder / f"again_{file.name}")
        with pytest.raises(ValueError, match=f"expected one slice in each place; .* in the same.*{message}"):
            read_volume(folder)

    def test_uid_of_each_slice(self, write_series) -> None:
        folder = write_series("series", volume(), edit=lambda d, _: setattr(d, "SeriesInstanceUID", generate_uid()))
        with pytest.raises(ValueError, match=r"expected one Series Instance UID .* another on each of 5 slices"):
            read_volume(folder)

    def test_mosaic(self, write_series) -> None:
        folder = write_series("series", volume(), edit=change("ImageType", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]))
        with pytest.raises(ValueError, match=r"014_2\.dcm: .* found a Siemens mosaic.* dcm2niix"):
            read_volume(folder)

    def test_multi_frame_beside_slices(self, write_series, write_enhanced) -> None:
        folder = write_series("series", volume())
        write_enhanced("series/a.dcm", volume())
        with pytest.raises(ValueError, match=r"series: .* found the multi-frame a\.dcm beside 5 other DICOM images"):
            read_volume(folder)

    def test_fewer_pixels_than_the_header_says(self, write_series) -> None:
        folder = write_series(
            "series", volume(), edit=lambda d, i: setattr(d, "PixelData", d.PixelData[: 112 - 10 * i])
        )
        with pytest.raises(ValueError, match=r"007_1\.dcm: .* a damaged file \(102 bytes of pixels; 112 are needed\)"):
            read_volume(folder)

    @pytest.mark.parametrize("kind", [b"TI", b"Ui", b"U@"])
    def test_a_type_before_the_data_set_that_asks_for_memory(self, write_series, kind: bytes) -> None:
        """GDCM takes the text of the UID for a length, and 740 MiB for it."""
        file = sorted(write_series("series", volume(), OBLIQUE).iterdir())[1]
        content, tag = file.read_bytes(), bytes([2, 0, 3, 0])
        assert content.count(tag + b"UI") == 1
        file.write_bytes(content.replace(tag + b"UI", tag + kind))
        with pytest.raises(ValueError, match=rf"{file.name}: expected a readable DICOM slice; found .* does not know"):
            read_volume(file.parent)

    @pytest.mark.parametrize("implicit", [False, True])
    def test_an_item_that_asks_for_memory(self, write_enhanced, monkeypatch, implicit: bool) -> None:
        """One byte of an item's length: GDCM takes 2.3 GiB for it, and half a minute."""
        path = write_enhanced("scan.dcm", volume())
        if implicit:
            dataset = pydicom.dcmread(path)
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
            save_dataset(dataset, path, implicit=True)
        content = path.read_bytes()
        position = content.index(bytes.fromhex("20003200"))  # of the first frame, alone in its item
        assert content[position - 8 : position - 4] == bytes.fromhex("feff00e0")
        path.write_bytes(content[: position - 1] + b"\x4d" + content[position:])
        monkeypatch.setattr(itk.GDCMImageIO, "New", None)
        with pytest.raises(ValueError, match=r"scan\.dcm: .* a damaged file \(an item of 12918456\d\d bytes at byte"):
            read_volume(path)

    def test_an_unknown_type_in_an_item(self, write_enhanced, monkeypatch) -> None:
        path = write_enhanced("scan.dcm", volume())
        content = path.read_bytes()
        path.write_bytes(content.replace(bytes.fromhex("20003200") + b"DS", bytes.fromhex("20003200") + b"D@", 1))
        monkeypatch.setattr(itk.GDCMImageIO, "New", None)
        with pytest.raises(ValueError, match=r"scan\.dcm: .*a type that DICOM does not know, 'D@', at byte \d+\)\."):
            read_volume(path)

    def test_compressed_pixels_of_a_size_that_cannot_be_in_the_file(self, write_enhanced, monkeypatch) -> None:
        path = write_enhanced("scan.dcm", volume())
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless)
        save_dataset(dataset, path)
        same_image(read_volume(path), volume(), np.diag([2.0, 2.0, 2.0, 1.0]))
        dataset.Rows = dataset.Columns = 5000
        save_dataset(dataset, path)
        monkeypatch.setattr(itk.GDCMImageIO, "New", None)
        with pytest.raises(ValueError, match=r"scan\.dcm: .* 250000000 of pixels cannot be in them"):
            read_volume(path)
        dataset.Rows = dataset.Columns = 20000
        save_dataset(dataset, path)
        with pytest.raises(ValueError, match=r"scan\.dcm: expected 1 to .* found 2,000,000,000 in its header"):
            read_volume(path)

    @pytest.mark.parametrize(("place", "value"), [(0, 0), (0, 3), (4, 65), (8, 9999)])
    def test_run_lengths_that_are_not_where_they_should_be(
        self, write_enhanced, monkeypatch, place: int, value: int
    ) -> None:
        """By the number of segments GDCM divides."""
        path = write_enhanced("scan.dcm", volume())
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless)
        save_dataset(dataset, path)
        content = bytearray(path.read_bytes())
        start = content.index(bytes.fromhex("0200000040000000"))  # two segments, the first after 64 bytes
        content[start + place : start + place + 4] = value.to_bytes(4, "little")
        path.write_bytes(content)
        monkeypatch.setattr(itk.GDCMImageIO, "New", None)
        with pytest.raises(ValueError, match=r"scan\.dcm: .* a damaged file \(\d segments at .* of a picture of 2"):
            read_volume(path)

    def test_sheared_grid(self, write_series) -> None:
        sheared = np.diag([1.0, 1.0, 2.0, 1.0])
        sheared[1, 2] = 0.3
        with pytest.raises(ValueError, match="tilted gantry"):
            read_volume(write_series("series", volume(), sheared))

    def test_single_slice(self, write_series) -> None:
        folder = write_series("series", volume())
        file = next(folder.iterdir())
        with pytest.raises(ValueError, match=f"Name the folder of its series, such as {folder}"):
            read_volume(file)

    def test_frames_without_a_place(self, write_enhanced) -> None:
        path = write_enhanced("scan.dcm", volume())
        dataset = pydicom.dcmread(path)
        del dataset.PerFrameFunctionalGroupsSequence
        dataset.save_as(path)
        with pytest.raises(ValueError, match="expected the position of each of 5 frames; found none"):
            read_volume(path)

    def test_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="expected a folder with the files of a DICOM series; found none"):
            read_volume(tmp_path)

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="gone: expected an image; found no file"):
            read_volume(tmp_path / "gone")


def test_slices_filled_up_with_zeros(write_series) -> None:
    folder = write_series("series", volume(), OBLIQUE)
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes() + bytes(512))
    same_image(read_volume(folder), volume(), OBLIQUE)


@pytest.mark.parametrize("implicit", [True, False])
def test_without_preamble_and_suffix(write_series, implicit: bool) -> None:
    folder = write_series("series", volume(), OBLIQUE)
    for file in list(folder.iterdir()):
        dataset = pydicom.dcmread(file)
        dataset = pydicom.Dataset(dataset)
        save_dataset(dataset, file.with_suffix(""), implicit=implicit)
        file.unlink()
    same_image(read_volume(folder), volume(), OBLIQUE)


def test_is_dicom(write_series, write_volume, tmp_path: Path) -> None:
    file = next(write_series("series", volume()).iterdir())
    bare = file.rename(file.with_suffix(""))
    assert is_dicom(bare)
    assert not is_dicom(write_volume("a.nii.gz"))
    assert not is_dicom(tmp_path)


@pytest.mark.parametrize("vendor", ["siemens", "ge", "philips"])
def test_vendors_lie_where_the_ground_truth_says(shared_data: Path, vendor: str) -> None:
    folder = shared_data / "dicom" / vendor / "anatomical" / "001"
    truth = nib.load(folder.with_name("001_ground_truth.nii.gz"))
    same_image(read_volume(folder), truth.get_fdata(), truth.affine)


def test_overlong_decimal_strings_are_read_rightly(shared_data: Path) -> None:
    fixed, overlong = (read_geometry(shared_data / "dicom" / f"t1_oblique_{name}") for name in ("fixed", "overlong_ds"))
    assert fixed.shape == overlong.shape == (274, 384, 64)
    assert corner_distance(fixed.affine, overlong.affine, fixed.shape) < MM
    assert abs(fixed.affine - np.eye(4)).max() > 1
