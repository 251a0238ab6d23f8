"""Anatomy of the phantom: tissue maps of the MNI152 template, deformed for one subject, with lesions.

Template: ICBM 152 nonlinear symmetric 2009a at 1 mm, as shipped with nilearn (T1, grey and white matter probability).
Source: Fonov et al., NeuroImage 54:313 (2011).

Coordinates called *template voxels* index the padded template (1 mm, RAS); those of the output are LPS as in BraTS.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from scipy import ndimage

PAD = 3  # background around the template, voxels
NODE_MM = 4.0  # spacing of the nodes that the deformation is defined on
CHANNELS = ("gm", "wm", "csf", "residual", "deep", "iron", "vessel", "cortex")

# Deep nuclei as ellipsoids: centre and radii in MNI mm, mirrored at the midline; the second group holds iron.
NUCLEI = (
    ((12, -18, 8), (12, 17, 11)),  # thalamus
    ((26, 3, 0), (9, 19, 13)),  # putamen
    ((13, 14, 8), (8, 16, 15)),  # caudate
)
IRON = (
    ((19, -3, -1), (6.5, 9.5, 7)),  # pallidum
    ((5, -20, -9), (3.5, 4, 4)),  # red nucleus
    ((10, -17, -12), (5, 6, 4)),  # substantia nigra
    ((15, -57, -35), (6, 6, 5)),  # dentate
)
# Where the agent stays in vessels: choroid plexus in the trigones, inner cerebral veins, falx.
VESSELS = (
    ((24, -42, 10), (5, 8, 6)),
    ((20, -32, 20), (3, 7, 3)),
    ((2, -42, 6), (4, 7, 6)),
    ((0, -22, 14), (2.5, 14, 2.5)),
)


class Template(NamedTuple):
    """Maps of the template, padded by ``PAD``.

    Attributes:
        maps: (X, Y, Z, 9) float32, the ``CHANNELS`` and the brain mask last.
        centre: (3,) middle of the brain, template voxels.
        ventricle_pull: (3, X/4, Y/4, Z/4) float32, unit-sized vectors that point to the ventricles from around them.
        white_points: (N, 3) template voxels well inside white matter, where a tumour may start.
        beside_ventricles: (X/2, Y/2, Z/2) bool, white matter near the ventricles, where plaques lie.
    """

    maps: np.ndarray
    centre: np.ndarray
    ventricle_pull: np.ndarray
    white_points: np.ndarray
    beside_ventricles: np.ndarray


def _ellipsoids(grid: tuple[np.ndarray, ...], parts: tuple, softness: float = 0.35) -> np.ndarray:
    """Soft union (0 to 1) of ellipsoids mirrored at the midline, on an open grid of MNI coordinates (mm)."""
    out = np.zeros(np.broadcast_shapes(*(g.shape for g in grid)), np.float32)
    x, y, z = np.abs(grid[0]), grid[1], grid[2]
    for (cx, cy, cz), (rx, ry, rz) in parts:
        r = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2)
        np.maximum(out, np.clip((1 - r) / softness + 0.5, 0, 1), out=out)
    return out


@functools.lru_cache(maxsize=1)
def load_template() -> Template:
    """The template's maps; read once a process (about 2 s), from files inside the nilearn package."""
    from nilearn import datasets  # slow to import, and needed here only

    images = [
        load(resolution=1)
        for load in (
            datasets.load_mni152_template,
            datasets.load_mni152_gm_template,
            datasets.load_mni152_wm_template,
            datasets.load_mni152_brain_mask,
        )
    ]
    t1, gm, wm, mask = (np.asarray(image.dataobj, dtype=np.float32) for image in images)
    origin = images[0].affine[:3, 3]
    box = ndimage.find_objects((mask > 0).astype(np.uint8))[0]
    t1, gm, wm, mask = (np.pad(a[box], PAD) for a in (t1 * mask, gm * mask, wm * mask, mask))
    start = origin + [s.start - PAD for s in box]
    grid = np.ogrid[tuple(slice(o, o + n) for o, n in zip(start, mask.shape, strict=True))]
    # Averaging many brains blurs the sulci: sharpened T1 darkness brings their fluid back.
    sharp = t1 + 0.9 * (t1 - ndimage.gaussian_filter(t1, 2.5))
    dark = np.clip((0.60 - sharp) / 0.32, 0, 1) * (1 - wm)
    csf = np.maximum(np.clip(1 - gm - wm, 0, 1), dark) * mask
    residual = (t1 - (0.875 * wm + 0.65 * gm + 0.28 * np.clip(1 - gm - wm, 0, 1))) * mask / 0.1
    residual = ndimage.gaussian_filter(residual * (csf < 0.3), 1.0)
    iron = _ellipsoids(grid, IRON)
    deep = np.maximum(_ellipsoids(grid, NUCLEI), iron)
    vessel = _ellipsoids(grid, VESSELS) * csf
    depth = ndimage.distance_transform_edt(mask[::2, ::2, ::2] > 0).astype(np.float32) * 2
    depth = depth.repeat(2, 0).repeat(2, 1).repeat(2, 2)[tuple(slice(n) for n in mask.shape)]
    cortex = ndimage.gaussian_filter(np.clip((20 - depth) / 8, 0, 1) * (1 - deep), 1.0)
    maps = np.stack([gm, wm, csf, residual, deep, iron, vessel, cortex, mask], axis=-1).astype(np.float32)
    return Template(maps, np.array(ndimage.center_of_mass(mask)), *_landmarks(mask, wm, csf, deep))


