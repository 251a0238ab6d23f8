"""Files of arrays that an evaluation keeps."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from custom.utils.files import atomic_write

__all__ = ["write_arrays"]


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed ``.npz`` file of numbers and strings, whole or not at all."""
    save: Any = np.savez_compressed  # given ``allow_pickle``, NumPy before 2.1 takes it for an array
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        save(file, **arrays)
