"""Bad configs, weights and checkpoints.

What ``python -m monai.bundle`` finds before it evaluates a config of ours (no such file, no JSON, no such run) has
MONAI's own message and traceback: no code of this project runs before that.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import torch
from kinds import kind
from resume import CONFIGS
from rooms import Room


def config(room: Room, change: object, name: str = "inference.json") -> list[object]:
    """A translation by a changed copy of the config."""
    content = json.loads((CONFIGS / "inference.json").read_text())
    text = change if isinstance(change, str) else json.dumps({**content, **change})  # type: ignore[dict-item]
    return room.inference(room.base.scan, config_file=room.write(name, text))


@kind("configs", "a class that does not exist", "Nothing|custom.networks.Nothing")
def _(room: Room) -> list[object]:
    return config(room, {"network_def": {"_target_": "custom.networks.Nothing"}})


@kind("configs", "a reference to a key that does not exist", "nowhere")
def _(room: Room) -> list[object]:
    return config(room, {"seed": "@nowhere"})


@kind("configs", "a class with an argument that it does not have", "widht|unexpected|argument")
def _(room: Room) -> list[object]:
    return config(
        room, {"network_def": {"_target_": "custom.networks.DetailTransfer", "num_modalities": 4, "widht": 3}}
    )


@kind("configs", "an expression that fails", "nothing_of_that_name")
def _(room: Room) -> list[object]:
    return config(room, {"seed": "$nothing_of_that_name"})


@kind("configs", "crops that the discriminator cannot judge", "crop_size", "12 voxels", "larger crops")
def _(room: Room) -> list[object]:
    return room.training(crop_size=[8, 8, 8], discriminator_def__num_layers_d=2, max_epochs=2)


@kind("configs", "export-weights: no such config", r"absent\.json")
def _(room: Room) -> list[object]:
    return ["custom", "export_weights", "unet", str(room.out / "w.pt"), "--config", "absent.json"]


@kind("configs", "export-weights: a config that is no JSON", r"bad\.json")
def _(room: Room) -> list[object]:
    path = room.write("bad.json", "{'image': none,}")
    return ["custom", "export_weights", "unet", str(room.out / "w.pt"), "--config", str(path)]


def _weights(name: str, *says: str, change: object = None, content: bytes | None = None) -> None:
    @kind("weights", name, r"model\.pt", *says)
    def _(room: Room) -> list[object]:
        path = room.weights(change) if content is None else room.write("model.pt", content)
        return room.inference(room.base.scan, ckpt_path=path)


class Malice:
    """What a pickle can hold: a call."""

    def __reduce__(self) -> tuple:
        return (Path("/tmp/campaign-malice").touch, ())


_weights("an empty file of weights", content=b"")
_weights("text in place of weights", content=b"no weights")
_weights("a page in place of weights", content=b"<html>rate limit exceeded</html>")
_weights("a pointer of Git LFS", content=b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 16133235\n")
_weights("a pickle with code", content=pickle.dumps(Malice()))
_weights("a list in place of weights", change=lambda state: [torch.zeros(1)])
_weights("a training's checkpoint", change=lambda state: {"network": state, "epoch": 3})
_weights("a missing tensor", "missing", change=lambda state: state.pop(next(iter(state))) and None)
_weights("an unknown tensor", "unknown", change=lambda state: state.update(other=torch.zeros(1)))
_weights("a tensor of another shape", "shape", change=lambda state: state.update({next(iter(state)): torch.zeros(3)}))
_weights(
    "weights that are NaN", "NaN", change=lambda state: next(iter(state.values())).data.fill_(float("nan")) and None
)
_weights("no tensor at all", change=lambda state: {})


@kind("weights", "no such weights", r"absent\.pt", "found no")
def _(room: Room) -> list[object]:
    return room.inference(room.base.scan, ckpt_path=room.folder / "absent.pt")


@kind("weights", "a folder in place of weights", "weights")
def _(room: Room) -> list[object]:
    (room.folder / "weights").mkdir()
    return room.inference(room.base.scan, ckpt_path=room.folder / "weights")


@kind("weights", "weights cut short", r"model\.pt")
def _(room: Room) -> list[object]:
    path = room.weights()
    path.write_bytes(path.read_bytes()[:-5000])
    return room.inference(room.base.scan, ckpt_path=path)


@kind("weights", "weights with one changed bit", r"model\.pt", "checksum|damaged")
def _(room: Room) -> list[object]:
    path = room.weights()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return room.inference(room.base.scan, ckpt_path=path)


@kind("weights", "weights of another vocabulary", r"model\.pt|modalities")
def _(room: Room) -> list[object]:
    return room.inference(room.base.scan, modalities="['t1','t2']")


def _resumed(name: str, *says: str, change: object = None) -> None:
    @kind("weights", f"resume from {name}", *says)
    def _(room: Room) -> list[object]:
        if change is not None:
            room.stage("train_autoencoder", change)
        return room.training(resume="true")


_resumed("nothing", r"last\.pt", "--resume|resume")
_resumed("a checkpoint cut short", r"last\.pt", change=lambda p: p.write_bytes(p.read_bytes()[:200]))
_resumed("an empty checkpoint", r"last\.pt", change=lambda p: p.write_bytes(b""))
_resumed("another training's checkpoint", r"last\.pt", change=lambda p: None)


@kind("weights", "a stage without the one before it", r"best\.pt", "train_autoencoder")
def _(room: Room) -> list[object]:
    return room.training("train_spade")


@kind("weights", "the last stage without the one before it", r"best\.pt", "train_spade")
def _(room: Room) -> list[object]:
    return room.training("train")


@kind("weights", "an evaluation without weights", r"absent\.pt")
def _(room: Room) -> list[object]:
    return room.evaluating(ckpt_path=room.folder / "absent.pt")
