"""Drawing modalities and pairs of modalities from what a subject has."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform

from custom.data.layouts import SUBJECT_KEY
from custom.utils.distributed import share_of_rank

__all__ = ["RandModalityPaird", "RandModalityd", "check_pairable", "single_images", "translation_pairs"]


def check_pairable(number: int, where: str) -> None:
    """A source and a target are needed.

    Raises:
        ValueError: if ``number`` of modalities is below two.
    """
    if number < 2:
        raise ValueError(
            f"{where}: expected two or more modalities, a source and a target; found {number}. Add a file, or remove "
            "the subject from the datalist."
        )


class _RandPresent(RandomizableTransform, MapTransform):
    """Base of the transforms that draw among the modalities that a subject has.

    Args:
        keys: the vocabulary, in order.
    """

    def __init__(self, keys: KeysCollection) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys=True)
        RandomizableTransform.__init__(self, 1.0)

    def present(self, data: Mapping[Hashable, Any]) -> list[int]:
        """Positions in the vocabulary of the modalities of ``data``."""
        self.randomize(None)
        return [i for i, key in enumerate(self.keys) if key in data]


class RandModalityd(_RandPresent):
    """Draws one of the modalities that a subject has and puts it under ``image``; drops the others."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        present = self.present(data)
        return {"image": data[self.keys[present[self.R.randint(len(present))]]], **_of_subject(data)}


class RandModalityPaird(_RandPresent):
    """Draws a source and another modality as target: ``image``, ``label``, ``source_modality``, ``target_modality``."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        present = self.present(data)
        check_pairable(len(present), f"subject {data.get('subject', '')}".strip())
        source, target = (int(i) for i in self.R.choice(present, size=2, replace=False))
        return {
            "image": data[self.keys[source]],
            "label": data[self.keys[target]],
            "source_modality": torch.tensor(source),
            "target_modality": torch.tensor(target),
            **_of_subject(data),
        }


def _of_subject(data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
    """The subject's name, by which an error says where it came from; nothing where it has none."""
    return {SUBJECT_KEY: data[SUBJECT_KEY]} if SUBJECT_KEY in data else {}


def single_images(entries: Sequence[Mapping[str, Any]], modalities: Sequence[str]) -> list[dict[str, Any]]:
    """Every modality of every subject as an entry of its own, ``{"subject", "image"}``, for validation.

    In several processes: this one's share.
    """
    return share_of_rank([{"subject": e["subject"], "image": e[m]} for e in entries for m in modalities if m in e])


def translation_pairs(entries: Sequence[Mapping[str, Any]], modalities: Sequence[str]) -> list[dict[str, Any]]:
    """One fixed pair for each modality of each subject, for validation: each source with the next target in turn.

    In several processes: this one's share.

    Args:
        entries: datalist entries.
        modalities: the vocabulary.

    Returns:
        Entries ``{"subject", "image", "label", "target_modality"}`` with paths under ``image`` and ``label``.

    Raises:
        ValueError: for a subject with fewer than two modalities.
    """
    pairs = []
    for n, entry in enumerate(entries):
        present = [i for i, m in enumerate(modalities) if m in entry]
        check_pairable(len(present), f"subject {entry['subject']}")
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
    return share_of_rank(pairs)
