"""Are translations of scans that a model has not seen nearer to a scan of its training than the truth is?

    python -m benchmarks.memorisation --data list.json --weights bundle/models/model.pt

For every pair of contrasts of every subject of a section: the largest correlation, over the voxels that are brain in
both, of the translation with an image of the training of that contrast, and that of the truth. A model that gives scans
of its training back is nearer to one of them than the truth is. Scans on other grids than the subject's are left out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch

from custom.api import Translator
from custom.data.datalist import load_datalist
from custom.utils.modalities import BRATS_MODALITIES

BOUND = 0.02  # by how much a translation may be nearer to a scan of the training than the truth is


class Nearest(NamedTuple):
    """Of a translation and of its truth: the correlation with the nearest scan of the training, and whose that is."""

    subject: str
    source: str
    target: str
    translation: float
    nearest: str
    truth: float
    nearest_of_truth: str

    @property
    def holds(self) -> bool:
        return self.translation <= self.truth + BOUND


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's, over the voxels where both are brain, which is above 0; NaN where these are fewer than two."""
    both = (one > 0) & (other > 0)
    if np.count_nonzero(both) < 2:
        return float("nan")
    return float(np.corrcoef(one[both], other[both])[0, 1])


def nearest(image: np.ndarray, training: Mapping[str, np.ndarray]) -> tuple[float, str]:
    """The largest correlation of ``image`` with the scans of ``training``, by subject, and whose it is.

    Scans that share no brain with it are passed over; where all are, the correlation is NaN and there is no name.
    """
    found = [(value, name) for name, scan in training.items() if not math.isnan(value := correlation(image, scan))]
    return max(found, default=(math.nan, ""))


def scans(entries: Sequence[Mapping[str, str]], target: str, like: nib.Nifti1Image) -> dict[str, np.ndarray]:
    """The scans of that contrast on the grid of ``like``, by subject."""
    found = {}
    for entry in (e for e in entries if target in e):
        image = nib.load(entry[target])
        if image.shape == like.shape and np.allclose(image.affine, like.affine, atol=1e-3):
            found[entry["subject"]] = intensities(entry[target])
    return found


@cache
def intensities(file: str) -> np.ndarray:
    """Of a scan of the training, which every subject is compared with: as it is stored, which may be half as large."""
    return np.asarray(nib.load(file).dataobj)


def compare(data: str, section: str, translate: Callable[[str, list[str]], Any]) -> Iterator[Nearest]:
    """Of every pair of the section; ``translate`` gives the images (1, H, W, D) of a scan's file by target."""
    training = load_datalist(data, "training", BRATS_MODALITIES)
    for entry in load_datalist(data, section, BRATS_MODALITIES):
        names = [m for m in BRATS_MODALITIES if m in entry]
        results = {s: translate(entry[s], [t for t in names if t != s]) for s in names}
        for target in names:
            truth = nib.load(entry[target])
            others = scans(training, target, truth)
            if not others:
                print(f"{entry['subject']}, {target}: no scan of the training lies on its grid", flush=True)
                continue
            of_truth = nearest(np.asarray(truth.dataobj, dtype=np.float32), others)
            for source in (s for s in names if s != target):
                image = results[source][target].numpy().squeeze(0)
                yield Nearest(entry["subject"], source, target, *nearest(image, others), *of_truth)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memorisation", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", required=True, help="a data set's list, with training subjects and those of the section"
    )
    parser.add_argument("--weights", default="bundle/models/model.pt")
    parser.add_argument("--section", default="test")
    settings = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    print("| subject | pair | translation's nearest | truth's nearest | |\n| --- | --- | --- | --- | --- |")
    for row in compare(settings.data, settings.section, Translator.load(settings.weights)):
        rows.append(row)
        of_truth = f"{row.truth:.3f} ({row.nearest_of_truth})"
        verdict = "holds" if row.holds else "fails"
        print(
            f"| {row.subject} | {row.source} → {row.target} | {row.translation:.3f} ({row.nearest}) | {of_truth} "
            f"| {verdict} |", flush=True,
        )  # fmt: skip
    excess = [row.translation - row.truth for row in rows]
    known = [value for value in excess if not math.isnan(value)]
    if not known:
        raise SystemExit(
            f"error: {settings.data}: expected subjects of the section {settings.section} that share grid and brain "
            "with scans of the training; found none. Bring them onto one grid first."
        )
    print(
        f"\n{sum(row.holds for row in rows)} of {len(known)} hold; the largest excess is {max(known):+.3f} "
        f"(allowed {BOUND})"
    )


if __name__ == "__main__":
    main()
