"""Tests of custom.commands.ablation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

import custom.commands.ablation
import custom.commands.trainings
from custom.commands.ablation import TABLE_3, VARIANTS, ablation
from custom.data.datalist import ensure_phantom
from custom.evaluation.results import Results, Setup
from custom.evaluation.rows import CEILING, COPY_SOURCE, FULL_MODEL, LOOKUP, Row, write_rows

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"
TINY = {
    "device": "$torch.device('cpu')",
    "cache_workers": 0,
    "crop_size": [32, 32, 32],
    "latent_crop": [8, 8, 8],
    "network_def#autoencoder#channels": [8],
    "network_def#style_transfer#width": 8,
    "network_def#style_transfer#num_blocks": 1,
    "network_def#detail#width": 8,
    "network_def#unet#channels": [8, 8, 8],
    "network_def#unet#norm_num_groups": 4,
}


class FakeWorkflow:
    """Records what is run and writes what the driver reads."""

    def __init__(self, runs: list[FakeWorkflow], name: str, values: Mapping[str, Any], overlays: Sequence[str]) -> None:
        self.runs, self.name, self.values, self.overlays = runs, name, dict(values), list(overlays)
        self.parser = ConfigParser()
        self.parser.read_config(str(CONFIGS / f"{name}.json"))

    def initialize(self) -> None:
        self.runs.append(self)

    def run(self) -> None:
        if self.name == "evaluate":
            folder, scores = Path(self.values["output_dir"]), [20.0 + len(self.overlays), 0.9, 0.1, 0.05, 0.7]
            keys = [(m, "t2" if m == CEILING else "t1") for m in self.values["methods"]]
            rows = [Row("a", source, "t2", method, r, *scores) for method, source in keys for r in ("volume", "brain")]
            write_rows(folder / "per_subject.csv", rows)
            Results(folder).save_setup(Setup(subjects=["a"]))

    def finalize(self) -> None:
        pass


@pytest.fixture
def runs(monkeypatch) -> list[FakeWorkflow]:
    found: list[FakeWorkflow] = []

    def make(name: str, values: Mapping[str, Any], *, overlays: Sequence[str] = ()) -> FakeWorkflow:
        return FakeWorkflow(found, name, values, overlays)

    for module in (custom.commands.ablation, custom.commands.trainings):
        monkeypatch.setattr(module, "bundle_workflow", make)
    # collecting takes a third of a second a stage, and these hold nothing
    monkeypatch.setattr(custom.commands.trainings, "gc", SimpleNamespace(collect=lambda: 0))
    return found


def names(runs: list[FakeWorkflow]) -> list[tuple[str, ...]]:
    return [(run.name, *run.overlays) for run in runs]


def test_every_stage_is_trained_once(tmp_path: Path, runs: list[FakeWorkflow]) -> None:
    ablation(tmp_path / "out", dataset_dir=tmp_path)
    trained = [name for name in names(runs) if name[0] != "evaluate"]
    assert trained == [
        ("train_autoencoder",),
        ("train", "ablation_diffusion_only"),
        ("train", "ablation_palette"),
        ("train_spade",),
        ("train_autoencoder", "ablation_kl"),
        ("train_spade", "ablation_kl"),
        ("train", "ablation_kl"),
        ("train", "ablation_no_detail"),
        ("train",),
    ]
    assert len([name for name in names(runs) if name[0] == "evaluate"]) == len(TABLE_3)


def test_a_stage_starts_from_the_right_weights(tmp_path: Path, runs: list[FakeWorkflow]) -> None:
    out = tmp_path / "out"
    ablation(out, dataset_dir=tmp_path)
    before = {name: run.values.get("spade_path") for name, run in zip(names(runs), runs, strict=True)}
    assert before["train", "ablation_palette"] == str(out / "shared" / "autoencoder" / "best.pt")
    assert before[("train",)] == str(out / "shared" / "spade" / "best.pt")
    assert before["train", "ablation_kl"] == str(out / "kl" / "spade" / "best.pt")
    evaluated = {
        run.overlays[0] if run.overlays else "": run.values["ckpt_path"] for run in runs if run.name == "evaluate"
    }
    assert evaluated == {
        "ablation_diffusion_only": str(out / "diffusion_only" / "model.pt"),
        "ablation_palette": str(out / "palette" / "model.pt"),
        "ablation_spade_only": str(out / "shared" / "spade" / "best.pt"),
        "ablation_kl": str(out / "kl" / "model.pt"),
        "ablation_no_detail": str(out / "ours" / "model.pt"),
        "": str(out / "detail" / "model.pt"),
    }


def test_values_of_a_replaced_component_do_not_reach_it(tmp_path: Path, runs: list[FakeWorkflow]) -> None:
    key = "network_def#style_transfer#width"
    ablation(tmp_path / "out", variants=["palette", "ours"], dataset_dir=tmp_path, **{key: 8})
    found = {(name, run.values.get(key)) for name, run in zip(names(runs), runs, strict=True)}
    assert {(("train", "ablation_palette"), None), (("evaluate", "ablation_palette"), None)} <= found
    assert {(("train", "ablation_no_detail"), 8), (("train_spade",), 8)} <= found


def test_what_needs_no_training_is_scored_once(tmp_path: Path, runs: list[FakeWorkflow]) -> None:
    ablation(tmp_path / "out", dataset_dir=tmp_path)
    evaluated = [run for run in runs if run.name == "evaluate"]
    assert [run.values["methods"] for run in evaluated] == [
        [COPY_SOURCE, LOOKUP, CEILING, FULL_MODEL], [FULL_MODEL], [FULL_MODEL], [CEILING, FULL_MODEL], [FULL_MODEL],
        [FULL_MODEL],
    ]  # fmt: skip
    assert len({run.values["baselines#path"] for run in evaluated}) == 1
    note = (tmp_path / "out" / "table3_brain.md").read_text(encoding="utf-8")
    for name in (COPY_SOURCE, LOOKUP, f"{CEILING} VQ", f"{CEILING} KL"):
        assert f"{name} 21.00 dB" in note


def test_the_budget_is_the_same_share_of_every_stage(tmp_path: Path, runs: list[FakeWorkflow]) -> None:
    ablation(tmp_path / "out", dataset_dir=tmp_path, share=0.1, seed=7)
    for run in (run for run in runs if run.name != "evaluate"):
        config = json.loads((CONFIGS / f"{run.name}.json").read_text())
        assert run.parser["max_epochs"] == run.parser["val_interval"] == round(0.1 * config["max_epochs"])
        assert run.parser["warmup_steps"] == round(0.1 * config["warmup_steps"])
        assert run.values["seed"] == 7
        if "adversarial_start_epoch" in config:
            assert run.parser["adversarial_start_epoch"] == round(0.1 * config["adversarial_start_epoch"])


def test_what_is_complete_is_not_done_again(tmp_path: Path, runs: list[FakeWorkflow]) -> None:
    ablation(tmp_path / "out", variants=["palette"], dataset_dir=tmp_path)
    del runs[:]
    ablation(tmp_path / "out", variants=["palette", "ours"], dataset_dir=tmp_path)
    assert [name for name in names(runs) if name[0] != "evaluate"] == [
        ("train_spade",),
        ("train", "ablation_no_detail"),
    ]


def test_results_of_other_settings_are_not_mixed(tmp_path: Path, runs: list[FakeWorkflow]) -> None:
    ablation(tmp_path / "out", variants=["palette"], dataset_dir=tmp_path)
    with pytest.raises(ValueError, match=r"settings\.json: expected the settings of this run; found share"):
        ablation(tmp_path / "out", variants=["palette"], dataset_dir=tmp_path, share=0.5)


def test_a_variant_that_fails_leaves_the_others(tmp_path: Path, runs: list[FakeWorkflow], monkeypatch, capsys) -> None:
    run = FakeWorkflow.run

    def failing(self: FakeWorkflow) -> None:
        if "ablation_palette" in self.overlays:
            raise RuntimeError("no memory")
        run(self)

    monkeypatch.setattr(FakeWorkflow, "run", failing)
    done = ablation(tmp_path / "out", variants=["palette", "ours"], dataset_dir=tmp_path)
    assert [variant.name for variant in done] == ["ours"]
    assert "(b) palette is left out: failed: RuntimeError: no memory" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(ValueError, match=r"found none \(palette: failed: RuntimeError: no memory\)"):
        ablation(tmp_path / "out", variants=["palette"], dataset_dir=tmp_path)


def test_table_3(tmp_path: Path, runs: list[FakeWorkflow]) -> None:
    ablation(tmp_path / "out", dataset_dir=tmp_path)
    lines = (tmp_path / "out" / "table3_volume.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].split(",")[:5] == ["Method", "Diff", "Palette", "SPADE", "Reg-type"]
    assert [line.split(",")[:5] for line in lines[1:]] == [
        ["(a)", "✓", "", "", "VQ"], ["(b)", "✓", "✓", "", "VQ"], ["(c)", "", "", "✓", "VQ"],
        ["(d)", "✓", "✓", "✓", "KL"], ["ours", "✓", "✓", "✓", "VQ"], ["ours + detail", "✓", "✓", "✓", "VQ"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variants": ["gan"]}, "variants: expected some of diffusion_only.*found gan"),
        ({"share": 0}, "share: expected a positive share"),
        ({"share": "much"}, "share: expected a positive share"),
        ({"shar": 1}, "--shar: expected an option or a key of the configs; found none. Did you mean --share"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ablation(tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())


def test_every_overlay_of_the_bundle_exists() -> None:
    for variant in VARIANTS.values():
        assert variant.overlay is None or (CONFIGS / f"{variant.overlay}.json").is_file()


@pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")
@pytest.mark.slow
def test_two_variants_from_phantoms_to_table(tmp_path: Path) -> None:
    data = ensure_phantom(tmp_path / "data", counts=(2, 1, 1), spacing=5.0)
    variants = ("diffusion_only", "spade_only")
    found = ablation(tmp_path / "out", variants=variants, share=0.005, dataset_dir=str(data), amp=False, **TINY)
    assert [variant.name for variant in found] == ["(a)", "(c)"]
    assert {row.method for row in found[1].rows} == {FULL_MODEL}
    assert {row.source for row in found[1].rows} == {"t1"}
    weights = torch.load(tmp_path / "out" / "diffusion_only" / "model.pt", weights_only=True)
    assert not [key for key in weights if key.startswith("style_transfer")]
    assert weights["latent_scale"] != 1
    assert (tmp_path / "out" / "figure7.png").is_file()
    assert "intensity lookup" in (tmp_path / "out" / "table3_brain.md").read_text(encoding="utf-8")
