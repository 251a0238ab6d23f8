"""Validation during training: what a stage has reached, as images."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from custom.networks import LatentTranslator
from custom.training.trainer import prepare_tensors
from custom.utils.precision import amp_choice, uses_bfloat16

__all__ = ["StageInferer", "prepare_translation"]

STAGES = ("autoencoder", "style_transfer", "diffusion")


def prepare_translation(
    batch: dict[str, Any], device: torch.device, non_blocking: bool, **kwargs: Any
) -> tuple[Tensor, Tensor, tuple, dict[str, Tensor]]:
    """``(image, label, (), {"target": …})`` of a validation batch; without a label the image is its own."""
    tensors = prepare_tensors(batch, device, non_blocking)
    image = tensors["image"]
    target = {"target": tensors["target_modality"]} if "target_modality" in tensors else {}
    return image, tensors.get("label", image), (), target


class StageInferer(Inferer):
    """The image that the network gives after a stage of its training.

    Args:
        stage: ``"autoencoder"``: reconstruction; ``"style_transfer"``: translation by MS-SPADE alone;
            ``"diffusion"``: the whole translation.
        amp: compute in bfloat16; ``"auto"`` where that is faster.
        seed: of the sampler's noise; the same for every image.
    """

    def __init__(self, stage: str, amp: bool | str = False, seed: int = 0) -> None:
        super().__init__()
        if stage not in STAGES:
            raise ValueError(f"stage: expected one of {STAGES}, found {stage!r}.")
        self.stage = stage
        self.amp = amp_choice(amp)
        self.seed = seed

    def __call__(self, inputs: Tensor, network: LatentTranslator, target: Tensor | None = None) -> Tensor:
        """Image (B, 1, H, W, D), float32, of ``inputs`` (B, 1, H, W, D) for ``target`` (B,)."""
        amp = uses_bfloat16(self.amp, inputs.device)
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=amp):
            latent = network.encode(inputs)
            if self.stage != "autoencoder":
                target_like = network.transfer(latent, target)
                if self.stage == "diffusion":
                    noise = network.draw_noise(latent, self.seed)
                    latent = network.sample(latent, target_like, target, noise)
                else:
                    latent = target_like
                return network.render(latent, inputs, target).float()
            return network.decode(latent).float()
