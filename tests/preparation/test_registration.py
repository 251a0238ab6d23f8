"""Tests of custom.preparation.registration: known motions are found again, and what is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from custom.data import registration
from custom.data.readers import read_volume
from custom.data.registration import mutual_information, rigid_transform
from custom.preparation.registration import register

pytestmark = pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")  # of ITK's wrapping

SHAPE = (32, 32, 24)
FIXED = np.diag([4.0, 4.0, 6.0, 1.0])  # the grid of a whole head in few voxels
FIXED[:3, 3] = -62, -62, -69
MOVING = np.diag([-5.0, 4.5, 4.5, 1.0])
MOVING[:3, 3] = 75, -70, -55
ROUNDING_MM = 0.05
GOLDEN = {  # METHOD → the motion that it finds, (3, 4)
    2: [
        [0.992844, -0.108706, -0.049427, -5.985330],
        [0.104737, 0.991528, -0.076821, 4.011438],
        [0.057359, 0.071094, 0.995819, 5.019977],
    ]
}
TOLERANCE_MM = 0.7  # an eighth of the voxels here; the mark for scans is 1 mm


def head(points: np.ndarray) -> np.ndarray:
    """Tissue at ``points`` (..., 3) mm: an egg with a ventricle and a tumour, without any symmetry."""
    x, y, z = np.moveaxis(points, -1, 0)
    egg = 1 / (1 + np.exp((np.sqrt((x / 48) ** 2 + ((y + 0.1 * z) / 58) ** 2 + (z / 50) ** 2) - 1) * 12))
    ventricle = np.exp(-(((x - 8) / 9) ** 2 + ((y - 5) / 22) ** 2 + ((z - 10) / 12) ** 2))
    tumour = np.exp(-(((x + 22) / 12) ** 2 + ((y + 20) / 12) ** 2 + ((z + 15) / 14) ** 2))
    return egg + ventricle + 0.6 * tumour


def motion(shift: tuple[float, float, float], degrees: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def sample(affine: np.ndarray, shape: tuple[int, ...], seed: int, contrast: Callable) -> np.ndarray:
    points = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    noise = np.random.default_rng(seed).normal(0, 4, shape)
    return (contrast(head(points)) + noise).clip(0).astype(np.float32)


@pytest.fixture
def scans(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """``scans(motion)`` → paths of a T1 and a T2 of one head that has moved in between."""

    def write(moved: np.ndarray) -> tuple[Path, Path]:
        t2 = sample(FIXED, SHAPE, 0, lambda tissue: 200 * tissue)
        # a voxel of the moving scan at p lies where the fixed one has inv(moved) p
        t1 = sample(
            np.linalg.inv(moved) @ MOVING, (30, 31, 28), 1, lambda t: 300 * np.minimum(t, 1) - 140 * (t > 1) * (t - 1)
        )
        paths = tmp_path / "a-T1.nii.gz", tmp_path / "a-T2.nii.gz"
        nib.save(nib.Nifti1Image(t1, MOVING), paths[0])
        nib.save(nib.Nifti1Image(t2, FIXED), paths[1])
        return paths

    return write


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest distance in mm that two motions put between a point of the head."""
    corners = np.array(np.meshgrid([-45, 45], [-55, 55], [-45, 45], [1])).reshape(4, -1)
    return float(np.linalg.norm(((a - b) @ corners)[:3], axis=0).max())


@pytest.mark.parametrize(
    ("shift", "degrees"),
    [((0, 0, 0), (0, 0, 0)), ((3, -2, 1), (0, 0, 0)), ((-6, 4, 5), (4, -3, 6))],
    ids=["none", "shift", "shift and turn"],
)
def test_known_motion_is_found(scans: Callable, shift: tuple, degrees: tuple) -> None:
    known = motion(shift, degrees)
    found = rigid_transform(*map(read_volume, scans(known)))
    assert distance(found, known) < TOLERANCE_MM
    np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-9)


def test_motion_changes_only_with_the_number(scans: Callable) -> None:
    """Rounding, carried on by the optimiser's steps, moves the head by less than ``ROUNDING_MM``."""
    found = rigid_transform(*map(read_volume, scans(motion((-6, 4, 5), (4, -3, 6)))))
    expected = GOLDEN.get(registration.METHOD)
    said = f"another motion than that of METHOD {registration.METHOD}: raise it and write down {found[:3].tolist()}"
    assert expected is not None, said
    assert distance(found, np.vstack([expected, [0, 0, 0, 1]])) < ROUNDING_MM, said


