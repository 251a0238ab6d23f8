"""The training engine of all three stages."""

from __future__ import annotations

import math
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys, GanKeys
from torch import Tensor, nn

from custom.arguments import as_bool
from custom.distributed import average_gradients, same_start, seed_rank, synchronized, world_size
from custom.objectives import Objective

__all__ = ["StageTrainer", "prepare_tensors"]


def prepare_tensors(
    batch: dict[str, Any], device: torch.device, non_blocking: bool, **kwargs: Any
) -> dict[str, Tensor]:
    """The tensors of a batch, as plain tensors on ``device``."""
    return {
        key: torch.as_tensor(value).as_subclass(Tensor).to(device, non_blocking=non_blocking)
        for key, value in batch.items()
        if isinstance(value, Tensor)
    }


class StageTrainer(SupervisedTrainer):
    """``SupervisedTrainer`` for an ``Objective`` with named losses and, optionally, a discriminator.

    The iteration is its own because MONAI's takes one prediction and one scalar loss, and ``AdversarialTrainer``
    casts the generator's output, which here is more than a tensor.

    In several processes every one starts from the main process's weights, draws its own crops and noise, and takes the
    same steps, by averaged gradients.

    Args:
        objective: the losses of the stage; trained as the engine's ``network``.
        discriminator, discriminator_optimizer: the opponent and its optimiser.
        adversarial_start: iteration from which the discriminator takes part; before that it is neither trained nor
            asked, so that it does not learn to reject noise.
        clip_norm: gradients are clipped to this norm; 0 switches clipping off.
        amp: compute in bfloat16 where autocast does. It has the range of float32, so gradients need no scaler.
        kwargs: as for ``SupervisedTrainer`` (``device, max_epochs, train_data_loader, optimizer, …``).
    """

    def __init__(
        self,
        *,
        objective: Objective,
        discriminator: nn.Module | None = None,
        discriminator_optimizer: torch.optim.Optimizer | None = None,
        adversarial_start: int = 0,
        clip_norm: float = 1.0,
        amp: bool | str = False,
        **kwargs: Any,
    ) -> None:
        # MONAI's own amp would set up a scaler of float16 gradients
        super().__init__(network=objective, loss_function=None, prepare_batch=prepare_tensors, amp=False, **kwargs)
        objective.to(self.state.device)
        self.objective = objective
        self.network = synchronized(objective, find_unused_parameters=objective.has_unused_parameters)
        self.bfloat16 = as_bool("amp", amp)
        self.discriminator = discriminator
        self.discriminator_optimizer = discriminator_optimizer
        self.adversarial_start = adversarial_start
        self.clip_norm = clip_norm
        if discriminator is not None:
            same_start(discriminator)
        if world_size() > 1:
            # the seed that the run was initialised with, the same on every process
            self.add_event_handler(Events.EPOCH_STARTED, self._seed_rank, torch.initial_seed())

    def _seed_rank(self, engine: StageTrainer, seed: int) -> None:
        seed_rank(seed, engine.state.epoch, engine.state.dataloader.dataset)

    def _iteration(self, engine: StageTrainer, batchdata: dict[str, Any]) -> dict[str, Any]:
        batch = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs)
        active = engine.discriminator if engine.state.iteration > engine.adversarial_start else None
        engine.network.train()
        if active is not None:
            active.train().requires_grad_(False)
        with self._autocast(engine):
            step = engine.network(batch, active)
            loss = step.loss
        _check_finite(loss, step.terms, engine.state.iteration)
        self._update(loss, engine.optimizer, engine.network)
        terms = {name: value.detach() for name, value in {**step.terms, **step.measures}.items()}
        if active is not None and engine.discriminator_optimizer is not None:
            active.requires_grad_(True)
            with self._autocast(engine):
                discriminator_loss = engine.objective.discriminator_loss(active, step)
            self._update(discriminator_loss, engine.discriminator_optimizer, active)
            terms[GanKeys.DLOSS] = discriminator_loss.detach()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        engine.state.output = {CommonKeys.LOSS: loss.detach(), "terms": terms}
        return engine.state.output

    def _autocast(self, engine: StageTrainer) -> torch.autocast:
        return torch.autocast(engine.state.device.type, dtype=torch.bfloat16, enabled=engine.bfloat16)

    def _update(self, loss: Tensor, optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if module is self.discriminator:  # the objective's are averaged on the way
            average_gradients(module)
        parameters = [p for p in module.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self.clip_norm if self.clip_norm > 0 else math.inf)
        if not torch.isfinite(norm):
            raise ValueError(
                f"iteration {self.state.iteration}: expected finite gradients; found a norm of {norm.item()} in the "
                f"{type(module).__name__}. Lower the learning rate or switch amp off."
            )
        optimizer.step()


def _check_finite(loss: Tensor, terms: dict[str, Tensor], iteration: int) -> None:
    if not torch.isfinite(loss):
        values = ", ".join(f"{name} = {value.item():.4g}" for name, value in terms.items())
        raise ValueError(
            f"iteration {iteration}: expected a finite loss; found {values}. Lower the learning rate or switch amp off."
        )
