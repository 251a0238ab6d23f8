"""The range of the training scans, written into weights that lack it or are to be checked against other scans."""

from __future__ import annotations

import os

import torch

from custom.data.datalist import load_datalist, vocabulary
from custom.data.features import FEATURES
from custom.inference.likeness import measure_scans
from custom.networks.translator import RANGE
from custom.networks.weights import read_weights
from custom.utils.files import atomic_write
from custom.utils.intensity_scales import INTENSITY_SCALES, SCALE_KEY

__all__ = ["measure_range"]


def measure_range(dataset_dir: str | os.PathLike[str], weights: str | os.PathLike[str]) -> list[str]:
    """Write the range of a data set's training scans into a file of weights; all else in it stays as it is.

    Args:
        dataset_dir: that the weights were trained with: a folder with a datalist, or a datalist.
        weights: of the whole model, in any preset; replaced when all is measured.

    Returns:
        A line for every number.

    Raises:
        FileNotFoundError, ValueError: for weights or a data set that cannot be read, and for weights of a part alone.
    """
    state = read_weights(weights)
    if "latent_scale" not in state:
        raise ValueError(f"{weights}: expected the weights of the whole model; found a part. Give a model.pt.")
    modalities = vocabulary(dataset_dir)
    scale = INTENSITY_SCALES[int(state.get(SCALE_KEY, 0))]
    found = measure_scans(load_datalist(dataset_dir, "training", modalities), modalities, scale)
    with atomic_write(weights) as temporary:
        torch.save({**state, RANGE: found}, temporary)
    return [
        f"{feature.name}: {low:.4g} to {high:.4g} {feature.unit}"
        for feature, low, high in zip(FEATURES, *found.tolist(), strict=True)
    ]
