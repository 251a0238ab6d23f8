"""Checkpoints of the training stages: written atomically, resumed exactly, handed on to the next stage."""

from __future__ import annotations

import itertools
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from ignite.engine import Engine, Events
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from custom.networks.weights import compact, load_weights, read_weights
from custom.training.checkpoint_files import BEST, LAST, PREVIOUS, copied, read_checkpoint, write_atomically
from custom.training.random_state import random_state, restore_random_state
from custom.utils.arguments import AUTO, bool_or_auto
from custom.utils.distributed import is_main, main_first
from custom.utils.files import atomic_write, keep_former, require_writable
from custom.utils.intensity_scales import SCALE_KEY
from custom.utils.modalities import BRATS_MODALITIES, canonical

__all__ = [
    "Checkpoints", "begin_stage", "goes_on", "load_pretrained", "load_stage", "require_stage", "write_atomically",
]  # fmt: skip

logger = logging.getLogger(__name__)

Network = TypeVar("Network", bound=torch.nn.Module)

RESULTS = (BEST, "last*.pt", "losses.csv", "events.out.tfevents.*")  # in the folder of a stage
STAGE_BEFORE = "the weights of the stage before"
WITHOUT_PRETRAINED = "Name others, or start without any: --pretrained '$None'."
TO_GO_ON = "If it was meant to go on: stop, move them back, and add --resume true."
PROGRESS_OF_SCHEDULE = ("last_epoch", "_step_count", "_last_lr")


def begin_stage(stage_dir: str | os.PathLike, resume: bool | str = False) -> None:
    """Look at a stage's folder before the data are read, which takes minutes; nothing in it is changed.

    Args:
        stage_dir: folder of the stage.
        resume: whether the run goes on from ``last.pt``, as for ``Checkpoints``.

    Raises:
        FileNotFoundError, ValueError: if there is nothing to resume, or it is damaged.
        OSError: if the folder cannot be written to.
    """
    folder = Path(stage_dir).expanduser()
    require_writable(folder)
    if goes_on(resume, folder):
        read_checkpoint(folder)


def goes_on(resume: bool | str, stage_dir: str | os.PathLike) -> bool:
    """Whether a run in ``stage_dir`` goes on from a checkpoint; arguments as for ``Checkpoints``."""
    resume, folder = bool_or_auto("resume", resume), Path(stage_dir).expanduser()
    return any((folder / name).is_file() for name in (LAST, PREVIOUS)) if resume == AUTO else bool(resume)


def _set_aside(folder: Path, advice: str) -> None:
    """Move the results of an earlier training out of the way; nothing where there are no weights."""
    if not any((folder / name).is_file() for name in (BEST, LAST)):
        return
    kept = next(place for n in itertools.count(1) if not (place := folder / f"earlier_{n}").exists())
    kept.mkdir()
    for file in [file for pattern in RESULTS for file in folder.glob(pattern)]:
        file.rename(kept / file.name)
    logger.warning("%s: an earlier training has left its results here; they are kept in %s. %s", folder, kept, advice)


def load_stage(
    network: Network,
    path: str | os.PathLike,
    *,
    parts: Sequence[str],
    trained_by: str,
    shipped: str | os.PathLike | None = None,
    modalities: Sequence[str] = BRATS_MODALITIES,
) -> Network:
    """``network`` with what the stages before have trained; the rest, which may have another shape, stays as it is.

    Args:
        network: the translator.
        path: ``best.pt`` of the stage before, or a whole ``model.pt``.
        parts: names of the submodules to take from there; one without weights, such as an ``IdentityTransfer``, takes
            nothing, whatever the file holds for its place.
        trained_by: the config that writes it, named in the message when it is missing.
        shipped: the bundle's own weights, which stand in for a missing ``path``, with a warning: a client that sets up
            a training of a bundle as it was downloaded (MONAI FL) can do so. A run checks with ``require_stage`` first.
        modalities: the vocabulary; another one than that of the shipped weights cannot take them.

    Raises:
        FileNotFoundError: if the stage before has not been trained, and nothing stands in for it.
        ValueError: if its weights do not fit, see ``load_weights``.
    """
    missing = not Path(path).expanduser().is_file()
    stand_in = shipped if missing and shipped is not None and Path(shipped).expanduser().is_file() else None
    if stand_in is None:
        require_stage(path, trained_by)
    weighty = [part for part in parts if network.get_submodule(part).state_dict()]
    if stand_in is None:
        return load_weights(network, path, weighty)
    _load_shipped(network, stand_in, weighty, tuple(map(canonical, modalities)), f"{path}: expected {STAGE_BEFORE}")
    logger.warning(
        "%s: expected %s; found no file. Until the training of %s has been run, or another file is named, the network "
        "takes its %s from %s.", path, STAGE_BEFORE, trained_by, ", ".join(weighty), shipped,
    )  # fmt: skip
    return network


