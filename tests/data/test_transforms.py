"""Tests of custom.data.transforms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, DivisiblePadd, Invertd, Orientationd, ScaleIntensityRangePercentilesd

from custom.data.transforms import (
    VOLUME_SIZES,
    CropForegroundUniond,
    LoadVolumed,
    PadVolumed,
    ValidateVolumed,
)

RAS = np.diag([2.0, 2.0, 2.0, 1.0])


def volume(data: np.ndarray, name: str = "scan.nii.gz") -> MetaTensor:
    return MetaTensor(torch.as_tensor(data)[None], affine=torch.eye(4), meta={"filename_or_obj": name})


class TestLoadVolumed:
    def test_channel_first(self, write_volume) -> None:
        image = LoadVolumed("image")({"image": str(write_volume("a.nii.gz"))})["image"]
        assert image.shape == (1, 30, 34, 26)
        assert image.dtype == torch.float32

    def test_missing_file(self, tmp_path) -> None:
        with pytest.raises(FileNotFoundError, match=r"gone\.nii\.gz: expected an image; found no file"):
            LoadVolumed("image")({"image": str(tmp_path / "gone.nii.gz")})

    def test_not_an_image(self, tmp_path) -> None:
        (tmp_path / "text.nii.gz").write_text("not an image")
        with pytest.raises(ValueError, match=r"text\.nii\.gz: expected a readable 3D image"):
            LoadVolumed("image")({"image": str(tmp_path / "text.nii.gz")})

    def test_missing_key(self, write_volume) -> None:
        path = str(write_volume("a.nii.gz"))
        assert set(LoadVolumed(["t1", "t2"], allow_missing_keys=True)({"t1": path})) == {"t1"}
        with pytest.raises(KeyError):
            LoadVolumed(["t1", "t2"])({"t1": path})


class TestValidateVolumed:
    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda h: np.stack([h, h]), "found 2 volumes or channels"),
            (lambda h: h[..., 0], "found an image with 2 dimensions"),
            (lambda h: h[:, :, :5], "found 30×34×5"),
            (lambda h: np.full_like(h, 7.0), "found the constant 7"),
            (lambda h: (h > 0).astype(np.float32), "only the values 0 and 1"),
            (lambda h: np.full_like(h, np.nan), "NaN or infinite values alone"),
        ],
        ids=["4d", "2d", "thin", "constant", "mask", "nan"],
    )
    def test_faults_name_the_file(self, head, spoil: Callable, message: str) -> None:
        data = spoil(head())
        image = volume(data)
        image = image[0] if data.ndim == 4 else image
        image.meta["filename_or_obj"] = "scan.nii.gz"
        with pytest.raises(ValueError, match=f"scan.nii.gz: expected.*{message}"):
            ValidateVolumed("image")({"image": image})

    def test_good_volume_passes_unchanged(self, head) -> None:
        image = volume(head())
        assert ValidateVolumed("image", min_size=16)({"image": image})["image"] is image

    def test_4d_file(self, head, write_volume) -> None:
        path = write_volume("dti.nii.gz", np.stack([head(), head()], axis=-1))
        chain = Compose([LoadVolumed("image"), ValidateVolumed("image")])
        with pytest.raises(RuntimeError) as caught:
            chain({"image": str(path)})
        assert "found 2 volumes or channels" in str(caught.value.__cause__)


class TestCropForegroundUniond:
    def test_box_is_the_union(self) -> None:
        a, b = np.zeros((2, 20, 20, 20), dtype=np.float32)
        a[4:8, 9:11, 9:11] = 1
        b[9:11, 12:15, 9:11] = 1
        out = CropForegroundUniond(["t1", "t2"], margin=0)({"t1": volume(a), "t2": volume(b)})
        assert out["t1"].shape == out["t2"].shape == (1, 7, 6, 2)
        assert out["t1"].sum() == a.sum()
        assert out["t2"].sum() == b.sum()
        assert set(out) == {"t1", "t2"}

    def test_margin_stays_inside(self) -> None:
        a = np.zeros((12, 12, 12), dtype=np.float32)
        a[0:3, 5:6, 9:12] = 1
        assert CropForegroundUniond("t1", margin=2)({"t1": volume(a)})["t1"].shape == (1, 5, 5, 5)

    def test_labels_follow_the_images(self, head) -> None:
        labels = np.ones((30, 34, 26), dtype=np.float32)
        crop = CropForegroundUniond(["t1", "t2", "seg"], source_keys=["t1", "t2"], allow_missing_keys=True)
        out = crop({"t1": volume(head()), "seg": volume(labels)})
        assert out["seg"].shape == out["t1"].shape
        assert out["seg"].numel() < labels.size

    def test_masks_are_each_image_own_solid_and_cropped(self, head) -> None:
        data, small = head(), head()
        data[15, 17, 13] = 0
        small[:10] = 0
        crop = CropForegroundUniond(["t1", "t2", "flair"], keep_masks=True, allow_missing_keys=True)
        out = crop({"t1": volume(data), "t2": volume(small)})
        assert set(out) == {"t1", "t2", "t1_foreground", "t2_foreground"}
        for key, whole in (("t1", head()), ("t2", small)):
            mask = out[f"{key}_foreground"]
            assert mask.dtype == torch.bool
            assert mask.shape == out["t1"].shape
            assert int(mask.sum()) == int((whole > 0).sum())

    def test_inverse(self, head) -> None:
        crop = CropForegroundUniond(["t1", "t2"])
        data = {"t1": volume(head()), "t2": volume(head(seed=1))}
        back = crop.inverse(crop(data))
        for key in data:
            assert torch.equal(back[key].as_tensor(), data[key].as_tensor())

    def test_different_grids(self, head) -> None:
        data = {"t1": volume(head(), "a.nii"), "t2": volume(head((30, 34, 28)), "b.nii")}
        with pytest.raises(ValueError, match=r"one grid; found a\.nii 30×34×26; b\.nii 30×34×28"):
            CropForegroundUniond(["t1", "t2"])(data)


ORIENTATIONS = {
    "RAS": RAS,
    "LAS": np.array([[-2, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1.0]]),
    "LPS": np.array([[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    "PIR": np.array([[0, 0, 1.5, -5], [-1, 0, 0, 7], [0, -2, 0, 3], [0, 0, 0, 1.0]]),
    "oblique": np.array([[0.9, 0.1, 0, -5], [-0.1, 0.9, 0.2, 7], [0, -0.2, 0.95, 3], [0, 0, 0, 1.0]]),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_chain_is_undone_exactly(head, write_volume, orientation: str) -> None:
    """What is inside the box comes back voxel for voxel, what is outside is 0, on any grid."""
    affine = ORIENTATIONS[orientation]
    path = write_volume("scan.nii.gz", affine=affine)
    chain = Compose(
        [
            LoadVolumed("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            CropForegroundUniond("image", margin=1),
            DivisiblePadd("image", k=16, value=-1.0),
        ]
    )
    data = chain({"image": str(path)})
    assert all(n % 16 == 0 for n in data["image"].shape[1:])
    data["pred"] = data["image"].clone()
    invert = Invertd("pred", transform=chain, orig_keys="image", nearest_interp=False, to_tensor=True)
    result = invert(data)["pred"]
    np.testing.assert_array_equal(result[0].numpy(), head())
    np.testing.assert_allclose(result.affine.numpy(), affine, atol=1e-6)


def test_percentiles_are_those_of_the_box(head, write_volume) -> None:
    chain = Compose(
        [
            LoadVolumed("image"),
            CropForegroundUniond("image"),
            ScaleIntensityRangePercentilesd("image", 0.5, 99.5, -1.0, 1.0, clip=True),
        ]
    )
    small = chain({"image": str(write_volume("small.nii.gz"))})["image"]
    large = chain({"image": str(write_volume("large.nii.gz", np.pad(head(), 10)))})["image"]
    assert torch.equal(small.as_tensor(), large.as_tensor())


class TestPad:
    @pytest.mark.parametrize(
        ("size", "shape"),
        [
            (None, (32, 48, 32)),
            ("brats", (192, 192, 144)),
            ("IXI", (160, 256, 224)),
            ([20, 40, 16], (32, 48, 32)),
            ([64, 16, 16], (64, 48, 32)),
        ],
    )
    def test_at_least_the_size_and_nothing_cut(self, head, size, shape: tuple[int, int, int]) -> None:
        image = torch.from_numpy(head())[None]
        padded = PadVolumed("image", k=16, size=size, value=-1.0)({"image": image})["image"]
        assert padded.shape == (1, *shape)
        assert (padded == -1).sum() == padded.numel() - image.numel()
        torch.testing.assert_close(padded[padded != -1].sum(), image.sum())

    def test_is_divisible_pad_without_a_size(self, head) -> None:
        image = torch.from_numpy(head())[None]
        ours, monai = (t({"image": image})["image"] for t in (PadVolumed("image"), DivisiblePadd("image", k=16)))
        assert torch.equal(ours, monai)

    @pytest.mark.parametrize("size", ["brats", "ixi"])
    def test_what_is_cropped_away_comes_back(self, head, size: str) -> None:
        shape = (40, 44, 36)
        data = np.zeros(shape, np.float32)
        data[4:34, 6:40, 5:31] = head()
        image = MetaTensor(torch.from_numpy(data)[None], affine=np.diag([-2.0, -2.0, 2.0, 1.0]))
        steps = Compose(
            [
                Orientationd("image", axcodes="RAS", labels=None),
                CropForegroundUniond("image"),
                PadVolumed("image", size=size),
            ]
        )
        item = steps({"image": image})
        assert item["image"].shape == (1, *VOLUME_SIZES[size])
        item["pred"] = item["image"].clone()
        back = Invertd("pred", steps, orig_keys="image", nearest_interp=False)(item)["pred"]
        assert torch.equal(back.as_tensor(), image.as_tensor())
        np.testing.assert_array_equal(back.affine, image.affine)

    @pytest.mark.parametrize("size", ["bratz", [1, 2], 16, [0, 16, 16], [16, 16.5, 16]])
    def test_unknown_size(self, size) -> None:
        with pytest.raises(ValueError, match=r"volume_size: expected (brats, ixi or three|a whole) number"):
            PadVolumed("image", size=size)
