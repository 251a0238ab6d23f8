"""The preprocessing that every config and every client uses: from files to images on the network's grid and range."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.transforms import Compose, DeleteItemsd, Orientationd, ToTensord
from monai.utils import ensure_tuple

from custom.data.features import MeasureFeaturesd
from custom.data.foreground import BACKGROUND, foreground_key
from custom.data.intensities import ScaleIntensitiesd
from custom.data.transforms import CropForegroundUniond, LoadVolumed, PadVolumed, UniteForegroundsd, ValidateVolumed
from custom.utils.intensity_scales import PERCENTILE

__all__ = ["preprocessing"]


def preprocessing(
    keys: KeysCollection,
    *,
    labels: KeysCollection = (),
    divisor: int | Sequence[int] = 16,
    volume_size: str | Sequence[int] | None = None,
    intensity_scale: str = PERCENTILE,
    keep_masks: bool = True,
    measure: bool = False,
    sets: bool = False,
    align: bool | str = False,
    others: str = "",
    tensors_only: bool = False,
    then: Sequence[Callable] = (),
) -> Compose:
    """Read, check, turn to RAS, crop to the foreground, map to [-1, 1], pad.

    Without ``tensors_only`` MONAI's ``Invertd`` undoes it. The result is one flat ``Compose``, as clients look for
    single transforms in it. Keys that an item lacks are passed over.

    Args:
        keys: images of a subject, paths on entry: (1, H, W, D) float32 in [-1, 1] with background -1 on return.
        labels: masks on the images' grid, which are neither checked nor scaled; their background is 0.
        divisor: what the lengths become divisible by, and the fewest voxels that a scan needs along an axis: the
            network's ``spatial_divisor``.
        volume_size: see ``PadVolumed``.
        intensity_scale: that of the weights, see ``ScaleIntensitiesd``.
        keep_masks: keep the foreground of each image beside it, see ``custom.data.foreground``.
        measure: put ``custom.data.features`` of each image into its metadata.
        sets: one of the ``keys`` may hold a list of paths, the sources of one subject: its image is then (S, H, W, D),
            its foreground where any of them shows tissue.
        align: of such a list, see ``custom.data.sets``.
        others: further sources for the server of MONAI Label, see ``LoadVolumed``.
        tensors_only: give plain tensors, without the metadata that ``Invertd`` needs.
        then: further transforms, such as random ones.

    Raises:
        ValueError: for a ``volume_size`` or ``intensity_scale`` that is not known.
    """
    images, labels = ensure_tuple(keys), ensure_tuple(labels)
    made = tuple(foreground_key(key) for key in images)
    masks = made if keep_masks else ()
    some: dict[str, Any] = {"allow_missing_keys": True}
    to_tensor = ToTensord((*images, *labels, *masks), track_meta=False, **some)
    return Compose(
        [
            LoadVolumed((*images, *labels), **some, align=align, others=others),
            ValidateVolumed(images, min_size=divisor, **some),
            Orientationd((*images, *labels), axcodes="RAS", labels=None, **some),
            CropForegroundUniond((*images, *labels), images, keep_masks=True, **some),
            ScaleIntensitiesd(images, intensity_scale, **some),
            *([MeasureFeaturesd(images, **some)] if measure else []),
            *([UniteForegroundsd(images, **some)] if sets else []),
            *([] if keep_masks else [DeleteItemsd(made)]),
            PadVolumed(images, k=divisor, size=volume_size, value=BACKGROUND, **some),
            *([PadVolumed((*labels, *masks), k=divisor, size=volume_size, **some)] if labels or masks else []),
            *([to_tensor] if tensors_only else []),
            *then,
        ]
    )
