"""Tests of custom.networks.quantizer."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from monai.networks.layers.vector_quantizer import EMAQuantizer

from custom.networks import VectorQuantizer

CODES, CHANNELS = 16, 3


def latents(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, CHANNELS, 4, 5, 3)


def monai_twin(quantizer: VectorQuantizer, **settings: float) -> EMAQuantizer:
    twin = EMAQuantizer(3, CODES, CHANNELS, **settings)
    twin.embedding.weight.data.copy_(quantizer.embedding.weight)
    twin.ema_w.copy_(quantizer.ema_w)
    return twin


@pytest.mark.parametrize("shape", [(1, 2, 3, 4), (3, 1, 1, 1), (2, 5, 4, 3)])
def test_shapes(shape: tuple[int, ...]) -> None:
    latent = torch.randn(shape[0], CHANNELS, *shape[1:])
    quantized = VectorQuantizer(CODES, CHANNELS)(latent)
    assert quantized.latent.shape == latent.shape
    assert quantized.indices.shape == shape
    assert quantized.indices.dtype == torch.int64
    assert quantized.loss.shape == ()


def test_equals_monai_without_training(assert_near) -> None:
    quantizer = VectorQuantizer(CODES, CHANNELS, commitment_cost=0.4).eval()
    twin = monai_twin(quantizer, commitment_cost=0.4).eval()
    latent = latents()
    ours = quantizer(latent)
    theirs, loss, indices = twin(latent)
    assert_near(ours.latent, theirs)
    assert_near(ours.loss, loss)
    assert torch.equal(ours.indices, indices)


def test_moving_averages_equal_monai_over_steps(assert_near) -> None:
    quantizer = VectorQuantizer(CODES, CHANNELS, decay=0.8, epsilon=1e-4)
    twin = monai_twin(quantizer, decay=0.8, epsilon=1e-4)
    for _ in range(5):
        latent = latents()
        ours, (theirs, loss, indices) = quantizer(latent), twin(latent)
        assert torch.equal(ours.indices, indices)
        assert_near(ours.latent, theirs)
        assert_near(ours.loss, loss)
        assert_near(quantizer.ema_cluster_size, twin.ema_cluster_size)
        assert_near(quantizer.ema_w, twin.ema_w)
        assert_near(quantizer.embedding.weight, twin.embedding.weight)


def test_a_code_is_quantised_to_itself() -> None:
    quantizer = VectorQuantizer(CODES, CHANNELS).eval()
    grid = torch.randint(CODES, (2, 3, 2, 4))
    quantized = quantizer(quantizer.embed(grid))
    assert torch.equal(quantized.indices, grid)
    assert quantized.loss == 0


@pytest.mark.parametrize("chunk", [1, CODES, 7 * CODES, 10**6])
def test_chunked_equals_unchunked(chunk: int) -> None:
    quantizer = VectorQuantizer(CODES, CHANNELS, max_chunk_elements=chunk)
    flat = torch.randn(50, CHANNELS)
    expected = torch.cdist(flat, quantizer.embedding.weight).argmin(dim=1)
    assert torch.equal(quantizer.nearest(flat), expected)


@pytest.mark.parametrize("codes", [7, 12, 256, 768])
def test_the_first_of_equal_codes_is_taken_whatever_their_number(codes: int) -> None:
    quantizer = VectorQuantizer(codes, CHANNELS)
    scores = torch.randint(0, 4, (40, codes)).float()
    assert torch.equal(quantizer._largest(scores), scores.argmax(dim=1))


def test_no_voxels_by_codes_matrix(largest_result) -> None:
    codes, bound = 512, 4096
    quantizer = VectorQuantizer(codes, CHANNELS, max_chunk_elements=bound, revival_threshold=0.1, data_init=True)
    latent = torch.randn(1, CHANNELS, 8, 8, 8)
    with largest_result:
        quantizer(latent)
    assert largest_result.elements <= bound


def test_an_exported_search_is_of_few_blocks() -> None:
    """An export unrolls the loop: in blocks for a core's cache, 48 here, a graph of a whole volume has no end."""
    quantizer, latent = VectorQuantizer(4096, CHANNELS).eval(), torch.randn(1, CHANNELS, 16, 16, 12)
    program = torch.export.export(quantizer, (latent,), strict=False)
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    assert [str(node.target) for graph in graphs for node in graph.nodes].count("aten.addmm.default") == 1
    assert torch.equal(program.module()(latent).indices, quantizer(latent).indices)


def test_batch_equals_items(check_batch) -> None:
    quantizer = VectorQuantizer(CODES, CHANNELS).eval()
    check_batch(lambda z: quantizer(z).latent, latents(3))


