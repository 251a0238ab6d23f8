"""NICE-GAN, the light version: the discriminator's encoder is the generator's, trained by the discriminator alone.

Source: Chen et al. 2020 (https://arxiv.org/abs/2003.00273) and the authors' code
(https://github.com/alpc91/NICE-GAN-pytorch).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from custom.data.foreground import BACKGROUND
from custom.rivals.layers import sized
from custom.rivals.objective import GanStep, JudgeFirst, RivalObjective, Samples, least_squares
from custom.rivals.rival import Rival
from custom.utils.intensity_scales import PERCENTILE

__all__ = ["NICEGAN", "NICEEncoder", "NICEGANObjective", "SpectralConv2d"]

TABLE: dict[str, dict[str, Any]] = {
    "original": {"width": 64, "blocks": 6, "global_halvings": 2},
    "small": {"width": 24, "blocks": 4, "global_halvings": 1},
}
EPS = 1e-5
AT_START = {True: (3.2, 1.0), False: (1.0, 3.2)}  # before a softmax: 0.90 and 0.10
FIRST_ITERATIONS = 15


class SpectralConv2d(nn.Conv2d):
    """A reflect-padded 4×4 convolution whose kernel, as a matrix, has the spectral norm 1; ``weight`` is not divided.

    PyTorch's ``spectral_norm`` computes the same, but not in TorchScript. A step of the power iteration goes with each
    forward pass in training; kernels of one row need none.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = True, kernel: int = 4):
        super().__init__(in_channels, out_channels, kernel, stride=stride, bias=bias)
        self.margin = (kernel - 1) // 2
        self.left: Tensor
        self.register_buffer("left", F.normalize(torch.randn(out_channels), dim=0))
        self.right: Tensor
        self.register_buffer("right", torch.zeros(self.weight[0].numel()))
        for _ in range(FIRST_ITERATIONS):
            self.iterate()

    def iterate(self) -> None:
        """Bring ``left`` and ``right`` nearer to the singular vectors of the largest singular value."""
        with torch.no_grad():
            matrix = self.weight.flatten(1)
            # sums and not products of matrices, which autocast would compute in bfloat16
            self.right.copy_(F.normalize((matrix * self.left.unsqueeze(1)).sum(0), dim=0, eps=1e-12))
            self.left.copy_(F.normalize((matrix * self.right).sum(1), dim=0, eps=1e-12))

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            self.iterate()
        # copies, as another pass may move them before the gradients are computed
        left, right = self.left.clone(), self.right.clone()
        norm = (left * (self.weight.flatten(1) * right).sum(1)).sum()
        if self.margin > 0:
            input = F.pad(input, [self.margin] * 4, mode="reflect")
        return F.conv2d(input, self.weight / norm, self.bias, self.stride)


