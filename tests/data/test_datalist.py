"""Tests of custom.data.datalist."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from custom.data import datalist as module
from custom.data.datalist import (
    ensure_phantom,
    load_datalist,
    load_phantoms,
    read_datalist,
    split_by_subject,
    with_phantoms,
    write_datalist,
)
from custom.data.phantom import dataset
from custom.utils.modalities import BRATS_MODALITIES


def entries(count: int) -> list[dict]:
    return [{"subject": f"s{i:02d}", "t1": f"/data/s{i}_t1.nii", "t2": f"/data/s{i}_t2.nii"} for i in range(count)]


class TestSplit:
    @pytest.mark.parametrize("count", [3, 4, 10, 57])
    def test_disjoint_and_complete(self, count: int) -> None:
        split = split_by_subject(entries(count))
        subjects = [e["subject"] for section in split.values() for e in section]
        assert sorted(subjects) == [e["subject"] for e in entries(count)]
        assert all(split.values())

    def test_sizes(self) -> None:
        assert [len(s) for s in split_by_subject(entries(100)).values()] == [80, 10, 10]
        assert [len(s) for s in split_by_subject(entries(24), counts=(14, 2, 8)).values()] == [14, 2, 8]
        assert [len(s) for s in split_by_subject(entries(5), (0.5, 0.0, 0.5)).values()] in ([2, 0, 3], [3, 0, 2])

    def test_seed_decides_and_order_does_not(self) -> None:
        assert split_by_subject(entries(20)) == split_by_subject(entries(20)[::-1])
        assert split_by_subject(entries(20)) != split_by_subject(entries(20), seed=1)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"entries": entries(2)}, "expected at least 3 subjects"),
            ({"entries": entries(3) + entries(1)}, "s00 repeated"),
            ({"entries": entries(9), "fractions": (0.8, 0.1, 0.2)}, "sum to 1"),
            ({"entries": entries(9), "counts": (4, 4, 4)}, "sum to 9 subjects"),
        ],
    )
    def test_faults(self, arguments: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            split_by_subject(**arguments)


class TestReadAndWrite:
    def test_round_trip(self, brats_folder) -> None:
        root = brats_folder(dict.fromkeys("abcd", ("t1", "t2", "seg")))
        split = split_by_subject(module.discover(root))
        path = write_datalist(root / "datalist.json", split, BRATS_MODALITIES)
        content = read_datalist(path)
        assert content.pop("modalities") == list(BRATS_MODALITIES)
        assert content == split

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
    def test_encodings(self, brats_folder, encoding: str) -> None:
        root = brats_folder(dict.fromkeys("abcd", ("t1", "t2")))
        path = write_datalist(root / "datalist.json", split_by_subject(module.discover(root)), BRATS_MODALITIES)
        expected, text = read_datalist(path), path.read_text()
        path.write_text(text, encoding=encoding)
        assert read_datalist(path) == expected

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('"modalities": ["t1", "t2"], "modalities": []', "expected JSON; found the key 'modalities' twice"),
            ('"modalities": [1, "t2"], "training": []', "expected names of modalities"),
            (
                '"modalities": ["t1", "t2"], "training": [{"subject": "a", "t1": "", "t2": "x"}]',
                "a path as text for t1",
            ),
            ('"modalities": ["t1", "t2"], "training": [{"subject": "a", "t1": ["x"]}]', "a path as text for t1"),
        ],
    )
    def test_faults_of_json(self, tmp_path: Path, content: str, message: str) -> None:
        (tmp_path / "list.json").write_text(f"{{{content}}}")
        with pytest.raises(ValueError, match=message):
            read_datalist(tmp_path / "list.json")

    def test_paths_are_relative_to_the_datalist(self, brats_folder) -> None:
        root = brats_folder(dict.fromkeys("abc", ("t1", "t2")))
        path = write_datalist(root / "datalist.json", split_by_subject(module.discover(root)), BRATS_MODALITIES)
        assert str(root) not in path.read_text()
        moved = root.rename(root.with_name("moved"))
        assert read_datalist(moved / "datalist.json")["test"][0]["t1"].startswith(str(moved))

    def test_files_elsewhere_keep_absolute_paths(self, brats_folder, tmp_path: Path) -> None:
        root = brats_folder(dict.fromkeys("abc", ("t1", "t2")))
        (tmp_path / "lists").mkdir()
        path = write_datalist(tmp_path / "lists" / "l.json", split_by_subject(module.discover(root)), ["t1", "t2"])
        assert json.loads(path.read_text())["test"][0]["t1"].startswith(str(root))
        assert read_datalist(path)["test"]

    def test_aliases_in_keys(self, brats_folder) -> None:
        root = brats_folder({"a": ("t1", "t1ce")})
        item = {"subject": "a", "T1w": "a/a_t1.nii.gz", "T1Gd": "a/a_t1ce.nii.gz"}
        (root / "l.json").write_text(json.dumps({"modalities": ["T1", "t1c"], "training": [item]}))
        assert set(read_datalist(root / "l.json")["training"][0]) == {"subject", "t1", "t1ce"}

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"test": [{"subject": "a", "t1": "a/a_t1.nii.gz", "t2": "a/a_t2.nii.gz"}]}, ValueError,
             r"subject a once; found it in training\[0\] and test\[0\]"),
            ({"training": [{"subject": "a", "t1": "a/a_t1.nii.gz"}]}, ValueError,
             r"training\[0\]: expected two or more of t1, t2 for subject a; found t1"),
            ({"training": [{"subject": "a", "t1": "a/a_t1.nii.gz", "t2": "a/gone.nii.gz"}]}, FileNotFoundError,
             r"training\[0\]: expected the t2 file .*gone\.nii\.gz; found no file"),
            ({"training": [{"subject": "a", "t1": "a/a_t1.nii.gz", "pet": "a/a_t2.nii.gz"}]}, ValueError,
             r"training\[0\]: expected keys .* found 'pet'"),
            ({"training": [{"t1": "a/a_t1.nii.gz"}]}, ValueError, r'training\[0\]: expected an object with "subject"'),
            ({"training": {}}, ValueError, "expected a list under 'training'"),
            ({"modalities": None}, ValueError, 'found no "modalities"'),
        ],
        ids=["two_sections", "one_modality", "missing_file", "unknown_key", "no_subject", "no_list", "no_modalities"],
    )  # fmt: skip
    def test_faults(self, brats_folder, change: dict, error: type, message: str) -> None:
        root = brats_folder({"a": ("t1", "t2")})
        good = {"subject": "a", "t1": "a/a_t1.nii.gz", "t2": "a/a_t2.nii.gz"}
        path = root / "datalist.json"
        content = {"modalities": ["t1", "t2"], "training": [good], "validation": [], "test": []}
        path.write_text(json.dumps(content | change))
        with pytest.raises(error, match=message) as caught:
            read_datalist(path)
        assert str(path) in str(caught.value)

    def test_not_json(self, tmp_path: Path) -> None:
        (tmp_path / "l.json").write_text("{")
        with pytest.raises(ValueError, match=r"l\.json: expected JSON"):
            read_datalist(tmp_path / "l.json")


class TestLoad:
    def test_one_split_for_all_sections(self, brats_folder) -> None:
        root = brats_folder({f"s{i}": ("t1", "t2") for i in range(5)})
        sections = {s: load_datalist(root, s) for s in ("training", "validation", "test")}
        assert (root / "datalist.json").is_file()
        assert len({e["subject"] for section in sections.values() for e in section}) == 5
        assert load_datalist(root, "all", seed=3) == [e for section in sections.values() for e in section]
        assert load_datalist(root, "test", seed=99) == sections["test"]  # the file decides

    def test_one_subject_is_enough_for_all(self, brats_folder) -> None:
        root = brats_folder({"only": ("t1", "t2")})
        assert [e["subject"] for e in load_datalist(root, "all")] == ["only"]
        assert not (root / "datalist.json").exists()

    def test_folder_that_cannot_be_written(self, brats_folder, monkeypatch, caplog) -> None:
        root = brats_folder(dict.fromkeys("abc", ("t1", "t2")))

        def refuse(*args: object, **kwargs: object) -> None:
            raise PermissionError("read-only")

        monkeypatch.setattr(module, "atomic_write", refuse)
        assert len(load_datalist(root, "training")) == 1
        assert "cannot be written" in caplog.text
        assert not (root / "datalist.json").exists()

    def test_empty_section(self, brats_folder) -> None:
        root = brats_folder(dict.fromkeys("abc", ("t1", "t2")))
        write_datalist(root / "datalist.json", {"training": module.discover(root)}, BRATS_MODALITIES)
        with pytest.raises(ValueError, match=r"datalist\.json: test: expected at least one|one subject under 'test'"):
            load_datalist(root, "test")

    def test_subject_without_a_pair_in_the_vocabulary(self, brats_folder, caplog) -> None:
        root = brats_folder({"a": ("t1", "t2"), "b": ("t1", "flair"), "c": ("t1", "t2")})
        write_datalist(root / "datalist.json", {"training": module.discover(root)}, BRATS_MODALITIES)
        assert [e["subject"] for e in load_datalist(root, "training", ["t1", "t2"])] == ["a", "c"]
        assert "subject b is left out" in caplog.text

    def test_faults(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="found nothing there"):
            load_datalist(tmp_path / "gone", "training", phantom_dir=tmp_path / "phantom")
        with pytest.raises(ValueError, match="section: expected one of"):
            load_datalist(tmp_path, "train")


class TestPhantom:
    def test_made_once_where_it_is_the_default(self, tmp_path: Path, caplog, monkeypatch) -> None:
        folder = tmp_path / "data" / "phantom"
        monkeypatch.setattr(module.ensure_phantom, "__kwdefaults__", {"counts": (2, 1, 1), "seed": 0})
        original = dataset.write_dataset
        monkeypatch.setattr(dataset, "write_dataset", lambda *a, **k: original(*a, spacing=8.0, progress=False, **k))
        found = load_datalist(folder, "training", phantom_dir=folder)
        assert [len(load_datalist(folder, s)) for s in ("training", "validation", "test")] == [2, 1, 1]
        assert len([r for r in caplog.records if "synthetic phantoms are made here" in r.message]) == 1
        assert load_datalist(folder, "training", phantom_dir=folder) == found
        assert len([r for r in caplog.records if "synthetic phantoms are made here" in r.message]) == 1

    def test_interrupted_run_goes_on(self, tmp_path: Path) -> None:
        options = {"counts": (1, 1, 1), "spacing": 8.0, "progress": False}
        folder = ensure_phantom(tmp_path / "phantom", **options)
        (folder / "datalist.json").unlink()
        (folder / ".incomplete").touch()
        ensure_phantom(folder, **options)
        assert (folder / "datalist.json").is_file()
        assert not (folder / ".incomplete").exists()


class TestPhantomsBesideOtherSubjects:
    def test_share(self) -> None:
        mixed = with_phantoms(entries(6), entries(20), 0.25)
        assert mixed == [*entries(6), *entries(2)]
        assert with_phantoms(entries(6), [], 0.0) == entries(6)

    def test_none_are_made_for_no_share(self, tmp_path: Path) -> None:
        assert load_phantoms(tmp_path / "phantom", 0.0, BRATS_MODALITIES, tmp_path) == []
        assert not (tmp_path / "phantom").exists()

    @pytest.mark.parametrize("share", [-0.1, 1, 7])
    def test_impossible_shares(self, tmp_path: Path, share: float) -> None:
        with pytest.raises(ValueError, match=r"phantom_share: expected a number from 0 to below 1; found"):
            load_phantoms(tmp_path, share, BRATS_MODALITIES, tmp_path / "other")

    def test_phantoms_beside_phantoms(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="phantom_share: expected 0 where the data set is the phantoms themselves"):
            load_phantoms(tmp_path, 0.5, BRATS_MODALITIES, tmp_path / "deep" / "..")
