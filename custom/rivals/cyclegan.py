"""CycleGAN, of slices and of volumes: two generators that undo each other, trained without pairs.

Source: Zhu et al. 2017 (https://arxiv.org/abs/1703.10593). For volumes no code is named in the comparison; taken is the
same with 3D convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from monai.networks.utils import normal_init
from torch import Tensor, nn

from custom.rivals.layers import ResidualGenerator, patch_discriminator, sized
from custom.rivals.objective import GanStep, JudgeFirst, RivalObjective, Samples, judge_pooled, least_squares
from custom.rivals.pool import ImagePool
from custom.rivals.rival import Rival
from custom.utils.intensity_scales import PERCENTILE

__all__ = ["CycleGAN", "CycleGANObjective"]

SIZES_OF = {
    2: {"original": {"width": 64, "blocks": 9}, "small": {"width": 24, "blocks": 6}},
    3: {"original": {"width": 64, "blocks": 9}, "small": {"width": 8, "blocks": 4}},
}


class CycleGAN(Rival):
    """CycleGAN: the generator from source to target; the other one is the objective's.

    Args:
        modalities, pair, intensity_scale: as for ``Rival``.
        spatial_dims: 2 for slices, 3 for volumes.
        size: ``"original"``: the published widths; ``"small"``.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        pair: str | Sequence[str] | None,
        size: str = "small",
        *,
        spatial_dims: int = 2,
        intensity_scale: str = PERCENTILE,
    ) -> None:
        super().__init__(
            modalities, pair, method=f"cyclegan_{spatial_dims}d", spatial_dims=spatial_dims, divisor=4, smallest=16,
            intensity_scale=intensity_scale, settings={"size": size, "spatial_dims": spatial_dims},
        )  # fmt: skip
        self.widths = dict(sized(SIZES_OF[spatial_dims], size))
        self.generator = self.make_generator()

    def make_generator(self) -> ResidualGenerator:
        """A generator of this size, untrained."""
        generator = ResidualGenerator(self.spatial_dims, 1, **self.widths)
        generator.apply(normal_init)
        return generator

    def generate(self, x: Tensor) -> Tensor:
        return self.generator(x)

    def make_discriminator(self) -> nn.Module:
        """One for each domain, which see one image alone."""

        def one() -> nn.Module:
            width = self.widths["width"]
            return patch_discriminator(self.spatial_dims, 1, width=width, norm="instance", bias=True)

        return nn.ModuleDict({"source": one(), "target": one()})


class CycleGANObjective(RivalObjective):
    """Least-squares adversarial terms, cycles and identities of both directions; then the discriminators, halved.

    The batch's ``image`` and ``label`` are of different subjects, see ``custom.rivals.samples``.

    Args:
        network: the rival.
        cycle_weight: of ‖F(G(x)) − x‖₁ and ‖G(F(y)) − y‖₁.
        identity_weight: of ‖G(y) − y‖₁ and ‖F(x) − x‖₁.
        pool_size: earlier translations that a discriminator may be shown.
    """

    discriminator_first = False

    def __init__(
        self, network: CycleGAN, *, cycle_weight: float = 10.0, identity_weight: float = 5.0, pool_size: int = 50
    ) -> None:
        pools = {f"pool_{domain}": ImagePool(pool_size) for domain in ("source", "target")}
        super().__init__(network, companions={"reverse": network.make_generator(), **pools})
        self.weights = (cycle_weight, identity_weight)

    def reverse(self, image: Tensor) -> Tensor:
        """The other generator, from target to source."""
        padding = self.rival.padding(image)
        return self.rival.cut(self.companions["reverse"](F.pad(image, padding, value=-1.0)), padding)

    def forward(  # type: ignore[override]
        self,
        batch: dict[str, Tensor],
        discriminator: nn.Module | None = None,
        judge_first: JudgeFirst | None = None,
    ) -> GanStep:
        x, y, to = batch["image"], batch["label"], batch["target_modality"]
        to_y = to[:1].expand(len(y))
        fake_y, fake_x = self.rival.translate(x, to), self.reverse(y)
        w_cycle, w_identity = self.weights
        terms = {
            "cycle": w_cycle * _both(self.reverse(fake_y), x, self.rival.translate(fake_x, to_y), y),
            "identity": w_identity * _both(self.rival.translate(y, to_y), y, self.reverse(x), x),
        }
        if discriminator is not None:
            domains: Any = discriminator
            of_y = least_squares(domains["target"](fake_y)[-1], 1.0)
            terms["adversarial"] = of_y + least_squares(domains["source"](fake_x)[-1], 1.0)
        samples = {"source": (x, fake_x), "target": (y, fake_y)}
        return GanStep(terms, samples)

    def judge(self, discriminator: nn.Module, samples: Samples) -> Tensor:
        domains: Any = discriminator
        losses = []
        for domain, (real, fake) in samples.items():
            shown = self.companions[f"pool_{domain}"](fake)
            of_real = least_squares(domains[domain](real)[-1], 1.0)
            losses.append(0.5 * (of_real + judge_pooled(domains[domain], shown, 0.0)))
        return losses[0] + losses[1]


def _both(first: Tensor, truth: Tensor, second: Tensor, other: Tensor) -> Tensor:
    """Sum of the mean absolute differences of two images from their truths."""
    return F.l1_loss(first.float(), truth) + F.l1_loss(second.float(), other)
