"""Tests of custom.networks.translator."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from custom.networks import (
    VQGAN,
    ConditionalUNet,
    DetailTransfer,
    IdentityTransfer,
    LatentTranslator,
    NoDenoiser,
    NoiseSchedule,
    RectifiedFlow,
    ResidualStyleTransfer,
    SourceFusion,
    StyleTransfer,
)
from custom.networks.diffusion import PREDICTION_TYPES, draw_noise
from custom.networks.translator import CONDITIONINGS

M, L = 3, 2
LATENTS = {"none": 1, "source": 2, "target_like": 2, "source_and_target_like": 3}
TARGETS = torch.tensor([2, 0])
SCHEDULES = {**{kind: NoiseSchedule(prediction_type=kind) for kind in PREDICTION_TYPES}, "flow": RectifiedFlow()}


def translator(
    unet: nn.Module | None = None,
    schedule: str = "epsilon",
    style_transfer: nn.Module | None = None,
    **settings,
) -> LatentTranslator:
    conditioning = settings.get("conditioning", "target_like")
    network = LatentTranslator(
        M,
        VQGAN([4], L, 16, num_res_blocks=[1], norm_num_groups=2, haar_levels=1),
        style_transfer or StyleTransfer(M, L, in_channels=3, res_channels=[3], spade_channels=[3], hidden_channels=2),
        unet
        or ConditionalUNet(
            LATENTS.get(conditioning, 2) * L,
            L,
            M,
            channels=[4, 4],
            attention_levels=[False, True],
            num_heads=2,
            norm_num_groups=2,
        ),
        SCHEDULES[schedule],
        **{"num_inference_steps": 2, **settings},
    )
    network.latent_scale.fill_(1.7)
    return network.eval()


@pytest.fixture
def trained(randomize):
    """A translator whose UNet predicts something: untrained, it predicts zeros."""

    def make(**settings) -> LatentTranslator:
        network = translator(**settings)
        randomize(network.unet)
        return network

    return make


def image(batch: int = 2) -> Tensor:
    return torch.rand(batch, 1, 8, 4, 8) * 2 - 1


def latent(batch: int = 2) -> Tensor:
    return torch.randn(batch, L, 4, 2, 4)


class Perfect(nn.Module):
    """Knows the scaled clean latent and predicts from it exactly what the schedule asks for."""

    spatial_divisor = 1

    def __init__(self, clean: Tensor, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.clean, self.schedule = clean, schedule
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor, timesteps: Tensor, target: Tensor) -> Tensor:
        self.inputs.append(x)
        noisy = x[:, :L]
        signal, sigma = self.schedule.coefficients(timesteps)
        return self.schedule.training_target(self.clean, (noisy - signal * self.clean) / sigma, timesteps)


def test_shapes_and_attributes(tiny_translator) -> None:
    assert tiny_translator.spatial_divisor == 4 * 4
    x = torch.rand(2, 1, 16, 16, 32) * 2 - 1
    z = tiny_translator.encode(x)
    assert z.shape == (2, 4, 4, 4, 8)
    assert tiny_translator.transfer(z, torch.tensor([3, 1])).shape == z.shape
    assert tiny_translator.decode(z).shape == x.shape
    assert tiny_translator(x).shape == x.shape


def test_forward_is_the_chain_of_its_parts(trained, assert_near) -> None:
    network, x, noise = trained(), image(), latent()
    z = network.encode(x)
    target_like = network.transfer(z, TARGETS)
    expected = network.decode(network.sample(z, target_like, TARGETS, noise))
    assert_near(network(x, TARGETS, noise), expected)


def test_batch_equals_items(trained, check_batch) -> None:
    check_batch(trained(), image(), TARGETS, latent())


def test_same_seed_same_volume_in_batch_or_single(trained, assert_near) -> None:
    network, x = trained(), image(3)
    targets = torch.tensor([2, 0, 1])
    noise = draw_noise(network.encode(x), 5)
    assert noise.shape == (1, L, 4, 2, 4)
    assert torch.equal(noise, draw_noise(network.encode(x[:1]), 5))
    assert not torch.equal(noise, draw_noise(network.encode(x), 6))
    batch = network(x, targets, noise)
    for i in range(3):
        assert_near(batch[i : i + 1], network(x[i : i + 1], targets[i : i + 1], noise))


def test_default_target(trained) -> None:
    network, x, noise = trained(default_target=2), image(), latent()
    assert torch.equal(network(x, None, noise), network(x, torch.tensor([2, 2]), noise))


def test_noise_is_drawn_where_it_is_not_given(trained) -> None:
    network, x = trained(), image(1)
    assert not torch.equal(network(x, TARGETS[:1]), network(x, TARGETS[:1]))


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_perfect_denoiser_gives_the_target_latent(
    schedule: str, eta: float, strength: float, num_steps: int, assert_near
) -> None:
    truth = latent()
    network = translator(Perfect(1.7 * truth, SCHEDULES[schedule]), schedule, eta=eta, strength=strength)
    found = network.sample(latent(), latent(), TARGETS, latent(), num_steps)
    assert_near(found, truth, tolerance=1e-3)


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_residual_with_an_untrained_unet_is_ms_spade(num_steps: int, assert_near) -> None:
    network = translator(schedule="sample", residual=True, num_inference_steps=num_steps)
    x = image()
    z = network.encode(x)
    target_like = network.transfer(z, TARGETS)
    assert_near(network.sample(z, target_like, TARGETS, latent()), target_like)
    assert_near(network(x, TARGETS), network.decode(target_like))


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_conditioning_latents(conditioning: str, assert_near) -> None:
    schedule = NoiseSchedule()
    unet = Perfect(latent(), schedule)
    network = translator(unet, conditioning=conditioning)
    z, target_like, noise = latent(), latent(), latent()
    network.sample(z, target_like, TARGETS, noise)
    inputs = unet.inputs[0]
    assert inputs.shape[1] == LATENTS[conditioning] * L
    scaled = {"none": [], "source": [z], "target_like": [target_like], "source_and_target_like": [z, target_like]}
    assert_near(inputs, torch.cat([noise, *(1.7 * t for t in scaled[conditioning])], dim=1))


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_every_conditioning_translates(conditioning: str, trained) -> None:
    assert trained(conditioning=conditioning)(image(), TARGETS).shape == (2, 1, 8, 4, 8)


@pytest.mark.parametrize("strength", [0.25, 0.6])
@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_strength_starts_from_the_noised_target_like_latent(kind: str, strength: float, assert_near) -> None:
    schedule = SCHEDULES[kind]
    unet = Perfect(latent(), schedule)
    network = translator(unet, kind, strength=strength)
    target_like, noise = latent(), latent()
    network.sample(latent(), target_like, TARGETS, noise)
    start = torch.tensor([round(strength * 1000) - 1])
    assert_near(unet.inputs[0][:, :L], schedule.add_noise(1.7 * target_like, noise, start))


def test_requantize_gives_codes(trained) -> None:
    network = trained(requantize=True)
    codes = network.autoencoder.bottleneck.embedding.weight
    found = network.sample(latent(), latent(), TARGETS, latent()).movedim(1, -1).reshape(-1, 1, L)
    assert (found - codes).abs().amax(dim=2).min(dim=1).values.max() < 1e-5


def test_requantize_is_the_nearest_code_of_what_is_sampled(trained) -> None:
    network, args = trained(), (latent(), latent(), TARGETS, latent())
    expected = network.autoencoder.quantize(network.sample(*args)).latent
    network.requantize = True
    torch.testing.assert_close(network.sample(*args), expected)


def test_no_steps_is_ms_spade_alone(trained) -> None:
    network, z, target_like = trained(num_inference_steps=0), latent(), latent()
    assert torch.equal(network.sample(z, target_like, TARGETS, latent()), target_like)
    assert not torch.equal(network.sample(z, target_like, TARGETS, latent(), 1), target_like)


def test_without_ms_spade_the_source_stands_for_the_target_like_latent(trained) -> None:
    network, z = trained(conditioning="source"), latent()
    network.style_transfer = IdentityTransfer()
    assert network.transfer(z, TARGETS) is z
    assert not [name for name in network.state_dict() if name.startswith("style_transfer")]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_stochastic_sampler_follows_its_start_alone(trained, schedule: str, assert_near) -> None:
    network = trained(schedule=schedule, eta=1.0, num_inference_steps=3)
    z, target_like, noise, state = latent(1), latent(1), latent(1), torch.get_rng_state()
    first = network.sample(z, target_like, TARGETS[:1], noise)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(3)  # nor does the state of the global generator matter
    assert torch.equal(network.sample(z, target_like, TARGETS[:1], noise), first)
    assert not torch.allclose(network.sample(z, target_like, TARGETS[:1], latent(1)), first)
    pair = network.sample(z.expand(2, -1, -1, -1, -1), target_like.expand(2, -1, -1, -1, -1), TARGETS, noise)
    assert_near(pair[:1], first)


@pytest.mark.parametrize(
    "settings", [{"eta": 1.0}, {"strength": 0.4}, {"requantize": True}], ids=lambda s: next(iter(s))
)
def test_settings_of_a_call_stand_for_the_network_s_own(trained, settings: dict) -> None:
    network, args = trained(), (latent(), latent(), TARGETS, latent())
    before, own = dict(vars(network)), network.sample(*args)
    found = network.sample(*args, **settings)
    assert torch.equal(found, trained_alike(network, settings).sample(*args))
    assert not torch.equal(found, own)
    assert {name: getattr(network, name) for name in ("eta", "strength", "requantize")} == {
        name: before[name] for name in ("eta", "strength", "requantize")
    }
    assert torch.equal(network.sample(*args), own)


def trained_alike(network: LatentTranslator, settings: dict) -> LatentTranslator:
    """A copy of the network with these settings as its own."""
    other = deepcopy(network)
    for name, value in settings.items():
        setattr(other, name, value)
    return other


def test_number_of_steps(trained) -> None:
    network, args = trained(), (latent(), latent(), TARGETS, latent())
    assert torch.equal(network.sample(*args), network.sample(*args, 2))
    assert not torch.equal(network.sample(*args), network.sample(*args, 3))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"conditioning": "source_and_target_like", "schedule": "sample", "residual": True},
        {"conditioning": "none", "schedule": "v_prediction", "strength": 0.5, "requantize": True},
        {"schedule": "flow", "eta": 1.0},
        {"num_inference_steps": 0},
    ],
    ids=["default", "small preset", "other branches", "stochastic flow", "MS-SPADE alone"],
)
@pytest.mark.slow
def test_script_equals_eager(trained, settings: dict, assert_near) -> None:
    network = trained(**settings)
    script = torch.jit.script(network)
    x, z, target_like, noise = image(), latent(), latent(), latent()
    with torch.no_grad(), torch.jit.optimized_execution(False):
        for name, args in {
            "forward": (x, TARGETS, noise),
            "sample": (z, target_like, TARGETS, noise, 3, 1.0, 0.5, True),
            "encode": (x,),
            "transfer": (z, TARGETS),
            "decode": (z,),
            "decode_translated": (z,),
            "predict": (noise, z, target_like, torch.tensor([7, 900]), TARGETS),
        }.items():
            assert_near(getattr(script, name)(*args), getattr(network, name)(*args), msg=name)
        assert_near(script(x, noise=noise), network(x, noise=noise))


@torch.no_grad()
def test_a_translated_latent_gets_a_share_of_its_scalar_channels(randomize) -> None:
    """Rendering takes it, a decoded latent of an encoder is whole."""
    autoencoder = VQGAN([4], 4, 16, num_res_blocks=[1], norm_num_groups=2, haar_levels=1, scalar_channels=2)
    network = LatentTranslator(
        M,
        autoencoder,
        StyleTransfer(M, 6, in_channels=3, res_channels=[3], spade_channels=[3], hidden_channels=2),
        ConditionalUNet(12, 6, M, channels=[4], attention_levels=[False], num_heads=2, norm_num_groups=2),
        NoiseSchedule(),
        scalar_share=0.25,
    ).eval()
    randomize(network)
    z = torch.randn(2, 6, 4, 4, 4)
    assert torch.equal(network.decode(z), autoencoder.decode(z))
    expected = torch.lerp(autoencoder.decode(z, 0.0), autoencoder.decode(z), 0.25)
    torch.testing.assert_close(network.decode_translated(z), expected)
    assert torch.equal(network.render(z, image(), TARGETS), network.decode_translated(z))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.slow
def test_scripted_network_survives_saving(trained, tmp_path, eta: float, assert_near) -> None:
    network, x, noise = trained(eta=eta), image(), -latent().abs()
    script = torch.jit.script(network)
    script(x, TARGETS, noise)
    script.save(str(tmp_path / "network.ts"))
    loaded = torch.jit.load(str(tmp_path / "network.ts"))
    with torch.no_grad(), torch.jit.optimized_execution(False):
        assert_near(loaded(x, TARGETS, noise), network(x, TARGETS, noise))


def test_state_dict_is_flat_and_complete(trained, check_state_dict) -> None:
    def make() -> LatentTranslator:
        network = trained()
        network.latent_scale.uniform_(0.5, 2)
        return network

    state = make().state_dict()
    assert all(isinstance(v, Tensor) for v in state.values())
    assert {"latent_scale", "schedule.alphas_cumprod"} <= set(state)
    check_state_dict(make, image(), TARGETS, latent())


def test_every_trained_parameter_gets_a_gradient(trained) -> None:
    network = trained()
    output = network(image(), TARGETS, latent())
    (output * torch.randn_like(output)).sum().backward()
    # the search of the nearest code passes gradients straight through; a single token needs no queries and keys
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    without = {name for name, p in trainable.items() if p.grad is None or not p.grad.any()}
    assert all("cross_attention.to_" in n or ".transformer.norm2." in n for n in without)
    assert network.autoencoder.bottleneck.embedding.weight.grad is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conditioning": "palette"}, r"conditioning: expected one of \('target_like'.*found 'palette'"),
        ({"residual": True}, "residual: needs prediction_type 'sample', found 'epsilon'. Switch one of them"),
        ({"strength": 0.0}, r"strength: expected a number in \(0, 1\], found 0.0"),
        ({"strength": 1.5}, r"strength: expected a number in \(0, 1\], found 1.5"),
        ({"scalar_share": 1.5}, r"scalar_share: expected a number in \[0, 1\], found 1.5"),
        ({"scalar_share": -0.1}, r"scalar_share: expected a number in \[0, 1\], found -0.1"),
        ({"num_inference_steps": -1}, "num_inference_steps: expected 0 or more, found -1"),
        ({"default_target": M}, "default_target: expected an index below 3, .* found 3"),
        ({"default_target": -1}, "default_target: expected an index below 3, .* found -1"),
    ],
)
def test_settings_that_do_not_fit(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        translator(**settings)


def test_without_a_denoiser_it_is_ms_spade_alone(check_script) -> None:
    image, target = torch.rand(2, 1, 8, 8, 8) * 2 - 1, TARGETS
    network = translator(unet=NoDenoiser(), num_inference_steps=0)
    latent = network.encode(image)
    assert torch.equal(network(image, target), network.decode(network.transfer(latent, target)))
    check_script(network, image, target)
    noise = torch.randn_like(latent)
    with pytest.raises(ValueError, match="num_inference_steps: expected 0, as these weights hold no diffusion"):
        network.sample(latent, latent, target, noise, 2)


def with_sets(trained, randomize) -> LatentTranslator:
    fusion = SourceFusion(M, L, width=4)
    detail = DetailTransfer(M, width=4, hidden_channels=2)
    network = trained(fusion=fusion, detail=detail, conditioning="source_and_target_like")
    randomize(network.fusion), randomize(network.detail)
    return network


def test_sources_are_a_set(trained, randomize, assert_near) -> None:
    network, noise = with_sets(trained, randomize), latent(1)
    sources = torch.cat([image(), image(), image()], dim=1)
    found = network(sources, TARGETS, noise)
    assert found.shape == (2, 1, *sources.shape[2:])
    assert_near(network(sources[:, [2, 0, 1]], TARGETS, noise), found)
    assert not torch.allclose(network(sources[:, :2], TARGETS, noise), found)
    # of a batch each subject's sources stay together
    assert_near(torch.cat([network(sources[k : k + 1], TARGETS[k : k + 1], noise) for k in range(2)]), found)
    script = torch.jit.script(network)
    with torch.no_grad(), torch.jit.optimized_execution(False):
        assert_near(script(sources, TARGETS, noise), found)
        for k, part in enumerate(script.render_with_error(latent(), sources, TARGETS)):
            assert part.shape == found.shape, k


def test_unet_and_decoder_run_once_for_a_set(trained, randomize, monkeypatch) -> None:
    network, calls = with_sets(trained, randomize), []
    for part in (network.autoencoder.encoder, network.autoencoder.decoder, network.unet):
        part.register_forward_hook(lambda module, args, result: calls.append((type(module).__name__, len(result))))
    network(torch.cat([image(1)] * 3, dim=1), TARGETS[:1])
    assert calls == [*[("Encoder", 1)] * 3, *[("ConditionalUNet", 1)] * network.num_inference_steps, ("Decoder", 1)]


def test_the_fusion_knows_the_whole_sources(randomize, assert_near) -> None:
    style = ResidualStyleTransfer(M, L, width=8, num_blocks=1, hidden_channels=4, summary_channels=6)
    network = translator(style_transfer=randomize(style), fusion=randomize(SourceFusion(M, L, summary_channels=8)))
    whole, target = network.encode(torch.cat([image(1), image(1).flip(2)], dim=1)), TARGETS[:1]
    like = network.transfer(whole, target)
    part, part_like, context = whole[..., :1], like[..., :1], whole.flatten(2)
    assert_near(network.fuse(part, part_like, target, context)[1], network.fuse(whole, like, target)[1][..., :1])
    assert not torch.allclose(
        network.fuse(part, part_like, target)[1], network.fuse(part, part_like, target, context)[1]
    )
    network.fuse(whole, like, target)[1].sum().backward()
    assert all(p.grad is not None for p in network.fusion.parameters())


def test_sources_tell_one_another(randomize, assert_near) -> None:
    style = ResidualStyleTransfer(M, L, width=8, num_blocks=2, hidden_channels=4, exchange_channels=6)
    network = translator(style_transfer=randomize(style), fusion=randomize(SourceFusion(M, L, width=4)))
    sources, noise = torch.cat([image(), image(), image()], dim=1), latent(1)
    latents = network.encode(sources)
    alone = [network.transfer(part, TARGETS) for part in latents.unflatten(0, (2, 3)).unbind(1)]
    together = network.transfer(latents, TARGETS)
    assert not torch.isclose(together, torch.stack(alone, dim=1).flatten(0, 1)).all(dim=1).any()
    found = network(sources, TARGETS, noise)
    assert_near(network(sources[:, [2, 0, 1]], TARGETS, noise), found)
    assert_near(torch.cat([network(sources[k : k + 1], TARGETS[k : k + 1], noise) for k in range(2)]), found)
    script = torch.jit.script(network)
    with torch.no_grad(), torch.jit.optimized_execution(False):
        assert_near(script(sources, TARGETS, noise), found)


def test_a_summary_of_another_length_is_refused() -> None:
    style = ResidualStyleTransfer(M, L, width=8, num_blocks=1, summary_channels=6)
    with pytest.raises(ValueError, match=r"network_def#fusion#summary_channels: expected 8, .* found 5. Set it to 8"):
        translator(style_transfer=style, fusion=SourceFusion(M, L, summary_channels=5))


def test_of_one_source_nothing_is_fused(trained, randomize, monkeypatch) -> None:
    network, x, noise = with_sets(trained, randomize), image(), latent(1)
    latents = network.encode(x)
    like = network.transfer(latents, TARGETS)
    expected = network.render(network.sample(latents, like, TARGETS, noise), x, TARGETS)
    monkeypatch.setattr(network.fusion, "forward", lambda *args: pytest.fail("fused"))
    assert torch.equal(network(x, TARGETS, noise), expected)


def test_without_a_fusion_sets_have_their_mean() -> None:
    network, x = translator(), torch.cat([image(), image()], dim=1)
    latents = network.encode(x)
    assert latents.shape == (4, L, 4, 2, 4)
    assert torch.equal(latents[1], network.encode(x[:, 1:])[0])
    source, like = network.fuse(latents, 2 * latents, TARGETS)
    torch.testing.assert_close(source, latents.unflatten(0, (2, 2)).mean(dim=1))
    torch.testing.assert_close(like, 2 * source)


def test_what_the_error_map_is_worth() -> None:
    assert translator().error_map() == "none"
    assert translator(detail=DetailTransfer(M, width=4, error_channels=0)).error_map() == "none"
    network = translator(detail=DetailTransfer(M, width=4))
    assert network.error_map() == torch.jit.script(network).error_map() == "untrained"
    network.detail.error.trained.fill_(1.0)
    assert network.error_map() == torch.jit.script(network).error_map() == "trained"
    with pytest.raises(ValueError, match="expected a network with detail transfer, which predicts errors"):
        translator().render_with_error(latent(), image(), TARGETS)
