"""Tests of what every rival does: published sizes, volumes in and out, what it refuses, what its weights say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SliceInferer

from custom.inference.inferer import TranslationInferer
from custom.inference.saver import DeclareSyntheticd
from custom.networks.weights import compact, load_weights, read_card
from custom.rivals.rival import Rival, as_pair, scored_pairs
from tests.rivals.conftest import MODALITIES, RIVALS

# of the published networks, generators (with NICE-GAN's shared encoder) and discriminators
PUBLISHED = {
    "pix2pix_2d": (54_407_809, 2_764_609),
    "cyclegan_2d": (11_365_633, 2 * 2_762_689),
    "nice_gan": (8_098_368 + 165_441, 2 * 46_872_385),
    "reg_gan": (11_365_633, 2_762_689),
    "res_vit": (123_441_537, 2_764_609),
    "pix2pix_3d": (167_272_449, 11_053_761),
    "cyclegan_3d": (34_111_489, 2 * 11_047_873),
    "dea_gan": (167_272_449, 11_057_857),
}
SMALL = 10_000_000
OF_SLICES = [name for name in RIVALS if not name.endswith("3d") and name != "dea_gan"]
TOLD_THE_TARGET = ("pix2pix_2d", "pix2pix_3d", "reg_gan", "res_vit")


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def brain(*shape: int) -> torch.Tensor:
    """A box of tissue within background, (1, 1, *shape), its first and last axial slices empty."""
    image = torch.full((1, 1, *shape), -1.0)
    inside = tuple(slice(2, n - 2) for n in shape)
    generator = torch.Generator().manual_seed(0)
    image[(0, 0, *inside)] = torch.rand([n - 4 for n in shape], generator=generator) * 1.9 - 0.95
    return image


@pytest.mark.parametrize("method", RIVALS)
def test_sizes(make: Callable[..., Rival], method: str) -> None:
    with torch.device("meta"):
        network = make(method, "original")
        found = count(network), count(network.make_discriminator())
    assert found == pytest.approx(PUBLISHED[method], rel=0.01)
    assert count(make(method)) < SMALL
    with pytest.raises(ValueError, match="size: expected one of original, small; found 'large'"):
        make(method, "large")


@pytest.mark.slow
@pytest.mark.parametrize("method", RIVALS)
def test_a_volume_of_odd_sides_beside_an_empty_one(make: Callable[..., Rival], method: str) -> None:
    """Also scripted: TorchScript gives the same."""
    network, image = make(method), brain(21, 33, 19)
    batch = torch.cat([image, torch.full_like(image, -1.0)])
    with torch.no_grad():
        found = network(batch)
        scripted = torch.jit.script(network)(batch)
    assert found.shape == batch.shape
    assert found[0].std() > 0
    assert (found[1] == -1).all()
    torch.testing.assert_close(scripted, found, rtol=0, atol=1e-5)
    if method in OF_SLICES:
        assert (found[..., [0, 1, -2, -1]] == -1).all()


def test_slices_are_those_of_monai(make: Callable[..., Rival]) -> None:
    network, image = make("cyclegan_2d"), brain(20, 28, 9)
    target = torch.full((1,), MODALITIES.index("t2"))
    inferer = SliceInferer(roi_size=(20, 28), spatial_dim=2, sw_batch_size=9, cval=-1.0, progress=False)
    with torch.no_grad():
        expected = inferer(image, lambda x: network.translate(x, target.expand(len(x))))
        found = network(image)
    torch.testing.assert_close(found[..., 2:-2], expected[..., 2:-2], rtol=0, atol=1e-5)
    assert not torch.equal(expected[..., 0], found[..., 0])  # an empty slice is no background for a network


def test_a_padded_image_is_cut_back_in_place(make: Callable[..., Rival]) -> None:
    network = make("pix2pix_2d")
    network.generate = lambda x: x  # type: ignore[method-assign]
    image = torch.randn(2, 1, 21, 33)
    assert network.padding(image) == [15, 16, 5, 6]
    assert torch.equal(network.translate(image, torch.tensor([2, 2])), image)


@pytest.mark.parametrize("method", RIVALS)
def test_refusals(make: Callable[..., Rival], method: str) -> None:
    network, image = make(method), torch.full((1, 1, 16, 16, 4), -1.0)
    with pytest.raises(ValueError, match=r"target: expected t2, the only one .* found another"):
        network(image, torch.tensor([3]))
    with pytest.raises(ValueError, match="image: expected one source"):
        network(image.expand(1, 2, 16, 16, 4))
    for pair in ("t1,pd", ["t1"], ("t1", "t1"), "t2"):
        with pytest.raises(ValueError, match="pair: expected a source and another target of t1, t1ce, t2, flair"):
            make(method, pair=pair)
    if method not in TOLD_THE_TARGET:
        with pytest.raises(ValueError, match="Train one network for each pair"):
            make(method, pair="all")


@pytest.mark.parametrize("method", TOLD_THE_TARGET)
def test_one_network_for_all_pairs_is_told_the_target(make: Callable[..., Rival], method: str) -> None:
    network, image = make(method, pair="all"), brain(16, 16, 6)
    assert count(network) > count(make(method))
    targets = torch.tensor([1, 3])
    with torch.no_grad():
        seen = network.conditioned(image[..., 3].expand(2, -1, -1, -1), targets)
        found = network(image.expand(2, -1, -1, -1, -1), targets)
        torch.testing.assert_close(found[1:], network(image, targets[1:]), rtol=0, atol=1e-4)
    assert (found[0] - found[1]).abs().max() > 0
    assert [seen[i, 1:, 0, 0].tolist() for i in range(2)] == [[0, 1, 0, 0], [0, 0, 0, 1]]
    assert count(network.make_discriminator()) > count(make(method).make_discriminator())


def test_the_inferer_takes_a_rival(make: Callable[..., Rival]) -> None:
    found = TranslationInferer("T2w", MODALITIES)(brain(16, 16, 8), make("pix2pix_2d"))
    assert found.shape == (1, 1, 16, 16, 8)
    with pytest.raises(ValueError, match="target: expected t2"):
        TranslationInferer("flair", MODALITIES)(brain(16, 16, 8), make("pix2pix_2d"))
    with pytest.raises(ValueError, match="modalities: expected the 4 of the network"):
        TranslationInferer("t2", ["t1", "t2"])(brain(16, 16, 8), make("pix2pix_2d"))


def test_a_client_of_monai_label_is_told_what_a_rival_refuses(
    make: Callable[..., Rival], label_server: type[Exception]
) -> None:
    with pytest.raises(label_server) as raised:
        TranslationInferer("flair", MODALITIES)(brain(16, 16, 8), make("pix2pix_2d"))
    assert raised.value.status_code == 400  # type: ignore[attr-defined]
    assert "target: expected t2, the only one" in raised.value.detail  # type: ignore[attr-defined]


def test_pairs() -> None:
    assert as_pair("T1n, t2w", MODALITIES) == ("t1", "t2")
    assert as_pair(None, MODALITIES) is as_pair("ALL", MODALITIES) is None
    assert scored_pairs(["t2", "flair"], MODALITIES) == [("t2", "flair")]
    assert scored_pairs("all", MODALITIES) is None


def test_weights_say_what_they_are_of(make: Callable[..., Rival], tmp_path: Path) -> None:
    """The 3D Pix2Pix and dEa-GAN have tensors of the same names and shapes."""
    path = tmp_path / "dea.pt"
    torch.save(compact(make("dea_gan").state_dict()), path)
    assert read_card(make("dea_gan").state_dict()) == {
        "target": "custom.rivals.DEaGAN",
        "method": "dea_gan",
        "arguments": {
            "modalities": MODALITIES,
            "pair": ["t1", "t2"],
            "intensity_scale": "percentile",
            "size": "small",
            "halvings": None,
            "norm": None,
        },
    }
    load_weights(make("dea_gan"), path)
    for network, words in (
        (make("pix2pix_3d"), "those of dea_gan, t1 to t2, small instead of pix2pix_3d, t1 to t2, small"),
        (make("dea_gan", pair=("t2", "flair")), "those of dea_gan, t1 to t2, small instead of dea_gan, t2 to flair"),
        (torch.nn.Linear(1, 1), "those of dea_gan, t1 to t2, small instead of a network without a card"),
    ):
        with pytest.raises(ValueError, match=words):
            load_weights(network, path)
    with pytest.raises(ValueError, match="expected weights trained on the intensity scale brain; found percentile"):
        load_weights(make("dea_gan", intensity_scale="brain"), path)
    other = make("dea_gan", halvings=3)
    with pytest.raises(ValueError, match="the same method built otherwise"):
        load_weights(other, path)


def test_weights_of_a_translator_are_no_rivals(tiny_translator, make: Callable[..., Rival], tmp_path: Path) -> None:
    torch.save(tiny_translator.state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="those of a network without a card instead of pix2pix_2d"):
        load_weights(make("pix2pix_2d"), tmp_path / "model.pt")


def test_a_card_can_be_built_from(make: Callable[..., Rival]) -> None:
    for method in RIVALS:
        network = make(method)
        card = read_card(network.state_dict())
        assert card is not None
        arguments = json.loads(json.dumps(card["arguments"]))
        again = type(network)(**arguments)
        assert card["target"] == f"custom.rivals.{type(network).__name__}"
        assert read_card(again.state_dict()) == card


def test_translations_name_the_method_that_made_them(make):
    inferer = TranslationInferer("t2", MODALITIES)
    pred = MetaTensor(inferer(brain(32, 32, 4), make("reg_gan"))[0])
    found = DeclareSyntheticd("pred", inferer, version="1.2")({"pred": pred})["pred"]
    record = found.meta["translations"]["t2"]
    said = "SYNTHETIC t2 from brain_mri_modality_translation, reg_gan v1.2"
    assert record["Description"] == found.meta["descrip"] == said
    assert record["GeneratedBy"] == [{"Name": "brain_mri_modality_translation, reg_gan", "Version": "1.2"}]
    assert (record["Method"], record["Steps"]) == ("reg_gan", None)
