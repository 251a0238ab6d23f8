"""Tests of custom.networks.layouts.monai and .monai_generative: imported networks compute what theirs do."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from custom.networks.layouts import monai, monai_generative
from custom.networks.layouts.mapping import build, map_tensors
from custom.networks.layouts.reader import Tensors, find_tensors, read_checkpoint
from tests.fixtures.foreign import Foreign
from tests.fixtures.near import near

LAYOUTS = {"monai": (monai, str), "monai-generative": (monai_generative, monai_generative.generative_name)}
M, L = 4, 3
RANGE = (0.0, 1.0)
each_source = pytest.mark.parametrize("source", LAYOUTS)
ATTENTION = {
    "attention_levels": [False, False, True],
    "with_encoder_nonlocal_attn": True,
    "with_decoder_nonlocal_attn": True,
}
CROSS = {"with_conditioning": True, "cross_attention_dim": M}


def found(path: Any, first: str) -> Tensors:
    return find_tensors(read_checkpoint(path), first, path)


def import_autoencoder(source: str, made: Foreign) -> nn.Module:
    layout, naming = LAYOUTS[source]
    tensors = found(made.checkpoint, monai.FIRST_AUTOENCODER)
    part = monai.autoencoder(tensors, layout.definition("AutoencoderKL", [made.config], tensors), RANGE, naming=naming)
    network = build(part.definition).eval()
    network.load_state_dict(map_tensors(part).state, strict=True)
    return network


def import_unet(source: str, made: Foreign, conditioning: str | None = None) -> tuple[nn.Module, str]:
    layout, naming = LAYOUTS[source]
    tensors = found(made.unet_checkpoint, monai.FIRST_UNET)
    given = layout.definition("DiffusionModelUNet", [made.config], tensors)
    part, conditioning = monai.unet(tensors, given, M, L, conditioning, naming=naming)
    network = build(part.definition).eval()
    network.load_state_dict(map_tensors(part).state, strict=True)
    return network, conditioning


@each_source
@pytest.mark.parametrize(
    "arguments",
    [{}, {"num_res_blocks": [1, 2, 1], "latent_channels": 2}, ATTENTION],
    ids=["plain", "sizes", "attention"],
)
def test_autoencoder(source: str, arguments: dict[str, Any], foreign: Callable[..., Foreign]) -> None:
    made = foreign(source, arguments)
    network = import_autoencoder(source, made)
    image = torch.rand(2, 1, 16, 24, 16)
    with torch.no_grad():
        mean, _ = made.autoencoder.encode(image)
        decoded = made.autoencoder.decode(mean)
        near(network.quantize(network.encode(2 * image - 1)).latent, mean)
        near((network.decode(mean) + 1) / 2, decoded)
    with torch.enable_grad():
        near((network.decode(mean) + 1) / 2, decoded)


@pytest.mark.parametrize("include_fc", [False, True])
@pytest.mark.parametrize("use_combined_linear", [False, True])
def test_projections_of_monai(include_fc: bool, use_combined_linear: bool, foreign: Callable[..., Foreign]) -> None:
    settings = {"include_fc": include_fc, "use_combined_linear": use_combined_linear}
    made = foreign("monai", {**ATTENTION, **settings}, {**CROSS, **settings})
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        near(import_autoencoder("monai", made).encode(2 * image - 1)[:, :L], made.autoencoder.encode(image)[0])
    check_unet("monai", made)


def check_unet(source: str, made: Foreign, conditioning: str | None = None) -> None:
    network, conditioning = import_unet(source, made, conditioning)
    extra = network.conv_in.in_channels - made.unet.in_channels
    x, condition = torch.randn(2, made.unet.in_channels, 4, 8, 4), torch.randn(2, extra, 4, 8, 4)
    timesteps, target = torch.tensor([3, 900]), torch.tensor([1, 3])
    given = {}
    if made.unet.with_conditioning:
        given["context"] = nn.functional.one_hot(target, M).float().unsqueeze(1)
    if made.unet.num_class_embeds is not None:
        given["class_labels"] = target
    with torch.no_grad():
        near(network(torch.cat([x, condition], dim=1), timesteps, target), made.unet(x, timesteps, **given))


@each_source
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_res_blocks": [2, 1, 1], "attention_levels": [True, False, False], "num_head_channels": [2, 0, 4]},
        {"num_class_embeds": M},
        CROSS,
    ],
    ids=["unconditional", "sizes", "classes", "cross-attention"],
)
def test_unet(source: str, arguments: dict[str, Any], foreign: Callable[..., Foreign]) -> None:
    check_unet(source, foreign(source, unet=arguments))


@pytest.mark.parametrize(
    ("channels", "conditioning", "chosen", "in_channels"),
    [
        (3, None, "target_like", 6),
        (3, "none", "none", 3),
        (3, "source_and_target_like", "source_and_target_like", 9),
        (6, "source", "source", 6),
        (9, "source_and_target_like", "source_and_target_like", 9),
    ],
)
def test_conditioning(
    channels: int, conditioning: str | None, chosen: str, in_channels: int, foreign: Callable[..., Foreign]
) -> None:
    made = foreign("monai", unet={"in_channels": channels})
    network, found_conditioning = import_unet("monai", made, conditioning)
    assert (found_conditioning, network.conv_in.in_channels) == (chosen, in_channels)
    check_unet("monai", made, conditioning)


def test_what_is_added_can_learn(foreign: Callable[..., Foreign]) -> None:
    network, _ = import_unet("monai", foreign("monai"))
    network.train()(torch.randn(2, 6, 4, 4, 4), torch.tensor([3, 900]), torch.tensor([0, 3])).square().sum().backward()
    assert network.conv_in.weight.grad[:, 3:].abs().max() > 0
    assert network.class_embedding.weight.grad[[0, 3]].abs().max() > 0


def test_zoo_sizes() -> None:
    """Autoencoder and UNet of brats_mri_generative_diffusion, on the meta device: every tensor has its place."""
    networks = {
        "autoencoder": monai.nets.AutoencoderKL,
        "unet": monai.nets.DiffusionModelUNet,
    }
    sizes = {
        "autoencoder": {
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 1,
            "latent_channels": 8,
            "channels": [64, 128, 256],
            "num_res_blocks": 2,
            "norm_num_groups": 32,
            "attention_levels": [False] * 3,
            "with_encoder_nonlocal_attn": False,
            "with_decoder_nonlocal_attn": False,
            "include_fc": False,
        },
        "unet": {
            "spatial_dims": 3,
            "in_channels": 8,
            "out_channels": 8,
            "channels": [256, 256, 512],
            "attention_levels": [False, True, True],
            "num_head_channels": [0, 64, 64],
            "num_res_blocks": 2,
            "include_fc": False,
            "use_combined_linear": False,
        },
    }
    for name, arguments in sizes.items():
        with torch.device("meta"):
            tensors = networks[name](**arguments).state_dict()
        source = Tensors("zoo.pt", tensors, [])
        given = monai.Definition("zoo", {**defaults(networks[name]), **arguments})
        if name == "autoencoder":
            part = monai.autoencoder(source, given, RANGE)
        else:
            part, _ = monai.unet(source, given, M, 8, None)
        assert {n for rule in part.rules.values() for n in rule.names} == set(tensors)


def defaults(network: type[nn.Module]) -> dict[str, Any]:
    import inspect

    return {n: p.default for n, p in inspect.signature(network.__init__).parameters.items() if n != "self"}


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("autoencoder", {"in_channels": 2}, "in_channels: expected 1"),
        ("autoencoder", {"norm_eps": 1e-5}, "norm_eps: expected 1e-06"),
        ("autoencoder", {"with_encoder_nonlocal_attn": True}, "with_decoder_nonlocal_attn: expected True"),
        ("unet", {"norm_eps": 1e-5}, "norm_eps: expected 1e-06"),
        ("unet", {"resblock_updown": True}, "resblock_updown: expected False"),
        ("unet", {**CROSS, "transformer_num_layers": 2}, "transformer_num_layers: expected 1"),
        ("unet", {**CROSS, "cross_attention_dim": 7}, "cross_attention_dim: expected 4"),
        ("unet", {**CROSS, "num_class_embeds": M}, "num_class_embeds: expected None"),
        ("unet", {"num_class_embeds": 7}, "num_class_embeds: expected 4"),
        ("unet", {"in_channels": 4}, "in_channels: expected the 3 channels of the latent; found 4. This UNet takes"),
        ("unet", {"in_channels": 6}, "found 6. Say with --conditioning what the others are: source or target_like"),
        ("unet", {"out_channels": 6}, "out_channels: expected 3"),
    ],
)
def test_what_cannot_be_expressed(part: str, change: dict, message: str, foreign: Callable[..., Foreign]) -> None:
    made = foreign("monai", **{part: change})
    with pytest.raises(ValueError, match=message):
        import_autoencoder("monai", made) if part == "autoencoder" else import_unet("monai", made)


def test_transposed_convolutions(foreign: Callable[..., Foreign]) -> None:
    made = foreign("monai-generative", {"use_convtranspose": True})
    with pytest.raises(ValueError, match="use_convtranspose: expected False"):
        import_autoencoder("monai-generative", made)


@each_source
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": [8, 8, 32]}, "expected the shapes of .*autoencoder_def; found .* others, such as encoder"),
        ({"norm_num_groups": 3}, "autoencoder_def: AutoencoderKL cannot be made of it"),
        ({"num_res_blocks": "$2"}, "autoencoder_def#num_res_blocks: expected a value; found an expression"),
        ({"depth": 3}, "autoencoder_def#depth: AutoencoderKL has no such argument"),
        ({"attention_levels": [False, False, True]}, "missing tensors"),
    ],
)
def test_definition_that_does_not_fit(
    source: str, change: dict[str, Any], message: str, foreign: Callable[..., Foreign]
) -> None:
    made = foreign(source)
    config = json.loads(made.config.read_text())
    del config["autoencoder_def"]["channels" if source == "monai" else "num_channels"]
    config["autoencoder_def"] |= {"channels": [8, 8, 16], **change}
    made.config.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        import_autoencoder(source, made)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"schedule": "linear_beta"}, "schedule 'scaled_linear_beta'; found 'linear_beta'"),
        (None, "one definition of DDPMScheduler or DDIMScheduler or PNDMScheduler .* found none"),
    ],
)
def test_other_schedules(schedule: dict | None, message: str, foreign: Callable[..., Foreign]) -> None:
    made = foreign("monai")
    config = json.loads(made.config.read_text())
    config["noise_scheduler"] = schedule and {**config["noise_scheduler"], **schedule}
    made.config.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        monai.schedule([made.config])


def test_schedule(foreign: Callable[..., Foreign]) -> None:
    from monai.networks.schedulers import DDPMScheduler

    definition = monai.schedule([foreign("monai").config])
    expected = DDPMScheduler(schedule="scaled_linear_beta", beta_start=0.0015, beta_end=0.0195).alphas_cumprod
    torch.testing.assert_close(build(definition).alphas_cumprod, expected)
    assert definition["prediction_type"] == "epsilon"
