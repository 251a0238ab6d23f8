"""Tests of custom.utils.identity."""

from __future__ import annotations

import copy
import json
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, RandFlipd, ScaleIntensityRanged
from torch import nn

import custom.utils.identity
from custom.data.transforms import CropForegroundUniond
from custom.networks import LatentTranslator, VectorQuantizer
from custom.utils.identity import VOXELS, FileDigests, describe, differences, digest, identity
from custom.utils.precision import fast_bfloat16

TRAIN = Path(__file__).resolve().parents[2] / "bundle" / "configs" / "train.json"


def of_the_config() -> Compose:
    parser = ConfigParser()
    parser.read_config(str(TRAIN))
    return parser.get_parsed_content("train#preprocessing")


def test_description_of_the_configs_preprocessing_holds_for_every_process() -> None:
    described = json.dumps(describe(of_the_config()), sort_keys=True)
    assert " at 0x" not in described
    assert described == json.dumps(describe(of_the_config()), sort_keys=True)
    for setting in ("CropForegroundUniond", '"scale": "brain"', '"axcodes": "RAS"', '"k": 16', '"value": -1.0'):
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


def scale(image: float, factor: float = 1.0) -> float:
    return image * factor


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: float) -> None:
        self.value = value

    def method(self) -> float:
        return self.value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (partial(scale, factor=1.0), partial(scale, factor=2.0)),
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x: np.exp(x), lambda x: np.log(x)),
        (np.exp, np.log),
        (Slotted(1), Slotted(2)),
        (Slotted(1).method, Slotted(2).method),
        (torch.ones(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bfloat16)),
        (b"a", b"b"),
        (np.float32, np.float64),
        ([nn.Linear(1, 1)], [nn.Linear(1, 2)]),
    ],
    ids=["partial", "constant", "names", "ufunc", "slots", "method", "bfloat16", "bytes", "type", "module"],
)
def test_what_looks_alike_is_told_apart(one: object, other: object) -> None:
    assert json.dumps(describe(one)) == json.dumps(describe(one))
    assert describe(one) != describe(other)


def test_values_that_a_function_holds_count() -> None:
    def scaled_by(factor: float) -> Callable[[float], float]:
        return lambda x: factor * x

    assert describe(scaled_by(1)) == describe(scaled_by(1))
    assert describe(scaled_by(1)) != describe(scaled_by(2))


def test_place_of_the_code_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = describe(of_the_config())
    monkeypatch.setattr(CropForegroundUniond, "__module__", "custom.elsewhere")
    assert describe(of_the_config()) == before


def test_devices_do_not_count() -> None:
    described = [describe({"device": torch.device(name), "on": [torch.device(name)]}) for name in ("cpu", "meta")]
    assert described[0] == described[1]


def test_what_a_class_leaves_out_does_not_count() -> None:
    class Part(nn.Module):
        not_in_identity = ("chunk", "statistics")

        def __init__(self, chunk: int, statistics: float) -> None:
            super().__init__()
            self.chunk = chunk
            self.register_buffer("statistics", torch.tensor(statistics))

    class Special(Part):
        pass

    assert identity(Special(1, 0.0), None, None) == identity(Special(2, 1.0), None, None)


def test_a_later_setting_counts_where_it_has_not_its_usual_value() -> None:
    class Search:
        in_identity_unless = {"books": 1}  # noqa: RUF012

        def __init__(self, **members: int) -> None:
            vars(self).update(members)

    assert describe(Search(size=2)) == describe(Search(size=2, books=1)) != describe(Search(size=2, books=2))


def test_number_of_codebooks_counts() -> None:
    networks = [VectorQuantizer(16, 4, num_codebooks=number) for number in (1, 2, 4)]
    for network in networks:
        network.embedding.weight.data.fill_(1.0)
    assert len({identity(network, None, {})["network"] for network in networks}) == 3


def test_parts_of_an_identity() -> None:
    torch.manual_seed(0)
    network = nn.Linear(1, 1)
    before = identity(network, Compose([scaling()]), {"seed": 0, "amp": False})
    assert json.loads(json.dumps(before)) == before
    assert digest(before) == digest(identity(network, Compose([scaling()]), {"seed": 0, "amp": False}))
    assert differences(before, identity(network, Compose([scaling()]), {"seed": 1, "amp": True})) == ["amp", "seed"]
    assert differences(before, identity(network, Compose([]), {"seed": 0, "amp": False})) == ["preprocessing"]
    network.bias.data += 1
    assert differences(before, identity(network, None, {"seed": 0, "amp": False})) == ["network", "preprocessing"]
    assert differences(before, {}) == ["network", "preprocessing", "settings", "version"]
    assert identity(None, None, 0)["version"] == VOXELS
    assert identity(None, None, 0, version=7)["version"] == 7


def test_automatic_precision_counts_as_what_it_means() -> None:
    found = identity(nn.Linear(1, 1), None, [{"amp": "auto"}])["settings"]
    assert found == [{"amp": fast_bfloat16(torch.device("cpu"))}]


@pytest.mark.parametrize("name", ["encoder.blocks.0.conv.weight", "bottleneck.embedding.weight"])
def test_digest_of_weights(tiny_translator: LatentTranslator, name: str) -> None:
    autoencoder = copy.deepcopy(tiny_translator.autoencoder)
    before = identity(autoencoder, None, None)
    autoencoder.bottleneck.ema_cluster_size.add_(1)
    assert identity(autoencoder, None, None) == before
    parameter = autoencoder.get_parameter(name).data
    parameter.view(-1)[-1] += 1e-3
    assert identity(autoencoder, None, None) != before


@pytest.mark.parametrize(
    "setting", ["num_inference_steps", "strength", "eta", "requantize", "conditioning", "residual"]
)
def test_settings_of_the_sampler_count(tiny_translator: LatentTranslator, setting: str) -> None:
    network = copy.deepcopy(tiny_translator)
    before = identity(network, None, None)
    setattr(network, setting, 7)
    assert differences(identity(network, None, None), before) == ["network"]


def test_buffers_and_structure_count(tiny_translator: LatentTranslator) -> None:
    network = copy.deepcopy(tiny_translator)
    before = identity(network, None, None)
    assert identity(network.train(), None, None) == before
    network.latent_scale += 1
    assert identity(network, None, None) != before
    assert identity(nn.GroupNorm(2, 4), None, None) != identity(nn.GroupNorm(4, 4), None, None)
    halves = [nn.Conv3d(1, 1, 1).requires_grad_(False).to(torch.bfloat16) for _ in range(2)]
    assert identity(halves[0], None, None) != identity(halves[1], None, None)


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
