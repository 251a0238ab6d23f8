"""Tests of custom.data.preprocessing."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Lambdad, LoadImaged

from custom.data.preprocessing import preprocessing

LPS = np.diag([-2.0, -2.0, 2.0, 1.0])


@pytest.fixture
def subject(head, write_volume) -> dict[str, str]:
    """Two contrasts, the second of a part of the head, and a label, on an LPS grid."""
    part = head(seed=1)
    part[:12] = 0
    volumes = {"t1": head(), "t2": part, "seg": (part > 500).astype(np.float32)}
    return {name: str(write_volume(f"{name}.nii.gz", data, affine=LPS)) for name, data in volumes.items()}


def test_images_labels_and_masks(subject) -> None:
    item = preprocessing(("t1", "t2", "flair"), labels="seg", divisor=16)(subject)
    assert set(item) == {"t1", "t2", "seg", "t1_foreground", "t2_foreground"}
    assert {tuple(value.shape) for value in item.values()} == {(1, 32, 32, 32)}
    for name in ("t1", "t2"):
        image, mask = item[name], item[f"{name}_foreground"]
        assert isinstance(image, MetaTensor)
        assert (float(image.min()), float(image.max())) == (-1.0, 1.0)
        assert mask.dtype == torch.bool
        assert int(mask.sum()) == int((nib.load(subject[name]).get_fdata() > 0).sum())
        assert (image[~mask] == -1).all()
    assert set(item["seg"].unique().tolist()) == {0, 1}


def test_it_is_undone(subject) -> None:
    chain = preprocessing("t1", volume_size="brats")
    item = chain({"t1": subject["t1"]})
    assert item["t1"].shape == (1, 192, 192, 144)
    item["pred"] = item["t1_foreground"].float()
    back = Invertd("pred", chain, orig_keys="t1", nearest_interp=False)(item)["pred"]
    np.testing.assert_array_equal(back[0].numpy() > 0, nib.load(subject["t1"]).get_fdata() > 0)
    np.testing.assert_allclose(back.affine.numpy(), LPS)


def test_tensors_only_and_further_transforms(subject) -> None:
    chain = preprocessing(
        ("t1", "t2"), keep_masks=False, tensors_only=True, then=[Lambdad("t1", lambda image: image + 5)]
    )
    item = chain(subject)
    assert {key for key, value in item.items() if torch.is_tensor(value)} == {"t1", "t2"}
    assert type(item["t2"]) is torch.Tensor
    assert item["t1"].min() == 4


def test_clients_find_single_transforms() -> None:
    """MONAI Label looks for the loader among them; others drop some by the names of their classes."""
    chain = preprocessing("image")
    assert type(chain) is Compose
    assert isinstance(chain.transforms[0], LoadImaged)
    assert not any(isinstance(transform, Compose) for transform in chain.transforms)


def test_unknown_size() -> None:
    with pytest.raises(ValueError, match="volume_size: expected brats, ixi or three numbers"):
        preprocessing("image", volume_size="bratz")
