"""The evaluator that translates files one by one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from monai.engines.utils import default_prepare_batch, engine_apply_transform
from monai.utils import ImageMetaKey
from monai.utils.enums import CommonKeys
from tqdm import tqdm

from custom.data.names import TARGETS_KEY
from custom.data.tolerant import FAULT_KEY
from custom.utils.distributed import is_main, world_size
from custom.utils.errors import causes, user_message
from custom.utils.files import OutputError

__all__ = ["FileEvaluator", "FileProgress", "ReadAhead", "prepare_sources"]

logger = logging.getLogger(__name__)


class FileProgress:
    """A progress bar over files that names the one in work."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self._name)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE | Events.INTERRUPT, self._close)

    def _start(self, engine: Engine) -> None:
        self.bar = tqdm(total=engine.state.epoch_length, desc="translate", unit="file", disable=not is_main())

    def _name(self, engine: Engine) -> None:
        if self.bar is not None and CommonKeys.IMAGE in engine.state.batch:
            self.bar.set_postfix_str(Path(_name(engine.state.batch[CommonKeys.IMAGE])).name)

    def _step(self, engine: Engine) -> None:
        if self.bar is not None:
            self.bar.update()

    def _close(self, engine: Engine) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class ReadAhead:
    """The batches of ``loader``; while one is in use, ``thread`` reads the next."""

    def __init__(self, loader: Any, thread: ThreadPoolExecutor) -> None:
        self.loader, self.thread = loader, thread

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        batches, end = iter(self.loader), object()
        coming = self.thread.submit(next, batches, end)
        while (batch := coming.result()) is not end:
            coming = self.thread.submit(next, batches, end)
            yield batch


def prepare_sources(
    batchdata: dict[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: Any
) -> Any:
    """``prepare_batch`` of the evaluator: the sources on ``device``, and the targets of an item that has its own."""
    given = default_prepare_batch(batchdata, device, non_blocking, **kwargs)
    if TARGETS_KEY not in batchdata:
        return given
    return *given, (), {"targets": batchdata[TARGETS_KEY][0].split(",")}


class FileEvaluator(SupervisedEvaluator):
    """A ``SupervisedEvaluator`` for which a faulty file costs its own result alone.

    It takes the items of a ``TolerantDataset``, one file a batch. Faults are logged as they occur; ``run`` ends with
    one error that names them, after all other files have been translated.

    While the network computes a file, a second thread writes the one before and reads the one behind; no more than
    these three are in memory. It is one thread for both, as reading and the inversion of the preprocessing use the
    same transforms.

    Attributes:
        faults: messages of the files that could not be translated.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.finish: Callable[[dict], dict] | None = None
        super().__init__(*args, **{"prepare_batch": prepare_sources, **kwargs})
        self.faults: list[str] = []
        self.unwritten: tuple[str, Future] | None = None
        self.thread: ThreadPoolExecutor | None = None

    def run(self, global_epoch: int = 1) -> None:
        """Translate all files; in several processes, those of this one.

        Raises:
            ValueError: if any file could not be translated.
        """
        self.faults = []
        if not isinstance(self.data_loader, Sized) or len(self.data_loader):
            self._run_beside_thread(global_epoch)
        if world_size() > 1:
            dist.barrier()  # a process that fails ends the others with it
        self._raise_faults()

    def _run_beside_thread(self, global_epoch: int) -> None:
        loader = self.data_loader
        with ThreadPoolExecutor(1, thread_name_prefix="files") as self.thread:
            self.data_loader = ReadAhead(loader, self.thread)
            try:
                super().run(global_epoch)
                self._wait_until_written()
            finally:
                self.data_loader = loader

    def _raise_faults(self) -> None:
        if not self.faults:
            return
        total = self.state.iteration
        if total == 1:
            raise ValueError(self.faults[0])
        listed = "".join(f"\n  {fault}" for fault in self.faults)
        others = ", the others were" if len(self.faults) < total else ""
        raise ValueError(f"{len(self.faults)} of {total} files could not be translated{others}:{listed}")

    def _register_postprocessing(self, posttrans: Callable[[dict], dict]) -> None:
        self.finish = posttrans

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, Any]) -> dict:
        if FAULT_KEY in batchdata:
            self._report(batchdata[FAULT_KEY][0])
            return {}
        name = _name(batchdata[CommonKeys.IMAGE])
        try:
            super()._iteration(engine, batchdata)
        except Exception as error:
            logger.debug("a translation failed", exc_info=True)
            self._report(user_message(error, default=name))
            return {}
        self._wait_until_written()
        assert self.thread is not None, "iterations belong to a run"
        self.unwritten = name, self.thread.submit(self._finish, engine.state.batch, engine.state.output)
        return {}

    def _finish(self, batch: list[dict], output: list[dict]) -> None:
        """Postprocessing, which writes, of the items of a batch."""
        if self.finish is not None:
            for item, result in zip(batch, output, strict=True):
                engine_apply_transform(item, result, self.finish)

    def _wait_until_written(self) -> None:
        if self.unwritten is None:
            return
        (name, result), self.unwritten = self.unwritten, None
        try:
            result.result()
        except Exception as error:
            place = next((cause for cause in causes(error) if isinstance(cause, OutputError)), None)
            if place is not None:  # whatever comes next could not be written either
                raise place from None
            logger.debug("writing failed", exc_info=True)
            self._report(user_message(error, default=name))

    def _report(self, fault: str) -> None:
        self.faults.append(fault)
        if self.state.epoch_length != 1:  # the fault of a single file is what run raises
            logger.error(fault)


def _name(images: Any) -> str:
    names = getattr(images, "meta", {}).get(ImageMetaKey.FILENAME_OR_OBJ, "image")
    return str(names if isinstance(names, str) else names[0])
