"""What a run was asked for, looked at before anything is computed.

MONAI puts every option of a command line into the config, whatever its name. One that is misspelt would lie there
unread and the default be taken in its place: phantoms instead of ``--images FILE``, T2 instead of ``--target flair``.
So every config calls :func:`check_options`, by its ``bundle_code``, when MONAI initialises the workflow.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from inspect import Parameter, signature
from itertools import pairwise
from math import isinf
from numbers import Real
from pathlib import Path
from pydoc import locate
from typing import Any

from monai.bundle import ConfigWorkflow
from monai.bundle.properties import TrainProperties
from monai.bundle.reference_resolver import ReferenceResolver
from monai.utils import BundlePropertyConfig

from custom.utils.arguments import as_bool, bool_or_auto, check_path, nearest, whole_number
from custom.utils.errors import report_plainly
from custom.utils.precision import checked_device

__all__ = ["check_options", "check_places", "unread_options"]

# Entries that no other entry refers to, and who reads them all the same.
READ_BY_NAME = {
    **dict.fromkeys(("imports", "initialize", "run", "finalize"), "MONAI, which runs them"),
    **dict.fromkeys(("inference", "training", "evaluating"), "MONAI, as the name of a run"),
    **dict.fromkeys(("displayable_configs", "channel_def"), "MONAI Label's server"),
    "run_name": "MONAI FL's client gives it to every workflow, for experiment tracking",
    **dict.fromkeys(
        ("tracking_uri", "experiment_name", "save_execute_config", "is_not_rank0"), "MONAI's experiment tracking"
    ),
}
SPATIAL_DIMS = 3
INNER = ("bundle_workflow", "bundle_places", "bundle_missing", "bundle_code")  # which nobody would set
PARTS = ("train", "validate", "displayable_configs")  # hold entries of their own
EXPRESSIONS = ("$", "@", "%")  # what MONAI evaluates: its value is not known yet

# A value of each kind; tests/utils/test_options.py holds that no key of a config is missing here.
PATHS = (
    "bundle_root", "dataset_dir", "output_dir", "cache_dir", "stage_dir", "ckpt_path", "autoencoder_path", "spade_path",
)  # fmt: skip
PATHS_OR_NONE = ("image", "pretrained", "segmenter")
SWITCHES = (
    "skip_done",
    "align",
    "uncertainty",
    "flip",
    "cache_target_like",
    "gradient_checkpointing",
    "joint",
    "debug",
    "paired",
)
SWITCHES_OR_AUTO = ("amp", "resume")
LARGEST = 2**31 - 1
WHOLE = {
    "seed": (0, 2**32 - 1),
    **dict.fromkeys(
        ("num_workers", "cache_workers", "adversarial_start_epoch", "num_figures", "augmented_copies"), (0, LARGEST)
    ),
    **dict.fromkeys(("warmup_steps", "num_inference_steps"), (0, LARGEST)),
    **dict.fromkeys(("max_epochs", "val_interval", "checkpoint_interval", "accumulation_steps"), (1, LARGEST)),
    **dict.fromkeys(("batch_size", "crops_per_subject", "subjects_per_batch", "pairs_per_subject"), (1, LARGEST)),
    **dict.fromkeys(("slices_per_subject", "smallest_slice"), (1, LARGEST)),
    **dict.fromkeys(("part_size", "lookup_subjects", "num_samples", "spatial_divisor"), (1, LARGEST)),
}
WHOLE_OR_NONE = dict.fromkeys(("max_subjects", "max_sources"), (1, LARGEST))
WHOLE_LISTS = {"set_sizes": (2, 16)}
SIZES = ("crop_size", "image_crop", "latent_crop")
SIZES_OR_NONE = ("sample_crop",)  # of slices or volumes
NUMBERS = {
    "learning_rate": (0.0, 1.0),
    "final_learning_rate": (0.0, 1.0),
    "cache_rate": (0.0, 1.0),
    "pure_noise_share": (0.0, 1.0),
    "phantom_share": (0.0, 0.99),
    "fitted_share": (0.0, 1.0),
    "decay_share": (0.0, 1.0),
    "weight_decay": (0.0, 1.0),
    "ema_momentum": (0.0, 1.0),
    "clip_norm": (0.0, float("inf")),
    "image_weight": (0.0, float("inf")),
    "error_weight": (0.0, float("inf")),
    "sharpness_weight": (0.0, float("inf")),
    "ssim_weight": (0.0, float("inf")),
    "viewer_megabytes": (0.0, float("inf")),
}


def check_options(workflows: Iterable[ConfigWorkflow]) -> None:
    """Refuse entries of workflows that nothing reads, and values that cannot be meant.

    Raises:
        ValueError: naming the entry, and the one that is nearest to it.
    """
    for workflow in workflows:
        config = workflow.parser.get()
        try:
            _check_order()
            _check_names(workflow)
            _check_arguments("", config)
            _check_values(config)
        except ValueError:
            # a config asks for it when it is run, which now it will not be
            report_plainly(debug=str(config.get("debug")).lower() == "true")
            raise


def check_places(config: Mapping[str, Any], ids: Iterable[str]) -> None:
    """Refuse values for a part of an entry that is not there, such as ``inferrer#seed``.

    ``python -m monai.bundle`` finds them before it evaluates a config, and says so itself.

    Raises:
        ValueError: naming the entry, and the one that is nearest to it.
    """
    for name in ids:
        parts = ReferenceResolver.split_id(name)
        node: Any = config
        for depth, part in enumerate(parts[:-1], 1):
            inner = node.items() if isinstance(node, Mapping) else enumerate(node)
            held = {str(key): child for key, child in inner if isinstance(child, Mapping | list)}
            if part not in held:
                known = ["#".join([*parts[: depth - 1], key]) for key in held]
                raise _unknown("#".join(parts[:depth]), f"an entry that holds others, for --{name}", "none", known)
            node = held[part]


def _check_order() -> None:
    """Refuse a whole config behind another file on the command line: it would take back what that has set."""
    words = [part for word in sys.argv for part in word.partition("=")[::2] if part] if _of_monai() else []
    given = next((after for word, after in pairwise(words) if word.lstrip("-").replace("-", "_") == "config_file"), "")
    for before, name in pairwise(re.findall(r"[^\[\]'\",\s]+", given)):
        file = Path(name).expanduser()
        if file.suffix == ".json" and file.is_file() and "bundle_code" in json.loads(file.read_text(encoding="utf-8")):
            raise ValueError(
                f"config_file: expected {Path(name).name} first, and what changes it after; found it after "
                f"{Path(before).name}, whose values it would take back. Change their order."
            )


def _of_monai() -> bool:
    """Whether this is a run of ``python -m monai.bundle``."""
    return sys.argv[0].endswith(str(Path("monai", "bundle", "__main__.py")))


def _check_names(workflow: ConfigWorkflow) -> None:
    unread = unread_options(workflow)
    if not unread:
        return
    config, key = workflow.parser.get(), unread[0]
    part, _, _ = key.rpartition("#")
    known = [f"{part}#{k}" for k in config[part]] if part else [k for k in config if k not in INNER and k[0] != "_"]
    known = [k for k in known if k not in unread]
    owners = [name for name, keys in _configs(workflow).items() if key in keys]
    found = f"a key of {', '.join(owners)}" if owners else "none"
    raise _unknown(key, "a key that this config reads", found, known if part else [*_simple(config, known)])


def unread_options(workflow: ConfigWorkflow) -> list[str]:
    """Entries of a workflow's config that neither another entry nor a client reads, as ``key`` or ``part#key``.

    An overlay may serve several configs, as the presets serve the three trainings, and may replace what reads an entry:
    so what is a key of any config of the bundle is let pass. On the command line that can only be a mistake.
    """
    config = workflow.parser.get()
    read = {*READ_BY_NAME, workflow.init_id, workflow.run_id, workflow.final_id, *_references(config)}
    ids = [str(rule[BundlePropertyConfig.ID]) for rule in TrainProperties.values()]
    read |= {"#".join(ReferenceResolver.split_id(name)) for name in ids if "::" in name}
    found = [key for key in _keys(config) if key not in read and not key.startswith("_") and not _has_copy(key, config)]
    elsewhere = {key for keys in _configs(workflow).values() for key in keys} if found else set()
    typed = _typed()
    return [key for key in found if key in typed or key not in elsewhere]


def _typed() -> set[str]:
    """Options of the command line, where this is a run of ``python -m monai.bundle``."""
    words = [word for word in sys.argv if word[:1] == "-"] if _of_monai() else []
    return {word.lstrip("-").partition("=")[0].replace("-", "_") for word in words}


def _references(config: Mapping[str, Any]) -> set[str]:
    """Entries that are named by ``@id`` anywhere, ``key`` and ``key#key``."""
    texts = [node for node in _walk(config) if isinstance(node, str)]
    ids = [ReferenceResolver.split_id(name) for text in texts for name in ReferenceResolver.match_refs_pattern(text)]
    return {"#".join(parts[:depth]) for parts in ids for depth in (1, 2)}


