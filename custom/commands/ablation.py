"""Ablations of the paper's Table 3: trained, evaluated and set beside each other with one command.

A variant is an overlay ``configs/ablation_<name>.json`` (or ``sampling_<name>.json``). It trains the stages that its
overlay changes and shares the others, which are trained once; what is complete is not done again, so an interrupted
run goes on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from custom.commands.trainings import applicable, check_overrides, check_settings, keep_settings, train, trained
from custom.commands.workflows import bundle_workflow
from custom.data.datalist import ensure_phantom
from custom.evaluation.pictures import TRUTH, Slices
from custom.evaluation.results import Results
from custom.evaluation.rows import CEILING, COPY_SOURCE, FULL_MODEL, LOOKUP, read_rows
from custom.reports.figures import method_panel
from custom.reports.render import to_text, write_table
from custom.reports.tables import Ablation, ablation_table, summaries, task_name
from custom.utils.arguments import is_positive
from custom.utils.errors import user_message
from custom.utils.precision import AUTO, amp_choice

__all__ = ["TABLE_3", "VARIANTS", "Variant", "ablation"]

logger = logging.getLogger(__name__)

FOLDERS = {"train_autoencoder": "autoencoder", "train_spade": "spade", "train": "diffusion"}
SHARED = "shared"
EVALUATION = "evaluation"
TASK = ("t1", "t2")


class Variant(NamedTuple):
    """A model of the comparison.

    Attributes:
        label: in the table.
        overlay: the config that holds its differences; none for the default.
        stages: the trainings that it needs, in their order.
        own: those that the overlay changes; the others are shared.
        marks: whether it has diffusion, Palette's concatenation and MS-SPADE, and the latent's regularisation.
    """

    label: str
    overlay: str | None
    stages: tuple[str, ...] = tuple(FOLDERS)
    own: tuple[str, ...] = ("train",)
    marks: tuple[bool, bool, bool, str] = (True, True, True, "VQ")


WITHOUT_SPADE = ("train_autoencoder", "train")
VARIANTS: Mapping[str, Variant] = {
    "diffusion_only": Variant(
        "(a)", "ablation_diffusion_only", stages=WITHOUT_SPADE, marks=(True, False, False, "VQ")
    ),
    "palette": Variant("(b)", "ablation_palette", stages=WITHOUT_SPADE, marks=(True, True, False, "VQ")),
    "spade_only": Variant(
        "(c)", "ablation_spade_only", stages=("train_autoencoder", "train_spade"), own=(),
        marks=(False, False, True, "VQ"),
    ),
    "kl": Variant("(d)", "ablation_kl", own=tuple(FOLDERS), marks=(True, True, True, "KL")),
    "ours": Variant("ours", "ablation_no_detail"),
    "detail": Variant("ours + detail", None),
    "epsilon": Variant("predicts ε", "sampling_epsilon"),
    "v_prediction": Variant("predicts v", "sampling_v_prediction"),
    "rectified_flow": Variant("rectified flow", "sampling_rectified_flow"),
}  # fmt: skip
TABLE_3 = ("diffusion_only", "palette", "spade_only", "kl", "ours", "detail")


class Budget(NamedTuple):
    """Budget of the run: share of the configs' epochs; subjects by section and voxel size (mm) of the phantoms."""

    share: float
    counts: tuple[int, int, int]
    spacing: float
    seed: int


def ablation(
    output_dir: str | os.PathLike[str] = "output/ablation",
    *,
    variants: str | Sequence[str] = TABLE_3,
    share: float = 0.6,
    subjects: Sequence[int] = (24, 2, 6),
    spacing: float = 2.0,
    dataset_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    amp: bool | str = AUTO,
    **overrides: Any,
) -> list[Ablation]:
    """Train and evaluate the variants; write and print Table 3 for the volume and the brain.

    Args:
        output_dir: for phantoms, weights, scores and tables.
        variants: names of :data:`VARIANTS`.
        share: of the epochs of each stage's config, the same for all: the budget.
        subjects: phantoms for training, validation and test.
        spacing: voxel size of the phantoms in mm.
        dataset_dir: data of one's own in place of the phantoms.
        seed: of phantoms, initial weights and noise.
        amp: compute in bfloat16; ``"auto"`` where that is faster.
        overrides: values of all the configs, such as ``device``.

    Returns:
        What the table shows.

    Raises:
        ValueError: for an unknown variant, a share that is not positive, a folder with the results of other settings,
            and where no variant could be trained and evaluated.
    """
    variants = [variants] if isinstance(variants, str) else list(variants)
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown:
        raise ValueError(f"variants: expected some of {', '.join(VARIANTS)}; found {', '.join(unknown)}.")
    if not is_positive(share):
        raise ValueError(f"share: expected a positive share of the configs' epochs; found {share}.")
    check_overrides(ablation, (*FOLDERS, "evaluate"), overrides)
    output = Path(output_dir).expanduser().resolve()
    training, validation, test = map(int, subjects)
    budget = Budget(float(share), (training, validation, test), float(spacing), int(seed))
    settings = {**budget._asdict(), "dataset_dir": str(dataset_dir), **overrides}
    check_settings(output / "settings.json", settings)
    data = dataset_dir or ensure_phantom(
        output / "phantom", counts=budget.counts, seed=budget.seed, spacing=budget.spacing
    )
    keep_settings(output / "settings.json", settings)
    values = {"dataset_dir": str(data), "seed": budget.seed, "amp": amp_choice(amp), **overrides}
    done: list[Ablation] = []
    failures: dict[str, str] = {}
    for name in variants:
        try:
            done.append(_train_and_evaluate(name, output, budget, values, first=not done))
        except Exception as error:
            failures[name] = user_message(error, default="failed")
            logger.warning("%s: left out: %s", name, failures[name])
            logger.debug("%s: traceback", name, exc_info=True)
    if not done:
        reasons = "; ".join(f"{name}: {why}" for name, why in failures.items())
        raise ValueError(f"ablation: expected a variant that can be trained and evaluated; found none ({reasons}).")
    _report(output, done, failures, budget)
    _draw(output, {VARIANTS[name].label: name for name in variants if name not in failures})
    return done


