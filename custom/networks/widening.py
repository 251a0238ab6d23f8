"""Weights of a narrower latent as those of a wider one, to start a training from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Channels", "widened"]

# whose input channels are the coded ones of the latent, and whose output channels are the scalar ones
DECODES = "autoencoder.post_quant_conv.conv.weight"
PROJECTS = "autoencoder.projection.weight"
SCALARS = ("autoencoder.projection.", "autoencoder.expansion.")  # whose axes hold scalar channels alone
AUTOENCODER = "autoencoder."  # of all else in it those that are coded
# one size for each code, by codebook
COUNTS = "autoencoder.bottleneck.ema_cluster_size"


class Channels(NamedTuple):
    """Channels of a latent: those that are coded, and behind them the scalar ones."""

    coded: int
    scalar: int

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Channels | None:
        """Those of a translator's state dict; None where it does not tell."""
        if DECODES not in state:
            return None
        return cls(state[DECODES].shape[1], len(state[PROJECTS]) if PROJECTS in state else 0)


class _Growth(NamedTuple):
    """Where the channels of a latent come to lie in a wider one."""

    old: int
    new: int
    places: list[int]

    @classmethod
    def between(cls, old: Channels, new: Channels) -> _Growth:
        scalars = range(new.coded, new.coded + old.scalar)
        return cls(sum(old), sum(new), [*range(old.coded), *scalars])

    def of_axis(self, length: int, wider: int) -> Tensor:
        """Places along an axis of ``length`` in one that is ``wider``; the axis holds one latent or several."""
        if length == wider:
            return torch.arange(length)
        return torch.tensor([start + place for start in range(0, wider, self.new) for place in self.places])

    def wider(self, length: int) -> int:
        return length // self.old * self.new if self.old and length % self.old == 0 else -1


def widened(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with the shapes of ``own``, whose latent has more channels; what else differs is left as it is.

    New coded channels come behind the present ones, with codebooks of their own, new scalar ones behind all, of each
    latent where several are concatenated. Nothing listens to them: what was computed before stays the same. What gives
    them are the weights of ``own``, as they are initialised. Codebooks keep their number of channels, or there is one
    before and after.
    """
    old, new = Channels.of(state), Channels.of(own)
    if old is None or new is None or not _wider(old, new) or not _books_stay(state, own, old.coded, new.coded):
        return dict(state)
    growths = {
        SCALARS: _Growth.between(old._replace(coded=0), new._replace(coded=0)),
        (AUTOENCODER,): _Growth.between(old._replace(scalar=0), new._replace(scalar=0)),
        ("",): _Growth.between(old, new),
    }
    grown = {}
    for name, tensor in state.items():
        growth = next(growth for beginnings, growth in growths.items() if name.startswith(beginnings))
        grown[name] = _grown(name, tensor, own[name], growth) if _fits(tensor, own.get(name)) else tensor
    return grown


def _wider(old: Channels, new: Channels) -> bool:
    return old != new and old.coded <= new.coded and old.scalar <= new.scalar


def _books_stay(state: Mapping[str, Tensor], own: Mapping[str, Tensor], old: int, new: int) -> bool:
    """Whether the present codebooks can stand at the head of those of ``own``, which share the channels equally."""
    if old == new or COUNTS not in state or COUNTS not in own:
        return True
    books = [len(tensors[COUNTS]) if tensors[COUNTS].ndim > 1 else 1 for tensors in (state, own)]
    return books == [1, 1] or old * books[1] == new * books[0]


def _fits(tensor: Tensor, own: Tensor | None) -> bool:
    return own is not None and own.shape != tensor.shape and own.ndim >= tensor.ndim > 0


def _grown(name: str, tensor: Tensor, own: Tensor, growth: _Growth) -> Tensor:
    if name == COUNTS:
        return _counts(tensor, own)
    axes = [axis for axis in range(tensor.ndim) if own.shape[axis] != tensor.shape[axis]]
    if own.ndim != tensor.ndim or any(growth.wider(tensor.shape[axis]) != own.shape[axis] for axis in axes):
        return tensor
    grown = own.clone().to(tensor.dtype)
    places = [growth.of_axis(*lengths) for lengths in zip(tensor.shape, own.shape, strict=True)]
    inputs = 2 if tensor.ndim == 6 else 1  # of a kernel for each modality, of a kernel, or the channels of codes
    if inputs in axes:  # what gave the present channels does not listen to the new ones
        grown[torch.meshgrid(*_with(places, inputs, own.shape[inputs]), indexing="ij")] = 0
    grown[torch.meshgrid(*places, indexing="ij")] = tensor
    return grown


def _with(places: list[Tensor], axis: int, length: int) -> list[Tensor]:
    """``places`` with all ``length`` of one ``axis``."""
    return [*places[:axis], torch.arange(length), *places[axis + 1 :]]


def _counts(tensor: Tensor, own: Tensor) -> Tensor:
    """The sizes of new codebooks are 0: their codes are drawn from the first batch of a training."""
    books = tensor if tensor.ndim > 1 else tensor[None]
    if own.ndim < 2 or len(books) >= len(own) or books.shape[1] != own.shape[1]:
        return tensor
    grown = own.new_zeros(own.shape, dtype=tensor.dtype)
    grown[: len(books)] = books
    return grown
