"""Latents of a data set: computed once, then read by the stages that train on them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from monai.data import Dataset
from monai.transforms import Compose, Lambda, RandFlipd, Randomizable, RandSpatialCropd
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from custom.data.augmentation import AugmentSubjectd
from custom.data.datalist import choose_phantoms, with_phantoms
from custom.data.layouts import SUBJECT_KEY
from custom.networks import LatentTranslator
from custom.networks.exchange import exchanges_sources
from custom.networks.fast import accelerate
from custom.networks.ms_spade import coordinates
from custom.training.interruption import Interruption
from custom.training.latents.cache import LatentCache
from custom.training.latents.sampling import RandModalityPaird, check_pairable
from custom.training.latents.target_like import pair_number, translate_subjects
from custom.utils.arguments import as_bool, whole_number
from custom.utils.distributed import CachedShare, is_main, largest, share_of_rank
from custom.utils.identity import describe, digest
from custom.utils.precision import uses_bfloat16

__all__ = ["LatentPairs", "cat_collate", "encode_subjects", "latent_pairs", "measure_latent_scale", "style_pairs"]

# voxels that stand for a whole latent where a crop is translated: enough that the averages over them vary little
CONTEXT_VOXELS = 2048
PHANTOM_POOL = 2  # times as many phantoms as an epoch has are encoded, which takes 6 to 12 seconds each
MOST_SOURCES = 1000  # far more than a subject has
MAX_COPIES = 10_000

# a standard deviation of the latents, or one over it, that no sound training gives
LARGEST_SCALE = 100.0

logger = logging.getLogger(__name__)


@torch.no_grad()
def encode_subjects(
    data: Sequence[Mapping[str, Any]],
    transform: Callable,
    network: LatentTranslator,
    modalities: Sequence[str],
    *,
    cache_dir: str | os.PathLike[str],
    device: torch.device,
    amp: bool | str = False,
    flip: bool | str = False,
    augmentation: AugmentSubjectd | None = None,
    augmented_copies: int = 0,
    images: bool | str = False,
    num_workers: int = 0,
) -> list[dict[str, Any]]:
    """Quantised latents of every modality of every subject, computed where the cache lacks them.

    They carry no sampling noise, so they are exact. What is computed is stored subject by subject: an interrupted run,
    or one that a faulty file ended, goes on where it stopped. No random number is drawn, so a training does not depend
    on what was found. SIGTERM and SIGINT end the program after a subject, see ``custom.training.interruption``.

    Args:
        data: datalist entries, paths by modality.
        transform: preprocessing of an entry that ends in tensors ``{"<modality>": (1, H, W, D)}`` on one grid.
        network: its autoencoder is used, in evaluation mode.
        modalities: the vocabulary.
        cache_dir: folder of the cache, see ``LatentCache``.
        device: where to compute.
        amp: compute in bfloat16; ``"auto"`` where that is faster.
        flip: also encode each subject mirrored left to right. Latents cannot be mirrored afterwards, as the encoder is
            not equivariant: with trained weights 96 % of the brain's codes differed, and the decoded image of the
            mirrored latent had 5 dB less than that of the mirrored image's latent.
        augmentation: makes another subject of one, at random; what it draws follows from the subject's files and the
            number of the copy alone.
        augmented_copies: how many such copies of each subject are encoded beside it.
        images: also keep the preprocessed images, for a training that compares at full resolution.
        num_workers: processes that read subjects beside the encoding.

    Returns:
        For every subject, and its mirrored twin and copies after it, ``{"latents": StoredLatents, "modality": (m,)
        int64, "subject": name}``, with ``images`` also ``{"images": StoredImages}``.

    Raises:
        OSError: where the latents cannot be stored.
    """
    network, images = network.to(device).eval(), as_bool("images", images)
    amp = uses_bfloat16(amp, device)
    cache = LatentCache(cache_dir, network.autoencoder, transform, amp=amp)
    made = _copies(as_bool("flip", flip), augmentation, augmented_copies)
    copies = [[f.with_name(f"{f.stem}{suffix}.npy") for suffix in made] for f in cache.files(data, modalities)]

    def lacking(file: Path) -> bool:
        return cache.find(file) is None or (images and cache.find_images(file) is None)

    missing = [i for i, files in enumerate(copies) if any(map(lacking, files))]
    logger.info("%d of %d subjects have their latents in %s", len(data) - len(missing), len(data), cache.folder)
    if missing:
        cache.explain_others()
        paths = [[str(data[i][m]) for m in modalities if m in data[i]] for i in missing]
        cache.check_space(paths, network.spatial_divisor, len(made), with_images=images)
    loader = DataLoader(
        Dataset([data[i] for i in missing], transform), batch_size=None, num_workers=num_workers,
        generator=torch.Generator(),  # its own, as iterating draws from it
    )  # fmt: skip
    bar = tqdm(loader, "encoding subjects", len(missing), unit="subject", disable=not (missing and is_main()))
    with Interruption() as interruption:
        for done, (i, subject) in enumerate(zip(missing, bar, strict=True)):
            interruption.stop(_kept(done, len(missing), cache.folder))
            whole = {m: torch.as_tensor(subject[m]).as_subclass(Tensor) for m in modalities if m in subject}
            for file, make in zip(copies[i], made.values(), strict=True):
                if not lacking(file):
                    continue
                volumes = torch.stack([*make(whole, copies[i][0].stem).values()])
                if cache.find(file) is None:
                    cache.write(file, _encode(network, volumes, device, amp))
                if images and cache.find_images(file) is None:
                    cache.write_images(file, volumes)
            interruption.stop(_kept(done + 1, len(missing), cache.folder))
    present = [torch.tensor([k for k, m in enumerate(modalities) if m in entry]) for entry in data]
    stored = [(i, file) for i in range(len(data)) for file in copies[i]]
    subjects: list[dict[str, Any]] = [
        {"latents": cache.find(file), "modality": present[i], SUBJECT_KEY: str(data[i].get(SUBJECT_KEY, i))}
        for i, file in stored
    ]
    if images:
        subjects = [{**s, "images": cache.find_images(f)} for s, (_, f) in zip(subjects, stored, strict=True)]
    return subjects


def _kept(done: int, count: int, folder: Path) -> str:
    return (
        f"while subjects were encoded. {done} of {count} are done and kept in {folder}: start again as before to go on."
    )


def _copies(
    flip: bool, augmentation: AugmentSubjectd | None, count: int
) -> dict[str, Callable[[dict[str, Tensor], str], dict[str, Tensor]]]:
    """What is encoded of a subject: ending of its files' names → function of its images and its files' digest."""
    made: dict[str, Callable[[dict[str, Tensor], str], dict[str, Tensor]]] = {"": lambda images, name: images}
    if flip:
        made["_mirrored"] = lambda images, name: {m: image.flip(1) for m, image in images.items()}
    if augmentation is None or count == 0:
        return made
    kind = digest(describe(augmentation))[:16]

    def augmented(images: dict[str, Tensor], name: str, *, number: int) -> dict[str, Tensor]:
        augmentation.set_random_state(int(digest([name, number])[:8], 16))
        changed = augmentation(images)
        return {m: changed[m] for m in images}

    return made | {f"_augmented{n}_{kind}": partial(augmented, number=n) for n in range(1, count + 1)}


def _encode(network: LatentTranslator, images: Tensor, device: torch.device, amp: bool) -> Tensor:
    """What ``LatentCache.write`` takes, indices or without a codebook latents, of ``images`` (m, 1, H, W, D)."""
    parts = []
    for image in images.unsqueeze(1):  # one at a time: a subject's images together may not fit the device
        with accelerate(network), torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
            quantized = network.autoencoder.quantize(network.autoencoder.encode(image.to(device)))
        parts.append(quantized.indices if quantized.indices.numel() else quantized.latent)
    return torch.cat(parts)


def measure_latent_scale(network: LatentTranslator, subjects: Sequence[Mapping[str, Any]]) -> None:
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
        for number in range(len(subject["modality"])):
            latents = subject["latents"].read(number).double()
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
    if not 1 / LARGEST_SCALE <= std <= LARGEST_SCALE:
        logger.warning(
            "latents: expected a standard deviation near 1; found %.3g. The autoencoder's training has diverged: "
            "train it again with a lower learning rate.", std,
        )  # fmt: skip
    network.latent_scale.fill_(1.0 / std)


class LatentPairs(Dataset, Randomizable):
    """Random (sources, target) pairs of latents, several of one subject an item.

    The sources of a pair are a random set of the subject's other modalities, in random order, as large as there are.

    In several processes each holds subjects of its own and is as long as the longest: its first subjects come twice in
    an epoch where it has fewer.

    Args:
        data: from ``encode_subjects``.
        pairs_per_subject: pairs K of an item; they share their size, so they form a batch with mixed targets.
        crop_size: latent voxels of a random crop, each pair its own; the whole volume where not given.
        max_sources: most sources of a pair; all but the target where not given.
        pool: so many of ``data``, its last, are a pool of which each epoch draws ``drawn``, anew.
        drawn: items of an epoch that are of the pool.

    Raises:
        ValueError: for a subject with fewer than two modalities, or a ``max_sources`` below 1.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        pairs_per_subject: int = 4,
        crop_size: Sequence[int] | None = None,
        max_sources: int | None = None,
        *,
        pool: int = 0,
        drawn: int = 0,
    ) -> None:
        super().__init__(data)
        self.max_sources = (
            None if max_sources is None else whole_number("max_sources", max_sources, smallest=1, largest=MOST_SOURCES)
        )
        for index, subject in enumerate(data):
            check_pairable(len(subject["modality"]), f"subject {index} of the training")
        self.pairs_per_subject = pairs_per_subject
        self.crop_size = crop_size
        self.fixed = len(data) - pool
        self.own_length = self.fixed + drawn
        self.length = largest(self.own_length)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """``source`` (K, S, L, h, w, d), ``target`` (K, L, h, w, d), and of what modality each is: ``source_modality``
        (K, S), ``target_modality`` (K,). ``subject``: its name, K times.

        With crops also ``source_context`` (K, S, L, N), ``target_context`` (K, L, N): random voxels of the whole
        latents, and ``position`` (K, 3, h, w, d), where the crops lie in them. Where the images were kept, also
        ``source_image`` (K, S, H, W, D), ``target_image`` (K, 1, H, W, D) of the same regions; where target-like
        latents were, ``target_like`` (K, S, L, h, w, d), for which the other two are not needed.
        """
        subject = self._subject(index)
        latents, modality = subject["latents"], subject["modality"]
        n = len(modality)
        first = self.R.randint(n, size=self.pairs_per_subject)
        target = (first + self.R.randint(1, n, size=self.pairs_per_subject)) % n
        sources = [self._sources(int(s), int(t), n) for s, t in zip(first, target, strict=True)]
        regions = [self._random_region(latents.shape[2:]) for _ in range(self.pairs_per_subject)]
        item = {
            "source": _read_sets(latents.read, sources, regions),
            "target": torch.stack([latents.read(t, region) for t, region in zip(target, regions, strict=True)]),
            "source_modality": modality[torch.tensor(sources)],
            "target_modality": modality[target],
            SUBJECT_KEY: [subject.get(SUBJECT_KEY, str(index))] * self.pairs_per_subject,
        }
        if "images" in subject:
            images, factor = subject["images"], subject["images"].shape[1] // latents.shape[2]
            parts = [tuple(slice(s.start * factor, s.stop * factor) for s in region) for region in regions]
            item["source_image"] = _read_sets(images.read, sources, parts).squeeze(2)
            item["target_image"] = torch.stack([images.read(t, part) for t, part in zip(target, parts, strict=True)])
        if "target_like" in subject:
            pairs = [[pair_number(s, int(t), n) for s in of_one] for of_one, t in zip(sources, target, strict=True)]
            item["target_like"] = _read_sets(subject["target_like"].read, pairs, regions)
        if self.crop_size is not None:
            voxels = tuple(self.R.randint(n, size=CONTEXT_VOXELS) for n in latents.shape[2:])
            item["source_context"] = _read_sets(latents.read, sources, [voxels] * len(sources))
            if "target_like" not in subject:
                item["target_context"] = torch.stack([latents.read(t, voxels) for t in target])
                place = coordinates(*latents.shape[2:])[0]
                item["position"] = torch.stack([place[(slice(None), *region)] for region in regions])
        return item

    def _subject(self, index: int) -> dict[str, Any]:
        number = index % self.own_length
        if number >= self.fixed:
            number = int(self.R.randint(self.fixed, len(self.data)))
        return self.data[number]

    def _sources(self, first: int, target: int, count: int) -> list[int]:
        """Sources of a pair: ``first`` and others of the ``count`` modalities, in random order."""
        size = min(self.max_sources or count, count - 1)
        if size == 1:
            return [first]
        others = [i for i in range(count) if i not in (first, target)]
        return [first, *self.R.permutation(others)[: size - 1].tolist()]

    def _random_region(self, shape: Sequence[int]) -> tuple[slice, ...]:
        region = []
        for length, size in zip(shape, self.crop_size or shape, strict=True):
            spare = length - size
            start = int(self.R.randint(spare + 1)) if spare > 0 else 0
            region.append(slice(start, start + size))
        return tuple(region)


