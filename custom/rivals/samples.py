"""Training and validation samples of the rivals: slices or volumes of a source and a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.data import Dataset
from monai.transforms import Randomizable
from torch import Tensor

from custom.data.foreground import BACKGROUND
from custom.rivals.rival import as_pair
from custom.training.latents.sampling import translation_pairs
from custom.utils.arguments import as_bool
from custom.utils.distributed import CachedShare, largest, share_of_rank

__all__ = ["RivalSamples", "empty_batch", "padded_collate", "rival_samples", "validation_pairs"]

Pair = tuple[str, str] | None


def _with_pair(entries: Sequence[Mapping[str, Any]], pair: Pair, *, together: bool) -> list[Mapping[str, Any]]:
    """The entries that have a part in the training; ``together``: both contrasts, otherwise one of them.

    Raises:
        ValueError: if the data lacks the pair.
    """
    if pair is None:
        return list(entries)
    kept = [e for e in entries if (all if together else any)(m in e for m in pair)]
    lacking = [m for m in pair if not any(m in e for e in kept)]
    if not kept or lacking:
        what = f"a subject with {pair[0]} and {pair[1]}" if together else f"subjects with {' or '.join(pair)}"
        raise ValueError(
            f"pair: expected {what}; found none with {' and '.join(lacking or pair)} among {len(entries)} subjects. "
            "Choose another pair, or add the scans to the data list."
        )
    return kept


def validation_pairs(
    entries: Sequence[Mapping[str, Any]], modalities: Sequence[str], pair: str | Sequence[str] | None
) -> list[dict[str, Any]]:
    """``translation_pairs`` of the one pair that a rival is trained for; of all where it is trained for all.

    In several processes: this one's share.

    Args:
        entries: datalist entries.
        modalities: the vocabulary.
        pair: see ``as_pair``.

    Raises:
        ValueError: if no subject has the pair.
    """
    wanted = as_pair(pair, modalities)
    if wanted is None:
        return translation_pairs(entries, modalities)
    source, target = wanted
    index = list(modalities).index(target)
    return share_of_rank(
        [
            {"subject": e["subject"], "image": e[source], "label": e[target], "target_modality": index}
            for e in _with_pair(entries, wanted, together=True)
        ]
    )


def rival_samples(
    data: Sequence[Mapping[str, Any]],
    transform: Callable,
    modalities: Sequence[str],
    pair: str | Sequence[str] | None,
    *,
    paired: bool = True,
    cache_rate: float = 1.0,
    num_workers: int | None = None,
    **kwargs: Any,
) -> RivalSamples:
    """``RivalSamples`` of the subjects of a datalist, each read once.

    Args:
        data: datalist entries.
        transform: preprocessing of an entry that ends in tensors ``{"<modality>": (1, H, W, D)}`` on one grid.
        modalities: the vocabulary.
        pair: see ``as_pair``.
        paired: whether source and target are of one subject.
        cache_rate, num_workers: as for MONAI's ``CacheDataset``.
        kwargs: as for ``RivalSamples``.

    Raises:
        ValueError: if the data lacks the pair.
    """
    wanted = as_pair(pair, modalities)
    entries = _with_pair(data, wanted, together=paired)
    share = share_of_rank(entries, even=True)
    cached = CachedShare(entries, transform, cache_rate=cache_rate, num_workers=num_workers, copy_cache=False)
    present = [[m for m in modalities if m in entry] for entry in share]
    return RivalSamples(cached, present, modalities, wanted, paired=paired, **kwargs)


class RivalSamples(Dataset, Randomizable):
    """For each subject some random axial slices, or a volume, of a source and a target.

    Slices are drawn among those that show tissue, by one rule for both contrasts. Without pairs the target is another
    subject's, drawn at random, and so are its slices.

    Args:
        data: preprocessed subjects, ``{"<modality>": (1, H, W, D)}``.
        present: modalities of each.
        modalities: the vocabulary.
        pair: source and target; None to draw them for each item.
        paired: whether source and target are of one subject.
        spatial_dims: 2 for slices, 3 for volumes.
        slices_per_subject: slices of an item.
        crop_size: voxels of a random crop, of as many axes; the whole where not given.
        flip: mirror left to right, half of the items.

    Raises:
        ValueError: for fewer than two subjects to draw from without pairs.
    """

    def __init__(
        self,
        data: Any,
        present: Sequence[Sequence[str]],
        modalities: Sequence[str],
        pair: Pair,
        *,
        paired: bool = True,
        spatial_dims: int = 2,
        slices_per_subject: int = 4,
        crop_size: Sequence[int] | None = None,
        flip: bool | str = True,
    ) -> None:
        super().__init__(data)
        self.present = [list(names) for names in present]
        self.modalities = list(modalities)
        self.pair = pair
        self.paired = paired
        self.spatial_dims = spatial_dims
        self.slices_per_subject = slices_per_subject
        self.crop_size = crop_size
        self.flip = as_bool("flip", flip)
        source = pair[0] if pair else ""
        self.sources = [i for i, names in enumerate(self.present) if paired or source in names]
        if not paired and len(self.present) < 2:
            raise ValueError(
                f"data: expected two or more subjects, as source and target are of different ones; found "
                f"{len(self.present)}. Add subjects."
            )
        self.length = largest(len(self.sources))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> dict[str, Tensor]:
        """``image``, ``label`` (K, 1, H, W), or (1, 1, H, W, D); ``source_modality``, ``target_modality`` (K or 1,)."""
        i = self.sources[index % len(self.sources)]
        source, target = self.pair or tuple(self.R.choice(self.present[i], size=2, replace=False))
        j = i if self.paired else self._other(i, target)
        image, label = self.data[i][source], self.data[j][target]
        if self.spatial_dims == 2:
            image, label = self._slices(image, label)
        else:
            image, label = image[None], label[None]
        image, label = self._crop(image, label)
        if self.flip and self.R.random() < 0.5:
            image, label = image.flip(2), label.flip(2)
        count = len(image)
        item = {"image": image, "label": label}
        for key, name in (("source_modality", source), ("target_modality", target)):
            item[key] = torch.full((count,), self.modalities.index(name))
        return item

    def _other(self, i: int, target: str) -> int:
        others = [j for j, names in enumerate(self.present) if j != i and target in names]
        if not others:
            raise ValueError(f"pair: expected another subject with {target}; found none. Add subjects with it.")
        return int(self.R.choice(others))

    def _slices(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """(K, 1, H, W) of each; the same ones of a subject's own."""
        shown = [_shows_tissue(image), _shows_tissue(label)]
        if self.paired:
            shown = [shown[0] & shown[1]] * 2
        if not all(bool(s.any()) for s in shown):
            raise ValueError("slices: expected some with tissue in source and target; found none. Check the scans.")
        first = self._draw(shown[0])
        second = first if self.paired else self._draw(shown[1])
        return image[..., first].permute(3, 0, 1, 2), label[..., second].permute(3, 0, 1, 2)

    def _draw(self, shown: Tensor) -> Tensor:
        known = shown.nonzero().flatten().numpy()
        return torch.from_numpy(
            self.R.choice(known, size=self.slices_per_subject, replace=len(known) < self.slices_per_subject)
        )

    def _crop(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        if self.crop_size is None:
            return image, label
        first = self._region(image)
        second = first if self.paired else self._region(label)
        return image[first], label[second]

    def _region(self, image: Tensor) -> tuple[slice, ...]:
        region = [slice(None), slice(None)]
        for length, size in zip(image.shape[2:], self.crop_size or (), strict=True):
            start = int(self.R.randint(max(length - size, 0) + 1))
            region.append(slice(start, start + size))
        return tuple(region)


def _shows_tissue(volume: Tensor) -> Tensor:
    """Which axial slices of (1, H, W, D) have a voxel that is no background."""
    return volume.flatten(0, 2).amax(0) > BACKGROUND


def padded_collate(items: Sequence[Mapping[str, Tensor]], smallest: int = 1) -> dict[str, Tensor]:
    """Concatenate items that are batches already; what is smaller than the largest is padded with background.

    Args:
        items: of ``RivalSamples``.
        smallest: sides that images are padded to at least.
    """
    return {key: torch.cat(_same_size([item[key] for item in items], smallest)) for key in items[0]}


def empty_batch(parser: ConfigParser, objective: Any, size: Sequence[int]) -> dict[str, Tensor]:
    """A batch of the shapes of a rival's config, without content.

    Args:
        parser: of the config.
        objective: of the training.
        size: (H, W, D) of the subjects' volumes; a crop of the config that is smaller is taken.
    """
    value = parser.get_parsed_content
    dims = objective.rival.spatial_dims
    count = value("subjects_per_batch") * (value("slices_per_subject") if dims == 2 else 1)
    crop = value("sample_crop") or size[:dims]
    shape = [max(min(a, b), value("smallest_slice")) for a, b in zip(crop, size, strict=False)]
    images = {key: torch.zeros(count, 1, *shape) for key in ("image", "label")}
    modality = torch.zeros(count, dtype=torch.long)
    return {**images, "source_modality": modality, "target_modality": modality}


def _same_size(tensors: list[Tensor], smallest: int) -> list[Tensor]:
    sides = [max(smallest, *lengths) for lengths in zip(*(t.shape[2:] for t in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        spare = [side - n for side, n in zip(sides, tensor.shape[2:], strict=True)]
        widths = [w for n in reversed(spare) for w in (n // 2, n - n // 2)]
        padded.append(F.pad(tensor, widths, value=BACKGROUND) if any(widths) else tensor)
    return padded
