"""Quality against sampler steps, measured on validation subjects: what the default sampler is chosen from.

Every point of the curves translates the same volumes from the same noise. A source is encoded once, its target-like
latent made once and the truth prepared once for all of them, and no sample that several points share is made twice.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigWorkflow
from torch import Tensor
from tqdm import tqdm

from custom.commands.ablation import VARIANTS
from custom.commands.workflows import bundle_workflow
from custom.data.foreground import foreground_key
from custom.data.tolerant import FAULT_KEY
from custom.evaluation.evaluator import SUBJECT, NativeGrid, make_reference, unit
from custom.evaluation.pairwise import plain
from custom.evaluation.protocols import ends_of, on_percentiles
from custom.inference.translation import Latents, Sampling, Translated, Translation
from custom.networks import LatentTranslator
from custom.reports.curves import SPADE_ONLY, Point, choose_default, curve_table, draw_curves, write_points
from custom.reports.render import to_text, write_table
from custom.utils.bundle import config_folder
from custom.utils.modalities import canonical
from custom.utils.precision import AUTO, amp_choice, uses_bfloat16

__all__ = ["CURVES", "PAIRS", "Curve", "Model", "measure", "steps"]

logger = logging.getLogger(__name__)

Pair = tuple[str, str]

# each modality is a source once and a target once; a subject takes the next of them
PAIRS: tuple[Pair, ...] = (("t1", "t2"), ("t2", "flair"), ("flair", "t1ce"), ("t1ce", "t1"))


class Curve(NamedTuple):
    """One sampler and the numbers of steps that are measured.

    Attributes:
        name: as the figure shows it.
        steps: in rising order.
        eta, strength, requantize: as for ``LatentTranslator``.
        num_samples: draws whose images are averaged, as for ``TranslationInferer``.
    """

    name: str
    steps: tuple[int, ...]
    eta: float = 0.0
    strength: float = 1.0
    requantize: bool = False
    num_samples: int = 1

    def sampling(self, num_steps: int) -> Sampling:
        """The settings of the sampler for that many steps."""
        # the last step adds no noise, so one step is the same for every η
        return Sampling(num_steps, self.eta if num_steps > 1 else 0.0, self.strength, self.requantize)

    @classmethod
    def of(cls, name: str, overlay: str, steps: Sequence[int]) -> Curve:
        """The sampler of ``configs/<overlay>.json`` with other numbers of steps."""
        config = json.loads((config_folder() / f"{overlay}.json").read_text(encoding="utf-8"))
        fields = ("eta", "strength", "requantize")
        values = {f: config[f"network_def#{f}"] for f in fields if f"network_def#{f}" in config}
        return cls(name, tuple(steps), **values, num_samples=config.get("num_samples", 1))


CURVES: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "DDIM": ("sampling_ddim", (1, 2, 4, 8)),
    "DDPM (η = 1)": ("sampling_ddpm", (2, 4, 8)),
    "from the target-like latent": ("sampling_from_target_like", (1, 2, 4)),
    "mean of 4 samples": ("sampling_mean", (1, 2)),
    "re-quantised": ("sampling_requantize", (1, 4)),
}


class Model(NamedTuple):
    """A network and its name in the figure, such as what it predicts."""

    name: str
    network: LatentTranslator


def steps(
    output_dir: str | os.PathLike[str] = "output/steps",
    *,
    subjects: int = 4,
    models_dir: str | os.PathLike[str] | None = None,
    models: str | Sequence[str] = ("ours", "epsilon", "v_prediction", "rectified_flow"),
    curves: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    amp: bool | str = AUTO,
    **overrides: Any,
) -> list[Point]:
    """Measure the curves, write ``steps.csv``, the table and ``steps.png``, and print what to choose.

    Args:
        output_dir: for the results.
        subjects: validation subjects, one pair of modalities each.
        models_dir: an output folder of ``custom.commands.ablation`` whose ``models``, trained on other predictions, are
            compared by the deterministic sampler; the bundle's own weights and every sampler where not given.
        models: names of the models in ``models_dir``.
        curves: numbers of steps by the name of a curve of :data:`CURVES`, in place of those there.
        seed: of the noise.
        amp: compute in bfloat16 where autocast does; ``"auto"`` where that is faster.
        overrides: values of ``evaluate.json``, such as ``dataset_dir`` or ``ckpt_path``.

    Raises:
        ValueError: for an unknown curve or model, and where no subject has a pair or none can be read.
        FileNotFoundError: for weights that are missing.
    """
    output = Path(output_dir).expanduser()
    wanted = _curves(curves, every=models_dir is None)
    values = {"section": "validation", "max_subjects": int(subjects), "output_dir": str(output), **overrides}
    values["dataset#store"] = None  # an evaluation's own results say nothing here
    first, *others = _workflows(models_dir, models, values)
    networks = [Model(name, w.parser.get_parsed_content("network").eval()) for name, w in (first, *others)]
    for other in networks[1:]:
        _share_frozen_parts(networks[0].network, other.network)
    points = list(_measure_all(first[1], networks, wanted, seed=int(seed), amp=amp_choice(amp)))
    if not points:
        raise ValueError("steps: expected a validation subject with one of the pairs; found none that can be read.")
    write_points(output / "steps.csv", points)
    table = curve_table(points)
    write_table(table, output, "steps_table")
    picture = draw_curves(output / "steps.png", points)
    print(to_text(table))
    print(f"\n{choose_default(points)}\nPicture: {picture}")
    return points


def _curves(chosen: Mapping[str, Sequence[int]] | None, *, every: bool) -> list[Curve]:
    unknown = set(chosen or {}) - set(CURVES)
    if unknown:
        raise ValueError(f"curves: expected some of {', '.join(CURVES)}; found {', '.join(sorted(unknown))}.")
    names = list(CURVES)[: None if every else 1]
    if chosen is not None:
        return [Curve.of(name, CURVES[name][0], sorted(map(int, values))) for name, values in chosen.items()]
    return [Curve.of(name, *CURVES[name]) for name in names]


def _workflows(
    models_dir: str | os.PathLike[str] | None, models: str | Sequence[str], values: Mapping[str, Any]
) -> list[tuple[str, ConfigWorkflow]]:
    if models_dir is None:
        found = [("the bundle's weights", bundle_workflow("evaluate", values))]
    else:
        found = []
        for name in [models] if isinstance(models, str) else models:
            if name not in VARIANTS:
                raise ValueError(f"models: expected some of {', '.join(VARIANTS)}; found {name}.")
            weights, overlay = Path(models_dir).expanduser() / name / "model.pt", VARIANTS[name].overlay
            overlays = [overlay] if overlay else []
            # the overlay names weights of its own, those of the folder count
            found.append((name, bundle_workflow("evaluate", {**values, "ckpt_path": str(weights)}, overlays=overlays)))
    for _, workflow in found:
        workflow.initialize()
    return found


def _share_frozen_parts(first: LatentTranslator, other: LatentTranslator) -> None:
    """Where the first two stages have the same weights, ``other`` uses those of ``first``: one latent serves both."""
    for part in ("autoencoder", "style_transfer", "fusion"):
        ours, theirs = first.get_submodule(part).state_dict(), other.get_submodule(part).state_dict()
        if ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours):
            setattr(other, part, first.get_submodule(part))


def _measure_all(
    workflow: ConfigWorkflow, models: Sequence[Model], curves: Sequence[Curve], *, seed: int, amp: bool | str
) -> Iterator[Point]:
    get = workflow.parser.get_parsed_content
    dataset, device, modalities = get("dataset"), get("device"), [canonical(m) for m in get("modalities")]
    fast = uses_bfloat16(amp, device)
    total = len(dataset) * len(models) * (1 + sum(len(curve.steps) for curve in curves))
    with tqdm(total=total, desc="sampler steps", unit="point") as bar:
        for index in range(len(dataset)):
            item = dataset[index]
            first = index % len(PAIRS)
            pair = next((p for p in PAIRS[first:] + PAIRS[:first] if set(p) <= set(item)), None)
            if FAULT_KEY in item or pair is None:
                why = item.get(FAULT_KEY) or f"has none of {', '.join(f'{s} to {t}' for s, t in PAIRS)}"
                logger.warning("%s: left out: %s", item[SUBJECT], why)
                continue
            bar.set_postfix_str(f"{item[SUBJECT]} {pair[0]}->{pair[1]}")
            to_native = NativeGrid(item, dataset.transform)
            for point in measure(item, pair, modalities, to_native, models, curves, device=device, seed=seed, amp=fast):
                bar.update()
                yield point


def measure(
    item: Mapping[str, Any],
    pair: Pair,
    modalities: Sequence[str],
    to_native: Callable[[Tensor, str], Tensor],
    models: Sequence[Model],
    curves: Iterable[Curve],
    *,
    device: torch.device,
    seed: int = 0,
    amp: bool = False,
) -> Iterator[Point]:
    """The points of one subject and pair.

    Args:
        item: the preprocessed subject, tensors (1, H, W, D) in [-1, 1], and their foregrounds.
        pair: (source, target).
        modalities: the networks' vocabulary, in its order.
        to_native: maps an image (1, H, W, D) to the grid of a scan.
        models: the networks; those that share a module share what it computes.
        curves: what to measure.
        device: where the networks are.
        seed: of the noise; the k-th sample's is ``seed + k``.
        amp: compute in bfloat16 where autocast does.
    """
    source, target = pair
    image, brain = (plain(item[key]).unsqueeze(0).to(device) for key in (source, foreground_key(source)))
    reference, index = make_reference(item, target, to_native), modalities.index(target)
    ends = ends_of(item[target])  # the truth's own: the curves show differences between steps, not how good they are
    latents: Latents = {}

    def point(model: str, sampler: str, count: int, samples: int, result: Translated) -> Point:
        comparable = on_percentiles(to_native(unit(result.image[0]), target).cpu(), ends)
        scores = reference.score(comparable)["brain"]
        cost = result.cost
        assert cost is not None
        return Point(
            item[SUBJECT], source, target, model, sampler, count, samples, cost.evaluations,
            cost.seconds, scores.psnr, scores.ssim,
        )  # fmt: skip

    for model in models:
        translation = Translation(
            model.network, image, mask=brain, amp=amp, measured=True, latents=latents, keep_samples=True
        )
        yield point(model.name, SPADE_ONLY, 0, 1, translation.spade_only(index))
        for curve in curves:
            for count in curve.steps:
                found = translation.translate(index, curve.sampling(count), seed=seed, num_samples=curve.num_samples)
                yield point(model.name, curve.name, count, curve.num_samples, found)
