"""The layout of MONAI core's ``AutoencoderKL`` and ``DiffusionModelUNet``, to ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.networks import nets
from monai.networks.schedulers import DDPMScheduler
from torch import Tensor, nn

from custom.networks.layouts.definitions import Definition, find_definition
from custom.networks.layouts.mapping import Part, Rule, copied, tensors_of
from custom.networks.layouts.reader import Tensors

__all__ = [
    "FIRST_AUTOENCODER",
    "FIRST_UNET",
    "autoencoder",
    "by_level",
    "check_shapes",
    "definition",
    "schedule",
    "their_name",
    "unet",
]

FIRST_AUTOENCODER = "encoder.blocks.0.conv.weight"
FIRST_UNET = "time_embed.0.weight"
NORM_EPS = 1e-6
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")

# modules of our UNet and theirs; what stands behind them follows the tables below
UNET_MODULES = (
    (r"^time_embedding\.", "time_embed."),
    (r"^conv_in\.", "conv_in.conv."),
    (r"^(down|up)_levels\.(\d+)\.blocks\.(\d+)\.res\.", r"\1_blocks.\2.resnets.\3."),
    (r"^(down|up)_levels\.(\d+)\.blocks\.(\d+)\.transformer\.", r"\1_blocks.\2.attentions.\3."),
    (r"^down_levels\.(\d+)\.downsampler\.", r"down_blocks.\1.downsampler.op.conv."),
    (r"^up_levels\.(\d+)\.upsampler\.1\.", r"up_blocks.\1.upsampler.postconv.conv."),
    (r"^mid_in\.res\.", "middle_block.resnet_1."),
    (r"^mid_in\.transformer\.", "middle_block.attention."),
    (r"^mid_out\.res\.", "middle_block.resnet_2."),
    (r"^norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2.conv."),
)
ATTENTION_MODULES = (
    (r"\.norm_in\.", ".norm."),
    (r"\.attention\.out\.", ".attn.out_proj."),
    (r"\.attention\.to_", ".attn.to_"),
)
TRANSFORMER_MODULES = (
    (r"\.proj_(in|out)\.", r".proj_\1.conv."),
    (r"\.norm([123])\.", r".transformer_blocks.0.norm\1."),
    (r"\.self_attention\.out\.", ".transformer_blocks.0.attn1.out_proj."),
    (r"\.self_attention\.", ".transformer_blocks.0.attn1."),
    (r"\.cross_attention\.out\.", ".transformer_blocks.0.attn2.out_proj."),
    (r"\.cross_attention\.", ".transformer_blocks.0.attn2."),
    (r"\.feed_forward\.0\.", ".transformer_blocks.0.ff.linear1."),
    (r"\.feed_forward\.2\.", ".transformer_blocks.0.ff.linear2."),
)
IN_TRANSFORMER = re.compile(r"\.(attentions\.\d+|attention)\.")


def their_name(name: str, *, transformer: bool) -> str:
    """MONAI's name of a tensor of our autoencoder or UNet that both hold."""
    for ours, theirs in UNET_MODULES:
        name = re.sub(ours, theirs, name)
    tables = (*ATTENTION_MODULES, *(TRANSFORMER_MODULES if transformer and IN_TRANSFORMER.search(name) else ()))
    for ours, theirs in tables:
        name = re.sub(ours, theirs, name, count=1)
    return name


# what monai-generative calls them
RENAMED = {"num_channels": "channels", "use_checkpointing": "use_checkpoint"}


def definition(name: str, files: Sequence[str], source: Tensors) -> Definition:
    """Arguments of the ``AutoencoderKL`` or ``DiffusionModelUNet`` in somebody's configs, which the tensors fit."""
    given = find_definition(files, [name], getattr(nets, name), renamed=RENAMED)
    check_shapes(source, given, getattr(nets, name))
    return given


def check_shapes(source: Tensors, given: Definition, network: type[nn.Module]) -> None:
    """Refuse tensors whose shapes are not those of their own class with its arguments.

    Raises:
        ValueError: naming the tensors; and for arguments that the class itself refuses.
    """
    try:
        with torch.device("meta"):
            expected = network(**{**given.arguments, "use_flash_attention": False}).state_dict()
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{given.place}: {network.__name__} cannot be made of it: {error}. Correct it.") from error
    wrong = [k for k, v in source.tensors.items() if k in expected and v.shape != expected[k].shape]
    if wrong:
        first = f"{wrong[0]} {tuple(source.tensors[wrong[0]].shape)} instead of {tuple(expected[wrong[0]].shape)}"
        raise ValueError(
            f"{source.file}: expected the shapes of {given.place}; found {len(wrong)} others, such as {first}. "
            "Give the config that the weights were trained with."
        )


