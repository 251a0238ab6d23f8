"""The names of MRI contrasts: one vocabulary, one table of aliases.

A *modality* is written in its canonical, lower-case form everywhere in the project (``t1``, ``t1ce``, ``t2``,
``flair``, ``pd``, or a name of the user's own); file names and user input may use any alias below.
"""

from __future__ import annotations

from collections.abc import Sequence

BRATS_MODALITIES: tuple[str, ...] = ("t1", "t1ce", "t2", "flair")
IXI_MODALITIES: tuple[str, ...] = ("t1", "t2", "pd")

MISSING = "missing"  # in the place of targets: whatever a subject lacks

ALIASES: dict[str, tuple[str, ...]] = {
    "t1": ("t1", "t1n", "t1w"),
    "t1ce": ("t1ce", "t1c", "t1gd", "t1post"),
    "t2": ("t2", "t2w"),
    "flair": ("flair", "t2f", "t2flair", "fl"),
    "pd": ("pd", "pdw"),
}

_CANONICAL = {alias: name for name, aliases in ALIASES.items() for alias in aliases}


def canonical(name: str) -> str:
    """Canonical name of a modality: ``"T1Gd"`` → ``"t1ce"``; a name without an alias is only lower-cased."""
    key = str(name).strip().lower()
    return _CANONICAL.get(key, key)


def target_indices(targets: str | Sequence[str], modalities: Sequence[str], name: str = "targets") -> list[int]:
    """Positions of the ``targets`` in the vocabulary ``modalities``, which select the parameters of MS-SPADE.

    Args:
        targets: one modality or several, aliases allowed.
        modalities: the vocabulary that the weights were trained with, in order.
        name: of the argument, for the messages.

    Raises:
        ValueError: for an unknown modality (naming those that exist), an empty list or a repeated target.
    """
    names = [targets] if isinstance(targets, str) or not isinstance(targets, Sequence) else list(targets)
    vocabulary = [canonical(m) for m in modalities]
    wanted = [canonical(n) for n in names]
    unknown = [n for n, c in zip(names, wanted, strict=True) if c not in vocabulary]
    if unknown or not wanted:
        found = ", ".join(map(repr, unknown)) or "none"
        raise ValueError(
            f"{name}: expected one or more of {', '.join(vocabulary)}; found {found}. "
            "Choose from the list, or train with a vocabulary that holds the modality."
        )
    if len(set(wanted)) != len(wanted):
        raise ValueError(f"{name}: each may be named once; found {names}. Remove the repetition.")
    return [vocabulary.index(c) for c in wanted]
