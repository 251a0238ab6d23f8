"""What a result was computed from, as text that changes when it does: files, transforms, weights."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from monai.data import ImageReader
from monai.transforms import LoadImage
from torch import Tensor, nn
from tqdm import tqdm

from custom.utils.distributed import is_main

__all__ = ["FileDigests", "content_digest", "describe", "digest", "weights_digest"]

logger = logging.getLogger(__name__)

PLAIN = (bool, int, float, str, type(None))
AS_TEXT = (PurePath, slice, type, np.generic, np.dtype, torch.dtype, torch.device, Enum)
NO_SETTING = (np.random.RandomState, threading.local)
# headers whose voxels lie in a file beside them
DETACHED = (".mhd", ".nhdr", ".hdr", ".img")
BLOCK_BYTES = 2**22


def digest(item: Any) -> str:
    """SHA-256 of bytes, or of what JSON makes of ``item``."""
    content = item if isinstance(item, bytes) else json.dumps(item, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def weights_digest(modules: Iterable[nn.Module]) -> str:
    """SHA-256 of the structure and the parameters of ``modules``; buffers, which only training reads, do not count."""
    total = hashlib.sha256()
    for module in modules:
        total.update(repr(module).encode())
        for name, parameter in module.named_parameters():
            total.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
            total.update(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def describe(item: Any) -> Any:
    """What ``item``, such as a transform, is and was given, as JSON can hold it: the same in every process.

    Objects are described by class and attributes, functions by name, arrays by digest. What is no setting is left out:
    random generators, what belongs to a thread, and which readers ``LoadImage`` found installed and last read with.
    For classes of this package the code of their module counts too, as a mended transform gives other results.
    """
    return _describe(item, ())


def _describe(item: Any, parents: tuple[int, ...]) -> Any:
    if isinstance(item, PLAIN) and not isinstance(item, Enum):
        return item
    if isinstance(item, AS_TEXT):
        return str(item)
    if isinstance(item, Tensor | np.ndarray):
        values = np.ascontiguousarray(item.detach().cpu() if isinstance(item, Tensor) else item)
        return [str(values.dtype), list(values.shape), digest(values.tobytes())]
    if id(item) in parents:
        return "recursion"
    parents = (*parents, id(item))
    if isinstance(item, Mapping):
        return {str(key): _describe(value, parents) for key, value in item.items()}
    if isinstance(item, set | frozenset):
        return sorted(json.dumps(_describe(value, parents), sort_keys=True) for value in item)
    if isinstance(item, Sequence | deque):
        return [_describe(value, parents) for value in item]
    if inspect.isroutine(item):
        return f"{item.__module__}.{item.__qualname__}"
    return _describe_object(item, parents)


def _describe_object(item: Any, parents: tuple[int, ...]) -> dict[str, Any]:
    kind = type(item)
    members = {name: v for name, v in getattr(item, "__dict__", {}).items() if not isinstance(v, NO_SETTING)}
    if isinstance(item, LoadImage) and item.auto_select:
        del members["readers"]
    if isinstance(item, ImageReader):
        members.pop("filenames", None)
    described = {name: _describe(value, parents) for name, value in sorted(members.items())}
    package = __name__.partition(".")[0]
    if kind.__module__.partition(".")[0] == package:
        described["code"] = _code_digest(inspect.getfile(kind))
    return {"class": f"{kind.__module__}.{kind.__qualname__}", **described}


@cache
def _code_digest(file: str) -> str:
    return digest(Path(file).read_bytes())


class FileDigests:
    """SHA-256 of files, remembered by path, size and times, so that an unchanged file is read once.

    The content decides: a data set that was moved, copied or touched keeps its digests, and a file that was replaced
    gets another. What is remembered is trusted while size, modification and status-change time are the same, as git
    does it. The memory is a file of JSON lines that are only ever appended, so several processes can share it; a line
    that was cut short is not used.

    Args:
        memory: the file; nothing is remembered where it cannot be written.
    """

    def __init__(self, memory: str | os.PathLike[str]) -> None:
        self.memory = Path(memory)
        self.known: dict[str, tuple[list[int], str]] = {}
        if self.memory.is_file():
            for line in self.memory.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    path, state, value = json.loads(line)
                except (json.JSONDecodeError, ValueError, TypeError):
                    continue
                self.known[path] = (state, value)

    def of(self, groups: Sequence[Sequence[str]]) -> list[list[str]]:
        """Digest of every path of every group; a folder, or a header with the voxels beside it, counts as one.

        Raises:
            FileNotFoundError: for a path where there is nothing.
        """
        new: dict[str, tuple[list[int], str]] = {}
        paths = sorted({file for group in groups for path in group for file in _files(path)})
        changed = [path for path in paths if self.known.get(path, ([], ""))[0] != _state(path)]
        # hashing leaves the interpreter to other threads
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            results = threads.map(_file_digest, changed)
            shown = tqdm(results, "checking files", len(changed), unit="file", disable=not (changed and is_main()))
            new.update(zip(changed, shown, strict=True))
        self.known |= new
        self._remember(new)
        return [[self._joined(path) for path in group] for group in groups]

    def _joined(self, path: str) -> str:
        parts = [(Path(file).name, self.known[file][1]) for file in _files(path)]
        return parts[0][1] if len(parts) == 1 else digest(parts)

    def _remember(self, new: Mapping[str, tuple[list[int], str]]) -> None:
        if not new:
            return
        try:
            self.memory.parent.mkdir(parents=True, exist_ok=True)
            with self.memory.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps([path, *entry]) + "\n" for path, entry in new.items())
        except OSError as error:
            logger.warning("%s: cannot be written (%s); the files are read again next time.", self.memory, error)


def content_digest(path: str) -> str:
    """SHA-256 of a file, read anew; a folder, or a header with the voxels beside it, counts as one.

    Raises:
        FileNotFoundError: if there is nothing.
    """
    parts = [(Path(file).name, _file_digest(file)[1]) for file in _files(path)]
    return parts[0][1] if len(parts) == 1 else digest(parts)


def _files(path: str) -> list[str]:
    """The files that hold an image: of a folder all, of a detached header those of the same stem, else the one."""
    place = Path(path).expanduser().absolute()
    if place.is_dir():
        return sorted(str(p) for p in place.rglob("*") if p.is_file())
    if not place.exists():
        raise FileNotFoundError(f"{path}: expected an image; found nothing there. Correct the path.")
    if place.suffix.lower() in DETACHED:
        return sorted(str(p) for p in place.parent.iterdir() if p.is_file() and p.name.startswith(place.stem + "."))
    return [str(place)]


def _state(path: str) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _file_digest(path: str) -> tuple[list[int], str]:
    # the state before reading: a file that changes meanwhile is read again next time
    state, total = _state(path), hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            total.update(block)
    return state, total.hexdigest()
