"""Memory and arithmetic of a training step, found by running the step of a config on tensors without content."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from custom.compat import FakeTensorMode, TorchDispatchMode, tree_map_only
from custom.training.objectives import AutoencoderObjective, JointObjective, Objective, with_first_sources
from custom.training.trainer import StageTrainer

__all__ = ["CARDS", "PeakMemory", "prepare_step", "smallest_card", "step_flops", "step_memory"]

MakeBatch = Callable[[ConfigParser, Objective, Sequence[int]], dict[str, Tensor]]

CARDS = (8, 12, 16, 24, 40, 48, 80)
# what a device holds besides tensors: its context and libraries, workspaces of convolutions, gaps between blocks
CARD_RESERVE = 2**30
CARD_SHARE = 0.9

aten = torch.ops.aten
IN_FLOAT32_ON_CUDA = (F.group_norm, F.layer_norm, F.softmax, F.l1_loss, F.mse_loss)


class PeakMemory(TorchDispatchMode):
    """While it is active: bytes of all tensors that exist, and the most there have been.

    Where a value is needed, which a tensor without content does not have, an integer is 0, all else 1 or true.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is aten._local_scalar_dense.default:
            kind = args[0].dtype
            return True if kind == torch.bool else 1.0 if kind.is_floating_point else 0
        if func is aten.bincount.default:
            return args[0].new_zeros(args[2] if len(args) > 2 else (kwargs or {})["minlength"])
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.add, result)
        return result

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            size = storage.nbytes()
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, size)
        return tensor

    def _free(self, size: int) -> None:
        self.live -= size


class _CudaAutocast(TorchFunctionMode):
    """Operations that a GPU's autocast computes in float32 and a CPU's does not."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in IN_FLOAT32_ON_CUDA and torch.is_autocast_enabled("cpu"):
            args = tree_map_only(Tensor, Tensor.float, args)
        if func is Tensor.backward:
            # what checkpoints compute again must be in the same precision; a mode is off within itself
            with self:
                return torch.autograd.backward(args[0])
        return func(*args, **(kwargs or {}))


def step_memory(
    configs: Sequence[str | PathLike], size: Sequence[int], /, *, like_cuda: bool = True, **overrides: Any
) -> int:
    """Bytes of the tensors at the peak of a training step: weights, optimiser, averages, batch, activations, gradients.

    Nothing is computed and next to nothing allocated; the step is the trainer's own, with its discriminator.

    Args:
        configs: a training config and its overlays.
        size: (H, W, D) of the subjects' volumes; crops of the config that are smaller are taken.
        like_cuda: in the precisions of a GPU's autocast.
        overrides: values of the config, such as ``amp=False``.
    """
    with ExitStack() as modes:
        modes.enter_context(FakeTensorMode())
        memory = modes.enter_context(PeakMemory())
        trainer, batch, averages = prepare_step(configs, size, **overrides)
        memory.live += averages
        if like_cuda:
            modes.enter_context(_CudaAutocast())
        for _ in range(2):  # the first makes the optimiser's state
            memory.peak = memory.live
            trainer._iteration(trainer, batch)
        return memory.peak


def step_flops(
    configs: Sequence[str | PathLike], size: Sequence[int], /, *, make_batch: MakeBatch | None = None, **overrides: Any
) -> int:
    """Floating-point operations of a training step: of convolutions and matrix products, forward and backward.

    Of sets of sources, of which a step takes a random number, the mean over these numbers.

    Args:
        configs, size, make_batch, overrides: as for ``prepare_step``.
    """
    found = []
    with FakeTensorMode(), PeakMemory():  # which also gives a value where one is asked for
        trainer, batch, _ = prepare_step(configs, size, make_batch=make_batch, **overrides)
        for some in _by_number_of_sources(batch):
            with FlopCounterMode(display=False, custom_mapping=BACKWARD) as counter:
                trainer._iteration(trainer, some)
            found.append(counter.get_total_flops())
    return round(sum(found) / len(found))


def _by_number_of_sources(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The batches that a step may make of one with sets of sources, (B, S, ...); others are what they are."""
    modality = batch.get("source_modality")
    if modality is None or modality.ndim == 1:
        return [batch]
    return [with_first_sources(batch, count) for count in range(1, modality.shape[1] + 1)]


