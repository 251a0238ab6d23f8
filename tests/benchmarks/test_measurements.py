"""Tests of what the benchmarks measure, on tiny volumes."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import folder, quality
from benchmarks.__main__ import arguments, few_steps
from benchmarks.measure import MOST_RUNS, ConvolutionRate, Measured, measured, work_ratio
from benchmarks.parts import NETWORK_PARTS, arithmetic, measure_parts
from benchmarks.scale import measure_scaling
from benchmarks.stock import measure_stock, stock_unet
from benchmarks.subject import make_network, read_config, write_head
from custom.commands.summary import count_flops
from custom.inference.inferer import TranslationInferer
from custom.networks import LatentTranslator
from custom.networks.fast import accelerate

CPU = torch.device("cpu")
SIZE = (16, 32, 16)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part is run once, and the machine's rate measured on a small volume."""
    monkeypatch.setattr("benchmarks.measure.ENOUGH_SECONDS", 0)
    for module in ("parts", "stock", "scale"):
        monkeypatch.setattr(f"benchmarks.{module}.ConvolutionRate", partial(ConvolutionRate, edge=8))


@pytest.fixture(scope="module")
def network() -> LatentTranslator:
    return make_network(read_config("small"), CPU)


TENSOR = """
import torch
from benchmarks.measure import measured
_, cost = measured(lambda: torch.ones(64, 1024, 1024), torch.device("cpu"))
print(cost.memory, cost.seconds)
"""


@pytest.mark.slow
def test_memory_of_a_tensor() -> None:
    """In a process of its own: what a process of other tests gives back meanwhile is as large as the tensor."""
    printed = subprocess.run([sys.executable, "-c", TENSOR], check=True, capture_output=True, text=True).stdout
    memory, seconds = map(float, printed.split())
    assert memory == pytest.approx(256, abs=32)
    assert seconds > 0


@pytest.mark.slow
def test_rate() -> None:
    assert 0 < ConvolutionRate(CPU, amp=False, edge=8)() < 100


def test_rate_around_a_part() -> None:
    rates = iter([1.0, 3.0])
    assert measured(lambda: None, CPU, rate=lambda: next(rates))[1].rate == 2


def test_a_slower_hour_does_not_count() -> None:
    """A part that does the same in twice the seconds while the machine does half as much is as fast."""
    assert work_ratio(Measured(4.0, 0.0, 0.5), Measured(2.0, 0.0, 1.0)) == 1
    assert work_ratio(Measured(4.0, 0.0, 1.0), Measured(2.0, 0.0, 1.0)) == 2


@pytest.mark.parametrize("size", [(16, 16, 16), (20, 33, 17)])
def test_head_fills_its_box(tmp_path: Path, size: tuple[int, int, int]) -> None:
    values = np.asanyarray(nib.load(write_head(tmp_path / "head.nii.gz", size)).dataobj)
    assert values.shape == size
    assert values.dtype == np.int16
    for axis in range(3):
        assert all(values.take(end, axis=axis).any() for end in (0, -1))


@pytest.mark.slow
def test_parts_and_their_stock_twins(network, quick, tmp_path: Path) -> None:
    config = read_config("small", output_dir=str(tmp_path / "out"), targets=["t2"])
    image = write_head(tmp_path / "head.nii.gz", SIZE)
    parts, kept = measure_parts(config, network, image, CPU, amp=False)
    assert tuple(kept["image"].shape) == (1, 1, *SIZE)
    assert all(part.seconds > 0 for part in parts)
    assert all((part.tflop > 0) == (part.name in NETWORK_PARTS) for part in parts)
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written == {"head_t2_synthetic.nii.gz", "head_t2_synthetic.json"}  # the image and where it comes from
    stock = measure_stock(config, network, kept, CPU, amp=False)
    assert [row.name for row in stock] == ["encode", "quantise", "step", "step", "loop step", "decode"]


@pytest.mark.parametrize("name", ["encode", "quantise", "decode"])
@pytest.mark.slow
def test_arithmetic_grows_with_the_voxels(network, name: str) -> None:
    once, twice = (arithmetic(network, name, size)[0] for size in ((32, 32, 32), (64, 32, 32)))
    assert twice == pytest.approx(2 * once)


