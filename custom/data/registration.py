"""Rigid registration of two scans of one head, in memory: the motion between them, and one on the other's grid.

The transform maximises Mattes' mutual information (Mattes et al., IEEE TMI 22(1), 2003) over six parameters, coarse to
fine, by ITK; in one thread and from one choice of voxels, so that the result is the same each time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from monai.data import MetaTensor
from monai.data.itk_torch_bridge import metatensor_to_itk_image
from monai.utils import ImageMetaKey
from scipy import ndimage

__all__ = [
    "CLIP_PERCENTILES", "METHOD", "Placed", "Quality", "mutual_information", "place", "resample", "rigid_transform",
]  # fmt: skip

logger = logging.getLogger(__name__)

METHOD = 2  # of this module: results of another number are made anew
LEVELS_MM = (6.0, 3.0)  # voxel size and blur of the levels; finer ones gain nothing on slices of 3 to 4 mm
SAMPLES = 200_000  # voxels that the metric sees at most
HISTOGRAM_BINS = 48
ITERATIONS = 200
LARGEST_STEP = 0.5  # of the edge of the voxels
CLIP_PERCENTILES = (0.5, 99.5)


class Quality(NamedTuple):
    """Mutual information with the fixed scan before and after, in bits; mm that the centre of the fixed scan was moved
    by; degrees."""

    information_before: float
    information_after: float
    shift: float
    rotation: float


class Placed(NamedTuple):
    """A scan on another's grid.

    Attributes:
        image: (H, W, D), registered.
        before: (H, W, D), resampled without motion.
        transform: (4, 4), of :func:`rigid_transform`.
        quality: how well it lies.
    """

    image: np.ndarray
    before: np.ndarray
    transform: np.ndarray
    quality: Quality


def place(moving: MetaTensor, fixed: MetaTensor, *, seed: int = 0) -> Placed:
    """``moving`` on the grid of ``fixed``, registered rigidly.

    A scan that lies right already, so that the motion found is no better than none, is resampled without motion.

    Args:
        moving, fixed: (1, H, W, D) with an affine, and the path in the metadata.
        seed: of the choice of voxels.

    Raises:
        ValueError: for what is no scan, or if the two do not overlap.
    """
    names = [str(volume.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "image")) for volume in (moving, fixed)]
    for volume, name in zip((moving, fixed), names, strict=True):
        if volume.ndim != 4 or volume.shape[0] != 1 or min(volume.shape) == 0 or volume.std() == 0:
            raise ValueError(f"{name}: expected one 3D scan to register; found shape {tuple(volume.shape)}.")
    try:
        transform = rigid_transform(moving, fixed, seed=seed)
    except RuntimeError as error:
        raise ValueError(f"{names[0]}: expected a scan of the same place as {names[1]}; found no overlap.") from error
    before, after = (resample(moving, fixed, matrix) for matrix in (np.eye(4), transform))
    quality = _quality(fixed, before, after, transform)
    if quality.information_after < quality.information_before:
        logger.warning("%s: no motion agrees better with %s than none; it stays where it is.", *names)
        transform, after = np.eye(4), before
        quality = _quality(fixed, before, after, transform)
    return Placed(after, before, transform, quality)


def rigid_transform(moving: MetaTensor, fixed: MetaTensor, *, seed: int = 0) -> np.ndarray:
    """The rigid motion under which two scans of a head share most information, searched for from none: the scanner's
    coordinates are common.

    Args:
        moving, fixed: (1, H, W, D) with an affine.
        seed: of the choice of voxels.

    Returns:
        (4, 4): a point of the fixed scan → the same point of the moving one, mm, RAS.

    Raises:
        RuntimeError: of ITK, if the scans do not overlap.
    """
    import itk  # takes seconds to load

    images = [metatensor_to_itk_image(_clipped(volume), dtype=np.float32) for volume in (fixed, moving)]
    motion = itk.Euler3DTransform.D.New()
    motion.SetCenter((np.diag([-1, -1, 1]) @ _centre(fixed)).tolist())
    for edge in LEVELS_MM:
        _improve(motion, images, edge, seed)
    matrix = np.eye(4)
    matrix[:3, :3] = itk.array_from_matrix(motion.GetMatrix())
    matrix[:3, 3] = np.asarray(motion.GetOffset())
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    return flip @ matrix @ flip


def _improve(motion: Any, images: Sequence[Any], edge: float, seed: int) -> None:
    """Change ``motion`` to the best one near it, seen with voxels of about ``edge`` mm, however thick the slices are.

    Each level is a registration of its own: the levels of one ITK method hand on more than the transform.
    """
    import itk

    fixed, moving = images
    kind = type(fixed)
    metric = itk.MattesMutualInformationImageToImageMetricv4[kind, kind].New()
    metric.SetNumberOfHistogramBins(HISTOGRAM_BINS)
    metric.SetMaximumNumberOfWorkUnits(1)  # the order of sums, and so the result, follows from the number of threads
    factor = np.maximum(1, np.round(edge / np.asarray(fixed.GetSpacing()))).astype(int)
    voxels = float(np.prod(np.asarray(itk.size(fixed)) / factor))
    method = itk.ImageRegistrationMethodv4[kind, kind].New(FixedImage=fixed, MovingImage=moving)
    method.SetMetric(metric)
    method.SetOptimizer(_optimizer(metric, edge * LARGEST_STEP))
    method.SetInitialTransform(motion)
    method.InPlaceOn()
    method.SetNumberOfWorkUnits(1)
    method.SetNumberOfLevels(1)
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(True)
    method.SetSmoothingSigmasPerLevel([edge / 2])
    method.SetShrinkFactorsPerLevel([1])
    method.SetShrinkFactorsPerDimension(0, itk.FixedArray[itk.UI, 3](factor.tolist()))
    method.SetMetricSamplingStrategy(itk.ImageRegistrationMethodv4Enums.MetricSamplingStrategy_RANDOM)
    method.SetMetricSamplingPercentagePerLevel([min(1.0, SAMPLES / voxels)])
    method.MetricSamplingReinitializeSeed(seed + 1)  # 0 would mean the clock
    method.Update()


def _optimizer(metric: Any, largest_step: float) -> Any:
    import itk

    # steps along the gradient alone end before the rotation, whose slope is small beside that of the shift, is found
    optimizer = itk.QuasiNewtonOptimizerv4Template[itk.D].New()
    optimizer.SetScalesEstimator(itk.RegistrationParameterScalesFromPhysicalShift[type(metric)].New(Metric=metric))
    optimizer.SetMaximumStepSizeInPhysicalUnits(largest_step)
    optimizer.SetNumberOfIterations(ITERATIONS)
    optimizer.SetNumberOfWorkUnits(1)
    return optimizer


def _clipped(volume: MetaTensor) -> MetaTensor:
    """Without the few brightest voxels, which would leave all others a few bins of the histogram."""
    low, high = np.percentile(volume.numpy(), CLIP_PERCENTILES)
    clipped = volume.clamp(float(low), float(high))
    assert isinstance(clipped, MetaTensor)
    return clipped


def _centre(volume: MetaTensor) -> np.ndarray:
    """Centre of mass in mm, RAS."""
    voxel = ndimage.center_of_mass(np.clip(_clipped(volume)[0].numpy(), 0, None))
    return (volume.affine.numpy() @ [*voxel, 1])[:3]


def resample(moving: MetaTensor, fixed: MetaTensor, transform: np.ndarray) -> np.ndarray:
    """``moving`` on the grid of ``fixed`` (H, W, D), by cubic B-splines kept within its range; 0 outside of it.

    Args:
        moving, fixed: (1, H, W, D) with an affine.
        transform: from :func:`rigid_transform`.
    """
    to_voxel = np.linalg.inv(moving.affine.numpy()) @ transform @ fixed.affine.numpy()
    values = moving[0].numpy()
    result = ndimage.affine_transform(
        values, to_voxel[:3, :3], to_voxel[:3, 3], output_shape=tuple(fixed.shape[1:]), order=3, cval=0.0
    )
    return np.clip(result, min(values.min(), 0), values.max())


def mutual_information(a: np.ndarray, b: np.ndarray, bins: int = 64) -> float:
    """Mutual information in bits of two arrays of one shape, from their joint histogram between their percentiles."""
    limits = [tuple(np.percentile(x, CLIP_PERCENTILES)) for x in (a, b)]
    clipped = [np.clip(x, *limit).ravel() for x, limit in zip((a, b), limits, strict=True)]
    joint, _, _ = np.histogram2d(clipped[0], clipped[1], bins=bins)
    joint /= joint.sum()
    product = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log2(joint[seen] / product[seen])).sum())


def _quality(still: MetaTensor, before: np.ndarray, after: np.ndarray, transform: np.ndarray) -> Quality:
    both = (before > 0) & (after > 0)  # the same voxels for both figures
    region = both if both.any() else np.ones_like(both)
    reference = still[0].numpy()[region]
    middle = _centre(still)
    angle = np.arccos(np.clip((np.trace(transform[:3, :3]) - 1) / 2, -1, 1))
    return Quality(
        information_before=mutual_information(reference, before[region]),
        information_after=mutual_information(reference, after[region]),
        shift=float(np.linalg.norm((transform @ [*middle, 1])[:3] - middle)),
        rotation=float(np.degrees(angle)),
    )
