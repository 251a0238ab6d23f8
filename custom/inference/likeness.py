"""Whether a scan is like those that the weights were trained with, by the range of a few numbers kept with the weights.

A network answers to every input, also to one of a kind that it has never seen, and its image looks no less plausible
for that. So the range of ``custom.data.features`` over the training scans goes with the weights (the buffer
``training_range`` of the ``LatentTranslator``), and a scan outside it is translated with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from custom.data.features import FEATURES, FEATURES_KEY
from custom.data.preprocessing import preprocessing
from custom.data.scans import is_synthetic
from custom.networks import LatentTranslator
from custom.utils.distributed import is_main, rank, smallest, world_size
from custom.utils.errors import user_message
from custom.utils.intensity_scales import INTENSITY_SCALES, PERCENTILE

__all__ = ["Doubt", "doubts", "measure_scans", "measure_training_range", "unlike_training"]

logger = logging.getLogger(__name__)

NOTHING_KNOWN = (
    "The weights tell nothing of the scans that they were trained with, so whether a scan is like them is not checked. "
    "python -m custom measure-range DATASET WEIGHTS writes it into them."
)
MOST_SCANS = 256  # that are measured of a large data set, evenly chosen: each takes about half a second
# A scan is taken for unlike only where it lies beyond the range by a share of its width and of its bounds: few training
# scans do not show how wide the range is, and none of equal voxels how much another size matters.
SPARE_OF_WIDTH = 0.5
SPARE_OF_BOUND = 0.15


class Doubt(NamedTuple):
    """In what a scan is unlike those of the training.

    Attributes:
        what: name of the number, or what the scan is.
        numbers: its own and the training's; empty where it is none.
        remedy: what to do about it.
    """

    what: str
    numbers: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what} {self.numbers}".rstrip()


def measure_scans(
    data: Sequence[Mapping[str, Any]], modalities: Sequence[str], intensity_scale: str = PERCENTILE
) -> Tensor:
    """Least and largest of every number of ``custom.data.features`` over a data set's scans, (2, F) float32.

    Of more than ``MOST_SCANS`` evenly chosen ones are read; several processes share them. A scan that cannot be read is
    passed over with a warning.

    Args:
        data: datalist entries of the training section.
        modalities: the vocabulary.
        intensity_scale: of the weights.

    Raises:
        ValueError: if none can be read.
    """
    images = [str(entry[modality]) for entry in data for modality in modalities if modality in entry]
    chosen = images[:: -(-len(images) // MOST_SCANS) or 1]
    read = preprocessing("image", intensity_scale=intensity_scale, measure=True)
    bounds = torch.full((2, len(FEATURES)), torch.inf)  # of the numbers and of their negatives
    for image in tqdm(chosen[rank() :: world_size()], "measuring scans", unit="scan", disable=not is_main()):
        try:
            [found] = read({"image": image})["image"].meta[FEATURES_KEY]
        except Exception as error:
            logger.warning("%s; not measured.", user_message(error, default=image))
            continue
        bounds = torch.minimum(bounds, torch.stack([found, -found]))
    low, high = smallest(bounds) * torch.tensor([[1.0], [-1.0]])
    if not low.isfinite().all():
        raise ValueError(f"images: expected scans to measure; found none that can be read among {len(chosen)}.")
    return torch.stack([low, high])


def measure_training_range(
    network: LatentTranslator, data: Sequence[Mapping[str, Any]], modalities: Sequence[str]
) -> None:
    """Set ``network.training_range`` to ``measure_scans``, the same on every process."""
    scale = INTENSITY_SCALES[int(network.intensity_scale)]
    network.training_range.copy_(measure_scans(data, modalities, scale))


def unlike_training(features: Tensor, training_range: Tensor) -> list[Doubt]:
    """In what a scan is unlike the training scans.

    Args:
        features: (F,) of ``custom.data.features``.
        training_range: (2, F) of ``measure_scans``.
    """
    low, high = training_range.cpu()
    width = SPARE_OF_WIDTH * (high - low)
    lowest, highest = low - width - SPARE_OF_BOUND * low.abs(), high + width + SPARE_OF_BOUND * high.abs()
    found = []
    for number, (feature, value, least, most) in enumerate(zip(FEATURES, features, low, high, strict=True)):
        remedy = feature.low if value < lowest[number] else feature.high if value > highest[number] else ""
        if remedy:
            numbers = f"{_told(value)} {feature.unit}, in training {_told(least)} to {_told(most)}"
            found.append(Doubt(feature.name, numbers, remedy))
    return found


def doubts(source: str | None, features: Tensor | None, network: Any) -> list[Doubt]:
    """What makes a translation doubtful, logged in one line: a source unlike the training scans, or itself synthetic.

    Args:
        source: file that is translated, None for an image in memory.
        features: of it, None where it was not measured.
        network: that translates; one whose weights tell no range is said once, and nothing is checked.
    """
    found = []
    if source and is_synthetic(source):
        found.append(Doubt("synthetic itself", "", "Translate the scan that it was made from"))
    known = getattr(network, "training_range", None)
    if features is not None and known is not None and known.any():
        found += unlike_training(features, known)
    elif features is not None:
        _say_once(NOTHING_KNOWN)
    if found:
        advice = ". ".join(dict.fromkeys(doubt.remedy for doubt in found))
        logger.warning("%s: unlike the scans of the training, so its translation may be wrong: %s. %s.",
                       source or "image", "; ".join(map(str, found)), advice)  # fmt: skip
    return found


def _told(value: Tensor) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@cache
def _say_once(message: str) -> None:
    logger.warning(message)
