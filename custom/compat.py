"""Uses of other packages beyond their documented interfaces, in one place, each with its reason.

Where a new version of a library changes something, it is corrected here. Methods that MONAI leaves to subclasses
(``_iteration``, ``_transform``, ``_compute_metric``, ``_register_postprocessing``) are overridden where they belong.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_map_only

__all__ = ["FakeTensorMode", "TorchDispatchMode", "in_label_server", "label_error", "on_uncaught", "tree_map_only"]

# FakeTensorMode: tensors without content on any device, the only ones that autocast, indexing and optimisers take as
# they are; torch 2.13 documents it and TorchDispatchMode under these names, and has no others for them. tree_map_only
# visits the tensors in what an operation returns, as torch itself does.
_OF_TORCH = {
    "FakeTensorMode": "torch._subclasses.fake_tensor",
    "TorchDispatchMode": "torch.utils._python_dispatch",
    "tree_map_only": "torch.utils._pytree",
}


def __getattr__(name: str) -> Any:
    """Import torch only where a name of it is asked for: the command line's help needs none."""
    if name in _OF_TORCH:
        return getattr(import_module(_OF_TORCH[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def in_label_server() -> bool:
    """Whether this process is the server of MONAI Label: nothing else imports the module of its application."""
    return "monailabel.app" in sys.modules


def label_error(error: BaseException, folder: Path | None) -> Exception:
    """``error`` as the exception whose text the server of MONAI Label sends to its client.

    To any other exception MONAI Label 0.8 answers "Internal Server Error" and nothing else. A file that is missing has
    status 404, all else 400; ``folder``, which is the server's own business, is left out of the text.
    """
    from fastapi import HTTPException  # a dependency of the server alone

    text = str(error) if folder is None else str(error).replace(f"{folder}/", "")
    return HTTPException(status_code=404 if isinstance(error, FileNotFoundError) else 400, detail=text)


def on_uncaught(report: Callable[[BaseException], bool]) -> None:
    """From now on ``report`` is shown the exception that ends the program; Python prints it where that returns False.

    ``sys.excepthook`` is the one way in: ``python -m monai.bundle`` (MONAI 1.6) and Fire let exceptions through, and
    this package is not their caller. It belongs to the whole process, so only a program's run may ask for it.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not report(error):
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = hook
