"""The training engine of the rivals, and what their configs name beside it."""

from __future__ import annotations

import os
from typing import Any, TypeVar, cast

import torch
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys, GanKeys
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from custom.networks.weights import name_of_card, read_card, read_weights
from custom.rivals.objective import RivalObjective, Samples
from custom.rivals.rival import Rival
from custom.training.trainer import StageTrainer

__all__ = ["RivalTrainer", "initialized", "linear_decay"]

Network = TypeVar("Network", bound=Rival)


def linear_decay(optimizer: torch.optim.Optimizer, epochs: int, share: float) -> LambdaLR:
    """A rate that is constant, then falls linearly towards 0 over the last ``share`` of the ``epochs``."""
    falling = round(epochs * share)
    constant = epochs - falling
    return LambdaLR(optimizer, lambda epoch: 1.0 - max(0, epoch + 1 - constant) / (falling + 1))


def initialized(network: Network, path: str | os.PathLike[str] | None) -> Network:
    """``network`` with the weights of an earlier training of the same method; the parts that are not there stay.

    So the second published stage of ResViT starts from its first one, which has no transformers.

    Args:
        network: the rival.
        path: of the weights; None leaves the network as it is.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if the weights are of another method, or do not fit.
    """
    if path is None:
        return network
    state = read_weights(path)
    own, found = read_card(network.state_dict()), read_card(state)
    assert own is not None
    if found is None or {**found, "arguments": None} != {**own, "arguments": None}:
        raise ValueError(f"{path}: expected weights of {own['method']}; found those of {name_of_card(found)}.")
    kept = {name: tensor for name, tensor in state.items() if name != "card"}
    known = network.state_dict()
    wrong = [name for name, tensor in kept.items() if name not in known or known[name].shape != tensor.shape]
    if wrong:
        raise ValueError(
            f"{path}: expected weights of {name_of_card(own)}; found {wrong[0]}, which does not fit it, in those of "
            f"{name_of_card(found)}. Use the size and the pairs that they were trained with."
        )
    network.load_state_dict(kept, strict=False)
    return network


class RivalTrainer(StageTrainer):
    """``StageTrainer`` for objectives whose discriminator moves before the generators, on the same images.

    Where a batch is accumulated in parts, both move at its end, as in the other stages.

    Args:
        kwargs: as for ``StageTrainer``; discriminator and its optimiser are needed.
    """

    def _iteration(self, engine: StageTrainer, batchdata: dict[str, Any]) -> dict[str, Any]:
        objective = cast(RivalObjective, self.objective)
        objective.epoch = max(1, engine.state.epoch)
        if not objective.discriminator_first or self.accumulation_steps > 1:
            return super()._iteration(engine, batchdata)
        assert self.discriminator is not None
        assert engine.optimizer is not None
        batch = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs)
        engine.network.train()
        self.discriminator.train()
        self.discriminator.requires_grad_(False)
        engine.optimizer.zero_grad(set_to_none=True)
        judged: list[Tensor] = []
        with self._autocast(engine, batch):
            step = engine.network(batch, self.discriminator, lambda samples: judged.append(self._judge(samples)))
        loss = step.loss
        self.check_finite(loss, step.terms)
        loss.backward()
        self._step(engine.optimizer, engine.network)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        found = {**step.terms, **step.measures, GanKeys.DLOSS: judged[0]}
        terms = {name: value.detach() for name, value in found.items()}
        engine.state.output = {CommonKeys.LOSS: loss.detach(), "terms": terms}
        return engine.state.output

    def _judge(self, samples: Samples) -> Tensor:
        """Move the discriminator; gives its loss."""
        discriminator, optimizer = self.discriminator, self.discriminator_optimizer
        assert discriminator is not None
        assert optimizer is not None
        discriminator.requires_grad_(True)
        optimizer.zero_grad(set_to_none=True)
        loss = cast(RivalObjective, self.objective).judge(discriminator, samples)
        loss.backward()
        self._step(optimizer, discriminator)
        optimizer.zero_grad(set_to_none=True)  # what it shares with a generator is no part of the generator's step
        discriminator.requires_grad_(False)
        torch.clear_autocast_cache()  # it holds the weights as they were
        return loss.detach()
