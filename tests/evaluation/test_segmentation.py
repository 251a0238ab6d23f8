from __future__ import annotations

import numpy as np
import pytest
import torch

from custom.evaluation.segmentation import (
    OF_LABEL_REAL,
    OF_LABEL_SYNTHETIC,
    OF_REAL,
    WHOLE,
    Segmenter,
    SegmenterCheck,
    dice,
    load_segmenter,
)

SHAPE = (16, 18, 14)

# a bundle's LoadImaged looks for every reader that MONAI knows
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")


def images() -> dict[str, torch.Tensor]:
    t1ce, flair = torch.full(SHAPE, 0.1), torch.full(SHAPE, 0.1)
    t1ce[2:8, 3:9, 2:8] = 0.9
    flair[6:12, 3:9, 2:8] = 0.9
    return {"t1": torch.zeros(SHAPE), "t1ce": t1ce, "flair": flair}


def test_a_bundle_segments_files_on_their_own_grid(segmenter_bundle, tmp_path):
    segmenter = Segmenter(segmenter_bundle)
    assert segmenter.modalities == ["t1ce", "flair"]
    assert segmenter.structures == ["bright", "dark"]
    check = SegmenterCheck(segmenter, images(), None, affine=np.diag([-1.0, -1.0, 2.0, 1.0]))
    bright, dark = check._segment(images())
    np.testing.assert_array_equal(bright, images()["t1ce"].numpy() > 0.5)
    np.testing.assert_array_equal(dark, images()["flair"].numpy() > 0.5)
    assert not (tmp_path / "saved").exists()  # it saves nothing of its own


def test_dice_of_real_and_synthetic_input(segmenter_bundle):
    real = images()
    label = (real["t1ce"] > 0.5) | (real["flair"] > 0.5)
    check = SegmenterCheck(Segmenter(segmenter_bundle), real, label, affine=np.eye(4))
    synthetic = torch.full(SHAPE, 0.1)
    synthetic[2:8, 3:9, 2:5] = 0.9  # half of the bright structure
    rows = {(structure, of): value for _, _, structure, of, value in check.replaced("t1", "t1ce", synthetic)}
    assert rows["bright", OF_REAL] == pytest.approx(2 / 3)
    assert rows["dark", OF_REAL] == 1.0
    assert rows[WHOLE, OF_LABEL_REAL] == 1.0
    # of 360 voxels 72 are missed: those of the bright half that the dark structure does not cover
    assert rows[WHOLE, OF_LABEL_SYNTHETIC] == pytest.approx(2 * 288 / (288 + 360))
    assert check.replaced("t1ce", "t1", synthetic) == []  # the model does not use T1


def test_a_subject_without_the_model_s_contrasts_is_not_checked(segmenter_bundle):
    known = {k: v for k, v in images().items() if k != "flair"}
    assert (
        SegmenterCheck(Segmenter(segmenter_bundle), known, None, affine=np.eye(4)).replaced("t1", "t1ce", known["t1"])
        == []
    )


def test_dice():
    first, second = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert dice(first, second) == 1.0
    first[0], second[0, :2] = True, True
    assert dice(first, second) == pytest.approx(2 * 2 / (4 + 2))


def test_clear_errors(segmenter_bundle, tmp_path):
    assert load_segmenter(None) is None
    with pytest.raises(FileNotFoundError, match=r"inference\.json: expected a part of a segmentation bundle"):
        load_segmenter(tmp_path / "absent")
    (segmenter_bundle / "configs/metadata.json").write_text("{}")
    with pytest.raises(ValueError, match="Give segmenter_modalities"):
        Segmenter(segmenter_bundle)
    assert Segmenter(segmenter_bundle, modalities=["T1c", "FLAIR"]).modalities == ["t1ce", "flair"]
