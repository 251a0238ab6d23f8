"""Tests of custom.training.objectives."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import PatchDiscriminator

from custom.networks import DetailTransfer, LatentTranslator, RectifiedFlow, ResidualStyleTransfer, SourceFusion
from custom.networks.diffusion import FLOW_PREDICTION_TYPES
from custom.networks.vqgan import VQGAN, KLBottleneck
from custom.training.losses import fitted_distance, sharpness_loss, ssim_loss
from custom.training.objectives import (
    AutoencoderObjective,
    DiffusionObjective,
    JointObjective,
    Objective,
    StyleObjective,
    _random_part,
    style_objective,
)

SIZE, LATENT = 16, 8
OBJECTIVES = [AutoencoderObjective, StyleObjective, JointObjective, DiffusionObjective]
# with a single token of context the attention's weights are 1, whatever the query and the key
NOT_READ = ("transformer.norm2", "cross_attention.to_q", "cross_attention.to_k")
IN_IMAGE_SPACE = (AutoencoderObjective, JointObjective)


@pytest.fixture
def network(tiny_translator: LatentTranslator) -> LatentTranslator:
    return copy.deepcopy(tiny_translator)


@pytest.fixture
def detailed(network: LatentTranslator) -> LatentTranslator:
    """With detail transfer, whose last layers say something."""
    torch.manual_seed(4)
    network.detail = DetailTransfer(4, width=4, hidden_channels=2)
    for parameter in network.detail.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    network.schedule.prediction_type = "sample"
    return network


def batch_of(objective: Objective | type[Objective]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    kind = objective if isinstance(objective, type) else type(objective)
    shape = (2, 1, SIZE, SIZE, SIZE) if kind in IN_IMAGE_SPACE else (2, 4, LATENT, LATENT, LATENT)
    names = ("image", "label") if kind in IN_IMAGE_SPACE else ("source", "target")
    batch = {name: torch.rand(shape, generator=generator) * 2 - 1 for name in names} | {
        "source_modality": torch.tensor([0, 3]),
        "target_modality": torch.tensor([2, 1]),
    }
    if kind in IN_IMAGE_SPACE:
        return batch
    return batch | {name: batch[name].unsqueeze(1) for name in ("source", "source_modality")}  # a set of one


def of_three(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``batch`` with two more sources."""
    more = {
        name: [batch[name], batch[name].flip(0), -batch[name]] for name in ("source", "source_image") if name in batch
    }
    more["source_modality"] = [batch["source_modality"], batch["source_modality"].flip(0), batch["source_modality"]]
    return batch | {name: torch.cat(values, dim=1) for name, values in more.items()}


