"""Tests of custom.networks.diffusion."""

from __future__ import annotations

import pytest
import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

from custom.networks import NoiseSchedule
from custom.networks.diffusion import PREDICTION_TYPES

BETAS = {"beta_start": 0.0015, "beta_end": 0.0195}
SHAPE = (3, 2, 2, 3, 2)
every_type = pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)


def ddim(prediction_type: str, num_steps: int) -> DDIMScheduler:
    scheduler = DDIMScheduler(
        1000, schedule="scaled_linear_beta", clip_sample=False, prediction_type=prediction_type, **BETAS
    )
    scheduler.set_timesteps(num_steps)
    return scheduler


@pytest.mark.parametrize("num_train_timesteps", [10, 1000])
def test_alphas_equal_monai(num_train_timesteps: int) -> None:
    schedule = NoiseSchedule(num_train_timesteps=num_train_timesteps)
    for scheduler in (DDIMScheduler, DDPMScheduler):
        expected = scheduler(num_train_timesteps, schedule="scaled_linear_beta", **BETAS).alphas_cumprod
        assert torch.equal(schedule.alphas_cumprod, expected)


def test_table_c() -> None:
    alphas = NoiseSchedule().alphas_cumprod
    assert alphas.shape == (1000,)
    torch.testing.assert_close(1 - alphas[0], torch.tensor(0.0015))
    torch.testing.assert_close(1 - alphas[-1] / alphas[-2], torch.tensor(0.0195), rtol=1e-4, atol=0)


def test_noise_and_velocity_equal_monai() -> None:
    schedule, scheduler = NoiseSchedule(prediction_type="v_prediction"), ddim("v_prediction", 1000)
    clean, noise, t = torch.randn(SHAPE), torch.randn(SHAPE), torch.tensor([0, 321, 999])
    torch.testing.assert_close(schedule.add_noise(clean, noise, t), scheduler.add_noise(clean, noise, t))
    torch.testing.assert_close(schedule.training_target(clean, noise, t), scheduler.get_velocity(clean, noise, t))


def test_training_targets() -> None:
    clean, noise, t = torch.randn(SHAPE), torch.randn(SHAPE), torch.tensor([0, 321, 999])
    assert NoiseSchedule(prediction_type="epsilon").training_target(clean, noise, t) is noise
    assert NoiseSchedule(prediction_type="sample").training_target(clean, noise, t) is clean


@every_type
def test_split_undoes_add_noise(prediction_type: str) -> None:
    schedule = NoiseSchedule(prediction_type=prediction_type)
    clean, noise, t = torch.randn(SHAPE), torch.randn(SHAPE), torch.tensor([10, 321, 700])
    target = schedule.training_target(clean, noise, t)
    found = schedule.split(target, schedule.add_noise(clean, noise, t), t)
    torch.testing.assert_close(found, (clean, noise), rtol=1e-3, atol=1e-4)


@every_type
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("timestep", [950, 500, 50])
def test_step_equals_monai(prediction_type: str, eta: float, timestep: int) -> None:
    schedule, scheduler = NoiseSchedule(prediction_type=prediction_type), ddim(prediction_type, 10)
    prediction, noisy = torch.randn(SHAPE), torch.randn(SHAPE)
    torch.manual_seed(1)
    expected, _ = scheduler.step(prediction, timestep, noisy, eta=eta)
    torch.manual_seed(1)
    found = schedule.step(prediction, noisy, torch.tensor([timestep]), torch.tensor([timestep - 100]), eta)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@every_type
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_sampler_with_a_perfect_denoiser_returns_the_clean_sample(
    prediction_type: str, eta: float, num_steps: int
) -> None:
    schedule = NoiseSchedule(prediction_type=prediction_type).double()
    clean, z = torch.randn(SHAPE, dtype=torch.float64), torch.randn(SHAPE, dtype=torch.float64)
    timesteps = schedule.inference_timesteps(num_steps, 1.0)
    for now, after in zip(timesteps[:-1, None], timesteps[1:, None], strict=True):
        signal, sigma = schedule.coefficients(now)
        noise = (z - signal * clean) / sigma
        z = schedule.step(schedule.training_target(clean, noise, now), z, now, after, eta)
    torch.testing.assert_close(z, clean)


def test_deterministic_path_keeps_the_noise() -> None:
    schedule = NoiseSchedule().double()
    clean, noise = torch.randn(SHAPE, dtype=torch.float64), torch.randn(SHAPE, dtype=torch.float64)
    now, after = torch.tensor([800]), torch.tensor([300])
    found = schedule.step(noise, schedule.add_noise(clean, noise, now), now, after, 0.0)
    torch.testing.assert_close(found, schedule.add_noise(clean, noise, after))


@pytest.mark.parametrize(
    ("num_steps", "strength", "expected"),
    [
        (1, 1.0, [999, -1]),
        (4, 1.0, [999, 749, 499, 249, -1]),
        (2, 0.5, [499, 249, -1]),
        (3, 0.25, [249, 166, 82, -1]),
    ],
)
def test_inference_timesteps(num_steps: int, strength: float, expected: list[int]) -> None:
    assert NoiseSchedule().inference_timesteps(num_steps, strength).tolist() == expected


def test_all_steps_visit_all_timesteps() -> None:
    assert NoiseSchedule().inference_timesteps(1000, 1.0).tolist() == list(range(999, -2, -1))


def test_the_clean_end() -> None:
    signal, sigma = NoiseSchedule().coefficients(torch.tensor([-1, -7]))
    assert signal.flatten().tolist() == [1, 1]
    assert sigma.flatten().tolist() == [0, 0]


def test_batch_equals_items(check_batch) -> None:
    schedule = NoiseSchedule()
    now, after = torch.tensor([900, 500, 20]), torch.tensor([800, 100, -1])
    check_batch(lambda *a: schedule.step(*a, 0.0), torch.randn(SHAPE), torch.randn(SHAPE), now, after)


def test_the_schedule_is_saved() -> None:
    short, other = NoiseSchedule(num_train_timesteps=5), NoiseSchedule(num_train_timesteps=5, beta_end=0.5)
    assert list(short.state_dict()) == ["alphas_cumprod"]
    other.load_state_dict(short.state_dict())
    assert torch.equal(other.alphas_cumprod, short.alphas_cumprod)
    assert not list(short.parameters())


@every_type
def test_script_equals_eager(prediction_type: str) -> None:
    schedule = NoiseSchedule(prediction_type=prediction_type)
    holder = _Step(schedule)
    args = (torch.randn(SHAPE), torch.randn(SHAPE), torch.tensor([700]), torch.tensor([-1]))
    torch.testing.assert_close(torch.jit.script(holder)(*args), holder(*args))


class _Step(torch.nn.Module):
    """The schedule has no forward of its own."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(
        self, prediction: torch.Tensor, noisy: torch.Tensor, now: torch.Tensor, after: torch.Tensor
    ) -> torch.Tensor:
        return self.schedule.step(prediction, noisy, now, after, 0.0)


def test_unknown_prediction_type() -> None:
    with pytest.raises(ValueError, match=r"prediction_type: expected one of \('epsilon'.*found 'velocity'"):
        NoiseSchedule(prediction_type="velocity")
