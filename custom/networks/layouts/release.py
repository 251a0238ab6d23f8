"""The layout of the authors' release: the compression stage, an autoencoder with or without MS-SPADE."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from custom.networks.layouts.mapping import Part, Rule, copied, tensors_of
from custom.networks.layouts.reader import Tensors

__all__ = ["FIRST", "autoencoder", "style_transfer"]

FIRST = "encoder.conv_in.weight"
GROUPS = 32
DISCRIMINATOR = "loss."
SPADE = "spade."


def autoencoder(source: Tensors) -> Part:
    """The VQ-GAN of the release, of any widths, depths and number of codes.

    Raises:
        ValueError: if the names or shapes are not of that layout.
    """
    weights = source.tensors
    _need(source, "encoder.down.0.block.0.conv1.weight")
    _refuse_attention(source)
    blocks = {half: _blocks(weights, half) for half in ("encoder", "decoder")}
    codes = _need(source, "quantize.embedding.weight")
    channels = [int(_need(source, f"encoder.down.{i}.block.0.conv2.weight").shape[0]) for i in range(_levels(weights))]
    if any(width % GROUPS for width in channels):
        raise ValueError(
            f"{source.file}: expected widths that {GROUPS} divides, the groups of the release's normalisations; "
            f"found {channels}. These weights are of another layout."
        )
    definition = {
        "_target_": "custom.networks.VQGAN",
        "channels": channels,
        "embedding_dim": int(codes.shape[1]),
        "num_embeddings": int(codes.shape[0]),
        "num_res_blocks": _depths(weights, "encoder.down"),
        "decoder_num_res_blocks": _depths(weights, "decoder.up"),
        "norm_num_groups": GROUPS,
        "final_activation": True,
    }
    if (encoder_channels := int(_need(source, "encoder.conv_out.weight").shape[0])) != definition["embedding_dim"]:
        definition["encoder_channels"] = encoder_channels
    rules = {name: _rule(name, blocks, int(codes.shape[0])) for name in tensors_of(definition, source.file)}
    known = tuple(name for name in weights if name.startswith((DISCRIMINATOR, SPADE)))
    return Part(definition, rules, source, known)


def style_transfer(source: Tensors, num_modalities: int) -> Part | None:
    """MS-SPADE of the release; None where the file holds an autoencoder alone.

    Args:
        source: the tensors.
        num_modalities: M.

    Raises:
        ValueError: if it has another number of classes, or the names or shapes are not of that layout.
    """
    weights = source.tensors
    if not any(name.startswith(SPADE) for name in weights):
        return None
    spades = re.compile(r"spade\.block\.0\.norm_0\.spades\.(\d+)\.mlp_shared\.0\.weight")
    classes = sorted(int(match.group(1)) for name in weights if (match := spades.fullmatch(name)))
    if classes != list(range(num_modalities)):
        raise ValueError(
            f"{source.file}: expected a class for each modality; found {len(classes)} for {num_modalities} modalities. "
            "Name with --modalities what each class of the training was, in its order."
        )
    definition = {
        "_target_": "custom.networks.ReleaseStyleTransfer",
        "num_modalities": num_modalities,
        "latent_channels": int(_need(source, "quantize.embedding.weight").shape[1]),
        "width": int(_need(source, "spade.block.0.conv_1.weight").shape[0]),
        "hidden_channels": int(weights["spade.block.0.norm_0.spades.0.mlp_shared.0.weight"].shape[0]),
    }
    rules = {name: _style_rule(name, num_modalities) for name in tensors_of(definition, source.file)}
    return Part(definition, rules, source, tuple(name for name in weights if not name.startswith(SPADE)))


def _need(source: Tensors, name: str) -> Tensor:
    if name not in source.tensors:
        raise ValueError(
            f"{source.file}: expected the release's tensor {name}; found none of that name among "
            f"{len(source.tensors)}. Give a whole checkpoint of the release's first stage."
        )
    return source.tensors[name]


def _refuse_attention(source: Tensors) -> None:
    found = [name for name in source.tensors if ".attn" in name and not name.startswith((DISCRIMINATOR, SPADE))]
    if found:
        raise ValueError(
            f"{source.file}: expected the release's autoencoder, which has no attention; found {found[0]}. "
            "These weights are of another layout."
        )


def _levels(weights: dict[str, Tensor]) -> int:
    return len({match.group(1) for name in weights if (match := re.match(r"encoder\.down\.(\d+)\.block\.", name))})


def _depths(weights: dict[str, Tensor], levels: str) -> list[int]:
    """Residual blocks of each level; the one in the middle stands at the bottom level."""
    depths = [0] * _levels(weights)
    for name in weights:
        if match := re.match(rf"{re.escape(levels)}\.(\d+)\.block\.(\d+)\.conv1\.weight", name):
            level, block = int(match.group(1)), int(match.group(2))
            if level < len(depths):
                depths[level] = max(depths[level], block + 1)
    depths[-1] += 1
    return depths


def _blocks(weights: dict[str, Tensor], half: str) -> list[str]:
    """The release's names of the blocks that MONAI numbers in the order of the forward pass."""
    count = _levels(weights)
    levels, middle = range(count), f"{half}.mid.block_1"
    names = [f"{half}.conv_in"]
    if half == "encoder":
        for i, depth in zip(levels, _depths(weights, "encoder.down"), strict=True):
            last = i == count - 1
            names += [f"encoder.down.{i}.block.{j}" for j in range(depth - last)]
            names.append(middle if last else f"encoder.down.{i}.downsample")
    else:
        names.append(middle)
        for i, depth in reversed(list(zip(levels, _depths(weights, "decoder.up"), strict=True))):
            names += [f"decoder.up.{i}.block.{j}" for j in range(depth - (i == count - 1))]
            names += [f"decoder.up.{i}.upsample"] if i else []
    return [*names, f"{half}.norm_out", "activation", f"{half}.conv_out"]


