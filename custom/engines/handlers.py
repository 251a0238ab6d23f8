"""Ignite handlers of the training stages: progress, checkpoints, pictures, learning curves."""

from __future__ import annotations

import csv
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

__all__ = ["Checkpoints", "ImagePanels", "LossLog", "StageProgress", "write_atomically"]

logger = logging.getLogger(__name__)


def write_atomically(state: Mapping[str, Any], path: str | Path) -> None:
    """``torch.save`` beside ``path`` and rename: a reader never sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        torch.save(dict(state), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class StageProgress:
    """One progress bar for a whole stage: its name, the epoch, the losses, the time left.

    Args:
        stage: name shown at the left.
        smoothing: weight of the newest loss in the average shown.
    """

    def __init__(self, stage: str, smoothing: float = 0.05) -> None:
        self.stage = stage
        self.smoothing = smoothing
        self.bar: tqdm | None = None
        self.averages: dict[str, float] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _start(self, engine: Engine) -> None:
        total = engine.state.max_epochs * engine.state.epoch_length
        self.bar = tqdm(total=total, initial=engine.state.iteration, desc=self.stage, unit="step", mininterval=1.0)

    def _step(self, engine: Engine) -> None:
        for name, value in engine.state.output["terms"].items():
            old = self.averages.get(name, float(value))
            self.averages[name] = old + self.smoothing * (float(value) - old)
        if self.bar is not None:
            shown = {name: f"{value:.3g}" for name, value in self.averages.items()}
            self.bar.set_postfix({"epoch": f"{engine.state.epoch}/{engine.state.max_epochs}", **shown}, refresh=False)
            self.bar.update()

    def _close(self, engine: Engine) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._close(engine)
        raise error


class LossLog:
    """Writes every epoch's mean losses, and the validation metrics when there are any, to TensorBoard and a CSV.

    Args:
        log_dir: folder of the TensorBoard events and of ``losses.csv``.
        evaluator: its metrics are logged after each of its runs.
    """

    def __init__(self, log_dir: str, evaluator: Engine | None = None) -> None:
        self.log_dir = Path(log_dir)
        self.evaluator = evaluator
        self.sums: dict[str, float] = {}
        self.started = 0.0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, lambda: self.writer.close())
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._validated, engine)

    def _start(self, engine: Engine) -> None:
        self.writer = SummaryWriter(str(self.log_dir))
        self.started = time.time()

    def _add(self, engine: Engine) -> None:
        for name, value in engine.state.output["terms"].items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def _write(self, engine: Engine) -> None:
        means = {name: total / engine.state.epoch_length for name, total in self.sums.items()}
        self.sums = {}
        for name, value in means.items():
            self.writer.add_scalar(f"train/{name}", value, engine.state.epoch)
        learning_rate = engine.optimizer.param_groups[0]["lr"]
        self.writer.add_scalar("train/learning_rate", learning_rate, engine.state.epoch)
        self._rows(engine.state.epoch, {**means, "learning_rate": learning_rate})

    def _validated(self, evaluator: Engine, engine: Engine) -> None:
        metrics = {name: float(value) for name, value in evaluator.state.metrics.items()}
        for name, value in metrics.items():
            self.writer.add_scalar(f"validation/{name}", value, engine.state.epoch)
        self._rows(engine.state.epoch, {f"validation_{name}": value for name, value in metrics.items()})
        tqdm.write(f"epoch {engine.state.epoch}: " + ", ".join(f"{n} = {v:.4g}" for n, v in metrics.items()))

    def _rows(self, epoch: int, values: Mapping[str, float]) -> None:
        path = self.log_dir / "losses.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["epoch", "seconds", "name", "value"])
            seconds = round(time.time() - self.started, 1)
            writer.writerows([epoch, seconds, name, f"{value:.6g}"] for name, value in values.items())


class ImagePanels:
    """Writes (source, prediction, truth) of the first image of each validation to TensorBoard, middle axial slice.

    Args:
        log_dir: folder of the TensorBoard events.
        evaluator: whose images are shown.
    """

    def __init__(self, log_dir: str, evaluator: Engine) -> None:
        self.log_dir = log_dir
        self.evaluator = evaluator
        self.pending = True

    def attach(self, engine: Engine) -> None:
        self.evaluator.add_event_handler(Events.STARTED, self._start)
        self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._panel, engine)

    def _start(self, evaluator: Engine) -> None:
        self.pending = True

    def _panel(self, evaluator: Engine, trainer: Engine) -> None:
        if not self.pending:
            return
        self.pending = False
        output = evaluator.state.output
        output = output[0] if isinstance(output, list) else output
        images = [self._slice(output[key]) for key in ("image", "pred", "label")]
        with SummaryWriter(self.log_dir) as writer:
            panel = torch.cat(images, dim=1).unsqueeze(0)
            writer.add_image("source, prediction, truth", panel, trainer.state.epoch)

    @staticmethod
    def _slice(image: Tensor) -> Tensor:
        image = torch.as_tensor(image).as_subclass(Tensor).float().cpu()
        volume = image.reshape(-1, *image.shape[-3:])[0]
        # rows from anterior to posterior, as a radiologist sees an axial slice
        return ((volume[..., volume.shape[-1] // 2].T.flip(0) + 1) / 2).clamp(0, 1)


class Checkpoints:
    """Saves ``last.pt`` after every ``interval`` epochs and ``best.pt`` when the key metric has grown; resumes.

    ``best.pt`` holds the network's flat state dict and nothing else, so that the next stage, inference and packaging
    read the same format; ``last.pt`` holds what a resumed run needs: network, optimisers, schedules, counters, random
    state. Files are written atomically.

    Args:
        save_dir: folder of the stage, below ``output_dir``.
        network: the translator whose weights are saved.
        state: further objects with ``state_dict`` and ``load_state_dict``, by name.
        evaluator: the best model is judged by its key metric.
        resume: load ``last.pt`` before the first epoch.
        interval: epochs between two ``last.pt``.
        best_network: the network that the evaluator judged, where it is not ``network`` (moving averages).
        final_path: also write the best weights there when the stage is complete (``models/model.pt``).
    """

    def __init__(
        self,
        save_dir: str,
        network: torch.nn.Module,
        state: Mapping[str, Any],
        *,
        evaluator: Engine | None = None,
        resume: bool = False,
        interval: int = 1,
        best_network: torch.nn.Module | None = None,
        final_path: str | None = None,
    ) -> None:
        self.save_dir = Path(save_dir)
        self.network = network
        self.best_network = best_network or network
        self.state = dict(state)
        self.evaluator = evaluator
        self.resume = resume
        self.interval = interval
        self.final_path = final_path
        self.best = float("-inf")

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._resume)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._judge)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self._save_last)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _judge(self, evaluator: Engine) -> None:
        value = float(evaluator.state.metrics[evaluator.state.key_metric_name])
        if value > self.best:
            self.best = value
            write_atomically(self.best_network.state_dict(), self.save_dir / "best.pt")

    def _save_last(self, engine: Engine) -> None:
        state = {name: item.state_dict() for name, item in self.state.items()}
        state |= {"network": self.network.state_dict(), "best_network": self.best_network.state_dict()}
        state |= {"iteration": engine.state.iteration, "epoch_length": engine.state.epoch_length, "best": self.best}
        state["random_state"] = torch.get_rng_state()
        write_atomically(state, self.save_dir / "last.pt")

    def _finish(self, engine: Engine) -> None:
        best = self.save_dir / "best.pt"
        if not best.exists():
            write_atomically(self.best_network.state_dict(), best)
        if self.final_path is not None:
            write_atomically(torch.load(best, map_location="cpu", weights_only=True), self.final_path)
            logger.info("wrote the weights of the best epoch to %s", self.final_path)

    def _resume(self, engine: Engine) -> None:
        path = self.save_dir / "last.pt"
        if not self.resume:
            return
        if not path.exists():
            raise FileNotFoundError(
                f"resume: expected the checkpoint of an earlier run at {path}, found none. Start "
                "without --resume, or give the output_dir of that run."
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, item in self.state.items():
            item.load_state_dict(state[name])
        self.network.load_state_dict(state["network"])
        self.best_network.load_state_dict(state["best_network"])
        torch.set_rng_state(state["random_state"])
        self.best = state["best"]
        engine.state.iteration = state["iteration"]
        engine.state.epoch = state["iteration"] // state["epoch_length"]
        logger.info("resumed at epoch %d from %s", engine.state.epoch, path)
