from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler
from monai.metrics import MAEMetric, PSNRMetric, SSIMMetric
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from custom.evaluation.metrics import METRICS, PROTOCOL, BrainPSNR, BrainSSIM, Reference, bounding_box, evaluate_pair

# Both packages compute variances as E[x²] − E[x]² in float32, as we do, but sum the 1331 terms in another order:
# an error of about 1e-7 against the constant C2 = 9e-4 moves single voxels of the map by 1e-4, its mean far less.
SSIM_MAP_TOLERANCE = 2e-4
SSIM_MEAN_TOLERANCE = 1e-5


def head(shape: tuple[int, int, int] = (24, 20, 18), margin: int = 3, seed: int = 0) -> torch.Tensor:
    """A smooth random object in a background of exact zeros."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.zeros(shape)
    inner = tuple(slice(margin, n - margin) for n in shape)
    coarse = torch.rand((1, 1, 6, 6, 6), generator=generator)
    size = [n - 2 * margin for n in shape]
    truth[inner] = torch.nn.functional.interpolate(coarse, size=size, mode="trilinear")[0, 0].clamp(0.01, 1)
    return truth


def noisy(truth: torch.Tensor, seed: int = 1, sd: float = 0.1) -> torch.Tensor:
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(truth > 0, (truth + sd * noise).clamp(0, 1), truth)


def skimage_ssim(prediction: torch.Tensor, truth: torch.Tensor) -> tuple[float, np.ndarray]:
    return structural_similarity(
        truth.numpy(),
        prediction.numpy(),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        win_size=11,
        full=True,
    )


@pytest.mark.parametrize("margin", [0, 3, 6])
def test_ssim_equals_scikit_image(margin):
    truth = head(margin=margin)
    prediction = noisy(truth)
    lesion = torch.zeros_like(truth, dtype=torch.bool)
    lesion[8:12, 8:11, 7:10] = True
    mean, ssim_map = skimage_ssim(prediction, truth)
    scores = Reference(truth, brain=truth > 0, lesion=lesion).score(prediction)
    assert scores["volume"].ssim == pytest.approx(mean, abs=SSIM_MEAN_TOLERANCE)
    assert scores["brain"].ssim == pytest.approx(ssim_map[truth.numpy() > 0].mean(), abs=SSIM_MEAN_TOLERANCE)
    assert scores["lesion"].ssim == pytest.approx(ssim_map[lesion.numpy()].mean(), abs=SSIM_MAP_TOLERANCE)


def test_ssim_where_the_prediction_leaves_the_box_of_the_truth():
    truth = head((30, 26, 24), margin=8)
    prediction = noisy(truth)
    prediction[1:4, 2:5, 20:23] = 0.7
    mean, ssim_map = skimage_ssim(prediction, truth)
    reference = Reference(truth, brain=truth > 0)
    scores = reference.score(prediction)
    assert scores["volume"].ssim == pytest.approx(mean, abs=SSIM_MEAN_TOLERANCE)
    assert scores["brain"].ssim == pytest.approx(ssim_map[truth.numpy() > 0].mean(), abs=SSIM_MEAN_TOLERANCE)
    again, alone = reference.score(noisy(truth)), Reference(truth, brain=truth > 0).score(noisy(truth))
    assert again["volume"] == pytest.approx(alone["volume"], abs=SSIM_MEAN_TOLERANCE)


def test_psnr_equals_scikit_image():
    truth = head()
    prediction = noisy(truth)
    brain = truth > 0
    scores = Reference(truth, brain=truth > 0).score(prediction)
    for region, mask in (("volume", torch.ones_like(brain)), ("brain", brain)):
        expected = peak_signal_noise_ratio(
            truth[mask].double().numpy(), prediction[mask].double().numpy(), data_range=1
        )
        assert scores[region].psnr == pytest.approx(expected, rel=1e-5)


def test_volume_scores_equal_monai():
    truth = head()
    prediction = noisy(truth)
    batch = (prediction[None, None], truth[None, None])
    volume = Reference(truth, brain=truth > 0).score(prediction)["volume"]
    assert volume.ssim == pytest.approx(SSIMMetric(spatial_dims=3)(*batch).item(), abs=SSIM_MEAN_TOLERANCE)
    assert volume.psnr == pytest.approx(PSNRMetric(max_val=1)(*batch).item(), rel=1e-5)
    assert volume.mae == pytest.approx(MAEMetric()(*batch).item(), rel=1e-5)


def test_closed_forms():
    truth = torch.zeros(16, 16, 16)
    truth[4:12, 4:12, 4:12] = 0.5
    scores = Reference(truth, brain=truth > 0).score(torch.where(truth > 0, truth + 0.1, truth))
    assert scores["brain"].psnr == pytest.approx(20.0, rel=1e-5)
    assert scores["brain"].nmse == pytest.approx(0.04, rel=1e-5)
    assert scores["brain"].mae == pytest.approx(0.1, rel=1e-5)
    assert scores["volume"].psnr == pytest.approx(20.0 + 10 * math.log10(8), rel=1e-5)
    assert scores["volume"].nmse == pytest.approx(0.04, rel=1e-5)
    assert scores["volume"].mae == pytest.approx(0.1 / 8, rel=1e-5)


def test_perfect_prediction():
    truth = head()
    for scores in Reference(truth, brain=truth > 0).score(truth.clone()).values():
        assert scores == pytest.approx((math.inf, 1.0, 0.0, 0.0, 1.0), abs=1e-6)


def test_scores_do_not_depend_on_orientation():
    truth, other = head(), noisy(head())
    turned_truth = truth.flip(0).permute(2, 0, 1)
    turned = Reference(turned_truth, brain=turned_truth > 0).score(other.flip(0).permute(2, 0, 1))
    straight = Reference(truth, brain=truth > 0).score(other)
    assert turned["volume"] == pytest.approx(straight["volume"], rel=1e-5, abs=1e-5)


def test_evaluate_pair_names_every_metric():
    truth = head()
    result = evaluate_pair(MetaTensor(noisy(truth)), MetaTensor(truth), truth > 0, truth > 0.5)
    assert set(result) == {f"{region}_{metric}" for region in ("volume", "brain", "lesion") for metric in METRICS}
    assert result["brain_psnr"] < result["volume_psnr"]


def test_bounding_box():
    mask = torch.zeros(9, 8, 7, dtype=torch.bool)
    mask[3, 4, 5] = mask[6, 4, 1] = True
    assert bounding_box(mask) == (slice(3, 7), slice(4, 5), slice(1, 6))
    assert bounding_box(mask, margin=2) == (slice(1, 9), slice(2, 7), slice(0, 7))
    assert bounding_box(torch.zeros_like(mask)) == (slice(0, 9), slice(0, 8), slice(0, 7))


@pytest.mark.parametrize(
    ("truth", "masks", "message"),
    [
        (torch.zeros(1, 16, 16, 16), {}, "expected a volume"),
        (torch.zeros(16, 16, 8), {}, "at least 11 voxels"),
        (torch.full((16, 16, 16), torch.nan), {}, "truth: expected finite"),
        (torch.full((16, 16, 16), 2.0), {}, r"expected values in \[0, 1\]"),
        (torch.zeros(16, 16, 16), {}, "brain mask: expected at least one voxel"),
        (torch.ones(16, 16, 16), {"brain": torch.ones(16, 16, 12)}, "brain mask: expected the truth's shape"),
        (torch.ones(16, 16, 16), {"lesion": torch.zeros(16, 16, 16)}, "lesion mask: expected at least one voxel"),
    ],
)
def test_bad_truth_and_masks(truth, masks, message):
    with pytest.raises(ValueError, match=message):
        Reference(truth, **{"brain": truth > 0, **masks})


def test_bad_predictions():
    reference = Reference(head(), brain=head() > 0)
    with pytest.raises(ValueError, match="expected the truth's shape"):
        reference.score(torch.zeros(24, 20, 17))
    broken = head()
    broken[5, 5, 5] = torch.inf
    with pytest.raises(ValueError, match="prediction: expected finite values; found 1"):
        reference.score(broken)


def labelled(truths: torch.Tensor) -> torch.Tensor:
    """Truths (B, 1, H, W, D) with their foreground as second channel."""
    return torch.cat([truths, truths > 0], dim=1)


def test_brain_is_the_mask_that_comes_with_the_truth():
    """A dark ventricle belongs to the brain, and a bright background does not."""
    truth = torch.full((1, 1, 16, 16, 16), 0.2)
    brain = torch.zeros_like(truth, dtype=torch.bool)
    brain[..., 4:12, 4:12, 4:12] = True
    truth[..., 6:8, 6:8, 6:8] = 0.0
    prediction = torch.where(brain, truth + 0.1, 0.0)
    found = BrainPSNR(value_range=(0, 1))(prediction, torch.cat([truth, brain], dim=1))
    assert found.item() == pytest.approx(20.0, rel=1e-5)
    with pytest.raises(ValueError, match="label: expected the truth and its foreground"):
        BrainPSNR()(prediction, truth)


@pytest.mark.parametrize("metric", [BrainPSNR, BrainSSIM])
def test_batch_equals_per_item(metric):
    truths = torch.stack([head(seed=s) for s in (0, 2)])[:, None]
    predictions = torch.stack([noisy(t[0]) for t in truths])[:, None]
    together = metric(value_range=(0, 1))(predictions, labelled(truths))
    assert together.shape == (2, 1)
    for i in range(2):
        expected = getattr(
            Reference(truths[i, 0], brain=truths[i, 0] > 0).score(predictions[i, 0])["brain"], metric.name
        )
        assert together[i].item() == pytest.approx(expected)


def test_standardised_psnr_forgives_brightness_and_contrast():
    truth, brain = head(), head() > 0
    prediction = noisy(truth)
    label = labelled(truth[None, None])
    metric = BrainPSNR(value_range=(0, 1), standardised=True)
    found = metric(prediction[None, None], label).item()
    darker = torch.where(brain, 0.7 * prediction + 0.05, 0.0)
    assert metric(darker[None, None], label).item() == pytest.approx(found, abs=1e-3)
    assert BrainPSNR(value_range=(0, 1))(darker[None, None], label).item() < found - 1
    values, wrong = truth[brain].numpy(), prediction[brain].numpy()
    low, high = np.percentile(values, (0.5, 99.5))
    spread = np.subtract(*np.percentile(values, (75, 25))) / np.subtract(*np.percentile(wrong, (75, 25)))
    moved = (wrong - np.median(wrong)) * spread + np.median(values)
    error = np.clip((moved - low) / (high - low), 0, 1) - np.clip((values - low) / (high - low), 0, 1)
    assert found == pytest.approx(-10 * np.log10(np.mean(error**2)), abs=1e-3)


def test_brain_psnr_as_key_metric_of_an_engine():
    truth = head()[None, None]
    prediction = noisy(truth[0, 0])[None, None]
    engine = Engine(lambda engine, batch: (2 * batch[0] - 1, torch.cat([2 * batch[1] - 1, batch[1] > 0], dim=1)))
    IgniteMetricHandler(metric_fn=BrainPSNR()).attach(engine, "brain_psnr")
    engine.run([(prediction, truth), (prediction, truth)], max_epochs=1)
    expected = Reference(truth[0, 0], brain=truth[0, 0] > 0).score(prediction[0, 0])["brain"].psnr
    assert engine.state.metrics["brain_psnr"] == pytest.approx(expected, rel=1e-5)


def test_protocol_states_what_readers_need():
    for term in ("0.5 and 99.5", "bounding box", "data range 1", "sigma 1.5", "NMSE", "mean"):
        assert term.lower() in PROTOCOL.lower()
