"""Tests of custom.training.vitals."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine

from custom.training.vitals import Vitals

SOUND = {"codebook_usage": 0.4, "codebook_perplexity": 30.0, "latent_std": 1.0, "d_loss": 0.9}


def said(caplog: pytest.LogCaptureFixture, *epochs: dict[str, float]) -> list[str]:
    """What is warned of, for the measures of each epoch."""

    def step(engine: Engine, batch: int) -> dict:
        return {"terms": {name: torch.tensor(value) for name, value in epochs[engine.state.epoch - 1].items()}}

    engine = Engine(step)
    Vitals().attach(engine)
    engine.run([0, 1], max_epochs=len(epochs))
    return [record.getMessage() for record in caplog.records if record.name == "custom.training.vitals"]


def test_sound_training_is_not_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    assert said(caplog, SOUND, {**SOUND, "latent_std": 5.0}, {"diffusion": 0.0}) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook_usage": 0.005}, "epoch 2: a codebook is all but empty: a batch uses 0.5 % of its codes"),
        ({"codebook_perplexity": 1.2}, "epoch 2: a codebook is all but empty"),
        ({"d_loss": 0.001}, "epoch 2: the discriminator tells every image apart (loss 0.001)"),
        (
            {"latent_std": 40.0},
            "epoch 2: the latents' standard deviation has grown 40 times since the first epoch, to 40",
        ),
    ],
)
def test_each_sign_is_warned_about_once(caplog: pytest.LogCaptureFixture, change: dict, message: str) -> None:
    (warning,) = said(caplog, SOUND, {**SOUND, **change}, {**SOUND, **change})
    assert warning.startswith(message)
