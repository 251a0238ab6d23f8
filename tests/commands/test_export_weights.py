"""Tests of custom.commands.export_weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.inferers import LatentDiffusionInferer

from custom.commands.export_weights import export_weights
from custom.commands.summary import config_folder
from tests.fixtures.foreign import randomized
from tests.fixtures.near import near

TINY = {
    "network_def#autoencoder": {
        "_target_": "custom.networks.VQGAN",
        "channels": [8, 8],
        "embedding_dim": 4,
        "num_embeddings": 32,
        "num_res_blocks": [1, 1],
        "norm_num_groups": 4,
        "final_activation": True,
        "intensity_range": [0, 1],
    },
    "network_def#style_transfer": {"_target_": "custom.networks.IdentityTransfer"},
    "network_def#fusion": None,
    "network_def#unet": {
        "_target_": "custom.networks.ConditionalUNet",
        "in_channels": 8,
        "out_channels": 4,
        "num_modalities": "$len(@modalities)",
        "channels": [8, 16],
        "attention_levels": [False, True],
        "num_heads": 2,
        "norm_num_groups": 4,
    },
    "network_def#schedule": {"_target_": "custom.networks.NoiseSchedule", "beta_end": 0.02},
    "network_def#conditioning": "target_like",
    "network_def#residual": False,
    "network_def#detail": None,
}


@pytest.fixture
def model(tmp_path: Path):
    """``model(changes={})`` → (network, weights, configs) of a tiny preset."""

    def make(changes: Mapping[str, Any] = {}) -> tuple[torch.nn.Module, Path, list[str]]:
        files = [str(config_folder() / "inference.json"), str(tmp_path / "preset.json")]
        Path(files[1]).write_text(json.dumps({**TINY, **changes}))
        parser = ConfigParser()
        parser.read_config(files)
        network = randomized(parser.get_parsed_content("network_def"))
        network.latent_scale.fill_(2.5)
        torch.save(network.state_dict(), tmp_path / "model.pt")
        return network, tmp_path / "model.pt", files

    return make


def test_autoencoder(model, tmp_path: Path) -> None:
    network, weights, files = model()
    done = export_weights("autoencoder", tmp_path / "out" / "vae.pt", weights=weights, config=files)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["vae.json", "vae.pt", "vae_quantizer.pt"]
    config = json.loads(done.config.read_text())
    assert config["intensity_range"] == [0, 1]
    parser = ConfigParser(config)
    theirs, quantizer = (parser.get_parsed_content(name).eval() for name in ("network_def", "quantizer_def"))
    theirs.load_state_dict(torch.load(done.weights, weights_only=True), strict=True)
    quantizer.load_state_dict(torch.load(done.quantizer, weights_only=True), strict=True)
    image = torch.rand(1, 1, 8, 8, 8)
    with torch.no_grad():
        latent = network.encode(2 * image - 1)
        indices = quantizer.quantize(theirs.encode(image)[0])[2]
        torch.testing.assert_close(quantizer.embed(indices), latent)
        expected = (network.decode(latent) + 1) / 2
        near(theirs.decode(latent), expected)


def test_unet_in_monais_inferer(model, tmp_path: Path) -> None:
    """A step of MONAI's own latent diffusion predicts what ours does."""
    network, weights, files = model()
    done = export_weights("unet", tmp_path / "unet.pt", weights=weights, config=files)
    assert done.quantizer is None
    config = json.loads(done.config.read_text())
    assert (config["conditioning"], config["modalities"]) == ("target_like", ["t1", "t1ce", "t2", "flair"])
    parser = ConfigParser(config)
    theirs, scheduler = parser.get_parsed_content("network_def").eval(), parser.get_parsed_content("scheduler")
    theirs.load_state_dict(torch.load(done.weights, weights_only=True), strict=True)
    torch.testing.assert_close(scheduler.alphas_cumprod, network.schedule.alphas_cumprod)
    inferer = LatentDiffusionInferer(scheduler, scale_factor=config["scale_factor"])
    clean, condition, noise = torch.randn(3, 1, 4, 4, 4, 4)

    class Encoded(torch.nn.Module):
        def encode_stage_2_inputs(self, latent: torch.Tensor) -> torch.Tensor:
            return latent

    timesteps, target = torch.tensor([700]), torch.tensor([2])
    context = torch.nn.functional.one_hot(target, 4).float().unsqueeze(1)
    with torch.no_grad():
        scaled = 2.5 * condition
        inputs = {"condition": context, "timesteps": timesteps, "noise": noise}
        conditioned = lambda x, timesteps, context: theirs(torch.cat([x, scaled], dim=1), timesteps, context)  # noqa: E731
        found = inferer(clean, Encoded(), conditioned, **inputs)
        noisy = network.schedule.add_noise(2.5 * clean, noise, timesteps)
        expected = network.predict(noisy, clean, condition, timesteps, target)
    near(found, expected)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("style_transfer", {}, "as MONAI core has no MS-SPADE; found 'style_transfer'"),
        ("unet", {"network_def#unet": {"_target_": "custom.networks.NoDenoiser"}}, "expected a ConditionalUNet"),
        (
            "unet",
            {"network_def#residual": True, "network_def#schedule#prediction_type": "sample"},
            "found a prediction that is added",
        ),
        ("unet", {"network_def#schedule": {"_target_": "custom.networks.RectifiedFlow"}}, "found a rectified flow"),
        ("autoencoder", {"network_def#autoencoder#haar_levels": 1}, "found a Haar step"),
    ],
)
def test_refusals_write_nothing(model, tmp_path: Path, part: str, changes: dict[str, Any], message: str) -> None:
    _, weights, files = model(changes)
    with pytest.raises(ValueError, match=message):
        export_weights(part, tmp_path / "out" / "file.pt", weights=weights, config=files)
    assert not (tmp_path / "out").exists()


def test_the_small_preset_opens_with_a_haar_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a Haar step"):
        export_weights("autoencoder", tmp_path / "vae.pt")


def test_missing_weights(model, tmp_path: Path) -> None:
    *_, files = model()
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt: expected the model's weights; found no file"):
        export_weights("unet", tmp_path / "unet.pt", weights=tmp_path / "nothing.pt", config=files)
