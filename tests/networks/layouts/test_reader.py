"""Tests of custom.networks.layouts.reader: nothing in a file runs, whatever it holds."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from custom.networks.layouts.reader import find_tensors, read_checkpoint

FIRST = "encoder.conv_in.weight"
STATE = {FIRST: torch.randn(2, 3), "half": torch.randn(4).half(), "count": torch.tensor(3), "empty": torch.empty(0)}


class Settings:
    """A class of somebody's training."""

    def __init__(self) -> None:
        self.lr = 1e-3


class Call:
    """Pickled as the call of a function, which runs when it is unpickled."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.args


@pytest.fixture
def save(tmp_path: Path):
    def write(content: Any) -> Path:
        torch.save(content, tmp_path / "file.ckpt")
        return tmp_path / "file.ckpt"

    return write


def check_state(content: Any) -> None:
    assert set(content) == set(STATE)
    for name, tensor in STATE.items():
        assert content[name].dtype == tensor.dtype
        assert torch.equal(content[name], tensor)


def test_plain_state_dict(save) -> None:
    check_state(read_checkpoint(save(STATE)))


def test_training_checkpoint_with_other_classes(save) -> None:
    parameters = OrderedDict((k, torch.nn.Parameter(v, requires_grad=v.is_floating_point())) for k, v in STATE.items())
    file = save({"state_dict": parameters, "hyper": Settings(), "callbacks": {Settings: [Settings()]}, "epoch": 3})
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)
    content = read_checkpoint(file)
    check_state(content["state_dict"])
    assert content["epoch"] == 3
    assert type(content["hyper"]).__name__ == "Inert"
    assert not vars(content["hyper"])


def test_views_share_a_storage(save) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    content = read_checkpoint(save({"t": whole.T, "row": whole[1], "other": Settings()}))
    assert torch.equal(content["t"], whole.T)
    assert torch.equal(content["row"], whole[1])


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    "call",
    [
        lambda mark: Call(os.system, f"touch {mark}"),
        lambda mark: Call(exec, f"open({str(mark)!r}, 'w').close()"),
        lambda mark: Call(eval, f"open({str(mark)!r}, 'w').close()"),
        lambda mark: Call(open, str(mark), "w"),
        lambda mark: Call(os.mkdir, str(mark)),
        lambda mark: Call(getattr, Call(__import__, "os"), "system"),
        lambda mark: Call(torch.load, str(mark)),
    ],
    ids=["system", "exec", "eval", "open", "mkdir", "getattr", "load"],
)
def test_code_in_a_file_does_not_run(save, tmp_path: Path, call: Any, wrapped: bool) -> None:
    mark = tmp_path / "mark"
    evil = call(mark)
    file = save({"state_dict": STATE, "evil": [evil] if wrapped else evil})
    check_state(read_checkpoint(file)["state_dict"])
    assert not mark.exists()


def test_the_trap_works(save, tmp_path: Path) -> None:
    """What the test above relies on: an ordinary unpickler would run it."""
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(Call(os.mkdir, str(mark))))
    assert mark.exists()


def test_attributes_of_known_classes_cannot_be_set(save, tmp_path: Path) -> None:
    """A pickle may set the state of whatever it was given, functions and classes too."""
    stream = io.BytesIO()
    pickler = pickle._Pickler(stream, protocol=2)
    pickler.proto = 2
    # the class OrderedDict itself gets a state: ({}, {"update": None})
    stream.write(pickle.PROTO + bytes([2]))
    stream.write(b"ccollections\nOrderedDict\n")
    stream.write(b"}}X\x06\x00\x00\x00updateNs\x86b.")
    file = save({"a": torch.ones(1), "b": Settings()})
    replaced = tmp_path / "replaced.ckpt"
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(replaced, "w") as new:
        for entry in old.infolist():
            new.writestr(entry, stream.getvalue() if entry.filename.endswith("data.pkl") else old.read(entry))
    with pytest.raises(
        ValueError, match=r"replaced\.ckpt: expected a checkpoint of torch\.save; found one that cannot"
    ):
        read_checkpoint(replaced)
    assert callable(OrderedDict.update)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.ckpt: expected a checkpoint; found no file"):
        read_checkpoint(tmp_path / "nothing.ckpt")


@pytest.mark.parametrize("content", [b"", b"text, no weights", pickle.dumps({"a": 1})])
def test_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.pt: expected a checkpoint of torch\.save; found another file"):
        read_checkpoint(tmp_path / "file.pt")


def test_another_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as archive:
        archive.writestr("bundle/configs/inference.json", "{}")
    with pytest.raises(ValueError, match=r"bundle\.zip: expected a checkpoint .* cannot be read .*no archive of torch"):
        read_checkpoint(tmp_path / "bundle.zip")


def test_torchscript(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "model.ts")
    with pytest.raises(ValueError, match=r"model\.ts: expected a checkpoint of torch\.save"):
        read_checkpoint(tmp_path / "model.ts")


def test_truncated(save, tmp_path: Path) -> None:
    whole = save({"state_dict": STATE, "hyper": Settings()}).read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"half\.ckpt: expected a checkpoint of torch\.save"):
        read_checkpoint(tmp_path / "half.ckpt")


def test_storage_that_lies_about_its_size(save, tmp_path: Path) -> None:
    file = save({"a": torch.ones(8), "hyper": Settings()})
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(tmp_path / "short.ckpt", "w") as new:
        for entry in old.infolist():
            new.writestr(entry, old.read(entry)[:4] if "/data/" in entry.filename else old.read(entry))
    with pytest.raises(ValueError, match=r"short\.ckpt: .*a storage of 4 bytes for 8 numbers"):
        read_checkpoint(tmp_path / "short.ckpt")


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (lambda s: s, ""),
        (lambda s: {"state_dict": s, "epoch": 1}, ""),
        (lambda s: {"networks": {"model": s}, "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}}, ""),
        (lambda s: {f"module.{k}": v for k, v in s.items()} | {"other": torch.ones(1)}, "module."),
    ],
)
def test_state_dict_is_found(wrap: Any, prefix: str) -> None:
    found = find_tensors(wrap(STATE), FIRST, "file.pt")
    check_state(found.tensors)
    assert found.others == (["other"] if prefix else [])


def test_wrong_layout_names_the_right_one() -> None:
    for name, layout in (
        ("encoder.blocks.0.conv.weight", "an AutoencoderKL"),
        ("time_embed.0.weight", "a DiffusionModelUNet"),
    ):
        with pytest.raises(ValueError, match=f"file.pt: expected an autoencoder of the release .*found .*{layout}"):
            find_tensors({name: torch.ones(1)}, FIRST, "file.pt")


@pytest.mark.parametrize(
    ("content", "found"),
    [({"a": 1, "b": 2, "c": 3, "d": 4}, "entries a, b, c, …"), ({}, "no entries"), ([1], "a list"), (3.0, "a float")],
)
def test_no_layout_at_all(content: Any, found: str) -> None:
    with pytest.raises(ValueError, match=f"file.pt: expected an autoencoder of the release .*found {found}"):
        find_tensors(content, FIRST, "file.pt")


def test_two_state_dicts() -> None:
    with pytest.raises(ValueError, match=r"file.pt: expected one state dict .*found 2, at 'model/.*', 'ema/.*'"):
        find_tensors({"model": STATE, "ema": STATE}, FIRST, "file.pt")
