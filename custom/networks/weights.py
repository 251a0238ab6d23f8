"""Loading of ``model.pt`` with errors that say what does not fit."""

from __future__ import annotations

import json
import logging
import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from custom.networks.ms_spade import SwitchableConv3d
from custom.networks.quantizer import VectorQuantizer
from custom.networks.translator import RANGE
from custom.networks.widening import widened
from custom.utils.errors import first_of
from custom.utils.intensity_scales import INTENSITY_SCALES, PERCENTILE, SCALE_KEY, scale_number

__all__ = [
    "CARD", "check_archive", "check_divisor", "compact", "convert_weights", "is_kernel", "load_tensors", "load_weights",
    "name_of_card", "read_card", "read_weights", "write_card",
]  # fmt: skip

# what networks did not always have: the fusion of several sources, the error map, coarser detail, coordinates, what
# sources tell one another, scalar channels
ADDED = (
    "fusion.", "detail.attention.", "detail.fusion.", "detail.error.", "detail.coarser.", "style_transfer.position.",
    "style_transfer.exchanges.", "autoencoder.projection.", "autoencoder.expansion.",
)  # fmt: skip

# what weights that were trained before 0.3.0 was released fused several sources by
REPLACED = ("fusion.attention.", "fusion.block.", "fusion.conv_out.")

logger = logging.getLogger(__name__)

NAMED = 3  # parameters named in a message
MSDOS_FOLDER = 0x10  # the attribute of a part of an archive
CARD = "card"  # the entry of a state dict that says which network it is of, where several could take the tensors

Network = TypeVar("Network", bound=nn.Module)


def check_divisor(network: nn.Module, divisor: int | Sequence[int]) -> None:
    """Raise a ``ValueError`` where volumes padded to multiples of ``divisor`` do not fit a ``LatentTranslator``."""
    needed = int(getattr(network, "spatial_divisor", 1))
    if any(int(n) % needed for n in ([divisor] if isinstance(divisor, int | str) else divisor)):
        raise ValueError(
            f"spatial_divisor: expected a multiple of {needed}, the network's downsampling; found {divisor}."
        )


