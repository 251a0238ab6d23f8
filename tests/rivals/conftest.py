"""What the tests of the rivals share: one small network of each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from custom.rivals import NICEGAN, CycleGAN, DEaGAN, Pix2Pix, RegGAN, ResViT
from custom.rivals.rival import Rival

MODALITIES = ["t1", "t1ce", "t2", "flair"]
PAIR = ("t1", "t2")
RIVALS: dict[str, Callable[..., Rival]] = {
    "pix2pix_2d": Pix2Pix,
    "cyclegan_2d": CycleGAN,
    "nice_gan": NICEGAN,
    "reg_gan": RegGAN,
    "res_vit": ResViT,
    "pix2pix_3d": lambda *args, **kwargs: Pix2Pix(*args, **kwargs, spatial_dims=3),
    "cyclegan_3d": lambda *args, **kwargs: CycleGAN(*args, **kwargs, spatial_dims=3),
    "dea_gan": DEaGAN,
}


@pytest.fixture
def make() -> Callable[..., Rival]:
    """``make(method, size="small", pair=("t1", "t2"))``: a rival in evaluation mode, of the same start each time."""

    def build(method: str, size: str = "small", pair: object = PAIR, **kwargs: object) -> Rival:
        torch.manual_seed(0)
        return RIVALS[method](MODALITIES, pair, size, **kwargs).eval()

    return build
