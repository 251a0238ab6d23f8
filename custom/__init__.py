"""Brain MRI contrast translation with an adaptive latent diffusion model (Kim & Park, WACV 2024).

``from custom import Translator`` is the way in for Python; see :class:`custom.api.Translator`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from custom.api import Translator

__all__ = ["Translator"]


def __getattr__(name: str) -> Any:
    """Import the translator, and with it MONAI, only where it is asked for."""
    if name == "Translator":
        from custom.api import Translator

        return Translator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
