from __future__ import annotations

import math

import pytest

from custom.metrics import PROTOCOL, Scores
from custom.reports import tables
from custom.reports.tables import CEILING, COPY_SOURCE, FULL_MODEL, Row, Summary


def rows() -> list[Row]:
    """Two subjects, t1 and t2: the full model is always 4 dB above copy-source, the ceiling at 40 dB."""
    result = []
    for i, subject in enumerate(("a", "b")):
        for source, target, base in (("t1", "t2", 20.0), ("t2", "t1", 22.0)):
            for method, gain in ((FULL_MODEL, 4.0), (COPY_SOURCE, 0.0)):
                scores = {"brain": Scores(base + gain + 2 * i, 0.9, 0.1, 0.01), "volume": Scores(30.0, 0.99, 0.1, 0.0)}
                result += tables.rows_of(subject, source, target, method, scores)
        for target in ("t1", "t2"):
            result += tables.rows_of(subject, target, target, CEILING, {"brain": Scores(40.0, 0.99, 0.01, 0.0)})
    return result


def test_csv_round_trip(tmp_path):
    path = tmp_path / "out" / "per_subject.csv"
    data = rows()
    tables.write_rows(path, data[:5])
    tables.write_rows(path, data[5:], append=True)
    assert tables.read_rows(path) == data
    assert path.read_text().splitlines()[0] == "subject,source,target,method,region,psnr,ssim,nmse,mae"
    tables.write_rows(path, data[:1])
    assert tables.read_rows(path) == data[:1]


def test_perfect_scores_survive_the_file(tmp_path):
    row = Row("a", "t1", "t1", CEILING, "brain", math.inf, 1.0, 0.0, 0.0)
    tables.write_rows(tmp_path / "x.csv", [row])
    assert tables.read_rows(tmp_path / "x.csv") == [row]


def test_bad_csv(tmp_path):
    with pytest.raises(FileNotFoundError, match="Run an evaluation first"):
        tables.read_rows(tmp_path / "absent.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv: expected the columns subject, source"):
        tables.read_rows(tmp_path / "other.csv")
    (tmp_path / "cut.csv").write_text(",".join(Row._fields) + "\ns,t1,t2,m,brain,x,1,1,1\n")
    with pytest.raises(ValueError, match=r"cut\.csv, line 2"):
        tables.read_rows(tmp_path / "cut.csv")


def test_summarize():
    assert tables.summarize([1.0, 3.0]) == Summary(2.0, math.sqrt(2), 2)
    assert math.isnan(tables.summarize([1.0]).sd)
    assert tables.summarize([1.0, math.inf]).mean == math.inf
    with pytest.raises(ValueError, match="at least one value"):
        tables.summarize([])


def test_method_table_averages_over_subjects_and_pairs_in_fixed_order():
    table = tables.method_table(rows(), "brain")
    assert list(table) == [COPY_SOURCE, CEILING, FULL_MODEL]
    assert table[COPY_SOURCE]["psnr"].mean == pytest.approx(22.0)
    assert table[FULL_MODEL]["psnr"].mean == pytest.approx(26.0)
    assert table[FULL_MODEL]["psnr"].n == 4
    assert table[FULL_MODEL]["psnr"].sd == pytest.approx(math.sqrt(8 / 3))


def test_pair_matrix_has_reconstructions_on_its_diagonal():
    matrix = tables.pair_matrix(rows(), "psnr", "brain")
    assert matrix["t1", "t1"].mean == pytest.approx(40.0)
    assert matrix["t1", "t2"].mean == pytest.approx(25.0)
    assert matrix["t2", "t1"].mean == pytest.approx(27.0)
    assert tables.pair_matrix(rows(), "psnr", "brain", method=COPY_SOURCE)["t1", "t2"].mean == pytest.approx(21.0)


def test_text_tables():
    text = tables.format_method_table(rows(), "brain")
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "PSNR (dB)" in lines[0]
    assert lines[2].startswith("copy-source")
    assert "22.00 ± 1.63" in lines[2]
    matrix = tables.format_pair_matrix(rows(), "psnr", "brain", modalities=("t1", "t2", "flair"))
    assert "→ FLAIR" in matrix
    assert "27.00 ± 1.41" in matrix
    assert tables.format_method_table(rows(), "lesion") == ""
    assert tables.format_pair_matrix(rows(), "psnr", "lesion") == ""


def test_report_states_protocol_failures_and_a_single_subject():
    text = tables.format_report(rows(), failures={"c": "no such file"})
    assert PROTOCOL in " ".join(text.split())
    assert "c: no such file" in text
    assert "One subject only" not in text
    assert "One subject only" in tables.format_report([r for r in rows() if r.subject == "a"])


@pytest.mark.parametrize(
    ("name", "shown"), [("t1ce", "T1ce"), ("flair", "FLAIR"), ("swi", "SWI"), ("my_scan", "my_scan")]
)
def test_display_names(name, shown):
    assert tables.display_name(name) == shown
