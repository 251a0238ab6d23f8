"""Latents of a data set: computed once, then read by the stages that train on them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from monai.data import Dataset
from monai.transforms import Compose, Lambda, RandFlipd, Randomizable, RandSpatialCropd
from torch import Tensor
from tqdm import tqdm

from custom.arguments import as_bool
from custom.data.sampling import RandModalityPaird, check_pairable
from custom.distributed import CachedShare, is_main, largest, own_share
from custom.networks import LatentTranslator

__all__ = ["LatentPairs", "cat_collate", "encode_subjects", "latent_pairs", "measure_latent_scale", "style_pairs"]

logger = logging.getLogger(__name__)


@torch.no_grad()
def encode_subjects(
    network: LatentTranslator,
    dataset: Iterable[Mapping[str, Any]],
    modalities: Sequence[str],
    *,
    device: torch.device,
    amp: bool | str = False,
    flip: bool | str = False,
) -> list[dict[str, Tensor]]:
    """Quantised latents of every modality of every subject. They carry no sampling noise, so they are exact.

    Args:
        network: its autoencoder is used, in evaluation mode.
        dataset: preprocessed subjects, ``{"<modality>": (1, H, W, D)}``, on one grid.
        modalities: the vocabulary.
        device: where to compute; the latents are kept on the CPU.
        amp: compute in bfloat16.
        flip: also encode each subject mirrored left to right. The encoder is not equivariant, so latents cannot be
            mirrored afterwards.

    Returns:
        A list of ``{"latents": (m, L, h, w, d) float32, "modality": (m,) int64}``.
    """
    network = network.to(device).eval()
    amp, mirrors = as_bool("amp", amp), ([], [2]) if as_bool("flip", flip) else ([],)
    subjects = []
    for subject in tqdm(dataset, desc="encoding subjects", unit="subject", disable=not is_main()):
        present = [i for i, m in enumerate(modalities) if m in subject]
        for axes in mirrors:
            latents = []
            for i in present:
                image = torch.as_tensor(subject[modalities[i]]).as_subclass(Tensor).unsqueeze(0).flip(axes)
                with torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
                    latents.append(network.encode(image.to(device)).float().cpu())
            subjects.append({"latents": torch.cat(latents), "modality": torch.tensor(present)})
    size = sum(s["latents"].numel() * 4 for s in subjects) / 2**20
    logger.info("%d encoded volumes hold %.0f MiB of latents", sum(len(s["modality"]) for s in subjects), size)
    return subjects


def measure_latent_scale(network: LatentTranslator, subjects: Sequence[Mapping[str, Tensor]]) -> None:
    """Set ``network.latent_scale`` to 1 / standard deviation over all the training latents, the same on every rank.

    Args:
        network: whose buffer is set.
        subjects: from ``encode_subjects``; on each rank its own share.

    Raises:
        ValueError: if the latents do not vary.
    """
    device = network.latent_scale.device
    sums = torch.zeros(3, dtype=torch.float64)
    for subject in subjects:
        latents = subject["latents"].double()
        sums += torch.stack([torch.tensor(float(latents.numel())).double(), latents.sum(), latents.square().sum()])
    if dist.is_available() and dist.is_initialized():
        sums = sums.to(device, torch.float64)
        dist.all_reduce(sums)
    count, total, squares = sums.tolist()
    std = (squares / count - (total / count) ** 2) ** 0.5
    if not std > 0:
        raise ValueError(
            f"latents: expected them to vary; found a standard deviation of {std}. Train the autoencoder first."
        )
    network.latent_scale.fill_(1.0 / std)


class LatentPairs(Dataset, Randomizable):
    """Random (source, target) pairs of latents, several of one subject an item.

    In several processes each holds subjects of its own and is as long as the longest: its first subjects come twice in
    an epoch where it has fewer.

    Args:
        data: from ``encode_subjects``.
        pairs_per_subject: pairs K of an item; they share their size, so they form a batch with mixed targets.
        crop_size: latent voxels of a random crop, each pair its own; the whole volume where not given.

    Raises:
        ValueError: for a subject with fewer than two modalities.
    """

    def __init__(
        self, data: Sequence[dict[str, Tensor]], pairs_per_subject: int = 4, crop_size: Sequence[int] | None = None
    ) -> None:
        super().__init__(data)
        for index, subject in enumerate(data):
            check_pairable(len(subject["modality"]), f"subject {index} of the training")
        self.pairs_per_subject = pairs_per_subject
        self.crop_size = crop_size
        self.length = largest(len(data))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """``source``, ``target`` (K, L, h, w, d); ``source_modality``, ``target_modality`` (K,)."""
        subject = self.data[index % len(self.data)]
        latents, modality = subject["latents"], subject["modality"]
        n = len(modality)
        source = self.R.randint(n, size=self.pairs_per_subject)
        target = (source + self.R.randint(1, n, size=self.pairs_per_subject)) % n
        crops = [self._random_crop(latents) for _ in range(self.pairs_per_subject)]
        return {
            "source": torch.stack([crop[s] for crop, s in zip(crops, source, strict=True)]),
            "target": torch.stack([crop[t] for crop, t in zip(crops, target, strict=True)]),
            "source_modality": modality[source],
            "target_modality": modality[target],
        }

    def _random_crop(self, latents: Tensor) -> Tensor:
        """A view."""
        for axis, size in enumerate(self.crop_size or (), start=2):
            spare = latents.shape[axis] - size
            if spare > 0:
                latents = latents.narrow(axis, int(self.R.randint(spare + 1)), size)
        return latents


def latent_pairs(
    data: Sequence[Mapping[str, Any]],
    transform: Callable,
    network: LatentTranslator,
    modalities: Sequence[str],
    *,
    device: torch.device,
    amp: bool | str = False,
    flip: bool | str = False,
    pairs_per_subject: int = 4,
    crop_size: Sequence[int] | None = None,
) -> LatentPairs:
    """``LatentPairs`` of the subjects of a datalist: each is read and encoded once, here, by one of the processes.

    Args:
        data: datalist entries.
        transform: preprocessing that ends in tensors (1, H, W, D).
        network, modalities, device, amp, flip: as for ``encode_subjects``.
        pairs_per_subject, crop_size: as for ``LatentPairs``.
    """
    share = Dataset(own_share(data), transform)
    subjects = encode_subjects(network, share, modalities, device=device, amp=amp, flip=flip)
    return LatentPairs(subjects, pairs_per_subject, crop_size)


def style_pairs(
    data: Sequence[Mapping[str, Any]],
    transform: Compose,
    network: LatentTranslator,
    modalities: Sequence[str],
    *,
    joint: bool | str,
    image_crop: Sequence[int],
    flip: bool | str = False,
    **kwargs: Any,
) -> Dataset:
    """Training pairs of stage 2: latents, or for the ``joint`` training images.

    Args:
        data, transform, network, modalities, kwargs: as for ``latent_pairs``; of ``kwargs`` only the latents make use.
        joint: pairs of images, ``{"image", "label", "source_modality", "target_modality"}``.
        image_crop: voxels of a random crop of an image pair.
        flip: mirror left to right: half of the image pairs, or all the latents as well.
    """
    if not as_bool("joint", joint):
        return latent_pairs(data, transform, network, modalities, flip=flip, **kwargs)
    pair = ["image", "label"]
    mirror = RandFlipd(pair, prob=0.5 if as_bool("flip", flip) else 0.0, spatial_axis=0)
    crop = RandSpatialCropd(pair, roi_size=image_crop, random_size=False)
    random_part = [RandModalityPaird(modalities), crop, mirror, Lambda(_as_batch)]
    return CachedShare(data, Compose([*transform.transforms, *random_part]), progress=False)


def cat_collate(items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate items that are batches already, along their first axis.

    Volumes of other sizes, of subjects smaller than the crop, are cut to the middle that all of them have.
    """
    return {key: torch.cat(_common_middle([item[key] for item in items])) for key in items[0]}


def _common_middle(tensors: list[Tensor]) -> list[Tensor]:
    """Views of ``tensors`` (K, ...) whose axes after the first are as long as the shortest."""
    for axis in range(1, tensors[0].ndim):
        size = min(t.shape[axis] for t in tensors)
        tensors = [t.narrow(axis, (t.shape[axis] - size) // 2, size) for t in tensors]
    return tensors


def _as_batch(item: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.unsqueeze(0) for key, value in item.items()}
