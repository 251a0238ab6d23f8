"""Rigid registration of one scan to another of the same head, such as IXI's T1 to the T2 whose grid the PD shares.

``register(t1, t2)`` writes three files beside the T1 and never touches the originals: ``<name>_to_T2.nii.gz`` (the T1
on the T2's grid), ``.json`` (transform and quality) and ``.png`` (checkerboard before and after). A second call with
the same content of both files returns what is there. ``python -m custom prepare --layout ixi`` calls it per subject;
subjects can be registered side by side. How the motion is found: ``custom.data.registration``.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from monai.data import MetaTensor

from custom.data.names import image_stem
from custom.data.readers import read_volume
from custom.data.registration import CLIP_PERCENTILES, METHOD, place
from custom.evaluation.slices import to_ras
from custom.reports.figures import volume_panel
from custom.utils.files import atomic_write
from custom.utils.identity import content_digest, digest, identity

__all__ = ["Registration", "register"]

logger = logging.getLogger(__name__)

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
    placed = place(moved, still, seed=seed)
    quality = placed.quality._asdict()
    _save_image(image, placed.image, still, f"rigidly registered to {image_stem(fixed)}")
    with atomic_write(picture) as temporary:
        _draw(temporary, still, placed.before, placed.image, quality, image_stem(source))
    with atomic_write(record) as temporary:  # last: it vouches for the others
        content = {"key": key, "transform": placed.transform.tolist(), "fixed": str(fixed), **quality}
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return Registration(image, picture, **quality, reused=False)


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