def discriminator_for(objective: Objective) -> torch.nn.Module:
    image = isinstance(objective, IN_IMAGE_SPACE)
    torch.manual_seed(3)
    return PatchDiscriminator(
        spatial_dims=3, in_channels=1 if image else 4, out_channels=1 if image else 5, channels=4, num_layers_d=1,
        norm="INSTANCE",
    )  # fmt: skip


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_every_trained_parameter_gets_a_gradient_and_every_frozen_one_none(
    network: LatentTranslator, kind: type[Objective]
) -> None:
    objective = kind(network).train()
    for parameter in network.parameters():
        if not parameter.any():  # layers that start at zero pass no gradient on
            torch.nn.init.normal_(parameter, std=0.1)
    objective(batch_of(kind), discriminator_for(objective)).loss.backward()
    for name, parameter in network.named_parameters():
        part = name.split(".")[0]
        averaged = name == "autoencoder.bottleneck.embedding.weight"
        if any(unread in name for unread in NOT_READ):
            assert parameter.grad is None, name
        elif part in objective.trainable and not averaged:
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
        else:
            assert parameter.grad is None, name
            assert not parameter.requires_grad, name
    trained = {id(p) for p in objective.trained_parameters()}
    assert all(id(p) in trained for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", [StyleObjective, DiffusionObjective])
def test_a_frozen_autoencoder_does_not_move(network: LatentTranslator, kind: type[Objective]) -> None:
    objective = kind(network)
    before = copy.deepcopy(network.autoencoder.state_dict())
    objective.train()
    network.encode(torch.rand(1, 1, SIZE, SIZE, SIZE))
    objective(batch_of(kind))
    assert not network.autoencoder.training
    for name, value in network.autoencoder.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_codebook_moves_in_the_first_stage(network: LatentTranslator) -> None:
    before = network.autoencoder.bottleneck.embedding.weight.clone()
    AutoencoderObjective(network).train()(batch_of(AutoencoderObjective))
    assert not torch.equal(network.autoencoder.bottleneck.embedding.weight, before)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_train_and_eval_modes(network: LatentTranslator, kind: type[Objective]) -> None:
    objective = kind(network).train()
    for part in ("autoencoder", "style_transfer", "unet"):
        modes = {m.training for m in network.get_submodule(part).modules()}
        assert modes == {part in objective.trainable}, part
    assert not any(m.training for m in objective.eval().modules())


def test_terms_of_the_first_stage(network: LatentTranslator) -> None:
    objective = AutoencoderObjective(
        network, reconstruction_weight=2.0, quantisation_weight=3.0, perceptual_weight=0.5, adversarial_weight=0.25
    ).eval()
    batch, discriminator = batch_of(objective), discriminator_for(objective).eval()
    step = objective(batch, discriminator)
    image, (pred, quantized) = batch["image"], network.autoencoder(batch["image"])
    fake, real = discriminator(pred), discriminator(image)
    matching = [(f - r).abs().mean() for f, r in zip(fake[:-1], real[:-1], strict=True)]
    expected = {
        "reconstruction": 2.0 * (pred - image).abs().mean(),
        "quantisation": 3.0 * quantized.loss,
        "perceptual": 0.5 * torch.stack(matching).mean(),
        "adversarial": 0.25 * (1 - torch.tanh(fake[-1])).mean(),
    }
    assert step.terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(step.terms[name], value, msg=name)
    torch.testing.assert_close(step.loss, sum(expected.values()))
    hinge = 0.5 * ((1 - torch.tanh(real[-1])).mean() + (1 + torch.tanh(fake[-1])).mean())
    torch.testing.assert_close(objective.discriminator_loss(discriminator, step), hinge)


def test_terms_of_the_second_stage(network: LatentTranslator) -> None:
    objective = StyleObjective(network, latent_weight=2.0, cycle_weight=3.0, adversarial_weight=0.5).eval()
    batch, discriminator = batch_of(objective), discriminator_for(objective).eval()
    step = objective(batch, discriminator)
    target_like = network.transfer(batch["source"][:, 0], batch["target_modality"])
    back = network.transfer(target_like, batch["source_modality"][:, 0])
    logits = discriminator(target_like)[-1]
    truth = batch["target_modality"].view(-1, 1, 1, 1).expand(-1, *logits.shape[2:])
    torch.testing.assert_close(step.terms["latent"], 2.0 * (target_like - batch["target"]).abs().mean())
    torch.testing.assert_close(step.terms["cycle"], 3.0 * (back - batch["source"][:, 0]).abs().mean())
    torch.testing.assert_close(step.terms["adversarial"], 0.5 * F.cross_entropy(logits, truth))
    assert objective(batch).terms.keys() == {"latent", "cycle"}


def test_the_cycle_of_an_identity_costs_nothing(network: LatentTranslator) -> None:
    network.style_transfer = torch.nn.Identity()
    network.transfer = lambda latent, *rest: latent
    batch = batch_of(StyleObjective)
    batch["target"] = batch["source"][:, 0]
    assert StyleObjective(network)(batch).loss.item() == 0


def test_terms_of_the_joint_training(network: LatentTranslator) -> None:
    objective = JointObjective(network, reconstruction_weight=2.0, cycle_weight=3.0).eval()
    batch = batch_of(objective)
    step = objective(batch, discriminator_for(objective))
    latent = network.encode(batch["image"])
    target_like = network.transfer(latent, batch["target_modality"])
    translation = network.decode(target_like)
    cycled = network.decode(network.transfer(target_like, batch["source_modality"]))
    own = F.l1_loss(network.decode(latent), batch["image"])
    torch.testing.assert_close(step.terms["reconstruction"], 2.0 * (F.l1_loss(translation, batch["label"]) + own))
    torch.testing.assert_close(step.terms["cycle"], 3.0 * F.l1_loss(cycled, batch["image"]))
    assert step.terms.keys() == {"reconstruction", "quantisation", "cycle", "perceptual", "adversarial"}
    assert step.fake.shape == batch["label"].shape


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_diffusion_loss_of_a_perfect_denoiser_is_zero(network: LatentTranslator, prediction_type: str) -> None:
    network.schedule.prediction_type = prediction_type
    network.latent_scale.fill_(2.0)
    batch = batch_of(DiffusionObjective)
    alphas_cumprod = network.schedule.alphas_cumprod

    def predict(noisy, latent, target_like, timesteps, target):  # knows the clean latent
        a = alphas_cumprod[timesteps].view(-1, 1, 1, 1, 1)
        clean = 2.0 * batch["target"]
        noise = (noisy - a.sqrt() * clean) / (1 - a).sqrt()
        return {"epsilon": noise, "sample": clean, "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * clean}[
            prediction_type
        ]

    network.predict = predict
    assert DiffusionObjective(network)(batch).loss.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("prediction_type", FLOW_PREDICTION_TYPES)
def test_flow_loss_of_a_perfect_denoiser_is_zero(network: LatentTranslator, prediction_type: str) -> None:
    network.latent_scale.fill_(2.0)
    network.schedule = RectifiedFlow(prediction_type=prediction_type)
    batch = batch_of(DiffusionObjective)

    def predict(noisy, latent, target_like, timesteps, target):  # knows the clean latent
        clean, s = 2.0 * batch["target"], ((timesteps + 1) / 1000).view(-1, 1, 1, 1, 1)
        return clean if prediction_type == "sample" else clean - (noisy - (1 - s) * clean) / s

    network.predict = predict
    terms = DiffusionObjective(network, image_weight=1.0, pure_noise_share=0.5)(batch).terms
    assert terms["diffusion"].item() == pytest.approx(0, abs=1e-5)
    assert terms["image"].item() == pytest.approx(0, abs=1e-5)


def test_diffusion_loss_of_a_denoiser_that_says_nothing_is_the_variance_of_noise(network: LatentTranslator) -> None:
    network.predict = lambda noisy, *rest: torch.zeros_like(noisy)
    torch.manual_seed(0)
    loss = DiffusionObjective(network)(batch_of(DiffusionObjective)).loss.item()
    assert loss == pytest.approx(1, abs=5 * math.sqrt(2 / (2 * 4 * LATENT**3)))


def test_image_term_is_the_squared_distance_of_the_decoded_latents(network: LatentTranslator) -> None:
    objective, batch = StyleObjective(network, image_weight=3.0).eval(), batch_of(StyleObjective)
    target_like = network.transfer(batch["source"][:, 0], batch["target_modality"])
    expected = 3.0 * F.mse_loss(network.decode(target_like), network.decode(batch["target"]))
    torch.testing.assert_close(objective(batch).terms["image"], expected)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_images_of_the_second_stage_are_judged_by_structure_too(network: LatentTranslator, share: float) -> None:
    objective = StyleObjective(network, image_weight=3.0, fitted_share=share, ssim_weight=2.0).eval()
    batch = batch_of(StyleObjective)
    image = network.decode(network.transfer(batch["source"][:, 0], batch["target_modality"]))
    truth = network.decode(batch["target"])
    brain = truth > -0.9
    assert brain.any()
    assert not brain.all()
    terms = objective(batch).terms
    expected = (1 - share) * F.mse_loss(image, truth) + share * fitted_distance(image, truth, brain)
    torch.testing.assert_close(terms["image"], 3.0 * expected)
    torch.testing.assert_close(terms["ssim"], 2.0 * ssim_loss(image, truth, brain))


def test_terms_that_would_be_left_out_are_refused(network: LatentTranslator) -> None:
    with pytest.raises(ValueError, match=r"fitted_share: expected 0 where image_weight is 0, .* found 0.5"):
        StyleObjective(network, fitted_share=0.5)
    with pytest.raises(ValueError, match=r"fitted_share: expected 0 where image_weight is 0, .* found 0.5"):
        DiffusionObjective(network, fitted_share=0.5)
    for name in ("ssim_weight", "fitted_share"):
        with pytest.raises(ValueError, match=rf"{name}: expected 0 with joint, .* found 0.5"):
            style_objective(network, True, {"image_weight": 5.0, name: 0.5}, {})


def test_ssim_alone_trains_the_second_stage(network: LatentTranslator) -> None:
    objective = StyleObjective(network, latent_weight=0.0, cycle_weight=0.0, ssim_weight=1.0).train()
    terms = objective(batch_of(StyleObjective)).terms
    assert "image" not in terms
    terms["ssim"].backward()
    assert any(p.grad is not None and p.grad.any() for p in network.style_transfer.parameters())
    assert all(p.grad is None for p in network.autoencoder.parameters())


def test_a_known_target_like_latent_is_not_computed_again(network: LatentTranslator) -> None:
    objective, batch = DiffusionObjective(network).eval(), batch_of(DiffusionObjective)
    with torch.no_grad():
        known = network.transfer(batch["source"][:, 0], batch["target_modality"]).unsqueeze(1)
    torch.manual_seed(0)
    expected = objective(batch).loss
    network.transfer = None
    torch.manual_seed(0)
    torch.testing.assert_close(objective({**batch, "target_like": known}).loss, expected)


def with_images(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    shape = (2, 1, *(4 * n for n in batch["target"].shape[2:]))
    return batch | {n: torch.rand(shape, generator=generator) * 2 - 1 for n in ("source_image", "target_image")}


def test_detail_is_judged_by_the_target_image(detailed: LatentTranslator) -> None:
    objective = DiffusionObjective(detailed, image_weight=3.0, pure_noise_share=1.0).eval()
    batch = with_images(batch_of(objective))
    detailed.predict = lambda *rest: batch["target"] * detailed.latent_scale  # knows the clean latent
    rendered = detailed.render(batch["target"], batch["source_image"], batch["target_modality"])
    expected = 3.0 * F.mse_loss(rendered, batch["target_image"])
    torch.testing.assert_close(objective(batch).terms["image"], expected)


def test_detail_and_unet_are_trained_together(detailed: LatentTranslator) -> None:
    objective = DiffusionObjective(detailed, image_weight=1.0).train()
    torch.nn.init.normal_(detailed.unet.conv_out.weight, std=0.1)
    objective(with_images(batch_of(objective))).terms["image"].backward()
    moved = {name.split(".")[0] for name, p in detailed.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"unet", "detail"}
    alone = ("attention.", "fusion.", "error.")  # of one source nothing is fused, and no error term was asked for
    assert all(p.grad.any() for n, p in detailed.detail.named_parameters() if not n.startswith(alone))


def test_random_numbers_of_sources_train_the_fusion(network: LatentTranslator) -> None:
    network.fusion = SourceFusion(4, 4, width=4)
    objective, numbers = StyleObjective(network, image_weight=1.0).train(), set()
    network.fuse = lambda latent, like, to, context, fuse=network.fuse: (
        numbers.add(len(latent) // len(to)) or fuse(latent, like, to, context)
    )
    torch.manual_seed(0)
    for _ in range(12):
        objective(of_three(batch_of(objective))).loss.backward()
    assert numbers == {1, 2, 3}
    moved = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"style_transfer", "fusion"}
    state = torch.get_rng_state()
    objective(batch_of(objective))  # of one source no number is drawn
    assert torch.equal(torch.get_rng_state(), state)


def test_the_fusion_alone_is_trained_on_sets(network: LatentTranslator) -> None:
    network.fusion = SourceFusion(4, 4, width=4)
    objective = StyleObjective(network, image_weight=1.0, trained_parts=["fusion"]).train()
    assert network.fusion.training
    assert not network.style_transfer.training
    torch.manual_seed(0)
    for _ in range(6):  # a set of one source would have no gradient
        objective(of_three(batch_of(objective))).loss.backward()
    moved = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"fusion"}
    with pytest.raises(ValueError, match=r"trained_parts: expected sets of two or more .* found sets of one. Raise"):
        objective(batch_of(objective))


@pytest.mark.parametrize("parts", [[], ["unet"], ["fusion", "detail"]])
def test_parts_that_stage_2_does_not_train(network: LatentTranslator, parts: list[str]) -> None:
    with pytest.raises(ValueError, match="trained_parts: expected one or both of style_transfer, fusion; found"):
        StyleObjective(network, trained_parts=parts)


def test_a_plain_mean_cannot_be_trained(network: LatentTranslator) -> None:
    with pytest.raises(ValueError, match=r"trained_parts: expected style_transfer among them, .* found fusion alone"):
        StyleObjective(network, trained_parts=["fusion"])


@pytest.mark.parametrize("trained", [True, False], ids=["fusion", "mean"])
def test_the_latent_term_is_of_every_source_and_of_the_set(
    network: LatentTranslator, monkeypatch, trained: bool
) -> None:
    if trained:
        network.fusion = SourceFusion(4, 4, width=4)  # which starts from the mean
    objective, batch = StyleObjective(network).eval(), of_three(batch_of(StyleObjective))
    monkeypatch.setattr(torch, "randint", lambda high, size, **_: torch.zeros(size, dtype=torch.long))  # all of them
    each = [network.transfer(batch["source"][:, s], batch["target_modality"]) for s in range(3)]
    distances = [F.l1_loss(like, batch["target"]) for like in each]
    expected = sum(distances) / 3 + (F.l1_loss(sum(each) / 3, batch["target"]) if trained else 0)
    torch.testing.assert_close(objective(batch).terms["latent"], expected)


def exchanging(network: LatentTranslator) -> LatentTranslator:
    """``network`` with a style transfer in which sources tell one another something."""
    network.style_transfer = ResidualStyleTransfer(4, 4, width=8, num_blocks=1, hidden_channels=4, exchange_channels=4)
    for parameter in network.style_transfer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def test_of_a_set_that_exchanges_the_first_source_alone_is_learned_from_too(
    network: LatentTranslator, monkeypatch
) -> None:
    network = exchanging(network)
    objective, batch = StyleObjective(network).eval(), of_three(batch_of(StyleObjective))
    monkeypatch.setattr(torch, "randint", lambda high, size, **_: torch.zeros(size, dtype=torch.long))  # all of them
    source, to, target = batch["source"], batch["target_modality"], batch["target"]
    each = network.transfer(source.flatten(0, 1), to).unflatten(0, source.shape[:2])
    alone = F.l1_loss(network.transfer(source[:, 0], to), target)
    of_set = F.l1_loss(each, target.unsqueeze(1).expand_as(each)) + F.l1_loss(each.mean(dim=1), target)
    torch.testing.assert_close(objective(batch).terms["latent"], alone + of_set)
    objective.train()(batch).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in network.style_transfer.exchanges.parameters())


