"""Pictures of a subject that an evaluation keeps: slices at full resolution, and small volumes to scroll.

Volumes are arrays (X, Y, Z) in RAS order with values in [0, 1]; they are kept as uint8.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import interpolate

from custom.evaluation.arrays import write_arrays
from custom.evaluation.slices import axial, sagittal

__all__ = ["TRUTH", "VIEWER_SPACING", "Key", "Pictures", "Slices", "Stamp", "quantised", "resized"]

VIEWER_SPACING = 1.5  # mm: a head is then about 110 × 130 × 100 voxels
TRUTH = "truth"

Key = tuple[str, str, str]  # method (or TRUTH), source, target


class Slices(NamedTuple):
    """The axial and the sagittal slice (rows, columns) of a volume as they are shown."""

    axial: np.ndarray
    sagittal: np.ndarray


class Stamp(NamedTuple):
    """Where a subject's slices are: the voxel, and the voxel's size in mm."""

    position: tuple[int, int, int]
    spacing: tuple[float, float, float]


class Pictures:
    """The slices and small volumes of one subject, and its lesion in the slices.

    Args:
        stamp: the slices' place.
        viewer_spacing: voxel size (mm) of the small volumes; never finer than the scan's own.
    """

    def __init__(self, stamp: Stamp, *, viewer_spacing: float = VIEWER_SPACING) -> None:
        self.stamp = stamp
        self.viewer_spacing = tuple(max(viewer_spacing, mm) for mm in stamp.spacing)
        self.slices: dict[Key, Slices] = {}
        self.volumes: dict[Key, np.ndarray] = {}
        self.lesion: Slices | None = None

    def add(self, key: Key, volume: np.ndarray, *, scroll: bool) -> None:
        """Keep the slices of ``volume``, and a small copy of all of it if it is to be scrolled through."""
        self.slices[key] = Slices(*(quantised(s) for s in self._cut(volume)))
        if scroll:
            factor = [mm / small for mm, small in zip(self.stamp.spacing, self.viewer_spacing, strict=True)]
            self.volumes[key] = quantised(resized(volume, factor))

    def add_lesion(self, mask: np.ndarray) -> None:
        """Keep the slices of the lesion's mask."""
        self.lesion = Slices(*(s.astype(np.uint8) for s in self._cut(mask)))

    def viewer_position(self) -> tuple[int, int, int]:
        """The slices' place in the small volumes."""
        pairs = zip(self.stamp.position, self.stamp.spacing, self.viewer_spacing, strict=True)
        x, y, z = (int((i + 0.5) * mm / small) for i, mm, small in pairs)
        return x, y, z

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a ``.npz`` file (arrays only, nothing pickled), whole or not at all."""
        arrays = {
            "position": np.array(self.stamp.position),
            "spacing": np.array(self.stamp.spacing),
            "viewer_spacing": np.array(self.viewer_spacing),
        }
        for key, slices in {**self.slices, **({("lesion", "", ""): self.lesion} if self.lesion else {})}.items():
            arrays |= {_name(key, plane): image for plane, image in slices._asdict().items()}
        arrays |= {_name(key, "volume"): volume for key, volume in self.volumes.items()}
        write_arrays(path, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Pictures:
        """Read what :meth:`save` wrote."""
        with np.load(Path(path), allow_pickle=False) as file:
            arrays = dict(file.items())
        stamp = Stamp(tuple(arrays.pop("position").tolist()), tuple(arrays.pop("spacing").tolist()))
        pictures = cls(stamp)
        pictures.viewer_spacing = tuple(arrays.pop("viewer_spacing").tolist())
        planes: dict[Key, dict[str, np.ndarray]] = {}
        for name, image in arrays.items():
            *key, plane = name.split("|")
            planes.setdefault(tuple(key), {})[plane] = image
        for key, images in planes.items():
            if "volume" in images:
                pictures.volumes[key] = images.pop("volume")
            if key[0] == "lesion":
                pictures.lesion = Slices(**images)
            else:
                pictures.slices[key] = Slices(**images)
        return pictures

    def _cut(self, volume: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, _, z = self.stamp.position
        return axial(volume, z), sagittal(volume, x)


def quantised(image: np.ndarray) -> np.ndarray:
    """Values of [0, 1] in 256 steps, uint8."""
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


def resized(volume: np.ndarray, factors: list[float]) -> np.ndarray:
    """``volume``, its sizes multiplied by ``factors`` of at most 1; each new voxel is the mean of those it covers."""
    size = [max(round(n * f), 1) for n, f in zip(volume.shape, factors, strict=True)]
    tensor = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))
    return interpolate(tensor[None, None], size=size, mode="area")[0, 0].numpy()


def _name(key: Key, plane: str) -> str:
    return "|".join((*key, plane))
