"""Errors as a user sees them: the one line that this project wrote, not the layers around it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from custom.compat import in_label_server, label_error, on_uncaught
from custom.utils.arguments import as_bool

__all__ = [
    "causes",
    "find_user_error",
    "first_of",
    "report_plainly",
    "telling_label_clients",
    "user_errors",
    "user_message",
]

USER_ERRORS = (ValueError, OSError)
NAMED = 3  # files, tensors or entries named in a message
DETAIL = 400  # characters of another's message
# what others raise → what there is to do about it
REMEDIES = {
    ("MemoryError", "OutOfMemoryError", "alloc_cpu", "can't allocate memory"): (
        "expected enough memory; found too little ({}). A translation needs the less, the fewer voxels a scan has: "
        "crop it to the head, resample it to larger voxels, or free memory. A training takes less with "
        "--gradient_checkpointing true, a larger --accumulation_steps, smaller crops, or --cache_rate 0."
    ),
    ("not compiled with CUDA", "Found no NVIDIA driver", "invalid device ordinal", "No CUDA GPUs"): (
        "expected a device that is here; found no such CUDA device ({}). Use --device cpu, or leave --device out."
    ),
}


def find_user_error(error: BaseException) -> BaseException | None:
    """The outermost error of a chain that this package raised for its user, or None.

    MONAI and Ignite wrap what a transform or constructor raises (``RuntimeError: applying transform ...``), in several
    layers; the message that helps is further down the chain of causes.
    """
    return next((e for e in causes(error) if isinstance(e, USER_ERRORS) and _raised_here(e)), None)


@contextmanager
def user_errors() -> Iterator[None]:
    """Raise, for a failure inside, the error that this package wrote for its user, without MONAI's layers around it."""
    try:
        yield
    except Exception as error:
        known = find_user_error(error)
        if known is None or known is error:
            raise
        raise known from None


def user_message(error: BaseException, default: str) -> str:
    """Message for a user: the one written for them, or ``default`` (a file's name) with the innermost cause."""
    known = find_user_error(error)
    if known is not None:
        return str(known)
    *_, cause = causes(error)
    said = " ".join(str(cause).split())
    for words, remedy in REMEDIES.items():
        if any(word in f"{type(cause).__name__}: {said}" for word in words):
            return f"{default}: {remedy.format(said.partition('. ')[0][:DETAIL])}"
    return f"{default}: {type(cause).__name__}: {said[:DETAIL]}"


def telling_label_clients(call: Callable[..., Any]) -> Callable[..., Any]:
    """A transform's or inferer's ``__call__`` whose user errors reach a client of MONAI Label's server.

    The server sends on the text of FastAPI's own exception only, to any other it answers "Internal Server Error". A
    scan that is not there gets status 404, all else 400. The scan is named without its folder on the server. Outside
    of the server nothing changes.
    """

    @wraps(call)
    def told(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return call(self, *args, **kwargs)
        except Exception as error:
            known = find_user_error(error) if in_label_server() else None
            if known is None:
                raise
            path = args[0].get("image_path") if args and isinstance(args[0], Mapping) else None
            raise label_error(known, Path(path).parent if path else None) from error

    return told


def report_plainly(debug: bool | str = False) -> None:
    """From now on an error ends the program with one line on stderr in place of a traceback.

    Configs call this first in a program's run; importing changes nothing.

    Args:
        debug: print the traceback all the same.
    """
    on_uncaught(_print_traceback if as_bool("debug", debug) else _print_line)


def _print_traceback(error: BaseException) -> bool:
    return False


def _print_line(error: BaseException) -> bool:
    """One line of an error, and of an interrupt."""
    known = find_user_error(error)
    if isinstance(error, KeyboardInterrupt):
        print("stopped by Ctrl-C; what was complete by then is kept.", file=sys.stderr)
    elif known is not None:
        print(f"error: {known}", file=sys.stderr)
    elif isinstance(error, Exception):
        *_, cause = causes(error)
        place = traceback.extract_tb(cause.__traceback__)[-1:]
        where = "".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in place) or "unknown place"
        print(f"error: {user_message(error, default=where)} (--debug true prints where it was raised)", file=sys.stderr)
    return isinstance(error, Exception | KeyboardInterrupt)


def first_of(names: Iterable[object], most: int = NAMED) -> str:
    """The first ``most`` names for a message: ``"a, b, c, …"``."""
    texts = [str(name) for name in names]
    return ", ".join(texts[:most]) + (", …" if len(texts) > most else "")


def causes(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what it came from, the outermost first."""
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
    if trace is None:
        return False
    module = trace.tb_frame.f_globals
    name = module.get("__package__") if module.get("__name__") == "__main__" else module.get("__name__")
    return str(name or "").partition(".")[0] == package
