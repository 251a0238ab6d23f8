"""Synthetic multi-contrast brain MRI of any number of subjects, made in seconds a subject, with nothing to download.

Tissue maps of the MNI152 template are deformed per subject (``phantom_anatomy``), diseased (``phantom_lesions``), and
imaged with the signal equations of spin echo and inversion recovery (``signal_equations``), a coil's bias field, the
resolution of a clinical scan and Rician noise. A phantom shows that a pipeline works; it says nothing about patients.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage
from tqdm import tqdm

from custom.data.phantom.anatomy import Anatomy, build_anatomy, load_template, random_field
from custom.data.phantom.lesions import draw_lesions, draw_plan
from custom.data.phantom.signal_equations import (
    Scan,
    Tissue,
    check_modalities,
    draw_relaxation,
    draw_scan,
    longitudinal,
    transverse,
)
from custom.utils.files import atomic_write
from custom.utils.modalities import BRATS_MODALITIES

BRATS_BOX_MM = (240, 240, 155)
DESCRIPTION = "synthetic phantom, not a patient"
MAX_WORKERS = 8  # of about 0.5 GB each
LEVELS = np.linspace(-4.0, 4.0, 256, dtype=np.float32)  # the texture's values, in standard deviations


class PhantomSubject(NamedTuple):
    """One synthetic subject.

    Attributes:
        volumes: modality → (X, Y, Z) int16, arbitrary units, background exactly 0, brain at least 1.
        seg: (X, Y, Z) uint8, 0 healthy or background, 1 necrotic or non-enhancing core, 2 oedema, 4 enhancing tumour.
        affine: (4, 4) voxel to world (RAS+ mm) of a grid that runs to the left, posterior, superior, as in BraTS.
    """

    volumes: dict[str, np.ndarray]
    seg: np.ndarray
    affine: np.ndarray


def _check(seed: int, spacing: float) -> None:
    """Raise a ValueError for a seed or a voxel size that no phantom can be made with."""
    if seed < 0:
        raise ValueError(f"seed: expected an integer from 0; found {seed}.")
    if not 0.5 <= spacing <= 8.0:
        raise ValueError(f"spacing: expected a voxel size from 0.5 to 8 mm; found {spacing}.")


def _rng(seed: int, stream: str) -> np.random.Generator:
    """Generator of its own for each part of a subject, so that one part's draws never move another's."""
    return np.random.default_rng([int(seed), zlib.crc32(stream.encode())])


def _sulci(rng: np.random.Generator, anatomy: Anatomy) -> tuple[np.ndarray, np.ndarray]:
    """One brain's own folds, which the template's average has lost: shares (N,) of fluid and of grey matter beside it.

    A sulcus is a thin sheet where a smooth random field crosses zero; its sides are cortex, 3 mm thick.
    """
    shape, mm = anatomy.brain.shape, anatomy.spacing
    step = 9.0
    field = np.abs(random_field(rng, shape, step / mm)[anatomy.brain]) * np.float32(0.75 * step)  # about mm
    place = np.clip(1.8 * random_field(rng, shape, 14 / mm)[anatomy.brain] + 0.4, 0, 1) * anatomy.maps[:, 7]
    width = rng.uniform(0.3, 1.0)
    return place * np.clip(width + 0.5 - field, 0, 1), place * np.clip(width + 3.2 - field, 0, 1)


def _fractions(rng: np.random.Generator, anatomy: Anatomy, lesions: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Share of every tissue in each brain voxel, (N,) float32 each, sum 1."""
    gm, wm, csf, _, deep, iron, _, superficial, _ = anatomy.maps.T
    fluid, cortex = _sulci(rng, anatomy)
    odds = (np.clip(csf, 1e-4, 1) / np.clip(1 - csf, 1e-4, 1)) ** 1.6 * np.float32(np.exp(rng.uniform(0.0, 1.6)))
    csf = np.maximum(odds / (1 + odds), fluid * (1 - wm * wm))
    contrast = rng.uniform(1.5, 2.4)  # one brain's borders are sharper than the average's
    gm, wm = np.clip(gm, 1e-6, 1) ** contrast, np.clip(wm, 0, 1) ** contrast
    solid = (1 - csf) / (gm + wm)
    wm = wm * solid * (1 - cortex)
    gm = 1 - csf - wm
    nuclei = (gm + 0.45 * wm * deep) * deep
    rest = 1 - np.minimum(sum(lesions.values(), np.zeros_like(csf)), 1)
    blood = _vessels(rng, anatomy) * (csf > 0.2)
    parts = {
        "csf": csf * (1 - blood) * (1 - superficial),
        "sulcal": csf * (1 - blood) * superficial,
        "blood": csf * blood,
        "iron": nuclei * iron,
        "deep": nuclei * (1 - iron),
        "white": wm - 0.45 * wm * deep * deep,
    }
    parts["grey"] = np.clip(1 - sum(parts.values()), 0, 1)
    return {**{name: part * rest for name, part in parts.items()}, **lesions}


