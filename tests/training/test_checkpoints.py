"""Tests of custom.training.checkpoints and custom.training.random_state."""

from __future__ import annotations

import copy
import errno
import os
import random
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import CacheDataset, DataLoader
from monai.handlers import LrScheduleHandler
from monai.networks.nets import PatchDiscriminator
from monai.optimizers import WarmupCosineSchedule
from monai.transforms import Compose, RandFlipd, RandSpatialCropSamplesd

from custom.networks import LatentTranslator
from custom.training.checkpoints import (
    Checkpoints,
    begin_stage,
    load_pretrained,
    load_stage,
    require_stage,
    write_atomically,
)
from custom.training.handlers import MovingAverage
from custom.training.latents.sampling import RandModalityd
from custom.training.objectives import AutoencoderObjective
from custom.training.random_state import random_state, restore_random_state
from custom.training.trainer import StageTrainer

MODALITIES = ("t1", "t2")
EPOCHS = 4


class Run(NamedTuple):
    trainer: StageTrainer
    losses: list[dict[str, float]]
    average: torch.nn.Module


@pytest.fixture(autouse=True)
def global_generators() -> Iterator[None]:
    state = random_state()
    yield
    restore_random_state(state)


def dataset() -> CacheDataset:
    generator = torch.Generator().manual_seed(0)
    subjects = [{m: torch.rand((1, 18, 17, 16), generator=generator) * 2 - 1 for m in MODALITIES} for _ in range(2)]
    transforms = [
        RandModalityd(MODALITIES),
        RandSpatialCropSamplesd("image", roi_size=(16, 16, 16), num_samples=2, random_size=False),
        RandFlipd("image", prob=0.5, spatial_axis=0),
    ]
    return CacheDataset(subjects, Compose(transforms), progress=False)


def make_run(
    folder: Path,
    translator: LatentTranslator,
    *,
    max_epochs: int = EPOCHS,
    stop_after: int | None = None,
    **kwargs: Any,
) -> Run:
    """A first stage like that of the config: random crops, two optimisers, a schedule, moving averages."""
    torch.manual_seed(0)
    network = copy.deepcopy(translator)
    objective = AutoencoderObjective(network)
    discriminator = PatchDiscriminator(spatial_dims=3, in_channels=1, channels=4, num_layers_d=1, norm="INSTANCE")
    optimizer = torch.optim.AdamW(objective.trained_parameters(), lr=1e-3)
    discriminator_optimizer = torch.optim.AdamW(discriminator.parameters(), lr=1e-3)
    loader = DataLoader(dataset(), batch_size=1, shuffle=True)
    schedule = WarmupCosineSchedule(optimizer, warmup_steps=2, t_total=max_epochs * len(loader), warmup_multiplier=0.1)
    average = MovingAverage(network, momentum=0.1, momentum_warmup=0.5, warmup_iters=6)
    state = {
        "optimizer": optimizer, "discriminator": discriminator, "lr_scheduler": schedule,
        "discriminator_optimizer": discriminator_optimizer,
    }  # fmt: skip
    trainer = StageTrainer(
        objective=objective, discriminator=discriminator, discriminator_optimizer=discriminator_optimizer,
        adversarial_start=2, device=torch.device("cpu"), max_epochs=max_epochs, train_data_loader=loader,
        optimizer=optimizer, train_handlers=[
            average,
            LrScheduleHandler(schedule, print_lr=False, epoch_level=False),
            Checkpoints(str(folder), network, state, best_network=average.ema_model, **kwargs),
        ],
    )  # fmt: skip
    losses: list[dict[str, float]] = []

    @trainer.on(Events.ITERATION_COMPLETED)
    def record() -> None:
        terms = {name: value.item() for name, value in trainer.state.output["terms"].items()}
        losses.append({**terms, "lr": optimizer.param_groups[0]["lr"]})

    @trainer.on(Events.EPOCH_STARTED)
    def interrupt() -> None:
        if stop_after is not None and trainer.state.epoch > stop_after:
            raise KeyboardInterrupt

    return Run(trainer, losses, average.ema_model)


def start(run: Run) -> Run:
    run.trainer.run()
    return run


def interrupted(folder: Path, translator: LatentTranslator, stop_after: int, **kwargs: Any) -> Run:
    run = make_run(folder, translator, stop_after=stop_after, **kwargs)
    with pytest.raises(KeyboardInterrupt):
        run.trainer.run()
    return run


