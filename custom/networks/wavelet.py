"""The 3D Haar transform: an exact, invertible opening step that halves every axis."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["HaarTransform"]


class HaarTransform(nn.Module):
    """Orthonormal 3D Haar wavelet packet transform, (B, C, H, W, D) ↔ (B, 8ⁿC, H/2ⁿ, W/2ⁿ, D/2ⁿ) for n levels.

    The eight channels that a level makes of one are the products of low (sum) and high (difference) passes along the
    three axes, low first. The convolutional layers behind it work on 8ⁿ times fewer voxels, and nothing is lost:
    ``inverse(forward(x)) == x``.

    Args:
        levels: number n of times that every axis is halved.

    Source: Haar 1910; as the opening of a 3D diffusion model in Friedrich et al. 2024
    (https://arxiv.org/abs/2402.19043).
    """

    def __init__(self, levels: int = 1) -> None:
        super().__init__()
        self.levels = levels
        low, high = torch.tensor([1.0, 1.0]) / 2**0.5, torch.tensor([1.0, -1.0]) / 2**0.5
        filters = [torch.einsum("i,j,k->ijk", a, b, c) for a in (low, high) for b in (low, high) for c in (low, high)]
        # a constant of the architecture, hence not part of the state dict; no buffer, as TorchScript saves every buffer
        self.kernel = torch.stack(filters).unsqueeze(1)

    def forward(self, image: Tensor) -> Tensor:
        for _ in range(self.levels):
            b, c = image.shape[0], image.shape[1]
            single = F.conv3d(image.flatten(0, 1).unsqueeze(1), self.kernel.to(image), stride=2)
            image = single.view(b, 8 * c, single.shape[2], single.shape[3], single.shape[4])
        return image

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Image (B, C, H, W, D) of ``coefficients`` (B, 8ⁿC, h, w, d)."""
        for _ in range(self.levels):
            b, c = coefficients.shape[0], coefficients.shape[1] // 8
            h, w, d = coefficients.shape[2], coefficients.shape[3], coefficients.shape[4]
            packed = coefficients.reshape(b * c, 8, h, w, d)
            single = F.conv_transpose3d(packed, self.kernel.to(coefficients), stride=2)
            coefficients = single.view(b, c, single.shape[2], single.shape[3], single.shape[4])
        return coefficients
