"""Trainings that are killed at random moments end as one that never stopped: every bit of their state."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from forks import Outcome, fork

__all__ = ["STAGES", "Trial", "differing", "overrides", "prepare", "run"]

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "bundle" / "configs"
STAGES = {"train_autoencoder": "autoencoder", "train_spade": "spade", "train": "diffusion"}
EPOCHS = 6
SECONDS = 240.0
MOST_STARTS = 60  # of one training: a run that gets nowhere must end
TINY: dict[str, Any] = {
    "bundle_root": str(REPOSITORY / "bundle"), "amp": "false", "max_epochs": EPOCHS, "val_interval": 2,
    "cache_workers": 0, "warmup_steps": 2, "device": "$torch.device('cpu')",
    "network_def#autoencoder#channels": [4], "network_def#autoencoder#bottleneck#num_embeddings": 16,
    # half of the codes are dead in a step that sees few voxels: revival draws random numbers
    "network_def#autoencoder#bottleneck#revival_threshold": 0.995,
    "network_def#style_transfer#width": 8, "network_def#style_transfer#num_blocks": 1,
    "network_def#style_transfer#hidden_channels": 4, "network_def#detail#width": 4,
    "network_def#detail#coarser_widths": [4],
    "network_def#unet#channels": [8, 8, 8], "network_def#unet#norm_num_groups": 4,
}  # fmt: skip
OF_STAGE: dict[str, dict[str, Any]] = {
    "train_autoencoder": {
        "crop_size": [16, 16, 16], "crops_per_subject": 1, "batch_size": 1, "adversarial_start_epoch": 1,
        "discriminator_def#channels": 4, "discriminator_def#num_layers_d": 1,
    },
    "train_spade": {
        "latent_crop": [8, 8, 8], "subjects_per_batch": 1, "adversarial_start_epoch": 1, "checkpoint_interval": 2,
        "objective#latent#part_size": 4, "discriminator_def#channels": 4,
    },
    "train": {"latent_crop": [4, 4, 4], "subjects_per_batch": 1, "part_size": 4, "checkpoint_interval": 2},
}  # fmt: skip


class Trial(NamedTuple):
    """What became of one training that was killed: how often, and where its end differs from the unbroken run's."""

    stage: str
    kills: int
    problem: str


def overrides(config: str, data: Path, output: Path) -> dict[str, Any]:
    """Settings of a training that takes a second or two."""
    paths = {"dataset_dir": str(data), "output_dir": str(output)}
    return {
        **TINY,
        **OF_STAGE[config],
        **paths,
        **({"ckpt_path": str(output / "model.pt")} if config == "train" else {}),
    }


def train(config: str, values: dict[str, Any]) -> Callable[[], None]:
    """A training as a program runs it."""

    def action() -> None:
        from monai.bundle import ConfigWorkflow

        torch.set_num_threads(1)
        workflow = ConfigWorkflow(
            str(CONFIGS / f"{config}.json"), workflow_type="train", logging_file=str(CONFIGS / "logging.conf"), **values
        )
        workflow.initialize()
        workflow.run()
        workflow.finalize()

    return action


