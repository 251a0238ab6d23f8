"""Tests of custom.evaluation.bins."""

from __future__ import annotations

import torch

from custom.evaluation.bins import bins_of


def test_equal_parts_and_what_lies_outside():
    values = torch.tensor([[-7.0, -1.0, -0.51], [-0.5, 0.0, 0.49], [0.99, 1.0, 7.0]])
    assert bins_of(values, 4).tolist() == [[0, 0, 0], [1, 2, 2], [3, 3, 3]]
    assert bins_of(values, 4).dtype == torch.int64