def _load_shipped(
    network: torch.nn.Module,
    shipped: str | os.PathLike,
    parts: Sequence[str],
    modalities: tuple[str, ...],
    expected: str,
) -> None:
    advice = "Run the training of the stage before first, or name other weights."
    if modalities != BRATS_MODALITIES:
        raise ValueError(
            f"{expected}; found no file, and those of the bundle are for {', '.join(BRATS_MODALITIES)}, not for "
            f"{', '.join(modalities)}. {advice}"
        )
    try:
        load_weights(network, shipped, parts)
    except ValueError as error:
        raise ValueError(
            f"{expected}; found no file, and those of the bundle do not fit ({error}). {advice}"
        ) from error


def require_stage(path: str | os.PathLike, trained_by: str) -> None:
    """Raise a ``FileNotFoundError`` where the stage before, trained by the config ``trained_by``, left no ``path``."""
    file = Path(path).expanduser()
    if not file.is_file():
        earlier = sorted(str(found) for found in file.parent.glob(f"earlier_*/{file.name}"))
        kept = f", but of earlier trainings {', '.join(earlier)}" if earlier else ""
        raise FileNotFoundError(
            f"{path}: expected {STAGE_BEFORE}; found no file{kept}. Run the training of {trained_by} first, "
            "with the same output_dir, or name other weights."
        )


def load_pretrained(network: Network, path: str | os.PathLike | None) -> Network:
    """``network`` with every part that a file of weights holds, strictly; the others keep their weights.

    The scale of the latents and the range of the training's scans come with them, as a training may leave them as they
    are.

    Args:
        network: the translator.
        path: of a flat state dict, such as ``import-weights`` writes; None leaves the network as it is.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if the weights do not fit, or belong to no part of the network.
    """
    if path is None:
        return network
    if not Path(path).expanduser().is_file():
        raise FileNotFoundError(f"pretrained: {path}: expected weights; found no file. {WITHOUT_PRETRAINED}")
    state = read_weights(path)
    held = {name.partition(".")[0] for name in state}
    parts = [name for name, part in network.named_children() if name in held and any(True for _ in part.parameters())]
    if not parts:
        raise ValueError(
            f"{path}: expected weights of {', '.join(name for name, _ in network.named_children())}; found "
            f"{', '.join(sorted(held)[:4])}. Import weights from elsewhere first: python -m custom import-weights."
        )
    try:
        load_weights(network, path, parts, any_scale=True)
    except ValueError as error:
        raise ValueError(f"pretrained: {error} {WITHOUT_PRETRAINED}") from error
    for name, buffer in network.named_buffers(recurse=False):
        if name in state and name != SCALE_KEY:  # the training has its own intensity scale
            buffer.copy_(state[name])
    return network


