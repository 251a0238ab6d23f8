"""Objectives of the training stages: modules that turn a batch into named losses.

An objective holds the whole ``LatentTranslator`` and trains one part of it; the rest is frozen and stays in evaluation
mode. Its forward pass computes every term, so wrapping it for distributed training synchronises all gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from monai.losses import PatchAdversarialLoss
from torch import Tensor, nn

from custom.data.foreground import BACKGROUND
from custom.networks import LatentTranslator, Quantized, VectorQuantizer
from custom.training.losses import FeatureMatching, class_adversarial_loss, class_discriminator_loss, laplace_loss
from custom.utils.arguments import as_bool

__all__ = [
    "AutoencoderObjective",
    "DiffusionObjective",
    "JointObjective",
    "Objective",
    "Step",
    "StyleObjective",
    "style_objective",
]


class Step(NamedTuple):
    """Result of one objective: named weighted ``terms`` (scalars), and what a discriminator compares.

    ``modality`` (B,) is the target's, where there is one; ``measures`` (scalars) are logged beside the terms and enter
    no loss.
    """

    terms: dict[str, Tensor]
    fake: Tensor
    real: Tensor
    modality: Tensor | None = None
    measures: Mapping[str, Tensor] = MappingProxyType({})

    @property
    def loss(self) -> Tensor:
        return torch.stack(list(self.terms.values())).sum()


class Objective(nn.Module):
    """Base: freezes ``network`` but for the parts named in ``trainable``.

    Its state dict is the network's, so that a federated round exchanges what ``model.pt`` holds.

    Args:
        network: the translator.
        trainable: names of its submodules that this stage trains.
    """

    # whether a trained part has parameters that never get a gradient, which distributed training must know
    has_unused_parameters: bool = False

    def __init__(self, network: LatentTranslator, trainable: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.trainable = tuple(trainable)
        network.requires_grad_(False)
        for name in self.trainable:
            for parameter_name, parameter in network.get_submodule(name).named_parameters():
                # codes moved by averages take no gradient
                averaged = parameter_name.endswith("bottleneck.embedding.weight") and getattr(
                    network.autoencoder.bottleneck, "ema", False
                )
                parameter.requires_grad_(not averaged)

    def train(self, mode: bool = True) -> Objective:
        """Only the trained parts leave evaluation mode: a frozen codebook must not move."""
        super().train(False)
        self.training = mode
        for name in self.trainable:
            self.network.get_submodule(name).train(mode)
        return self

    # the stub of torch has overloads for arguments that nobody gives
    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        return self.network.load_state_dict(state_dict, *args, **kwargs)

    def sound_in_bfloat16(self, batch: Mapping[str, Tensor]) -> bool:
        """Whether gradients of ``batch`` can be computed in bfloat16: on a CPU not where a level has two planes.

        There PyTorch 2.13 takes the gradient of a 3³ kernel from memory that it has not written, which gives numbers of
        any size. The planes are those of the first spatial axis.
        """
        return next(iter(batch.values())).device.type != "cpu" or self.fewest_planes(batch) > 2

    def fewest_planes(self, batch: Mapping[str, Tensor]) -> int:
        """Planes along the first spatial axis of the smallest feature map of what is trained."""
        return batch["image"].shape[2] // self.network.autoencoder.downsampling

    def trained_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.network.parameters() if p.requires_grad]

    def forward(self, batch: dict[str, Tensor], discriminator: nn.Module | None = None) -> Step:
        raise NotImplementedError

    def discriminator_loss(self, discriminator: nn.Module, step: Step) -> Tensor:
        """Loss of the discriminator on the detached results of ``step``."""
        raise NotImplementedError


class _ImageObjective(Objective):
    """Base of the objectives whose discriminator sees images: the perceptual and the hinge adversarial term.

    Args:
        network, trainable: as for ``Objective``.
        perceptual: ``FeatureMatching`` or ``MedicalNetPerceptual``; feature matching where not given.
        perceptual_weight, adversarial_weight: weights of the terms.
    """

    def __init__(
        self,
        network: LatentTranslator,
        trainable: Sequence[str],
        *,
        perceptual: nn.Module | None,
        perceptual_weight: float,
        adversarial_weight: float,
    ) -> None:
        super().__init__(network, trainable)
        self.perceptual = perceptual or FeatureMatching()
        self.adversarial = PatchAdversarialLoss(criterion="hinge")
        self.perceptual_weight = perceptual_weight
        self.adversarial_weight = adversarial_weight

    def realism_terms(self, fake: Tensor, real: Tensor, discriminator: nn.Module | None) -> dict[str, Tensor]:
        """Weighted perceptual and adversarial terms of a generated image; none before the discriminator takes part."""
        if discriminator is None:
            return {}
        features = discriminator(fake)
        adversarial = self.adversarial(features[-1].float(), target_is_real=True, for_discriminator=False)
        if self.perceptual.needs_features:
            with torch.no_grad():
                real_features = discriminator(real)
            perceptual = self.perceptual(features, real_features)
        else:
            perceptual = self.perceptual(fake.float(), real.float())
        return {
            "perceptual": self.perceptual_weight * perceptual,
            "adversarial": self.adversarial_weight * adversarial,
        }

    def discriminator_loss(self, discriminator: nn.Module, step: Step) -> Tensor:
        real = self.adversarial(discriminator(step.real)[-1].float(), target_is_real=True, for_discriminator=True)
        fake = discriminator(step.fake.detach())[-1].float()
        return 0.5 * (real + self.adversarial(fake, target_is_real=False, for_discriminator=True))


@torch.no_grad()
def _codebook_measures(network: LatentTranslator, quantized: Quantized) -> dict[str, Tensor]:
    """Share of the codes that the batch uses, and their perplexity; nothing without a codebook."""
    bottleneck = network.autoencoder.bottleneck
    if not isinstance(bottleneck, VectorQuantizer):
        return {}
    usage, perplexity = bottleneck.usage(quantized.indices)
    return {"codebook_usage": usage, "codebook_perplexity": perplexity}


class AutoencoderObjective(_ImageObjective):
    """Stage 1: ``L1 + quantisation + perceptual + adversarial`` of the VQ-GAN (Fig. 3a without the cycle).

    Batch: ``image`` (B, 1, H, W, D) in [-1, 1].

    Args:
        network: the translator.
        perceptual: ``FeatureMatching`` or ``MedicalNetPerceptual``.
        reconstruction_weight, quantisation_weight, perceptual_weight, adversarial_weight: weights of the terms.
    """

    def __init__(
        self,
        network: LatentTranslator,
        *,
        perceptual: nn.Module | None = None,
        reconstruction_weight: float = 1.0,
        quantisation_weight: float = 1.0,
        perceptual_weight: float = 0.1,
        adversarial_weight: float = 0.01,
    ) -> None:
        super().__init__(
            network,
            ["autoencoder"],
            perceptual=perceptual,
            perceptual_weight=perceptual_weight,
            adversarial_weight=adversarial_weight,
        )
        self.weights = (reconstruction_weight, quantisation_weight)

    def forward(self, batch: dict[str, Tensor], discriminator: nn.Module | None = None) -> Step:
        image = batch["image"]
        reconstruction, quantized = self.network.autoencoder(image)
        w_rec, w_quant = self.weights
        terms = {
            "reconstruction": w_rec * F.l1_loss(reconstruction.float(), image),
            "quantisation": w_quant * quantized.loss,
        }
        terms |= self.realism_terms(reconstruction, image, discriminator)
        return Step(terms, reconstruction, image, measures=_codebook_measures(self.network, quantized))


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


# what a batch holds once for each of S sources, (B, S, ...)
OF_SOURCES = ("source", "source_modality", "source_context", "source_image", "target_like")


def _with_some_sources(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``batch`` with a random number of its sources: its subjects' sets are in random order, so any may be left."""
    count = batch["source"].shape[1]
    if count == 1:
        return dict(batch)
    drawn = count - int(torch.randint(count, ()))  # where values are not known, as in measuring memory: all of them
    return {name: value[:, :drawn] if name in OF_SOURCES else value for name, value in batch.items()}


