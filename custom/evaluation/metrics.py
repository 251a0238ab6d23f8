"""Image quality of a translated volume: PSNR, SSIM, NMSE, MAE and sharpness over the volume, the brain and the lesion.

The definitions, with truth x and prediction x̂ in [0, 1] and a region R of voxels:

    MAE  = mean over R of |x − x̂|
    PSNR = −10 log₁₀ (mean over R of (x − x̂)²)                         data range 1, in dB
    NMSE = sum over R of (x − x̂)² / sum over R of x²
    SSIM = mean over R of the structural similarity map (Wang et al. 2004), Gaussian window of 11³ voxels, σ = 1.5
    sharpness = sum over R of |∇x̂| / sum over R of |∇x|, in masks without the brain's outline; below 1 is blurred

The SSIM of the volume is the mean over the voxels whose window lies inside the volume, as in scikit-image and MONAI;
the SSIM of a mask is the mean over the mask of the same map, continued to the borders by symmetric padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from monai.metrics.regression import RegressionMetric
from monai.utils import MetricReduction
from torch.nn.functional import max_pool3d

from custom.data.intensities import HIGH, LOW
from custom.evaluation.protocols import RESCALINGS, on_percentiles, standardising
from custom.utils.similarity import SSIM_WINDOW, moments, ssim_map

PROTOCOL = (
    "Protocol: metrics on the scan's own grid; truth clipped at its own 0.5 and 99.5 percentiles and mapped to [0, 1], "
    "prediction on the same scale, data range 1. The percentiles are measured inside the foreground bounding box, not "
    "over the whole field of view, whose share of background differs between scanners and would move them. "
    "brain = foreground of the truth, cavities filled; lesion = label > 0. PSNR in dB; SSIM in 3D (Gaussian window 11, "
    "sigma 1.5); "
    "NMSE = |x - y|^2 / |x|^2 with truth x; MAE; sharpness = mean |gradient| of the prediction to the truth's, without "
    "the brain's outline. Predictions of weights trained on another intensity scale are brought to the percentiles by "
    "constants of their contrast, learned from the training subjects, reconstructions by the truth's own. Standardised "
    "scores: the prediction's median and interquartile range in the brain are brought to the truth's; fitted: the "
    "prediction is first fitted to the truth by a line over the brain. Mean ± sd over subjects and pairs."
)

REGIONS: tuple[str, ...] = ("volume", "brain", "lesion")
RESCALED_REGIONS: tuple[str, ...] = ("brain standardised", "lesion standardised", "brain fitted", "lesion fitted")
HIGHER_IS_BETTER: Mapping[str, bool] = {"psnr": True, "ssim": True, "nmse": False, "mae": False}

_RADIUS = SSIM_WINDOW // 2

Box = tuple[slice, slice, slice]


class Scores(NamedTuple):
    """Quality of one prediction in one region: PSNR in dB, SSIM, NMSE, MAE and sharpness (best at 1) without unit."""

    psnr: float
    ssim: float
    nmse: float
    mae: float
    sharpness: float


METRICS: tuple[str, ...] = Scores._fields


def bounding_box(mask: torch.Tensor, margin: int = 0) -> Box:
    """Smallest box that holds ``mask`` of shape ``(H, W, D)``, widened by ``margin`` voxels within the volume.

    An empty mask gives the whole volume.
    """
    slices = []
    for axis, size in enumerate(mask.shape):
        others = [a for a in range(3) if a != axis]
        hits = torch.nonzero(mask.amax(dim=others)).flatten()
        if hits.numel() == 0:
            height, width, depth = mask.shape
            return slice(0, height), slice(0, width), slice(0, depth)
        slices.append(slice(max(int(hits[0]) - margin, 0), min(int(hits[-1]) + 1 + margin, size)))
    return slices[0], slices[1], slices[2]


class Reference:
    """One true volume, against which any number of predictions is scored.

    What depends on the truth alone is computed once, and only inside the box where truth or prediction differ from
    zero: outside it every error is exactly 0 and the SSIM map exactly 1, so nothing is lost (and a head fills about
    a third of a 240×240×155 volume).

    Args:
        truth: shape ``(H, W, D)``, values in [0, 1]; a MetaTensor is read as a plain tensor.
        brain: boolean mask of the same shape: the truth's foreground, as the preprocessing found it.
        lesion: boolean mask of the same shape, or None where no label exists.

    Raises:
        ValueError: for a truth that is not 3D, smaller than the window, not finite or outside [0, 1], and for a mask
            of another shape or without a voxel.
    """

    def __init__(self, truth: torch.Tensor, *, brain: torch.Tensor, lesion: torch.Tensor | None = None) -> None:
        self.truth = _plain(truth).float()
        if self.truth.ndim != 3 or min(self.truth.shape) < SSIM_WINDOW:
            raise ValueError(
                f"truth: expected a volume (H, W, D) of at least {SSIM_WINDOW} voxels an axis, which SSIM's window "
                f"needs; found shape {tuple(self.truth.shape)}."
            )
        _check_finite("truth", self.truth)
        low, high = float(self.truth.min()), float(self.truth.max())
        if low < 0 or high > 1:
            raise ValueError(
                f"truth: expected values in [0, 1], the data range of PSNR and SSIM; found {low:.4g} to {high:.4g}. "
                "Map the truth by its percentiles first."
            )
        self.masks = {"brain": _plain(brain) > 0}
        if lesion is not None:
            self.masks["lesion"] = _plain(lesion) > 0
        for name, mask in self.masks.items():
            _check_mask(name, mask, self.truth.shape)
        self._set_box(bounding_box(self.truth != 0, margin=_RADIUS))

    def _set_box(self, box: Box) -> None:
        self._box = box
        self._x = self.truth[box].contiguous()
        self._boxed_masks = {name: mask[box] for name, mask in self.masks.items()}
        self._energy = {name: _total(self._x[mask] ** 2) for name, mask in self._boxed_masks.items()}
        self._energy["volume"] = _total(self._x**2)
        self._moments = moments(self._x)
        # without the outline, which masks make, as steep as they like
        inner = ~(max_pool3d((~self._boxed_masks["brain"]).float()[None], 3, stride=1, padding=1)[0] > 0)
        self._sharp = {"volume": torch.ones_like(inner), **{k: inner & mask for k, mask in self._boxed_masks.items()}}
        self._gradient = gradient_magnitude(self._x)

    def _cover(self, prediction: torch.Tensor) -> None:
        box = bounding_box(prediction != 0, margin=_RADIUS)
        x, y, z = (slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(box, self._box, strict=True))
        union = (x, y, z)
        if union != self._box:
            self._set_box(union)

    @torch.inference_mode()
    def score(self, prediction: torch.Tensor) -> dict[str, Scores]:
        """Scores of a prediction, shape ``(H, W, D)``, by region: volume, brain and, where labelled, lesion.

        Raises:
            ValueError: for another shape than the truth's, or values that are not finite.
        """
        prediction = _plain(prediction).to(self.truth)
        if prediction.shape != self.truth.shape:
            raise ValueError(
                f"prediction: expected the truth's shape {tuple(self.truth.shape)}; found {tuple(prediction.shape)}. "
                "Bring the prediction onto the truth's grid first."
            )
        _check_finite("prediction", prediction)
        with torch.autocast(prediction.device.type, enabled=False):
            self._cover(prediction)
            y = prediction[self._box].contiguous()
            ssim = ssim_map(y, self._x, self._moments)
        absolute = (self._x - y).abs()
        sharpness = self._sharpness(y)
        scores = {"volume": self._volume_scores(absolute, ssim, sharpness["volume"])}
        for name, mask in self._boxed_masks.items():
            error = absolute[mask]
            mean_ssim = _total(ssim[mask]) / error.numel()
            scores[name] = _scores(error, error.numel(), self._energy[name], mean_ssim, sharpness[name])
        return scores

    def score_rescaled(self, prediction: torch.Tensor) -> dict[str, Scores]:
        """As :meth:`score`, and the same of the masks after each of ``custom.evaluation.protocols.RESCALINGS``.

        These are named ``brain standardised``, ``lesion fitted`` and so on.
        """
        scores, plain, brain = self.score(prediction), _plain(prediction).to(self.truth), self.masks["brain"]
        pair = [image[brain].cpu().numpy() for image in (plain, self.truth)]
        for name, rescaling in RESCALINGS.items():
            slope, offset = rescaling(pair[0], pair[1])
            rescored = self.score(torch.where(brain, (slope * plain + offset).clamp(0, 1), plain))
            scores |= {f"{region} {name}": rescored[region] for region in self.masks}
        return scores

    def _sharpness(self, prediction: torch.Tensor) -> dict[str, float]:
        gradient = gradient_magnitude(prediction)
        totals = {name: (_total(gradient[mask]), _total(self._gradient[mask])) for name, mask in self._sharp.items()}
        return {name: y / x if x > 0 else 1.0 if y == 0 else math.inf for name, (y, x) in totals.items()}

    def _volume_scores(self, absolute: torch.Tensor, ssim: torch.Tensor, sharpness: float) -> Scores:
        interior = tuple(
            slice(max(_RADIUS - box.start, 0), min(box.stop, size - _RADIUS) - box.start)
            for box, size in zip(self._box, self.truth.shape, strict=True)
        )
        inside = ssim[interior]
        windows = math.prod(size - 2 * _RADIUS for size in self.truth.shape)
        mean_ssim = (_total(inside) + windows - inside.numel()) / windows
        return _scores(absolute, self.truth.numel(), self._energy["volume"], mean_ssim, sharpness)


def evaluate_pair(
    prediction: torch.Tensor,
    truth: torch.Tensor,
    brain: torch.Tensor,
    lesion: torch.Tensor | None = None,
) -> dict[str, float]:
    """All metrics of one prediction, named ``<region>_<metric>``: ``volume_psnr``, ``brain_ssim``, ``lesion_mae`` …

    Args:
        prediction, truth: shape ``(H, W, D)``, values in [0, 1].
        brain: mask.
        lesion: mask, or None.

    Raises:
        ValueError: see :class:`Reference`.
    """
    scores = Reference(truth, brain=brain, lesion=lesion).score(prediction)
    return {f"{region}_{metric}": value for region, s in scores.items() for metric, value in s._asdict().items()}


class _BrainMetric(RegressionMetric):
    """A score of :class:`Reference` over the brain, as a MONAI metric for the validation of a training.

    The label ``(B, 2, H, W, D)`` is the truth and its foreground.

    Args:
        value_range: lowest (= background) and highest value of the images, mapped to [0, 1]; predictions are clipped.
        standardised: bring the prediction's median and interquartile range in the brain to the truth's, and measure
            on the scale whose ends are the truth's percentiles 0.5 and 99.5 in the brain, as the evaluation's
            standardised scores do (those take the percentiles in the foreground's bounding box).
        reduction, get_not_nans: as in MONAI.
    """

    name: str

    def __init__(
        self,
        *,
        value_range: tuple[float, float] = (-1.0, 1.0),
        standardised: bool = False,
        reduction: MetricReduction | str = MetricReduction.MEAN,
        get_not_nans: bool = False,
    ) -> None:
        super().__init__(reduction=reduction, get_not_nans=get_not_nans)
        self.low, self.high = value_range
        self.standardised = standardised

    def _unit(self, image: torch.Tensor) -> torch.Tensor:
        return ((_plain(image).float() - self.low) / (self.high - self.low)).clamp(0, 1)

    def _check_shape(self, y_pred: torch.Tensor, y: torch.Tensor) -> None:
        if y_pred.ndim != 5 or y.shape != (y_pred.shape[0], 2, *y_pred.shape[2:]):
            raise ValueError(
                f"label: expected the truth and its foreground, two channels for a prediction {tuple(y_pred.shape)}; "
                f"found {tuple(y.shape)}."
            )

    def _compute_metric(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        pairs = [
            (self._unit(image[0]), self._unit(truth), brain) for image, (truth, brain) in zip(y_pred, y, strict=True)
        ]
        if self.standardised:
            pairs = [(*_standardised(*pair), pair[2]) for pair in pairs]
        scores = [Reference(truth, brain=brain).score(image) for image, truth, brain in pairs]
        values = [getattr(score["brain"], self.name) for score in scores]
        return torch.tensor(values, device=y.device)[:, None]


def _standardised(
    prediction: torch.Tensor, truth: torch.Tensor, brain: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both on the scale of the truth's percentiles 0.5 and 99.5, with one median and interquartile range."""
    inside = _plain(brain) > 0
    values = truth[inside].cpu().numpy()
    low, high = (float(end) for end in np.percentile(values, (LOW, HIGH)))
    if not high > low:  # a flat truth has no scale of its own
        return prediction, truth
    line = standardising(prediction[inside].cpu().numpy(), values)

    moved = prediction * line.slope + line.offset
    moved, truth = (on_percentiles(torch.where(inside, image, 0.0), (low, high)) for image in (moved, truth))
    return moved, truth


class BrainPSNR(_BrainMetric):
    """PSNR in dB over the brain of ``(B, 1, H, W, D)`` images; returns ``(B, 1)``."""

    name = "psnr"


class BrainSSIM(_BrainMetric):
    """SSIM over the brain of ``(B, 1, H, W, D)`` images; returns ``(B, 1)``."""

    name = "ssim"


def gradient_magnitude(volume: torch.Tensor) -> torch.Tensor:
    """Length of the gradient of ``volume`` (H, W, D) in intensity per voxel, by central differences."""
    return torch.stack(torch.gradient(volume)).square_().sum(dim=0).sqrt_()


def _scores(absolute_error: torch.Tensor, count: int, energy: float, ssim: float, sharpness: float) -> Scores:
    squared = _total(absolute_error**2)
    mse = squared / count
    perfect = squared == 0
    return Scores(
        psnr=math.inf if perfect else -10 * math.log10(mse),
        ssim=ssim,
        nmse=0.0 if perfect else squared / energy if energy > 0 else math.inf,
        mae=_total(absolute_error) / count,
        sharpness=sharpness,
    )


def _total(values: torch.Tensor) -> float:
    return float(values.sum(dtype=torch.float64))


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_tensor() if hasattr(tensor, "as_tensor") else tensor


def _check_finite(name: str, tensor: torch.Tensor) -> None:
    if not math.isfinite(_total(tensor)):  # one pass and no temporary, as nearly every volume is fine
        bad = int((~torch.isfinite(tensor)).sum())
        raise ValueError(f"{name}: expected finite values; found {bad} NaN or infinite of {tensor.numel()} voxels.")


def _check_mask(name: str, mask: torch.Tensor, shape: Iterable[int]) -> None:
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f"{name} mask: expected the truth's shape {tuple(shape)}; found {tuple(mask.shape)}.")
    if not bool(mask.any()):
        raise ValueError(f"{name} mask: expected at least one voxel; found none, so there is nothing to measure.")
