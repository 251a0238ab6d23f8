"""The diffusion process: paths from data to noise, conversions between predictions, and the sampler's step."""

from __future__ import annotations

import torch
from monai.networks.schedulers.scheduler import NoiseSchedules
from torch import Tensor, nn

__all__ = ["FLOW_PREDICTION_TYPES", "PREDICTION_TYPES", "NoiseSchedule", "RectifiedFlow", "draw_noise", "path_seed"]

PREDICTION_TYPES: tuple[str, ...] = ("epsilon", "v_prediction", "sample")
FLOW_PREDICTION_TYPES: tuple[str, ...] = ("velocity", "sample")


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

    prediction_types = PREDICTION_TYPES

    def __init__(
        self,
        *,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0015,
        beta_end: float = 0.0195,
        prediction_type: str = "epsilon",
    ) -> None:
        super().__init__()
        if prediction_type not in self.prediction_types:
            raise ValueError(f"prediction_type: expected one of {self.prediction_types}, found {prediction_type!r}.")
        self.num_train_timesteps = num_train_timesteps
        self.prediction_type = prediction_type
        betas = NoiseSchedules["scaled_linear_beta"](num_train_timesteps, beta_start, beta_end)
        self.alphas_cumprod: Tensor
        self.register_buffer("alphas_cumprod", torch.cumprod(1.0 - betas, dim=0))

    def coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(√ᾱ, √(1 − ᾱ)), each (B, 1, 1, 1, 1), for ``timesteps`` (B,); t = −1 stands for the clean end, ᾱ = 1."""
        alpha = self._alpha(timesteps)
        return alpha.sqrt(), (1 - alpha).sqrt()

    def _alpha(self, timesteps: Tensor) -> Tensor:
        alpha = self.alphas_cumprod[timesteps.clamp(min=0)]
        alpha = torch.where(timesteps < 0, torch.ones_like(alpha), alpha)
        return alpha.view(-1, 1, 1, 1, 1)

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``z_t`` (B, L, h, w, d) from ``clean`` z_0 and ``noise`` ε of the same shape."""
        signal, sigma = self.coefficients(timesteps)
        return signal * clean + sigma * noise

    def training_target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Target of the network's prediction for ``z_t``."""
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

    def step(
        self,
        prediction: Tensor,
        noisy: Tensor,
        timesteps: Tensor,
        previous: Tensor,
        eta: float,
        fresh: Tensor | None = None,
    ) -> Tensor:
        """DDIM step from ``timesteps`` to ``previous`` (both (B,)).

        η = 0 is deterministic (Euler's step on the path of a rectified flow); η = 1 over every timestep is the
        ancestral sampling of DDPM. ``fresh`` is the standard normal noise that η > 0 needs, of the shape of ``noisy``
        or (1, L, h, w, d).
        """
        clean, noise = self.split(prediction, noisy, timesteps)
        signal, sigma = self.coefficients(previous)
        if eta == 0.0:
            return signal * clean + sigma * noise
        assert fresh is not None
        signal_t, sigma_t = self.coefficients(timesteps)
        # of a Markov chain between the two: σ_t² − (signal_t / signal)² σ²; on the diffusion's path 1 − ᾱ_t / ᾱ
        between = (sigma_t.square() - (signal_t / signal).square() * sigma.square()).clamp(min=0.0)
        spread = eta * (sigma / sigma_t) * between.sqrt()
        kept = (sigma.square() - spread.square()).clamp(min=0.0).sqrt()
        return signal * clean + kept * noise + spread * fresh


class RectifiedFlow(NoiseSchedule):
    """Straight paths ``z_s = (1 − s) z_0 + s ε`` at the times s = (t + 1) / T, in place of the diffusion's.

    The buffer holds ᾱ = (1 − s)², the squared share of the signal, as in the diffusion.

    Args:
        num_train_timesteps: T.
        prediction_type: ``"velocity"``: the network predicts ``z_0 − ε``, as MONAI's ``RFlowScheduler`` asks for; or
            ``"sample"`` (z_0).

    Source: Liu et al. 2023 (https://arxiv.org/abs/2209.03003).
    """

    prediction_types = FLOW_PREDICTION_TYPES

    def __init__(self, *, num_train_timesteps: int = 1000, prediction_type: str = "velocity") -> None:
        super().__init__(num_train_timesteps=num_train_timesteps, prediction_type=prediction_type)
        times = torch.arange(1, num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
        self.alphas_cumprod.copy_((1 - times).square())

    def coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(1 − s, s), each (B, 1, 1, 1, 1), for ``timesteps`` (B,); t = −1 stands for the clean end, s = 0."""
        signal = self._alpha(timesteps).sqrt()
        return signal, 1 - signal

    def training_target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Target of the network's prediction for ``z_s``."""
        return clean if self.prediction_type == "sample" else clean - noise

    def split(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Estimates of (z_0, ε) that agree with ``noisy`` z_s and with the network's ``prediction``."""
        signal, sigma = self.coefficients(timesteps)
        if self.prediction_type == "sample":
            return prediction, (noisy - signal * prediction) / sigma
        return noisy + sigma * prediction, noisy - signal * prediction


def draw_noise(latent: Tensor, seed: int) -> Tensor:
    """Standard normal noise (1, L, h, w, d) for ``latent`` (B, L, h, w, d), drawn by a CPU generator.

    It is the same on every device and for every item of a batch.
    """
    generator = torch.Generator()
    generator.manual_seed(seed)
    shape = [1, latent.shape[1], latent.shape[2], latent.shape[3], latent.shape[4]]
    return torch.randn(shape, generator=generator).to(latent.device)


def path_seed(noise: Tensor) -> int:
    """Seed of the noise that a stochastic sampler adds on its way: from the signs of its start, ``noise``.

    So the same start gives the same volume, and the global generator is neither asked nor moved. The signs are the same
    on every processor, where the last bits of normal numbers are not.
    """
    bits = (noise.flatten()[:32] > 0).long()
    # The generator takes the low 32 bits. TorchScript writes it with its last seed, and reads none that is negative or
    # very small rightly.
    return (1 << 32) + int((bits << torch.arange(bits.shape[0], device=bits.device)).sum())
