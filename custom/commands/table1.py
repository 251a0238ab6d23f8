"""The paper's Table 1: its eight rivals and this model, trained with the same arithmetic and scored by one protocol.

A rival is an overlay ``configs/rival_<name>.json`` of ``train_rival.json`` and of ``evaluate.json``. What is complete
is not done again and a training goes on from its last checkpoint, so an interrupted run is started once more as it was.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser

from custom.commands.trainings import applicable, check_overrides, check_settings, keep_settings, train, trained
from custom.commands.workflows import bundle_workflow
from custom.data.datalist import ensure_phantom, load_datalist
from custom.evaluation.pictures import Pictures
from custom.evaluation.results import Results, Setup, SubjectResult
from custom.evaluation.rows import COPY_SOURCE, EXPECTED_ERROR, FULL_MODEL, LOOKUP, TRAINING_MEAN
from custom.networks.weights import CARD, read_weights
from custom.reports.render import Table, to_text, write_table
from custom.reports.report import write_report
from custom.reports.tables import task_name
from custom.rivals.layers import SIZES
from custom.rivals.samples import empty_batch
from custom.training.memory import step_flops
from custom.utils.arguments import is_positive
from custom.utils.bundle import bundle_folder, config_folder
from custom.utils.errors import user_message
from custom.utils.modalities import canonical
from custom.utils.precision import AUTO, amp_choice

__all__ = ["METHODS", "TASKS", "Method", "table1"]

logger = logging.getLogger(__name__)

TRIVIAL = (COPY_SOURCE, TRAINING_MEAN, LOOKUP)
TASKS = (("t1", "t2"), ("t2", "flair"), ("t1", "pd"))  # the paper's
MEASURED = 4  # subjects whose mean size stands for all

Task = tuple[str, str]


class Training(NamedTuple):
    """One training of a method: its config, overlays and the folder below the method's own."""

    config: str
    overlays: tuple[str, ...]
    folder: str


class Method(NamedTuple):
    """A row of the table.

    Attributes:
        label: in the table.
        trainings: in their order, each starting from the one before; none for weights that are there.
        seen: what it is trained on: ``"pairs"``, ``"no pairs"``, or ``"all pairs"`` of one network for every task.
    """

    label: str
    trainings: tuple[Training, ...]
    seen: str = "pairs"


def _rival(*names: str) -> tuple[Training, ...]:
    return tuple(Training("train_rival", (f"rival_{name}",), name) for name in names)


OURS, SHIPPED = "ours", "shipped"
METHODS: Mapping[str, Method] = {
    "pix2pix_2d": Method("2D Pix2Pix", _rival("pix2pix_2d")),
    "cyclegan_2d": Method("2D CycleGAN", _rival("cyclegan_2d"), "no pairs"),
    "nice_gan": Method("NICE-GAN", _rival("nice_gan"), "no pairs"),
    "reg_gan": Method("RegGAN", _rival("reg_gan")),
    "res_vit": Method("ResViT, no pretrained ViT", _rival("res_vit_stage1", "res_vit")),
    "pix2pix_3d": Method("3D Pix2Pix", _rival("pix2pix_3d")),
    "cyclegan_3d": Method("3D CycleGAN", _rival("cyclegan_3d"), "no pairs"),
    "dea_gan": Method("dEa-GAN", _rival("dea_gan")),
    OURS: Method(
        "ours",
        (
            Training("train_autoencoder", (), "autoencoder"),
            Training("train_spade", (), "spade"),
            Training("train", (), "diffusion"),
        ),
        "all pairs",
    ),
    SHIPPED: Method("ours, shipped weights", (), "all pairs"),
}


class Run(NamedTuple):
    """What the trainings of a table have in common."""

    output: Path
    budget: float
    values: Mapping[str, Any]
    subjects: Sequence[Mapping[str, Any]]
    volume: tuple[int, ...]


class Effort(NamedTuple):
    """What a training took: TFLOP, minutes, parameters of the network that translates."""

    tflop: float
    minutes: float
    parameters: int


