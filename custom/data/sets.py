"""The sources of one subject as one image: brought to one grid and put side by side, a channel each.

A file with several volumes is no such set, and stays refused: see ``custom.data.transforms.ValidateVolumed``.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from monai.utils import ImageMetaKey, convert_to_dst_type
from nibabel.orientations import aff2axcodes

from custom.data.grids import describe_grid, same_grid
from custom.data.readers import IMAGE_SUFFIXES
from custom.data.registration import Quality, place

__all__ = [
    "DISAGREEMENT_KEY",
    "REGISTERED_KEY",
    "SOURCES_KEY",
    "as_set",
    "beside",
    "check_one_volume",
    "disagreement",
    "members_of",
    "on_members",
    "registered_of",
    "source_name",
    "sources_of",
    "times",
]

logger = logging.getLogger(__name__)

SOURCES_KEY = "sources"  # of the metadata of a set: JSON, where each member comes from
REGISTERED_KEY = "registered"  # of the metadata of a set: JSON, which members were moved to another's grid, and how far
DISAGREEMENT_KEY = "disagreement"  # of the metadata of a set: what is told of brains that do not lie in one place
# of two masks of one head. BraTS' contrasts have 0.97 or more, a head and its stripped brain about 0.7
LEAST_DICE = 0.8
SAME_VOLUME = 3  # decimals of a voxel's volume in mm³, to which two grids are as fine as each other

REGISTER = (
    "python -c \"from custom.preparation.registration import register; register('{}', '{}', suffix='_registered')\""
)


def source_name(image: Any, default: Any = "image") -> str:
    """The file that an image was read from, or ``default``."""
    return str(getattr(image, "meta", {}).get(ImageMetaKey.FILENAME_OR_OBJ, default))


def times(shape: Sequence[int]) -> str:
    """A size for a message."""
    return "×".join(map(str, shape))


def check_one_volume(image: torch.Tensor, name: str) -> None:
    """Refuse what is not one 3D volume with one channel, (1, H, W, D).

    Raises:
        ValueError: naming the file and what it holds.
    """
    if image.ndim != 4 or image.shape[0] != 1:
        several = f"{image.shape[0]} volumes or channels of {times(image.shape[1:])} voxels"
        found = several if image.ndim == 4 else f"an image with {image.ndim - 1} dimensions ({times(image.shape[1:])})"
        raise ValueError(
            f"{name}: expected one 3D volume with one channel; found {found}. "
            "Save the volume or channel to translate as a file of its own."
        )


def as_set(volumes: Sequence[MetaTensor], *, align: bool = False) -> MetaTensor:
    """One image of the sources of a subject, in their order.

    They get the grid, the order of axes and the metadata of the finest of them, the first by name of equally fine ones.

    Args:
        volumes: as ``read_volume`` gives them.
        align: register rigidly those that lie on another grid; otherwise they are refused.

    Returns:
        (S, H, W, D), with the origin of each under ``SOURCES_KEY`` of the metadata, and what was registered under
        ``REGISTERED_KEY``.

    Raises:
        ValueError: for no volume, several in one file, two with one content, or grids that differ.
    """
    names = [source_name(volume, f"source {number}") for number, volume in enumerate(volumes, 1)]
    for volume, name in zip(volumes, names, strict=True):
        check_one_volume(volume, name)
    _check_contents(volumes, names)
    first = min(range(len(volumes)), key=lambda i: (round(abs(_determinant(volumes[i])), SAME_VOLUME), names[i]))
    reference, codes = volumes[first], "".join(aff2axcodes(volumes[first].affine.numpy()))
    members: list[torch.Tensor] = []
    registered: list[dict[str, Any]] = []
    for volume, name in zip(volumes, names, strict=True):
        turned = volume if volume is reference else Orientation(axcodes=codes, labels=None)(volume)
        assert isinstance(turned, MetaTensor)
        member, quality = _on_grid(turned, reference, name, names[first], align=align)
        members.append(member)
        if quality is not None:
            registered.append(_motion(name, names[first], quality))
    image = MetaTensor(torch.cat(members), meta=dict(reference.meta))
    registered.sort(key=itemgetter("Source"))  # the order of the sources changes nothing
    image.meta |= {SOURCES_KEY: json.dumps(names), REGISTERED_KEY: json.dumps(registered)}
    return image


def beside(path: str | os.PathLike[str], names: str) -> list[str]:
    """An image and those that are named with commas, of the same folder, in the order of their names.

    Args:
        path: of a file, or of a folder with a DICOM series.
        names: of others there, with or without the suffix of an image.

    Raises:
        FileNotFoundError: for a name that nothing there has.
        ValueError: for what is no name but a path.
    """
    found = {Path(path).name: str(path)}
    for name in filter(None, map(str.strip, names.split(","))):
        if Path(name).name != name:
            raise ValueError(f"sources: expected names of scans beside the image; found {name!r}. Leave folders out.")
        files = [file for suffix in ("", *IMAGE_SUFFIXES) if (file := Path(path).with_name(name + suffix)).exists()]
        if not files:
            raise FileNotFoundError(
                f"sources: expected scans beside {Path(path).name}, with commas between their names; found no {name}. "
                "Correct the name."
            )
        found[files[0].name] = str(files[0])
    return [found[name] for name in sorted(found)]


def _determinant(volume: MetaTensor) -> float:
    return float(np.linalg.det(volume.affine.numpy()[:3, :3]))


def _check_contents(volumes: Sequence[MetaTensor], names: Sequence[str]) -> None:
    for a, b in combinations(range(len(volumes)), 2):
        if torch.equal(volumes[a].as_tensor(), volumes[b].as_tensor()):
            raise ValueError(
                f"{names[b]}: expected another scan than {names[a]}; found the same content. Leave one out, or correct "
                "the path."
            )


def _on_grid(
    volume: MetaTensor, reference: MetaTensor, name: str, fixed: str, *, align: bool
) -> tuple[torch.Tensor, Quality | None]:
    """``volume`` (1, H, W, D) on the grid of ``reference``, and of what was registered how well it lies."""
    one, other = ((v.shape[1:], v.affine.numpy()) for v in (volume, reference))
    if same_grid(*one, *other):
        return volume.as_tensor(), None
    if not align:
        raise ValueError(
            f"{name}: expected the sources of a subject on one grid; found {describe_grid(*one)} beside "
            f"{describe_grid(*other)} of {fixed}. Add --align true (align=True in Python), which registers it on the "
            f"way, or register it once, look at it and name the new file: {REGISTER.format(name, fixed)}"
        )
    placed = place(volume, reference)
    logger.warning(
        "%s: registered to the grid of %s: moved by %.1f mm and %.1f°; mutual information %.3f bits before, %.3f after",
        name, fixed, placed.quality.shift, placed.quality.rotation, placed.quality.information_before,
        placed.quality.information_after,
    )  # fmt: skip
    return torch.from_numpy(placed.image.astype(np.float32))[None], placed.quality


def _motion(name: str, fixed: str, quality: Quality) -> dict[str, Any]:
    """For a reader: which scan was moved to whose grid, how far (mm at the centre of the brain, degrees)."""
    return {
        "Source": Path(name).name,
        "To": Path(fixed).name,
        "ShiftMillimetres": round(quality.shift, 2),
        "RotationDegrees": round(quality.rotation, 2),
    }


def registered_of(meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The members of a set that were registered on the way, by its metadata."""
    return json.loads(meta.get(REGISTERED_KEY, "[]"))


