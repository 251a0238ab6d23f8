"""What a discriminator needs to see: crops that its strided convolutions leave something of."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["check_crop", "smallest_side"]

MOST_SIDE = 1024  # voxels; a discriminator that needs more along an axis has no crop that memory holds


def check_crop(
    discriminator: nn.Module, name: str, size: Sequence[int], *, start_epoch: int = 0, max_epochs: int = 1
) -> None:
    """Refuse crops that a discriminator cannot judge, before hours have passed until its first epoch.

    Args:
        discriminator: of one volume.
        name: key of the crop, for the message.
        size: voxels of the crop along each axis.
        start_epoch, max_epochs: nothing is refused where it never takes part.

    Raises:
        ValueError: naming the key, and the size that is needed.
    """
    if start_epoch >= max_epochs:
        return
    needed = smallest_side(discriminator)
    if min(size) < needed:
        raise ValueError(
            f"{name}: expected {needed} voxels or more along every axis, as the discriminator halves them; found "
            f"{'×'.join(map(str, size))}. Take larger crops, or --discriminator_def#num_layers_d with fewer layers."
        )


def smallest_side(discriminator: nn.Module) -> int:
    """Voxels that a discriminator of 3D volumes needs along every axis; found by trial, without computing anything.

    Raises:
        ValueError: if it takes no volume at all.
    """
    trial = copy.deepcopy(discriminator).to("meta")
    first = next((m for m in trial.modules() if isinstance(m, nn.Conv3d)), None)
    if first is None:
        return 1
    for side in range(1, MOST_SIDE + 1):
        try:
            trial(torch.empty(1, first.in_channels, side, side, side, device="meta"))
        except (RuntimeError, ValueError):  # of a convolution, and of a normalisation
            continue
        return side
    raise ValueError(
        f"discriminator_def: expected one that takes volumes; found none below {MOST_SIDE}³ that it takes."
    )
