"""Files and folders that appear whole or not at all, and text that others wrote."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = [
    "OutputError", "atomic_folder", "atomic_write", "free_name", "keep_former", "parse_json", "read_text",
    "require_writable",
]  # fmt: skip

LEAST_BYTES = 2**20  # of free space: less holds no result
LONGEST_TEXT = 2**26  # bytes: a data list of a million files is shorter
FULL = (errno.ENOSPC, errno.EDQUOT)


class OutputError(OSError):
    """Something cannot be written, for reasons that lie in its place: whatever comes next fails there too."""


def require_writable(folder: str | os.PathLike[str], results: int = 1) -> None:
    """Raise an ``OutputError`` where files could not be made in ``folder``; before hours of computing, not after them.

    Nothing is made: where the folder does not exist yet, the one that it would be made in is looked at.

    Args:
        folder: to write to.
        results: how many files at least.
    """
    target = Path(folder).expanduser()
    place = next(p for p in (target.absolute(), *target.absolute().parents) if p.exists())
    try:
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "a file")
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
    except OSError as error:
        raise _cannot_write(target, error) from error
    if free < results * LEAST_BYTES:
        raise OutputError(
            f"{target}: expected at least {results} MiB of free space for {results} results; found "
            f"{free / 2**20:.1f} MiB. Free some, or choose another output folder."
        )


def _cannot_write(target: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{target}: expected a place that can be written to; found {error.strerror or error}. Free space there, change "
        "its permissions, or choose another output folder."
    )


def _is_full(folder: Path, error: Exception) -> bool:
    """Whether a disk without space is behind an error; of libraries that write, not all say so."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    return isinstance(error, OSError | RuntimeError) and shutil.disk_usage(folder).free < LEAST_BYTES // 16


def free_name(path: Path) -> Path:
    """``path`` with the first number behind it that is not taken: ``model.pt.1``."""
    names = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def keep_former(path: Path, new: Path) -> Path | None:
    """Copy what is at ``path`` to a :func:`free_name`, unless ``new``, which takes its place, has the same content."""
    if not path.is_file() or path.read_bytes() == new.read_bytes():
        return None
    return Path(shutil.copy2(path, free_name(path)))


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file beside ``path``, with the same suffixes, which takes its place when the block ends well.

    A reader never sees half a file, and what an error leaves behind is what was there before. The folder is made where
    it does not exist; the file can be read by everybody, as one that was opened for writing.

    Args:
        path: of the file to write.

    Raises:
        OutputError: where the place is not writable or full.
    """
    target = Path(path)
    suffix = ".part" + "".join(target.suffixes[-2:])
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder of that name")
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=suffix)
    except OSError as error:
        raise _cannot_write(target, error) from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        try:
            yield temporary
        except (OSError, RuntimeError) as error:
            if _is_full(target.parent, error):
                raise _cannot_write(target, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error
            raise
        temporary.chmod(0o644)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """As ``atomic_write``: an empty folder beside ``path``, which takes its place when the block ends well.

    What was at ``path`` is removed only when the new folder is complete.

    Args:
        path: of the folder to write.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".", suffix=".part"))
    former = temporary.with_suffix(".former")
    try:
        yield temporary
        temporary.chmod(0o755)
        if target.exists():
            target.rename(former)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if former.exists() and not target.exists():
            former.rename(target)
        shutil.rmtree(former, ignore_errors=True)


def read_text(path: str | os.PathLike[str]) -> str:
    """Text of a file that a person or another program wrote: UTF-8, UTF-16 or UTF-32, with a byte-order mark or not.

    Raises:
        ValueError: for another encoding, which the bytes alone do not tell, and for what is too long.
    """
    file = Path(path)
    if file.stat().st_size > LONGEST_TEXT:
        raise ValueError(f"{file}: expected text of at most {LONGEST_TEXT:,} bytes; found {file.stat().st_size:,}.")
    content = file.read_bytes()
    try:
        text = content.decode(json.detect_encoding(content))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{file}: expected text in UTF-8; found the byte 0x{content[error.start]:02x} of another encoding in line "
            f"{line}. Save the file as UTF-8."
        ) from error
    if "\0" in text:
        raise ValueError(f"{file}: expected text in UTF-8; found other content. Save the file as UTF-8.")
    return text


def parse_json(text: str) -> Any:
    """Content of JSON; a ``ValueError`` for anything else, a key that is there twice, and what nests too deep."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except RecursionError:
        raise ValueError("lists or objects nested too deep") from None
