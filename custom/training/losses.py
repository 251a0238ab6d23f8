"""Loss terms of the three stages that MONAI does not have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from monai.losses.perceptual import MedicalNetPerceptualSimilarity, normalize_tensor
from monai.networks.nets import ResNetFeatures
from torch import Tensor, nn

from custom.networks.weights import load_tensors
from custom.utils.similarity import SSIM_WINDOW, ssim_map

__all__ = [
    "FeatureMatching",
    "MedicalNetPerceptual",
    "class_adversarial_loss",
    "class_discriminator_loss",
    "fitted_distance",
    "laplace_loss",
    "sharpness_loss",
    "ssim_loss",
]


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
    """Perceptual term on the features of MedicalNet's 3D ResNet-10, as MONAI's ``PerceptualLoss`` has it.

    ``mean over voxels of Σ_c (f_c/‖f‖ − g_c/‖g‖)²`` for the last features f, g of the two images, each shifted and
    scaled to mean 0 and standard deviation 1.

    Args:
        weights: MedicalNet's ``resnet_10_23dataset.pth``. Without it MONAI's way is taken: the network's code and
            weights from torch.hub's cache, which is filled from the internet on first use (this needs
            ``huggingface_hub``).

    Raises:
        FileNotFoundError: where ``weights`` is missing, or where the cache is empty and the internet not reachable.
        ValueError: if ``weights`` is no checkpoint of that network.

    Source: Chen et al. 2019, MedicalNet (https://arxiv.org/abs/1904.00625).
    """

    needs_features = False

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        self.model = _medicalnet_from_hub() if weights is None else _medicalnet_from_file(Path(weights).expanduser())
        self.requires_grad_(False).eval()

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        """Distance of two images (B, 1, H, W, D), computed in float32."""
        with torch.autocast(fake.device.type, enabled=False):
            f, g = (normalize_tensor(self.model(_standardized(x.float()))) for x in (fake, real))
            return (f - g).square().sum(dim=1).mean()


def _standardized(image: Tensor) -> Tensor:
    # the bound is for crops of nothing but background
    return (image - image.mean()) / image.std().clamp_min(1e-3)


WAYS_OUT = (
    "Either give the file resnet_10_23dataset.pth of https://github.com/Tencent/MedicalNet as 'weights', or set "
    "'perceptual' to custom.training.losses.FeatureMatching, the default, which needs no pretrained network."
)


def _medicalnet_from_hub() -> nn.Module:
    try:
        return MedicalNetPerceptualSimilarity(net="medicalnet_resnet10_23datasets").model
    # offline, torch.hub fails in many ways: URLError, a KeyError for a refusing proxy, a missing huggingface_hub
    except (OSError, RuntimeError, ValueError, KeyError, ImportError) as error:
        raise FileNotFoundError(
            f"perceptual: expected MedicalNet in torch.hub's cache ({torch.hub.get_dir()}) or a connection to download "
            f"it; found {type(error).__name__}: {error}. {WAYS_OUT}"
        ) from error


def _medicalnet_from_file(path: Path) -> nn.Module:
    """MONAI's ResNet-10 with MedicalNet's dilated last two levels, so that its features have 1/8 of the resolution."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected the weights of MedicalNet; found no file. {WAYS_OUT}")
    network = ResNetFeatures("resnet10", pretrained=False)
    for level, dilation in ((network.layer3, 2), (network.layer4, 4)):
        for module in level.modules():
            if isinstance(module, nn.Conv3d):
                module.stride = (1, 1, 1)
                if module.kernel_size == (3, 3, 3):
                    module.dilation = module.padding = (dilation,) * 3
    try:
        content = load_tensors(path, expected="weights of MedicalNet's ResNet-10", remedy=WAYS_OUT)
        state = content.get("state_dict", content)
        network.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    except (RuntimeError, AttributeError) as error:
        detail = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: expected weights of MedicalNet's ResNet-10; found {detail} {WAYS_OUT}") from error
    return _LastFeatures(network)


class _LastFeatures(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image)[-1]


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