@pytest.mark.parametrize("trained", [True, False], ids=["fusion", "mean"])
def test_ms_spade_is_judged_on_sets_too(network: LatentTranslator, trained: bool) -> None:
    """Whether its own estimate or the fused one is drawn, every step teaches it."""
    if trained:
        network.fusion = SourceFusion(4, 4, width=4)
    objective = StyleObjective(network, latent_weight=0.0, cycle_weight=0.0, image_weight=1.0).train()
    torch.manual_seed(0)
    for _ in range(8):
        network.zero_grad()
        objective(of_three(batch_of(objective))).loss.backward()
        assert any(p.grad is not None and p.grad.any() for p in network.style_transfer.parameters())


def test_the_error_term_trains_the_error_map_and_nothing_else(detailed: LatentTranslator) -> None:
    objective = DiffusionObjective(detailed, image_weight=1.0, error_weight=0.5).train()
    batch = of_three(with_images(batch_of(objective)))
    assert detailed.error_map() == "untrained"
    objective(batch).terms["error"].backward()
    assert detailed.error_map() == "trained"
    moved = {name for name, p in detailed.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved
    assert all(name.startswith("detail.error.") for name in moved)


def test_without_error_weight_the_error_map_stays_untrained(detailed: LatentTranslator) -> None:
    objective = DiffusionObjective(detailed, image_weight=1.0).train()
    assert objective(with_images(batch_of(objective))).terms.keys() == {"diffusion", "image"}
    assert detailed.error_map() == "untrained"


def test_sharpness_and_ssim_terms_are_those_of_the_translation(detailed: LatentTranslator, monkeypatch) -> None:
    objective = DiffusionObjective(detailed, image_weight=1.0, sharpness_weight=3.0, ssim_weight=2.0).train()
    batch, seen = with_images(batch_of(objective)), []
    rendered = detailed.render
    monkeypatch.setattr(detailed, "render", lambda *args: seen.append(rendered(*args)) or seen[-1])
    terms, truth = objective(batch).terms, batch["target_image"]
    torch.testing.assert_close(terms["sharpness"], 3 * sharpness_loss(seen[0], truth))
    torch.testing.assert_close(terms["ssim"], 2 * ssim_loss(seen[0], truth, truth > -1))
    assert "error" not in terms


@pytest.mark.parametrize("with_detail", [True, False])
def test_a_line_is_fitted_to_translations_too(detailed: LatentTranslator, with_detail: bool) -> None:
    objective = DiffusionObjective(detailed, image_weight=3.0, fitted_share=0.25).eval()
    batch = with_images(batch_of(objective))
    detailed.predict = lambda *rest: batch["target"] * detailed.latent_scale  # knows the clean latent
    if with_detail:
        image = detailed.render(batch["target"], batch["source_image"], batch["target_modality"])
        truth, background = batch["target_image"], -1
    else:
        detailed.detail = None
        batch["target"] = batch["target"].flip(2)  # what is predicted from now on is wrong
        predicted = batch["target"].flip(2)
        detailed.predict = lambda *rest: predicted * detailed.latent_scale
        image, truth, background = detailed.decode(predicted), detailed.decode(batch["target"]), -0.9
    brain = truth > background
    assert brain.any()
    expected = 0.75 * F.mse_loss(image, truth) + 0.25 * fitted_distance(image, truth, brain)
    torch.testing.assert_close(objective(batch).terms["image"], 3.0 * expected)


@pytest.mark.parametrize("name", ["sharpness_weight", "ssim_weight"])
def test_terms_of_the_translation_need_detail(network: LatentTranslator, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: expected 0, as this network has no detail .* found 0.5"):
        DiffusionObjective(network, **{name: 0.5})


def test_ssim_needs_parts_of_half_its_window(detailed: LatentTranslator) -> None:
    with pytest.raises(ValueError, match=r"part_size: expected at least 5 voxels .* found 1 latent voxels"):
        DiffusionObjective(detailed, image_weight=1.0, ssim_weight=0.1, part_size=1)
    with pytest.raises(ValueError, match=r"part_size: expected at least 5 voxels .* found 1 latent voxels"):
        StyleObjective(detailed, image_weight=1.0, ssim_weight=0.1, part_size=1)


def test_parts_of_latents_and_images_are_of_one_place() -> None:
    place = torch.arange(6 * 5 * 4).view(1, 1, 6, 5, 4)
    fine = place.repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    torch.manual_seed(0)
    latent, image = _random_part(3, place, fine)
    assert latent.shape == (1, 1, 3, 3, 3)
    assert torch.equal(image[..., ::4, ::4, ::4], latent)
    assert all(a is b for a, b in zip(_random_part(None, place, fine), (place, fine), strict=True))


def test_detail_needs_an_image_term(detailed: LatentTranslator) -> None:
    with pytest.raises(ValueError, match="image_weight: expected more than 0, as only the image term trains"):
        DiffusionObjective(detailed)


@pytest.mark.parametrize(
    ("kind", "name", "unsound", "sound"),
    [
        (AutoencoderObjective, "image", (8,), (12, 16)),  # downsampled by 4
        (JointObjective, "image", (8,), (12, 16)),
        (StyleObjective, "source", (2,), (3, 4)),
        (DiffusionObjective, "source", (4, 8), (12, 16)),  # the tiny UNet halves twice
    ],
)
def test_two_planes_are_not_for_bfloat16_on_a_cpu(
    network: LatentTranslator, kind: type[Objective], name: str, unsound: tuple[int, ...], sound: tuple[int, ...]
) -> None:
    objective = kind(network)
    for planes in (*unsound, *sound):
        batch = {name: torch.zeros(*[1] * (2 if name == "image" else 3), planes, 64, 64)}
        assert objective.sound_in_bfloat16(batch) is (planes in sound)
        assert objective.sound_in_bfloat16({name: batch[name].to("meta")})
    assert not StyleObjective(network, part_size=2).sound_in_bfloat16({"source": torch.zeros(1, 1, 4, 8, 8, 8)})


def test_gradients_in_bfloat16_are_close_where_it_is_said_to_be_sound(network: LatentTranslator) -> None:
    """The reason for the rule above is a fault of the CPU's kernels; three planes and more are right."""
    objective = DiffusionObjective(network).train()
    torch.nn.init.normal_(network.unet.conv_out.weight, std=0.1)
    generator = torch.Generator().manual_seed(5)
    draws = [torch.randn(2, 4, 12, 8, 8, generator=generator) for _ in range(2)]
    index = {"source_modality": torch.tensor([[0], [3]]), "target_modality": torch.tensor([2, 1])}
    batch = {"source": draws[0].unsqueeze(1), "target": draws[1], **index}
    assert objective.sound_in_bfloat16(batch)
    gradients = []
    for enabled in (False, True):
        torch.manual_seed(0)
        network.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = objective(batch).loss
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.unet.parameters() if p.grad is not None]))
    # bfloat16 has 8 bits, and some 20 layers are behind one another; unwritten memory is off by any factor
    assert (gradients[1] - gradients[0]).norm() < 0.1 * gradients[0].norm()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_share_of_the_items_that_start_from_pure_noise(network: LatentTranslator, share: float) -> None:
    torch.manual_seed(0)
    timesteps = DiffusionObjective(network, pure_noise_share=share)._draw_timesteps(4000, torch.device("cpu"))
    assert timesteps.shape == (4000,)
    assert timesteps.max() == 999
    # five standard deviations of a mean of 4000 draws, at most 0.5 / sqrt(4000) each
    assert (timesteps == 999).float().mean().item() == pytest.approx(share + (1 - share) / 1000, abs=0.04)
    if share < 1:
        assert timesteps[timesteps < 999].float().mean().item() == pytest.approx(499, abs=5 * 289 / 2000**0.5)


