"""One translation, from a source image to the target's masked image: the one place that puts its steps together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from custom.data.foreground import BACKGROUND
from custom.inference.cost import Cost, Meter
from custom.networks.diffusion import draw_noise
from custom.networks.fast import accelerate
from custom.utils.precision import uses_bfloat16

__all__ = ["Latents", "Sampling", "Translated", "Translation"]

STEPS = ("encode", "transfer", "sample", "render")

Latents = dict[Hashable, tuple[Tensor, Cost]]


@dataclass(frozen=True)
class Sampling:
    """How the target's latent is sampled; the network's own setting where one is not given.

    Args:
        num_steps: sampler steps; 0 for the network's default.
        eta, strength, requantize: as for ``LatentTranslator``.

    Raises:
        ValueError: for a negative number of steps, or a strength outside (0, 1].
    """

    num_steps: int = 0
    eta: float | None = None
    strength: float | None = None
    requantize: bool | None = None

    def __post_init__(self) -> None:
        if self.num_steps < 0:
            raise ValueError(f"num_steps: expected 0 or more; found {self.num_steps}.")
        if self.strength is not None and not 0.0 < self.strength <= 1.0:
            raise ValueError(f"strength: expected a number in (0, 1]; found {self.strength}.")

    def given(self) -> dict[str, int | float | bool]:
        """The settings that are not the network's own, by name, as ``LatentTranslator.sample`` takes them."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Translated(NamedTuple):
    """A result: ``image`` (B, 1, H, W, D), float32 in [-1, 1], outside the mask -1.

    ``cost`` is that of this image from the source on, where costs are measured. ``spread`` is the standard deviation
    over several samples, of the image's shape, outside the mask 0, where it was asked for.
    """

    image: Tensor
    cost: Cost | None = None
    spread: Tensor | None = None