def _vessels(rng: np.random.Generator, anatomy: Anatomy) -> np.ndarray:
    """Share (N,) of blood in the fluid: choroid plexus and veins where the template says, and some in sulci."""
    shape, mm = anatomy.brain.shape, anatomy.spacing
    one, other = (random_field(rng, shape, step / mm)[anatomy.brain] for step in (5, 9))
    plexus = np.clip(3 * anatomy.maps[:, 6] * (one + rng.uniform(-0.3, 0.5)), 0, 1)
    sulcal = np.clip(2 * (other - rng.uniform(0.2, 1.0)), 0, 1) * np.clip(2 * one, 0, 1) * anatomy.maps[:, 7]
    return np.maximum(plexus, sulcal)


def _texture(rng: np.random.Generator, anatomy: Anatomy) -> tuple[np.ndarray, np.ndarray]:
    """Variation of T1 and of T2 inside a tissue, common to all contrasts, as indices (N,) into ``LEVELS``."""
    shape, mm = anatomy.brain.shape, anatomy.spacing
    common, own = np.float32(0.75), np.float32(0.66)
    shared = sum(w * random_field(rng, shape, step / mm)[anatomy.brain] for step, w in ((24, 0.7), (7, 0.5), (3, 0.5)))
    longer = -1.3 * anatomy.maps[:, 3]  # the template is brighter on T1 than its tissue classes explain: shorter T1
    out = []
    for extra in (longer, 0.0):
        field = common * shared + own * random_field(rng, shape, 10 / mm)[anatomy.brain] + extra
        out.append(np.clip((field + 4.0) * (255 / 8.0) + 0.5, 0, 255).astype(np.uint8))
    return out[0], out[1]


def _tissue_signal(scan: Scan, tissue: Tissue, t1_index: np.ndarray, t2_index: np.ndarray) -> np.ndarray:
    """Signal of one tissue at the voxels whose texture is given; T1 and T2 are looked up, PD follows T1."""
    spread = np.exp(tissue.texture * LEVELS)
    table = tissue.pd * spread**0.3 * longitudinal(scan, tissue.t1[0] * spread, tissue.uptake)
    return table.astype(np.float32)[t1_index] * transverse(scan, tissue.t2[0] * spread).astype(np.float32)[t2_index]


