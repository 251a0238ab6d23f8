"""Tests of custom.networks.vqgan."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from custom.networks import VQGAN, KLBottleneck, SelfAttentionBlock, VectorQuantizer
from custom.networks.fast import accelerate
from custom.training.latents.cache import Codebooks


def vqgan(**settings) -> VQGAN:
    defaults = {"num_res_blocks": [1, 1], "norm_num_groups": 2, "haar_levels": 1}
    return VQGAN([4, 4], 3, 16, **{**defaults, **settings})


def image(batch: int = 2, edge: int = 8) -> Tensor:
    return torch.rand(batch, 1, edge, edge, edge) * 2 - 1


@pytest.mark.parametrize(
    ("channels", "haar_levels", "downsampling"),
    [([4], 0, 1), ([4, 8], 0, 2), ([4], 1, 2), ([4], 2, 4), ([4, 4, 8], 0, 4), ([4, 4], 1, 4), ([4, 4], 2, 8)],
)
def test_shapes(channels: list[int], haar_levels: int, downsampling: int) -> None:
    network = VQGAN(
        channels, 3, 16, num_res_blocks=[1] * len(channels), norm_num_groups=2, haar_levels=haar_levels
    ).eval()
    assert network.downsampling == downsampling
    x = torch.randn(2, 1, 16, 8, 24)
    latent = network.encode(x)
    assert latent.shape == (2, 3, 16 // downsampling, 8 // downsampling, 24 // downsampling)
    assert network.decode(latent).shape == x.shape
    reconstruction, quantized = network(x)
    assert reconstruction.shape == x.shape
    assert quantized.indices.shape == (2, *latent.shape[2:])


def test_forward_is_encode_quantise_decode() -> None:
    network, x = vqgan().eval(), image()
    reconstruction, quantized = network(x)
    expected = network.quantize(network.encode(x))
    assert torch.equal(quantized.latent, expected.latent)
    assert torch.equal(reconstruction, network.decode(expected.latent))


def test_final_activation() -> None:
    network = vqgan(final_activation=True)
    for half in (network.encoder, network.decoder):
        norm, activation, convolution = half.blocks[-3:]
        assert isinstance(norm, torch.nn.GroupNorm)
        assert isinstance(activation, torch.nn.SiLU)
        assert convolution.conv.weight.ndim == 5


ATTENTIVE = {"attention_levels": [False, True], "nonlocal_attention": True}


def test_attention_is_behind_every_residual_block_and_at_the_bottom() -> None:
    network = vqgan(**ATTENTIVE)
    for half in (network.encoder, network.decoder):
        assert sum(isinstance(block, SelfAttentionBlock) for block in half.blocks) == 2


@pytest.mark.parametrize(("lower", "upper"), [(0.0, 1.0), (-3.0, 5.0)])
def test_intensity_range_is_that_of_the_inner_network(lower: float, upper: float) -> None:
    network, inner = vqgan(intensity_range=[lower, upper]), vqgan()
    inner.load_state_dict(network.state_dict())
    x = image()
    expected = inner.encode((x + 1) / 2 * (upper - lower) + lower)
    torch.testing.assert_close(network.encode(x), expected)
    decoded = network.decode(expected)
    torch.testing.assert_close((decoded + 1) / 2 * (upper - lower) + lower, inner.decode(expected))


def test_intensity_range_counts_as_structure() -> None:
    assert repr(vqgan(intensity_range=[-1, 1])) == repr(vqgan())
    assert "intensity_range=(0.0, 1.0)" in repr(vqgan(intensity_range=[0, 1]))


def test_intensity_range_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"intensity_range: expected a lower and a higher number, found \[1, 0\]"):
        vqgan(intensity_range=[1, 0])


def test_codebooks_are_the_bottleneck_s_own() -> None:
    with pytest.raises(ValueError, match=r"num_codebooks: expected it in the bottleneck.*found 2 beside one"):
        VQGAN([8], 4, num_codebooks=2, bottleneck=VectorQuantizer(16, 4), norm_num_groups=4)


def test_decoder_may_be_deeper() -> None:
    plain, deeper = vqgan(), vqgan(decoder_num_res_blocks=[2, 2])
    assert len(deeper.decoder.blocks) == len(plain.decoder.blocks) + 2
    assert len(deeper.encoder.blocks) == len(plain.encoder.blocks)


def test_batch_equals_items(check_batch) -> None:
    network = vqgan().eval()
    check_batch(lambda x: network(x)[0], image(3))


def test_gradients() -> None:
    network = vqgan().double()
    x = image(1, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(network.encode, x, fast_mode=True)
    latent = torch.randn(1, 3, 1, 2, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(network.decode, latent, fast_mode=True)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_every_parameter_learns(update: str, check_learning) -> None:
    network = vqgan(bottleneck=VectorQuantizer(4, 3, update=update))
    reconstruction, quantized = network(image())
    frozen = ("bottleneck.embedding.weight",) if update == "ema" else ()
    check_learning(network, torch.cat([reconstruction.flatten(), quantized.loss.view(1)]), frozen)


@pytest.mark.parametrize("bottleneck", [None, KLBottleneck], ids=["vq", "kl"])
def test_state_dict_round_trip(bottleneck, check_state_dict) -> None:
    def make() -> torch.nn.Module:
        return Reconstruction(vqgan(bottleneck=bottleneck and bottleneck(3)))

    check_state_dict(make, image())


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_codebooks": 3}, {"bottleneck": KLBottleneck(3)}, ATTENTIVE, {"intensity_range": [0, 1]}],
    ids=["vq", "codebooks", "kl", "attention", "range"],
)
def test_script_equals_eager(settings, check_script) -> None:
    check_script(Reconstruction(vqgan(**settings)), image())


class Reconstruction(torch.nn.Module):
    """The reconstruction alone."""

    def __init__(self, network: VQGAN) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[0]


def test_kl_variant_has_the_same_interface(check_learning) -> None:
    network, x = vqgan(bottleneck=KLBottleneck(3)), image()
    latent = network.encode(x)
    assert latent.shape == (2, 6, 2, 2, 2)
    quantized = network.quantize(latent)
    assert quantized.latent.shape == (2, 3, 2, 2, 2)
    assert quantized.indices.numel() == 0
    assert not torch.equal(quantized.latent, network.quantize(latent).latent)
    network.eval()
    assert torch.equal(network.quantize(latent).latent, latent[:, :3])
    reconstruction, _ = network.train()(x)
    assert reconstruction.shape == x.shape
    check_learning(network, reconstruction)


@pytest.mark.parametrize(
    ("mean", "log_var", "divergence"), [(0.0, 0.0, 0.0), (2.0, 0.0, 2.0), (0.0, 1.0, (2.718281828 - 2) / 2)]
)
def test_kl_divergence(mean: float, log_var: float, divergence: float) -> None:
    moments = torch.cat([torch.full((1, 2, 2, 2, 2), mean), torch.full((1, 2, 2, 2, 2), log_var)], dim=1)
    found = KLBottleneck(2, kl_weight=0.5).eval()(moments).loss
    torch.testing.assert_close(found, torch.tensor(0.5 * divergence))


def with_scalars(channels: int = 3, **settings) -> VQGAN:
    torch.manual_seed(0)
    network = VQGAN(
        [4], 4, 16, num_res_blocks=[1], norm_num_groups=2, haar_levels=2, scalar_channels=channels, **settings
    ).eval()
    with torch.no_grad():  # orthonormal directions, as they are fitted
        directions = torch.linalg.qr(torch.randn(64, channels))[0]
        network.projection.weight.copy_(directions.T[:, :, None, None, None])
        network.expansion.weight.copy_(directions[:, :, None, None, None])
    return network


@torch.no_grad()
@pytest.mark.parametrize("num_codebooks", [1, 2])
def test_the_decoded_image_has_the_scalar_channels_of_the_latent(num_codebooks: int) -> None:
    """Whatever the decoder makes of the codes, and nothing else of its image is changed."""
    network, x = with_scalars(num_codebooks=num_codebooks), image(edge=16)
    latent = network.encode(x)
    assert latent.shape == (2, 4 + 3, 4, 4, 4)
    assert network.latent_channels == 7
    decoded = network.decode(latent)
    torch.testing.assert_close(network.encode(decoded)[:, 4:], latent[:, 4:], rtol=0, atol=1e-5)
    plain = network.haar.inverse(network.decoder(network.post_quant_conv(latent[:, :4])))
    change = network.haar(decoded - plain)
    directions = network.expansion.weight.flatten(1)
    across = change.flatten(2) - directions @ (directions.T @ change.flatten(2))
    torch.testing.assert_close(across, torch.zeros_like(across), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_share_of_the_correction() -> None:
    network, x = with_scalars(), image(edge=16)
    latent = network.encode(x)
    none, part, whole = (network.decode(latent, share) for share in (0.0, 0.3, 1.0))
    assert (whole - none).abs().max() > 0.1
    torch.testing.assert_close(part, torch.lerp(none, whole, 0.3))
    assert torch.equal(whole, network.decode(latent))


@torch.no_grad()
@pytest.mark.parametrize("num_codebooks", [1, 2])
def test_scalar_channels_are_rounded_to_levels(num_codebooks: int) -> None:
    network = with_scalars(num_codebooks=num_codebooks)
    latent = network.encode(image(edge=16))
    latent[:, 4] = 100.0  # beyond the last level
    quantized = network.quantize(latent)
    codes = network.bottleneck(latent[:, :4])
    assert torch.equal(quantized.latent[:, :4], codes.latent)
    assert quantized.loss == codes.loss
    assert (quantized.latent[:, 5:] - latent[:, 5:]).abs().max() <= 1 / 32
    assert (quantized.latent[:, 4] == 127 / 16).all()
    assert quantized.indices.shape == (2, num_codebooks + 3, 4, 4, 4)
    assert int(quantized.indices[:, num_codebooks:].min()) >= 0
    assert int(quantized.indices.amax()) <= 255
    again = Codebooks.of(network).embed(quantized.indices)
    # the quantiser adds z + (e - z), which rounds
    torch.testing.assert_close(again, quantized.latent, rtol=0, atol=1e-5)


def test_gradients_pass_the_rounding() -> None:
    network, x = with_scalars(), image(edge=16)
    network.train()
    reconstruction, _ = network(x)
    reconstruction.square().mean().backward()
    assert network.projection.weight.grad.abs().sum() > 0
    assert network.expansion.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_scalar_channels_beside_a_gaussian_latent() -> None:
    network = with_scalars(bottleneck=KLBottleneck(4))
    quantized = network.quantize(network.encode(image(edge=16)))
    assert quantized.latent.shape == (2, 7, 4, 4, 4)
    assert quantized.indices.numel() == 0


@torch.no_grad()
def test_untrained_scalar_channels_change_nothing() -> None:
    torch.manual_seed(0)
    plain = VQGAN([4], 4, 16, num_res_blocks=[1], norm_num_groups=2, haar_levels=2).eval()
    torch.manual_seed(0)
    network = VQGAN([4], 4, 16, num_res_blocks=[1], norm_num_groups=2, haar_levels=2, scalar_channels=2).eval()
    x = image(edge=16)
    assert torch.equal(network(x)[0], plain(x)[0])
    assert not network.encode(x)[:, 4:].any()


@torch.no_grad()
def test_scalar_channels_can_be_scripted_and_accelerated() -> None:
    network, x = with_scalars(), image(batch=1, edge=16)
    expected, quantized = network(x)
    found, of_script = torch.jit.script(network)(x)
    torch.testing.assert_close(found, expected)
    assert torch.equal(of_script.indices, quantized.indices)
    with accelerate(network):
        torch.testing.assert_close(network.decode(quantized.latent), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("channels", "haar_levels"), [([4, 4], 1), ([4], 0)])
def test_scalar_channels_need_haar_levels_alone(channels: list[int], haar_levels: int) -> None:
    with pytest.raises(ValueError, match=r"scalar_channels: expected 0, .* found 2 with"):
        VQGAN(
            channels, 4, 16, num_res_blocks=[1] * len(channels), norm_num_groups=2, haar_levels=haar_levels,
            scalar_channels=2,
        )  # fmt: skip
