"""Tests of custom.training.latents.cache; what the cache does in encoding is in test_latents.py."""

from __future__ import annotations

import copy
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose

from custom.networks import VQGAN, KLBottleneck, LatentTranslator
from custom.training.latents.cache import Codebooks, LatentCache, StoredLatents, prune_latents

INDICES = torch.arange(2 * 4 * 3 * 5).view(2, 4, 3, 5) % 32
REGION = (slice(1, 3), slice(0, 2), slice(2, 5))


@pytest.fixture
def cache(tmp_path: Path, tiny_translator: LatentTranslator) -> LatentCache:
    return LatentCache(tmp_path / "latents", tiny_translator.autoencoder, Compose([]))


def write_old(cache: LatentCache, name: str, days: float) -> Path:
    file = cache.folder / name
    cache.write(file, INDICES)
    os.utime(file, (time.time() - 86400 * days,) * 2)
    return file


def test_crops_of_codes(cache: LatentCache, tiny_translator: LatentTranslator) -> None:
    file = cache.folder / "a.npy"
    cache.write(file, INDICES)
    stored = cache.find(file)
    expected = tiny_translator.autoencoder.bottleneck.embed(INDICES).detach()
    assert stored.shape == expected.shape == (2, 4, 4, 3, 5)
    assert torch.equal(stored.read(1), expected[1])
    assert torch.equal(stored.read(1, REGION), expected[(1, slice(None), *REGION)])
    assert np.load(file, allow_pickle=False).dtype == np.uint16


def test_crops_of_codes_of_several_codebooks(tmp_path: Path) -> None:
    network = VQGAN([8, 8], 4, 32, num_codebooks=2, num_res_blocks=[1, 1], norm_num_groups=4)
    cache = LatentCache(tmp_path, network, Compose([]))
    indices = torch.stack([INDICES, 31 - INDICES], dim=1)
    cache.write(cache.folder / "a.npy", indices)
    assert np.load(cache.folder / "a.npy", allow_pickle=False).nbytes == 2 * indices.numel()
    stored = cache.find(cache.folder / "a.npy")
    expected = network.bottleneck.embed(indices).detach()
    assert stored.shape == expected.shape == (2, 4, 4, 3, 5)
    assert torch.equal(stored.read(1), expected[1])
    assert torch.equal(stored.read(1, REGION), expected[(1, slice(None), *REGION)])
    voxels = tuple(np.array([0, 2, 1]) for _ in range(3))
    assert torch.equal(stored.read(0, voxels), expected[(0, slice(None), *voxels)])


def test_crops_of_scalar_channels_behind_the_codes(tmp_path: Path) -> None:
    network = VQGAN([8], 4, 32, num_res_blocks=[1], norm_num_groups=4, haar_levels=1, scalar_channels=2)
    cache = LatentCache(tmp_path, network, Compose([]))
    levels = torch.randint(256, (2, 2, 4, 3, 5))
    cache.write(cache.folder / "a.npy", torch.cat([INDICES.unsqueeze(1), levels], dim=1))
    stored = cache.find(cache.folder / "a.npy")
    assert stored.shape == (2, 4 + 2, 4, 3, 5)
    expected = torch.cat([network.bottleneck.embed(INDICES).detach(), (levels - 128) / 16], dim=1)
    assert torch.equal(stored.read(1), expected[1])
    assert torch.equal(stored.read(0, REGION), expected[(0, slice(None), *REGION)])


def test_crops_of_values(tmp_path: Path) -> None:
    network = VQGAN([8, 8], 4, num_res_blocks=[1, 1], norm_num_groups=4, bottleneck=KLBottleneck(4))
    cache = LatentCache(tmp_path, network, Compose([]))
    values = torch.randn(2, 4, 4, 3, 5)
    cache.write(cache.folder / "a.npy", values)
    stored = cache.find(cache.folder / "a.npy")
    assert stored.shape == values.shape
    assert torch.equal(stored.read(0), values[0])
    assert torch.equal(stored.read(1, REGION), values[(1, slice(None), *REGION)])


def test_crops_of_images(cache: LatentCache) -> None:
    file, images = cache.folder / "a.npy", torch.rand(2, 1, 8, 6, 10) * 2 - 1
    images[0, 0, 0, 0, :2] = torch.tensor([-1.0, 1.0])
    assert cache.find_images(file) is None
    cache.write_images(file, images)
    stored = cache.find_images(file)
    assert stored.shape == (2, 8, 6, 10)
    # 255 steps from -1 to 1, each value to the nearest
    torch.testing.assert_close(stored.read(1), images[1], rtol=0, atol=1 / 255 + 1e-6)
    assert torch.equal(stored.read(0)[0, 0, 0, :2], torch.tensor([-1.0, 1.0]))
    assert torch.equal(stored.read(1, REGION), stored.read(1)[(slice(None), *REGION)])
    assert np.load(cache.folder / "a_images.npy", allow_pickle=False).dtype == np.uint8
    assert cache.find(file) is None  # images are not latents