def _image(
    rng: np.random.Generator,
    modality: str,
    anatomy: Anatomy,
    fractions: dict[str, tuple[np.ndarray, np.ndarray]],
    texture: tuple[np.ndarray, np.ndarray],
    relaxation: dict[str, Tissue],
) -> np.ndarray:
    """One contrast at the brain voxels, (N,) int16, at least 1."""
    scan = draw_scan(modality, rng, relaxation)
    signal = np.zeros(len(anatomy.maps), np.float32)
    for name, (where, share) in fractions.items():
        signal[where] += share * _tissue_signal(scan, relaxation[name], texture[0][where], texture[1][where])
    middle = np.full(1, 127, np.uint8)
    white, fluid = (float(_tissue_signal(scan, relaxation[n], middle, middle)[0]) for n in ("white", "csf"))
    shape, mm = anatomy.brain.shape, anatomy.spacing
    sigma = white / rng.uniform(18, 50)
    signal += np.float32(1.6 * sigma) * rng.standard_normal(len(signal), dtype=np.float32)
    volume = _point_spread(rng, anatomy.volume(signal, 0.1 * white + 0.5 * fluid), modality, mm)
    signal = (volume * _bias(rng, shape, mm))[anatomy.brain]
    signal = np.hypot(signal, np.float32(sigma) * rng.standard_normal(len(signal), dtype=np.float32))
    scale = np.exp(rng.uniform(np.log(150), np.log(1200))) / white
    return np.clip(np.rint(signal * np.float32(scale)), 1, 32767).astype(np.int16)


def _bias(rng: np.random.Generator, shape: tuple[int, ...], spacing: float) -> np.ndarray:
    """Sensitivity (X, Y, Z) of the coil: a smooth field and a slope from the surface to the centre of the head."""
    field = np.float32(rng.uniform(0.04, 0.12)) * random_field(rng, shape, 75 / spacing)
    slope = rng.normal(0.05, 0.12)  # brighter at the centre (dielectric effect) or at the surface (array coils)
    for grid, count in zip(np.ogrid[tuple(slice(n) for n in shape)], shape, strict=True):
        field -= np.float32(slope / 2) * ((2 * grid - count) / np.float32(count)) ** 2
    return np.exp(field)


def _point_spread(rng: np.random.Generator, volume: np.ndarray, modality: str, spacing: float) -> np.ndarray:
    """Blur (X, Y, Z) as a scan with thick slices in one direction, interpolated to the grid, would be."""
    thick = rng.uniform(0.4, 0.8) if modality.startswith("t1") else rng.uniform(0.5, 1.6)
    axis = 2 if not modality.startswith("t1") else int(rng.integers(3))
    sigmas = np.full(3, 0.45)
    sigmas[axis] = thick
    return ndimage.gaussian_filter(volume, sigmas / spacing, mode="nearest", truncate=3.0)


def generate_subject(
    seed: int,
    modalities: Sequence[str] = BRATS_MODALITIES,
    *,
    shape: Sequence[int] | None = None,
    spacing: float = 1.0,
) -> PhantomSubject:
    """Make one subject. The same seed gives the same subject, whichever and however many modalities are asked for.

    Args:
        seed: any integer from 0.
        modalities: contrasts to make, of t1, t1ce, t2, flair and pd; aliases allowed.
        shape: output grid; default the BraTS box, 240 × 240 × 155 mm, at ``spacing``.
        spacing: voxel size in mm.

    Raises:
        ValueError: for a modality without a signal equation, a negative seed, a spacing that is not 0.5 to 8 mm, or a
            shape that has no room for a head.
    """
    names = check_modalities(modalities)
    _check(seed, spacing)
    grid = tuple(shape) if shape is not None else tuple(int(np.ceil(n / spacing)) for n in BRATS_BOX_MM)
    if len(grid) != 3 or min(grid) * spacing < 100:
        raise ValueError(
            f"shape: expected three axes of at least 100 mm, room for a head; found {grid} at {spacing} mm."
        )
    rng = _rng(seed, "anatomy")
    plan = draw_plan(rng)
    anatomy = build_anatomy(rng, grid, spacing, plan.core_radius if plan.kind in ("high", "low") else None)
    lesions, labels = draw_lesions(_rng(seed, "lesions"), anatomy, plan)
    rng = _rng(seed, "tissue")
    relaxation = draw_relaxation(rng, field=int(rng.integers(2)))
    texture = _texture(rng, anatomy)
    fractions = {}
    for name, share in _fractions(rng, anatomy, lesions).items():
        where = np.flatnonzero(share > 1e-3)
        fractions[name] = (where, share[where])
    volumes = {}
    for name in names:
        volumes[name] = np.zeros(grid, np.int16)
        image = _image(_rng(seed, name), name, anatomy, fractions, texture, relaxation)
        volumes[name][anatomy.box] = anatomy.volume(image)
    seg = np.zeros(grid, np.uint8)
    seg[anatomy.box] = anatomy.volume(labels)
    affine = np.diag([-spacing, -spacing, spacing, 1.0])
    affine[1, 3] = (grid[1] - 1) * spacing
    return PhantomSubject(volumes, seg, affine)


