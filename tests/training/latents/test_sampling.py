"""Tests of custom.training.latents.sampling."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from custom.training.latents.sampling import RandModalityd, RandModalityPaird, single_images, translation_pairs

MODALITIES = ("t1", "t1ce", "t2", "flair")


def entry(subject: str, *names: str) -> dict[str, str]:
    return {"subject": subject, **{name: f"{subject}_{name}.nii.gz" for name in names}}


def item(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.full((1, 2, 2, 2), float(MODALITIES.index(name))) for name in names}


def test_modality_is_drawn_from_what_there_is() -> None:
    draw = RandModalityd(MODALITIES).set_random_state(0)
    drawn = [draw(item("t1ce", "flair")) for _ in range(40)]
    assert {d["image"][0, 0, 0, 0].item() for d in drawn} == {1.0, 3.0}
    assert all(d.keys() == {"image"} for d in drawn)


def test_pair_is_two_modalities_with_their_indices() -> None:
    draw = RandModalityPaird(MODALITIES).set_random_state(0)
    drawn = [draw(item("t1", "t2", "flair")) for _ in range(80)]
    pairs = {(int(d["source_modality"]), int(d["target_modality"])) for d in drawn}
    assert pairs == {(s, t) for s in (0, 2, 3) for t in (0, 2, 3) if s != t}
    for d in drawn:
        assert d["image"].unique() == d["source_modality"]
        assert d["label"].unique() == d["target_modality"]


@pytest.mark.parametrize("kind", [RandModalityd, RandModalityPaird])
def test_same_seed_same_draws(kind: type) -> None:
    runs = []
    for _ in range(2):
        draw = kind(MODALITIES).set_random_state(5)
        runs.append([float(draw(item(*MODALITIES))["image"].mean()) for _ in range(10)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 1


def test_one_modality_makes_no_pair() -> None:
    with pytest.raises(ValueError, match=r"expected two or more modalities, a source and a target; found 1"):
        RandModalityPaird(MODALITIES)(item("t2"))
    with pytest.raises(ValueError, match=r"subject b: expected two or more modalities.*found 1"):
        translation_pairs([entry("a", "t1", "t2"), entry("b", "t2")], MODALITIES)


def test_single_images_are_all_the_files() -> None:
    images = single_images([entry("a", "t2", "t1"), entry("b", "flair")], MODALITIES)
    assert [(i["subject"], i["image"]) for i in images] == [
        ("a", "a_t1.nii.gz"), ("a", "a_t2.nii.gz"), ("b", "b_flair.nii.gz")
    ]  # fmt: skip


def test_validation_pairs_use_each_source_once_and_each_target_once_a_subject() -> None:
    entries = [entry(str(n), *MODALITIES) for n in range(3)]
    pairs = translation_pairs(entries, MODALITIES)
    assert len(pairs) == 12
    for n in range(3):
        own = [p for p in pairs if p["subject"] == str(n)]
        assert sorted(p["target_modality"] for p in own) == [0, 1, 2, 3]
        assert len({p["image"] for p in own}) == 4
    for p in pairs:
        assert p["label"].endswith(f"_{MODALITIES[p['target_modality']]}.nii.gz")
        assert p["label"] != p["image"]
    # over as many subjects as there are other modalities, every pair is seen
    assert len({(p["image"].split("_")[1], p["label"].split("_")[1]) for p in pairs}) == 12


def test_validation_pairs_are_the_same_every_time_and_in_order() -> None:
    entries = [entry("a", "t1", "flair"), entry("b", *MODALITIES)]
    first, second = (translation_pairs(entries, MODALITIES) for _ in range(2))
    assert first == second
    assert all(a["subject"] <= b["subject"] for a, b in pairwise(first))
