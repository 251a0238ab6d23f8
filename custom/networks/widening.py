"""Weights of a narrower latent as those of a wider one, to start a training from."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

__all__ = ["latent_channels", "widened"]

# whose input channels are those of the latent
DECODES = "autoencoder.post_quant_conv.conv.weight"
# one size for each code, by codebook
COUNTS = "autoencoder.bottleneck.ema_cluster_size"


def latent_channels(state: Mapping[str, Tensor]) -> int | None:
    """Channels of the latent of a translator's state dict; None where it does not tell."""
    return state[DECODES].shape[1] if DECODES in state else None


def widened(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with the shapes of ``own``, whose latent has more channels; what else differs is left as it is.

    The new channels come behind the present ones, of each latent where several are concatenated, with codebooks of
    their own. Nothing listens to them: what was computed before stays the same. What gives them are the weights of
    ``own``, as they are initialised. Codebooks keep their number of channels, or there is one before and after.
    """
    old, new = latent_channels(state), latent_channels(own)
    if old is None or new is None or old >= new or not _books_stay(state, own, old, new):
        return dict(state)
    return {k: _grown(k, t, own[k], old, new) if _fits(t, own.get(k)) else t for k, t in state.items()}


def _books_stay(state: Mapping[str, Tensor], own: Mapping[str, Tensor], old: int, new: int) -> bool:
    """Whether the present codebooks can stand at the head of those of ``own``, which share the channels equally."""
    if COUNTS not in state or COUNTS not in own:
        return True
    books = [len(tensors[COUNTS]) if tensors[COUNTS].ndim > 1 else 1 for tensors in (state, own)]
    return books == [1, 1] or old * books[1] == new * books[0]


def _fits(tensor: Tensor, own: Tensor | None) -> bool:
    return own is not None and own.shape != tensor.shape and own.ndim >= tensor.ndim > 0


def _grown(name: str, tensor: Tensor, own: Tensor, old: int, new: int) -> Tensor:
    if name == COUNTS:
        return _counts(tensor, own)
    axes = [axis for axis in range(tensor.ndim) if own.shape[axis] != tensor.shape[axis]]
    if own.ndim != tensor.ndim or any(_wider(tensor.shape[a], old, new) != own.shape[a] for a in axes):
        return tensor
    grown = own.clone().to(tensor.dtype)
    view, kept = grown, tensor
    # (..., n · L, ...) → (..., n, L, ...), from the last axis so that the numbers of the others stay
    for axis in reversed(axes):
        view = view.unflatten(axis, (-1, new))
        kept = kept.unflatten(axis, (-1, old))
    places = [axis + 1 + count for count, axis in enumerate(axes)]
    inputs = _inputs(tensor, axes)
    if inputs is not None:  # what gave the present channels does not listen to the new ones
        quiet = view
        for axis, place in zip(axes, places, strict=True):
            quiet = quiet.narrow(place, old, new - old) if axis == inputs else quiet.narrow(place, 0, old)
        quiet.zero_()
    for place in places:
        view = view.narrow(place, 0, old)
    view.copy_(kept)
    return grown


def _inputs(tensor: Tensor, axes: list[int]) -> int | None:
    """The axis of the input channels of a kernel, or of the channels of codes, where it is among ``axes``."""
    axis = 2 if tensor.ndim == 6 else 1  # a kernel for each modality
    return axis if axis in axes else None


def _wider(length: int, old: int, new: int) -> int:
    return length // old * new if length % old == 0 else -1


def _counts(tensor: Tensor, own: Tensor) -> Tensor:
    """The sizes of new codebooks are 0: their codes are drawn from the first batch of a training."""
    books = tensor if tensor.ndim > 1 else tensor[None]
    if own.ndim < 2 or len(books) >= len(own) or books.shape[1] != own.shape[1]:
        return tensor
    grown = own.new_zeros(own.shape, dtype=tensor.dtype)
    grown[: len(books)] = books
    return grown
