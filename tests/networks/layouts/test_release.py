"""Tests of custom.networks.layouts.release: the recorded reference, and any other sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from custom.networks.layouts import release
from custom.networks.layouts.mapping import build, map_tensors
from custom.networks.layouts.reader import Tensors
from tests.fixtures.near import near
from tests.fixtures.release_model import ReleaseModel, made

FILE = Path("weights.ckpt")
IMAGE = torch.rand(2, 1, 16, 24, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
TARGET = torch.tensor([2, 0])
OUTPUTS = ("latent", "quantized", "target_like", "reconstruction", "translation")


def imported(state: dict[str, Tensor], num_modalities: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    source = Tensors(FILE, dict(state), [])
    networks = []
    for part in (release.autoencoder(source), release.style_transfer(source, num_modalities)):
        network = build(part.definition).eval()
        network.load_state_dict(map_tensors(part).state, strict=True)
        networks.append(network)
    return networks[0], networks[1]


def check(state: dict[str, Tensor], image: Tensor, target: Tensor, expected: dict[str, Tensor], classes: int) -> None:
    autoencoder, style_transfer = imported(state, classes)
    with torch.no_grad():
        latent = autoencoder.encode(image)
        quantized = autoencoder.quantize(latent)
        target_like = style_transfer(quantized.latent, target)
        found = {
            "latent": latent,
            "quantized": quantized.latent,
            "target_like": target_like,
            "reconstruction": autoencoder.decode(quantized.latent),
            "translation": autoencoder.decode(target_like),
        }
    assert torch.equal(quantized.indices, expected["indices"])
    for name in OUTPUTS:
        near(found[name], expected[name], msg=name)


def test_computes_what_the_release_recorded(release_layout: dict[str, Any]) -> None:
    image, target = release_layout["image"], release_layout["target"]
    check(release_layout["state_dict"], image, target, release_layout, release_layout["config"]["num_classes"])


def test_the_model_of_the_other_tests_is_the_release(release_layout: dict[str, Any]) -> None:
    model = ReleaseModel().eval()
    model.load_state_dict(release_layout["state_dict"], strict=True)
    found = model.outputs(release_layout["image"], release_layout["target"])
    assert torch.equal(found["indices"], release_layout["indices"])
    for name in OUTPUTS:
        near(found[name], release_layout[name])


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"channels": [64, 32], "codes": 7, "classes": 3, "width": 4},
        {"channels": [32, 64, 64, 32], "blocks": 2, "z_channels": 3, "embed_dim": 3, "width": 3, "hidden": 5},
        {"channels": [32], "z_channels": 6, "embed_dim": 2, "codes": 300, "classes": 5},
    ],
    ids=["as recorded", "two levels", "deeper", "one level, other channels at the latent"],
)
def test_any_other_sizes(sizes: dict[str, Any]) -> None:
    model = made(**sizes)
    check(model.state_dict(), IMAGE, TARGET, model.outputs(IMAGE, TARGET), sizes.get("classes", 4))


def test_every_tensor_is_used_once_or_named() -> None:
    state = {**made().state_dict(), "loss.discriminator.main.0.weight": torch.ones(2)}
    source = Tensors(FILE, state, ["epoch"])
    parts = (release.autoencoder(source), release.style_transfer(source, 4))
    mapped = [map_tensors(part) for part in parts]
    assert [m.missing for m in mapped] == [[], []]
    assert not set(mapped[0].used) & set(mapped[1].used)
    assert set(mapped[0].used) | set(mapped[1].used) == set(made().state_dict())
    assert {"loss.discriminator.main.0.weight", "epoch"} <= set(mapped[0].ignored)


def test_codebook_can_be_trained_on() -> None:
    autoencoder, _ = imported(made().state_dict(), 4)
    before = autoencoder.bottleneck.embedding.weight.clone()
    autoencoder.train()
    autoencoder(IMAGE)
    # moved towards the latents by one step of the average, not thrown away
    assert 0 < (autoencoder.bottleneck.embedding.weight - before).abs().max() < 0.2 * before.abs().max()


def test_autoencoder_alone_has_no_style_transfer() -> None:
    state = {k: v for k, v in made().state_dict().items() if not k.startswith("spade.")}
    assert release.style_transfer(Tensors(FILE, state, []), 4) is None


@pytest.mark.parametrize("classes", [3, 5])
def test_classes_and_modalities_must_agree(classes: int) -> None:
    source = Tensors(FILE, made().state_dict(), [])
    with pytest.raises(ValueError, match=f"class for each modality; found 4 for {classes} modalities"):
        release.style_transfer(source, classes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("encoder.conv_out.weight"), "expected the release's tensor encoder.conv_out.weight"),
        (lambda s: s.pop("decoder.norm_out.bias"), r"1 missing tensors \(decoder.norm_out.bias\)"),
        (lambda s: s.pop("quantize.embedding.weight"), "quantize.embedding.weight; found none"),
        (lambda s: s.update({"encoder.mid.attn_1.q.weight": torch.ones(1)}), "no attention; found encoder.mid.attn_1"),
        (lambda s: s.update({"encoder.extra": torch.ones(1)}), r"1 unknown tensors \(encoder.extra\)"),
        (lambda s: s.update({"decoder.conv_out.weight": torch.ones(3, 32, 3, 3, 3)}), r"shape \(1, 32, 3, 3, 3\)"),
        (lambda s: s["decoder.conv_out.bias"].fill_(float("nan")), "NaN or infinity in 1 tensors .decoder.conv_out"),
        (lambda s: s["encoder.conv_in.bias"].fill_(float("inf")), "NaN or infinity in 1 tensors .encoder.conv_in"),
    ],
)
def test_what_does_not_fit_is_refused(change: Any, message: str) -> None:
    state = {k: v.clone() for k, v in made().state_dict().items()}
    change(state)
    with pytest.raises(ValueError, match=f"{FILE}: .*{message}"):
        imported(state, 4)


def test_widths_that_the_groups_do_not_divide() -> None:
    state = made().state_dict()
    state["encoder.down.0.block.0.conv2.weight"] = torch.ones(40, 40, 3, 3, 3)
    with pytest.raises(ValueError, match=r"widths that 32 divides.*found \[40, 32, 64\]"):
        imported(state, 4)


def test_strict_can_be_switched_off() -> None:
    state = made().state_dict()
    del state["decoder.norm_out.bias"]
    part = release.autoencoder(Tensors(FILE, state, []))
    mapped = map_tensors(part, strict=False)
    assert mapped.missing == ["decoder.norm_out.bias"]
    assert not mapped.state["decoder.blocks.10.bias"].any()  # of a new normalisation