@pytest.mark.slow
def test_resumed_run_equals_one_that_never_stopped(tiny_translator: LatentTranslator, tmp_path: Path) -> None:
    whole = start(make_run(tmp_path / "whole", tiny_translator))
    first = interrupted(tmp_path / "half", tiny_translator, stop_after=EPOCHS // 2)
    torch.manual_seed(99)
    np.random.seed(99)
    second = start(make_run(tmp_path / "half", tiny_translator, resume="true"))
    assert len(first.losses) == len(second.losses) == len(whole.losses) // 2
    assert first.losses + second.losses == whole.losses
    resumed, expected = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("half", "whole"))
    # weights, optimisers, schedule, averages, random state: the same sums in the same order
    assert differing(resumed, expected) == []
    assert resumed["epoch"] == EPOCHS
    assert differing(second.average.state_dict(), expected["best_network"]) == []


def differing(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two states are not the same to the bit."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [path]
    if isinstance(one, dict):
        missing = [f"{path}.{key}" for key in one.keys() ^ other.keys()]
        return missing + [
            d for key in one.keys() & other.keys() for d in differing(one[key], other[key], f"{path}.{key}")
        ]
    if isinstance(one, list | tuple):
        return [d for i, pair in enumerate(zip(one, other, strict=True)) for d in differing(*pair, f"{path}.{i}")]
    return [] if one == other else [path]


@pytest.mark.slow
def test_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tiny_translator: LatentTranslator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = start(make_run(tmp_path / "whole", tiny_translator))
    interrupted(tmp_path / "torn", tiny_translator, stop_after=2)
    last = tmp_path / "torn" / "last.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1  # one bit of the weights, which torch.load takes without a word
    last.write_bytes(content)
    torch.load(last, weights_only=True)
    resumed = start(make_run(tmp_path / "torn", tiny_translator, resume=True))
    assert len(resumed.losses) == 3 * len(whole.losses) // 4
    (record,) = (r for r in caplog.records if "checksum" in r.getMessage())
    assert re.search(r"torn/last.pt: .*damaged content .* goes on from .*last_previous.pt", record.getMessage())
    states = [torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("torn", "whole")]
    assert differing(*states) == []


@pytest.mark.parametrize("damage", [lambda f: f.write_bytes(f.read_bytes()[:500]), lambda f: f.unlink()])
def test_last_checkpoint_that_is_cut_or_gone(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    Stage(tmp_path, [None] * 3).run()
    damage(tmp_path / "last.pt")
    stage = Stage(tmp_path, [None] * 3, resume=True)
    stage.run()
    assert stage.epochs == [3]
    for name in ("last.pt", "last_previous.pt"):
        (tmp_path / name).write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"last.pt: expected.*/last_previous.pt: expected"):
        Stage(tmp_path, [None] * 3, resume=True).run()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("interval", [1, 3])
def test_signal_ends_the_run_after_saving_the_last_complete_epoch(
    tiny_translator: LatentTranslator, tmp_path: Path, caplog: pytest.LogCaptureFixture, number: int, interval: int
) -> None:
    whole = start(make_run(tmp_path / "whole", tiny_translator))
    run = make_run(tmp_path / "stopped", tiny_translator, interval=interval)
    run.trainer.add_event_handler(Events.ITERATION_STARTED(once=5), lambda: os.kill(os.getpid(), number))
    former = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        run.trainer.run()
    assert stop.value.code == 128 + number
    assert signal.getsignal(number) is former
    assert f"stopped by {signal.Signals(number).name} in epoch 3 of 4. Saved: {tmp_path}/stopped/last.pt (epoch 2)" in (
        caplog.text
    )
    assert not (tmp_path / "stopped" / "best.pt").exists()
    second = start(make_run(tmp_path / "stopped", tiny_translator, resume=True))
    assert run.losses[:4] + second.losses == whole.losses
    states = [torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("stopped", "whole")]
    assert differing(*states) == []


def test_signal_in_the_last_step_of_an_epoch_saves_that_epoch(
    tiny_translator: LatentTranslator, tmp_path: Path
) -> None:
    run = make_run(tmp_path, tiny_translator, interval=3)
    run.trainer.add_event_handler(Events.ITERATION_STARTED(once=4), lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        run.trainer.run()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] == 2


def test_full_disk_is_said_and_the_checkpoint_before_is_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Stage(tmp_path, [None]).run()
    before = (tmp_path / "last.pt").read_bytes()

    def fail(state: Any, file: Any) -> None:
        Path(file).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match=r"last.pt: expected a place that can be written to; found No space left.*Free"):
        Stage(tmp_path, [None] * 2, resume=True).run()
    assert (tmp_path / "last.pt").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pt", "last.pt"]


