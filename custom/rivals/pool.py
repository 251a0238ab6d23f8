"""A pool of earlier translations, which keeps a discriminator from forgetting what it has seen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ImagePool"]


class ImagePool(nn.Module):
    """Gives, for each new image, with chance ½ an older one in its place, which the new one then replaces.

    Until the pool is full it gives what it gets. Its content is in its state dict, so that a resumed training goes on
    exactly.

    Args:
        size: images that it holds; 0 for no pool.

    Source: Shrivastava et al. 2017 (https://arxiv.org/abs/1612.07828), as in the code of CycleGAN.
    """

    def __init__(self, size: int = 50) -> None:
        super().__init__()
        self.size = size
        self.images: list[Tensor] = []

    def forward(self, images: Tensor) -> list[Tensor]:
        """One image (1, C, *spatial), detached, for each of ``images`` (N, C, *spatial); older ones as they were."""
        given = []
        for image in images.detach().split(1):
            if len(self.images) < self.size:
                self.images.append(image.clone())
            elif self.size and torch.rand(()).item() < 0.5:
                place = int(torch.randint(self.size, ()).item())
                # those of a resumed training are where the checkpoint was read
                image, self.images[place] = self.images[place].to(image.device), image.clone()
            given.append(image)
        return given

    def get_extra_state(self) -> dict[str, Any]:
        return {"images": [image.cpu() for image in self.images], "size": self.size}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if state["size"] != self.size:
            raise ValueError(f"pool: expected one of {self.size} images; found one of {state['size']}.")
        self.images = list(state["images"])
