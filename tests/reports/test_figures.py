from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from monai.data import MetaTensor

from custom.evaluation import slices
from custom.reports import figures


@pytest.fixture
def head() -> np.ndarray:
    """A ball in RAS order, brighter to the right, the front and the top."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in (20, 24, 18)], indexing="ij")
    return np.where(x**2 + y**2 + z**2 < 0.8, 0.5 + 0.1 * x + 0.15 * y + 0.2 * z, 0).astype(np.float32)


def test_axial_slices_are_radiological(head):
    shown = slices.axial(head, 9)
    assert shown.shape == (24, 20)
    assert shown[:, 4].sum() > shown[:, -5].sum()  # the patient's right, brighter, is on the left
    assert shown[4].sum() > shown[-5].sum()  # the front is up


def test_sagittal_slices_have_the_top_up_and_the_front_left(head):
    shown = slices.sagittal(head, 10)
    assert shown.shape == (18, 24)
    assert shown[4].sum() > shown[-5].sum()
    assert shown[:, 4].sum() > shown[:, -5].sum()


def test_slice_position(head):
    lesion = np.zeros_like(head, dtype=bool)
    assert slices.slice_position(head > 0, lesion) == slices.slice_position(head > 0)
    lesion[4, 5:9, 6] = True
    lesion[5, 5, 6] = True
    assert slices.slice_position(head > 0, lesion) == (4, 5, 6)


def test_volume_and_spacing_of_a_tensor(head):
    image = MetaTensor(torch.from_numpy(head)[None, None], affine=torch.diag(torch.tensor([-1.0, 2.0, 3.0, 1.0])))
    np.testing.assert_array_equal(slices.volume(image), head)
    assert slices.spacing_of(image) == pytest.approx((1.0, 2.0, 3.0))
    assert slices.spacing_of(image.as_tensor()) == (1.0, 1.0, 1.0)


def test_translation_grid(tmp_path, head):
    names = ("t1", "t2", "flair")
    shown = {(s, t): slices.axial(head, 9) for s in names for t in names if (s, t) != ("t1", "flair")}
    path = tmp_path / "figures" / "grid.png"
    truths = {t: slices.axial(head, 9) for t in names}
    assert figures.translation_grid(path, shown, truths, title="subject", spacing=(1.0, 2.0)) == path
    picture = imread(path)
    assert picture[:5, :5, :3].max() == 0  # black
    assert 0.4 < picture[..., :3].max() <= 1
    assert picture.shape[0] > picture.shape[1]  # four rows of tall voxels, three columns


def test_grid_without_truth_of_a_target(tmp_path, head):
    shown = slices.axial(head, 9)
    path = figures.translation_grid(tmp_path / "g.png", {("t1", "t2"): shown}, {"t2": None})
    assert path.is_file()


@pytest.mark.parametrize("labelled", [True, False])
def test_methods_beside_the_truth(tmp_path, head, labelled):
    truth = (slices.axial(head, 9), slices.sagittal(head, 10))
    lesion = tuple(np.zeros_like(s, dtype=np.uint8) for s in truth)
    for mask in lesion:
        mask[6:10, 6:10] = 1
    columns = {"Source T1": truth, "full model": tuple(0.5 * s for s in truth)}
    path = figures.method_panel(
        tmp_path / "p.png", columns, truth, lesion=lesion if labelled else None, without_error=["Source T1"]
    )
    picture = imread(path)[..., :3]
    green = (picture[..., 1] > 0.6) & (picture[..., 0] < 0.4) & (picture[..., 2] < 0.5)
    assert green.any() == labelled
    assert (np.ptp(picture, axis=-1) > 0.2).any()  # the errors are in colour


def test_boxes_are_round_the_largest_parts(head):
    axes = Figure().add_subplot()
    mask = np.zeros((40, 64))
    for i, size in enumerate((1, 2, 3, 4, 5)):
        mask[4 : 4 + size, 12 * i + 3 : 12 * i + 3 + size] = 1
    figures._boxes(axes, mask)
    widths = [patch.get_width() for patch in axes.patches]
    assert widths == [9, 8, 7, 6]  # a margin of two voxels on either side


def test_an_empty_volume_can_be_drawn(tmp_path):
    empty = np.zeros((12, 12, 12), np.float32)
    assert figures.volume_panel(tmp_path / "e.png", {"Source": empty, "T2": empty}).is_file()


def test_pyplot_is_not_needed(tmp_path, head, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    figures.volume_panel(tmp_path / "p.png", {"Source": head})
