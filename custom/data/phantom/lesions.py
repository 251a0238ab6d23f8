"""Lesions of the phantom: gliomas as in BraTS and plaques as in multiple sclerosis.

Labels are those of BraTS: 1 necrotic or non-enhancing core, 2 oedema, 4 enhancing tumour. Plaques carry label 2, as
abnormal signal on FLAIR outside a tumour's core.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from custom.data.phantom.anatomy import Anatomy, load_template, random_field

LABELS = {"core": 1, "necrosis": 1, "oedema": 2, "plaque": 2, "enhancing": 4}


class LesionPlan(NamedTuple):
    """Disease of a subject: ``kind`` is "high", "low" (grade of glioma), "ms" or "none"; radii in mm."""

    kind: str
    core_radius: float
    oedema_radius: float


def draw_plan(rng: np.random.Generator) -> LesionPlan:
    """Draw a disease: 55 % high-grade glioma, 15 % low-grade glioma, 15 % multiple sclerosis, 15 % none."""
    kind = str(rng.choice(["high", "low", "ms", "none"], p=[0.55, 0.15, 0.15, 0.15]))
    core = rng.uniform(7, 20)
    return LesionPlan(kind, core, core + rng.uniform(5, 22) if kind == "high" else core + rng.uniform(0, 6))


def _window(brain: np.ndarray, centre: np.ndarray, radius: float) -> tuple[slice, ...]:
    """The part of the box within ``radius`` voxels of ``centre`` along each axis."""
    return tuple(
        slice(max(int(c - radius), 0), max(min(int(c + radius) + 1, n), 1))
        for c, n in zip(centre, brain.shape, strict=True)
    )


def _offsets(window: tuple[slice, ...], centre: np.ndarray, spacing: float) -> list[np.ndarray]:
    """Open grid of the distances in mm from the centre along each axis."""
    return [(g - c) * np.float32(spacing) for g, c in zip(np.ogrid[window], centre, strict=True)]


def _tilted_radius(rng: np.random.Generator, offsets: list[np.ndarray], stretch: float) -> np.ndarray:
    """Distance (mm) from the centre in a randomly turned ellipsoid of unit volume ratio."""
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    factors = np.exp(rng.normal(0, stretch, 3))
    factors /= np.cbrt(factors.prod())
    squared = [
        (sum(np.float32(a) * o for a, o in zip(axis, offsets, strict=True)) * np.float32(factor)) ** 2
        for axis, factor in zip(axes, factors, strict=True)
    ]
    return np.sqrt(squared[0] + squared[1] + squared[2])


def _ramp(depth: np.ndarray, width: float) -> np.ndarray:
    """Soft indicator of ``depth > 0`` (mm) with an edge ``width`` mm wide."""
    return np.clip(depth / width + 0.5, 0, 1)


def _glioma(rng: np.random.Generator, anatomy: Anatomy, plan: LesionPlan) -> tuple[tuple[slice, ...], dict]:
    """Fractions of oedema, core, enhancing tumour and necrosis around the tumour's place, in a window of the box."""
    assert anatomy.tumour is not None
    mm = anatomy.spacing
    window = _window(anatomy.brain, anatomy.tumour, (1.9 * plan.oedema_radius + 6) / mm)
    shape = tuple(s.stop - s.start for s in window)

    def noise(wavelength: float) -> np.ndarray:
        return random_field(rng, shape, wavelength / mm)

    offsets = _offsets(window, anatomy.tumour, mm)
    white = ndimage.gaussian_filter(anatomy.volume(anatomy.maps[:, 1])[window], 1.5 / mm)
    fluid = anatomy.volume(anatomy.maps[:, 2])[window]
    r = _tilted_radius(rng, offsets, 0.18)
    reach = plan.oedema_radius * (1 + 0.28 * noise(18) + 0.12 * noise(7)) * (0.42 + 0.72 * white)
    reach *= 1 - 0.45 * _other_side(anatomy)[window]
    oedema = _ramp(reach - r, 7.0) * (1 - np.clip(2 * fluid, 0, 1)) * np.clip(0.35 + 0.9 * white, 0, 1)
    oedema *= rng.uniform(0.6, 0.95) if plan.kind == "high" else rng.uniform(0.3, 0.7)
    depth = plan.core_radius * (1 + 0.20 * noise(14) + 0.10 * noise(6)) - r * (1 + 0.25 * np.clip(fluid - 0.4, 0, 1))
    tumour = _ramp(depth, 2.0)
    if plan.kind == "low":
        return window, {"oedema": oedema * (1 - tumour), "core": tumour * (0.75 + 0.25 * _ramp(noise(6), 3.0))}
    rim = np.clip(rng.uniform(2.0, 4.5) * (1 + 0.6 * noise(7)), 0, None)
    inner = tumour * _ramp(depth - rim, 1.5)
    rotten = _ramp(noise(8) + rng.uniform(-0.3, 1.5), 0.8)
    patchy = 0.2 + 0.8 * _ramp(noise(8) + 0.8, 1.2)
    shell = tumour - inner
    return window, {
        "oedema": oedema * (1 - tumour),
        "enhancing": shell * patchy,
        "core": shell * (1 - patchy) + inner * (1 - rotten),
        "necrosis": inner * rotten,
    }