@pytest.mark.parametrize("name", ["MS-SPADE", "decode"])
@pytest.mark.slow
def test_executed_arithmetic_is_that_of_a_run(network, name: str) -> None:
    size = (64, 64, 64)  # large enough for fewer multiplications
    plain, executed = arithmetic(network, name, size)
    latent = torch.zeros(1, network.autoencoder.latent_channels, *(n // network.autoencoder.downsampling for n in size))
    target = torch.zeros(1, dtype=torch.long)
    run = {"MS-SPADE": lambda: network.transfer(latent, target), "decode": lambda: network.decode(latent)}[name]
    with torch.no_grad(), accelerate(network):
        assert executed == pytest.approx(count_flops(run) / 1e12)
    assert executed < 0.9 * plain
    assert plain == pytest.approx(count_flops(lambda: torch.enable_grad()(run)()) / 1e12)


def test_short_parts_run_again() -> None:
    runs: list[int] = []
    measured(lambda: runs.append(0), CPU)
    assert len(runs) == MOST_RUNS


def test_stock_unet_has_the_widths_of_the_preset() -> None:
    unet = stock_unet(read_config("release"))
    assert unet.block_out_channels == (128, 128, 256)


@pytest.mark.slow
def test_exponent(network, quick) -> None:
    inferer = TranslationInferer("t2", num_inference_steps=1)
    found = measure_scaling(network, inferer, CPU, [(16, 16, 16), (32, 32, 32)])
    assert len(found.seconds) == 2
    work = [found.seconds[i] * found.rates[i] for i in (1, 0)]
    assert found.exponent == pytest.approx(np.log(np.divide(*work)) / np.log(8))


class Nearer(nn.Module):
    """Misses the source by an amount that falls with the number of steps."""

    def encode(self, image: Tensor) -> Tensor:
        return image

    def transfer(self, latent: Tensor, target: Tensor) -> Tensor:
        return latent

    def fuse(self, latent: Tensor, target_like: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return latent, target_like

    def sample(self, latent: Tensor, target_like: Tensor, target: Tensor, noise: Tensor, num_steps: int) -> Tensor:
        return latent - 0.1 * latent.sign() / num_steps

    def render(self, latent: Tensor, image: Tensor, target: Tensor) -> Tensor:
        return latent


def test_quality_is_against_the_truth(brats_folder, monkeypatch) -> None:
    """The truth is the source itself: half the error, 6.02 dB more."""
    data = brats_folder({"a": ("t1",)})
    entry = {"subject": "a", **dict.fromkeys(("t1", "t2"), str(data / "a" / "a_t1.nii.gz"))}
    monkeypatch.setattr(quality, "load_datalist", lambda *_: [entry])
    monkeypatch.setattr(quality, "REFERENCE_STEPS", 2)
    settings = {"steps": 1, "data": data, "size": (16, 16, 16)}
    found = quality.measure_quality(read_config("small"), Nearer(), CPU, amp=False, **settings)
    assert (found.subject, found.size) == ("a", (16, 16, 16))
    assert found.default_psnr == pytest.approx(20 * np.log10(2 / 0.1), abs=1e-3)
    assert found.reference_psnr == pytest.approx(found.default_psnr + 20 * np.log10(2), abs=1e-3)


def test_folder_of_files_and_of_two_processes(monkeypatch) -> None:
    """Each run of n files is taken to last 10 + 2 n seconds with one process and 20 + n with two."""
    seen = []

    def run(images: Path, out: Path, device: str, processes: int = 1) -> float:
        seen.append(number := len(list(images.iterdir())))
        return 10 + 2 * number if processes == 1 else 20 + number

    monkeypatch.setattr(folder, "_run", run)
    found = folder.measure_folder(SIZE, device="cpu")
    assert seen == [1, 3, 2, 6]
    assert (found.seconds, found.seconds_two_processes, found.subjects_per_hour) == (2, 1, 3600)


def test_published_presets_are_measured_with_few_steps(network) -> None:
    assert few_steps(network, -1) == min(network.num_inference_steps, 4)
    assert few_steps(network, 7) == 7
    assert tuple(arguments(["--size", "16", "16", "32"]).size) == (16, 16, 32)
