"""Weights of an earlier version as weights of this one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from custom.networks.weights import compact, convert_weights
from custom.utils.bundle import config_folder
from custom.utils.files import atomic_write

__all__ = ["convert"]


def convert(weights: str | os.PathLike[str], out: str | os.PathLike[str], *, config: Sequence[str] | str = ()) -> Path:
    """Write ``weights`` with what networks did not have then to ``out``: translations of one source stay the same.

    Several sources are fused by their plain mean until the fusion is trained, and the error map is known as untrained.

    Args:
        weights: a flat state dict of an earlier version.
        out: file to write; ``weights`` itself may be replaced.
        config: files that define the network, such as ``inference.json`` and a preset; the bundle's by default.

    Raises:
        FileNotFoundError: for missing files.
        ValueError: for weights that are not of an earlier version of this network.
    """
    files = ([config] if isinstance(config, str) else list(config)) or [str(config_folder() / "inference.json")]
    parser = ConfigParser()
    parser.read_config([str(Path(file).expanduser()) for file in files])
    parser["bundle_root"] = str(config_folder().parent)
    with torch.random.fork_rng(devices=[]):  # the same file every time
        torch.random.default_generator.manual_seed(0)
        network = parser.get_parsed_content("network_def")
    state, target = compact(convert_weights(network, weights)), Path(out).expanduser().absolute()
    with atomic_write(target) as temporary:
        torch.save(state, temporary)
    return target