def _read_sets(read: Callable[..., Tensor], numbers: Sequence[Sequence[int]], regions: Sequence[Any]) -> Tensor:
    """Regions (K, S, ...) of the volumes with these ``numbers``, S for each of K regions."""
    return torch.stack([torch.stack([read(n, r) for n in of_one]) for of_one, r in zip(numbers, regions, strict=True)])


def latent_pairs(
    data: Sequence[Mapping[str, Any]],
    transform: Callable,
    network: LatentTranslator,
    modalities: Sequence[str],
    *,
    pairs_per_subject: int = 4,
    crop_size: Sequence[int] | None = None,
    max_sources: int | None = None,
    target_like: bool | str = False,
    phantoms: Sequence[Mapping[str, Any]] = (),
    phantom_share: float = 0.0,
    **kwargs: Any,
) -> LatentPairs:
    """``LatentPairs`` of the subjects of a datalist: each is read and encoded once, here, by one of the processes.

    Args:
        data: datalist entries.
        transform, network, modalities, kwargs: as for ``encode_subjects``.
        pairs_per_subject, crop_size, max_sources: as for ``LatentPairs``.
        target_like: also keep what the frozen MS-SPADE makes of every pair, see ``translate_subjects``; not for sets
            of sources that tell one another something.
        phantoms: entries to train on beside, of which there are no copies but the mirrored ones.
        phantom_share: of an epoch's subjects, copies counted, that are to be phantoms. They are drawn anew in each
            epoch, of twice as many where there are.
    """
    target_like = as_bool("cache_target_like", target_like)
    if target_like and max_sources != 1 and exchanges_sources(network.style_transfer):
        raise ValueError(
            "cache_target_like: expected false, as the sources of a set tell one another something in this network and "
            "their target-like latents differ from set to set; found true. Leave it out, or train with one source "
            "(single_source.json)."
        )
    copies = whole_number("augmented_copies", kwargs.pop("augmented_copies", 0), smallest=0, largest=MAX_COPIES)
    subjects = encode_subjects(share_of_rank(data), transform, network, modalities, augmented_copies=copies, **kwargs)
    twins = 2 if as_bool("flip", kwargs.get("flip", False)) else 1
    wanted = len(choose_phantoms(phantoms, round(len(data) * (copies + twins) / twins), phantom_share))
    real, drawn = len(subjects), 0
    if wanted:
        drawn = len(share_of_rank(range(wanted))) * twins
        pool = share_of_rank(phantoms[: wanted * PHANTOM_POOL])
        subjects += encode_subjects(pool, transform, network, modalities, **kwargs)
    if target_like:
        subjects = translate_subjects(subjects, network, device=kwargs["device"], amp=kwargs.get("amp", False))
    pool_size = len(subjects) - real
    return LatentPairs(subjects, pairs_per_subject, crop_size, max_sources, pool=pool_size, drawn=drawn)


