"""Tests of custom.training.handlers."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from custom.training.handlers import ImagePanels, LossLog, MovingAverage, StageProgress


def trainer_of(losses: list[float]) -> Engine:
    """An engine whose losses over all its iterations are given."""

    def step(engine: Engine, batch: Any) -> dict[str, Any]:
        return {"terms": {"loss": torch.tensor(losses[engine.state.iteration - 1])}}

    engine = Engine(step)
    engine.optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.25)
    return engine


def evaluator_of(score: float) -> Engine:
    engine = Engine(lambda engine, batch: None)

    @engine.on(Events.EPOCH_COMPLETED)
    def store() -> None:
        engine.state.metrics["score"] = score

    return engine


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trained = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Parameter(torch.tensor(0.1), requires_grad=False)
        self.register_buffer("count", torch.tensor(0))


def averaged(momenta: list[float], *, done: int = 0, **kwargs: Any) -> tuple[Two, float]:
    """The average after as many steps as ``momenta`` with weights 1, 2, …, and what it should be."""
    model = Two()
    handler = MovingAverage(model, **kwargs)

    def step(engine: Engine, batch: Any) -> None:
        model.trained.data.add_(1.0)
        model.count += 1

    engine = Engine(step)
    handler.attach(engine)

    @engine.on(Events.STARTED)
    def resume() -> None:
        engine.state.epoch, engine.state.iteration = done // len(momenta), done

    engine.run(range(len(momenta)), max_epochs=1 + done // len(momenta))
    expected = 0.0
    for number, momentum in enumerate(momenta, start=1):
        expected += momentum * (number - expected)
    return handler.ema_model, expected


def test_average_is_exponential() -> None:
    average, expected = averaged([0.2, 0.2, 0.2], momentum=0.2)
    assert average.trained.item() == pytest.approx(expected)


def test_warm_up_of_the_average() -> None:
    average, expected = averaged([0.5, 0.4, 0.3, 0.2, 0.1, 0.1], momentum=0.1, momentum_warmup=0.5, warmup_iters=5)
    assert average.trained.item() == pytest.approx(expected)


def test_warm_up_goes_on_where_a_run_stopped() -> None:
    average, expected = averaged([0.2, 0.1, 0.1], done=3, momentum=0.1, momentum_warmup=0.5, warmup_iters=5)
    assert average.trained.item() == pytest.approx(expected)


def test_average_leaves_frozen_weights_alone_and_copies_buffers() -> None:
    average, _ = averaged([0.3] * 50, momentum=0.3)
    assert average.frozen.item() == torch.tensor(0.1).item()
    assert average.count.item() == 50


def test_progress_shows_stage_epoch_and_smoothed_losses(capsys: pytest.CaptureFixture) -> None:
    engine = trainer_of([1.0, 2.0, 2.0, 2.0])
    progress = StageProgress("stage 9 of 9", smoothing=0.5)
    progress.attach(engine)
    engine.run(range(2), max_epochs=2)
    shown = capsys.readouterr().err
    assert "stage 9 of 9" in shown
    assert "4/4" in shown
    assert "epoch=2/2, loss=1.88" in shown
    assert progress.bar is None


def test_progress_of_a_resumed_run_starts_where_it_stopped(capsys: pytest.CaptureFixture) -> None:
    engine = trainer_of([1.0] * 4)
    StageProgress("stage").attach(engine)

    @engine.on(Events.STARTED)
    def resume() -> None:
        engine.state.epoch, engine.state.iteration = 1, 2

    engine.run(range(2), max_epochs=2)
    shown = capsys.readouterr().err
    assert " 2/4 " in shown
    assert " 0/4 " not in shown


def test_progress_lets_errors_of_the_training_through(capsys: pytest.CaptureFixture) -> None:
    def fail(engine: Engine, batch: Any) -> None:
        raise FloatingPointError("overflow")

    engine = Engine(fail)
    progress = StageProgress("stage")
    progress.attach(engine)
    with pytest.raises(FloatingPointError, match="overflow"):
        engine.run([0], max_epochs=1)
    assert progress.bar is None


def test_progress_lets_its_own_errors_through(capsys: pytest.CaptureFixture) -> None:
    engine = Engine(lambda engine, batch: {"no terms": 0})
    StageProgress("stage").attach(engine)
    with pytest.raises(KeyError, match="terms"):
        engine.run([0], max_epochs=1)


def rows(folder: Path) -> list[tuple[str, str, float]]:
    with (folder / "losses.csv").open(newline="") as file:
        return [(r["epoch"], r["name"], float(r["value"])) for r in csv.DictReader(file)]


def logged(folder: Path, losses: list[float], *, epochs: int, done: int = 0, score: float | None = None) -> Engine:
    engine = trainer_of(losses)
    evaluator = None if score is None else evaluator_of(score)
    if evaluator is not None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([0]))
    LossLog(str(folder), evaluator).attach(engine)

    @engine.on(Events.STARTED)
    def resume() -> None:
        engine.state.epoch, engine.state.iteration = done, 2 * done

    engine.run(range(2), max_epochs=epochs)
    return engine


def test_log_holds_the_mean_of_each_epoch_and_the_metrics(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    logged(tmp_path, [1.0, 3.0, 5.0, 6.0], epochs=2, score=20.5)
    found = rows(tmp_path)
    assert [r for r in found if r[1] != "data_wait"] == [
        ("1", "validation_score", 20.5), ("1", "loss", 2.0), ("1", "learning_rate", 0.25),
        ("2", "validation_score", 20.5), ("2", "loss", 5.5), ("2", "learning_rate", 0.25),
    ]  # fmt: skip
    scalars = events(tmp_path)
    tags = {"train/loss", "train/data_wait", "train/learning_rate", "validation/score"}
    assert set(scalars.Tags()["scalars"]) == tags
    assert [e.value for e in scalars.Scalars("train/loss")] == [2.0, 5.5]
    assert "epoch 2: score = 20.5" in capsys.readouterr().out


class Slow:
    """Two batches, each after some seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[int]:
        for number in range(2):
            time.sleep(self.seconds)
            yield number


