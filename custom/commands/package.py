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

from custom.networks.weights import load_weights
from custom.utils.files import atomic_write

__all__ = ["BUNDLE_NAME", "package"]

BUNDLE_NAME = "brain_mri_modality_translation"
WEIGHTS = "models/model.pt"
LARGE_FILE_BYTES = 25_000_000  # beyond this the zoo keeps a file elsewhere and lists it in large_files.yml
EPOCH = (1980, 1, 1, 0, 0, 0)  # the oldest time a zip can hold: no file's own time enters the artifact


def package(out: str | os.PathLike[str] = "dist", weights: str | os.PathLike[str] | None = None) -> Path:
    """Write ``<out>/brain_mri_modality_translation_v<version>.zip``, byte for byte the same for the same content.

    It holds one folder with ``configs/``, ``models/model.pt``, ``docs/``, ``custom/`` and ``LICENSE``, and works where
    the repository is absent. Files over 25 MB are listed in its ``large_files.yml`` with their checksum.

    Args:
        out: folder for the zip, made where it does not exist.
        weights: pack these instead of ``models/model.pt``.

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
    load_weights(_network(bundle / "configs" / "inference.json"), chosen)
    content = {**_files(bundle, code, licence), WEIGHTS: chosen}
    folder = Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return _write(folder / f"{BUNDLE_NAME}_v{version}.zip", content)


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


def _write(path: Path, content: Mapping[str, Path]) -> Path:
    large = [_large(name, file) for name, file in content.items() if file.stat().st_size > LARGE_FILE_BYTES]
    texts = {"large_files.yml": "large_files:\n" + "".join(large)} if large else {}
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in sorted([*content, *texts]):
            data = texts[name].encode() if name in texts else content[name].read_bytes()
            # weights do not get smaller, and stored bytes do not depend on the version of zlib
            entry = zipfile.ZipInfo(f"{BUNDLE_NAME}/{name}", EPOCH)
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_STORED
            archive.writestr(entry, data)
    return path


def _large(name: str, file: Path) -> str:
    checksum = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
    return f'- path: "{name}"\n  url: ""\n  hash_val: "{checksum}"\n  hash_type: "md5"\n'
