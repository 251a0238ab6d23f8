"""Definitions of networks and schedulers in somebody's configs: read, never evaluated."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from monai.bundle import ConfigParser
from monai.bundle.config_item import ConfigItem

__all__ = ["Definition", "find_definition"]


class Definition(NamedTuple):
    """Arguments of a class, as a config gives them.

    Attributes:
        place: where it stands, for messages.
        arguments: by name; those that the config leaves out have their defaults.
    """

    place: str
    arguments: dict[str, Any]


def find_definition(
    files: Sequence[str], class_names: Sequence[str], signature: type, *, renamed: Mapping[str, str] | None = None
) -> Definition:
    """The definition of a class of one of these names in configs, JSON or YAML, later files over earlier ones.

    References such as ``@latent_channels`` are followed; expressions are not evaluated.

    Args:
        files: the configs.
        class_names: such as ``AutoencoderKL``; the last component of ``_target_``.
        signature: class whose constructor takes the arguments.
        renamed: other names of its arguments.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: if there is no such definition or more than one, for a value that only Python could compute, and
            for an argument that the class does not have.
    """
    shown = ", ".join(map(str, files))
    wanted = " or ".join(class_names)
    try:
        parser = ConfigParser(ConfigParser.load_config_files(list(map(str, files))))
        parser.parse()
    except FileNotFoundError:
        raise FileNotFoundError(f"config: expected files at {shown}; found none. Correct the path.") from None
    except Exception as error:
        raise ValueError(
            f"config: expected JSON or YAML in {shown}; found {error!r:.200}. Correct the file."
        ) from error
    places = [place for place, target in _targets(parser.get()) if target.rpartition(".")[2] in class_names]
    if len(places) != 1:
        raise ValueError(
            f"config: expected one definition of {wanted} in {shown}; found {', '.join(places) or 'none'}. "
            f'Give a config with {{"_target_": "….{class_names[0]}", …}}, with the arguments of the training.'
        )
    try:
        item = parser.get_parsed_content(places[0], instantiate=False, eval_expr=False)
    except Exception as error:
        raise ValueError(f"{shown}: {places[0]}: {error!s:.200}. Give all files that it refers to.") from error
    given = {k: v for k, v in item.get_config().items() if not k.startswith("_")}
    arguments = {(renamed or {}).get(k, k): v for k, v in given.items()}
    known = inspect.signature(signature.__init__).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    for name, value in arguments.items():
        if not _is_plain(value):
            raise ValueError(f"{shown}: {places[0]}#{name}: expected a value; found an expression. Write its value.")
        if name not in known and not takes_all:
            raise ValueError(f"{shown}: {places[0]}#{name}: {wanted} has no such argument. Remove or correct it.")
    defaults = {n: p.default for n, p in known.items() if p.default is not inspect.Parameter.empty}
    return Definition(f"{shown}: {places[0]}", {**defaults, **arguments})


def _targets(config: Any, place: str = "") -> list[tuple[str, str]]:
    if isinstance(config, Mapping):
        own = [(place, str(config["_target_"]))] if "_target_" in config else []
        return own + [found for k, v in config.items() for found in _targets(v, f"{place}#{k}" if place else str(k))]
    if isinstance(config, list):
        return [found for i, v in enumerate(config) for found in _targets(v, f"{place}#{i}")]
    return []


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(v) for v in value.values())
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return not isinstance(value, ConfigItem) and not (isinstance(value, str) and value.startswith("$"))
