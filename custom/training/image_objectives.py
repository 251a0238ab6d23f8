"""Objectives whose losses are taken on images: stage 1, and the paper's joint training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.losses import PatchAdversarialLoss
from torch import Tensor, nn

from custom.networks import LatentTranslator, Quantized, VectorQuantizer
from custom.networks.quantizer import codes_and_levels
from custom.training.losses import FeatureMatching
from custom.training.objective import Objective, Step

__all__ = ["AutoencoderObjective", "JointObjective"]


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
def _latent_measures(network: LatentTranslator, quantized: Quantized) -> dict[str, Tensor]:
    """Standard deviation of the latents; where there are codes, the share that the batch uses and their perplexity."""
    measures = {"latent_std": quantized.latent.float().std()}
    bottleneck = network.autoencoder.bottleneck
    if not isinstance(bottleneck, VectorQuantizer):
        return measures
    indices = quantized.indices
    if network.autoencoder.scalar_channels:
        indices, _ = codes_and_levels(indices, bottleneck.num_codebooks)
    usage, perplexity = bottleneck.usage(indices)
    return {**measures, "codebook_usage": usage, "codebook_perplexity": perplexity}


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
        return Step(terms, reconstruction, image, measures=_latent_measures(self.network, quantized))


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
        measures = _latent_measures(net, quantized)
        return Step(terms, translation, label, batch["target_modality"], measures)
