"""Tests of custom.training.latents.pairs."""

from __future__ import annotations

import copy
import logging
import os
import re
import signal
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, ScaleIntensityd, ToTensord
from torch import Tensor

from custom.data.augmentation import AugmentSubjectd
from custom.data.transforms import LoadVolumed
from custom.networks import LatentTranslator, VectorQuantizer
from custom.networks.ms_spade import coordinates
from custom.training.latents.cache import LatentCache, StoredLatents
from custom.training.latents.pairs import (
    CONTEXT_VOXELS,
    LatentPairs,
    cat_collate,
    encode_subjects,
    latent_pairs,
    measure_latent_scale,
    style_pairs,
)

MODALITIES = ("t1", "t1ce", "t2", "flair")
CPU = torch.device("cpu")
SHAPE = (32, 16, 16)
Make = Callable[..., dict[str, Any]]


def preprocessing() -> Compose:
    load = LoadVolumed(MODALITIES, allow_missing_keys=True)
    return Compose([load, ToTensord(MODALITIES, track_meta=False, allow_missing_keys=True)])


@pytest.fixture
def make_subject(write_volume: Callable[..., Path]) -> Make:
    """``make_subject("t1", "t2", seed=0)`` → a datalist entry with files of random values in [-1, 1]."""

    def make(*names: str, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> dict[str, Any]:
        values = np.random.default_rng(seed).uniform(-1, 1, (len(names), *shape)).astype(np.float32)
        files = zip(names, values, strict=True)
        return {"subject": str(seed), **{n: str(write_volume(f"{seed}_{n}.nii.gz", v)) for n, v in files}}

    return make


@pytest.fixture
def encode(tiny_translator: LatentTranslator, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """``encode_subjects`` with the tiny network, on the CPU, in a folder of this test."""

    def call(data: list[dict[str, Any]], network: LatentTranslator = tiny_translator, **kwargs: Any) -> list:
        transform = kwargs.pop("transform", preprocessing())
        kwargs = {"cache_dir": tmp_path / "latents", "device": CPU, **kwargs}
        return encode_subjects(data, transform, network, MODALITIES, **kwargs)

    return call


def whole(subject: dict[str, Any]) -> Tensor:
    """All the latents (m, L, h, w, d) of a subject."""
    return torch.stack([subject["latents"].read(n) for n in range(len(subject["modality"]))])


@torch.no_grad()
def directly(network: LatentTranslator, file: str, *flip: int) -> Tensor:
    image = preprocessing()({"t1": file})["t1"]
    return network.encode(image.unsqueeze(0).flip(flip))[0]


def tagged(folder: Path, number: int, shape: tuple[int, int, int] = (6, 5, 4)) -> dict[str, Any]:
    """A subject with latents whose values tell modality (thousands) and place."""
    place = np.arange(float(np.prod(shape))).reshape(1, 1, *shape)
    modality = np.array([0, 2, 3][:number])
    np.save(folder / f"{number}.npy", (1000 * modality.reshape(-1, 1, 1, 1, 1) + place).astype(np.float32))
    return {"latents": StoredLatents(folder / f"{number}.npy"), "modality": torch.from_numpy(modality)}


@pytest.mark.parametrize("num_codebooks", [1, 2])
def test_cache_holds_what_the_encoder_gives(
    tiny_translator: LatentTranslator, make_subject: Make, encode: Callable, num_codebooks: int
) -> None:
    tiny_translator.autoencoder.bottleneck = VectorQuantizer(32, 4, num_codebooks=num_codebooks)
    subjects = [make_subject("flair", "t1"), make_subject("t2", "t1ce", "t1", seed=1)]
    encoded = encode(subjects)
    assert np.load(encoded[0]["latents"].path).ndim == (4 if num_codebooks == 1 else 5)  # indices, not values
    assert [e["modality"].tolist() for e in encoded] == [[0, 3], [0, 1, 2]]
    for item, cached in zip(subjects, encoded, strict=True):
        latents = whole(cached)
        assert latents.shape == cached["latents"].shape
        assert latents.dtype == torch.float32
        for index, latent in zip(cached["modality"], latents, strict=True):
            direct = directly(tiny_translator, item[MODALITIES[index]])
            # the cache holds the codes; the network adds z + (e − z), which rounds
            torch.testing.assert_close(latent, direct, rtol=0, atol=1e-6)


def test_encoding_leaves_the_codebook_alone(
    tiny_translator: LatentTranslator, make_subject: Make, encode: Callable
) -> None:
    network = copy.deepcopy(tiny_translator).train()
    before = network.autoencoder.bottleneck.embedding.weight.clone()
    encode([make_subject("t1", "t2")], network)
    assert torch.equal(network.autoencoder.bottleneck.embedding.weight, before)


@pytest.mark.parametrize("flip", [True, "true"])
def test_mirrored_subjects_are_encoded_anew(
    tiny_translator: LatentTranslator, make_subject: Make, encode: Callable, flip: bool | str
) -> None:
    """A latent that is mirrored afterwards is not the latent of the mirrored image."""
    item = make_subject("t1", "t2")
    plain, mirrored = encode([item], flip=flip)
    direct = directly(tiny_translator, item["t2"], 2)
    torch.testing.assert_close(whole(mirrored)[1], direct, rtol=0, atol=1e-6)
    differing = (whole(plain).flip(2) != whole(mirrored)).any(dim=1).float().mean()
    assert differing > 0.5


def test_augmented_copies_are_encoded_once_and_reproducible(
    make_subject: Make, encode: Callable, tmp_path: Path
) -> None:
    item, step = make_subject("t1", "t2"), AugmentSubjectd(MODALITIES)
    (plain,) = encode([item])
    first, *copies = encode([item], augmentation=step, augmented_copies=2, images=True)
    assert torch.equal(whole(first), whole(plain))
    assert len(copies) == 2
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "latents").rglob("*augmented*")}
    assert len(kept) == 2 * 2  # latents and images of two copies
    found = encode([item], augmentation=AugmentSubjectd(MODALITIES), augmented_copies=2, images=True)
    assert [p.stat().st_size for p in kept] == [p.stat().st_size for p in (tmp_path / "latents").rglob("*augmented*")]
    elsewhere = encode(
        [item], augmentation=step, augmented_copies=2, images=True, flip=True, cache_dir=tmp_path / "elsewhere"
    )
    for a, b, c in zip(copies, found[1:], elsewhere[2:], strict=True):
        assert a["latents"].path == b["latents"].path
        assert torch.equal(whole(a), whole(c))
        assert torch.equal(a["images"].read(0), c["images"].read(0))
    shapes = [c["images"].shape for c in copies]
    assert shapes[0] != shapes[1] or not torch.equal(copies[0]["images"].read(0), copies[1]["images"].read(0))