def test_only_the_crop_is_read(tmp_path: Path) -> None:
    """Of a file of 4 GiB, which is a hole on the disk."""
    for number, shape in ((1, (2, 1024, 1024, 1024)), (2, (2, 2, 1024, 1024, 512))):
        np.lib.format.open_memmap(tmp_path / "large.npy", "w+", np.uint16, shape)
        stored = StoredLatents(tmp_path / "large.npy", Codebooks(torch.ones(1, 4), number, 0))
        assert stored.read(1, (slice(500, 504),) * 3).shape == (4, 4, 4, 4)


def test_a_map_holds_no_file_descriptor(cache: LatentCache) -> None:
    cache.write(cache.folder / "a.npy", INDICES)
    before = len(os.listdir("/proc/self/fd"))
    stored = [cache.find(cache.folder / "a.npy") for _ in range(20)]
    crops = [s.read(0, REGION) for s in stored]
    assert len(crops) == 20
    assert len(os.listdir("/proc/self/fd")) == before


def test_codes_need_more_than_two_bytes_beyond_65536(tmp_path: Path) -> None:
    def dtype(codes: int) -> np.dtype:
        network = VQGAN([8], 2, codes, num_res_blocks=[1], norm_num_groups=4)
        return LatentCache(tmp_path, network, Compose([])).dtype

    assert [dtype(65536), dtype(65537)] == [np.uint16, np.int32]


def test_what_is_in_use_is_marked(cache: LatentCache) -> None:
    file = write_old(cache, "a.npy", days=30)
    cache.find(file)
    assert prune_latents(cache.root) == (0, 0)
    assert file.is_file()


def test_pruning_removes_what_is_out_of_use(cache: LatentCache, tiny_translator: LatentTranslator) -> None:
    other = copy.deepcopy(tiny_translator.autoencoder)
    other.quant_conv.conv.bias.data.add_(1)
    stale = LatentCache(cache.root, other, Compose([]))
    used, old, gone = write_old(cache, "used.npy", 1), write_old(cache, "old.npy", 8), write_old(stale, "gone.npy", 9)
    unfinished = write_old(cache, ".x.part.npy", 10)
    foreign = cache.root / "results" / "mine.npy"
    foreign.parent.mkdir()
    foreign.write_bytes(b"not a latent")
    os.utime(foreign, (0, 0))
    size = sum(f.stat().st_size for f in (old, gone, unfinished))
    assert prune_latents(cache.root, unused_days=7) == (3, size)
    assert used.is_file()
    assert foreign.is_file()
    assert not stale.folder.exists()
    assert not any(f.exists() for f in (old, gone, unfinished))


def test_pruning_all_leaves_nothing(cache: LatentCache, tmp_path: Path) -> None:
    (tmp_path / "image").write_text("voxels")
    cache.files([{"t1": str(tmp_path / "image")}], ["t1"])
    write_old(cache, "a.npy", 0)
    prune_latents(cache.root, unused_days=0)
    assert list(cache.root.iterdir()) == []


def test_pruning_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a folder of cached latents; found none"):
        prune_latents(tmp_path / "absent")


def test_subjects_name_follows_from_its_files_alone(cache: LatentCache, tmp_path: Path) -> None:
    for name in ("a", "b", "copy_of_a"):
        (tmp_path / name).write_text(name.removeprefix("copy_of_"))
    first, second, third, fewer = cache.files(
        [
            {"subject": "1", "t1": str(tmp_path / "a"), "t2": str(tmp_path / "b")},
            {"subject": "2", "t1": str(tmp_path / "copy_of_a"), "t2": str(tmp_path / "b")},
            {"subject": "3", "t1": str(tmp_path / "b"), "t2": str(tmp_path / "a")},
            {"subject": "4", "t1": str(tmp_path / "a")},
        ],
        ["t1", "t2"],
    )
    assert first == second
    assert len({first, third, fewer}) == 3


def test_size_of_images_without_a_nifti_header(
    cache: LatentCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import itk

    itk.imwrite(itk.image_from_array(np.zeros((20, 16, 16), np.float32)), str(tmp_path / "a.nrrd"))
    (tmp_path / "series").mkdir()
    with caplog.at_level("INFO"):
        cache.check_space([[str(tmp_path / "a.nrrd")] * 1000], 16, 1)
        cache.check_space([[str(tmp_path / "series")], [str(tmp_path / "a.nrrd")] * 1000], 16, 1)
        cache.check_space([[str(tmp_path / "series")]], 16, 1)
    said = [r.getMessage() for r in caplog.records]
    # 32 × 16 × 16 voxels when padded, 4³ of them in a latent one, 2 bytes, 1000 images
    assert "take at most 0.2 MiB" in said[0]
    assert "take about 0.5 MiB" in said[1]
    assert "not known before" in said[2]