@pytest.mark.parametrize("kind", [AutoencoderObjective, JointObjective])
def test_use_of_the_codebook_is_measured_and_enters_no_loss(network: LatentTranslator, kind: type[Objective]) -> None:
    objective = kind(network).eval()
    batch = batch_of(objective)
    step = objective(batch)
    quantized = network.autoencoder(batch["image"])[1]
    usage, perplexity = network.autoencoder.bottleneck.usage(quantized.indices)
    expected = {"codebook_usage": usage, "codebook_perplexity": perplexity, "latent_std": quantized.latent.std()}
    assert step.measures == expected
    assert not step.measures.keys() & step.terms.keys()
    network.autoencoder = VQGAN([8, 8], 4, norm_num_groups=4, num_res_blocks=[1, 1], bottleneck=KLBottleneck(4))
    assert kind(network)(batch).measures.keys() == {"latent_std"}


def test_kl_variant_trains(network: LatentTranslator) -> None:
    network.autoencoder = VQGAN([8, 8], 4, norm_num_groups=4, num_res_blocks=[1, 1], bottleneck=KLBottleneck(4))
    objective = AutoencoderObjective(network).train()
    objective(batch_of(objective)).loss.backward()
    assert all(p.grad is not None for p in network.autoencoder.parameters())


@pytest.mark.parametrize(
    ("joint", "kind"),
    [(False, StyleObjective), ("false", StyleObjective), (True, JointObjective), ("true", JointObjective)],
)
def test_switch_of_the_second_stage(network: LatentTranslator, joint: bool | str, kind: type[Objective]) -> None:
    objective = style_objective(network, joint, {"cycle_weight": 7.0}, {"cycle_weight": 7.0})
    assert type(objective) is kind
    assert 7.0 in objective.weights
