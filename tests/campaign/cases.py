"""The cases of ``../shared/cases``, inputs that went wrong once: each is made, run, and compared with what is right."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from forks import Outcome, command, fork
from resume import CONFIGS, OF_STAGE, TINY

__all__ = ["run"]

CASES = CONFIGS.parents[2] / "shared" / "cases"
SECONDS = 900.0
# of [0, 1]: a z-scored scan is the same image to the last bits, in which the codes of a few voxels may differ
ROUNDING = 1e-2


class Case:
    """A case with its inputs made, and what its checks use."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder / name
        if (self.folder / "make.py").is_file():
            made = fork(lambda: runpy.run_path(str(self.folder / "make.py")) and None, self.folder, seconds=SECONDS)
            expect(made.status == 0, f"make.py: {made.err[-300:]}")
        self.data, self.out = self.folder / "data", self.folder / "out"

    def custom(self, *words: object) -> Outcome:
        return fork(command(["custom", *words]), self.folder, seconds=SECONDS)

    def bundle(self, run: str, config: str, **options: object) -> Outcome:
        given = {"bundle_root": CONFIGS.parent, "output_dir": self.out, "device": "cpu", **options}
        flags = [part for key, value in given.items() for part in (f"--{key}", value)]
        words = ["monai.bundle", "run", run, "--config_file", CONFIGS / f"{config}.json"]
        return fork(command([*words, "--logging_file", CONFIGS / "logging.conf", *flags]), self.folder, seconds=SECONDS)

    def inference(self, **options: object) -> Outcome:
        return self.bundle("inference", "inference", **{"targets": "t2", **options})

    def training(self, **options: object) -> Outcome:
        settings = {**TINY, **OF_STAGE["train_autoencoder"], "max_epochs": 1, "cache_workers": 2, **options}
        return self.bundle("training", "train_autoencoder", **settings)

    def results(self) -> list[Path]:
        return sorted(self.out.rglob("*.nii.gz"))


def expect(true: object, message: str) -> None:
    if not true:
        raise AssertionError(message)


def refused(outcome: Outcome, *says: str) -> None:
    """One line that says what is wrong, and no traceback."""
    lines = [line for line in outcome.err.splitlines() if line.lower().startswith("error:")]
    expect(outcome.status not in (0, 134) and outcome.status > 0, f"exit status {outcome.status}")
    expect("Traceback" not in outcome.err and len(lines) == 1, f"said: {outcome.err[-300:]}")
    for words in says:
        expect(re.search(words, lines[0]), f"not said: {words}: {lines[0]}")


def passed(outcome: Outcome, *says: str) -> None:
    """It ends well, and says something."""
    expect(outcome.status == 0, f"exit status {outcome.status}: {outcome.err[-300:]}")
    for words in says:
        expect(re.search(words, outcome.out + outcome.err), f"not said: {words}: {(outcome.out + outcome.err)[-300:]}")