def table1(
    output_dir: str | os.PathLike[str] = "output/table1",
    *,
    methods: str | Sequence[str] = tuple(METHODS),
    tasks: Sequence[Sequence[str]] | None = None,
    all_tasks: bool = False,
    budget: float = 100.0,
    size: str = "small",
    subjects: Sequence[int] = (24, 2, 6),
    spacing: float = 2.0,
    dataset_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    amp: bool | str = AUTO,
    num_figures: int = 2,
    **overrides: Any,
) -> Path:
    """Train and score the methods; write and print Table 1, its tests and pictures shaped as Figures 4 and 5.

    Args:
        output_dir: for phantoms, weights, scores, tables and ``report.html``.
        methods: names of :data:`METHODS`.
        tasks: (source, target); by default those of the paper whose contrasts the data have.
        all_tasks: also train the methods without pairs for the tasks after the first.
        budget: TFLOP of each training of a network, forward and backward, all its stages together: convolutions and
            matrix products, counted for the mean size of the subjects. The rivals are trained once a task, this model
            once for all.
        size: of the rivals, ``"small"`` or ``"original"``.
        subjects: phantoms for training, validation and test.
        spacing: voxel size of the phantoms in mm.
        dataset_dir: data of one's own in place of the phantoms.
        seed: of phantoms, initial weights and noise.
        amp: compute in bfloat16; ``"auto"`` where that is faster.
        num_figures: how many subjects are drawn.
        overrides: values of all the configs, such as ``device``.

    Returns:
        Path of ``report.html``.

    Raises:
        ValueError: for unknown methods, tasks or sizes, a budget that is not positive, a folder with the results of
            other settings, and where no method could be trained and scored.
    """
    names = [methods] if isinstance(methods, str) else list(methods)
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise ValueError(f"methods: expected some of {', '.join(METHODS)}; found {', '.join(unknown) or 'none'}.")
    if size not in SIZES or not is_positive(budget):
        raise ValueError(
            f"size, budget: expected one of {', '.join(SIZES)} and a positive number of TFLOP; found {size}, {budget}."
        )
    output = Path(output_dir).expanduser().resolve()
    counts = tuple(map(int, subjects))
    settings = {"budget": float(budget), "size": size, "subjects": counts, "spacing": float(spacing), "seed": int(seed)}
    check_overrides(table1, ("train_rival", "evaluate"), overrides)
    whole = {**settings, "dataset_dir": str(dataset_dir), **overrides}
    check_settings(output / "settings.json", whole)
    data = dataset_dir or ensure_phantom(output / "phantom", counts=counts, seed=int(seed), spacing=float(spacing))
    values = {"dataset_dir": str(data), "seed": int(seed), "amp": amp_choice(amp), "size": size, **overrides}
    run, wanted = _prepare(output, float(budget), values, tasks)
    keep_settings(output / "settings.json", whole)
    results = _Merged(output)
    for name in names:
        for task in _tasks_of(METHODS[name], wanted, all_tasks):
            trivial = () if results.has(TRIVIAL, task) else TRIVIAL
            results.attempt(
                METHODS[name], task, lambda name=name, task=task, rows=trivial: _train_and_score(run, name, task, rows)
            )
    return results.report(wanted, num_figures, {**settings, "data": str(data)})


def _prepare(
    output: Path, budget: float, values: Mapping[str, Any], tasks: Sequence[Sequence[str]] | None
) -> tuple[Run, list[Task]]:
    """Training subjects, their mean size, and the tasks that their contrasts allow."""
    parser = bundle_workflow("train_rival", values).parser
    modalities = parser.get_parsed_content("modalities")
    if tasks is None:
        wanted = [task for task in TASKS if set(task) <= set(modalities)]
    else:
        wanted = [(canonical(source), canonical(target)) for source, target in tasks]
    if not wanted or any(not set(task) <= set(modalities) or task[0] == task[1] for task in wanted):
        raise ValueError(
            f"tasks: expected pairs of two of {', '.join(modalities)}, the contrasts of the data; found {tasks}."
        )
    entries = load_datalist(str(values["dataset_dir"]), "training", modalities)
    transform = parser.get_parsed_content("train#preprocessing")
    shapes = [next(v.shape[1:] for v in transform(e).values() if torch.is_tensor(v)) for e in entries[:MEASURED]]
    divisor = int(parser["spatial_divisor"])  # every volume is padded to a multiple of it, so the mean has to be one
    volume = tuple(round(sum(lengths) / len(shapes) / divisor) * divisor for lengths in zip(*shapes, strict=True))
    return Run(output, budget, values, entries, volume), wanted


