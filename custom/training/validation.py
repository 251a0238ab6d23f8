"""Validation during training: what a stage has reached, as images."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from custom.data.foreground import foreground_key
from custom.inference.translation import Translation
from custom.training.trainer import prepare_tensors
from custom.utils.precision import amp_choice

__all__ = ["StageInferer", "prepare_translation"]

STAGES = ("autoencoder", "style_transfer", "diffusion")


def prepare_translation(
    batch: dict[str, Any], device: torch.device, non_blocking: bool, **kwargs: Any
) -> tuple[Tensor, Tensor, tuple, dict[str, Tensor]]:
    """``(image, label, (), {"target": …, "mask": …})`` of a validation batch; without a label the image is its own.

    The label's second channel is its foreground, which the metrics are measured in. The mask is the source's, outside
    which a translation is background: that of an image that is its own truth is not taken, as stage 1 is to be seen
    whole.
    """
    tensors = prepare_tensors(batch, device, non_blocking)
    truth = "label" if "label" in tensors else "image"
    label = torch.cat([tensors[truth], tensors[foreground_key(truth)]], dim=1)
    if "target_modality" not in tensors:
        return tensors["image"], label, (), {}
    mask = tensors[foreground_key("image")] > 0
    return tensors["image"], label, (), {"target": tensors["target_modality"], "mask": mask}


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

    def __call__(
        self,
        inputs: Tensor,
        network: Any,
        target: Tensor | None = None,
        mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Image (B, 1, H, W, D), float32 in [-1, 1], of ``inputs`` (B, 1, H, W, D) for ``target`` (B,).

        It is background outside the ``mask`` of the inputs, as the evaluation's and a user's are.
        """
        translation = Translation(network, inputs, mask=mask, amp=self.amp)
        if self.stage == "autoencoder":
            return translation.reconstruct().image
        assert target is not None
        if self.stage == "style_transfer":
            return translation.spade_decoded(target).image
        return translation.translate(target, seed=self.seed).image