def _scores(folder: Path) -> list[dict[str, str]]:
    with (folder / "per_subject.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def compare_from(case: Case) -> None:
    words = ["compare", "--truth", "data/truth", "--predictions", "{'m':'data/pred'}", "--out", case.out]
    passed(case.custom(*words, "--viewer_megabytes", 0))
    tasks = {(row["source"], row["target"]) for row in _scores(case.out)}
    expect(tasks == {("t1", "flair")}, f"read as {tasks}")


def compare_zscored_truth(case: Case) -> None:
    words = ["compare", "--truth", "data/truth", "--predictions", "{'copy':'data/pred'}", "--out", case.out]
    passed(case.custom(*words, "--viewer_megabytes", 0))
    rows = [row for row in _scores(case.out) if row["method"] == "copy"]
    expect(rows and all(float(row["psnr"]) > 100 and float(row["ssim"]) > 0.999 for row in rows), f"scores: {rows}")


def corrupt_gzip(case: Case) -> None:
    for file in sorted(case.data.glob("bad*.nii.gz")):
        refused(case.inference(image=file), file.name)


def dicom_messages(case: Case) -> None:
    for name, *says in (("d02_copy", "copy|duplicate|twice|same"), ("d17_mosaic", "[Mm]osaic|MOSAIC", "dcm2niix")):
        refused(case.inference(image=case.folder / "dcm" / name), *says)
    outcome = case.inference(image=case.folder / "dcm" / "d15_uid_per_slice")
    refused(outcome)
    expect("folder of its own" not in outcome.err, outcome.err[-300:])


def labelmap_as_contrast(case: Case) -> None:
    refused(case.inference(image=case.data / "S0" / "S0_flair.nii.gz"), "label|mask")
    prepared = case.custom("prepare", "--layout", "brats2021", "--root", "data", "--out", case.out / "datalist.json")
    passed(prepared, "4 of 5")


def misnamed_gzip(case: Case) -> None:
    prepared = case.custom("prepare", "--layout", "brats2021", "--root", "data", "--out", case.out / "datalist.json")
    passed(prepared)
    usable = int(re.findall(r"(\d) of 5", prepared.out)[0])
    trained = case.training(dataset_dir=case.out, output_dir=case.folder / "trained")
    expect(trained.status == 0, f"prepare took {usable} of 5, the training says: {trained.err[-300:]}")


def same_name_overwrite(case: Case) -> None:
    passed(case.inference(image=case.data / "sub1" / "T1.nii.gz"))
    first = {file: hashlib.sha256(file.read_bytes()).digest() for file in case.results()}
    second = case.inference(image=case.data / "sub2" / "T1.nii.gz")
    kept = all(file.is_file() and hashlib.sha256(file.read_bytes()).digest() == old for file, old in first.items())
    expect(kept or "WARNING" in second.err + second.out or "replace" in second.err + second.out, "replaced in silence")


def seg_dash(case: Case) -> None:
    passed(case.inference(image=case.data))
    expect(len(case.results()) == 2, f"{[file.name for file in case.results()]}")


def silent_default_image(case: Case) -> None:
    refused(case.inference(image=""), "image")
    refused(case.inference(images=case.data / "scan.nii.gz"), "images", "image")
    refused(case.inference(image=case.data / "scan.nii.gz", target="flair"), "target")
    refused(case.inference(image=case.data / "scan.nii.gz", outputdir="x"), "outputdir", "output_dir")


def split_and_datalist_encoding(case: Case) -> None:
    words = ["prepare", "--layout", "plain", "--pattern", "{subject}/{subject}_{modality}.nii.gz", "--root", "data"]
    passed(case.custom(*words, "--split_file", "data/semicolon.csv", "--out", case.out / "datalist.json"), "5 of 5")
    (case.data / "datalist.json").write_bytes((case.data / "bom.json").read_bytes())
    read = case.training(dataset_dir=case.data)
    expect(read.status == 0 or "BOM" not in read.err, read.err[-300:])


def stale_settings(case: Case) -> None:
    scan, seen = case.data / "scan.nii.gz", []
    for options in ({}, {"volume_size": "brats"}):
        passed(case.inference(image=scan, **options))
        (file,) = case.results()
        seen.append(hashlib.sha256(file.read_bytes()).digest())
    expect(seen[0] != seen[1], "kept though the volume's size has changed")


def zscored_input(case: Case) -> None:
    passed(case.inference(image=case.data, targets="['t1']"))
    images = {file.name.split("_t1_synthetic")[0]: nib.load(file).get_fdata() for file in case.results()}
    for contrast in ("t2", "flair"):
        for other in ("z", "zlow"):
            differ = np.abs(images[f"{other}_{contrast}"] - images[f"raw_{contrast}"]).max()
            expect(differ < ROUNDING, f"{other}_{contrast}: {differ:.3g} of [0, 1] from raw_{contrast}")


def cli_and_training(case: Case) -> None:
    scan = case.folder.parent / "silent-default-image" / "data" / "scan.nii.gz"
    refused(case.inference(image=7), "7")
    refused(case.inference(image=scan, output_dir=2024), "output_dir", "2024")
    refused(case.inference(image=scan, device="cuda"), "CUDA|cuda")
    passed(case.inference(image=scan))
    passed(case.inference(image=scan), "translated already")
    (case.folder / "taken").write_text("a file")
    refused(case.inference(image=scan, output_dir=case.folder / "taken"), "taken")


CHECKS: dict[str, Callable[[Case], None]] = {
    "compare-from": compare_from, "compare-zscored-truth": compare_zscored_truth, "corrupt-gzip": corrupt_gzip,
    "dicom-messages": dicom_messages, "labelmap-as-contrast": labelmap_as_contrast, "misnamed-gzip": misnamed_gzip,
    "same-name-overwrite": same_name_overwrite, "seg-dash": seg_dash, "silent-default-image": silent_default_image,
    "split-and-datalist-encoding": split_and_datalist_encoding, "stale-settings": stale_settings,
    "zscored-input": zscored_input, "cli-and-training": cli_and_training,
}  # fmt: skip


def run(folder: Path) -> Iterator[tuple[str, str]]:
    """Each case and what is wrong with it; nothing is where all is right."""
    if not CASES.is_dir():
        raise FileNotFoundError(f"{CASES}: expected the folder of cases; found none. Put it beside the checkout.")
    copied = folder / "cases"
    shutil.copytree(CASES, copied)
    data = CASES.parent / "data"
    if data.is_dir():
        (folder / "data").symlink_to(data)
    for path in (copied, *copied.rglob("*")):
        os.chmod(path, 0o755)
    sys.path.append(str(copied))
    unknown = {path.name for path in CASES.iterdir() if path.is_dir()} - set(CHECKS)
    for name in sorted(unknown):
        yield name, "has no check here"
    for name, check in CHECKS.items():
        try:
            check(Case(name, copied))
            yield name, ""
        except Exception as error:
            yield name, f"{type(error).__name__}: {error}"[:500]
