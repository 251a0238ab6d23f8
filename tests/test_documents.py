"""Every code block of the documents is run as it stands, with smaller sizes appended to its commands.

The commands run in this process, in a folder that looks like a clone of the repository and holds small phantoms. One
that several documents name is run once.
"""

from __future__ import annotations

import ast
import logging
import os
import re
import runpy
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import monai
import pytest

from custom.commands.package import package
from custom.data.datalist import write_datalist
from custom.data.layouts import discover
from custom.data.phantom.dataset import write_dataset
from custom.utils.modalities import BRATS_MODALITIES
from tests.fixtures.documents import ALL, Block, commands, options, the_block

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]

# words that one block alone holds, and why it is not run
LEFT_OUT = {
    "make demo": "it builds an environment and runs these tests; tests/commands/test_demo.py runs `custom demo`",
    "make bench": "minutes on the release's sizes; tests/benchmarks runs every measurement on small ones",
    "make ablation": "hours; tests/commands/test_ablation.py trains and evaluates variants",
    "ablation --variants": "an hour; test_ablation.py and test_steps.py of tests/commands run both on small sizes",
    "slicer.util": "it needs 3D Slicer; `make clients` sends the same requests",
    "import-weights": "it needs weights from elsewhere; import_weights and export_weights of tests/commands make such",
}
# what another test runs line by line, to compare the results
COMPARED = {"onnx_export": "test_clients.py, with the zip of a tiny network"}
# what `make clients` runs with the real programs: the words of a block, and the program
CLIENTS = {
    "pip install monailabel": "MONAI Label",
    "found 'pet'": "MONAI Label",
    '{"target": "flair"}': "MONAI Label",
    '"sources": "scan_flair"': "MONAI Label",
    "file=@scan_t1.nii.gz": "MONAI Label",
    "monai.deploy.operators": "MONAI Deploy",
    'app.py "$BUNDLE"': "MONAI Deploy",
    "torchrun --nproc_per_node=2 -m monai.bundle run training": "torchrun",
    "torchrun --nproc_per_node=2 -m monai.bundle run inference": "torchrun",
}

TINY = {
    "network_def#autoencoder#channels": [8],
    "network_def#style_transfer#width": 8,
    "network_def#style_transfer#num_blocks": 1,
    "network_def#detail#width": 8,
    "network_def#unet#channels": [8, 8, 8],
    "network_def#unet#norm_num_groups": 4,
}
SHORT = {"max_epochs": 1, "val_interval": 1, "cache_workers": 0, "warmup_steps": 1, "amp": "false"}
SCORES = {"sources": ["t1"], "pairs": [["t1", "t2"]], "num_figures": 0, "viewer_megabytes": 0, "lookup_subjects": 1}
# what is appended to a command that holds the words
SIZES: dict[str, dict[str, Any]] = {
    "train_autoencoder.json": {
        **TINY, **SHORT, "crop_size": [32, 32, 32], "crops_per_subject": 1, "adversarial_start_epoch": 0
    },
    "train_spade.json": {
        **TINY, **SHORT, "latent_crop": [8, 8, 8], "adversarial_start_epoch": 0, "discriminator_def#num_layers_d": 1
    },
    "train.json": {**TINY, **SHORT, "latent_crop": [8, 8, 8]},
    "evaluate.json": SCORES,
    "sampling_rectified_flow.json": {"network_def#num_inference_steps": 2},
    # the command takes the installed package's bundle, wherever it is called
    "custom steps": {"dataset_dir": "DIR", "subjects": 1, "curves": {"DDIM": [1]}},
    "cached_latents": {"size": (32, 32, 32), "steps": 1},
}  # fmt: skip

# what a command that holds the words leaves behind in the folder where it runs, by its options
RESULTS = {
    "train_autoencoder.json": "{bundle}/output/autoencoder/best.pt",
    "train_spade.json": "{bundle}/output/spade/best.pt",
    "training --config_file configs/train.json": "{bundle}/output/model.pt",
    "'configs/train.json','configs/sampling_rectified_flow.json'": "{bundle}/output/model_rectified_flow.pt",
    "run evaluating": "{output_dir}/report.html",
    "bundle download": "{bundle_dir}/{name}/models/model.pt",
    "custom prepare": "{out}",
    "custom compare": "{out}/report.html",
    "custom steps": "{output_dir}/steps.csv",
}
# blocks that need what another one has made, by the words of both
NEEDS = {
    "create_workflow": "monai.bundle download",
    "prune-latents": "# 2: MS-SPADE",
    "sampling_rectified_flow.json": "# 2: MS-SPADE",
    "custom compare": "source .venv",
}


RUN = [b for b in ALL if not any(words in b.text for words in (*LEFT_OUT, *COMPARED, *CLIENTS))]


def extra(command: list[str]) -> dict[str, Any]:
    """The sizes that are appended to ``command``."""
    line = " ".join(command)
    made = {key: value for words, sizes in SIZES.items() if words in line for key, value in sizes.items()}
    if "rectified_flow" in line:  # without detail transfer; its weights are those of the small training before
        made = {key: value for key, value in {**TINY, **made}.items() if "detail" not in key}
    return made


