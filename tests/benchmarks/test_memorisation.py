"""Tests of benchmarks.memorisation."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from benchmarks.memorisation import Nearest, compare, correlation, main, nearest

SHAPE = (6, 7, 5)


def volume(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1, 2, SHAPE).astype(np.float32)


def test_correlation_is_of_what_is_brain_in_both() -> None:
    one, other = volume(0), volume(1)
    one[0], other[:, 0] = 0, 0
    inside = (slice(1, None), slice(1, None))
    assert correlation(one, other) == pytest.approx(np.corrcoef(one[inside].ravel(), other[inside].ravel())[0, 1])
    assert correlation(one, 3 * one) == pytest.approx(1)
    assert np.isnan(correlation(one, np.zeros(SHAPE)))


def test_the_nearest_is_named() -> None:
    found = nearest(volume(0) + volume(1), {"a": volume(0), "far": volume(2)})
    assert found == (correlation(volume(0) + volume(1), volume(0)), "a")


def test_scans_without_a_common_voxel_are_passed_over() -> None:
    nothing = np.zeros(SHAPE)
    assert nearest(volume(0), {"empty": nothing, "a": volume(0)}) == (pytest.approx(1), "a")
    value, name = nearest(volume(0), {"empty": nothing})
    assert np.isnan(value)
    assert name == ""


def test_where_nothing_can_be_compared_that_is_said(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.memorisation.scans", lambda *args: {})
    monkeypatch.setattr("benchmarks.memorisation.Translator.load", lambda weights: _Copies(volume(1)))
    with pytest.raises(SystemExit, match=r"list.json: expected subjects of the section test that share grid .* none"):
        main(["--data", str(data_set(tmp_path))])


class _Copies:
    """Translates into a scan of the training, or into the truth."""

    def __init__(self, made: np.ndarray) -> None:
        self.made = made

    def __call__(self, image: str, targets: list[str]) -> dict[str, torch.Tensor]:
        return {target: torch.from_numpy(self.made)[None] for target in targets}


def data_set(folder: Path) -> Path:
    """Two subjects to train on, one of which lies on another grid, and one to test."""
    sections = {"training": [("a", 0, 1.0), ("other", 1, 2.0)], "test": [("b", 2, 1.0)]}
    content = {
        section: [
            {
                "subject": name,
                **{m: str(folder / f"{name}_{m}.nii.gz") for m in ("t1", "t2")},
            }
            for name, *_ in subjects
        ]
        for section, subjects in sections.items()
    }
    for name, seed, size in (s for subjects in sections.values() for s in subjects):
        for k, m in enumerate(("t1", "t2")):
            nib.save(
                nib.Nifti1Image(volume(10 * seed + k), np.diag([size, size, size, 1.0])), folder / f"{name}_{m}.nii.gz"
            )
    (folder / "list.json").write_text(json.dumps({"modalities": ["t1", "t2"], **content, "validation": []}))
    return folder / "list.json"


@pytest.mark.parametrize(("made", "holds"), [(volume(1), False), (volume(21), True)], ids=["by heart", "the truth"])
def test_a_scan_of_the_training_given_back_is_found(tmp_path: Path, made: np.ndarray, holds: bool) -> None:
    rows = list(compare(str(data_set(tmp_path)), "test", _Copies(made)))
    assert [(row.subject, row.source, row.target) for row in rows] == [("b", "t2", "t1"), ("b", "t1", "t2")]
    to_t2: Nearest = rows[1]
    assert to_t2.nearest == to_t2.nearest_of_truth == "a"
    assert to_t2.truth == pytest.approx(correlation(volume(21), volume(1)))
    assert to_t2.holds is holds
