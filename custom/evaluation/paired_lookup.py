"""The trivial translation of two sources: what training subjects have where both have the given intensities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import torch

from custom.data.foreground import BACKGROUND, foreground_key
from custom.evaluation.bins import bins_of

__all__ = ["PairedLookup"]


class PairedLookup:
    """Voxelwise lookup over two sources: the mean target intensity where they have two given ones.

    Learned from histograms, as ``custom.evaluation.baselines.IntensityLookup``, within the foreground of either source.

    Args:
        modalities: canonical names.
        bins: number of intensity bins of each source over [-1, 1].
    """

    def __init__(self, modalities: Sequence[str], *, bins: int = 48) -> None:
        self.modalities = tuple(modalities)
        self.bins = bins
        self.pairs = [*combinations(range(len(self.modalities)), 2)]
        shape = (len(self.pairs), len(self.modalities), bins * bins)
        self._sums = np.zeros(shape, dtype=np.float64)
        self._counts = np.zeros(shape, dtype=np.int64)

    def update(self, images: Mapping[str, torch.Tensor]) -> None:
        """Learn from one subject, a mapping as for ``IntensityLookup.update``."""
        present = {i: images[m].detach().float().cpu() for i, m in enumerate(self.modalities) if m in images}
        for number, (a, b) in enumerate(self.pairs):
            if a not in present or b not in present:
                continue
            masks = [images[foreground_key(self.modalities[i])].cpu() > 0 for i in (a, b)]
            inside = torch.as_tensor(masks[0] | masks[1])
            index = self._bin(present[a][inside], present[b][inside])
            for target in present.keys() - {a, b}:
                values = present[target][inside].numpy()
                self._counts[number, target] += np.bincount(index, minlength=self.bins**2)
                self._sums[number, target] += np.bincount(index, weights=values, minlength=self.bins**2)

    def knows(self, sources: Sequence[str], target: str) -> bool:
        """Whether some training subject had these two sources and the target."""
        number, _ = self._number(sources)
        return bool(self._counts[number, self.modalities.index(target)].any())

    def predict(
        self, images: Sequence[torch.Tensor], sources: Sequence[str], target: str, *, brain: torch.Tensor
    ) -> torch.Tensor:
        """Translate two images into ``target`` within ``brain``; all of one shape.

        Pairs of intensities that were never seen get the mean of what each of the two speaks for by itself.
        """
        number, order = self._number(sources)
        t = self.modalities.index(target)
        sums, counts = (x[number, t].reshape(self.bins, self.bins) for x in (self._sums, self._counts))
        table = np.where(counts > 0, sums / np.maximum(counts, 1), _of_margins(sums, counts))
        index = self._bin(*(images[i].float().cpu() for i in order))
        predicted = torch.from_numpy(table.ravel()[index]).to(images[0])
        return torch.where(brain, predicted, BACKGROUND)

    def arrays(self) -> dict[str, np.ndarray]:
        """Learned arrays, for a file."""
        return {"paired_sums": self._sums, "paired_counts": self._counts}

    @classmethod
    def of_arrays(cls, modalities: Sequence[str], arrays: Mapping[str, np.ndarray]) -> PairedLookup:
        """The lookup that gave these :meth:`arrays`."""
        lookup = cls(modalities, bins=round(arrays["paired_sums"].shape[-1] ** 0.5))
        lookup._sums, lookup._counts = arrays["paired_sums"], arrays["paired_counts"]
        return lookup

    def _number(self, sources: Sequence[str]) -> tuple[int, list[int]]:
        """Number of a pair of sources, and the order in which it has them."""
        places = [self.modalities.index(source) for source in sources]
        order = sorted(range(2), key=lambda i: places[i])
        return self.pairs.index((places[order[0]], places[order[1]])), order

    def _bin(self, one: torch.Tensor, other: torch.Tensor) -> np.ndarray:
        first, second = (bins_of(x, self.bins).numpy() for x in (one, other))
        return first * self.bins + second


def _of_margins(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean over the two sources of what each alone speaks for, (bins, bins); bins never seen are interpolated."""
    bins, means = np.arange(len(sums)), []
    for axis in (1, 0):
        total, seen = sums.sum(axis=axis), np.flatnonzero(counts.sum(axis=axis))
        known = total[seen] / counts.sum(axis=axis)[seen] if seen.size else np.zeros(1)
        means.append(np.interp(bins, seen if seen.size else [0], known))
    return (means[0][:, None] + means[1][None, :]) / 2
