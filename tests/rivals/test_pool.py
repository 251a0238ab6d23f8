"""Tests of the pool of earlier translations."""

from __future__ import annotations

import copy

import pytest
import torch

from custom.rivals.pool import ImagePool


def numbered(number: int) -> torch.Tensor:
    return torch.full((1, 1, 1, 1), float(number))


def test_it_fills_first_then_gives_half_of_the_new_ones_back() -> None:
    torch.manual_seed(0)
    pool, size, count = ImagePool(50), 50, 2000
    given = [int(pool(numbered(i))[0].item()) for i in range(count)]
    assert given[:size] == list(range(size))
    later = [number == i for i, number in enumerate(given)][size:]
    # five standard deviations of a fair coin
    assert sum(later) / len(later) == pytest.approx(0.5, abs=5 * 0.5 / len(later) ** 0.5)
    older = [i - number for i, number in enumerate(given) if number != i and i > 500]
    assert min(older) > 0
    # an image stays for 2 · 50 steps on average, as each of the later ones replaces it with chance 1/100
    assert sum(older) / len(older) == pytest.approx(2 * size, rel=0.25)
    assert len(pool.images) == size


def test_what_it_gives_is_detached_and_was_put_in_once() -> None:
    pool = ImagePool(1)
    first = torch.zeros(2, 1, 2, 2, requires_grad=True)
    given = pool(first)
    assert [image.shape for image in given] == [(1, 1, 2, 2)] * 2
    assert not any(image.requires_grad for image in given)
    assert len(pool.images) == 1


def test_without_a_size_it_gives_what_it_gets() -> None:
    pool = ImagePool(0)
    assert [pool(numbered(i))[0].item() for i in range(5)] == list(range(5))


def test_its_state_goes_on_exactly() -> None:
    torch.manual_seed(0)
    pool = ImagePool(3)
    for i in range(6):
        pool(numbered(i))
    twin, state = ImagePool(3), copy.deepcopy(pool.state_dict())
    twin.load_state_dict(state)
    generator = torch.get_rng_state()
    expected = [pool(numbered(i))[0].item() for i in range(6, 20)]
    torch.set_rng_state(generator)
    assert [twin(numbered(i))[0].item() for i in range(6, 20)] == expected
    with pytest.raises(ValueError, match="pool: expected one of 4 images; found one of 3"):
        ImagePool(4).load_state_dict(state)
