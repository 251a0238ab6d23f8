"""Dictionary transforms on top of MONAI's: reading, checks, the crop to the foreground, padding."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ImageReader, MetaTensor
from monai.transforms import CropForegroundd, DivisiblePad, LoadImaged, MapTransform, Padd, Transform
from monai.utils import convert_to_dst_type, ensure_tuple

from custom.compat import in_label_server
from custom.data.foreground import foreground, foreground_key, solid
from custom.data.intensities import has_wrapped
from custom.data.readers import read_volume, volume_of_client
from custom.data.scans import check_named_scan, labels_in, listed
from custom.data.sets import (
    DISAGREEMENT_KEY,
    as_set,
    beside,
    check_one_volume,
    disagreement,
    members_of,
    on_members,
    source_name,
    sources_of,
    times,
)
from custom.utils.arguments import as_bool, whole_number
from custom.utils.errors import telling_label_clients

__all__ = [
    "VOLUME_SIZES",
    "CropForegroundUniond",
    "LoadVolumed",
    "PadVolumed",
    "UniteForegroundsd",
    "ValidateVolumed",
]

# Of the paper's experiments, in the order of the axes here: left-right, back-front, bottom-top. IXI's published
# 256×160×224 counts back-front first: 150 sagittal slices of 1.2 mm are the second of its axes.
VOLUME_SIZES = {"brats": (192, 192, 144), "ixi": (160, 256, 224)}

MAX_SIZE = 4096  # voxels along an axis


class _VolumeLoader(Transform):
    """:func:`custom.data.readers.read_volume` in the place of MONAI's ``LoadImage``, also of what is read already.

    Args:
        align: see ``custom.data.sets.as_set``.

    Attributes:
        image_only: clients (MONAI Label) set it; it changes nothing, as a ``MetaTensor`` has its metadata with it.
    """

    # decides whether sources on several grids are refused; what is made of sources is the same
    not_in_identity = ("align",)

    def __init__(self, align: bool | str = False) -> None:
        self.image_only = True
        self.align = as_bool("align", align)

    def __call__(self, given: Any) -> MetaTensor:
        if isinstance(given, list | tuple):
            return as_set([self(source) for source in given], align=self.align)
        return volume_of_client(given) if isinstance(given, torch.Tensor | np.ndarray) else read_volume(given)


class LoadVolumed(LoadImaged):
    """:func:`custom.data.readers.read_volume` as a dictionary transform.

    It is a ``LoadImaged``, so that clients know it (MONAI Label). An image that a client hands over in the place of a
    path (MONAI Deploy) is brought to the same form. A list of paths or images, the sources of one subject, becomes one
    image with a channel for each: ``custom.data.sets``.

    Args:
        keys: keys of paths.
        allow_missing_keys: do not raise for an absent key.
        align: register the sources of a list that lie on another grid than the finest.
        others: names, with commas, of scans in the image's folder that are sources with it; for the server of MONAI
            Label, a request to which names one image.
    """

    not_in_identity = ("others",)  # which files are read, not what is made of them

    def __init__(
        self,
        keys: KeysCollection,
        allow_missing_keys: bool = False,
        *,
        align: bool | str = False,
        others: str = "",
    ) -> None:
        # LoadImaged's own would set up every reader of MONAI, which warns of decoders that are not installed
        MapTransform.__init__(self, keys, allow_missing_keys)
        # clients set attributes of what is there in MONAI's
        self._loader: Any = _VolumeLoader(align)
        self.others = str(others or "")

    @telling_label_clients
    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self._loader(self._with_others(d[key]))
        return d

    def _with_others(self, given: Any) -> Any:
        if not self.others:
            return given
        if not in_label_server():
            raise ValueError(
                f"sources: expected none, as it is for MONAI Label's server; found {self.others!r}. Name several "
                "sources as a list: --image \"['a.nii.gz','b.nii.gz']\"."
            )
        return beside(given, self.others) if given else given


class ValidateVolumed(MapTransform):
    """Refuse volumes that cannot be translated, after loading and channel first; one clear error for each fault.

    Args:
        keys: keys of images (1, H, W, D).
        min_size: fewest voxels along each axis: the network's ``spatial_divisor``. A smaller volume is less than one
            cell of the coarsest feature map along that axis; what the network would see there is padding.
        allow_missing_keys: do not raise for an absent key.

    Raises:
        ValueError: for a volume that is not 3D and single-channel, too small, constant, of integers that overflowed, or
            a segmentation by its values or by the name of its file.
    """

    def __init__(
        self, keys: KeysCollection, min_size: int | Sequence[int] = 16, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.min_size = min_size

    @telling_label_clients
    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            for image in members_of(d[key]):
                self._check(image, source_name(image, key))
        return d

    def _check(self, image: torch.Tensor, name: str) -> None:
        check_named_scan(name)
        check_one_volume(image, name)
        shape = tuple(image.shape[1:])
        smallest = tuple(np.broadcast_to(self.min_size, 3).tolist())
        if any(s < m for s, m in zip(shape, smallest, strict=True)):
            raise ValueError(
                f"{name}: expected at least {times(smallest)} voxels, one cell of the coarsest feature map; "
                f"found {times(shape)}. Resample the volume to smaller voxels or use a larger field of view."
            )
        values = image.as_tensor() if isinstance(image, MetaTensor) else image
        finite = values[torch.isfinite(values)]
        if not finite.numel():
            raise ValueError(
                f"{name}: expected finite intensities; found NaN or infinite values alone. Replace the file."
            )
        low, high = float(finite.min()), float(finite.max())
        if low == high or bool(((finite == low) | (finite == high)).all()):
            found = f"the constant {low:g}" if low == high else f"only the values {low:g} and {high:g}"
            raise ValueError(f"{name}: expected an MRI contrast; found {found}. Check that it is not a mask or empty.")
        labels = labels_in(values)
        if labels is not None:
            raise ValueError(
                f"{name}: expected an MRI contrast; found only the whole numbers {listed(labels)}, as in a "
                "segmentation. Name the scan that it belongs to."
            )
        if has_wrapped(values[0].cpu().numpy()):
            raise ValueError(
                f"{name}: expected intensities that rise and fall smoothly; found jumps between {low:g} and {high:g} "
                "within tissue, as where integers have overflowed. Convert the original to a type that holds its range."
            )


class CropForegroundUniond(CropForegroundd):
    """Crop all images of a subject to one box: the union of their foregrounds, a margin around it.

    Args:
        keys: images (1, H, W, D) on one grid, and whatever is cropped with them.
        source_keys: the images whose foregrounds count; all ``keys`` where not given.
        margin: voxels around the foreground; the box stays inside the volume.
        keep_masks: keep the foreground of each of ``source_keys``, cropped like the image, its cavities filled, under
            ``custom.data.foreground.foreground_key``.
        allow_missing_keys: subjects may lack some of the ``keys``.

    Raises:
        ValueError: for images on different grids, without any foreground, or with NaN or infinite values within it.
    """

    def __init__(
        self,
        keys: KeysCollection,
        source_keys: KeysCollection | None = None,
        *,
        margin: int | Sequence[int] = 2,
        keep_masks: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        keys = ensure_tuple(keys)
        self.source_keys = keys if source_keys is None else ensure_tuple(source_keys)
        self.keep_masks = keep_masks
        super().__init__(
            (*keys, *(foreground_key(key) for key in self.source_keys if keep_masks)),
            source_key="_foreground",
            margin=margin,
            allow_smaller=True,
            start_coord_key=None,
            end_coord_key=None,
            allow_missing_keys=allow_missing_keys,
        )

    @telling_label_clients
    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        d = dict(data)
        images: dict[Hashable, torch.Tensor] = {key: d[key] for key in self.source_keys if key in d}
        self._check_grids(images)
        masks: dict[Hashable, torch.Tensor] = {
            foreground_key(str(key)): on_members(
                lambda member, key=key: _mask_of(member, source_name(member, key)), image
            )
            for key, image in images.items()
        }
        d[self.source_key] = self._union(images, masks)
        d = super().__call__(d | masks if self.keep_masks else d, lazy)
        del d[self.source_key]
        for key in masks if self.keep_masks else ():
            d[key] = convert_to_dst_type(torch.cat([solid(mask) for mask in d[key].split(1)]), dst=d[key])[0]
        return d

    def _check_grids(self, images: Mapping[Hashable, torch.Tensor]) -> None:
        if not images:
            raise KeyError(f"expected at least one of the keys {', '.join(map(str, self.source_keys))}; found none.")
        names = {source_name(image, key): tuple(image.shape[1:]) for key, image in images.items()}
        if len(set(names.values())) > 1:
            found = "; ".join(f"{name} {times(shape)}" for name, shape in names.items())
            raise ValueError(f"expected a subject's images on one grid; found {found}. Register and resample them.")

    def _union(self, images: Mapping[Hashable, torch.Tensor], masks: Mapping[Hashable, torch.Tensor]) -> torch.Tensor:
        union = reduce(torch.logical_or, (mask.any(dim=0, keepdim=True) for mask in masks.values()))
        if not union.any():
            names = ", ".join(source_name(member, key) for key, image in images.items() for member in members_of(image))
            raise ValueError(f"{names}: expected some foreground; found none. Check the intensities.")
        return union


class UniteForegroundsd(MapTransform):
    """Of the masks of a set one, where any of its sources shows tissue; what does not fit is told in its metadata.

    Args:
        keys: images (S, H, W, D), whose masks of the same shape lie under ``foreground_key``; those become
            (1, H, W, D). Sources whose brains do not lie in one place get a text under ``DISAGREEMENT_KEY``.
        allow_missing_keys: do not raise for an absent key.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            masks = d[foreground_key(str(key))]
            d[foreground_key(str(key))] = masks.any(dim=0, keepdim=True)
            if len(masks) > 1:
                d[key].meta[DISAGREEMENT_KEY] = disagreement(masks.as_tensor() > 0, sources_of(d[key].meta))
        return d