def _backward_flops(
    grad_shape: Sequence[int],
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    wanted: Sequence[bool],
    out_shape: Any,
) -> int:
    """Of the gradients of a convolution: each takes as much as the convolution itself.

    PyTorch's own formula counts the gradient of the weights as many times as there are groups.
    """
    positions = x_shape if transposed else grad_shape
    return 2 * math.prod(weight_shape) * positions[0] * math.prod(positions[2:]) * sum(wanted[:2])


BACKWARD = {aten.convolution_backward: _backward_flops}


def prepare_step(
    configs: Sequence[str | PathLike], size: Sequence[int], /, *, make_batch: MakeBatch | None = None, **overrides: Any
) -> tuple[StageTrainer, dict[str, Tensor], int]:
    """The trainer of a config, a batch of its shapes, and the bytes of the moving averages that stand beside them.

    Args:
        configs, size, overrides: as for ``step_memory``.
        make_batch: gives a batch for a parsed config, its objective and a size; by default that of the three stages.
    """
    parser = ConfigParser()
    parser.read_config([str(config) for config in configs])
    # modules of tensors without content cannot be moved, and need not be
    here_already = {name: f"$@{name}_def" for name in ("network", "discriminator") if f"{name}_def" in parser.get()}
    alone = {**here_already, "train#handlers": [], "train#dataloader": [0]}
    # the package is imported already; the config's own search for it starts from the program's entry point
    here = {"bundle_root": str(Path(configs[0]).parents[1]), "bundle_code": [], "device": "$torch.device('cpu')"}
    parser.update({**here, **alone, **overrides})
    trainer = parser.get_parsed_content("train#trainer")
    trainer.state.iteration = 2**31  # every part of the step has started
    network = parser.get_parsed_content("network")
    tensors = (*network.parameters(), *network.buffers())
    averages = sum(t.numel() * t.element_size() for t in tensors) if "ema" in parser.get() else 0
    return trainer, (make_batch or _batch)(parser, trainer.objective, size), averages


def _batch(parser: ConfigParser, objective: Objective, size: Sequence[int]) -> dict[str, Tensor]:
    """A batch of the config's shapes; volumes smaller than its crop are taken whole."""

    def tensors(names: Sequence[str], count: int, channels: int, crop: str, divisor: int = 1) -> dict[str, Tensor]:
        shape = [min(a, b // divisor) for a, b in zip(value(crop), size, strict=True)]
        return {name: torch.zeros(count, channels, *shape) for name in names}

    value = parser.get_parsed_content
    if isinstance(objective, AutoencoderObjective):
        return tensors(["image"], value("batch_size") * value("crops_per_subject"), 1, "crop_size")
    if isinstance(objective, JointObjective):
        count = value("subjects_per_batch")
        batch = tensors(["image", "label"], count, 1, "image_crop")
        modality = torch.zeros(count, dtype=torch.long)
    else:
        count = value("subjects_per_batch") * value("pairs_per_subject")
        modality = torch.zeros(count, dtype=torch.long)
        autoencoder = objective.network.autoencoder
        channels, divisor = autoencoder.latent_channels, autoencoder.downsampling
        sources = min(value("max_sources") or len(value("modalities")), len(value("modalities")) - 1)
        batch = tensors(["target"], count, channels, "latent_crop", divisor)
        batch["source"] = batch["target"].unsqueeze(1).repeat(1, sources, 1, 1, 1, 1)
        if objective.network.detail is not None and "detail" in objective.trainable:
            shape = [n * divisor for n in batch["target"].shape[2:]]
            batch |= {
                "source_image": torch.zeros(count, sources, *shape),
                "target_image": torch.zeros(count, 1, *shape),
            }
        return {**batch, "source_modality": torch.zeros(count, sources, dtype=torch.long), "target_modality": modality}
    return {**batch, "source_modality": modality, "target_modality": modality}


def smallest_card(size: int) -> int | None:
    """GB of the smallest common GPU on which a step with so many bytes of tensors fits; None beyond the largest."""
    return next((card for card in CARDS if size <= CARD_SHARE * card * 10**9 - CARD_RESERVE), None)
