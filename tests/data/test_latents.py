"""Tests of custom.data.latents."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose
from torch import Tensor

from custom.data.latents import (
    LatentPairs,
    cat_collate,
    encode_subjects,
    latent_pairs,
    measure_latent_scale,
    style_pairs,
)
from custom.networks import LatentTranslator

MODALITIES = ("t1", "t1ce", "t2", "flair")
CPU = torch.device("cpu")
SHAPE = (32, 16, 16)


def subject(*names: str, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand((1, *SHAPE), generator=generator) * 2 - 1 for name in names}


def tagged(number: int, shape: tuple[int, int, int] = (6, 5, 4)) -> dict[str, Tensor]:
    """A subject with latents whose values tell modality (thousands) and place."""
    place = torch.arange(float(shape[0] * shape[1] * shape[2])).view(1, 1, *shape)
    modality = torch.tensor([0, 2, 3][:number])
    return {"latents": 1000 * modality.view(-1, 1, 1, 1, 1) + place, "modality": modality}


def test_cache_is_exactly_what_the_encoder_gives(tiny_translator: LatentTranslator) -> None:
    subjects = [subject("flair", "t1"), subject("t2", "t1ce", "t1", seed=1)]
    encoded = encode_subjects(tiny_translator, subjects, MODALITIES, device=CPU)
    assert [e["modality"].tolist() for e in encoded] == [[0, 3], [0, 1, 2]]
    for item, cached in zip(subjects, encoded, strict=True):
        for index, latent in zip(cached["modality"], cached["latents"], strict=True):
            with torch.no_grad():
                direct = tiny_translator.encode(item[MODALITIES[index]].unsqueeze(0))
            assert torch.equal(latent, direct[0])
            assert latent.dtype == torch.float32


def test_encoding_leaves_the_codebook_alone(tiny_translator: LatentTranslator) -> None:
    network = copy.deepcopy(tiny_translator).train()
    before = network.autoencoder.bottleneck.embedding.weight.clone()
    encode_subjects(network, [subject("t1", "t2")], MODALITIES, device=CPU)
    assert torch.equal(network.autoencoder.bottleneck.embedding.weight, before)


@pytest.mark.parametrize("flip", [True, "true"])
def test_mirrored_subjects_are_encoded_anew(tiny_translator: LatentTranslator, flip: bool | str) -> None:
    item = subject("t1", "t2")
    plain, mirrored = encode_subjects(tiny_translator, [item], MODALITIES, device=CPU, flip=flip)
    with torch.no_grad():
        direct = tiny_translator.encode(item["t2"].flip(1).unsqueeze(0))
    assert torch.equal(mirrored["latents"][1], direct[0])
    assert not torch.equal(plain["latents"], mirrored["latents"])


def test_switches_as_text(tiny_translator: LatentTranslator) -> None:
    encoded = encode_subjects(tiny_translator, [subject("t1", "t2")], MODALITIES, device=CPU, amp="false", flip="false")
    assert len(encoded) == 1
    with pytest.raises(ValueError, match="flip: expected true or false"):
        encode_subjects(tiny_translator, [], MODALITIES, device=CPU, flip="often")


def test_latent_scale_makes_the_standard_deviation_one(tiny_translator: LatentTranslator) -> None:
    network = copy.deepcopy(tiny_translator)
    generator = torch.Generator().manual_seed(0)
    subjects = [{"latents": 3 + 5 * torch.randn((m, 4, 6, 5, 4), generator=generator)} for m in (2, 4)]
    measure_latent_scale(network, subjects)
    everything = torch.cat([s["latents"].flatten() for s in subjects])
    torch.testing.assert_close(1 / network.latent_scale, everything.std(correction=0))
    assert "latent_scale" in network.state_dict()


def test_latents_that_do_not_vary_are_an_error(tiny_translator: LatentTranslator) -> None:
    with pytest.raises(ValueError, match=r"expected them to vary; found .* Train the autoencoder first"):
        measure_latent_scale(copy.deepcopy(tiny_translator), [{"latents": torch.ones(2, 4, 3, 3, 3)}])


def test_each_pair_is_drawn_from_one_place_of_one_subject() -> None:
    pairs = LatentPairs([tagged(3)], pairs_per_subject=5, crop_size=(3, 2, 4))
    pairs.set_random_state(0)
    seen, places = set(), set()
    for _ in range(20):
        item = pairs[0]
        assert item["source"].shape == item["target"].shape == (5, 1, 3, 2, 4)
        for name in ("source", "target"):
            modality = item[name][:, 0, 0, 0, 0].div(1000, rounding_mode="floor")
            assert torch.equal(modality.long(), item[f"{name}_modality"])
        assert torch.equal(item["source"] % 1000, item["target"] % 1000)
        places.add(tuple((item["source"][:, 0, 0, 0, 0] % 1000).tolist()))
        assert (item["source_modality"] != item["target_modality"]).all()
        seen |= {*zip(item["source_modality"].tolist(), item["target_modality"].tolist(), strict=True)}
    assert seen == {(s, t) for s in (0, 2, 3) for t in (0, 2, 3) if s != t}
    assert any(len(set(starts)) > 1 for starts in places)


def test_crop_larger_than_the_latent_takes_it_whole() -> None:
    assert LatentPairs([tagged(2)], 2, (32, 2, 32))[0]["source"].shape == (2, 1, 6, 2, 4)
    assert LatentPairs([tagged(2)], 2)[0]["source"].shape == (2, 1, 6, 5, 4)


def test_loader_makes_the_same_batches_for_the_same_seed() -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        loader = DataLoader(LatentPairs([tagged(3), tagged(2)], 2, (2, 2, 2)), batch_size=1, collate_fn=cat_collate)
        runs.append(torch.cat([batch["source"].flatten() for _ in range(3) for batch in loader]))
    assert torch.equal(*runs)


def test_subject_with_one_modality_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"subject 1 of the training: expected two or more modalities.*found 1"):
        LatentPairs([tagged(2), tagged(1)])


def test_collate_joins_batches_of_pairs() -> None:
    pairs = LatentPairs([tagged(3), tagged(2)], pairs_per_subject=2)
    batch = cat_collate([pairs[0], pairs[1]])
    assert batch["source"].shape == (4, 1, 6, 5, 4)
    assert batch["target_modality"].shape == (4,)


def preprocessing() -> Compose:
    return Compose([lambda entry: subject("t1", "t2", "flair", seed=entry["subject"])])


def test_latent_pairs_of_a_datalist(tiny_translator: LatentTranslator) -> None:
    data = [{"subject": 0}, {"subject": 1}]
    pairs = latent_pairs(data, preprocessing(), tiny_translator, MODALITIES, device=CPU, crop_size=(4, 4, 4))
    assert len(pairs) == 2
    assert pairs[1]["source"].shape == (4, 4, 4, 4, 4)


@pytest.mark.parametrize("joint", [True, "true"])
def test_joint_pairs_are_aligned_images(tiny_translator: LatentTranslator, joint: bool | str) -> None:
    ramp = torch.arange(float(32 * 16 * 16)).view(1, *SHAPE)
    transform = Compose([lambda entry: {"t1": ramp, "t2": ramp + 0.5}])
    pairs = style_pairs(
        [{"subject": 0}], transform, tiny_translator, MODALITIES,
        joint=joint, image_crop=(8, 8, 8), flip=True, device=CPU, amp=False, pairs_per_subject=2, crop_size=(2, 2, 2),
    )  # fmt: skip
    mirrored = set()
    for _ in range(8):
        item = pairs[0]
        assert item["image"].shape == item["label"].shape == (1, 1, 8, 8, 8)
        assert item["source_modality"].shape == (1,)
        assert ((item["label"] - item["image"]).abs() == 0.5).all()
        mirrored.add(bool(item["image"][0, 0, 0, 0, 0] > item["image"][0, 0, 1, 0, 0]))
    assert mirrored == {False, True}


@pytest.mark.parametrize("joint", [False, "false"])
def test_style_pairs_are_latents_by_default(tiny_translator: LatentTranslator, joint: bool | str) -> None:
    pairs = style_pairs(
        [{"subject": 0}], preprocessing(), tiny_translator, MODALITIES,
        joint=joint, image_crop=(8, 8, 8), device=CPU, pairs_per_subject=3,
    )  # fmt: skip
    assert pairs[0].keys() == {"source", "target", "source_modality", "target_modality"}
    assert pairs[0]["source"].shape == (3, 4, 8, 4, 4)


def test_volumes_of_other_sizes_are_cut_to_their_common_middle() -> None:
    large, small = torch.arange(6.0 * 4 * 4).view(1, 1, 6, 4, 4), torch.ones(2, 1, 2, 4, 8)
    batch = cat_collate([{"source": large, "n": torch.zeros(1)}, {"source": small, "n": torch.ones(2)}])
    assert batch["source"].shape == (3, 1, 2, 4, 4)
    assert torch.equal(batch["source"][:1], large[:, :, 2:4])
    assert batch["n"].tolist() == [0, 1, 1]
