"""Tests of custom.training.discriminators: the crops that a discriminator can judge, known before it is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.networks.nets import PatchDiscriminator
from torch import nn

from custom.training.discriminators import check_crop, smallest_side

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"


def patches(layers: int) -> PatchDiscriminator:
    return PatchDiscriminator(spatial_dims=3, in_channels=2, channels=4, num_layers_d=layers, norm="INSTANCE")


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_patch_discriminator_needs_three_times_its_halvings(layers: int) -> None:
    discriminator = patches(layers)
    side = smallest_side(discriminator)
    assert side == 3 * 2**layers
    discriminator(torch.zeros(1, 2, side, side, side))
    with pytest.raises(RuntimeError, match="size"):
        discriminator(torch.zeros(1, 2, side, side, side - 1))


def test_trial_leaves_everything_as_it_was() -> None:
    discriminator = patches(1)
    before, state = {k: v.clone() for k, v in discriminator.state_dict().items()}, torch.get_rng_state()
    smallest_side(discriminator)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) and v.device.type == "cpu" for k, v in discriminator.state_dict().items())


def test_a_network_without_convolutions_takes_everything() -> None:
    assert smallest_side(nn.Identity()) == 1


def test_a_crop_that_is_too_small_along_one_axis_is_refused() -> None:
    check_crop(patches(2), "image_crop", [12, 16, 16])
    with pytest.raises(ValueError, match=r"^image_crop: expected 12 voxels .*; found 16×11×16\. Take larger"):
        check_crop(patches(2), "image_crop", [16, 11, 16])


def test_a_discriminator_that_never_takes_part_needs_nothing() -> None:
    check_crop(patches(2), "image_crop", [4, 4, 4], start_epoch=5, max_epochs=5)
    with pytest.raises(ValueError, match="image_crop"):
        check_crop(patches(2), "image_crop", [4, 4, 4], start_epoch=4, max_epochs=5)


@pytest.mark.parametrize(
    ("config", "crop"),
    [
        ("train_autoencoder", {"crop_size": [64, 8, 64]}),
        ("train_spade", {"latent_crop": [4, 4, 4]}),
        ("train_spade", {"joint": True, "image_crop": [8, 8, 8]}),
    ],
)
def test_a_training_says_so_before_anything_is_read(config: str, crop: dict[str, Any], tmp_path: Path) -> None:
    values = {"bundle_root": str(CONFIGS.parent), "output_dir": str(tmp_path), "dataset_dir": str(tmp_path), **crop}
    workflow = ConfigWorkflow(
        str(CONFIGS / f"{config}.json"), workflow_type="train", logging_file=False, modalities=["t1", "t2"], **values
    )
    workflow.initialize()
    *_, check = (step for step in workflow.parser["run"] if "check_crop" in str(step))
    workflow.parser["run"] = [check]
    with pytest.raises(RuntimeError) as raised:
        workflow.run()
    assert str(raised.value.__cause__).startswith(f"{list(crop)[-1]}: expected ")


@pytest.mark.parametrize("preset", [None, *sorted(CONFIGS.glob("preset_*.json"))], ids=lambda file: file and file.stem)
@pytest.mark.parametrize(("config", "key"), [("train_autoencoder", "crop_size"), ("train_spade", "latent_crop")])
def test_crops_of_the_configs_suffice(config: str, key: str, preset: Path | None) -> None:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{config}.json"), *([str(preset)] if preset else [])])
    content = json.loads((CONFIGS / f"{config}.json").read_text())["discriminator_def"]
    layers = content["num_layers_d"] if isinstance(content["num_layers_d"], int) else 1
    check_crop(patches(layers), key, parser[key])
