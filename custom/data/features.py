"""A few numbers of a scan that tell whether it is like others, without knowing what it should look like.

They are measured on the preprocessed image, in millimetres and shares, so that they do not depend on the scanner's
units, the contrast's scale or the orientation of the file.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage

from custom.data.foreground import BACKGROUND, foreground_key

__all__ = ["FEATURES", "FEATURES_KEY", "Feature", "MeasureFeaturesd", "measure_features"]

FEATURES_KEY = "features"  # of the metadata of an image

STRIP = "Remove the skull and what is below it first, such as by HD-BET or SynthStrip"
WHOLE = "Check that the file holds one whole brain and its voxel size is right"
VOXELS = "Use a scan with such voxels, or weights that were trained with scans like this one"

COARSE_MM = 2.5  # the layers below the surface are found on about this grid
DEEP_MM = 25.0  # below the surface by so much there is no skull any more
LAYERS_MM = (3.0, 6.0, 9.0, 12.0, 15.0)  # below the surface, among which a skull shows


class Feature(NamedTuple):
    """A number of a scan.

    Attributes:
        name, unit: in messages.
        low, high: what to do about a scan whose number is too low or too high; empty where that is no fault.
    """

    name: str
    unit: str
    low: str
    high: str


FEATURES = (
    Feature("shortest voxel edge", "mm", VOXELS, VOXELS),
    Feature("longest voxel edge, the slice distance", "mm", VOXELS, VOXELS),
    Feature("foreground from left to right", "mm", WHOLE, STRIP),
    Feature("foreground from back to front", "mm", WHOLE, STRIP),
    Feature("foreground from bottom to top", "mm", WHOLE, STRIP),
    Feature("volume of the foreground", "ml", WHOLE, STRIP),
    Feature("foreground that the field of view cuts off", "%", "", STRIP),
    Feature("brightness of the darkest layer below the surface, as skull is", "%", STRIP, ""),
    Feature("sharpness from left to right", "%", VOXELS, VOXELS),
    Feature("sharpness from back to front", "%", VOXELS, VOXELS),
    Feature("sharpness from bottom to top", "%", VOXELS, VOXELS),
)


class MeasureFeaturesd(MapTransform):
    """Put :func:`measure_features` of an image into its metadata, under ``FEATURES_KEY``, (S, F); its voxels stay.

    Args:
        keys: images (S, H, W, D) of S sources in RAS order and [-1, 1], cropped to their foreground but not yet padded,
            with the foreground of each under ``foreground_key``.
        allow_missing_keys: do not raise for an absent key.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image: MetaTensor = d[key]
            masks = d[foreground_key(str(key))].as_tensor() > 0
            image.meta[FEATURES_KEY] = torch.stack(
                [measure_features(*pair, image.affine) for pair in zip(image.as_tensor(), masks, strict=True)]
            )
        return d


def measure_features(image: torch.Tensor, mask: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    """The numbers of ``FEATURES``.

    - Sharpness along an axis: mean square difference of neighbours by that of every second voxel, in percent; 50 of
      white noise that was smoothed a little, 25 of a straight ramp, such as interpolation between thick slices leaves.
    - A skull is a dark layer some millimetres below the surface of a head: the mean of the darkest of ``LAYERS_MM``
      in percent of that of the inside.
    - What the field of view cuts off: the largest section at a face of the volume in percent of the largest within.

    Args:
        image: (H, W, D) in RAS order, in [-1, 1] with background -1.
        mask: its foreground, cavities filled, which reaches a face only where it reaches that of the scan.
        affine: voxel to mm.

    Returns:
        (F,) float32.
    """
    values, inside = image.cpu().numpy() - BACKGROUND, mask.cpu().numpy()
    spacing = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    sections = [inside.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    extents = [np.count_nonzero(section) * edge for section, edge in zip(sections, spacing, strict=True)]
    found = [
        spacing.min(),
        spacing.max(),
        *extents,
        inside.sum() * spacing.prod() / 1000,
        100 * max(max(s[0], s[-1]) / max(1, s.max()) for s in sections),
        100 * _darkest_layer(values, inside, spacing),
        *(100 * _sharpness(values, inside, axis) for axis in range(3)),
    ]
    return torch.tensor(found, dtype=torch.float32)


def _darkest_layer(values: np.ndarray, inside: np.ndarray, spacing: np.ndarray) -> float:
    steps = tuple(slice(None, None, max(1, round(COARSE_MM / edge))) for edge in spacing)
    values, inside = values[steps], inside[steps]
    # the outermost voxels are at a surface, also where they are at a face of the volume
    depth = ndimage.distance_transform_edt(
        np.pad(inside, 1), sampling=[edge * (s.step or 1) for edge, s in zip(spacing, steps, strict=True)]
    )[1:-1, 1:-1, 1:-1]
    deep = values[depth > DEEP_MM] if (depth > DEEP_MM).any() else values[inside]
    if not deep.size:
        return 0.0
    layers = [values[(depth > low) & (depth <= high)] for low, high in pairwise(LAYERS_MM)]
    return min((float(layer.mean()) for layer in layers if layer.size), default=0.0) / max(1e-6, float(deep.mean()))


def _sharpness(values: np.ndarray, inside: np.ndarray, axis: int) -> float:
    values, inside = np.moveaxis(values, axis, 0), np.moveaxis(inside, axis, 0)
    near, far = (
        float(np.square((values[step:] - values[:-step])[inside[step:] & inside[:-step]]).mean())
        if (inside[step:] & inside[:-step]).any()
        else 0.0
        for step in (1, 2)
    )
    return near / far if far > 0 else 0.0
