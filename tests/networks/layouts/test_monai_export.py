"""Tests of custom.networks.layouts.monai_export: MONAI core's classes compute what ours do."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from torch import nn

from custom.networks import VQGAN, ConditionalUNet, KLBottleneck
from custom.networks.layouts import monai_export
from custom.networks.layouts.monai_export import Exported
from tests.fixtures.foreign import randomized
from tests.fixtures.near import near

M = 4
VQ = {"channels": [8, 8, 16], "embedding_dim": 4, "num_embeddings": 32, "norm_num_groups": 4}
UNET = {
    "in_channels": 6,
    "out_channels": 3,
    "num_modalities": M,
    "channels": [8, 16, 16],
    "attention_levels": [False, True, True],
    "norm_num_groups": 4,
}


def whole(kind: type[nn.Module], given: dict[str, Any]) -> dict[str, Any]:
    defaults = {n: p.default for n, p in inspect.signature(kind.__init__).parameters.items() if n != "self"}
    return {**defaults, **given}


def loaded(exported: Exported, kind: type[nn.Module]) -> nn.Module:
    network = ConfigParser(exported.config).get_parsed_content("network_def").eval()
    assert type(network) is kind
    network.load_state_dict(exported.state, strict=True)
    return network


@pytest.mark.parametrize(
    "given",
    [
        {"num_res_blocks": [1, 1, 2], "decoder_num_res_blocks": [2, 2, 3], "final_activation": True},
        {"num_res_blocks": [1, 3, 2], "decoder_num_res_blocks": [2, 2, 2]},
        {"bottleneck": KLBottleneck(4)},
        {
            "num_res_blocks": [1, 2, 1],
            "decoder_num_res_blocks": [2, 1, 1],
            "attention_levels": [False, True, False],
            "nonlocal_attention": True,
        },
    ],
    ids=["the release's structure", "other depths", "KL", "attention"],
)
def test_autoencoder(given: dict[str, Any]) -> None:
    arguments = {**VQ, **given}
    network = randomized(VQGAN(**arguments))
    theirs = loaded(monai_export.autoencoder(network, whole(VQGAN, arguments)), AutoencoderKL)
    image = torch.rand(2, 1, 16, 24, 16) * 2 - 1
    with torch.no_grad():
        moments = network.encode(image)
        mean, spread = theirs.encode(image)
        near(mean, moments[:, :4])
        if "bottleneck" in given:
            near(spread, (0.5 * moments[:, 4:].clamp(-30, 20)).exp())
        else:
            assert spread.max() < 1e-6
        near(theirs.decode(mean), network.decode(mean))


def test_codebook() -> None:
    network = randomized(VQGAN(**VQ))
    exported = monai_export.quantizer(network)
    quantizer = ConfigParser(exported.config).get_parsed_content("quantizer_def").eval()
    quantizer.load_state_dict(exported.state, strict=True)
    latent = torch.randn(2, 4, 3, 4, 5)
    expected = network.quantize(latent)
    indices = quantizer.quantize(latent)[2]
    assert torch.equal(indices, expected.indices)
    torch.testing.assert_close(quantizer.embed(indices), expected.latent.detach())
    assert monai_export.quantizer(VQGAN(**VQ, bottleneck=KLBottleneck(4))) is None
    with pytest.raises(ValueError, match="MONAI core's class can express; found 2 codebooks for a latent voxel"):
        monai_export.quantizer(VQGAN(**VQ, num_codebooks=2))


@pytest.mark.parametrize(
    "given",
    [
        {"num_res_blocks": 2},
        {"num_heads": [1, 2, 4]},
        {"class_embedding": True},
        {"attention": "gated_transformer"},
        {"attention": "self", "class_embedding": True},
        {"attention": "self"},
    ],
    ids=["the paper's", "heads", "the release's", "gated", "self-attention with classes", "self-attention"],
)
def test_unet(given: dict[str, Any]) -> None:
    arguments = {**UNET, **given}
    network = randomized(ConditionalUNet(**arguments))
    theirs = loaded(monai_export.unet(network, whole(ConditionalUNet, arguments)), DiffusionModelUNet)
    x, timesteps, target = torch.randn(2, 6, 4, 8, 4), torch.tensor([3, 900]), torch.tensor([1, 3])
    inputs = {}
    if theirs.with_conditioning:
        inputs["context"] = nn.functional.one_hot(target, M).float().unsqueeze(1)
    if theirs.num_class_embeds is not None:
        inputs["class_labels"] = target
    with torch.no_grad():
        near(theirs(x, timesteps, **inputs), network(x, timesteps, target))


@pytest.mark.parametrize(
    ("given", "reason"),
    [({"haar_levels": 1}, "a Haar step"), ({"encoder_channels": 5}, "another number of channels before its latent")],
)
def test_what_cannot_be_expressed(given: dict[str, Any], reason: str) -> None:
    arguments = {**VQ, **given}
    with pytest.raises(ValueError, match=f"autoencoder: expected what MONAI core's class can express; found {reason}"):
        monai_export.autoencoder(VQGAN(**arguments), whole(VQGAN, arguments))
