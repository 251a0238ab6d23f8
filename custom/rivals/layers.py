"""Networks that several rivals share: U-Net and residual generator, and the PatchGAN of 70 pixels.

Source: Isola et al. 2017 (https://arxiv.org/abs/1611.07004), Zhu et al. 2017 (https://arxiv.org/abs/1703.10593), and
the authors' code of both (https://github.com/junyanz/pytorch-CycleGAN-and-pix2pix), which counts where they differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from monai.networks.layers import Conv
from monai.networks.layers.utils import get_norm_layer
from monai.networks.nets import PatchDiscriminator
from monai.networks.utils import normal_init
from torch import Tensor, nn

__all__ = [
    "SIZES",
    "ResidualBlock",
    "ResidualGenerator",
    "UNetGenerator",
    "UnrolledConv3d",
    "patch_discriminator",
    "sized",
]

SIZES = ("original", "small")


def sized(table: Mapping[str, Mapping[str, Any]], size: str) -> Mapping[str, Any]:
    """The widths of a size.

    Raises:
        ValueError: for an unknown size.
    """
    if size not in table:
        raise ValueError(f"size: expected one of {', '.join(table)}; found {size!r}. Correct it.")
    return table[size]


def _norm(name: str, spatial_dims: int, channels: int) -> nn.Module:
    """``"batch"``: with weights and running statistics; ``"instance"``: with neither."""
    return get_norm_layer(name, spatial_dims, channels)


class _Down(nn.Sequential):
    """LeakyReLU, halving convolution, normalisation."""

    def __init__(self, dims: int, inputs: int, outputs: int, norm: str, bias: bool, *, first: bool, last: bool) -> None:
        layers: list[nn.Module] = [] if first else [nn.LeakyReLU(0.2)]
        layers.append(Conv[Conv.CONV, dims](inputs, outputs, 4, stride=2, padding=1, bias=bias))
        if not first and not last:
            layers.append(_norm(norm, dims, outputs))
        super().__init__(*layers)


class _Up(nn.Sequential):
    """ReLU, doubling convolution, normalisation and dropout; the last of them ends in tanh."""

    def __init__(self, dims: int, inputs: int, outputs: int, norm: str, bias: bool, dropout: float) -> None:
        layers = [nn.ReLU(), Conv[Conv.CONVTRANS, dims](inputs, outputs, 4, stride=2, padding=1, bias=bias)]
        layers += [_norm(norm, dims, outputs)] if norm else [nn.Tanh()]
        super().__init__(*layers, *([nn.Dropout(dropout)] if dropout > 0 else []))


class UNetGenerator(nn.Module):
    """The U-Net of Pix2Pix: an encoder's map is concatenated at every level, activations come before convolutions.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image and planes beside it.
        width: channels of the first level; every level doubles them up to eight times.
        halvings: levels; sides must be divisible by two to this power.
        norm: ``"batch"`` or ``"instance"``.
        bias: of all convolutions, not the last alone.
        dropout: of the up levels above the innermost whose inputs are not halved, as in the authors' code.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        width: int,
        halvings: int,
        norm: str = "batch",
        bias: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(halvings)]
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for i, channels in enumerate(widths):
            inputs = widths[i - 1] if i else in_channels
            ends = {"first": i == 0, "last": i == halvings - 1}
            self.downs.append(_Down(spatial_dims, inputs, channels, norm, bias, **ends))
        for i in reversed(range(halvings)):
            innermost, outermost = i == halvings - 1, i == 0
            inputs = widths[i] * (1 if innermost else 2)
            dropped = dropout if 4 <= i < halvings - 1 else 0.0
            outputs = 1 if outermost else widths[i - 1]
            self.ups.append(_Up(spatial_dims, inputs, outputs, "" if outermost else norm, bias or outermost, dropped))
        self.apply(normal_init)

    def forward(self, x: Tensor) -> Tensor:
        """Image (N, 1, *spatial) in [-1, 1] of ``x`` (N, in_channels, *spatial)."""
        maps: list[Tensor] = []
        for down in self.downs:
            x = down(x)
            maps.append(x)
        maps.pop()
        for up in self.ups:
            x = up(x)
            if len(maps) > 0:
                x = torch.cat([maps.pop(), x], dim=1)
        return x


