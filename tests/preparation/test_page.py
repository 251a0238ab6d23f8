"""Tests of custom.preparation.page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from custom.data.problems import PROBLEMS, Problem
from custom.preparation import page as module
from custom.preparation.checks import Checked
from custom.preparation.page import summary, write_reports
from custom.preparation.prepare import Preparation


def checked(name: str, **values) -> Checked:
    known = {
        "shape": (24, 28, 22), "spacing": (4.0, 4.0, 4.0), "affine": np.eye(4), "dtype": "int16",
        "extremes": (0.0, 900.0), "usual": (10.0, 800.0), "head": (20, 24, 20), "pattern": np.zeros(8),
        "picture": np.arange(24 * 28, dtype=np.uint8).reshape(24, 28), "picture_mm": (96.0, 112.0),
    }  # fmt: skip
    return Checked(name, None, **{**known, **values})


@pytest.fixture
def done(tmp_path: Path) -> Preparation:
    subjects = {f"s{i}": {"t1": checked(f"{tmp_path}/s{i}/t1"), "ct": checked(f"{tmp_path}/s{i}/ct")} for i in range(5)}
    subjects["<bad>"] = {"t1": Checked(f"{tmp_path}/bad/t1", ("constant", "all voxels are 0"))}
    problems = [
        Problem("constant", "<bad>", f"t1: {tmp_path}/bad/t1: all voxels are 0"),
        Problem("incomplete", "s0", "no ct"),
    ]
    entries = [{"subject": f"s{i}", "t1": "a", "ct": "b"} for i in range(5)]
    split = {"training": entries[:3], "validation": entries[3:4], "test": entries[4:]}
    out = tmp_path / "out" / "datalist.json"
    return Preparation(tmp_path, "plain", out, ("t1", "ct"), subjects, problems, split, ["Split as asked."], 2.0, 2, [])


def test_summary(done: Preparation) -> None:
    assert summary(done) == "5 of 6 subjects can be used. 11 files were checked in 2 s (5.5 a second, 2 processes)."


def test_text(done: Preparation) -> None:
    _, text = write_reports(done)
    lines = text.read_text().splitlines()
    assert text == done.datalist.with_name("prepare.txt")
    assert ["training", "3", "3", "3", "0"] in [line.split() for line in lines]
    assert ["left", "out", "1", "1", "0", "0"] in [line.split() for line in lines]
    assert f"{PROBLEMS['constant'].title} (1; left out). {PROBLEMS['constant'].remedy}" in lines
    assert "  <bad>: t1: bad/t1: all voxels are 0" in lines  # the path below the data set's folder
    assert any(line.startswith("24×28×22") for line in lines)


def test_page_stands_alone_and_escapes(done: Preparation) -> None:
    page = write_reports(done)[0].read_text()
    assert "<bad>" not in page
    assert "&lt;bad&gt;" in page
    assert page.count("data:image/png;base64,") == 10
    assert "http" not in page
    assert page.index(PROBLEMS["constant"].title) < page.index(PROBLEMS["incomplete"].title)


def test_pictures_are_limited_and_the_bad_come_first(done: Preparation, monkeypatch) -> None:
    monkeypatch.setattr(module, "SHOWN_SUBJECTS", 3)
    page = write_reports(done)[0].read_text()
    assert "3 of 6 subjects" in page
    assert page.index("&lt;bad&gt;</b><br>") < page.index("s0</b><br>")
    assert "s4</b><br>" not in page


def test_long_lists_are_folded(done: Preparation, monkeypatch) -> None:
    monkeypatch.setattr(module, "LISTED", 2)
    many = done._replace(problems=[Problem("incomplete", f"s{i}", "no ct") for i in range(5)])
    assert "<summary>3 more</summary>" in write_reports(many)[0].read_text()