def sources_of(meta: Mapping[str, Any]) -> list[str]:
    """Where the members of a set come from, by its metadata; of an image that is no set its one file, if it has one."""
    if SOURCES_KEY in meta:
        return [str(name) for name in json.loads(meta[SOURCES_KEY])]
    name = meta.get(ImageMetaKey.FILENAME_OR_OBJ)
    return [os.fspath(name)] if name and isinstance(name, str | os.PathLike) else []


def members_of(image: torch.Tensor) -> list[torch.Tensor]:
    """The members (1, H, W, D) of a set, each with its own origin in the metadata; another image is its one member."""
    if not isinstance(image, MetaTensor) or SOURCES_KEY not in image.meta:
        return [image]
    names = sources_of(image.meta)
    return [
        MetaTensor(channel[None], meta={**image.meta, ImageMetaKey.FILENAME_OR_OBJ: name})
        for channel, name in zip(image.as_tensor(), names, strict=True)
    ]


def on_members(function: Callable[..., torch.Tensor], image: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    """``function`` of each member of a set and its channel of ``others``, put side by side again."""
    members = members_of(image)
    if len(members) == 1:
        return function(image, *others)
    channels = zip(*(other.split(1) for other in others), strict=True) if others else [()] * len(members)
    done = [function(member, *given) for member, given in zip(members, channels, strict=True)]
    # plain tensors, as the result takes what was done to the image so far from nowhere else
    plain = [result.as_tensor() if isinstance(result, MetaTensor) else result for result in done]
    return convert_to_dst_type(torch.cat(plain), dst=image, dtype=plain[0].dtype)[0]


def disagreement(masks: torch.Tensor, names: Sequence[str]) -> str:
    """What is told of masks of one head that do not lie in one place; nothing of those that do.

    Args:
        masks: (S, H, W, D), boolean.
        names: of the S sources.
    """
    dice = {
        (names[a], names[b]): float(2 * (masks[a] & masks[b]).sum() / (masks[a].sum() + masks[b].sum()).clamp(min=1))
        for a, b in combinations(range(len(masks)), 2)
    }
    worst = min(dice, key=lambda pair: dice[pair], default=None)
    if worst is None or dice[worst] >= LEAST_DICE:
        return ""
    one, other = (name.rstrip("/").rpartition("/")[2] for name in worst)
    return f"the brains of {one} and {other} overlap by a Dice of {dice[worst]:.2f}, of one head {LEAST_DICE} or more"
