from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from custom.data.foreground import foreground_key
from custom.data.intensities import PERCENTILE_ENDS
from custom.evaluation.baselines import (
    IntensityLookup,
    TrainedBaselines,
    TrainingMean,
    copy_source,
    fit_or_load,
)
from custom.evaluation.paired_lookup import PairedLookup
from custom.evaluation.protocols import ContrastEnds

MODALITIES = ("t1", "t2", "flair")


def subject(seed: int, names: tuple[str, ...] = ("t1", "t2")) -> dict[str, torch.Tensor]:
    """t2 = -t1³ and flair = t1 / 2 in the foreground."""
    t1 = torch.rand((1, 12, 12, 12), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    t1[:, :3] = -1
    images = {"t1": t1, "t2": -(t1**3), "flair": t1 / 2}
    return with_brains({name: MetaTensor(torch.where(t1 > -1, images[name], t1)) for name in names})


def with_brains(images: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The images and, beside each, what is brighter than its background."""
    return images | {foreground_key(name): image > -1 for name, image in images.items()}


def test_copy_source_is_the_source():
    image = subject(0)["t1"]
    assert copy_source(image) is image


def test_a_function_of_intensity_is_learned():
    lookup = IntensityLookup(MODALITIES, bins=64).fit(subject(s) for s in range(20))
    held_out = subject(99)
    prediction = lookup.predict(held_out["t1"], "t1", "t2", brain=held_out["t1_foreground"])
    assert prediction.shape == held_out["t1"].shape
    # half a bin (1/64) times the steepest slope of the cubic (3)
    torch.testing.assert_close(prediction.as_tensor(), held_out["t2"].as_tensor(), atol=3.1 / 64, rtol=0)


def test_background_stays_background():
    lookup = IntensityLookup(MODALITIES).fit([subject(0)])
    other = subject(1)
    prediction = lookup.predict(other["t1"], "t1", "t2", brain=other["t1_foreground"])
    assert (prediction[:, :3] == -1).all()


def test_dark_cavities_belong_to_the_brain():
    images = {m: torch.full((1, 12, 12, 12), -1.0) for m in ("t1", "t2")}
    images["t1"][:, 2:10, 2:10, 2:10] = 0.5
    images["t2"][:, 2:10, 2:10, 2:10] = -0.5
    images["t1"][:, 5:7, 5:7, 5:7] = -1.0
    images["t2"][:, 5:7, 5:7, 5:7] = 0.9
    brain = torch.zeros(1, 12, 12, 12, dtype=torch.bool)
    brain[:, 2:10, 2:10, 2:10] = True
    images |= {foreground_key(m): brain for m in ("t1", "t2")}
    prediction = IntensityLookup(MODALITIES).fit([images]).predict(images["t1"], "t1", "t2", brain=brain)
    torch.testing.assert_close(prediction, images["t2"])


def test_streaming_equals_one_subject_of_all_voxels():
    parts = [subject(s) for s in range(3)]
    streamed = IntensityLookup(MODALITIES, bins=32).fit(parts)
    whole = IntensityLookup(MODALITIES, bins=32)
    whole.update({key: torch.cat([p[key] for p in parts], dim=-1) for key in parts[0]})
    np.testing.assert_allclose(streamed.table("t1", "t2"), whole.table("t1", "t2"))


def test_empty_bins_are_interpolated():
    lookup = IntensityLookup(("t1", "t2"), bins=5)
    images = {name: torch.full((1, 4, 4, 4), -1.0) for name in ("t1", "t2")}
    images["t1"][0, 1, 1, 1:3] = torch.tensor([-0.9, 0.9])
    images["t2"][0, 1, 1, 1:3] = torch.tensor([-0.6, 0.2])
    lookup.update(with_brains(images))
    np.testing.assert_allclose(lookup.table("t1", "t2"), [-0.6, -0.4, -0.2, 0.0, 0.2], atol=1e-7)


def test_missing_modalities_give_only_the_pairs_that_exist():
    lookup = IntensityLookup(MODALITIES).fit([subject(0), subject(1, ("t1", "flair"))])
    assert set(lookup.pairs) == {("t1", "t2"), ("t2", "t1"), ("t1", "flair"), ("flair", "t1")}
    with pytest.raises(ValueError, match=r"no training subject had both 't2' and 'flair'; pairs learned: t1->t2"):
        lookup.predict(torch.zeros(1, 4, 4, 4), "t2", "flair", brain=torch.ones(1, 4, 4, 4, dtype=torch.bool))


def test_training_mean_is_the_mean_of_brains_brought_to_one_box():
    small, large = torch.full((1, 20, 20, 20), -1.0), torch.full((1, 30, 30, 30), -1.0)
    small[:, 4:16, 4:16, 4:16], large[:, 5:25, 5:25, 5:25] = 0.2, 0.6
    mean = TrainingMean(MODALITIES, shape=(8, 8, 8))
    for image in (small, large):
        mean.update(with_brains({"t1": image}))
    assert mean.seen == ["t1"]
    other = torch.full((1, 1, 24, 24, 24), -1.0)
    other[..., 2:12, 2:20, 2:20] = 0.9
    predicted = mean.predict(other, "t1", brain=other > -1)
    assert predicted.shape == other.shape
    expected = torch.where(other > -1, 0.4, -1.0)
    torch.testing.assert_close(predicted, expected)
    with pytest.raises(ValueError, match="no training subject had 'pd'; learned: t1"):
        mean.predict(other, "pd", brain=other > -1)


def test_the_rim_of_a_round_brain_is_not_darkened_by_what_is_outside():
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1.2, 1.2, 24)] * 3, indexing="ij"))
    image = torch.where((grid**2).sum(dim=0) < 1, 0.5, -1.0)[None]
    mean = TrainingMean(("t1",), shape=(12, 12, 12))
    mean.update(with_brains({"t1": image}))
    predicted = mean.predict(image, "t1", brain=image > -1)
    inside = predicted[image > -1]
    # the coarse grid may miss a voxel of the surface, which then has no value
    assert (inside - 0.5).abs().quantile(0.99) < 1e-5


def test_save_and_load(tmp_path):
    lookup, mean = IntensityLookup(MODALITIES, bins=16).fit([subject(0)]), TrainingMean(MODALITIES, shape=(6, 6, 6))
    mean.update(subject(0))
    path = tmp_path / "deep" / "baselines.npz"
    ends = ContrastEnds(MODALITIES)
    ends.update({"t2": MetaTensor(torch.zeros(1, 2, 2, 2), meta={PERCENTILE_ENDS: np.array([0.1, 0.6])})})
    TrainedBaselines(lookup, PairedLookup(MODALITIES), mean, ends, ["case_1"]).save(path, "state")
    again = TrainedBaselines.load(path, "state")
    assert again.ends.of("t2") == (0.1, 0.6)
    assert (again.lookup.modalities, again.subjects, again.lookup.bins) == (MODALITIES, ["case_1"], 16)
    np.testing.assert_array_equal(again.lookup.table("t2", "t1"), lookup.table("t2", "t1"))
    image = subject(1)["t1"].as_tensor()
    found, expected = (m.predict(image, "t2", brain=image > -1) for m in (again.mean, mean))
    torch.testing.assert_close(found, expected)
    assert [p.name for p in path.parent.iterdir()] == ["baselines.npz"]
    assert TrainedBaselines.load(path, "another state") is None
    assert TrainedBaselines.load(tmp_path / "absent.npz", "state") is None


def test_errors(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ValueError, match=r"text\.npz: expected baselines"):
        TrainedBaselines.load(tmp_path / "text.npz")
    with pytest.raises(ValueError, match="images of one shape"):
        IntensityLookup(MODALITIES).update({"t1": torch.zeros(1, 4, 4, 3), "t2": torch.zeros(1, 4, 4, 4)}, subject="a")
    with pytest.raises(ValueError, match="at least 2"):
        IntensityLookup(MODALITIES, bins=1)


class Reading:
    """Remembers what it was called with; of the class, as attributes of the object would make it another transform."""

    reads: list[str] = []  # noqa: RUF012

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, entry):
        self.reads.append(entry["subject"])
        if entry["subject"] == "broken":
            raise ValueError("not an image")
        return subject(len(entry["subject"]))


def test_fit_or_load_fits_once_and_again_when_the_files_change(tmp_path, monkeypatch):
    reads: list[str] = []
    monkeypatch.setattr(Reading, "reads", reads)
    transform = Reading()
    entries = []
    for name in ("a", "bb", "broken"):
        entries.append({"subject": name, "t1": tmp_path / f"{name}_t1", "t2": tmp_path / f"{name}_t2"})
        entries[-1]["t1"].write_text(name)
    path = tmp_path / "lookup.npz"
    first = fit_or_load(path, entries, transform, MODALITIES)
    assert first.subjects == ["a", "bb"]
    assert reads == ["a", "bb", "broken"]
    again = fit_or_load(path, entries, transform, MODALITIES)
    assert len(reads) == 3
    np.testing.assert_array_equal(again.lookup.table("t1", "t2"), first.lookup.table("t1", "t2"))
    assert fit_or_load(path, entries, transform, MODALITIES, max_subjects=1).subjects == ["a"]
    entries[0]["t1"].write_text("other contents")
    fit_or_load(path, entries, transform, MODALITIES, max_subjects=1)
    assert reads[3:] == ["a", "a"]
    os.utime(entries[0]["t1"], (1, 1))
    fit_or_load(path, entries, transform, MODALITIES, max_subjects=1)
    assert len(reads) == 5  # the content decides
    fit_or_load(path, entries, Reading(2.0), MODALITIES, max_subjects=1)
    assert len(reads) == 6  # other transforms, other baselines
    with pytest.raises(ValueError, match="none of 1 could be read"):
        fit_or_load(path, entries[2:], transform, MODALITIES)