def differing(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two states are not the same to the bit."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [path]
    if isinstance(one, dict):
        found = [f"{path}.{key}" for key in one.keys() ^ other.keys()]
        return found + [d for k in one.keys() & other.keys() for d in differing(one[k], other[k], f"{path}.{k}")]
    if isinstance(one, list | tuple):
        return [d for i, pair in enumerate(zip(one, other, strict=True)) for d in differing(*pair, f"{path}.{i}")]
    return [] if one == other else [path]


def prepare(data: Path, folder: Path) -> dict[str, float]:
    """Train the three stages unbroken; seconds that each takes, by the clock."""
    took = {}
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    for config in STAGES:
        start = time.monotonic()
        outcome = fork(train(config, overrides(config, data, folder / "whole")), work, seconds=SECONDS)
        if outcome.status != 0:
            raise RuntimeError(f"{config}: the unbroken run ended with {outcome.status}: {outcome.err[-2000:]}")
        took[config] = time.monotonic() - start
    return took


def run(data: Path, folder: Path, kills: int, seed: int) -> Iterator[Trial]:
    """Trainings of each stage, killed at random moments until there were ``kills`` of them.

    Args:
        data: folder of a datalist.
        folder: for the runs.
        kills: of each stage.
        seed: of the moments.
    """
    took = prepare(data, folder)
    moments = random.Random(seed)
    for config, stage in STAGES.items():
        count = number = 0
        while count < kills:
            trial = _broken(config, data, folder, moments, took[config], kills - count)
            shutil.rmtree(folder / "broken" / stage, ignore_errors=True)
            count += trial.kills
            number += 1
            yield trial
            if trial.problem or number > kills * 3:
                break


def _broken(config: str, data: Path, folder: Path, moments: random.Random, seconds: float, most: int) -> Trial:
    """One training, killed until it has been killed ``most`` times or has ended."""
    stage, output = STAGES[config], folder / "broken"
    output.mkdir(exist_ok=True)
    for former in ("autoencoder", "spade", "latents"):  # what a stage starts from is the unbroken runs'
        if former != stage and (folder / "whole" / former).exists() and not (output / former).exists():
            shutil.copytree(folder / "whole" / former, output / former)
    kills, work = 0, folder / "work"
    for _ in range(MOST_STARTS):
        resume = any((output / stage / name).is_file() for name in ("last.pt", "last_previous.pt"))
        values = {**overrides(config, data, output), "resume": str(resume).lower()}
        kill_after = moments.uniform(0.0, seconds) if kills < most else None
        outcome = fork(train(config, values), work, seconds=SECONDS, kill_after=kill_after)
        if outcome.status == 0:
            return Trial(config, kills, _difference(folder / "whole" / stage, output / stage))
        if outcome.status != -signal.SIGKILL or outcome.hung:
            return Trial(config, kills, _said(outcome))
        kills += 1
    return Trial(config, kills, f"no end after {MOST_STARTS} starts")


def _difference(whole: Path, broken: Path) -> str:
    for name in ("last.pt", "best.pt"):
        states = [torch.load(folder / name, map_location="cpu", weights_only=True) for folder in (whole, broken)]
        if found := differing(*states):
            return f"{name} differs in {len(found)} places: {', '.join(found[:4])}"
    left = [file.name for file in broken.iterdir() if ".part" in file.name]
    return f"left behind: {', '.join(left)}" if left else ""


def _said(outcome: Outcome) -> str:
    lines = [line for line in outcome.err.splitlines() if line.strip()]
    return f"status {outcome.status}{', hung' if outcome.hung else ''}: {lines[-1] if lines else ''}"[:300]


def interrupted(data: Path, folder: Path) -> Iterator[Trial]:
    """Each training stopped by SIGTERM and by Ctrl-C: it says so, loses one epoch at most, and resumes exactly."""
    for config, stage in STAGES.items():
        for number in (signal.SIGTERM, signal.SIGINT):
            output = folder / "signalled" / number.name
            for former in ("autoencoder", "spade", "latents"):
                if former != stage and (folder / "whole" / former).exists():
                    shutil.copytree(folder / "whole" / former, output / former, dirs_exist_ok=True)
            values = overrides(config, data, output)
            action = _at_fourth_epoch(train(config, values), functools.partial(_signal_itself, number))
            stopped = fork(action, folder / "work", seconds=SECONDS)
            name, problem = f"{config}, {number.name}", ""
            if stopped.status != 128 + number or "Traceback" in stopped.err:
                problem = _said(stopped)
            elif f"stopped by {number.name} in epoch 4" not in stopped.out + stopped.err or "epoch 3" not in (
                stopped.out + stopped.err
            ):
                problem = "it did not say what was saved"
            else:
                resumed = fork(train(config, {**values, "resume": "true"}), folder / "work", seconds=SECONDS)
                problem = _said(resumed) if resumed.status else _difference(folder / "whole" / stage, output / stage)
            yield Trial(name, 1, problem)


def _signal_itself(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def full_disk(data: Path, folder: Path) -> Iterator[Trial]:
    """Each training whose disk becomes full: it says so, its last checkpoint is intact, and resumes exactly.

    The disk is one in memory, for which the campaign needs the rights to mount it.
    """
    disk = folder / "disk"
    disk.mkdir()
    for config, stage in STAGES.items():
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], check=True)
        try:
            for former in ("autoencoder", "spade", "latents"):
                if former != stage and (folder / "whole" / former).exists():
                    shutil.copytree(folder / "whole" / former, disk / former)
            values = overrides(config, data, disk)
            ended = fork(_at_fourth_epoch(train(config, values), lambda: _fill(disk)), folder / "work", seconds=SECONDS)
            lines = [line for line in ended.err.splitlines() if line.startswith("error:")]
            problem = ""
            if ended.status != 1 or len(lines) != 1 or "No space" not in lines[0] or str(disk) not in lines[0]:
                problem = _said(ended)
            (disk / "filler").unlink(missing_ok=True)
            if not problem:
                resumed = fork(train(config, {**values, "resume": "true"}), folder / "work", seconds=SECONDS)
                problem = _said(resumed) if resumed.status else _difference(folder / "whole" / stage, disk / stage)
            yield Trial(f"{config}, disk full", 1, problem)
        finally:
            subprocess.run(["umount", "--lazy", disk], check=True)


def _fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass


def _at_fourth_epoch(action: Callable[[], None], event: Callable[[], object]) -> Callable[[], None]:
    """``action``, in which ``event`` happens in the first step of the fourth epoch."""

    def run() -> None:
        from custom.training.trainer import StageTrainer

        iteration = StageTrainer._iteration

        def step(self: StageTrainer, engine: StageTrainer, batch: dict) -> dict:
            if engine.state.iteration == 3 * engine.state.epoch_length + 1:
                event()
            return iteration(self, engine, batch)

        StageTrainer._iteration = step  # type: ignore[method-assign]
        action()

    return run
