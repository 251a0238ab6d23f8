"""Cost of a preset: parameters by part, latent shape, arithmetic, memory of training; nothing is allocated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from custom.networks import LatentTranslator
from custom.networks.weights import is_kernel
from custom.utils.bundle import config_folder

__all__ = ["Row", "count_flops", "preset_network", "summarize", "summary", "training_memory"]

DEFAULT_PRESET = "small"
DEFAULT_SIZE = (192, 192, 144)
STAGES = {"1, autoencoder": "train_autoencoder", "2, MS-SPADE": "train_spade", "3, diffusion": "train"}


class Row(NamedTuple):
    """One line of the table: section, name, value; ``unit`` is empty where the value is a shape."""

    section: str
    name: str
    value: int | float | tuple[int, ...]
    unit: str


def preset_network(preset: str = DEFAULT_PRESET) -> LatentTranslator:
    """The network of a preset on the meta device, in evaluation mode: shapes without memory.

    Args:
        preset: ``"small"``, the bundle's default, or the name of a ``preset_<name>.json``.

    Raises:
        ValueError: if there is no such preset.
    """
    parser = ConfigParser()
    parser.read_config([str(file) for file in (config_folder() / "inference.json", *_overlay(preset))])
    with torch.device("meta"):
        return parser.get_parsed_content("network_def").eval()


def _overlay(preset: str) -> list[Path]:
    """The config of a preset, none for the default."""
    folder = config_folder()
    if preset == DEFAULT_PRESET:
        return []
    if not (folder / f"preset_{preset}.json").is_file():
        known = [DEFAULT_PRESET, *sorted(p.stem.removeprefix("preset_") for p in folder.glob("preset_*.json"))]
        raise ValueError(f"preset: expected one of {', '.join(known)}; found {preset!r}.")
    return [folder / f"preset_{preset}.json"]


def summarize(preset: str = DEFAULT_PRESET, size: Sequence[int] = DEFAULT_SIZE) -> list[Row]:
    """Parameters, latent shape and arithmetic of one translation of a volume.

    A multiplication and an addition count as two floating-point operations; convolutions and matrix products are
    counted, element-wise work is not.

    Args:
        preset: ``"small"``, ``"paper"``, ``"release"``.
        size: (H, W, D) of the volume in voxels.

    Raises:
        ValueError: if the preset is unknown or the size does not suit it.
    """
    network = preset_network(preset)
    _check_size(size, network.spatial_divisor)
    latent_shape = (
        network.autoencoder.latent_channels,
        *(int(n) // network.autoencoder.downsampling for n in size),
    )
    return [
        *_parameters(network),
        Row("shapes", "image", (1, *map(int, size)), ""),
        Row("shapes", "latent", latent_shape, ""),
        *_arithmetic(network, tuple(map(int, size)), latent_shape),
    ]


def training_memory(preset: str = DEFAULT_PRESET, size: Sequence[int] = DEFAULT_SIZE) -> list[Row]:
    """Memory of a training step of each stage with the config's batch and crops, and the smallest GPU for it.

    Args:
        preset, size: as for :func:`summarize`, of which the crops of the configs are cut.

    Raises:
        ValueError: if the preset is unknown or the size does not suit it.
    """
    from custom.training.memory import smallest_card, step_memory  # the engines are not needed otherwise

    _check_size(size, preset_network(preset).spatial_divisor)
    rows = []
    for stage, config in STAGES.items():
        for checkpointed in (False, True):
            files = [config_folder() / f"{config}.json", *_overlay(preset)]
            # what checkpoints compute again leaves the precisions of a GPU's autocast, which are only imitated
            used = step_memory(files, size, like_cuda=not checkpointed, gradient_checkpointing=checkpointed)
            card = smallest_card(used)
            fits = f"GB: card of {card} GB" if card else "GB: more than a card of 80 GB"
            name = f"{stage}, gradient checkpointing" if checkpointed else stage
            rows.append(Row("memory of a training step", name, used / 1e9, fits))
    return rows


def summary(preset: str = DEFAULT_PRESET, size: Sequence[int] = DEFAULT_SIZE, *, training: bool = True) -> None:
    """Print what :func:`summarize` and, for ``training``, :func:`training_memory` find; errors as there."""
    rows = summarize(preset, size) + (training_memory(preset, size) if training else [])
    print(f"preset {preset}")
    width = max(len(row.name) for row in rows) + 2
    section = ""
    for row in rows:
        if row.section != section:
            section = row.section
            print(f"\n{section}")
        print(f"  {row.name:<{width}}{_format(row.value):>20} {row.unit}".rstrip())


def _check_size(size: Sequence[int], divisor: int) -> None:
    if len(size) != 3 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 or n % divisor for n in size):
        raise ValueError(
            f"size: expected three positive multiples of {divisor}, this preset's downsampling; found "
            f"{' '.join(map(str, size))}. Pad the volume to such a size."
        )


def _parameters(network: LatentTranslator) -> list[Row]:
    autoencoder = network.autoencoder
    parts: dict[str, Sequence[nn.Module]] = {
        "encoder": _present(autoencoder.encoder, autoencoder.quant_conv, autoencoder.projection),
        "codebook": (autoencoder.bottleneck,),
        "decoder": _present(autoencoder.decoder, autoencoder.post_quant_conv, autoencoder.expansion),
        "MS-SPADE": (network.style_transfer,),
        "fusion of sources": (network.fusion,),
        "UNet": (network.unet,),
        "detail transfer": _present(network.detail),
        "all": (network,),
    }
    rows = [
        Row("parameters", name, sum(p.numel() for module in modules for p in module.parameters()), "")
        for name, modules in parts.items()
    ]
    size = sum(t.numel() * (2 if is_kernel(t) else t.element_size()) for t in network.state_dict().values())  # compact
    return [*rows, Row("parameters", "model.pt", size / 1e6, "MB")]


def _present(*modules: nn.Module | None) -> list[nn.Module]:
    return [module for module in modules if module is not None]


def _arithmetic(network: LatentTranslator, size: tuple[int, ...], latent_shape: tuple[int, ...]) -> list[Row]:
    def meta(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    image, latent = meta(1, 1, *size), meta(1, *latent_shape)
    target = torch.zeros(1, dtype=torch.long, device="meta")
    autoencoder = network.autoencoder
    parts: dict[str, Callable[[], object]] = {
        "encode": lambda: autoencoder.encode(image),
        "quantise": lambda: autoencoder.quantize(latent),
        "MS-SPADE": lambda: network.transfer(latent, target),
        "one UNet step": lambda: network.predict(latent, latent, latent, target, target),
        "decode": lambda: network.decode(latent),
    }
    if (detail := network.detail) is not None:
        parts["detail transfer"] = lambda: detail(image, image, target)
    steps = network.num_inference_steps
    flops = {name: count_flops(part) for name, part in parts.items()}
    total = sum(flops.values()) + (steps - 1) * flops["one UNet step"]
    flops[f"one translation, {steps} step{'s' if steps > 1 else ''}"] = total
    return [Row("arithmetic", name, count / 1e9, "GFLOP") for name, count in flops.items()]


@torch.no_grad()
def count_flops(part: Callable[[], object]) -> int:
    """Floating-point operations of the convolutions and matrix products that ``part`` runs."""
    with FlopCounterMode(display=False) as counter:
        part()
    return counter.get_total_flops()


def _format(value: int | float | tuple[int, ...]) -> str:
    if isinstance(value, tuple):
        return " × ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