def _tasks_of(method: Method, tasks: Sequence[Task], all_tasks: bool) -> list[tuple[Task, ...]]:
    """The tasks of each of its networks."""
    if method.seen == "all pairs":
        return [tuple(tasks)]
    return [(task,) for task in (tasks if all_tasks or method.seen == "pairs" else tasks[:1])]


def _train_and_score(
    run: Run, name: str, tasks: tuple[Task, ...], trivial: Sequence[str]
) -> tuple[Effort | None, Path]:
    """Effort of the training, None for weights that were there, and the folder of the evaluation."""
    method = METHODS[name]
    folder = run.output / name if method.seen == "all pairs" else run.output / name / "_to_".join(tasks[0])
    values = {**run.values, "output_dir": str(folder), "cache_dir": str(run.output / "latents")}
    if method.seen != "all pairs":
        values["pair"] = list(tasks[0])
    weights, effort = bundle_folder() / "models" / "model.pt", None
    if method.trainings:
        weights, effort = _train_all(run, method, folder, values)
    return effort, _score(run, method, tasks, trivial, weights, folder / "evaluation", values)


def _train_all(run: Run, method: Method, folder: Path, values: Mapping[str, Any]) -> tuple[Path, Effort]:
    costs = [_cost(run, training, values) for training in method.trainings]
    share = run.budget / sum(epochs * tflop for epochs, tflop in costs)
    before: dict[str, str] = {}
    records = []
    for training, (epochs, tflop) in zip(method.trainings, costs, strict=True):
        own = folder / training.folder
        paths = {"stage_dir": str(own), "ckpt_path": str(own / "model.pt"), **before}
        if trained(own) is None:
            done = max(1, round(share * epochs))
            print(f"{method.label}: {training.folder}, {done} epochs, {done * tflop:.3g} TFLOP", flush=True)
            record = {"tflop": done * tflop}
            train(training.config, training.overlays, own, share, {**values, **paths}, record=record)
        found = trained(own)
        assert found is not None
        records.append(found)
        keys = ("pretrained",) if training.config == "train_rival" else ("autoencoder_path", "spade_path")
        before = dict.fromkeys(keys, str(own / "best.pt"))
    weights = folder / method.trainings[-1].folder / "model.pt"
    parameters = sum(t.numel() for key, t in read_weights(weights).items() if key != CARD)
    minutes = sum(record["seconds"] for record in records) / 60
    return weights, Effort(sum(record["tflop"] for record in records), minutes, parameters)


