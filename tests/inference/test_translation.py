"""Tests of custom.inference.translation."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor

from custom.inference.translation import Sampling, Translation
from custom.networks import DetailTransfer, LatentTranslator, SourceFusion
from custom.networks.diffusion import draw_noise
from custom.networks.fast import accelerate

TARGET = 2
INDEX = torch.tensor([TARGET, TARGET])


@pytest.fixture
def network(tiny_translator: LatentTranslator) -> LatentTranslator:
    """A translator whose UNet predicts something: untrained, it predicts zeros, whatever is sampled."""
    network, generator = deepcopy(tiny_translator), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.unet.conv_out.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.fixture
def image() -> Tensor:
    return torch.rand((2, 1, 16, 16, 32), generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def by_hand(network: LatentTranslator, image: Tensor, seed: int, **settings) -> Tensor:
    latent = network.encode(image)
    target_like = network.transfer(latent, INDEX)
    sampled = network.sample(latent, target_like, INDEX, draw_noise(latent, seed), **settings)
    return network.render(sampled, image, INDEX)


@torch.no_grad()
def test_results_are_those_of_the_network_s_parts(network, image) -> None:
    translation = Translation(network, image)
    with accelerate(network):  # as a translation computes
        latent = network.encode(image)
        reconstruction = network.decode(latent)
        target_like = network.transfer(latent, INDEX)
        decoded, by_style = network.decode(target_like), network.render(target_like, image, INDEX)
        whole = by_hand(network, image, 3)
    assert torch.equal(translation.reconstruct().image, reconstruction.clamp(-1, 1))
    assert torch.equal(translation.spade_decoded(TARGET).image, decoded.clamp(-1, 1))
    assert torch.equal(translation.spade_only(TARGET).image, by_style.clamp(-1, 1))
    assert torch.equal(translation.translate(TARGET, seed=3).image, whole.clamp(-1, 1))


@pytest.mark.parametrize("scripted", [False, True], ids=["eager", "scripted"])
def test_settings_of_the_sampler_are_those_of_the_call(network, image, scripted: bool) -> None:
    settings = {"num_steps": 3, "eta": 0.7, "strength": 0.5, "requantize": True}
    translation = Translation(torch.jit.script(network) if scripted else network, image)
    found = translation.translate(TARGET, Sampling(**settings), seed=3).image
    expected = by_hand(network, image, 3, **settings).clamp(-1, 1)
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    own = by_hand(network, image, 3).clamp(-1, 1)
    torch.testing.assert_close(translation.translate(TARGET, seed=3).image, own, atol=1e-5, rtol=0)


def test_samples_are_averaged(network, image) -> None:
    samples = torch.stack([by_hand(network, image, 5 + k) for k in range(4)])
    found = Translation(network, image).translate(TARGET, seed=5, num_samples=4)
    scale = float(samples.abs().max())
    torch.testing.assert_close(found.image, samples.mean(dim=0).clamp(-1, 1), atol=1e-6 * scale, rtol=0)
    assert found.uncertainty is None


@pytest.fixture
def knowing(network) -> LatentTranslator:
    """With an error map that was trained, and fusions that do not give the plain mean."""
    torch.manual_seed(2)
    network.detail, network.fusion = DetailTransfer(4, width=4, hidden_channels=2), SourceFusion(4, 4, width=4)
    for part in (network.detail, network.fusion):
        for parameter in part.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    network.detail.error.trained.fill_(1.0)
    network.detail.error.first = 0.5  # so large that some voxels are clipped
    return network.eval()


def test_error_map_is_in_units_of_the_image_and_never_beyond_its_range(knowing, image) -> None:
    translation = Translation(knowing, image)
    plain, found = (translation.translate(TARGET, num_samples=2, uncertainty=known) for known in (False, True))
    assert torch.equal(plain.image, found.image)
    assert found.uncertainty.shape == found.image.shape
    latent = knowing.encode(image)
    like = knowing.transfer(latent, INDEX)
    errors = []
    for seed in range(2):
        sampled = knowing.sample(latent, like, INDEX, draw_noise(latent, seed))
        errors.append(knowing.render_with_error(sampled, image, INDEX)[1].exp())
    mean, bound = sum(errors) / 2, 1 + found.image.abs()
    assert 0 < (mean > bound).float().mean() < 1
    torch.testing.assert_close(found.uncertainty, torch.minimum(mean, bound), atol=1e-4, rtol=0)


@pytest.mark.parametrize("scripted", [False, True], ids=["eager", "scripted"])
def test_an_error_map_that_says_nothing_is_refused(knowing, image, scripted: bool) -> None:
    def made(network):
        return Translation(torch.jit.script(network) if scripted else network, image)

    knowing.detail.error.trained.fill_(0.0)
    with pytest.raises(ValueError, match="uncertainty: expected weights whose error map was trained"):
        made(knowing).translate(TARGET, uncertainty=True)
    knowing.detail = None
    with pytest.raises(ValueError, match="uncertainty: expected a network with a detail transfer that predicts errors"):
        made(knowing).translate(TARGET, uncertainty=True)
    with pytest.raises(ValueError, match="found none in function"):
        Translation(lambda image, target: image, image).translate(TARGET, uncertainty=True)


def test_sources_are_a_set(knowing, image) -> None:
    sources = torch.cat([image, image.flip(2), -image], dim=1)
    found = Translation(knowing, sources).translate(TARGET, uncertainty=True)
    turned = Translation(knowing, sources[:, [2, 0, 1]]).translate(TARGET, uncertainty=True)
    assert found.image.shape == image.shape
    for one, other in zip((found.image, found.uncertainty), (turned.image, turned.uncertainty), strict=True):
        # sums in another order, enlarged by this network's instance norms; the sources matter a hundred times as much
        torch.testing.assert_close(one, other, atol=1e-4 * float(one.abs().max()), rtol=0)
    fewer = Translation(knowing, sources[:, :2]).translate(TARGET).image
    assert (fewer - found.image).abs().max() > 0.01 * found.image.abs().max()
    each = Translation(knowing, sources).reconstruct().image
    for place in range(3):
        alone = Translation(knowing, sources[:, place : place + 1]).reconstruct().image
        torch.testing.assert_close(each[:, place : place + 1], alone, atol=1e-5, rtol=0)


def test_a_plain_callable_takes_sets_too(image) -> None:
    sources, mask = torch.cat([image, -image / 2], dim=1), image > 0
    found = Translation(lambda image, target: image.mean(dim=1, keepdim=True), sources, mask=mask).translate(TARGET)
    assert torch.equal(found.image, torch.where(mask, image / 4, -1.0))


def test_mask_is_applied_to_every_result(knowing, image) -> None:
    mask = image > 0
    masked, whole = Translation(knowing, image, mask=mask), Translation(knowing, image)
    for make in (
        lambda t: t.reconstruct(),
        lambda t: t.spade_decoded(TARGET),
        lambda t: t.spade_only(TARGET),
        lambda t: t.translate(TARGET, num_samples=2, uncertainty=True),
    ):
        found, unmasked = make(masked), make(whole)
        assert torch.equal(found.image, torch.where(mask, unmasked.image, -1.0))
    assert torch.equal(found.uncertainty, torch.where(mask, unmasked.uncertainty, 0.0))


def test_source_is_encoded_once_and_styled_once_for_a_target(network, image, monkeypatch) -> None:
    calls = []
    for name in ("encode", "transfer", "sample", "decode_translated"):
        part = getattr(network, name)
        monkeypatch.setattr(network, name, lambda *a, part=part, name=name, **k: calls.append(name) or part(*a, **k))
    translation = Translation(network, image, keep_samples=True)
    assert calls == []
    for target in (0, 1):
        translation.spade_only(target)
        translation.translate(target, num_samples=2)
        translation.translate(target)  # the first of the two samples
    counts = {name: calls.count(name) for name in calls}
    assert counts == {"encode": 1, "transfer": 2, "sample": 4, "decode_translated": 6}


def test_costs_are_those_from_the_source_on(network, image) -> None:
    translation = Translation(network, image, measured=True)
    spade, full = translation.spade_only(TARGET), translation.translate(TARGET, Sampling(3), num_samples=2)
    assert (spade.cost.evaluations, full.cost.evaluations) == (0, 6)
    assert translation.reconstruct().cost.seconds > 0
    again = translation.translate(TARGET, Sampling(3)).cost
    assert again.evaluations == 3
    assert again.seconds > 0  # with the encoding, though it was not done again
    assert Translation(network, image).spade_only(TARGET).cost is None


def test_networks_that_share_parts_share_latents(network, image, monkeypatch) -> None:
    other, latents = deepcopy(network), {}
    other.autoencoder, other.style_transfer = network.autoencoder, network.style_transfer
    Translation(network, image, latents=latents).spade_only(TARGET)
    monkeypatch.setattr(other, "encode", lambda image: pytest.fail("encoded again"))
    monkeypatch.setattr(other, "transfer", lambda *args: pytest.fail("brought to the target's style again"))
    found = Translation(other, image, latents=latents).translate(TARGET).image
    assert torch.equal(found, Translation(network, image).translate(TARGET).image)


def test_a_plain_callable_draws_for_each_target_as_for_it_alone(image) -> None:
    def network(image: Tensor, target: Tensor) -> Tensor:
        return image * 0 + torch.rand(1) + target.view(-1, 1, 1, 1, 1) * 0

    translation, state = Translation(network, image), torch.get_rng_state()
    first, second = (translation.translate(target, seed=4, num_samples=2).image for target in (0, 1))
    assert torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match=r"num_inference_steps: the network .* found Sampling"):
        translation.translate(0, Sampling(eta=1.0))


def test_no_gradients_are_kept(network, image) -> None:
    assert not Translation(network, image).translate(TARGET).image.requires_grad


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"num_steps": -1}, "num_steps: expected 0 or more; found -1"), ({"strength": 0.0}, "strength: .*found 0.0")],
)
def test_settings_that_do_not_exist(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)
