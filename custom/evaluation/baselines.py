"""Trivial translations, shown beside every model: one that does not beat them has learned nothing spatial.

All of them take and give preprocessed images (..., H, W, D), leading sizes 1, values in [-1, 1], background -1. An
image's brain is the mask of the same shape that the preprocessing put beside it, under ``foreground_key``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from torch.nn.functional import interpolate
from tqdm import tqdm

from custom.data.foreground import BACKGROUND, foreground_key
from custom.data.tolerant import FAULT_KEY, TolerantDataset
from custom.evaluation.arrays import write_arrays
from custom.evaluation.bins import bins_of
from custom.evaluation.metrics import bounding_box
from custom.evaluation.paired_lookup import PairedLookup
from custom.evaluation.protocols import ContrastEnds
from custom.utils.distributed import main_first
from custom.utils.identity import FileDigests, digest, identity

logger = logging.getLogger(__name__)

DIGESTS_NAME = "files.jsonl"


def copy_source(image: torch.Tensor) -> torch.Tensor:
    """The source itself in place of a translation."""
    return image


class IntensityLookup:
    """Voxelwise lookup: the mean target intensity that training subjects have where the source has a given one.

    One table for each ordered pair of modalities, learned subject by subject from histograms, so that memory does not
    grow with their number. What lies outside the source's brain stays background and is not learned from.

    Args:
        modalities: canonical names.
        bins: number of intensity bins over [-1, 1].
    """

    def __init__(self, modalities: Sequence[str], *, bins: int = 256) -> None:
        if bins < 2:
            raise ValueError(f"bins: expected at least 2; found {bins}.")
        self.modalities = tuple(modalities)
        self.bins = bins
        pairs = (len(self.modalities), len(self.modalities), bins)
        self._sums = np.zeros(pairs, dtype=np.float64)
        self._counts = np.zeros(pairs, dtype=np.int64)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The ordered pairs (source, target) that some training subject had."""
        seen = np.argwhere(self._counts.sum(axis=-1) > 0)
        return [(self.modalities[s], self.modalities[t]) for s, t in seen]

    def update(self, images: Mapping[str, torch.Tensor], subject: str = "") -> None:
        """Learn from one subject.

        Args:
            images: preprocessed image of each modality that the subject has, with its brain, all of one shape; other
                keys are ignored.
            subject: its name, for the message.

        Raises:
            ValueError: for images of different shapes.
        """
        shapes = {m: tuple(images[m].shape) for m in self.modalities if m in images}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"subject {subject!r}: expected images of one shape; found {shapes}.")
        values = {m: _plain(images[m]).detach().float().cpu().ravel() for m in shapes}
        for source in shapes:
            inside = _plain(images[foreground_key(source)]).cpu().ravel()
            index = bins_of(values[source][inside], self.bins).numpy()
            count = np.bincount(index, minlength=self.bins)
            for target in shapes:
                if target != source:
                    s, t = self.modalities.index(source), self.modalities.index(target)
                    self._counts[s, t] += count
                    self._sums[s, t] += np.bincount(index, weights=values[target][inside].numpy(), minlength=self.bins)

    def fit(self, subjects: Iterable[Mapping[str, torch.Tensor]]) -> IntensityLookup:
        """Learn from a stream of subjects, each a mapping as in :meth:`update` with an optional key ``subject``."""
        for images in subjects:
            self.update(images, subject=str(images.get("subject", "")))
        return self

    def table(self, source: str, target: str) -> np.ndarray:
        """Mean target intensity of every bin, shape ``(bins,)``; bins never seen are interpolated between neighbours.

        Raises:
            ValueError: for a pair that no training subject had.
        """
        if (source, target) not in self.pairs:
            known = ", ".join(f"{s}->{t}" for s, t in self.pairs) or "none"
            raise ValueError(
                f"intensity lookup: no training subject had both {source!r} and {target!r}; pairs learned: {known}. "
                "Fit it on subjects that have both."
            )
        s, t = self.modalities.index(source), self.modalities.index(target)
        seen = np.flatnonzero(self._counts[s, t])
        means = self._sums[s, t, seen] / self._counts[s, t, seen]
        return np.interp(np.arange(self.bins), seen, means)

    def predict(self, image: torch.Tensor, source: str, target: str, *, brain: torch.Tensor) -> torch.Tensor:
        """Translate ``image`` from modality ``source`` to ``target`` within its ``brain``."""
        table = torch.from_numpy(self.table(source, target)).to(image)
        return torch.where(brain, table[bins_of(image, self.bins)], BACKGROUND)

    def arrays(self) -> dict[str, np.ndarray]:
        """Learned arrays, for a file."""
        return {"lookup_sums": self._sums, "lookup_counts": self._counts}

    @classmethod
    def of_arrays(cls, modalities: Sequence[str], arrays: Mapping[str, np.ndarray]) -> IntensityLookup:
        """The lookup that gave these :meth:`arrays`."""
        lookup = cls(modalities, bins=arrays["lookup_sums"].shape[-1])
        lookup._sums, lookup._counts = arrays["lookup_sums"], arrays["lookup_counts"]
        return lookup