def test_weights_that_are_not_finite_do_not_replace_a_checkpoint(tmp_path: Path) -> None:
    Stage(tmp_path, [None]).run()
    before = (tmp_path / "last.pt").read_bytes()
    stage = Stage(tmp_path, [None] * 2, resume=True)
    stage.step = lambda engine, batch: stage.network.weight.data.fill_(float("nan"))
    stage.trainer._process_function = stage.step
    with pytest.raises(ValueError, match=r"epoch 2: expected finite weights; found NaN .* in weight.*last.pt"):
        stage.run()
    assert (tmp_path / "last.pt").read_bytes() == before


@pytest.fixture(scope="module")
def one_epoch(first_tiny_translator: LatentTranslator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of one epoch; do not change it in a test."""
    folder = tmp_path_factory.mktemp("one_epoch")
    start(make_run(folder, copy.deepcopy(first_tiny_translator), max_epochs=1))
    return folder


def test_last_checkpoint_holds_tensors_and_numbers_only(one_epoch: Path) -> None:
    state = torch.load(one_epoch / "last.pt", weights_only=True)
    assert set(state) == {
        "network", "best_network", "optimizer", "discriminator", "discriminator_optimizer", "lr_scheduler",
        "epoch", "epoch_length", "best", "random_state",
    }  # fmt: skip
    assert sorted(p.name for p in one_epoch.iterdir()) == ["best.pt", "last.pt"]


def test_raised_max_epochs_take_the_new_schedule(
    tiny_translator: LatentTranslator, one_epoch: Path, tmp_path: Path
) -> None:
    shutil.copy(one_epoch / "last.pt", tmp_path)
    run = start(make_run(tmp_path, tiny_translator, max_epochs=3, resume=True))
    reference = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = WarmupCosineSchedule(reference, warmup_steps=2, t_total=6, warmup_multiplier=0.1)
    rates = []
    for _ in range(6):
        reference.step()
        schedule.step()
        rates.append(reference.param_groups[0]["lr"])
    assert [loss["lr"] for loss in run.losses] == pytest.approx(rates[2:])


def test_finished_run_has_nothing_to_resume_and_says_so(
    tiny_translator: LatentTranslator, one_epoch: Path, tmp_path: Path, caplog
) -> None:
    shutil.copy(one_epoch / "last.pt", tmp_path)
    assert start(make_run(tmp_path, tiny_translator, max_epochs=1, resume=True)).losses == []
    assert "all 1 epochs are done, nothing is left to train. A larger --max_epochs" in caplog.text


def test_nothing_to_resume_is_an_error(tiny_translator: LatentTranslator, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"last.pt: expected the checkpoint of an earlier run; found no file"):
        start(make_run(tmp_path, tiny_translator, resume=True))


def _drop(name: str) -> Callable[[dict], Any]:
    return lambda state: {k: v for k, v in state.items() if k != name}


def _replace(name: str, value: Any) -> Callable[[dict], Any]:
    return lambda state: {**state, name: value}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("discriminator"), r"expected a checkpoint with .*discriminator.*; found .*own run"),
        (lambda state: state["network"], r"expected a checkpoint with best, .*; found .*own run"),
        (_replace("network", {"weight": torch.zeros(1)}), r"expected the network of this config; found .*overrides"),
        (_replace("optimizer", {"state": {}, "param_groups": []}), r"expected the optimizer of this config; found"),
        (_replace("lr_scheduler", {}), r"expected the lr_scheduler of this config; found"),
        (_replace("epoch_length", 7), r"expected 7 steps an epoch.*; found 2\. Resume with its data set"),
    ],
)
def test_checkpoint_of_another_training_is_an_error(
    tiny_translator: LatentTranslator,
    one_epoch: Path,
    tmp_path: Path,
    change: Callable[[dict], Any],
    message: str,
) -> None:
    state = torch.load(one_epoch / "last.pt", weights_only=True)
    torch.save(change(state), tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"last.pt: " + message):
        start(make_run(tmp_path, tiny_translator, resume=True))


def test_file_that_is_no_checkpoint_is_an_error(tiny_translator: LatentTranslator, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"last.pt: expected tensors and numbers; found"):
        start(make_run(tmp_path, tiny_translator, resume=True))


class Stage:
    """A run of ``Checkpoints`` alone: one weight that counts the epochs, validated by given scores."""

    def __init__(self, folder: Path, scores: list[float | None], **kwargs: Any) -> None:
        self.network = torch.nn.Linear(1, 1, bias=False)
        self.evaluator = Engine(lambda engine, batch: None)
        self.evaluator.state.key_metric_name = "score"
        self.trainer = Engine(self.step)
        self.scores = scores
        self.epochs: list[int] = []
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self.validate)
        Checkpoints(str(folder), self.network, {}, evaluator=self.evaluator, **kwargs).attach(self.trainer)

    def step(self, engine: Engine, batch: Any) -> None:
        self.network.weight.data.fill_(float(engine.state.epoch))
        self.epochs.append(engine.state.epoch)

    def validate(self, engine: Engine) -> None:
        score = self.scores[engine.state.epoch - 1]
        if score is not None:
            self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self.score, score)
            self.evaluator.run([0])

    @staticmethod
    def score(evaluator: Engine, score: float) -> None:
        evaluator.state.metrics["score"] = score

    def run(self) -> None:
        self.trainer.run([0], max_epochs=len(self.scores))


def weight(path: Path) -> float:
    state = torch.load(path, weights_only=True)
    return state["weight"].item()


@pytest.mark.parametrize(
    ("scores", "best"),
    [([1.0, 3.0, 2.0], 2), ([3.0, 3.0, 1.0], 1), ([None, 0.5, None], 2), ([None, None], 2), ([float("nan")] * 2, 2)],
)
def test_best_is_of_the_epoch_with_the_highest_score(tmp_path: Path, scores: list[float | None], best: int) -> None:
    Stage(tmp_path, scores, final_path=str(tmp_path / "models" / "model.pt")).run()
    assert weight(tmp_path / "best.pt") == best
    assert weight(tmp_path / "models" / "model.pt") == best
    assert torch.load(tmp_path / "last.pt", weights_only=True)["network"]["weight"].item() == len(scores)


def test_best_of_an_earlier_run_is_not_taken_for_the_result_of_this_one(tmp_path: Path) -> None:
    write_atomically({"weight": torch.full((1, 1), 99.0)}, tmp_path / "best.pt")
    Stage(tmp_path, [None], final_path=str(tmp_path / "model.pt")).run()
    assert weight(tmp_path / "model.pt") == 1


def test_an_earlier_training_is_kept(tmp_path: Path, caplog) -> None:
    folder, final = tmp_path / "stage", tmp_path / "model.pt"
    for epochs in (1, 2, 3):
        (folder / "losses.csv").parent.mkdir(exist_ok=True)
        begin_stage(folder)
        Stage(folder, [1.0] * (epochs - 1) + [2.0], final_path=str(final)).run()
        (folder / "losses.csv").write_text(str(epochs))
    assert [weight(folder / name / "best.pt") for name in ("earlier_1", "earlier_2", ".")] == [1, 2, 3]
    assert (folder / "earlier_2" / "losses.csv").read_text() == "2"
    assert [weight(tmp_path / name) for name in ("model.pt.1", "model.pt.2", "model.pt")] == [1, 2, 3]
    assert f"kept in {folder / 'earlier_1'}" in caplog.text
    assert "kept as model.pt.1" in caplog.text
    before = sorted(tmp_path.rglob("*"))
    begin_stage(folder, resume="true")
    assert sorted(tmp_path.rglob("*")) == before


class Translator(torch.nn.Module):
    """A part from the stage before, and one that is trained."""

    def __init__(self, before: float) -> None:
        super().__init__()
        self.autoencoder = torch.nn.Linear(1, 1, bias=False).requires_grad_(False)
        self.autoencoder.weight.fill_(before)
        self.unet = torch.nn.Linear(1, 1, bias=False)


def second_stage(folder: Path, before: float, *, epochs: int, resume: bool | str = False) -> Translator:
    network, trainer = Translator(before), Engine(lambda engine, batch: None)
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda e: network.unet.weight.data.fill_(e.state.epoch))
    Checkpoints(str(folder), network, {}, resume=resume, frozen=["autoencoder"]).attach(trainer)
    trainer.run([0], max_epochs=epochs)
    return network


def test_a_stage_does_not_bring_back_an_earlier_stage_before_it(tmp_path: Path, caplog) -> None:
    assert second_stage(tmp_path, 1.0, epochs=2, resume="auto").unet.weight.item() == 2
    assert second_stage(tmp_path, 1.0, epochs=3, resume="auto").unet.weight.item() == 3
    assert not (tmp_path / "earlier_1").exists()
    with pytest.raises(ValueError, match=r"last.pt: expected the stages before as .*; found another autoencoder"):
        second_stage(tmp_path, 5.0, epochs=4, resume=True)
    second_stage(tmp_path, 5.0, epochs=1, resume="auto")
    assert f"kept in {tmp_path / 'earlier_1'}" in caplog.text
    for folder, before, epoch in ((tmp_path, 5.0, 1.0), (tmp_path / "earlier_1", 1.0, 3.0)):
        state = torch.load(folder / "best.pt", weights_only=True)
        assert (state["autoencoder.weight"].item(), state["unet.weight"].item()) == (before, epoch)


def test_a_part_that_this_stage_trains_may_have_changed(tmp_path: Path) -> None:
    """The joint training of stage 2 trains the autoencoder."""
    for epochs in (1, 2):
        network, trainer = Translator(float(epochs)).requires_grad_(), Engine(lambda engine, batch: None)
        Checkpoints(str(tmp_path), network, {}, resume=epochs > 1, frozen=["autoencoder"]).attach(trainer)
        trainer.run([0], max_epochs=epochs)
    assert network.autoencoder.weight.item() == 1


def test_nothing_is_moved_before_the_first_epoch(tmp_path: Path) -> None:
    Stage(tmp_path, [1.0]).run()
    before = sorted(tmp_path.rglob("*"))
    begin_stage(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_pretrained_weights_that_are_missing_say_how_to_go_without(tiny_translator: LatentTranslator) -> None:
    with pytest.raises(FileNotFoundError, match=r"pretrained: null: expected weights; .* --pretrained '\$None'"):
        load_pretrained(tiny_translator, "null")


def test_an_earlier_stage_before_is_named(tmp_path: Path) -> None:
    (tmp_path / "earlier_1").mkdir()
    (tmp_path / "earlier_1" / "best.pt").touch()
    with pytest.raises(FileNotFoundError, match=r"best.pt: expected .*; found no file, but of earlier .*earlier_1"):
        require_stage(tmp_path / "best.pt", "train_autoencoder.json")


def test_a_client_that_runs_the_trainer_alone_replaces_nothing(tmp_path: Path) -> None:
    """MONAI FL, which runs one trainer for several rounds."""
    Stage(tmp_path, [1.0]).run()
    stage = Stage(tmp_path, [1.0, 2.0, 3.0])
    for rounds in (1, 2):
        stage.trainer.run([0], max_epochs=rounds)
    assert weight(tmp_path / "earlier_1" / "best.pt") == 1
    assert weight(tmp_path / "best.pt") == 2
    assert not (tmp_path / "earlier_2").exists()


def test_what_cannot_be_resumed_is_said_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"last.pt: expected the checkpoint of an earlier run; found no file"):
        begin_stage(tmp_path, resume=True)
    (tmp_path / "last.pt").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"last.pt: expected tensors and numbers; found"):
        begin_stage(tmp_path, resume=True)
    with pytest.raises(OSError, match=r"last.pt: expected a place that can be written to; found a file"):
        begin_stage(tmp_path / "last.pt")


def test_the_same_final_weights_are_not_kept_twice(tmp_path: Path) -> None:
    for _ in range(2):
        Stage(tmp_path / "stage", [None], final_path=str(tmp_path / "model.pt")).run()
    assert not list(tmp_path.glob("model.pt.*"))


def test_final_weights_are_compact(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [None], final_path=str(tmp_path / "model.pt"))
    stage.network.register_buffer("kernel", torch.ones(1, 1, 1))
    stage.run()
    kernels = [torch.load(tmp_path / f, weights_only=True)["kernel"].dtype for f in ("best.pt", "model.pt")]
    assert kernels == [torch.float32, torch.float16]


def test_final_weights_are_written_only_when_the_stage_is_complete(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [1.0, 2.0, 3.0], final_path=str(tmp_path / "model.pt"))

    @stage.trainer.on(Events.EPOCH_STARTED(once=3))
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.run()
    assert weight(tmp_path / "best.pt") == 2
    assert not (tmp_path / "model.pt").exists()


def test_interval_of_last(tmp_path: Path) -> None:
    stage = Stage(tmp_path, [None] * 5, interval=2)
    seen = []

    @stage.trainer.on(Events.EPOCH_COMPLETED)
    def look() -> None:
        last = tmp_path / "last.pt"
        seen.append(torch.load(last, weights_only=True)["epoch"] if last.exists() else 0)

    stage.run()
    assert seen == [0, 2, 2, 4, 5]


def test_resume_as_text() -> None:
    with pytest.raises(ValueError, match="resume: expected true, false or auto; found 'maybe'"):
        Checkpoints("", torch.nn.Linear(1, 1), {}, resume="maybe")


def test_writing_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    write_atomically({"a": torch.ones(1)}, path)
    with pytest.raises(AttributeError, match="pickle"):
        write_atomically({"a": lambda: None}, path)
    assert torch.load(path, weights_only=True)["a"].item() == 1
    assert list(tmp_path.iterdir()) == [path]


def test_missing_stage_names_the_training_to_run_first(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"best.pt: expected.*Run the training of train_spade.json first"):
        load_stage(torch.nn.Linear(1, 1), tmp_path / "best.pt", parts=["x"], trained_by="train_spade.json")


def test_stage_takes_the_trained_parts_and_leaves_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    network = torch.nn.ModuleDict({"first": torch.nn.Linear(1, 1), "second": torch.nn.Linear(1, 1)})
    before = network["second"].weight.clone()
    other = torch.nn.ModuleDict({"first": torch.nn.Linear(1, 1), "second": torch.nn.Linear(3, 3)})
    write_atomically(other.state_dict(), path)
    assert load_stage(network, path, parts=["first"], trained_by="x") is network
    assert torch.equal(network["first"].weight, other["first"].weight)
    assert torch.equal(network["second"].weight, before)
    with pytest.raises(ValueError, match="2 tensors of another shape"):
        load_stage(network, path, parts=["first", "second"], trained_by="x")
    network["second"] = torch.nn.Identity()
    load_stage(network, path, parts=["first", "second"], trained_by="x")
    write_atomically({"first.weight": torch.ones(1, 1)}, path)
    with pytest.raises(ValueError, match=r"1 missing tensors \(first.bias\)"):
        load_stage(network, path, parts=["first"], trained_by="x")


def test_shipped_weights_stand_in_for_a_missing_stage_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, shipped = tmp_path / "spade" / "best.pt", tmp_path / "model.pt"
    given, network = (torch.nn.ModuleDict({"first": torch.nn.Linear(1, 1)}) for _ in range(2))
    write_atomically(given.state_dict(), shipped)
    load_stage(network, path, parts=["first"], trained_by="train_spade.json", shipped=shipped)
    assert torch.equal(network["first"].weight, given["first"].weight)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"{path}: expected the weights of the stage before; found no file" in record.getMessage()
    assert f"train_spade.json has been run, or another file is named, the network takes its first from {shipped}" in (
        record.getMessage()
    )
    path.parent.mkdir()
    write_atomically({"first.weight": torch.full((1, 1), 3.0), "first.bias": torch.zeros(1)}, path)
    load_stage(network, path, parts=["first"], trained_by="train_spade.json", shipped=shipped)
    assert network["first"].weight.item() == 3
    assert len(caplog.records) == 1


@pytest.mark.parametrize("modalities", [("t1", "t2", "pd"), ("t1", "t2", "t1ce", "flair")])
def test_shipped_weights_of_another_vocabulary_are_refused(tmp_path: Path, modalities: tuple[str, ...]) -> None:
    network, shipped = torch.nn.ModuleDict({"first": torch.nn.Linear(1, 1)}), tmp_path / "model.pt"
    write_atomically(network.state_dict(), shipped)
    settings = {"parts": ["first"], "trained_by": "train_spade.json", "shipped": shipped}
    with pytest.raises(ValueError, match=f"those of the bundle are for t1, t1ce, t2, flair, not for {modalities[0]}"):
        load_stage(network, tmp_path / "best.pt", modalities=modalities, **settings)
    load_stage(network, tmp_path / "best.pt", modalities=("T1w", "T1Gd", "T2", "FLAIR"), **settings)


def test_shipped_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    write_atomically(torch.nn.ModuleDict({"first": torch.nn.Linear(2, 2)}).state_dict(), tmp_path / "model.pt")
    network = torch.nn.ModuleDict({"first": torch.nn.Linear(1, 1)})
    with pytest.raises(ValueError, match=r"spade.pt: expected.*found no file, and those of the bundle do not fit"):
        load_stage(network, tmp_path / "spade.pt", parts=["first"], trained_by="x", shipped=tmp_path / "model.pt")


def test_a_run_requires_the_stage_before(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"best.pt: expected.*Run the training of train_spade.json first"):
        require_stage(tmp_path / "best.pt", "train_spade.json")
    (tmp_path / "best.pt").touch()
    require_stage(tmp_path / "best.pt", "train_spade.json")


def test_random_state_covers_every_generator(tmp_path: Path) -> None:
    data = dataset()
    DataLoader(data)  # seeds the transforms

    def draw() -> list[float]:
        crops = [crop["image"].mean().item() for crop in data[0]]
        return [*crops, torch.rand(()).item(), np.random.rand(), random.random()]

    torch.save(random_state(data), tmp_path / "state.pt")
    first = draw()
    assert draw() != first
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True), data)
    assert draw() == first


def test_random_state_of_other_transforms_is_an_error() -> None:
    data = dataset()
    DataLoader(data)
    with pytest.raises(ValueError, match=r"expected a random transform at data.transform.*; found none"):
        restore_random_state(random_state(data))


def test_training_starts_from_what_a_file_holds(tmp_path: Path) -> None:
    def make() -> torch.nn.ModuleDict:
        parts = {"first": torch.nn.Linear(2, 2), "second": torch.nn.Linear(2, 2), "bare": torch.nn.Identity()}
        return torch.nn.ModuleDict(parts)

    network, given = make(), make()
    kept = network["second"].weight.clone()
    write_atomically({k: v for k, v in given.state_dict().items() if k.startswith("first")}, tmp_path / "first.pt")
    assert load_pretrained(network, tmp_path / "first.pt") is network
    assert torch.equal(network["first"].weight, given["first"].weight)
    assert torch.equal(network["second"].weight, kept)


def test_a_start_brings_what_belongs_to_the_parts_that_stay(tiny_translator: LatentTranslator, tmp_path: Path) -> None:
    """A training of the fusion alone leaves the UNet, which is worth nothing under another scale of the latents."""
    given = tiny_translator.state_dict()
    scale = given["intensity_scale"].clone()
    other = {"latent_scale": torch.tensor(0.7), "training_range": torch.rand(2, 11), "intensity_scale": 1 - scale}
    write_atomically({**given, **other}, tmp_path / "start.pt")
    network = load_pretrained(tiny_translator, tmp_path / "start.pt")
    assert network.latent_scale == other["latent_scale"]
    assert torch.equal(network.training_range, other["training_range"])
    assert network.intensity_scale == scale  # the training's own


def test_training_starts_anew_without_a_file() -> None:
    network = torch.nn.Linear(2, 2)
    before = network.weight.clone()
    assert load_pretrained(network, None) is network
    assert torch.equal(network.weight, before)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"third.weight": torch.ones(2, 2)}, "start.pt: expected weights of first; found third. Import weights"),
        ({"first.weight": torch.ones(3, 2), "first.bias": torch.ones(2)}, "1 tensors of another shape"),
        ({"first.weight": torch.ones(2, 2)}, "1 missing tensors .first.bias."),
    ],
)
def test_start_that_does_not_fit(state: dict[str, torch.Tensor], message: str, tmp_path: Path) -> None:
    write_atomically(state, tmp_path / "start.pt")
    network = torch.nn.ModuleDict({"first": torch.nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=message):
        load_pretrained(network, tmp_path / "start.pt")


def test_start_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="found no file"):
        load_pretrained(torch.nn.Linear(2, 2), tmp_path / "start.pt")
