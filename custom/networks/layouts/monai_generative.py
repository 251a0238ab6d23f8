"""The layout of the package monai-generative, whose classes moved into MONAI core under other names of tensors."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

from custom.networks.layouts import monai
from custom.networks.layouts.definitions import Definition, find_definition
from custom.networks.layouts.reader import Tensors

__all__ = ["definition", "generative_name"]

NAMES = (
    (r"\.attn\.to_", ".to_"),
    (r"\.attn([12])\.out_proj\.", r".attn\1.to_out.0."),
    (r"^decoder\.blocks\.(\d+)\.postconv\.", r"decoder.blocks.\1.conv."),
    (r"\.upsampler\.postconv\.", ".upsampler.conv."),
)


def generative_name(name: str) -> str:
    """monai-generative's name of a tensor of MONAI core's ``AutoencoderKL`` or ``DiffusionModelUNet``."""
    for core, theirs in NAMES:
        name = re.sub(core, theirs, name)
    return name


def definition(name: str, files: Sequence[str], source: Tensors) -> Definition:
    """As of ``custom.networks.layouts.monai``, by the names of MONAI core's arguments."""
    network = _network(name)
    given = find_definition(files, [name], network, renamed={core: theirs for theirs, core in monai.RENAMED.items()})
    monai.check_shapes(source, given, network)
    arguments = {monai.RENAMED.get(k, k): v for k, v in given.arguments.items()}
    # its self-attention has an output projection, and does not apply it; its transformers do
    return Definition(given.place, {**arguments, "include_fc": arguments.get("with_conditioning", False)})


def _network(name: str) -> Any:
    with warnings.catch_warnings():
        # of its decorators, which newer versions of PyTorch call old
        warnings.simplefilter("ignore", FutureWarning)
        try:
            from generative.networks import nets
        except ImportError as error:
            raise ValueError(
                "source: expected the package monai-generative to be installed; found that it is not. "
                "Install it: pip install monai-generative."
            ) from error
    return getattr(nets, name)
