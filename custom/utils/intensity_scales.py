"""Names of the intensity scales that weights can be trained on, and their numbers in a state dict."""

from __future__ import annotations

__all__ = ["BRAIN", "INTENSITY_SCALES", "PERCENTILE", "SCALE_KEY", "scale_number"]

PERCENTILE, BRAIN = "percentile", "brain"
SCALE_KEY = "intensity_scale"  # of a state dict
# by number, as ``LatentTranslator.intensity_scale`` holds it: append, never reorder
INTENSITY_SCALES = (PERCENTILE, BRAIN)


def scale_number(name: str) -> int:
    """Number of a scale.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in INTENSITY_SCALES:
        raise ValueError(f"intensity_scale: expected one of {', '.join(INTENSITY_SCALES)}; found {name!r}. Correct it.")
    return INTENSITY_SCALES.index(name)
