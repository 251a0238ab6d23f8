"""Tests of custom.inference.dicom_writer: translations as a DICOM series, read back by pydicom and by ITK."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from pydicom.dataset import Dataset

from custom.data.dicom import read_geometry
from custom.data.readers import read_volume
from custom.inference import dicom_writer
from custom.inference.dicom_writer import MAXIMUM, save_synthetic_series
from custom.inference.provenance import NAME, translation_record
from custom.inference.saver import SaveImageTranslationsd

pytestmark = pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")  # of ITK's wrapping

AFFINE = np.array([[0.02, 0.1, -1.3, 50], [-0.9, 0.03, 0.05, 20], [0.01, 0.8, 0.06, -30], [0, 0, 0, 1]], dtype=float)
AFFINE[:3, :3] = np.linalg.qr(AFFINE[:3, :3])[0] @ np.diag([0.9, 0.8, 1.3])
MM = 1e-6  # affines of a hundred mm by decimal strings of 16 characters
RECORD = translation_record(
    "t2", {"Seed": 3, "Steps": 1, "Samples": 2, "WeightsSHA": "f" * 64}, version="1.2", provenance='{"source": "abc"}',
    warnings=["slices 4 mm apart"],
)  # fmt: skip


def prediction(shape: tuple[int, ...] = (30, 34, 26)) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def slices(folder: Path) -> list[Dataset]:
    return [pydicom.dcmread(file) for file in sorted(folder.iterdir())]


@pytest.fixture(params=["series", "multi-frame"])
def source(request, write_series: Callable, write_enhanced: Callable) -> Path:
    write = write_series if request.param == "series" else write_enhanced
    return write("source" if request.param == "series" else "source.dcm", affine=AFFINE)


@pytest.fixture
def written(source: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "out" / "source_t2_synthetic"
    # values in the order in which the source is read
    save_synthetic_series(prediction(read_geometry(source).shape), folder, source, RECORD)
    return folder


class TestRoundTrip:
    def test_our_reader(self, source: Path, written: Path) -> None:
        image = read_volume(written)
        np.testing.assert_allclose(image.affine, read_volume(source).affine, atol=MM)
        # half a step of the stored integers
        np.testing.assert_allclose(image[0] / MAXIMUM, prediction(image[0].shape), atol=0.5 / MAXIMUM + 1e-7)

    def test_itk(self, source: Path, written: Path) -> None:
        import itk

        names = itk.GDCMSeriesFileNames.New()
        names.SetDirectory(str(written))
        (uid,) = names.GetSeriesUIDs()
        reader = itk.ImageSeriesReader[itk.Image[itk.SS, 3]].New(FileNames=names.GetFileNames(uid))
        reader.ForceOrthogonalDirectionOff()
        reader.Update()
        image = reader.GetOutput()
        affine = np.eye(4)
        affine[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.array(image.GetSpacing())
        affine[:3, 3] = image.GetOrigin()
        np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ affine, read_volume(source).affine, atol=1e-3)
        np.testing.assert_array_equal(itk.array_from_image(image).T, read_volume(written)[0])

    def test_pydicom(self, source: Path, written: Path) -> None:
        planes = [dataset.pixel_array.T for dataset in slices(written)]
        np.testing.assert_array_equal(np.stack(planes, axis=-1), read_volume(written)[0])

    def test_overlong_values_come_back_valid(self, shared_data: Path, tmp_path: Path) -> None:
        source = shared_data / "dicom" / "t1_oblique_overlong_ds"
        geometry = read_geometry(source)
        save_synthetic_series(torch.zeros(geometry.shape), tmp_path / "out", source, RECORD)
        back = read_geometry(tmp_path / "out")
        np.testing.assert_allclose(back.affine, geometry.affine, atol=MM)
        position = pydicom.dcmread(tmp_path / "out" / "0001.dcm").get_item("ImagePositionPatient").value
        assert max(len(number) for number in position.split(b"\\")) <= 16


class TestAttributes:
    def test_a_new_series_of_the_same_study(self, source: Path, written: Path) -> None:
        old, new = read_geometry(source).frames[0].dataset, slices(written)
        for dataset in new:
            for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "FrameOfReferenceUID"):
                assert dataset[keyword].value == old[keyword].value, keyword
            assert dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID
        assert {d.SeriesInstanceUID for d in new}.isdisjoint({old.SeriesInstanceUID})
        assert len({d.SeriesInstanceUID for d in new}) == 1
        assert len({d.SOPInstanceUID for d in new}) == len(new) == 26
        assert [d.InstanceNumber for d in new] == list(range(1, 27))
        assert new[0].SeriesNumber == 10007

    def test_declared_as_synthetic(self, written: Path) -> None:
        dataset = slices(written)[3]
        assert dataset.SOPClassUID.name == "MR Image Storage"
        assert dataset.ImageType[:2] == ["DERIVED", "SECONDARY"]
        assert dataset[dicom_writer.SYNTHETIC_DATA].value == "YES"
        assert dataset.SeriesDescription == "SYNTHETIC T2 from t1 sag"
        assert "brain_mri_modality_translation v1.2" in dataset.DerivationDescription
        assert "not acquired" in dataset.ImageComments
        assert dataset.ContentQualification == "RESEARCH"
        acquisition, modification = dataset.ContributingEquipmentSequence
        assert acquisition.Manufacturer == "ACME"
        assert modification.SoftwareVersions == "v1.2"

    def test_carries_the_record(self, written: Path) -> None:
        for dataset in slices(written):
            block = dataset.private_block(dicom_writer.PRIVATE_GROUP, dicom_writer.PRIVATE_CREATOR)
            assert json.loads(block[dicom_writer.RECORD_ELEMENT].value) == RECORD
        modification = dataset.ContributingEquipmentSequence[1]
        assert modification.Manufacturer == NAME
        assert modification.ContributionDescription.startswith("Translation of the source's contrast to T2")
        for said in ("Seed 3; Steps 1; Samples 2", f"WeightsSHA {'f' * 64}", "SourceSHA abc", "slices 4 mm apart"):
            assert said in modification.ContributionDescription

    def test_says_nothing_of_an_acquisition(self, written: Path) -> None:
        dataset = slices(written)[0]
        assert dataset.EchoTime is None
        assert dataset.ScanningSequence == "RM"
        assert dataset.Manufacturer != "ACME"

    def test_names_its_source(self, source: Path, written: Path) -> None:
        for frame, dataset in zip(read_geometry(source).frames, slices(written), strict=True):
            (reference,) = dataset.SourceImageSequence
            assert reference.ReferencedSOPInstanceUID == frame.dataset.SOPInstanceUID
            (series,) = dataset.ReferencedSeriesSequence
            assert series.SeriesInstanceUID == frame.dataset.SeriesInstanceUID
            if source.is_file():
                assert reference.ReferencedFrameNumber == frame.number + 1

    @pytest.mark.parametrize("frames", [False, True])
    def test_names_all_sources(
        self, source: Path, write_series, write_enhanced, write_volume, tmp_path: Path, frames: bool
    ) -> None:
        """One in the same place, in the same study; one on another grid, of another study; one that is no DICOM."""
        study = pydicom.dcmread(next(source.iterdir()) if source.is_dir() else source).StudyInstanceUID
        beside = write_series("beside", affine=AFFINE, edit=lambda d, _: setattr(d, "StudyInstanceUID", study))
        elsewhere = write_enhanced("elsewhere.dcm") if frames else write_series("elsewhere")
        others = (beside, elsewhere, write_volume("scan.nii.gz"))
        save_synthetic_series(prediction(), tmp_path / "out", source, RECORD, others=others)
        first, second, other = (read_geometry(place).frames for place in (source, beside, elsewhere))
        instances = {frame.dataset.SOPInstanceUID for frame in other}
        for index, dataset in enumerate(slices(tmp_path / "out")):
            found = [reference.ReferencedSOPInstanceUID for reference in dataset.SourceImageSequence]
            assert found[:2] == [frames[index].dataset.SOPInstanceUID for frames in (first, second)]
            assert set(found[2:]) == instances
            assert len(found) == 2 + len(instances)
            assert "ReferencedFrameNumber" not in dataset.SourceImageSequence[-1]  # all of them
            own = {series.SeriesInstanceUID for series in dataset.ReferencedSeriesSequence}
            assert own == {frames[index].dataset.SeriesInstanceUID for frames in (first, second)}
            [another] = dataset.StudiesContainingOtherReferencedInstancesSequence
            assert another.StudyInstanceUID == other[0].dataset.StudyInstanceUID != study
            [series] = another.ReferencedSeriesSequence
            assert {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence} == instances

    def test_lossy_compression_and_time_zone_are_kept(self, write_series, tmp_path: Path) -> None:
        def edit(dataset: Dataset, index: int) -> None:
            dataset.LossyImageCompression, dataset.TimezoneOffsetFromUTC = "01", "-0930"

        folder = write_series("source", edit=edit)
        save_synthetic_series(prediction(), tmp_path / "out", folder, RECORD)
        dataset = slices(tmp_path / "out")[0]
        assert (dataset.LossyImageCompression, dataset.TimezoneOffsetFromUTC) == ("01", "-0930")

    def test_frame_of_reference_is_made_where_there_is_none(self, write_series, tmp_path: Path) -> None:
        folder = write_series("source", edit=lambda dataset, i: dataset.pop("FrameOfReferenceUID"))
        save_synthetic_series(prediction(), tmp_path / "out", folder, RECORD)
        assert len({d.FrameOfReferenceUID for d in slices(tmp_path / "out")}) == 1


class TestFaults:
    def test_source_is_not_dicom(self, write_volume, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"a\.nii\.gz: expected a DICOM series.*Leave out --output_format"):
            save_synthetic_series(prediction(), tmp_path / "out", write_volume("a.nii.gz"), RECORD)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("spoil", [lambda v: v[1:], lambda v: v * float("nan")], ids=["shape", "nan"])
    def test_bad_prediction(self, source: Path, tmp_path: Path, spoil: Callable) -> None:
        volume = spoil(prediction(read_geometry(source).shape))
        with pytest.raises(ValueError, match="expected a translation of shape"):
            save_synthetic_series(volume, tmp_path / "out", source, RECORD)
        assert not (tmp_path / "out").exists()

    def test_failed_write_leaves_the_former_series(
        self, source: Path, written: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = {file.name: file.read_bytes() for file in written.iterdir()}
        dcmwrite, calls = pydicom.dcmwrite, []

        def fail(path: Path, *args: object, **kwargs: object) -> None:
            calls.append(path)
            if len(calls) == 5:
                raise OSError("disk full")
            dcmwrite(path, *args, **kwargs)

        monkeypatch.setattr(dicom_writer.pydicom, "dcmwrite", fail)
        volume = prediction(read_geometry(source).shape)
        with pytest.raises(OSError, match="disk full"):
            save_synthetic_series(volume, written, source, RECORD)
        assert {file.name: file.read_bytes() for file in written.iterdir()} == before
        assert [p.name for p in written.parent.iterdir()] == [written.name]

    def test_a_second_run_replaces_the_series(self, source: Path, written: Path) -> None:
        before = slices(written)[0].SeriesInstanceUID
        (written / "0099.dcm").write_bytes(b"of a longer series")
        volume = prediction(read_geometry(source).shape)
        save_synthetic_series(volume, written, source, RECORD)
        assert len(slices(written)) == 26
        assert slices(written)[0].SeriesInstanceUID != before

    def test_foreign_files_are_not_removed(self, source: Path, written: Path) -> None:
        (written / "notes.txt").write_text("mine")
        volume = prediction(read_geometry(source).shape)
        with pytest.raises(ValueError, match="found other files"):
            save_synthetic_series(volume, written, source, RECORD)
        assert (written / "notes.txt").read_text() == "mine"

    def test_unknown_output_format(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="output_format: expected nifti or dicom; found 'jpeg'"):
            SaveImageTranslationsd("pred", tmp_path, "t2", output_format="jpeg")


def test_a_comparison_method_is_named(tmp_path: Path, write_series: Callable) -> None:
    source = write_series("source", affine=AFFINE)
    for method, model in (({}, "latent diffusion"), ({"Method": "reg_gan"}, "reg_gan")):
        record = translation_record("t2", {"Seed": 3, **method}, version="1.2")
        save_synthetic_series(prediction(read_geometry(source).shape), tmp_path / model, source, record)
        header = slices(tmp_path / model)[0]
        equipment = header.ContributingEquipmentSequence[1]
        assert header.ManufacturerModelName == equipment.ManufacturerModelName == model
        assert header.Manufacturer == ", ".join([NAME, *method.values()])
