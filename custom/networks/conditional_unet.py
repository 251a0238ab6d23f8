"""The denoiser: a 3D UNet conditioned on latents (by concatenation), time and the target modality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock, get_timestep_embedding
from torch import Tensor, nn

from custom.networks.attention import SelfAttentionBlock, SpatialTransformerBlock

__all__ = ["ATTENTIONS", "ConditionalUNet"]

ATTENTIONS = ("transformer", "gated_transformer", "self")


class _Block(nn.Module):
    """One residual block and, where ``attention`` is given, one block of attention."""

    def __init__(self, in_channels: int, channels: int, emb: int, groups: int, attention: nn.Module | None) -> None:
        super().__init__()
        self.res = DiffusionUNetResnetBlock(3, in_channels, emb, channels, norm_num_groups=groups)
        self.transformer = attention

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        x = self.res(x, emb)
        if self.transformer is not None:
            x = self.transformer(x, context)
        return x


class _DownLevel(nn.Module):
    """The blocks of one level of the contracting path; every result is kept for its twin on the way up."""

    def __init__(self, blocks: Sequence[nn.Module], downsampler: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsampler = downsampler

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> list[Tensor]:
        skips: list[Tensor] = []
        for block in self.blocks:
            x = block(x, emb, context)
            skips.append(x)
        if self.downsampler is not None:
            skips.append(self.downsampler(x))
        return skips


class _UpLevel(nn.Module):
    """The blocks of one level of the expanding path; takes its skips from the end of the list."""

    def __init__(self, blocks: Sequence[nn.Module], upsampler: nn.Sequential | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.upsampler = upsampler

    def forward(self, x: Tensor, skips: list[Tensor], emb: Tensor, context: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), emb, context)
        if self.upsampler is not None:
            x = self.upsampler(x)
        return x


class ConditionalUNet(nn.Module):
    """3D UNet of eq. (4), ``ε_θ(z_t, t, y)`` with the conditioning latents concatenated to ``z_t``.

    Args:
        in_channels: channels of the noisy latent and the conditioning latents together.
        out_channels: channels L of the prediction.
        num_modalities: size of the vocabulary; the one-hot target is the context token of the cross-attention.
        channels: channels of each level; every level after the first halves each axis.
        num_res_blocks: residual blocks of a level, one number for all or one for each.
        attention_levels: which levels hold blocks of attention; the bottom always does.
        num_heads: attention heads, one number for all levels or one for each; the bottom has those of the last.
        norm_num_groups: groups of the group normalisation.
        class_embedding: add an embedding of the target to the time embedding instead of cross-attention to it (the
            authors' release).
        attention: ``"transformer"``; ``"gated_transformer"``, which is MONAI's ``SpatialTransformer``; or ``"self"``,
            self-attention alone, as in unconditional UNets, where only ``class_embedding`` tells the target.

    Raises:
        ValueError: for another ``attention``, or settings by level of another length than ``channels``.

    Source: Kim & Park 2024, Fig. 2b and Table C; Rombach et al. 2022 (https://arxiv.org/abs/2112.10752).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_modalities: int,
        *,
        channels: Sequence[int] = (128, 256, 512),
        num_res_blocks: int | Sequence[int] = 1,
        attention_levels: Sequence[bool] = (False, True, True),
        num_heads: int | Sequence[int] = 4,
        norm_num_groups: int = 32,
        class_embedding: bool = False,
        attention: str = "transformer",
    ) -> None:
        super().__init__()
        if attention not in ATTENTIONS:
            raise ValueError(f"attention: expected one of {ATTENTIONS}, found {attention!r}.")
        attention_levels = _by_level("attention_levels", attention_levels, channels)
        res_blocks = _by_level("num_res_blocks", num_res_blocks, channels)
        heads = _by_level("num_heads", num_heads, channels)
        self.num_modalities = num_modalities
        self.spatial_divisor = 2 ** (len(channels) - 1)
        self.time_channels = channels[0]
        emb = 4 * channels[0]
        self.time_embedding = nn.Sequential(nn.Linear(channels[0], emb), nn.SiLU(), nn.Linear(emb, emb))
        self.class_embedding: nn.Embedding | None = nn.Embedding(num_modalities, emb) if class_embedding else None
        context = 0 if class_embedding else num_modalities
        self.conv_in = nn.Conv3d(in_channels, channels[0], 3, padding=1)

        def attend(c: int, level: int) -> nn.Module:
            if attention == "self":
                return SelfAttentionBlock(c, heads[level], norm_num_groups)
            gated = attention == "gated_transformer"
            return SpatialTransformerBlock(c, context, heads[level], norm_num_groups, gated=gated)

        def block(i: int, o: int, level: int, attends: bool) -> _Block:
            return _Block(i, o, emb, norm_num_groups, attend(o, level) if attends else None)

        skips, width = [channels[0]], channels[0]
        self.down_levels, self.up_levels = nn.ModuleList(), nn.ModuleList()
        for i, c in enumerate(channels):
            inputs = [width] + [c] * (res_blocks[i] - 1)
            blocks = [block(w, c, i, attention_levels[i]) for w in inputs]
            last = i == len(channels) - 1
            self.down_levels.append(_DownLevel(blocks, None if last else nn.Conv3d(c, c, 3, stride=2, padding=1)))
            width = c
            skips += [c] * (res_blocks[i] + int(not last))
        bottom = len(channels) - 1
        self.mid_in, self.mid_out = block(width, width, bottom, True), block(width, width, bottom, False)
        for i, c in reversed(list(enumerate(channels))):
            inputs = [width] + [c] * res_blocks[i]
            blocks = [block(w + skips.pop(), c, i, attention_levels[i]) for w in inputs]
            upsampler = nn.Sequential(nn.Upsample(scale_factor=2.0), nn.Conv3d(c, c, 3, padding=1)) if i else None
            self.up_levels.append(_UpLevel(blocks, upsampler))
            width = c
        self.norm_out = nn.GroupNorm(norm_num_groups, width, eps=1e-6)
        self.conv_out = nn.Conv3d(width, out_channels, 3, padding=1)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, timesteps: Tensor, target: Tensor) -> Tensor:
        """Prediction (B, L, h, w, d).

        Args:
            x: noisy latent and conditioning, concatenated, (B, in_channels, h, w, d); h, w, d divisible by
                ``spatial_divisor``.
            timesteps: (B,) in [0, T).
            target: (B,) int64 modality indices.
        """
        emb = self.time_embedding(get_timestep_embedding(timesteps, self.time_channels).to(x.dtype))
        if self.class_embedding is not None:
            emb = emb + self.class_embedding(target)
        context = F.one_hot(target, self.num_modalities).to(x.dtype).unsqueeze(1)
        x = self.conv_in(x)
        skips = [x]
        for level in self.down_levels:
            skips += level(x, emb, context)
            x = skips[-1]
        x = self.mid_out(self.mid_in(x, emb, context), emb, context)
        for level in self.up_levels:
            x = level(x, skips, emb, context)
        return self.conv_out(F.silu(self.norm_out(x)))


def _by_level(name: str, value: Any, channels: Sequence[int]) -> list[Any]:
    values = list(value) if isinstance(value, Sequence) else [value] * len(channels)
    if len(values) != len(channels):
        raise ValueError(f"{name}: expected {len(channels)} entries, one a level; found {value}.")
    return values
