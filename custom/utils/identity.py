"""Identity of a result, as text that changes when it does: networks, transforms, settings, files."""

from __future__ import annotations

import functools
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
from pathlib import Path, PurePath
from types import CodeType, ModuleType
from typing import Any

import monai
import numpy as np
import torch
from monai.data import ImageReader
from monai.transforms import LoadImage
from torch import Tensor, nn
from tqdm import tqdm

from custom.utils.distributed import is_main
from custom.utils.precision import AUTO, uses_bfloat16

__all__ = [
    "VOXELS",
    "FileDigests",
    "content_digest",
    "describe",
    "differences",
    "digest",
    "identity",
    "weights_digest",
]

logger = logging.getLogger(__name__)

# Number of what this package computes: of its networks, transforms and everything else that makes voxels, and of how
# they are stored. Raise it with a change after which the same weights and settings give other voxels; then, and only
# then, what was cached or written before is made anew. tests/utils/test_voxels.py notices a change without a raise.
VOXELS = 2

PLAIN = (bool, int, float, str, type(None))
AS_TEXT = (PurePath, slice, np.generic, np.dtype, torch.dtype, Enum)
# the state of a generator, what belongs to a thread, and where something is computed
NO_SETTING = (np.random.RandomState, np.random.Generator, torch.Generator, threading.local, torch.device)
MODULE_MEMBERS = frozenset(vars(nn.Module()))
# headers whose voxels lie in a file beside them
DETACHED = (".mhd", ".nhdr", ".hdr", ".img")
BLOCK_BYTES = 2**22


def identity(
    network: nn.Module | Iterable[nn.Module] | None, preprocessing: Any, settings: Any, *, version: int = VOXELS
) -> dict[str, Any]:
    """All that can change a voxel of a result but the files that it is made from, found from the objects.

    Two results of equal identities and of sources of equal contents are equal, but for rounding. So whatever is kept on
    a disk carries the digest of its identity, and is made anew where that differs. An attribute counts unless its class
    says that it changes no voxel, by the names in ``not_in_identity``, or that it does so with another value than one,
    by ``in_identity_unless``: a setting that came later, whose default computes what was computed before it came.

    Args:
        network: with its weights loaded, or the parts of it that take part; None where none does.
        preprocessing: the transforms; None where there are none.
        settings: whatever else takes part: inferers, transforms of the result, numbers. An ``amp`` of ``"auto"`` counts
            as what it means on the device of ``network``.
        version: of the code that computes.

    Returns:
        ``{"version", "network", "preprocessing", "settings"}`` as JSON can hold it, the network as its digest.
    """
    modules = [] if network is None else [network] if isinstance(network, nn.Module) else list(network)
    tensors = (tensor for module in modules for tensor in module.parameters())
    device = next(tensors, torch.empty(0)).device
    return {
        "version": version,
        "network": _network_digest(modules) if modules else None,
        # a release of MONAI may change what its transforms do by default
        "preprocessing": None if preprocessing is None else [monai.__version__, describe(preprocessing)],
        "settings": describe(settings, device),
    }


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the parts in which two identities differ; those of the settings where both hold several.

    Of a part that both describe by its own parts these are told too: ``"inferer (seed)"``.
    """
    pairs = {key: (one.get(key), other.get(key)) for key in sorted({*one, *other})}
    first, second = pairs.get("settings", (None, None))
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        del pairs["settings"]
        pairs |= {key: (first.get(key), second.get(key)) for key in sorted({*first, *second})}
    found = []
    for key, (a, b) in pairs.items():
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            inner = ", ".join(name for name in sorted({*a, *b}) if a.get(name) != b.get(name))
            found += [f"{key} ({inner})"] if inner else []
        elif a != b:
            found.append(key)
    return found


def digest(item: Any) -> str:
    """SHA-256 of bytes, or of what JSON makes of ``item``."""
    content = item if isinstance(item, bytes) else json.dumps(item, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def describe(item: Any, device: torch.device | None = None) -> Any:
    """Describe ``item``, such as a transform, and its settings as JSON can hold them: the same in every process.

    Objects are described by class and attributes, functions by name or, where that says nothing, by their code, arrays
    and networks by digest. What is no setting is left out: random generators, devices, what belongs to a thread, which
    readers ``LoadImage`` found installed and last read with, and what a class lists as ``not_in_identity``. Of a class
    the package and the name count, not the module: code may move.

    Args:
        item: to describe.
        device: for which an ``amp`` of ``"auto"`` is resolved.
    """
    return _describe(item, (), device)


def _describe(item: Any, parents: tuple[int, ...], device: torch.device | None) -> Any:
    if isinstance(item, PLAIN) and not isinstance(item, Enum):
        return item
    if isinstance(item, NO_SETTING):
        return None
    if isinstance(item, AS_TEXT):
        return str(item)
    if isinstance(item, type):
        return _name(item)
    if isinstance(item, bytes | bytearray):
        return digest(bytes(item))
    if isinstance(item, Tensor):
        return [str(item.dtype), list(item.shape), digest(_bytes(item))]
    if isinstance(item, np.ndarray):
        return [str(item.dtype), list(item.shape), digest(item.tobytes())]
    if id(item) in parents:
        return "recursion"
    parents = (*parents, id(item))
    if isinstance(item, Mapping):
        return {str(key): _setting(key, value, parents, device) for key, value in item.items()}
    if isinstance(item, set | frozenset):
        return sorted(json.dumps(_describe(value, parents, device), sort_keys=True) for value in item)
    if isinstance(item, Sequence | deque):
        return [_describe(value, parents, device) for value in item]
    if isinstance(item, nn.Module):
        return {"class": _name(type(item)), "network": _network_digest([item])}
    if inspect.isroutine(item) or isinstance(item, functools.partial):
        return _describe_function(item, parents, device)
    return _describe_object(item, parents, device)


def _setting(name: Any, value: Any, parents: tuple[int, ...], device: torch.device | None) -> Any:
    if name == "amp" and device is not None and str(value).lower() == AUTO:
        return uses_bfloat16(value, device)
    return _describe(value, parents, device)


def _describe_object(item: Any, parents: tuple[int, ...], device: torch.device | None) -> dict[str, Any]:
    members = _members(item)
    if isinstance(item, LoadImage) and item.auto_select:
        del members["readers"]
    if isinstance(item, ImageReader):
        members.pop("filenames", None)
    described = {name: _setting(name, value, parents, device) for name, value in sorted(members.items())}
    if not described and " at 0x" not in repr(item):  # such as a function of NumPy, whose name alone says what it is
        described = {"itself": repr(item)}
    return {"class": _name(type(item)), **described}


def _describe_function(item: Any, parents: tuple[int, ...], device: torch.device | None) -> Any:
    if isinstance(item, functools.partial):
        return _describe([item.func, item.args, item.keywords], parents, device)
    owner = getattr(item, "__self__", None)
    if owner is not None and not isinstance(owner, ModuleType):
        return [item.__name__, _describe(owner, parents, device)]
    if "<" not in item.__qualname__ or not hasattr(item, "__code__"):
        return _name(item)
    # a lambda, or a function made in another: many share a name
    cells = [cell.cell_contents for cell in item.__closure__ or ()]
    given = [cells, item.__defaults__, item.__kwdefaults__]
    return [_name(item), digest(_code(item.__code__)), _describe(given, parents, device)]


def _code(code: CodeType) -> list[Any]:
    constants = [_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names)]


def _name(item: Any) -> str:
    return f"{(item.__module__ or '').partition('.')[0]}.{item.__qualname__}"


def _members(item: Any) -> dict[str, Any]:
    """Attributes of an object that count."""
    left_out = _left_out(type(item))
    slots = {name for kind in type(item).__mro__ for name in np.atleast_1d(vars(kind).get("__slots__", ())).tolist()}
    found = {name: getattr(item, name) for name in slots if hasattr(item, name)} | getattr(item, "__dict__", {})
    for name, usual in _unless(type(item)):
        if name in found and found[name] == usual:
            left_out.add(name)
    return {k: v for k, v in found.items() if k not in left_out and not isinstance(v, NO_SETTING)}


def _left_out(kind: type) -> set[str]:
    return {name for base in kind.__mro__ for name in vars(base).get("not_in_identity", ())}


def _unless(kind: type) -> list[tuple[str, Any]]:
    return [pair for base in kind.__mro__ for pair in vars(base).get("in_identity_unless", {}).items()]


def _network_digest(modules: Iterable[nn.Module]) -> str:
    """SHA-256 of structure, settings, parameters and buffers of ``modules``."""
    total = hashlib.sha256()
    for module in modules:
        for name, part in module.named_modules():
            own = {k: v for k, v in _members(part).items() if k not in MODULE_MEMBERS}
            total.update(digest([name, _name(type(part)), describe(own)]).encode())
            left_out = _left_out(type(part))
            for key, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
                if key not in left_out:
                    total.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
                    total.update(_bytes(tensor))
    return total.hexdigest()


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a state dict: names, shapes and values, in float32 as a network computes with them.

    So it is the same for a file with kernels in half precision, the network that loaded it, and its TorchScript.
    """
    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        values = tensor.float() if tensor.is_floating_point() else tensor
        total.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        total.update(_bytes(values))
    return total.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    # NumPy knows no bfloat16
    return tensor.detach().as_subclass(Tensor).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


