"""Tests of custom.networks.fast.slabs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from custom.networks import VQGAN
from custom.networks.fast.slabs import run_blocks
from custom.networks.fast.workspace import shared_workspace

LATENT = (2, 4, 5, 6, 4)
IMAGE = (2, 1, 20, 24, 16)


@pytest.fixture
def autoencoder(randomize: Callable[[nn.Module], nn.Module]) -> VQGAN:
    """The release's structure, a few channels wide: widths change on the way up and on the way down."""
    made = VQGAN(
        [8, 8, 16],
        LATENT[1],
        32,
        num_res_blocks=[1, 1, 2],
        decoder_num_res_blocks=[2, 2, 3],
        norm_num_groups=4,
        final_activation=True,
    )
    return randomize(made).eval()


def reference(half: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return half(x)


@pytest.mark.parametrize("planes", [1, 3, 1000])
@pytest.mark.parametrize(("half", "shape"), [("encoder", IMAGE), ("decoder", LATENT)])
def test_equals_the_modules(autoencoder: VQGAN, half: str, shape: tuple[int, ...], planes: int, assert_near) -> None:
    module, x = getattr(autoencoder, half), 3 + torch.randn(shape)
    expected = reference(module, x)
    found = run_blocks(module.blocks, x, slab_elements=planes * 16 * x.shape[3] * x.shape[4])
    assert_near(found, expected)


@pytest.mark.parametrize(("half", "shape"), [("encoder", IMAGE), ("decoder", LATENT)])
def test_equals_the_modules_with_attention(half: str, shape: tuple[int, ...], randomize, assert_near) -> None:
    sizes = {"num_res_blocks": [1, 1, 1], "norm_num_groups": 4, "attention_levels": [False, False, True]}
    network = randomize(VQGAN([8, 8, 16], LATENT[1], 32, **sizes, nonlocal_attention=True)).eval()
    module, x = getattr(network, half), torch.randn(shape)
    assert_near(run_blocks(module.blocks, x, slab_elements=16 * x.shape[3] * x.shape[4]), reference(module, x))


def test_statistics_are_those_of_the_whole_volume(autoencoder: VQGAN, assert_near) -> None:
    """One end of the volume is bright: slabs normalised by themselves would not show it."""
    x = torch.randn(1, 1, 32, 8, 8)
    x[:, :, :8] += 100
    expected = reference(autoencoder.encoder, x)
    found = run_blocks(autoencoder.encoder.blocks, x, slab_elements=1)
    assert_near(found, expected)


def test_input_is_not_changed(autoencoder: VQGAN) -> None:
    x = torch.randn(LATENT)
    before = x.clone()
    run_blocks(autoencoder.decoder.blocks, x)
    assert torch.equal(x, before)


def test_results_do_not_lie_in_shared_memory(autoencoder: VQGAN) -> None:
    x = torch.randn(LATENT)
    with shared_workspace():
        found = run_blocks(autoencoder.decoder.blocks, x)
        kept = found.clone()
        run_blocks(autoencoder.decoder.blocks, x + 1)
    assert torch.equal(found, kept)


def test_largest_temporary_is_bounded(autoencoder: VQGAN, largest_result) -> None:
    """Nothing is larger than one feature map, padded copies of it neither."""
    x, plane = torch.randn(IMAGE[0] // 2, *IMAGE[1:]), 8 * IMAGE[3] * IMAGE[4]
    with largest_result:
        run_blocks(autoencoder.encoder.blocks, x, slab_elements=plane)
    assert largest_result.elements == 8 * IMAGE[2] * IMAGE[3] * IMAGE[4]


def test_small_volumes_take_little_memory(autoencoder: VQGAN, largest_result) -> None:
    """However large a slab may be, it is a plane, row and column larger on either side than its map at most.

    A small map may be held three times over: each plane with its neighbours.
    """
    with largest_result:
        run_blocks(autoencoder.encoder.blocks, torch.randn(1, *IMAGE[1:]))
    assert largest_result.elements <= 3 * 8 * (IMAGE[2] + 2) * (IMAGE[3] + 2) * (IMAGE[4] + 2)


def test_less_arithmetic_than_the_modules(autoencoder: VQGAN) -> None:
    from custom.commands.summary import count_flops

    x = torch.randn(1, *LATENT[1:])
    split, plain = (
        count_flops(lambda: run_blocks(autoencoder.decoder.blocks, x, slab_elements=10**9)),
        count_flops(lambda: autoencoder.decoder(x)),
    )
    assert split < 0.9 * plain


def test_bfloat16(autoencoder: VQGAN) -> None:
    x = torch.randn(1, *LATENT[1:])
    exact = reference(autoencoder.decoder, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, found = reference(autoencoder.decoder, x).float(), run_blocks(autoencoder.decoder.blocks, x)
    assert found.dtype == torch.bfloat16
    # nearly as near to float32 as the modules are: 1.14 to 1.35 times as far, for twelve seeds
    assert (found.float() - exact).std() < 1.6 * (expected - exact).std()


def test_with_gradients_the_modules_run(autoencoder: VQGAN, assert_near) -> None:
    latent = torch.randn(LATENT, requires_grad=True)
    image = autoencoder.decode(latent)
    image.sum().backward()
    assert latent.grad is not None
    with torch.no_grad():
        alone = autoencoder.decode(latent)
    assert_near(alone, image.detach())


def test_other_blocks_are_refused() -> None:
    with pytest.raises(TypeError, match="expected a block of MONAI's Encoder or Decoder"):
        run_blocks([nn.Linear(2, 2)], torch.zeros(1, 1, 2, 2, 2))


@pytest.mark.parametrize("size", [1, 2])
def test_smallest_volumes(autoencoder: VQGAN, size: int, assert_near) -> None:
    x = torch.randn(1, LATENT[1], size, size, size)
    assert_near(run_blocks(autoencoder.decoder.blocks, x), reference(autoencoder.decoder, x))
