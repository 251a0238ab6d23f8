"""A network that is known in closed form, for the evaluation's tests."""

from __future__ import annotations

import pytest
import torch
from torch import nn


class ToyTranslator(nn.Module):
    """Latent = image; MS-SPADE negates it, the sampler halves that; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = {"encode": 0, "transfer": 0, "sample": 0, "decode": 0, "render": 0}
        self.steps: list[int] = []

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        self.calls["encode"] += 1
        return image

    def transfer(self, latent: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.calls["transfer"] += 1
        assert target.shape == (1,)
        return -latent

    def draw_noise(self, latent: torch.Tensor, seed: int) -> torch.Tensor:
        return torch.full_like(latent[:1], 0.1 * seed)

    def sample(self, latent, target_like, target, noise, num_steps=0):
        self.calls["sample"] += 1
        self.steps.append(num_steps)
        assert not torch.is_grad_enabled()
        assert not self.training
        return target_like / 2 + noise

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        self.calls["decode"] += 1
        return latent

    def render(self, latent: torch.Tensor, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.calls["render"] += 1
        assert image.shape == latent.shape
        assert target.shape == (1,)
        return latent


@pytest.fixture
def toy() -> type[ToyTranslator]:
    """See :class:`ToyTranslator`."""
    return ToyTranslator
