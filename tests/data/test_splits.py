"""Tests of custom.data.splits; those of the shares are in test_datalist."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from custom.data.splits import read_split_file, split_by_subject

VISITS = [{"subject": f"p{i}-{visit}", "t1": "x"} for i in range(20) for visit in range(1 + i % 3)]
PATIENTS = {entry["subject"]: entry["subject"].split("-")[0] for entry in VISITS}


@pytest.mark.parametrize("seed", range(3))
def test_visits_of_a_patient_stay_together(seed: int) -> None:
    split = split_by_subject(VISITS, seed=seed, patients=PATIENTS)
    sections = {section: {PATIENTS[e["subject"]] for e in entries} for section, entries in split.items()}
    assert sum(map(len, split.values())) == len(VISITS)
    assert sum(map(len, sections.values())) == 20
    assert [len(patients) for patients in sections.values()] == [16, 2, 2]


def test_one_visit_each_is_the_plain_split() -> None:
    single = VISITS[:: len(VISITS) // 9]
    assert split_by_subject(single, patients={e["subject"]: e["subject"] for e in single}) == split_by_subject(single)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"training": ["a", "b"], "test": ["c", "a"]}),
        json.dumps({"modalities": ["t1"], "training": [{"subject": "a"}, {"subject": "b"}], "test": ["c", "a"]}),
        "subject,section\na,training\nb, training\nc,test\na,test\n",
        "a\ttraining\nb\ttraining\nc\ttest\na\ttest\n",
    ],
    ids=["json", "datalist", "csv", "tsv"],
)
def test_split_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "split").write_text(text)
    assert read_split_file(tmp_path / "split") == {"a": ["training", "test"], "b": ["training"], "c": ["test"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"training": 3}', "expected JSON"), ("{", "expected JSON"), ("a\nb\n", "CSV lines"), ("a,train\n", "'train'")],
)
def test_faulty_split_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "split").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_split_file(tmp_path / "split")


def test_missing_split_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="split_file"):
        read_split_file(tmp_path / "gone")
