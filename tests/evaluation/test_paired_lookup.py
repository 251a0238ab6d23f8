"""Tests of custom.evaluation.paired_lookup: the trivial translation of two sources."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from custom.data.foreground import foreground_key
from custom.evaluation.paired_lookup import PairedLookup

MODALITIES = ("t1", "t2", "flair")
STEP = 2 / 48  # of an intensity bin


def subject(seed: int) -> dict[str, torch.Tensor]:
    """FLAIR = (T1 + T2²) / 2 in the brain, which neither tells alone."""
    draw = torch.Generator().manual_seed(seed)
    brain = torch.zeros(1, 24, 24, 24, dtype=torch.bool)
    brain[:, 4:20, 4:20, 4:20] = True
    t1, t2 = (torch.rand(brain.shape, generator=draw) * 1.8 - 0.9 for _ in range(2))
    images = {"t1": t1, "t2": t2, "flair": (t1 + t2**2) / 2}
    images = {name: torch.where(brain, image, -1.0) for name, image in images.items()}
    return images | {foreground_key(name): brain for name in MODALITIES}


@pytest.fixture(scope="module")
def lookup() -> PairedLookup:
    made = PairedLookup(MODALITIES)
    for seed in range(8):
        made.update(subject(seed))
    return made


@pytest.mark.parametrize("sources", [("t1", "t2"), ("t2", "t1")])
def test_what_two_sources_tell_together_is_found(lookup: PairedLookup, sources: tuple[str, str]) -> None:
    images = subject(9)
    brain = images[foreground_key("t1")]
    found = lookup.predict([images[name] for name in sources], sources, "flair", brain=brain)
    error = (found - images["flair"])[brain].abs()
    assert error.mean() < STEP  # a table of 48 × 48 bins with 14 voxels in each
    assert (found[~brain] == -1).all()


def test_pairs_that_were_never_seen_get_what_each_speaks_for() -> None:
    images = subject(0)
    seen = PairedLookup(MODALITIES, bins=8)
    dark = images["t1"] < 0
    seen.update(
        images | {foreground_key(n): images[foreground_key(n)] & (dark == (images["t2"] < 0)) for n in ("t1", "t2")}
    )
    bright = torch.full((1, 2, 2, 2), 0.5)
    found = seen.predict([bright, -bright], ("t1", "t2"), "flair", brain=torch.ones(1, 2, 2, 2, dtype=torch.bool))
    assert found.isfinite().all()
    assert found.unique().numel() == 1
    assert -1 <= found.min() <= found.max() <= 1


def test_what_no_subject_had_is_not_known(lookup: PairedLookup) -> None:
    assert lookup.knows(("t2", "t1"), "flair")
    assert not PairedLookup(MODALITIES).knows(("t1", "t2"), "flair")
    two = PairedLookup(MODALITIES)
    two.update({key: value for key, value in subject(0).items() if not key.startswith("flair")})
    assert not two.knows(("t1", "t2"), "flair")


def test_arrays_hold_it(lookup: PairedLookup) -> None:
    again, images = PairedLookup.of_arrays(MODALITIES, lookup.arrays()), subject(9)
    assert again.bins == lookup.bins
    given = [images["t1"], images["t2"]]
    predictions = [x.predict(given, ("t1", "t2"), "flair", brain=images["t1"] > -1) for x in (lookup, again)]
    assert np.array_equal(*(p.numpy() for p in predictions))
