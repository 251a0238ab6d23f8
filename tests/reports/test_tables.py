from __future__ import annotations

import pytest

from custom.evaluation.metrics import Scores
from custom.evaluation.rows import CEILING, COPY_SOURCE, FULL_MODEL, LOOKUP, SPADE_ONLY, Row, rows_of
from custom.reports.render import CHECK, Cell, Table
from custom.reports.tables import (
    Ablation,
    ablation_table,
    comparison_table,
    method_table,
    model_table,
    pair_table,
    sources_table,
    summary_table,
)


def rows(subjects: int = 2) -> list[Row]:
    """The full model is always 4 dB above copy-source, the ceiling at 40 dB; FLAIR is the better source of T2."""
    result = []
    for i in range(subjects):
        for source, target, base in (("t1", "t2", 20.0), ("flair", "t2", 21.0), ("t2", "t1", 22.0)):
            for method, gain in ((FULL_MODEL, 4.0), (COPY_SOURCE, 0.0)):
                scores = {
                    "brain": Scores(base + gain + 2 * i, 0.9, 0.1, 0.01, 0.8),
                    "volume": Scores(30.0, 0.99, 0.1, 0.0, 1),
                }
                result += rows_of(f"s{i}", source, target, method, scores)
        for target in ("t1", "t2"):
            result += rows_of(f"s{i}", target, target, CEILING, {"brain": Scores(40.0, 0.99, 0.01, 0.0, 1)})
    return result


def cell(table: Table, line: str, column: str) -> Cell:
    """The cell of the row that starts with ``line``; columns are named with their group."""
    names = [name for name, span in table.groups for _ in range(span)] or [""] * len(table.columns)
    headed = [f"{group} {name}".strip() for group, name in zip(names, table.columns, strict=True)]
    row = next(row for row in table.cells() if row[0].text == line)
    return row[headed.index(column)]


def test_numbers_of_sources_side_by_side():
    assert sources_table(rows(), "brain") is None
    together = []
    for subject in ("s0", "s1"):
        for method, psnr in ((FULL_MODEL, 27.0), (LOOKUP, 20.0)):
            scores = {"brain": Scores(psnr, 0.9, 0.1, 0.01, 0.8)}
            together += rows_of(subject, "t1+flair", "t2", method, scores)
    table = sources_table([*rows(), *together], "brain")
    lines = [[c.text for c in row] for row in table.cells()]
    # what translates one source alone, such as copying it, has nothing to be compared with
    assert [line[:2] for line in lines] == [["1", FULL_MODEL], ["2", LOOKUP], ["2", FULL_MODEL]]
    assert lines[2][2].startswith("27.00")
    assert table.cells()[2][2].bold


def test_methods_over_subjects_and_pairs():
    table = method_table(rows(), "brain")
    assert [row[0].text for row in table.cells()] == [COPY_SOURCE, CEILING, FULL_MODEL]
    # 20, 22, 21, 23, 22, 24: the interval draws the two subjects, whose means are 21 and 23
    assert cell(table, COPY_SOURCE, "PSNR (dB) ↑").text == "22.00 ± 1.41 [21.00, 23.00]"
    assert cell(table, FULL_MODEL, "volumes").text == "6"
    assert cell(table, FULL_MODEL, "subjects").text == "2"
    assert method_table(rows(), "lesion") is None
    assert "same volumes" not in table.note
    assert "Not all lines have the same volumes" in method_table(rows()[1:], "brain").note


def test_pairs_are_shaped_as_table_2():
    table = pair_table(rows(), "brain", modalities=("t1", "t1ce", "t2", "flair"))
    assert table.groups == [("", 1), ("T1", 3), ("T2", 3)]  # nothing was translated to FLAIR
    assert table.columns[1:4] == ["PSNR ↑", "NMSE ↓", "SSIM ↑"]
    assert cell(table, "FLAIR", "T2 PSNR ↑") == Cell("26.00 ± 1.41", bold=True)
    assert cell(table, "T1", "T2 PSNR ↑") == Cell("25.00 ± 1.41", bold=False)
    assert cell(table, "T1", "T1 PSNR ↑") == Cell("40.00 ± 0.00", bold=False)  # a reconstruction is not a translation
    assert cell(table, "T2", "T1 PSNR ↑").bold is False  # one source: nothing to be better than
    assert cell(table, "FLAIR", "T1 PSNR ↑").text == "–"
    assert pair_table(rows(), "lesion") is None


def test_models_are_shaped_as_table_1():
    table = model_table(rows(), "brain", pairs=[("t1", "t2"), ("t1", "pd")])
    assert table.groups == [("", 1), ("T1 → T2", 3)]
    assert cell(table, FULL_MODEL, "T1 → T2 PSNR ↑") == Cell("25.00 ± 1.41", bold=True)
    assert cell(table, COPY_SOURCE, "T1 → T2 PSNR ↑").bold is False
    assert cell(table, COPY_SOURCE, "T1 → T2 NMSE ↓").bold  # as good as the other
    assert CEILING not in [row[0].text for row in table.cells()]
    assert len(model_table(rows(), "brain").groups) == 4


def test_ablations_are_shaped_as_table_3():
    spade = [row._replace(method=SPADE_ONLY) for row in rows() if row.method == COPY_SOURCE]
    table = ablation_table(
        [
            Ablation("(c)", False, False, True, "VQ", spade, SPADE_ONLY),
            Ablation("ours", True, True, True, "VQ", rows()),
        ],
        ("t1", "t2"),
        "brain",
    )
    assert table.columns[:5] == ["Method", "Diff", "Palette", "SPADE", "Reg-type"]
    assert [c.text for c in table.cells()[0][:5]] == ["(c)", "", "", CHECK, "VQ"]
    assert cell(table, "ours", "PSNR ↑") == Cell("25.00 ± 1.41", bold=True)
    with pytest.raises(ValueError, match=r"ablation \(a\): expected scores of full model for T1 → FLAIR"):
        ablation_table([Ablation("(a)", True, False, False, "VQ", rows())], ("t1", "flair"))


def test_tests_against_a_reference():
    table = comparison_table(rows(8), "brain", FULL_MODEL)
    assert cell(table, COPY_SOURCE, "PSNR (dB) ↑").text == "-4.00 (p = 0.008)"  # 2 / 2⁸, the smallest for 8 subjects
    assert cell(table, COPY_SOURCE, "SSIM ↑").text == "+0.000 (no test)"
    others = [row._replace(method="other", source="t1+flair") for row in rows(8) if row.method == FULL_MODEL]
    table = comparison_table([*rows(8), *others], "brain", FULL_MODEL)
    assert cell(table, "other", "PSNR (dB) ↑").text == "no task in common"
    assert comparison_table(rows(), "brain", "other") is None
    assert comparison_table(rows(1), "brain", FULL_MODEL) is None
    assert comparison_table([r for r in rows() if r.method == FULL_MODEL], "brain", FULL_MODEL) is None


def test_one_subject_has_neither_sd_nor_interval():
    assert cell(pair_table(rows(1), "brain"), "FLAIR", "T2 PSNR ↑").text == "25.00"
    assert "[" not in cell(method_table(rows(1), "brain"), FULL_MODEL, "PSNR (dB) ↑").text


def test_summary_holds_every_mean():
    table = summary_table(rows())
    assert len(table.rows) == (3 * 2 * 2 + 2) * 5
    line = next(r for r in table.rows if r[:5] == [FULL_MODEL, "t1", "t2", "brain", "psnr"])
    assert line[5] == "25"
    assert line[-1] == "2"