def test_gradients_pass_straight_through() -> None:
    quantizer = VectorQuantizer(CODES, CHANNELS, commitment_cost=0.0)
    latent, weight = latents().requires_grad_(), latents()
    quantized = quantizer(latent)
    ((quantized.latent * weight).sum() + quantized.loss).backward()
    torch.testing.assert_close(latent.grad, weight)
    assert quantizer.embedding.weight.grad is None
    assert not quantizer.embedding.weight.requires_grad


def test_commitment_draws_latents_to_their_codes() -> None:
    quantizer = VectorQuantizer(CODES, CHANNELS, commitment_cost=0.5).eval()
    latent = latents().requires_grad_()
    quantized = quantizer(latent)
    quantized.loss.backward()
    expected = 0.5 * 2 * (latent.detach() - quantizer.embed(quantized.indices)) / latent.numel()
    torch.testing.assert_close(latent.grad, expected)


def test_gradient_codebook() -> None:
    quantizer = VectorQuantizer(CODES, CHANNELS, update="gradient", commitment_cost=0.25)
    before = quantizer.embedding.weight.detach().clone()
    latent = latents()
    quantized = quantizer(latent)
    error = (latent - quantizer.embed(quantized.indices)).square().mean()
    torch.testing.assert_close(quantized.loss, 1.25 * error)
    quantized.loss.backward()
    used = torch.bincount(quantized.indices.flatten(), minlength=CODES) > 0
    assert torch.equal(quantizer.embedding.weight.grad.abs().sum(dim=1) > 0, used)
    assert torch.equal(quantizer.embedding.weight.detach(), before)
    assert quantizer.ema_cluster_size.sum() == 0


def test_gradient_of_the_codebook_loss(randomize) -> None:
    quantizer = VectorQuantizer(4, 2, update="gradient")
    latent = torch.randn(1, 2, 2, 2, 2)
    quantizer(latent).loss.backward()
    nearest = quantizer.nearest(latent.movedim(1, -1).reshape(-1, 2))
    flat = latent.movedim(1, -1).reshape(-1, 2)
    codes = quantizer.embedding.weight.detach()
    expected = torch.zeros_like(codes).index_add_(0, nearest, 2 * (codes[nearest] - flat) / flat.numel())
    torch.testing.assert_close(quantizer.embedding.weight.grad, expected)


def test_dead_codes_are_revived() -> None:
    quantizer = VectorQuantizer(CODES, CHANNELS, revival_threshold=0.5)
    with torch.no_grad():
        quantizer.embedding.weight.fill_(1e3)
        quantizer.embedding.weight[0].zero_()
    quantizer.ema_w.copy_(quantizer.embedding.weight)
    latent = latents()
    quantizer(latent)
    rows = latent.movedim(1, -1).reshape(-1, CHANNELS)
    distances = torch.cdist(quantizer.embedding.weight[1:], rows).min(dim=1).values
    assert distances.max() < 1e-3
    assert quantizer.usage(quantizer.eval()(latent).indices)[0] > 0.5


def test_without_revival_dead_codes_stay() -> None:
    quantizer = VectorQuantizer(CODES, CHANNELS)
    with torch.no_grad():
        quantizer.embedding.weight.fill_(1e3)
        quantizer.embedding.weight[0].zero_()
    quantizer.ema_w.copy_(quantizer.embedding.weight)
    quantizer(latents())
    usage, perplexity = quantizer.usage(quantizer.eval()(latents()).indices)
    assert usage == 1 / CODES
    assert perplexity == 1


def test_codes_start_from_the_first_training_batch() -> None:
    quantizer = VectorQuantizer(CODES, CHANNELS, data_init=True)
    before = quantizer.embedding.weight.clone()
    latent = 50 + latents()
    quantizer.eval()(latent)
    assert torch.equal(quantizer.embedding.weight, before)
    assert not quantizer.initialized
    quantizer.train()(latent)
    assert quantizer.initialized
    assert (quantizer.embedding.weight - 50).abs().max() < 10


@pytest.mark.parametrize("data_init", [False, True])
def test_state_can_be_subtracted_and_averaged(data_init: bool) -> None:
    states = [VectorQuantizer(CODES, CHANNELS, data_init=data_init).state_dict() for _ in range(2)]
    mean = {name: (value + (value + (states[1][name] - value))) / 2 for name, value in states[0].items()}
    assert all(value.is_floating_point() for value in mean.values())
    quantizer = VectorQuantizer(CODES, CHANNELS, data_init=data_init)
    quantizer.load_state_dict(mean)
    assert bool(quantizer.initialized) is not data_init


def test_state_of_earlier_versions_is_loaded() -> None:
    quantizer = VectorQuantizer(CODES, CHANNELS, data_init=True)
    earlier = {**quantizer.state_dict(), "initialized": torch.tensor(True)}
    quantizer.load_state_dict(earlier)
    codes = quantizer.embedding.weight.clone()
    quantizer.train()._initialize(torch.randn(100, CHANNELS))
    assert torch.equal(quantizer.embedding.weight, codes)
    assert quantizer.initialized.dtype == torch.float32


