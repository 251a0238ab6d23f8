"""dEa-GAN: the 3D Pix2Pix whose losses and discriminator also see the edges of the images.

Source: Yu et al. 2019 (https://doi.org/10.1109/TMI.2019.2895894) and the authors' code
(https://github.com/by-lab/Ea-GANs). Not repeated from it: a pool on everything that the discriminator sees, which lets
no adversarial gradient reach the generator and returns real pairs as fake ones; labels that are drawn only once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from custom.rivals.pix2pix import OF_VOLUMES, Pix2PixObjective, VolumeUNetRival
from custom.rivals.rival import Rival
from custom.utils.intensity_scales import PERCENTILE

__all__ = ["DEaGAN", "DEaGANObjective", "edges"]

TINY = 1e-6  # the root's gradient has no bound at 0


def edges(image: Tensor) -> Tensor:
    """Sobel edges of volumes (N, 1, H, W, D), background -1: ``2·tanh(‖∇‖ / 4) − 1``, of the same shape.

    The three kernels are products of [1, 2, 1] and, along one axis, [1, 0, −1].
    """
    smooth, slope = image.new_tensor([1.0, 2.0, 1.0]), image.new_tensor([1.0, 0.0, -1.0])
    axes = [[slope if i == axis else smooth for i in range(3)] for axis in range(3)]
    kernels = torch.stack([torch.einsum("i,j,k->ijk", *factors) for factors in axes]).unsqueeze(1) / 4
    with torch.autocast(image.device.type, enabled=False):
        gradient = F.conv3d(F.pad(image, (1,) * 6, value=-1.0), kernels)
    return 2 * torch.tanh((gradient.square().sum(dim=1, keepdim=True) + TINY).sqrt()) - 1


class DEaGAN(VolumeUNetRival):
    """dEa-GAN.

    Args:
        modalities, pair, intensity_scale: as for ``Rival``.
        size: ``"original"``: the published widths, sides of a multiple of 128 by padding; ``"small"``.
        halvings: levels of the U-Net in place of those of the size; 5 for sides of a multiple of 32.
        norm: ``"batch"`` or ``"instance"`` in place of that of the size.
    """

    every_pair = False
    extra_planes = 1

    def __init__(
        self,
        modalities: Sequence[str],
        pair: str | Sequence[str] | None,
        size: str = "small",
        *,
        halvings: int | None = None,
        norm: str | None = None,
        intensity_scale: str = PERCENTILE,
    ) -> None:
        super().__init__(
            modalities, pair, size, method="dea_gan", spatial_dims=3, table=OF_VOLUMES, halvings=halvings, norm=norm,
            intensity_scale=intensity_scale,
        )  # fmt: skip


class DEaGANObjective(Pix2PixObjective):
    """``adversarial + l1_weight · L1 + λ · L1 of the edges``, λ rising from 0 to ``edge_weight``.

    Args:
        network: the rival.
        l1_weight: of the distance to the truth.
        edge_weight: of the distance of the edges, when it has risen.
        ramp_epochs: in how many epochs; published are 20 of 150.
    """

    def __init__(
        self, network: Rival, *, l1_weight: float = 300.0, edge_weight: float = 100.0, ramp_epochs: int = 20
    ) -> None:
        super().__init__(network, criterion="least_squares", l1_weight=l1_weight, smooth=True)
        self.edge_weight = edge_weight
        self.ramp_epochs = max(1, int(ramp_epochs))

    def further_terms(self, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        weight = self.edge_weight * min(1.0, (self.epoch - 1) / self.ramp_epochs)
        return {"edges": weight * F.l1_loss(edges(fake.float()), edges(real))}

    def shown(self, given: Tensor, image: Tensor) -> Tensor:
        return torch.cat([super().shown(given, image), edges(image.float()).to(given.dtype)], dim=1)
