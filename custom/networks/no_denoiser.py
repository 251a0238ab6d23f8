"""The place of the UNet in a model without diffusion."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["NoDenoiser"]


class NoDenoiser(nn.Module):
    """Stands where no UNet was trained: the translation is that of MS-SPADE alone, with 0 sampler steps."""

    spatial_divisor = 1

    def forward(self, x: Tensor, timesteps: Tensor, target: Tensor) -> Tensor:
        """Refuse to predict.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "num_inference_steps: expected 0, as these weights hold no diffusion; found sampler steps. "
            "Leave it out, or train the diffusion first."
        )
