"""The same work with MONAI's stock parts, for ratios."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from monai.networks.layers.vector_quantizer import EMAQuantizer
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import ConvolutionRate, autocast, measured
from custom.networks import LatentTranslator, VectorQuantizer

__all__ = ["LOOP_LENGTHS", "Comparison", "measure_stock", "stock_unet"]

LOOP_LENGTHS = (50, 200)
TIMED_STEPS = 2


class Comparison(NamedTuple):
    """A stock part: as ``Part``, with a remark."""

    name: str
    seconds: float
    memory: float
    tflop: float
    rate: float
    remark: str


def stock_unet(config: ConfigParser, *, flash: bool = False) -> DiffusionModelUNet:
    """MONAI's UNet of the preset's widths, with cross-attention to the one-hot target, for inference."""
    settings = config["network_def#unet"]
    modalities, channels = len(config.get_parsed_content("modalities")), tuple(settings["channels"])
    heads = settings.get("num_heads", 4)
    return DiffusionModelUNet(
        spatial_dims=3,
        in_channels=settings["in_channels"],
        out_channels=settings["out_channels"],
        channels=channels,
        attention_levels=tuple(settings.get("attention_levels", (False, True, True))),
        num_res_blocks=settings.get("num_res_blocks", 1),
        norm_num_groups=settings.get("norm_num_groups", 32),
        num_head_channels=tuple(c // heads for c in channels),
        with_conditioning=True,
        cross_attention_dim=modalities,
        use_flash_attention=flash,
    ).eval()


@torch.no_grad()
def measure_stock(
    config: ConfigParser, network: LatentTranslator, kept: dict[str, Any], device: torch.device, *, amp: bool
) -> list[Comparison]:
    """Run MONAI's encoder, quantiser, UNet, DDIM loop and decoder on the inputs in ``kept`` (see ``measure_parts``)."""
    rows, rate = [], ConvolutionRate(device, amp=amp)
    autoencoder = network.autoencoder
    with autocast(device, amp):
        rows.append(_row("encode", lambda: autoencoder.encoder(autoencoder.haar(kept["image"])), device, rate))
        book = autoencoder.bottleneck
        if isinstance(book, VectorQuantizer):
            pieces = kept["encode"][:, : book.embedding_dim].float().chunk(book.num_codebooks, dim=1)
            pairs = [
                (twin.to(device), piece.contiguous()) for twin, piece in zip(_ema_twins(book), pieces, strict=True)
            ]
            search = partial(_each, pairs)
            rows.append(_row("quantise", search, device, rate, "EMAQuantizer in evaluation"))
        inputs = torch.cat([kept["noise"], kept["quantise"], kept["MS-SPADE"]], dim=1).float().contiguous()
        for flash in (False, True):
            unet = stock_unet(config, flash=flash).to(device)
            rows.append(_step(unet, inputs[:, : unet.conv_in.in_channels], network, device, rate, flash=flash))
        rows.append(_loop(rows[-2], kept["noise"], device, rate))
        latent = autoencoder.post_quant_conv(kept["MS-SPADE"][:, : autoencoder.embedding_dim]).contiguous()
        rows.append(_row("decode", lambda: autoencoder.haar.inverse(autoencoder.decoder(latent)), device, rate))
    return rows


def _row(
    name: str, part: Any, device: torch.device, rate: ConvolutionRate, remark: str = "", *, repeats: int = 1
) -> Comparison:
    _, cost = measured(part, device, repeats=repeats, rate=rate)
    return Comparison(name, cost.seconds, cost.memory, 0.0, cost.rate, remark)


def _each(pairs: Sequence[tuple[EMAQuantizer, Tensor]]) -> list[Any]:
    return [twin(piece) for twin, piece in pairs]


def _ema_twins(quantizer: VectorQuantizer) -> list[EMAQuantizer]:
    """MONAI's quantiser for each codebook."""
    codes = quantizer.embedding.weight.chunk(quantizer.num_codebooks, dim=1)
    twins = [EMAQuantizer(3, *book.shape).eval() for book in codes]
    for twin, book in zip(twins, codes, strict=True):
        twin.embedding.weight.copy_(book)
    return twins


def _step(
    unet: DiffusionModelUNet,
    inputs: torch.Tensor,
    network: LatentTranslator,
    device: torch.device,
    rate: ConvolutionRate,
    *,
    flash: bool,
) -> Comparison:
    time = torch.tensor([network.schedule.num_train_timesteps // 2], device=device)
    context = torch.eye(network.num_modalities, device=device)[:1].unsqueeze(1)
    row = _row("step", lambda: unet(inputs, time, context=context), device, rate, repeats=TIMED_STEPS)
    remark = "DiffusionModelUNet" + (" with flash attention" if flash else "")
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        unet.to("meta")(torch.empty(inputs.shape), time.to("meta"), context=torch.empty(context.shape))
    return row._replace(tflop=counter.get_total_flops() / 1e12, remark=remark)


def _loop(step: Comparison, noise: torch.Tensor, device: torch.device, rate: ConvolutionRate) -> Comparison:
    """One step of MONAI's loop: the UNet's and the scheduler's."""
    scheduler = DDIMScheduler(1000, "scaled_linear_beta", beta_start=0.0015, beta_end=0.0195)
    scheduler.set_timesteps(max(LOOP_LENGTHS))
    time = int(scheduler.timesteps[1])
    row = _row("scheduler", lambda: scheduler.step(noise, time, noise), device, rate, repeats=TIMED_STEPS)
    remark = f"a step of the DDIMScheduler loop, timed over {TIMED_STEPS} steps or more"
    memory = max(step.memory, row.memory)
    return Comparison("loop step", step.seconds + row.seconds, memory, step.tflop, step.rate, remark)