def schedule(files: Sequence[str]) -> dict[str, Any]:
    """The noise schedule in somebody's configs, as a definition of ``NoiseSchedule``.

    Raises:
        ValueError: if it is another one than scaled-linear β.
    """
    place, given = find_definition(files, SCHEDULERS, DDPMScheduler)
    if given["schedule"] != "scaled_linear_beta":
        raise ValueError(
            f"{place}: expected the schedule 'scaled_linear_beta'; found {given['schedule']!r}, which NoiseSchedule "
            "does not have. A UNet that was trained with it cannot start here."
        )
    defaults = {"beta_start": 1e-4, "beta_end": 2e-2}  # of MONAI's function
    betas = {name: float(given.get(name, value)) for name, value in defaults.items()}
    return {
        "_target_": "custom.networks.NoiseSchedule",
        "num_train_timesteps": int(given["num_train_timesteps"]),
        **betas,
        "prediction_type": str(getattr(given["prediction_type"], "value", given["prediction_type"])),
    }


def autoencoder(
    source: Tensors,
    given: Definition,
    intensity_range: Sequence[float],
    *,
    naming: Callable[[str], str] = str,
) -> Part:
    """An ``AutoencoderKL`` as ``VQGAN`` with a ``KLBottleneck``: the mean is the latent.

    Args:
        source: its tensors.
        given: its arguments.
        intensity_range: of the images that it was trained on.
        naming: their name of a tensor of MONAI core's class.

    Raises:
        ValueError: for arguments that ``VQGAN`` cannot express, with the reason.
    """
    place, a = given
    _only(place, a, "spatial_dims", 3, "volumes")
    _only(place, a, "in_channels", 1, "one contrast at a time")
    _only(place, a, "out_channels", 1, "one contrast at a time")
    _only(place, a, "norm_eps", NORM_EPS, "the normalisations have this one")
    _only(place, a, "use_convtranspose", False, "the decoder enlarges by nearest neighbours and a convolution")
    nonlocal_attention = bool(a["with_encoder_nonlocal_attn"])
    _only(place, a, "with_decoder_nonlocal_attn", nonlocal_attention, "both halves have it or neither")
    channels, latent = list(a["channels"]), int(a["latent_channels"])
    blocks = by_level(a["num_res_blocks"], channels)
    definition = {
        "_target_": "custom.networks.VQGAN",
        "channels": channels,
        "embedding_dim": latent,
        "num_res_blocks": blocks,
        "norm_num_groups": int(a["norm_num_groups"]),
        "attention_levels": [bool(level) for level in a["attention_levels"]],
        "nonlocal_attention": nonlocal_attention,
        "intensity_range": [float(end) for end in intensity_range],
        "bottleneck": {"_target_": "custom.networks.KLBottleneck", "embedding_dim": latent},
    }
    rules = {name: _autoencoder_rule(name, like, a, naming) for name, like in tensors_of(definition, place).items()}
    return Part(definition, rules, source, _never_applied(source))


def _autoencoder_rule(name: str, like: Tensor, arguments: Mapping[str, Any], naming: Callable[[str], str]) -> Rule:
    if name.startswith("quant_conv."):
        kind = name.removeprefix("quant_conv.")
        names = [naming(f"quant_conv_{moment}.{kind}") for moment in ("mu", "log_sigma")]
        return Rule(tuple(names), lambda tensors: torch.cat(list(tensors)))
    return _shared_rule(name, like, arguments, naming, transformer=False)


def unet(
    source: Tensors,
    given: Definition,
    num_modalities: int,
    latent_channels: int,
    conditioning: str | None,
    *,
    naming: Callable[[str], str] = str,
) -> tuple[Part, str]:
    """A ``DiffusionModelUNet`` as ``ConditionalUNet``, and the conditioning that it takes.

    One that takes the noisy latent alone is widened by kernels of zero for the condition: it computes what it did,
    until it is trained. Without classes it gets an embedding of zeros for each modality.

    Args:
        source: its tensors.
        given: its arguments.
        num_modalities: M.
        latent_channels: L, of the autoencoder.
        conditioning: which latents are concatenated to the noisy one, see ``LatentTranslator``; ``"target_like"`` by
            default, where the UNet takes the noisy latent alone.
        naming: their name of a tensor of MONAI core's class.

    Raises:
        ValueError: for arguments that ``ConditionalUNet`` cannot express, with the reason.
    """
    place, a = given
    _check_unet(place, a, num_modalities, latent_channels)
    conditioning, extra = _conditioning(place, a, latent_channels, conditioning)
    definition = {
        **_unet_sizes(a),
        "in_channels": int(a["in_channels"]) + extra,
        "out_channels": latent_channels,
        "num_modalities": num_modalities,
    }
    crossed = bool(a["with_conditioning"])
    rules = {
        name: _shared_rule(name, like, a, naming, transformer=crossed)
        for name, like in tensors_of(definition, place).items()
    }
    if extra:
        rules["conv_in.weight"] = Rule(
            rules["conv_in.weight"].names, lambda tensors: nn.functional.pad(tensors[0], (0, 0) * 3 + (0, extra))
        )
    if not crossed and a["num_class_embeds"] is None:
        embedding = (num_modalities, 4 * definition["channels"][0])
        rules["class_embedding.weight"] = Rule((), lambda _: torch.zeros(embedding))
    return Part(definition, rules, source, _never_applied(source)), conditioning


