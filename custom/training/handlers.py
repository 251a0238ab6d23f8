"""Ignite handlers of the training stages: progress, learning curves, pictures, moving averages."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from ignite.handlers.ema_handler import EMAWarmUp
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from custom.utils.distributed import is_main, mean_of_ranks
from custom.utils.files import OutputError

__all__ = ["DataWait", "ImagePanels", "LossLog", "MovingAverage", "StageProgress", "as_handler"]

logger = logging.getLogger(__name__)

Handler = TypeVar("Handler")


def as_handler(handler: Handler) -> Handler:
    """``handler`` itself, for a config's list of handlers: MONAI's checks take components there, not references."""
    return handler


class MovingAverage(EMAHandler):
    """Ignite's ``EMAHandler`` for the trained weights: those that are frozen stay exactly as they are.

    The warm-up follows the engine's iteration, so a resumed run goes on where it stopped.

    Args:
        model, momentum, momentum_warmup, warmup_iters: as for ``EMAHandler``.
    """

    def __init__(
        self,
        model: nn.Module,
        momentum: float = 0.0002,
        momentum_warmup: float | None = None,
        warmup_iters: int | None = None,
    ) -> None:
        super().__init__(model, momentum)
        warms_up = momentum_warmup is not None and warmup_iters is not None
        self.warm_up = EMAWarmUp(momentum_warmup, warmup_iters, momentum) if warms_up else None

    def attach(self, engine: Engine, name: str = "ema_momentum", **kwargs: Any) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._update, name)

    @torch.no_grad()
    def _update(self, engine: Engine, name: str) -> None:
        momentum = self.momentum if self.warm_up is None else self.warm_up(engine.state.iteration)
        setattr(engine.state, name, momentum)
        for average, parameter in zip(self.ema_model.parameters(), self.model.parameters(), strict=True):
            if parameter.requires_grad:
                average.lerp_(parameter, momentum)
        for average, buffer in zip(self.ema_model.buffers(), self.model.buffers(), strict=True):
            average.copy_(buffer)


class StageProgress:
    """One progress bar for a whole stage: its name, the epoch, the losses, the time left; the main process's.

    Args:
        stage: name shown at the left.
        smoothing: weight of the newest loss in the average shown.
    """

    def __init__(self, stage: str, smoothing: float = 0.05) -> None:
        self.stage = stage
        self.smoothing = smoothing
        self.bar: tqdm | None = None
        self.averages: dict[str, Tensor] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _open(self, engine: Engine) -> None:
        # not when the run starts: only after that is it known where a resumed run goes on
        if self.bar is None and is_main():
            total = engine.state.max_epochs * engine.state.epoch_length
            done = engine.state.iteration
            self.bar = tqdm(total=total, initial=done, desc=self.stage, unit="step", mininterval=1.0)

    def _step(self, engine: Engine) -> None:
        for name, value in engine.state.output["terms"].items():
            self.averages[name] = torch.lerp(self.averages.get(name, value), value, self.smoothing)
        # numbers are fetched only when they are shown: each waits for the device
        if self.bar is not None and self.bar.update():
            self._show(engine, self.bar)

    def _show(self, engine: Engine, bar: tqdm) -> None:
        shown = {name: f"{float(value):.3g}" for name, value in self.averages.items()}
        bar.set_postfix({"epoch": f"{engine.state.epoch}/{engine.state.max_epochs}", **shown})

    def _close(self, engine: Engine) -> None:
        if self.bar is not None:
            self._show(engine, self.bar)
            self.bar.close()
            self.bar = None

    def _fail(self, engine: Engine, error: BaseException) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        # Ignite leaves an exception to its handlers where there are some
        raise error


@contextmanager
def _said_where_full(path: Path) -> Iterator[None]:
    """An error of writing below ``path``, as a user is told it."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: expected a place that can be written to; found {error.strerror or error}. Free space there, and "
            "go on with --resume true: the last checkpoint is intact."
        ) from error


class _EventFile:
    """A TensorBoard event file that is opened when something is first written, and flushed after each write."""

    def __init__(self, log_dir: str | Path) -> None:
        self.log_dir = Path(log_dir)
        self._writer: SummaryWriter | None = None

    @property
    def writer(self) -> SummaryWriter:
        if self._writer is None:
            self._writer = SummaryWriter(str(self.log_dir))
        return self._writer

    def close(self) -> None:
        if self._writer is not None:
            with _said_where_full(self.log_dir):
                self._writer.close()
            self._writer = None


class DataWait:
    """Share of the time of an epoch's steps that the training waits for data, between fetching and computing.

    Args:
        limit: share above which ``judge`` says, once, what helps.
    """

    def __init__(self, limit: float = 0.2) -> None:
        self.limit = limit
        self.waited = self.computed = 0.0
        self.clock = 0.0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._tick)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._fetched)
        engine.add_event_handler(Events.ITERATION_STARTED, self._tick)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._stepped)

    def _reset(self) -> None:
        self.waited = self.computed = 0.0

    def _tick(self) -> float:
        before, self.clock = self.clock, time.perf_counter()
        return self.clock - before

    def _fetched(self) -> None:
        self.waited += self._tick()

    def _stepped(self) -> None:
        self.computed += self._tick()

    def share(self) -> float:
        """In [0, 1], of the epoch so far."""
        return self.waited / max(self.waited + self.computed, 1e-9)

    def judge(self, share: float, epoch: int) -> None:
        """Warn of a share that is too high, the first time."""
        if share > self.limit and is_main():
            logger.warning(
                "epoch %d: %.0f %% of the time went by waiting for data. Raise num_workers, or put the data and the "
                "cache_dir on a faster disk.", epoch, 100 * share,
            )  # fmt: skip
            self.limit = 1.0


