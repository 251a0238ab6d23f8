"""Tests of the comparison that the other tests use."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_tolerance_belongs_to_the_scale_of_what_is_compared(check_batch, scale: float) -> None:
    batch = scale * torch.linspace(0, 1, 22).view(2, 11)

    def changed(part: float):
        return lambda x: x + (part * scale if len(x) == 1 else 0.0)

    check_batch(changed(1e-6), batch)  # as another order of the sums would
    with pytest.raises(AssertionError):
        check_batch(changed(1e-4), batch)


def test_parts_are_compared_too(assert_near) -> None:
    expected = {"a": torch.ones(2), "b": (torch.zeros(2), torch.tensor([3]))}
    assert_near({"a": torch.ones(2) + 1e-6, "b": (torch.zeros(2), torch.tensor([3]))}, expected)
    for found in ({"a": torch.ones(2)}, {"a": torch.ones(2), "b": (torch.zeros(2), torch.tensor([4]))}):
        with pytest.raises(AssertionError):
            assert_near(found, expected)