def _check_unet(place: str, arguments: Mapping[str, Any], num_modalities: int, latent_channels: int) -> None:
    _only(place, arguments, "spatial_dims", 3, "volumes")
    _only(place, arguments, "out_channels", latent_channels, "the channels of the autoencoder's latent")
    _only(place, arguments, "norm_eps", NORM_EPS, "the normalisations have this one")
    _only(place, arguments, "resblock_updown", False, "sizes are changed by convolutions")
    _only(place, arguments, "transformer_num_layers", 1, "a block of attention has one layer")
    if arguments["with_conditioning"]:
        _only(place, arguments, "cross_attention_dim", num_modalities, "the context is the one-hot target modality")
        _only(
            place, arguments, "num_class_embeds", None, "the target enters by cross-attention or classes, not by both"
        )
    elif arguments["num_class_embeds"] is not None:
        _only(place, arguments, "num_class_embeds", num_modalities, "one class a modality")


def _unet_sizes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The definition of our UNet but for its channels in and out and the number of modalities."""
    channels = list(arguments["channels"])
    head_channels = by_level(arguments["num_head_channels"], channels)
    attends = [bool(level) for level in arguments["attention_levels"]]
    used = [*attends[:-1], True]  # the bottom has the last level's heads, and always attends
    crossed = bool(arguments["with_conditioning"])
    return {
        "_target_": "custom.networks.ConditionalUNet",
        "channels": channels,
        "num_res_blocks": by_level(arguments["num_res_blocks"], channels),
        "attention_levels": attends,
        "num_heads": [c // h if on else 1 for c, h, on in zip(channels, head_channels, used, strict=True)],
        "norm_num_groups": int(arguments["norm_num_groups"]),
        "class_embedding": not crossed,
        "attention": "gated_transformer" if crossed else "self",
    }


def _never_applied(source: Tensors) -> tuple[str, ...]:
    """The output projections of monai-generative's self-attention."""
    return tuple(name for name in source.tensors if ".proj_attn." in name)


def _conditioning(
    place: str, arguments: Mapping[str, Any], latent_channels: int, conditioning: str | None
) -> tuple[str, int]:
    """The conditioning, and how many channels are to be added for it."""
    latents = {"none": 1, "source": 2, "target_like": 2, "source_and_target_like": 3}
    if conditioning is not None and conditioning not in latents:
        raise ValueError(f"conditioning: expected one of {tuple(latents)}; found {conditioning!r}. Correct it.")
    taken = int(arguments["in_channels"])
    if taken == latent_channels:
        chosen = conditioning or "target_like"
        return chosen, (latents[chosen] - 1) * latent_channels
    fitting = [name for name, number in latents.items() if number * latent_channels == taken]
    if conditioning not in fitting:
        raise ValueError(
            f"{place}#in_channels: expected the {latent_channels} channels of the latent; found {taken}. "
            + (f"Say with --conditioning what the others are: {' or '.join(fitting)}." if fitting else UNKNOWN_CHANNELS)
        )
    return conditioning, 0


UNKNOWN_CHANNELS = "This UNet takes something that is no latent; it cannot start here."


def _shared_rule(
    name: str, like: Tensor, arguments: Mapping[str, Any], naming: Callable[[str], str], *, transformer: bool
) -> Rule:
    """Rule for a tensor that MONAI's class has too, but for projections that it may leave out or keep in one."""
    theirs = their_name(name, transformer=transformer)
    in_self_attention = re.search(r"\.(attn|attn1)\.", theirs) is not None
    if in_self_attention and ".out_proj." in theirs and not arguments.get("include_fc", True):
        size = like.shape[0]
        return Rule((), lambda _: torch.eye(size) if theirs.endswith("weight") else torch.zeros(size))
    projection = re.search(r"\.to_([qkv])\.", theirs)
    if in_self_attention and projection and arguments.get("use_combined_linear", False):
        number = "qkv".index(projection.group(1))
        joined = theirs.replace(projection.group(), ".qkv.")
        return Rule((naming(joined),), lambda tensors: tensors[0].chunk(3)[number])
    if re.search(r"\.proj_(in|out)\.conv\.weight", theirs):  # a 1³ convolution there
        return Rule((naming(theirs),), lambda tensors: tensors[0].flatten(1))
    return copied(naming(theirs))


def _only(place: str, arguments: Mapping[str, Any], name: str, expected: Any, reason: str) -> None:
    if arguments[name] != expected:
        raise ValueError(
            f"{place}#{name}: expected {expected} ({reason}); found {arguments[name]}. "
            "This architecture has no equal here; such weights cannot be imported."
        )


def by_level(value: Any, channels: Sequence[int]) -> list[int]:
    """A number for each level, given one by one or once for all."""
    return [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)] * len(channels)
