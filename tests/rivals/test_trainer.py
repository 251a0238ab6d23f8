"""Tests of the rivals' trainings: the order of the steps, the schedule, the exact resume, the configs, the sizes."""

from __future__ import annotations

import gc
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from monai.utils.enums import GanKeys
from torch.utils.flop_counter import FlopCounterMode

from custom.data.datalist import write_datalist
from custom.networks.weights import load_weights
from custom.rivals import CycleGANObjective, DEaGANObjective, NICEGANObjective, Pix2PixObjective, RegGANObjective
from custom.rivals.rival import Rival
from custom.rivals.samples import empty_batch
from custom.rivals.trainer import RivalTrainer, initialized, linear_decay
from custom.training.memory import step_flops
from tests.fixtures.brains import save_brain
from tests.rivals.conftest import RIVALS

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"
MODALITIES = ["t1", "t2", "flair"]
OVERLAYS = (*RIVALS, "res_vit_stage1")
OBJECTIVES: dict[str, Callable[..., Any]] = {
    "pix2pix_2d": Pix2PixObjective,
    "cyclegan_2d": CycleGANObjective,
    "nice_gan": NICEGANObjective,
    "reg_gan": RegGANObjective,
    "res_vit": Pix2PixObjective,
    "pix2pix_3d": Pix2PixObjective,
    "cyclegan_3d": CycleGANObjective,
    "dea_gan": DEaGANObjective,
}
# sides that the original sizes take at least, by padding or as their discriminators do
SMALLEST = {"nice_gan": (96, 96), "cyclegan_3d": (24, 24, 24), "pix2pix_3d": (24, 24, 24), "dea_gan": (24, 24, 24)}

pytestmark = [
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore:Default metadata file:UserWarning"),
]


def batch(*sides: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, label = (torch.rand(2 if len(sides) == 2 else 1, 1, *sides, generator=generator) for _ in range(2))
    return {"image": image, "label": label, "target_modality": torch.full((len(image),), 2)}


def make_trainer(make: Callable[..., Rival], method: str, **kwargs: Any) -> RivalTrainer:
    objective = OBJECTIVES[method](make(method))
    discriminator = objective.rival.make_discriminator()
    return RivalTrainer(
        objective=objective, discriminator=discriminator, device=torch.device("cpu"), max_epochs=1,
        optimizer=torch.optim.SGD(objective.trained_parameters(), 1e-2), train_data_loader=[0],
        discriminator_optimizer=torch.optim.SGD(discriminator.parameters(), 1e-2), clip_norm=0.0, **kwargs,
    )  # fmt: skip


def test_the_discriminator_moves_first(make: Callable[..., Rival]) -> None:
    """The generator's adversarial term is that of the discriminator as it is afterwards."""
    trainer, data = make_trainer(make, "pix2pix_2d"), batch(32, 32)
    assert trainer.discriminator is not None
    before = [p.clone() for p in trainer.discriminator.parameters()]
    twin = make_trainer(make, "pix2pix_2d")
    twin.discriminator.load_state_dict(trainer.discriminator.state_dict())
    output = trainer._iteration(trainer, data)
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.discriminator.parameters(), strict=True))
    assert all(p.grad is None or not p.requires_grad for p in trainer.discriminator.parameters())
    # the twin's discriminator moves as the first one's did, and then meets the untouched generator
    twin.discriminator_optimizer.zero_grad()
    samples = twin.objective.train()(data).samples
    twin.discriminator.train()
    twin.objective.judge(twin.discriminator, samples).backward()
    twin.discriminator_optimizer.step()
    expected = twin.objective(data, twin.discriminator).terms["adversarial"]
    torch.testing.assert_close(output["terms"]["adversarial"], expected.detach(), rtol=1e-3, atol=0)
    assert output["terms"][GanKeys.DLOSS] > 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pix2pix_2d", "cyclegan_2d", "nice_gan", "reg_gan", "res_vit"])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_a_step_moves_everything(make: Callable[..., Rival], method: str, accumulation_steps: int) -> None:
    trainer = make_trainer(make, method, accumulation_steps=accumulation_steps)
    if method == "nice_gan":  # the strength of its attention starts at 0, and what is behind gets no gradient then
        for discriminator in trainer.discriminator.values():
            torch.nn.init.constant_(discriminator.encoder.strength, 0.5)
    parts = [*trainer.objective.trained_parameters(), *trainer.discriminator.parameters()]
    before = [p.clone() for p in parts]
    trainer.state.iteration = 1
    output = trainer._iteration(trainer, batch(48, 48))
    assert all(math.isfinite(value) for value in output["terms"].values())
    moved = [not torch.equal(a, b) for a, b in zip(before, parts, strict=True)]
    # what a norm takes away again, such as a bias before it, gets no gradient but rounding
    kernels = [m for m, p in zip(moved, parts, strict=True) if p.ndim > 1]
    assert len(kernels) > 10
    assert all(kernels)


