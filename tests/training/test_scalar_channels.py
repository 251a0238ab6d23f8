"""Tests of custom.training.scalar_channels."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import Dataset
from torch import Tensor

from custom.networks import VQGAN, ConditionalUNet, LatentTranslator, NoiseSchedule, StyleTransfer
from custom.training.checkpoint_files import LAST
from custom.training.scalar_channels import fit_scalar_channels

CODED, SCALAR, EDGE = 4, 6, 16


def translator(scalar: int = SCALAR, **options: Any) -> LatentTranslator:
    torch.manual_seed(0)
    channels, options = CODED + scalar, {"scalar_channels": scalar, **options}
    return LatentTranslator(
        2,
        VQGAN([8], CODED, 16, num_res_blocks=[1], norm_num_groups=4, haar_levels=1, **options),
        StyleTransfer(2, channels, in_channels=8, res_channels=[8], spade_channels=[8], hidden_channels=4),
        ConditionalUNet(2 * channels, channels, 2, channels=[8], attention_levels=[False], norm_num_groups=4),
        NoiseSchedule(),
    )


def smooth(seed: int) -> Tensor:
    """An image (1, H, W, D) of a ball with coarse texture on background."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, *[EDGE // 4] * 3, generator=generator)
    texture = torch.nn.functional.interpolate(coarse, size=[EDGE] * 3, mode="trilinear")[0]
    axis = torch.linspace(-1, 1, EDGE)
    distance = axis.view(-1, 1, 1) ** 2 + axis.view(-1, 1) ** 2 + axis**2
    return torch.where(distance < 0.9, texture * 1.5 - 0.7, torch.tensor(-1.0))


@pytest.fixture
def dataset() -> Dataset:
    """Items of two crops each, as of a transform that draws several."""
    return Dataset([[{"image": smooth(2 * i)}, {"image": smooth(2 * i + 1)}] for i in range(6)])


def error(network: LatentTranslator, x: Tensor) -> Tensor:
    """Of the reconstruction, as Haar coefficients of tissue (8, N)."""
    autoencoder = network.eval().autoencoder
    lost = autoencoder.coefficients(x) - autoencoder.coefficients(autoencoder(x)[0])
    tissue = torch.nn.functional.max_pool3d(x, 2) > -1
    return lost.movedim(1, 0).flatten(1)[:, tissue.flatten()]


@torch.no_grad()
@pytest.mark.parametrize("intensity_range", [(-1.0, 1.0), (0.0, 1.0)])
def test_what_they_hold_is_the_most_that_so_many_can(dataset: Dataset, intensity_range: tuple[float, float]) -> None:
    """The error after it is what the least of the principal components of the error before had."""
    network = translator(intensity_range=intensity_range).train()
    x = torch.stack([crop["image"] for item in dataset.data for crop in item])
    before = error(network, x)
    network.train()
    assert fit_scalar_channels(network, dataset, passes=1)
    assert network.training
    least = torch.linalg.eigvalsh(before @ before.T)[: 8 - SCALAR].sum()
    after = error(network, x).square().sum()
    # rounding adds a little: steps of 1/16 of each channel's standard deviation
    projection = network.autoencoder.projection.weight.flatten(1)
    deviation = 1 / projection.norm(dim=1)
    rounding = (deviation / 16).square().sum() / 12 * before.shape[1]
    torch.testing.assert_close(after, least + rounding, rtol=0.05, atol=0)
    latent = network.autoencoder.encode(x)[:, CODED:]
    inside = latent.movedim(1, 0).flatten(1)[:, (torch.nn.functional.max_pool3d(x, 2) > -1).flatten()]
    torch.testing.assert_close(inside.mean(1), torch.zeros(SCALAR), rtol=0, atol=1e-4)
    torch.testing.assert_close(inside.std(1), torch.ones(SCALAR), rtol=1e-3, atol=0)


def test_what_is_trained_already_stays(dataset: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    network = translator()
    with caplog.at_level(logging.INFO):
        assert fit_scalar_channels(network, dataset)
    assert f"{SCALAR} scalar channels of the latent hold" in caplog.text
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert not fit_scalar_channels(network, dataset)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not fit_scalar_channels(translator(scalar=0), dataset)


def test_a_stage_that_goes_on_has_them(dataset: Dataset, tmp_path: Path) -> None:
    network = translator()
    (tmp_path / LAST).touch()
    assert not fit_scalar_channels(network, dataset, stage_dir=tmp_path, resume="auto")
    assert not network.autoencoder.expansion.weight.any()
    assert fit_scalar_channels(network, dataset, stage_dir=tmp_path, resume=False)


def test_images_without_a_brain_are_refused() -> None:
    empty = Dataset([[{"image": torch.full((1, EDGE, EDGE, EDGE), -1.0)}]])
    with pytest.raises(ValueError, match="expected images of brains; found background alone"):
        fit_scalar_channels(translator(), empty)
