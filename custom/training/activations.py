"""Gradient checkpointing from outside: the networks stay as TorchScript and their other readers know them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["checkpoint_blocks"]


class _CheckpointedForward:
    """Stands in for the ``forward`` of ``block``: holds its inputs alone for the backward pass."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, *args: Any) -> Any:
        forward = partial(type(self.block).forward, self.block)
        return checkpoint(forward, *args, use_reentrant=False) if torch.is_grad_enabled() else forward(*args)


def checkpoint_blocks(module: nn.Module) -> None:
    """From now on the blocks of ``module`` hold their inputs and compute the rest again in the backward pass.

    Blocks are the items of its ``nn.ModuleList`` that have several layers. Each gets a forward of its own as an
    instance, so classes, names and state dict stay as they are, and a copy has its own weights.
    """
    for block in _blocks(module):
        block.forward = _CheckpointedForward(block)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for parent in module.modules():
        if isinstance(parent, nn.ModuleList):
            yield from (item for item in parent if _layers(item) > 1)


def _layers(item: nn.Module) -> int:
    """Number of modules with parameters of their own; 0 for what consists of lists of blocks."""
    parts = list(item.modules())
    if any(isinstance(part, nn.ModuleList) for part in parts):
        return 0
    return sum(1 for part in parts if next(part.parameters(recurse=False), None) is not None)
