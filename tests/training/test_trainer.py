"""Tests of custom.training.trainer."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.handlers import LrScheduleHandler
from monai.networks.nets import PatchDiscriminator

from custom.networks import LatentTranslator
from custom.training.handlers import MovingAverage
from custom.training.objectives import AutoencoderObjective, Objective, Step, StyleObjective
from custom.training.trainer import StageTrainer, prepare_tensors

CPU = torch.device("cpu")


class Scalar(Objective):
    """``loss = factor · weight`` for a network that is one number."""

    def __init__(self, factor: float = 1.0) -> None:
        torch.nn.Module.__init__(self)
        self.trainable = ()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.factor = factor
        self.sound = True

    def sound_in_bfloat16(self, batch: dict[str, torch.Tensor]) -> bool:
        return self.sound

    def forward(self, batch: dict[str, torch.Tensor], discriminator: torch.nn.Module | None = None) -> Step:
        self.autocast = torch.is_autocast_enabled("cpu")
        return Step({"scalar": self.factor * self.weight}, batch["image"], batch["image"])


def scalar_trainer(objective: Scalar, **kwargs: Any) -> StageTrainer:
    return StageTrainer(
        objective=objective,
        device=CPU,
        max_epochs=1,
        train_data_loader=[{"image": torch.zeros(1, 1, 2, 2, 2)}],
        optimizer=torch.optim.SGD(objective.parameters(), lr=1.0),
        **kwargs,
    )


@pytest.fixture
def network(tiny_translator: LatentTranslator) -> LatentTranslator:
    return copy.deepcopy(tiny_translator)


def images(number: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"image": torch.rand((2, 1, 16, 16, 16), generator=generator) * 2 - 1} for _ in range(number)]


def adversarial_trainer(network: LatentTranslator, steps: int, start: int) -> StageTrainer:
    objective = AutoencoderObjective(network)
    torch.manual_seed(2)
    discriminator = PatchDiscriminator(spatial_dims=3, in_channels=1, channels=4, num_layers_d=1, norm="INSTANCE")
    return StageTrainer(
        objective=objective,
        discriminator=discriminator,
        discriminator_optimizer=torch.optim.SGD(discriminator.parameters(), lr=0.1),
        adversarial_start=start,
        device=CPU,
        max_epochs=1,
        train_data_loader=images(steps),
        optimizer=torch.optim.SGD(objective.trained_parameters(), lr=0.1),
    )


@pytest.mark.parametrize(("factor", "clip_norm", "moved"), [(5.0, 1.0, -1.0), (0.5, 1.0, -0.5), (5.0, 0.0, -5.0)])
def test_gradient_is_clipped(factor: float, clip_norm: float, moved: float) -> None:
    objective = Scalar(factor)
    scalar_trainer(objective, clip_norm=clip_norm).run()
    assert objective.weight.item() == pytest.approx(moved, rel=1e-4)


@pytest.mark.parametrize(("amp", "expected"), [("true", True), (True, True), ("false", False), (False, False)])
def test_amp_is_bfloat16_autocast_without_a_scaler(amp: bool | str, expected: bool) -> None:
    objective = Scalar()
    trainer = scalar_trainer(objective, amp=amp)
    trainer.run()  # a warning of a gradient scaler would fail this test
    assert objective.autocast is expected
    assert trainer.scaler is None


def test_what_bfloat16_would_spoil_is_computed_in_float32() -> None:
    objective = Scalar()
    objective.sound = False
    scalar_trainer(objective, amp=True).run()
    assert objective.autocast is False


def test_losses_are_the_output(network: LatentTranslator) -> None:
    trainer = adversarial_trainer(network, steps=1, start=0)
    trainer.run()
    output = trainer.state.output
    losses = {"reconstruction", "quantisation", "perceptual", "adversarial"}
    assert set(output["terms"]) == losses | {"d_loss", "codebook_usage", "codebook_perplexity", "latent_std"}
    generator = sum(output["terms"][name] for name in losses)
    torch.testing.assert_close(output["loss"], generator)
    assert not any(value.requires_grad for value in output["terms"].values())


def test_discriminator_takes_part_from_its_start_on(network: LatentTranslator) -> None:
    trainer = adversarial_trainer(network, steps=3, start=2)
    weights = [copy.deepcopy(trainer.discriminator.state_dict())]
    terms = []

    @trainer.on(Events.ITERATION_COMPLETED)
    def record() -> None:
        weights.append(copy.deepcopy(trainer.discriminator.state_dict()))
        terms.append(set(trainer.state.output["terms"]))

    trainer.run()
    moved = [any(not torch.equal(a[k], b[k]) for k in a) for a, b in pairwise(weights)]
    assert moved == [False, False, True]
    assert ["d_loss" in t for t in terms] == [False, False, True]


def test_the_generators_step_leaves_no_gradient_in_the_discriminator(network: LatentTranslator) -> None:
    trainer = adversarial_trainer(network, steps=1, start=0)
    trainer.discriminator_optimizer = None
    trainer.run()
    assert all(p.grad is None for p in trainer.discriminator.parameters())


def test_trained_part_moves_and_frozen_parts_do_not(network: LatentTranslator) -> None:
    objective = StyleObjective(network)
    before = copy.deepcopy(network.state_dict())
    latents = {"source": torch.rand(2, 1, 4, 8, 8, 8), "target": torch.rand(2, 4, 8, 8, 8)}
    modalities = {"source_modality": torch.tensor([[0], [1]]), "target_modality": torch.tensor([2, 3])}
    StageTrainer(
        objective=objective, device=CPU, max_epochs=1, train_data_loader=[latents | modalities],
        optimizer=torch.optim.AdamW(objective.trained_parameters(), lr=0.01),
    ).run()  # fmt: skip
    moved = {name.split(".")[0] for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"style_transfer"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_ends_the_run(value: float) -> None:
    objective = Scalar(value)
    objective.weight.data.fill_(1.0)
    with pytest.raises(ValueError, match=r"iteration 1: expected a finite loss; found scalar = (nan|inf)\. Lower"):
        scalar_trainer(objective).run()
    assert objective.weight.item() == 1.0


@pytest.mark.parametrize(
    ("checkpoint", "way_on"),
    [
        (None, "start again: there is no checkpoint yet"),
        ("last.pt (epoch 3)", r"go on from last.pt \(epoch 3\) with --"),
    ],
)
def test_divergence_names_the_subjects_and_the_last_good_checkpoint(checkpoint: str | None, way_on: str) -> None:
    trainer = scalar_trainer(Scalar(float("nan")))
    trainer.data_loader = [{"image": torch.zeros(3, 1, 2, 2, 2), "subject": ["s7", "s7", "s2"]}]
    trainer.state.dataloader = trainer.data_loader
    trainer.state.checkpoint = checkpoint
    with pytest.raises(ValueError, match=r"iteration 1, subjects s7, s2: expected a finite loss.*" + way_on):
        trainer.run()


def test_gradient_that_is_not_finite_ends_the_run() -> None:
    objective = Scalar()
    objective.weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(ValueError, match=r"iteration 1: expected finite gradients; found a norm of inf in the Scalar"):
        scalar_trainer(objective).run()
    assert objective.weight.item() == 0.0


def test_batches_become_plain_tensors() -> None:
    batch = {"image": MetaTensor(torch.ones(1, 1, 2, 2, 2)), "subject": ["a"], "source_modality": torch.tensor([1])}
    prepared = prepare_tensors(batch, CPU, False)
    assert prepared.keys() == {"image", "source_modality"}
    assert type(prepared["image"]) is torch.Tensor


def test_objective_is_moved_to_the_device(network: LatentTranslator) -> None:
    # a perceptual network is part of the objective, not of the network that the config has moved
    objective, moved = Scalar(), []
    objective.register_buffer("perceptual", torch.empty(1, device="meta"))
    objective.to = moved.append
    scalar_trainer(objective)
    assert moved == [CPU]


def style_batch(count: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    latents = {name: torch.rand((count, 4, 8, 8, 8), generator=generator) for name in ("source", "target")}
    places = torch.arange(count)
    latents["source"] = latents["source"].unsqueeze(1)
    return {**latents, "source_modality": (places % 4).unsqueeze(1), "target_modality": (places + 1) % 4}


def trained(network: LatentTranslator, batch: dict[str, torch.Tensor], **kwargs: Any) -> tuple[StageTrainer, dict]:
    """Two steps of stage 2 with its discriminator, moving averages and a schedule."""
    network = copy.deepcopy(network)
    objective = StyleObjective(network, image_weight=1.0)
    torch.manual_seed(2)
    discriminator = PatchDiscriminator(
        spatial_dims=3, in_channels=4, out_channels=5, channels=4, num_layers_d=1, norm="INSTANCE"
    )
    optimizer = torch.optim.SGD(objective.trained_parameters(), lr=0.1)
    average = MovingAverage(network, momentum=0.5)
    trainer = StageTrainer(
        objective=objective, discriminator=discriminator, device=CPU, max_epochs=1, train_data_loader=[batch, batch],
        discriminator_optimizer=torch.optim.SGD(discriminator.parameters(), lr=0.1), optimizer=optimizer,
        train_handlers=[
            average,
            LrScheduleHandler(torch.optim.lr_scheduler.StepLR(optimizer, 1), print_lr=False, epoch_level=False),
        ],
        **kwargs,
    )  # fmt: skip
    trainer.run()
    states = {"network": network, "discriminator": discriminator, "average": average.ema_model}
    return trainer, {f"{name}.{key}": v for name, m in states.items() for key, v in m.state_dict().items()}


@pytest.mark.parametrize(("count", "steps"), [(4, 2), (4, 4), (3, 2), (2, 5)])
def test_accumulated_steps_are_those_of_the_whole_batch(
    network: LatentTranslator, count: int, steps: int, assert_near
) -> None:
    batch = style_batch(count)
    whole, expected = trained(network, batch)
    parts, found = trained(network, batch, accumulation_steps=steps)
    start = network.state_dict()
    assert any(not torch.equal(v, start[k[8:]]) for k, v in expected.items() if k.startswith("network."))
    for name, value in expected.items():
        # sums over the items in another order
        assert_near(found[name], value, msg=name)
    assert parts.state.iteration == whole.state.iteration == 2
    for name, value in whole.state.output["terms"].items():
        # losses of about 1
        torch.testing.assert_close(parts.state.output["terms"][name], value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts.state.output["loss"], whole.state.output["loss"], rtol=1e-4, atol=1e-5)


def test_one_part_is_held_at_a_time() -> None:
    objective = Scalar()
    sizes = []
    forward = objective.forward
    objective.forward = lambda batch, discriminator: (sizes.append(len(batch["image"])), forward(batch))[1]
    trainer = scalar_trainer(objective, accumulation_steps=3)
    trainer.data_loader = [{"image": torch.zeros(5, 1, 2, 2, 2)}]
    trainer.state.dataloader = trainer.data_loader
    trainer.run()
    assert sizes == [2, 2, 1]
    assert objective.weight.item() == pytest.approx(-1.0)


def test_no_parts_are_an_error() -> None:
    with pytest.raises(ValueError, match="accumulation_steps: expected 1 or more, found 0"):
        scalar_trainer(Scalar(), accumulation_steps=0)


@pytest.mark.parametrize("switch", [True, "true"])
def test_checkpointed_training_is_the_same(network: LatentTranslator, switch: bool | str) -> None:
    _, expected = trained(network, style_batch(2))
    _, found = trained(network, style_batch(2), gradient_checkpointing=switch)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
