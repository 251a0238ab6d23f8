from __future__ import annotations

import math

import pytest

from custom.evaluation.metrics import Scores
from custom.evaluation.rows import CEILING, Row, display_name, read_rows, rows_of, write_rows


def rows() -> list[Row]:
    scores = {"volume": Scores(30.0, 0.99, 0.1, 0.0, 1.0), "brain": Scores(20.0, 0.9, 0.1, 0.01, 0.8)}
    return [row for subject in ("a", "b") for row in rows_of(subject, "t1", "t2", "full model", scores)]


def test_csv_round_trip(tmp_path):
    path = tmp_path / "out" / "per_subject.csv"
    write_rows(path, rows())
    assert read_rows(path) == rows()
    assert path.read_text().splitlines()[0] == "subject,source,target,method,region,psnr,ssim,nmse,mae,sharpness"
    write_rows(path, rows()[:1])
    assert read_rows(path) == rows()[:1]
    assert [p.name for p in path.parent.iterdir()] == ["per_subject.csv"]


def test_perfect_scores_survive_the_file(tmp_path):
    row = Row("a", "t1", "t1", CEILING, "brain", math.inf, 1.0, 0.0, 0.0, 1.0)
    write_rows(tmp_path / "x.csv", [row])
    assert read_rows(tmp_path / "x.csv") == [row]


def test_bad_csv(tmp_path):
    with pytest.raises(FileNotFoundError, match="Run an evaluation first"):
        read_rows(tmp_path / "absent.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other\.csv: expected the columns subject, source"):
        read_rows(tmp_path / "other.csv")
    (tmp_path / "cut.csv").write_text(",".join(Row._fields) + "\ns,t1,t2,m,brain,x,1,1,1,1\n")
    with pytest.raises(ValueError, match=r"cut\.csv, line 2"):
        read_rows(tmp_path / "cut.csv")


@pytest.mark.parametrize(
    ("name", "shown"), [("t1ce", "T1ce"), ("flair", "FLAIR"), ("swi", "SWI"), ("my_scan", "my_scan"), ("", "")]
)
def test_display_names(name, shown):
    assert display_name(name) == shown
