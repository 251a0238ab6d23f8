"""Tests of custom.commands.summary."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import custom.commands.summary
import custom.training.memory
import custom.utils.bundle
from custom.commands.summary import Row, count_flops, preset_network, summarize, summary, training_memory
from custom.networks.weights import compact
from custom.utils.bundle import config_folder


def named(rows: list[Row]) -> dict[tuple[str, str], Row]:
    return {(row.section, row.name): row for row in rows}


@pytest.fixture(scope="module")
def small() -> dict[tuple[str, str], Row]:
    return named(summarize("small", (32, 48, 64)))


@pytest.mark.parametrize("groups", [1, 2])
def test_flops_of_a_convolution(groups: int) -> None:
    convolution = nn.Conv3d(4, 6, 3, padding=1, groups=groups, device="meta")
    counted = count_flops(lambda: convolution(torch.empty(2, 4, 5, 6, 7, device="meta")))
    assert counted == 2 * (2 * 5 * 6 * 7) * 6 * (4 // groups) * 27


def test_flops_of_attention() -> None:
    q = torch.empty(1, 2, 50, 8, device="meta")
    assert count_flops(lambda: nn.functional.scaled_dot_product_attention(q, q, q)) == 2 * (2 * 2 * 50 * 50 * 8)


def test_parts_add_up(small) -> None:
    network = preset_network("small")
    parts = ("encoder", "codebook", "decoder", "MS-SPADE", "fusion of sources", "UNet", "detail transfer")
    assert sum(small["parameters", part].value for part in parts) == small["parameters", "all"].value
    assert small["parameters", "all"].value == sum(p.numel() for p in network.parameters())
    assert small["parameters", "codebook"].value == network.autoencoder.bottleneck.embedding.weight.numel()


def test_size_of_the_weights(small) -> None:
    state = preset_network("small").state_dict()
    stored = compact({name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in state.items()})
    expected = sum(t.numel() * t.element_size() for t in stored.values()) / 1e6
    assert small["parameters", "model.pt"].value == expected
    assert expected < 25


def test_shapes(small) -> None:
    assert small["shapes", "image"].value == (1, 32, 48, 64)
    assert small["shapes", "latent"].value == (32, 8, 12, 16)


def test_quantiser_compares_every_voxel_with_every_code(small) -> None:
    assert small["arithmetic", "quantise"].value == 2 * (8 * 12 * 16) * 4096 * 16 / 1e9


def test_translation_is_the_sum_of_its_steps(small) -> None:
    once = sum(
        small["arithmetic", name].value for name in ("encode", "quantise", "MS-SPADE", "decode", "detail transfer")
    )
    total = once + small["arithmetic", "one UNet step"].value
    assert small["arithmetic", "one translation, 1 step"].value == pytest.approx(total)


@pytest.mark.slow
def test_convolutional_parts_grow_with_the_volume(small) -> None:
    larger = named(summarize("small", (64, 96, 128)))
    for name in ("encode", "quantise", "MS-SPADE", "decode", "detail transfer"):
        # MS-SPADE's summary of the source ends in linear layers, 0.1 MFLOP whatever the volume
        assert larger["arithmetic", name].value == pytest.approx(8 * small["arithmetic", name].value, rel=1e-4)


@pytest.mark.slow
def test_release_at_its_own_size() -> None:
    """Counted on the authors' released network: 2.3, 0.85, 0.75 and 5.7 TFLOP."""
    rows = named(summarize("release", (144, 192, 144)))
    expected = {"encode": 2300, "MS-SPADE": 850, "one UNet step": 750, "decode": 5700}
    for name, gflop in expected.items():
        assert rows["arithmetic", name].value == pytest.approx(gflop, rel=0.03)


def test_nothing_is_allocated() -> None:
    network = preset_network("paper")
    assert all(t.is_meta for t in network.state_dict().values())


@pytest.mark.slow
def test_table(capsys) -> None:
    summary("small", (32, 32, 32), training=False)
    printed = capsys.readouterr().out
    for text in ("preset small", "parameters", "UNet", "32 × 8 × 8 × 8", "GFLOP", "MB"):
        assert text in printed
    assert not any(line.endswith(" ") for line in printed.splitlines())


@pytest.mark.slow
def test_memory_of_each_stage_and_the_card_for_it(monkeypatch, capsys) -> None:
    asked = []

    def used(configs: list[Path], size: tuple[int, ...], *, like_cuda: bool, gradient_checkpointing: bool) -> int:
        asked.append(([path.name for path in configs], size))
        return 10**9 * (10 if gradient_checkpointing else 100)

    monkeypatch.setattr(custom.training.memory, "step_memory", used)
    rows = training_memory("paper", (64, 64, 64))
    assert [row.value for row in rows] == [100.0, 10.0] * 3
    assert [row.unit for row in rows] == ["GB: more than a card of 80 GB", "GB: card of 16 GB"] * 3
    assert asked[0] == (["train_autoencoder.json", "preset_paper.json"], (64, 64, 64))
    summary("small", (64, 64, 64))
    assert "3, diffusion, gradient checkpointing" in capsys.readouterr().out
    with pytest.raises(ValueError, match="size: expected three positive multiples of 16"):
        training_memory("small", (30, 32, 32))


@pytest.mark.parametrize("size", [(30, 32, 32), (32, 32), (32, 32, 0), (32, 32, 32.0), (16, 16, -16)])
def test_sizes_that_do_not_fit(size: tuple) -> None:
    with pytest.raises(ValueError, match=r"size: expected three positive multiples of 16.*found"):
        summarize("small", size)


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match="preset: expected one of small, paper, release; found 'huge'"):
        summarize("huge", (32, 32, 32))


@pytest.mark.parametrize("layout", ["bundle/configs", "configs"])
def test_configs_in_the_tree_or_in_a_packaged_bundle(tmp_path: Path, monkeypatch, layout: str) -> None:
    monkeypatch.setattr(custom.utils.bundle, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected bundle/configs/inference\.json or configs/inference\.json"):
        config_folder()
    (tmp_path / layout).mkdir(parents=True)
    (tmp_path / layout / "inference.json").touch()
    assert config_folder() == tmp_path / layout
