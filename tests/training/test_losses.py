"""Tests of custom.training.losses."""

from __future__ import annotations

import math
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from monai.losses import PerceptualLoss
from monai.networks.nets import ResNetFeatures

from custom.training.losses import (
    FeatureMatching,
    MedicalNetPerceptual,
    class_adversarial_loss,
    class_discriminator_loss,
    fitted_distance,
    laplace_loss,
    sharpness_loss,
    ssim_loss,
)

MODALITIES = 4
HUB_MODEL = """
dependencies = ["torch"]
import torch

def medicalnet_resnet10_23datasets(cache_dir=None):
    torch.manual_seed(7)
    return torch.nn.Conv3d(1, 5, 3)
"""


def images(seed: int, size: int = 24) -> torch.Tensor:
    return torch.rand((2, 1, size, size, size), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def one_sided(classes: torch.Tensor, height: float = 50.0) -> torch.Tensor:
    """Logits (B, M + 1, 2, 2, 2) that are certain of ``classes`` (B,)."""
    logits = torch.zeros(len(classes), MODALITIES + 1, 2, 2, 2)
    logits[torch.arange(len(classes)), classes] = height
    return logits


def test_feature_matching_is_the_mean_distance_of_all_but_the_logits() -> None:
    real = [torch.zeros(1, 2, 3, 3, 3), torch.zeros(1, 4, 2, 2, 2), torch.zeros(1, 1, 1, 1, 1)]
    fake = [torch.full_like(real[0], 2.0), torch.full_like(real[1], -4.0), torch.full_like(real[2], 100.0)]
    assert FeatureMatching()(fake, real).item() == pytest.approx((2 + 4) / 2)
    assert FeatureMatching()(real, real).item() == 0


def test_feature_matching_gives_the_real_side_no_gradient() -> None:
    fake = [torch.ones(1, 1, 2, 2, 2, requires_grad=True), torch.ones(1, 1, 1, 1, 1)]
    real = [torch.zeros(1, 1, 2, 2, 2, requires_grad=True), torch.ones(1, 1, 1, 1, 1)]
    FeatureMatching()(fake, real).backward()
    assert fake[0].grad is not None
    assert real[0].grad is None


def test_class_losses_of_an_undecided_discriminator() -> None:
    logits, modality = torch.zeros(3, MODALITIES + 1, 2, 2, 2), torch.tensor([0, 2, 3])
    expected = pytest.approx(math.log(MODALITIES + 1))
    assert class_adversarial_loss(logits, modality).item() == expected
    assert class_discriminator_loss(logits, logits, modality).item() == expected


@pytest.mark.parametrize("modality", range(MODALITIES))
def test_the_fake_class_is_no_modality(modality: int) -> None:
    wanted, fake = torch.tensor([modality]), torch.tensor([MODALITIES])
    assert class_discriminator_loss(one_sided(wanted), one_sided(fake), wanted).item() < 1e-6
    assert class_adversarial_loss(one_sided(wanted), wanted).item() < 1e-6
    assert class_adversarial_loss(one_sided(fake), wanted).item() > 10
    # a real latent that is taken for itself is never punished, whichever modality it is
    assert class_discriminator_loss(one_sided(wanted), one_sided(wanted), wanted).item() == pytest.approx(25, abs=1)


def test_the_generator_is_pushed_towards_its_own_target() -> None:
    logits = torch.zeros(1, MODALITIES + 1, 2, 2, 2, requires_grad=True)
    class_adversarial_loss(logits, torch.tensor([2])).backward()
    slope = logits.grad.sum(dim=(0, 2, 3, 4))
    assert slope[2] < 0
    assert (slope[[0, 1, 3, 4]] > 0).all()


@pytest.fixture(scope="module")
def medicalnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as MedicalNet publishes it, with random weights."""
    torch.manual_seed(0)
    state = ResNetFeatures("resnet10", pretrained=False).state_dict()
    path = tmp_path_factory.mktemp("medicalnet") / "resnet_10_23dataset.pth"
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    return path


@pytest.fixture(scope="module")
def medicalnet(medicalnet_file: Path) -> MedicalNetPerceptual:
    return MedicalNetPerceptual(str(medicalnet_file))


def test_medicalnet_file_gives_features_of_an_eighth(medicalnet: MedicalNetPerceptual) -> None:
    assert medicalnet.model(images(0)).shape == (2, 512, 3, 3, 3)


def test_medicalnet_distance(medicalnet: MedicalNetPerceptual) -> None:
    fake, real = images(1).requires_grad_(), images(2)
    distance = medicalnet(fake, real)
    distance.backward()
    assert distance.item() > 0
    assert torch.isfinite(fake.grad).all()
    assert fake.grad.abs().sum() > 0
    assert medicalnet(real, real).item() == 0
    assert medicalnet(0.5 * real + 0.1, real).item() == pytest.approx(0, abs=1e-6)
    assert all(p.grad is None and not p.requires_grad for p in medicalnet.parameters())


def test_medicalnet_of_nothing_but_background_is_finite(medicalnet: MedicalNetPerceptual) -> None:
    assert torch.isfinite(medicalnet(torch.full((1, 1, 16, 16, 16), -1.0), torch.full((1, 1, 16, 16, 16), -1.0)))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "hub"


def test_medicalnet_in_the_hub_cache_needs_no_connection_and_equals_monai(hub: Path) -> None:
    repository = hub / "Project-MONAI_perceptual-models_main"
    repository.mkdir(parents=True)
    (repository / "hubconf.py").write_text(HUB_MODEL)
    with pytest.warns(UserWarning, match="channel-wise"):
        reference = PerceptualLoss(3, "medicalnet_resnet10_23datasets", is_fake_3d=False)
    fake, real = images(1, size=8), images(2, size=8)
    torch.testing.assert_close(MedicalNetPerceptual()(fake, real), reference(fake, real))


@pytest.mark.parametrize("error", [URLError("offline"), KeyError("Authorization"), ImportError("huggingface_hub")])
def test_medicalnet_offline_names_the_two_ways_out(
    hub: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "load", refuse)
    with pytest.raises(FileNotFoundError, match=r"(?s)torch.hub.*Either give the file.*'weights'.*FeatureMatching"):
        MedicalNetPerceptual()


def test_medicalnet_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.pth: expected the weights of MedicalNet; found no file"):
        MedicalNetPerceptual(str(tmp_path / "nowhere.pth"))


@pytest.mark.parametrize("content", [{"state_dict": {"conv1.weight": torch.zeros(1)}}, torch.zeros(1)])
def test_medicalnet_file_of_another_network(tmp_path: Path, content: object) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"other.pth: expected weights of MedicalNet's ResNet-10; found"):
        MedicalNetPerceptual(str(path))


def test_laplace_loss_is_least_at_the_mean_absolute_error() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, image = torch.zeros(1, 1, 20, 20, 20), 2 * torch.rand((1, 1, 20, 20, 20), generator=generator) - 1
    where = torch.rand(truth.shape, generator=generator) < 0.5
    logarithm = torch.zeros(1, requires_grad=True)
    best = image[where].abs().mean().log().item()
    losses = [laplace_loss(torch.full_like(truth, best + d), image, truth, where).item() for d in (-0.1, 0.0, 0.1)]
    assert losses[1] < min(losses[0], losses[2])
    laplace_loss(logarithm.expand_as(truth), image.masked_fill(~where, 9.0), truth, where).backward()
    assert logarithm.grad.item() == pytest.approx(1 - math.exp(best))
    clipped = laplace_loss(torch.zeros_like(truth), image + 5, truth, where)
    assert clipped.item() == pytest.approx(1.0)
    assert laplace_loss(torch.zeros_like(truth), image, truth, where & False).item() == 0


def test_blur_and_noise_cost_sharpness_and_a_shift_of_edges_does_not() -> None:
    truth = images(0)
    assert sharpness_loss(truth, truth).item() == 0
    blurred = F.avg_pool3d(F.pad(truth, [1] * 6, mode="replicate"), 3, stride=1)
    assert sharpness_loss(blurred, truth) > 0.2
    assert sharpness_loss(truth + 0.5 * images(1), truth) > 0.05
    # white noise is as sharp everywhere: another place of the same edges costs little beside blur
    assert sharpness_loss(images(2), truth) < 0.2 * sharpness_loss(blurred, truth)
    assert sharpness_loss(truth + 0.7, truth).item() == pytest.approx(0, abs=1e-6)


def test_sharpness_of_flat_images_has_a_gradient_and_small_ones_are_taken() -> None:
    image = torch.zeros(1, 1, 2, 3, 9, requires_grad=True)
    sharpness_loss(image, torch.rand(1, 1, 2, 3, 9)).backward()
    assert image.grad.isfinite().all()


def test_what_a_line_brings_to_the_truth_costs_nothing() -> None:
    truth, where = images(0), images(1) > 0
    truth = truth.detach()
    scale = truth[where].var()
    paler = torch.where(where, 0.3 * truth - 0.5, 7.0)  # what does not count may be anything
    # of FLATTEST there remains its square against the image's variance: less than 1e-5
    assert fitted_distance(paler, truth, where) < 1e-5 * scale
    spread = (truth[where] - truth[where].mean()).square().sum() / truth.numel()
    for useless in (-truth, torch.zeros_like(truth)):
        torch.testing.assert_close(fitted_distance(useless, truth, where), spread.float())
    assert fitted_distance(paler, truth, where & False).item() == 0


def test_what_no_line_explains_is_the_residual_of_least_squares() -> None:
    truth, image = images(0), images(1) + 0.5 * images(0)
    where = torch.ones_like(truth, dtype=torch.bool)
    residual = [
        (t - torch.stack([i, torch.ones_like(i)], 1) @ torch.linalg.lstsq(torch.stack([i, i * 0 + 1], 1), t).solution)
        for i, t in zip(image.flatten(1), truth.flatten(1), strict=True)
    ]
    expected = torch.stack(residual).square().mean()
    torch.testing.assert_close(fitted_distance(image, truth, where), expected, rtol=1e-3, atol=0)


def test_a_flat_image_has_a_finite_gradient_towards_the_truth() -> None:
    truth = images(0)
    flat = torch.zeros_like(truth).requires_grad_()
    where = torch.ones_like(truth, dtype=torch.bool)
    nearly = (flat + 1e-3 * truth).detach().requires_grad_()
    fitted_distance(flat, truth, where).backward()
    fitted_distance(nearly, truth, where).backward()
    assert flat.grad.isfinite().all()
    assert (nearly.grad * truth).sum() < 0


def test_ssim_loss_says_what_to_do_where_its_window_does_not_fit() -> None:
    small = torch.rand(1, 1, 4, 8, 8)
    with pytest.raises(
        ValueError, match=r"ssim_weight: expected images of at least 5 voxels .* found 4 x 8 x 8\. Raise"
    ):
        ssim_loss(small, small, small > 0)


def test_ssim_loss_is_that_of_the_voxels_that_count_and_ignores_the_rest() -> None:
    truth = images(0)
    where = torch.zeros_like(truth, dtype=torch.bool)
    where[..., :8] = True
    assert ssim_loss(truth, truth, where).item() == pytest.approx(0, abs=1e-5)
    assert ssim_loss(truth, images(1), where & False).item() == 0
    noisy, beyond = truth + 0.2 * images(1), truth.clone()
    beyond[..., 14:] += 1.0  # farther from what counts than the window reaches
    # of equal means: 1 − 2 / (2 + 0.2²), the variance of the noise being 0.2² of the truth's; windows vary
    assert ssim_loss(noisy, truth, where).item() == pytest.approx(0.0196, rel=0.1)
    assert ssim_loss(beyond, truth, where).item() == pytest.approx(0, abs=1e-5)


def test_ssim_loss_pays_for_structure_that_blur_and_a_constant_lack() -> None:
    truth = images(0).requires_grad_(False)
    where = torch.ones_like(truth, dtype=torch.bool)
    blurred = F.avg_pool3d(F.pad(truth, [1] * 6, mode="replicate"), 3, stride=1)
    flat = truth.mean().expand_as(truth).clone().requires_grad_()
    assert ssim_loss(truth, truth, where) < ssim_loss(blurred, truth, where) < ssim_loss(flat, truth, where)
    ssim_loss(flat, truth, where).backward()
    assert flat.grad.isfinite().all()
    assert flat.grad.any()


def test_ssim_loss_is_in_full_precision_whatever_the_autocast() -> None:
    truth, where = images(0), torch.ones_like(images(0), dtype=torch.bool)
    expected = ssim_loss(images(1), truth, where)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ssim_loss(images(1), truth, where), expected)
