"""Tests of custom.training.validation."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from custom.networks import LatentTranslator
from custom.networks.diffusion import draw_noise
from custom.training.validation import STAGES, StageInferer, prepare_translation

CPU = torch.device("cpu")
TARGET = torch.tensor([1, 3])


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand((2, 1, 16, 16, 32), generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_each_stage_shows_what_it_has_trained(tiny_translator: LatentTranslator, image: torch.Tensor) -> None:
    net = tiny_translator
    with torch.no_grad():
        latent = net.encode(image)
        target_like = net.transfer(latent, TARGET)
        expected = {
            "autoencoder": net.decode(latent),
            "style_transfer": net.decode(target_like),
            "diffusion": net.decode(net.sample(latent, target_like, TARGET, draw_noise(latent, 4))),
        }
        for stage in STAGES:
            found = StageInferer(stage, seed=4)(image, net, target=TARGET)
            torch.testing.assert_close(found, expected[stage].clamp(-1, 1), msg=stage)


def test_same_seed_same_image(tiny_translator: LatentTranslator, image: torch.Tensor) -> None:
    with torch.no_grad():
        first, again, other = (
            StageInferer("diffusion", seed=s)(image, tiny_translator, target=TARGET) for s in (1, 1, 2)
        )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("amp", ["true", "false", True])
def test_result_is_float32(tiny_translator: LatentTranslator, image: torch.Tensor, amp: bool | str) -> None:
    with torch.no_grad():
        assert StageInferer("autoencoder", amp=amp)(image, tiny_translator).dtype == torch.float32


def test_unknown_stage() -> None:
    with pytest.raises(ValueError, match=r"stage: expected one of .*found 'unet'"):
        StageInferer("unet")


def test_batch_of_pairs() -> None:
    batch = {
        "image": MetaTensor(torch.zeros(1, 1, 2, 2, 2)),
        "label": torch.ones(1, 1, 2, 2, 2),
        "image_foreground": torch.zeros(1, 1, 2, 2, 2, dtype=torch.bool),
        "label_foreground": torch.ones(1, 1, 2, 2, 2, dtype=torch.bool),
        "target_modality": torch.tensor([2]),
        "subject": ["a"],
    }
    image, label, args, kwargs = prepare_translation(batch, CPU, False)
    assert type(image) is torch.Tensor
    assert torch.equal(label, torch.ones(1, 2, 2, 2, 2))
    assert args == ()
    assert kwargs["target"].tolist() == [2]
    assert not kwargs["mask"].any()
    assert kwargs["mask"].dtype == torch.bool


def test_translation_is_background_outside_the_source(tiny_translator: LatentTranslator, image: torch.Tensor) -> None:
    mask = torch.zeros_like(image, dtype=torch.bool)
    mask[:, :, 4:12] = True
    whole, masked = (StageInferer("style_transfer")(image, tiny_translator, TARGET, mask=m) for m in (None, mask))
    torch.testing.assert_close(masked, torch.where(mask, whole, -1.0))


def test_batch_of_single_images_is_its_own_truth() -> None:
    batch = {"image": torch.zeros(1, 1, 2, 2, 2), "image_foreground": torch.ones(1, 1, 2, 2, 2, dtype=torch.bool)}
    _, label, _, kwargs = prepare_translation(batch, CPU, False)
    assert label[0, 0].unique().tolist() == [0]
    assert label[0, 1].unique().tolist() == [1]
    assert kwargs == {}
