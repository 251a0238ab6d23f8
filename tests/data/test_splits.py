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
        "id;section;note\na;training;1,5\nb;training;\nc;test;\n;;\na;test;\n",
        'sep=;\n"id";"split"\n"a";"training"\n"b";"training"\n"c";"test"\n"a";"test"\n',
    ],
    ids=["json", "datalist", "csv", "tsv", "semicolons", "Excel's own line"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_split_file(tmp_path: Path, text: str, encoding: str) -> None:
    (tmp_path / "split").write_text(text, encoding=encoding, newline="\r\n")
    assert read_split_file(tmp_path / "split") == {"a": ["training", "test"], "b": ["training"], "c": ["test"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"training": 3}', "found int instead of a list under 'training'"),
        ('{"training": [{}]}', "found {} under 'training', which names no subject"),
        ('{"training": ["a"], "test": [], "training": ["b"]}', "found the key 'training' twice"),
        ('{"training": ' + "[" * 100_000, "nested too deep"),
        ("{", "expected JSON"),
        ("a\nb\n", "found 'a' in line 1"),
        ("id;section\na;training\nb\n", "found 'b' in line 3"),
        ("a,train\n", "'train'"),
        ('a,"test\n', "expected JSON .* or CSV lines"),
    ],
)
def test_faulty_split_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "split").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_split_file(tmp_path / "split")
    assert str(caught.value).startswith(f"{tmp_path / 'split'}: expected ")
    assert "\n" not in str(caught.value)


def test_encoding_that_cannot_be_known(tmp_path: Path) -> None:
    (tmp_path / "split").write_text("id;section\nMüller;training\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"found the byte 0xfc of another encoding in line 2\. Save the file as UTF-8"):
        read_split_file(tmp_path / "split")
    (tmp_path / "split").write_bytes(b"id,section\n\0\0,test")
    with pytest.raises(ValueError, match="expected text in UTF-8; found other content"):
        read_split_file(tmp_path / "split")


def test_missing_split_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="split_file"):
        read_split_file(tmp_path / "gone")
