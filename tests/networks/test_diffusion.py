"""Tests of custom.networks.diffusion."""

from __future__ import annotations

import pytest
import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, RFlowScheduler

from custom.networks import NoiseSchedule, RectifiedFlow
from custom.networks.diffusion import FLOW_PREDICTION_TYPES, PREDICTION_TYPES, draw_noise, path_seed

BETAS = {"beta_start": 0.0015, "beta_end": 0.0195}
SHAPE = (3, 2, 2, 3, 2)
every_type = pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
SCHEDULES = {
    **{f"diffusion, {kind}": (NoiseSchedule, kind) for kind in PREDICTION_TYPES},
    **{f"flow, {kind}": (RectifiedFlow, kind) for kind in FLOW_PREDICTION_TYPES},
}
every_schedule = pytest.mark.parametrize(("path", "prediction_type"), SCHEDULES.values(), ids=SCHEDULES)


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


@every_schedule
def test_split_undoes_add_noise(path: type[NoiseSchedule], prediction_type: str, assert_near) -> None:
    schedule = path(prediction_type=prediction_type)
    clean, noise, t = torch.randn(SHAPE), torch.randn(SHAPE), torch.tensor([10, 321, 700])
    target = schedule.training_target(clean, noise, t)
    found = schedule.split(target, schedule.add_noise(clean, noise, t), t)
    assert_near(found, (clean, noise), tolerance=1e-4)


@every_type
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("timestep", [950, 500, 50])
def test_step_equals_monai(prediction_type: str, eta: float, timestep: int, assert_near) -> None:
    schedule, scheduler = NoiseSchedule(prediction_type=prediction_type), ddim(prediction_type, 10)
    prediction, noisy = torch.randn(SHAPE), torch.randn(SHAPE)
    torch.manual_seed(1)
    expected, _ = scheduler.step(prediction, timestep, noisy, eta=eta)
    torch.manual_seed(1)
    fresh = torch.randn(SHAPE)
    found = schedule.step(prediction, noisy, torch.tensor([timestep]), torch.tensor([timestep - 100]), eta, fresh)
    assert_near(found, expected, tolerance=1e-4)


@every_type
@pytest.mark.parametrize("timestep", [999, 500, 1, 0])
def test_eta_1_over_every_timestep_is_ddpm(prediction_type: str, timestep: int, assert_near) -> None:
    schedule = NoiseSchedule(prediction_type=prediction_type)
    scheduler = DDPMScheduler(
        1000, schedule="scaled_linear_beta", clip_sample=False, prediction_type=prediction_type, **BETAS
    )
    prediction, noisy = torch.randn(SHAPE), torch.randn(SHAPE)
    expected, _ = scheduler.step(prediction, timestep, noisy, generator=torch.Generator().manual_seed(1))
    fresh = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    now, after = torch.tensor([timestep]), torch.tensor([timestep - 1])
    found = schedule.step(prediction, noisy, now, after, 1.0, fresh)
    # ᾱ_T is 1e-4: MONAI's float32 arithmetic on it costs as many digits as ours
    assert_near(found, expected, tolerance=2e-3)


@pytest.mark.parametrize("timestep", [999, 321, 0])
def test_flow_equals_monai(timestep: int, assert_near) -> None:
    flow, scheduler = RectifiedFlow(), RFlowScheduler(1000)
    clean, noise, now = torch.randn(SHAPE), torch.randn(SHAPE), torch.tensor([timestep])
    # MONAI counts from the clean end, 0, to pure noise, 1000; here -1 and 999
    noisy = scheduler.add_noise(clean, noise, now + 1)
    assert_near(flow.add_noise(clean, noise, now), noisy)
    assert_near(flow.training_target(clean, noise, now), clean - noise)
    velocity, after = torch.randn(SHAPE), max(timestep - 100, -1)
    scheduler.set_timesteps(10)
    expected, _ = scheduler.step(velocity, timestep + 1, noisy, after + 1)
    _, expected_clean = scheduler.step(velocity, timestep + 1, noisy)
    found = flow.step(velocity, noisy, now, torch.tensor([after]), 0.0)
    assert_near(found, expected)
    assert_near(flow.split(velocity, noisy, now)[0], expected_clean)


@pytest.mark.parametrize("num_steps", [1, 4, 10])
def test_flow_timesteps_equal_monai(num_steps: int) -> None:
    scheduler = RFlowScheduler(1000)
    scheduler.set_timesteps(num_steps)
    assert RectifiedFlow().inference_timesteps(num_steps, 1.0)[:-1].tolist() == (scheduler.timesteps - 1).tolist()


