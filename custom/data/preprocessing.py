"""The preprocessing that every config and every client uses: from files to images on the network's grid and range."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.transforms import Compose, Orientationd, ScaleIntensityRangePercentilesd, ToTensord
from monai.utils import ensure_tuple

from custom.data.foreground import BACKGROUND, foreground_key
from custom.data.transforms import CropForegroundUniond, LoadVolumed, PadVolumed, ValidateVolumed

__all__ = ["preprocessing"]


def preprocessing(
    keys: KeysCollection,
    *,
    labels: KeysCollection = (),
    divisor: int | Sequence[int] = 16,
    volume_size: str | Sequence[int] | None = None,
    keep_masks: bool = True,
    tensors_only: bool = False,
    then: Sequence[Callable] = (),
) -> Compose:
    """Read, check, turn to RAS, crop to the foreground, map to [-1, 1] by the percentiles 0.5 and 99.5, pad.

    Without ``tensors_only`` MONAI's ``Invertd`` undoes it. The result is one flat ``Compose``, as clients look for
    single transforms in it. Keys that an item lacks are passed over.

    Args:
        keys: images of a subject, paths on entry: (1, H, W, D) float32 in [-1, 1] with background -1 on return.
        labels: masks on the images' grid, which are neither checked nor scaled; their background is 0.
        divisor: what the lengths become divisible by, and the fewest voxels that a scan needs along an axis: the
            network's ``spatial_divisor``.
        volume_size: see ``PadVolumed``.
        keep_masks: keep the foreground of each image beside it, see ``custom.data.foreground``.
        tensors_only: give plain tensors, without the metadata that ``Invertd`` needs.
        then: further transforms, such as random ones.

    Raises:
        ValueError: for a ``volume_size`` that is not known.
    """
    images, labels = ensure_tuple(keys), ensure_tuple(labels)
    masks = tuple(foreground_key(key) for key in images if keep_masks)
    some: dict[str, Any] = {"allow_missing_keys": True}
    to_tensor = ToTensord((*images, *labels, *masks), track_meta=False, **some)
    return Compose(
        [
            LoadVolumed((*images, *labels), **some),
            ValidateVolumed(images, min_size=divisor, **some),
            Orientationd((*images, *labels), axcodes="RAS", labels=None, **some),
            CropForegroundUniond((*images, *labels), images, keep_masks=keep_masks, **some),
            ScaleIntensityRangePercentilesd(
                images, lower=0.5, upper=99.5, b_min=BACKGROUND, b_max=1.0, clip=True, **some
            ),
            PadVolumed(images, k=divisor, size=volume_size, value=BACKGROUND, **some),
            *([PadVolumed((*labels, *masks), k=divisor, size=volume_size, **some)] if labels or masks else []),
            *([to_tensor] if tensors_only else []),
            *then,
        ]
    )