def test_the_rate_falls_linearly_at_the_end() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 2.0)
    schedule = linear_decay(optimizer, 6, 0.5)
    found = []
    for _ in range(6):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert found == pytest.approx([2.0, 2.0, 2.0, 1.5, 1.0, 0.5])
    constant = linear_decay(optimizer, 6, 0.0)
    assert [constant.lr_lambdas[0](epoch) for epoch in range(6)] == [1.0] * 6


def test_the_second_stage_starts_from_the_first(make: Callable[..., Rival], tmp_path: Path) -> None:
    first, second = make("res_vit", transformers=False), make("res_vit")
    with torch.no_grad():
        for p in first.parameters():
            p.add_(1.0)
    torch.save(first.state_dict(), tmp_path / "best.pt")
    initialized(second, tmp_path / "best.pt")
    state = second.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in first.state_dict().items() if name != "card")
    assert initialized(second, None) is second
    with pytest.raises(ValueError, match="expected weights of reg_gan; found those of res_vit, t1 to t2, small"):
        initialized(make("reg_gan"), tmp_path / "best.pt")
    with pytest.raises(ValueError, match="which does not fit it, in those of res_vit, t1 to t2, small"):
        initialized(make("res_vit", pair="all"), tmp_path / "best.pt")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder, hook = tmp_path_factory.mktemp("data"), sys.excepthook
    entries = [
        {"subject": f"s{n}", **{m: str(save_brain(folder / f"s{n}_{m}.nii.gz", m, n)) for m in MODALITIES}}
        for n in range(4)
    ]
    split = {"training": entries[:2], "validation": entries[2:3], "test": entries[3:]}
    write_datalist(folder / "datalist.json", split, MODALITIES)
    yield folder
    sys.excepthook = hook


def workflow(method: str, data: Path, output: Path, **overrides: Any) -> ConfigWorkflow:
    values = {
        "bundle_root": str(CONFIGS.parent), "dataset_dir": str(data), "stage_dir": str(output),
        "ckpt_path": str(output / "model.pt"), "device": "$torch.device('cpu')", "amp": False, "cache_workers": 0,
        "max_epochs": 1, "val_interval": 1, "checkpoint_interval": 1, "slices_per_subject": 1, "subjects_per_batch": 1,
    }  # fmt: skip
    return ConfigWorkflow(
        [str(CONFIGS / f"{name}.json") for name in ("train_rival", f"rival_{method}")], logging_file=False,
        workflow_type="train", run_id="training", **{**values, **overrides},
    )  # fmt: skip


def run(method: str, data: Path, output: Path, **overrides: Any) -> ConfigWorkflow:
    started = workflow(method, data, output, **overrides)
    started.initialize()
    started.run()
    started.finalize()
    return started


@pytest.mark.slow
@pytest.mark.parametrize("method", OVERLAYS)
def test_a_training_of_each(data: Path, tmp_path: Path, method: str) -> None:
    done = run(method, data, tmp_path, pair="t2,flair")
    assert done.check_properties() == []
    found = {p.name for p in tmp_path.iterdir()}
    assert {"best.pt", "last.pt", "model.pt", "losses.csv"} <= found
    lines = [line.split(",") for line in (tmp_path / "losses.csv").read_text().splitlines()[1:]]
    assert all(math.isfinite(float(value)) for *_, value in lines)
    assert "validation_brain_psnr" in {name for _, _, name, _ in lines}
    network = done.parser.get_parsed_content("network_def")
    assert network.method == method.removesuffix("_stage1")
    load_weights(network, tmp_path / "model.pt")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cyclegan_2d", "nice_gan", "dea_gan"])
