"""Seconds of a stage-3 step with the latents read from the cache, against encoding source and target in every step.

Usage: ``python -m benchmarks.cached_latents [--preset release] [--size 96 96 96] [--steps 5] [--amp true]``. Both sides
take the same steps on one pair in one process, in turn, so that other work on the machine slows both; the shortest of
each counts. Without the cache a step reads, preprocesses and encodes both images, as a training without it would.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import Tensor

from benchmarks.subject import write_head
from custom.commands.summary import DEFAULT_PRESET
from custom.networks import LatentTranslator
from custom.networks.fast import accelerate
from custom.training.latents.pairs import latent_pairs
from custom.training.objectives import DiffusionObjective
from custom.training.trainer import prepare_tensors
from custom.utils.bundle import config_folder
from custom.utils.precision import uses_bfloat16

NAMES = ("t1", "t2")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.cached_latents", description=__doc__)
    parser.add_argument("--preset", default="release")
    parser.add_argument("--size", type=int, nargs=3, default=(96, 96, 96))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--amp", default="auto")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def read_training(preset: str) -> ConfigParser:
    """``train.json`` with the preset's overlay."""
    folder = config_folder()
    overlay = [] if preset == DEFAULT_PRESET else [str(folder / f"preset_{preset}.json")]
    parser = ConfigParser()
    parser.read_config([str(folder / "train.json"), *overlay])
    # detail transfer needs images, not latents: without it a step is what the cache of latents is for
    parser.update({"bundle_root": str(folder.parent), "bundle_code": [], "network_def#detail": None})
    return parser


class Step:
    """A training step; ``fetch`` gives its batch."""

    def __init__(self, network: LatentTranslator, device: torch.device, amp: bool) -> None:
        self.objective = DiffusionObjective(network).train()
        self.optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-6)
        self.device, self.amp = device, amp

    def __call__(self, fetch: Any) -> tuple[float, float]:
        """Seconds to fetch the batch, and of the whole step."""
        start = time.perf_counter()
        batch = prepare_tensors(fetch(), self.device, non_blocking=False)
        self.wait()
        fetched = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
            loss = self.objective(batch).loss
        loss.backward()
        self.optimizer.step()
        self.wait()
        return fetched - start, time.perf_counter() - start

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    options = arguments()
    device, amp = torch.device(options.device), uses_bfloat16(options.amp, torch.device(options.device))
    parser = read_training(options.preset)
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def").to(device)
    transform = parser.get_parsed_content("train#preprocessing")
    modality = torch.tensor([0, 2])
    with tempfile.TemporaryDirectory() as folder:
        entry = {n: str(write_head(Path(folder) / f"{n}.nii.gz", tuple(options.size))) for n in NAMES}
        modalities = list(parser.get_parsed_content("modalities"))
        start = time.perf_counter()
        pairs = latent_pairs(
            [entry], transform, network, modalities, cache_dir=f"{folder}/latents", device=device, amp=amp,
            pairs_per_subject=1, crop_size=parser["latent_crop"], target_like=parser["cache_target_like"],
        )  # fmt: skip
        print(f"filling the cache: {time.perf_counter() - start:.1f} s")

        @torch.no_grad()
        def encoded() -> dict[str, Tensor]:
            images = transform(entry)
            with accelerate(network), torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
                latents = [network.encode(images[name].unsqueeze(0).to(device)).float() for name in NAMES]
            crop = tuple(slice(0, n) for n in parser["latent_crop"])
            source, target = (latent[(..., *crop)] for latent in latents)
            sets = {"source": source.unsqueeze(1), "source_modality": modality[None, :1]}  # of one source
            return {**sets, "target": target, "target_modality": modality[1:]}

        step = Step(network, device, amp)
        step(lambda: pairs[0])
        seconds: dict[str, list[tuple[float, float]]] = {"cached": [], "encoded": []}
        for _ in range(options.steps):
            seconds["cached"].append(step(lambda: pairs[0]))
            seconds["encoded"].append(step(encoded))
    best = {side: min(step for _, step in values) for side, values in seconds.items()}
    waited = {side: min(fetch for fetch, _ in values) for side, values in seconds.items()}
    result = {"preset": options.preset, "size": list(options.size), "amp": amp, "steps": options.steps}
    result |= {"seconds": best, "of_which_fetching": waited, "ratio": best["encoded"] / best["cached"]}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
