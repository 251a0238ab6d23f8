"""The Model Zoo artifact: one self-contained, reproducible zip of the bundle."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from monai.bundle import ConfigParser

from custom import rivals
from custom.evaluation.rows import METHODS, OF_THE_STAGES
from custom.networks.weights import load_weights, name_of_card, read_card, read_weights
from custom.utils.files import atomic_write

__all__ = ["BUNDLE_NAME", "package"]

BUNDLE_NAME = "brain_mri_modality_translation"
WEIGHTS = "models/model.pt"
LARGE_FILE_BYTES = 25_000_000  # beyond this the zoo keeps a file elsewhere and lists it in large_files.yml
REWRITTEN = ("inference", "evaluate", "metadata")  # configs that differ in a rival's bundle
EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest time a zip can hold: no file's own time enters the artifact


def package(out: str | os.PathLike[str] = "dist", weights: str | os.PathLike[str] | None = None) -> Path:
    """Write ``<out>/brain_mri_modality_translation_v<version>.zip``, byte for byte the same for the same content.

    It holds one folder with ``configs/``, ``models/model.pt``, ``docs/``, ``custom/`` and ``LICENSE``, and works where
    the repository is absent. Files over 25 MB are listed in its ``large_files.yml`` with their checksum.

    The weights of a rival make a bundle of its own, ``…_<method>_v<version>.zip``, whose ``inference.json`` and
    ``evaluate.json`` hold the network that the weights say they are of.

    Args:
        out: folder for the zip, made where it does not exist.
        weights: pack these instead of ``models/model.pt``, those of a rival too.

    Returns:
        Path of the zip.

    Raises:
        FileNotFoundError: for missing weights or parts of the bundle.
        ValueError: for weights that do not fit ``network_def``, a version that the changelog lacks, a second ``.pt``
            beside the weights, or a config that names a file outside the bundle.
    """
    bundle, code, licence = _parts()
    version = _version(bundle / "configs" / "metadata.json")
    _check_models(bundle / "models")
    for config in sorted((bundle / "configs").glob("*.json")):
        _check_paths(config)
    chosen = Path(weights).expanduser() if weights is not None else bundle / WEIGHTS
    files = _files(bundle, code, licence)
    name, texts = BUNDLE_NAME, {}
    if (card := read_card(read_weights(chosen))) is not None:
        name, texts = f"{BUNDLE_NAME}_{card['method']}", _of_rival(card, chosen, files)
    else:
        load_weights(_network(bundle / "configs" / "inference.json"), chosen)
    folder = Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return _write(folder / f"{name}_v{version}.zip", {**files, WEIGHTS: chosen, **texts}, name)


def _parts() -> tuple[Path, Path, Path]:
    """Bundle, package and licence, in the repository or in an unpacked artifact."""
    code = Path(__file__).resolve().parents[1]
    above = code.parent
    bundle = above / "bundle" if (above / "bundle" / "configs").is_dir() else above
    for needed in (bundle / "configs" / "metadata.json", bundle / "configs" / "inference.json", above / "LICENSE"):
        if not needed.is_file():
            raise FileNotFoundError(f"{needed}: expected a part of the bundle; found no file. Restore it.")
    return bundle, code, above / "LICENSE"


def _version(metadata: Path) -> str:
    content = json.loads(metadata.read_text(encoding="utf-8"))
    version, changelog = content["version"], content["changelog"]
    if version not in changelog:
        raise ValueError(
            f"{metadata}: expected the version {version} in the changelog; found {', '.join(changelog)}. "
            "Say there what the version changes."
        )
    return version


def _check_models(folder: Path) -> None:
    others = sorted(p.name for p in folder.glob("*.pt") if p.name != PurePosixPath(WEIGHTS).name)
    if others:
        raise ValueError(
            f"{folder}: expected model.pt alone, as clients load the file with the shortest name; found "
            f"{', '.join(others)} too. Move them elsewhere."
        )


def _check_paths(config: Path) -> None:
    """A config may name what lies below ``bundle_root``, and nothing else."""
    for key, value in _strings(json.loads(config.read_text(encoding="utf-8"))):
        if value.startswith("$"):
            continue
        absolute = PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()
        if absolute or ".." in PurePosixPath(value).parts:
            raise ValueError(
                f"{config}, {key}: expected a path inside the bundle; found {value!r}. "
                "Write it relative to @bundle_root, or let the user give it."
            )


def _strings(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, str):
        yield key, node
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, Mapping):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    for name, value in items:
        yield from _strings(value, f"{key}#{name}" if key else str(name))


def _network(config: Path) -> Any:
    parser = ConfigParser()
    parser.read_config(str(config))
    return parser.get_parsed_content("network_def")


def _files(bundle: Path, code: Path, licence: Path) -> dict[str, Path]:
    """Name in the artifact → file; nothing from tests, outputs or caches."""
    files = {"LICENSE": licence}
    for folder, pattern in (("configs", "*.json"), ("configs", "*.conf"), ("docs", "*")):
        files |= {f"{folder}/{p.name}": p for p in (bundle / folder).glob(pattern) if p.is_file()}
    code_files = [p for p in code.rglob("*") if p.suffix == ".py" or (p.parent.name == "assets" and p.is_file())]
    return files | {f"custom/{p.relative_to(code).as_posix()}": p for p in code_files}


def _of_rival(card: Mapping[str, Any], weights: Path, files: Mapping[str, Path]) -> dict[str, str]:
    """The files that differ in a rival's bundle, after a check that its weights fit.

    Raises:
        ValueError: for weights of an unknown method, or that do not fit it.
    """
    known = {f"custom.rivals.{name}" for name in rivals.__all__ if not name.endswith("Objective")}
    if card["target"] not in known:
        raise ValueError(f"{weights}: expected weights of one of {', '.join(sorted(known))}; found {card['target']}.")
    arguments, pair = card["arguments"], card["arguments"]["pair"]
    load_weights(getattr(rivals, card["target"].rpartition(".")[2])(**arguments), weights)
    configs = {name: json.loads(files[f"configs/{name}.json"].read_text(encoding="utf-8")) for name in REWRITTEN}
    for config in (configs["inference"], configs["evaluate"]):
        config["network_def"] = {"_target_": card["target"], "_requires_": "@bundle_code", **arguments}
        config["modalities"]["default"] = arguments["modalities"]
        config["intensity_scale"] = arguments["intensity_scale"]
    configs["evaluate"]["methods"] = [m for m in METHODS if m not in OF_THE_STAGES]
    if pair:
        configs["inference"]["displayable_configs"]["target"] = pair[1]
        configs["evaluate"] |= {"scored_pairs": [pair], "pairs": [pair]}
    what = f"a method that the model of this package is compared with: {name_of_card(card)}"
    configs["metadata"] |= {
        "name": f"{configs['metadata']['name']}, {card['method']}",
        "description": f"Weights of {what}.",
    }
    page = files["docs/README.md"].read_text(encoding="utf-8")
    texts = {
        f"configs/{name}.json": json.dumps(config, indent=4, ensure_ascii=False) for name, config in configs.items()
    }
    return {**texts, "docs/README.md": f"> **The weights in this bundle are of {what}.**\n\n{page}"}


def _write(path: Path, content: Mapping[str, Path | str], folder: str = BUNDLE_NAME) -> Path:
    """A zip with one ``folder`` of files, given by their paths or texts."""
    large = [
        _large(name, file)
        for name, file in content.items()
        if isinstance(file, Path) and file.stat().st_size > LARGE_FILE_BYTES
    ]
    texts = {"large_files.yml": "large_files:\n" + "".join(large)} if large else {}
    content = {**content, **texts}
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, file in sorted(content.items()):
            data = file.encode() if isinstance(file, str) else file.read_bytes()
            # weights do not get smaller, and stored bytes do not depend on the version of zlib
            entry = zipfile.ZipInfo(f"{folder}/{name}", EPOCH)
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_STORED
            archive.writestr(entry, data)
    return path


def _large(name: str, file: Path) -> str:
    checksum = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
    return f'- path: "{name}"\n  url: ""\n  hash_val: "{checksum}"\n  hash_type: "md5"\n'