def test_same_result_each_time(scans: Callable) -> None:
    t1, t2 = map(read_volume, scans(motion((3, -2, 1), (1, 2, 0))))
    np.testing.assert_array_equal(rigid_transform(t1, t2), rigid_transform(t1, t2))


class TestFiles:
    def test_written_beside_the_original_on_the_fixed_grid(self, scans: Callable, tmp_path: Path) -> None:
        t1, t2 = scans(motion((5, -4, 3), (0, 0, 3)))
        before = {path: path.read_bytes() for path in (t1, t2)}
        result = register(t1, t2)
        assert result.image == tmp_path / "a-T1_to_T2.nii.gz"
        assert {p.name for p in tmp_path.iterdir()} == {
            "a-T1.nii.gz", "a-T2.nii.gz", "a-T1_to_T2.nii.gz", "a-T1_to_T2.json", "a-T1_to_T2.png"
        }  # fmt: skip
        assert {path: path.read_bytes() for path in (t1, t2)} == before
        image = nib.load(result.image)
        assert image.shape == SHAPE
        np.testing.assert_allclose(image.affine, FIXED)
        assert result.information_after > result.information_before
        assert result.picture.read_bytes().startswith(b"\x89PNG")
        record = json.loads((tmp_path / "a-T1_to_T2.json").read_text())
        assert record["information_after"] == result.information_after
        truth = ndimage.gaussian_filter(nib.load(t2).get_fdata(), 1)
        assert np.corrcoef(truth[truth > 50], image.get_fdata()[truth > 50])[0, 1] ** 2 > 0.1

    def test_done_once(self, scans: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
        t1, t2 = scans(motion((3, 0, 0), (0, 0, 0)))
        first = register(t1, t2)
        monkeypatch.setattr(registration, "rigid_transform", None)
        assert register(t1, t2) == first._replace(reused=True)
        t2.write_bytes(t2.read_bytes() + b"\0")  # another file, which gzip still allows
        with pytest.raises(TypeError):  # it would have been called
            register(t1, t2)

    def test_another_folder(self, scans: Callable, tmp_path: Path) -> None:
        result = register(*scans(np.eye(4)), output_dir=tmp_path / "out" / "new")
        assert result.image.parent == tmp_path / "out" / "new"

    def test_never_worse_than_no_motion(self, scans, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
        t1, t2 = scans(np.eye(4))
        monkeypatch.setattr(registration, "rigid_transform", lambda *args, **kwargs: motion((15, 0, 0), (0, 0, 0)))
        result = register(t1, t2)
        assert result.information_after == result.information_before
        assert (result.shift, result.rotation) == (0, 0)
        assert "a-T1.nii.gz: no motion agrees better" in caplog.text

    def test_no_overlap(self, scans: Callable, tmp_path: Path) -> None:
        t1, t2 = scans(np.eye(4))
        far = FIXED.copy()
        far[0, 3] = 5000
        nib.save(nib.Nifti1Image(np.asarray(nib.load(t2).dataobj), far), t2)
        with pytest.raises(ValueError, match="found no overlap"):
            register(t1, t2)
        assert not (tmp_path / "a-T1_to_T2.nii.gz").exists()

    def test_missing_scan(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="gone-T1"):
            register(tmp_path / "gone-T1.nii", tmp_path / "gone-T2.nii")

    def test_empty_scan(self, scans: Callable) -> None:
        t1, t2 = scans(np.eye(4))
        nib.save(nib.Nifti1Image(np.zeros(SHAPE, dtype=np.float32), FIXED), t1)
        with pytest.raises(ValueError, match=r"a-T1\.nii\.gz: expected one 3D scan"):
            register(t1, t2)


def test_mutual_information_bounds() -> None:
    values = np.random.default_rng(0).uniform(size=100_000)
    assert mutual_information(values, 1 - values, bins=16) == pytest.approx(4, abs=0.02)  # log2(16): all of it
    # the bias of an estimate from a histogram is (bins - 1)² / (2 n ln 2)
    independent = mutual_information(values, np.random.default_rng(1).uniform(size=100_000), bins=16)
    assert independent == pytest.approx(15**2 / (2e5 * np.log(2)), rel=0.3)