def _has_copy(key: str, config: Mapping[str, Any]) -> bool:
    """Whether a macro reads the entry (``%key``), in whose place MONAI has put a copy."""
    value = config.get(key)
    others = (content for name, content in config.items() if name != key)
    return isinstance(value, Mapping | list) and any(node == value for other in others for node in _walk(other))


def _walk(node: Any) -> Iterator[Any]:
    yield node
    for child in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        yield from _walk(child)


def _keys(config: Mapping[str, Any]) -> list[str]:
    held = [part for part in PARTS if isinstance(config.get(part), Mapping)]
    return [*config, *(f"{part}#{key}" for part in held for key in config[part])]


def _configs(workflow: ConfigWorkflow) -> dict[str, list[str]]:
    """Entries of the configs that lie beside the workflow's own, by the name of their file."""
    files = [file for file in sorted(workflow.config_root_path.glob("*.json")) if file.name != "metadata.json"]
    found = {file.name: json.loads(file.read_text(encoding="utf-8")) for file in files}
    return {name: _keys(config) for name, config in found.items() if isinstance(config, Mapping)}


def _simple(config: Mapping[str, Any], keys: Iterable[str]) -> Iterator[str]:
    """Those of ``keys`` that hold a value, and no definition of an object or a list of them."""
    yield from (key for key in keys if not isinstance(config[key], Mapping) or not config[key])