def laplace_loss(logarithm: Tensor, image: Tensor, truth: Tensor, where: Tensor) -> Tensor:
    """Negative log-likelihood of the absolute error, |image − truth| / b + log b, but for a constant.

    Its best b is the mean absolute error. The image is clipped to the truth's range, as results are.

    Args:
        logarithm: log b, (B, 1, H, W, D).
        image, truth: of the same shape, the truth in [-1, 1].
        where: boolean, the voxels that count; 0 where there are none.

    Source: Kendall & Gal 2017 (https://arxiv.org/abs/1703.04977).
    """
    error = (image.clamp(-1.0, 1.0) - truth).abs()
    values = error * torch.exp(-logarithm) + logarithm
    return (values * where).sum() / where.sum().clamp(min=1)


SMOOTHNESS = 1e-4  # under the root of a gradient's square: a hundredth of half the range [-1, 1] a voxel


def sharpness_loss(image: Tensor, truth: Tensor, *, size: int = 6) -> Tensor:
    """Mean absolute difference of how sharp two images are around each voxel: of their mean gradient magnitude there.

    A squared distance pays for blur wherever an edge is not certain to the voxel. This term asks that there be as much
    of edges as in the truth, and leaves to the squared distance where they are.

    Args:
        image, truth: (B, 1, H, W, D), at least two voxels along each axis.
        size: edge length of the surroundings, in voxels; less in smaller images.
    """
    size = min(size, *(n - 1 for n in image.shape[2:]))
    found, wanted = (F.avg_pool3d(_gradient_magnitude(x), size, stride=max(size // 2, 1)) for x in (image, truth))
    return F.l1_loss(found, wanted)


def _gradient_magnitude(x: Tensor) -> Tensor:
    """Of the differences to the next voxel along each axis, (B, 1, H - 1, W - 1, D - 1)."""
    here = x[:, :, :-1, :-1, :-1]
    squares = (
        (x[:, :, 1:, :-1, :-1] - here).square()
        + (x[:, :, :-1, 1:, :-1] - here).square()
        + (x[:, :, :-1, :-1, 1:] - here).square()
    )
    return torch.sqrt(squares + SMOOTHNESS)


def ssim_loss(image: Tensor, truth: Tensor, where: Tensor, *, data_range: float = 0.5) -> Tensor:
    """1 − the mean SSIM, by the evaluation's window and constants.

    Args:
        image, truth: (B, 1, H, W, D) in [-1, 1], at least half a window (5 voxels) along each axis.
        where: boolean, the voxels that count; the loss is 0 where there are none.
        data_range: what the constants stand for, of [0, 1]. The evaluation's, between a brain's percentiles, is about
            half of the scale ``brain``. With the constants of the whole, which are as large as a brain's variance
            within a window, SSIM is highest for a pale image.

    Raises:
        ValueError: for smaller images.
    """
    if min(image.shape[2:]) < SSIM_WINDOW // 2:
        raise ValueError(
            f"ssim_weight: expected images of at least {SSIM_WINDOW // 2} voxels along each axis, half of SSIM's "
            f"window; found {' x '.join(map(str, image.shape[2:]))}. Raise "
            "latent_crop or part_size, or set ssim_weight to 0."
        )
    # variances are small differences of large numbers, which products in bfloat16 lose
    with torch.autocast(image.device.type, enabled=False):
        loss = 1 - ssim_map((image.float() + 1) / (2 * data_range), (truth.float() + 1) / (2 * data_range))
    return (loss * where).sum() / where.sum().clamp(min=1)


FLATTEST = 1e-4  # added to an image's variance: of a hundredth of half the range [-1, 1]


def fitted_distance(image: Tensor, truth: Tensor, where: Tensor) -> Tensor:
    """Mean squared distance after each image's brightness and contrast were brought to the truth's by a line.

    The line is that of least squares over the voxels that count, and never falls: an inverted image is no better than a
    flat one, and neither has a gradient, so the plain distance should keep a share. In this way nothing is learned of
    a target's brightness that its sources do not show. As in the mean squared distance of whole images, the squares are
    divided by the number of all voxels.

    Args:
        image, truth: (B, 1, H, W, D) in [-1, 1].
        where: boolean, the voxels that count; the loss is 0 where there are none.
    """
    dims = (1, 2, 3, 4)
    count = where.sum(dims, keepdim=True).clamp(min=1)
    x, y = (torch.where(where, v - (v * where).sum(dims, keepdim=True) / count, 0.0) for v in (image, truth))
    slope = (x * y).sum(dims, keepdim=True) / (x.square().sum(dims, keepdim=True) + FLATTEST * count)
    return F.mse_loss(slope.clamp(min=0.0) * x, y)