class Clone:
    """A folder like a clone of the repository, with small phantoms where the default data are, and what was run."""

    def __init__(self, folder: Path, phantoms: Path) -> None:
        self.root, self.bundle, self.ran = folder, folder / "bundle", set()
        for part in ("configs", "docs", "models"):
            shutil.copytree(ROOT / "bundle" / part, self.bundle / part)
        (self.bundle / "data").mkdir()
        (self.bundle / "data" / "phantom").symlink_to(phantoms)
        for place in (self.root, self.bundle):
            for name in ("scans", "cohort/scan"):
                (place / name).mkdir(parents=True)
            for name in ("DIR", "BraTS2021"):
                (place / name).symlink_to(phantoms)
            for name, modality in (("scan_t1", "t1"), ("scan_flair", "flair"), ("scans/other", "flair"),
                                   ("cohort/scan/scan_t1", "t1"), ("cohort/scan/scan_t2", "t2"),
                                   ("IXI002-Guys-0828-T1", "t1"), ("IXI002-Guys-0828-T2", "t2")):  # fmt: skip
                shutil.copy(phantoms / "scan" / f"scan_{modality}.nii.gz", place / f"{name}.nii.gz")

    def place(self, block: Block) -> Path:
        """Where the block's paths start: the documents of the bundle also name them from the bundle's folder."""
        named = block.language == "bash" and re.search(r"(?<![\w/])configs/", block.text)
        return self.bundle if named else self.root

    def run(self, block: Block) -> None:
        """Run a block, after those that it needs."""
        for words, others in NEEDS.items():
            if words in block.text:
                self.run(the_block(others))
        if block in self.ran:
            return
        self.ran.add(block)
        if block.language == "python":
            in_this_process(lambda: exec(block.text, {"monai": monai, "root": str(self.bundle)}), self.place(block))
            return
        for command in commands(block):
            self.call(command, self.place(block))

    def call(self, command: list[str], place: Path) -> None:
        """Run one command line, once for all documents, and look for what it must leave behind."""
        if command == ["source", ".venv/bin/activate"]:
            return  # these tests run in it
        assert command[:2] == ["python", "-m"], command
        key = tuple(word.replace("bundle/configs", "configs") for word in command)
        if key in self.ran and len(options(command)) == 1:  # the config alone: the same from wherever it is called
            return
        self.ran.add(key)
        argv = [os.path.expandvars(word.replace("file:///path/to/the.zip", "$ZIP")) for word in command[2:]]
        for name, value in extra(command).items():
            argv += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
        started = time.time()
        in_this_process(lambda: runpy.run_module(argv[0], run_name="__main__", alter_sys=True), place, argv)
        for result in self.results(argv, place):
            assert any(p.stat().st_mtime >= started - 2 for p in place.glob(result)), f"no new {result}"

    def results(self, argv: list[str], place: Path) -> Iterator[str]:
        """Patterns of what a command must have made, from the folder that it ran in."""
        bundle = "bundle" if place == self.root else "."
        given = {"bundle": bundle, "output_dir": f"{bundle}/output/evaluation", **options(argv)}
        line = " ".join(argv).replace("bundle/configs", "configs")
        if "run inference" in line:
            suffix = "/0001.dcm" if given.get("output_format") == "dicom" else ".nii.gz"
            asked = given.get("targets", "['t2']")
            for target in ("flair", "t1ce") if asked == "missing" else ast.literal_eval(asked):
                yield f"{given['output_dir']}/*_{target}_synthetic{suffix}"
        for words, result in RESULTS.items():
            if words in line:
                yield result.format(**given)


def in_this_process(call: Callable[[], object], place: Path, argv: Sequence[str] = ("python",)) -> None:
    """Call from the folder ``place`` with the command line ``argv``; what a program may change is put back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(sys, "argv", list(argv))
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(sys, "excepthook", sys.excepthook)
        try:
            call()
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"{' '.join(argv)}: ended with {end.code}") from end
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)


@pytest.fixture(scope="module")
def clones(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clone, Clone]:
    """One clone with the shipped weights, and one in which trainings replace them."""
    phantoms = tmp_path_factory.mktemp("phantoms")
    write_dataset(phantoms, 4, spacing=5.0)
    first = min(phantoms.iterdir())
    for file in first.iterdir():
        file.rename(file.with_name(file.name.replace(first.name, "scan")))
    first.rename(phantoms / "scan")
    entries = {entry["subject"]: entry for entry in discover(phantoms)}
    scan = entries.pop("scan")
    *training, validation = entries.values()
    write_datalist(
        phantoms / "datalist.json", {"training": training, "validation": [validation], "test": [scan]}, BRATS_MODALITIES
    )
    folder = tmp_path_factory.mktemp("clones")
    return Clone(folder / "shipped", phantoms), Clone(folder / "trained", phantoms)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle's zip."""
    return package(tmp_path_factory.mktemp("artifact"))


@pytest.mark.filterwarnings("ignore")  # those of other packages, which end no command of a user
@pytest.mark.parametrize("block", RUN, ids=str)
def test_block_runs_as_it_stands(block: Block, clones, artifact: Path, write_series, monkeypatch) -> None:
    shipped, trained = clones
    clone = trained if "run training" in block.text or "prune-latents" in block.text else shipped
    place = clone.place(block)
    monkeypatch.setenv("BUNDLE", str(clone.bundle))
    monkeypatch.setenv("ZIP", artifact.as_uri())
    if "series_folder" in block.text and not (place / "series_folder").exists():
        shutil.copytree(write_series("series"), place / "series_folder")
    if "custom compare" in block.text and not (place / "theirs").exists():
        clone.run(the_block("source .venv"))
        shutil.copytree(place / "translated", place / "theirs")
    clone.run(block)


def test_every_block_is_run_or_named_with_a_reason() -> None:
    for words in (*LEFT_OUT, *COMPARED, *CLIENTS, *NEEDS.values()):
        assert len([b for b in ALL if words in b.text]) == 1, words
    assert len(LEFT_OUT) <= 6
    assert len(RUN) + len(LEFT_OUT) + len(COMPARED) + len(CLIENTS) == len(ALL)
