"""Detail transfer: edges, folds and small structures that the latent loses and the source still shows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from custom.networks.fusion import SetAttention, deviation
from custom.networks.ms_spade import PreActivationBlock, SwitchableConv3d
from custom.networks.wavelet import HaarTransform

__all__ = ["DetailTransfer", "ErrorHead"]

FIRST_ERROR = -2.3  # logarithm of 0.1, in units of images in [-1, 1]: what an untrained head expects
GAIN = (
    30.0  # of what the head adds to it: an optimiser's steps are of one size for all weights, and these begin at zero
)
LEAST, LARGEST = -9.0, 1.0  # of the logarithm: far below a grey level of 255, and above the range of an image


class DetailTransfer(nn.Module):
    """Corrects a decoded translation by the source images, which have the same anatomy at full resolution.

    A latent of a 64th of the voxels holds the coarse image; what the decoder cannot give back is in part in the source,
    under another contrast. A small network sees both images side by side and adds the difference. MS-SPADE blocks turn
    the source's contrast, as they do in the latent. It works on the coefficients of one exact Haar level, an eighth of
    the voxels. Training starts from no change.

    The features of several sources are fused before the blocks, which so run once; of one source nothing is fused.

    ``coarser_widths`` make it a small UNet: levels of half, a quarter … of that resolution beneath, which see further
    (an edge is a sulcus or a vessel by what is around it) and cost little. They too start from no change.

    Args:
        num_modalities: size of the vocabulary.
        width: channels of every block, a multiple of ``heads``.
        num_blocks: number of blocks.
        hidden_channels: hidden channels of the MS-SPADE layers.
        coarser_widths: channels of the levels beneath, from fine to coarse.
        heads: groups of channels that several sources are fused with weights of their own in.
        error_channels: channels of the head that predicts the error of the translation; 0 leaves it out.
    """

    def __init__(
        self,
        num_modalities: int,
        *,
        width: int = 32,
        num_blocks: int = 1,
        hidden_channels: int = 16,
        coarser_widths: Sequence[int] = (),
        heads: int = 4,
        error_channels: int = 16,
    ) -> None:
        super().__init__()
        self.haar = HaarTransform(1)
        self.conv_in = nn.Conv3d(16, width, 3, padding=1)
        blocks = [
            PreActivationBlock(num_modalities, width, width, hidden_channels, norm="channel") for _ in range(num_blocks)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.coarser: CoarserLevel | None = _levels(num_modalities, [width, *coarser_widths], hidden_channels)
        # a kernel of one voxel: from zero, a 3³ one takes its first steps far too wide
        self.conv_out = nn.Conv3d(width, 8, 1)
        self.attention = SetAttention(num_modalities, width, 4 * heads, heads=heads)
        self.fusion = SwitchableConv3d(num_modalities, 4 * heads, width, 1)
        for last in [self.conv_out, self.fusion, *(block.conv2 for block in blocks)]:
            for parameter in last.parameters():
                nn.init.zeros_(parameter)
        self.error: ErrorHead | None = ErrorHead(num_modalities, width, error_channels) if error_channels else None

    def forward(self, decoded: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Translation (B, 1, H, W, D), in about [-1, 1].

        Args:
            decoded: what the decoder made of the translated latents, (B, 1, H, W, D); H, W, D even.
            source: the source images on the same grid, (B, S, H, W, D), in [-1, 1], in any order.
            target: (B,) int64 modality indices.
        """
        h = self._fused(self._members(decoded, source), target)
        return self._corrected(decoded, self._run_blocks(h, target))

    def with_error(self, decoded: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The translation of ``forward``, and the logarithm of its expected absolute error, (B, 1, H, W, D).

        No gradient of the error reaches what makes the translation.

        Raises:
            ValueError: for a network without the head.
        """
        members = self._members(decoded, source)
        h = self._fused(members, target)
        disagreement = deviation(members, h).mean(dim=1, keepdim=True)
        h = self._run_blocks(h, target)
        translation = self._corrected(decoded, h)
        if self.error is None:
            raise ValueError("expected a detail transfer that predicts errors; found error_channels 0.")
        coefficients = self.haar(translation.detach().to(h.dtype))
        return translation, self.error(torch.cat([h, coefficients, disagreement], dim=1).detach(), target)

    def _members(self, decoded: Tensor, source: Tensor) -> list[Tensor]:
        """Features of each source beside the decoded image."""
        sources = source.to(decoded).split(1, dim=1)
        return [self.conv_in(self.haar(torch.cat([decoded, image], dim=1))) for image in sources]

    def _fused(self, members: list[Tensor], target: Tensor) -> Tensor:
        if len(members) == 1:
            return members[0]
        weights, features = self.attention(members, target)
        return self.attention.weighted(members, weights) + self.fusion(features, target)

    def _run_blocks(self, h: Tensor, target: Tensor) -> Tensor:
        if self.coarser is not None:
            h = h + self.coarser(h, target)
        for block in self.blocks:
            h = block(h, target)
        return h

    def _corrected(self, decoded: Tensor, h: Tensor) -> Tensor:
        return decoded + self.haar.inverse(self.conv_out(h))


class CoarserLevel(nn.Module):
    """Blocks at half the resolution, and on the way a level that is coarser still, if there is one.

    Args:
        num_modalities: size of the vocabulary.
        channels: channels of the level above.
        width: channels of the blocks.
        hidden_channels: hidden channels of the MS-SPADE layers.
        beneath: the next level.
    """

    def __init__(
        self, num_modalities: int, channels: int, width: int, hidden_channels: int, beneath: CoarserLevel | None
    ) -> None:
        super().__init__()

        def block() -> PreActivationBlock:
            return PreActivationBlock(num_modalities, width, width, hidden_channels, norm="channel")

        self.down = nn.Conv3d(channels, width, 2, stride=2)
        self.block_in = block()
        self.beneath: nn.Module | None = beneath
        self.block_out: nn.Module | None = None if beneath is None else block()
        self.up = nn.ConvTranspose3d(width, channels, 2, stride=2)
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter)

    def forward(self, h: Tensor, target: Tensor) -> Tensor:
        """What this level adds to ``h`` (B, channels, h, w, d); ``target`` (B,) int64."""
        height, width, depth = h.shape[2], h.shape[3], h.shape[4]
        even = F.pad(h, [0, depth % 2, 0, width % 2, 0, height % 2])
        x = self.block_in(self.down(even), target)
        if self.beneath is not None:
            x = x + self.beneath(x, target)
        if self.block_out is not None:
            x = self.block_out(x, target)
        return self.up(x)[:, :, :height, :width, :depth]


def _levels(num_modalities: int, widths: Sequence[int], hidden_channels: int) -> CoarserLevel | None:
    """The level beneath one of ``widths[0]`` channels, with those beneath it; None for a single width."""
    if len(widths) == 1:
        return None
    beneath = _levels(num_modalities, widths[1:], hidden_channels)
    return CoarserLevel(num_modalities, widths[0], widths[1], hidden_channels, beneath)


class ErrorHead(nn.Module):
    """Logarithm of the expected absolute error of a translation, from what the detail transfer knows at a voxel.

    ``trained`` is kept with the weights: an expectation that nobody has trained is none.

    Args:
        num_modalities: size of the vocabulary.
        width: channels of the detail transfer.
        channels: channels of the head.
    """

    def __init__(self, num_modalities: int, width: int, channels: int) -> None:
        super().__init__()
        self.conv_in = SwitchableConv3d(num_modalities, width + 8 + 1, channels)
        self.conv = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv_out = nn.Conv3d(channels, 8, 1)
        self.haar = HaarTransform(1)
        self.first, self.gain, self.least, self.largest = (
            FIRST_ERROR,
            GAIN,
            LEAST,
            LARGEST,
        )  # TorchScript sees no globals
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)
        self.trained: Tensor
        self.register_buffer("trained", torch.zeros(()))

    def forward(self, h: Tensor, target: Tensor) -> Tensor:
        """Logarithm (B, 1, H, W, D), for errors in units of the image.

        Args:
            h: features of the detail transfer, the translation's Haar coefficients, and how far the sources disagree,
                (B, width + 8 + 1, H/2, W/2, D/2).
            target: (B,) int64 modality indices.
        """
        h = F.silu(self.conv_in(h, target))
        h = h + F.silu(self.conv(h))
        return (self.first + self.gain * self.haar.inverse(self.conv_out(h))).clamp(self.least, self.largest)
