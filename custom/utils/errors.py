"""What a user is told when something fails: the one line that this project wrote, not the layers around it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import TracebackType

__all__ = ["find_user_error", "for_label_client", "report_plainly", "user_message"]

USER_ERRORS = (ValueError, OSError)


def find_user_error(error: BaseException) -> BaseException | None:
    """The outermost error of a chain that this package raised for its user, or None.

    MONAI and Ignite wrap what a transform or constructor raises (``RuntimeError: applying transform ...``), in several
    layers; the message that helps is further down the chain of causes.
    """
    return next((e for e in _chain(error) if isinstance(e, USER_ERRORS) and _raised_here(e)), None)


def user_message(error: BaseException, default: str) -> str:
    """Message for a user: the one written for them, or ``default`` (a file's name) with the innermost cause."""
    known = find_user_error(error)
    if known is not None:
        return str(known)
    *_, cause = _chain(error)
    return f"{default}: {type(cause).__name__}: {cause}"


def for_label_client(error: ValueError) -> Exception | None:
    """``error`` as the exception whose text the server of MONAI Label sends to its client; None outside of that server.

    To any other exception it answers "Internal Server Error" and nothing else.
    """
    if "monailabel.app" not in sys.modules:
        return None
    from fastapi import HTTPException

    return HTTPException(status_code=400, detail=str(error))


def report_plainly() -> None:
    """From now on a fault of input ends the program with one line on stderr instead of a traceback.

    Other errors keep their traceback. Configs call this first in a program's run; importing changes nothing.
    """
    if sys.excepthook is not _hook:
        sys.excepthook = _hook


def _hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    known = find_user_error(error)
    if known is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"error: {known}", file=sys.stderr)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _raised_here(error: BaseException) -> bool:
    """Whether the frame that raised ``error`` belongs to this package."""
    trace, package = error.__traceback__, __name__.partition(".")[0]
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0] == package