def test_evaluation_changes_nothing() -> None:
    quantizer = VectorQuantizer(CODES, CHANNELS, revival_threshold=0.5).eval()
    before = {k: v.clone() for k, v in quantizer.state_dict().items()}
    quantizer(latents())
    assert all(torch.equal(v, before[k]) for k, v in quantizer.state_dict().items())


@pytest.mark.parametrize(
    ("indices", "usage", "perplexity"),
    [([0, 0, 0, 0], 0.125, 1.0), ([0, 2, 4, 6], 0.5, 4.0), (list(range(8)), 1.0, 8.0), ([1, 1, 1, 3], 0.25, 1.7548)],
)
def test_usage_and_perplexity(indices: list[int], usage: float, perplexity: float) -> None:
    found = VectorQuantizer(8, 2).usage(torch.tensor(indices).view(1, -1, 1, 1))
    torch.testing.assert_close(found, (torch.tensor(usage), torch.tensor(perplexity)), rtol=1e-4, atol=0)


def test_distances_in_float32_under_autocast() -> None:
    quantizer = VectorQuantizer(CODES, CHANNELS).eval()
    latent = latents()
    expected = quantizer(latent)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = quantizer(latent)
    assert torch.equal(found.indices, expected.indices)
    assert found.loss.dtype == torch.float32


def test_state_dict_round_trip(check_state_dict) -> None:
    check_state_dict(lambda: VectorQuantizer(CODES, CHANNELS), latents())


def test_script_equals_eager(check_script) -> None:
    check_script(VectorQuantizer(CODES, CHANNELS), latents())


class Several(NamedTuple):
    """A quantizer of two codebooks, and the same as two of one codebook, each of three of its six channels."""

    whole: VectorQuantizer
    books: list[VectorQuantizer]

    @classmethod
    def make(cls, **settings: Any) -> Several:
        whole = VectorQuantizer(CODES, 2 * CHANNELS, num_codebooks=2, **settings)
        books = [VectorQuantizer(CODES, CHANNELS, **settings) for _ in range(2)]
        for book, codes, average in zip(
            books, whole.embedding.weight.chunk(2, 1), whole.ema_w.chunk(2, 1), strict=True
        ):
            book.embedding.weight.data.copy_(codes)
            book.ema_w.copy_(average)
        return cls(whole, books)


@pytest.mark.parametrize("update", ["ema", "gradient"])
@pytest.mark.parametrize("batch", [1, 2])
def test_several_codebooks_are_as_many_quantizers_of_pieces(update: str, batch: int, assert_near) -> None:
    whole, books = Several.make(update=update, decay=0.8, epsilon=1e-4, max_chunk_elements=5 * CODES)
    for _ in range(3):
        latent = torch.randn(batch, 2 * CHANNELS, 4, 5, 3, requires_grad=True)
        found, parts = whole(latent), [book(piece) for book, piece in zip(books, latent.chunk(2, 1), strict=True)]
        assert torch.equal(found.indices, torch.stack([part.indices for part in parts], dim=1))
        assert_near(found.latent, torch.cat([part.latent for part in parts], dim=1))
        assert_near(found.loss, (parts[0].loss + parts[1].loss) / 2)
        assert_near(whole.ema_cluster_size, torch.stack([book.ema_cluster_size for book in books]))
        assert_near(whole.ema_w, torch.cat([book.ema_w for book in books], dim=1))
        assert_near(whole.embedding.weight, torch.cat([book.embedding.weight for book in books], dim=1))
        assert torch.equal(
            whole.embed(found.indices), torch.cat([b.embed(p.indices) for b, p in zip(books, parts, strict=True)], 1)
        )
    if update == "gradient":
        found.loss.backward()
        sum(part.loss for part in parts).backward()
        grads = torch.cat([book.embedding.weight.grad for book in books], dim=1)
        assert_near(whole.embedding.weight.grad, grads / 2)


def test_codes_of_one_codebook_represent_no_latent_worse_in_pieces() -> None:
    one, two = VectorQuantizer(CODES, 4).eval(), VectorQuantizer(CODES, 4, num_codebooks=2).eval()
    two.embedding.weight.data.copy_(one.embedding.weight)
    latent, grid = torch.randn(2, 4, 4, 5, 3), torch.randint(CODES, (2, 3, 2, 4))
    before, after = ((q(latent).latent - latent).square().sum(dim=1) for q in (one, two))
    assert (after <= before + 1e-5).all()
    assert after.mean() < 0.9 * before.mean()
    torch.testing.assert_close(two(one.embed(grid)).latent, one.embed(grid))


