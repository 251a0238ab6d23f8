"""Trainings of a comparison: a part of a config's epochs, resumed where they stopped, in a folder of one setting."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from custom.commands.workflows import bundle_workflow
from custom.utils.arguments import nearest
from custom.utils.bundle import config_folder
from custom.utils.files import atomic_write

__all__ = ["applicable", "check_overrides", "check_settings", "keep_settings", "train", "trained"]

RECORD = "trained.json"
SCALED = ("adversarial_start_epoch", "warmup_steps")
CHECKPOINTS = 20  # that a training leaves on its way


def check_overrides(command: Callable[..., Any], configs: Sequence[str], overrides: Mapping[str, Any]) -> None:
    """Refuse wrong overrides now, before anything is made and lest every training fails by them.

    Args:
        command: whose own options they may be misspelt.
        configs: that read them.
        overrides: values by key.

    Raises:
        ValueError: naming the option that was likely meant.
    """
    own = [name for name, p in signature(command).parameters.items() if p.kind is not Parameter.VAR_KEYWORD]
    known = {*own, *(key for config in configs for key in bundle_workflow(config, {}).parser.get())}
    for key in overrides:
        if key.partition("#")[0] not in known:
            meant = nearest(key, known)
            advice = f"Did you mean --{meant}?" if meant else f"Choose from {', '.join(own)}."
            raise ValueError(f"--{key}: expected an option or a key of the configs; found none. {advice}")
    for config in configs:
        bundle_workflow(config, overrides)


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Check that a folder's complete parts, which are used again, were made with the same settings.

    Raises:
        ValueError: if they were not.
    """
    if not path.is_file():
        return
    there = json.loads(path.read_text(encoding="utf-8"))
    wanted = json.loads(_as_text(settings))
    differing = [name for name in {**there, **wanted} if there.get(name) != wanted.get(name)]
    if differing:
        said = "; ".join(f"{n} {json.dumps(there.get(n))}, not {json.dumps(wanted.get(n))}" for n in differing)
        raise ValueError(
            f"{path}: expected the settings of this run; found {said}. Give another output_dir, or the settings there."
        )


def keep_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write what ``check_settings`` will hold later runs against."""
    with atomic_write(path) as temporary:
        temporary.write_text(_as_text(settings), encoding="utf-8")


def _as_text(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, indent=2, default=str)


def trained(folder: Path) -> dict[str, Any] | None:
    """What ``train`` has recorded of a complete training: ``{"epochs", "seconds", ...}``; None where there is none."""
    record = folder / RECORD
    return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None


def train(
    config: str,
    overlays: Sequence[str],
    folder: Path,
    share: float,
    values: Mapping[str, Any],
    *,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Train for a share of the config's epochs, on from a checkpoint that is there; then record that it is complete.

    Args:
        config, overlays: names of the files.
        folder: ``stage_dir`` of the training.
        share: of the epochs, and of what is counted in epochs and steps with them.
        values: overrides.
        record: what to record beside epochs and seconds.
    """
    started = time.monotonic()
    workflow = bundle_workflow(config, applicable(values, overlays), overlays=overlays)
    epochs = max(1, round(share * workflow.parser["max_epochs"]))
    often = max(1, epochs // CHECKPOINTS)
    scaled = {"max_epochs": epochs, "val_interval": epochs, "checkpoint_interval": often}
    scaled |= {key: round(share * workflow.parser[key]) for key in SCALED if key in workflow.parser}
    for key, value in scaled.items():
        if key in workflow.parser:
            workflow.parser[key] = value
    before = folder / "seconds.json"  # of what was trained before an interruption
    spent = float(before.read_text(encoding="utf-8")) if before.is_file() else 0.0
    if (folder / "last.pt").is_file():
        workflow.parser["resume"] = True
    try:
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    finally:
        spent += time.monotonic() - started
        if folder.is_dir():
            before.write_text(f"{spent:.1f}", encoding="utf-8")
    with atomic_write(folder / RECORD) as temporary:
        temporary.write_text(json.dumps({"epochs": epochs, "seconds": round(spent, 1), **(record or {})}))
    del workflow
    gc.collect()  # engines and handlers refer to one another, and hold the stage's data


def applicable(values: Mapping[str, Any], overlays: Sequence[str]) -> dict[str, Any]:
    """``values`` without those of a component that an overlay replaces or drops, such as an absent MS-SPADE's."""
    folder, replaced = config_folder(), []
    for overlay in overlays:
        config = json.loads((folder / f"{overlay}.json").read_text(encoding="utf-8"))
        replaced += [f"{key}#" for key, value in config.items() if value is None or isinstance(value, dict)]
    return {key: value for key, value in values.items() if not key.startswith(tuple(replaced))}
