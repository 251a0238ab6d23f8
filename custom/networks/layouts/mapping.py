"""From the tensors of another layout to those of a part of ours, with a report of what became of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from custom.networks.layouts.reader import Tensors
from custom.utils.errors import first_of

__all__ = ["Mapped", "Part", "Rule", "build", "copied", "map_tensors", "tensors_of"]

NAMED = 3  # tensors named in a message


class Rule(NamedTuple):
    """How a tensor of ours is made.

    Attributes:
        names: of the tensors that it is made from.
        make: from them; the tensor itself by default.
    """

    names: tuple[str, ...]
    make: Callable[[Sequence[Tensor]], Tensor]


class Part(NamedTuple):
    """A part of our network as another layout holds it.

    Attributes:
        definition: of the part, as configs give it.
        rules: by the name of every tensor of the part.
        source: what holds the other layout's tensors.
        known: further names of theirs that are left out on purpose.
    """

    definition: dict[str, Any]
    rules: dict[str, Rule]
    source: Tensors
    known: tuple[str, ...] = ()


class Mapped(NamedTuple):
    """A part's state dict, and the names of the other layout's tensors that were used, ignored and missing."""

    state: dict[str, Tensor]
    used: list[str]
    ignored: list[str]
    missing: list[str]


def copied(name: str) -> Rule:
    """The tensor of that name, as it is."""
    return Rule((name,), lambda tensors: tensors[0])


def build(definition: dict[str, Any]) -> nn.Module:
    """The module of a definition without references and expressions."""
    return ConfigParser({"part": definition}).get_parsed_content("part")


def tensors_of(definition: dict[str, Any], place: str | Path) -> dict[str, Tensor]:
    """The tensors of the module of a definition, on the meta device.

    Raises:
        ValueError: with ``place``, where the module refuses the definition.
    """
    try:
        with torch.device("meta"):
            return build(definition).state_dict()
    except Exception as error:  # MONAI wraps what a constructor raises
        *_, cause = _chain(error)
        raise ValueError(f"{place}: {definition['_target_']} cannot be made with its sizes: {cause}.") from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def map_tensors(part: Part, *, strict: bool = True) -> Mapped:
    """The state dict of a part, in float32.

    Args:
        part: to map.
        strict: a tensor that is missing, or that the layout does not know, is an error; otherwise it is reported, and
            what cannot be made keeps the values of a new network.

    Raises:
        ValueError: for such tensors, shapes that do not fit, and values that are not finite.
    """
    file, weights = part.source.file, part.source.tensors
    state = build(part.definition).state_dict()
    names = list(dict.fromkeys(name for rule in part.rules.values() for name in rule.names))
    missing = [name for name in names if name not in weights]
    unknown = [name for name in weights if name not in set(names) and name not in part.known]
    if strict and (missing or unknown):
        kinds = {"missing": missing, "unknown": unknown}
        found = [f"{len(n)} {kind} tensors ({first_of(n)})" for kind, n in kinds.items() if n]
        raise ValueError(
            f"{file}: expected every tensor of the layout and no other; found {' and '.join(found)}. "
            "Give the whole file, or --strict false to go on with what fits."
        )
    broken = [name for name in names if name in weights and not weights[name].isfinite().all()]
    if broken:
        raise ValueError(
            f"{file}: expected finite weights; found NaN or infinity in {len(broken)} tensors ({first_of(broken)}). "
            "Take an earlier checkpoint of that training."
        )
    used: list[str] = []
    for name, rule in part.rules.items():
        if all(needed in weights for needed in rule.names):
            state[name] = _made(rule, weights, state[name], file)
            used += rule.names
    ignored = [*unknown, *(name for name in part.known if name in weights), *part.source.others]
    return Mapped(state, list(dict.fromkeys(used)), ignored, missing)


def _made(rule: Rule, weights: dict[str, Tensor], like: Tensor, file: Path) -> Tensor:
    tensors = [weights[name] for name in rule.names]
    shapes = ", ".join(f"{name} {tuple(weights[name].shape)}" for name in rule.names[:NAMED])
    try:
        made = rule.make([tensor.to(like.dtype) for tensor in tensors]).to(like.dtype)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"{file}: expected tensors that make {tuple(like.shape)}; found {shapes}. {SIZES}") from error
    if made.shape != like.shape:
        raise ValueError(f"{file}: expected the shape {tuple(like.shape)}; found {shapes}. {SIZES}")
    return made.clone(memory_format=torch.contiguous_format)


SIZES = "Give weights of one network; sizes that differ from part to part are not of this layout."