class FileDigests:
    """SHA-256 of files, remembered by path, size and times, so that an unchanged file is read once.

    The content decides: a data set that was moved, copied or touched keeps its digests, and a file that was replaced
    gets another. What is remembered is trusted while size, modification and status-change time are the same, as git
    does it. The memory is a file of JSON lines that are only ever appended, so several processes can share it; a line
    that was cut short is not used.

    Args:
        memory: the file; nothing is remembered where it cannot be written. None for this process alone.
    """

    def __init__(self, memory: str | os.PathLike[str] | None = None) -> None:
        self.memory = None if memory is None else Path(memory)
        self.known: dict[str, tuple[list[int], str]] = {}
        if self.memory is not None and self.memory.is_file():
            for line in self.memory.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    path, state, value = json.loads(line)
                except (json.JSONDecodeError, ValueError, TypeError):
                    continue
                self.known[path] = (state, value)

    def of(self, groups: Sequence[Sequence[str]]) -> list[list[str]]:
        """Digest of every path of every group; a folder, or a header with the voxels beside it, counts as one.

        Of several groups the progress is shown.

        Raises:
            FileNotFoundError: for a path where there is nothing.
        """
        new: dict[str, tuple[list[int], str]] = {}
        paths = sorted({file for group in groups for path in group for file in _files(path)})
        changed = [path for path in paths if self.known.get(path, ([], ""))[0] != _state(path)]
        # hashing leaves the interpreter to other threads
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            results = threads.map(_file_digest, changed)
            hidden = not (len(groups) > 1 and changed and is_main())
            shown = tqdm(results, "checking files", len(changed), unit="file", disable=hidden)
            new.update(zip(changed, shown, strict=True))
        self.known |= new
        self._remember(new)
        return [[self._joined(path) for path in group] for group in groups]

    def _joined(self, path: str) -> str:
        parts = [(Path(file).name, self.known[file][1]) for file in _files(path)]
        return parts[0][1] if len(parts) == 1 else digest(parts)

    def _remember(self, new: Mapping[str, tuple[list[int], str]]) -> None:
        if not new or self.memory is None:
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
