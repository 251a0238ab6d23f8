"""One translation from file to file in a process of its own: ``python -m benchmarks.whole '{"preset": ...}'``.

A fresh process knows its own peak memory: weights, libraries and the interpreter counted in.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.measure import ConvolutionRate, measured
from benchmarks.subject import make_network, read_config, write_head
from custom.inference.inferer import TranslationInferer

__all__ = ["Whole", "translate_in_fresh_process"]


class Whole(NamedTuple):
    """Seconds from reading to the last written file, the process's peak in MiB, and the machine's rate around it."""

    seconds: float
    memory: float
    targets: int
    amp: bool
    steps: int
    rate: float


def translate_in_fresh_process(**settings: Any) -> Whole:
    """Run ``translate`` with these settings in a new interpreter.

    Raises:
        RuntimeError: with what the process said, if it failed.
    """
    command = [sys.executable, "-m", "benchmarks.whole", json.dumps(settings)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr[-2000:]}")
    return Whole(**json.loads(result.stdout.splitlines()[-1]))


def translate(
    preset: str, size: list[int], device: str, *, targets: list[str], amp: bool, steps: int, weights: str | None = None
) -> Whole:
    """Translate a made-up head once, after a small one that loads the libraries."""
    with tempfile.TemporaryDirectory() as folder:
        where = torch.device(device)
        config = read_config(preset, output_dir=folder, targets=targets, device=f"$torch.device('{device}')")
        network = make_network(config, where, weights=weights)
        preprocess = config.get_parsed_content("preprocessing")
        postprocess = config.get_parsed_content("postprocessing")
        inferer = TranslationInferer(
            targets, config.get_parsed_content("modalities"), num_inference_steps=steps, amp=amp
        )

        def run(image: Path) -> None:
            data = preprocess({"image": str(image)})
            data["pred"] = inferer(data["image"][None].to(where), network)[0].cpu()
            postprocess(data)

        run(write_head(Path(folder) / "small.nii.gz", (network.spatial_divisor,) * 3))
        height, width, depth = size
        image = write_head(Path(folder) / "head.nii.gz", (height, width, depth))
        _, cost = measured(lambda: run(image), where, rate=ConvolutionRate(where, amp=amp))
        return Whole(cost.seconds, cost.peak, len(targets), amp, steps, cost.rate)


if __name__ == "__main__":
    print(json.dumps(translate(**json.loads(sys.argv[1]))._asdict()))