class Translation:
    """All that a network makes of one source: the source is encoded once, and brought to each target's style once.

    Nothing is computed before it is asked for, nothing of the network is changed, and no gradients are kept.

    Args:
        network: a ``LatentTranslator``, eager or scripted; or any callable ``(image, target) -> image``, such as an
            exported one, for :meth:`translate` alone.
        image: sources (B, ..., H, W, D) in [-1, 1], H, W, D divisible by the network's ``spatial_divisor``.
        mask: foreground of the source, boolean, broadcastable to (B, 1, H, W, D); the result is background outside it.
            It must come from the source alone, as that of the target would give away the truth.
        amp: compute in bfloat16 where autocast does; ``"auto"`` where that is faster.
        measured: measure what each result costs.
        latents: where the latents of source and style are kept, by the modules that made them; given for networks that
            share such modules and translate the same image.
        keep_samples: keep each sample's image, for further means over some of the same samples.
    """

    def __init__(
        self,
        network: Any,
        image: Tensor,
        *,
        mask: Tensor | None = None,
        amp: bool | str = False,
        measured: bool = False,
        latents: Latents | None = None,
        keep_samples: bool = False,
    ) -> None:
        self.network = network
        self.image = image
        self.mask = mask
        self.staged = all(hasattr(network, step) for step in STEPS)
        self._bfloat16 = uses_bfloat16(amp, image.device)
        self._meter = Meter(network, image.device) if measured else None
        self._latents: Latents = {} if latents is None else latents
        self._samples: Latents | None = {} if keep_samples else None

    def reconstruct(self) -> Translated:
        """The source's own latent decoded: what the autoencoder can reach."""
        latent, encoding = self._encoded()
        image, decoding = self._run(lambda: self.network.decode(latent).float())
        return self._result(image, encoding.plus(decoding))

    def spade_only(self, target: int | Tensor) -> Translated:
        """The target-like latent rendered: the translation by MS-SPADE alone; ``target`` as in :meth:`translate`."""
        index = self._index(target)
        latent, before = self._styled(index)
        image, rendering = self._run(lambda: self.network.render(latent, self.image, index).float())
        return self._result(image, before.plus(rendering))

    def translate(
        self,
        target: int | Tensor,
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        num_samples: int = 1,
        spread: bool = False,
    ) -> Translated:
        """The whole translation: the mean over samples.

        Args:
            target: index of a modality, or one for each item (B,).
            sampling: settings of the sampler; the network's own where not given.
            seed: of the noise, which is the same for every item, target and device; the k-th sample's is ``seed + k``.
            num_samples: noise draws whose images are averaged.
            spread: give the samples' standard deviation too (Welford's running sums), if there are several.

        Raises:
            ValueError: for settings of the sampler where the network is a plain callable, whose sampler is fixed.
        """
        index, sampling = self._index(target), sampling or Sampling()
        total: Tensor | None = None
        squares: Tensor | None = None
        cost = self._styled(index)[1] if self.staged else Cost()
        for k in range(num_samples):
            image, spent = self._sample(index, sampling, seed + k)
            if spread and total is not None:
                before = image - total / k
                squares = before * (image - (total + image) / (k + 1)) + (0 if squares is None else squares)
            total = image if total is None else total + image
            cost = cost.plus(spent)
        assert total is not None  # there is at least one sample
        variance = None if squares is None else squares / (num_samples - 1)
        return self._result(total / num_samples, cost, variance)

    def _index(self, target: int | Tensor) -> Tensor:
        if isinstance(target, Tensor):
            return target
        return torch.full((self.image.shape[0],), target, dtype=torch.long, device=self.image.device)

    def _encoded(self) -> tuple[Tensor, Cost]:
        key = _module(self.network, "autoencoder")
        return self._once(self._latents, key, lambda: self.network.encode(self.image))

    def _styled(self, index: Tensor) -> tuple[Tensor, Cost]:
        """The target-like latent, and what it cost from the source on."""
        latent, encoding = self._encoded()
        key = (_module(self.network, "autoencoder"), _module(self.network, "style_transfer"), *index.tolist())
        target_like, transferring = self._once(self._latents, key, lambda: self.network.transfer(latent, index))
        return target_like, encoding.plus(transferring)

    def _sample(self, index: Tensor, sampling: Sampling, seed: int) -> tuple[Tensor, Cost]:
        if not self.staged:
            return self._run(lambda: self._plain_sample(index, sampling, seed))
        latent, target_like = self._encoded()[0], self._styled(index)[0]

        def compute() -> Tensor:
            noise = draw_noise(latent, seed)
            sampled = self.network.sample(latent, target_like, index, noise, **sampling.given())
            return self.network.render(sampled, self.image, index).float()

        if self._samples is None:
            return self._run(compute)
        return self._once(self._samples, (sampling, seed, *index.tolist()), compute)

    def _plain_sample(self, index: Tensor, sampling: Sampling, seed: int) -> Tensor:
        if sampling != Sampling():
            raise ValueError(
                f"num_inference_steps: the network ({type(self.network).__name__}) has a fixed number of steps and a "
                f"fixed sampler; found {sampling}. Leave it out."
            )
        with _seeded(seed, self.image.device):
            return self.network(self.image, index).float()

    def _once(self, kept: Latents, key: Hashable, compute: Callable[[], Tensor]) -> tuple[Tensor, Cost]:
        if key not in kept:
            kept[key] = self._run(compute)
        return kept[key]

    def _run(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Cost]:
        """The one way in which the network is run."""
        autocast = torch.autocast(self.image.device.type, dtype=torch.bfloat16, enabled=self._bfloat16)
        with torch.no_grad(), autocast, accelerate(self.network), self._meter() if self._meter else nullcontext():
            value = compute()
        return value, self._meter.last if self._meter else Cost()

    def _result(self, image: Tensor, cost: Cost, variance: Tensor | None = None) -> Translated:
        image, spread = image.clamp(-1.0, 1.0), None if variance is None else variance.clamp(min=0).sqrt()
        if self.mask is not None:
            image = torch.where(self.mask, image, BACKGROUND)
            spread = None if spread is None else torch.where(self.mask, spread, 0.0)
        return Translated(image, cost if self._meter else None, spread)


def _module(network: Callable, name: str) -> Hashable:
    """Identify the part ``name`` of a network, or the network where it has no such part."""
    return name, id(getattr(network, name, network))


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators for what a network draws by itself, and leave them as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.random.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        yield
