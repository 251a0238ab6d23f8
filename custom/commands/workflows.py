"""The bundle's own configs, run from Python as ``python -m monai.bundle run`` runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from custom.utils.bundle import config_folder
from custom.utils.options import check_options, check_places

__all__ = ["bundle_workflow"]


def bundle_workflow(name: str, overrides: Mapping[str, Any], *, overlays: Sequence[str] = ()) -> ConfigWorkflow:
    """The workflow of ``configs/<name>.json`` of the bundle beside this package, not yet initialised.

    Args:
        name: such as ``"inference"``, ``"evaluate"`` or ``"train_spade"``.
        overrides: values of the config by id.
        overlays: names of further configs, each laid over those before it.

    Raises:
        FileNotFoundError: if the bundle is not beside this package.
        ValueError: if there is no such overlay, or for an override that the configs do not know.
    """
    folder = config_folder()
    missing = [overlay for overlay in overlays if not (folder / f"{overlay}.json").is_file()]
    if missing:
        raise ValueError(f"overlay: expected a file {missing[0]}.json in {folder}; found none. Correct the name.")
    files = [str(folder / f"{config}.json") for config in (name, *overlays)]
    check_places(ConfigParser.load_config_files(files), overrides)
    workflow = ConfigWorkflow(
        config_file=files if overlays else files[0],
        workflow_type="train" if name.startswith("train") else "evaluation" if name == "evaluate" else name,
        **{"bundle_root": str(folder.parent), **overrides},
    )
    check_options([workflow])  # now, and not when it is initialised: a command may have much to do before
    return workflow
