"""Checks across the files of a data set: grids, copies, and modalities whose names are exchanged."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh

from custom.data import grids
from custom.data.problems import Problem
from custom.preparation.checks import Checked

__all__ = ["NameCheck", "check_names", "duplicates", "mixed_grids"]

FEWEST_SUBJECTS = 3  # of which most must be right
LEAST_AGREEMENT = 0.4  # correlation of a subject's pair with the others', below which a pair of modalities is unclear
CLEAR = 2.5  # or so many deviations of it
CERTAIN = 0.5  # of the usual agreement, the other way round: then a subject's files are called exchanged
MOST_EXCHANGED = 0.34  # share of the subjects; where more differ, nobody knows which are right
SIMPLICITY = 0.3  # correlation that a file in another place must gain
MOST_PERMUTED = 6  # modalities of which every order is tried

Subject = Mapping[str, Checked]


def mixed_grids(name: str, files: Subject) -> list[Problem]:
    """The subject's files must have one grid; those that differ from the most common one are named."""
    known = {key: c for key, c in files.items() if c.shape and c.affine is not None}
    groups: list[list[str]] = []
    for key, checked in known.items():
        for group in groups:
            if same_grid(known[group[0]], checked):
                group.append(key)
                break
        else:
            groups.append([key])
    if len(groups) < 2:
        return []
    groups.sort(key=len, reverse=True)
    return [Problem("grid", name, "; ".join(f"{', '.join(g)}: {_grid(known[g[0]])}" for g in groups))]


def same_grid(one: Checked, other: Checked) -> bool:
    """See :func:`custom.data.grids.same_grid`; not known of a volume without an affine."""
    if one.affine is None or other.affine is None:
        return False
    return grids.same_grid(one.shape, one.affine, other.shape, other.affine)


def _grid(checked: Checked) -> str:
    assert checked.affine is not None
    return grids.describe_grid(checked.shape, checked.affine)


def duplicates(subjects: Mapping[str, Subject], labels: Iterable[str] = ()) -> list[Problem]:
    """Files with the same content, within a subject and between subjects.

    Of subjects that share an image the first is kept.

    Args:
        subjects: id → modality → checked file.
        labels: keys of segmentations, which may well be the same.
    """
    owner: dict[str, tuple[str, str]] = {}
    problems, known = [], set()
    for name, files in subjects.items():
        for key, checked in files.items():
            if key in labels or not checked.digest or checked.fault:
                continue
            first, first_key = owner.setdefault(checked.digest, (name, key))
            if first == name and first_key != key:
                problems.append(Problem("identical", name, f"{key} has the content of {first_key}"))
            elif first != name and name not in known:
                known.add(name)
                problems.append(Problem("duplicate", name, f"{key} has the content of {first_key} of {first}"))
    return problems


class NameCheck(NamedTuple):
    """Outcome of :func:`check_names`.

    Attributes:
        problems: subjects whose modalities look exchanged.
        unclear: pairs of modalities that this data set does not tell apart, so an exchange of them would go unseen.
    """

    problems: list[Problem]
    unclear: list[tuple[str, str]]


def check_names(subjects: Mapping[str, Subject], modalities: Sequence[str]) -> NameCheck:
    """Find subjects in which the files of two or more modalities bear each other's names.

    The difference of two modalities' patterns (mean rank of the intensity in cells of the head's box) has much the same
    sign everywhere in all subjects: fluid is dark on T1 and bright on T2. A subject with two files exchanged has about
    the negative of what the others have. How well the others agree decides which pairs can be judged at all.

    Args:
        subjects: id → modality → checked file.
        modalities: the vocabulary.
    """
    names = [n for n, files in subjects.items() if sum(_usable(files.get(m)) for m in modalities) > 1]
    if len(names) < FEWEST_SUBJECTS:
        return NameCheck([], [*itertools.combinations(modalities, 2)] if names else [])
    cells = next(c.pattern.size for c in subjects[names[0]].values() if c.pattern is not None)
    patterns = np.full((len(names), len(modalities), cells), np.nan, np.float32)
    for i, name in enumerate(names):
        for k, modality in enumerate(modalities):
            if _usable(subjects[name].get(modality)):
                patterns[i, k] = subjects[name][modality].pattern
    usual: dict[tuple[int, int], np.ndarray] = {}
    flipped: dict[int, set[int]] = {}
    unclear = []
    for a, b in itertools.combinations(range(len(modalities)), 2):
        difference = _normalized(patterns[:, a] - patterns[:, b])
        own = np.flatnonzero(difference.any(axis=1))
        judged = _judge(difference[own])
        if judged is not None:
            signs, odd = judged
            usual[a, b] = signs @ difference[own]
            for i in own[odd]:
                flipped.setdefault(int(i), set()).update((a, b))
        elif len(own):
            unclear.append((modalities[a], modalities[b]))
    problems = [_exchanged(names[i], patterns[i], usual, modalities, flipped[i]) for i in sorted(flipped)]
    return NameCheck(problems, unclear)


