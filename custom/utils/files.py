"""Files and folders that appear whole or not at all, and text that others wrote."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["atomic_folder", "atomic_write", "parse_json", "read_text"]

LONGEST_TEXT = 2**26  # bytes: a data list of a million files is shorter


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file beside ``path``, with the same suffixes, which takes its place when the block ends well.

    A reader never sees half a file, and what an error leaves behind is what was there before. The folder is made where
    it does not exist; the file can be read by everybody, as one that was opened for writing.

    Args:
        path: of the file to write.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=".part" + "".join(target.suffixes[-2:]))
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
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
