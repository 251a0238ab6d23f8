"""Weights of an earlier version, or of fewer codebooks, as weights of this network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from custom.networks.weights import compact, convert_weights
from custom.utils.arguments import whole_number
from custom.utils.bundle import bundle_folder, config_folder
from custom.utils.files import atomic_write

__all__ = ["convert"]


# classes that take num_codebooks, of the autoencoder and of what stands in it for its own codebooks
WITH_CODEBOOKS = ("VQGAN", "VectorQuantizer")
MOST_CODEBOOKS = 1024  # far more than a latent has channels


def convert(
    weights: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    config: Sequence[str] | str = (),
    num_codebooks: int | None = None,
) -> Path:
    """Write ``weights`` with what networks did not have then to ``out``: translations of one source stay the same.

    Several sources are fused by their plain mean until the fusion is trained, also where an earlier form of it was
    trained, and an error map that is added is known as untrained.
    Weights of fewer codebooks than the network has are to start a training of stage 1 from: no latent is worse
    represented than before, but decoder, MS-SPADE and UNet have not seen such latents.

    Args:
        weights: a flat state dict of an earlier version, or of fewer codebooks.
        out: file to write; ``weights`` itself may be replaced.
        config: files that define the network, such as ``inference.json`` and a preset; the bundle's by default.
        num_codebooks: of the network, in place of what the config says.

    Raises:
        FileNotFoundError: for missing files.
        ValueError: for weights that are not of an earlier version of this network, nor of fewer codebooks, for a
            ``num_codebooks`` that the network cannot have, and where ``out`` is the bundle's own ``model.pt``.
    """
    files = ([config] if isinstance(config, str) else list(config)) or [str(config_folder() / "inference.json")]
    parser = ConfigParser()
    parser.read_config([str(Path(file).expanduser()) for file in files])
    if "network_def" not in parser:
        raise ValueError(
            f"{', '.join(map(str, files))}: expected a config with network_def, such as inference.json; found none. "
            "Name it first, presets after it."
        )
    parser["bundle_root"] = str(config_folder().parent)
    if num_codebooks is not None:
        _set_codebooks(parser, num_codebooks)
    with torch.random.fork_rng(devices=[]):  # the same file every time
        torch.random.default_generator.manual_seed(0)
        network = parser.get_parsed_content("network_def")
    target = Path(out).expanduser().absolute()
    if target.resolve() == (bundle_folder() / "models" / "model.pt").resolve():
        raise ValueError(
            f"{target}: expected another file than the bundle's own weights, which every command uses; found those. "
            "Convert to a new file, and put it there by yourself if that is what you want."
        )
    state = compact(convert_weights(network, weights))
    with atomic_write(target) as temporary:
        torch.save(state, temporary)
    return target


def _set_codebooks(parser: ConfigParser, num_codebooks: int) -> None:
    number = whole_number("num_codebooks", num_codebooks, smallest=1, largest=MOST_CODEBOOKS)
    place = "network_def#autoencoder"
    if "bottleneck" in parser[place]:
        place = f"{place}#bottleneck"
    kind, channels = str(parser[place]["_target_"]).rpartition(".")[2], parser[place]["embedding_dim"]
    if kind not in WITH_CODEBOOKS:
        raise ValueError(f"num_codebooks: expected a network with a codebook; found a {kind}. Leave it out.")
    if isinstance(channels, int) and channels % number:
        raise ValueError(
            f"num_codebooks: expected a divisor of {channels}, the channels of a latent vector; found {number}. Choose "
            "another number."
        )
    parser[f"{place}#num_codebooks"] = number
