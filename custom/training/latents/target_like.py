"""Target-like latents on disk: what a frozen MS-SPADE makes of every pair, for the trainings behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from custom.networks import LatentTranslator
from custom.networks.fast import accelerate
from custom.training.interruption import Interruption
from custom.training.latents.cache import StoredLatents, check_room, find_stored, store_array
from custom.utils.distributed import is_main, world_size
from custom.utils.identity import digest, identity
from custom.utils.precision import uses_bfloat16

__all__ = ["pair_number", "translate_subjects"]


def pair_number(source: int, target: int, count: int) -> int:
    """Position of a pair of two of a subject's ``count`` modalities among all its ordered pairs."""
    return source * (count - 1) + target - (target > source)


@torch.no_grad()
def translate_subjects(
    subjects: Sequence[Mapping[str, Any]],
    network: LatentTranslator,
    *,
    device: torch.device,
    amp: bool | str = False,
) -> list[dict[str, Any]]:
    """Target-like latents of every pair of every subject, computed where they are not stored yet.

    They are those of whole volumes, as at inference, in half precision; their files lie beside the latents' and are
    named after the identity of MS-SPADE. It pays where each pair is drawn several times in a training.

    Args:
        subjects: from ``encode_subjects``.
        network: its MS-SPADE is used, in evaluation mode.
        device: where to compute.
        amp: compute in bfloat16; ``"auto"`` where that is faster.

    Returns:
        ``subjects`` with ``"target_like"``, ``StoredLatents`` (m · (m − 1), L, h, w, d), ordered as by ``pair_number``.

    Raises:
        OSError: where they cannot be stored.
    """
    network = network.to(device).eval()
    fast = uses_bfloat16(amp, device)
    suffix = f"_to_{digest(identity(network.style_transfer, None, {'amp': fast}))[:16]}.npy"
    files = [Path(s["latents"].path).with_name(Path(s["latents"].path).stem + suffix) for s in subjects]
    missing = [(s, f) for s, f in zip(subjects, files, strict=True) if _stored(f) is None]
    if missing:
        _check_room([s for s, _ in missing], files[0].parent)
    bar = tqdm(missing, "translating latents", unit="subject", disable=not (missing and is_main()))
    with Interruption() as interruption:
        for done, (subject, file) in enumerate(bar, 1):
            with accelerate(network), torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast):
                store_array(file, _translated(subject, network, device).numpy())
            interruption.stop(
                f"while latents were translated. {done} of {len(missing)} subjects are done and kept in {file.parent}: "
                "start again as before to go on."
            )
    return [{**s, "target_like": _stored(f)} for s, f in zip(subjects, files, strict=True)]


def _translated(subject: Mapping[str, Any], network: LatentTranslator, device: torch.device) -> Tensor:
    modality = subject["modality"].to(device)
    rows = []
    for source in range(len(modality)):
        latent = subject["latents"].read(source).unsqueeze(0).to(device)
        for target in (t for t in range(len(modality)) if t != source):  # one at a time, which bounds the memory
            rows.append(network.transfer(latent, modality[target : target + 1]).half().cpu())
    return torch.cat(rows)


def _stored(file: Path) -> StoredLatents | None:
    return find_stored(file, lambda: StoredLatents(file))


def _check_room(subjects: Sequence[Mapping[str, Any]], folder: Path) -> None:
    sizes = [(len(s["modality"]) - 1) * s["latents"].shape.numel() * np.dtype(np.float16).itemsize for s in subjects]
    size = sum(sizes) * world_size()
    check_room(folder, "the target-like latents to compute take about", size, "set --cache_target_like false")
