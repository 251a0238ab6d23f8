"""Arguments as configs and command lines give them."""

from __future__ import annotations

import re
from numbers import Integral

__all__ = ["as_bool", "whole_number"]


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