def _flat(batch: Mapping[str, Tensor], name: str) -> Tensor | None:
    """The volumes of all sources (B · S, ...), as the network takes them; None where the batch has none."""
    return batch[name].flatten(0, 1) if name in batch else None


def _either(first: Tensor, second: Tensor) -> Tensor:
    """For each item of the batch one of the two, as drawn: decoding both would cost twice."""
    drawn = torch.rand(len(first), device=first.device) < 0.5
    return torch.where(drawn.view(-1, 1, 1, 1, 1), first, second)


def _image_distance(network: LatentTranslator, estimate: Tensor, target: Tensor) -> Tensor:
    """Mean squared distance of the images of two latents; the gradient reaches ``estimate`` only."""
    with torch.no_grad():
        truth = network.decode(target).float()
    return F.mse_loss(network.decode(estimate).float(), truth)


class StyleObjective(Objective):
    """Stage 2 in latent space: L1 to the quantised target latent, cycle, image, class-conditional adversarial.

    The image term is the squared distance of what the frozen decoder makes of the target-like and of the target's
    latent. Directions of the latent that hardly differ can mean very different intensities, which the latent term alone
    does not see. Cycle and image are taken on a random part of the latents, which bounds their cost.

    Of several sources a random number is taken. The fusion is trained with what MS-SPADE makes of each: the latent term
    is the mean of theirs and of the fused one's, the image term that of one of them or of the fused one, as drawn.

    Batch: latents ``source`` (B, S, L, h, w, d), in random order, and ``target`` (B, L, h, w, d); ``source_modality``
    (B, S), ``target_modality`` (B,); where they are crops, voxels of the whole latents, ``source_context``
    (B, S, L, N), ``target_context`` (B, L, N).

    Args:
        network: the translator.
        latent_weight, cycle_weight, image_weight, adversarial_weight: weights of the terms; an image weight of 0 leaves
            that term out.
        part_size: latent voxels along each axis of the random part; the whole latent where not given.
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
        part_size: int | None = None,
    ) -> None:
        super().__init__(network, ["style_transfer", "fusion"])
        self.weights = (latent_weight, cycle_weight, image_weight, adversarial_weight)
        self.part_size = part_size

    def fewest_planes(self, batch: Mapping[str, Tensor]) -> int:
        planes = batch["source"].shape[3]
        return min(planes, self.part_size or planes)

    def forward(self, batch: dict[str, Tensor], discriminator: nn.Module | None = None) -> Step:
        batch = _with_some_sources(batch)
        net, source, target, to = self.network, batch["source"], batch["target"], batch["target_modality"]
        flat = source.flatten(0, 1)
        each = net.transfer(flat, to, _flat(batch, "source_context"))
        fused = net.fuse(flat, each, to)[1]
        each = each.unflatten(0, source.shape[:2])
        parts = _random_part(self.part_size, source[:, 0], target, fused, each[:, 0])
        back = net.transfer(parts[3], batch["source_modality"][:, 0], batch.get("target_context"))
        w_latent, w_cycle, w_image, w_adv = self.weights
        latent = F.l1_loss(fused.float(), target)
        if source.shape[1] > 1:
            latent = (latent + F.l1_loss(each.float(), target.unsqueeze(1).expand_as(each))) / 2
        terms = {"latent": w_latent * latent, "cycle": w_cycle * F.l1_loss(back.float(), parts[0])}
        if w_image > 0:
            estimate = parts[2] if source.shape[1] == 1 else _either(parts[2], parts[3])
            terms["image"] = w_image * _image_distance(net, estimate, parts[1])
        if discriminator is not None:
            terms["adversarial"] = w_adv * class_adversarial_loss(discriminator(fused)[-1], to)
        return Step(terms, fused, target, to)

    def discriminator_loss(self, discriminator: nn.Module, step: Step) -> Tensor:
        assert step.modality is not None
        return class_discriminator_loss(
            discriminator(step.real)[-1], discriminator(step.fake.detach())[-1], step.modality
        )


class JointObjective(_ImageObjective):
    """Stage 2 as in the paper's Fig. 3a: autoencoder and MS-SPADE together, all five losses in image space.

    Batch: ``image``, ``label`` (B, 1, H, W, D); ``source_modality``, ``target_modality`` (B,).
    """

    def __init__(
        self,
        network: LatentTranslator,
        *,
        perceptual: nn.Module | None = None,
        reconstruction_weight: float = 1.0,
        quantisation_weight: float = 1.0,
        cycle_weight: float = 0.5,
        perceptual_weight: float = 0.1,
        adversarial_weight: float = 0.01,
    ) -> None:
        super().__init__(
            network,
            ["autoencoder", "style_transfer"],
            perceptual=perceptual,
            perceptual_weight=perceptual_weight,
            adversarial_weight=adversarial_weight,
        )
        self.weights = (reconstruction_weight, quantisation_weight, cycle_weight)

    def forward(self, batch: dict[str, Tensor], discriminator: nn.Module | None = None) -> Step:
        image, label, net = batch["image"], batch["label"], self.network
        w_rec, w_quant, w_cycle = self.weights
        quantized = net.autoencoder.quantize(net.autoencoder.encode(image))
        target_like = net.transfer(quantized.latent, batch["target_modality"])
        translation = net.decode(target_like)
        cycled = net.decode(net.transfer(target_like, batch["source_modality"]))
        own = net.decode(quantized.latent)
        terms = {
            "reconstruction": w_rec * (F.l1_loss(translation.float(), label) + F.l1_loss(own.float(), image)),
            "quantisation": w_quant * quantized.loss,
            "cycle": w_cycle * F.l1_loss(cycled.float(), image),
        }
        terms |= self.realism_terms(translation, label, discriminator)
        measures = _codebook_measures(net, quantized)
        return Step(terms, translation, label, batch["target_modality"], measures)


class DiffusionObjective(Objective):
    """Stage 3, eq. (4): ``E‖target(ε, z_0, t) − f_θ(z_src→tar, z_t, t, y)‖²`` for the schedule's prediction type.

    The optional image term is the squared distance of what the frozen decoder makes of the estimated and of the true
    target latent, for the reason given at ``StyleObjective``. It needs an estimate of z_0 at every noise level, which a
    network that predicts ε does not give near pure noise. A network with detail transfer trains that as well: there the
    term compares the translation with the target image itself.

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

    Raises:
        ValueError: for an image term with a network that predicts ε, and for detail transfer without an image term.
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
        self.image_weight = image_weight
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
        if self.image_weight > 0:
            estimate = net.schedule.split(prediction, noisy, timesteps)[0] / net.latent_scale
            terms |= self._image_terms(estimate, batch)
        return Step(terms, prediction, truth, to)

    @torch.no_grad()
    def _conditions(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Source latent and target-like latent, each fused, (B, L, h, w, d)."""
        net, to, source = self.network, batch["target_modality"], batch["source"].flatten(0, 1)
        target_like = _flat(batch, "target_like")
        if target_like is None:
            target_like = net.transfer(source, to, _flat(batch, "source_context")).float()
        source, target_like = net.fuse(source, target_like, to)
        return source.float(), target_like.float()

    def _image_terms(self, estimate: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        net, to, weight = self.network, batch["target_modality"], self.image_weight
        if net.detail is None:
            return {"image": weight * _image_distance(net, *_random_part(self.part_size, estimate, batch["target"]))}
        volumes = (estimate, batch["source_image"], batch["target_image"])
        latent, source, truth = _random_part(self.part_size, *volumes)
        if not self.error_weight:
            return {"image": weight * F.mse_loss(net.render(latent, source, to).float(), truth)}
        rendered, logarithm = net.render_with_error(latent, source, to)
        if self.training:
            net.detail.get_buffer("error.trained").fill_(1.0)
        brain = (truth > BACKGROUND) | (source > BACKGROUND).any(dim=1, keepdim=True)
        error = self.error_weight * laplace_loss(logarithm.float(), rendered.detach().float(), truth, brain)
        return {"image": weight * F.mse_loss(rendered.float(), truth), "error": error}

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
    """
    return JointObjective(network, **image) if as_bool("joint", joint) else StyleObjective(network, **latent)
