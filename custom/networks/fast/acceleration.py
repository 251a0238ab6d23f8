"""The one door to what makes inference fast: the networks themselves know nothing of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from monai.networks.nets.autoencoderkl import Decoder, Encoder
from torch import Tensor, nn

from custom.networks.conditional_unet import ConditionalUNet
from custom.networks.detail import DetailTransfer
from custom.networks.fast.convolution import convolve, upsample
from custom.networks.fast.slabs import BLOCKS, run_blocks
from custom.networks.fast.workspace import shared_workspace
from custom.networks.ms_spade import (
    MSSPADE,
    MSSPADEBlock,
    PreActivationBlock,
    ReleaseStyleTransfer,
    ResidualStyleTransfer,
    StyleTransfer,
    SwitchableConv3d,
)
from custom.networks.vqgan import VQGAN

__all__ = ["accelerate"]

# within these, parts are swapped; the same layers in anyone else's network are left alone
NETWORKS = (
    VQGAN,
    ConditionalUNet,
    DetailTransfer,
    StyleTransfer,
    ResidualStyleTransfer,
    ReleaseStyleTransfer,
    MSSPADE,
    MSSPADEBlock,
    PreActivationBlock,
)

Forward = Callable[..., Tensor]

_lock = threading.Lock()


@contextmanager
def accelerate(network: object) -> Iterator[None]:
    """Within the block ``network`` computes without gradients faster and in less memory; afterwards it is as it was.

    Encoder and decoder run slab by slab, convolutions by Winograd's method, nearest upsampling and the convolution
    behind it as one; all of the block shares one ``Workspace``. In float32 results are equal within rounding. The
    parts get forwards of their own as instances: classes, weights, hooks and state dicts stay. Where gradients are
    wanted, and in traces and compilations, a part computes as ever even within the block.

    Blocks may be nested, and threads may have the same network accelerated at once: the last to leave restores it.

    Args:
        network: anything that has this project's networks in it; of another module or callable nothing is changed.
    """
    parts = list(_parts(network)) if isinstance(network, nn.Module) else []
    with _lock:
        used = [_swap_in(part, fast) for part, fast in parts]
    try:
        with shared_workspace():
            yield
    finally:
        with _lock:
            for forward in used:
                _swap_out(forward)


class _FastForward:
    """Stands in for the ``forward`` of ``part`` as long as it has users."""

    def __init__(self, part: nn.Module, fast: Forward) -> None:
        self.part, self.fast, self.users = part, fast, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return type(self.part).forward(self.part, *args, **kwargs)
        return self.fast(self.part, *args, **kwargs)


def _swap_in(part: nn.Module, fast: Forward) -> _FastForward:
    forward = vars(part).get("forward")
    if not isinstance(forward, _FastForward):
        forward = part.forward = _FastForward(part, fast)
    forward.users += 1
    return forward


def _swap_out(forward: _FastForward) -> None:
    forward.users -= 1
    if not forward.users and vars(forward.part).get("forward") is forward:
        del forward.part.forward


def _parts(module: nn.Module, *, known: bool = False) -> Iterator[tuple[nn.Module, Forward]]:
    """The parts of ``module`` for which there is a faster forward, with it."""
    if isinstance(module, nn.DataParallel):
        return  # its replicas would share the forward of one device
    known = known or isinstance(module, NETWORKS)
    # a forward that another has put there, such as a checkpointed one, is not this module's to replace
    free = isinstance(vars(module).get("forward", None), _FastForward | None)
    fast = _fast_forward(module) if known and free else None
    if fast is not None:
        yield module, fast
        return
    for child in module.children():
        yield from _parts(child, known=known)


def _fast_forward(module: nn.Module) -> Forward | None:
    if isinstance(module, Encoder | Decoder) and all(isinstance(block, BLOCKS) for block in module.blocks):
        return _run_half
    if isinstance(module, SwitchableConv3d) and module.padding == 1:
        return _convolve_switched
    if isinstance(module, nn.Conv3d) and type(module) is nn.Conv3d and _keeps_size(module):
        return _convolve
    if isinstance(module, nn.Sequential) and [type(m) for m in module] == [nn.Upsample, nn.Conv3d]:
        upsampling, conv = module
        assert isinstance(conv, nn.Conv3d)
        if (upsampling.scale_factor, upsampling.mode) == (2.0, "nearest") and _keeps_size(conv):
            return upsample
    return None


def _keeps_size(conv: nn.Conv3d) -> bool:
    ones = (1, 1, 1)
    plain = conv.groups == 1 and conv.padding_mode == "zeros"
    return plain and conv.kernel_size == (3, 3, 3) and conv.padding == conv.stride == conv.dilation == ones


def _run_half(half: Encoder | Decoder, x: Tensor) -> Tensor:
    return run_blocks([*half.blocks], x)


def _convolve(conv: nn.Conv3d, input: Tensor) -> Tensor:
    return convolve(input, conv.weight, conv.bias)


def _convolve_switched(conv: SwitchableConv3d, x: Tensor, target: Tensor) -> Tensor:
    if len(x) > 1 and x.device.type != "cpu":  # one grouped convolution
        return SwitchableConv3d.forward(conv, x, target)
    items = zip(x.split(1), conv.weight[target], conv.bias[target], strict=True)
    results = [convolve(item, weight, bias) for item, weight, bias in items]  # each with its own kernel
    return results[0] if len(results) == 1 else torch.cat(results)
