"""Tests of custom.commands.convert."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from custom.commands.convert import convert
from custom.networks import LatentTranslator
from custom.networks.weights import ADDED, load_weights
from custom.training.checkpoints import load_pretrained
from custom.utils.bundle import config_folder

SMALL = {
    "network_def#autoencoder#channels": [8],
    "network_def#autoencoder#bottleneck#num_embeddings": 16,
    "network_def#autoencoder#bottleneck#num_codebooks": 1,
    "network_def#style_transfer#width": 8,
    "network_def#detail#width": 8,
    "network_def#unet#channels": [8, 8, 8],
    "network_def#unet#norm_num_groups": 4,
}

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    return [str(config_folder() / "inference.json"), str(tmp_path / "small.json")]


@pytest.fixture
def network(files: list[str]) -> LatentTranslator:
    parser = ConfigParser()
    parser.read_config(files)
    parser["bundle_root"] = str(config_folder().parent)
    return parser.get_parsed_content("network_def").eval()


@pytest.fixture
def older(network: LatentTranslator, tmp_path: Path) -> Path:
    """Weights as version 0.2.0 wrote them."""
    state = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(ADDED)}
    torch.save(state, tmp_path / "older.pt")
    return tmp_path / "older.pt"


def test_older_weights_become_whole_and_translate_as_before(network, older, files, tmp_path, monkeypatch) -> None:
    with pytest.raises(
        ValueError, match=r"missing tensors .* earlier version: python -m custom convert .*older.pt NEW"
    ):
        load_weights(network, older)
    made = [convert(older, tmp_path / f"new{k}.pt", config=files) for k in range(2)]
    first, second = (torch.load(path, weights_only=True) for path in made)
    assert all(torch.equal(first[name], second[name]) for name in first)
    image, target = torch.rand(1, 1, 16, 16, 16) * 2 - 1, torch.tensor([2])
    noise = torch.randn(1, network.autoencoder.latent_channels, 4, 4, 4)
    rounded = {
        k: v.half().float() if v.ndim > 2 else v for k, v in network.state_dict().items()
    }  # as files keep kernels
    network.load_state_dict(rounded)
    with torch.no_grad():
        expected = network(image, target, noise)
        for parameter in network.parameters():
            parameter.zero_()
        load_weights(network, made[0])
        assert torch.equal(network(image, target, noise), expected)
        sources = torch.cat([image, image.flip(2)], dim=1)
        latent = network.encode(sources)
        fused = network.fuse(latent, network.transfer(latent, target), target)[0]
    torch.testing.assert_close(fused, latent.mean(dim=0, keepdim=True))
    assert network.error_map() == "untrained"


def test_an_earlier_fusion_is_replaced(network, files, tmp_path) -> None:
    state = network.state_dict()
    earlier = {name: tensor for name, tensor in state.items() if not name.startswith("fusion.")}
    earlier |= {"fusion.attention.scores.bias": torch.ones(4, 4), "fusion.conv_out.weight": torch.ones(8, 32, 3, 3, 3)}
    torch.save(earlier, tmp_path / "earlier.pt")
    with pytest.raises(ValueError, match=r"python -m custom convert .*earlier.pt NEW_FILE makes them whole"):
        load_weights(network, tmp_path / "earlier.pt")
    with torch.no_grad():
        network.fusion.conv_out.weight.fill_(1.0)
    load_weights(network, convert(tmp_path / "earlier.pt", tmp_path / "new.pt", config=files))
    assert not network.fusion.conv_out.weight.any()  # the plain mean
    for name, tensor in earlier.items():
        if not name.startswith("fusion."):
            kept = tensor.half().float() if tensor.ndim > 2 else tensor
            assert torch.equal(network.state_dict()[name], kept), name


def test_what_needs_no_conversion_or_cannot_have_one_is_said(network, older, files, tmp_path) -> None:
    torch.save(network.state_dict(), tmp_path / "whole.pt")
    with pytest.raises(
        ValueError, match=r"whole.pt: expected weights of an earlier version .*; found nothing to change"
    ):
        convert(tmp_path / "whole.pt", tmp_path / "new.pt", config=files)
    state = torch.load(older, weights_only=True)
    torch.save({k: v for k, v in state.items() if not k.startswith("unet.")}, older)
    with pytest.raises(ValueError, match=r"earlier version of this network; found .* missing tensors .*unet"):
        convert(older, tmp_path / "new.pt", config=files)
    assert not (tmp_path / "new.pt").exists()


@pytest.mark.slow
def test_codes_of_one_codebook_become_those_of_several(network, older, files, tmp_path) -> None:
    """Latents that lie on codes are decoded as before, and the others are not represented worse."""
    bottleneck = network.autoencoder.bottleneck
    bottleneck.ema_cluster_size.copy_(torch.arange(16.0))
    torch.save(network.state_dict(), tmp_path / "one.pt")
    two = of_codebooks(files, 2)
    with pytest.raises(ValueError, match=r"found 1 codebook instead of 2. Set .* to 1, .*convert .* --num_codebooks 2"):
        load_weights(two, tmp_path / "one.pt")
    with pytest.raises(ValueError, match="found 1 codebook instead of 2"):
        load_pretrained(two, tmp_path / "one.pt")
    load_pretrained(two, convert(tmp_path / "one.pt", tmp_path / "two.pt", config=files, num_codebooks=2))
    counts = two.autoencoder.bottleneck.ema_cluster_size
    assert torch.equal(counts, torch.arange(16.0).expand(2, 16))
    image, grid = torch.rand(1, 1, 16, 16, 16) * 2 - 1, torch.randint(16, (1, 4, 4, 4))
    codes = torch.cat([bottleneck.embed(grid), torch.zeros(1, 16, 4, 4, 4)], dim=1)
    with torch.no_grad():
        decoded = two.decode(two.autoencoder.quantize(codes).latent)
        # files keep kernels in half precision, of 11 significant bits
        torch.testing.assert_close(decoded, network.decode(codes), rtol=0, atol=1e-2 * decoded.abs().max().item())
        latent = network.autoencoder.encode(image)
        errors = [(n.autoencoder.quantize(latent).latent - latent).square().sum(1) for n in (network, two)]
    assert (errors[1] <= errors[0] + 1e-6).all()
    assert (errors[1] < errors[0]).any()
    # and both conversions at once, and several once more
    load_weights(two, convert(older, tmp_path / "both.pt", config=files, num_codebooks=2))
    load_weights(
        of_codebooks(files, 4), convert(tmp_path / "two.pt", tmp_path / "four.pt", config=files, num_codebooks=4)
    )


def of_codebooks(files: list[str], number: int) -> LatentTranslator:
    parser = ConfigParser()
    parser.read_config(files)
    parser["bundle_root"] = str(config_folder().parent)
    parser["network_def#autoencoder#bottleneck#num_codebooks"] = number
    return parser.get_parsed_content("network_def").eval()


def test_the_weights_of_the_bundle_are_not_replaced() -> None:
    own = config_folder().parent / "models" / "model.pt"
    before = own.stat()
    with pytest.raises(ValueError, match=r"model\.pt: expected another file than the bundle's own weights"):
        convert(own, own, num_codebooks=2)
    assert own.stat() == before


def test_numbers_of_codebooks_that_cannot_be(network, files, tmp_path) -> None:
    torch.save(of_codebooks(files, 2).state_dict(), tmp_path / "two.pt")
    with pytest.raises(
        ValueError,
        match=r"found 2 codebooks instead of 1. Set num_codebooks .* to 2, .*bottleneck#num_codebooks 2",
    ):
        load_weights(network, tmp_path / "two.pt")
    with pytest.raises(ValueError, match=r"earlier version .*; found 2 codebooks instead of 1. Name .* num_codebooks"):
        convert(tmp_path / "two.pt", tmp_path / "one.pt", config=files)
    with pytest.raises(ValueError, match=r"num_codebooks: expected a divisor of 16, .* found 3"):
        convert(tmp_path / "two.pt", tmp_path / "three.pt", config=files, num_codebooks=3)
    kl = [*files, str(config_folder() / "ablation_kl.json")]
    with pytest.raises(ValueError, match="num_codebooks: expected a network with a codebook; found a KLBottleneck"):
        convert(tmp_path / "two.pt", tmp_path / "kl.pt", config=kl, num_codebooks=2)
    assert [file.name for file in tmp_path.glob("*.pt")] == ["two.pt"]


def test_a_file_without_a_network_is_named(tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text("{}")
    with pytest.raises(ValueError, match=r"metadata.json: expected a config with network_def"):
        convert(tmp_path / "old.pt", tmp_path / "new.pt", config=str(tmp_path / "metadata.json"))
