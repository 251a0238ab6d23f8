"""Demonstration: translate a held-out phantom, and a scan of one's own, with the shipped weights.

It runs the bundle's own ``inference.json`` and ``evaluate.json``; nothing is computed in another way than there.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from custom.commands.workflows import bundle_workflow
from custom.data.datalist import ensure_phantom
from custom.data.layouts import discover
from custom.data.names import SYNTHETIC_SUFFIX, image_stem
from custom.data.readers import read_volume
from custom.evaluation import slices
from custom.evaluation.evaluator import SEGMENTATION, SUBJECT, NativeGrid, make_reference, unit
from custom.evaluation.metrics import REGIONS, RESCALED_REGIONS
from custom.evaluation.protocols import on_percentiles
from custom.evaluation.rows import (
    CEILING,
    COPY_SOURCE,
    FULL_MODEL,
    LOOKUP,
    SPADE_ONLY,
    TRAINING_MEAN,
    Row,
    display_name,
    rows_of,
    write_rows,
)
from custom.inference.inputs import inference_inputs
from custom.reports import figures
from custom.reports.render import to_text
from custom.reports.tables import method_table
from custom.utils.modalities import canonical

__all__ = ["demo"]

PHANTOM_COUNTS = (3, 0, 1)
# Another seed than that of the training phantoms, so the weights have seen none of them; the held-out subject of this
# one has an enhancing tumour.
PHANTOM_SEED = 1003


def demo(
    image: str | os.PathLike[str] | None = None,
    output_dir: str | os.PathLike[str] = "output/demo",
    **overrides: Any,
) -> None:
    """Translate one held-out phantom into all targets, print how good that is, and draw it.

    Args:
        image: also translate this: a file, drawn beside its translations, or a folder in the BraTS 2021 layout, whose
            first subject is also scored and drawn beside the truth.
        output_dir: for the translations, ``demo.png`` and ``scores.csv``.
        overrides: values of both configs, such as ``amp=True``.

    Raises:
        FileNotFoundError, ValueError: for an image that is missing or cannot be translated.
    """
    started = time.monotonic()
    output = Path(output_dir).expanduser()
    for config in ("evaluate", "inference"):  # a wrong option or path is an error now, not after minutes
        bundle_workflow(config, overrides)
    if image is not None:
        inference_inputs(image)
    print("[1] Phantoms that the weights have never seen", flush=True)
    phantoms = ensure_phantom(output / "phantoms", counts=PHANTOM_COUNTS, seed=PHANTOM_SEED)
    shared = {**overrides, "dataset_dir": str(phantoms), "output_dir": str(output)}
    print("[2] One of them, from its first modality into all others", flush=True)
    rows = _subject(output / "demo.png", (COPY_SOURCE, TRAINING_MEAN, LOOKUP, CEILING, SPADE_ONLY), shared)
    if image is not None:
        print(f"[3] {image}", flush=True)
        if Path(image).expanduser().is_dir():
            entry = discover(image)[0]
            methods = (COPY_SOURCE, TRAINING_MEAN, LOOKUP)
            rows += _subject(output / f"{entry[SUBJECT]}.png", methods, {**shared, "dataset#data": [entry]})
        else:
            _file(Path(image).expanduser(), shared)
    write_rows(output / "scores.csv", rows)
    print(f"Done in {time.monotonic() - started:.0f} s. Volumes, pictures and scores: {output}", flush=True)


def _subject(picture: Path, methods: Sequence[str], shared: Mapping[str, Any]) -> list[Row]:
    """Translate the first held-out subject from its first modality; print the scores and draw.

    The rows of the full model are those of the files that ``inference.json`` writes; ``methods`` are the others.
    """
    handlers = [{"_target_": "custom.reports.handlers.ProgressHandler"}]
    workflow = bundle_workflow(
        "evaluate", {**shared, "methods": list(methods), "handlers": handlers, "store": None, "max_subjects": 1}
    )
    dataset = workflow.parser.get_parsed_content("dataset")
    entry = dataset.data[0]
    source, *targets = [m for m in workflow.parser.get_parsed_content("modalities") if m in entry]
    files = _translate(entry[source], targets, shared)
    workflow.parser["sources"] = [source]
    workflow.initialize()
    evaluator = workflow.parser.get_parsed_content("evaluator")
    evaluator.run()
    for why in evaluator.state.failures.values():
        raise ValueError(why)
    item = dataset[0]
    to_native = NativeGrid(item, dataset.transform)
    rows = evaluator.state.output.rows + _score_files(item, to_native, source, files, evaluator.ends_for)
    print(f"\n{entry[SUBJECT]}, {display_name(source)} to every other modality\n")
    for region in (*REGIONS, *RESCALED_REGIONS):
        if table := method_table(rows, region):
            print(to_text(table) + "\n")
    _draw_subject(picture, item, to_native, source, files)
    return rows


def _score_files(
    item: Mapping[str, torch.Tensor],
    to_native: NativeGrid,
    source: str,
    files: Mapping[str, Path],
    ends_for: Callable[[str], tuple[float, float] | None],
) -> list[Row]:
    rows: list[Row] = []
    for target, file in files.items():
        prediction = torch.from_numpy(nib.load(file).get_fdata(dtype=np.float32))
        comparable = on_percentiles(prediction, ends_for(target))
        scores = make_reference(item, target, to_native).score_rescaled(comparable)
        rows += rows_of(str(item[SUBJECT]), source, target, FULL_MODEL, scores)
    return rows


def _draw_subject(
    picture: Path, item: Mapping[str, torch.Tensor], to_native: NativeGrid, source: str, files: Mapping[str, Path]
) -> None:
    affine = nib.load(next(iter(files.values()))).affine
    turned = {m: slices.to_ras(to_native(unit(item[m]), m).numpy(), affine) for m in (source, *files)}
    truths, spacing = {m: image for m, (image, _) in turned.items()}, turned[source][1]
    label = item.get(SEGMENTATION)
    lesion = None if label is None else slices.to_ras(to_native((label > 0).float(), source).numpy(), affine)[0] > 0
    z = slices.slice_position(truths[source] > 0, lesion)[2]
    translations = {(source, target): slices.axial(_read(file), z) for target, file in files.items()}
    translations[source, source] = slices.axial(truths[source], z)
    shown = {m: slices.axial(image, z) for m, image in truths.items()}
    figures.translation_grid(
        picture, translations, shown, title=str(item[SUBJECT]), spacing=spacing[:2], diagonal="the source itself"
    )
    print(f"Picture: {picture}", flush=True)


def _file(image: Path, shared: Mapping[str, Any]) -> None:
    """Translate one file into every modality but the one that its name tells, and draw it beside the results."""
    stem = image_stem(image)
    modalities = bundle_workflow("inference", shared).parser.get_parsed_content("modalities")
    own = canonical(re.split(r"[._-]", stem)[-1])
    files = _translate(image, [m for m in modalities if m != own], shared)
    scan = read_volume(image)
    source, spacing = slices.to_ras(scan[0].numpy(), scan.affine.numpy())
    low, high = np.percentile(source[source > 0], (0.5, 99.5))
    name = f"Source {display_name(own)}" if own in modalities else "Source"
    columns = {name: np.clip((source - low) / (high - low), 0, 1)}
    columns |= {display_name(target): _read(file) for target, file in files.items()}
    picture = Path(shared["output_dir"]) / f"{stem}.png"
    figures.volume_panel(picture, columns, spacing=spacing, title=stem)
    print(f"Picture: {picture}", flush=True)


def _translate(image: str | os.PathLike[str], targets: Sequence[str], shared: Mapping[str, Any]) -> dict[str, Path]:
    """Run ``inference.json`` on one file; the files it wrote by target."""
    overrides = {k: v for k, v in shared.items() if not k.startswith("dataset#")}
    workflow = bundle_workflow("inference", {**overrides, "image": str(image), "targets": list(targets)})
    workflow.initialize()
    workflow.run()
    folder = Path(shared["output_dir"])
    return {t: folder / f"{image_stem(image)}_{t}{SYNTHETIC_SUFFIX}.nii.gz" for t in targets}


def _read(file: Path) -> np.ndarray:
    image = nib.load(file)
    return slices.to_ras(image.get_fdata(dtype=np.float32), image.affine)[0]
