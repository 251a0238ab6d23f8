"""Latents on disk: one file a subject, named after everything that it was computed from, read by crops."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from custom.data.readers import read_shape
from custom.networks import VQGAN, VectorQuantizer
from custom.networks.quantizer import codes_and_levels, embed, scalars_of
from custom.utils.distributed import is_main, world_size
from custom.utils.files import atomic_write
from custom.utils.identity import FileDigests, differences, digest, identity

__all__ = [
    "LatentCache",
    "StoredImages",
    "StoredLatents",
    "check_room",
    "find_stored",
    "prune_latents",
    "store_array",
]

logger = logging.getLogger(__name__)

Stored = TypeVar("Stored")

DECODING = ("post_quant_conv", "decoder", "expansion")  # parts of the autoencoder that latents do not depend on
DIGESTS_NAME = "files.jsonl"
ENCODING_NAME = "encoding.json"
SECONDS_A_DAY = 86400


class Codebooks(NamedTuple):
    """What makes latents of stored indices: the codes (K, C), of how many codebooks, and the scalar channels S."""

    codes: Tensor
    number: int
    scalar_channels: int

    @classmethod
    def of(cls, autoencoder: VQGAN) -> Codebooks | None:
        """Those of ``autoencoder``; None where it has no codes."""
        book = autoencoder.bottleneck
        if not isinstance(book, VectorQuantizer):
            return None
        codes = book.embedding.weight.detach().float().cpu().clone()
        return cls(codes, book.num_codebooks, autoencoder.scalar_channels)

    @property
    def stored(self) -> int:
        """Numbers that are stored for a voxel of the latent."""
        return self.number + self.scalar_channels

    @property
    def channels(self) -> int:
        """Channels L of the latent."""
        return self.codes.shape[1] + self.scalar_channels

    def embed(self, indices: Tensor) -> Tensor:
        """Latents (B, L, *) of ``indices`` (B, *), of more than one stored number (B, number, *)."""
        if not self.scalar_channels:
            return embed(indices, self.codes, self.number)
        of_codes, levels = codes_and_levels(indices, self.number)
        return torch.cat([embed(of_codes, self.codes, self.number), scalars_of(levels)], dim=1)


class StoredLatents:
    """Latents (m, L, h, w, d) of a subject's m modalities in a file, of which only what is asked for is read.

    Args:
        path: of the ``.npy`` file: indices (m, h, w, d), of more than one a voxel (m, number, h, w, d), or values
            (m, L, h, w, d) where ``books`` is None.
        books: what makes latents of the indices.
    """

    def __init__(self, path: str | os.PathLike[str], books: Codebooks | None = None) -> None:
        self.path = str(path)
        self.books = books
        stored = self._open().shape
        self.shape = torch.Size(stored if books is None else (stored[0], books.channels, *stored[-3:]))

    def _open(self) -> np.ndarray:
        # opened anew for each crop: a map that stays open holds a file descriptor, of which a process has about 1000
        return np.load(self.path, mmap_mode="r", allow_pickle=False)

    def read(self, number: int, region: tuple[slice, ...] | tuple[np.ndarray, ...] = ()) -> Tensor:
        """float32 (L, h', w', d') of the latent of that ``number``; the whole without a region of (h, w, d).

        Indices (N,) along each axis in place of slices give these voxels, (L, N).
        """
        stored = self._open()[number]
        found = stored[(slice(None), *region) if stored.ndim > 3 else region]
        if self.books is None:
            return torch.from_numpy(found.astype(np.float32))
        indices = torch.from_numpy(found.astype(np.int64))
        return self.books.embed(indices.unsqueeze(0)).squeeze(0)


class StoredImages:
    """Preprocessed images (m, H, W, D) of a subject's m modalities in a file, of which crops are read.

    256 levels from -1 to 1: half of what half precision takes, and an error (59 dB) far below the noise of a scan.

    Args:
        path: of the ``.npy`` file.
    """

    LEVELS = 255

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(path)
        self.shape = torch.Size(self._open().shape)

    def _open(self) -> np.ndarray:
        return np.load(self.path, mmap_mode="r", allow_pickle=False)

    def read(self, number: int, region: tuple[slice, ...] = ()) -> Tensor:
        """float32 (1, H', W', D') in [-1, 1] of the image of that ``number``; the whole without a region."""
        levels = torch.from_numpy(self._open()[number][region].astype(np.float32))
        return (levels * (2 / self.LEVELS) - 1).unsqueeze(0)

    @classmethod
    def levels(cls, images: Tensor) -> np.ndarray:
        """Content of the file of ``images`` (m, 1, H, W, D) in [-1, 1]."""
        return ((images.squeeze(1) + 1) * (cls.LEVELS / 2)).round().clamp(0, cls.LEVELS).to(torch.uint8).cpu().numpy()


class LatentCache:
    """Folder of the latents of one encoding: ``<cache_dir>/<encoding>/<subject>[_mirrored].npy``.

    Beside them the preprocessed images, ``<subject>[_mirrored]_images.npy``, where a training asks for these too.

    The encoding's name follows from the identity of what computes latents, its weights, the preprocessing and the
    precision; the subject's from the contents of its files. So whatever changes is computed anew, nothing that is found
    needs to be trusted, and stages, runs and processes can share a folder. Files appear whole or not at all.

    Latents of codebooks are stored as the codes' indices and the levels of scalar channels: exact, and 2 bytes a latent
    voxel and number, where values in float32 take 4 a channel. Those of a ``KLBottleneck`` are stored in float32.

    Args:
        cache_dir: folder of all encodings.
        autoencoder: in the state in which it will compute latents.
        transform: the preprocessing.
        amp: whether it computes in bfloat16.
    """

    def __init__(
        self, cache_dir: str | os.PathLike[str], autoencoder: VQGAN, transform: Callable, *, amp: bool = False
    ) -> None:
        self.root = Path(cache_dir).expanduser()
        self.books = Codebooks.of(autoencoder)
        self.channels = autoencoder.latent_channels
        self.downsampling = autoencoder.downsampling
        parts = [part for name, part in autoencoder.named_children() if name not in DECODING]
        self.encoding = identity(parts, transform, {"amp": amp})
        self.folder = self.root / digest(self.encoding)[:16]
        self.digests = FileDigests(self.root / DIGESTS_NAME)

    @property
    def dtype(self) -> np.dtype:
        """Of what is stored."""
        if self.books is None:
            return np.dtype(np.float32)
        return np.dtype(np.uint16 if len(self.books.codes) <= 2**16 else np.int32)

    def files(self, entries: Sequence[Mapping[str, Any]], modalities: Sequence[str]) -> list[Path]:
        """Where the latents of each subject of a datalist are, or will be."""
        contents = self.digests.of([[str(entry[m]) for m in modalities if m in entry] for entry in entries])
        return [self.folder / f"{digest(content)[:24]}.npy" for content in contents]

    def find(self, file: Path) -> StoredLatents | None:
        """Stored latents; None where they must be computed. A file in use is marked by the file's time."""
        return find_stored(file, lambda: StoredLatents(file, self.books))

    def find_images(self, file: Path) -> StoredImages | None:
        """The images of the latents in ``file``; None where they must be read."""
        return find_stored(_images_of(file), lambda: StoredImages(_images_of(file)))

    def write(self, file: Path, latents: Tensor) -> None:
        """Store indices (m, h, w, d), of more than one a voxel (m, number, h, w, d), or values (m, L, h, w, d).

        Raises:
            OSError: where that cannot be done.
        """
        self._explain()
        store_array(file, latents.cpu().numpy().astype(self.dtype))

    def write_images(self, file: Path, images: Tensor) -> None:
        """Store images (m, 1, H, W, D) in [-1, 1] beside the latents in ``file``; errors as ``write``."""
        store_array(_images_of(file), StoredImages.levels(images))

    def _explain(self) -> None:
        """Write what the folder's name stands for."""
        if not (self.folder / ENCODING_NAME).is_file():
            with _said_plainly(self.folder), atomic_write(self.folder / ENCODING_NAME) as temporary:
                temporary.write_text(json.dumps(self.encoding, indent=1) + "\n", encoding="utf-8")

    def check_space(
        self, images: Sequence[Sequence[str]], divisor: int, copies: int, *, with_images: bool = False
    ) -> None:
        """Log how much will be written at most, and that it fits.

        Args:
            images: files of each subject to encode; those of a subject share their grid.
            divisor: to whose multiples volumes are padded.
            copies: of each subject, mirrored ones counted.
            with_images: whether the images are stored as well.

        Raises:
            OSError: if the disk is too small.
        """
        value = self.dtype.itemsize * (self.channels if self.books is None else self.books.stored)
        voxels = [_voxels(files[0], divisor) * len(files) for files in images]
        known = [v for v in voxels if v > 0]
        if not known:
            logger.info("%s: the size of the latents to compute is not known before the images are read.", self.folder)
            return
        total = sum(known) * len(voxels) / len(known)
        size = int(total * (value / self.downsampling**3 + with_images) * copies) * world_size()
        bound = "at most" if len(known) == len(voxels) else "about"
        remedy = f"remove old latents with python -m custom prune-latents {self.root}"
        check_room(self.folder, f"the latents to compute take {bound}", size, remedy)

    def explain_others(self) -> None:
        """Log how much the other encodings of the folder hold, and what the latest of them has otherwise."""
        others = [f for f in self.root.iterdir() if f.is_dir() and f != self.folder] if self.root.is_dir() else []
        others = [f for f in others if (f / ENCODING_NAME).is_file()]
        if not others or not is_main():
            return
        latest = max(others, key=lambda f: (f / ENCODING_NAME).stat().st_mtime)
        try:
            found = json.loads((latest / ENCODING_NAME).read_text(encoding="utf-8"))
            differing = ", ".join(differences(found, self.encoding))
        except (OSError, ValueError, AttributeError):
            differing = "what cannot be read"
        size = sum(f.stat().st_size for folder in others for f in folder.glob("*.npy"))
        logger.info(
            "%s: latents of %d other encodings take %s (the latest differs in %s); python -m custom prune-latents "
            "removes what is out of use.", self.root, len(others), _mib(size), differing,
        )  # fmt: skip


def find_stored(file: Path, read: Callable[[], Stored]) -> Stored | None:
    """Read ``file`` by ``read``; None where there is none. A file in use is marked by the file's time."""
    try:
        stored = read()
    except (OSError, ValueError, EOFError):  # none, or cut short by a crash of the machine
        return None
    with suppress(OSError):  # of somebody else, whose cache may be shared
        os.utime(file)
    return stored


def check_room(folder: Path, what: str, size: int, remedy: str) -> None:
    """Log how many bytes ``what`` in ``folder`` will take, and that they fit.

    Raises:
        OSError: with the ``remedy``, if the disk is too small.
    """
    free = shutil.disk_usage(_existing(folder)).free
    where = f"{folder}: {what} {_mib(size)}; {_mib(free)} are free"
    if size > free:
        raise OSError(f"{where}. Make room, give another --cache_dir, or {remedy}.")
    logger.info("%s.", where)


def store_array(file: Path, content: np.ndarray) -> None:
    """Write an array of the cache, which appears whole or not at all.

    Raises:
        OSError: where that cannot be done.
    """
    with _said_plainly(file), atomic_write(file) as temporary, temporary.open("wb") as stream:
        np.save(stream, content, allow_pickle=False)


@contextmanager
def _said_plainly(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{file}: expected to write latents; found {error}. Make room there or give another --cache_dir; the "
            "next run goes on with what has been written."
        ) from error


def prune_latents(cache_dir: str | os.PathLike[str], unused_days: float = 7.0) -> tuple[int, int]:
    """Remove latents that no training has started with for some days, and what interrupted runs left behind.

    Not for a folder that a training of more than ``unused_days`` is still reading from.

    Args:
        cache_dir: folder of all encodings.
        unused_days: 0 removes all.

    Returns:
        Number of removed files and their bytes.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    root = Path(cache_dir).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: expected a folder of cached latents; found none. Correct the path.")
    latest, removed, size = time.time() - unused_days * SECONDS_A_DAY, 0, 0
    # only what a cache makes: the folder may be one that holds other things too
    for folder in (f.parent for f in root.glob(f"*/{ENCODING_NAME}")):
        for file in (f for f in folder.iterdir() if f.name != ENCODING_NAME):
            status = file.stat()
            if status.st_mtime <= latest:
                file.unlink(missing_ok=True)
                removed, size = removed + 1, size + status.st_size
        if not any(f.name != ENCODING_NAME for f in folder.iterdir()):
            (folder / ENCODING_NAME).unlink()
            folder.rmdir()
    if not any(root.glob(f"*/{ENCODING_NAME}")):
        (root / DIGESTS_NAME).unlink(missing_ok=True)
    return removed, size


def _images_of(file: Path) -> Path:
    """The file of the images that the latents in ``file`` are of."""
    return file.with_name(f"{file.stem}_images.npy")


def _voxels(file: str, divisor: int) -> int:
    """Voxels of an image on its padded grid, from its header; 0 where that cannot be read."""
    shape = read_shape(file)
    return math.prod(math.ceil(n / divisor) * divisor for n in shape) if shape else 0


def _existing(path: Path) -> Path:
    """``path`` or the nearest folder above it that exists."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def _mib(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"
