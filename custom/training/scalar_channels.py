"""A start for the scalar channels of an autoencoder: the directions in which its images are worst."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from monai.data import DataLoader, Dataset
from torch import Tensor
from tqdm import tqdm

from custom.data.foreground import BACKGROUND
from custom.networks import VQGAN, LatentTranslator
from custom.networks.fast import accelerate
from custom.training.checkpoints import goes_on
from custom.utils.distributed import is_main
from custom.utils.precision import uses_bfloat16

__all__ = ["fit_scalar_channels"]

logger = logging.getLogger(__name__)

FLOOR = 1e-4  # of a channel's variance, where images hardly vary


@torch.no_grad()
def fit_scalar_channels(
    network: LatentTranslator,
    dataset: Dataset,
    *,
    stage_dir: str | os.PathLike | None = None,
    resume: bool | str = False,
    passes: int = 2,
    amp: bool | str = False,
    num_workers: int = 0,
) -> bool:
    """Give untrained scalar channels of ``network.autoencoder`` what codes and decoder lose most of.

    They become the principal components of the error of the Haar coefficients over the voxels of brains, each with a
    mean of 0 and a standard deviation of 1. So they say at once what no training has to find; one goes on from there.

    Args:
        network: whose autoencoder is changed in place, the same on every rank.
        dataset: of images (1, H, W, D) in [-1, 1] under ``image``, as stage 1 trains on, several crops an item; on each
            rank its own share.
        stage_dir, resume: of the stage, as for ``Checkpoints``: one that goes on has them in its checkpoint.
        passes: how often all of it is read.
        amp: compute in bfloat16; ``"auto"`` where that is faster.
        num_workers: processes that read.

    Returns:
        Whether anything was fitted: not where there are no such channels, or where they are trained already.

    Raises:
        ValueError: where the images hold no brain.
    """
    autoencoder = network.autoencoder
    projection, expansion = autoencoder.projection, autoencoder.expansion
    if projection is None or expansion is None or bool(expansion.get_parameter("weight").any()):
        return False
    if stage_dir is not None and goes_on(resume, stage_dir):
        return False
    device = next(autoencoder.parameters()).device
    training, amp = network.training, uses_bfloat16(amp, device)
    network.eval()
    loader = DataLoader(dataset, batch_size=1, num_workers=num_workers)
    batches = tqdm(
        (batch for _ in range(passes) for batch in loader), "fitting scalar channels", passes * len(loader),
        unit="subject", disable=not is_main(),
    )  # fmt: skip
    with accelerate(network), torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
        count, mean, covariance, error = _moments(autoencoder, batches, device)
    network.train(training)
    if count == 0:
        raise ValueError("dataset: expected images of brains; found background alone. Check the preprocessing.")
    directions = torch.linalg.eigh(error)[1].flip(1)[:, : autoencoder.scalar_channels]
    deviation = (directions.T @ covariance @ directions).diagonal().clamp_min(FLOOR).sqrt()
    of_image = (directions / deviation).T
    _set(projection.get_parameter("weight"), of_image)
    _set(projection.get_parameter("bias"), -of_image @ mean)
    _set(expansion.get_parameter("weight"), directions * deviation)
    kept = (directions.T @ error @ directions).diagonal().sum() / error.diagonal().sum()
    logger.info(
        "%d scalar channels of the latent hold %.0f %% of what codes and decoder lost of the images.",
        autoencoder.scalar_channels, 100 * float(kept),
    )  # fmt: skip
    return True


def _moments(
    autoencoder: VQGAN, batches: Iterable[Mapping[str, Tensor]], device: torch.device
) -> tuple[int, Tensor, Tensor, Tensor]:
    """Number of latent voxels in brains, mean and covariance of their Haar coefficients, and that of the error."""
    size = autoencoder.downsampling**3  # coefficients of a latent voxel, as Haar levels alone halve the axes
    sums = torch.zeros(1 + size + 2 * size * size, dtype=torch.float64, device=device)
    for batch in batches:
        for image in batch["image"].as_subclass(Tensor).to(device).split(1):
            coefficients = autoencoder.coefficients(image)
            restored = autoencoder.coefficients(autoencoder(image)[0])
            # a voxel of the latent counts where any of its voxels is tissue
            tissue = torch.nn.functional.max_pool3d(image, autoencoder.downsampling) > BACKGROUND
            own, found = (c[0].flatten(1)[:, tissue.flatten()].double() for c in (coefficients, restored))
            error = own - found
            number = own.new_tensor([own.shape[1]])
            sums += torch.cat([number, own.sum(1), (own @ own.T).flatten(), (error @ error.T).flatten()])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(sums)
    count, first, second, error = sums.split([1, size, size * size, size * size])
    number = count.clamp_min(1)
    mean = first / number
    covariance = second.view(size, size) / number - torch.outer(mean, mean)
    return int(count), mean, covariance, error.view(size, size) / number


def _set(parameter: Tensor, values: Tensor) -> None:
    parameter.copy_(values.view(parameter.shape))
