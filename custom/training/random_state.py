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
    holders = {path: item for path, item in _randomizables(owner) if "R" in vars(item)}
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": _pack(np.random.get_state(legacy=True)),
        "transforms": {path: _pack(item.R.get_state(legacy=True)) for path, item in holders.items()},
    }


def restore_random_state(state: dict[str, Any], owner: object = None) -> None:
    """Undo whatever was drawn since ``random_state(owner)`` gave ``state``.

    Raises:
        ValueError: if ``owner`` does not hold the transforms that it held.
    """
    items = dict(_randomizables(owner))
    missing = [path for path in state["transforms"] if path not in items]
    if missing:
        raise ValueError(
            f"random state: expected a random transform at {', '.join(missing)}; found none. Resume with the "
            "transforms that the run started with."
        )
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(_unpack(state["numpy"]))
    for path, packed in state["transforms"].items():
        items[path].R = np.random.RandomState()
        items[path].R.set_state(_unpack(packed))


def _randomizables(
    owner: object, path: str = "data", seen: set[int] | None = None
) -> Iterator[tuple[str, Randomizable]]:
    """Everything below ``owner`` that may hold a generator of its own, by path; some get theirs only in use."""
    seen = set() if seen is None else seen
    if id(owner) in seen or not isinstance(owner, WALKED):
        return
    seen.add(id(owner))
    if isinstance(owner, Randomizable):
        yield path, owner
    members = enumerate(owner) if isinstance(owner, (list, tuple)) else vars(owner).items()
    for name, member in members:
        yield from _randomizables(member, f"{path}.{name}", seen)


def _pack(state: Any) -> list[Any]:
    name, keys, *rest = state
    return [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest]


def _unpack(packed: list[Any]) -> tuple:
    name, keys, *rest = packed
    return (name, keys.numpy().astype(np.uint32), *rest)
