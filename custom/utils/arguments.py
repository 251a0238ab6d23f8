"""Arguments as configs and command lines give them."""

from __future__ import annotations

__all__ = ["as_bool"]


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
