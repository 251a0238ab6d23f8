"""Trivial translations, shown beside every model: one that does not beat them has learned nothing spatial.

All of them take and give preprocessed images (..., H, W, D), leading sizes 1, values in [-1, 1], background -1.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from custom.data.inputs import FAULT_KEY, TolerantDataset
from custom.distributed import main_first
from custom.transforms import foreground, solid

logger = logging.getLogger(__name__)

BACKGROUND = -1.0


def brain_mask(image: torch.Tensor) -> torch.Tensor:
    """Foreground of a preprocessed image with its cavities filled, of the same shape.

    Ventricles can be as dark as the background; they belong to the brain all the same.
    """
    plain = image.as_tensor() if hasattr(image, "as_tensor") else image
    volume = plain.reshape(1, *plain.shape[-3:])
    return solid(foreground((volume + 1) / 2)).reshape(plain.shape)


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
        self.subjects: list[str] = []
        self.fingerprint = ""
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
            images: preprocessed image of each modality that the subject has, all of one shape; other keys are ignored.
            subject: its name, kept in :attr:`subjects`.

        Raises:
            ValueError: for images of different shapes.
        """
        shapes = {m: tuple(images[m].shape) for m in self.modalities if m in images}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"subject {subject!r}: expected images of one shape; found {shapes}.")
        values = {m: images[m].detach().float().cpu().numpy().ravel() for m in shapes}
        for source in shapes:
            inside = brain_mask(images[source]).cpu().numpy().ravel()
            index = self._bin(values[source][inside])
            count = np.bincount(index, minlength=self.bins)
            for target in shapes:
                if target != source:
                    s, t = self.modalities.index(source), self.modalities.index(target)
                    self._counts[s, t] += count
                    self._sums[s, t] += np.bincount(index, weights=values[target][inside], minlength=self.bins)
        self.subjects.append(subject)

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

    def predict(
        self, image: torch.Tensor, source: str, target: str, *, brain: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Translate ``image`` from modality ``source`` to ``target``; ``brain`` is its :func:`brain_mask`, if known."""
        table = torch.from_numpy(self.table(source, target)).to(image)
        index = ((image + 1) * (0.5 * self.bins)).long().clamp_(0, self.bins - 1)
        inside = brain_mask(image) if brain is None else brain
        return torch.where(inside, table[index], BACKGROUND)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the histograms to a ``.npz`` file (arrays only, nothing pickled), whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.savez_compressed(
                file,
                modalities=np.array(self.modalities, dtype=np.str_),
                subjects=np.array(self.subjects, dtype=np.str_),
                fingerprint=np.array(self.fingerprint, dtype=np.str_),
                sums=self._sums,
                counts=self._counts,
            )
        partial.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> IntensityLookup:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: where there is no such file.
            ValueError: where the file is not a lookup.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"intensity lookup: no file {path}. Fit one and save it there.")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                stored = {k: arrays[k] for k in ("modalities", "subjects", "fingerprint", "sums", "counts")}
        except (KeyError, OSError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: expected an intensity lookup; found something else ({error}).") from error
        lookup = cls(stored["modalities"].tolist(), bins=stored["sums"].shape[-1])
        lookup.subjects, lookup.fingerprint = stored["subjects"].tolist(), str(stored["fingerprint"])
        lookup._sums, lookup._counts = stored["sums"], stored["counts"]
        return lookup

    def _bin(self, values: np.ndarray) -> np.ndarray:
        return np.clip((values + 1) * (0.5 * self.bins), 0, self.bins - 1).astype(np.int64)


@main_first()
def fit_or_load(
    path: str | os.PathLike[str],
    entries: Sequence[Mapping[str, Any]],
    transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    modalities: Sequence[str],
    *,
    max_subjects: int | None = None,
) -> IntensityLookup:
    """The lookup of a training split, fitted once and kept in a file beside the evaluation's results.

    Args:
        path: of the file; it is read if it was fitted on these subjects and files, and written otherwise.
        entries: the training split.
        transform: the preprocessing, from an entry to images (1, H, W, D).
        modalities: the vocabulary.
        max_subjects: fit on no more than so many, the first ones; None for all.

    Raises:
        ValueError: if no subject can be read.
    """
    path = Path(path)
    chosen = list(entries)[:max_subjects]
    fingerprint = _fingerprint(chosen, modalities)
    if path.is_file():
        lookup = IntensityLookup.load(path)
        if lookup.fingerprint == fingerprint:
            return lookup
    lookup = IntensityLookup(modalities)
    lookup.fingerprint = fingerprint
    dataset = TolerantDataset(chosen, transform)
    for entry, images in zip(tqdm(chosen, desc="fitting intensity lookup", unit="subject"), dataset, strict=True):
        if FAULT_KEY in images:
            logger.warning("intensity lookup: %s is left out: %s", entry["subject"], images[FAULT_KEY])
        else:
            lookup.update(images, subject=str(entry["subject"]))
    if not lookup.subjects:
        raise ValueError(f"intensity lookup: expected training subjects; none of {len(chosen)} could be read.")
    lookup.save(path)
    return lookup


def _fingerprint(entries: Sequence[Mapping[str, Any]], modalities: Sequence[str]) -> str:
    """Changes when other subjects, other files or other contents (by size and time) are used."""
    files = [Path(str(entry[m])) for entry in entries for m in modalities if m in entry]
    stats = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) if f.is_file() else str(f) for f in files]
    return hashlib.sha256(json.dumps([list(modalities), stats]).encode()).hexdigest()
