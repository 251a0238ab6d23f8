"""Tests of the overlays bundle/configs/preset_*.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from custom.networks import LatentTranslator, ReleaseStyleTransfer, StyleTransfer

CONFIGS = Path(__file__).resolve().parents[1] / "bundle" / "configs"
PRESETS = ("paper", "release")
STAGES = ("train_autoencoder", "train_spade", "train")
WORKFLOWS = (*STAGES, "inference", "evaluate")
every_preset = pytest.mark.parametrize("preset", PRESETS)


def config_file(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / f"{name}.json").read_text())


def parse(workflow: str, preset: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{workflow}.json"), str(CONFIGS / f"preset_{preset}.json")])
    return parser


def network(parser: ConfigParser) -> LatentTranslator:
    with torch.device("meta"):
        return parser.get_parsed_content("network_def").eval()


def test_all_presets_are_tested() -> None:
    assert {path.stem for path in CONFIGS.glob("preset_*.json")} == {f"preset_{preset}" for preset in PRESETS}


@every_preset
def test_network(preset: str, check_shapes) -> None:
    check_shapes(network(parse("inference", preset)))


@every_preset
def test_the_same_network_in_every_workflow(preset: str) -> None:
    parsers = [parse(workflow, preset) for workflow in WORKFLOWS]
    assert all(parser["network_def"] == parsers[0]["network_def"] for parser in parsers)
    divisor = network(parsers[0]).spatial_divisor
    assert [parser.get_parsed_content("spatial_divisor") for parser in parsers] == [divisor] * len(parsers)


@every_preset
def test_differences_only_and_every_key_is_read(preset: str) -> None:
    bases = [ConfigParser(config_file(workflow)) for workflow in WORKFLOWS]
    for key, value in config_file(f"preset_{preset}").items():
        if "#" in key:
            parent = key.rpartition("#")[0]
            assert all(parent in base for base in bases), f"{key}: some workflow has no {parent}"
            assert all(base.get(key) != value for base in bases), f"{key}: restates the default"
        else:
            found = [base[key] for base in bases if key in base]
            assert found, f"{key}: no workflow reads it"
            assert any(default != value for default in found), f"{key}: restates the default"


@every_preset
def test_weights_do_not_replace_the_default_presets(preset: str) -> None:
    for workflow in ("train", "inference", "evaluate"):
        parser = parse(workflow, preset)
        parser["bundle_root"] = "root"
        assert parser.get_parsed_content("ckpt_path") == f"root/output/model_{preset}.pt"


@pytest.mark.parametrize(
    ("preset", "workflow", "learning_rate", "max_epochs"),
    [
        ("paper", "train_autoencoder", 2e-6, 500),
        ("paper", "train_spade", 2e-6, 500),
        ("paper", "train", 2e-6, 800),
        ("release", "train_autoencoder", 1e-5, None),
        ("release", "train_spade", 2e-5, None),
        ("release", "train", 1e-6, None),
    ],
)
def test_training(preset: str, workflow: str, learning_rate: float, max_epochs: int | None) -> None:
    parser = parse(workflow, preset)
    assert parser.get_parsed_content("learning_rate") == learning_rate
    assert parser.get_parsed_content("final_learning_rate") == learning_rate
    # the losses and the timesteps of the publication, not the small preset's
    assert parser.get_parsed_content("image_weight") == 0
    assert parser.get_parsed_content("pure_noise_share") == 0
    if workflow == "train_spade":
        assert parser.get_parsed_content("objective#latent#image_weight") == 0
    assert parser.get_parsed_content("max_epochs") == (max_epochs or config_file(workflow)["max_epochs"])


@every_preset
def test_latent_crop_is_the_image_crop(preset: str) -> None:
    translator, overlay = network(parse("train", preset)), config_file(f"preset_{preset}")
    downsampling = translator.autoencoder.downsampling
    assert overlay["crop_size"] == overlay["image_crop"] == [n * downsampling for n in overlay["latent_crop"]]


def test_paper_is_tables_a_to_c() -> None:
    translator = network(parse("train", "paper"))
    autoencoder = translator.autoencoder
    assert autoencoder.encode(torch.empty(1, 1, 192, 192, 144, device="meta")).shape == (1, 3, 48, 48, 36)
    assert autoencoder.bottleneck.embedding.weight.shape == (8192, 3)
    assert isinstance(translator.style_transfer, StyleTransfer)
    assert translator.style_transfer.conv_in.weight.shape == (128, 3, 7, 7, 7)
    assert [b.conv2.out_channels for b in translator.style_transfer.res_blocks] == [256, 256]
    assert [b.conv2.out_channels for b in translator.style_transfer.spade_blocks] == [256, 256, 256, 128]
    assert [level.blocks[0].res.out_channels for level in translator.unet.down_levels] == [128, 256, 512]
    assert (translator.conditioning, translator.residual) == ("target_like", False)
    # Table A counts the VQ-GAN and the MS-SPADE together: 237 million
    parts = (autoencoder, translator.style_transfer)
    assert round(sum(p.numel() for part in parts for p in part.parameters()) / 1e6) == 237
    check_diffusion(translator)


def test_release_is_the_released_code() -> None:
    translator = network(parse("train", "release"))
    assert translator.autoencoder.encode(torch.empty(1, 1, 16, 16, 16, device="meta")).shape == (1, 4, 4, 4, 4)
    assert translator.autoencoder.bottleneck.embedding.weight.shape == (8192, 4)
    assert isinstance(translator.style_transfer, ReleaseStyleTransfer)
    assert translator.unet.conv_in.in_channels == 12
    assert translator.unet.class_embedding is not None
    assert translator.conditioning == "source_and_target_like"
    assert [level.blocks[0].transformer is not None for level in translator.unet.down_levels] == [False, True, True]
    assert (translator.num_inference_steps, translator.eta) == (200, 1.0)
    check_diffusion(translator)


def check_diffusion(translator: LatentTranslator) -> None:
    assert translator.schedule.num_train_timesteps == 1000
    assert translator.schedule.prediction_type == "epsilon"
