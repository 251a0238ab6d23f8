"""What few steps and bfloat16 cost in image quality, against 200 DDIM steps of the same weights in float32."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import torch
from monai.bundle import ConfigParser

from benchmarks.measure import measured
from custom.data.datalist import load_datalist
from custom.data.foreground import foreground_key
from custom.inference.inferer import TranslationInferer
from custom.networks import LatentTranslator

__all__ = ["REFERENCE_STEPS", "Quality", "measure_quality"]

REFERENCE_STEPS = 200


class Quality(NamedTuple):
    """PSNR in dB against the truth within the brain, and seconds, of the default sampler and of the reference."""

    subject: str
    size: tuple[int, ...]
    default_psnr: float
    reference_psnr: float
    default_seconds: float
    reference_seconds: float


def measure_quality(
    config: ConfigParser,
    network: LatentTranslator,
    device: torch.device,
    *,
    amp: bool,
    steps: int,
    data: Path,
    size: tuple[int, int, int],
) -> Quality:
    """Translate the middle of a held-out phantom, T1 to T2, in both ways.

    Args:
        config: ``inference.json``.
        network: with trained weights.
        device: of the network.
        amp: of the default way.
        steps: of the default way.
        data: folder of the phantoms with their ``datalist.json``.
        size: of the block from the middle of the volume that is translated; all brain, so that both contrasts keep
            its grid.
    """
    entry = load_datalist(data, "test", config.get_parsed_content("modalities"))[0]
    preprocess = config.get_parsed_content("preprocessing")
    with tempfile.TemporaryDirectory() as folder:
        blocks = [_middle(Path(entry[m]), size, Path(folder) / f"{m}.nii.gz") for m in ("t1", "t2")]
        items = [preprocess({"image": str(block)}) for block in blocks]
    source, truth = (item["image"].as_tensor()[None] for item in items)
    brain = items[1][foreground_key("image")].as_tensor()[None]

    def run(amp: bool, steps: int) -> tuple[float, float]:
        inferer = TranslationInferer("t2", config.get_parsed_content("modalities"), num_inference_steps=steps, amp=amp)
        prediction, cost = measured(lambda: inferer(source.to(device), network).cpu(), device)
        error = (prediction - truth)[brain].square().mean()
        return float(10 * torch.log10(4 / error)), cost.seconds  # the range [-1, 1] is 2 wide

    default, reference = run(amp, steps), run(False, REFERENCE_STEPS)
    return Quality(str(entry["subject"]), tuple(source.shape[2:]), default[0], reference[0], default[1], reference[1])


def _middle(path: Path, size: tuple[int, int, int], block: Path) -> Path:
    """Write the block of ``size`` in the middle of an image."""
    image = nib.load(path)
    starts = [(n - s) // 2 for n, s in zip(image.shape, size, strict=True)]
    nib.save(image.slicer[tuple(slice(a, a + s) for a, s in zip(starts, size, strict=True))], block)
    return block
