"""Evaluation of every source × target pair of held-out subjects, beside the trivial translations.

One subject gives many predictions (28 for four modalities, besides the baselines). ``PairwiseInferer`` makes them one
by one, :class:`TranslationEvaluator` scores each on the scan's own grid and lets it go before the next comes;
``custom.reports`` keeps the results subject by subject and writes tables, figures and the report.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import EventEnum, Events
from monai.data import DataLoader, MetaTensor, decollate_batch
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, Invertd
from monai.utils import ImageMetaKey
from torch import Tensor, nn

from custom.data.features import FEATURES_KEY
from custom.data.foreground import foreground_key
from custom.data.tolerant import FAULT_KEY, TolerantDataset
from custom.evaluation import slices
from custom.evaluation.metrics import Reference
from custom.evaluation.pairwise import PairwiseInferer, Prediction, plain
from custom.evaluation.pictures import TRUTH, Pictures, Stamp
from custom.evaluation.protocols import ContrastEnds, ends_of, on_percentiles
from custom.evaluation.results import ResultStore, SubjectResult
from custom.evaluation.rows import CEILING, EXPECTED_ERROR, FULL_MODEL, number_of_sources, rows_of
from custom.evaluation.segmentation import Segmenter, SegmenterCheck
from custom.evaluation.uncertainty import ErrorMapScores, score_error_map
from custom.inference.likeness import doubts
from custom.utils.distributed import share_of_rank
from custom.utils.errors import user_message

__all__ = [
    "EvaluationEvents",
    "NativeGrid",
    "SubjectDataset",
    "TranslationEvaluator",
    "make_reference",
    "prepare_subject",
    "unit",
]

logger = logging.getLogger(__name__)

SUBJECT = "subject"
SEGMENTATION = "seg"
FINGERPRINT = "fingerprint"
SCROLLED = (FULL_MODEL, CEILING)  # the methods whose volumes the report's viewer holds
EVERY_SECOND = (..., slice(None, None, 2), slice(None, None, 2), slice(None, None, 2))


class EvaluationEvents(EventEnum):
    """Events between those of MONAI; ``engine.state.prediction`` holds the :class:`Prediction` that was scored."""

    PREDICTION_COMPLETED = "prediction_completed"


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

    In several processes: this one's share of them, in the order of ``share_of_rank``.

    Args:
        data: entries of a data list.
        transform: the preprocessing.
        max_subjects: take no more than so many, the first ones; None for all.
        store: where it knows a subject's results already, nothing of the subject is read.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Compose | None = None,
        *,
        max_subjects: int | None = None,
        store: ResultStore | None = None,
    ) -> None:
        super().__init__(share_of_rank(list(data)[:max_subjects]), transform)
        self.store = store

    def _transform(self, index: int) -> dict[str, Any]:
        entry = self.data[index]
        if self.store is None:
            return {SUBJECT: entry[SUBJECT], **super()._transform(index)}
        head = {SUBJECT: entry[SUBJECT], FINGERPRINT: self.store.fingerprint(entry)}
        return head if self.store.known(entry) is not None else {**head, **super()._transform(index)}


class NativeGrid:
    """Maps images of one subject from the network's crop back to the scan's own grid, background 0.

    Args:
        item: the subject as the preprocessing left it, tensors (1, H, W, D).
        preprocessing: the transforms that made it.
    """

    def __init__(self, item: Mapping[str, Tensor], preprocessing: Compose) -> None:
        self.item = item
        self.preprocessing = preprocessing

    def __call__(self, image: Tensor, key: str) -> Tensor:
        """``image`` (1, H, W, D) on the grid of the scan ``key``, shape (H', W', D')."""
        scan = self.item[key]
        if not isinstance(scan, MetaTensor) or not scan.applied_operations:
            return plain(image)[0]
        invert = Invertd(keys="pred", orig_keys=key, transform=self.preprocessing, nearest_interp=False)
        return plain(invert({"pred": MetaTensor(image), key: self.item[key]})["pred"])[0]


def make_reference(item: Mapping[str, Tensor], target: str, to_native: Callable[[Tensor, str], Tensor]) -> Reference:
    """Truth, brain and, where the label has a voxel, lesion of one modality of a subject, on the scan's own grid.

    The truth is on the scale of its percentiles, whatever the preprocessing's is.

    Args:
        item: the subject as the preprocessing left it, tensors (1, H, W, D).
        target: the modality.
        to_native: of the same item.
    """
    masks = {"brain": item[foreground_key(target)]}
    label = item.get(SEGMENTATION)
    if label is not None and bool((label > 0).any()):
        masks["lesion"] = label > 0
    native = {name: to_native(mask.float(), target) for name, mask in masks.items()}
    return Reference(on_percentiles(to_native(unit(item[target]), target), ends_of(item[target])), **native)


class TranslationEvaluator(SupervisedEvaluator):
    """MONAI's evaluator for subjects with several modalities.

    The iteration is its own, because MONAI's holds one prediction and one label: here a subject's predictions come as
    a stream and are scored one at a time, so that memory does not grow with the number of pairs. A subject that fails
    is logged and kept in ``state.failures``, and the others go on.

    After each iteration ``state.output`` is the subject's ``SubjectResult``; after the run ``state.metrics`` holds the
    mean brain scores of the full model.

    Args:
        device, val_data_loader, network: as in MONAI; the data set is a :class:`SubjectDataset`.
        inferer: a ``PairwiseInferer``.
        preprocessing: the data set's transforms, which are inverted to reach the scan's own grid.
        ends: of each contrast, which bring predictions to the scale of the percentiles; None where they are on it.
        store: keeps each subject's results and pictures as soon as they are complete, and has those of earlier runs;
            None to keep nothing.
        segmenter: a segmentation model that is given real and synthetic images in turn.
        kwargs: other arguments of MONAI's evaluator.
    """

    def __init__(
        self,
        device: torch.device | str,
        val_data_loader: Iterable | DataLoader,
        network: nn.Module,
        *,
        inferer: PairwiseInferer,
        preprocessing: Compose,
        ends: ContrastEnds | None = None,
        store: ResultStore | None = None,
        segmenter: Segmenter | None = None,
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
        self.ends = ends
        self.store = store
        self.segmenter = segmenter
        self.state.prediction = None
        self.state.failures = {}
        self.add_event_handler(Events.STARTED, lambda engine: engine.state.failures.clear())

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> Any:
        subject = str(batchdata[SUBJECT][0])
        fingerprint = batchdata.get(FINGERPRINT, [""])[0]
        try:
            if FAULT_KEY in batchdata:
                raise ValueError(batchdata[FAULT_KEY][0])
            if self.store is not None and not any(torch.is_tensor(value) for value in batchdata.values()):
                return self.store.load(subject, fingerprint)  # the data set has left out what is known
            batch = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs)
            engine.state.batch = batch
            with engine.mode(engine.network):
                result, pictures = self._evaluate(engine, batch)
            if self.store is not None:
                self.store.save(result, pictures, fingerprint)
            return result
        except Exception as error:
            engine.state.failures[subject] = user_message(error, default="failed")
            logger.warning("%s: left out of the evaluation: %s", subject, engine.state.failures[subject])
            logger.debug("%s: traceback", subject, exc_info=True)
            return SubjectResult(subject)
        finally:
            engine.state.prediction = None

    def _evaluate(self, engine: Any, batch: Mapping[str, Any]) -> tuple[SubjectResult, Pictures]:
        item = decollate_batch({k: v for k, v in batch.items() if torch.is_tensor(v)})[0]
        names = [m for m in engine.inferer.modalities if m in item]
        to_native = NativeGrid(item, engine.preprocessing)
        notes = [*_notes(item, names, engine.inferer), *_doubts(item, names, engine.network)]
        result = SubjectResult(str(batch[SUBJECT][0]), notes=notes)
        pictures = _pictures(item, names)
        check = self._check(item, names, to_native)
        reference: Reference | None = None
        of_target = None
        for prediction in engine.inferer(batch, engine.network):
            method, source, target = prediction[:3]
            if reference is None or target != of_target:
                reference, of_target = make_reference(item, target, to_native), target
            native = to_native(unit(prediction.image[0]), target)
            # a reconstruction is of an image that is at hand, brightness and all
            ends = ends_of(item[target]) if method == CEILING else self.ends_for(target)
            comparable = on_percentiles(native, ends)
            result.rows += rows_of(result.subject, source, target, method, reference.score_rescaled(comparable))
            alone = number_of_sources(source) == 1
            if prediction.cost is not None and alone:
                result.costs.append([method, source, target, *prediction.cost])
            if prediction.uncertainty is not None:
                result.uncertainty.append([source, target, *_error_map_scores(prediction, item)])
            if check is not None and method == FULL_MODEL and alone:
                result.dice += check.replaced(source, target, native)
            scroll = method in SCROLLED and (alone or number_of_sources(source) == len(names) - 1)
            pictures.add((method, source, target), slices.volume(unit(prediction.image)), scroll=scroll)
            if prediction.uncertainty is not None:
                error = slices.volume(prediction.uncertainty / 2)
                pictures.add((EXPECTED_ERROR, source, target), error, scroll=scroll)
            engine.state.prediction = prediction
            engine.fire_event(EvaluationEvents.PREDICTION_COMPLETED)
        return result, pictures

    def ends_for(self, target: str) -> tuple[float, float] | None:
        """See :class:`custom.evaluation.protocols.ContrastEnds`."""
        return None if self.ends is None else self.ends.of(target)

    def _check(self, item: Mapping[str, Tensor], names: Sequence[str], to_native: NativeGrid) -> SegmenterCheck | None:
        if self.segmenter is None:
            return None
        label, scan = item.get(SEGMENTATION), item[names[0]]
        assert isinstance(scan, MetaTensor)
        return SegmenterCheck(
            self.segmenter,
            {m: to_native(unit(item[m]), m) for m in names},
            None if label is None else to_native((label > 0).float(), names[0]) > 0.5,
            affine=scan.meta["original_affine"],
        )


def _notes(item: Mapping[str, Tensor], names: Sequence[str], inferer: PairwiseInferer) -> list[str]:
    notes = []
    missing = [m for m in inferer.modalities if m not in names]
    if missing:
        notes.append(f"no {', '.join(missing)}: the pairs with it are not scored")
    label = item.get(SEGMENTATION)
    if label is None:
        notes.append("no label: no lesion scores")
    elif not bool((label > 0).any()):
        notes.append("the label has no voxel above 0: no lesion scores")
    return notes


def _doubts(item: Mapping[str, Tensor], names: Sequence[str], network: nn.Module) -> list[str]:
    """In what scans are unlike those of the training, for the report; the log says the numbers of each."""
    found: dict[str, list[str]] = {}
    for name in names:
        meta = getattr(item[name], "meta", {})
        [features] = meta.get(FEATURES_KEY, [None])
        for doubt in doubts(meta.get(ImageMetaKey.FILENAME_OR_OBJ), features, network):
            found.setdefault(doubt.what, []).append(name)
    return [f"unlike the scans of the training: {what} ({', '.join(scans)})" for what, scans in found.items()]


def _pictures(item: Mapping[str, Tensor], names: Sequence[str]) -> Pictures:
    """The truths' pictures, where the lesion is largest or in the middle of the brain."""
    label = item.get(SEGMENTATION)
    lesion = None if label is None else slices.volume(label) > 0
    position = slices.slice_position(slices.volume(item[foreground_key(names[0])]) > 0, lesion)
    pictures = Pictures(Stamp(position, slices.spacing_of(item[names[0]])))
    for name in names:
        pictures.add((TRUTH, name, name), slices.volume(unit(item[name])), scroll=True)
    if lesion is not None and lesion.any():
        pictures.add_lesion(lesion)
    return pictures


def _error_map_scores(prediction: Prediction, item: Mapping[str, Tensor]) -> ErrorMapScores:
    """How well a prediction's error map tells its error, over every second voxel of the brain along each axis."""
    assert prediction.uncertainty is not None
    brain, label = plain(item[foreground_key(prediction.target)]), item.get(SEGMENTATION)
    error = (unit(prediction.image) - unit(item[prediction.target])).abs()
    expected = prediction.uncertainty / 2  # from an image's range of 2 to that of its unit
    volumes = [error, expected, brain > 0, *([] if label is None else [label > 0])]
    return score_error_map(*(plain(v)[EVERY_SECOND].flatten().cpu().numpy() for v in volumes))


def unit(image: Tensor) -> Tensor:
    """An image of the network's range [-1, 1] in [0, 1], clipped, as plain float32."""
    return ((plain(image).float() + 1) / 2).clamp(0, 1)