class ResidualBlock(nn.Module):
    """Two reflect-padded convolutions and the input added, nothing after the sum."""

    def __init__(self, spatial_dims: int, channels: int, norm: str, *, bias: bool = True) -> None:
        super().__init__()

        def conv() -> nn.Module:
            return Conv[Conv.CONV, spatial_dims](channels, channels, 3, padding=1, padding_mode="reflect", bias=bias)

        norms = [_norm(norm, spatial_dims, channels) for _ in range(2)]
        self.layers = nn.Sequential(conv(), norms[0], nn.ReLU(), conv(), norms[1])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class UnrolledConv3d(nn.Conv3d):
    """A wide convolution from or to one channel, its first axis taken for channels; parameters and result are the same.

    PyTorch's kernels vectorise over channels, so with one of them they are slow, and their backward pass slower still:
    of 7³ voxels with 8 channels at the other end (bfloat16, one core) this is 2 to 6 times as fast.

    Args:
        in_channels, out_channels: one of them is 1.
        kernel_size, padding, padding_mode, bias: as for ``torch.nn.Conv3d``, equal along all axes.

    Raises:
        ValueError: for several channels at both ends.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        padding: int = 0,
        padding_mode: Literal["zeros", "reflect"] = "zeros",
        bias: bool = True,
    ) -> None:
        if 1 not in (in_channels, out_channels):
            raise ValueError(
                f"in_channels, out_channels: expected one of them to be 1; found {in_channels}, {out_channels}. Take "
                "torch.nn.Conv3d."
            )
        super().__init__(in_channels, out_channels, kernel_size, padding=padding, padding_mode=padding_mode, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """What ``torch.nn.Conv3d`` of stride 1 gives for ``x`` (N, C, H, W, D)."""
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        x = F.pad(x, self._reversed_padding_repeated_twice, mode=mode)
        taps = self.kernel_size[0]
        planes = x.shape[2] - taps + 1
        if self.in_channels == 1:
            shifted = torch.cat([x[:, :, k : k + planes] for k in range(taps)], dim=1)
            return F.conv3d(shifted, self.weight.transpose(1, 2).flatten(1, 2).unsqueeze(2), self.bias)
        of_taps = F.conv3d(x, self.weight[0].transpose(0, 1).unsqueeze(2))
        y = torch.stack([of_taps[:, k, k : k + planes] for k in range(taps)]).sum(dim=0).unsqueeze(1)
        bias = self.bias
        return y if bias is None else y + bias.to(y.dtype)


def _wide(spatial_dims: int, inputs: int, outputs: int, *, bias: bool = True) -> nn.Module:
    """The convolution of seven voxels, reflect-padded, at either end of the generator."""
    fast = spatial_dims == 3 and 1 in (inputs, outputs)
    conv = UnrolledConv3d if fast else Conv[Conv.CONV, spatial_dims]
    return conv(inputs, outputs, 7, padding=3, padding_mode="reflect", bias=bias)


class ResidualGenerator(nn.Module):
    """The generator of CycleGAN: two halvings, residual blocks, two doublings, no skips between them.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image and planes beside it.
        width: channels at full resolution; four times as many at the bottom.
        blocks: residual blocks, or the blocks themselves.
        norm: ``"instance"``, with biases of convolutions, or ``"batch"``, without.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, *, width: int, blocks: int | list[nn.Module], norm: str = "instance"
    ) -> None:
        super().__init__()
        conv, transposed = Conv[Conv.CONV, spatial_dims], Conv[Conv.CONVTRANS, spatial_dims]
        bias = norm == "instance"
        layers: list[nn.Module] = [
            _wide(spatial_dims, in_channels, width, bias=bias),
            _norm(norm, spatial_dims, width),
            nn.ReLU(),
        ]
        for inputs in (width, 2 * width):
            layers.append(conv(inputs, 2 * inputs, 3, stride=2, padding=1, bias=bias))
            layers += [_norm(norm, spatial_dims, 2 * inputs), nn.ReLU()]
        bottom = (
            [ResidualBlock(spatial_dims, 4 * width, norm, bias=bias) for _ in range(blocks)]
            if isinstance(blocks, int)
            else blocks
        )
        self.head = nn.Sequential(*layers)
        self.blocks = nn.ModuleList(bottom)
        layers = []
        for inputs in (4 * width, 2 * width):
            layers.append(transposed(inputs, inputs // 2, 3, stride=2, padding=1, output_padding=1, bias=bias))
            layers += [_norm(norm, spatial_dims, inputs // 2), nn.ReLU()]
        self.tail = nn.Sequential(*layers, _wide(spatial_dims, width, 1), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        """Image (N, 1, *spatial) in [-1, 1] of ``x`` (N, in_channels, *spatial), sides divisible by 4."""
        x = self.head(x)
        for block in self.blocks:
            x = block(x)
        return self.tail(x)


def patch_discriminator(
    spatial_dims: int, in_channels: int, *, width: int = 64, norm: str = "batch", bias: bool = False
) -> PatchDiscriminator:
    """The PatchGAN whose logits see 70 pixels along an axis; of its list of maps the last are the logits."""
    return PatchDiscriminator(
        spatial_dims=spatial_dims, channels=width, in_channels=in_channels, num_layers_d=3, norm=norm.upper(), bias=bias
    )
