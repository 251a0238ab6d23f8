"""Every random generator that a training draws from, saved and restored as tensors and numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable, Transform
from torch.utils.data import Dataset

__all__ = ["random_state", "restore_random_state"]

WALKED = (Dataset, Transform, Randomizable, list, tuple)


def random_state(owner: object = None) -> dict[str, Any]:
    """State of the generators of torch, NumPy and Python, and of those that MONAI's transforms below ``owner`` hold.

    Args:
        owner: a data set or a transform; with workers that load data, their generators follow from torch's.

    Returns:
        Tensors and numbers only, so that ``torch.load(..., weights_only=True)`` reads it.
    """
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": _pack(np.random.get_state()),
        "transforms": [_pack(g.get_state()) for g in _generators(owner, set())],
    }


def restore_random_state(state: dict[str, Any], owner: object = None) -> None:
    """Undo whatever was drawn since ``random_state(owner)`` gave ``state``.

    Raises:
        ValueError: if ``owner`` does not hold as many generators as it did.
    """
    generators = list(_generators(owner, set()))
    if len(generators) != len(state["transforms"]):
        raise ValueError(
            f"random state: expected {len(state['transforms'])} random transforms; found {len(generators)}. Resume "
            "with the transforms that the run started with."
        )
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(_unpack(state["numpy"]))
    for generator, saved in zip(generators, state["transforms"], strict=True):
        generator.set_state(_unpack(saved))


def _generators(owner: object, seen: set[int]) -> Iterator[np.random.RandomState]:
    """The instances' own generators in a fixed order, each once."""
    if id(owner) in seen or not isinstance(owner, WALKED):
        return
    seen.add(id(owner))
    members = owner if isinstance(owner, (list, tuple)) else vars(owner).values()
    for member in members:
        if isinstance(member, np.random.RandomState):
            if id(member) not in seen:
                seen.add(id(member))
                yield member
        else:
            yield from _generators(member, seen)


def _pack(state: tuple) -> list[Any]:
    name, keys, *rest = state
    return [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest]


def _unpack(packed: list[Any]) -> tuple:
    name, keys, *rest = packed
    return (name, keys.numpy().astype(np.uint32), *rest)
