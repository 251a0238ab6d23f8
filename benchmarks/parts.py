"""The parts of one translation, each by itself, from the file to the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from benchmarks.measure import ConvolutionRate, Measured, autocast, measured
from custom.commands.summary import count_flops
from custom.compat import FakeTensorMode
from custom.networks import LatentTranslator
from custom.networks.diffusion import draw_noise
from custom.networks.fast import accelerate

__all__ = ["NETWORK_PARTS", "Part", "arithmetic", "measure_parts", "total_seconds"]

NETWORK_PARTS = ("encode", "quantise", "MS-SPADE", "step", "decode", "detail")
TARGET = 0


class Part(NamedTuple):
    """One row.

    Attributes:
        name: of the part.
        seconds: that it took.
        memory: MiB beyond what was held before.
        tflop: arithmetic of the plain modules; 0 where it is not counted.
        executed: what is left of it where multiplications are saved.
        rate: the machine's TFLOP/s of convolution around it.
    """

    name: str
    seconds: float
    memory: float
    tflop: float
    executed: float
    rate: float


@torch.no_grad()
def measure_parts(
    config: ConfigParser, network: LatentTranslator, image: Path, device: torch.device, *, amp: bool
) -> tuple[list[Part], dict[str, Any]]:
    """Run the parts one after the other, each on the result of the one before.

    Args:
        config: ``inference.json`` with ``output_dir`` and ``targets`` (one) set.
        network: of the config.
        image: source file.
        device: of the network.
        amp: whether in bfloat16.

    Returns:
        The rows, and the intermediate results by name.
    """
    transforms = config.get_parsed_content("preprocessing").transforms
    preprocess, postprocess = Compose(transforms[1:]), config.get_parsed_content("postprocessing")
    target = torch.tensor([TARGET], device=device)
    time = torch.tensor([network.schedule.num_train_timesteps // 2], device=device)
    kept: dict[str, Any] = {}
    parts: dict[str, Callable[[], Any]] = {
        "read": lambda: transforms[0]({"image": str(image)}),
        "preprocess": lambda: preprocess(kept["read"]),
        "encode": lambda: network.autoencoder.encode(kept["image"]),
        "quantise": lambda: network.autoencoder.quantize(kept["encode"]).latent,
        "MS-SPADE": lambda: network.transfer(kept["quantise"], target),
        "step": lambda: network.predict(kept["noise"], kept["quantise"], kept["MS-SPADE"], time, target),
        "decode": lambda: network.decode(kept["MS-SPADE"]),
        "write": lambda: postprocess({**kept["preprocess"], "pred": kept["pred"]}),
    }
    if (detail := network.detail) is not None:
        writing = parts.pop("write")
        parts["detail"] = lambda: detail(kept["decode"], kept["image"], target)
        parts["write"] = writing
    rows, rate = [], ConvolutionRate(device, amp=amp)
    for name, part in parts.items():
        with accelerate(network), autocast(device, amp):
            kept[name], cost = measured(part, device, rate=rate)
        if name == "preprocess":
            kept["image"] = kept[name]["image"].as_tensor()[None].to(device)
        if name == "quantise":
            kept["noise"] = draw_noise(kept[name], 0)
        if name in ("decode", "detail"):
            like = kept["preprocess"]["image"]
            kept["pred"] = like.clone().copy_(kept[name][0].float().clamp(-1, 1).cpu())
        rows.append(_part(name, cost, network, kept, amp=amp))
    return rows, kept


def total_seconds(parts: Sequence[Part], steps: int) -> float:
    """Of a translation with that many sampler steps."""
    return sum(part.seconds * (steps if part.name == "step" else 1) for part in parts)


def _part(name: str, cost: Measured, network: LatentTranslator, kept: dict[str, Any], *, amp: bool) -> Part:
    plain = executed = 0.0
    if name in NETWORK_PARTS:
        plain, executed = arithmetic(network, name, tuple(kept["image"].shape[2:]), amp=amp)
    return Part(name, cost.seconds, cost.memory, plain, executed, cost.rate)


@torch.no_grad()
def arithmetic(
    network: LatentTranslator, name: str, size: tuple[int, ...], *, amp: bool = False
) -> tuple[float, float]:
    """TFLOP of a part on a volume of ``size``: of the plain modules, and executed.

    Convolutions and matrix products are counted, without data.
    """
    device = next(network.parameters()).device
    with FakeTensorMode(allow_non_fake_inputs=True), autocast(device, amp):
        plain = _count(network, name, size)
        with accelerate(network):
            return plain, _count(network, name, size)


def _count(network: LatentTranslator, name: str, size: tuple[int, ...]) -> float:
    autoencoder, device = network.autoencoder, next(network.parameters()).device
    image = torch.zeros(1, 1, *size, device=device)
    latent = torch.zeros(1, autoencoder.latent_channels, *(n // autoencoder.downsampling for n in size), device=device)
    index = torch.zeros(1, dtype=torch.long, device=device)
    parts: dict[str, Callable[[], Any]] = {
        "encode": lambda: autoencoder.encode(image),
        "quantise": lambda: autoencoder.quantize(latent),
        "MS-SPADE": lambda: network.transfer(latent, index),
        "step": lambda: network.predict(latent, latent, latent, index, index),
        "decode": lambda: network.decode(latent),
    }
    if (detail := network.detail) is not None:
        parts["detail"] = lambda: detail(image, image, index)
    return count_flops(parts[name]) / 1e12
