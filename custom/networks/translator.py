"""``network_def`` of the bundle: the whole translation as one network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from custom.networks.conditional_unet import ConditionalUNet
from custom.networks.diffusion import NoiseSchedule, draw_noise, path_seed
from custom.networks.vqgan import VQGAN
from custom.utils.intensity_scales import PERCENTILE, SCALE_KEY, scale_number

__all__ = ["CONDITIONINGS", "LatentTranslator"]

CONDITIONINGS = ("target_like", "source", "source_and_target_like", "none")


class LatentTranslator(nn.Module):
    """Encode the source, MS-SPADE to a target-like latent, diffuse to the target's latent, decode.

    One module holds all parts, the noise schedule and the latent scale, so that its flat state dict is the whole
    model. It is TorchScript-able, sampler loop included.

    Args:
        num_modalities: size M of the vocabulary.
        autoencoder: a ``VQGAN``.
        style_transfer: maps (latent, target) to the target-like latent, e.g. a ``StyleTransfer``.
        unet: the denoiser, e.g. a ``ConditionalUNet`` whose ``in_channels`` fit ``conditioning``.
        schedule: the ``NoiseSchedule``, or a ``RectifiedFlow``.
        detail: corrects the decoded translation by the source image, e.g. a ``DetailTransfer``; without it the
            decoder's image is the translation, as in the paper.
        conditioning: latents concatenated to the noisy one: ``"target_like"`` (the paper), ``"source"`` (Palette
            alone, Table 3b), ``"source_and_target_like"`` (the authors' release) or ``"none"`` (Table 3a).
        residual: the UNet's output is added to the target-like latent; for ``prediction_type`` ``"sample"`` only. The
            diffusion then starts from what MS-SPADE has reached, and an untrained UNet changes nothing.
        num_inference_steps: default number of sampler steps; 0 leaves the diffusion out: MS-SPADE alone (Table 3c).
        strength: where sampling starts, in (0, 1]: 1 from pure noise, less from the target-like latent with the noise
            of that point of the schedule.
        eta: stochasticity of the sampler; 0 is deterministic for given noise.
        requantize: replace the sampled latent by its nearest codes before decoding.
        default_target: modality index that ``forward`` uses when it is given none.
        intensity_scale: name of the scale of the images that it is trained on and takes, see
            ``custom.data.intensities``. It is a buffer of the state dict, by its number.
    """

    def __init__(
        self,
        num_modalities: int,
        autoencoder: VQGAN,
        style_transfer: nn.Module,
        unet: ConditionalUNet,
        schedule: NoiseSchedule,
        detail: nn.Module | None = None,
        *,
        conditioning: str = "target_like",
        residual: bool = False,
        num_inference_steps: int = 4,
        strength: float = 1.0,
        eta: float = 0.0,
        requantize: bool = False,
        default_target: int = 0,
        intensity_scale: str = PERCENTILE,
    ) -> None:
        super().__init__()
        if conditioning not in CONDITIONINGS:
            raise ValueError(f"conditioning: expected one of {CONDITIONINGS}, found {conditioning!r}.")
        if residual and schedule.prediction_type != "sample":
            raise ValueError(
                f"residual: needs prediction_type 'sample', found {schedule.prediction_type!r}. Switch one of them."
            )
        if num_inference_steps < 0:
            raise ValueError(f"num_inference_steps: expected 0 or more, found {num_inference_steps}.")
        if not 0.0 < strength <= 1.0:
            raise ValueError(f"strength: expected a number in (0, 1], found {strength}.")
        if not 0 <= default_target < num_modalities:
            raise ValueError(f"default_target: expected an index below {num_modalities}, found {default_target}.")
        self.num_modalities = num_modalities
        self.autoencoder = autoencoder
        self.style_transfer = style_transfer
        self.unet = unet
        self.schedule = schedule
        self.detail: nn.Module | None = detail
        self.conditioning = conditioning
        self.residual = residual
        self.num_inference_steps = num_inference_steps
        self.strength = strength
        self.eta = eta
        self.requantize = requantize
        self.default_target = default_target
        self.spatial_divisor: int = autoencoder.downsampling * unet.spatial_divisor
        # 1 / standard deviation of the training latents, measured at the start of the diffusion training
        self.latent_scale: Tensor
        self.register_buffer("latent_scale", torch.ones(()))
        self.intensity_scale: Tensor
        self.register_buffer("intensity_scale", torch.tensor(scale_number(intensity_scale)))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        # weights from before the scale had a name
        given = {f"{prefix}{SCALE_KEY}": torch.tensor(scale_number(PERCENTILE)), **state_dict}
        super()._load_from_state_dict(given, prefix, *args)

    def forward(self, image: Tensor, target: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Translate a batch.

        Args:
            image: sources (B, 1, H, W, D) in [-1, 1], background -1; H, W, D divisible by ``spatial_divisor``.
            target: modality indices (B,) int64; ``default_target`` for all where it is not given.
            noise: standard normal start of the sampler, (B or 1, L, h, w, d); drawn where it is not given.

        Returns:
            The translations, of the shape of ``image``, in about [-1, 1].
        """
        if target is None:
            target = torch.full([image.shape[0]], self.default_target, dtype=torch.long, device=image.device)
        latent = self.encode(image)
        # TorchScript knows no defaults here
        target_like = self.transfer(latent, target, None)
        if noise is None:
            noise = torch.randn_like(latent[:1])
        sampled = self.sample(latent, target_like, target, noise, 0, None, None, None)
        return self.render(sampled, image, target)

    @torch.jit.export
    def encode(self, image: Tensor) -> Tensor:
        """Quantised latent (B, L, h, w, d) of ``image`` (B, 1, H, W, D)."""
        return self.autoencoder.quantize(self.autoencoder.encode(image)).latent

    @torch.jit.export
    def transfer(self, latent: Tensor, target: Tensor, context: Tensor | None = None) -> Tensor:
        """Target-like latent (B, L, h, w, d) of a source latent; ``target`` (B,).

        ``context`` holds voxels (B, L, N) of the whole source latent where ``latent`` is a crop of it.
        """
        return self.style_transfer(latent, target, context)

    @torch.jit.export
    def decode(self, latent: Tensor) -> Tensor:
        """Image (B, 1, H, W, D) of a latent."""
        return self.autoencoder.decode(latent)

    @torch.jit.export
    def render(self, latent: Tensor, image: Tensor, target: Tensor) -> Tensor:
        """Translation (B, 1, H, W, D): the decoded latent with the source's detail, where there is a network for it.

        Args:
            latent: sampled target latents (B, L, h, w, d).
            image: the sources (B, 1, H, W, D).
            target: (B,) modality indices.
        """
        decoded = self.decode(latent)
        if self.detail is not None:
            decoded = self.detail(decoded, image, target)
        return decoded

    @torch.jit.export
    def predict(self, noisy: Tensor, latent: Tensor, target_like: Tensor, timesteps: Tensor, target: Tensor) -> Tensor:
        """Prediction of the schedule's type for the scaled noisy latent z_t, (B, L, h, w, d).

        Args:
            noisy: scaled noisy target latents.
            latent: source latents, unscaled.
            target_like: their target-like latents, unscaled.
            timesteps: (B,) in [0, T).
            target: (B,) modality indices.
        """
        inputs = [noisy]
        if self.conditioning == "source" or self.conditioning == "source_and_target_like":
            inputs.append(latent * self.latent_scale)
        if self.conditioning == "target_like" or self.conditioning == "source_and_target_like":
            inputs.append(target_like * self.latent_scale)
        output = self.unet(torch.cat(inputs, dim=1), timesteps, target)
        if self.residual:
            output = output + target_like * self.latent_scale
        return output

    @torch.jit.export
    def sample(
        self,
        latent: Tensor,
        target_like: Tensor,
        target: Tensor,
        noise: Tensor,
        num_steps: int = 0,
        eta: float | None = None,
        strength: float | None = None,
        requantize: bool | None = None,
    ) -> Tensor:
        """Target latent (B, L, h, w, d), unscaled, by DDIM from ``noise`` (or from the noised target-like latent).

        The noise that η > 0 adds on the way follows from the start, see ``path_seed``.

        Args:
            latent: source latents.
            target_like: their target-like latents.
            target: (B,) modality indices.
            noise: standard normal, (B or 1, L, h, w, d).
            num_steps: sampler steps; 0 for the default.
            eta, strength, requantize: in place of the network's own settings, where given.
        """
        steps = num_steps if num_steps > 0 else self.num_inference_steps
        z = target_like
        if steps > 0:
            z = self._denoise(
                latent,
                target_like,
                target,
                noise,
                steps,
                self.eta if eta is None else eta,
                self.strength if strength is None else strength,
            )
        if self.requantize if requantize is None else requantize:
            z = self.autoencoder.quantize(z).latent
        return z

    def _denoise(
        self,
        latent: Tensor,
        target_like: Tensor,
        target: Tensor,
        noise: Tensor,
        steps: int,
        eta: float,
        strength: float,
    ) -> Tensor:
        timesteps = self.schedule.inference_timesteps(steps, strength)
        z = noise.expand_as(target_like)
        if strength < 1.0:
            z = self.schedule.add_noise(target_like * self.latent_scale, z, timesteps[:1])
        seed, fresh = 0, z
        if eta > 0.0:
            seed = path_seed(noise)
        for i in range(steps):
            now, after = timesteps[i : i + 1], timesteps[i + 1 : i + 2]
            prediction = self.predict(z, latent, target_like, now.expand(z.shape[0]), target)
            if eta > 0.0:
                fresh = draw_noise(noise, seed + i)
            z = self.schedule.step(prediction.to(noise.dtype), z, now, after, eta, fresh)
        return z / self.latent_scale
