"""Bins of preprocessed intensities, for the lookups."""

from __future__ import annotations

import torch

__all__ = ["bins_of"]


def bins_of(values: torch.Tensor, bins: int) -> torch.Tensor:
    """Which of ``bins`` equal parts of [-1, 1] each value lies in, int64 of that shape; the outermost hold the rest."""
    return ((values + 1) * (0.5 * bins)).long().clamp_(0, bins - 1)