@pytest.mark.parametrize("number", [2, 3])
def test_codes_of_several_codebooks_are_quantised_to_themselves(number: int) -> None:
    quantizer = VectorQuantizer(CODES, 6, num_codebooks=number).eval()
    grid = torch.randint(CODES, (2, number, 3, 2, 4))
    quantized = quantizer(quantizer.embed(grid))
    assert torch.equal(quantized.indices, grid)
    assert quantized.latent.shape == (2, 6, 3, 2, 4)
    assert quantized.loss == 0


def test_a_dead_code_is_revived_in_its_own_codebook_alone() -> None:
    quantizer = VectorQuantizer(CODES, 6, num_codebooks=2, revival_threshold=0.5, decay=1.0)
    alive = torch.ones(2, CODES)
    alive[0, 3] = alive[1, 5] = 0
    quantizer.ema_cluster_size.copy_(alive)
    before = quantizer.ema_w.clone()
    latent = 100 + torch.randn(2, 6, 4, 5, 3)
    quantizer(latent)
    changed = (quantizer.ema_w != before).view(CODES, 2, 3).any(dim=2)
    assert changed.nonzero().tolist() == [[3, 0], [5, 1]]
    rows = latent.movedim(1, -1).reshape(-1, 6)
    assert (quantizer.ema_w[3, :3] == rows[:, :3]).all(dim=1).any()
    assert (quantizer.ema_w[5, 3:] == rows[:, 3:]).all(dim=1).any()
    assert (quantizer.ema_cluster_size == 1).all()


def test_codes_of_several_codebooks_start_from_the_first_training_batch() -> None:
    quantizer = VectorQuantizer(CODES, 6, num_codebooks=2, data_init=True)
    quantizer(50 + torch.randn(2, 6, 4, 5, 3))
    assert quantizer.initialized
    assert quantizer.ema_cluster_size.shape == (2, CODES)
    assert (quantizer.embedding.weight - 50).abs().max() < 10


def test_use_is_that_of_the_emptiest_codebook() -> None:
    quantizer = VectorQuantizer(8, 2, num_codebooks=2)
    grid = torch.stack([torch.arange(8), torch.full((8,), 5)]).view(1, 2, 8, 1, 1)
    usage, perplexity = quantizer.usage(grid)
    assert (usage, perplexity) == (1 / 8, 1)


def test_processes_move_several_codebooks_together(monkeypatch: pytest.MonkeyPatch, assert_near) -> None:
    """Two processes with one batch each are as one with both batches; here the batches are the same."""
    alone, (together, _) = VectorQuantizer(CODES, 6, num_codebooks=2), Several.make()
    together.load_state_dict(alone.state_dict())
    latent = torch.randn(1, 6, 4, 5, 3)
    alone(latent.repeat(2, 1, 1, 1, 1))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(2))
    together(latent)
    for name, value in alone.state_dict().items():
        assert_near(together.state_dict()[name], value)


def test_no_matrix_of_voxels_by_codes_of_several_codebooks(largest_result) -> None:
    codes, bound = 512, 4096
    quantizer = VectorQuantizer(
        codes, 4, num_codebooks=2, max_chunk_elements=bound, revival_threshold=0.1, data_init=True
    )
    latent = torch.randn(1, 4, 8, 8, 8)
    with largest_result:
        quantizer(latent)
    assert largest_result.elements <= bound


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # that the loss compares sizes
def test_several_codebooks_in_every_form(check_script, check_state_dict) -> None:
    def make() -> VectorQuantizer:
        return VectorQuantizer(CODES, 6, num_codebooks=2).eval()

    quantizer, latent, larger = make(), torch.randn(2, 6, 4, 5, 3), torch.randn(3, 6, 5, 5, 3)
    check_script(quantizer, latent)
    check_state_dict(make, latent)
    traced = torch.jit.trace(quantizer, latent)
    assert torch.equal(traced(larger)[2], quantizer(larger).indices)
    program = torch.export.export(quantizer, (latent,), strict=False)
    assert torch.equal(program.module()(latent).indices, quantizer(latent).indices)
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    assert [str(node.target) for graph in graphs for node in graph.nodes].count("aten.addmm.default") == 2
    assert quantizer.to("meta")(latent.to("meta")).indices.shape == (2, 2, 4, 5, 3)


@pytest.mark.parametrize("number", [0, 4, 7])
def test_codebooks_that_cannot_share_the_channels(number: int) -> None:
    with pytest.raises(ValueError, match=f"num_codebooks: expected 1 or another divisor of the 6 .* found {number}"):
        VectorQuantizer(CODES, 6, num_codebooks=number)


def test_unknown_update() -> None:
    with pytest.raises(ValueError, match="update: expected 'ema' or 'gradient', found 'sgd'"):
        VectorQuantizer(CODES, CHANNELS, update="sgd")