@pytest.mark.parametrize(("fetching", "computing", "expected"), [(0.03, 0.01, 0.75), (0.0, 0.03, 0.0)])
def test_share_of_waiting_for_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fetching: float, computing: float, expected: float
) -> None:
    def step(engine: Engine, batch: int) -> dict[str, Any]:
        time.sleep(computing)
        return {"terms": {}}

    engine = Engine(step)
    engine.optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.25)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: time.sleep(0.05))  # a validation is neither
    LossLog(str(tmp_path)).attach(engine)
    engine.run(Slow(fetching), max_epochs=2)
    shares = [value for _, name, value in rows(tmp_path) if name == "data_wait"]
    # a busy machine sleeps longer than it was told
    assert shares == pytest.approx([expected] * 2, abs=0.2)
    said = [r.getMessage() for r in caplog.records if "waiting for data" in r.getMessage()]
    assert len(said) == (1 if expected > 0.2 else 0)
    assert all("epoch 1: " in text and "num_workers" in text for text in said)


def test_new_run_starts_the_log_anew(tmp_path: Path) -> None:
    logged(tmp_path, [1.0, 1.0], epochs=1)
    logged(tmp_path, [2.0, 2.0], epochs=1)
    assert [r for r in rows(tmp_path) if r[1] == "loss"] == [("1", "loss", 2.0)]


def test_resumed_run_continues_the_log_and_its_clock(tmp_path: Path) -> None:
    # the log is ahead of the checkpoint: epoch 3 is run again
    (tmp_path / "losses.csv").write_text(
        "epoch,seconds,name,value\n1,100.0,loss,1\n2,200.0,loss,1\n3,300.0,loss,1\n", encoding="utf-8"
    )
    logged(tmp_path, [5.0] * 6, epochs=3, done=2)
    assert [r for r in rows(tmp_path) if r[1] == "loss"] == [("1", "loss", 1.0), ("2", "loss", 1.0), ("3", "loss", 5.0)]
    with (tmp_path / "losses.csv").open(newline="") as file:
        assert 200 <= float(list(csv.DictReader(file))[-1]["seconds"]) < 260


def test_panel_is_the_middle_slice_of_the_first_image(tmp_path: Path) -> None:
    ramp = torch.linspace(-1, 1, 4).view(1, 4, 1, 1).expand(1, 4, 6, 5)
    output = [{"image": ramp, "pred": -ramp, "label": torch.ones(1, 4, 6, 5)}]
    evaluator = Engine(lambda engine, batch: output)
    trainer = trainer_of([1.0])
    ImagePanels(str(tmp_path), evaluator).attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(range(3)))
    trainer.run([0], max_epochs=1)
    panels = events(tmp_path).Images("source, prediction, truth")
    assert len(panels) == 1
    assert (panels[0].step, panels[0].height, panels[0].width) == (1, 6, 3 * 4)


def test_handlers_write_nothing_before_there_is_something_to_write(tmp_path: Path) -> None:
    LossLog(str(tmp_path / "log"), evaluator_of(1.0)).attach(trainer_of([1.0]))
    ImagePanels(str(tmp_path / "log"), evaluator_of(1.0)).attach(trainer_of([1.0]))
    assert list(tmp_path.iterdir()) == []
