"""Loss terms of the three stages that MONAI does not have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError

import torch
import torch.nn.functional as F
from monai.losses import PerceptualLoss
from torch import Tensor, nn

__all__ = ["FeatureMatching", "MedicalNetPerceptual", "class_adversarial_loss", "class_discriminator_loss"]


class FeatureMatching(nn.Module):
    """Perceptual term that needs no pretrained network: mean L1 distance of the discriminator's features.

    Source: Wang et al. 2018 (https://arxiv.org/abs/1711.11585), eq. (4).
    """

    needs_features = True

    def forward(self, fake: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
        """Distance of two lists of feature maps, the last entry (the logits) left out."""
        terms = [F.l1_loss(f.float(), r.detach().float()) for f, r in zip(fake[:-1], real[:-1], strict=True)]
        return torch.stack(terms).mean()


class MedicalNetPerceptual(nn.Module):
    """Perceptual term on the features of MedicalNet's 3D ResNet, MONAI's ``PerceptualLoss``.

    Args:
        weights: a local checkpoint of ``medicalnet_resnet10_23datasets``; without it MONAI looks in torch.hub's cache
            and then on the network.

    Raises:
        FileNotFoundError: where ``weights`` is missing, or where the cache is empty and the network not reachable.

    Source: Chen et al. 2019, MedicalNet (https://arxiv.org/abs/1904.00625).
    """

    needs_features = False

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        ways_out = (
            "Either put MedicalNet's weights into torch.hub's cache "
            f"({torch.hub.get_dir()}) or a file and name it as 'perceptual_weights', or use the default, feature "
            "matching in the discriminator ('perceptual': FeatureMatching), which needs no download."
        )
        if weights is not None and not Path(weights).is_file():
            raise FileNotFoundError(f"perceptual_weights: expected a checkpoint at {weights}, found none. {ways_out}")
        try:
            self.loss = PerceptualLoss(
                spatial_dims=3,
                network_type="medicalnet_resnet10_23datasets",
                is_fake_3d=False,
                pretrained_path=weights,
                pretrained_state_dict_key="state_dict" if weights else None,
            )
        except (URLError, OSError, RuntimeError) as error:
            raise FileNotFoundError(f"MedicalNet's weights could not be loaded ({error}). {ways_out}") from error

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        """Distance of two images (B, 1, H, W, D)."""
        return self.loss(fake, real)


def class_adversarial_loss(logits: Tensor, modality: Tensor) -> Tensor:
    """Generator's side of the class-conditional game: the fake should be taken for a real latent of ``modality``.

    Args:
        logits: (B, M + 1, h, w, d) of a patch discriminator; channel m < M means "real, of modality m", channel M
            means "fake". Fake is a class of its own, so that no modality is ever punished for looking like itself.
        modality: (B,) int64 in [0, M).
    """
    return F.cross_entropy(logits.float(), _everywhere(modality, logits))


def class_discriminator_loss(real_logits: Tensor, fake_logits: Tensor, modality: Tensor) -> Tensor:
    """Discriminator's side: the real latent is of its ``modality``, the translated one is of class "fake"."""
    fake_class = torch.full_like(modality, fake_logits.shape[1] - 1)
    real = F.cross_entropy(real_logits.float(), _everywhere(modality, real_logits))
    fake = F.cross_entropy(fake_logits.float(), _everywhere(fake_class, fake_logits))
    return 0.5 * (real + fake)


def _everywhere(classes: Tensor, logits: Tensor) -> Tensor:
    return classes.view(-1, 1, 1, 1).expand(-1, *logits.shape[2:])