def _check_arguments(name: str, node: Any) -> None:
    """Refuse arguments that the class of a component does not take: MONAI finds them after minutes, in a traceback."""
    children = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        place = f"{name}#{key}" if name else str(key)
        if isinstance(child, str) and child == "null":
            raise ValueError(
                f"--{place}: expected a value; found the word 'null', which is a text on a command line. "
                "Write '$None', in quotes, for none."
            )
        _check_arguments(place, child)
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if not isinstance(target, str) or "." not in target or target.startswith(EXPRESSIONS):
        return  # of a name alone MONAI would search all its modules
    try:
        parameters = signature(locate(target)).parameters  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return  # not to be found, or written in C: what MONAI says of it is clear
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for key in node:
        if key not in parameters and not key.startswith("_"):
            known = [f"{name}#{parameter}" for parameter in parameters]
            raise _unknown(f"{name}#{key}", f"an argument of {target}", "none", known)


def _unknown(key: str, expected: str, found: str, known: Iterable[str]) -> ValueError:
    names = list(known)
    meant = nearest(key, names)
    others = "Leave it out, or run a config that has it." if found != "none" else f"Choose from {', '.join(names)}."
    advice = f"Did you mean --{meant}?" if meant else others
    return ValueError(f"--{key}: expected {expected}; found {found}. {advice}")


def _check_values(config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if isinstance(value, str) and value.startswith(EXPRESSIONS):
            continue
        unset = value is None and not (key == "image" and key in _typed())  # a scan that was asked for is not a default
        if key in PATHS or (key in PATHS_OR_NONE and not unset):
            check_path(key, value)
        elif key in SWITCHES:
            as_bool(key, value)
        elif key in WHOLE or (key in WHOLE_OR_NONE and value is not None):
            smallest, largest = {**WHOLE, **WHOLE_OR_NONE}[key]
            whole_number(key, value, smallest=smallest, largest=largest)
        elif key in SIZES or (key in SIZES_OR_NONE and value is not None):
            dims = (SPATIAL_DIMS,) if key in SIZES else (SPATIAL_DIMS - 1, SPATIAL_DIMS)
            for size in value if isinstance(value, list | tuple) and len(value) in dims else [value]:
                whole_number(key, size, smallest=1, largest=LARGEST)
        elif key in WHOLE_LISTS:
            smallest, largest = WHOLE_LISTS[key]
            for number in value if isinstance(value, list | tuple) else [value]:
                whole_number(key, number, smallest=smallest, largest=largest)
        elif key in NUMBERS:
            _check_number(key, value, *NUMBERS[key])
        elif key in SWITCHES_OR_AUTO:
            bool_or_auto(key, value)
        elif key == "device" and isinstance(value, str):
            checked_device(value)


def _check_number(key: str, value: Any, low: float, high: float) -> None:
    if not isinstance(value, Real) or isinstance(value, bool) or not low <= float(value) <= high or isinf(value):
        allowed = f"of {low:g} or more" if isinf(high) else f"from {low:g} to {high:g}"
        raise ValueError(f"{key}: expected a number {allowed}; found {value!r}. Correct it.")
