"""Tests of custom.utils.files."""

from __future__ import annotations

from pathlib import Path

import pytest

from custom.utils.files import atomic_write


def test_the_file_takes_its_place_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new" / "image.nii.gz"
    with atomic_write(target) as temporary:
        temporary.write_text("whole")
        assert temporary.name.endswith(".nii.gz")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert target.stat().st_mode & 0o777 == 0o644
    assert list(target.parent.iterdir()) == [target]


def fail_halfway(target: Path) -> None:
    with atomic_write(target) as temporary:
        temporary.write_text("ne")
        raise RuntimeError("half")


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "list.json"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="half"):
        fail_halfway(target)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
