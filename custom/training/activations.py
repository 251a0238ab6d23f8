"""Gradient checkpointing from outside: the networks stay as TorchScript and their other readers know them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["checkpoint_blocks"]


class _Checkpointed(nn.Module):
    """Put before a block's own class, holds the block's inputs alone for the backward pass."""

    def forward(self, *args: Any) -> Any:
        if not torch.is_grad_enabled():
            return super().forward(*args)
        return checkpoint(super().forward, *args, use_reentrant=False)


def checkpoint_blocks(module: nn.Module) -> None:
    """From now on the blocks of ``module`` hold their inputs and compute the rest again in the backward pass.

    Blocks are the items of its ``nn.ModuleList`` that have several layers. As in ``torch.nn.utils.parametrize`` each
    changes its class for one made from it, so names, state dict and what asks for the class stay as they are.
    """
    for block in list(_blocks(module)):
        kind = type(block)
        if not issubclass(kind, _Checkpointed):
            block.__class__ = type(kind.__name__, (_Checkpointed, kind), {"__module__": kind.__module__})


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
