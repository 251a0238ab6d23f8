"""Objectives of the training stages: modules that turn a batch into named losses; here those of stages 2 and 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from custom.data.foreground import BACKGROUND
from custom.networks import LatentTranslator
from custom.networks.exchange import exchanges_sources
from custom.training.image_objectives import AutoencoderObjective, JointObjective
from custom.training.losses import (
    class_adversarial_loss,
    class_discriminator_loss,
    fitted_distance,
    laplace_loss,
    sharpness_loss,
    ssim_loss,
)
from custom.training.objective import Objective, Step
from custom.utils.arguments import as_bool
from custom.utils.similarity import SSIM_WINDOW

__all__ = [
    "AutoencoderObjective",
    "DiffusionObjective",
    "JointObjective",
    "Objective",
    "Step",
    "StyleObjective",
    "style_objective",
    "with_first_sources",
]


def _random_part(size: int | None, *volumes: Tensor) -> tuple[Tensor, ...]:
    """The same random cube out of each volume (B, C, h, w, d); the whole without a size.

    It has ``size`` voxels an axis of the first volume; others, such as the images of latents, may be finer.
    """
    length = {axis: volumes[0].shape[axis] for axis in range(2, 5)}
    for axis, whole in length.items():
        if size is not None and whole > size:
            start = int(torch.randint(whole - size + 1, ()))
            volumes = tuple(v.narrow(axis, *(n * v.shape[axis] // whole for n in (start, size))) for v in volumes)
    return volumes


def _image_terms(
    image: Tensor, truth: Tensor, brain: Tensor, *, weight: float, fitted_share: float, ssim_weight: float
) -> dict[str, Tensor]:
    """Weighted terms of images (B, 1, H, W, D): squared distance, in part after a line was fitted, and SSIM."""
    terms = {}
    if weight > 0:
        plain = F.mse_loss(image, truth)
        fitted = fitted_distance(image, truth, brain) if fitted_share > 0 else plain
        terms["image"] = weight * torch.lerp(plain, fitted, fitted_share)
    if ssim_weight > 0:
        terms["ssim"] = ssim_weight * ssim_loss(image, truth, brain)
    return terms


def _check_fitted(share: float, image_weight: float) -> None:
    if share > 0 and image_weight == 0:
        raise ValueError(
            f"fitted_share: expected 0 where image_weight is 0, as it is a share of that term; found {share}. Set it "
            "to 0, or give image_weight a weight."
        )


# what a batch holds once for each of S sources, (B, S, ...)
OF_SOURCES = ("source", "source_modality", "source_context", "source_image", "target_like")


def _with_some_sources(batch: Mapping[str, Tensor], fewest: int = 1) -> dict[str, Tensor]:
    """``batch`` with a random number of its sources, ``fewest`` or more: sets are in random order, so any may go."""
    count = batch["source"].shape[1]
    if count <= fewest:
        return dict(batch)
    # where values are not known, as in measuring memory: all of them
    return with_first_sources(batch, count - int(torch.randint(count - fewest + 1, ())))


def with_first_sources(batch: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """``batch`` with the first ``count`` sources of each set."""
    return {name: value[:, :count] if name in OF_SOURCES else value for name, value in batch.items()}


def _flat(batch: Mapping[str, Tensor], name: str) -> Tensor | None:
    """The volumes of all sources (B · S, ...), as the network takes them; None where the batch has none."""
    return batch[name].flatten(0, 1) if name in batch else None


def _either(first: Tensor, second: Tensor) -> Tensor:
    """For each item of the batch one of the two, as drawn: decoding both would cost twice."""
    drawn = torch.rand(len(first), device=first.device) < 0.5
    return torch.where(drawn.view(-1, 1, 1, 1, 1), first, second)


def _decoded(network: LatentTranslator, estimate: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Images of two latents; the gradient reaches ``estimate`` only."""
    with torch.no_grad():
        truth = network.decode(target).float()
    return network.decode(estimate).float(), truth


