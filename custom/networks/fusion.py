"""Fusion of a set: what several sources say about one voxel, in any order and number."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from custom.networks.ms_spade import SwitchableConv3d

__all__ = ["MeanFusion", "SetAttention", "SourceFusion", "deviation", "mean_of"]

GAIN = 10.0  # of the scores: an optimiser's steps are of one size for all weights, and these begin at zero
# estimates of one latent differ by some tenths, where latents have a standard deviation of about 1; unscaled, the
# fusion gained half as much over the plain mean in 1200 steps
DIFFERENCE_GAIN = 6.0


def mean_of(members: list[Tensor]) -> Tensor:
    """Mean of ``members``, all of one shape, without a copy of them all."""
    total = members[0]
    for member in members[1:]:
        total = total + member
    return total / len(members)


def deviation(members: list[Tensor], center: Tensor) -> Tensor:
    """Mean absolute deviation of ``members``, each (B, C, h, w, d), from ``center``.

    Not the root of the variance, whose gradient has no bound where members are equal, as they are in the background.
    """
    total = torch.zeros_like(center)
    for member in members:
        total = total + (member - center).abs()
    return total / len(members)


class SetAttention(nn.Module):
    """Weights of the members of a set, voxel by voxel and for each group of channels; they add up to 1.

    A small network sees each member beside the set's mean and deviation, in the manner of the target. Training starts
    from equal weights.

    Args:
        num_modalities: size of the vocabulary.
        channels: channels C of a member.
        hidden_channels: features of a member at a voxel.
        heads: groups of channels that have weights of their own.

    Raises:
        ValueError: if the features cannot be parted among the heads.

    Source: attention-based pooling, Ilse et al. 2018 (https://arxiv.org/abs/1802.04712).
    """

    def __init__(self, num_modalities: int, channels: int, hidden_channels: int, *, heads: int) -> None:
        super().__init__()
        if hidden_channels % heads:
            raise ValueError(f"heads: expected a divisor of {hidden_channels} hidden channels; found {heads}.")
        self.heads = heads
        self.gain = GAIN  # TorchScript sees no globals
        self.member = SwitchableConv3d(num_modalities, channels, hidden_channels, 1)
        self.set = SwitchableConv3d(num_modalities, 2 * channels, hidden_channels, 1)
        self.scores = SwitchableConv3d(num_modalities, hidden_channels, heads, 1)
        for parameter in self.scores.parameters():
            nn.init.zeros_(parameter)

    def forward(self, members: list[Tensor], target: Tensor) -> tuple[list[Tensor], Tensor]:
        """The weights of each member (B, heads, h, w, d), and the set's features (B, hidden_channels, h, w, d).

        Args:
            members: each (B, C, h, w, d).
            target: (B,) int64 modality indices.
        """
        mean = mean_of(members)
        of_set = self.set(torch.cat([mean, deviation(members, mean)], dim=1), target)
        features = [F.silu(self.member(member, target) + of_set) for member in members]
        scores = torch.stack([self.gain * self.scores(feature, target).float() for feature in features])
        weights = list(torch.softmax(scores, dim=0).to(mean.dtype).unbind(0))
        return weights, self.weighted(features, weights)

    def weighted(self, values: list[Tensor], weights: list[Tensor]) -> Tensor:
        """The weighted sum of ``values``, each (B, n · heads, h, w, d)."""
        total = torch.zeros_like(values[0].unflatten(1, (self.heads, -1)))
        for value, weight in zip(values, weights):  # noqa: B905  TorchScript knows no strict
            total = torch.addcmul(total, value.unflatten(1, (self.heads, -1)), weight.unsqueeze(2))
        return total.flatten(1, 2)


class MeanFusion(nn.Module):
    """The plain mean of a set, which needs no training."""

    def forward(
        self, latents: list[Tensor], target_like: list[Tensor], target: Tensor, summaries: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Mean of ``latents`` and of ``target_like``, each (B, L, h, w, d); the rest is not asked for."""
        return mean_of(latents), mean_of(target_like)


class SourceFusion(nn.Module):
    """Fuses the latents of several sources of one subject into one, in any order and number.

    Each source's target-like latent is one estimate of the same thing. What they say together, where they differ and
    which contrast says so, corrects their mean: features of each source at a voxel, modulated by the summary of the
    whole source, which tells one contrast from another, are averaged over the set and become the correction. It is of
    a voxel alone, as a source's surroundings are in its target-like latent already. Training starts from the plain
    mean.

    Args:
        num_modalities: size of the vocabulary.
        latent_channels: channels L of the latent.
        width: features of a source, and of the set, at a voxel.
        summary_channels: length C of the summary that the style transfer gives of a source, see
            ``ResidualStyleTransfer.summarize``; 0 where it gives none.

    Source: permutation-invariant networks, Zaheer et al. 2017 (https://arxiv.org/abs/1703.06114).
    """

    def __init__(
        self, num_modalities: int, latent_channels: int, *, width: int = 64, summary_channels: int = 0
    ) -> None:
        super().__init__()
        self.summary_channels = summary_channels
        self.difference_gain = DIFFERENCE_GAIN  # TorchScript sees no globals
        self.member = SwitchableConv3d(num_modalities, 3 * latent_channels, width, 1)
        self.summary: nn.Module | None = nn.Linear(summary_channels, 2 * width) if summary_channels else None
        self.hidden = SwitchableConv3d(num_modalities, width, width, 1)
        self.set = SwitchableConv3d(num_modalities, width, width, 1)
        self.conv_out = SwitchableConv3d(num_modalities, width, latent_channels, 1)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, latents: list[Tensor], target_like: list[Tensor], target: Tensor, summaries: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Source latent and target-like latent of the set, each (B, L, h, w, d).

        Args:
            latents: of two or more sources, each (B, L, h, w, d).
            target_like: their target-like latents.
            target: (B,) int64 modality indices.
            summaries: of the whole sources, each (B, C).
        """
        mean = mean_of(target_like)
        features = []
        for latent, like, summary in zip(latents, target_like, summaries):  # noqa: B905  TorchScript knows no strict
            difference = self.difference_gain * (like - mean)
            h = self.member(torch.cat([latent, like, difference], dim=1), target)
            features.append(F.silu(self.hidden(F.silu(self._modulated(h, summary)), target)))
        h = F.silu(self.set(mean_of(features), target))
        return mean_of(latents), mean + self.conv_out(h, target)

    def _modulated(self, h: Tensor, summary: Tensor) -> Tensor:
        if self.summary is None:
            return h
        if summary.shape[1] == 0:  # an ablation's style transfer gives none
            return h
        summary = summary * torch.rsqrt(summary.square().mean(dim=1, keepdim=True) + 1e-4)
        gain, offset = self.summary(summary)[:, :, None, None, None].chunk(2, dim=1)
        return (1 + gain) * h + offset