def style_pairs(
    data: Sequence[Mapping[str, Any]],
    transform: Compose,
    network: LatentTranslator,
    modalities: Sequence[str],
    *,
    joint: bool | str,
    image_crop: Sequence[int],
    flip: bool | str = False,
    phantoms: Sequence[Mapping[str, Any]] = (),
    phantom_share: float = 0.0,
    **kwargs: Any,
) -> Dataset:
    """Training pairs of stage 2: latents, or for the ``joint`` training images.

    Args:
        data, transform, network, modalities, kwargs: as for ``latent_pairs``; of ``kwargs`` only the latents make use.
        joint: pairs of images, ``{"image", "label", "source_modality", "target_modality"}``.
        image_crop: voxels of a random crop of an image pair.
        flip: mirror left to right: half of the image pairs, or all the latents as well.
        phantoms, phantom_share: as for ``latent_pairs``.
    """
    if not as_bool("joint", joint):
        return latent_pairs(
            data, transform, network, modalities, flip=flip, phantoms=phantoms, phantom_share=phantom_share, **kwargs
        )
    pair = ["image", "label"]
    mirror = RandFlipd(pair, prob=0.5 if as_bool("flip", flip) else 0.0, spatial_axis=0)
    crop = RandSpatialCropd(pair, roi_size=image_crop, random_size=False)
    random_part: list[Callable[..., Any]] = [RandModalityPaird(modalities), crop, mirror, Lambda(_as_batch)]
    mixed = with_phantoms(data, phantoms, phantom_share)
    return CachedShare(mixed, Compose([*transform.transforms, *random_part]), progress=False)


def cat_collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Concatenate items that are batches already, along their first axis; lists, too.

    Volumes of other sizes, of subjects smaller than the crop, are cut to the middle that all of them have.
    """
    return {
        key: torch.cat(_common_middle([item[key] for item in items]))
        if isinstance(first, Tensor)
        else [value for item in items for value in item[key]]
        for key, first in items[0].items()
    }


def _common_middle(tensors: list[Tensor]) -> list[Tensor]:
    """Views of ``tensors`` (K, ...) whose axes after the first are as long as the shortest."""
    for axis in range(1, tensors[0].ndim):
        size = min(t.shape[axis] for t in tensors)
        tensors = [t.narrow(axis, (t.shape[axis] - size) // 2, size) for t in tensors]
    return tensors


def _as_batch(item: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.unsqueeze(0) if isinstance(value, Tensor) else [value] for key, value in item.items()}
