"""Files from elsewhere run no code, write nowhere but where they should, and take no more memory than they hold."""

from __future__ import annotations

import ast
import os
import socket
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from custom import Translator
from custom.inference.inputs import inference_inputs
from custom.networks.layouts.reader import read_checkpoint
from custom.networks.weights import load_tensors, read_weights
from custom.training.losses import MedicalNetPerceptual

CODE = Path(__file__).resolve().parents[1] / "custom"


class Attack:
    """Pickled as the call of a function, which runs when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("legacy", [False, True])
def test_malicious_weights_do_nothing(tmp_path: Path, legacy: bool) -> None:
    """In whatever reads files of tensors; and the file is one that works: an ordinary unpickler runs it."""
    file, mark = tmp_path / "model.pt", tmp_path / "mark"
    content = {"state_dict": {"encoder.conv_in.weight": torch.ones(2)}, "other": Attack(mark)}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    readers = {
        "read_weights": lambda: read_weights(file),
        "load_tensors": lambda: load_tensors(file, expected="tensors", remedy="Replace it"),
        "Translator": lambda: Translator.load(file, device="cpu"),
        "MedicalNet": lambda: MedicalNetPerceptual(weights=file),
        "read_checkpoint": lambda: read_checkpoint(file),
    }
    for name, reader in readers.items():
        if name == "read_checkpoint" and not legacy:
            assert list(reader()["state_dict"]) == ["encoder.conv_in.weight"]  # what is harmless in it
        else:
            with pytest.raises(ValueError, match=r"model\.pt: expected "):
                reader()
        assert not mark.exists(), name
    torch.load(file, weights_only=False)
    assert mark.exists()


def test_no_code_is_made_of_data() -> None:
    """No unpickling but what ``networks.layouts.reader`` restrains, no eval, no shell; only tensors are loaded."""
    found = []
    for path in sorted(CODE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            wrong = (
                called in ("eval", "exec", "os.system", "compile", "yaml.load")
                or (called.startswith(("pickle.", "marshal.", "shelve.", "dill.", "joblib.")) and "load" in called)
                or (called.endswith("torch.load") and keywords.get("weights_only") != "True")
                or (called in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False")
                or keywords.get("shell") == "True"
            )
            found += [f"{path.relative_to(CODE)}:{node.lineno} {called}"] if wrong else []
    assert found == []


@pytest.mark.parametrize("top", ["..", "", ".", "../../elsewhere"])
def test_zip_that_leaves_its_folder(tmp_path: Path, top: str) -> None:
    archive = tmp_path / "bundle.zip"
    with zipfile.ZipFile(archive, "w") as content:
        for name in ("configs/inference.json", "configs/metadata.json", "models/model.pt"):
            content.writestr(f"{top}/{name}", "{}")
    with pytest.raises(ValueError, match=r"bundle\.zip: expected a bundle in one folder"):
        Translator.load(archive)
    assert list(tmp_path.iterdir()) == [archive]


def test_zip_with_links(tmp_path: Path) -> None:
    """A link in a zip is unpacked as a file that holds its text: nothing outside is read or written."""
    archive, secret = tmp_path / "bundle.zip", tmp_path / "secret.json"
    secret.write_text('{"a": 1}')
    with zipfile.ZipFile(archive, "w") as content:
        link = zipfile.ZipInfo("top/configs/inference.json")
        link.external_attr = 0o120777 << 16
        content.writestr(link, str(secret))
        for name in ("configs/metadata.json", "models/model.pt"):
            content.writestr(f"top/{name}", "{}")
    with pytest.raises(ValueError, match="Expecting value"):  # the text of the link is no JSON
        Translator.load(archive)
    assert secret.read_text() == '{"a": 1}'


def test_zip_that_swells(tmp_path: Path) -> None:
    """The sizes that a zip states are looked at before anything is unpacked."""
    archive = tmp_path / "bundle.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
        for name in ("configs/inference.json", "configs/metadata.json", "models/model.pt"):
            content.writestr(f"top/{name}", "{}")
        content.infolist()[-1].file_size = 2**40
    with pytest.raises(ValueError, match=r"bundle\.zip: expected (at most|a bundle's zip)"):
        Translator.load(archive)


def test_links_that_go_round(write_volume, tmp_path: Path) -> None:
    scan = write_volume("data/a/scan.nii.gz")
    (scan.parent / "up").symlink_to(tmp_path / "data")
    (scan.parent / "self").symlink_to(scan.parent / "self")
    (tmp_path / "data" / "again").symlink_to(scan.parent)
    assert [item["image"] for item in inference_inputs(tmp_path / "data")] == [str(scan)]


def test_the_tests_have_no_network() -> None:
    """What every other test of the suite relies on to show that nothing needs one."""
    with pytest.raises(OSError, match="the tests have no network"):
        urllib.request.urlopen("http://198.51.100.1/", timeout=1)
    with socket.socket() as server:
        with pytest.raises(OSError, match="the tests have no network"):
            server.bind(("0.0.0.0", 0))
        server.bind(("127.0.0.1", 0))
