"""Detail transfer: edges, folds and small structures that the latent loses and the source still shows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from custom.networks.ms_spade import PreActivationBlock
from custom.networks.wavelet import HaarTransform

__all__ = ["DetailTransfer"]


class DetailTransfer(nn.Module):
    """Corrects a decoded translation by the source image, which has the same anatomy at full resolution.

    A latent of a 64th of the voxels holds the coarse image; what the decoder cannot give back is in part in the source,
    under another contrast. A small network sees both images side by side and adds the difference. MS-SPADE blocks turn
    the source's contrast, as they do in the latent. It works on the coefficients of one exact Haar level, an eighth of
    the voxels. Training starts from no change.

    Args:
        num_modalities: size of the vocabulary.
        width: channels of every block.
        num_blocks: number of blocks.
        hidden_channels: hidden channels of the MS-SPADE layers.
    """

    def __init__(self, num_modalities: int, *, width: int = 32, num_blocks: int = 1, hidden_channels: int = 16) -> None:
        super().__init__()
        self.haar = HaarTransform(1)
        self.conv_in = nn.Conv3d(16, width, 3, padding=1)
        blocks = [
            PreActivationBlock(num_modalities, width, width, hidden_channels, norm="channel") for _ in range(num_blocks)
        ]
        self.blocks = nn.ModuleList(blocks)
        # a kernel of one voxel: from zero, a 3³ one takes its first steps far too wide
        self.conv_out = nn.Conv3d(width, 8, 1)
        for last in [self.conv_out, *(block.conv2 for block in blocks)]:
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, decoded: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Translation (B, 1, H, W, D), in about [-1, 1].

        Args:
            decoded: what the decoder made of the translated latents, (B, 1, H, W, D); H, W, D even.
            source: the source images on the same grid, in [-1, 1].
            target: (B,) int64 modality indices.
        """
        h = self.conv_in(self.haar(torch.cat([decoded, source.to(decoded)], dim=1)))
        for block in self.blocks:
            h = block(h, target)
        return decoded + self.haar.inverse(self.conv_out(h))