def _mask_of(image: torch.Tensor, name: str) -> torch.Tensor:
    mask = foreground(image)
    broken = ~torch.isfinite(image.as_tensor() if isinstance(image, MetaTensor) else image)
    if broken.any() and (faulty := int((broken & solid(mask)).sum())):
        raise ValueError(
            f"{name}: expected finite intensities in the brain; found {faulty} NaN or infinite voxels there (outside "
            "they are background). Replace them."
        )
    return MetaTensor(mask, meta=dict(image.meta)) if isinstance(image, MetaTensor) else mask


class PadVolumed(Padd):
    """Pad volumes to one size at least, and to a multiple of the network's divisor; nothing is ever cut off.

    A volume whose foreground is larger than ``size`` along an axis keeps its own length there. ``Invertd`` takes the
    padding away again.

    Args:
        keys: images (1, H, W, D) in RAS order.
        k: what the lengths are divisible by.
        size: voxels along each axis, or a key of ``VOLUME_SIZES``; None for the smallest multiple of ``k``.
        value: that is padded with.
        allow_missing_keys: do not raise for an absent key.

    Raises:
        ValueError: for a size that is not known or not three numbers.
    """

    def __init__(
        self,
        keys: KeysCollection,
        k: int | Sequence[int] = 16,
        size: str | Sequence[int] | None = None,
        *,
        value: float = 0.0,
        allow_missing_keys: bool = False,
    ) -> None:
        padder = _PadAtLeast(_volume_size(size), k=k, value=value)
        super().__init__(keys, padder=padder, allow_missing_keys=allow_missing_keys)


class _PadAtLeast(DivisiblePad):
    def __init__(self, size: tuple[int, ...] | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = size

    # MONAI's own annotation is a tuple of one axis
    def compute_pad_width(  # type: ignore[override]
        self, spatial_shape: Sequence[int]
    ) -> tuple[tuple[int, int], ...]:
        least = self.size or (0,) * len(spatial_shape)
        lengths = np.maximum(spatial_shape, least)
        spare = -(-lengths // self.k) * np.asarray(self.k) - np.asarray(spatial_shape)
        return ((0, 0), *((int(n) // 2, int(n) - int(n) // 2) for n in spare))


def _volume_size(size: str | Sequence[int] | None) -> tuple[int, ...] | None:
    if size is None:
        return None
    found = VOLUME_SIZES.get(size.lower()) if isinstance(size, str) else size
    if not isinstance(found, Sequence) or len(found) != 3:
        raise ValueError(
            f"volume_size: expected {', '.join(VOLUME_SIZES)} or three numbers of voxels; found {size!r}. Correct it."
        )
    return tuple(whole_number("volume_size", n, smallest=1, largest=MAX_SIZE) for n in found)
