"""The evaluator that translates files one by one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from monai.utils import ImageMetaKey
from monai.utils.enums import CommonKeys
from tqdm import tqdm

from custom.data.inputs import FAULT_KEY
from custom.errors import user_message

__all__ = ["FileEvaluator", "FileProgress"]

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
        self.bar = tqdm(total=engine.state.epoch_length, desc="translate", unit="file")

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


class FileEvaluator(SupervisedEvaluator):
    """A ``SupervisedEvaluator`` for which a faulty file costs its own result alone.

    It takes the items of a ``TolerantDataset``, one file a batch. Faults are logged as they occur; ``run`` ends with
    one error that names them, after all other files have been translated.

    Attributes:
        faults: messages of the files that could not be translated.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.faults: list[str] = []

    def run(self, global_epoch: int = 1) -> None:
        """Translate all files.

        Raises:
            ValueError: if any file could not be translated.
        """
        self.faults = []
        super().run(global_epoch)
        if not self.faults:
            return
        total = self.state.iteration
        if total == 1:
            raise ValueError(self.faults[0])
        listed = "".join(f"\n  {fault}" for fault in self.faults)
        others = ", the others were" if len(self.faults) < total else ""
        raise ValueError(f"{len(self.faults)} of {total} files could not be translated{others}:{listed}")

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, Any]) -> dict:
        if FAULT_KEY in batchdata:
            self._report(batchdata[FAULT_KEY][0])
            return {}
        try:
            return super()._iteration(engine, batchdata)
        except Exception as error:
            logger.debug("a translation failed", exc_info=True)
            self._report(user_message(error, default=_name(batchdata[CommonKeys.IMAGE])))
            return {}

    def _report(self, fault: str) -> None:
        self.faults.append(fault)
        if self.state.epoch_length != 1:  # the fault of a single file is what run raises
            logger.error(fault)


def _name(images: Any) -> str:
    names = getattr(images, "meta", {}).get(ImageMetaKey.FILENAME_OR_OBJ, "image")
    return str(names if isinstance(names, str) else names[0])
