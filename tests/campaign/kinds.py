"""Kinds of bad input, each a few lines: what is made, the command line, and the words that its one error must hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rooms import Room

__all__ = ["KINDS", "Kind", "kind"]


class Kind(NamedTuple):
    """A kind of bad input.

    Attributes:
        area: files, dicom, options, configs, weights, datalists or commands.
        name: what is wrong.
        says: regular expressions, each of which the error line holds: the culprit and the remedy.
        make: makes the input in a room and gives the command line.
        leaves: names that the command may leave behind, such as a log, beside what was there before.
        seconds: that it may take.
    """

    area: str
    name: str
    says: tuple[str, ...]
    make: Callable[[Room], list[object]]
    leaves: tuple[str, ...] = ()
    seconds: float = 3.0


KINDS: list[Kind] = []

Make = Callable[[Room], list[object]]


def kind(
    area: str, name: str, *says: str, leaves: tuple[str, ...] = (), seconds: float = 3.0
) -> Callable[[Make], Make]:
    """Adds the function below it to ``KINDS``."""

    def add(make: Make) -> Make:
        KINDS.append(Kind(area, name, says, make, leaves, seconds))
        return make

    return add
