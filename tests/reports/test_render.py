from __future__ import annotations

import csv

import pytest

from custom.reports.render import (
    CHECK,
    FORMATS,
    Cell,
    Table,
    to_csv,
    to_html,
    to_latex,
    to_markdown,
    to_text,
    write_table,
)

PLAIN = Table(
    "Scores of <all>", ["Model", "PSNR ↑", "Diff"], [["a_b", Cell("24.1 ± 0.9", True), CHECK], ["c|d", "20%", ""]]
)
GROUPED = PLAIN._replace(groups=[("", 1), ("T1 → T2", 2)], note="n = 3.")


def test_text_is_aligned():
    lines = to_text(PLAIN).splitlines()
    assert lines[0] == "Scores of <all>"
    assert len({len(line) for line in lines[1:5]}) == 1
    assert "24.1 ± 0.9*" in lines[3]
    assert lines[-1] == "*: best."
    assert "T1 → T2 PSNR ↑" in to_text(GROUPED)
    assert to_text(GROUPED).endswith("n = 3. *: best.")


def test_markdown():
    lines = to_markdown(GROUPED).splitlines()
    assert lines[2:6] == [
        "| Model | T1 → T2 PSNR ↑ | T1 → T2 Diff |",
        "| :-- | --: | --: |",
        f"| a_b | **24.1 ± 0.9** | {CHECK} |",
        r"| c\|d | 20% |  |",
    ]
    assert lines[-1] == "n = 3. Bold: best."


def test_latex_is_escaped():
    text = to_latex(GROUPED)
    assert r"\multicolumn{1}{c}{} & \multicolumn{2}{c}{T1 $\rightarrow$ T2} \\" in text
    assert r"a\_b & \textbf{24.1 $\pm$ 0.9} & \checkmark \\" in text
    assert r"c\textbar{}d & 20\% &  \\" in text
    assert text.count(r"\begin") == text.count(r"\end") == 2


def test_csv_can_be_read_back():
    rows = list(csv.reader(to_csv(GROUPED).splitlines()))
    assert rows == [["Model", "T1 → T2 PSNR ↑", "T1 → T2 Diff"], ["a_b", "24.1 ± 0.9", CHECK], ["c|d", "20%", ""]]


def test_html_is_escaped():
    text = to_html(GROUPED)
    assert "<caption>Scores of &lt;all&gt;</caption>" in text
    assert '<th colspan="2">T1 → T2</th>' in text
    assert "<td class=best>24.1 ± 0.9</td>" in text


def test_write_table(tmp_path):
    paths = write_table(PLAIN, tmp_path / "tables", "scores")
    assert {p.name for p in paths} == {f"scores.{suffix}" for suffix in FORMATS}
    assert all(p.read_text(encoding="utf-8").endswith("\n") for p in paths)


def test_rows_fit_the_columns():
    with pytest.raises(ValueError, match="zip"):
        to_text(PLAIN._replace(groups=[("", 1)]))