def _landmarks(mask: np.ndarray, wm: np.ndarray, csf: np.ndarray, deep: np.ndarray) -> tuple[np.ndarray, ...]:
    """Pull towards the ventricles, points deep in white matter and white matter beside the ventricles."""
    step = (slice(None, None, 2),) * 3
    depth = ndimage.distance_transform_edt(mask[step] > 0) * 2.0
    ventricle = (csf[step] > 0.5) & (depth > 28.0)
    soft = ndimage.gaussian_filter(ventricle.astype(np.float32), 2.5)[step]
    pull = np.stack(np.gradient(soft))
    pull /= np.sqrt((pull**2).sum(axis=0)).max()
    white = ndimage.distance_transform_edt(wm[step] > 0.8) * 2.0
    near = ndimage.distance_transform_edt(~ventricle) * 2.0
    inside = np.argwhere((white > 4.0) & (depth > 14.0)) * 2.0
    beside = (white > 1.9) & (near > 1.9) & (near < 13.0) & (deep[step] < 0.1)
    return pull.astype(np.float32), inside, beside


def _basis(count: int, nodes: int, step: float) -> np.ndarray:
    """Cubic B-spline matrix (count, nodes) from nodes ``step`` voxels apart (the first at −step) to voxels."""
    x = np.arange(count, dtype=np.float32)[:, None] / np.float32(step) + 1.0
    d = np.abs(x - np.arange(nodes, dtype=np.float32)[None])
    return np.where(d < 1, (4 - 6 * d**2 + 3 * d**3) / 6, np.clip(2 - d, 0, None) ** 3 / 6).astype(np.float32)


def node_count(count: int, step: float) -> int:
    """Nodes that a cubic B-spline over ``count`` voxels needs, ``step`` voxels apart."""
    return int(np.ceil((count - 1) / step)) + 3


