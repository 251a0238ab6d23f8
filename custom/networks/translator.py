"""``network_def`` of the bundle: the whole translation as one network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from custom.networks.conditional_unet import ConditionalUNet
from custom.networks.detail import DetailTransfer
from custom.networks.diffusion import NoiseSchedule, draw_noise, path_seed
from custom.networks.fusion import MeanFusion
from custom.networks.vqgan import VQGAN
from custom.utils.intensity_scales import PERCENTILE, SCALE_KEY, scale_number

__all__ = ["CONDITIONINGS", "RANGE", "LatentTranslator"]

RANGE = "training_range"  # tensor that older weights lack
NUM_FEATURES = 11  # of custom.data.features
CONDITIONINGS = ("target_like", "source", "source_and_target_like", "none")


class LatentTranslator(nn.Module):
    """Encode the sources, MS-SPADE to a target-like latent, diffuse to the target's latent, decode.

    The sources of a subject are a set: one or several, in any order, their contrasts not named. Each is encoded and
    brought to the target's style by the same networks; the latents are then fused, and UNet and decoder run once. With
    one source nothing is fused, and this is the paper's network. Between :meth:`encode` and :meth:`fuse` the sources
    are items of the batch, those of a subject side by side.

    One module holds all parts, the noise schedule and the latent scale, so that its flat state dict is the whole
    model. It is TorchScript-able, sampler loop included.

    Attributes:
        training_range: (2, F), of the scans that it was trained with, see ``custom.inference.likeness``; no result
            depends on it.

    Args:
        num_modalities: size M of the vocabulary.
        autoencoder: a ``VQGAN``.
        style_transfer: maps (latent, target) to the target-like latent, e.g. a ``StyleTransfer``.
        unet: the denoiser, e.g. a ``ConditionalUNet`` whose ``in_channels`` fit ``conditioning``.
        schedule: the ``NoiseSchedule``, or a ``RectifiedFlow``.
        detail: corrects the decoded translation by the source image, e.g. a ``DetailTransfer``; without it the
            decoder's image is the translation, as in the paper.
        fusion: makes one latent of those of several sources, e.g. a ``SourceFusion``; their mean where not given.
        conditioning: latents concatenated to the noisy one: ``"target_like"`` (the paper), ``"source"`` (Palette
            alone, Table 3b), ``"source_and_target_like"`` (the authors' release) or ``"none"`` (Table 3a).
        residual: the UNet's output is added to the target-like latent; for ``prediction_type`` ``"sample"`` only. The
            diffusion then starts from what MS-SPADE has reached, and an untrained UNet changes nothing.
        num_inference_steps: default number of sampler steps; 0 leaves the diffusion out: MS-SPADE alone (Table 3c).
        strength: where sampling starts, in (0, 1]: 1 from pure noise, less from the target-like latent with the noise
            of that point of the schedule.
        eta: stochasticity of the sampler; 0 is deterministic for given noise.
        scalar_share: share in [0, 1] of the correction by scalar channels that a translated latent gets: what a
            training on few subjects predicts of fine structure is, on others, worth less than its size.
        requantize: replace the sampled latent by its nearest codes before decoding.
        default_target: modality index that ``forward`` uses when it is given none.
        intensity_scale: name of the scale of the images that it is trained on and takes, see
            ``custom.data.intensities``. It is a buffer of the state dict, by its number.
    """

    not_in_identity = (RANGE,)
    in_identity_unless = {"scalar_share": 1.0}  # noqa: RUF012

    def __init__(
        self,
        num_modalities: int,
        autoencoder: VQGAN,
        style_transfer: nn.Module,
        unet: ConditionalUNet,
        schedule: NoiseSchedule,
        detail: DetailTransfer | None = None,
        *,
        fusion: nn.Module | None = None,
        conditioning: str = "target_like",
        residual: bool = False,
        num_inference_steps: int = 4,
        strength: float = 1.0,
        eta: float = 0.0,
        scalar_share: float = 1.0,
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
        if not 0.0 <= scalar_share <= 1.0:
            raise ValueError(f"scalar_share: expected a number in [0, 1], found {scalar_share}.")
        if not 0 <= default_target < num_modalities:
            raise ValueError(
                f"default_target: expected an index below {num_modalities}, the number of modalities; found "
                f"{default_target}. Name the modalities that the weights know."
            )
        given, known = getattr(style_transfer, "summary_length", 0), getattr(fusion, "summary_channels", 0)
        if given and known and given != known:
            raise ValueError(
                f"network_def#fusion#summary_channels: expected {given}, the width of network_def#style_transfer, "
                f"which summarises the sources; found {known}. Set it to {given}."
            )
        self.num_modalities = num_modalities
        self.autoencoder = autoencoder
        self.style_transfer = style_transfer
        self.unet = unet
        self.schedule = schedule
        self.detail: DetailTransfer | None = detail
        self.fusion = MeanFusion() if fusion is None else fusion
        self.conditioning = conditioning
        self.residual = residual
        self.num_inference_steps = num_inference_steps
        self.strength = strength
        self.eta = eta
        self.scalar_share = float(scalar_share)
        self.requantize = requantize
        self.default_target = default_target
        self.spatial_divisor: int = autoencoder.downsampling * unet.spatial_divisor
        # 1 / standard deviation of the training latents, measured at the start of the diffusion training
        self.latent_scale: Tensor
        self.register_buffer("latent_scale", torch.ones(()))
        # least and largest of what custom.data.features measures over the training scans; zeros where that is not known
        self.training_range: Tensor
        self.register_buffer(RANGE, torch.zeros(2, NUM_FEATURES))
        self.intensity_scale: Tensor
        self.register_buffer("intensity_scale", torch.tensor(scale_number(intensity_scale)))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        # weights from before the scale had a name, and before they told of their training
        older = {SCALE_KEY: torch.tensor(scale_number(PERCENTILE)), RANGE: torch.zeros_like(self.training_range)}
        given = {**{f"{prefix}{key}": value for key, value in older.items()}, **state_dict}
        super()._load_from_state_dict(given, prefix, *args)

    def forward(self, image: Tensor, target: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Translate a batch.

        Args:
            image: S ≥ 1 sources of each subject (B, S, H, W, D) in [-1, 1], background -1, in any order; H, W, D
                divisible by ``spatial_divisor``.
            target: modality indices (B,) int64; ``default_target`` for all where it is not given.
            noise: standard normal start of the sampler, (B or 1, L, h, w, d); drawn where it is not given.

        Returns:
            The translations (B, 1, H, W, D), in about [-1, 1].
        """
        if target is None:
            target = torch.full([image.shape[0]], self.default_target, dtype=torch.long, device=image.device)
        latent = self.encode(image)
        # TorchScript knows no defaults here
        latent, target_like = self.fuse(latent, self.transfer(latent, target, None, None), target, None)
        if noise is None:
            noise = torch.randn_like(latent[:1])
        sampled = self.sample(latent, target_like, target, noise, 0, None, None, None)
        return self.render(sampled, image, target)

    @torch.jit.export
    def encode(self, image: Tensor) -> Tensor:
        """Quantised latents (B · S, L, h, w, d) of ``image`` (B, S, H, W, D)."""
        # one after the other, which bounds the memory of the full resolution
        sources = image.split(1, dim=1)
        latents = [self.autoencoder.quantize(self.autoencoder.encode(source)).latent for source in sources]
        return torch.stack(latents, dim=1).flatten(0, 1)

    @torch.jit.export
    def transfer(
        self, latent: Tensor, target: Tensor, context: Tensor | None = None, position: Tensor | None = None
    ) -> Tensor:
        """Target-like latents (B · S, L, h, w, d) of as many source latents; ``target`` (B,).

        Where ``latent`` holds crops, ``context`` holds voxels (B · S, L, N) of the whole source latents, and
        ``position`` the coordinates (B, 3, h, w, d) of the crops in them.
        """
        if position is not None:
            position = self._of_sources(position, latent)
        num_sources = latent.shape[0] // target.shape[0]
        return self.style_transfer(latent, self._of_sources(target, latent), context, position, num_sources)

    def _of_sources(self, value: Tensor, latent: Tensor) -> Tensor:
        """``value`` (B, ...) for each of the latents (B · S, ...)."""
        return value.repeat_interleave(latent.shape[0] // value.shape[0], dim=0)

    @torch.jit.export
    def fuse(
        self, latent: Tensor, target_like: Tensor, target: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One source latent and one target-like latent (B, L, h, w, d) of the set; of one source they are its own.

        Args:
            latent: source latents (B · S, L, h, w, d), those of a subject side by side.
            target_like: their target-like latents.
            target: (B,) modality indices.
            context: where ``latent`` holds crops, voxels (B · S, L, N) of the whole source latents.
        """
        batch = target.shape[0]
        if latent.shape[0] == batch:
            return latent, target_like
        voxels = latent.flatten(2) if context is None else context
        summary = self.style_transfer.summarize(voxels)  # type: ignore[operator]
        return self.fusion(
            list(latent.unflatten(0, (batch, -1)).unbind(1)),
            list(target_like.unflatten(0, (batch, -1)).unbind(1)),
            target,
            list(summary.unflatten(0, (batch, -1)).unbind(1)),
        )

    @torch.jit.export
    def decode(self, latent: Tensor) -> Tensor:
        """Image (B, 1, H, W, D) of a latent, as an encoder or a training's target gives it."""
        return self.autoencoder.decode(latent)

    @torch.jit.export
    def decode_translated(self, latent: Tensor) -> Tensor:
        """Image (B, 1, H, W, D) of a target-like or sampled latent, see ``scalar_share``."""
        return self.autoencoder.decode(latent, self.scalar_share)

    @torch.jit.export
    def render(self, latent: Tensor, image: Tensor, target: Tensor) -> Tensor:
        """Translation (B, 1, H, W, D): the decoded latent with the sources' detail, where there is a network for it.

        Args:
            latent: sampled target latents (B, L, h, w, d).
            image: the sources (B, S, H, W, D).
            target: (B,) modality indices.
        """
        decoded = self.decode_translated(latent)
        if self.detail is not None:
            decoded = self.detail(decoded, image, target)
        return decoded

    @torch.jit.export
    def render_with_error(self, latent: Tensor, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The translation of :meth:`render`, and the logarithm of its expected absolute error, (B, 1, H, W, D) each.

        Raises:
            ValueError: for a network that predicts no errors, see :meth:`error_map`.
        """
        decoded = self.decode_translated(latent)
        if self.detail is not None:
            return self.detail.with_error(decoded, image, target)
        raise ValueError("expected a network with detail transfer, which predicts errors; found none.")

    @torch.jit.export
    def error_map(self) -> str:
        """What the network's error map is worth: ``"trained"``, ``"untrained"``, or ``"none"`` where there is none."""
        if self.detail is not None:  # noqa: SIM102  TorchScript compiles what is behind "and" in any case
            if self.detail.error is not None:
                return "trained" if bool(self.detail.error.trained > 0) else "untrained"
        return "none"

    @torch.jit.export
    def predict(self, noisy: Tensor, latent: Tensor, target_like: Tensor, timesteps: Tensor, target: Tensor) -> Tensor:
        """Prediction of the schedule's type for the scaled noisy latent z_t, (B, L, h, w, d).

        Args:
            noisy: scaled noisy target latents.
            latent: source latents, unscaled, fused.
            target_like: their target-like latents, unscaled, fused.
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
            latent: source latents, fused.
            target_like: their target-like latents, fused.
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
