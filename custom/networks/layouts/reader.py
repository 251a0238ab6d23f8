"""Tensors of a checkpoint from elsewhere, whatever else is pickled in it: no code of the file ever runs."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from custom.networks.weights import check_archive
from custom.utils.errors import first_of

__all__ = ["Tensors", "find_tensors", "read_checkpoint"]

DEPTH = 3  # of mappings in mappings that may hold a state dict
# where a name of a first tensor stands for a layout, for the hint of a message
LAYOUTS = {
    "encoder.conv_in.weight": "an autoencoder of the release (--source release)",
    "encoder.blocks.0.conv.weight": "an AutoencoderKL (--source monai or monai-generative)",
    "time_embed.0.weight": "a DiffusionModelUNet (--source monai or monai-generative, --unet_checkpoint)",
}
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Tensors(NamedTuple):
    """A state dict that was found in a checkpoint.

    Attributes:
        file: that it was found in.
        tensors: by name, the common prefix removed.
        others: names of everything that lies beside them in the same mapping.
    """

    file: Path
    tensors: dict[str, Tensor]
    others: list[str]


def read_checkpoint(path: str | os.PathLike[str]) -> Any:
    """Content of a file of ``torch.save``, tensors on the CPU.

    It is read by ``torch.load`` with ``weights_only=True``. Where that refuses classes of the file, an unpickler reads
    it that builds tensors and plain containers only, and puts an inert object in place of everything else.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is no checkpoint, or is damaged.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected a checkpoint; found no file. Correct the path.")
    try:
        check_archive(file)
    except Exception as error:
        raise ValueError(f"{file}: expected a whole checkpoint; found {error}. Fetch the file again.") from error
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file provokes
        refused = str(error).splitlines()[0] if str(error) else type(error).__name__
    if not zipfile.is_zipfile(file):
        raise ValueError(
            f"{file}: expected a checkpoint of torch.save; found another file ({refused.rstrip('.')}). "
            "Give the file of weights; one that PyTorch before 1.6 wrote is to be saved again by a newer one."
        )
    try:
        return _read_inertly(file)
    except Exception as error:
        raise ValueError(
            f"{file}: expected a checkpoint of torch.save; found one that cannot be read ({error!r:.200}). "
            "Fetch it again, or save its state dict alone: torch.save(network.state_dict(), FILE)."
        ) from error


def find_tensors(content: Any, first: str, path: str | os.PathLike[str]) -> Tensors:
    """The state dict in ``content`` that has the tensor ``first``, with or without a prefix before its names.

    Args:
        content: of a checkpoint: a state dict, or mappings that hold one.
        first: name of a tensor that tells the layout.
        path: of the checkpoint, for messages.

    Raises:
        ValueError: if there is none, or more than one.
    """
    file = Path(path).expanduser()
    found = list(_candidates(content, first, "", DEPTH))
    if not found:
        others = [layout for name, layout in LAYOUTS.items() if name != first and any(_candidates(content, name))]
        seen = others[0] if others else _entries(content)
        raise ValueError(
            f"{file}: expected {LAYOUTS[first]} with a tensor {first}; found {seen}. "
            "Choose the --source and the file that belong together."
        )
    if len(found) > 1:
        places = ", ".join(repr(place) for place, _, _ in found)
        raise ValueError(
            f"{file}: expected one state dict with a tensor {first}; found {len(found)}, at {places}. "
            "Save the one that is meant alone."
        )
    _, mapping, prefix = found[0]
    own = {k: v for k, v in mapping.items() if _is_tensor(k, v) and k.startswith(prefix)}
    tensors = {name.removeprefix(prefix): tensor for name, tensor in own.items()}
    return Tensors(file, tensors, [str(name) for name in mapping if name not in own])


def _is_tensor(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _candidates(
    content: Any, first: str, place: str = "", depth: int = DEPTH
) -> Iterator[tuple[str, Mapping[Any, Any], str]]:
    """``(place, mapping, prefix)`` of every mapping with a tensor ``prefix + first``."""
    if not isinstance(content, Mapping):
        return
    for name, value in content.items():
        if _is_tensor(name, value) and (name == first or name.endswith(f".{first}")):
            yield place + name, content, name[: -len(first)]
        elif depth > 1:
            yield from _candidates(value, first, f"{place}{name}/", depth - 1)


def _entries(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"entries {first_of(content)}" if content else "no entries"
    return f"a {type(content).__name__}"


class _Storage(NamedTuple):
    """Stands for a class of storages."""

    dtype: torch.dtype


def _read_inertly(file: Path) -> Any:
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1 or any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise ValueError("no archive of torch.save")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("numbers with the most significant byte first")
        return _InertUnpickler(archive, root).load()


class _InertUnpickler(pickle.Unpickler):
    """Builds tensors and plain containers; every other class of the file becomes a class that does nothing."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self.archive, self.root = archive, root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module_name: str, global_name: str) -> Any:
        if module_name == "torch" and global_name in DTYPES:
            return _Storage(DTYPES[global_name])
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor_v2"): self.tensor,
            ("torch._utils", "_rebuild_parameter"): self.parameter,
        }
        if (module_name, global_name) in known:
            return known[module_name, global_name]
        # a new class each time: a pickle can set attributes of what it was given
        return type("Inert", (_Inert,), {})

    def persistent_load(self, pid: Any) -> Any:
        _, kind, key, _, count = pid
        if not isinstance(kind, _Storage):
            return _Inert()
        if key not in self.storages:
            entry = self.archive.getinfo(f"{self.root}data/{key}")
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != count * kind.dtype.itemsize:
                raise ValueError(f"a storage of {entry.file_size} bytes for {count} numbers of {kind.dtype}")
            content = bytearray(self.archive.read(entry))
            # frombuffer refuses a buffer of nothing
            made = torch.frombuffer(content, dtype=kind.dtype) if count else torch.empty(0, dtype=kind.dtype)
            self.storages[key] = made
        return self.storages[key]

    def tensor(self, storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Any:
        if not isinstance(storage, Tensor):
            return _Inert()
        return torch.as_strided(storage, size, stride, offset)

    def parameter(self, data: Any, *_: Any) -> Any:
        return data


class _Inert:
    """In place of an object of a class that is not built: takes whatever a pickle does to it, and keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> _Inert:
        return _Inert()

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, *_: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        pass

    def extend(self, _: Any) -> None:
        pass

    def add(self, _: Any) -> None:
        pass
