"""Tests of custom.networks.fast.workspace."""

from __future__ import annotations

import torch

from custom.networks.fast.workspace import Workspace, current_workspace, shared_workspace

LIKE = torch.zeros(1)


def test_what_is_given_back_is_used_again() -> None:
    memory = Workspace()
    first = memory.take(LIKE, 4, (2, 3, 5))
    assert (first.shape, first.dtype) == ((1, 4, 2, 3, 5), torch.float32)
    assert first.is_contiguous(memory_format=torch.channels_last_3d)
    second = memory.take(LIKE, 4, (2, 3, 5))
    assert second.data_ptr() != first.data_ptr()
    memory.give(first)
    smaller = memory.take(LIKE, 3, (2, 3, 5), torch.bfloat16)
    assert (smaller.data_ptr(), smaller.dtype) == (first.data_ptr(), torch.bfloat16)


def test_the_smallest_that_fits_is_taken() -> None:
    memory = Workspace()
    sizes = [memory.take(LIKE, channels, (4, 4, 4)) for channels in (8, 2, 4)]
    for tensor in sizes:
        memory.give(tensor)
    assert memory.take(LIKE, 3, (4, 4, 4)).data_ptr() == sizes[2].data_ptr()


def test_written_to_in_any_mode() -> None:
    memory = Workspace()
    with torch.inference_mode():
        memory.give(memory.take(LIKE, 1, (2, 2, 2)).zero_())
    with torch.no_grad():
        assert memory.take(LIKE, 1, (2, 2, 2)).fill_(1).sum() == 8


def test_one_for_all_that_is_within() -> None:
    with shared_workspace():
        assert current_workspace() is current_workspace()
    assert current_workspace() is not current_workspace()
