"""Whether to compute in bfloat16: asked for by ``amp``, or chosen by what the device can."""

from __future__ import annotations

import torch

from custom.utils.arguments import AUTO, bool_or_auto

__all__ = ["AUTO", "amp_choice", "checked_device", "fast_bfloat16", "uses_bfloat16"]


def checked_device(name: torch.device | str) -> torch.device:
    """A device that is here.

    Raises:
        ValueError: for anything else.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: expected cpu, cuda or cuda:N; found {name!r}. Correct it.") from error
    number = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= number:
        here = f"{number} CUDA devices" if number else "no CUDA device"
        raise ValueError(f"device: expected one that is here; found {str(name)!r}, and {here}. Use cpu.")
    return device


def fast_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` has instructions for bfloat16; without them it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(has.get("avx512_bf16") or has.get("amx_tile"))


def amp_choice(amp: bool | str) -> bool | str:
    """``amp`` as true, false or ``"auto"``.

    Raises:
        ValueError: for anything else.
    """
    return bool_or_auto("amp", amp)


def uses_bfloat16(amp: bool | str, device: torch.device) -> bool:
    """Whether to compute in bfloat16 on ``device``; ``"auto"``: where that is faster.

    Raises:
        ValueError: for anything but true, false and auto.
    """
    choice = amp_choice(amp)
    return fast_bfloat16(device) if choice == AUTO else bool(choice)
