"""Signs of a training that goes wrong though its losses are finite."""

from __future__ import annotations

import logging

from ignite.engine import Engine, Events
from monai.utils.enums import GanKeys
from torch import Tensor

from custom.utils.distributed import is_main

__all__ = ["Vitals"]

logger = logging.getLogger(__name__)

# of the codes of a codebook in a batch: fewer tell no two tissues apart
FEWEST_CODES = 0.01
LOWEST_PERPLEXITY = 2.0
# of the discriminator, hinge or cross-entropy, which begins near 1: below it the generator learns nothing from it
LOWEST_DISCRIMINATOR_LOSS = 0.02
LARGEST_GROWTH = 10.0  # of the latents' standard deviation over that of the first epoch

ADVICE = {
    "codebook": (
        "epoch %d: a codebook is all but empty: a batch uses %.2g %% of its codes (perplexity %.3g). Lower "
        "learning_rate, or raise the bottleneck's revival_threshold."
    ),
    "discriminator": (
        "epoch %d: the discriminator tells every image apart (loss %.2g), so nothing can be learned from it. Raise "
        "adversarial_start_epoch, or lower the discriminator_optimizer's lr."
    ),
    "scale": (
        "epoch %d: the latents' standard deviation has grown %.3g times since the first epoch, to %.3g. Lower "
        "learning_rate, or raise the objective's quantisation_weight."
    ),
}


class Vitals:
    """Warns, each once a run, of an empty codebook, a discriminator that wins outright, latents that explode.

    It judges the means over an epoch of what ``Objective`` and ``StageTrainer`` report; of several codebooks that is
    the emptiest.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.first_scale: float | None = None
        self.said: set[str] = set()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._judge)

    def _add(self, engine: Engine) -> None:
        for name in ("codebook_usage", "codebook_perplexity", "latent_std", GanKeys.DLOSS):
            if name in engine.state.output["terms"]:
                self.sums[name] = self.sums.get(name, 0.0) + engine.state.output["terms"][name]

    def _judge(self, engine: Engine) -> None:
        means = {name: float(total) / engine.state.epoch_length for name, total in self.sums.items()}
        self.sums = {}
        epoch = engine.state.epoch
        if "codebook_usage" in means:
            usage, perplexity = means["codebook_usage"], means["codebook_perplexity"]
            if usage < FEWEST_CODES or perplexity < LOWEST_PERPLEXITY:
                self._say("codebook", epoch, 100 * usage, perplexity)
        if means.get(GanKeys.DLOSS, 1.0) < LOWEST_DISCRIMINATOR_LOSS:
            self._say("discriminator", epoch, means[GanKeys.DLOSS])
        if "latent_std" in means:
            self.first_scale = means["latent_std"] if self.first_scale is None else self.first_scale
            growth = means["latent_std"] / max(self.first_scale, 1e-12)
            if growth > LARGEST_GROWTH:
                self._say("scale", epoch, growth, means["latent_std"])

    def _say(self, sign: str, *values: float) -> None:
        if sign not in self.said and is_main():
            logger.warning(ADVICE[sign], *values)
        self.said.add(sign)
