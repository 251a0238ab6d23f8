"""All translations of a subject, and the trivial ones beside them, as a stream of predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn

from custom.evaluation.baselines import BACKGROUND, IntensityLookup, TrainingMean, brain_mask, copy_source
from custom.evaluation.rows import CEILING, COPY_SOURCE, FULL_MODEL, LOOKUP, METHODS, SPADE_ONLY, TRAINING_MEAN
from custom.inference.cost import Cost, Meter
from custom.inference.inferer import MAX_SAMPLES, MAX_STEPS
from custom.utils.arguments import whole_number
from custom.utils.modalities import target_indices
from custom.utils.precision import amp_choice, uses_bfloat16

__all__ = ["PairwiseInferer", "Prediction", "plain"]


class Prediction(NamedTuple):
    """One prediction for a subject: ``image`` (1, 1, H, W, D) in [-1, 1], background exactly -1.

    ``source == target`` is the autoencoder's reconstruction. ``cost`` is that of this translation alone, its source's
    encoding included; None for the trivial ones. ``spread`` is the standard deviation over several samples, of the
    image's shape and range; None for one.
    """

    method: str
    source: str
    target: str
    image: Tensor
    cost: Cost | None = None
    spread: Tensor | None = None


class _Source(NamedTuple):
    """A source image (1, 1, H, W, D), its brain, its latent and what encoding it cost."""

    image: Tensor
    brain: Tensor
    latent: Tensor
    cost: Cost


class PairwiseInferer(Inferer):
    """All predictions for one subject as a stream: each modality is encoded once, nothing is decoded twice.

    Args:
        modalities: the network's vocabulary, in its order.
        lookup: the fitted intensity lookup; without it, or for pairs it has not seen, that row is left out.
        mean: the training subjects' mean image; without it, or for targets it has not seen, that row is left out.
        methods: the rows wanted, of :data:`custom.evaluation.rows.METHODS`.
        sources: the modalities to translate from; default all.
        seed: of the noise, the same for every pair and subject.
        num_steps: sampler steps; 0 for the network's default.
        num_samples: noise draws of the full model whose images are averaged, as in ``TranslationInferer``.
        amp: whether to compute in bfloat16 where autocast does; ``"auto"`` where that is faster.

    Raises:
        ValueError: for an unknown method or source, or fewer than one sample.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        *,
        lookup: IntensityLookup | None = None,
        mean: TrainingMean | None = None,
        methods: Sequence[str] = METHODS,
        sources: Sequence[str] | None = None,
        seed: int = 0,
        num_steps: int = 0,
        num_samples: int = 1,
        amp: bool | str = False,
    ) -> None:
        unknown = [m for m in methods if m not in METHODS]
        if unknown:
            raise ValueError(f"methods: expected some of {', '.join(METHODS)}; found {', '.join(unknown)}.")
        self.modalities = tuple(modalities)
        self.lookup = lookup
        self.mean = mean
        self.methods = tuple(methods)
        self.sources = tuple(self.modalities[i] for i in target_indices(sources or self.modalities, self.modalities))
        self.seed = seed
        self.num_steps = whole_number("num_steps", num_steps, smallest=0, largest=MAX_STEPS)
        self.num_samples = whole_number("num_samples", num_samples, smallest=1, largest=MAX_SAMPLES)
        self.amp = amp_choice(amp)
        self._looked_up = set(lookup.pairs) if lookup is not None else set()
        self._averaged = set(mean.seen) if mean is not None else set()

    def count(self, names: Sequence[str]) -> int:
        """Number of predictions for a subject that has the modalities ``names``."""
        pairs = [(s, t) for t in names for s in self.sources if s in names and s != t]
        of_pair = {
            LOOKUP: [pair in self._looked_up for pair in pairs],
            TRAINING_MEAN: [target in self._averaged for _, target in pairs],
        }
        methods = [m for m in self.methods if m != CEILING]
        counts = [sum(of_pair[m]) if m in of_pair else len(pairs) for m in methods]
        return (CEILING in self.methods) * len(names) + sum(counts)

    @torch.inference_mode()
    def __call__(
        self, inputs: Mapping[str, Tensor], network: nn.Module, *args: Any, **kwargs: Any
    ) -> Iterator[Prediction]:
        """Yield the predictions, target by target.

        Args:
            inputs: preprocessed image (1, 1, H, W, D) of each modality that the subject has.
            network: a :class:`custom.networks.LatentTranslator`.
        """
        names = [m for m in self.modalities if m in inputs]
        images = {m: plain(inputs[m]) for m in names}
        brains = {m: brain_mask(image) for m, image in images.items()}
        encoded: dict[str, _Source] = {}
        meter = Meter(network, images[names[0]].device) if names else None

        def encoding(name: str) -> _Source:
            if name not in encoded:
                with meter(), self._autocast(images[name]):
                    latent = network.encode(images[name])
                encoded[name] = _Source(images[name], brains[name], latent, meter.last)
            return encoded[name]

        for target in names:
            if CEILING in self.methods:
                own = encoding(target)
                with meter():
                    image = self._shown(lambda z=own.latent: network.decode(z), own.brain)
                yield Prediction(CEILING, target, target, image, own.cost.plus(meter.last))
            for source in (m for m in self.sources if m in images and m != target):
                yield from self._trivial(images[source], brains[source], source, target)
                if SPADE_ONLY in self.methods or FULL_MODEL in self.methods:
                    yield from self._translate(network, meter, encoding(source), (source, target))

    def _trivial(self, image: Tensor, brain: Tensor, source: str, target: str) -> Iterator[Prediction]:
        if COPY_SOURCE in self.methods:
            yield Prediction(COPY_SOURCE, source, target, copy_source(image))
        if TRAINING_MEAN in self.methods and target in self._averaged:
            yield Prediction(TRAINING_MEAN, source, target, self.mean.predict(image, target, brain=brain))
        if LOOKUP in self.methods and (source, target) in self._looked_up:
            yield Prediction(LOOKUP, source, target, self.lookup.predict(image, source, target, brain=brain))

    def _translate(
        self, network: nn.Module, meter: Meter, source: _Source, pair: tuple[str, str]
    ) -> Iterator[Prediction]:
        index = torch.tensor([self.modalities.index(pair[1])], device=source.latent.device)
        with meter(), self._autocast(source.latent):
            target_like = network.transfer(source.latent, index)
        cost = source.cost.plus(meter.last)
        if SPADE_ONLY in self.methods:
            with meter():
                image = self._shown(lambda: network.render(target_like, source.image, index), source.brain)
            yield Prediction(SPADE_ONLY, *pair, image, cost.plus(meter.last))
        if FULL_MODEL in self.methods:
            with meter():
                image, spread = self._sample(network, source, target_like, index)
            yield Prediction(FULL_MODEL, *pair, image, cost.plus(meter.last), spread)

    def _sample(
        self, network: nn.Module, source: _Source, target_like: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Mean and standard deviation of the samples' images, by Welford's running sums."""
        mean, squares = torch.zeros_like(source.brain, dtype=torch.float32), None
        for k in range(self.num_samples):
            noise = network.draw_noise(source.latent, self.seed + k)
            with self._autocast(source.latent):
                sampled = network.sample(source.latent, target_like, index, noise, self.num_steps)
            image = self._shown(lambda z=sampled: network.render(z, source.image, index), source.brain)
            before = image - mean
            mean = mean + before / (k + 1)
            squares = before * (image - mean) + (0 if squares is None else squares)
        if self.num_samples == 1:
            return image, None
        return mean, (squares / (self.num_samples - 1)).clamp_(min=0).sqrt_()

    def _shown(self, compute: Callable[[], Tensor], brain: Tensor) -> Tensor:
        with self._autocast(brain):
            image = compute()
        return torch.where(brain, image.float().clamp(-1, 1), BACKGROUND)

    def _autocast(self, tensor: Tensor) -> torch.autocast:
        return torch.autocast(tensor.device.type, dtype=torch.bfloat16, enabled=uses_bfloat16(self.amp, tensor.device))


def plain(tensor: Tensor) -> Tensor:
    """The tensor without MONAI's metadata."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