class InstanceLayerNorm(nn.Module):
    """``(ρ·instance + (1−ρ)·layer norm)``, ρ learned for each channel, both with unbiased variances.

    Args:
        channels: of the maps.
        adaptive: whether scale and shift are given with each call; else they are learned.
    """

    def __init__(self, channels: int, *, adaptive: bool = False) -> None:
        super().__init__()
        self.eps = EPS
        self.rho = nn.Parameter(torch.tensor(AT_START[adaptive]).repeat(channels, 1))
        self.scale: Tensor | None = None if adaptive else nn.Parameter(torch.ones(1, channels))
        self.shift: Tensor | None = None if adaptive else nn.Parameter(torch.zeros(1, channels))

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Of ``x`` (N, C, H, W), scaled by (N, C): one map a·x + b a channel, so that no more than one is held."""
        flat = x.float().flatten(2)
        share = self.rho.float().softmax(1)
        mean, over_all = flat.mean(2), flat.flatten(1).mean(1, keepdim=True)
        instance = share[:, 0] / (flat.var(2) + self.eps).sqrt()
        layer = share[:, 1] / (flat.flatten(1).var(1, keepdim=True) + self.eps).sqrt()
        factor, offset = instance + layer, -(instance * mean + layer * over_all)
        if scale is None:
            scale, shift = self.scale, self.shift
        assert scale is not None
        assert shift is not None
        factor, offset = factor * scale, offset * scale + shift
        shape = [x.shape[0], x.shape[1], 1, 1]
        return x * factor.view(shape).to(x.dtype) + offset.view(shape).to(x.dtype)


class NICEEncoder(nn.Module):
    """The part of a discriminator that generators start from: two halvings and attention by class activation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 2 * width
        self.layers = nn.Sequential(
            SpectralConv2d(1, width, stride=2), nn.LeakyReLU(0.2), SpectralConv2d(width, inner, stride=2),
            nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.activation = SpectralConv2d(2 * inner, 1, bias=False, kernel=1)
        self.mix = nn.Conv2d(2 * inner, inner, 1)
        self.strength = nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logit (N, 1, 1, 1) of the class activation, and latent (N, 2·width, H/4, W/4)."""
        h = self.layers(image)
        pooled = torch.cat([h.mean((2, 3), keepdim=True), h.amax((2, 3), keepdim=True)], dim=1)
        attended = self.mix(torch.cat([h, h], dim=1) * self.activation.weight)
        return self.activation(pooled), F.leaky_relu(self.strength * attended + h, 0.2)


class NICEDiscriminator(nn.Module):
    """An encoder and two heads on its latent, of receptive fields of 70 and 286 pixels, besides its own logit.

    Args:
        encoder: which a generator may share.
        width: as of the encoder.
        global_halvings: of the second head; 2 need sides of 96 pixels, 1 needs 48.
    """

    def __init__(self, encoder: NICEEncoder, width: int, global_halvings: int) -> None:
        super().__init__()
        self.encoder = encoder
        act = nn.LeakyReLU(0.2)
        shared = 4 * width
        self.trunk = nn.Sequential(SpectralConv2d(2 * width, shared, stride=2), act)
        self.local_head = nn.Sequential(
            SpectralConv2d(shared, 2 * shared), act, SpectralConv2d(2 * shared, 1, bias=False)
        )
        layers: list[nn.Module] = []
        for _ in range(global_halvings):
            layers += [SpectralConv2d(shared, 2 * shared, stride=2), act]
            shared *= 2
        self.global_head = nn.Sequential(
            *layers, SpectralConv2d(shared, 2 * shared), act, SpectralConv2d(2 * shared, 1, bias=False)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits of class activation, local and global head."""
        logit, latent = self.encoder(image)
        h = self.trunk(latent)
        return [logit, self.local_head(h), self.global_head(h)]


def _convolve(inputs: int, outputs: int, kernel: int, *, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, padding_mode="reflect", bias=bias)


class NICEBlock(nn.Module):
    """Two convolutions with norms whose scale and shift come from the latent, and the input added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _convolve(channels, channels, 3), _convolve(channels, channels, 3)
        self.norm1 = InstanceLayerNorm(channels, adaptive=True)
        self.norm2 = InstanceLayerNorm(channels, adaptive=True)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x), scale, shift))
        return x + self.norm2(self.conv2(h), scale, shift)


class NICEGenerator(nn.Module):
    """From the latent of a discriminator's encoder to an image of the other domain."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        channels = 4 * width
        self.head = nn.Sequential(_convolve(2 * width, channels, 3, bias=True), InstanceLayerNorm(channels), nn.ReLU())
        self.style = nn.Sequential(
            nn.Linear(channels, channels, bias=False), nn.ReLU(), nn.Linear(channels, channels, bias=False), nn.ReLU()
        )
        self.scale, self.shift = (nn.Linear(channels, channels, bias=False) for _ in range(2))
        self.blocks = nn.ModuleList(NICEBlock(channels) for _ in range(blocks))
        layers: list[nn.Module] = []
        for inputs in (channels, channels // 2):
            half = inputs // 2
            layers += [
                _convolve(inputs, half, 3), InstanceLayerNorm(half), nn.ReLU(), nn.Conv2d(half, 4 * half, 1),
                nn.PixelShuffle(2), InstanceLayerNorm(half), nn.ReLU(),
            ]  # fmt: skip
        self.tail = nn.Sequential(*layers, _convolve(width, 1, 7), nn.Tanh())

    def forward(self, latent: Tensor) -> Tensor:
        """Image (N, 1, H, W) in [-1, 1] of ``latent`` (N, 2·width, H/4, W/4)."""
        h = self.head(latent)
        style = self.style(h.mean((2, 3)))
        scale, shift = self.scale(style), self.shift(style)
        for block in self.blocks:
            h = block(h, scale, shift)
        return self.tail(h)


class NICEGAN(Rival):
    """NICE-GAN, light: the encoder of the source's discriminator and the generator to the target.

    Args:
        modalities, pair, intensity_scale: as for ``Rival``.
        size: ``"original"``: the published widths; ``"small"``, which also has a global head of one halving less.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        pair: str | Sequence[str] | None,
        size: str = "small",
        *,
        intensity_scale: str = PERCENTILE,
    ) -> None:
        super().__init__(
            modalities, pair, method="nice_gan", spatial_dims=2, divisor=4, smallest=16,
            intensity_scale=intensity_scale, settings={"size": size},
        )  # fmt: skip
        self.widths = dict(sized(TABLE, size))
        # slices that the discriminators take: the global head pads by reflection, which needs two pixels
        self.smallest_slice = 3 * 2 ** (3 + self.widths["global_halvings"])
        self.encoder = NICEEncoder(self.widths["width"])
        self.generator = self.make_generator()

    def make_generator(self) -> NICEGenerator:
        """A generator of this size, untrained."""
        return NICEGenerator(self.widths["width"], self.widths["blocks"])

    def generate(self, x: Tensor) -> Tensor:
        return self.generator(self.encoder(x)[1])

    def make_discriminator(self) -> nn.Module:
        """One for each domain; that of the source shares this network's encoder."""
        width, halvings = self.widths["width"], self.widths["global_halvings"]
        encoders = {"source": self.encoder, "target": NICEEncoder(width)}
        return nn.ModuleDict({k: NICEDiscriminator(encoder, width, halvings) for k, encoder in encoders.items()})


class NICEGANObjective(RivalObjective):
    """Least-squares terms of three heads, cycles and reconstructions of both directions, without pairs.

    The discriminator moves first, its encoder with it, on detached translations; in the generators' step the encoder
    passes gradients on and keeps none.

    Args:
        network: the rival.
        adversarial_weight, cycle_weight, reconstruction_weight: weights of the terms.
    """

    def __init__(
        self,
        network: NICEGAN,
        *,
        adversarial_weight: float = 1.0,
        cycle_weight: float = 10.0,
        reconstruction_weight: float = 10.0,
    ) -> None:
        super().__init__(network, companions={"reverse": network.make_generator()})
        self.weights = (adversarial_weight, cycle_weight, reconstruction_weight)

    def forward(  # type: ignore[override]
        self,
        batch: dict[str, Tensor],
        discriminator: nn.Module | None = None,
        judge_first: JudgeFirst | None = None,
    ) -> GanStep:
        if discriminator is None:
            raise ValueError("discriminator: expected one from the first step on, as the encoder is a part of it.")
        domains: Any = discriminator
        padding = self.rival.padding(batch["image"])  # as for a translation: two halvings must come out even
        x, y = (F.pad(batch[key], padding, value=BACKGROUND) for key in ("image", "label"))
        to_y, to_x = cast(nn.Module, self.rival.generator), self.companions["reverse"]
        if judge_first is not None:
            with torch.no_grad():
                fakes = {"source": to_x(domains["target"].encoder(y)[1]), "target": to_y(self._latent(domains, x))}
            judge_first({"source": (x, fakes["source"]), "target": (y, fakes["target"])})
        latent_x, latent_y = self._latent(domains, x), domains["target"].encoder(y)[1]
        fake_y, fake_x = to_y(latent_x), to_x(latent_y)
        of_fakes = {"source": domains["source"](fake_x), "target": domains["target"](fake_y)}
        back_x = to_x(domains["target"].encoder(fake_y)[1])
        back_y = to_y(domains["source"].encoder(fake_x)[1])
        w_adv, w_cycle, w_rec = self.weights
        adversarial = [least_squares(logits, 1.0) for heads in of_fakes.values() for logits in heads]
        terms = {
            "adversarial": w_adv * torch.stack(adversarial).sum(),
            "cycle": w_cycle * (F.l1_loss(back_x.float(), x) + F.l1_loss(back_y.float(), y)),
            "reconstruction": w_rec * (_l1(to_x(latent_x), x) + _l1(to_y(latent_y), y)),
        }
        return GanStep(terms, {"source": (x, fake_x), "target": (y, fake_y)})

    @staticmethod
    def _latent(domains: Any, image: Tensor) -> Tensor:
        return domains["source"].encoder(image)[1]

    def judge(self, discriminator: nn.Module, samples: Samples) -> Tensor:
        domains: Any = discriminator
        losses = []
        for domain, (real, fake) in samples.items():
            losses += [least_squares(logits, 1.0) for logits in domains[domain](real)]
            losses += [least_squares(logits, 0.0) for logits in domains[domain](fake.detach())]
        return torch.stack(losses).sum()


def _l1(image: Tensor, truth: Tensor) -> Tensor:
    return F.l1_loss(image.float(), truth)
