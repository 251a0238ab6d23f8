"""Tests of custom.utils.identity."""

from __future__ import annotations

import copy
import json
import os
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, RandFlipd, ScaleIntensityRanged
from torch import nn

import custom.utils.identity
from custom.networks import LatentTranslator
from custom.utils.identity import FileDigests, describe, weights_digest

TRAIN = Path(__file__).resolve().parents[2] / "bundle" / "configs" / "train.json"


def of_the_config() -> Compose:
    parser = ConfigParser()
    parser.read_config(str(TRAIN))
    return parser.get_parsed_content("train#preprocessing")


def test_description_of_the_configs_preprocessing_holds_for_every_process() -> None:
    described = json.dumps(describe(of_the_config()), sort_keys=True)
    assert " at 0x" not in described
    assert described == json.dumps(describe(of_the_config()), sort_keys=True)
    for setting in ("CropForegroundUniond", '"upper": 99.5', '"axcodes": "RAS"', '"k": 16', '"value": -1.0'):
        assert setting in described


def test_use_does_not_change_the_description(write_volume) -> None:
    transform = of_the_config()
    before = describe(transform)
    transform({name: str(write_volume(f"{name}.nii.gz")) for name in ("t1", "t2")})
    assert describe(transform) == before


def scaling(**changes: float) -> ScaleIntensityRanged:
    return ScaleIntensityRanged("t1", **{"a_min": 0.0, "a_max": 1.0, "b_min": -1.0, "b_max": 1.0, **changes})


def test_settings_are_described() -> None:
    assert describe(Compose([scaling()])) == describe(Compose([scaling()]))
    assert describe(Compose([scaling()])) != describe(Compose([scaling(b_max=0.5)]))
    assert describe(Compose([scaling()])) != describe(Compose([scaling(), scaling()]))


def test_random_state_is_no_setting() -> None:
    flips = [RandFlipd("t1").set_random_state(seed) for seed in (0, 1)]
    assert describe(flips[0]) == describe(flips[1])


def test_what_json_can_hold() -> None:
    values = {
        "array": np.arange(3), "tensor": torch.ones(2), "set": {"b", "a"}, "deque": deque([1]), "type": np.float32,
        "path": Path("a"), "function": json.dumps, "slice": slice(1), "none": None, "nested": (1, [2.5, "x"]),
    }  # fmt: skip
    loop: dict = {}
    loop["itself"] = loop
    described = describe([values, loop])
    assert json.loads(json.dumps(described)) == described
    assert describe({"array": np.arange(3)}) != describe({"array": np.arange(3) + 1})
    assert describe({"b", "a"}) == describe({"a", "b"})


def test_code_of_this_package_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = describe(of_the_config())
    monkeypatch.setattr(custom.utils.identity, "_code_digest", lambda file: "mended")
    assert describe(of_the_config()) != before


@pytest.mark.parametrize("name", ["encoder.blocks.0.conv.weight", "bottleneck.embedding.weight"])
def test_digest_of_weights(tiny_translator: LatentTranslator, name: str) -> None:
    autoencoder = copy.deepcopy(tiny_translator.autoencoder)
    before = weights_digest([autoencoder])
    autoencoder.bottleneck.ema_cluster_size.add_(1)
    assert weights_digest([autoencoder]) == before
    parameter = autoencoder.get_parameter(name).data
    parameter.view(-1)[-1] += 1e-3
    assert weights_digest([autoencoder]) != before


def test_digest_of_the_structure() -> None:
    assert weights_digest([nn.GroupNorm(2, 4)]) != weights_digest([nn.GroupNorm(4, 4)])
    assert weights_digest([nn.Conv3d(1, 1, 1).requires_grad_(False).to(torch.bfloat16)]) != weights_digest([])


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose content has been read."""
    seen: list[str] = []
    original = custom.utils.identity._file_digest

    def record(path: str) -> tuple[list[int], str]:
        seen.append(Path(path).name)
        return original(path)

    monkeypatch.setattr(custom.utils.identity, "_file_digest", record)
    return seen


def digests_of(tmp_path: Path, *paths: Path) -> list[str]:
    return FileDigests(tmp_path / "memory" / "files.jsonl").of([[str(p) for p in paths]])[0]


def test_unchanged_file_is_read_once(tmp_path: Path, reads: list[str]) -> None:
    (tmp_path / "a").write_text("one")
    first = digests_of(tmp_path, tmp_path / "a")
    assert digests_of(tmp_path, tmp_path / "a") == first
    assert reads == ["a"]


def test_content_decides(tmp_path: Path, reads: list[str]) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("one")
    b.write_text("one")
    first = digests_of(tmp_path, a, b)
    assert first[0] == first[1]
    os.utime(a, (1, 1))
    assert digests_of(tmp_path, a) == first[:1]
    assert sorted(reads) == ["a", "a", "b"]


def test_another_content_of_the_same_size_and_modification_time_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("one")
    before, status = digests_of(tmp_path, file), file.stat()
    file.write_text("two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digests_of(tmp_path, file) != before


@pytest.mark.parametrize("line", ['["/a", [1, 2', "[1]", "null", "\x00\x00"])
def test_memory_that_was_cut_short(tmp_path: Path, reads: list[str], line: str) -> None:
    (tmp_path / "a").write_text("one")
    first = digests_of(tmp_path, tmp_path / "a")
    with (tmp_path / "memory" / "files.jsonl").open("a") as memory:
        memory.write(line)
    assert digests_of(tmp_path, tmp_path / "a") == first
    assert reads == ["a"]


def test_memory_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a").write_text("one")
    (tmp_path / "memory").write_text("a file where the folder should be")
    assert len(digests_of(tmp_path, tmp_path / "a")) == 1
    assert "cannot be written" in caplog.text


def test_folder_and_detached_voxels_count_whole(tmp_path: Path) -> None:
    series, header = tmp_path / "series", tmp_path / "b.mhd"
    series.mkdir()
    for number in range(2):
        (series / f"{number}.dcm").write_text("slice")
    header.write_text("ElementDataFile = b.raw")
    (tmp_path / "b.raw").write_text("voxels")
    before = digests_of(tmp_path, series, header)
    (series / "1.dcm").write_text("other")
    (tmp_path / "b.raw").write_text("other")
    after = digests_of(tmp_path, series, header)
    assert all(x != y for x, y in zip(before, after, strict=True))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent: expected an image; found nothing there"):
        digests_of(tmp_path, tmp_path / "absent")
