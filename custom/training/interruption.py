"""SIGTERM and Ctrl-C during a training: it ends where its state is whole."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from custom.utils.distributed import is_main

__all__ = ["Interruption"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)

logger = logging.getLogger(__name__)


class Interruption:
    """Within it the first SIGTERM or SIGINT is noted in ``asked``; a second one acts as it did before.

    Signals belong to a program's main thread: in another one, such as a client's, nothing changes.

    Attributes:
        asked: the signal that came, or None.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        self.asked = None
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def stop(self, place: str) -> None:
        """End the program, as by the signal that came: status 143 or 130. Without one nothing happens.

        Args:
            place: for the one line that says so: where it stops, what is kept, how to go on.
        """
        if self.asked is None:
            return
        if is_main():
            logger.warning("stopped by %s %s", self.asked.name, place)
        raise SystemExit(128 + self.asked)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._former = {}
