"""Tests of the rivals' samples: which slices, whose, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from custom.rivals.samples import RivalSamples, padded_collate, rival_samples, validation_pairs

MODALITIES = ["t1", "t2", "flair"]
PAIR = ("t1", "t2")
SHAPES = [(9, 10, 8), (11, 8, 7), (8, 8, 9)]


def subject(number: int, names: tuple[str, ...] = ("t1", "t2")) -> dict[str, Tensor]:
    """Volumes whose slices say subject, contrast and position; the two lowest slices and the highest are empty."""
    h, w, d = SHAPES[number]
    found = {}
    for name in names:
        volume = torch.full((1, h, w, d), -1.0)
        volume[:, 2:-2, 2:-2, 2:-1] = number / 10 + MODALITIES.index(name) / 100 + torch.arange(2, d - 1) / 1000
        found[name] = volume
    return found


def samples(pair: Any = PAIR, names: Any = None, **kwargs: Any) -> RivalSamples:
    present = names or [("t1", "t2")] * 3
    made = RivalSamples([subject(i, n) for i, n in enumerate(present)], present, MODALITIES, pair, **kwargs)
    made.set_random_state(0)
    return made


def peaks(images: Tensor) -> list[float]:
    return [round(float(v), 4) for v in images.flatten(1).amax(1)]


def test_slices_with_tissue_the_same_of_both() -> None:
    data = samples(slices_per_subject=5, flip=False)
    assert len(data) == 3
    for i in range(3):
        item = data[i]
        assert item["image"].shape == item["label"].shape == (5, 1, *SHAPES[i][:2])
        assert item["target_modality"].tolist() == [1] * 5
        tissue = peaks(item["image"])
        assert min(tissue) >= i / 10
        np.testing.assert_allclose(np.array(peaks(item["label"])) - tissue, 0.01, atol=1e-6)
        if SHAPES[i][2] - 3 >= 5:
            assert len(set(tissue)) == 5


def test_without_pairs_the_target_is_another_subjects() -> None:
    data = samples(paired=False, flip=False)
    seen = set()
    for _ in range(20):
        for i in range(3):
            item = data[i]
            owners = {int(v * 10 + 1e-3) for v in peaks(item["label"])}
            assert {int(v * 10 + 1e-3) for v in peaks(item["image"])} == {i}
            assert len(owners) == 1
            seen.add((i, *owners))
    assert seen == {(i, j) for i in range(3) for j in range(3) if i != j}


def test_each_contrast_is_enough_without_pairs() -> None:
    data = samples(names=[("t1",), ("t2",), ("t1", "t2")], paired=False)
    assert data.sources == [0, 2]
    assert data[1]["image"].shape[0] == 4


def test_every_pair_is_drawn() -> None:
    data = samples(None, names=[MODALITIES] * 3)
    drawn = {(int(i["source_modality"][0]), int(i["target_modality"][0])) for i in (data[0] for _ in range(60))}
    assert drawn == {(s, t) for s in range(3) for t in range(3) if s != t}


def test_volumes_and_crops() -> None:
    whole = samples(spatial_dims=3, flip=False)[1]
    assert torch.equal(whole["image"][0], subject(1)["t1"])
    part = samples(spatial_dims=3, crop_size=[4, 5, 20], flip=False)[1]
    assert part["image"].shape == part["label"].shape == (1, 1, 4, 5, 7)
    known = part["image"] > -1
    assert torch.equal(known, part["label"] > -1)
    assert samples(crop_size=[4, 5])[0]["image"].shape == (4, 1, 4, 5)


def test_half_are_mirrored() -> None:
    data = samples(spatial_dims=3)
    data.data[0]["t1"][:, 0] = 1.0
    left = [bool(data[0]["image"][0, 0, 0].min() == 1.0) for _ in range(40)]
    assert 10 < sum(left) < 30


def test_smaller_items_are_padded() -> None:
    data = samples(flip=False)
    items = [data[0], data[1]]
    batch = padded_collate(items, smallest=10)
    assert batch["image"].shape == batch["label"].shape == (8, 1, 11, 10)
    assert torch.equal(batch["image"][:4, :, 1:10], items[0]["image"])
    assert torch.equal(batch["image"][4:, :, :, 1:9], items[1]["image"])
    assert (batch["image"][:4, :, [0, 10]] == -1).all()
    assert batch["target_modality"].tolist() == [1] * 8


def test_a_subject_without_tissue() -> None:
    data = samples()
    data.data[0]["t2"][:] = -1.0
    with pytest.raises(ValueError, match="slices: expected some with tissue in source and target; found none"):
        data[0]


def entry(name: str, *modalities: str) -> Mapping[str, Any]:
    return {"subject": name, **{m: f"{name}_{m}.nii.gz" for m in modalities}}


def test_a_pair_that_the_data_lacks() -> None:
    entries = [entry("a", "t1", "flair"), entry("b", "t2", "flair")]
    for call in (
        lambda: validation_pairs(entries, MODALITIES, PAIR),
        lambda: rival_samples(entries, dict, MODALITIES, PAIR),
    ):
        with pytest.raises(ValueError, match=r"pair: expected a subject with t1 and t2; found none .* 2 subjects"):
            call()
    with pytest.raises(ValueError, match="pair: expected subjects with t1 or t2; found none with t2 among 1"):
        rival_samples(entries[:1], dict, MODALITIES, PAIR, paired=False)
    with pytest.raises(ValueError, match="pair: expected a source and another target of t1, t2, flair"):
        rival_samples(entries, dict, MODALITIES, ("t1", "pd"))
    with pytest.raises(ValueError, match="data: expected two or more subjects"):
        RivalSamples([subject(0)], [("t1", "t2")], MODALITIES, PAIR, paired=False)


def test_validation_has_the_pair_alone() -> None:
    entries = [entry("a", "t1", "t2", "flair"), entry("b", "t2", "flair"), entry("c", "t1", "t2")]
    found = validation_pairs(entries, MODALITIES, "t1,t2")
    assert [(v["subject"], v["image"], v["label"], v["target_modality"]) for v in found] == [
        (name, f"{name}_t1.nii.gz", f"{name}_t2.nii.gz", 1) for name in "ac"
    ]
    assert len(validation_pairs(entries, MODALITIES, "all")) == 7
