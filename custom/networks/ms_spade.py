"""MS-SPADE: spatially adaptive normalisation with one set of parameters per target modality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from custom.networks.exchange import NoExchange, SetExchange

__all__ = [
    "MSSPADE",
    "MSSPADEBlock",
    "PreActivationBlock",
    "ReleaseStyleTransfer",
    "ResidualStyleTransfer",
    "SourceSummary",
    "StyleTransfer",
    "SwitchableConv3d",
    "coordinates",
]


NORMS = ("instance", "channel")


class SwitchableConv3d(nn.Module):
    """A convolution with one kernel per modality; each item of a batch is convolved with its own.

    The kernels of the batch are gathered and applied as one grouped convolution: no loop over items.

    Args:
        num_modalities: number of kernels M.
        in_channels, out_channels: channels of input and output.
        kernel_size: odd edge length of the kernel; the size of the volume is kept.
    """

    def __init__(self, num_modalities: int, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_modalities, out_channels, in_channels, *[kernel_size] * 3))
        self.bias = nn.Parameter(torch.empty(num_modalities, out_channels))
        self.padding = kernel_size // 2
        bound = 1 / math.sqrt(in_channels * kernel_size**3)  # as in torch.nn.Conv3d
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Convolve ``x`` (B, C, h, w, d), item b with kernel ``target[b]``; ``target`` (B,) int64."""
        batch = x.shape[0]
        weight, bias = self.weight[target].flatten(0, 1), self.bias[target].flatten()
        y = F.conv3d(x.flatten(0, 1).unsqueeze(0), weight, bias, padding=self.padding, groups=batch)
        return y.view(batch, -1, y.shape[2], y.shape[3], y.shape[4])


