"""Tests of custom.networks.widening: weights of a narrower latent in a network of a wider one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from custom.networks import (
    ConditionalUNet,
    LatentTranslator,
    NoiseSchedule,
    ResidualStyleTransfer,
    SourceFusion,
    VectorQuantizer,
)
from custom.networks.vqgan import VQGAN
from custom.networks.weights import convert_weights
from custom.networks.widening import Channels, widened

CODES, MODALITIES = 16, 3


def translator(coded: int, *, num_codebooks: int, scalar: int = 0, seed: int = 0) -> LatentTranslator:
    torch.manual_seed(seed)
    book = VectorQuantizer(CODES, coded, num_codebooks=num_codebooks)
    channels = coded + scalar
    network = LatentTranslator(
        MODALITIES,
        VQGAN(
            [8], coded, num_res_blocks=[1], norm_num_groups=4, haar_levels=1, bottleneck=book, scalar_channels=scalar
        ),
        ResidualStyleTransfer(
            MODALITIES, channels, width=8, num_blocks=1, hidden_channels=4, summary_channels=8, position_channels=4,
            exchange_channels=4,
        ),
        ConditionalUNet(
            3 * channels, channels, MODALITIES, channels=[8, 8], attention_levels=[False, True], norm_num_groups=4
        ),
        NoiseSchedule(prediction_type="sample"),
        conditioning="source_and_target_like", residual=True, num_inference_steps=1,
        fusion=SourceFusion(MODALITIES, channels, width=8, summary_channels=8),
    )  # fmt: skip
    for parameter in network.parameters():  # none of zeros, or what listens to what would not show
        torch.nn.init.normal_(parameter, std=0.2)
    book.ema_cluster_size.copy_(torch.rand_like(book.ema_cluster_size))
    return network.eval()


@pytest.fixture
def narrow() -> LatentTranslator:
    return translator(4, num_codebooks=1)


@pytest.fixture
def wide(narrow: LatentTranslator, tmp_path: Path) -> LatentTranslator:
    torch.save(narrow.state_dict(), tmp_path / "narrow.pt")
    network = translator(12, num_codebooks=3, seed=1)
    network.load_state_dict(convert_weights(network, tmp_path / "narrow.pt"))
    return network


@torch.no_grad()
def test_the_present_channels_are_computed_as_before(narrow: LatentTranslator, wide: LatentTranslator) -> None:
    """And nothing listens to the new ones: whatever they hold, the image and the first channels are the same."""
    sources = torch.rand(2, 1, 16, 16, 16) * 2 - 1
    to = torch.tensor([1])
    before, after = narrow.encode(sources), wide.encode(sources)
    assert after.shape[1] == 12
    torch.testing.assert_close(after[:, :4], before)
    after[:, 4:] += torch.randn_like(after[:, 4:])
    torch.testing.assert_close(wide.decode(after), narrow.decode(before))
    estimates = [network.transfer(latent, to, None) for network, latent in ((narrow, before), (wide, after))]
    torch.testing.assert_close(estimates[1][:, :4], estimates[0])
    fused = [n.fuse(s, e, to)[1] for n, s, e in ((narrow, before, estimates[0]), (wide, after, estimates[1]))]
    torch.testing.assert_close(fused[1][:, :4], fused[0])
    noise = torch.randn(1, 12, 8, 8, 8)
    found = [
        n.predict(x, s[:1], f, torch.tensor([5]), to)
        for n, x, s, f in ((narrow, noise[:, :4], before, fused[0]), (wide, noise, after, fused[1]))
    ]
    torch.testing.assert_close(found[1][:, :4], found[0])


def test_new_codebooks_are_drawn_anew_from_the_first_batch(narrow: LatentTranslator, wide: LatentTranslator) -> None:
    book = wide.autoencoder.bottleneck
    assert torch.equal(book.ema_cluster_size[0], narrow.autoencoder.bottleneck.ema_cluster_size)
    assert not book.ema_cluster_size[1:].any()
    assert not book.embedding.weight[:, 4:].any()
    book.revival_threshold = 0.05
    book.ema_cluster_size[0].fill_(1.0)  # none of the first is dead
    latents = torch.randn(1, 12, 4, 4, 4)
    book.train()(latents)
    pieces = latents[0].flatten(1).T.unflatten(1, (3, 4))[:, 1:]  # (voxels, new codebooks, 4)
    codes = book.ema_w[:, 4:].unflatten(1, (2, 4))
    drawn = (codes[:, None] == pieces).all(dim=-1).any(dim=1)
    # one code of each was nearest to every voxel, as all were equal, and is moved to their mean
    assert drawn.sum(dim=0).tolist() == [CODES - 1, CODES - 1]


def test_what_does_not_fit_is_left_to_the_messages(narrow: LatentTranslator, tmp_path: Path) -> None:
    state = narrow.state_dict()
    assert Channels.of(state) == (4, 0)
    assert Channels.of({}) is None
    assert widened(state, state) == state
    torch.save(state, tmp_path / "narrow.pt")
    for channels, books in ((8, 4), (2, 1)):  # codebooks of other channels, and a narrower latent
        with pytest.raises(ValueError, match=r"narrow.pt: expected weights of an earlier version .*embedding.weight"):
            convert_weights(translator(channels, num_codebooks=books), tmp_path / "narrow.pt")


def test_one_codebook_may_get_more_channels(narrow: LatentTranslator, tmp_path: Path) -> None:
    torch.save(narrow.state_dict(), tmp_path / "narrow.pt")
    network = translator(8, num_codebooks=1)
    network.load_state_dict(convert_weights(network, tmp_path / "narrow.pt"))
    codes = network.autoencoder.bottleneck.embedding.weight
    assert torch.equal(codes[:, :4], narrow.autoencoder.bottleneck.embedding.weight)
    assert not codes[:, 4:].any()


@pytest.mark.parametrize(("coded", "books", "scalar", "more"), [(4, 1, 0, 3), (8, 2, 0, 3), (8, 2, 2, 3), (4, 1, 2, 3)])
@torch.no_grad()
def test_scalar_channels_come_behind_the_coded_ones(
    tmp_path: Path, coded: int, books: int, scalar: int, more: int
) -> None:
    """Of a latent with 4 coded channels and ``scalar`` others both kinds may grow, and nothing computed changes."""
    before = translator(4, num_codebooks=1, scalar=scalar)
    torch.save(before.state_dict(), tmp_path / "before.pt")
    after = translator(coded, num_codebooks=books, scalar=more, seed=1)
    for layer in (after.autoencoder.projection, after.autoencoder.expansion):  # as they are made
        for parameter in layer.parameters():
            parameter.zero_()
    after.load_state_dict(convert_weights(after, tmp_path / "before.pt"))
    assert Channels.of(after.state_dict()) == (coded, more)
    places = [*range(4), *range(coded, coded + scalar)]
    sources, to = torch.rand(2, 1, 16, 16, 16) * 2 - 1, torch.tensor([1])
    latents = [network.encode(sources) for network in (before, after)]
    torch.testing.assert_close(latents[1][:, places], latents[0])
    assert not latents[1][:, coded + scalar :].any()
    torch.testing.assert_close(after.decode(latents[1]), before.decode(latents[0]))
    latents[1][:, coded + scalar :] += 1.0  # nothing listens to them
    estimates = [n.transfer(latent, to, None) for n, latent in zip((before, after), latents, strict=True)]
    torch.testing.assert_close(estimates[1][:, places], estimates[0])
    fused = [n.fuse(z, e, to)[1] for n, z, e in zip((before, after), latents, estimates, strict=True)]
    torch.testing.assert_close(fused[1][:, places], fused[0])
