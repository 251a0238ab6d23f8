"""Arguments as configs and command lines give them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

__all__ = ["AUTO", "as_bool", "bool_or_auto", "check_path", "is_positive", "nearest", "whole_number"]

AUTO = "auto"
LIKENESS = 0.6  # of difflib: "target" and "targets" have 0.92
# what people type by habit where the name here is another
HABITS: Mapping[str, tuple[str, ...]] = {
    "input": ("image", "root", "checkpoint"),
    "input_dir": ("image", "root"),
    "file": ("image",),
    "scan": ("image",),
    "source": ("image",),
    "modality": ("targets", "modalities"),
    "contrast": ("targets", "modalities"),
    "out": ("output_dir",),
    "output": ("output_dir", "out"),
    "output_path": ("output_dir", "out"),
    "save_dir": ("output_dir", "out"),
    "data": ("dataset_dir", "root"),
    "data_dir": ("dataset_dir", "root"),
    "datalist": ("dataset_dir", "out"),
    "weights": ("ckpt_path",),
    "model": ("ckpt_path", "models"),
    "checkpoint": ("ckpt_path",),
    "steps": ("num_inference_steps",),
    "num_steps": ("num_inference_steps",),
    "samples": ("num_samples",),
    "epochs": ("max_epochs",),
    "lr": ("learning_rate",),
    "gpu": ("device",),
    "cuda": ("device",),
    "format": ("output_format",),
    "overwrite": ("skip_done",),
    "force": ("skip_done",),
    "continue": ("resume",),
    "patch_size": ("crop_size", "latent_crop"),
}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The name among ``known`` that is likely meant by ``name``; None where none is like it."""
    names = sorted(known)
    habit = next((meant for meant in HABITS.get(name.lower().replace("-", "_"), ()) if meant in names), None)
    return habit or next(iter(get_close_matches(name.lower(), names, n=1, cutoff=LIKENESS)), None)


def as_bool(name: str, value: bool | str) -> bool:
    """A switch: ``--amp true`` arrives as text, and the text "false" must not count as true.

    Args:
        name: of the argument, for the message.
        value: a bool, or "true" or "false" in any case.

    Raises:
        ValueError: for anything else.
    """
    known = {"true": True, "false": False}
    if str(value).lower() not in known:
        raise ValueError(f"{name}: expected true or false; found {value!r}. Correct it.")
    return known[str(value).lower()]


def bool_or_auto(name: str, value: bool | str) -> bool | str:
    """A switch that may also be left to the program: true, false or ``"auto"``; arguments and errors as ``as_bool``."""
    if str(value).lower() == AUTO:
        return AUTO
    try:
        return as_bool(name, value)
    except ValueError as error:
        raise ValueError(f"{name}: expected true, false or auto; found {value!r}. Correct it.") from error


def is_positive(value: Any) -> bool:
    """Whether ``value`` is a finite number above 0; text and switches are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < float("inf")


def whole_number(name: str, value: int | str, *, smallest: int, largest: int) -> int:
    """A whole number, which clients may send as text; a switch or 1.5 is none.

    Args:
        name: of the argument, for the message.
        value: a number or its decimal digits.
        smallest: that is allowed.
        largest: that is allowed.

    Raises:
        ValueError: for anything else.
    """
    digits = isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,18}\s*", value)
    if digits or (isinstance(value, Integral) and not isinstance(value, bool)):
        number = int(value)
        if smallest <= number <= largest:
            return number
    raise ValueError(f"{name}: expected a whole number from {smallest} to {largest}; found {value!r}. Correct it.")


def check_path(name: str, value: Any) -> None:
    """Refuse what cannot be a path: a shell's unset variable, or digits, of which a command line makes a number.

    Args:
        name: of the argument, for the message.
        value: a path, or a list of paths.

    Raises:
        ValueError: for an empty path, a number, or anything else.
    """
    expected = f"{name}: expected a file or a folder"
    for path in value if isinstance(value, list | tuple) else [value]:
        if isinstance(path, int | float) and not isinstance(path, bool):
            raise ValueError(
                f"{expected}; found the number {path}, which a command line makes of a name of digits. Write it with "
                f"./ before it: --{name} ./{path}"
            )
        if not isinstance(path, str | os.PathLike):
            raise ValueError(f"{expected}; found {path!r}. Correct it.")
        if not os.fspath(path).strip():
            raise ValueError(f"{expected}; found an empty path. Is it a variable of the shell that is not set?")
