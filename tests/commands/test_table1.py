"""Tests of custom.commands.table1."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

import custom.commands.table1
import custom.commands.trainings
from custom.commands.table1 import METHODS, table1
from custom.data.datalist import ensure_phantom
from custom.evaluation.results import Results, Setup, SubjectResult
from custom.evaluation.rows import COPY_SOURCE, FULL_MODEL, Row, read_rows
from custom.rivals.pix2pix import Pix2Pix

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"
TASK = [["t1", "t2"]]
FLOPS = {"train_autoencoder": 3e12, "train_spade": 1e12, "train": 2e12}
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")


class FakeWorkflow:
    """Records what is run and writes what the driver reads."""

    def __init__(self, runs: list[FakeWorkflow], name: str, values: Mapping[str, Any], overlays: Sequence[str]) -> None:
        self.runs, self.name, self.values, self.overlays = runs, name, dict(values), list(overlays)
        self.parser = ConfigParser()
        self.parser.read_config([str(CONFIGS / f"{n}.json") for n in (name, *overlays)])
        self.parser.update({**self.values, "bundle_root": str(CONFIGS.parent)})

    def initialize(self) -> None:
        self.runs.append(self)

    def run(self) -> None:
        if self.name != "evaluate":
            state = Pix2Pix(["t1", "t2"], ("t1", "t2"), halvings=2).state_dict()
            for key in ("stage_dir", "ckpt_path"):
                path = Path(self.values[key])
                path = path / "best.pt" if key == "stage_dir" else path
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.save(state, path)
            return
        results = Results(self.values["output_dir"])
        score = 20.0 + len(self.overlays)
        for subject in ("a", "b"):
            rows = [
                Row(subject, s, t, m, r, score if m == FULL_MODEL else 15.0, 0.9, 0.1, 0.05, 1.0)
                for s, t in self.values["scored_pairs"] for m in self.values["methods"] for r in ("volume", "brain")
            ]  # fmt: skip
            results.save(SubjectResult(subject, rows=rows), None)
        results.save_setup(Setup(subjects=["a", "b"]))

    def finalize(self) -> None:
        pass


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeWorkflow]:
    found: list[FakeWorkflow] = []

    def make(name: str, values: Mapping[str, Any], *, overlays: Sequence[str] = ()) -> FakeWorkflow:
        return FakeWorkflow(found, name, values, overlays)

    for module in (custom.commands.table1, custom.commands.trainings):
        monkeypatch.setattr(module, "bundle_workflow", make)
    monkeypatch.setattr(
        custom.commands.table1, "step_flops", lambda files, *_, **__: FLOPS.get(Path(files[0]).stem, 1e12)
    )
    return found


@pytest.fixture
def data(cohort) -> Path:
    folder = cohort(5)
    names = [f"s{i:02d}" for i in range(5)]
    split = {"training": names[:3], "validation": names[3:4], "test": names[4:]}
    content: dict[str, Any] = {"modalities": ["t1", "t1ce", "t2", "flair"]}
    for section, subjects in split.items():
        content[section] = [
            {"subject": s, **{m: f"{s}/{s}_{m}.nii.gz" for m in content["modalities"]}} for s in subjects
        ]
    (folder / "datalist.json").write_text(json.dumps(content))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", ["nice_gan", "ours"])
def test_the_cost_of_volumes_of_several_sizes_is_counted(tmp_path: Path, method: str) -> None:
    """Phantoms of 4 mm are 48 and 64 voxels long after padding: their mean is one that no network takes."""
    folder = ensure_phantom(tmp_path / "phantom", counts=(3, 0, 0), spacing=4.0)
    values: dict[str, Any] = {"dataset_dir": str(folder)}
    run, _ = custom.commands.table1._prepare(tmp_path, 1.0, values, TASK)
    assert all(length % 16 == 0 for length in run.volume)
    if method != "ours":
        values["pair"] = ["t1", "t2"]
    for training in METHODS[method].trainings:
        epochs, tflop = custom.commands.table1._cost(run, training, values)
        assert epochs > 0
        assert tflop > 0


def trained(runs: list[FakeWorkflow]) -> list[tuple[str, ...]]:
    return [(r.name, *r.overlays, "-".join(r.values.get("pair", []))) for r in runs if r.name != "evaluate"]


@pytest.mark.slow
def test_each_method_is_trained_for_each_task_and_ours_once(
    tmp_path: Path, data: Path, runs: list[FakeWorkflow]
) -> None:
    """Those without pairs for the first task alone."""
    names = ["reg_gan", "nice_gan", "res_vit", "ours", "shipped"]
    out = tmp_path / "out"
    page = table1(out, methods=names, dataset_dir=str(data), budget=6.0)
    assert page == out / "report.html"
    first, second = "t1-t2", "t2-flair"
    assert trained(runs) == [
        ("train_rival", "rival_reg_gan", first), ("train_rival", "rival_reg_gan", second),
        ("train_rival", "rival_nice_gan", first),
        ("train_rival", "rival_res_vit_stage1", first), ("train_rival", "rival_res_vit", first),
        ("train_rival", "rival_res_vit_stage1", second), ("train_rival", "rival_res_vit", second),
        ("train_autoencoder", ""), ("train_spade", ""), ("train", ""),
    ]  # fmt: skip
    by_name = {(r.name, *r.overlays): r.values for r in runs}
    stage1 = out / "res_vit" / "t2_to_flair" / "res_vit_stage1"
    assert by_name["train_rival", "rival_res_vit"]["pretrained"] == str(stage1 / "best.pt")
    assert by_name[("train",)]["spade_path"] == str(out / "ours" / "spade" / "best.pt")
    assert all(str(out) in r.values["stage_dir"] for r in runs if r.name != "evaluate")
    with_trivial = [r.values["pairs"] for r in runs if r.name == "evaluate" and COPY_SOURCE in r.values["methods"]]
    assert with_trivial == [[["t1", "t2"]], [["t2", "flair"]]]  # scored once, whatever the number of methods
    rows = (out / "tables" / "models_brain.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0].strip('"') for line in rows[1:]] == [
        COPY_SOURCE, "training mean", "intensity lookup", "RegGAN", "NICE-GAN", "ResViT", "ours", "ours"
    ]  # fmt: skip
    assert "T1 → T2 PSNR" in rows[0]
    assert "T2 → FLAIR PSNR" in rows[0]
    assert (out / "tables" / "tests_brain.md").is_file()
    scores = read_rows(out / "per_subject.csv")
    assert len(scores) == len({row[:5] for row in scores})


@pytest.mark.slow
def test_every_method_has_the_same_arithmetic(tmp_path: Path, data: Path, runs: list[FakeWorkflow]) -> None:
    out = tmp_path / "out"
    table1(out, methods=["pix2pix_2d", "res_vit", "ours"], tasks=TASK, dataset_dir=str(data), budget=600.0)
    found = {r.name if not r.overlays else r.overlays[0]: r.parser["max_epochs"] for r in runs if r.name != "evaluate"}
    assert found["rival_pix2pix_2d"] == 300  # two steps of 1 TFLOP an epoch: three subjects, two a step
    assert (found["rival_res_vit_stage1"], found["rival_res_vit"]) == (200, 100)
    lines = (out / "tables" / "training.csv").read_text(encoding="utf-8").splitlines()[1:]
    tflop = [float(line.split(",")[-2]) for line in lines]
    assert tflop == pytest.approx([600, 600, 600], rel=0.05)
    epochs = [json.loads((CONFIGS / f"{name}.json").read_text())["max_epochs"] for name in FLOPS]
    assert [found[name] / found["train"] for name in FLOPS] == pytest.approx([e / epochs[-1] for e in epochs], rel=0.05)


@pytest.mark.slow
def test_what_is_complete_is_not_done_again_and_the_rest_resumed(
    tmp_path: Path, data: Path, runs: list[FakeWorkflow]
) -> None:
    out = tmp_path / "out"
    table1(out, methods=["reg_gan"], tasks=TASK, dataset_dir=str(data), budget=6.0)
    started = out / "dea_gan" / "t1_to_t2" / "dea_gan" / "last.pt"
    started.parent.mkdir(parents=True)
    started.touch()
    del runs[:]
    table1(out, methods=["reg_gan", "dea_gan"], tasks=TASK, dataset_dir=str(data), budget=6.0)
    assert trained(runs) == [("train_rival", "rival_dea_gan", "t1-t2")]
    assert runs[1].parser["resume"] is True
    with pytest.raises(ValueError, match=r"settings\.json: .* found budget 6.0, not 7.0. Give another"):
        table1(out, methods=["reg_gan"], tasks=TASK, dataset_dir=str(data), budget=7.0)


@pytest.mark.slow
def test_a_method_that_fails_leaves_the_others(
    tmp_path: Path, data: Path, runs: list[FakeWorkflow], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeWorkflow.run

    def failing(self: FakeWorkflow) -> None:
        if "rival_dea_gan" in self.overlays:
            raise RuntimeError("no memory")
        run(self)

    monkeypatch.setattr(FakeWorkflow, "run", failing)
    table1(tmp_path / "out", methods=["dea_gan", "reg_gan"], tasks=TASK, dataset_dir=str(data))
    text = " ".join((tmp_path / "out" / "report.txt").read_text(encoding="utf-8").split())
    assert "dEa-GAN, T1 → T2 is left out: failed: RuntimeError: no memory" in text
    with pytest.raises(ValueError, match="found none"):
        table1(tmp_path / "none", methods=["dea_gan"], tasks=TASK, dataset_dir=str(data))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["gan"]}, "methods: expected some of pix2pix_2d.*found gan"),
        ({"budget": 0}, "size, budget: expected one of original, small and a positive number"),
        ({"budget": "abc"}, "size, budget: .* a positive number of TFLOP; found small, abc"),
        ({"size": "huge"}, "size, budget: expected one of original, small"),
        ({"budgt": 3}, "--budgt: expected an option or a key of the configs; found none. Did you mean --budget"),
        ({"max_epochs": "many"}, "max_epochs: expected a whole number"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table1(tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_task_that_the_data_lack(tmp_path: Path, data: Path, runs: list[FakeWorkflow]) -> None:
    with pytest.raises(ValueError, match="tasks: expected pairs of two of t1, t1ce, t2, flair"):
        table1(tmp_path / "out", tasks=[["t1", "pd"]], dataset_dir=str(data))
    assert not (tmp_path / "out" / "settings.json").exists()  # corrected settings are no other ones


def test_every_overlay_of_the_bundle_exists() -> None:
    for method in METHODS.values():
        for training in method.trainings:
            assert all((CONFIGS / f"{name}.json").is_file() for name in (training.config, *training.overlays))


@pytest.mark.slow
def test_two_methods_from_phantoms_to_table(tmp_path: Path) -> None:
    data = ensure_phantom(tmp_path / "data", counts=(2, 1, 1), spacing=5.0)
    quick = {"device": "$torch.device('cpu')", "cache_workers": 0, "slices_per_subject": 1}
    out = tmp_path / "out"
    table1(out, methods=["pix2pix_2d", "shipped"], tasks=TASK, budget=0.001, dataset_dir=str(data), amp=False, **quick)
    methods = {row.method for row in read_rows(out / "per_subject.csv")}
    assert methods == {COPY_SOURCE, "training mean", "intensity lookup", "2D Pix2Pix", "ours, shipped weights"}
    # the shipped weights know their error, for which the figures have no column
    assert (out / "report.html").is_file()
    assert [p.name.partition("_")[2] for p in (out / "figures").iterdir()] == ["t1_to_t2.png"]
