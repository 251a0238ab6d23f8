"""Image compression: the 3D VQ-GAN, and its KL variant behind the same interface."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution, SpatialAttentionBlock
from monai.networks.nets.autoencoderkl import Decoder, Encoder
from torch import Tensor, nn

from custom.networks.attention import SelfAttentionBlock
from custom.networks.quantizer import Quantized, VectorQuantizer, round_scalars
from custom.networks.wavelet import HaarTransform

__all__ = ["VQGAN", "KLBottleneck"]


class KLBottleneck(nn.Module):
    """A Gaussian latent with a Kullback-Leibler penalty in place of a codebook (ablation d of the paper's Table 3).

    ``forward`` takes moments (B, 2C, h, w, d) and returns, like ``VectorQuantizer``, a ``Quantized``: a sample in
    training and the mean otherwise, the weighted KL divergence to N(0, 1) per latent element, and no indices.

    Args:
        embedding_dim: channels C of a latent vector.
        kl_weight: weight of the divergence.
    """

    def __init__(self, embedding_dim: int, *, kl_weight: float = 1e-6) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.kl_weight = kl_weight

    def forward(self, moments: Tensor) -> Quantized:
        mean, log_var = moments.float().chunk(2, dim=1)
        log_var = log_var.clamp(-30.0, 20.0)
        loss = self.kl_weight * 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var).mean()
        latent = mean
        if self.training:
            latent = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        indices = torch.zeros([latent.shape[0], 0], dtype=torch.long, device=latent.device)
        return Quantized(latent, loss, indices)


class VQGAN(nn.Module):
    """3D VQ-GAN on MONAI's ``Encoder`` and ``Decoder``.

    Args:
        channels: channels of each level; every level after the first halves each axis.
        embedding_dim: channels of the latent that are coded; all, but for the scalar ones.
        num_embeddings: codes in a codebook.
        num_codebooks: codebooks, each for an equal piece of the coded channels of a latent vector.
        scalar_channels: channels of the latent behind the coded ones that a linear map gives of the image's Haar
            coefficients. Each is quantised by itself. The decoder's image is corrected until it has these, too, so
            what codes and decoder lose in their directions is kept; see ``fit_scalar_channels`` for a start. Only
            where nothing but the Haar transform halves the axes.
        encoder_channels: channels between either half and its 1³ convolution at the latent; those of the latent by
            default.
        num_res_blocks: residual blocks of each level of the encoder.
        decoder_num_res_blocks: the same for the decoder; the encoder's by default.
        norm_num_groups: groups of the group normalisation.
        haar_levels: open with as many levels of the exact Haar transform, each of which halves every axis before the
            first convolution; 0 for the paper's plain convolutions.
        attention_levels: levels with self-attention behind every residual block; by default none, as in the paper.
        nonlocal_attention: a residual block, self-attention and a residual block more at the bottom of both halves.
        final_activation: a SiLU between the last normalisation and the last convolution of both halves, as in the
            VQ-GAN that the paper cites and in the authors' release; MONAI's ``Encoder`` and ``Decoder`` leave it out.
        intensity_range: what the encoder takes and the decoder gives for the ends of [-1, 1]: weights that were trained
            elsewhere, on images in [0, 1] for instance, expect their own.
        bottleneck: replaces the codebooks built from the arguments above, e.g. by a ``VectorQuantizer`` with other
            settings or a ``KLBottleneck``.

    Attributes:
        latent_channels: L, coded and scalar ones.

    Source: Esser et al. 2021 (https://arxiv.org/abs/2012.09841); sizes in the paper's Table A. The decoder's correction
    is a step of back-projection, Irani & Peleg 1991 (doi:10.1016/1049-9652(91)90045-L).
    """

    not_in_identity = ("latent_channels",)  # it follows from the others
    # what was made before there were scalar channels stays valid
    in_identity_unless = {"scalar_channels": 0, "projection": None, "expansion": None}  # noqa: RUF012

    def __init__(
        self,
        channels: Sequence[int],
        embedding_dim: int,
        num_embeddings: int = 8192,
        *,
        num_codebooks: int = 1,
        scalar_channels: int = 0,
        encoder_channels: int | None = None,
        num_res_blocks: Sequence[int] = (1, 1, 1),
        decoder_num_res_blocks: Sequence[int] | None = None,
        norm_num_groups: int = 32,
        haar_levels: int = 0,
        attention_levels: Sequence[bool] | None = None,
        nonlocal_attention: bool = False,
        final_activation: bool = False,
        intensity_range: Sequence[float] = (-1.0, 1.0),
        bottleneck: nn.Module | None = None,
    ) -> None:
        super().__init__()
        lower, upper = (float(end) for end in intensity_range)
        if not lower < upper:
            raise ValueError(f"intensity_range: expected a lower and a higher number, found {intensity_range}.")
        self.scale, self.shift = (upper - lower) / 2, (upper + lower) / 2
        if scalar_channels and not (haar_levels and len(channels) == 1):
            raise ValueError(
                "scalar_channels: expected 0, as they need an autoencoder whose axes only its Haar levels halve; "
                f"found {scalar_channels} with {haar_levels} such levels and {len(channels)} of channels. Set it to 0, "
                "or channels to one number and haar_levels to 1 or more."
            )
        self.embedding_dim = embedding_dim
        self.latent_channels = embedding_dim + scalar_channels
        self.scalar_channels = scalar_channels
        self.haar = HaarTransform(haar_levels)
        self.downsampling = 2 ** (len(channels) - 1 + haar_levels)
        image_channels = 8**haar_levels
        if bottleneck is not None and num_codebooks != 1:
            raise ValueError(
                f"num_codebooks: expected it in the bottleneck, which replaces the codebooks; found {num_codebooks} "
                "beside one. Set bottleneck#num_codebooks."
            )
        self.bottleneck = bottleneck or VectorQuantizer(num_embeddings, embedding_dim, num_codebooks=num_codebooks)
        moments = embedding_dim * (2 if isinstance(self.bottleneck, KLBottleneck) else 1)

        def common(blocks: Sequence[int]) -> dict:
            return {
                "spatial_dims": 3,
                "channels": tuple(channels),
                "num_res_blocks": tuple(blocks),
                "norm_num_groups": norm_num_groups,
                "norm_eps": 1e-6,
                "attention_levels": tuple(attention_levels or [False] * len(channels)),
                "with_nonlocal_attn": nonlocal_attention,
            }

        inner = encoder_channels or embedding_dim
        self.encoder = Encoder(in_channels=image_channels, out_channels=inner, **common(num_res_blocks))
        self.decoder = Decoder(
            in_channels=inner,
            out_channels=image_channels,
            **common(decoder_num_res_blocks or num_res_blocks),
        )
        for half in (self.encoder, self.decoder):
            for i, block in enumerate(half.blocks):
                if isinstance(block, SpatialAttentionBlock):  # which cannot be scripted, and holds voxels × voxels
                    half.blocks[i] = SelfAttentionBlock(block.norm.num_channels, 1, norm_num_groups)
            if final_activation:
                half.blocks.insert(len(half.blocks) - 1, nn.SiLU())
        self.quant_conv = Convolution(3, inner, moments, kernel_size=1, conv_only=True)
        self.post_quant_conv = Convolution(3, embedding_dim, inner, kernel_size=1, conv_only=True)
        self.projection: nn.Module | None = None
        self.expansion: nn.Module | None = None
        if scalar_channels:  # they say nothing and change nothing, to begin with
            self.projection = nn.Conv3d(image_channels, scalar_channels, 1)
            self.expansion = nn.Conv3d(scalar_channels, image_channels, 1, bias=False)
            for parameter in (*self.projection.parameters(), *self.expansion.parameters()):
                nn.init.zeros_(parameter)

    @torch.jit.unused
    def extra_repr(self) -> str:
        if (self.scale, self.shift) == (1.0, 0.0):
            return ""
        return f"intensity_range=({self.shift - self.scale}, {self.shift + self.scale})"

    def coefficients(self, image: Tensor) -> Tensor:
        """What the encoder reads of ``image`` (B, 1, H, W, D) in [-1, 1]: Haar coefficients in its intensity range."""
        if self.scale != 1.0 or self.shift != 0.0:
            image = image * self.scale + self.shift
        return self.haar(image)

    def encode(self, image: Tensor) -> Tensor:
        """Latent before the bottleneck, (B, L, h, w, d), of ``image`` (B, 1, H, W, D) in [-1, 1]."""
        coefficients = self.coefficients(image)
        latent = self.quant_conv(self.encoder(coefficients))
        if self.projection is not None:
            latent = torch.cat([latent, self.projection(coefficients).to(latent.dtype)], dim=1)
        return latent

    def quantize(self, latent: Tensor) -> Quantized:
        """The bottleneck: nearest codes (or, for the KL variant, the posterior) of an encoded latent, and levels."""
        if self.scalar_channels == 0:
            return self.bottleneck(latent)
        coded = latent.shape[1] - self.scalar_channels
        found = self.bottleneck(latent[:, :coded])
        scalars, levels = round_scalars(latent[:, coded:].to(found.latent.dtype))
        indices = found.indices
        if indices.numel() > 0:
            indices = torch.cat([indices if indices.dim() == levels.dim() else indices.unsqueeze(1), levels], dim=1)
        return Quantized(torch.cat([found.latent, scalars], dim=1), found.loss, indices)

    def decode(self, latent: Tensor, scalar_share: float = 1.0) -> Tensor:
        """Image (B, 1, H, W, D) of a latent (B, L, h, w, d), of whose scalar channels a share corrects it."""
        coded = self.latent_channels - self.scalar_channels
        coefficients = self.decoder(self.post_quant_conv(latent[:, :coded]))
        if self.projection is not None and self.expansion is not None:
            lacking = latent[:, coded:] - self.projection(coefficients)
            coefficients = coefficients + scalar_share * self.expansion(lacking)
        image = self.haar.inverse(coefficients)
        if self.scale != 1.0 or self.shift != 0.0:
            image = (image - self.shift) / self.scale
        return image

    def forward(self, image: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruction of ``image`` and what the bottleneck made of it."""
        quantized = self.quantize(self.encode(image))
        return self.decode(quantized.latent), quantized