def _check_window(ssim_weight: float, part_size: int | None, network: LatentTranslator) -> None:
    """Refuse decoded parts that SSIM's window does not fit."""
    voxels = None if part_size is None else part_size * network.autoencoder.downsampling
    if ssim_weight > 0 and voxels is not None and voxels < SSIM_WINDOW // 2:
        raise ValueError(
            f"part_size: expected at least {SSIM_WINDOW // 2} voxels of an image with ssim_weight, half of its "
            f"window; found {part_size} latent voxels, {voxels} of the image. Raise it, or set ssim_weight to 0."
        )


DECODED_BACKGROUND = BACKGROUND + 0.1  # what a decoded image's background stays below

STYLE_PARTS = ("style_transfer", "fusion")  # what stage 2 trains


class StyleObjective(Objective):
    """Stage 2 in latent space: L1 to the quantised target latent, cycle, images, class-conditional adversarial.

    The image term is the squared distance of what the frozen decoder makes of the target-like and of the target's
    latent. Directions of the latent that hardly differ can mean very different intensities, which the latent term alone
    does not see. Part of that distance is brightness that no source shows: a share of it can be taken after a line was
    fitted to each image, see ``fitted_distance``. The optional SSIM term asks these images for structural similarity,
    see ``ssim_loss``. Cycle and images are taken on a random part of the latents, which bounds their cost.

    Of several sources a random number is taken. The latent term is the distance of the fused estimate plus the mean
    distance of theirs, and where sources tell one another something, that of the first by itself as well, so that one
    source is learned from in every step. Image and discriminator judge the estimate of one source or of the set, as
    drawn.

    Batch: latents ``source`` (B, S, L, h, w, d), in random order, and ``target`` (B, L, h, w, d); ``source_modality``
    (B, S), ``target_modality`` (B,); where they are crops, voxels of the whole latents, ``source_context``
    (B, S, L, N), ``target_context`` (B, L, N), and where they lie in them, ``position`` (B, 3, h, w, d).

    Args:
        network: the translator.
        latent_weight, cycle_weight, image_weight, adversarial_weight, ssim_weight: weights of the terms; 0 leaves those
            of images out.
        fitted_share: of the image term, in [0, 1], that is taken after a line was fitted.
        part_size: latent voxels along each axis of the random part; the whole latent where not given.
        trained_parts: ``["style_transfer", "fusion"]``, or one of them. The fusion alone is trained on sets of two or
            more; what becomes of one source stays as it is.

    Raises:
        ValueError: for other ``trained_parts``, for sets of one source where the fusion alone is trained, for a
            ``fitted_share`` without an image term, and for parts smaller than half of SSIM's window.
    """

    has_unused_parameters = True  # of a single source nothing is fused

    def __init__(
        self,
        network: LatentTranslator,
        *,
        latent_weight: float = 1.0,
        cycle_weight: float = 0.5,
        image_weight: float = 0.0,
        adversarial_weight: float = 0.01,
        ssim_weight: float = 0.0,
        fitted_share: float = 0.0,
        part_size: int | None = None,
        trained_parts: Sequence[str] = STYLE_PARTS,
    ) -> None:
        if not trained_parts or not set(trained_parts) <= set(STYLE_PARTS):
            raise ValueError(
                f"trained_parts: expected one or both of {', '.join(STYLE_PARTS)}; found {trained_parts}. Name them "
                "as a list."
            )
        _check_fitted(fitted_share, image_weight)
        super().__init__(network, list(trained_parts))
        self.trains_style = "style_transfer" in trained_parts
        self.trains_fusion = "fusion" in trained_parts and any(True for _ in network.fusion.parameters())
        if not (self.trains_style or self.trains_fusion):
            raise ValueError(
                "trained_parts: expected style_transfer among them, as this network's fusion is a plain mean; found "
                "fusion alone. Add it, or give network_def#fusion a SourceFusion."
            )
        self.exchanges = exchanges_sources(network.style_transfer)
        _check_window(ssim_weight, part_size, network)
        self.weights = (latent_weight, cycle_weight, adversarial_weight)
        self.image_weights = {"weight": image_weight, "fitted_share": fitted_share, "ssim_weight": ssim_weight}
        self.part_size = part_size

    def fewest_planes(self, batch: Mapping[str, Tensor]) -> int:
        planes = batch["source"].shape[3]
        return min(planes, self.part_size or planes)

    def forward(self, batch: dict[str, Tensor], discriminator: nn.Module | None = None) -> Step:
        batch = _with_some_sources(batch, 1 if self.trains_style else 2)
        net, source, target, to = self.network, batch["source"], batch["target"], batch["target_modality"]
        flat, context, position = source.flatten(0, 1), _flat(batch, "source_context"), batch.get("position")
        each = net.transfer(flat, to, context, position)
        fused = net.fuse(flat, each, to, context)[1]
        alone = self._alone(batch, each)
        latent, judged = self._estimates(alone, each.unflatten(0, source.shape[:2]), fused, target)
        place = [] if position is None else [position]
        parts = _random_part(self.part_size, source[:, 0], target, judged, alone, *place)
        w_latent, w_cycle, w_adv = self.weights
        terms = {"latent": w_latent * latent}
        if self.trains_style:
            back = net.transfer(parts[3], batch["source_modality"][:, 0], batch.get("target_context"), *parts[4:])
            terms["cycle"] = w_cycle * F.l1_loss(back.float(), parts[0])
        terms |= self._image_terms(parts[2], parts[1])
        if discriminator is not None:
            terms["adversarial"] = w_adv * class_adversarial_loss(discriminator(judged)[-1], to)
        return Step(terms, judged, target, to)

    def _image_terms(self, estimate: Tensor, target: Tensor) -> dict[str, Tensor]:
        if not (self.image_weights["weight"] > 0 or self.image_weights["ssim_weight"] > 0):
            return {}
        image, truth = _decoded(self.network, estimate, target)
        return _image_terms(image, truth, truth > DECODED_BACKGROUND, **self.image_weights)

    def _alone(self, batch: Mapping[str, Tensor], each: Tensor) -> Tensor:
        """Target-like latent of the first source by itself; ``each`` (B · S, L, h, w, d) has those of the set."""
        shape = batch["source"].shape
        if shape[1] == 1 or not (self.trains_style and self.exchanges):
            return each.unflatten(0, shape[:2])[:, 0]
        first = with_first_sources(batch, 1)
        source, context = first["source"].flatten(0, 1), _flat(first, "source_context")
        return self.network.transfer(source, batch["target_modality"], context, batch.get("position"))

    def _estimates(self, alone: Tensor, each: Tensor, fused: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Latent term of the estimates that are trained, and one of them, which image and discriminator judge.

        Args:
            alone: target-like latent of the first source by itself, (B, L, h, w, d), as are ``fused`` and ``target``.
            each: that of every source of the set, (B, S, L, h, w, d).
            fused: that of the set.
        """
        several = each.shape[1] > 1
        if not self.trains_style and not several:
            raise ValueError(
                "trained_parts: expected sets of two or more sources, as the fusion alone is trained; found sets of "
                "one. Raise max_sources, give subjects of three or more contrasts, or train style_transfer too."
            )
        if not self.trains_style:
            return F.l1_loss(fused.float(), target), fused
        term = F.l1_loss(each.float(), target.unsqueeze(1).expand_as(each))
        if not (several and (self.trains_fusion or self.exchanges)):
            return term, alone
        if self.exchanges:
            term = term + F.l1_loss(alone.float(), target)
        return term + F.l1_loss(fused.float(), target), _either(fused, alone)

    def discriminator_loss(self, discriminator: nn.Module, step: Step) -> Tensor:
        assert step.modality is not None
        return class_discriminator_loss(
            discriminator(step.real)[-1], discriminator(step.fake.detach())[-1], step.modality
        )


class DiffusionObjective(Objective):
    """Stage 3, eq. (4): ``E‖target(ε, z_0, t) − f_θ(z_src→tar, z_t, t, y)‖²`` for the schedule's prediction type.

    The optional image term is the squared distance of what the frozen decoder makes of the estimated and of the true
    target latent, for the reason given at ``StyleObjective``. It needs an estimate of z_0 at every noise level, which a
    network that predicts ε does not give near pure noise. A network with detail transfer trains that as well: there the
    term compares the translation with the target image itself.

    A share of it may be taken after brightness and contrast, which a source hardly shows, were fitted to each image,
    see ``fitted_distance``.

    The optional sharpness term asks for as much of edges around each voxel as the target image has, see
    ``sharpness_loss``: the squared distance alone is least for a blurred image.

    The optional SSIM term is 1 − the structural similarity in the target's brain, see ``ssim_loss``.

    Where the detail transfer predicts errors, the error term is the negative log-likelihood of the translation's
    absolute error in the brain, see ``laplace_loss``. No gradient of it reaches the translation.

    Of several sources a random number is taken.

    Batch: as for ``StyleObjective``, and ``target_like`` (B, S, L, h, w, d) where it is known; with detail transfer
    also ``source_image`` (B, S, H, W, D), ``target_image`` (B, 1, H, W, D) of the same region.

    Args:
        network: the translator.
        image_weight: weight of the image term; 0 leaves it out.
        part_size: latent voxels along each axis of the random part that is decoded; the whole where not given.
        pure_noise_share: share of the items, in [0, 1], that start at the last timestep, where a sampler of few steps
            takes its largest; the others draw theirs uniformly.
        error_weight: weight of the error term; 0 leaves it out, and the error map untrained.
        sharpness_weight, ssim_weight: weights of these terms; 0 leaves them out. Only detail transfer has use of them.
        fitted_share: of the image term, in [0, 1], that is taken after a line was fitted.

    Raises:
        ValueError: for an image term with a network that predicts ε, for detail transfer without an image term, for a
            sharpness or SSIM term without detail transfer, for a ``fitted_share`` without an image term, and for parts
            smaller than half of SSIM's window.
    """

    # attention to the one-hot target has one token, so its queries, keys and norm are not asked; they stay trainable,
    # as freezing them would change which optimiser states a resumed run expects
    has_unused_parameters = True

    def __init__(
        self,
        network: LatentTranslator,
        *,
        image_weight: float = 0.0,
        part_size: int | None = None,
        pure_noise_share: float = 0.0,
        error_weight: float = 0.0,
        sharpness_weight: float = 0.0,
        ssim_weight: float = 0.0,
        fitted_share: float = 0.0,
    ) -> None:
        super().__init__(network, ["unet"] if network.detail is None else ["unet", "detail"])
        if network.detail is not None and image_weight == 0:
            raise ValueError(
                "image_weight: expected more than 0, as only the image term trains the network's detail transfer; "
                "found 0. Give it a weight, or set network_def#detail to null."
            )
        if image_weight > 0 and network.schedule.prediction_type == "epsilon":
            raise ValueError(
                "image_weight: expected 0 where the network predicts epsilon, whose estimate of z_0 is unbounded "
                f"near pure noise; found {image_weight}. Set it to 0, or prediction_type to 'sample' or 'v_prediction'."
            )
        for name, value in (("sharpness_weight", sharpness_weight), ("ssim_weight", ssim_weight)):
            if value > 0 and network.detail is None:
                raise ValueError(
                    f"{name}: expected 0, as this network has no detail transfer, which it would train; found {value}. "
                    "Set it to 0, or give network_def#detail a DetailTransfer."
                )
        _check_fitted(fitted_share, image_weight)
        _check_window(ssim_weight, part_size, network)
        self.image_weights = {"weight": image_weight, "fitted_share": fitted_share, "ssim_weight": ssim_weight}
        self.sharpness_weight = sharpness_weight
        self.part_size = part_size
        self.pure_noise_share = pure_noise_share
        self.error_weight = error_weight if network.error_map() != "none" else 0.0

    def fewest_planes(self, batch: Mapping[str, Tensor]) -> int:
        return batch["source"].shape[3] // self.network.unet.spatial_divisor

    def forward(self, batch: dict[str, Tensor], discriminator: nn.Module | None = None) -> Step:
        batch = _with_some_sources(batch)
        net, to = self.network, batch["target_modality"]
        clean = batch["target"] * net.latent_scale
        source, target_like = self._conditions(batch)
        noise = torch.randn_like(clean)
        timesteps = self._draw_timesteps(len(clean), clean.device)
        noisy = net.schedule.add_noise(clean, noise, timesteps)
        prediction = net.predict(noisy, source, target_like, timesteps, to).float()
        truth = net.schedule.training_target(clean, noise, timesteps)
        terms = {"diffusion": F.mse_loss(prediction, truth)}
        if self.image_weights["weight"] > 0:
            estimate = net.schedule.split(prediction, noisy, timesteps)[0] / net.latent_scale
            terms |= self._image_terms(estimate, batch)
        return Step(terms, prediction, truth, to)

    @torch.no_grad()
    def _conditions(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Source latent and target-like latent, each fused, (B, L, h, w, d)."""
        net, to, source = self.network, batch["target_modality"], batch["source"].flatten(0, 1)
        target_like, context = _flat(batch, "target_like"), _flat(batch, "source_context")
        if target_like is None:
            target_like = net.transfer(source, to, context, batch.get("position")).float()
        source, target_like = net.fuse(source, target_like, to, context)
        return source.float(), target_like.float()

    def _image_terms(self, estimate: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        net, to = self.network, batch["target_modality"]
        if net.detail is None:
            image, truth = _decoded(net, *_random_part(self.part_size, estimate, batch["target"]))
            return _image_terms(image, truth, truth > DECODED_BACKGROUND, **self.image_weights)
        volumes = (estimate, batch["source_image"], batch["target_image"])
        latent, source, truth = _random_part(self.part_size, *volumes)
        if self.error_weight:
            rendered, logarithm = net.render_with_error(latent, source, to)
        else:
            rendered, logarithm = net.render(latent, source, to), None
        rendered, brain = rendered.float(), truth > BACKGROUND
        terms = _image_terms(rendered, truth, brain, **self.image_weights)
        if self.sharpness_weight:
            terms["sharpness"] = self.sharpness_weight * sharpness_loss(rendered, truth)
        if logarithm is not None:
            if self.training:
                net.detail.get_buffer("error.trained").fill_(1.0)
            either = brain | (source > BACKGROUND).any(dim=1, keepdim=True)
            error = laplace_loss(logarithm.float(), rendered.detach(), truth, either)
            terms["error"] = self.error_weight * error
        return terms

    def _draw_timesteps(self, count: int, device: torch.device) -> Tensor:
        last = self.network.schedule.num_train_timesteps - 1
        timesteps = torch.randint(last + 1, (count,), device=device)
        return timesteps.masked_fill(torch.rand(count, device=device) < self.pure_noise_share, last)


def style_objective(
    network: LatentTranslator, joint: bool | str, latent: Mapping[str, Any], image: Mapping[str, Any]
) -> StyleObjective | JointObjective:
    """Objective of stage 2: in latent space, or the paper's ``joint`` training.

    Args:
        network: the translator.
        joint: which of the two.
        latent: keyword arguments of ``StyleObjective``.
        image: keyword arguments of ``JointObjective``.

    Raises:
        ValueError: for terms of the one that the other was asked for.
    """
    if not as_bool("joint", joint):
        return StyleObjective(network, **latent)
    for name in ("ssim_weight", "fitted_share"):
        if latent.get(name, 0) > 0:
            raise ValueError(
                f"{name}: expected 0 with joint, whose images are compared by reconstruction and perceptual terms; "
                f"found {latent[name]}. Set it to 0, or joint to false."
            )
    return JointObjective(network, **image)
