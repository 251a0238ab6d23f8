"""What tests of accelerated networks share."""

from __future__ import annotations

import pytest
from torch import Tensor

from custom.networks.fast import convolution, winograd


@pytest.fixture
def tiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Winograd's method for small maps too, in slabs of one tile; the heights of the slabs that it computes."""
    monkeypatch.setattr(winograd, "MIN_WORK", 0)
    monkeypatch.setattr(convolution, "SLAB_ELEMENTS", 1)
    heights: list[int] = []
    convolve_tiles = winograd.convolve_tiles

    def spy(slab: Tensor, kernels: list[Tensor], bias: Tensor | None, out: Tensor, **settings: object) -> None:
        heights.append(out.shape[2])
        convolve_tiles(slab, kernels, bias, out, **settings)

    monkeypatch.setattr(winograd, "convolve_tiles", spy)
    return heights
