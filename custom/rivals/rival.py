"""What the rivals have in common: a network that takes and gives volumes, and knows what it was trained for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from custom.networks.weights import CARD, write_card
from custom.utils.intensity_scales import PERCENTILE, SCALE_KEY, scale_number
from custom.utils.modalities import canonical

__all__ = ["ALL_PAIRS", "Rival", "as_pair", "scored_pairs"]

ALL_PAIRS = "all"


def as_pair(pair: str | Sequence[str] | None, modalities: Sequence[str]) -> tuple[str, str] | None:
    """Source and target as canonical names; None for all pairs.

    Args:
        pair: ``"t1,t2"``, a list of both, or ``"all"`` or None.
        modalities: the vocabulary.

    Raises:
        ValueError: for anything but two different modalities of the vocabulary.
    """
    if pair is None or (isinstance(pair, str) and pair.strip().lower() == ALL_PAIRS):
        return None
    names = [canonical(name) for name in (pair.split(",") if isinstance(pair, str) else pair)]
    known = [canonical(name) for name in modalities]
    if len(names) != 2 or names[0] == names[1] or any(name not in known for name in names):
        raise ValueError(
            f"pair: expected a source and another target of {', '.join(known)}, such as t1,t2, or all; found {pair!r}. "
            "Correct it, or use a data set that has both."
        )
    return names[0], names[1]


def scored_pairs(pair: str | Sequence[str] | None, modalities: Sequence[str]) -> list[tuple[str, str]] | None:
    """The pairs to evaluate of a network that is trained for ``pair``: that one, or None for all; see ``as_pair``."""
    found = as_pair(pair, modalities)
    return None if found is None else [found]


class Rival(nn.Module):
    """Base of the comparison methods: one source to one target, or every pair where the target is an input.

    ``forward`` takes and gives volumes as a ``LatentTranslator`` does, so that every client can use it. A method of two
    dimensions translates axial slices. A slice or volume without tissue is left background, as a normalisation has
    nothing to go by there. Inputs are padded with background to a size that the network can take, the result is cut
    back.

    The state dict holds, beside the weights, a *card*: what method this is and how it was built, see
    ``custom.networks.weights.read_card``.

    Args:
        modalities: the vocabulary, in order.
        pair: source and target, see ``as_pair``.
        method: name of the method.
        spatial_dims: 2 or 3.
        divisor: what the network's sides must be divisible by.
        smallest: sides that it takes at least.
        intensity_scale: of the images that it is trained on and takes, as for a ``LatentTranslator``.
        settings: further arguments of the class, for the card.

    Raises:
        ValueError: for a ``pair`` that is none, or ``"all"`` of a method that cannot be told the target.
    """

    every_pair = False  # whether the method can be told the target
    num_inference_steps = 1  # as a report asks every network

    def __init__(
        self,
        modalities: Sequence[str],
        pair: str | Sequence[str] | None,
        *,
        method: str,
        spatial_dims: int,
        divisor: int,
        smallest: int = 1,
        intensity_scale: str = PERCENTILE,
        settings: Mapping[str, Any],
    ) -> None:
        super().__init__()
        names = [canonical(name) for name in modalities]
        found = as_pair(pair, names)
        if found is None and not self.every_pair:
            raise ValueError(
                f"pair: expected a source and a target of {', '.join(names)}, as {method} translates one contrast into "
                f"one other; found {pair!r}. Train one network for each pair."
            )
        self.method = method
        self.spatial_dims = spatial_dims
        self.num_modalities = len(names)
        self.spatial_divisor = 1  # it pads by itself
        self.divisor = divisor
        self.smallest = smallest
        self.planes = 0 if found else len(names)
        self.source = names.index(found[0]) if found else -1
        self.target = names.index(found[1]) if found else -1
        self.default_target = max(self.target, 0)
        task = f"{method}, {found[0]} to {found[1]}" if found else f"{method}, all pairs"
        self.one_source = f"image: expected one source (B, 1, H, W, D) for {task}; found another shape or several."
        self.other_target = (
            f"target: expected {names[self.target]}, the only one that these weights were trained for ({task}); found "
            "another. Ask for it, or train a network for the other pair."
        )
        card = {
            "target": f"custom.rivals.{type(self).__name__}",
            "method": method,
            "arguments": {"modalities": names, "pair": found, "intensity_scale": intensity_scale, **settings},
        }
        self.card: Tensor
        self.register_buffer(CARD, write_card(card))
        self.register_buffer(SCALE_KEY, torch.tensor(scale_number(intensity_scale)))

    def forward(self, image: Tensor, target: Tensor | None = None) -> Tensor:
        """Translate a batch.

        Args:
            image: sources (B, 1, H, W, D) in [-1, 1], background -1, of any size.
            target: modality indices (B,) int64; the trained one where it is not given.

        Returns:
            The translations, of the shape of ``image``, in [-1, 1].

        Raises:
            ValueError: for several sources, or a target that it was not trained for.
        """
        if image.ndim != 5 or image.shape[1] != 1:
            raise ValueError(self.one_source)
        if target is None:
            target = torch.full([image.shape[0]], self.default_target, dtype=torch.long, device=image.device)
        if self.target >= 0 and bool((target != self.target).any()):
            raise ValueError(self.other_target)
        if self.spatial_dims == 3:
            return torch.where(image.amax([1, 2, 3, 4], keepdim=True) > -1.0, self.translate(image, target), -1.0)
        return self.translate_slices(image, target)

    def translate_slices(self, image: Tensor, target: Tensor) -> Tensor:
        """``translate`` of every axial slice that shows tissue.

        What MONAI's ``SliceInferer`` does, in operations that TorchScript knows, and without the empty slices.
        """
        b, _, h, w, d = image.shape
        slices = image.permute(0, 4, 1, 2, 3).reshape(b * d, 1, h, w)
        targets = target.repeat_interleave(d)
        result = torch.full_like(slices, -1.0)
        shown = (slices.flatten(1).amax(1) > -1.0).nonzero().flatten()
        for some in shown.split(32):  # the paper's batch
            result[some] = self.translate(slices[some], targets[some]).to(result.dtype)
        return result.view(b, d, 1, h, w).permute(0, 2, 3, 4, 1)

    def translate(self, image: Tensor, target: Tensor) -> Tensor:
        """Translations (N, 1, *spatial) of images of the method's own dimensions; ``target`` (N,)."""
        padding = self.padding(image)
        padded = F.pad(image, padding, value=-1.0)
        return self.cut(self.generate(self.conditioned(padded, target)), padding)

    def generate(self, x: Tensor) -> Tensor:
        """What the network makes of padded images, and planes of the target where there are some."""
        raise NotImplementedError

    def conditioned(self, image: Tensor, target: Tensor) -> Tensor:
        """``image`` (N, 1, *spatial) with a plane for each modality, 1 for the target's, where it must be told."""
        if self.planes == 0:
            return image
        planes = F.one_hot(target, self.planes).to(image.dtype)
        planes = planes.view([image.shape[0], self.planes] + [1] * (image.ndim - 2))
        return torch.cat([image, planes * torch.ones_like(image)], dim=1)

    def padding(self, image: Tensor) -> list[int]:
        """For ``F.pad``, last axis first."""
        found: list[int] = []
        for axis in range(image.ndim - 1, 1, -1):
            n = image.shape[axis]
            spare = max((n + self.divisor - 1) // self.divisor * self.divisor, self.smallest) - n
            found.append(spare // 2)
            found.append(spare - spare // 2)
        return found

    def cut(self, image: Tensor, padding: list[int]) -> Tensor:
        """``image`` without the ``padding``."""
        for i in range(len(padding) // 2):
            axis = image.ndim - 1 - i
            start = padding[2 * i]
            image = image.narrow(axis, start, image.shape[axis] - start - padding[2 * i + 1])
        return image

    def make_discriminator(self) -> nn.Module:
        """The opponent that this network is trained against."""
        raise NotImplementedError
