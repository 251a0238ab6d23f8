"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_folder", "atomic_write"]


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