def spline_upsample(
    nodes: np.ndarray, shape: tuple[int, ...], step: float, box: tuple[slice, ...] | None = None, scale: str = "mean"
) -> np.ndarray:
    """Cubic B-spline field on (X, Y, Z) voxels from nodes (x, y, z) ``step`` voxels apart, as three matrix products.

    Args:
        nodes: values at the nodes, ``node_count`` of them along each axis.
        shape: the grid of voxels.
        step: distance of the nodes in voxels.
        box: the part of the grid that is wanted, default all of it.
        scale: "mean" keeps linear functions of the position; "variance" turns independent standard normal nodes into
            a field of unit variance everywhere.
    """
    out = nodes.astype(np.float32, copy=False)
    for axis, count in enumerate(shape):
        matrix = _basis(count, out.shape[axis], step)
        matrix = matrix[box[axis]] if box is not None else matrix
        if scale == "variance":
            matrix = matrix / np.sqrt((matrix**2).sum(axis=1, keepdims=True))
        out = np.moveaxis(np.tensordot(matrix, out, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(out)


def random_field(rng: np.random.Generator, shape: tuple[int, ...], step: float) -> np.ndarray:
    """Smooth Gaussian random field (X, Y, Z), mean 0, variance 1, correlated over about ``step`` voxels."""
    step = max(float(step), 1.0)
    nodes = rng.standard_normal([node_count(n, step) for n in shape], dtype=np.float32)
    return spline_upsample(nodes, shape, step, scale="variance")


def sample_maps(maps: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Trilinear interpolation of (X, Y, Z, C) maps at coordinates (3, N) in voxels → (N, C); zero outside."""
    shape = maps.shape[:3]
    flat = maps.reshape(-1, maps.shape[-1])
    out = np.empty((coordinates.shape[1], maps.shape[-1]), np.float32)
    for start in range(0, len(out), 65536):
        part = slice(start, start + 65536)
        low, fraction = [], []
        for axis in range(3):
            x = np.clip(coordinates[axis, part], 0, shape[axis] - 1.001)
            floor = x.astype(np.int32)
            low.append(floor)
            fraction.append(x - floor)
        index = (low[0] * shape[1] + low[1]) * shape[2] + low[2]
        total = 0.0
        for corner in np.ndindex(2, 2, 2):
            weight = np.ones((), np.float32)
            for axis in range(3):
                weight = weight * (fraction[axis] if corner[axis] else 1 - fraction[axis])
            offset = (corner[0] * shape[1] + corner[1]) * shape[2] + corner[2]
            total = total + flat.take(index + offset, axis=0) * weight[:, None]
        out[part] = total
    return out


class Anatomy(NamedTuple):
    """A subject's anatomy on the output grid.

    Attributes:
        box: the brain's bounding box in the output grid.
        brain: (X, Y, Z) bool inside the box; the N brain voxels, in C order, are the rows of ``maps``.
        maps: (N, 9) float32, the template's maps at the brain voxels.
        coordinates: (3, N) float32, the template voxel that each brain voxel comes from.
        tumour: (3,) voxel in the box where a tumour was given room, or None.
        spacing: voxel size in mm.
    """

    box: tuple[slice, ...]
    brain: np.ndarray
    maps: np.ndarray
    coordinates: np.ndarray
    tumour: np.ndarray | None
    spacing: float

    def volume(self, values: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """Values (N,) at the brain voxels as a volume (X, Y, Z) of the box."""
        out = np.full(self.brain.shape, fill, values.dtype)
        out[self.brain] = values
        return out


def _rotation(rng: np.random.Generator) -> np.ndarray:
    """Rotation matrix of a head that lies a few degrees askew."""
    a, b, c = np.deg2rad(rng.normal(0, 4, 3).clip(-9, 9))
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return rx @ ry @ rz


def _deformed_nodes(rng: np.random.Generator, template: Template, shape: tuple[int, ...], spacing: float) -> np.ndarray:
    """Template voxel (3, x, y, z) of each node of the output grid: head size, pose, shape, folding, ventricles."""
    step = NODE_MM / spacing
    counts = tuple(node_count(n, step) for n in shape)
    share = rng.uniform(0.14, 0.225)  # of the BraTS box, 240 × 240 × 155 mm
    size = np.cbrt(share * 240 * 240 * 155 / template.maps[..., -1].sum())
    scale = size * np.exp(rng.normal(0, 0.025, 3))
    middle = (np.array(shape) - 1) / 2 + rng.normal(0, [5, 6, 1.5]).clip(-12, 12) / spacing
    grid = np.stack(np.meshgrid(*[(np.arange(n) - 1) * step for n in counts], indexing="ij"))
    offset = (grid - middle[:, None, None, None]) * spacing * np.array([-1, -1, 1])[:, None, None, None]
    matrix = np.diag(1 / scale) @ _rotation(rng)
    nodes = np.tensordot(matrix, offset, axes=1) + template.centre[:, None, None, None]
    for wavelength, amplitude in ((44.0, 3.0), (20.0, 1.7), (9.0, 0.9)):
        for axis in range(3):
            nodes[axis] += amplitude * random_field(rng, counts, wavelength / NODE_MM)
    widening = rng.uniform(-1.5, 5.0)  # ventricles differ with age and disease
    for axis in range(3):
        nodes[axis] += widening * ndimage.map_coordinates(template.ventricle_pull[axis], nodes / 4, order=1)
    return nodes.astype(np.float32)


def _make_room(rng: np.random.Generator, template: Template, nodes: np.ndarray, radius: float) -> np.ndarray:
    """Choose a place for a tumour, push the tissue around it away (in place), return the place as node index."""
    point = template.white_points[rng.integers(len(template.white_points))]
    distance = np.sqrt(((nodes - point[:, None, None, None]) ** 2).sum(axis=0))
    place = np.array(np.unravel_index(distance.argmin(), distance.shape))
    grid = np.indices(distance.shape)
    squared = ((grid - place[:, None, None, None]) ** 2).sum(axis=0) * NODE_MM**2
    push = rng.uniform(0.1, 0.4) * np.exp(-squared / (2 * (1.3 * radius) ** 2))
    nodes -= (nodes - point[:, None, None, None].astype(np.float32)) * push.astype(np.float32)
    return place


def build_anatomy(
    rng: np.random.Generator, shape: tuple[int, ...], spacing: float, tumour_radius: float | None
) -> Anatomy:
    """Deform the template for one subject.

    Args:
        rng: source of the draw.
        shape: the output grid, LPS.
        spacing: its voxel size in mm.
        tumour_radius: size in mm of the tumour to make room for, None for no tumour.
    """
    template = load_template()
    step = NODE_MM / spacing
    nodes = _deformed_nodes(rng, template, shape, spacing)
    place = None if tumour_radius is None else _make_room(rng, template, nodes, tumour_radius)
    threshold = rng.uniform(0.4, 0.6)
    mask = template.maps[..., -1]
    coarse = ndimage.map_coordinates(mask, nodes, order=1) > 0.02
    sides = []
    for axis, count in enumerate(shape):
        used = np.flatnonzero(coarse.any(axis=tuple(a for a in range(3) if a != axis))) - 1
        low, high = int((used[0] - 1.5) * step), int(np.ceil((used[-1] + 1.5) * step)) + 1
        sides.append(slice(max(low, 0), min(high, count)))
    box = tuple(sides)
    field = np.stack([spline_upsample(nodes[axis], shape, step, box) for axis in range(3)])
    near = ndimage.binary_dilation(ndimage.map_coordinates(mask, field[:, ::3, ::3, ::3], order=0) > 0, iterations=1)
    for axis in range(3):
        near = near.repeat(3, axis=axis)
    near = near[tuple(slice(n) for n in field.shape[1:])]
    coordinates = field[:, near]
    maps = sample_maps(template.maps, coordinates)
    inside = maps[:, -1] > threshold
    brain = np.zeros(near.shape, bool)
    brain[near] = inside
    tumour = None if place is None else (place - 1) * step - [s.start for s in box]
    return Anatomy(box, brain, maps[inside], coordinates[:, inside], tumour, spacing)