class MSSPADE(nn.Module):
    """Multiple switchable spatially adaptive normalisation, eq. (1) of the paper:

    ``x = γ_tar(h) · (h − μ_c) / σ_c + β_tar(h)``

    μ, σ are the instance statistics of each channel of ``h``; the maps γ = 1 + convolution and β are computed from
    ``h`` itself by two convolutions whose kernels belong to the target modality.

    Args:
        num_modalities: number of parameter sets.
        channels: channels of ``h``.
        hidden_channels: channels between the two convolutions.
        norm: ``"instance"`` as above, or ``"channel"``: each voxel is divided by the root mean square over its
            channels. That keeps how bright a voxel is against the others, and does not depend on how much of the head
            the volume or the crop holds.

    Raises:
        ValueError: for another ``norm``.

    Source: Kim & Park 2024, Fig. 2a; SPADE: Park et al. 2019 (https://arxiv.org/abs/1903.07291).
    """

    def __init__(
        self, num_modalities: int, channels: int, hidden_channels: int = 64, *, norm: str = "instance"
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm: expected one of {NORMS}, found {norm!r}.")
        self.norm = norm
        self.shared = SwitchableConv3d(num_modalities, channels, hidden_channels)
        self.gamma_beta = SwitchableConv3d(num_modalities, hidden_channels, 2 * channels)

    def forward(self, h: Tensor, target: Tensor) -> Tensor:
        """Normalise ``h`` (B, C, h, w, d) in the manner of ``target`` (B,)."""
        gamma, beta = self.gamma_beta(F.relu(self.shared(h, target)), target).chunk(2, dim=1)
        normalized = F.instance_norm(h) if self.norm == "instance" else _channel_norm(h)
        return (1 + gamma) * normalized + beta


def _channel_norm(h: Tensor) -> Tensor:
    """``h`` (B, C, h, w, d) over the root mean square of each voxel's channels."""
    return h * torch.rsqrt(h.square().mean(dim=1, keepdim=True) + 1e-4)


class _ResBlock(nn.Module):
    """(C3, ReLU, IN) twice with a shortcut, Table B."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1)
        self.shortcut: nn.Module = (
            nn.Identity() if in_channels == out_channels else nn.Conv3d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = F.instance_norm(F.relu(self.conv1(x)))
        return self.shortcut(x) + F.instance_norm(F.relu(self.conv2(h)))


class MSSPADEBlock(nn.Module):
    """(C3, ReLU, MS-SPADE) twice with a shortcut, Table B.

    Args:
        num_modalities: number of parameter sets.
        in_channels, out_channels: channels of input and output.
        hidden_channels: hidden channels of the MS-SPADE layers.
    """

    def __init__(self, num_modalities: int, in_channels: int, out_channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.norm1 = MSSPADE(num_modalities, out_channels, hidden_channels)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1)
        self.norm2 = MSSPADE(num_modalities, out_channels, hidden_channels)
        self.shortcut: nn.Module = (
            nn.Identity() if in_channels == out_channels else nn.Conv3d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        h = self.norm1(F.relu(self.conv1(x)), target)
        return self.shortcut(x) + self.norm2(F.relu(self.conv2(h)), target)


class StyleTransfer(nn.Module):
    """The target-style transfer of Table B: source latent in, target-like latent out.

    Args:
        num_modalities: size of the vocabulary.
        latent_channels: channels L of the latent.
        in_channels: channels after the first convolution.
        res_channels: output channels of the residual blocks.
        spade_channels: output channels of the MS-SPADE blocks.
        hidden_channels: hidden channels of the MS-SPADE layers.
    """

    def __init__(
        self,
        num_modalities: int,
        latent_channels: int,
        *,
        in_channels: int = 128,
        res_channels: Sequence[int] = (256, 256),
        spade_channels: Sequence[int] = (256, 256, 256, 128),
        hidden_channels: int = 64,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv3d(latent_channels, in_channels, 7, padding=3)
        res_in = [in_channels, *res_channels]
        self.res_blocks = nn.ModuleList(_ResBlock(i, o) for i, o in pairwise(res_in))
        spade_in = [res_in[-1], *spade_channels]
        self.spade_blocks = nn.ModuleList(
            MSSPADEBlock(num_modalities, i, o, hidden_channels) for i, o in pairwise(spade_in)
        )
        self.conv_out = nn.Conv3d(spade_in[-1], latent_channels, 7, padding=3)

    def forward(
        self,
        latent: Tensor,
        target: Tensor,
        context: Tensor | None = None,
        position: Tensor | None = None,
        num_sources: int = 1,
    ) -> Tensor:
        """Target-like latent (B, L, h, w, d) of ``latent`` (B, L, h, w, d) for ``target`` (B,) int64.

        The rest is not asked for: instance statistics are what this network knows of the whole, and each source is by
        itself.
        """
        h = F.relu(F.instance_norm(self.conv_in(latent)))
        for block in self.res_blocks:
            h = block(h)
        for block in self.spade_blocks:
            h = block(h, target)
        return self.conv_out(h)

    @torch.jit.export
    def summarize(self, voxels: Tensor) -> Tensor:
        """Nothing, (B, 0): it has no summary of the voxels (B, L, N) of a whole source."""
        return voxels.new_zeros(voxels.shape[0], 0)


class PreActivationBlock(nn.Module):
    """Pre-activation residual block, as in the authors' release: (MS-SPADE, leaky ReLU, C3) twice with a shortcut.

    The first convolution leads to ``min(in_channels, out_channels)`` channels; the shortcut is a convolution without
    bias where the channels change. This is SPADE's residual block with switchable normalisations.

    Args:
        num_modalities: number of parameter sets.
        in_channels, out_channels: channels of input and output.
        hidden_channels: hidden channels of the MS-SPADE layers.
        norm: as for ``MSSPADE``.

    Source: Park et al. 2019 (https://arxiv.org/abs/1903.07291), Fig. 4.
    """

    def __init__(
        self,
        num_modalities: int,
        in_channels: int,
        out_channels: int,
        hidden_channels: int = 64,
        *,
        norm: str = "instance",
    ) -> None:
        super().__init__()
        middle = min(in_channels, out_channels)
        self.norm1 = MSSPADE(num_modalities, in_channels, hidden_channels, norm=norm)
        self.conv1 = nn.Conv3d(in_channels, middle, 3, padding=1)
        self.norm2 = MSSPADE(num_modalities, middle, hidden_channels, norm=norm)
        self.conv2 = nn.Conv3d(middle, out_channels, 3, padding=1)
        self.shortcut: nn.Module = (
            nn.Identity() if in_channels == out_channels else nn.Conv3d(in_channels, out_channels, 1, bias=False)
        )

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        h = self.conv1(F.leaky_relu(self.norm1(x, target), 0.2))
        return self.shortcut(x) + self.conv2(F.leaky_relu(self.norm2(h, target), 0.2))


class ReleaseStyleTransfer(nn.Module):
    """The target-style transfer of the authors' release: four SPADE residual blocks of L → w → 2w → w → L channels.

    Args:
        num_modalities: size of the vocabulary.
        latent_channels: channels L of the latent.
        width: channels w after the first block.
        hidden_channels: hidden channels of the MS-SPADE layers.
    """

    def __init__(
        self, num_modalities: int, latent_channels: int, *, width: int = 64, hidden_channels: int = 64
    ) -> None:
        super().__init__()
        channels = [latent_channels, width, 2 * width, width, latent_channels]
        self.blocks = nn.ModuleList(
            PreActivationBlock(num_modalities, i, o, hidden_channels) for i, o in pairwise(channels)
        )

    def forward(
        self,
        latent: Tensor,
        target: Tensor,
        context: Tensor | None = None,
        position: Tensor | None = None,
        num_sources: int = 1,
    ) -> Tensor:
        """Target-like latent (B, L, h, w, d) of ``latent`` (B, L, h, w, d) for ``target`` (B,) int64.

        The rest is not asked for: instance statistics are what this network knows of the whole, and each source is by
        itself.
        """
        h = latent
        for block in self.blocks:
            h = block(h, target)
        return h

    @torch.jit.export
    def summarize(self, voxels: Tensor) -> Tensor:
        """Nothing, (B, 0): it has no summary of the voxels (B, L, N) of a whole source."""
        return voxels.new_zeros(voxels.shape[0], 0)


class SourceSummary(nn.Module):
    """Summarise the voxels of a whole latent, in any order and number: the scan's contrast, scale and lesions.

    Each voxel gives features; each of several heads averages them with weights of its own, so that background or
    fluid can be told from tissue; the averages become one vector.

    Args:
        latent_channels: channels L of the latent.
        out_channels: length C of the vector.
        hidden_channels: features of a voxel.
        num_heads: averages that are taken.

    Source: attention-based pooling, Ilse et al. 2018 (https://arxiv.org/abs/1802.04712).
    """

    def __init__(
        self, latent_channels: int, out_channels: int, *, hidden_channels: int = 96, num_heads: int = 4
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(latent_channels, hidden_channels, 1),
            nn.SiLU(),
            nn.Conv1d(hidden_channels, hidden_channels, 1),
            nn.SiLU(),
        )
        self.scores = nn.Conv1d(hidden_channels, num_heads, 1)
        self.out = nn.Sequential(
            nn.Linear(num_heads * hidden_channels, 2 * out_channels),
            nn.SiLU(),
            nn.Linear(2 * out_channels, out_channels),
        )

    def forward(self, voxels: Tensor) -> Tensor:
        """Vector (B, C) of ``voxels`` (B, L, N)."""
        features = self.features(voxels)
        # many small weights: their sum is taken in full precision
        weights = torch.softmax(self.scores(features).float(), dim=-1).to(features.dtype)
        return self.out(torch.bmm(weights, features.mT).flatten(1))


def coordinates(height: int, width: int, depth: int) -> Tensor:
    """Where each voxel of a whole volume lies, (1, 3, height, width, depth), from -1 to 1 along every axis.

    Along the first, which runs from left to right, it is the distance from the middle, as brains are symmetrical.
    """
    x = torch.linspace(-1.0, 1.0, height).abs().view(-1, 1, 1).expand(height, width, depth)
    y = torch.linspace(-1.0, 1.0, width).view(1, -1, 1).expand(height, width, depth)
    z = torch.linspace(-1.0, 1.0, depth).expand(height, width, depth)
    return torch.stack([x, y, z]).unsqueeze(0)


def _position(channels: int, width: int) -> nn.Sequential:
    """What coordinates add to the features of a voxel; nothing, to begin with."""
    last = nn.Conv3d(channels, width, 1)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(nn.Conv3d(3, channels, 1), nn.SiLU(), nn.Conv3d(channels, channels, 1), nn.SiLU(), last)


class ResidualStyleTransfer(nn.Module):
    """A target-style transfer that learns fast: what MS-SPADE adds to the source latent.

    The contrasts share their anatomy, so the change is easier to learn than the whole, and training starts from the
    identity. Pre-activation blocks with the channel norm keep the intensities on the way, which instance statistics
    take out at every layer. What a voxel cannot know, how the whole scan was weighted and scaled, a summary tells it,
    where in the head it lies, its coordinates, and what the subject's other contrasts show there, an exchange among
    the sources of a set before each block.

    Args:
        num_modalities: size of the vocabulary.
        latent_channels: channels L of the latent.
        width: channels of every block.
        num_blocks: number of blocks.
        hidden_channels: hidden channels of the MS-SPADE layers.
        summary_channels: hidden channels of the summary of the whole source; 0 leaves it out.
        position_channels: hidden channels of what the coordinates give; 0 leaves them out. Training starts from no
            change.
        exchange_channels: hidden channels of what the sources of a set tell one another, see ``SetExchange``; 0 leaves
            each by itself.
    """

    not_in_identity = ("summary_length",)

    def __init__(
        self,
        num_modalities: int,
        latent_channels: int,
        *,
        width: int = 64,
        num_blocks: int = 3,
        hidden_channels: int = 16,
        summary_channels: int = 0,
        position_channels: int = 0,
        exchange_channels: int = 0,
    ) -> None:
        super().__init__()
        self.summary_length = width if summary_channels else 0
        self.summary: nn.Module | None = (
            SourceSummary(latent_channels, width, hidden_channels=summary_channels) if summary_channels else None
        )
        self.position: nn.Module | None = _position(position_channels, width) if position_channels else None
        self.conv_in = nn.Conv3d(latent_channels, width, 3, padding=1)
        blocks = [
            PreActivationBlock(num_modalities, width, width, hidden_channels, norm="channel") for _ in range(num_blocks)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.exchanges = nn.ModuleList(
            SetExchange(width, exchange_channels) if exchange_channels else NoExchange() for _ in blocks
        )
        self.conv_out = nn.Conv3d(width, latent_channels, 3, padding=1)
        for last in [self.conv_out, *(block.conv2 for block in blocks)]:
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def forward(
        self,
        latent: Tensor,
        target: Tensor,
        context: Tensor | None = None,
        position: Tensor | None = None,
        num_sources: int = 1,
    ) -> Tensor:
        """Target-like latent (B, L, h, w, d).

        Args:
            latent: (B, L, h, w, d), the source's or a crop of it.
            target: (B,) int64.
            context: voxels (B, L, N) of the whole source's latent, where ``latent`` is a crop.
            position: coordinates (B, 3, h, w, d) of the crop in the whole, see :func:`coordinates`.
            num_sources: of each subject; the latents of a subject lie side by side in the batch.
        """
        h = self.conv_in(latent)
        if self.summary is not None:
            h = h + self.summarize(latent.flatten(2) if context is None else context)[:, :, None, None, None]
        if self.position is not None:
            if position is None:
                position = coordinates(latent.shape[2], latent.shape[3], latent.shape[4])
            h = h + self.position(position.to(h))
        for exchange, block in zip(self.exchanges, self.blocks):  # noqa: B905  TorchScript knows no strict
            h = block(exchange(h, num_sources), target)
        return latent + self.conv_out(h)

    @torch.jit.export
    def summarize(self, voxels: Tensor) -> Tensor:
        """Summary (B, width) of the voxels (B, L, N) of a whole source; nothing, (B, 0), without one."""
        if self.summary is None:
            return voxels.new_zeros(voxels.shape[0], 0)
        return self.summary(voxels)
