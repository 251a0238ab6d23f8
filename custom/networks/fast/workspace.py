"""Memory that feature maps and slabs use in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

__all__ = ["Workspace", "current_workspace", "shared_workspace"]


class Workspace:
    """Memory for large tensors of a moment, used again once it is given back.

    On a CPU, memory that is new to the process costs about as much time as the normalisation that fills it.
    """

    def __init__(self) -> None:
        self._free: list[torch.UntypedStorage] = []

    def take(self, like: Tensor, channels: int, spatial: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """A tensor (1, channels, *spatial), its channels last in memory, with values that mean nothing.

        Args:
            like: has the device and, where ``dtype`` is not given, the type.
            channels: C.
            spatial: (h, w, d).
            dtype: of the tensor.
        """
        dtype = dtype or like.dtype
        h, w, d = spatial
        size = channels * h * w * d
        fitting = [storage for storage in self._free if storage.nbytes() >= size * dtype.itemsize]
        strides = (size, 1, channels * w * d, channels * d, channels)
        with torch.inference_mode(False):  # so that it may be written to in any mode
            if fitting:
                storage = min(fitting, key=lambda storage: storage.nbytes())
                self._free = [other for other in self._free if other is not storage]
            else:
                self._free = []  # too small for what comes now, so too small for most that comes later
                storage = torch.empty(size, dtype=dtype, device=like.device).untyped_storage()
            return torch.empty(0, dtype=dtype, device=like.device).set_(storage, 0, (1, channels, h, w, d), strides)

    def give(self, tensor: Tensor) -> None:
        """Take back what ``take`` returned; nothing that lies in its memory may be read after."""
        self._free.append(tensor.untyped_storage())


_shared: ContextVar[Workspace | None] = ContextVar("workspace", default=None)


def current_workspace() -> Workspace:
    """That of the ``shared_workspace`` around the call, or a new one."""
    return _shared.get() or Workspace()


@contextmanager
def shared_workspace() -> Iterator[None]:
    """Share one workspace among all computations within, such as an encoding and several decodings; freed at the end.

    Within another ``shared_workspace`` it is that one.
    """
    token = _shared.set(current_workspace())
    try:
        yield
    finally:
        _shared.reset(token)