def test_a_resumed_training_is_the_same(data: Path, tmp_path: Path, method: str) -> None:
    """With pools, a shared encoder, drawn labels and a rising weight."""
    whole = {"max_epochs": 4, "val_interval": 4}
    if "cycle" in method:
        whole["objective#pool_size"] = 2
    run(method, data, tmp_path / "whole", **whole)
    part = workflow(method, data, tmp_path / "part", **whole)
    part.initialize()
    trainer = part.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(
        Events.EPOCH_STARTED, lambda engine: engine.terminate() if engine.state.epoch > 2 else None
    )
    part.run()
    run(method, data, tmp_path / "part", **whole, resume=True)
    expected, found = (torch.load(tmp_path / n / "best.pt", weights_only=True) for n in ("whole", "part"))
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.slow
def test_one_network_for_all_pairs(data: Path, tmp_path: Path) -> None:
    done = run("reg_gan", data, tmp_path, pair="all")
    network = done.parser.get_parsed_content("network")
    assert network.planes == 3
    assert done.parser.get_parsed_content("scored_pairs") is None


@pytest.mark.slow
@pytest.mark.parametrize("method", RIVALS)
def test_an_original_takes_a_step(make: Callable[..., Rival], method: str) -> None:
    torch.manual_seed(0)
    objective = OBJECTIVES[method](make(method, "original"))
    discriminator = objective.rival.make_discriminator()
    sides = SMALLEST.get(method, (64, 64))
    step = objective.train()(batch(*sides), discriminator.train().requires_grad_(False))
    step.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.trained_parameters())
    loss = objective.judge(discriminator.requires_grad_(True), step.samples)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in discriminator.parameters())
    del step, loss
    gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize("method", OVERLAYS)
def test_the_arithmetic_of_a_step(method: str, data: Path) -> None:
    """More than three times that of a generator's pass, which is the least of a forward and a backward."""
    files = [CONFIGS / f"{name}.json" for name in ("train_rival", f"rival_{method}")]
    dims = 3 if method.endswith("3d") or method == "dea_gan" else 2
    values = {"dataset_dir": str(data), "subjects_per_batch": 1, "slices_per_subject": 1, "amp": False}
    found = step_flops(files, (48, 48, 32), make_batch=empty_batch, **values)
    twice = step_flops(files, (48, 48, 32), make_batch=empty_batch, **{**values, "subjects_per_batch": 2})
    assert twice > 1.5 * found > 0
    network = RIVALS[method.removesuffix("_stage1")](MODALITIES, ("t1", "t2"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.translate(torch.zeros(1, 1, *(48, 48, 32)[:dims]), torch.tensor([1]))
    assert found > (1 if "stage1" in method else 3) * counter.get_total_flops()


@pytest.mark.parametrize("method", OVERLAYS)
def test_overlays_hold_what_a_config_reads(method: str) -> None:
    bases = [json.loads((CONFIGS / f"{name}.json").read_text()) for name in ("train_rival", "inference", "evaluate")]
    overlay = json.loads((CONFIGS / f"rival_{method}.json").read_text())
    for key, value in overlay.items():
        found = [base[key] for base in bases if key in base]
        assert found, f"{key}: no workflow reads it"
        # train_rival.json alone is the first method; the other two configs have no pair and size
        if method != "pix2pix_2d" and key not in ("pair", "size"):
            assert any(default != value for default in found), f"{key}: restates the default"
    assert overlay["ckpt_path"] == f"$@bundle_root + '/output/rivals/{method}/model.pt'"


def test_all_overlays_are_tested() -> None:
    assert {p.stem for p in CONFIGS.glob("rival_*.json")} == {f"rival_{name}" for name in OVERLAYS}
