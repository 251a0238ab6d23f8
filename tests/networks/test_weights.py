"""Tests of custom.networks.weights."""

from __future__ import annotations

import copy
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from custom.networks import LatentTranslator, StyleTransfer
from custom.networks.weights import check_archive, compact, load_weights, read_weights


def transfer(num_modalities: int = 4, width: int = 4) -> StyleTransfer:
    return StyleTransfer(
        num_modalities, 2, in_channels=width, res_channels=[width], spade_channels=[width], hidden_channels=2
    )


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    torch.save(transfer().state_dict(), path)
    return path


def test_round_trip(weights: Path) -> None:
    network = transfer()
    assert load_weights(network, weights) is network
    for name, value in torch.load(weights, weights_only=True).items():
        assert torch.equal(network.state_dict()[name], value)


def test_weights_that_are_not_finite(weights: Path) -> None:
    state = torch.load(weights, weights_only=True)
    name = next(iter(state))
    state[name].view(-1)[0] = torch.nan
    torch.save(state, weights)
    with pytest.raises(ValueError, match=f"expected finite weights; found NaN or infinite values in {name}"):
        load_weights(transfer(), weights)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.pt: expected the model's weights; found no file"):
        load_weights(transfer(), tmp_path / "model.pt")


@pytest.mark.parametrize("content", [b"", b"not weights"], ids=["empty", "text"])
def test_not_weights(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.pt: expected a file of tensors"):
        load_weights(transfer(), tmp_path / "model.pt")


def test_damage_to_a_name_is_said_in_one_line(tmp_path: Path) -> None:
    """A part whose name holds a line break, and whose checksum is wrong."""
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/da\nta.pkl", b"content")
    content = (tmp_path / "model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(content.replace(b"content", b"contenu"))
    with pytest.raises(ValueError, match=r"^damaged content \(model/da\?ta\.pkl has another checksum\)$"):
        check_archive(tmp_path / "model.pt")


def test_a_part_that_is_called_a_folder_is_refused(tmp_path: Path) -> None:
    """Its checksum is right, and torch.load would leave its tensor as the memory happened to be."""
    torch.save({"weight": torch.arange(60.0)}, tmp_path / "model.pt")
    content = bytearray((tmp_path / "model.pt").read_bytes())
    entry = content.index(b"PK\x01\x02", content.index(b"/byteorderPK\x01\x02"))  # of the tensor, in the directory
    assert b"/data/0" in content[entry : entry + 64]
    content[entry + 38] = 0x10  # external attributes
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.pt: expected .* found damaged content \(.*/data/0 is called a"):
        read_weights(tmp_path / "model.pt")


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    torch.save(transfer(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="expected a file of tensors"):
        load_weights(transfer(), tmp_path / "model.pt")


def test_training_checkpoint(weights: Path) -> None:
    torch.save({"model": transfer().state_dict(), "epoch": 3}, weights)
    with pytest.raises(ValueError, match=r"expected a flat state dict.*found entries model, epoch"):
        load_weights(transfer(), weights)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (transfer(num_modalities=3), "found 4 modalities instead of 3; .* tensors of another shape"),
        (
            transfer(width=6),
            r"another shape \(conv_in.weight \(4, 2, 7, 7, 7\) instead of \(6, 2, 7, 7, 7\)",
        ),
        (nn.Sequential(transfer()), "missing tensors .* unknown tensors"),
    ],
    ids=["modalities", "preset", "names"],
)
def test_weights_that_do_not_fit(weights: Path, network: nn.Module, message: str) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_weights(network, weights)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_compact_halves_the_kernels() -> None:
    kernel, far, matrix = torch.randn(2, 2, 3, 3, 3), torch.full((1, 1, 1), 1e6), torch.randn(4, 4)
    smaller = compact({"kernel": kernel, "far": far, "matrix": matrix})
    assert [v.dtype for v in smaller.values()] == [torch.float16, torch.float32, torch.float32]
    # half the spacing of numbers with eleven significant bits
    torch.testing.assert_close(smaller["kernel"].float(), kernel, rtol=2**-11, atol=2**-25)
    assert torch.equal(smaller["far"], far)
    assert torch.equal(smaller["matrix"], matrix)


def test_weights_of_another_intensity_scale_are_refused(
    tiny_translator: LatentTranslator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, other = tmp_path / "model.pt", copy.deepcopy(tiny_translator)
    other.intensity_scale.fill_(1)
    torch.save(other.state_dict(), path)
    for parts in (None, ["autoencoder"]):
        with pytest.raises(
            ValueError, match=r"model\.pt: expected .* the intensity scale percentile; found brain. Set"
        ):
            load_weights(tiny_translator, path, parts)
    load_weights(tiny_translator, path, ["autoencoder"], any_scale=True)
    assert "found brain. The training goes on from them in its own scale" in caplog.text
    assert load_weights(other, path).intensity_scale == 1


def test_parts_leave_the_scale_and_the_range_of_the_whole(tiny_translator: LatentTranslator, tmp_path: Path) -> None:
    """A training on another scale than the weights that it starts from must not save its own under their name."""
    path, network = tmp_path / "model.pt", copy.deepcopy(tiny_translator)
    torch.save(tiny_translator.state_dict(), path)
    network.intensity_scale.fill_(1)
    network.training_range.fill_(3.0)
    load_weights(network, path, ["autoencoder"], any_scale=True)
    assert network.intensity_scale == 1
    assert (network.training_range == 3.0).all()


def test_weights_without_a_named_scale_are_of_the_percentiles(
    tiny_translator: LatentTranslator, tmp_path: Path
) -> None:
    path, other = tmp_path / "model.pt", copy.deepcopy(tiny_translator)
    state = tiny_translator.state_dict()
    del state["intensity_scale"]
    torch.save(state, path)
    assert load_weights(tiny_translator, path).intensity_scale == 0
    other.intensity_scale.fill_(1)
    with pytest.raises(ValueError, match="expected weights trained on the intensity scale brain; found percentile"):
        load_weights(other, path)
    # whoever loads them by PyTorch alone gets what they say
    other.load_state_dict(state, strict=True)
    assert other.intensity_scale == 0
