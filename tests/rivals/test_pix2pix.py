"""Tests of Pix2Pix and its objective."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monai.losses import PatchAdversarialLoss

from custom.rivals import Pix2PixObjective
from custom.rivals.objective import CRITERIA
from custom.rivals.rival import Rival


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, label = (torch.rand(2, 1, 32, 32, generator=generator) * 2 - 1 for _ in range(2))
    return {"image": image, "label": label, "target_modality": torch.tensor([2, 2])}


@pytest.mark.parametrize(("name", "monais"), [("least_squares", "least_squares"), ("logistic", "bce")])
def test_criteria_are_monais(name: str, monais: str) -> None:
    logits = torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    expected = PatchAdversarialLoss(criterion=monais, no_activation_leastsq=True)
    for real in (True, False):
        torch.testing.assert_close(CRITERIA[name](logits, float(real)), expected(logits, real, True))


def test_terms_are_the_published_ones(make: Callable[..., Rival]) -> None:
    objective, data = Pix2PixObjective(make("pix2pix_2d")), batch()
    discriminator = objective.rival.make_discriminator().eval()
    step = objective(data, discriminator)
    fake, given = step.samples["fake"], torch.cat([data["image"], step.samples["fake"]], dim=1)
    torch.testing.assert_close(step.terms["l1"], 100 * (fake - data["label"]).abs().mean())
    logits = discriminator(given)[-1]
    torch.testing.assert_close(step.terms["adversarial"], CRITERIA["logistic"](logits, 1.0))
    real = discriminator(torch.cat([data["image"], data["label"]], dim=1))[-1]
    expected = (CRITERIA["logistic"](real, 1.0) + CRITERIA["logistic"](logits, 0.0)) / 2
    torch.testing.assert_close(objective.judge(discriminator, step.samples), expected)


def test_the_discriminators_loss_leaves_the_generator_alone(make: Callable[..., Rival]) -> None:
    objective = Pix2PixObjective(make("pix2pix_2d"))
    discriminator = objective.rival.make_discriminator()
    objective.judge(discriminator, objective(batch(), None).samples).backward()
    assert all(p.grad is None for p in objective.parameters())
    assert all(p.grad is not None for p in discriminator.parameters())


def test_smooth_labels_are_drawn_for_each_step(make: Callable[..., Rival]) -> None:
    objective = Pix2PixObjective(make("pix2pix_2d"), smooth=True)
    for real, low, high in ((True, 0.7, 1.2), (False, 0.0, 0.3)):
        drawn = [objective.label(real=real) for _ in range(200)]
        assert low <= min(drawn) < low + 0.05 < high - 0.05 < max(drawn) <= high
    assert Pix2PixObjective(make("pix2pix_2d")).label(real=True) == 1.0


def test_an_unknown_criterion(make: Callable[..., Rival]) -> None:
    with pytest.raises(ValueError, match="criterion: expected one of least_squares, logistic; found 'hinge'"):
        Pix2PixObjective(make("pix2pix_2d"), criterion="hinge")
