"""Tests of custom.training.memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from custom.training.memory import BACKWARD, CARDS, PeakMemory, prepare_step, smallest_card, step_flops, step_memory
from custom.training.trainer import StageTrainer

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"
STAGES = ("train_autoencoder", "train_spade", "train")
SIZE = (32, 32, 32)
NARROW = {
    "amp": False,
    "network_def#autoencoder#channels": [16],
    "network_def#autoencoder#bottleneck#num_embeddings": 64,
    "network_def#style_transfer#width": 16,
    "network_def#style_transfer#num_blocks": 1,
    "network_def#detail#width": 8,
    "network_def#unet#channels": [16, 16, 16],
    "network_def#unet#norm_num_groups": 4,
}


def predicted(stage: str, size: tuple[int, int, int] = SIZE, **overrides: Any) -> int:
    return step_memory([CONFIGS / f"{stage}.json"], size, **{"like_cuda": False, **NARROW, **overrides})


def test_peak_of_known_tensors() -> None:
    with PeakMemory() as memory:
        a = torch.zeros(1000)
        b = a.view(10, 100) + 1
        del a
        c = b * 2
        del b
        assert c.sum().item() == 1.0
    assert (memory.peak, memory.live) == (8000, 4000)


def test_peak_of_a_backward_pass() -> None:
    layers = nn.Sequential(*(nn.Linear(10, 10, bias=False) for _ in range(3)))
    x = torch.ones(1000, 10)
    with PeakMemory() as memory:
        layers(x).sum().backward()
    # the outputs of two layers are held, and the third's or a gradient beside it
    assert 3 * 40000 <= memory.peak <= 4 * 40000 + 4000


def allocated(trainer: StageTrainer, batch: dict[str, torch.Tensor]) -> int:
    """Most bytes that PyTorch's allocator hands out in a step beyond what there was before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        trainer._iteration(trainer, batch)
    events = [e for e in measured.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        highest = max(highest, live)
    return highest


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.slow
def test_prediction_is_what_a_step_takes(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # all sources of a set, as those that are measured
    monkeypatch.setattr(torch, "randint", lambda high, size, **_: torch.zeros(size, dtype=torch.long))
    trainer, batch, averages = prepare_step([CONFIGS / f"{stage}.json"], SIZE, **NARROW)
    trainer._iteration(trainer, batch)
    kept = [*trainer.objective.parameters(), *trainer.objective.buffers(), *batch.values()]
    for optimizer in (trainer.optimizer, trainer.discriminator_optimizer):
        states = optimizer.state.values() if optimizer else ()
        kept += [t for state in states for t in state.values() if isinstance(t, torch.Tensor)]
    kept += [] if trainer.discriminator is None else trainer.discriminator.parameters()
    there = sum(t.numel() * t.element_size() for t in kept)
    assert predicted(stage) == pytest.approx(averages + there + allocated(trainer, batch), rel=0.2)


@pytest.mark.slow
def test_what_takes_more_and_less() -> None:
    whole = predicted("train_autoencoder")
    assert predicted("train_autoencoder", gradient_checkpointing=True) < whole
    assert predicted("train_autoencoder", accumulation_steps=2) < whole
    assert predicted("train_autoencoder", (48, 32, 32)) > whole
    halves = predicted("train_autoencoder", amp=True)
    assert halves < predicted("train_autoencoder", amp=True, like_cuda=True) < whole


@pytest.mark.slow
def test_crops_bound_what_is_taken() -> None:
    assert predicted("train", (96, 96, 96)) == predicted("train", (64, 64, 64))


@pytest.mark.slow
def test_joint_training_is_on_images() -> None:
    """Joint training takes one source, so it is set beside one source's latents."""
    joint = predicted("train_spade", joint=True)
    assert joint > predicted("train_spade", max_sources=1)


@pytest.mark.parametrize(("used", "card"), [(10**9, 8), (7 * 10**9, 12), (20 * 10**9, 24), (70 * 10**9, 80)])
def test_card(used: int, card: int) -> None:
    assert smallest_card(used) == card
    assert smallest_card(used) in CARDS


def test_no_card() -> None:
    assert smallest_card(75 * 10**9) is None


@pytest.mark.parametrize("layer", [nn.Conv3d, nn.ConvTranspose3d])
@pytest.mark.parametrize("groups", [1, 4])
def test_arithmetic_of_a_backward_pass(layer: type[nn.Conv3d] | type[nn.ConvTranspose3d], groups: int) -> None:
    """Twice the forward pass: as much for the input's gradient as for the weights'."""
    convolution, x = layer(8, 16, 3, stride=2, groups=groups), torch.ones(2, 8, 9, 9, 9, requires_grad=True)
    with FlopCounterMode(display=False, custom_mapping=BACKWARD) as counter:
        y = convolution(x)
        forward = counter.get_total_flops()
        y.sum().backward()
    positions = (9 if layer is nn.ConvTranspose3d else 4) ** 3
    assert forward == 2 * 2 * positions * 8 * 16 // groups * 27
    assert counter.get_total_flops() == 3 * forward


def test_arithmetic_of_sets_is_the_mean_over_their_sizes() -> None:
    one, two, three = (step_flops([CONFIGS / "train_spade.json"], SIZE, **NARROW, max_sources=n) for n in (1, 2, 3))
    of_two, of_three = 2 * two - one, 3 * three - 2 * two  # alone
    assert one < of_two < of_three
    assert of_three - of_two < of_two - one  # a second source brings in the fusion, a third is one more
