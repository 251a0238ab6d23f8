"""Tests of the overlays bundle/configs/ablation_*.json and sampling_*.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from custom.networks import IdentityTransfer, KLBottleneck, LatentTranslator, RectifiedFlow

CONFIGS = Path(__file__).resolve().parents[1] / "bundle" / "configs"
ABLATIONS = ("diffusion_only", "kl", "no_detail", "palette", "spade_only")
SAMPLERS = ("ddim", "ddpm", "few_steps", "from_target_like", "mean", "requantize")  # with the default's weights
PREDICTIONS = ("epsilon", "rectified_flow", "v_prediction")  # with weights of their own
OVERLAYS = (*(f"ablation_{name}" for name in ABLATIONS), *(f"sampling_{name}" for name in SAMPLERS + PREDICTIONS))
TRAINED = (*(o for o in OVERLAYS if o.startswith("ablation")), *(f"sampling_{name}" for name in PREDICTIONS))
WORKFLOWS = ("train_autoencoder", "train_spade", "train", "inference", "evaluate")
every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


def config_file(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / f"{name}.json").read_text())


def parse(workflow: str, *overlays: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.json") for name in (workflow, *overlays)])
    parser["bundle_root"] = "root"
    return parser


def network(overlay: str, workflow: str = "train") -> LatentTranslator:
    with torch.device("meta"):
        return parse(workflow, overlay).get_parsed_content("network_def").eval()


def test_all_overlays_are_tested() -> None:
    found = {path.stem for kind in ("ablation", "sampling") for path in CONFIGS.glob(f"{kind}_*.json")}
    assert found == set(OVERLAYS)


@every_overlay
def test_the_network_translates(overlay: str, check_shapes) -> None:
    check_shapes(network(overlay))


@every_overlay
def test_differences_only_and_every_key_is_read(overlay: str) -> None:
    bases = [ConfigParser(config_file(workflow)) for workflow in WORKFLOWS]
    for key, value in config_file(overlay).items():
        if "#" in key:
            parent = key.rpartition("#")[0]
            assert all(parent in base for base in bases), f"{key}: some workflow has no {parent}"
            assert all(base.get(key) != value for base in bases), f"{key}: restates the default"
        else:
            found = [base[key] for base in bases if key in base]
            assert found, f"{key}: no workflow reads it"
            assert all(default != value for default in found), f"{key}: restates the default"


@pytest.mark.parametrize("overlay", TRAINED)
@pytest.mark.parametrize("workflow", ["train", "inference", "evaluate"])
def test_weights_do_not_replace_the_defaults(overlay: str, workflow: str) -> None:
    name = overlay.partition("_")[2]
    expected = "output/spade/best.pt" if name == "spade_only" else f"output/model_{name}.pt"
    parser = parse(workflow, overlay)
    assert parser.get_parsed_content("ckpt_path") == f"root/{expected}"
    if workflow == "train" and name != "spade_only":
        assert parser.get_parsed_content("stage_dir") != "root/output/diffusion"


@pytest.mark.parametrize("overlay", [f"sampling_{name}" for name in SAMPLERS])
def test_samplers_take_the_default_weights(overlay: str) -> None:
    assert set(network(overlay).state_dict()) == set(parse("train").get_parsed_content("network_def").state_dict())
    assert parse("inference", overlay).get_parsed_content("ckpt_path") == "root/models/model.pt"


@pytest.mark.parametrize(("overlay", "inputs"), [("ablation_diffusion_only", 0), ("ablation_palette", 1)])
def test_without_ms_spade(overlay: str, inputs: int) -> None:
    """(a) sees the noisy latent only, (b) the source's beside it; neither trains stage 2."""
    translator, parser = network(overlay), parse("train", overlay)
    assert isinstance(translator.style_transfer, IdentityTransfer)
    assert translator.unet.conv_in.in_channels == (1 + inputs) * translator.autoencoder.latent_channels
    assert parser.get_parsed_content("spade_path") == "root/output/autoencoder/best.pt"


def test_diffusion_only_has_the_source_as_its_start_alone() -> None:
    translator = network("ablation_diffusion_only")
    assert (translator.conditioning, translator.residual) == ("none", False)
    assert 0 < translator.strength < 1


def test_spade_only_is_the_target_like_latent() -> None:
    translator = network("ablation_spade_only")
    latent = torch.randn(1, translator.autoencoder.latent_channels, 4, 4, 4)
    assert translator.sample(latent, latent, torch.tensor([0]), torch.randn_like(latent)) is latent


def test_kl_has_another_latent_and_nothing_else() -> None:
    kl, default = network("ablation_kl"), parse("train").get_parsed_content("network_def")
    assert isinstance(kl.autoencoder.bottleneck, KLBottleneck)
    for part in ("style_transfer", "unet"):
        shapes = [{k: v.shape for k, v in n.get_submodule(part).state_dict().items()} for n in (kl, default)]
        assert shapes[0] == shapes[1]
    assert parse("train_autoencoder", "ablation_kl").get_parsed_content("stage_dir") == "root/output/kl/autoencoder"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ddpm", {"eta": 1.0, "num_inference_steps": 1000}),
        ("ddim", {"eta": 0.0, "strength": 1.0}),
        ("from_target_like", {"strength": 0.5, "eta": 0.0}),
        ("requantize", {"requantize": True}),
        ("epsilon", {"residual": False}),
        ("v_prediction", {"residual": False}),
        ("rectified_flow", {"residual": False}),
    ],
)
def test_sampler(name: str, expected: dict[str, Any]) -> None:
    translator = network(f"sampling_{name}")
    assert {key: getattr(translator, key) for key in expected} == expected


def test_predictions() -> None:
    assert network("sampling_epsilon").schedule.prediction_type == "epsilon"
    assert network("sampling_v_prediction").schedule.prediction_type == "v_prediction"
    assert isinstance(network("sampling_rectified_flow").schedule, RectifiedFlow)
    assert network("sampling_ddim").schedule.prediction_type == "sample"


def test_mean_of_samples() -> None:
    parser = parse("inference", "sampling_mean")
    assert parser["num_samples"] == 4
    assert parser["inferer"]["num_samples"] == "@num_samples"
    assert parse("evaluate", "sampling_mean")["inferer"]["num_samples"] == "@num_samples"