def _rule(name: str, blocks: dict[str, list[str]], num_codes: int) -> Rule:
    """Rule for a tensor of ``VQGAN``."""
    if name == "bottleneck.ema_w":
        return copied("quantize.embedding.weight")
    if name == "bottleneck.ema_cluster_size":  # as in a codebook that has just been started: no code is dead
        return Rule((), lambda _: torch.ones(num_codes))
    if name == "bottleneck.initialized":
        return Rule((), lambda _: torch.tensor(True))
    theirs = name.replace("bottleneck.", "quantize.").replace(".postconv.", ".conv.")
    if match := re.match(r"(encoder|decoder)\.blocks\.(\d+)", theirs):
        theirs = blocks[match.group(1)][int(match.group(2))] + theirs[match.end() :]
    # MONAI wraps every convolution in a module of its own
    return copied(re.sub(r"\.conv\.(weight|bias)$", r".\1", theirs))


def _style_rule(name: str, num_modalities: int) -> Rule:
    """Rule for a tensor of ``ReleaseStyleTransfer``: kernels stacked by class, γ above β."""
    _, block, layer, *inner, kind = name.split(".")
    start = f"spade.block.{block}"
    if layer == "shortcut":
        return copied(f"{start}.conv_s.{kind}")
    number = int(layer[-1]) - 1
    if layer.startswith("conv"):
        return copied(f"{start}.conv_{number}.{kind}")
    classes = [f"{start}.norm_{number}.spades.{m}" for m in range(num_modalities)]
    if inner == ["shared"]:
        return Rule(tuple(f"{c}.mlp_shared.0.{kind}" for c in classes), lambda t: torch.stack(list(t)))
    names = tuple(f"{c}.mlp_{which}.{kind}" for c in classes for which in ("gamma", "beta"))
    return Rule(names, _stacked_pairs)


def _stacked_pairs(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.cat(pair) for pair in zip(tensors[::2], tensors[1::2], strict=True)])
