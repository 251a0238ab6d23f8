"""Tests of custom.networks.fast.acceleration."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import AutoencoderKL
from torch import Tensor, nn

from custom.inference.inferer import TranslationInferer
from custom.networks import (
    VQGAN,
    ConditionalUNet,
    DetailTransfer,
    LatentTranslator,
    ReleaseStyleTransfer,
    ResidualStyleTransfer,
    StyleTransfer,
    SwitchableConv3d,
)
from custom.networks.fast import accelerate
from custom.networks.fast.workspace import current_workspace

TARGET = torch.tensor([1])
SHAPE = (1, 4, 8, 8, 8)
IMAGE = torch.linspace(-1, 1, 16**3).view(1, 1, 16, 16, 16)


def unet() -> tuple[nn.Module, tuple[Tensor, ...]]:
    network = ConditionalUNet(16, 4, 3, channels=[16, 32], attention_levels=[False, True], norm_num_groups=4)
    return network, (torch.randn(1, 16, 8, 8, 8), torch.tensor([3]), TARGET)


def released() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return ReleaseStyleTransfer(3, 4, width=16, hidden_channels=16), (torch.randn(SHAPE), TARGET)


def residual() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return ResidualStyleTransfer(3, 4, width=16), (torch.randn(SHAPE), TARGET)


def paper() -> tuple[nn.Module, tuple[Tensor, ...]]:
    widths = {"in_channels": 16, "res_channels": [16], "spade_channels": [16], "hidden_channels": 16}
    return StyleTransfer(3, 4, **widths), (torch.randn(SHAPE), TARGET)


def detail() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return DetailTransfer(3, width=16), (IMAGE, IMAGE.flip(2), TARGET)


def detail_of_a_set() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return DetailTransfer(3, width=16), (IMAGE, torch.cat([IMAGE.flip(2), -IMAGE], dim=1), TARGET)


def detail_of_levels() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return DetailTransfer(3, width=16, coarser_widths=(24, 24)), (IMAGE, IMAGE.flip(2), TARGET)


NETWORKS = (unet, released, residual, paper, detail, detail_of_a_set, detail_of_levels)


def forwards(network: nn.Module) -> dict[str, Any]:
    """What stands in for forwards, by module."""
    return {name: vars(m)["forward"] for name, m in network.named_modules() if "forward" in vars(m)}


def everything(network: nn.Module) -> list[dict[str, Any]]:
    return [dict(vars(module)) for module in network.modules()]


def assert_near(found: Tensor, expected: Tensor) -> None:
    # float32 by another way: a few in a million of the largest value a layer, which up to eight norms after it enlarge
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5 * expected.abs().max().item())


@pytest.mark.parametrize("make", NETWORKS)
def test_networks_compute_the_same(make: Callable, tiled: list[int], randomize: Callable) -> None:
    network, inputs = make()
    randomize(network)
    with torch.no_grad():
        expected = network(*inputs)
        assert not tiled
        with accelerate(network):
            assert_near(network(*inputs), expected)
        assert tiled
        assert torch.equal(network(*inputs), expected)


def test_autoencoder_computes_the_same(randomize: Callable) -> None:
    network = VQGAN([16, 16], 4, 32, num_res_blocks=[1, 1], norm_num_groups=4, final_activation=True)
    randomize(network).eval()
    with torch.no_grad():
        latent = network.encode(IMAGE)
        image = network.decode(latent)
        with accelerate(network):
            assert_near(network.encode(IMAGE), latent)
            assert_near(network.decode(latent), image)
            assert set(forwards(network)) == {"encoder", "decoder"}


@pytest.mark.parametrize("batch", [1, 2])
def test_switchable_convolution(batch: int, tiled: list[int]) -> None:
    block = ResidualStyleTransfer(3, 4, width=16).blocks[0]
    x, target = torch.randn(batch, 16, 8, 6, 5), torch.tensor([2, 0])[:batch]
    with torch.no_grad():
        expected = block.norm1(x, target)
        with accelerate(block):
            assert_near(block.norm1(x, target), expected)
    assert tiled


def test_undone_after_an_error(tiny_translator: LatentTranslator) -> None:
    before = everything(tiny_translator)

    def fail() -> None:
        with accelerate(tiny_translator):
            assert forwards(tiny_translator)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert everything(tiny_translator) == before
    assert current_workspace() is not current_workspace()


def test_nested(tiny_translator: LatentTranslator) -> None:
    with accelerate(tiny_translator):
        outer, memory = forwards(tiny_translator), current_workspace()
        with accelerate(tiny_translator), accelerate(tiny_translator.autoencoder):
            assert forwards(tiny_translator) == outer
            assert current_workspace() is memory
        assert forwards(tiny_translator) == outer
    assert not forwards(tiny_translator)


def test_the_last_of_overlapping_blocks_restores(tiny_translator: LatentTranslator) -> None:
    first, second = accelerate(tiny_translator), accelerate(tiny_translator)
    with first:
        threads = ThreadPoolExecutor(1)
        threads.submit(second.__enter__).result()
    assert forwards(tiny_translator)
    threads.submit(second.__exit__, None, None, None).result()
    threads.shutdown()
    assert not forwards(tiny_translator)


def test_requests_at_once(tiny_translator: LatentTranslator) -> None:
    """Several translations of one network at the same time, as in a server, are those made one after the other."""
    inferers = [TranslationInferer([target], seed=seed) for target in ("t1", "t2", "flair") for seed in (0, 1)]
    images = [torch.rand((1, 1, 16, 16, 16), generator=torch.Generator().manual_seed(i)) for i in range(len(inferers))]
    expected = [inferer(image, tiny_translator) for inferer, image in zip(inferers, images, strict=True)]
    started = threading.Barrier(len(inferers))

    def request(number: int) -> list[Tensor]:
        started.wait()
        return [inferers[number](images[number], tiny_translator) for _ in range(4)]

    with ThreadPoolExecutor(len(inferers)) as threads:
        answers = list(threads.map(request, range(len(inferers))))
    for found, one in zip(answers, expected, strict=True):
        assert all(torch.equal(image, one) for image in found)
    assert not forwards(tiny_translator)


def test_with_gradients_the_network_computes_as_ever(tiled: list[int]) -> None:
    network, inputs = residual()
    expected = network(*inputs)
    with accelerate(network):
        found = network(*inputs)
    found.sum().backward()
    assert torch.equal(found, expected)
    assert network.conv_in.weight.grad is not None
    assert not tiled


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of MONAI's and torch's own checks of shapes
def test_a_trace_holds_the_plain_operations(tiny_translator: LatentTranslator) -> None:
    def operations() -> list[str]:
        with torch.no_grad():
            traced = torch.jit.trace(tiny_translator.autoencoder.decoder, torch.zeros(1, 4, 4, 4, 4))
        return [node.kind() for node in traced.inlined_graph.nodes()]

    plain = operations()
    assert "aten::group_norm" in plain
    with accelerate(tiny_translator):
        assert operations() == plain


def test_scripts_after_a_translation(tiny_translator: LatentTranslator) -> None:
    TranslationInferer("t2")(IMAGE, tiny_translator)
    script = torch.jit.script(tiny_translator)
    noise = torch.zeros(1, 4, 4, 4, 4)
    with torch.no_grad():
        assert torch.equal(script(IMAGE, TARGET, noise), tiny_translator(IMAGE, TARGET, noise))


def test_a_copy_made_meanwhile_has_weights_of_its_own(tiny_translator: LatentTranslator) -> None:
    network = copy.deepcopy(tiny_translator)
    with torch.no_grad(), accelerate(network):
        twin, expected = copy.deepcopy(network), network.encode(IMAGE)
        for parameter in network.parameters():
            parameter.zero_()
        assert torch.equal(twin.encode(IMAGE), expected)


@pytest.mark.parametrize(
    "network",
    [
        AutoencoderKL(3, 1, 1, (1,), (4,), (False,), latent_channels=2, norm_num_groups=2),
        nn.Sequential(nn.Upsample(scale_factor=2.0), nn.Conv3d(2, 2, 3, padding=1)),
        nn.DataParallel(VQGAN([16], 4, 32, num_res_blocks=[1], norm_num_groups=4)),
        torch.jit.script(SwitchableConv3d(2, 2, 2)),
        lambda image: image,
    ],
    ids=["MONAI's", "plain layers", "replicas", "a script", "a function"],
)
def test_others_are_left_alone(network: object) -> None:
    before = everything(network) if isinstance(network, nn.Module) else vars(network)
    with accelerate(network):
        assert (everything(network) if isinstance(network, nn.Module) else vars(network)) == before


def test_a_forward_that_someone_else_put_there_stays() -> None:
    network = ResidualStyleTransfer(3, 4, width=16)
    network.conv_in.forward = mine = lambda x: x
    with accelerate(network):
        assert network.conv_in.forward is mine
        assert "forward" in vars(network.conv_out)
    assert forwards(network) == {"conv_in": mine}


def test_within_a_wrapper(tiny_translator: LatentTranslator) -> None:
    wrapped = nn.Sequential(tiny_translator)
    with accelerate(wrapped):
        assert {"0.autoencoder.encoder", "0.unet.conv_in"} <= set(forwards(wrapped))
    assert not forwards(wrapped)


def test_networks_do_not_know_of_it() -> None:
    folder = Path(__file__).resolve().parents[3] / "custom" / "networks"
    for file in folder.glob("*.py"):
        assert "networks.fast" not in file.read_text(encoding="utf-8"), file.name
