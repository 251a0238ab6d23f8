"""ResViT: the residual generator with a vision transformer, shared by two of its blocks, at the bottom.

Source: Dalmaz et al. 2022 (https://arxiv.org/abs/2106.16031) and the authors' code
(https://github.com/icon-lab/ResViT). Published weights of the transformer, from natural images, are a download that is
not made here: it is trained from its start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from custom.rivals.layers import ResidualGenerator, patch_discriminator, sized
from custom.rivals.rival import Rival
from custom.utils.intensity_scales import PERCENTILE

__all__ = ["ResViT", "TransformerBranch"]

DROPOUT = 0.1
TABLE: dict[str, dict[str, Any]] = {
    "original": {"width": 64, "blocks": 9, "tokens": 16, "dim": 768, "depth": 12, "heads": 12, "smallest": 256},
    "small": {"width": 24, "blocks": 6, "tokens": 6, "dim": 192, "depth": 4, "heads": 4, "smallest": 16},
}
WITH_BRANCH = (0, 5)


def _normed(conv: nn.Module, channels: int) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(channels), nn.ReLU()]


def _transformer(dim: int, depth: int, heads: int) -> nn.Sequential:
    """ViT's: norms first, dropout in the feed-forward layers alone, a norm at the end."""
    layers = [
        nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, DROPOUT, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
        )
        for _ in range(depth)
    ]
    for layer in layers:
        layer.self_attn.dropout = layer.dropout1.p = 0.0
    return nn.Sequential(*layers, nn.LayerNorm(dim, eps=1e-6))


class TransformerBranch(nn.Module):
    """Two more halvings, tokens with learned positions; and, behind the transformer, the way back and the compression.

    Args:
        channels: of the generator's bottom.
        dim: of a token.
        tokens: along each side of the map whose positions are learned; those of another map are interpolated.
    """

    def __init__(self, channels: int, dim: int, tokens: int) -> None:
        super().__init__()
        self.down = nn.Sequential(
            *_normed(nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False), 2 * channels),
            *_normed(nn.Conv2d(2 * channels, 4 * channels, 3, stride=2, padding=1, bias=False), 4 * channels),
            nn.Conv2d(4 * channels, dim, 1),
        )
        self.positions = nn.Parameter(torch.zeros(1, tokens * tokens, dim))
        self.tokens = tokens
        self.dropout = nn.Dropout(DROPOUT)
        back: dict[str, Any] = {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1, "bias": False}
        self.up = nn.Sequential(
            *_normed(nn.ConvTranspose2d(dim, 2 * channels, **back), 2 * channels),
            *_normed(nn.ConvTranspose2d(2 * channels, channels, **back), channels),
        )
        self.compression = nn.Sequential(
            *_normed(nn.Conv2d(2 * channels, channels, 3, padding=1, bias=False), channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip
        self.shortcut = nn.Sequential(nn.Conv2d(2 * channels, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def embed(self, x: Tensor) -> Tensor:
        """Tokens (N, h·w, dim) of a map (N, C, 4h, 4w)."""
        h = self.down(x)
        positions: Tensor = self.positions
        if h.shape[2] != self.tokens or h.shape[3] != self.tokens:
            grid = positions.view(1, self.tokens, self.tokens, -1).permute(0, 3, 1, 2)
            grid = F.interpolate(grid, [h.shape[2], h.shape[3]], mode="bilinear", align_corners=False)
            positions = grid.flatten(2).transpose(1, 2)
        return self.dropout(h.flatten(2).transpose(1, 2) + positions)

    def merge(self, tokens: Tensor, x: Tensor) -> Tensor:
        """The map (N, C, 4h, 4w) with what the transformer made of its tokens."""
        grid = tokens.transpose(1, 2).reshape(x.shape[0], -1, x.shape[2] // 4, x.shape[3] // 4)
        both = torch.cat([self.up(grid), x], dim=1)
        return F.relu(self.compression(both) + self.shortcut(both))


class ResViTGenerator(ResidualGenerator):
    """The residual generator whose first and sixth block also have a transformer branch; one transformer for both."""

    def __init__(self, in_channels: int, *, transformers: bool, **sizes: Any) -> None:
        width = sizes["width"]
        super().__init__(2, in_channels, width=width, blocks=sizes["blocks"], norm="batch")
        self.apply(_pytorch_start)
        number = len(WITH_BRANCH) if transformers else 0
        self.branches = nn.ModuleList(
            TransformerBranch(4 * width, sizes["dim"], sizes["tokens"]) for _ in range(number)
        )
        # registered once, though two blocks use it
        self.transformer: nn.Module | None = (
            _transformer(sizes["dim"], sizes["depth"], sizes["heads"]) if transformers else None
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        for i, block in enumerate(self.blocks):
            if self.transformer is not None:
                for k, branch in enumerate(self.branches):
                    if i == 5 * k:
                        x = branch.merge(self.transformer(branch.embed(x)), x)  # type: ignore[operator]
            x = block(x)
        return self.tail(x)


def _pytorch_start(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        module.reset_parameters()


class ResViT(Rival):
    """ResViT, one to one.

    Args:
        modalities, pair, intensity_scale: as for ``Rival``; all pairs in one network are possible.
        size: ``"original"``: the published widths; slices are padded to 256×256, larger ones to multiples of 16, for
            which the learned positions are interpolated; ``"small"``.
        transformers: false for the first of the two published stages, which trains the rest of the generator.
    """

    every_pair = True

    def __init__(
        self,
        modalities: Sequence[str],
        pair: str | Sequence[str] | None,
        size: str = "small",
        *,
        transformers: bool = True,
        intensity_scale: str = PERCENTILE,
    ) -> None:
        widths = dict(sized(TABLE, size))
        smallest = widths.pop("smallest")
        super().__init__(
            modalities, pair, method="res_vit", spatial_dims=2, divisor=16, smallest=smallest,
            intensity_scale=intensity_scale, settings={"size": size, "transformers": transformers},
        )  # fmt: skip
        self.width: int = widths["width"]
        self.generator = ResViTGenerator(1 + self.planes, transformers=transformers, **widths)

    def generate(self, x: Tensor) -> Tensor:
        return self.generator(x)

    def make_discriminator(self) -> nn.Module:
        return patch_discriminator(2, 2 + self.planes, width=self.width)
