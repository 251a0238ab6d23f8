"""RegGAN (mode NC+R): the translation need fit the truth only after a registration, which is learned beside it.

Source: Kong et al. 2021 (https://arxiv.org/abs/2110.06465) and the authors' code (https://github.com/Kid-Liet/Reg-GAN).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks import Warp
from torch import Tensor, nn

from custom.rivals.layers import ResidualBlock, ResidualGenerator, patch_discriminator, sized
from custom.rivals.objective import GanStep, JudgeFirst, RivalObjective, Samples, least_squares
from custom.rivals.rival import Rival
from custom.utils.intensity_scales import PERCENTILE

__all__ = ["RegGAN", "RegGANObjective", "Registration", "smoothness"]

TABLE: dict[str, dict[str, Any]] = {
    "original": {"width": 64, "blocks": 9, "levels": 7, "registration": 32},
    "small": {"width": 24, "blocks": 6, "levels": 4, "registration": 16},
}
SLOPE = 0.2


def smoothness(field: Tensor) -> Tensor:
    """Mean squared forward differences of a displacement field (N, 2, H, W), summed over both axes."""
    return field.diff(dim=2).square().mean() + field.diff(dim=3).square().mean()


class Registration(nn.Module):
    """U-Net from an image and its truth to the displacement, in pixels, that brings one onto the other.

    Args:
        width: channels of the first level; the others have twice as many.
        levels: poolings; sides must be at least two to the power of ``levels + 1``.
    """

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        inner = 2 * width
        act = nn.LeakyReLU(SLOPE)
        widths = [width, *[inner] * (levels - 1)]
        inputs = [2, *widths[:-1]]
        self.smallest = 2 ** (levels + 1)
        self.downs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, padding=1), act, ResidualBlock(2, o, "instance"))
            for i, o in zip(inputs, widths, strict=True)
        )
        self.bottom = nn.Sequential(
            nn.Conv2d(inner, 2 * inner, 1), act, *(ResidualBlock(2, 2 * inner, "instance") for _ in range(3)),
            nn.Conv2d(2 * inner, inner, 1), act,
        )  # fmt: skip
        self.ups = nn.ModuleList(nn.Sequential(nn.Conv2d(inner + o, o, 3, padding=1), act) for o in reversed(widths))
        self.refine = nn.Sequential(ResidualBlock(2, width, "instance"), nn.Conv2d(width, width, 1), act)
        self.out = nn.Conv2d(width, 2, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.out.weight, std=1e-5)

    def forward(self, image: Tensor, truth: Tensor) -> Tensor:
        """Displacement (N, 2, H, W) in pixels along H and W."""
        h = torch.cat([image, truth], dim=1)
        spare = [max(self.smallest - n, 0) for n in h.shape[2:]]
        padded = F.pad(h, [0, spare[1], 0, spare[0]], value=-1.0)
        maps, h = [], padded
        for down in self.downs:
            h = down(h)
            maps.append(h)
            h = F.max_pool2d(h, 2)
        h = self.bottom(h)
        for up, skipped in zip(self.ups, reversed(maps), strict=True):
            h = up(torch.cat([F.interpolate(h, skipped.shape[2:], mode="bilinear", align_corners=False), skipped], 1))
        return self.out(self.refine(h))[..., : image.shape[2], : image.shape[3]]


class RegGAN(Rival):
    """RegGAN: the generator; the registration network is the objective's, and has no part in a translation.

    Args:
        modalities, pair, intensity_scale: as for ``Rival``; all pairs in one network are possible.
        size: ``"original"``: the published widths; ``"small"``, whose registration has fewer levels too.
    """

    every_pair = True

    def __init__(
        self,
        modalities: Sequence[str],
        pair: str | Sequence[str] | None,
        size: str = "small",
        *,
        intensity_scale: str = PERCENTILE,
    ) -> None:
        super().__init__(
            modalities, pair, method="reg_gan", spatial_dims=2, divisor=4, smallest=16,
            intensity_scale=intensity_scale, settings={"size": size},
        )  # fmt: skip
        self.widths = dict(sized(TABLE, size))
        self.generator = ResidualGenerator(2, 1 + self.planes, width=self.widths["width"], blocks=self.widths["blocks"])

    def generate(self, x: Tensor) -> Tensor:
        return self.generator(x)

    def make_registration(self) -> Registration:
        """A registration network of this size, untrained."""
        return Registration(self.widths["registration"], self.widths["levels"])

    def make_discriminator(self) -> nn.Module:
        """It sees one image alone, and the planes of the target where there are some."""
        discriminator = patch_discriminator(2, 1 + self.planes, width=self.widths["width"], norm="instance", bias=True)
        for module in discriminator.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()  # the published start is PyTorch's
        return discriminator


class RegGANObjective(RivalObjective):
    """``adversarial + correction_weight · L1 after registration + smooth_weight · smoothness of the displacement``.

    Args:
        network: the rival.
        correction_weight, smooth_weight: weights of the terms.
    """

    discriminator_first = False

    def __init__(self, network: RegGAN, *, correction_weight: float = 20.0, smooth_weight: float = 10.0) -> None:
        super().__init__(network, companions={"registration": network.make_registration()})
        self.weights = (correction_weight, smooth_weight)
        with warnings.catch_warnings():  # that it runs on PyTorch's own kernels
            warnings.simplefilter("ignore")
            self.warp = Warp(mode="bilinear", padding_mode="border")

    def forward(  # type: ignore[override]
        self,
        batch: dict[str, Tensor],
        discriminator: nn.Module | None = None,
        judge_first: JudgeFirst | None = None,
    ) -> GanStep:
        x, y, to = batch["image"], batch["label"], batch["target_modality"]
        fake = self.rival.translate(x, to)
        field = self.companions["registration"](fake.float(), y).float()
        w_correction, w_smooth = self.weights
        terms = {
            "correction": w_correction * F.l1_loss(self.warp(fake.float(), field), y),
            "smoothness": w_smooth * smoothness(field),
        }
        if discriminator is not None:
            terms["adversarial"] = self._of_images(discriminator, fake, to, 1.0)
        return GanStep(terms, {"real": y, "fake": fake, "target": to})

    def judge(self, discriminator: nn.Module, samples: Samples) -> Tensor:
        to = samples["target"]
        real = self._of_images(discriminator, samples["real"], to, 1.0)
        return real + self._of_images(discriminator, samples["fake"].detach(), to, 0.0)

    def _of_images(self, discriminator: nn.Module, image: Tensor, target: Tensor, label: float) -> Tensor:
        """Least squares of one logit an image, the mean of its map."""
        logits = discriminator(self.rival.conditioned(image, target))[-1]
        return least_squares(logits.flatten(1).float().mean(1), label)