def _cost(run: Run, training: Training, values: Mapping[str, Any]) -> tuple[int, float]:
    """Epochs of the config, and TFLOP of one of them."""
    files = [config_folder() / f"{name}.json" for name in (training.config, *training.overlays)]
    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    own = applicable(values, training.overlays)
    batch = own.get("subjects_per_batch", parser.get("subjects_per_batch", parser.get("batch_size")))
    pair = own.get("pair") if training.config == "train_rival" else None
    number = len([e for e in run.subjects if pair is None or set(pair) <= set(e)])
    make_batch = empty_batch if training.config == "train_rival" else None
    flops = step_flops(files, run.volume, make_batch=make_batch, **{k: v for k, v in own.items() if k != "device"})
    return int(parser["max_epochs"]), -(-number // int(batch)) * flops / 1e12


def _score(
    run: Run,
    method: Method,
    tasks: Sequence[Task],
    trivial: Sequence[str],
    weights: Path,
    folder: Path,
    values: Mapping[str, Any],
) -> Path:
    """Scores and pictures of the test subjects, with those of the trivial translations that are not there yet."""
    of_test = {
        "section": "test",
        "pairs": [list(task) for task in tasks],
        "scored_pairs": [list(task) for task in tasks],
        "methods": [*trivial, FULL_MODEL],
        "ckpt_path": str(weights),
        "output_dir": str(folder),
        "baselines#path": str(run.output / "baselines.npz"),
        "num_figures": 0,
        "viewer_megabytes": 0,
    }
    overlays = method.trainings[-1].overlays if method.trainings else ()
    workflow = bundle_workflow("evaluate", {**applicable(values, overlays), **of_test}, overlays=overlays)
    workflow.initialize()
    workflow.run()
    return folder


class _Merged:
    """The scores and pictures of all methods, subject by subject, in one folder of results."""

    def __init__(self, output: Path) -> None:
        self.results = Results(output)
        self.subjects: dict[str, SubjectResult] = {}
        self.pictures: dict[str, Pictures] = {}
        self.labels: list[str] = []
        self.notes: list[str] = []
        self.efforts: list[list[str]] = []

    def has(self, methods: Sequence[str], tasks: Sequence[Task]) -> bool:
        """Whether every subject so far has rows of all these methods and tasks."""
        found = [{(row.method, row.source, row.target) for row in s.rows} for s in self.subjects.values()]
        wanted = {(method, *task) for method in methods for task in tasks}
        return bool(found) and all(wanted <= rows for rows in found)

    def attempt(self, method: Method, tasks: tuple[Task, ...], work: Any) -> None:
        """Add what ``work`` gives; a failure is noted and leaves the others."""
        named = f"{method.label}, {', '.join(task_name(*task) for task in tasks)}"
        try:
            effort, folder = work()
        except Exception as error:
            self.notes.append(f"{named} is left out: {user_message(error, default='failed')}")
            logger.warning("%s", self.notes[-1])
            logger.debug("%s: traceback", named, exc_info=True)
            return
        if method.label not in self.labels:
            self.labels.append(method.label)
        task = "all" if method.seen == "all pairs" else task_name(*tasks[0])
        spent = ["–"] * 3 if effort is None else _shown(effort)
        self.efforts.append([method.label, task, method.seen, *spent])
        self._add(method.label, Results(folder))

    def _add(self, label: str, own: Results) -> None:
        for subject in own.load_setup().subjects:
            result, pictures = own.load(subject), own.pictures(subject)
            if result is None:
                continue
            merged = self.subjects.setdefault(subject, SubjectResult(subject))
            known = {(row.method, row.source, row.target) for row in merged.rows}
            renamed = [row._replace(method=_renamed(row.method, label)) for row in result.rows]
            merged.rows += [row for row in renamed if row[3:4] + row[1:3] not in known]
            merged.costs += [[_renamed(m, label), *rest] for m, *rest in result.costs if m == FULL_MODEL]
            merged.notes += [note for note in result.notes if note not in merged.notes]
            if pictures is not None:
                kept = self.pictures.setdefault(subject, pictures)
                # the figures have a column a method, and none for the error that one of them expects
                slices = {
                    (_renamed(key[0], label), *key[1:]): s
                    for key, s in pictures.slices.items()
                    if key[0] != EXPECTED_ERROR
                }
                kept.slices = {**(kept.slices if kept is not pictures else {}), **slices}
                kept.volumes = {}

    def report(self, tasks: Sequence[Task], num_figures: int, settings: Mapping[str, Any]) -> Path:
        """Write and print everything.

        Raises:
            ValueError: if there is no method.
        """
        if not self.labels:
            raise ValueError(f"table1: expected a method that can be trained and scored; found none. {self.notes}")
        reference = METHODS[OURS].label if METHODS[OURS].label in self.labels else self.labels[0]
        columns = ["Model", "Task", "Trained on", "Parameters (M)", "TFLOP", "Minutes"]
        note = "Arithmetic: forward and backward, all stages together; without the encoding of latents to be kept."
        efforts = Table("Training", columns, self.efforts, note=note)
        for subject, result in self.subjects.items():
            self.results.save(result, self.pictures.get(subject))
        setup = Setup(
            "Table 1", list(dict.fromkeys(m for task in tasks for m in task)), [list(task) for task in tasks],
            reference=reference, num_figures=num_figures, viewer_megabytes=0,
            settings={name: json.dumps(value) for name, value in settings.items()}, notes=self.notes,
            subjects=list(self.subjects),
        )  # fmt: skip
        self.results.save_setup(setup)
        page = write_report(self.results, setup, list(self.subjects.values()))
        write_table(efforts, self.results.output_dir / "tables", "training")
        print(to_text(efforts))
        return page


def _renamed(method: str, label: str) -> str:
    return label if method == FULL_MODEL else method


def _shown(effort: Effort) -> list[str]:
    return [f"{effort.parameters / 1e6:.2f}", f"{effort.tflop:.3g}", f"{effort.minutes:.1f}"]
