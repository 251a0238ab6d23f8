"""Tests of custom.preparation.prepare: layouts, planted faults, splits."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from custom.data.datalist import load_datalist, read_datalist
from custom.data.layouts import LAYOUTS
from custom.preparation import prepare as module
from custom.preparation import registration
from custom.preparation.prepare import Preparation, check_all, prepare

BRATS_2023 = "BraTS-GLI-{subject}/BraTS-GLI-{subject}-{modality}.nii.gz"
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


def run(root: Path, **options) -> Preparation:
    return prepare(root, root.parent / "out" / "datalist.json", **{"workers": 1, **options})


def codes(done: Preparation) -> dict[str, list[str]]:
    return {subject: [p.code for p in problems] for subject, problems in done.left_out.items()}


class TestLayouts:
    def test_brats2021(self, cohort) -> None:
        done = run(cohort())
        assert done.left_out == {}
        content = read_datalist(done.datalist)
        assert content["modalities"] == ["t1", "t1ce", "t2", "flair"]
        assert sorted(e["subject"] for s in module.SECTIONS for e in content[s]) == [f"s{i:02d}" for i in range(6)]
        assert [len(content[s]) for s in module.SECTIONS] == [4, 1, 1]

    def test_brats2023_keeps_visits_together(self, cohort, tmp_path: Path) -> None:
        root = cohort(6, BRATS_2023, ("t1", "t2"), subject="0000{}-000")
        for folder in list(root.iterdir()):
            for name, new in ((f, f.name.replace("t1.", "t1n.").replace("t2.", "t2w.")) for f in folder.iterdir()):
                name.rename(folder / new)
        again = root / "BraTS-GLI-00001-000"
        visit = root / "BraTS-GLI-00001-001"
        visit.mkdir()
        for file in again.iterdir():
            data = np.asanyarray(nib.load(file).dataobj)[:, ::-1].copy()
            nib.save(nib.Nifti1Image(data, AFFINE), visit / file.name.replace("-000-", "-001-"))
        done = run(root, layout="brats2023", modality_check=False)
        assert done.left_out == {}
        assert set(next(e for s in done.split.values() for e in s)) == {"subject", "t1", "t2"}
        of = {e["subject"]: section for section, entries in done.split.items() for e in entries}
        assert len(of) == 7
        assert of["BraTS-GLI-00001-000"] == of["BraTS-GLI-00001-001"]

    def test_ixi(self, cohort) -> None:
        pattern = "IXI-{modality}/{subject}-{modality}.nii.gz"
        root = cohort(5, pattern, ("t1", "t2", "pd"), subject="IXI{:03d}-Guys-0700")
        for path in list(root.glob("*/*")):
            stem, _, modality = path.name.removesuffix(".nii.gz").rpartition("-")
            path.rename(path.with_name(f"{stem}-{modality.upper()}.nii.gz"))
        done = run(root, layout="ixi")
        assert done.left_out == {}
        assert done.modalities == ("t1", "t2", "pd")
        assert "IXI000-Guys-0700" in done.checked
        assert all(set(files) == {"t1", "t2", "pd"} for files in done.checked.values())

    def test_plain_finds_the_vocabulary(self, cohort) -> None:
        done = run(
            cohort(4, "{subject}/{modality}.nii.gz", ("ct", "t1")),
            layout="plain",
            pattern="{subject}/{modality}.nii.gz",
        )
        assert done.modalities == ("t1", "ct")
        assert read_datalist(done.datalist)["modalities"] == ["t1", "ct"]
        assert load_datalist(done.datalist, "training", ["t1", "ct"])[0].keys() == {"subject", "t1", "ct"}

    def test_plain_with_dicom_series(self, write_series, brain, tmp_path: Path) -> None:
        for seed in range(4):
            for modality in ("t1", "t2"):
                write_series(f"scans/s{seed}/{modality}", brain(modality, seed), AFFINE)
        done = run(tmp_path / "scans", layout="plain", pattern="{subject}/{modality}")
        assert done.left_out == {}
        assert load_datalist(done.datalist, "test", ["t1", "t2"])[0]["t1"].endswith("t1")

    def test_plain_with_sessions(self, cohort) -> None:
        root = cohort(2, "{subject}/one_{modality}.nii.gz", ("t1", "t2"))
        for file in list(root.glob("*/one_*")):
            data = np.asanyarray(nib.load(file).dataobj)[::-1].copy()
            nib.save(nib.Nifti1Image(data, AFFINE), file.with_name(file.name.replace("one", "two")))
        done = run(root, layout="plain", pattern="{subject}/{session}_{modality}.nii.gz", split=(0.5, 0.0, 0.5))
        assert sorted(done.checked) == ["s00_one", "s00_two", "s01_one", "s01_two"]
        assert {e["subject"][:3] for e in done.split["training"]}.isdisjoint(
            e["subject"][:3] for e in done.split["test"]
        )

    def test_names_side_by_side_need_modalities(self, cohort) -> None:
        root = cohort(3, "{subject}{modality}.nii.gz", ("t1", "t2"))
        with pytest.raises(ValueError, match="Add --modalities"):
            run(root, layout="plain", pattern="{subject}{modality}.nii.gz")
        done = run(root, layout="plain", pattern="{subject}{modality}.nii.gz", modalities=["t2", "t1"])
        assert sorted(done.checked) == ["s00", "s01", "s02"]
        assert done.modalities == ("t2", "t1")

    def test_masks_and_other_images_are_not_modalities(self, cohort) -> None:
        root = cohort(3, "{subject}/{modality}.nii.gz", ("t1", "t2"))
        shutil.copy(root / "s00" / "t1.nii.gz", root / "s00" / "brain_mask.nii.gz")
        done = run(root, layout="plain", pattern="{subject}/{modality}.nii.gz")
        assert done.modalities == ("t1", "t2")
        assert [p.code for p in done.problems if "brain_mask" in p.found] == ["unused"]


def edit(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    data = np.asanyarray(nib.load(path).dataobj)
    nib.save(nib.Nifti1Image(change(data.copy()), AFFINE), path)


def truncated(root: Path) -> None:
    path = root / "s01" / "s01_t1.nii.gz"
    path.write_bytes(path.read_bytes()[:2000])


def wrong_shape(root: Path) -> None:
    edit(root / "s01" / "s01_t2.nii.gz", lambda a: a[:, :, 1:])


def nan(root: Path) -> None:
    edit(root / "s01" / "s01_t2.nii.gz", lambda a: np.where(a == a.max(), np.nan, a).astype(np.float32))


def all_zero(root: Path) -> None:
    edit(root / "s01" / "s01_flair.nii.gz", np.zeros_like)


def four_d(root: Path) -> None:
    edit(root / "s01" / "s01_t1.nii.gz", lambda a: np.stack([a, a], axis=-1))


def swapped_names(root: Path) -> None:
    one, other = root / "s01" / "s01_t1.nii.gz", root / "s01" / "s01_t2.nii.gz"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def duplicate(root: Path) -> None:
    (root / "s01b").mkdir()
    for file in (root / "s01").iterdir():
        shutil.copy(file, root / "s01b" / file.name.replace("s01", "s01b"))


def empty_folder(root: Path) -> None:
    (root / "s01c").mkdir()


def one_id(root: Path) -> None:
    shutil.copytree(root / "s02", root / "more" / "s01")
    for file in (root / "more" / "s01").iterdir():
        file.rename(file.with_name(file.name.replace("s02", "s01")))


def two_names(root: Path) -> None:
    shutil.copy(root / "s01" / "s01_t1.nii.gz", root / "s01" / "s01_t1n.nii.gz")


def one_modality(root: Path) -> None:
    for modality in ("t1", "t1ce", "t2"):
        (root / "s01" / f"s01_{modality}.nii.gz").unlink()


def misnamed(root: Path) -> None:
    (root / "s01d").mkdir()
    shutil.copy(root / "s01" / "s01_t1.nii.gz", root / "s01d" / "t1.nii.gz")


class TestPlantedFaults:
    @pytest.mark.parametrize(
        ("plant", "subject", "code", "said"),
        [
            (truncated, "s01", "truncated", "found a compressed stream that ends early"),
            (wrong_shape, "s01", "grid", "t2: 24×28×21 voxels"),
            (nan, "s01", "not_finite", "s01_t2.nii.gz: 1 of"),
            (all_zero, "s01", "constant", "s01_flair.nii.gz: all voxels are 0"),
            (four_d, "s01", "not_3d", "s01_t1.nii.gz: 4D, 24×28×22×2 voxels"),
            (swapped_names, "s01", "swapped", "the file named t1 looks like t2"),
            (duplicate, "s01b", "duplicate", "of s01"),
            (empty_folder, "s01c", "empty_folder", "nothing in it"),
            (one_id, "s01", "same_id", "more/s01/s01_"),
            (two_names, "s01", "two_files", "s01_t1n.nii.gz"),
            (one_modality, "s01", "single", "found flair"),
            (misnamed, "s01d", "strange_folder", "no file in it is named as expected"),
        ],
        ids=lambda value: getattr(value, "__name__", None),
    )
    def test_named_and_left_out(self, cohort, plant: Callable, subject: str, code: str, said: str) -> None:
        root = cohort()
        plant(root)
        done = run(root)
        assert codes(done) == {subject: [code]}
        found = done.left_out[subject][0].found
        assert said in found
        assert not re.search(r"(\S+): \1: ", found)  # the file is named once
        used = {e["subject"] for s in module.SECTIONS for e in read_datalist(done.datalist)[s]}
        assert used == {f"s{i:02d}" for i in range(6)} - {subject}
        for report in ("prepare.txt", "prepare.html"):
            text = done.datalist.with_name(report).read_text()
            assert done.left_out[subject][0].title in text.replace("&#39;", "'")
            assert subject in text

    def test_dicom_slices(self, write_series, brain, tmp_path: Path) -> None:
        for seed in range(5):
            for modality in ("t1", "t2"):
                write_series(f"scans/s{seed}/{modality}", brain(modality, seed), AFFINE)
        unreadable = sorted((tmp_path / "scans" / "s1" / "t1").iterdir())[3]
        unreadable.write_bytes(unreadable.read_bytes()[:400])
        sorted((tmp_path / "scans" / "s2" / "t2").iterdir())[3].unlink()
        done = run(tmp_path / "scans", layout="plain", pattern="{subject}/{modality}")
        assert codes(done) == {"s1": ["dicom"], "s2": ["dicom"]}
        assert unreadable.name in done.left_out["s1"][0].found
        assert "A slice is missing" in done.left_out["s2"][0].found

    def test_strict(self, cohort) -> None:
        root = cohort(4)
        truncated(root)
        with pytest.raises(ValueError, match=r"found 1, such as s01 \(file ends early"):
            run(root, strict="true")
        assert (root.parent / "out" / "prepare.txt").is_file()
        assert not (root.parent / "out" / "datalist.json").exists()

    def test_nothing_usable(self, cohort) -> None:
        with pytest.raises(ValueError, match="none usable"):
            run(cohort(3, modalities=("t1",)))

    def test_incomplete_subjects_stay(self, cohort) -> None:
        root = cohort()
        (root / "s01" / "s01_t1ce.nii.gz").unlink()
        done = run(root)
        assert done.left_out == {}
        assert [(p.code, p.subject) for p in done.problems if p.subject] == [("incomplete", "s01")]


class TestSplit:
    def test_file(self, cohort) -> None:
        root = cohort()
        names = {"training": ["s00", "s01"], "validation": ["s02", "s01"], "test": ["s03", "s04", "s99"]}
        (root.parent / "split.json").write_text(json.dumps(names))
        done = run(root, split_file=root.parent / "split.json")
        assert codes(done) == {"s01": ["two_sections"], "s05": ["not_in_split"]}
        assert [p.found for p in done.problems if p.code == "no_such_subject"] == ["s99 in test"]
        found = {section: [e["subject"] for e in entries] for section, entries in done.split.items()}
        assert found == {"training": ["s00"], "validation": ["s02"], "test": ["s03", "s04"]}

    def test_visits_of_a_patient_in_two_sections(self, cohort) -> None:
        root = cohort(4, BRATS_2023, ("t1", "t2"), subject="0000{}-000")
        (root / "BraTS-GLI-00000-000").rename(root / "BraTS-GLI-00001-001")
        for file in (root / "BraTS-GLI-00001-001").iterdir():
            file.rename(file.with_name(file.name.replace("00000-000", "00001-001")))
        ids = [f"BraTS-GLI-0000{i}-000" for i in (1, 2, 3)]
        (root.parent / "split.csv").write_text(
            f"{ids[0]},training\nBraTS-GLI-00001-001,test\n{ids[1]},training\n{ids[2]},test\n"
        )
        done = run(root, layout="brats2023", split_file=root.parent / "split.csv")
        assert set(codes(done)) == {"BraTS-GLI-00001-000", "BraTS-GLI-00001-001"}
        assert done.left_out[ids[0]][0].code == "two_sections"

    def test_published_sizes(self, cohort, monkeypatch) -> None:
        monkeypatch.setitem(LAYOUTS, "brats2021", LAYOUTS["brats2021"]._replace(published=(10, 4)))
        root = cohort(14, modalities=("t1", "t2"))
        done = run(root)
        assert [len(e) for e in done.split.values()] == [9, 1, 4]
        assert not [p for p in done.problems if p.code == "published"]
        truncated(root)
        (root / "Validation").mkdir()
        for name in ("s10", "s11", "s12", "s13"):
            (root / name).rename(root / "Validation" / name)
        done = run(root)
        assert [e["subject"] for e in done.split["test"]] == ["s10", "s11", "s12", "s13"]
        assert [p.found for p in done.problems if p.code == "published"] == [
            "9 for training (of which 1 validation), 4 held out; published 10 and 4"
        ]

    def test_too_few_for_a_split(self, cohort) -> None:
        root = cohort(2)
        assert [len(e) for e in run(root).split.values()] == [0, 0, 2]
        with pytest.raises(ValueError, match="expected at least 3 subjects"):
            run(root, split=(0.8, 0.1, 0.1))

    def test_faults(self, cohort, tmp_path: Path) -> None:
        root = cohort(2, modalities=("t1", "t2"))
        with pytest.raises(ValueError, match="found both"):
            run(root, split=(1, 0, 0), split_file="x")
        with pytest.raises(ValueError, match="found 'brats'"):
            run(root, layout="brats")
        with pytest.raises(ValueError, match=r"\{subject\} and \{modality\}"):
            run(root, layout="plain", pattern="{modality}.nii")
        with pytest.raises(ValueError, match="--layout plain"):
            run(root, pattern="{subject}/{modality}.nii")
        with pytest.raises(ValueError, match="workers"):
            run(root, workers=-1)
        with pytest.raises(FileNotFoundError, match="found no folder"):
            run(tmp_path / "gone")


@pytest.mark.slow
class TestProcesses:
    def test_the_same_in_several(self, cohort) -> None:
        jobs = [(str(path), False) for path in sorted(cohort(2).glob("*/*"))]
        one, two = check_all(jobs, 1, progress=False), check_all(jobs, 2, progress=False)
        assert [c.digest for c in one] == [c.digest for c in two]
        assert [c.path for c in two] == [path for path, _ in jobs]

    def test_file_that_kills_its_process(self, cohort, monkeypatch) -> None:
        jobs = [(str(path), False) for path in sorted(cohort(2).glob("*/*"))]
        original = module.check_file

        def crash(path: str, **kwargs):
            return os._exit(1) if path == jobs[2][0] else original(path, **kwargs)

        monkeypatch.setattr(module, "check_file", crash)
        results = check_all(jobs, 2, progress=False)
        assert [c.path for c in results if c.fault] == [jobs[2][0]]
        assert "killed" in results[2].fault[1]


@pytest.mark.slow
class TestRegistration:
    @pytest.fixture
    def ixi(self, cohort, brain) -> Path:
        """IXI-like subjects of which one has its T1 on a grid of its own."""
        root = cohort(3, "IXI-{modality}/{subject}-{modality}.nii.gz", ("t1", "t2", "pd"), subject="IXI{:03d}-HH-0700")
        shifted = AFFINE.copy()
        shifted[:3, 3] = 2.0
        path = root / "IXI-t1" / "IXI001-HH-0700-t1.nii.gz"
        nib.save(nib.Nifti1Image(brain("t1", 1, (26, 30, 24)), shifted), path)
        return root

    def test_ixi_is_brought_to_the_grid_of_t2(self, ixi: Path) -> None:
        before = {path: path.read_bytes() for path in ixi.glob("*/*")}
        done = run(ixi, layout="ixi", registered_dir=ixi.parent / "registered")
        assert done.left_out == {}
        assert [(p.subject, p.code) for p in done.problems if p.subject] == [("IXI001-HH-0700", "registered")]
        entry = next(e for s in done.split.values() for e in s if e["subject"] == "IXI001-HH-0700")
        assert nib.load(entry["t1"]).shape == nib.load(entry["t2"]).shape
        assert entry["t1"].startswith(str(ixi.parent / "registered"))
        assert {path: path.read_bytes() for path in ixi.glob("*/*")} == before
        page = done.datalist.with_name("prepare.html").read_text()
        assert "Registered to one grid" in page
        assert 'class="board"' in page
        assert run(ixi, layout="ixi", registered_dir=ixi.parent / "registered").aligned[0].registration.reused

    def test_without(self, ixi: Path) -> None:
        assert codes(run(ixi, layout="ixi", register="none")) == {"IXI001-HH-0700": ["grid"]}
        with pytest.raises(ValueError, match="register: expected one of t1, t2, pd"):
            run(ixi, layout="ixi", register="flair")

    def test_failure_is_named(self, ixi: Path, monkeypatch) -> None:
        def fail(*args: object, **kwargs: object) -> None:
            raise ValueError("no overlap")

        monkeypatch.setattr(registration, "register", fail)
        done = run(ixi, layout="ixi")
        assert codes(done) == {"IXI001-HH-0700": ["registration", "grid"]}
        assert "no overlap" in done.left_out["IXI001-HH-0700"][0].found
