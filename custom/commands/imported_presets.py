"""The configs that are written beside imported weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from custom.commands.summary import config_folder
from custom.utils.intensity_scales import PERCENTILE

__all__ = ["RECONSTRUCTION", "as_json", "preset", "training_preset"]

RECONSTRUCTION = "reconstruction"  # in place of a target's name, so that no file claims to be one
# of the losses of the presets whose UNet predicts the noise
EPSILON_TRAINING = {"image_weight": 0.0, "pure_noise_share": 0.0}
# latent voxels of a crop along each axis: what the discriminator of train_spade.json needs; they are halved by the UNet
SMALLEST_CROP, CROP_STEP = 8, 4
STEPS = 50  # of the sampler, as MONAI's bundles take with DDIM

Definitions = Mapping[str, dict[str, Any]]


def training_preset(
    weights: Path,
    modalities: Sequence[str],
    definitions: Definitions,
    schedule: dict[str, Any] | None,
    conditioning: str | None,
    *,
    release: bool,
) -> dict[str, Any]:
    """Overlay for the trainings that follow, and for running and evaluating what they give.

    Args:
        weights: the imported file.
        modalities: the vocabulary.
        definitions: of the imported parts, by part.
        schedule: definition of the noise schedule, where a UNet was imported.
        conditioning: of that UNet.
        release: start from ``preset_release.json``; otherwise from the configs' own settings.
    """
    latent = definitions["autoencoder"]["embedding_dim"]
    downsampling = _halvings(definitions["autoencoder"])
    overlay: dict[str, Any] = {}
    if release:
        overlay = json.loads((config_folder() / "preset_release.json").read_text(encoding="utf-8"))
        overlay["latent_crop"] = [
            max(SMALLEST_CROP, n // downsampling // CROP_STEP * CROP_STEP) for n in overlay["image_crop"]
        ]
        overlay["network_def#style_transfer"]["latent_channels"] = latent
        overlay["network_def#unet"] |= {"in_channels": 3 * latent, "out_channels": latent}
    elif schedule is None:
        overlay = {
            "network_def#style_transfer#latent_channels": latent,
            "network_def#fusion#latent_channels": latent,
            "network_def#unet#in_channels": 3 * latent,
            "network_def#unet#out_channels": latent,
        }
    else:
        overlay = {"network_def#style_transfer#latent_channels": latent, **EPSILON_TRAINING, **_diffusion(schedule)}
        overlay |= {"network_def#fusion#latent_channels": latent}
        overlay |= {"network_def#conditioning": conditioning, "network_def#detail": None}
    divisor = _halvings(definitions["unet"]) if "unet" in definitions else 4  # of the presets' UNets
    name = re.sub(r"[^\w.-]", "_", weights.stem)  # it stands in an expression
    overlay |= {
        "modalities": list(modalities),
        "spatial_divisor": downsampling * divisor,
        "intensity_scale": PERCENTILE,
        "pretrained": str(weights),
        "autoencoder_path": str(weights),
        "ckpt_path": f"$@bundle_root + '/output/model_{name}.pt'",
        **{f"network_def#{part}": definition for part, definition in definitions.items()},
    }
    if "style_transfer" in definitions:
        overlay |= {"spade_path": str(weights), "network_def#fusion": None}
    return overlay


def preset(
    weights: Path,
    modalities: Sequence[str],
    definitions: Definitions,
    schedule: dict[str, Any] | None,
    conditioning: str | None,
) -> dict[str, Any]:
    """Overlay that runs the imported weights as they are, without diffusion.

    With MS-SPADE they translate; an autoencoder alone gives reconstructions, under that name.
    """
    translates = "style_transfer" in definitions
    overlay: dict[str, Any] = {
        "modalities": list(modalities) if translates else [RECONSTRUCTION],
        "spatial_divisor": _halvings(definitions["autoencoder"]),
        "intensity_scale": PERCENTILE,
        "ckpt_path": str(weights),
        "network_def#style_transfer": {"_target_": "custom.networks.IdentityTransfer"},
        "network_def#unet": {"_target_": "custom.networks.NoDenoiser"},
        "network_def#schedule": schedule or {"_target_": "custom.networks.NoiseSchedule"},
        **{f"network_def#{part}": definition for part, definition in definitions.items()},
        "network_def#conditioning": conditioning or "none",
        "network_def#residual": False,
        "network_def#num_inference_steps": 0,
        "network_def#detail": None,
        "network_def#fusion": None,
    }
    if "unet" in definitions:
        overlay["spatial_divisor"] *= _halvings(definitions["unet"])
    if "t2" not in overlay["modalities"]:  # the default target of inference.json
        overlay["targets"] = overlay["modalities"][0]
    return overlay


def _diffusion(schedule: dict[str, Any]) -> dict[str, Any]:
    return {
        "network_def#schedule": schedule,
        "network_def#residual": False,
        "network_def#num_inference_steps": STEPS,
    }


def _halvings(definition: Mapping[str, Any]) -> int:
    """How many times smaller the lowest level of an autoencoder or UNet is along each axis."""
    return 2 ** (len(definition["channels"]) - 1)


def as_json(overlay: Mapping[str, Any]) -> str:
    return json.dumps(overlay, indent=4) + "\n"
