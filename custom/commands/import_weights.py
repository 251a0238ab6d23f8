"""Weights from elsewhere as weights of ours, with the configs that use them and a report of every tensor."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from custom.commands.imported_presets import as_json, preset, training_preset
from custom.networks.layouts import monai, monai_generative, release
from custom.networks.layouts.mapping import Mapped, Part, build, map_tensors
from custom.networks.layouts.reader import Tensors, find_tensors, read_checkpoint
from custom.utils.arguments import as_bool
from custom.utils.files import atomic_write
from custom.utils.intensity_scales import PERCENTILE, SCALE_KEY, scale_number
from custom.utils.modalities import canonical

__all__ = ["Imported", "import_weights", "report_text"]

SOURCES = {"release": None, "monai": monai, "monai-generative": monai_generative}
SIGNED = (-1.0, 1.0)


class Imported(NamedTuple):
    """Files that ``import_weights`` has written.

    Attributes:
        weights: the flat state dict.
        preset: config that uses them as they are: to translate where they hold MS-SPADE, else to reconstruct.
        training: config that trains the next stages from them, and runs what was trained.
        report: text that names every tensor.
        tensors: by part of the network, what became of the other layout's tensors.
    """

    weights: Path
    preset: Path
    training: Path
    report: Path
    tensors: dict[str, Mapped]


def import_weights(
    source: str,
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    modalities: Sequence[str] | str,
    *,
    unet_checkpoint: str | os.PathLike[str] | None = None,
    config: Sequence[str] | str = (),
    intensity_range: Sequence[float] | None = None,
    conditioning: str | None = None,
    strict: bool | str = True,
) -> Imported:
    """Write ``out``, and beside it ``preset_<name>.json``, ``preset_<name>_training.json`` and ``<name>_tensors.txt``.

    Args:
        source: ``"release"``, ``"monai"`` or ``"monai-generative"``.
        checkpoint: with the autoencoder and, for the release, MS-SPADE.
        out: file of weights to write.
        modalities: for the release, what each class of the training was, in order; otherwise those to be trained.
        unet_checkpoint: with a ``DiffusionModelUNet``, for MONAI's two layouts.
        config: JSON or YAML with the definitions of the networks, for MONAI's two layouts.
        intensity_range: of the images that an autoencoder of MONAI's layouts was trained on; the release's is [-1, 1].
        conditioning: of a UNet that takes more than the noisy latent, see ``LatentTranslator``.
        strict: refuse missing and unknown tensors.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for weights that cannot be imported, with the reason; nothing is written then.
    """
    if source not in SOURCES:
        raise ValueError(f"source: expected one of {', '.join(SOURCES)}; found {source!r}. Correct it.")
    names, target = _vocabulary(modalities), Path(out).expanduser().absolute()
    inputs = [Path(path).expanduser().absolute() for path in (checkpoint, unet_checkpoint) if path is not None]
    if target in inputs or target.is_dir():
        raise ValueError(f"out: expected a file of its own; found {target}. Choose another name.")
    if source == "release":
        given = {"unet_checkpoint": unet_checkpoint, "config": config, "intensity_range": intensity_range}
        surplus = [name for name, value in {**given, "conditioning": conditioning}.items() if value]
        if surplus:
            raise ValueError(f"{surplus[0]}: expected none for --source release, which tells it. Leave it out.")
        parts = _release_parts(checkpoint, len(names))
    else:
        files = [config] if isinstance(config, str) else list(config)
        parts, conditioning = _monai_parts(
            source, checkpoint, unet_checkpoint, files, intensity_range, conditioning, len(names)
        )
    mapped = {name: map_tensors(part, strict=as_bool("strict", strict)) for name, part in parts.items()}
    definitions = {name: part.definition for name, part in parts.items()}
    schedule = monai.schedule(files) if "unet" in parts else None
    state = _whole_state(mapped, definitions, schedule)
    presets = (
        preset(target, names, definitions, schedule, conditioning),
        training_preset(target, names, definitions, schedule, conditioning, release=source == "release"),
    )
    return _write(target, state, presets, mapped)


def _vocabulary(modalities: Sequence[str] | str) -> list[str]:
    given = modalities.split(",") if isinstance(modalities, str) else list(modalities)
    names = [canonical(name) for name in given]
    if not names or len(set(names)) != len(names) or not all(re.fullmatch(r"\w[\w-]*", name) for name in names):
        raise ValueError(
            f"modalities: expected different names in the order of the classes, such as t1,t1ce,t2; found {given}. "
            "Correct it: a wrong order gives images under wrong names."
        )
    return names


def _release_parts(checkpoint: str | os.PathLike[str], num_modalities: int) -> dict[str, Part]:
    found = find_tensors(read_checkpoint(checkpoint), release.FIRST, checkpoint)
    parts = {"autoencoder": release.autoencoder(found)}
    style = release.style_transfer(found, num_modalities)
    return parts if style is None else {**parts, "style_transfer": style}


def _monai_parts(
    source: str,
    checkpoint: str | os.PathLike[str],
    unet_checkpoint: str | os.PathLike[str] | None,
    config: Sequence[str],
    intensity_range: Sequence[float] | None,
    conditioning: str | None,
    num_modalities: int,
) -> tuple[dict[str, Part], str | None]:
    if not config:
        raise ValueError(
            f"config: expected the config with the networks' definitions, as weights of {source} do not tell their "
            "groups and heads; found none. Add --config FILE."
        )
    layout = monai if source == "monai" else monai_generative
    naming = str if source == "monai" else monai_generative.generative_name
    found = find_tensors(read_checkpoint(checkpoint), monai.FIRST_AUTOENCODER, checkpoint)
    _refuse_vqvae(found)
    given = layout.definition("AutoencoderKL", config, found)
    parts = {"autoencoder": monai.autoencoder(found, given, _ends(intensity_range), naming=naming)}
    if unet_checkpoint is None:
        if conditioning is not None:
            raise ValueError(
                "conditioning: expected with --unet_checkpoint only. Leave it out, or name the UNet's file."
            )
        return parts, None
    found = find_tensors(read_checkpoint(unet_checkpoint), monai.FIRST_UNET, unet_checkpoint)
    unet_given = layout.definition("DiffusionModelUNet", config, found)
    latent_channels = int(given.arguments["latent_channels"])
    unet, conditioning = monai.unet(found, unet_given, num_modalities, latent_channels, conditioning, naming=naming)
    return {**parts, "unet": unet}, conditioning


def _refuse_vqvae(found: Tensors) -> None:
    if any(name.startswith("quantizer.") for name in found.tensors):
        raise ValueError(
            f"{found.file}: expected an AutoencoderKL; found a VQVAE. Its residual units have no normalisation and it "
            "enlarges by transposed convolutions, which VQGAN cannot express; such weights cannot be imported."
        )


def _ends(intensity_range: Sequence[float] | None) -> tuple[float, float]:
    try:
        lower, upper = (float(end) for end in intensity_range or ())
    except (TypeError, ValueError):
        lower, upper = 0.0, 0.0
    if not lower < upper:
        raise ValueError(
            "intensity_range: expected the range of the images that the autoencoder was trained on, such as 0,1; found "
            f"{intensity_range}. Say it: with another one the images would be wrong."
        )
    return lower, upper


def _whole_state(
    mapped: Mapping[str, Mapped], definitions: Mapping[str, dict], schedule: dict | None
) -> dict[str, Tensor]:
    """The flat state dict of a translator of these parts, with its buffers."""
    state = {f"{part}.{name}": tensor for part, result in mapped.items() for name, tensor in result.state.items()}
    buffers = build(schedule or {"_target_": "custom.networks.NoiseSchedule"}).state_dict()
    state |= {f"schedule.{name}": tensor for name, tensor in buffers.items()}
    return {**state, "latent_scale": torch.ones(()), SCALE_KEY: torch.tensor(scale_number(PERCENTILE))}


def _write(
    target: Path, state: dict[str, Tensor], presets: Sequence[Mapping[str, Any]], mapped: dict[str, Mapped]
) -> Imported:
    name = target.stem
    preset, training = target.with_name(f"preset_{name}.json"), target.with_name(f"preset_{name}_training.json")
    done = Imported(target, preset, training, target.with_name(f"{name}_tensors.txt"), mapped)
    with ExitStack() as files:  # all or none
        weights, *texts = (files.enter_context(atomic_write(path)) for path in done[:4])
        torch.save(state, weights)
        for file, content in zip(texts, (*map(as_json, presets), report_text(mapped)), strict=True):
            file.write_text(content, encoding="utf-8")
    return done


def report_text(mapped: Mapping[str, Mapped]) -> str:
    """A line for every tensor of the other layout: used and for what, ignored, or missing."""
    used = {name: part for part, result in mapped.items() for name in result.used}
    lines = [f"used for {part}\t{name}" for name, part in used.items()]
    ignored = dict.fromkeys(name for result in mapped.values() for name in result.ignored if name not in used)
    missing = dict.fromkeys(name for result in mapped.values() for name in result.missing)
    lines += [f"ignored\t{name}" for name in ignored] + [f"missing\t{name}" for name in missing]
    head = f"{len(used)} tensors used, {len(ignored)} ignored, {len(missing)} missing"
    return "\n".join([head, *lines]) + "\n"
