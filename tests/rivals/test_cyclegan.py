"""Tests of CycleGAN's objective."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from custom.rivals import CycleGANObjective
from custom.rivals.objective import least_squares
from custom.rivals.rival import Rival


def batch() -> dict[str, torch.Tensor]:
    """Source and target of different subjects, hence of different sizes."""
    generator = torch.Generator().manual_seed(0)
    image, label = torch.rand(1, 1, 40, 32, generator=generator), torch.rand(1, 1, 32, 36, generator=generator)
    return {"image": image, "label": label, "target_modality": torch.tensor([2])}


def test_terms_are_the_published_ones(make: Callable[..., Rival]) -> None:
    objective, data = CycleGANObjective(make("cyclegan_2d")), batch()
    domains, x, y = objective.rival.make_discriminator(), data["image"], data["label"]
    forth, back = objective.rival.generator, objective.companions["reverse"]
    with torch.no_grad():
        step = objective(data, domains)
        fake_y, fake_x = forth(x), back(y)
        cycle = F.l1_loss(back(fake_y), x) + F.l1_loss(forth(fake_x), y)
        identity = F.l1_loss(forth(y), y) + F.l1_loss(back(x), x)
        adversarial = least_squares(domains["target"](fake_y)[-1], 1) + least_squares(domains["source"](fake_x)[-1], 1)
        torch.testing.assert_close(step.terms["cycle"], 10 * cycle)
        torch.testing.assert_close(step.terms["identity"], 5 * identity)
        torch.testing.assert_close(step.terms["adversarial"], adversarial)
        expected = [
            0.5 * (least_squares(d(real)[-1], 1) + least_squares(d(fake)[-1], 0))
            for d, real, fake in ((domains["source"], x, fake_x), (domains["target"], y, fake_y))
        ]
        torch.testing.assert_close(objective.judge(domains, step.samples), sum(expected))
    assert [len(objective.companions[f"pool_{domain}"].images) for domain in ("source", "target")] == [1, 1]


def test_both_generators_train_and_start_apart(make: Callable[..., Rival]) -> None:
    objective = CycleGANObjective(make("cyclegan_2d"))
    step = objective(batch(), objective.rival.make_discriminator())
    step.loss.backward()
    trained = objective.trained_parameters()
    assert len(trained) == 2 * len(list(objective.rival.generator.parameters()))
    assert all(p.grad is not None for p in trained)
    pairs = zip(objective.rival.generator.parameters(), objective.companions["reverse"].parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
