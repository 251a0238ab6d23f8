"""Tests of custom.networks.fusion."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from custom.networks import MeanFusion, SourceFusion
from custom.networks.fusion import SetAttention, deviation, mean_of

M, L, S, C = 3, 4, 3, 5
TARGETS = torch.tensor([2, 0])


def latents(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn((2, L, 3, 4, 2), generator=generator) for _ in range(S)]


def summaries(seed: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn((2, C), generator=generator) for _ in range(S)]


@pytest.fixture
def fusion(randomize) -> SourceFusion:
    return randomize(SourceFusion(M, L, width=8, summary_channels=C)).eval()


def inputs() -> tuple[list[Tensor], list[Tensor], Tensor, list[Tensor]]:
    return latents(), latents(1), TARGETS, summaries()


@pytest.mark.parametrize(
    "make", [MeanFusion, lambda: SourceFusion(M, L, width=8, summary_channels=C)], ids=["mean", "untrained"]
)
def test_starts_from_the_plain_mean(make) -> None:
    source, like = make()(*inputs())
    torch.testing.assert_close(source, sum(latents()) / S)
    torch.testing.assert_close(like, sum(latents(1)) / S)


def test_order_does_not_matter(fusion: SourceFusion, assert_near) -> None:
    found, order = fusion(*inputs()), (2, 0, 1)

    def turned(values: list[Tensor]) -> list[Tensor]:
        return [values[k] for k in order]

    again = fusion(turned(latents()), turned(latents(1)), TARGETS, turned(summaries()))
    for one, other in zip(found, again, strict=True):
        assert_near(one, other)
    for mixed in (  # not the same sources
        fusion(latents(), turned(latents(1)), TARGETS, summaries()),
        fusion(latents(), latents(1), TARGETS, turned(summaries())),
    ):
        assert not torch.allclose(mixed[1], found[1])


def test_a_voxel_is_fused_by_itself(fusion: SourceFusion, assert_near) -> None:
    def cut(values: list[Tensor]) -> list[Tensor]:
        return [value[..., 1:2] for value in values]

    part = fusion(cut(latents()), cut(latents(1)), TARGETS, summaries())[1]
    assert_near(part, fusion(*inputs())[1][..., 1:2])


def test_a_scale_of_a_summary_says_nothing(fusion: SourceFusion, assert_near) -> None:
    tripled = fusion(latents(), latents(1), TARGETS, [3 * summary for summary in summaries()])[1]
    # but for the 1e-4 under the root, of a mean square near 1
    assert_near(tripled, fusion(*inputs())[1], tolerance=1e-3)


def test_without_summaries_it_fuses_as_well(randomize) -> None:
    nothing, known = [torch.zeros(2, 0)] * S, SourceFusion(M, L, width=8, summary_channels=C)
    for network in (SourceFusion(M, L, width=8), known):
        found = randomize(network)(latents(), latents(1), TARGETS, nothing)[1]
        assert not torch.allclose(found, sum(latents(1)) / S)


def test_target_counts_and_a_batch_equals_its_items(fusion: SourceFusion, check_batch) -> None:
    stacked = [torch.stack(values, dim=1) for values in (latents(), latents(1), summaries())]

    def fused(source: Tensor, like: Tensor, summary: Tensor, target: Tensor) -> Tensor:
        of_sources = [[*values.unbind(1)] for values in (source, like, summary)]
        return torch.cat(fusion(*of_sources[:2], target, of_sources[2]), dim=1)

    check_batch(fused, *stacked, TARGETS)
    assert not torch.allclose(fused(*stacked, TARGETS), fused(*stacked, TARGETS.flip(0)))


def test_script_equals_eager(fusion: SourceFusion, assert_near) -> None:
    script = torch.jit.script(fusion)
    with torch.no_grad(), torch.jit.optimized_execution(False):
        for one, other in zip(script(*inputs()), fusion(*inputs()), strict=True):
            assert_near(one, other)


def test_every_parameter_gets_a_gradient(fusion: SourceFusion, check_learning) -> None:
    check_learning(fusion, torch.cat(fusion(*inputs())))


def test_it_learns_what_only_the_sources_together_tell() -> None:
    """The target is what one contrast says in half of the range of the other: no weighted mean gives it."""
    torch.manual_seed(0)
    fusion, like = SourceFusion(1, L, width=16, summary_channels=2), torch.randn(2, 1, L, 8, 8, 8)
    truth = torch.where(like[0] > 0, like[1], like[0])
    kinds, target = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])], torch.tensor([0])
    optimizer = torch.optim.Adam(fusion.parameters(), lr=1e-2)

    def loss() -> Tensor:
        return (fusion([*like], [*like], target, kinds)[1] - truth).square().mean()

    first = loss().item()
    for _ in range(100):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < first / 4


def test_weights_of_the_attention_add_up_to_one(randomize) -> None:
    attention = randomize(SetAttention(M, L, 4, heads=2)).eval()
    weights, _ = attention(latents(), TARGETS)
    torch.testing.assert_close(sum(weights), torch.ones_like(weights[0]))
    assert weights[0].std() > 0.01
    by_hand = sum(x * w.repeat_interleave(L // 2, dim=1) for x, w in zip(latents(), weights, strict=True))
    torch.testing.assert_close(attention.weighted(latents(), weights), by_hand)


def test_gradients_are_finite_where_members_are_equal(fusion: SourceFusion, randomize) -> None:
    """As in the background, where the root of a variance would have none."""
    same = [torch.ones(2, L, 3, 4, 2, requires_grad=True) for _ in range(S)]
    fused = fusion(same, same, TARGETS, summaries())[1]
    attended = randomize(SetAttention(M, L, 4, heads=2))(same, TARGETS)[1]
    (fused.sum() + attended.sum()).backward()
    assert all(member.grad.isfinite().all() for member in same)


def test_mean_and_deviation() -> None:
    members = latents()
    stacked = torch.stack(members)
    torch.testing.assert_close(mean_of(members), stacked.mean(dim=0))
    torch.testing.assert_close(deviation(members, stacked[0]), (stacked - stacked[0]).abs().mean(dim=0))


def test_heads_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="heads: expected a divisor of 6 hidden channels; found 4"):
        SetAttention(M, L, 6, heads=4)
