"""Tests of custom.preparation.cohort."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from custom.data.layouts import survey
from custom.preparation.checks import Checked, check_file
from custom.preparation.cohort import check_names, duplicates, mixed_grids, same_grid

MODALITIES = ("t1", "t2", "flair")


@pytest.fixture
def subjects(cohort) -> dict[str, dict[str, Checked]]:
    found = survey(cohort(6, modalities=MODALITIES), modalities=MODALITIES)
    return {s: {m: check_file(path) for m, path in files.items()} for s, files in found.files.items()}


class TestNames:
    def test_nothing_wrong(self, subjects) -> None:
        assert check_names(subjects, MODALITIES) == ([], [])

    @pytest.mark.parametrize("size", [3, 4, 6])
    @pytest.mark.parametrize("pair", [*itertools.combinations(MODALITIES, 2)])
    def test_two_files_exchanged(self, subjects, pair: tuple[str, str], size: int) -> None:
        a, b = pair
        cohort = dict(itertools.islice(subjects.items(), size))
        cohort["s01"] = {**cohort["s01"], a: cohort["s01"][b], b: cohort["s01"][a]}
        (problem,) = check_names(cohort, MODALITIES).problems
        assert (problem.code, problem.subject) == ("swapped", "s01")
        assert f"the file named {a} looks like {b}" in problem.found
        assert f"the file named {b} looks like {a}" in problem.found

    def test_three_files_in_a_circle(self, subjects) -> None:
        files = subjects["s02"]
        subjects["s02"] = {"t1": files["t2"], "t2": files["flair"], "flair": files["t1"]}
        (problem,) = check_names(subjects, MODALITIES).problems
        assert problem.found.count("looks like") == 3
        assert "the file named flair looks like t1" in problem.found

    def test_two_subjects_of_six(self, subjects) -> None:
        for name in ("s00", "s05"):
            subjects[name] = {**subjects[name], "t1": subjects[name]["t2"], "t2": subjects[name]["t1"]}
        assert [p.subject for p in check_names(subjects, MODALITIES).problems] == ["s00", "s05"]

    def test_incomplete_subjects(self, subjects) -> None:
        del subjects["s00"]["flair"], subjects["s01"]["t1"]
        subjects["s02"] = {"t1": subjects["s02"]["t2"], "t2": subjects["s02"]["t1"]}
        assert [p.subject for p in check_names(subjects, MODALITIES).problems] == ["s02"]

    def test_too_few_subjects_are_said(self, subjects) -> None:
        two = dict(itertools.islice(subjects.items(), 2))
        assert check_names(two, MODALITIES) == ([], [*itertools.combinations(MODALITIES, 2)])
        assert check_names({}, MODALITIES) == ([], [])

    def test_modalities_that_look_alike_are_said(self, subjects) -> None:
        draw = np.random.default_rng(0)
        noisy = {
            name: {**files, "t2": files["t1"]._replace(pattern=files["t1"].pattern + draw.normal(0, 0.1, 2016))}
            for name, files in subjects.items()
        }
        result = check_names(noisy, ("t1", "t2"))
        assert result == ([], [("t1", "t2")])

    def test_files_that_cannot_be_read_do_not_count(self, subjects) -> None:
        subjects["s00"]["t1"] = Checked("gone", ("unreadable", "no"))
        assert check_names(subjects, MODALITIES).problems == []


class TestGrids:
    def test_one_grid(self, subjects) -> None:
        assert mixed_grids("s00", subjects["s00"]) == []

    def test_another_shape(self, subjects) -> None:
        files = subjects["s00"]
        files["t2"] = files["t2"]._replace(shape=(24, 28, 20))
        (problem,) = mixed_grids("s00", files)
        assert problem.code == "grid"
        assert problem.found.startswith("flair, t1: 24×28×22 voxels")
        assert "t2: 24×28×20 voxels" in problem.found

    @pytest.mark.parametrize(("shift", "same"), [(0.4, True), (0.6, False)])
    def test_half_a_millimetre(self, subjects, shift: float, same: bool) -> None:
        one = subjects["s00"]["t1"]
        moved = one.affine.copy()
        moved[1, 3] += shift
        assert same_grid(one, one._replace(affine=moved)) is same

    def test_order_of_axes_does_not_count(self, write_volume, brain) -> None:
        data, affine = brain("t1"), np.diag([4.0, 4.0, 4.0, 1.0])
        turned = affine[:, [2, 0, 1, 3]]
        one = check_file(write_volume("a.nii.gz", data, affine))
        other = check_file(write_volume("b.nii.gz", data.transpose(2, 0, 1), turned))
        assert same_grid(one, other)


class TestDuplicates:
    def test_subject_under_two_ids(self, subjects) -> None:
        subjects["copy"] = subjects["s03"]
        assert [(p.code, p.subject) for p in duplicates(subjects)] == [("duplicate", "copy")]

    def test_two_modalities_of_one_subject(self, subjects) -> None:
        subjects["s00"]["t2"] = subjects["s00"]["t1"]
        (problem,) = duplicates(subjects)
        assert (problem.code, problem.subject) == ("identical", "s00")

    def test_labels_may_be_the_same(self, subjects, tmp_path: Path) -> None:
        empty = Checked("seg", None, digest="same")
        for files in subjects.values():
            files["seg"] = empty
        assert duplicates(subjects, labels=("seg",)) == []
