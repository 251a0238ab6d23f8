"""Our autoencoder and UNet as MONAI core's classes: definitions and state dicts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from monai.networks.layers.vector_quantizer import EMAQuantizer
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from torch import Tensor, nn

from custom.networks.layouts.monai import NORM_EPS, by_level, their_name
from custom.networks.quantizer import VectorQuantizer

__all__ = ["Exported", "autoencoder", "quantizer", "unet"]

NO_SPREAD = -30.0  # the least log-variance that AutoencoderKL knows: what it draws is what it encodes
INSERT_ACTIVATION = (
    "$[half.blocks.insert(len(half.blocks) - 1, torch.nn.SiLU()) for half in (@autoencoder.encoder, "
    "@autoencoder.decoder)] and @autoencoder"
)


class Exported(NamedTuple):
    """A network of MONAI core: ``config``, whose ``network_def`` is the network, and its ``state`` dict."""

    config: dict[str, Any]
    state: dict[str, Tensor]


def autoencoder(network: nn.Module, arguments: Mapping[str, Any]) -> Exported:
    """A ``VQGAN`` as ``AutoencoderKL``, whose mean is our latent before quantisation.

    The class has one depth for both halves: where ours differ, residual blocks that change nothing fill up the
    shallower one. An activation before the last convolutions is inserted by an expression of the config.

    Args:
        network: the autoencoder.
        arguments: that it was built with, defaults too.

    Raises:
        ValueError: for what the class cannot express, with the reason.
    """
    if arguments["haar_levels"]:
        raise _inexpressible("autoencoder", "a Haar step before its first convolution")
    latent = int(arguments["embedding_dim"])
    if arguments["encoder_channels"] not in (None, latent):
        raise _inexpressible("autoencoder", "another number of channels before its latent than in it")
    encoder = list(arguments["num_res_blocks"])
    decoder = list(arguments["decoder_num_res_blocks"] or encoder)
    attends = list(arguments["attention_levels"] or [False] * len(encoder))
    deepest = [max(pair) for pair in zip(encoder, decoder, strict=True)]
    theirs = {
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 1,
        "channels": list(arguments["channels"]),
        "num_res_blocks": deepest,
        "latent_channels": latent,
        "norm_num_groups": arguments["norm_num_groups"],
        "norm_eps": NORM_EPS,
        "attention_levels": attends,
        "with_encoder_nonlocal_attn": bool(arguments["nonlocal_attention"]),
        "with_decoder_nonlocal_attn": bool(arguments["nonlocal_attention"]),
    }
    activated = bool(arguments["final_activation"])
    state = _autoencoder_state(network, theirs, {"encoder": encoder, "decoder": decoder}, activated)
    definition = {"_target_": "monai.networks.nets.AutoencoderKL", **theirs}
    if not activated:
        return Exported({"network_def": definition}, state)
    return Exported({"imports": ["$import torch"], "autoencoder": definition, "network_def": INSERT_ACTIVATION}, state)


def _autoencoder_state(
    network: nn.Module, theirs: Mapping[str, Any], depths: Mapping[str, Sequence[int]], activated: bool
) -> dict[str, Tensor]:
    """State dict of the ``AutoencoderKL`` of the arguments ``theirs``; ours has ``depths`` in its halves."""
    built = AutoencoderKL(**theirs)
    if activated:
        for blocks in (built.encoder.blocks, built.decoder.blocks):
            assert isinstance(blocks, nn.ModuleList)
            blocks.insert(len(blocks) - 1, nn.SiLU())
    structure = (theirs["attention_levels"], theirs["with_encoder_nonlocal_attn"], activated)
    own = {half: _labels(half, depth, *structure) for half, depth in depths.items()}
    whole = {half: _labels(half, theirs["num_res_blocks"], *structure) for half in depths}
    state = _without_effect(built.state_dict(), own, whole)
    for name, tensor in network.state_dict().items():
        if name.startswith(("encoder.", "decoder.", "post_quant_conv.")):
            state[_renumbered(their_name(name, transformer=False), own, whole)] = tensor
    return state | _moments(network, int(theirs["latent_channels"]))


def _labels(half: str, depths: Sequence[int], attends: Sequence[bool], bottom: bool, activated: bool) -> list[str]:
    """Label each block of a half, in the order of the forward pass."""
    levels = list(enumerate(depths))
    middle = [f"mid {part}" for part in ("in", "attention", "out")] if bottom else []
    labels = ["in"] if half == "encoder" else ["in", *middle]
    for i, depth in levels if half == "encoder" else reversed(levels):
        for j in range(depth):
            labels += [f"{i} {j}", *([f"{i} {j} attention"] if attends[i] else [])]
        labels.append(f"{i} resized")
    labels.pop()  # the last level keeps its size
    return [*labels, *(middle if half == "encoder" else []), "norm", *(["activation"] if activated else []), "out"]


def _renumbered(name: str, own: Mapping[str, list[str]], whole: Mapping[str, list[str]]) -> str:
    match = re.match(r"(encoder|decoder)\.blocks\.(\d+)\.", name)
    if match is None:
        return name
    half, number = match.group(1), int(match.group(2))
    return f"{half}.blocks.{whole[half].index(own[half][number])}.{name[match.end() :]}"


def _without_effect(
    state: dict[str, Tensor], own: Mapping[str, list[str]], whole: Mapping[str, list[str]]
) -> dict[str, Tensor]:
    """``state`` with zeros in the last layer of every residual block and attention that only ``whole`` has."""
    for half, labels in whole.items():
        for number, label in enumerate(labels):
            if label not in own[half]:
                last = "attn.out_proj" if label.endswith("attention") else "conv2.conv"
                for kind in ("weight", "bias"):
                    state[f"{half}.blocks.{number}.{last}.{kind}"].zero_()
    return state


def _moments(network: nn.Module, latent: int) -> dict[str, Tensor]:
    """The two 1³ convolutions at the latent; of a quantised one the spread is none."""
    moments = {}
    for kind, spread in (("weight", 0.0), ("bias", NO_SPREAD)):
        tensor = network.state_dict()[f"quant_conv.conv.{kind}"]
        moments[f"quant_conv_mu.conv.{kind}"] = tensor[:latent]
        whole = len(tensor) == 2 * latent
        moments[f"quant_conv_log_sigma.conv.{kind}"] = tensor[latent:] if whole else torch.full_like(tensor, spread)
    return moments


def quantizer(network: nn.Module) -> Exported | None:
    """The codebook of a ``VQGAN`` as ``EMAQuantizer``; None for a latent that is not quantised.

    Raises:
        ValueError: for several codebooks.
    """
    if not isinstance(network.bottleneck, VectorQuantizer):
        return None
    if network.bottleneck.num_codebooks > 1:
        raise _inexpressible("autoencoder", f"{network.bottleneck.num_codebooks} codebooks for a latent voxel")
    sizes: dict[str, Any] = {
        "num_embeddings": network.bottleneck.num_embeddings,
        "embedding_dim": network.bottleneck.embedding_dim,
    }
    names = EMAQuantizer(3, **sizes).state_dict()
    state = {name: network.bottleneck.state_dict()[name] for name in names}
    target = "monai.networks.layers.vector_quantizer.EMAQuantizer"
    return Exported({"quantizer_def": {"_target_": target, "spatial_dims": 3, **sizes}}, state)


def unet(network: nn.Module, arguments: Mapping[str, Any]) -> Exported:
    """A ``ConditionalUNet`` as ``DiffusionModelUNet``.

    The target enters as ``context`` (B, 1, M), its one-hot code, or as ``class_labels``. MONAI's transformer projects
    its input and gates its feed-forward layer: with an identity and with gates of 1 it is ours.

    Args:
        network: the UNet.
        arguments: that it was built with, defaults too.
    """
    channels = list(arguments["channels"])
    levels = {n: by_level(arguments[n], channels) for n in ("num_res_blocks", "num_heads")}
    transformer, modalities = arguments["attention"] != "self", int(arguments["num_modalities"])
    classes = modalities if arguments["class_embedding"] else None
    theirs = {
        "spatial_dims": 3,
        "in_channels": int(arguments["in_channels"]),
        "out_channels": int(arguments["out_channels"]),
        "channels": channels,
        "num_res_blocks": levels["num_res_blocks"],
        "attention_levels": list(arguments["attention_levels"]),
        "norm_num_groups": arguments["norm_num_groups"],
        "norm_eps": NORM_EPS,
        "num_head_channels": [c // h for c, h in zip(channels, levels["num_heads"], strict=True)],
        "with_conditioning": transformer,
        "cross_attention_dim": modalities if transformer else None,
        "num_class_embeds": classes,
    }
    state = DiffusionModelUNet(**theirs).state_dict()
    if transformer and classes is not None:  # ours has no cross-attention then
        for name in state:
            if ".attn2.out_proj." in name:
                state[name].zero_()
    for name, tensor in network.state_dict().items():
        for theirs_name, value in _unet_tensors(name, tensor, arguments["attention"]).items():
            state[theirs_name] = value.reshape(state[theirs_name].shape)
    if arguments["attention"] == "transformer":
        for name in state:
            if ".proj_in.conv." in name:
                size = len(state[name])
                state[name] = (
                    torch.eye(size).reshape(state[name].shape) if name.endswith("weight") else torch.zeros(size)
                )
    return Exported({"network_def": {"_target_": "monai.networks.nets.DiffusionModelUNet", **theirs}}, state)


def _unet_tensors(name: str, tensor: Tensor, attention: str) -> dict[str, Tensor]:
    theirs = their_name(name, transformer=attention != "self")
    if attention == "transformer" and ".ff.linear1." in theirs:
        values = torch.zeros_like(tensor) if name.endswith("weight") else torch.ones_like(tensor)
        return {theirs: torch.cat([values, tensor])}
    return {theirs: tensor}


def _inexpressible(part: str, reason: str) -> ValueError:
    return ValueError(
        f"{part}: expected what MONAI core's class can express; found {reason}, which it does not have. "
        "Such weights cannot be exported."
    )