class TrainingMean:
    """The mean image of the training subjects, whatever the source: what a model gives that ignores its input.

    Subjects need not lie on one grid: each brain's bounding box is brought to one shape, and the mean is taken there,
    over the subjects whose brain covers the voxel.

    Args:
        modalities: canonical names.
        shape: of the mean image.
    """

    def __init__(self, modalities: Sequence[str], *, shape: tuple[int, int, int] = (72, 88, 72)) -> None:
        self.modalities = tuple(modalities)
        self.shape = tuple(shape)
        self._sums = torch.zeros(len(self.modalities), *self.shape)
        self._counts = torch.zeros(len(self.modalities), *self.shape)

    @property
    def seen(self) -> list[str]:
        """The modalities that some training subject had."""
        return [m for m, counts in zip(self.modalities, self._counts, strict=True) if bool(counts.any())]

    def update(self, images: Mapping[str, torch.Tensor]) -> None:
        """Learn from one subject, a mapping as for :class:`IntensityLookup`."""
        for i, name in enumerate(self.modalities):
            if name not in images:
                continue
            brain = _plain(images[foreground_key(name)]).reshape(images[name].shape[-3:])
            box = bounding_box(brain)
            inside = _resized(brain[box].float().cpu(), self.shape)
            values = images[name].detach().float().cpu().reshape(brain.shape)[box]
            # weighted by coverage, so that background that the resizing mixes in does not darken the rim
            self._sums[i] += _resized((values - BACKGROUND) * brain[box].cpu(), self.shape)
            self._counts[i] += inside

    def predict(self, image: torch.Tensor, target: str, *, brain: torch.Tensor) -> torch.Tensor:
        """The mean of modality ``target`` in the ``brain`` of ``image``.

        Raises:
            ValueError: for a target that no training subject had.
        """
        if target not in self.seen:
            raise ValueError(f"training mean: no training subject had {target!r}; learned: {', '.join(self.seen)}.")
        i = self.modalities.index(target)
        inside = _plain(brain).reshape(image.shape[-3:])
        box = bounding_box(inside)
        predicted = torch.full(inside.shape, BACKGROUND, device=image.device)
        # sums and counts apart, so that voxels that no brain covered do not darken their neighbours
        sums, counts = (_resized(x[i].to(image.device), predicted[box].shape) for x in (self._sums, self._counts))
        predicted[box] = torch.where(counts > 0, sums / counts.clamp(min=1e-6), 0.0) + BACKGROUND
        return torch.where(inside, predicted, BACKGROUND).reshape(image.shape)

    def arrays(self) -> dict[str, np.ndarray]:
        """Learned arrays, for a file."""
        return {"mean_sums": self._sums.numpy(), "mean_counts": self._counts.numpy()}

    @classmethod
    def of_arrays(cls, modalities: Sequence[str], arrays: Mapping[str, np.ndarray]) -> TrainingMean:
        """The mean that gave these :meth:`arrays`."""
        mean = cls(modalities, shape=arrays["mean_sums"].shape[1:])
        mean._sums, mean._counts = torch.from_numpy(arrays["mean_sums"]), torch.from_numpy(arrays["mean_counts"])
        return mean


