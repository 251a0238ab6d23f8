"""The place of MS-SPADE in a model without it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["IdentityTransfer"]


class IdentityTransfer(nn.Module):
    """Gives the source latent back: what stands for the target-like latent without MS-SPADE (Table 3a and 3b)."""

    def forward(
        self,
        latent: Tensor,
        target: Tensor,
        context: Tensor | None = None,
        position: Tensor | None = None,
        num_sources: int = 1,
    ) -> Tensor:
        """``latent`` (B, L, h, w, d) itself, whatever the ``target`` (B,) and the rest."""
        return latent

    @torch.jit.export
    def summarize(self, voxels: Tensor) -> Tensor:
        """Nothing, (B, 0): it has no summary of the voxels (B, L, N) of a whole source."""
        return voxels.new_zeros(voxels.shape[0], 0)
