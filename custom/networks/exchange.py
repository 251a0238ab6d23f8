"""What the sources of a set tell one another on their way to the target's style."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NoExchange", "SetExchange", "exchanges_sources"]


class SetExchange(nn.Module):
    """Adds to each source's features at a voxel what those of all sources say there, in any order and number.

    Features of every source are averaged over the set; a perceptron that sees them beside the source's own gives what
    is added. The blocks behind it can then tell tissues apart that one contrast alone cannot. Training starts from no
    change.

    Args:
        channels: channels C of the features.
        hidden_channels: of the perceptron.

    Source: permutation-equivariant layers, Zaheer et al. 2017 (https://arxiv.org/abs/1703.06114).
    """

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.member = nn.Conv3d(channels, hidden_channels, 1)
        self.own = nn.Conv3d(channels, hidden_channels, 1)
        self.set = nn.Conv3d(hidden_channels, hidden_channels, 1)
        self.out = nn.Conv3d(hidden_channels, channels, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, h: Tensor, num_sources: int) -> Tensor:
        """Features (B · S, C, h, w, d) of the S = ``num_sources`` of each subject, which lie side by side.

        Of a single source they are ``h`` itself.
        """
        if num_sources == 1:
            return h
        members = F.silu(self.member(h)).unflatten(0, [h.shape[0] // num_sources, num_sources])
        of_set = self.set(members.mean(dim=1)).repeat_interleave(num_sources, dim=0)
        return h + self.out(F.silu(self.own(h) + of_set))


class NoExchange(nn.Module):
    """Each source by itself."""

    def forward(self, h: Tensor, num_sources: int) -> Tensor:
        return h


def exchanges_sources(network: nn.Module) -> bool:
    """Whether the sources of a set tell one another something anywhere in ``network``."""
    return any(isinstance(module, SetExchange) for module in network.modules())