def _save(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    """Write a NIfTI file in one step: readers see the whole file or none."""
    image = nib.Nifti1Image(data, affine)
    image.header["descrip"] = DESCRIPTION
    image.header.set_xyzt_units("mm")
    with atomic_write(path) as temporary:
        temporary.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def _write_subject(folder: Path, seed: int, modalities: tuple[str, ...], spacing: float) -> Path:
    """Make and write one subject unless all of its files are there."""
    names = (*modalities, "seg")
    paths = {name: folder / f"{folder.name}_{name}.nii.gz" for name in names}
    if not all(path.is_file() for path in paths.values()):
        subject = generate_subject(seed, modalities, spacing=spacing)
        folder.mkdir(parents=True, exist_ok=True)
        for name in modalities:
            _save(paths[name], subject.volumes[name], subject.affine)
        _save(paths["seg"], subject.seg, subject.affine)
    return folder


def write_dataset(
    out: Path | str,
    subjects: int,
    seed: int = 0,
    modalities: Sequence[str] = BRATS_MODALITIES,
    num_workers: int | None = None,
    progress: bool = True,
    spacing: float = 1.0,
) -> list[Path]:
    """Write phantoms in the layout of BraTS 2021, ``<out>/<id>/<id>_<modality>.nii.gz`` and ``<id>_seg.nii.gz``.

    Subject ``phantom-0007`` depends on ``seed`` and its own number only. Subjects that are complete are left alone, so
    an interrupted run goes on where it stopped.

    Args:
        out: folder of the dataset, made where absent.
        subjects: how many.
        seed: of the dataset.
        modalities: contrasts to make, of t1, t1ce, t2, flair and pd.
        num_workers: subjects made at once; default one a core. Threads: the work is done outside Python's lock.
        progress: show a progress bar.
        spacing: voxel size in mm.

    Returns:
        the subjects' folders, in order.

    Raises:
        ValueError: for less than one subject or worker, and as ``generate_subject``.
        FileExistsError: where ``out`` is a file.
    """
    names = check_modalities(modalities)
    _check(seed, spacing)
    if subjects < 1:
        raise ValueError(f"subjects: expected at least 1; found {subjects}.")
    workers = num_workers if num_workers is not None else min(os.cpu_count() or 1, MAX_WORKERS)
    if workers < 1:
        raise ValueError(f"num_workers: expected at least 1, or None for one a core; found {num_workers}.")
    root = Path(out)
    if root.exists() and not root.is_dir():
        raise FileExistsError(f"{root}: expected a folder for the phantoms, found a file. Name another folder.")
    root.mkdir(parents=True, exist_ok=True)
    folders = [root / f"phantom-{number:04d}" for number in range(subjects)]
    seeds = [int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) for number in range(subjects)]
    load_template()  # once, before the threads need it
    with ThreadPoolExecutor(min(workers, subjects)) as pool:
        jobs = [pool.submit(_write_subject, *job, names, spacing) for job in zip(folders, seeds, strict=True)]
        try:
            return [job.result() for job in tqdm(jobs, desc="phantoms", unit="subject", disable=not progress)]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
