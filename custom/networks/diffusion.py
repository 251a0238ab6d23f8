"""The diffusion process: noise schedule, conversions between predictions, and the deterministic sampler's step."""

from __future__ import annotations

import torch
from monai.networks.schedulers.scheduler import NoiseSchedules
from torch import Tensor, nn

__all__ = ["PREDICTION_TYPES", "NoiseSchedule", "draw_noise"]

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


class NoiseSchedule(nn.Module):
    """Forward process ``z_t = √ᾱ_t z_0 + √(1 − ᾱ_t) ε`` with ᾱ as a buffer, and DDIM's reverse step.

    Args:
        num_train_timesteps: T.
        beta_start, beta_end: ends of the scaled-linear β schedule (the paper's Table C).
        prediction_type: what the network predicts: ``"epsilon"`` (ε, eq. 4), ``"v_prediction"``
            (``√ᾱ ε − √(1 − ᾱ) z_0``) or ``"sample"`` (z_0).

    Source: Ho et al. 2020 (https://arxiv.org/abs/2006.11239); Song et al. 2021 (https://arxiv.org/abs/2010.02502);
    v: Salimans & Ho 2022 (https://arxiv.org/abs/2202.00512).
    """

    def __init__(
        self,
        *,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0015,
        beta_end: float = 0.0195,
        prediction_type: str = "epsilon",
    ) -> None:
        super().__init__()
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type: expected one of {PREDICTION_TYPES}, found {prediction_type!r}.")
        self.num_train_timesteps = num_train_timesteps
        self.prediction_type = prediction_type
        betas = NoiseSchedules["scaled_linear_beta"](num_train_timesteps, beta_start, beta_end)
        self.register_buffer("alphas_cumprod", torch.cumprod(1.0 - betas, dim=0))

    def coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(√ᾱ, √(1 − ᾱ)), each (B, 1, 1, 1, 1), for ``timesteps`` (B,); t = −1 stands for the clean end, ᾱ = 1."""
        alpha = self.alphas_cumprod[timesteps.clamp(min=0)]
        alpha = torch.where(timesteps < 0, torch.ones_like(alpha), alpha)
        alpha = alpha.view(-1, 1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``z_t`` (B, L, h, w, d) from ``clean`` z_0 and ``noise`` ε of the same shape."""
        signal, sigma = self.coefficients(timesteps)
        return signal * clean + sigma * noise

    def training_target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network should predict for ``z_t``."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return clean
        signal, sigma = self.coefficients(timesteps)
        return signal * noise - sigma * clean

    def split(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Estimates of (z_0, ε) that agree with ``noisy`` z_t and with the network's ``prediction``."""
        signal, sigma = self.coefficients(timesteps)
        if self.prediction_type == "epsilon":
            return (noisy - sigma * prediction) / signal, prediction
        if self.prediction_type == "sample":
            return prediction, (noisy - signal * prediction) / sigma
        return signal * noisy - sigma * prediction, sigma * noisy + signal * prediction

    def inference_timesteps(self, num_steps: int, strength: float) -> Tensor:
        """Timesteps (num_steps + 1,), falling from ``strength · T − 1`` to −1 (the clean end), evenly spaced.

        The first is the last of the training schedule for ``strength`` 1, so that sampling starts at the noise level
        it assumes ("trailing" spacing, Lin et al. 2024, https://arxiv.org/abs/2305.08891).
        """
        start = strength * self.num_train_timesteps
        steps = torch.linspace(start, 0.0, num_steps + 1, device=self.alphas_cumprod.device, dtype=torch.float64)
        return steps.round().long() - 1

    def step(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor, previous: Tensor, eta: float) -> Tensor:
        """DDIM step from ``timesteps`` to ``previous`` (both (B,)); η = 0 is deterministic, η = 1 is DDPM-like."""
        clean, noise = self.split(prediction, noisy, timesteps)
        signal, sigma = self.coefficients(previous)
        if eta == 0.0:
            return signal * clean + sigma * noise
        signal_t, sigma_t = self.coefficients(timesteps)
        spread = eta * (sigma / sigma_t) * (1 - (signal_t / signal).square()).clamp(min=0.0).sqrt()
        kept = (sigma.square() - spread.square()).clamp(min=0.0).sqrt()
        return signal * clean + kept * noise + spread * torch.randn_like(noisy)


def draw_noise(latent: Tensor, seed: int) -> Tensor:
    """Standard normal noise (1, L, h, w, d) for ``latent`` (B, L, h, w, d), drawn by a CPU generator.

    It is the same on every device and for every item of a batch.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, *latent.shape[1:]), generator=generator).to(latent.device)