class LossLog:
    """Writes every epoch's mean losses, and the validation metrics when there are any, to TensorBoard and a CSV.

    In several processes the main one writes, and the losses are averaged over all.

    ``data_wait`` is the share of an epoch's steps that was spent waiting for the next batch. Where it is high, the
    first such epoch says so in the log.

    The rows of ``losses.csv`` are ``epoch, seconds, name, value``, with the seconds that the stage has taken so far. A
    new run starts the file anew; a resumed one continues it after the epoch that it resumes from.

    Args:
        log_dir: folder of the TensorBoard events and of ``losses.csv``.
        evaluator: its metrics are logged after each of its runs.
    """

    def __init__(self, log_dir: str, evaluator: Engine | None = None) -> None:
        self.path = Path(log_dir) / "losses.csv"
        self.events = _EventFile(log_dir)
        self.evaluator = evaluator
        self.sums: dict[str, Tensor] = {}
        self.started: float | None = None
        self.waiting = DataWait()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        self.waiting.attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE, self.events.close)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._validated, engine)

    def _start(self, engine: Engine) -> None:
        if self.started is None and is_main():
            rows = self._earlier_rows(before=engine.state.epoch)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("w", newline="") as file:
                csv.writer(file).writerows([["epoch", "seconds", "name", "value"], *rows])
            self.started = time.time() - (float(rows[-1][1]) if rows else 0.0)

    def _earlier_rows(self, before: int) -> list[list[str]]:
        if before == 1 or not self.path.is_file():
            return []
        with self.path.open(newline="") as file:
            return [row for row in csv.reader(file) if row and row[0].isdigit() and int(row[0]) < before]

    def _add(self, engine: Engine) -> None:
        for name, value in engine.state.output["terms"].items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def _write(self, engine: Engine) -> None:
        means = {name: float(total) / engine.state.epoch_length for name, total in self.sums.items()}
        means = mean_of_ranks({**means, "data_wait": self.waiting.share()})
        self.waiting.judge(means["data_wait"], engine.state.epoch)
        self.sums = {}
        means["learning_rate"] = engine.optimizer.param_groups[0]["lr"]
        self._rows(engine.state.epoch, "train/{}", "{}", means)

    def _validated(self, evaluator: Engine, engine: Engine) -> None:
        if not is_main():
            return
        metrics = {name: float(value) for name, value in evaluator.state.metrics.items()}
        self._rows(engine.state.epoch, "validation/{}", "validation_{}", metrics)
        tqdm.write(f"epoch {engine.state.epoch}: " + ", ".join(f"{n} = {v:.4g}" for n, v in metrics.items()))

    def _rows(self, epoch: int, tag: str, name: str, values: Mapping[str, float]) -> None:
        if not is_main():
            return
        assert self.started is not None
        seconds = round(time.time() - self.started, 1)
        with _said_where_full(self.path):
            for key, value in values.items():
                self.events.writer.add_scalar(tag.format(key), value, epoch)
            self.events.writer.flush()
            with self.path.open("a", newline="") as file:
                csv.writer(file).writerows([epoch, seconds, name.format(k), f"{v:.6g}"] for k, v in values.items())


class ImagePanels:
    """Writes (source, prediction, truth) of the first image of each validation to TensorBoard, middle axial slice.

    In several processes the main one writes.

    Args:
        log_dir: folder of the TensorBoard events.
        evaluator: whose images are shown.
    """

    def __init__(self, log_dir: str, evaluator: Engine) -> None:
        self.events = _EventFile(log_dir)
        self.evaluator = evaluator
        self.pending = True

    def attach(self, engine: Engine) -> None:
        self.evaluator.add_event_handler(Events.STARTED, self._start)
        self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._panel, engine)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE, self.events.close)

    def _start(self, evaluator: Engine) -> None:
        self.pending = is_main()

    def _panel(self, evaluator: Engine, trainer: Engine) -> None:
        if not self.pending:
            return
        self.pending = False
        output = evaluator.state.output
        output = output[0] if isinstance(output, list) else output
        panel = torch.cat([_axial_slice(output[key]) for key in ("image", "pred", "label")], dim=1)
        with _said_where_full(self.events.log_dir):
            self.events.writer.add_image("source, prediction, truth", panel.unsqueeze(0), trainer.state.epoch)
            self.events.writer.flush()


def _axial_slice(image: Tensor) -> Tensor:
    """Middle axial slice (W, H) in [0, 1] of the first volume of ``image`` (..., H, W, D), RAS, in [-1, 1]."""
    image = torch.as_tensor(image).as_subclass(Tensor).float().cpu()
    volume = image.reshape(-1, *image.shape[-3:])[0]
    # rows from anterior to posterior, as a radiologist sees an axial slice
    return ((volume[..., volume.shape[-1] // 2].T.flip(0) + 1) / 2).clamp(0, 1)
