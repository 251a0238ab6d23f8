"""Rigid registration of one scan to another of the same head, such as IXI's T1 to the T2 whose grid the PD shares.

``register(t1, t2)`` writes three files beside the T1 and never touches the originals: ``<name>_to_T2.nii.gz`` (the T1
on the T2's grid), ``.json`` (transform and quality) and ``.png`` (checkerboard before and after). A second call with
the same content of both files returns what is there. ``python -m custom prepare --layout ixi`` calls it per subject;
it uses one thread, so that subjects can be registered side by side, and gives the same result each time.

The transform maximises Mattes' mutual information (Mattes et al., IEEE TMI 22(1), 2003) over six parameters, coarse to
fine, by ITK.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.data.itk_torch_bridge import metatensor_to_itk_image
from scipy import ndimage

from custom.data.names import image_stem
from custom.data.readers import read_volume
from custom.evaluation.slices import to_ras
from custom.reports.figures import volume_panel
from custom.utils.files import atomic_write
from custom.utils.identity import content_digest, digest, identity

__all__ = ["Registration", "mutual_information", "register", "rigid_transform"]

logger = logging.getLogger(__name__)

METHOD = 2  # of this module: results of another number are made anew
LEVELS_MM = (6.0, 3.0)  # voxel size and blur of the levels; finer ones gain nothing on slices of 3 to 4 mm
SAMPLES = 200_000  # voxels that the metric sees at most
HISTOGRAM_BINS = 48
ITERATIONS = 200
LARGEST_STEP = 0.5  # of the edge of the voxels
CLIP_PERCENTILES = (0.5, 99.5)
TILE_MM = 20.0  # of the checkerboard


class Registration(NamedTuple):
    """A registered scan and how well it lies.

    Attributes:
        image: the file with the moving scan on the grid of the fixed one.
        picture: the file with the checkerboard.
        information_before, information_after: mutual information with the fixed scan, in bits; more is better.
        shift: mm that the centre of the fixed scan was moved by.
        rotation: degrees.
        reused: whether an earlier run had made the files.
    """

    image: Path
    picture: Path
    information_before: float
    information_after: float
    shift: float
    rotation: float
    reused: bool


def register(
    moving: str | os.PathLike[str],
    fixed: str | os.PathLike[str],
    *,
    suffix: str = "_to_T2",
    output_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Registration:
    """Register ``moving`` rigidly to ``fixed`` and write it on its grid; nothing half-written is left.

    A scan that lies right already, so that the motion found is no better than none, is resampled without motion.

    Args:
        moving: the scan to move, in any format that ``read_volume`` knows.
        fixed: the scan that stays.
        suffix: of the new files, after the name of ``moving``.
        output_dir: for the new files; where not given the folder that holds ``moving``.
        seed: of the choice of voxels.

    Raises:
        FileNotFoundError, ValueError: for scans that cannot be read.
        ValueError: if the two do not overlap.
        OSError: if the folder cannot be written to; give another ``output_dir``.
    """
    source = Path(moving).expanduser()
    folder = source.parent if output_dir is None else Path(output_dir).expanduser()
    image, record, picture = (folder / f"{image_stem(source)}{suffix}{kind}" for kind in (".nii.gz", ".json", ".png"))
    computed = identity(None, None, {"seed": seed}, version=METHOD)
    key = digest([computed, content_digest(str(source)), content_digest(str(fixed))])
    if image.is_file() and picture.is_file() and (earlier := _earlier(record, key)) is not None:
        return Registration(image, picture, **earlier, reused=True)
    still, moved = read_volume(fixed), read_volume(source)
    for volume, path in ((still, fixed), (moved, source)):
        if volume.ndim != 4 or volume.shape[0] != 1 or min(volume.shape) == 0 or volume.std() == 0:
            raise ValueError(f"{path}: expected one 3D scan to register; found shape {tuple(volume.shape)}.")
    try:
        transform = rigid_transform(moved, still, seed=seed)
    except RuntimeError as error:
        raise ValueError(f"{source}: expected a scan of the same place as {fixed}; found no overlap.") from error
    before, after = (resample(moved, still, matrix) for matrix in (np.eye(4), transform))
    quality = _quality(still, before, after, transform)
    if quality["information_after"] < quality["information_before"]:
        logger.warning("%s: no motion agrees better with %s than none; it stays where it is.", source, fixed)
        transform, after = np.eye(4), before
        quality = _quality(still, before, after, transform)
    _save_image(image, after, still, f"rigidly registered to {image_stem(fixed)}")
    with atomic_write(picture) as temporary:
        _draw(temporary, still, before, after, quality, image_stem(source))
    with atomic_write(record) as temporary:  # last: it vouches for the others
        content = {"key": key, "transform": transform.tolist(), "fixed": str(fixed), **quality}
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return Registration(image, picture, **quality, reused=False)


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


def _quality(still: MetaTensor, before: np.ndarray, after: np.ndarray, transform: np.ndarray) -> dict[str, float]:
    both = (before > 0) & (after > 0)  # the same voxels for both figures
    region = both if both.any() else np.ones_like(both)
    reference = still[0].numpy()[region]
    centre = _centre(still)
    angle = np.arccos(np.clip((np.trace(transform[:3, :3]) - 1) / 2, -1, 1))
    return {
        "information_before": mutual_information(reference, before[region]),
        "information_after": mutual_information(reference, after[region]),
        "shift": float(np.linalg.norm((transform @ [*centre, 1])[:3] - centre)),
        "rotation": float(np.degrees(angle)),
    }


def _save_image(path: Path, values: np.ndarray, still: MetaTensor, description: str) -> None:
    affine = still.affine.numpy()
    image = nib.Nifti1Image(values.astype(np.float32), affine)
    image.set_sform(affine, code="scanner")
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode("ascii", "replace")[:79]
    image.set_data_dtype(np.int16)  # with the slope that spreads the values over its range: half the space of float32
    with atomic_write(path) as temporary:
        nib.save(image, temporary)


def _draw(
    path: Path, still: MetaTensor, before: np.ndarray, after: np.ndarray, quality: dict[str, float], title: str
) -> None:
    affine = still.affine.numpy()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    steps = [np.arange(n) * mm // TILE_MM for n, mm in zip(before.shape, spacing, strict=True)]
    tiles = sum(np.meshgrid(*steps, indexing="ij", sparse=True)) % 2 == 0
    fixed, moved, placed = (_unit(image) for image in (still[0].numpy(), before, after))
    columns = {
        "Fixed": fixed,
        f"Before: {quality['information_before']:.3f} bits": np.where(tiles, fixed, moved),
        f"After: {quality['information_after']:.3f} bits": np.where(tiles, fixed, placed),
        "Registered": placed,
    }
    turned = {name: to_ras(image, affine) for name, image in columns.items()}
    volume_panel(
        path,
        {name: image for name, (image, _) in turned.items()},
        spacing=turned["Fixed"][1],
        title=f"{title}: moved by {quality['shift']:.1f} mm, {quality['rotation']:.1f}°",
    )


def _unit(image: np.ndarray) -> np.ndarray:
    low, high = np.percentile(image, CLIP_PERCENTILES)
    return np.clip((image - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)


def _earlier(record: Path, key: str) -> dict[str, float] | None:
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        if content["key"] != key:
            return None
        return {k: float(content[k]) for k in ("information_before", "information_after", "shift", "rotation")}
    except (OSError, ValueError, KeyError, TypeError):
        return None
