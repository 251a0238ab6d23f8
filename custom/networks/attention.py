"""Attention blocks of the conditional UNet: self-attention, and cross-attention to the target modality."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Attention", "SelfAttentionBlock", "SpatialTransformerBlock"]


class Attention(nn.Module):
    """Multi-head attention, eq. (3) of the paper: ``softmax(QKᵀ/√d) V`` with K and V projected from the context.

    With a context of one token the softmax is 1, so every query receives the same projected value: it is computed
    once and broadcast. Otherwise PyTorch's memory-efficient attention is used; no (N, N) matrix is held.

    Args:
        channels: channels of the queries; divisible by ``num_heads``.
        context_channels: channels of the context; for self-attention equal to ``channels``.
        num_heads: number of heads.
        bias: of the three projections.
    """

    def __init__(self, channels: int, context_channels: int, num_heads: int, *, bias: bool = False) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"channels: expected a multiple of num_heads = {num_heads}, found {channels}.")
        self.num_heads = num_heads
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(context_channels, channels, bias=bias)
        self.to_v = nn.Linear(context_channels, channels, bias=bias)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Attend from ``x`` (B, N, C) to ``context`` (B, S, E); result (B, N, C), or (B, 1, C) where S = 1."""
        if context.shape[1] == 1:
            return self.out(self.to_v(context))
        return self.attend(x, context)

    def attend(self, x: Tensor, context: Tensor) -> Tensor:
        """The full computation, (B, N, C), for any length of the context."""
        q, k, v = self._heads(self.to_q(x)), self._heads(self.to_k(context)), self._heads(self.to_v(context))
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.out(attended.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.num_heads, -1).transpose(1, 2)


class SelfAttentionBlock(nn.Module):
    """Self-attention over voxels with a shortcut and nothing else, as in MONAI's ``SpatialAttentionBlock``.

    Args:
        channels: channels of the feature map.
        num_heads: heads.
        norm_num_groups: groups of the normalisation.
    """

    def __init__(self, channels: int, num_heads: int, norm_num_groups: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(norm_num_groups, channels, eps=1e-6)
        self.attention = Attention(channels, channels, num_heads, bias=True)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Attend from each voxel of ``x`` (B, C, h, w, d) to all; ``context`` is not read."""
        h = self.norm_in(x).flatten(2).transpose(1, 2)
        return x + self.attention.attend(h, h).transpose(1, 2).reshape(x.shape)


class GEGLU(nn.Module):
    """Half of the channels times GELU of the other half (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""

    def forward(self, x: Tensor) -> Tensor:
        values, gate = x.chunk(2, dim=-1)
        return values * F.gelu(gate)


class SpatialTransformerBlock(nn.Module):
    """Self-attention over voxels, cross-attention to the one-hot target, feed-forward; each with a shortcut.

    Args:
        channels: channels of the feature map.
        context_channels: channels of a context token (the number of modalities); 0 for no cross-attention.
        num_heads: heads of both attentions.
        norm_num_groups: groups of the first normalisation.
        gated: project the input first and gate the feed-forward layer, as MONAI's ``SpatialTransformer`` does.

    Source: Rombach et al. 2022 (https://arxiv.org/abs/2112.10752).
    """

    def __init__(
        self, channels: int, context_channels: int, num_heads: int, norm_num_groups: int, *, gated: bool = False
    ) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(norm_num_groups, channels, eps=1e-6)
        self.proj_in: nn.Module | None = nn.Linear(channels, channels) if gated else None
        crossed = context_channels > 0
        self.norm1 = nn.LayerNorm(channels)
        self.norm2: nn.Module | None = nn.LayerNorm(channels) if crossed else None
        self.norm3 = nn.LayerNorm(channels)
        self.self_attention = Attention(channels, channels, num_heads)
        self.cross_attention: nn.Module | None = Attention(channels, context_channels, num_heads) if crossed else None
        inner = 4 * channels
        self.feed_forward = nn.Sequential(
            nn.Linear(channels, 2 * inner if gated else inner),
            GEGLU() if gated else nn.GELU(),
            nn.Linear(inner, channels),
        )
        self.proj_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Transform ``x`` (B, C, h, w, d) given ``context`` (B, S, E), which is not read without cross-attention."""
        h = self.norm_in(x).flatten(2).transpose(1, 2)
        if self.proj_in is not None:
            h = self.proj_in(h)
        normed = self.norm1(h)
        # the full computation even for a single voxel: a trace of it serves larger volumes too
        h = h + self.self_attention.attend(normed, normed)
        if self.cross_attention is not None and self.norm2 is not None:
            h = h + self.cross_attention(self.norm2(h), context)
        h = h + self.feed_forward(self.norm3(h))
        return x + self.proj_out(h).transpose(1, 2).reshape(x.shape)
