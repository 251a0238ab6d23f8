"""Tests of custom.data.sets: the sources of one subject as one image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from custom.data.foreground import foreground_key
from custom.data.preprocessing import preprocessing
from custom.data.readers import read_volume
from custom.data.sets import DISAGREEMENT_KEY, as_set, disagreement, members_of, sources_of
from custom.data.transforms import LoadVolumed
from custom.utils.errors import find_user_error
from custom.utils.identity import describe
from tests.fixtures.brains import SPACING

pytestmark = pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")  # of ITK's wrapping


@pytest.fixture
def pair(write_volume: Callable, brain: Callable) -> list[Path]:
    """T1 and FLAIR of one brain on one grid."""
    return [write_volume(f"p_{m}.nii.gz", brain(m), affine=SPACING) for m in ("t1", "flair")]


def read(files: list[Path], **kwargs: bool) -> MetaTensor:
    return as_set([read_volume(file) for file in files], **kwargs)


def test_a_channel_for_each_source_in_their_order(pair: list[Path]) -> None:
    image = read(pair)
    assert sources_of(image.meta) == [str(file) for file in pair]
    for member, file in zip(members_of(image), pair, strict=True):
        assert torch.equal(member.as_tensor(), read_volume(file).as_tensor())
        assert sources_of(read_volume(file).meta) == [member.meta["filename_or_obj"]] == [str(file)]


def test_another_order_of_axes_is_the_same_grid(pair: list[Path], write_volume: Callable, brain: Callable) -> None:
    turned = nib.as_closest_canonical(nib.load(pair[1])).as_reoriented([[1, -1], [0, 1], [2, -1]])
    other = write_volume("turned.nii.gz", np.asarray(turned.dataobj), affine=turned.affine)
    assert read_volume(other).shape != read_volume(pair[1]).shape
    assert torch.equal(read([pair[0], other]).as_tensor(), read(pair).as_tensor())


def test_each_source_is_prepared_as_a_training_prepares_it(pair: list[Path]) -> None:
    """One box around all, every source on its own scale and within its own foreground."""
    together = preprocessing("image", sets=True)({"image": [str(file) for file in pair]})
    keys = ("t1", "flair")
    apart = preprocessing(keys)({key: str(file) for key, file in zip(keys, pair, strict=True)})
    assert torch.equal(together["image"].as_tensor(), torch.cat([apart[key].as_tensor() for key in keys]))
    union = apart[foreground_key("t1")].as_tensor() | apart[foreground_key("flair")].as_tensor()
    assert torch.equal(together[foreground_key("image")].as_tensor(), union)


def test_a_set_of_one_is_the_scan_itself(pair: list[Path]) -> None:
    alone, listed = (preprocessing("image", sets=True)({"image": i}) for i in (str(pair[0]), [str(pair[0])]))
    for key in ("image", foreground_key("image")):
        assert torch.equal(alone[key].as_tensor(), listed[key].as_tensor())


@pytest.fixture
def moved(write_volume: Callable, brain: Callable) -> list[Path]:
    """T1 on a fine grid, and T2 of the same head on a coarser one, 8 mm to the left."""
    coarse = np.diag([5.0, 5.0, 5.0, 1.0])
    coarse[:3, 3] = -8, 0, 0
    shape = (24, 28, 22)
    t2 = brain("t2", shape=tuple(round(n * 4 / 5) + 1 for n in shape))
    return [write_volume("t1.nii.gz", brain("t1", shape=shape), affine=SPACING), write_volume("t2.nii.gz", t2, coarse)]


def test_another_grid_is_refused_with_what_to_do(moved: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"t2\.nii\.gz: expected the sources of a subject on one grid") as raised:
        read(moved)
    said = str(raised.value)
    for part in ("of 4×4×4 mm", "of 5×5×5 mm", "--align true", "align=True", f"register('{moved[1]}', '{moved[0]}'"):
        assert part in said


def test_alignment_is_to_the_finest_grid_whatever_the_order(moved: list[Path], caplog) -> None:
    one, other = read(moved, align=True), read(moved[::-1], align=True)
    assert torch.equal(one.as_tensor(), other.as_tensor().flip(0))
    np.testing.assert_array_equal(one.affine, SPACING)
    assert "t2.nii.gz: registered to the grid of" in caplog.text
    middle = [torch.stack(torch.where(c > 0.1 * c.max())).float().mean(dim=1) * 4 for c in one.as_tensor()]
    assert (middle[0] - middle[1]).norm() < 2  # mm, half a voxel; 8 mm before


def test_the_motion_of_one_call_is_that_of_the_next(moved: list[Path]) -> None:
    assert torch.equal(read(moved, align=True).as_tensor(), read(moved, align=True).as_tensor())


def test_of_equally_fine_grids_the_first_name_counts(write_volume: Callable, brain: Callable) -> None:
    shifted = SPACING.copy()
    shifted[0, 3] = 10
    files = [write_volume("b.nii.gz", brain("t1"), affine=SPACING), write_volume("a.nii.gz", brain("t2"), shifted)]
    for order in (files, files[::-1]):
        np.testing.assert_array_equal(read(order, align=True).affine, shifted)


def test_two_with_one_content_are_refused(pair: list[Path], tmp_path: Path) -> None:
    """Also where header or compression differ."""
    copy = tmp_path / "q_t2.nii"
    image = nib.load(pair[0])
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine), copy)
    with pytest.raises(ValueError, match=r"q_t2\.nii: expected another scan than .*p_t1.*; found the same content"):
        read([pair[0], copy])


def test_a_file_with_several_volumes_is_no_set(pair: list[Path], write_volume: Callable, brain: Callable) -> None:
    both = write_volume("both.nii.gz", np.stack([brain("t1"), brain("t2")], axis=-1), affine=SPACING)
    for given in (str(both), [str(both)], [str(pair[0]), str(both)]):
        with pytest.raises(RuntimeError) as raised:
            preprocessing("image", sets=True)({"image": given})
        said = str(find_user_error(raised.value))
        assert said.startswith(f"{both}: expected one 3D volume with one channel; found 2 volumes")


def test_a_faulty_source_is_named(pair: list[Path], write_volume: Callable, brain: Callable) -> None:
    mask = write_volume("m.nii.gz", (brain("t1") > 0).astype(np.uint8), affine=SPACING)
    with pytest.raises(RuntimeError) as raised:
        preprocessing("image", sets=True)({"image": [str(pair[0]), str(mask)]})
    assert str(find_user_error(raised.value)).startswith(f"{mask}: expected an MRI contrast")


def test_brains_that_do_not_lie_in_one_place_are_told(
    pair: list[Path], write_volume: Callable, brain: Callable
) -> None:
    read_set = preprocessing("image", sets=True)
    assert read_set({"image": [str(file) for file in pair]})["image"].meta[DISAGREEMENT_KEY] == ""
    shifted = write_volume("shifted.nii.gz", np.roll(brain("t2"), 6, axis=0), affine=SPACING)
    said = read_set({"image": [str(pair[0]), str(shifted)]})["image"].meta[DISAGREEMENT_KEY]
    assert said.startswith("the brains of p_t1.nii.gz and shifted.nii.gz overlap by a Dice of 0.")


def test_the_worst_pair_is_told() -> None:
    masks = torch.zeros(3, 10, 1, 1, dtype=torch.bool)
    masks[0, :5] = masks[1, :4] = masks[2, 2:7] = True
    said = disagreement(masks, ["x/a", "x/b", "x/c"])
    assert said == "the brains of b and c overlap by a Dice of 0.44, of one head 0.8 or more"  # 2 · 2 / (4 + 5)
    assert disagreement(masks[:2], ["a", "b"]) == ""  # 8 / 9


def test_alignment_changes_no_identity() -> None:
    """It decides whether sources are refused; what is made of them is the same."""
    assert describe(LoadVolumed("image", align=True)) == describe(LoadVolumed("image"))
