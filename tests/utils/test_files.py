"""Tests of custom.utils.files."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from custom.utils import files
from custom.utils.files import OutputError, atomic_write, require_writable


def test_the_file_takes_its_place_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "image.nii.gz"
    with atomic_write(target) as temporary:
        temporary.write_text("whole")
        assert temporary.name.endswith(".nii.gz")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert target.stat().st_mode & 0o777 == 0o644
    assert list(target.parent.iterdir()) == [target]


def fail_halfway(target: Path, error: Exception | None = None) -> None:
    with atomic_write(target) as temporary:
        temporary.write_text("ne")
        raise error or RuntimeError("half")


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "list.json"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="half"):
        fail_halfway(target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_place_that_can_be_written_to_is_left_as_it_was(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b", results=3)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/out: expected a place that can be written to; found a file"):
        require_writable(tmp_path / "file" / "out")
    with pytest.raises(OutputError, match=r"/proc/nowhere: expected a place that can be written to; found"):
        require_writable("/proc/nowhere")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda place: SimpleNamespace(free=3 * 2**20))
    require_writable(tmp_path, results=3)
    with pytest.raises(OutputError, match=r"expected at least 4 MiB of free space for 4 results; found 3.0 MiB"):
        require_writable(tmp_path, results=4)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("PytorchStreamWriter failed writing file")]
)
def test_a_full_disk_is_named_by_the_file_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    if isinstance(error, RuntimeError):  # torch does not say why
        monkeypatch.setattr(files.shutil, "disk_usage", lambda place: SimpleNamespace(free=0))
    with pytest.raises(OutputError, match=r"last.pt: .*found No space left on device. Free space there"):
        fail_halfway(tmp_path / "last.pt", error)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"expected a place that can be written to; found a folder of that name"),
        atomic_write(tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
