"""Tests of custom.networks.fusion."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from custom.networks import MeanFusion, SourceFusion
from custom.networks.fusion import SetAttention, deviation, mean_of

M, L, S = 3, 4, 3
TARGETS = torch.tensor([2, 0])


def latents(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn((2, L, 3, 4, 2), generator=generator) for _ in range(S)]


@pytest.fixture
def fusion(randomize) -> SourceFusion:
    return randomize(SourceFusion(M, L, width=4, heads=2, hidden_channels=2)).eval()


@pytest.mark.parametrize("make", [MeanFusion, lambda: SourceFusion(M, L, width=4, heads=2)], ids=["mean", "untrained"])
def test_starts_from_the_plain_mean(make) -> None:
    source, like = make()(latents(), latents(1), TARGETS)
    torch.testing.assert_close(source, sum(latents()) / S)
    torch.testing.assert_close(like, sum(latents(1)) / S)


def test_order_does_not_matter(fusion: SourceFusion, assert_near) -> None:
    found = fusion(latents(), latents(1), TARGETS)
    turned = fusion(*([x[2], x[0], x[1]] for x in (latents(), latents(1))), TARGETS)
    for one, other in zip(found, turned, strict=True):
        assert_near(one, other)
    swapped = fusion(latents(), [latents(1)[k] for k in (2, 0, 1)], TARGETS)  # not the same pairs
    assert not torch.allclose(swapped[1], found[1])


def test_source_and_target_like_latents_have_the_same_weights(fusion: SourceFusion) -> None:
    weights, _ = fusion.attention([torch.cat(both, dim=1) for both in zip(latents(), latents(1), strict=True)], TARGETS)
    torch.testing.assert_close(sum(weights), torch.ones_like(weights[0]))
    assert weights[0].std() > 0.01
    by_hand = sum(x * w.repeat_interleave(L // 2, dim=1) for x, w in zip(latents(), weights, strict=True))
    source, like = fusion(latents(), latents(1), TARGETS)
    torch.testing.assert_close(source, by_hand)
    assert not torch.allclose(like, sum(latents(1)) / S)


def test_target_counts_and_a_batch_equals_its_items(fusion: SourceFusion, check_batch) -> None:
    stacked = torch.stack(latents(), dim=1), torch.stack(latents(1), dim=1)

    def fused(source: Tensor, like: Tensor, target: Tensor) -> Tensor:
        return torch.cat(fusion([*source.unbind(1)], [*like.unbind(1)], target), dim=1)

    check_batch(fused, *stacked, TARGETS)
    assert not torch.allclose(fused(*stacked, TARGETS), fused(*stacked, TARGETS.flip(0)))


def test_script_equals_eager(fusion: SourceFusion, assert_near) -> None:
    script = torch.jit.script(fusion)
    with torch.no_grad(), torch.jit.optimized_execution(False):
        for one, other in zip(
            script(latents(), latents(1), TARGETS), fusion(latents(), latents(1), TARGETS), strict=True
        ):
            assert_near(one, other)


def test_every_parameter_gets_a_gradient(fusion: SourceFusion, check_learning) -> None:
    check_learning(fusion, torch.cat(fusion(latents(), latents(1), TARGETS)))


def test_gradients_are_finite_where_members_are_equal(fusion: SourceFusion) -> None:
    """As in the background, where the root of a variance would have none."""
    same = [torch.ones(2, L, 3, 4, 2, requires_grad=True) for _ in range(S)]
    fusion(same, same, TARGETS)[1].sum().backward()
    assert all(member.grad.isfinite().all() for member in same)


def test_mean_and_deviation() -> None:
    members = latents()
    stacked = torch.stack(members)
    torch.testing.assert_close(mean_of(members), stacked.mean(dim=0))
    torch.testing.assert_close(deviation(members, stacked[0]), (stacked - stacked[0]).abs().mean(dim=0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SetAttention(M, L, 6, heads=4), "heads: expected a divisor of 6 hidden channels; found 4"),
        (lambda: SourceFusion(M, 3, heads=2), "heads: expected a divisor of 3 latent channels; found 2"),
    ],
)
def test_heads_that_do_not_divide(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
