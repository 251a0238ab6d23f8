"""Tests of benchmarks.report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.page import fill_page, load_result, on_paper, plain
from benchmarks.parts import Part, total_seconds
from benchmarks.report import markdown, marks, share
from benchmarks.scale import Scaling
from benchmarks.stock import Comparison
from benchmarks.whole import Whole

PARTS = [
    Part("read", 1.0, 5.0, 0.0, 0.0, 0.5),
    Part("preprocess", 1.0, 5.0, 0.0, 0.0, 0.5),
    Part("encode", 2.0, 5.0, 1.0, 0.5, 0.5),
    Part("quantise", 1.0, 5.0, 0.1, 0.05, 0.5),
    Part("MS-SPADE", 1.0, 5.0, 0.2, 0.1, 0.5),
    Part("step", 2.0, 5.0, 0.5, 0.25, 0.5),
    Part("decode", 4.0, 5.0, 2.0, 1.0, 0.5),
    Part("write", 1.0, 5.0, 0.0, 0.0, 0.5),
]
STOCK = [
    Comparison("encode", 6.0, 50.0, 0.0, 0.5, ""),
    Comparison("quantise", 5.0, 500.0, 0.0, 0.5, "EMAQuantizer in evaluation"),
    Comparison("step", 4.0, 50.0, 0.6, 0.5, "DiffusionModelUNet"),
    Comparison("step", 3.0, 50.0, 0.6, 0.5, "DiffusionModelUNet with flash attention"),
    Comparison("loop step", 4.5, 50.0, 0.6, 0.5, "a step of the loop"),
    Comparison("decode", 9.0, 50.0, 0.0, 0.5, ""),
]


def result(**changes) -> dict:
    found = {
        "preset": "release",
        "size": (144, 192, 144),
        "steps": 2,
        "device": "cpu",
        "commit": "abc",
        "machine": {"processor": "chip", "threads": 2, "torch": "2"},
        "default_precision": "float32",
        "parts": {"float32": PARTS},
        "stock": {"float32": STOCK},
        "whole": [Whole(10.0, 2048.0, 1, False, 2, 0.5), Whole(24.0, 2048.0, 3, False, 2, 0.5)],
        "scaling": Scaling([(64, 64, 64), (128, 128, 128)], [1.0, 8.0], [0.5, 0.5], 1.0),
        "small": None,
        **changes,
    }
    found["marks"] = marks(found)
    return found


def test_total_counts_every_step() -> None:
    assert total_seconds(PARTS, 1) == 13
    assert total_seconds(PARTS, 200) == 13 + 199 * 2


def test_share_is_work_over_time_and_rate() -> None:
    expected = (1 + 2 * 0.5 + 2) / (2 + 2 * 2 + 4) / 0.5
    assert share(PARTS, steps=2) == pytest.approx(expected)
    assert share(PARTS, steps=2, executed=True) == pytest.approx(expected / 2)


def test_marks() -> None:
    found = {mark.name: mark for mark in result()["marks"]}
    assert found["default sampler against 200-step DDIM in float32"].found.startswith(f"{411 / 15:.1f}×")
    assert found["quantise against EMAQuantizer, float32"].found == "5.0×, 1/100"
    assert found["UNet step against DiffusionModelUNet, float32"].met
    assert found["UNet step against DiffusionModelUNet with flash attention, float32"].met is None
    assert found["peak memory of one translation"].met
    assert found["three targets against three translations, float32"].found == "0.80"
    assert found["cost against voxels"].met


def test_a_missed_mark_is_missed() -> None:
    slow = result(whole=[Whole(10.0, 4096.0, 1, False, 2, 0.5)], scaling=Scaling([(8, 8, 8)], [1.0], [0.5], 1.2))
    missed = {mark.name for mark in slow["marks"] if mark.met is False}
    assert {"peak memory of one translation", "cost against voxels"} <= missed
    assert "**no**" in markdown(slow)


def test_tables_hold_every_part_and_the_multiplied_loops() -> None:
    text = markdown(result())
    for part in PARTS:
        assert f"| {part.name} | {part.seconds:.2f} |" in text
    assert "50 steps 246 s" in text  # 6 + 5 + 9 of stock parts, 1 of MS-SPADE, 50 times 4.5
    assert all(len(set(map(len, rows))) == 1 for rows in tables(text))


def tables(text: str) -> list[list[list[str]]]:
    blocks = [b.splitlines() for b in text.split("\n\n") if b.startswith("|")]
    return [[line.split("|") for line in block] for block in blocks]


def test_without_what_was_skipped() -> None:
    assert "Cost against voxels" not in markdown(result(stock={}, whole=[], scaling=None))


def test_page_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(plain(result())))
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n<!-- figures: begin -->\nold\n<!-- figures: end -->\n\nend\n")
    for _ in range(2):  # the second time replaces the first
        main(["--result", str(tmp_path / "result.json"), "--page", str(page)])
    text = page.read_text()
    assert text.startswith("# Title\n")
    assert text.endswith("\n\nend\n")
    assert text.count("## release preset, 144×192×144 voxels") == 1
    assert "old" not in text


def test_on_paper() -> None:
    """4.3 TFLOP at 0.358 of 25 TFLOP/s is less than the 3 s for files: these decide."""
    text = on_paper(result())
    assert "is 4.30 TFLOP of the plain modules (2 sampler steps)" in text
    assert f"| 25 | {4.3 / (25 * 2.15 / 12 / 0.5):.2f} | 3.00 | {10_000 / 8 * 3 / 3600:.1f} | files |" in text


def test_page_without_marks(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("# Title\n")
    with pytest.raises(ValueError, match="expected the lines <!-- figures: begin -->"):
        fill_page(tmp_path / "page.md", result())


def test_another_file_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a result of this benchmark"):
        load_result(tmp_path / "other.json")
