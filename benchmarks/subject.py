"""What is translated: a network of a preset, and a head of the wanted size in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser

from custom.commands.summary import DEFAULT_PRESET
from custom.networks import LatentTranslator
from custom.networks.weights import load_weights
from custom.utils.bundle import config_folder

__all__ = ["make_network", "read_config", "write_head"]

SEED = 0


def read_config(preset: str, **values: Any) -> ConfigParser:
    """``inference.json`` with the preset's overlay and ``values``, not yet instantiated."""
    folder = config_folder()
    overlay = [] if preset == DEFAULT_PRESET else [str(folder / f"preset_{preset}.json")]
    parser = ConfigParser()
    parser.read_config([str(folder / "inference.json"), *overlay])
    # the package is imported already; the config's own search for it starts from the program's entry point
    parser.update({"bundle_root": str(folder.parent), "bundle_code": [], "initialize": [], **values})
    return parser


def make_network(config: ConfigParser, device: torch.device, *, weights: str | None = None) -> LatentTranslator:
    """The preset's network, with ``weights`` or with random ones from a fixed seed, for inference."""
    torch.manual_seed(SEED)
    network = config.get_parsed_content("network_def")
    if weights is None:
        _let_all_parts_speak(network)
    else:
        load_weights(network, weights)
    return network.to(device).eval()


@torch.no_grad()
def _let_all_parts_speak(network: LatentTranslator) -> None:
    """Small random values for layers that start from zero, so that nothing is computed on zeros alone."""
    for parameter in network.parameters():
        if not parameter.any():
            parameter.normal_(std=1e-2)


def write_head(path: Path, size: tuple[int, int, int]) -> Path:
    """A textured ellipsoid that fills its box, int16 at 1 mm: about as large and as compressible as a scan."""
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in size]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    inside = x**2 + y**2 + z**2 <= 1
    texture = 500 + 200 * np.sin(9 * x) * np.cos(7 * y) * np.sin(8 * z)
    texture = texture + np.random.default_rng(SEED).normal(scale=15, size=size).astype(np.float32)
    # the box must be filled to its faces, as preprocessing cuts the background off: an axis through each
    near = [abs(a) <= 1.01 * abs(a).min() for a in axes]
    x, y, z = np.meshgrid(*near, indexing="ij", sparse=True)
    inside |= (x & y) | (y & z) | (x & z)
    nib.save(nib.Nifti1Image(np.where(inside, texture, 0).astype(np.int16), np.eye(4)), path)
    return path