def _judge(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Sign (S,) that aligns each subject's difference (S, C) with the others', and which subjects are the odd ones.

    None where the subjects do not agree enough to say, or too few are there.
    """
    if len(differences) < FEWEST_SUBJECTS:
        return None
    alike = differences @ differences.T
    others = alike - np.diag(np.diag(alike))  # a subject's likeness to itself says nothing
    leading = eigh(others, subset_by_index=[len(others) - 1] * 2)[1][:, 0]
    signs = np.where(leading < 0, -1.0, 1.0)
    if signs.sum() < 0:
        signs = -signs
    if (signs < 0).mean() > MOST_EXCHANGED:
        return None
    # correlation with the mean of all others, from products alone: |Σ−own|² = |Σ|² − 2·own·Σ + |own|²
    toward = signs * (others @ signs)
    length = signs @ alike @ signs - 2 * (toward + np.diag(alike)) + np.diag(alike)
    agreement = toward / np.sqrt(np.maximum(length, 1e-12))
    middle = float(np.median(agreement))
    spread = 1.4826 * float(np.median(np.abs(agreement - middle)))
    if middle < max(LEAST_AGREEMENT, CLEAR * spread):
        return None
    return signs, (signs < 0) & (agreement > CERTAIN * middle)


def _usable(checked: Checked | None) -> bool:
    return checked is not None and checked.pattern is not None and checked.fault is None


def _normalized(patterns: np.ndarray) -> np.ndarray:
    """Rows (S, C) of mean 0 and length 1; cells that a row lacks are 0."""
    known = np.isfinite(patterns)
    mean = np.where(known, patterns, 0).sum(axis=1, keepdims=True) / np.maximum(known.sum(axis=1, keepdims=True), 1)
    centred = np.where(known, patterns - mean, 0)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


def _exchanged(
    name: str,
    patterns: np.ndarray,
    usual: Mapping[tuple[int, int], np.ndarray],
    modalities: Sequence[str],
    suspects: set[int],
) -> Problem:
    """Say which file looks like which modality: the order of the subject's patterns that fits the cohort best."""
    present = [i for i in range(len(modalities)) if np.isfinite(patterns[i]).any()]

    def fit(order: Sequence[int]) -> float:
        of = dict(zip(present, order, strict=True))
        pairs = [(a, b) for a, b in usual if a in of and b in of]
        difference = _normalized(np.array([patterns[of[a]] - patterns[of[b]] for a, b in pairs]))
        template = _normalized(np.array([usual[pair] for pair in pairs]))
        # the simplest explanation, where two do not differ in what the cohort can tell
        return float((difference * template).sum()) - SIMPLICITY * sum(i != k for i, k in of.items())

    orders: Iterable[Sequence[int]] = itertools.permutations(present)
    if len(present) > MOST_PERMUTED:
        orders = (_transposed(present, a, b) for a, b in itertools.combinations(sorted(suspects), 2))
    best = max(orders, key=fit)
    moved = [(present[k], best[k]) for k in range(len(present)) if best[k] != present[k]]
    if not moved:
        return Problem(
            "swapped", name, f"{', '.join(modalities[i] for i in sorted(suspects))} do not look like themselves"
        )
    said = ", ".join(f"the file named {modalities[file]} looks like {modalities[like]}" for like, file in moved)
    return Problem("swapped", name, said)


def _transposed(present: Sequence[int], a: int, b: int) -> list[int]:
    return [{a: b, b: a}.get(i, i) for i in present]
