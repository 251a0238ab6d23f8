"""Bad data lists, splits and folders of data sets, and bad arguments of the other commands."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
from kinds import kind
from rooms import Room


def _datalist(name: str, *says: str, change: Any) -> None:
    """A training by a datalist that is wrong."""

    @kind("datalists", name, r"datalist\.json|data", *says)
    def _(room: Room) -> list[object]:
        return room.training(dataset_dir=room.datalist(change))


_datalist("a list in place of a datalist", change=lambda content: [1, 2])
_datalist("no JSON", change=lambda content: "training: none")
_datalist("no section of training", "training", change=lambda content: content.pop("training") and None)
_datalist("an empty section of training", "training", change=lambda content: content.update(training=[]))
_datalist("no modalities", "modalities", change=lambda content: content.pop("modalities") and None)
_datalist("a subject without a name", "subject", change=lambda c: c["training"][0].pop("subject") and None)
_datalist("a file that is not there", r"gone\.nii", change=lambda c: c["training"][0].update(t1="gone.nii.gz"))
_datalist("a number for a file", change=lambda c: c["training"][0].update(t1=7))
_datalist("an unknown modality", "pet", change=lambda c: c["training"][0].update(pet=c["training"][0]["t1"]))
_datalist("a subject in two sections", "phantom", change=lambda c: c["validation"].append(dict(c["training"][0])))
_datalist("a subject twice", "phantom", change=lambda c: c["training"].append(dict(c["training"][0])))
_datalist("a section that is a word", change=lambda c: c.update(training="all"))


@kind("datalists", "a file of the training is damaged", r"bad\.nii\.gz")
def _(room: Room) -> list[object]:
    path = room.write("bad.nii.gz", room.base.scan.read_bytes()[:3000])
    return room.training(dataset_dir=room.datalist(lambda c: c["training"][0].update(t1=str(path))))


@kind("datalists", "a subject on two grids", "grid|register")
def _(room: Room) -> list[object]:
    path = room.save(room.values()[:-4], "other.nii.gz")
    return room.training(dataset_dir=room.datalist(lambda c: c["training"][0].update(t1=str(path))))


@kind("datalists", "no datalist", "datalist|absent")
def _(room: Room) -> list[object]:
    return room.evaluating(dataset_dir=room.folder / "absent")


REPORT = ("prepare.html", "prepare.txt")  # they say what is wrong with each subject


def _prepare(name: str, *says: str, leaves: tuple[str, ...] = (), **options: Any) -> None:
    @kind("datalists", f"prepare: {name}", *says, leaves=leaves, seconds=15)
    def _(room: Room) -> list[object]:
        given = {"root": room.base.phantoms, "out": room.out / "datalist.json", "workers": 1}
        values = {k: v(room) if callable(v) else v for k, v in options.items()}
        return room.custom("prepare", **{**given, **values})


_prepare("no such folder", "absent", root="absent")
_prepare("an unknown layout", "layout", "brats2021", layout="adni")
_prepare("shares over one", "split|shares", split="[0.8,0.3,0.1]")
_prepare("a split of unknown subjects", leaves=REPORT, split_file=lambda r: r.write("s.json", {"training": ["nobody"]}))
_prepare("a split that is no table", r"s\.csv", split_file=lambda r: r.write("s.csv", "a\nb\n"))
_prepare("a split that is not there", "absent", split_file="absent.csv")
_prepare("a pattern without a subject", "pattern|subject", layout="plain", pattern="{modality}.nii.gz")
_prepare("an empty folder", "empty", leaves=REPORT, root=lambda r: r.write("empty/notes.txt", "").parent)
_prepare("a negative number of workers", "workers", workers=-1)
_prepare("a reference that is no modality", "register", register="pet")


def _compare(name: str, *says: str, make: Any, **options: Any) -> None:
    @kind("commands", f"compare: {name}", *says)
    def _(room: Room) -> list[object]:
        folders = make(room)
        given = {"truth": room.base.phantoms, "predictions": str({"m": str(folders)}), "out": room.out}
        values = {k: v(room) if callable(v) else v for k, v in options.items()}
        return room.custom("compare", **{**given, "viewer_megabytes": 0, **values})


def _predicted(room: Room, values: np.ndarray, name: str = "{}_t1_t2.nii.gz") -> Any:
    return room.save(values, "pred/" + name.format(room.base.subjects[0])).parent


_compare("no such folder", "absent", make=lambda r: r.folder / "absent")
_compare("predictions of nobody", "nobody", make=lambda r: r.save(r.values(), "pred/nobody_t1_t2.nii.gz").parent)
_compare("predictions on another grid", "grid", make=lambda r: _predicted(r, r.values()[:-1]))
_compare("predictions of another scale", "ranges", make=lambda r: _predicted(r, r.values() * 50))
_compare("predictions that are NaN", "NaN", make=lambda r: _predicted(r, r.values() * np.nan))
_compare("an unknown range", "ranges", make=lambda r: _predicted(r, r.values()), ranges="{'m':'loud'}")
_compare("a path in place of models", "predictions", make=lambda r: r.folder, predictions="pred")
_compare(
    "no truths",
    "truth",
    "expected images",
    make=lambda r: _predicted(r, r.values()),
    truth=lambda r: r.write("truth/x", "").parent,
)


@kind("commands", "compare: a scale that can be read in two ways", "2 ways", "--ranges")
def _(room: Room) -> list[object]:
    subject = room.base.subjects[0]
    values = room.values()
    room.save(values / np.percentile(values[values > 0], 99.5) * 1.6, f"truth/{subject}_t2.nii.gz")
    predicted = _predicted(room, np.clip(values / values.max(), 0, 1))
    return room.custom("compare", truth="truth", predictions=str({"m": str(predicted)}), out=room.out)


def _command(name: str, *says: str, words: Any, seconds: float = 3.0) -> None:
    @kind("commands", name, *says, seconds=seconds)
    def _(room: Room) -> list[object]:
        return ["custom", *words(room)]


_command("report: no evaluation", "evaluation|found no", words=lambda r: ["report", str(r.folder)])
_command("phantom: no room", "taken", words=lambda r: ["phantom", str(r.write("taken", "")), "--subjects", "1"])
_command("phantom: no subjects", "subjects", words=lambda r: ["phantom", str(r.out), "--subjects", "-1"])
_command(
    "phantom: a contrast without a protocol", "pet", words=lambda r: ["phantom", str(r.out), "--modalities", "pet"]
)
_command("summary: an unknown preset", "preset", words=lambda r: ["summary", "--preset", "huge"])
_command("export-weights: an unknown part", "part|decoder", words=lambda r: ["export_weights", "decoder", str(r.out)])
_command(
    "import-weights: an unknown source", "source|keras",
    words=lambda r: ["import_weights", "keras", "x.pt", str(r.out), "t1,t2"],
)  # fmt: skip
_command(
    "import-weights: no such file", "absent",
    words=lambda r: ["import_weights", "release", "absent.pt", str(r.out / "w.pt"), "t1,t2"],
)  # fmt: skip
_command(
    "package: no such weights", "absent", words=lambda r: ["package", "--out", str(r.out), "--weights", "absent.pt"]
)
_command("prune-latents: no cache", "absent", words=lambda r: ["prune_latents", "absent"])
_command(
    "demo: no such scan", "absent", words=lambda r: ["demo", "--image", "absent.nii.gz", "--output_dir", str(r.out)]
)
_command("a missing argument", "truth|predictions", words=lambda r: ["compare"])
_command("an unknown argument", "colour", words=lambda r: ["report", str(r.folder), "--colour", "red"])


@kind("files", "a folder that cannot be listed twice", "scans")
def _(room: Room) -> list[object]:
    folder = room.copy(room.base.scan, "scans/deep/scan.nii.gz").parents[1]
    shutil.rmtree(folder)
    return room.inference(folder)