def compact(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``state`` with the kernels of convolutions in half precision: half the file; loading casts them to the network's.

    A kernel outside the range of half precision stays as it is.
    """
    largest = torch.finfo(torch.float16).max
    return {k: v.half() if is_kernel(v) and v.abs().max() <= largest else v for k, v in state.items()}


def is_kernel(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` is the kernel of a convolution, by its number of axes."""
    return tensor.ndim > 2


def write_card(content: Mapping[str, Any]) -> torch.Tensor:
    """``content``, as JSON can hold it, as a tensor of bytes: a state dict of tensors can carry it."""
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


def read_card(state: Mapping[str, torch.Tensor]) -> dict[str, Any] | None:
    """The card that a state dict carries: ``{"target", "method", "arguments"}``; None where there is none."""
    if CARD not in state:
        return None
    try:
        return json.loads(bytes(state[CARD].tolist()))
    except ValueError as error:
        raise ValueError(f"{CARD}: expected JSON in bytes; found {error}. Replace the weights.") from error


def name_of_card(card: Mapping[str, Any] | None) -> str:
    """What a card stands for, such as ``"pix2pix_2d, t1 to t2, small"``."""
    if card is None:
        return "a network without a card"
    pair, size = card["arguments"].get("pair"), card["arguments"].get("size")
    return ", ".join([card["method"], " to ".join(pair) if pair else "all pairs", *([size] if size else [])])


def load_tensors(file: Path, *, expected: str, remedy: str) -> Any:
    """Content of a file of tensors, numbers and plain containers, on the CPU; code in it is not run.

    Raises:
        ValueError: if it is something else, or damaged, saying what was ``expected`` and the ``remedy``.
    """
    try:
        check_archive(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file provokes
        # of an unpickling error torch's text says how to run the code in the file, which is no advice to pass on
        said = "no tensors alone" if isinstance(error, pickle.UnpicklingError) else str(error)
        detail = (said or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(f"{file}: expected {expected}; found {detail}. {remedy}.") from error


def check_archive(file: Path) -> None:
    """Compare the content of a file of ``torch.save`` with its checksums, which ``torch.load`` does not look at.

    A part that the archive calls a folder is refused as well: ``torch.load`` leaves its tensor as the memory happened
    to be.

    Raises:
        ValueError: if one is wrong, or if there is such a part.
        BadZipFile: if a part of the archive is not what its directory says.
    """
    if not zipfile.is_zipfile(file):
        return  # of PyTorch before 1.6: without checksums
    with zipfile.ZipFile(file) as archive:
        folder = next((part.filename for part in archive.infolist() if part.external_attr & MSDOS_FOLDER), None)
        broken, what = (folder, "is called a folder") if folder else (archive.testzip(), "has another checksum")
        if broken:
            name = "".join(c if c.isprintable() else "?" for c in broken)  # it may be what is damaged
            raise ValueError(f"damaged content ({name} {what})")


def read_weights(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """A flat state dict, tensors only, on the CPU.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if the file is no flat state dict.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: expected the model's weights; found no file. Train the three stages, or point bundle_root at the "
            "folder that holds configs/ and models/."
        )
    state = load_tensors(file, expected="a file of tensors", remedy="Replace the file")
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(
            f"{file}: expected a flat state dict, name → tensor; found {_kind(state)}. "
            "Give the model.pt that the last training stage writes, not a training checkpoint."
        )
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise ValueError(
            f"{file}: expected finite weights; found NaN or infinite values in {first_of(broken)}. Replace the file."
        )
    return dict(state)


def load_weights(
    network: Network, path: str | os.PathLike, parts: Sequence[str] | None = None, *, any_scale: bool = False
) -> Network:
    """Load a flat state dict strictly, tensors only, onto the device that ``network`` is on.

    Args:
        network: a ``LatentTranslator`` or another module.
        path: of the state dict.
        parts: names of the submodules to load, each strictly; the others keep their weights. All where not given.
        any_scale: take weights of another intensity scale than the network's, with a warning, as a training may start
            from them.

    Returns:
        ``network``, unchanged if anything fails.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if the file is no flat state dict, or the weights are of another preset, vocabulary, scale or number
            of codebooks.
    """
    file, state = Path(path).expanduser(), read_weights(path)
    own, named = network.state_dict(), SCALE_KEY in state
    _add_defaults(state, own)
    scales = [int(tensors[SCALE_KEY]) for tensors in (state, own)] if SCALE_KEY in own else []
    if scales and named:
        _check_scale(file, *scales, refuse=not any_scale)
    state, expected = (tensors if parts is None else _of_parts(tensors, parts) for tensors in (state, own))
    differences = _differences(network, expected, state)
    if differences:
        advice = _advice(network, expected, state, file)
        raise ValueError(f"{file}: expected the weights of this network; found {'; '.join(differences)}. {advice}")
    if scales and not named:  # a file that fits must be of the percentiles; one that does not says nothing of a scale
        _check_scale(file, *scales, refuse=not any_scale)
    if parts is not None:  # a file that lacks these is of the percentiles, but parts of a file say nothing of the whole
        state |= {name: own[name] for name in (SCALE_KEY, RANGE) if name in own}
    network.load_state_dict(state, strict=parts is None)
    return network


def convert_weights(network: nn.Module, path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The weights of an earlier version with what networks did not have then, untrained: results stay the same.

    Weights of fewer codebooks get as many as ``network`` has: the codes, cut, are those of the new codebooks, each with
    the counts of the whole. No latent is worse represented than before; as any combination of pieces is now a code,
    latents lie nearer to what the encoder gives.

    Args:
        network: of the preset and the vocabulary that the weights were trained with, as it was made: of its own weights
            those that the file lacks are taken.
        path: of the flat state dict.

    Returns:
        A state dict for ``network``; the tensors of the file are kept as they are.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: if it is not of an earlier version of this network, nor of fewer codebooks.
    """
    file, state, own = Path(path).expanduser(), read_weights(path), network.state_dict()
    _add_defaults(state, own)
    whole = _converted(network, own, state)
    if differences := _differences(network, own, whole):
        raise ValueError(
            f"{file}: expected weights of an earlier version of this network; found {'; '.join(differences)}. Name the "
            "preset and the num_codebooks that they were trained with."
        )
    if all(whole[name] is state.get(name) for name in whole):
        raise ValueError(
            f"{file}: expected weights of an earlier version or of fewer codebooks; found nothing to change. Use them "
            "as they are."
        )
    return {name: whole[name] for name in own}


def _converted(
    network: nn.Module, expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """``state`` with what networks did not have before, and with its codebooks cut where ``network`` has more."""
    kept = state = widened(state, expected)
    if any(name.startswith(REPLACED) and name not in expected for name in state):
        kept = {name: tensor for name, tensor in state.items() if not name.startswith(REPLACED)}
    lacking = {name: tensor for name, tensor in expected.items() if name not in kept and name.startswith(ADDED)}
    whole = {**kept, **lacking}
    books = _other_codebooks(network, state)
    if books is not None and books.wanted % books.found == 0:
        sizes = state[books.name].reshape(books.found, -1)
        whole[books.name] = sizes.repeat_interleave(books.wanted // books.found, dim=0)
    return whole


def _advice(
    network: nn.Module, expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], file: Path
) -> str:
    """What to do with weights that differ from what is expected."""
    convertible = not _differences(network, expected, _converted(network, expected, state))
    if books := _other_codebooks(network, state):
        advice = (
            f"Set num_codebooks of the codebook in network_def to {books.found}, as the weights have it "
            f"(--network_def#autoencoder#bottleneck#num_codebooks {books.found}, or #autoencoder#num_codebooks where "
            "there is no bottleneck)"
        )
        if not convertible:
            return f"{advice}."
        return (
            f"{advice}, or start a training from what python -m custom convert {file} NEW_FILE --num_codebooks "
            f"{books.wanted} makes of them."
        )
    if convertible:
        return f"They are of an earlier version: python -m custom convert {file} NEW_FILE makes them whole."
    return "Use the preset and the modalities that the weights were trained with."


def _add_defaults(state: dict[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Add what follows for weights from before it was kept with them."""
    if SCALE_KEY in expected:
        state.setdefault(SCALE_KEY, torch.tensor(scale_number(PERCENTILE)))
    if RANGE in expected:
        state.setdefault(RANGE, torch.zeros_like(expected[RANGE]))


def _check_scale(file: Path, found: int, expected: int, *, refuse: bool) -> None:
    if found == expected:
        return
    known = INTENSITY_SCALES[found] if 0 <= found < len(INTENSITY_SCALES) else f"one that is not known ({found})"
    other = f"{file}: expected weights trained on the intensity scale {INTENSITY_SCALES[expected]}; found {known}"
    if refuse:
        raise ValueError(f"{other}. Set intensity_scale to the scale of the weights, or use other weights.")
    logger.warning("%s. The training goes on from them in its own scale.", other)


def _of_parts(state: Mapping[str, torch.Tensor], parts: Sequence[str]) -> dict[str, torch.Tensor]:
    return {k: v for k, v in state.items() if k.startswith(tuple(f"{part}." for part in parts))}


def _kind(state: object) -> str:
    if isinstance(state, Mapping):
        return f"entries {', '.join(map(str, list(state)[:NAMED]))}"
    return type(state).__name__


def _differences(
    network: nn.Module, expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
) -> list[str]:
    own, other = read_card(expected), read_card(state)
    if own != other and (own is None or other is None or name_of_card(own) != name_of_card(other)):
        return [f"those of {name_of_card(other)} instead of {name_of_card(own)}"]
    books = _other_codebooks(network, state)
    same = (CARD, "" if books is None else books.name)  # which are compared by what they mean
    shapes = [k for k in expected if k in state and k not in same and expected[k].shape != state[k].shape]
    found = ["the same method built otherwise"] if own != other else []
    if vocabulary := _other_vocabulary(network, state):
        found.append(vocabulary)
    if books is not None:
        found.append(f"{books.found} codebook{'s' if books.found > 1 else ''} instead of {books.wanted}")
    if shapes:
        shown = first_of(f"{k} {tuple(state[k].shape)} instead of {tuple(expected[k].shape)}" for k in shapes)
        found.append(f"{len(shapes)} tensors of another shape ({shown})")
    for label, names in (
        ("missing", [k for k in expected if k not in state]),
        ("unknown", [k for k in state if k not in expected]),
    ):
        if names:
            found.append(f"{len(names)} {label} tensors ({first_of(names)})")
    return found


def _other_vocabulary(network: nn.Module, state: Mapping[str, torch.Tensor]) -> str:
    """The number of modalities where it differs: the kernels of the first switchable convolution."""
    for name, module in network.named_modules():
        kernels = state.get(f"{name}.weight")
        if isinstance(module, SwitchableConv3d) and kernels is not None and len(kernels) != len(module.weight):
            return f"{len(kernels)} modalities instead of {len(module.weight)}"
    return ""


class _Codebooks(NamedTuple):
    """Numbers of codebooks that weights have and that a network wants; ``name`` of the tensor that tells."""

    name: str
    found: int
    wanted: int


def _other_codebooks(network: nn.Module, state: Mapping[str, torch.Tensor]) -> _Codebooks | None:
    """The number of codebooks where it differs: the codes have one shape whatever it is, the counts tell."""
    for place, module in network.named_modules():
        name = f"{place}.ema_cluster_size"
        if isinstance(module, VectorQuantizer) and name in state:
            found = len(state[name]) if state[name].ndim > 1 else 1
            if found != module.num_codebooks:
                return _Codebooks(name, found, module.num_codebooks)
    return None