def test_another_augmentation_is_another_copy(make_subject: Make, encode: Callable) -> None:
    item = make_subject("t1", "t2")
    one, other = (
        encode([item], augmentation=AugmentSubjectd(MODALITIES, noise=noise), augmented_copies=1)
        for noise in (0.02, 0.03)
    )
    assert one[0]["latents"].path == other[0]["latents"].path
    assert one[1]["latents"].path != other[1]["latents"].path


def test_phantoms_are_a_share_of_the_subjects(
    tiny_translator: LatentTranslator, make_subject: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = [make_subject("t1", "t2", seed=seed) for seed in range(2)]
    phantoms = [make_subject("t1", "t2", seed=seed) for seed in range(10, 14)]

    def pairs(share: float, **kwargs: Any) -> LatentPairs:
        return latent_pairs(
            data, preprocessing(), tiny_translator, MODALITIES, device=CPU, cache_dir=tmp_path / "latents",
            phantoms=phantoms, phantom_share=share, **kwargs,
        )  # fmt: skip

    assert len(pairs(0.0)) == 2
    assert len(pairs(0.5)) == 4
    assert len(pairs(0.5, augmentation=AugmentSubjectd(MODALITIES), augmented_copies=1)) == 8
    assert not caplog.records
    assert len(pairs(0.9)) == 6
    assert "expected 18 phantoms for a share of 0.9; found 4, a share of 0.67" in caplog.text


def test_phantoms_are_drawn_anew_from_twice_as_many(
    tiny_translator: LatentTranslator, make_subject: Make, tmp_path: Path
) -> None:
    data = [make_subject("t1", "t2", seed=seed) for seed in range(2)]
    phantoms = [make_subject("t1", "t2", seed=seed) for seed in range(10, 16)]
    pairs = latent_pairs(
        data, preprocessing(), tiny_translator, MODALITIES, device=CPU, cache_dir=tmp_path / "latents",
        phantoms=phantoms, phantom_share=0.5, pairs_per_subject=1,
    )  # fmt: skip
    pairs.set_random_state(0)
    epochs = [[pairs[i]["subject"][0] for i in range(len(pairs))] for _ in range(20)]
    real = [entry["subject"] for entry in data]
    assert all(epoch[:2] == real and not set(epoch[2:]) & set(real) for epoch in epochs)
    assert {name for epoch in epochs for name in epoch[2:]} == {entry["subject"] for entry in phantoms[:4]}
    assert len(pairs.data) == 6  # the latents' scale is that of all


def test_images_are_kept_where_asked_for(make_subject: Make, encode: Callable) -> None:
    item = make_subject("t1", "t2")
    (plain,) = encode([item])
    assert "images" not in plain
    first, mirrored = encode([item], images=True, flip=True)
    truth = preprocessing()({"t2": item["t2"]})["t2"]
    torch.testing.assert_close(first["images"].read(1), truth, rtol=0, atol=1 / 255 + 1e-6)
    assert torch.equal(mirrored["images"].read(1), first["images"].read(1).flip(1))
    assert torch.equal(whole(first), whole(plain))  # what was cached is not encoded again


def test_images_are_of_the_latents_region(make_subject: Make, encode: Callable) -> None:
    item = make_subject("t1", "t2", shape=(64, 48, 32))
    (subject,) = encode([item], images=True)
    pairs = LatentPairs([subject], pairs_per_subject=3, crop_size=(8, 4, 4))
    pairs.set_random_state(seed=1)
    found = pairs[0]
    found |= {name: found[name].squeeze(1) for name in ("source", "source_modality")}  # of two, one is the source
    assert found["source_image"].shape == found["target_image"].shape == (3, 1, 32, 16, 16)
    network_latents = subject["latents"]
    for k in range(3):
        for side in ("source", "target"):
            number = int(found[f"{side}_modality"][k] == 2)
            latent, image = network_latents.read(number), subject["images"].read(number)
            windows = latent.unfold(1, 8, 1).unfold(2, 4, 1).unfold(3, 4, 1)
            same = (windows == found[side][k][:, None, None, None]).flatten(4).all(-1).all(0).nonzero()
            starts = [[slice(4 * a, 4 * (a + n)) for a, n in zip(at, (8, 4, 4), strict=True)] for at in same.tolist()]
            assert any(torch.equal(image[(slice(None), *start)], found[f"{side}_image"][k]) for start in starts)


def test_switches_as_text(make_subject: Make, encode: Callable) -> None:
    assert len(encode([make_subject("t1", "t2")], amp="false", flip="false")) == 1
    with pytest.raises(ValueError, match="flip: expected true or false"):
        encode([], flip="often")


class Counted:
    """Counts the subjects that are read; of one class, so that the preprocessing stays the same."""

    calls = 0

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        type(self).calls += 1
        return item


@pytest.fixture
def counted() -> Compose:
    Counted.calls = 0
    return Compose([Counted(), *preprocessing().transforms])


def test_second_stage_encodes_nothing(make_subject: Make, encode: Callable, counted: Compose) -> None:
    subjects = [make_subject("t1", "t2"), make_subject("t1", "flair", seed=1)]
    first = encode(subjects, transform=counted)
    assert Counted.calls == 2
    second = encode(subjects[::-1], transform=counted)
    assert Counted.calls == 2
    assert torch.equal(whole(first[0]), whole(second[1]))
    encode(subjects, transform=counted, flip=True)  # the plain ones are computed with the mirrored
    assert Counted.calls == 4
    encode([*subjects, make_subject("t1", "t2", seed=2)], transform=counted)
    assert Counted.calls == 5


def test_changed_file_is_encoded_anew(make_subject: Make, encode: Callable, counted: Compose) -> None:
    subjects = [make_subject("t1", "t2"), make_subject("t1", "flair", seed=1)]
    before = encode(subjects, transform=counted)
    Path(subjects[1]["t1"]).write_bytes(Path(subjects[0]["t2"]).read_bytes())
    after = encode(subjects, transform=counted)
    assert Counted.calls == 3
    assert torch.equal(whole(before[0]), whole(after[0]))
    assert torch.equal(whole(after[1])[0], whole(before[0])[1])


@pytest.mark.parametrize(
    "change",
    [
        lambda network: network.autoencoder.encoder.blocks[0].conv.weight.data.mul_(1.001),
        lambda network: network.autoencoder.bottleneck.embedding.weight.data.mul_(1.001),
    ],
    ids=["encoder", "codebook"],
)
def test_changed_weights_are_another_encoding(
    tiny_translator: LatentTranslator, make_subject: Make, encode: Callable, counted: Compose, change: Callable
) -> None:
    network = copy.deepcopy(tiny_translator)
    encode([make_subject("t1", "t2")], network, transform=counted)
    network.unet.conv_in.weight.data.zero_()  # what computes no latents does not count
    network.autoencoder.decoder.blocks[0].conv.weight.data.zero_()
    encode([make_subject("t1", "t2")], network, transform=counted)
    assert Counted.calls == 1
    change(network)
    encode([make_subject("t1", "t2")], network, transform=counted)
    assert Counted.calls == 2


def test_changed_preprocessing_and_precision_are_other_encodings(
    make_subject: Make, encode: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    subjects = [make_subject("t1", "t2")]
    with caplog.at_level(logging.INFO):
        encode(subjects)
        encode(subjects, amp=True)
    assert "the latest differs in amp" in caplog.text
    scale = ScaleIntensityd(MODALITIES, minv=-1.0, allow_missing_keys=True)
    for maxv in (1.0, 0.9):
        scale.scaler.maxv = maxv
        encode(subjects, transform=Compose([*preprocessing().transforms, scale]))
    assert len(list((tmp_path / "latents").glob("*/encoding.json"))) == 4


def test_faulty_subject_costs_only_its_own_latents(make_subject: Make, encode: Callable, counted: Compose) -> None:
    good, bad = make_subject("t1", "t2"), make_subject("t1", "t2", seed=1)
    whole_file = Path(bad["t2"]).read_bytes()
    Path(bad["t2"]).write_bytes(b"no volume")
    with pytest.raises(RuntimeError):
        encode([good, bad], transform=counted)
    Path(bad["t2"]).write_bytes(whole_file)
    assert len(encode([good, bad], transform=counted)) == 2
    assert Counted.calls == 3


def test_interrupted_writing_leaves_nothing_that_is_taken_for_whole(
    make_subject: Make, encode: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subjects = [make_subject("t1", "t2")]

    def interrupt(stream: Any, values: np.ndarray, **kwargs: Any) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("custom.training.latents.cache.np.save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            encode(subjects)
    assert list(tmp_path.rglob("*.npy*")) == []
    (encoded,) = encode(subjects)
    whole_file = Path(encoded["latents"].path).read_bytes()
    # what a machine's crash may leave in spite of that
    for cut in (b"", whole_file[:20], whole_file[:-1]):
        Path(encoded["latents"].path).write_bytes(cut)
        (again,) = encode(subjects)
        assert Path(again["latents"].path).read_bytes() == whole_file


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_signal_ends_it_after_a_subject_which_is_kept(
    number: signal.Signals, num_workers: int, make_subject: Make, encode: Callable,
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data = [make_subject("t1", "t2", seed=seed) for seed in range(3)]
    former, write = signal.getsignal(number), LatentCache.write

    def signalled(*args: Any) -> None:
        write(*args)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(LatentCache, "write", signalled)
    with pytest.raises(SystemExit) as ended:
        encode(data, num_workers=num_workers)
    assert ended.value.code == 128 + number
    assert signal.getsignal(number) is former
    (folder,) = (path for path in (tmp_path / "latents").iterdir() if path.is_dir())
    said = f"stopped by {number.name} while subjects were encoded. 1 of 3 are done and kept in {folder}: start again"
    assert said in caplog.text
    assert len([*folder.glob("*.npy")]) == 1
    assert not [*tmp_path.rglob("*.part*")]

    written: list[Path] = []
    monkeypatch.setattr(
        LatentCache, "write", lambda self, file, values: written.append(file) or write(self, file, values)
    )
    assert len(encode(data)) == 3
    assert len(written) == 2


def test_size_is_said_before_it_starts(
    make_subject: Make, encode: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shape = (32, 32, 32)
    subjects = [make_subject("t1", "t2", seed=n, shape=shape) for n in range(2)]
    with caplog.at_level(logging.INFO):
        encode(subjects, flip=True)
    (said,) = re.findall(r"the latents to compute take at most ([\d.,]+) MiB; [\d.,]+ MiB are free", caplog.text)
    written = sum(f.stat().st_size for f in (tmp_path / "latents").rglob("*.npy"))
    values = 2 * 2 * 2 * (8 * 8 * 8) * 2  # subjects, modalities, mirrored, latent voxels, bytes
    assert float(said) == pytest.approx(values / 2**20, abs=0.051)
    assert values < written < 1.2 * values  # 128 bytes of header for each file


def test_full_disk_is_an_error_before_anything_is_encoded(
    make_subject: Make, encode: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: Compose
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("custom.training.latents.cache.shutil.disk_usage", lambda path: usage(10, 10, 100))
    with pytest.raises(OSError, match=r"take at most .* 0\.0 MiB are free\. Make room, give another --cache_dir"):
        encode([make_subject("t1", "t2")], transform=counted)
    assert Counted.calls == 0
    assert list(tmp_path.rglob("*.npy")) == []


def test_disk_that_fills_up_names_the_remedy(
    make_subject: Make, encode: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(stream: Any, values: np.ndarray, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("custom.training.latents.cache.np.save", full)
    with pytest.raises(OSError, match=r"\.npy: expected to write latents; found .*No space left.* --cache_dir"):
        encode([make_subject("t1", "t2")])


def test_nothing_is_written_beside_the_data(make_subject: Make, encode: Callable, tmp_path: Path) -> None:
    before = {*tmp_path.iterdir()}
    item = make_subject("t1", "t2")
    data = {*tmp_path.iterdir()} - before
    encode([item])
    assert {*tmp_path.iterdir()} - before - data == {tmp_path / "latents"}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_no_random_number_is_drawn(make_subject: Make, encode: Callable, num_workers: int) -> None:
    """A training takes the same course whether its latents were there or not."""
    subjects = [make_subject("t1", "t2")]
    states = [torch.get_rng_state(), np.random.get_state()[1]]
    encode(subjects, num_workers=num_workers)
    encode(subjects, num_workers=num_workers)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()


def test_latent_scale_makes_the_standard_deviation_one(tiny_translator: LatentTranslator, tmp_path: Path) -> None:
    network = copy.deepcopy(tiny_translator)
    subjects = []
    for m in (2, 4):
        values = 3 + 5 * np.random.default_rng(m).standard_normal((m, 4, 6, 5, 4), np.float32)
        np.save(tmp_path / f"{m}.npy", values)
        subjects.append({"latents": StoredLatents(tmp_path / f"{m}.npy"), "modality": torch.arange(m)})
    measure_latent_scale(network, subjects)
    everything = torch.cat([whole(s).flatten() for s in subjects])
    torch.testing.assert_close(1 / network.latent_scale, everything.std(correction=0))
    assert "latent_scale" in network.state_dict()


def test_latents_that_do_not_vary_are_an_error(tiny_translator: LatentTranslator, tmp_path: Path) -> None:
    np.save(tmp_path / "ones.npy", np.ones((2, 4, 3, 3, 3), np.float32))
    subject = {"latents": StoredLatents(tmp_path / "ones.npy"), "modality": torch.arange(2)}
    with pytest.raises(ValueError, match=r"expected them to vary; found .* Train the autoencoder first"):
        measure_latent_scale(copy.deepcopy(tiny_translator), [subject])


def test_each_pair_is_drawn_from_one_place_of_one_subject(tmp_path: Path) -> None:
    pairs = LatentPairs([tagged(tmp_path, 3)], pairs_per_subject=5, crop_size=(3, 2, 4))
    pairs.set_random_state(0)
    seen, places = set(), set()
    for _ in range(20):
        item = pairs[0]
        assert item["source"].shape == (5, 2, 1, 3, 2, 4)
        assert item["target"].shape == (5, 1, 3, 2, 4)
        for name in ("source", "target"):
            modality = item[name][..., 0, 0, 0, 0].div(1000, rounding_mode="floor")
            assert torch.equal(modality.long(), item[f"{name}_modality"])
        assert (item["source"] % 1000 == item["target"].unsqueeze(1) % 1000).all()
        places.add(tuple((item["target"][:, 0, 0, 0, 0] % 1000).tolist()))
        drawn = [*zip(item["source_modality"].tolist(), item["target_modality"].tolist(), strict=True)]
        assert all({*sources, target} == {0, 2, 3} for sources, target in drawn)
        seen |= {(*sources, target) for sources, target in drawn}
    assert len(seen) == 6  # in either order
    assert any(len(set(starts)) > 1 for starts in places)


def test_sets_of_sources_are_as_large_as_is_asked_for(tmp_path: Path) -> None:
    subject, drawn = tagged(tmp_path, 3), []
    for most in (1, 2, None):
        pairs = LatentPairs([subject], pairs_per_subject=20, max_sources=most)
        pairs.set_random_state(0)
        item = pairs[0]
        drawn.append(item["source_modality"])
        assert (drawn[-1] != item["target_modality"][:, None]).all()
    assert [d.shape for d in drawn] == [(20, 1), (20, 2), (20, 2)]
    assert {tuple(d) for d in drawn[0].tolist()} == {(0,), (2,), (3,)}
    with pytest.raises(ValueError, match=r"max_sources: expected a whole number from 1 to .* found 0"):
        LatentPairs([subject], max_sources=0)


def test_crops_come_with_voxels_of_the_whole_latents(tmp_path: Path) -> None:
    subject = tagged(tmp_path, 3)
    item = LatentPairs([subject], pairs_per_subject=2, crop_size=(2, 2, 2))[0]
    assert item["source_context"].shape == (2, 2, 1, CONTEXT_VOXELS)
    assert item["target_context"].shape == (2, 1, CONTEXT_VOXELS)
    for name in ("source", "target"):
        numbers, contexts = item[f"{name}_modality"].flatten().tolist(), item[f"{name}_context"].flatten(0, -3)
        for number, voxels in zip(numbers, contexts, strict=True):
            index = subject["modality"].tolist().index(number)
            # the 120 voxels of the latent, of which each is drawn 17 times on average
            assert set(voxels.flatten().tolist()) == set(subject["latents"].read(index).flatten().tolist())
    assert not {"source_context", "position"} & LatentPairs([subject])[0].keys()


def test_crops_come_with_their_places(tmp_path: Path) -> None:
    subject = tagged(tmp_path, 2)
    item = LatentPairs([subject], pairs_per_subject=5, crop_size=(2, 2, 2))[0]
    for source, modality, position in zip(item["source"], item["source_modality"], item["position"], strict=True):
        number = subject["modality"].tolist().index(int(modality[0]))
        whole = subject["latents"].read(number)[0]
        [first] = (whole == source[0, 0, 0, 0, 0]).nonzero().tolist()
        region = tuple(slice(n, n + 2) for n in first)
        assert torch.equal(position, coordinates(*whole.shape)[(0, slice(None), *region)])


def test_crop_larger_than_the_latent_takes_it_whole(tmp_path: Path) -> None:
    assert LatentPairs([tagged(tmp_path, 2)], 2, (32, 2, 32))[0]["source"].shape == (2, 1, 1, 6, 2, 4)
    assert LatentPairs([tagged(tmp_path, 2)], 2)[0]["source"].shape == (2, 1, 1, 6, 5, 4)


def test_loader_makes_the_same_batches_for_the_same_seed(tmp_path: Path) -> None:
    runs = []
    subjects = [tagged(tmp_path, 3), tagged(tmp_path, 2)]
    for _ in range(2):
        torch.manual_seed(0)
        loader = DataLoader(LatentPairs(subjects, 2, (2, 2, 2)), batch_size=1, collate_fn=cat_collate)
        runs.append(torch.cat([batch["source"].flatten() for _ in range(3) for batch in loader]))
    assert torch.equal(*runs)


def test_subject_with_one_modality_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"subject 1 of the training: expected two or more modalities.*found 1"):
        LatentPairs([tagged(tmp_path, 2), tagged(tmp_path, 1)])


def test_collate_joins_batches_of_pairs(tmp_path: Path) -> None:
    pairs = LatentPairs([tagged(tmp_path, 3), tagged(tmp_path, 2)], pairs_per_subject=2)
    batch = cat_collate([pairs[0], pairs[1]])
    assert batch["source"].shape == (4, 1, 1, 6, 5, 4)  # sets as large as the smaller of the two
    assert batch["source_modality"].shape == (4, 1)
    assert batch["target_modality"].shape == (4,)


def test_latent_pairs_of_a_datalist(tiny_translator: LatentTranslator, make_subject: Make, tmp_path: Path) -> None:
    data = [make_subject("t1", "t2", "flair"), make_subject("t1", "t2", seed=1)]
    pairs = latent_pairs(
        data, preprocessing(), tiny_translator, MODALITIES, device=CPU, cache_dir=tmp_path, crop_size=(4, 4, 4)
    )
    assert len(pairs) == 2
    assert pairs[1]["source"].shape == (4, 1, 4, 4, 4, 4)


@pytest.mark.parametrize("joint", [True, "true"])
def test_joint_pairs_are_aligned_images(tiny_translator: LatentTranslator, joint: bool | str) -> None:
    ramp = torch.arange(float(32 * 16 * 16)).view(1, *SHAPE)
    transform = Compose([lambda entry: {"t1": ramp, "t2": ramp + 0.5}])
    pairs = style_pairs(
        [{"subject": 0}], transform, tiny_translator, MODALITIES,
        joint=joint, image_crop=(8, 8, 8), flip=True, device=CPU, amp=False, pairs_per_subject=2, crop_size=(2, 2, 2),
        cache_dir="unused",
    )  # fmt: skip
    mirrored = set()
    for _ in range(40):
        item = pairs[0]
        assert item["image"].shape == item["label"].shape == (1, 1, 8, 8, 8)
        assert item["source_modality"].shape == (1,)
        assert ((item["label"] - item["image"]).abs() == 0.5).all()
        mirrored.add(bool(item["image"][0, 0, 0, 0, 0] > item["image"][0, 0, 1, 0, 0]))
    assert mirrored == {False, True}


@pytest.mark.parametrize("joint", [False, "false"])
def test_style_pairs_are_latents_by_default(
    tiny_translator: LatentTranslator, make_subject: Make, tmp_path: Path, joint: bool | str
) -> None:
    pairs = style_pairs(
        [make_subject("t1", "t2", "flair")], preprocessing(), tiny_translator, MODALITIES,
        joint=joint, image_crop=(8, 8, 8), device=CPU, cache_dir=tmp_path, pairs_per_subject=3,
    )  # fmt: skip
    assert pairs[0].keys() == {"source", "target", "source_modality", "target_modality", "subject"}
    assert pairs[0]["source"].shape == (3, 2, 4, 8, 4, 4)


def test_volumes_of_other_sizes_are_cut_to_their_common_middle() -> None:
    large, small = torch.arange(6.0 * 4 * 4).view(1, 1, 6, 4, 4), torch.ones(2, 1, 2, 4, 8)
    items = [{"source": large, "n": torch.zeros(1)}, {"source": small, "n": torch.ones(2)}]
    batch = cat_collate([{**item, "subject": ["a"] * len(item["n"])} for item in items])
    assert batch["subject"] == ["a"] * 3
    assert batch["source"].shape == (3, 1, 2, 4, 4)
    assert torch.equal(batch["source"][:1], large[:, :, 2:4])
    assert batch["n"].tolist() == [0, 1, 1]
