"""All translations of a subject, and the trivial ones beside them, as a stream of predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from custom.data.foreground import foreground_key
from custom.evaluation.baselines import IntensityLookup, TrainingMean, copy_source
from custom.evaluation.paired_lookup import PairedLookup
from custom.evaluation.rows import (
    CEILING,
    COPY_SOURCE,
    FULL_MODEL,
    LOOKUP,
    METHODS,
    PAIRED_LOOKUP,
    SPADE_DECODED,
    SPADE_ONLY,
    TOGETHER,
    TRAINING_MEAN,
)
from custom.inference.cost import Cost
from custom.inference.inferer import MAX_SAMPLES, MAX_STEPS
from custom.inference.translation import Sampling, Translated, Translation, knows_errors
from custom.utils.arguments import nearest, whole_number
from custom.utils.modalities import target_indices
from custom.utils.precision import amp_choice

__all__ = ["PairwiseInferer", "Prediction", "plain"]


LARGEST_SET = 16


class Prediction(NamedTuple):
    """One prediction for a subject: ``image`` (1, 1, H, W, D) in [-1, 1], background exactly -1.

    ``source == target`` is the autoencoder's reconstruction; of several sources together it is their names with ``+``
    between them. ``cost`` is that of this translation alone, its source's
    encoding included; None for the trivial ones. ``uncertainty`` is the expected absolute error, of the image's
    shape and range, where the network knows it.
    """

    method: str
    source: str
    target: str
    image: Tensor
    cost: Cost | None = None
    uncertainty: Tensor | None = None


class PairwiseInferer(Inferer):
    """All predictions for one subject as a stream: each modality is encoded once, nothing is decoded twice.

    Args:
        modalities: the network's vocabulary, in its order.
        lookup: the fitted intensity lookup; without it, or for pairs it has not seen, that row is left out.
        paired: the fitted lookup over two sources; likewise.
        mean: the training subjects' mean image; without it, or for targets it has not seen, that row is left out.
        methods: the rows wanted, of :data:`custom.evaluation.rows.METHODS`. Without a detail transfer MS-SPADE decoded
            is MS-SPADE only, and left out.
        sources: the modalities to translate from; default all.
        pairs: (source, target) to translate, for a network that was trained for these alone; default all.
        set_sizes: numbers of sources that are also translated together: every set of so many that a subject has beside
            the target. Not where ``pairs`` are given, nor of a network that takes one source alone.
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
        paired: PairedLookup | None = None,
        mean: TrainingMean | None = None,
        methods: Sequence[str] | str = METHODS,
        sources: Sequence[str] | str | None = None,
        pairs: Sequence[Sequence[str]] | None = None,
        set_sizes: Sequence[int] | int = (),
        seed: int = 0,
        num_steps: int = 0,
        num_samples: int = 1,
        amp: bool | str = False,
    ) -> None:
        self.modalities = tuple(modalities)
        self.lookup = lookup
        self.paired = paired
        self.mean = mean
        self.methods = _methods(methods)
        chosen = self.modalities if sources is None else sources
        self.sources = tuple(self.modalities[i] for i in target_indices(chosen, self.modalities, "sources"))
        if not (pairs is None or isinstance(pairs, list | tuple)):
            raise _not_pairs(pairs)
        self.pairs = None if pairs is None else [self._pair(pair) for pair in pairs]
        sizes = [set_sizes] if isinstance(set_sizes, int | str) else set_sizes
        self.set_sizes = [whole_number("set_sizes", size, smallest=2, largest=LARGEST_SET) for size in sizes]
        self.seed = seed
        self.num_steps = whole_number("num_inference_steps", num_steps, smallest=0, largest=MAX_STEPS)
        self.num_samples = whole_number("num_samples", num_samples, smallest=1, largest=MAX_SAMPLES)
        self.amp = amp_choice(amp)
        self._looked_up = set(lookup.pairs) if lookup is not None else set()
        self._averaged = set(mean.seen) if mean is not None else set()

    def _pair(self, pair: Sequence[str]) -> tuple[str, ...]:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or pair[0] == pair[1]:
            raise _not_pairs(pair)
        return tuple(self.modalities[i] for i in target_indices(pair, self.modalities, "scored_pairs"))

    def _wanted(self, source: str, target: str) -> bool:
        return source != target and (self.pairs is None or (source, target) in self.pairs)

    def count(self, names: Sequence[str], network: Any = None) -> int:
        """Number of predictions of ``network`` for a subject that has the modalities ``names``."""
        pairs = [(s, t) for t in names for s in self.sources if s in names and self._wanted(s, t)]
        of_pair = {
            LOOKUP: [pair in self._looked_up for pair in pairs],
            TRAINING_MEAN: [target in self._averaged for _, target in pairs],
        }
        apart = (CEILING, PAIRED_LOOKUP) if _transfers_detail(network) else (CEILING, PAIRED_LOOKUP, SPADE_DECODED)
        methods = [m for m in self.methods if m not in apart]
        counts = [sum(of_pair[m]) if m in of_pair else len(pairs) for m in methods]
        together = sum(len(self._of_set(group, target)) for target in names for group in self._sets(names, target))
        return (CEILING in self.methods) * len(names) + sum(counts) + together

    def _sets(self, names: Sequence[str], target: str) -> Iterator[tuple[str, ...]]:
        """Sets of sources that a subject with the modalities ``names`` has for a target."""
        others = [m for m in self.sources if m in names and m != target]
        for size in self.set_sizes if self.pairs is None else ():
            yield from combinations(others, size)

    def _of_set(self, group: Sequence[str], target: str) -> list[str]:
        """Methods that translate a set of sources."""
        known = {
            LOOKUP: all((source, target) in self._looked_up for source in group),
            PAIRED_LOOKUP: self.paired is not None and len(group) == 2 and self.paired.knows(group, target),
            FULL_MODEL: True,
        }
        return [method for method in self.methods if known.get(method, False)]

    # MONAI's takes one tensor and gives one; a subject has several
    def __call__(  # type: ignore[override]
        self, inputs: Mapping[str, Tensor], network: Any, *args: Any, **kwargs: Any
    ) -> Iterator[Prediction]:
        """Yield the predictions, target by target.

        Args:
            inputs: preprocessed image (1, 1, H, W, D) of each modality that the subject has, and its foreground.
            network: a :class:`custom.networks.LatentTranslator`.
        """
        sources = {m: self._translation(inputs, m, network) for m in self.modalities if m in inputs}
        for target in sources:
            if CEILING in self.methods:
                yield _prediction(CEILING, target, target, sources[target].reconstruct())
            for source in (m for m in self.sources if m in sources and self._wanted(m, target)):
                yield from self._trivial(sources[source], source, target)
                yield from self._translate(sources[source], source, target)
            for group in self._sets([*sources], target) if hasattr(network, "fuse") else ():
                yield from self._translate_set(inputs, group, target, network)

    def _translate_set(
        self, inputs: Mapping[str, Tensor], group: Sequence[str], target: str, network: Any
    ) -> Iterator[Prediction]:
        images = [plain(inputs[name]) for name in group]
        brain = torch.stack([plain(inputs[foreground_key(name)]) > 0 for name in group]).any(dim=0)
        methods, name = self._of_set(group, target), TOGETHER.join(group)
        if LOOKUP in methods:
            assert self.lookup is not None
            alone = [self.lookup.predict(i, s, target, brain=brain) for i, s in zip(images, group, strict=True)]
            yield Prediction(LOOKUP, name, target, torch.stack(alone).mean(dim=0))
        if PAIRED_LOOKUP in methods:
            assert self.paired is not None
            yield Prediction(PAIRED_LOOKUP, name, target, self.paired.predict(images, group, target, brain=brain))
        if FULL_MODEL in methods:
            given = Translation(network, torch.cat(images, dim=1), mask=brain, amp=self.amp, measured=True)
            yield self._full_model(given, name, target)

    def _translation(self, inputs: Mapping[str, Tensor], name: str, network: Any) -> Translation:
        image, brain = plain(inputs[name]), plain(inputs[foreground_key(name)])
        return Translation(network, image, mask=brain, amp=self.amp, measured=True)

    def _trivial(self, given: Translation, source: str, target: str) -> Iterator[Prediction]:
        image, brain = given.image, given.mask
        assert brain is not None
        if COPY_SOURCE in self.methods:
            yield Prediction(COPY_SOURCE, source, target, copy_source(image))
        if self.mean is not None and TRAINING_MEAN in self.methods and target in self._averaged:
            yield Prediction(TRAINING_MEAN, source, target, self.mean.predict(image, target, brain=brain))
        if self.lookup is not None and LOOKUP in self.methods and (source, target) in self._looked_up:
            yield Prediction(LOOKUP, source, target, self.lookup.predict(image, source, target, brain=brain))

    def _translate(self, given: Translation, source: str, target: str) -> Iterator[Prediction]:
        index = self.modalities.index(target)
        if SPADE_DECODED in self.methods and _transfers_detail(given.network):
            yield _prediction(SPADE_DECODED, source, target, given.spade_decoded(index))
        if SPADE_ONLY in self.methods:
            yield _prediction(SPADE_ONLY, source, target, given.spade_only(index))
        if FULL_MODEL in self.methods:
            yield self._full_model(given, source, target)

    def _full_model(self, given: Translation, source: str, target: str) -> Prediction:
        found = given.translate(
            self.modalities.index(target),
            Sampling(self.num_steps),
            seed=self.seed,
            num_samples=self.num_samples,
            uncertainty=knows_errors(given.network),
        )
        return _prediction(FULL_MODEL, source, target, found)


def _prediction(method: str, source: str, target: str, found: Translated) -> Prediction:
    return Prediction(method, source, target, found.image, found.cost, found.uncertainty)


def _methods(wanted: str | Sequence[str]) -> tuple[str, ...]:
    names = [wanted] if isinstance(wanted, str) or not isinstance(wanted, Sequence) else list(wanted)
    unknown = [str(name) for name in names if name not in METHODS]
    if unknown or not names:
        by_lower = {method.lower(): method for method in METHODS}
        meant = by_lower.get(nearest(unknown[0], by_lower) or "") if unknown else None
        raise ValueError(
            f"methods: expected some of {', '.join(METHODS)}; found {', '.join(unknown) or 'none'}. "
            + (f"Did you mean {meant}?" if meant else "Choose from the list.")
        )
    return tuple(names)


def _not_pairs(found: object) -> ValueError:
    return ValueError(
        f"scored_pairs: expected a list of pairs of two contrasts each, a source and a target; found {found!r}. "
        "Correct it, such as [['t1','t2']]."
    )


def _transfers_detail(network: Any) -> bool:
    return getattr(network, "detail", None) is not None


def plain(tensor: Tensor) -> Tensor:
    """The tensor without MONAI's metadata."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
