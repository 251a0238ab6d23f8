"""Evaluation of every source × target pair of held-out subjects, beside the trivial translations.

One subject gives many predictions (28 for four modalities, besides the baselines). :class:`PairwiseInferer` makes them
one by one, :class:`TranslationEvaluator` scores each on the scan's own grid and lets it go before the next comes;
``custom.reports.handlers`` write the scores, print the tables, draw the figures and show the progress.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from ignite.engine import EventEnum, Events
from monai.data import DataLoader, MetaTensor, decollate_batch
from monai.engines import SupervisedEvaluator
from monai.inferers import Inferer
from monai.transforms import Compose, Invertd

from custom.arguments import as_bool
from custom.baselines import BACKGROUND, IntensityLookup, brain_mask, copy_source
from custom.data.inputs import FAULT_KEY, TolerantDataset
from custom.distributed import own_share
from custom.errors import user_message
from custom.metrics import Reference
from custom.modalities import target_indices
from custom.reports import tables
from custom.reports.tables import CEILING, COPY_SOURCE, FULL_MODEL, LOOKUP, METHODS, SPADE_ONLY, Row

logger = logging.getLogger(__name__)

SUBJECT = "subject"
SEGMENTATION = "seg"


class Prediction(NamedTuple):
    """One prediction for a subject: ``image`` (1, 1, H, W, D) in [-1, 1], background exactly -1.

    ``source == target`` is the autoencoder's reconstruction.
    """

    method: str
    source: str
    target: str
    image: torch.Tensor


class EvaluationEvents(EventEnum):
    """Events between those of MONAI; ``engine.state.prediction`` holds the :class:`Prediction` that was scored."""

    PREDICTION_COMPLETED = "prediction_completed"


class PairwiseInferer(Inferer):
    """All predictions for one subject as a stream: each modality is encoded once, nothing is decoded twice.

    Args:
        modalities: the network's vocabulary, in its order.
        lookup: the fitted intensity lookup; without it, or for pairs it has not seen, that row is left out.
        methods: the rows wanted, of :data:`custom.reports.tables.METHODS`.
        sources: the modalities to translate from; default all.
        seed: of the noise, the same for every pair and subject.
        num_steps: sampler steps; 0 for the network's default.
        amp: whether to compute in bfloat16 where autocast does.

    Raises:
        ValueError: for an unknown method or source.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        *,
        lookup: IntensityLookup | None = None,
        methods: Sequence[str] = METHODS,
        sources: Sequence[str] | None = None,
        seed: int = 0,
        num_steps: int = 0,
        amp: bool | str = False,
    ) -> None:
        unknown = [m for m in methods if m not in METHODS]
        if unknown:
            raise ValueError(f"methods: expected some of {', '.join(METHODS)}; found {', '.join(unknown)}.")
        self.modalities = tuple(modalities)
        self.lookup = lookup
        self.methods = tuple(methods)
        self.sources = tuple(self.modalities[i] for i in target_indices(sources or self.modalities, self.modalities))
        self.seed = seed
        self.num_steps = num_steps
        self.amp = as_bool("amp", amp)
        self._known = set(lookup.pairs) if lookup is not None else set()

    def count(self, names: Sequence[str]) -> int:
        """Number of predictions for a subject that has the modalities ``names``."""
        pairs = [(s, t) for t in names for s in self.sources if s in names and s != t]
        fixed = [m for m in self.methods if m not in (CEILING, LOOKUP)]
        looked_up = sum(pair in self._known for pair in pairs) if LOOKUP in self.methods else 0
        return (CEILING in self.methods) * len(names) + len(pairs) * len(fixed) + looked_up

    @torch.inference_mode()
    def __call__(
        self, inputs: Mapping[str, torch.Tensor], network: torch.nn.Module, *args: Any, **kwargs: Any
    ) -> Iterator[Prediction]:
        """Yield the predictions, target by target.

        Args:
            inputs: preprocessed image (1, 1, H, W, D) of each modality that the subject has.
            network: a :class:`custom.networks.LatentTranslator`.
        """
        names = [m for m in self.modalities if m in inputs]
        images = {m: _plain(inputs[m]) for m in names}
        brains = {m: brain_mask(image) for m, image in images.items()}
        latents: dict[str, torch.Tensor] = {}

        def latent(name: str) -> torch.Tensor:
            if name not in latents:
                with self._autocast(images[name]):
                    latents[name] = network.encode(images[name])
            return latents[name]

        for target in names:
            if CEILING in self.methods:
                yield Prediction(CEILING, target, target, self._decode(network, latent(target), brains[target]))
            for source in (m for m in self.sources if m in images and m != target):
                image, brain = images[source], brains[source]
                if COPY_SOURCE in self.methods:
                    yield Prediction(COPY_SOURCE, source, target, copy_source(image))
                if LOOKUP in self.methods and (source, target) in self._known:
                    looked_up = self.lookup.predict(image, source, target, brain=brain)
                    yield Prediction(LOOKUP, source, target, looked_up)
                if SPADE_ONLY in self.methods or FULL_MODEL in self.methods:
                    for method, z in self._translate(network, latent(source), target):
                        yield Prediction(method, source, target, self._decode(network, z, brain))

    def _translate(
        self, network: torch.nn.Module, latent: torch.Tensor, target: str
    ) -> Iterator[tuple[str, torch.Tensor]]:
        index = torch.tensor([self.modalities.index(target)], device=latent.device)
        with self._autocast(latent):
            target_like = network.transfer(latent, index)
        if SPADE_ONLY in self.methods:
            yield SPADE_ONLY, target_like
        if FULL_MODEL in self.methods:
            noise = network.draw_noise(latent, self.seed)
            with self._autocast(latent):
                sampled = network.sample(latent, target_like, index, noise, self.num_steps)
            yield FULL_MODEL, sampled

    def _decode(self, network: torch.nn.Module, latent: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
        with self._autocast(latent):
            image = network.decode(latent)
        return torch.where(brain, image.float().clamp(-1, 1), BACKGROUND)

    def _autocast(self, tensor: torch.Tensor) -> torch.autocast:
        return torch.autocast(tensor.device.type, dtype=torch.bfloat16, enabled=self.amp)


def prepare_subject(
    batchdata: Mapping[str, Any],
    device: torch.device | str | None = None,
    non_blocking: bool = False,
    **kwargs: Any,
) -> dict[str, Any]:
    """``prepare_batch`` of the evaluator: the one subject of a batch, images (1, 1, H, W, D) on ``device``.

    Raises:
        ValueError: for a batch of several subjects.
    """
    if len(batchdata[SUBJECT]) != 1:
        raise ValueError(
            f"batch: expected one subject, as predictions are scored one by one; found {len(batchdata[SUBJECT])}. "
            "Set the data loader's batch_size to 1."
        )
    return {
        key: value.to(device=device, non_blocking=non_blocking, **kwargs) if torch.is_tensor(value) else value
        for key, value in batchdata.items()
    }


class SubjectDataset(TolerantDataset):
    """Subjects ``{"subject", <modality>..., "seg"?}``; one that cannot be read becomes ``{"subject", "fault"}``.

    In several processes: this one's share of them, in the order of ``own_share``.

    Args:
        data: entries of a data list.
        transform: the preprocessing.
        max_subjects: take no more than so many, the first ones; None for all.
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Compose | None = None, *, max_subjects: int | None = None
    ) -> None:
        super().__init__(own_share(list(data)[:max_subjects]), transform)

    def _transform(self, index: int) -> dict[str, Any]:
        return {SUBJECT: self.data[index][SUBJECT], **super()._transform(index)}


class NativeGrid:
    """Maps images of one subject from the network's crop back to the scan's own grid, background 0.

    Args:
        item: the subject as the preprocessing left it, tensors (1, H, W, D).
        preprocessing: the transforms that made it.
    """

    def __init__(self, item: Mapping[str, torch.Tensor], preprocessing: Compose) -> None:
        self.item = item
        self.preprocessing = preprocessing

    def __call__(self, image: torch.Tensor, key: str) -> torch.Tensor:
        """``image`` (1, H, W, D) on the grid of the scan ``key``, shape (H', W', D')."""
        if not isinstance(self.item[key], MetaTensor) or not self.item[key].applied_operations:
            return _plain(image)[0]
        invert = Invertd(keys="pred", orig_keys=key, transform=self.preprocessing, nearest_interp=False)
        return _plain(invert({"pred": MetaTensor(image), key: self.item[key]})["pred"])[0]


def make_reference(item: Mapping[str, torch.Tensor], target: str, to_native: NativeGrid) -> Reference:
    """Truth, brain and, where the label has a voxel, lesion of one modality of a subject, on the scan's own grid.

    Args:
        item: the subject as the preprocessing left it, tensors (1, H, W, D).
        target: the modality.
        to_native: of the same item.
    """
    masks = {"brain": brain_mask(item[target])}
    label = item.get(SEGMENTATION)
    if label is not None and bool((label > 0).any()):
        masks["lesion"] = label > 0
    native = {name: to_native(mask.float(), target) for name, mask in masks.items()}
    return Reference(to_native(unit(item[target]), target), **native)


class TranslationEvaluator(SupervisedEvaluator):
    """MONAI's evaluator for subjects with several modalities.

    The iteration is its own, because MONAI's holds one prediction and one label: here a subject's predictions come as
    a stream and are scored one at a time, so that memory does not grow with the number of pairs. A subject that fails
    is logged and kept in ``state.failures``, and the others go on.

    After each iteration ``state.output`` is ``{"subject": str, "rows": list[Row]}``; after the run ``state.metrics``
    holds the mean brain scores of the full model.

    Args:
        device, val_data_loader, network: as in MONAI; the data set is a :class:`SubjectDataset`.
        inferer: a :class:`PairwiseInferer`.
        preprocessing: the data set's transforms, which are inverted to reach the scan's own grid.
        kwargs: other arguments of MONAI's evaluator.
    """

    def __init__(
        self,
        device: torch.device | str,
        val_data_loader: Iterable | DataLoader,
        network: torch.nn.Module,
        *,
        inferer: PairwiseInferer,
        preprocessing: Compose,
        prepare_batch: Any = prepare_subject,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            device=torch.device(device),
            val_data_loader=val_data_loader,
            network=network,
            inferer=inferer,
            prepare_batch=prepare_batch,
            decollate=False,
            event_names=[EvaluationEvents],
            **kwargs,
        )
        self.preprocessing = preprocessing
        self.state.prediction = None
        self.state.failures = {}
        self.add_event_handler(Events.STARTED, lambda engine: engine.state.failures.clear())

    def _iteration(self, engine: TranslationEvaluator, batchdata: dict[str, Any]) -> dict[str, Any]:
        subject = str(batchdata[SUBJECT][0])
        rows: list[Row] = []
        try:
            if FAULT_KEY in batchdata:
                raise ValueError(batchdata[FAULT_KEY][0])
            batch = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs)
            engine.state.batch = batch
            with engine.mode(engine.network):
                for prediction, scores in self._scored(engine, batch):
                    rows += tables.rows_of(subject, *prediction[1:3], prediction.method, scores)
                    engine.state.prediction = prediction
                    engine.fire_event(EvaluationEvents.PREDICTION_COMPLETED)
        except Exception as error:
            rows = []
            engine.state.failures[subject] = user_message(error, default="failed")
            logger.warning("%s: left out of the evaluation: %s", subject, engine.state.failures[subject])
            logger.debug("%s: traceback", subject, exc_info=True)
        finally:
            engine.state.prediction = None
        return {SUBJECT: subject, "rows": rows}

    def _scored(self, engine: TranslationEvaluator, batch: Mapping[str, Any]) -> Iterator[tuple[Prediction, dict]]:
        item = decollate_batch({k: v for k, v in batch.items() if torch.is_tensor(v)})[0]
        to_native = NativeGrid(item, engine.preprocessing)
        reference, of_target = None, None
        for prediction in engine.inferer(batch, engine.network):
            target = prediction.target
            if target != of_target:
                reference, of_target = make_reference(item, target, to_native), target
            yield prediction, reference.score(to_native(unit(prediction.image[0]), target))


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor


def unit(image: torch.Tensor) -> torch.Tensor:
    """An image of the network's range [-1, 1] in [0, 1], clipped, as plain float32."""
    return ((_plain(image).float() + 1) / 2).clamp(0, 1)