def _train_and_evaluate(name: str, output: Path, budget: Budget, values: Mapping[str, Any], *, first: bool) -> Ablation:
    variant, weights = VARIANTS[name], Path()
    for stage in variant.stages:
        own = stage in variant.own
        folder = output / (name if own else SHARED) / FOLDERS[stage]
        before = {"autoencoder_path": str(weights), "spade_path": str(weights)}
        overlays = [variant.overlay] if own and variant.overlay else []
        paths = {**before, "stage_dir": str(folder), "output_dir": str(folder.parent)}
        paths["cache_dir"] = str(output / "latents")  # named after their weights, so that all may share it
        if stage == "train":
            paths["ckpt_path"] = str(output / name / "model.pt")
        if trained(folder) is None:
            print(f"[{variant.label}] {name}: {stage}, {'its own' if own else 'shared'}", flush=True)
            train(stage, overlays, folder, budget.share, {**values, **paths})
        weights = Path(paths.get("ckpt_path", folder / "best.pt"))
    return _evaluate(name, output, weights, values, first=first)


def _evaluate(name: str, output: Path, weights: Path, values: Mapping[str, Any], *, first: bool) -> Ablation:
    """Scores on the test subjects; the first variant's with those of the trivial translations."""
    variant, folder = VARIANTS[name], output / name / EVALUATION
    print(f"[{variant.label}] {name}: evaluation", flush=True)
    trivial = [COPY_SOURCE, LOOKUP] if first else []
    ceiling = [CEILING] if first or "train_autoencoder" in variant.own else []
    of_test = {
        "section": "test",
        "sources": [TASK[0]],
        "pairs": [TASK],
        "methods": [*trivial, *ceiling, FULL_MODEL],
        "ckpt_path": str(weights),
        "output_dir": str(folder),
        "baselines#path": str(output / "baselines.npz"),
    }
    overlays = [variant.overlay] if variant.overlay else []
    workflow = bundle_workflow("evaluate", {**applicable(values, overlays), **of_test}, overlays=overlays)
    workflow.initialize()
    workflow.run()
    return Ablation(variant.label, *variant.marks, read_rows(folder / "per_subject.csv"))


def _report(output: Path, done: Sequence[Ablation], failures: Mapping[str, str], budget: Budget) -> None:
    trained = f"Trained with {budget.share:g} of the configs' epochs."
    left_out = "".join(f" {VARIANTS[name].label} {name} is left out: {why}" for name, why in failures.items())
    for region in ("volume", "brain"):
        table = ablation_table(done, TASK, region)
        table = table._replace(note=f"{table.note} {trained} {_beside(done, region)}{left_out}")
        write_table(table, output, f"table3_{region}")
        print(to_text(table) + "\n")
    print(f"Tables: {output}")


def _beside(done: Sequence[Ablation], region: str) -> str:
    """PSNR of what needs no training, and of each autoencoder's reconstruction, which no translation can exceed."""
    found: dict[str, float] = {}
    for ablation in done:
        for (method, source, target, where), scores in summaries(ablation.rows).items():
            if where == region and method != FULL_MODEL and target == TASK[1] and source in (TASK[0], TASK[1]):
                name = f"{method} {ablation.regularization}" if method == CEILING else method
                found.setdefault(name, scores["psnr"].mean)
    return "PSNR beside them: " + ", ".join(f"{name} {psnr:.2f} dB" for name, psnr in found.items()) + "."


def _draw(output: Path, names: Mapping[str, str]) -> None:
    """The paper's Figure 7 for the first subject that every variant has pictures of."""
    results = {label: Results(output / name / EVALUATION) for label, name in names.items()}
    for subject in next(iter(results.values())).load_setup().subjects:
        found = [result.pictures(subject) for result in results.values()]
        key = (FULL_MODEL, *TASK)
        pictures = [p for p in found if p is not None and key in p.slices]
        if len(pictures) == len(found):
            shown = {label: _floats(p.slices[key]) for label, p in zip(results, pictures, strict=True)}
            truth, stamp = _floats(pictures[0].slices[TRUTH, TASK[1], TASK[1]]), pictures[0].stamp
            title = f"{subject}, {task_name(*TASK)}"
            picture = output / "figure7.png"
            method_panel(picture, shown, truth, lesion=pictures[0].lesion, spacing=stamp.spacing, title=title)
            print(f"Picture: {picture}")
            return


def _floats(slices: Slices) -> tuple[np.ndarray, np.ndarray]:
    return slices.axial.astype(np.float32) / 255, slices.sagittal.astype(np.float32) / 255
