"""Tests of inference.json with several sources of a subject, and with error maps: from files to files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from custom.data.names import sidecar_of
from custom.data.scans import is_synthetic
from custom.inference import memory
from custom.inference.inputs import inference_inputs
from custom.inference.provenance import read_provenance
from custom.inference.translation import Translation
from custom.utils.errors import find_user_error
from tests.fixtures.brains import SPACING
from tests.fixtures.translation import written

pytestmark = [
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning"),  # of ITK's wrapping
]


@pytest.fixture
def sources(write_volume: Callable, brain: Callable) -> list[str]:
    """T1 and FLAIR of one brain."""
    return [str(write_volume(f"in/p_{m}.nii.gz", brain(m), affine=SPACING)) for m in ("t1", "flair")]


def message(run: Callable[[], object]) -> str:
    with pytest.raises(RuntimeError) as raised:
        run()
    return str(find_user_error(raised.value))


def voxels(folder: Path, name: str) -> np.ndarray:
    return np.asanyarray(nib.load(folder / "out" / name).dataobj)


def test_a_set_gives_one_result_whatever_its_order(workflow, sources, tmp_path: Path) -> None:
    files = []
    for order in (sources, sources[::-1]):
        workflow(image=order, targets="t2", skip_done=False).run()
        files.append((tmp_path / "out" / "p_t2_synthetic.nii.gz").read_bytes())
        assert written(tmp_path) == ["p_t2_synthetic.nii.gz"]
    assert files[0] == files[1]
    record = read_provenance(tmp_path / "out" / "p_t2_synthetic.nii.gz")
    assert record is not None
    assert record["Sources"] == ["p_flair.nii.gz", "p_t1.nii.gz"]
    assert record["SourceSHA"] == sorted(hashlib.sha256(Path(s).read_bytes()).hexdigest() for s in sources)
    assert str(tmp_path) not in json.dumps(record)


@pytest.mark.slow
def test_every_source_counts(workflow, knowing_translator, sources, tmp_path: Path) -> None:
    results = []
    for image in (sources, sources[:1], sources[0]):
        workflow(knowing_translator, image=image, targets="t2", skip_done=False).run()
        name = "p" if image is sources else "p_t1"
        results.append(voxels(tmp_path, f"{name}_t2_synthetic.nii.gz"))
    assert not np.allclose(results[0], results[1])
    np.testing.assert_array_equal(results[1], results[2])  # a list of one is that one


@pytest.mark.slow
def test_whether_a_result_is_valid_does_not_depend_on_the_order(
    workflow, sources, write_volume, brain, tmp_path
) -> None:
    workflow(image=sources, targets="t2").run()
    assert len(workflow(image=sources[::-1], targets="t2").dataset) == 0
    another = [*sources, str(write_volume("in/p_t1ce.nii.gz", brain("t1ce"), affine=SPACING))]
    made = workflow(image=another, targets="t2")
    assert "fault" not in made.dataset.data[0]  # of the same subject: made anew
    write_volume("in/p_t1.nii.gz", brain("t1", seed=4), affine=SPACING)
    assert len(workflow(image=sources, targets="t2").dataset) == 1


def test_another_subjects_set_of_that_name_is_not_replaced(workflow, sources, write_volume, brain, tmp_path) -> None:
    workflow(image=sources, targets="t2").run()
    others = [str(write_volume(f"elsewhere/p_{m}.nii.gz", brain(m, seed=1), affine=SPACING)) for m in ("t1", "flair")]
    said = message(workflow(image=others, targets="t2").run)
    assert said.startswith(f"{others[1]}, {others[0]}: expected a result of its own; found")


@pytest.fixture
def cohort_with_gaps(cohort: Callable) -> Path:
    root = cohort(2, modalities=("t1", "t2", "flair"))
    (root / "s01" / "s01_t1.nii.gz").unlink()
    return root


def test_a_folder_of_subjects_is_filled_in(workflow, cohort_with_gaps: Path, tmp_path: Path) -> None:
    made = workflow(image=str(cohort_with_gaps), layout="brats2021", targets="missing")
    made.run()
    assert written(tmp_path) == [f"{name}_synthetic.nii.gz" for name in ("s00_t1ce", "s01_t1", "s01_t1ce")]
    assert read_provenance(tmp_path / "out" / "s01_t1_synthetic.nii.gz")["Target"] == "t1"
    assert len(workflow(image=str(cohort_with_gaps), layout="brats2021", targets="missing").dataset) == 0


def test_one_bad_subject_does_not_lose_the_others(workflow, cohort_with_gaps: Path, tmp_path: Path) -> None:
    bad = cohort_with_gaps / "s00" / "s00_t2.nii.gz"
    bad.write_bytes((cohort_with_gaps / "s00" / "s00_t1.nii.gz").read_bytes())
    said = message(workflow(image=str(cohort_with_gaps), layout="brats2021", targets="t1ce").run)
    assert written(tmp_path) == ["s01_t1ce_synthetic.nii.gz"]
    assert said.startswith("1 of 2 files could not be translated")
    assert f"{bad}: expected another scan than" in said


@pytest.mark.slow
def test_another_grid_is_refused_or_registered(workflow, sources, write_volume, brain, tmp_path: Path) -> None:
    coarse = write_volume("in/p_t2.nii.gz", brain("t2", shape=(20, 23, 19)), affine=np.diag([4.8, 4.8, 4.8, 1]))
    given = [str(coarse), sources[0]]
    said = message(workflow(image=given, targets="flair").run)
    assert said.startswith(f"{coarse}: expected the sources of a subject on one grid")
    assert written(tmp_path) == []
    results = []
    for order in (given, given[::-1]):
        workflow(image=order, targets="flair", align=True, skip_done=False).run()
        results.append((tmp_path / "out" / "p_flair_synthetic.nii.gz").read_bytes())
    assert results[0] == results[1]
    result, fine = nib.load(tmp_path / "out" / "p_flair_synthetic.nii.gz"), nib.load(sources[0])
    assert result.shape == fine.shape
    np.testing.assert_array_equal(result.affine, fine.affine)
    [motion] = read_provenance(tmp_path / "out" / "p_flair_synthetic.nii.gz")["Registered"]
    assert (motion["Source"], motion["To"]) == (coarse.name, Path(sources[0]).name)
    assert motion.keys() == {"Source", "To", "ShiftMillimetres", "RotationDegrees"}


def test_brains_that_do_not_fit_are_warned_about(workflow, sources, write_volume, brain, tmp_path, caplog) -> None:
    shifted = write_volume("in/p_t1ce.nii.gz", np.roll(brain("t1ce"), 6, axis=0), affine=SPACING)
    workflow(image=[sources[0], str(shifted)], targets="t2").run()
    said = "the brains of p_t1.nii.gz and p_t1ce.nii.gz overlap by a Dice of 0."
    assert said in caplog.text
    [told] = [w for w in read_provenance(tmp_path / "out" / "p_t2_synthetic.nii.gz")["Warnings"] if "Dice" in w]
    assert told.startswith(said)


def test_more_sources_than_fit_into_memory(workflow, sources, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 1.0)
    said = message(workflow(image=sources, targets="t2").run)
    assert said.startswith("image: expected sources that fit into the 0.0 GiB of memory that are free; found 2 of ")
    assert said.endswith("Translate one alone, or resample them to larger voxels.")
    assert written(tmp_path) == []
    workflow(image=sources[0], targets="t2").run()  # how much one takes is for the system to say


class TestUncertainty:
    def test_in_the_units_of_the_result(self, workflow, knowing_translator, sources, tmp_path: Path) -> None:
        workflow(knowing_translator, image=sources, targets=["t2", "t1ce"], uncertainty=True).run()
        names = [f"p_{t}_synthetic{end}.nii.gz" for t in ("t1ce", "t2") for end in ("", "_uncertainty")]
        assert sorted(written(tmp_path)) == sorted(names)
        data = workflow(knowing_translator, image=sources, targets="t2", skip_done=False).dataset[0]
        found = Translation(knowing_translator, data["image"].as_tensor()[None], amp="auto").translate(
            2, uncertainty=True
        )
        inside = data["image_foreground"].as_tensor()[0] > 0
        error = found.uncertainty[0, 0][inside] / 2  # from a range of 2 to one of 1
        image, map_ = (voxels(tmp_path, f"p_t2_synthetic{end}.nii.gz") for end in ("", "_uncertainty"))
        np.testing.assert_allclose(np.sort(map_[map_ > 0]), np.sort(error[error > 0].numpy()), atol=1e-6)
        assert image.shape == map_.shape
        assert 0 <= map_.min() < map_.max() <= 1

    def test_the_translation_is_the_same(self, workflow, knowing_translator, sources, tmp_path: Path) -> None:
        results = []
        for uncertainty in (False, True):
            workflow(knowing_translator, image=sources, targets="t2", uncertainty=uncertainty, skip_done=False).run()
            results.append(voxels(tmp_path, "p_t2_synthetic.nii.gz"))
        np.testing.assert_array_equal(*results)

    def test_marked_as_an_output_and_passed_over(self, workflow, knowing_translator, sources, tmp_path: Path) -> None:
        workflow(knowing_translator, image=sources[0], targets="t2", uncertainty=True).run()
        file = tmp_path / "out" / "p_t1_t2_synthetic_uncertainty.nii.gz"
        record = json.loads(sidecar_of(file).read_text())
        assert record == read_provenance(file)
        assert record["Description"].startswith("SYNTHETIC t2 uncertainty from brain_mri")
        assert (record["Quantity"], record["Target"]) == ("expected absolute error", "t2")
        renamed = file.rename(file.with_name("renamed.nii.gz"))
        assert is_synthetic(renamed)
        renamed.rename(tmp_path / "in" / "renamed.nii.gz")
        assert len(inference_inputs(tmp_path / "in")) == 2

    def test_asked_for_later(self, workflow, knowing_translator, sources, tmp_path: Path) -> None:
        workflow(knowing_translator, image=sources, targets="t2").run()
        made = workflow(knowing_translator, image=sources, targets="t2", uncertainty=True)
        assert len(made.dataset) == 1
        made.run()
        assert len(workflow(knowing_translator, image=sources, targets="t2", uncertainty=True).dataset) == 0

    @pytest.mark.parametrize(
        ("head", "found"), [("untrained", "found untrained ones"), ("none", "found none in LatentTranslator")]
    )
    def test_of_weights_that_do_not_know(self, workflow, knowing_translator, sources, tmp_path, head, found) -> None:
        knowing_translator.detail.error.trained.zero_()
        if head == "none":
            knowing_translator.detail.error = None
        made = workflow(knowing_translator, image=sources, targets="t2", uncertainty=True)
        said = message(made.run)
        assert said.startswith("uncertainty: expected")
        assert found in said
        assert written(tmp_path) == []

    def test_as_a_second_series(self, workflow, knowing_translator, write_series, tmp_path: Path) -> None:
        source = write_series("in/a")
        workflow(
            knowing_translator, image=str(source), targets=["t2", "flair"], uncertainty=True, output_format="dicom"
        ).run()
        folders = sorted((tmp_path / "out").iterdir())
        assert [f.name for f in folders] == [
            f"a_{t}_synthetic{e}" for t in ("flair", "t2") for e in ("", "_uncertainty")
        ]
        headers = [pydicom.dcmread(next(folder.iterdir())) for folder in folders]
        assert len({h.SeriesInstanceUID for h in headers}) == len({h.SeriesNumber for h in headers}) == 4
        assert len({h.StudyInstanceUID for h in headers}) == 1
        assert headers[3].SeriesDescription == "SYNTHETIC T2 UNCERTAINTY from t1 sag"
        assert "stand for errors of 0 to 1" in headers[3].ImageComments
        assert all(is_synthetic(folder) for folder in folders)

    def test_all_sources_are_referred_to(
        self, workflow, knowing_translator, write_series, head, tmp_path: Path
    ) -> None:
        sources = [write_series(f"in/{name}", head(seed=seed)) for seed, name in enumerate(("t1", "flair"))]
        workflow(knowing_translator, image=list(map(str, sources)), targets="t2", output_format="dicom").run()
        [folder] = (tmp_path / "out").iterdir()
        referred = {
            r.ReferencedSOPInstanceUID for f in folder.iterdir() for r in pydicom.dcmread(f).SourceImageSequence
        }
        assert referred == {pydicom.dcmread(f).SOPInstanceUID for source in sources for f in source.iterdir()}
