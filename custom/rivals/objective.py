"""The adversarial side of the trainings: between an objective, its discriminator and the trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from custom.rivals.rival import Rival
from custom.training.objectives import Objective

__all__ = ["CRITERIA", "GanStep", "RivalObjective", "judge_pooled", "least_squares", "logistic"]

Samples = dict[str, Any]
# given the samples of a step, moves the discriminator
JudgeFirst = Callable[[Samples], None]


class GanStep(NamedTuple):
    """Result of one objective: weighted ``terms`` of the generators, and ``samples`` for the discriminator."""

    terms: dict[str, Tensor]
    samples: Samples
    measures: Mapping[str, Tensor] = MappingProxyType({})

    @property
    def loss(self) -> Tensor:
        return torch.stack(list(self.terms.values())).sum()


def least_squares(logits: Tensor, label: float) -> Tensor:
    """LSGAN: MONAI's ``PatchAdversarialLoss`` without an activation, for labels of any value."""
    return F.mse_loss(logits.float(), torch.full_like(logits, label, dtype=torch.float32))


def logistic(logits: Tensor, label: float) -> Tensor:
    """Cross-entropy of logits, which autocast computes safely; MONAI's takes the sigmoid first."""
    return F.binary_cross_entropy_with_logits(logits.float(), torch.full_like(logits, label, dtype=torch.float32))


CRITERIA = {"least_squares": least_squares, "logistic": logistic}


def judge_pooled(discriminator: nn.Module, images: Sequence[Tensor], label: float) -> Tensor:
    """Least squares of the logits of images that may differ in size, mean over the images."""
    if len({image.shape for image in images}) == 1:
        return least_squares(discriminator(torch.cat(list(images)))[-1], label)
    return torch.stack([least_squares(discriminator(image)[-1], label) for image in images]).mean()


class RivalObjective(Objective):
    """Base: the losses of one rival's generators and of its discriminator.

    Batch: ``image``, ``label`` (N, 1, *spatial) in [-1, 1], slices or volumes; ``target_modality`` (N,). What takes
    part in the training alone, such as a second generator, is in ``companions``, which a checkpoint keeps beside the
    network.

    Args:
        network: the rival.
        trainable: names of its submodules that train.
        companions: modules by name.
    """

    # whether the discriminator moves between the generation of the images and the generators' losses
    discriminator_first = True

    def __init__(
        self,
        network: Rival,
        trainable: Sequence[str] = ("generator",),
        *,
        companions: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__(cast(Any, network), trainable)
        self.companions = nn.ModuleDict(dict(companions or {}))
        self.epoch = 1

    @property
    def rival(self) -> Rival:
        return cast(Rival, self.network)

    def train(self, mode: bool = True) -> RivalObjective:
        super().train(mode)
        self.companions.train(mode)
        return self

    def trained_parameters(self) -> list[nn.Parameter]:
        parts = [*(self.network.get_submodule(name) for name in self.trainable), self.companions]
        return [p for part in parts for p in part.parameters() if p.requires_grad]

    def fewest_planes(self, batch: Mapping[str, Tensor]) -> int:
        # the fault that this guards against is one of 3D convolutions
        image = batch["image"]
        return image.shape[2] // self.rival.divisor if image.ndim == 5 else image.shape[2]

    def forward(  # type: ignore[override]
        self,
        batch: dict[str, Tensor],
        discriminator: nn.Module | None = None,
        judge_first: JudgeFirst | None = None,
    ) -> GanStep:
        """Losses of a batch.

        Args:
            batch: see the class.
            discriminator: the opponent; without it its terms are left out.
            judge_first: called with the samples once they are generated, to move the discriminator.
        """
        raise NotImplementedError

    def discriminator_loss(self, discriminator: nn.Module, step: GanStep) -> Tensor:  # type: ignore[override]
        return self.judge(discriminator, step.samples)

    def judge(self, discriminator: nn.Module, samples: Samples) -> Tensor:
        """Loss of the discriminator on detached samples."""
        raise NotImplementedError
