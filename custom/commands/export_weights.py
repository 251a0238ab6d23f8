"""Parts of a trained model as networks of MONAI core, for other bundles."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser

from custom.commands.summary import config_folder
from custom.networks import VQGAN, ConditionalUNet, LatentTranslator, NoiseSchedule
from custom.networks.layouts import monai_export
from custom.networks.weights import load_weights, read_weights
from custom.utils.files import atomic_write

__all__ = ["ExportedFiles", "export_weights"]

PARTS = {"autoencoder": VQGAN, "unet": ConditionalUNet}


class ExportedFiles(NamedTuple):
    """Written files: ``weights``, a state dict; ``config``, whose ``network_def`` takes it; a ``quantizer``'s."""

    weights: Path
    config: Path
    quantizer: Path | None


def export_weights(
    part: str,
    out: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    config: Sequence[str] | str = (),
) -> ExportedFiles:
    """Write a part's state dict for MONAI core's class to ``out``, and a config with its definition beside it.

    Args:
        part: ``"autoencoder"`` or ``"unet"``.
        out: file of weights to write.
        weights: of this project; the config's ``ckpt_path`` by default.
        config: files that define the network, such as ``inference.json`` and a preset; the bundle's by default.

    Raises:
        FileNotFoundError: for missing files.
        ValueError: for a part that MONAI core's class cannot express, with the reason.
    """
    if part not in PARTS:
        reason = ", as MONAI core has no MS-SPADE" if part == "style_transfer" else ""
        raise ValueError(f"part: expected one of {', '.join(PARTS)}{reason}; found {part!r}. Choose one of them.")
    files = ([config] if isinstance(config, str) else list(config)) or [str(config_folder() / "inference.json")]
    for file in files:
        if not Path(file).expanduser().is_file():
            raise FileNotFoundError(f"config: expected files that define the network; found no {file}. Correct it.")
    parser = ConfigParser()
    try:
        parser.read_config([str(Path(file).expanduser()) for file in files])
    except Exception as error:  # of two parsers
        raise ValueError(
            f"config: expected JSON or YAML in {', '.join(map(str, files))}; found {error!r:.200}. Correct the file."
        ) from error
    parser["bundle_root"] = str(config_folder().parent)
    network = parser.get_parsed_content("network_def").eval()
    arguments = _arguments(parser, part, network)
    path = parser.get_parsed_content("ckpt_path") if weights is None else weights
    load_weights(network, path, [part])
    module, target = network.get_submodule(part), Path(out).expanduser().absolute()
    codebook = None
    if part == "autoencoder":
        exported, codebook = monai_export.autoencoder(module, arguments), monai_export.quantizer(module)
        about = {"intensity_range": [module.shift - module.scale, module.shift + module.scale]}
    else:
        exported, about = monai_export.unet(module, arguments), _diffusion(parser, network, path)
    content = {**about, **(codebook.config if codebook else {}), **exported.config}
    done = ExportedFiles(
        target, target.with_suffix(".json"), target.with_name(f"{target.stem}_quantizer.pt") if codebook else None
    )
    with ExitStack() as stack:  # all or none
        temporary = [stack.enter_context(atomic_write(file)) for file in done if file is not None]
        torch.save({name: tensor.contiguous() for name, tensor in exported.state.items()}, temporary[0])
        temporary[1].write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
        if codebook is not None:
            torch.save(codebook.state, temporary[2])
    return done


def _arguments(parser: ConfigParser, part: str, network: LatentTranslator) -> dict[str, Any]:
    """Arguments that a part was built with, defaults too."""
    kind = PARTS[part]
    if not isinstance(network.get_submodule(part), kind):
        found = type(network.get_submodule(part)).__name__
        raise ValueError(f"{part}: expected a {kind.__name__}; found a {found}, which has no weights to export.")
    place = f"network_def#{part}"
    given = {name: parser.get_parsed_content(f"{place}#{name}") for name in parser[place] if not name.startswith("_")}
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    return {**defaults, **given}


def _diffusion(parser: ConfigParser, network: LatentTranslator, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Settings that MONAI's ``LatentDiffusionInferer`` needs beside the UNet.

    Raises:
        ValueError: for a prediction that its schedulers would take for another one.
    """
    if network.residual or type(network.schedule) is not NoiseSchedule:
        found = "a prediction that is added to the target-like latent" if network.residual else "a rectified flow"
        raise ValueError(
            f"unet: expected a prediction that MONAI's DDIMScheduler takes; found {found}. It cannot be exported."
        )
    given = parser["network_def"]["schedule"]
    default = {n: p.default for n, p in inspect.signature(NoiseSchedule).parameters.items()}
    betas = {name: given.get(name, default[name]) for name in ("beta_start", "beta_end")}
    return {
        "conditioning": network.conditioning,
        "modalities": parser.get_parsed_content("modalities"),
        "scale_factor": float(read_weights(path).get("latent_scale", network.latent_scale)),
        "scheduler": {
            "_target_": "monai.networks.schedulers.DDIMScheduler",
            "num_train_timesteps": network.schedule.num_train_timesteps,
            "schedule": "scaled_linear_beta",
            **betas,
            "prediction_type": network.schedule.prediction_type,
            "clip_sample": False,
        },
    }