class Checkpoints:
    """Saves ``last.pt`` after every ``interval`` epochs and ``best.pt`` when the key metric has grown; resumes.

    ``best.pt`` holds the network's flat state dict and nothing else, so that the next stage, inference and packaging
    read the same format; ``last.pt`` holds what a resumed run needs: networks, optimisers, schedules, counters, random
    state, as tensors and numbers. Where nothing was validated, the last weights are the best ones. The ``last.pt``
    before is kept as ``last_previous.pt``: a run resumes from there, and says so, where ``last.pt`` is damaged.

    SIGTERM or Ctrl-C ends the run at the next step; the last complete epoch is saved, whatever the ``interval``.

    A resumed run goes on as if it had never stopped. The shape of a learning-rate schedule is the config's, so that
    ``max_epochs`` may be raised. It needs the stages before as they were: the parts that they have trained, named by
    ``frozen``, are in ``last.pt`` as well.

    The results of an earlier run that is not resumed are kept, in ``earlier_1`` and so on, once everything else is
    ready for the first epoch.

    Args:
        save_dir: folder of the stage, below ``output_dir``.
        network: the translator whose weights are saved.
        state: further objects with ``state_dict`` and ``load_state_dict``, by name.
        evaluator: the best model is judged by its key metric.
        resume: load ``last.pt`` before the first epoch; ``"auto"``: where there is one of the same ``frozen`` parts.
        interval: epochs between two ``last.pt``.
        frozen: names of the submodules of ``network`` that come from the stages before.
        best_network: the network that the evaluator judged, where it is not ``network`` (moving averages).
        final_path: also write the best weights there when the stage is complete (``model.pt``), the kernels of
            convolutions in half precision: they are nearly all of the file, and bfloat16 computing rounds them more.
            Other weights there are kept beside it, as ``model.pt.1`` and so on.

    Raises:
        FileNotFoundError: when the run starts, if there is nothing to resume.
        ValueError: when the run starts, if ``last.pt`` is of another training, or of other ``frozen`` parts.
    """

    def __init__(
        self,
        save_dir: str,
        network: torch.nn.Module,
        state: Mapping[str, Any],
        *,
        evaluator: Engine | None = None,
        resume: bool | str = False,
        interval: int = 1,
        frozen: Sequence[str] = (),
        best_network: torch.nn.Module | None = None,
        final_path: str | None = None,
    ) -> None:
        self.save_dir = Path(save_dir)
        self.networks = {"network": network, "best_network": network if best_network is None else best_network}
        self.state = dict(state)
        self.evaluator = evaluator
        self.resume = bool_or_auto("resume", resume)
        self.interval = interval
        self.frozen = tuple(frozen)
        self.final_path = final_path
        self.best = float("-inf")
        self.begun = False
        self.unsaved: dict[str, Any] | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._resume)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._judge)
            self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._stop_if_asked, engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._stop_if_asked, engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save_last)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _judge(self, evaluator: Engine) -> None:
        value = float(evaluator.state.metrics[evaluator.state.key_metric_name])
        if value > self.best:
            self.best = value
            self._save_best()

    def _save_best(self) -> None:
        if is_main():
            write_atomically(self.networks["best_network"].state_dict(), self.save_dir / BEST)

    def _save_last(self, engine: Engine) -> None:
        done = engine.state.epoch
        if is_main():
            self._check_finite(done)
            state = {name: item.state_dict() for name, item in self._items().items()}
            state |= {"epoch": done, "epoch_length": engine.state.epoch_length, "best": self.best}
            state["random_state"] = random_state(_dataset(engine))
            if done % self.interval == 0 or done == engine.state.max_epochs or _asked(engine) is not None:
                self._write(engine, state)
            else:
                self.unsaved = copied(state)
        if done != engine.state.max_epochs:
            self._stop(engine)

    def _write(self, engine: Engine, state: dict[str, Any]) -> None:
        last = self.save_dir / LAST
        write_atomically(state, last, former=self.save_dir / PREVIOUS)
        engine.state.checkpoint = f"{last} (epoch {state['epoch']})"
        self.unsaved = None

    def _check_finite(self, epoch: int) -> None:
        """A checkpoint of weights that are not finite must not take the place of a good one."""
        for name, value in self.networks["network"].state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise ValueError(
                    f"epoch {epoch}: expected finite weights; found NaN or infinite values in {name}. Lower the "
                    f"learning rate, and go on from {self.save_dir / LAST} with --resume true where it is there."
                )

    def _stop_if_asked(self, running: Engine, engine: Engine) -> None:
        # after an epoch's last step its end is near, and is saved
        if running is not engine or engine.state.iteration % engine.state.epoch_length:
            self._stop(engine)

    def _stop(self, engine: Engine) -> None:
        """End the program where a signal asks for it, after saving the last complete epoch."""
        if _asked(engine) is None:
            return
        if self.unsaved is not None:
            self._write(engine, self.unsaved)
        saved = getattr(engine.state, "checkpoint", None)
        way_on = f"Saved: {saved}. Go on with --resume true." if saved else "No epoch was complete: start again."
        engine.interruption.stop(f"in epoch {engine.state.epoch} of {engine.state.max_epochs}. {way_on}")

    def _finish(self, engine: Engine) -> None:
        best = self.save_dir / BEST
        if self.best == float("-inf"):
            self._save_best()
        if self.final_path is not None and is_main():
            final = Path(self.final_path).expanduser()
            with atomic_write(final) as temporary:
                with temporary.open("wb") as file:  # given a path, torch writes its name into the file
                    torch.save(compact(torch.load(best, map_location="cpu", weights_only=True)), file)
                kept = keep_former(final, temporary)
            if kept is not None:
                logger.warning("%s: replaced; the weights that were there are kept as %s", final, kept.name)

    def _resume(self, engine: Engine) -> None:
        for leftover in self.save_dir.glob(".*.part*") if is_main() else ():  # of a run that was killed while it wrote
            leftover.unlink(missing_ok=True)
        found = self._read(engine) if goes_on(self.resume, self.save_dir) else None
        if found is None or not self._of_these_stages(*found):
            with main_first():
                pass  # until all have read what is moved now
            if not self.begun and is_main():  # MONAI FL runs one trainer for several rounds
                # what "auto" starts anew could not have gone on
                _set_aside(self.save_dir, "" if self.resume == AUTO else TO_GO_ON)
            self.begun = True
            return
        state, path = found
        for name, item in self._items().items():
            try:
                item.load_state_dict(_with_own_shape(item, state[name]))
            except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
                detail = " ".join(str(error).split())[:200]
                raise ValueError(
                    f"{path}: expected the {name} of this config; found {detail}. Resume with the config and the "
                    "overrides that the run started with."
                ) from error
        restore_random_state(state["random_state"], _dataset(engine))
        self.best = state["best"]
        engine.state.epoch = state["epoch"]
        engine.state.iteration = state["epoch"] * state["epoch_length"]
        engine.state.checkpoint = f"{path} (epoch {state['epoch']})"
        logger.info("resumed after epoch %d from %s", engine.state.epoch, path)
        if engine.state.epoch >= (engine.state.max_epochs or 0):
            logger.warning(
                "%s: all %d epochs are done, nothing is left to train. A larger --max_epochs goes on from there.",
                path, engine.state.epoch,
            )  # fmt: skip

    def _of_these_stages(self, state: Mapping[str, Any], path: Path) -> bool:
        """Whether a checkpoint's frozen parts are those that the stages before have left."""
        saved, network = state["network"], self.networks["network"]
        parts = {name: network.get_submodule(name) for name in self.frozen}
        # the joint training of stage 2 trains the autoencoder as well
        still = {name: part for name, part in parts.items() if not any(p.requires_grad for p in part.parameters())}
        changed = [name for name, part in still.items() if _differs(part, saved, name)]
        if not changed:
            return True
        found = f"another {' and '.join(changed)}, as a stage before has been trained since"
        if self.resume != AUTO:
            raise ValueError(
                f"{path}: expected the stages before as they were when this run began; found {found}. Start this stage "
                "anew, without --resume: what it has left is kept in earlier_1."
            )
        logger.warning("%s: found %s: this stage starts anew.", path, found)
        return False

    def _read(self, engine: Engine) -> tuple[dict[str, Any], Path]:
        state, path, fault = read_checkpoint(self.save_dir)
        if fault and is_main():
            logger.warning("%s The run goes on from %s, the checkpoint before it.", fault, path)
        expected = {*self._items(), "epoch", "epoch_length", "best", "random_state"}
        if not isinstance(state, dict) or set(state) != expected:
            found = ", ".join(sorted(map(str, state))) if isinstance(state, dict) else type(state).__name__
            raise ValueError(
                f"{path}: expected a checkpoint with {', '.join(sorted(expected))}; found {found[:200]}. Give the "
                "output_dir of this stage's own run, or start without --resume."
            )
        if state["epoch_length"] != engine.state.epoch_length:
            raise ValueError(
                f"{path}: expected {state['epoch_length']} steps an epoch, as in the run to resume; found "
                f"{engine.state.epoch_length}. Resume with its data set and batch size, or start without --resume."
            )
        return state, path

    def _items(self) -> dict[str, Any]:
        return {**self.networks, **self.state}


def _differs(part: torch.nn.Module, saved: Mapping[str, Tensor], prefix: str) -> bool:
    """Whether a part's tensors are others than those saved as ``prefix.name``; of another shape says the loading."""
    pairs = [(value, saved.get(f"{prefix}.{name}")) for name, value in part.state_dict().items()]
    return any(old is not None and old.shape == new.shape and not torch.equal(old.to(new), new) for new, old in pairs)


def _with_own_shape(item: Any, saved: dict[str, Any]) -> dict[str, Any]:
    """A schedule takes over its position only; ``t_total`` and the like stay as the config has them."""
    if not isinstance(item, LRScheduler):
        return saved
    return {**item.state_dict(), **{key: saved[key] for key in PROGRESS_OF_SCHEDULE}}


def _asked(engine: Engine) -> signal.Signals | None:
    interruption = getattr(engine, "interruption", None)
    return None if interruption is None else interruption.asked


def _dataset(engine: Engine) -> object:
    return getattr(engine.state.dataloader, "dataset", None)
