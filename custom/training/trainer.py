"""The training engine of all three stages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NoReturn

import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys, GanKeys
from torch import Tensor, nn

from custom.data.layouts import SUBJECT_KEY
from custom.training.activations import checkpoint_blocks
from custom.training.interruption import Interruption
from custom.training.objectives import Objective, Step
from custom.training.vitals import Vitals
from custom.utils.arguments import as_bool
from custom.utils.distributed import average_gradients, same_start, seed_rank, synchronized, unsynchronized, world_size
from custom.utils.precision import uses_bfloat16

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

    Gradients can be accumulated over parts of a batch. Other than MONAI's ``SupervisedTrainer``, where an iteration is
    a part, here it stays a step of the optimiser with the whole batch: learning-rate schedules, moving averages and
    logs, which count iterations, are those of the larger batch too.

    SIGTERM and SIGINT (Ctrl-C) end a run at the next step, see ``custom.training.interruption``.

    Args:
        objective: the losses of the stage; trained as the engine's ``network``.
        discriminator, discriminator_optimizer: the opponent and its optimiser.
        adversarial_start: iteration from which the discriminator takes part; before that it is neither trained nor
            asked, so that it does not learn to reject noise.
        clip_norm: gradients are clipped to this norm; 0 switches clipping off.
        accumulation_steps: parts that each batch is computed in, one after the other, so that only one part's
            activations are held. The step is that of the whole batch, except that a codebook in training moves with
            every part. A batch of fewer items is computed item by item.
        gradient_checkpointing: hold the inputs of the network's blocks alone and compute the rest again where
            gradients need it: less memory, about a third more time, the same gradients.
        amp: compute in bfloat16 where autocast does; ``"auto"`` where that is faster. It has the range of float32, so
            gradients need no scaler. A batch that a CPU cannot compute the gradients of, see
            ``Objective.sound_in_bfloat16``, is computed in float32 all the same.
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
        accumulation_steps: int = 1,
        gradient_checkpointing: bool | str = False,
        amp: bool | str = False,
        **kwargs: Any,
    ) -> None:
        if accumulation_steps < 1:
            raise ValueError(f"accumulation_steps: expected 1 or more, found {accumulation_steps}. Correct it.")
        # MONAI's own amp would set up a scaler of float16 gradients
        super().__init__(network=objective, loss_function=objective, prepare_batch=prepare_tensors, amp=False, **kwargs)
        if any(tensor.device != self.state.device for tensor in (*objective.parameters(), *objective.buffers())):
            objective.to(self.state.device)
        self.objective = objective
        self.accumulation_steps = accumulation_steps
        if as_bool("gradient_checkpointing", gradient_checkpointing):
            checkpoint_blocks(objective)
        self.network = synchronized(objective, find_unused_parameters=objective.has_unused_parameters)
        self.bfloat16 = uses_bfloat16(amp, self.state.device)
        self.discriminator = discriminator
        self.discriminator_optimizer = discriminator_optimizer
        self.adversarial_start = adversarial_start
        self.clip_norm = clip_norm
        if discriminator is not None:
            same_start(discriminator)
        self.interruption = Interruption()
        Vitals().attach(self)
        if world_size() > 1:
            # the seed that the run was initialised with, the same on every process
            self.add_event_handler(Events.EPOCH_STARTED, self._seed_rank, torch.initial_seed())

    def run(self) -> None:
        with self.interruption:
            super().run()

    def _seed_rank(self, engine: StageTrainer, seed: int) -> None:
        seed_rank(seed, engine.state.epoch, engine.state.dataloader.dataset)

    def _iteration(self, engine: StageTrainer, batchdata: dict[str, Any]) -> dict[str, Any]:
        batch = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs)
        active = engine.discriminator if engine.state.iteration > engine.adversarial_start else None
        judge = None if active is None else engine.discriminator_optimizer
        engine.network.train()
        assert engine.optimizer is not None
        engine.optimizer.zero_grad(set_to_none=True)
        if active is not None:
            active.train()
        if judge is not None:
            judge.zero_grad(set_to_none=True)
        total: Tensor | float = 0.0
        terms: dict[str, Tensor] = {}
        for part, share, last in _parts(batch, engine.accumulation_steps):
            step, loss = self._backward(engine, part, active, share, last)
            found = {**step.terms, **step.measures}
            if active is not None and judge is not None:
                found[GanKeys.DLOSS] = self._backward_discriminator(engine, part, active, step, share)
            terms = {name: terms.get(name, 0.0) + share * value.detach() for name, value in found.items()}
            total = total + share * loss
        self._step(engine.optimizer, engine.network)
        if active is not None and judge is not None:
            self._step(judge, active)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        engine.state.output = {CommonKeys.LOSS: total, "terms": terms}
        return engine.state.output

    def _backward(
        self, engine: StageTrainer, part: dict[str, Tensor], active: nn.Module | None, share: float, last: bool
    ) -> tuple[Step, Tensor]:
        """Apply the objective to a part of the batch, add its share of the gradients; gives step and loss."""
        if active is not None:
            active.requires_grad_(False)
        with nullcontext() if last else unsynchronized(engine.network):
            with self._autocast(engine, part):
                step = engine.network(part, active)
                loss = step.loss
            self.check_finite(loss, step.terms)
            (share * loss).backward()
        return step, loss.detach()

    def _backward_discriminator(
        self, engine: StageTrainer, part: dict[str, Tensor], active: nn.Module, step: Step, share: float
    ) -> Tensor:
        active.requires_grad_(True)
        with self._autocast(engine, part):
            loss = engine.objective.discriminator_loss(active, step)
        (share * loss).backward()
        return loss

    def _autocast(self, engine: StageTrainer, part: dict[str, Tensor]) -> torch.autocast:
        enabled = engine.bfloat16 and engine.objective.sound_in_bfloat16(part)
        return torch.autocast(engine.state.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _step(self, optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
        if module is self.discriminator:  # the objective's are averaged on the way
            average_gradients(module)
        parameters = [p for p in module.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, self.clip_norm if self.clip_norm > 0 else math.inf)
        if not torch.isfinite(norm):
            self._stop(f"expected finite gradients; found a norm of {norm.item()} in the {type(module).__name__}")
        optimizer.step()

    def check_finite(self, loss: Tensor, terms: dict[str, Tensor]) -> None:
        """Raise a ``ValueError`` that names the ``terms`` of a loss that is not finite, and the subjects."""
        if not torch.isfinite(loss):
            values = ", ".join(f"{name} = {value.item():.4g}" for name, value in terms.items())
            self._stop(f"expected a finite loss; found {values}")

    def _stop(self, found: str) -> NoReturn:
        """End a training that has diverged: where, with what data, and from where it can go on."""
        batch = self.state.batch
        subjects = dict.fromkeys(map(str, batch.get(SUBJECT_KEY, ()))) if isinstance(batch, Mapping) else {}
        place = f"iteration {self.state.iteration}" + (f", subjects {', '.join(subjects)}" if subjects else "")
        checkpoint = getattr(self.state, "checkpoint", None)
        way_on = (
            f"go on from {checkpoint} with --resume true" if checkpoint else "start again: there is no checkpoint yet"
        )
        raise ValueError(f"{place}: {found}. Lower the learning rate or switch amp off, and {way_on}.")


def _parts(batch: dict[str, Tensor], number: int) -> Iterator[tuple[dict[str, Tensor], float, bool]]:
    """At most ``number`` parts of a batch, evenly cut along the first axis, each with its share of the items.

    The third is whether it is the last.
    """
    size = len(next(iter(batch.values())))
    number = min(number, size)
    cut = {key: value.tensor_split(number) for key, value in batch.items()}
    for i in range(number):
        part = {key: pieces[i] for key, pieces in cut.items()}
        yield part, len(next(iter(part.values()))) / size, i == number - 1