class TrainedBaselines(NamedTuple):
    """Baselines learned from the training split: the intensity lookups, the mean image, and their subjects.

    ``ends`` bring predictions of each contrast to the scale of the percentiles.
    """

    lookup: IntensityLookup
    paired: PairedLookup
    mean: TrainingMean
    ends: ContrastEnds
    subjects: list[str]

    def save(self, path: str | os.PathLike[str], fingerprint: str = "") -> None:
        """Write a ``.npz`` file (arrays only, nothing pickled), whole or not at all."""
        own = {
            "modalities": np.array(self.lookup.modalities, dtype=np.str_),
            "subjects": np.array(self.subjects, dtype=np.str_),
            "fingerprint": np.array(fingerprint, dtype=np.str_),
        }
        learned = (self.lookup, self.paired, self.mean, self.ends)
        write_arrays(path, own | {name: array for part in learned for name, array in part.arrays().items()})

    @classmethod
    def load(cls, path: str | os.PathLike[str], fingerprint: str = "") -> TrainedBaselines | None:
        """Read what :meth:`save` wrote; None where there is no such file, or one of another ``fingerprint``.

        Raises:
            ValueError: where the file is something else.
        """
        if not Path(path).is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file.items())
            modalities, subjects = arrays["modalities"].tolist(), arrays["subjects"].tolist()
            found = cls(
                IntensityLookup.of_arrays(modalities, arrays),
                PairedLookup.of_arrays(modalities, arrays),
                TrainingMean.of_arrays(modalities, arrays),
                ContrastEnds.of_arrays(modalities, arrays),
                subjects,
            )
            return found if str(arrays["fingerprint"]) == fingerprint else None
        except (AttributeError, BadZipFile, KeyError, OSError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: expected baselines; found something else ({error}). Delete it.") from error


@main_first()
def fit_or_load(
    path: str | os.PathLike[str],
    entries: Sequence[Mapping[str, Any]],
    transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    modalities: Sequence[str],
    *,
    max_subjects: int | None = None,
) -> TrainedBaselines:
    """The baselines of a training split, fitted once and kept in a file beside the evaluation's results.

    Args:
        path: of the file; it is read if it was fitted on these subjects, files and transforms, and written otherwise.
        entries: the training split.
        transform: the preprocessing, from an entry to images (1, H, W, D).
        modalities: the vocabulary.
        max_subjects: fit on no more than so many, the first ones; None for all.

    Raises:
        ValueError: if no subject can be read.
    """
    chosen = list(entries)[:max_subjects]
    fitted = TrainedBaselines(
        IntensityLookup(modalities), PairedLookup(modalities), TrainingMean(modalities), ContrastEnds(modalities), []
    )
    contents = file_contents(chosen, FileDigests(Path(path).with_name(DIGESTS_NAME)))
    fingerprint = digest([identity(None, transform, fitted), contents])
    known = TrainedBaselines.load(path, fingerprint)
    if known is not None:
        return known
    dataset = TolerantDataset(chosen, transform)
    for entry, images in zip(tqdm(chosen, desc="fitting baselines", unit="subject"), iter(dataset), strict=True):
        if FAULT_KEY in images:
            logger.warning("baselines: %s is left out: %s", entry["subject"], images[FAULT_KEY])
            continue
        fitted.lookup.update(images, subject=str(entry["subject"]))
        fitted.paired.update(images)
        fitted.mean.update(images)
        fitted.ends.update(images)
        fitted.subjects.append(str(entry["subject"]))
    if not fitted.subjects:
        raise ValueError(f"baselines: expected training subjects; none of {len(chosen)} could be read.")
    fitted.save(path, fingerprint)
    return fitted


def file_contents(entries: Sequence[Mapping[str, Any]], digests: FileDigests) -> list[dict[str, str]]:
    """Digest of the content of each file of each entry, by its key; what cannot be read is left out."""
    files = [
        {k: str(v) for k, v in entry.items() if k != "subject" and os.access(Path(str(v)).expanduser(), os.R_OK)}
        for entry in entries
    ]
    contents = digests.of([list(paths.values()) for paths in files])
    return [dict(zip(paths, values, strict=True)) for paths, values in zip(files, contents, strict=True)]


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor


def _resized(volume: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return interpolate(volume[None, None], size=tuple(shape), mode="trilinear", align_corners=False)[0, 0]
