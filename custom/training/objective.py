"""What a training stage is to reach: the base of its objectives.

An objective holds the whole ``LatentTranslator`` and trains one part of it; the rest is frozen and stays in evaluation
mode. Its forward pass computes every term, so wrapping it for distributed training synchronises all gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from custom.networks import LatentTranslator

__all__ = ["Objective", "Step"]


class Step(NamedTuple):
    """Result of one objective: named weighted ``terms`` (scalars), and what a discriminator compares.

    ``modality`` (B,) is the target's, where there is one; ``measures`` (scalars) are logged beside the terms and enter
    no loss.
    """

    terms: dict[str, Tensor]
    fake: Tensor
    real: Tensor
    modality: Tensor | None = None
    measures: Mapping[str, Tensor] = MappingProxyType({})

    @property
    def loss(self) -> Tensor:
        return torch.stack(list(self.terms.values())).sum()


class Objective(nn.Module):
    """Base: freezes ``network`` but for the parts named in ``trainable``.

    Its state dict is the network's, so that a federated round exchanges what ``model.pt`` holds.

    Args:
        network: the translator.
        trainable: names of its submodules that this stage trains.
    """

    # whether a trained part has parameters that never get a gradient, which distributed training must know
    has_unused_parameters: bool = False

    def __init__(self, network: LatentTranslator, trainable: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.trainable = tuple(trainable)
        network.requires_grad_(False)
        for name in self.trainable:
            for parameter_name, parameter in network.get_submodule(name).named_parameters():
                # codes moved by averages take no gradient
                averaged = parameter_name.endswith("bottleneck.embedding.weight") and getattr(
                    network.autoencoder.bottleneck, "ema", False
                )
                parameter.requires_grad_(not averaged)

    def train(self, mode: bool = True) -> Objective:
        """Only the trained parts leave evaluation mode: a frozen codebook must not move."""
        super().train(False)
        self.training = mode
        for name in self.trainable:
            self.network.get_submodule(name).train(mode)
        return self

    # the stub of torch has overloads for arguments that nobody gives
    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        return self.network.load_state_dict(state_dict, *args, **kwargs)

    def sound_in_bfloat16(self, batch: Mapping[str, Tensor]) -> bool:
        """Whether gradients of ``batch`` can be computed in bfloat16: on a CPU not where a level has two planes.

        There PyTorch 2.13 takes the gradient of a 3³ kernel from memory that it has not written, which gives numbers of
        any size. The planes are those of the first spatial axis.
        """
        return next(iter(batch.values())).device.type != "cpu" or self.fewest_planes(batch) > 2

    def fewest_planes(self, batch: Mapping[str, Tensor]) -> int:
        """Planes along the first spatial axis of the smallest feature map of what is trained."""
        return batch["image"].shape[2] // self.network.autoencoder.downsampling

    def trained_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.network.parameters() if p.requires_grad]

    def forward(self, batch: dict[str, Tensor], discriminator: nn.Module | None = None) -> Step:
        raise NotImplementedError

    def discriminator_loss(self, discriminator: nn.Module, step: Step) -> Tensor:
        """Loss of the discriminator on the detached results of ``step``."""
        raise NotImplementedError
