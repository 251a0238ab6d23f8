"""Drawing modalities and pairs of modalities from what a subject has."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform

__all__ = ["RandModalityPaird", "RandModalityd", "single_images", "translation_pairs"]


class RandModalityd(RandomizableTransform, MapTransform):
    """Draws one of the modalities that a subject has and puts it under ``image``; drops the others.

    Args:
        keys: the vocabulary, in order.
    """

    def __init__(self, keys: KeysCollection) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys=True)
        RandomizableTransform.__init__(self, 1.0)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        present = [k for k in self.keys if k in data]
        self.randomize(None)
        return {"image": data[present[self.R.randint(len(present))]]}


class RandModalityPaird(RandomizableTransform, MapTransform):
    """Draws a source and another modality as target: ``image``, ``label``, ``source_modality``, ``target_modality``.

    Args:
        keys: the vocabulary, in order.
    """

    def __init__(self, keys: KeysCollection) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys=True)
        RandomizableTransform.__init__(self, 1.0)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        present = [i for i, k in enumerate(self.keys) if k in data]
        self.randomize(None)
        source, target = self.R.choice(present, size=2, replace=False)
        return {
            "image": data[self.keys[source]],
            "label": data[self.keys[target]],
            "source_modality": torch.tensor(source),
            "target_modality": torch.tensor(target),
        }


def single_images(entries: Sequence[Mapping[str, Any]], modalities: Sequence[str]) -> list[dict[str, Any]]:
    """Every modality of every subject as an entry of its own, ``{"subject", "image"}``, for validation."""
    return [{"subject": e["subject"], "image": e[m]} for e in entries for m in modalities if m in e]


def translation_pairs(entries: Sequence[Mapping[str, Any]], modalities: Sequence[str]) -> list[dict[str, Any]]:
    """One fixed pair for each modality of each subject, for validation: each source with the next target in turn.

    Args:
        entries: datalist entries.
        modalities: the vocabulary.

    Returns:
        Entries ``{"subject", "image", "label", "target_modality"}`` with paths under ``image`` and ``label``.
    """
    pairs = []
    for n, entry in enumerate(entries):
        present = [i for i, m in enumerate(modalities) if m in entry]
        for i, source in enumerate(present):
            target = present[(i + 1 + n % (len(present) - 1)) % len(present)]
            pairs.append(
                {
                    "subject": entry["subject"],
                    "image": entry[modalities[source]],
                    "label": entry[modalities[target]],
                    "target_modality": target,
                }
            )
    return pairs
