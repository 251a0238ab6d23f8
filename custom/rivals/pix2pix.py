"""Pix2Pix, of slices and of volumes: a U-Net against a discriminator that sees source and target together.

Source: Isola et al. 2017 (https://arxiv.org/abs/1611.07004). For volumes no code is named in the comparison; taken is
the 3D network of dEa-GAN without its edges, so that the edges are the only difference between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from custom.rivals.layers import UNetGenerator, patch_discriminator, sized
from custom.rivals.objective import CRITERIA, GanStep, JudgeFirst, RivalObjective, Samples
from custom.rivals.rival import Rival
from custom.utils.intensity_scales import PERCENTILE

__all__ = ["Pix2Pix", "Pix2PixObjective", "VolumeUNetRival"]


class UNetRival(Rival):
    """A rival whose generator is the U-Net of Pix2Pix.

    Args:
        modalities, pair, intensity_scale: as for ``Rival``.
        method, spatial_dims: name and dimensions of the method.
        size: a key of ``table``.
        halvings, norm: in place of those of the size.
        table: size → ``width``, ``halvings``, ``norm``, ``bias`` of the generator.
    """

    every_pair = True

    def __init__(
        self,
        modalities: Sequence[str],
        pair: str | Sequence[str] | None,
        size: str,
        *,
        method: str,
        spatial_dims: int,
        table: dict[str, dict[str, Any]],
        halvings: int | None = None,
        norm: str | None = None,
        intensity_scale: str = PERCENTILE,
        settings: dict[str, Any] | None = None,
    ) -> None:
        built = {**sized(table, size), **{k: v for k, v in (("halvings", halvings), ("norm", norm)) if v is not None}}
        super().__init__(
            modalities, pair, method=method, spatial_dims=spatial_dims, divisor=2 ** built["halvings"],
            intensity_scale=intensity_scale,
            settings={"size": size, "halvings": halvings, "norm": norm, **(settings or {})},
        )  # fmt: skip
        self.width: int = built["width"]
        self.norm: str = built["norm"]
        self.bias: bool = built["bias"]
        self.generator = UNetGenerator(
            spatial_dims, 1 + self.planes, width=self.width, halvings=built["halvings"], norm=self.norm, bias=self.bias
        )

    def generate(self, x: Tensor) -> Tensor:
        return self.generator(x)


OF_SLICES = {
    "original": {"width": 64, "halvings": 8, "norm": "batch", "bias": False},
    "small": {"width": 32, "halvings": 5, "norm": "batch", "bias": False},
}
OF_VOLUMES = {
    "original": {"width": 64, "halvings": 7, "norm": "batch", "bias": True},
    # running statistics of batches of one volume say little of another volume
    "small": {"width": 16, "halvings": 4, "norm": "instance", "bias": True},
}


class VolumeUNetRival(UNetRival):
    """The 3D U-Net of dEa-GAN, and its discriminator of ``2 + extra_planes`` inputs."""

    extra_planes = 0

    def make_discriminator(self) -> nn.Module:
        inputs = 2 + self.planes + self.extra_planes
        discriminator = patch_discriminator(3, inputs, width=self.width, norm=self.norm, bias=True)
        for layer in discriminator.children():
            convolution: Any = layer.conv
            convolution.padding = (2, 2, 2)
        return discriminator


class Pix2Pix(VolumeUNetRival):
    """Pix2Pix.

    Args:
        modalities, pair, intensity_scale: as for ``Rival``; all pairs in one network are possible.
        spatial_dims: 2 for slices, 3 for volumes.
        size: ``"original"``: the published widths, sides of a multiple of 256 (2D) or 128 (3D) by padding; ``"small"``.
        halvings: levels of the U-Net in place of those of the size.
        norm: ``"batch"`` or ``"instance"`` in place of that of the size.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        pair: str | Sequence[str] | None,
        size: str = "small",
        *,
        spatial_dims: int = 2,
        halvings: int | None = None,
        norm: str | None = None,
        intensity_scale: str = PERCENTILE,
    ) -> None:
        super().__init__(
            modalities, pair, size, method=f"pix2pix_{spatial_dims}d", spatial_dims=spatial_dims,
            table=OF_VOLUMES if spatial_dims == 3 else OF_SLICES, halvings=halvings, norm=norm,
            intensity_scale=intensity_scale, settings={"spatial_dims": spatial_dims},
        )  # fmt: skip

    def make_discriminator(self) -> nn.Module:
        if self.spatial_dims == 3:
            return super().make_discriminator()
        return patch_discriminator(2, 2 + self.planes, width=self.width, norm=self.norm, bias=self.norm == "instance")


class Pix2PixObjective(RivalObjective):
    """``adversarial + l1_weight · L1``, the discriminator first, halved; it sees the source beside the image.

    Args:
        network: the rival.
        criterion: ``"logistic"`` (Pix2Pix) or ``"least_squares"``.
        l1_weight: of the distance to the truth.
        smooth: draw, for each step, the label of real images from [0.7, 1.2] and of fake ones from [0, 0.3] (dEa-GAN).
    """

    def __init__(
        self, network: Rival, *, criterion: str = "logistic", l1_weight: float = 100.0, smooth: bool = False
    ) -> None:
        super().__init__(network)
        if criterion not in CRITERIA:
            raise ValueError(f"criterion: expected one of {', '.join(CRITERIA)}; found {criterion!r}. Correct it.")
        self.criterion = CRITERIA[criterion]
        self.l1_weight = l1_weight
        self.smooth = smooth

    def forward(  # type: ignore[override]
        self,
        batch: dict[str, Tensor],
        discriminator: nn.Module | None = None,
        judge_first: JudgeFirst | None = None,
    ) -> GanStep:
        given, real = self.rival.conditioned(batch["image"], batch["target_modality"]), batch["label"]
        fake = self.rival.translate(batch["image"], batch["target_modality"])
        samples = {"given": given, "fake": fake, "real": real}
        if judge_first is not None:
            judge_first(samples)
        terms = {"l1": self.l1_weight * F.l1_loss(fake.float(), real), **self.further_terms(fake, real)}
        if discriminator is not None:
            logits = discriminator(self.shown(given, fake))[-1]
            terms["adversarial"] = self.criterion(logits, self.label(real=True))
        return GanStep(terms, samples)

    def further_terms(self, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Terms beside the distance and the adversarial one."""
        return {}

    def shown(self, given: Tensor, image: Tensor) -> Tensor:
        """What the discriminator sees of a source, with its planes, and an image."""
        return torch.cat([given, image.to(given.dtype)], dim=1)

    def label(self, *, real: bool) -> float:
        low, high = (0.7, 1.2) if real else (0.0, 0.3)
        return low + (high - low) * float(torch.rand(())) if self.smooth else float(real)

    def judge(self, discriminator: nn.Module, samples: Samples) -> Tensor:
        given = samples["given"]
        real = self.criterion(discriminator(self.shown(given, samples["real"]))[-1], self.label(real=True))
        fake = discriminator(self.shown(given, samples["fake"].detach()))[-1]
        return 0.5 * (real + self.criterion(fake, self.label(real=False)))
