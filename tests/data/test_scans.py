"""Tests of custom.data.scans."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from custom.data.scans import labels_in, no_scan
from custom.data.transforms import ValidateVolumed


def blocks(values: list[int], shape: tuple[int, int, int] = (24, 24, 24)) -> torch.Tensor:
    """A map whose regions are slabs along the second axis, in a background of 0."""
    image = torch.zeros(1, *shape)
    parts = torch.arange(4, shape[1] - 4).chunk(len(values))
    for value, part in zip(values, parts, strict=False):
        image[:, 4:-4, part, 4:-4] = value
    return image


@pytest.mark.parametrize("name", ["a_t1.nii", "segment_t2.nii", "T1_masked.nrrd", "sub-1_T1w.nii.gz", "label_t1.mha"])
def test_names_of_scans(name: str) -> None:
    assert no_scan(f"/data/masks/{name}") is None


def test_label_maps_are_told_from_scans(head: Callable, brain: Callable) -> None:
    assert labels_in(blocks([1, 2, 4])) == [0, 1, 2, 4]
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 5, (1, 20, 20, 20))).float()
    assert labels_in(noise) == [0, 1, 2, 3, 4]
    assert labels_in(blocks([1, 2, 4]).where(blocks([1]) > 0, float("nan"))) == [1, 2, 4]
    parcellation = blocks([*range(1, 17), 2035])
    assert len(labels_in(parcellation) or ()) == 17
    scan = torch.from_numpy(brain("t1", shape=(48, 48, 48)))[None].float()
    assert labels_in(scan) is None
    assert labels_in((scan / scan.max() * 40).round()) is None  # 40 grey levels are still a picture
    assert labels_in(torch.from_numpy(head())[None]) is None
    assert labels_in(blocks([1, 2, 4]) / 4) is None  # not whole


def test_a_label_map_is_refused_whatever_its_name(head: Callable) -> None:
    with pytest.raises(ValueError, match=r"image: expected an MRI contrast; found only .* 0, 1, 2 and 4, as"):
        ValidateVolumed("image")({"image": blocks([1, 2, 4])})
    ValidateVolumed("image")({"image": torch.from_numpy(head())[None]})
