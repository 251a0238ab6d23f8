"""Files of checkpoints: written whole, read where they are undamaged."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from custom.networks.weights import load_tensors
from custom.utils.files import atomic_write

__all__ = ["BEST", "LAST", "PREVIOUS", "Checkpoint", "copied", "read_checkpoint", "write_atomically"]

BEST, LAST, PREVIOUS = "best.pt", "last.pt", "last_previous.pt"


class Checkpoint(NamedTuple):
    """What a checkpoint holds, where it was read, and what is wrong with a later one."""

    state: Any
    path: Path
    fault: str = ""


def read_checkpoint(folder: Path) -> Checkpoint:
    """The last checkpoint of a stage; the one before it where that is damaged or missing.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if all are damaged.
    """
    faults: list[str] = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.is_file():
            continue
        try:
            state = load_tensors(path, expected="tensors and numbers", remedy="Start without --resume")
            return Checkpoint(state, path, " ".join(faults))
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError(" ".join(faults))
    raise FileNotFoundError(
        f"{folder / LAST}: expected the checkpoint of an earlier run; found no file. Start without --resume, "
        "or give the output_dir of that run."
    )


def write_atomically(state: Mapping[str, Any], path: str | Path, former: Path | None = None) -> None:
    """``torch.save`` of a dictionary to ``path``, which appears whole or not at all, also where the power fails.

    Args:
        state: tensors and numbers.
        path: of the file.
        former: where the file that is replaced goes.
    """
    with atomic_write(path) as temporary:
        torch.save(dict(state), temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if former is not None and Path(path).is_file():
            Path(path).replace(former)


def copied(state: Any) -> Any:
    """A copy in the memory of the CPU, which further steps do not change."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: copied(value) for key, value in state.items()}
    return type(state)(map(copied, state)) if isinstance(state, list | tuple) else state
