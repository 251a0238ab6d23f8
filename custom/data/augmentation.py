"""Random changes of a preprocessed subject, for training on few: its shape for all contrasts alike, each one's looks.

Built on MONAI's transforms. What comes out is what the preprocessing gives: images on the named intensity scale,
background -1, cropped to the foreground and padded.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    CropForegroundd,
    MapTransform,
    Rand3DElasticd,
    RandAdjustContrastd,
    RandBiasFieldd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandHistogramShiftd,
    Randomizable,
    RandomizableTransform,
)
from monai.utils import ensure_tuple
from torch.nn.functional import interpolate

from custom.data.foreground import BACKGROUND, foreground_key
from custom.data.intensities import ScaleIntensitiesd
from custom.data.transforms import PadVolumed
from custom.utils.intensity_scales import PERCENTILE

__all__ = ["AugmentSubjectd", "RandThickSlicesd"]

ROOM = 12  # voxels that a volume is given at each end before it is turned, so that nothing of the brain is cut off
MARGIN = 2  # around the foreground, as in the preprocessing
SPLINE = 3  # order of the interpolation: linear would blur what a network is to learn

UNION = "_union"


class AugmentSubjectd(MapTransform, Randomizable):
    """One random flip, turn, stretch and smooth deformation of all contrasts, then each contrast's own changes.

    These are a bias field, a gamma, a piecewise linear increasing map of intensities, noise, blur and thick slices.
    They stay within the brain, and each image is brought to its intensity scale again. They are mild: what is done to a
    target nobody can foresee from the sources, so strong changes of the looks teach a translation nothing but doubt.

    Args:
        keys: contrasts (1, H, W, D) on one grid in [-1, 1], background exactly -1; plain tensors come out.
        labels: maps on the same grid, background 0, which take part in the shape by their nearest values.
        divisor: what the lengths become divisible by.
        volume_size: see ``PadVolumed``.
        intensity_scale: of the images.
        degrees: of rotation about each axis, at most.
        stretch: of each axis, at most, as a share.
        deformation: standard deviation of the largest smooth displacements in voxels.
        bias: of the coefficients of the bias field's polynomial (its logarithm).
        gamma: range of the exponent.
        map_share: how often intensities are mapped by a piecewise linear function.
        noise: standard deviation at most, as a share of the range.
        degraded_share: how often a contrast is blurred, and how often it has thick slices.
    """

    def __init__(
        self,
        keys: KeysCollection,
        labels: KeysCollection = (),
        *,
        divisor: int | Sequence[int] = 16,
        volume_size: str | Sequence[int] | None = None,
        intensity_scale: str = PERCENTILE,
        degrees: float = 10.0,
        stretch: float = 0.1,
        deformation: float = 2.0,
        bias: float = 0.1,
        gamma: tuple[float, float] = (0.9, 1.1),
        map_share: float = 0.1,
        noise: float = 0.02,
        degraded_share: float = 0.1,
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.labels = ensure_tuple(labels)
        self.sizes: dict[str, Any] = {"k": divisor, "size": volume_size}
        self.scale = intensity_scale
        self.shape: dict[str, float] = {"degrees": degrees, "stretch": stretch, "deformation": deformation}
        self.looks: dict[str, Any] = {"bias": bias, "gamma": tuple(gamma), "map_share": map_share, "noise": noise}
        self.degraded_share = degraded_share

    def __call__(self, data: Mapping[Any, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        known = {key: value for key, value in data.items() if key in (*self.keys, *self.labels)}
        d: dict[Hashable, torch.Tensor] = {key: _plain(value).float() for key, value in known.items()}
        images = [key for key in self.keys if key in d]
        labels = [key for key in self.labels if key in d]
        masks = {key: foreground_key(str(key)) for key in images}
        for key, mask in masks.items():
            d[mask] = (d[key] > BACKGROUND).float()
            d[key] = (d[key] - BACKGROUND) / (-2 * BACKGROUND)  # background 0, which what is resampled is filled with
        d = self._shaped(d, images, labels, [*masks.values()])
        for key, mask in masks.items():
            d[key] = self._changed(d[key], d[mask])
        d = ScaleIntensitiesd(images, self.scale)(d)
        d = PadVolumed(images, value=BACKGROUND, **self.sizes)(d)
        d = PadVolumed(labels, **self.sizes)(d) if labels else d
        rest = {key: value for key, value in data.items() if key not in d}
        return {**rest, **{key: _plain(d[key]) for key in (*images, *labels)}}

    def _shaped(
        self, d: dict[Hashable, torch.Tensor], images: Sequence[Hashable], labels: Sequence[Hashable], masks: list[str]
    ) -> dict[Hashable, torch.Tensor]:
        """All contrasts, labels and masks after the same flip and deformation, cropped to what the masks hold."""
        keys = [*images, *labels, *masks]
        height, width, depth = (n + 2 * ROOM for n in d[keys[0]].shape[1:])
        # orders of splines are allowed as well
        modes: list[Any] = [*[SPLINE] * len(images), *["nearest"] * len(labels), *["bilinear"] * len(masks)]
        radians = float(np.deg2rad(self.shape["degrees"]))
        sigma = 8.0
        # uniform noise in [-1, 1], smoothed by a Gaussian in 3D, has this standard deviation
        smoothed = 3**-0.5 * (4 * np.pi * sigma**2) ** -0.75
        largest = self.shape["deformation"] / smoothed
        steps = Compose(
            [
                RandFlipd(keys, prob=0.5, spatial_axis=0),
                Rand3DElasticd(
                    keys,
                    sigma_range=(sigma, sigma),
                    magnitude_range=(0.0, largest),
                    spatial_size=(height, width, depth),
                    prob=1.0,
                    rotate_range=(radians,) * 3,
                    scale_range=(self.shape["stretch"],) * 3,
                    mode=modes,
                    padding_mode=[*["constant"] * len(images), *["zeros"] * (len(labels) + len(masks))],
                ),
            ]
        )
        shaped = steps.set_random_state(self._seed())(d)
        for mask in masks:
            shaped[mask] = shaped[mask] > 0.5
        shaped[UNION] = torch.stack([_plain(shaped[mask]) for mask in masks]).any(dim=0)
        return CropForegroundd(keys, source_key=UNION, margin=MARGIN, allow_smaller=True)(shaped)

    def _changed(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """A contrast in [0, 1] with its own bias field, intensities and quality; 0 outside the mask."""
        key, share = "image", self.degraded_share
        bias, noise = self.looks["bias"], self.looks["noise"]
        steps = Compose(
            [
                RandBiasFieldd(key, degree=3, coeff_range=(-bias, bias), prob=1.0 if bias else 0.0),
                RandAdjustContrastd(key, prob=1.0, gamma=self.looks["gamma"]),
                RandHistogramShiftd(key, num_control_points=(8, 12), prob=self.looks["map_share"]),
                RandGaussianSmoothd(key, sigma_x=(0.3, 0.8), sigma_y=(0.3, 0.8), sigma_z=(0.3, 0.8), prob=share),
                RandThickSlicesd(key, factor=(2.0, 4.0), prob=share),
                RandGaussianNoised(key, std=noise, prob=1.0 if noise else 0.0, sample_std=True),
            ]
        )
        found = _plain(steps.set_random_state(self._seed())({key: _plain(image).clamp(0, 1)})[key])
        return torch.where(_plain(mask), found.clamp(min=0), 0.0)

    def _seed(self) -> int:
        return int(self.R.randint(2**31))


class RandThickSlicesd(MapTransform, RandomizableTransform):
    """An image as scanned in slices that are several voxels thick along one axis, resampled to its grid.

    Args:
        keys: images (1, H, W, D).
        factor: range of the thickness in voxels.
        prob: how often it is done.
        allow_missing_keys: do not raise for an absent key.
    """

    def __init__(
        self,
        keys: KeysCollection,
        factor: tuple[float, float] = (2.0, 4.0),
        prob: float = 0.1,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.factor = factor

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return d
        axis, factor = int(self.R.randint(3)), float(self.R.uniform(*self.factor))
        for key in self.key_iterator(d):
            size = d[key].shape[1:]
            fewer = [max(1, round(n / factor)) if i == axis else n for i, n in enumerate(size)]
            # the mean over a slice's thickness, then straight lines between the slices' middles
            slices = interpolate(_plain(d[key])[None], size=fewer, mode="area")
            d[key] = interpolate(slices, size=size, mode="trilinear", align_corners=False)[0]
        return d


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