def _other_side(anatomy: Anatomy) -> np.ndarray:
    """1 in the hemisphere without the tumour, 0 in the other, with a ramp at the midline: few tracts cross it."""
    x = anatomy.volume(anatomy.coordinates[0] - np.float32(load_template().centre[0]))
    assert anatomy.tumour is not None
    middle = anatomy.tumour.astype(int).clip(0, np.array(x.shape) - 1)
    return np.clip(-np.sign(x[tuple(middle)]) * x / 8, 0, 1)


def _plaques(rng: np.random.Generator, anatomy: Anatomy) -> np.ndarray:
    """Fraction (X, Y, Z) of plaques, ellipsoids of 1.5 to 6 mm beside the ventricles."""
    mm = anatomy.spacing
    out = np.zeros(anatomy.brain.shape, np.float32)
    few = rng.integers(anatomy.coordinates.shape[1], size=20000)
    allowed = load_template().beside_ventricles
    index = np.clip(np.rint(anatomy.coordinates[:, few] / 2).astype(int), 0, np.array(allowed.shape)[:, None] - 1)
    few = few[allowed[tuple(index)]]
    places = np.argwhere(anatomy.brain)[few[: rng.integers(6, 40)]]
    for place in places:
        radius = rng.gamma(3.0, 0.9) + 1.0
        window = _window(out, place, 2 * radius / mm + 2)
        r = _tilted_radius(rng, _offsets(window, place, mm), 0.3)
        np.maximum(out[window], rng.uniform(0.5, 1.0) * _ramp(radius - r, 1.5), out=out[window])
    return out


def draw_lesions(
    rng: np.random.Generator, anatomy: Anatomy, plan: LesionPlan
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Fractions of diseased tissue and their labels.

    Returns:
        fractions: name of the tissue → (N,) float32 at the brain voxels, 0 to 1 and at most 1 in sum.
        labels: (N,) uint8, the label of the largest of the fractions where that is over 0.25, else 0.
    """
    volumes: dict[str, np.ndarray] = {}
    window: tuple[slice, ...] = (slice(None),) * 3
    if plan.kind in ("high", "low"):
        window, volumes = _glioma(rng, anatomy, plan)
    elif plan.kind == "ms":
        volumes = {"plaque": _plaques(rng, anatomy)}
    fractions, labels = {}, np.zeros(len(anatomy.maps), np.uint8)
    largest = np.full(len(anatomy.maps), 0.25, np.float32)
    for name, part in volumes.items():
        whole = np.zeros(anatomy.brain.shape, np.float32)
        whole[window] = part
        fractions[name] = whole[anatomy.brain]
        wins = fractions[name] > largest
        labels[wins], largest[wins] = LABELS[name], fractions[name][wins]
    return fractions, labels