@pytest.mark.parametrize("path", [NoiseSchedule, RectifiedFlow])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_a_stochastic_step_keeps_the_noise_level(path: type[NoiseSchedule], eta: float) -> None:
    """With the true noise predicted, z_s has the distribution of the forward process: mean and variance."""
    schedule = path(prediction_type="sample")
    clean, noise, fresh = torch.full((1, 1, 40, 40, 40), 2.0), *torch.randn(2, 1, 1, 40, 40, 40)
    now, after = torch.tensor([800]), torch.tensor([300])
    found = schedule.step(clean, schedule.add_noise(clean, noise[None], now), now, after, eta, fresh[None])
    signal, sigma = schedule.coefficients(after)
    # 64,000 draws: the standard error of the mean is 0.4 % of σ, that of the deviation 0.3 %
    torch.testing.assert_close(found.mean(), 2 * signal.squeeze(), rtol=0, atol=0.02)
    torch.testing.assert_close(found.std(), sigma.squeeze(), rtol=0.02, atol=0)


@every_schedule
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_sampler_with_a_perfect_denoiser_returns_the_clean_sample(
    path: type[NoiseSchedule], prediction_type: str, eta: float, num_steps: int, assert_near
) -> None:
    schedule = path(prediction_type=prediction_type).double()
    clean, z = torch.randn(SHAPE, dtype=torch.float64), torch.randn(SHAPE, dtype=torch.float64)
    timesteps = schedule.inference_timesteps(num_steps, 1.0)
    for now, after in zip(timesteps[:-1, None], timesteps[1:, None], strict=True):
        signal, sigma = schedule.coefficients(now)
        noise = (z - signal * clean) / sigma
        z = schedule.step(schedule.training_target(clean, noise, now), z, now, after, eta, torch.randn_like(z))
    assert_near(z, clean)


@every_schedule
def test_deterministic_path_keeps_the_noise(path: type[NoiseSchedule], prediction_type: str, assert_near) -> None:
    schedule = path(prediction_type=prediction_type).double()
    clean, noise = torch.randn(SHAPE, dtype=torch.float64), torch.randn(SHAPE, dtype=torch.float64)
    now, after = torch.tensor([800]), torch.tensor([300])
    prediction = schedule.training_target(clean, noise, now)
    found = schedule.step(prediction, schedule.add_noise(clean, noise, now), now, after, 0.0)
    assert_near(found, schedule.add_noise(clean, noise, after))


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


@pytest.mark.parametrize("path", [NoiseSchedule, RectifiedFlow])
def test_the_clean_end(path: type[NoiseSchedule]) -> None:
    signal, sigma = path().coefficients(torch.tensor([-1, -7]))
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


def test_a_flow_ends_in_pure_noise() -> None:
    signal, sigma = RectifiedFlow().coefficients(torch.tensor([999, 249]))
    torch.testing.assert_close(signal.flatten(), torch.tensor([0.0, 0.75]))
    torch.testing.assert_close(sigma.flatten(), torch.tensor([1.0, 0.25]))


def test_noise_is_drawn_by_a_generator_of_its_own() -> None:
    state, latent = torch.get_rng_state(), torch.empty(3, 2, 1, 2, 1)
    noise = draw_noise(latent, 5)
    assert noise.shape == (1, 2, 1, 2, 1)
    assert torch.equal(noise, torch.randn((1, 2, 1, 2, 1), generator=torch.Generator().manual_seed(5)))
    assert path_seed(noise) == path_seed(draw_noise(latent, 5)) != path_seed(draw_noise(latent, 6))
    assert torch.equal(state, torch.get_rng_state())


@every_schedule
def test_script_equals_eager(path: type[NoiseSchedule], prediction_type: str, assert_near) -> None:
    schedule = path(prediction_type=prediction_type)
    holder = _Step(schedule)
    args = (torch.randn(SHAPE), torch.randn(SHAPE), torch.tensor([700]), torch.tensor([-1]))
    assert_near(torch.jit.script(holder)(*args), holder(*args))


class _Step(torch.nn.Module):
    """The schedule has no forward of its own."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(
        self, prediction: torch.Tensor, noisy: torch.Tensor, now: torch.Tensor, after: torch.Tensor
    ) -> torch.Tensor:
        return self.schedule.step(prediction, noisy, now, after, 1.0, noisy)


@pytest.mark.parametrize(
    ("path", "prediction_type", "known"),
    [(NoiseSchedule, "velocity", "epsilon"), (RectifiedFlow, "epsilon", "velocity")],
)
def test_unknown_prediction_type(path: type[NoiseSchedule], prediction_type: str, known: str) -> None:
    message = rf"prediction_type: expected one of \('{known}'.*found '{prediction_type}'"
    with pytest.raises(ValueError, match=message):
        path(prediction_type=prediction_type)
