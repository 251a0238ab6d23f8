"""Datalists: which files of which subject belong to training, validation and test.

A datalist is a JSON file ``{"modalities": [...], "training": [entry...], "validation": [...], "test": [...]}`` with
entries ``{"subject": id, "<modality>": path, ..., "seg": path?}``; paths are absolute or relative to its own folder, of
files or of folders with a DICOM series. The vocabulary, in order, is what a network trained on it knows.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from custom.data.layouts import SEGMENTATION_KEY, SUBJECT_KEY, discover
from custom.data.splits import DATALIST_NAME, SECTIONS, Entry, split_by_subject
from custom.utils.distributed import main_first
from custom.utils.files import atomic_write, parse_json, read_text
from custom.utils.modalities import BRATS_MODALITIES, canonical

logger = logging.getLogger(__name__)

EntryLike = TypeVar("EntryLike", bound=Mapping[str, Any])

PHANTOM_COUNTS = (120, 4, 8)
PHANTOM_DRAWN = 48  # the held-out phantoms are drawn among so many, however many more there are to train on


def write_datalist(path: str | os.PathLike, split: Mapping[str, Sequence[Entry]], modalities: Sequence[str]) -> Path:
    """Write a datalist atomically, with paths relative to its folder where the files lie below it.

    Args:
        path: of the JSON file.
        split: entries with absolute paths by section.
        modalities: the vocabulary.
    """
    target = Path(path)
    folder = target.parent.resolve()
    content: dict[str, Any] = {"modalities": [canonical(m) for m in modalities]}
    for section in SECTIONS:
        content[section] = [
            {key: value if key == SUBJECT_KEY else _shorten(value, folder) for key, value in entry.items()}
            for entry in split.get(section, ())
        ]
    with atomic_write(target) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return target


def _shorten(path: str | os.PathLike, folder: Path) -> str:
    resolved = Path(path) if Path(path).is_absolute() else folder / path
    return resolved.relative_to(folder).as_posix() if resolved.is_relative_to(folder) else str(resolved)


def read_datalist(path: str | os.PathLike) -> dict[str, Any]:
    """Read and check a datalist.

    Returns:
        ``{"modalities": [...], "training": [...], "validation": [...], "test": [...]}`` with canonical modality names
        and absolute paths; a section that the file lacks is empty.

    Raises:
        FileNotFoundError: if the datalist or a file it names is missing.
        ValueError: for anything that is not a datalist, an unknown key of an entry, a subject named twice, or an entry
            with fewer than two modalities.
    """
    source = Path(path).expanduser()
    raw = _read_json(source)
    modalities = [canonical(m) for m in raw["modalities"]]
    content: dict[str, Any] = {"modalities": modalities}
    seen: dict[str, str] = {}
    for section in SECTIONS:
        items = raw.get(section, [])
        if not isinstance(items, list):
            raise ValueError(f"{source}: expected a list under {section!r}; found {type(items).__name__}. Correct it.")
        content[section] = []
        for position, item in enumerate(items):
            entry = _checked_entry(item, f"{source}: {section}[{position}]", source.parent.resolve(), modalities)
            if entry[SUBJECT_KEY] in seen:
                raise ValueError(
                    f"{source}: expected subject {entry[SUBJECT_KEY]} once; found it in {seen[entry[SUBJECT_KEY]]} and "
                    f"{section}[{position}]. Remove one: a subject belongs to one section."
                )
            seen[entry[SUBJECT_KEY]] = f"{section}[{position}]"
            content[section].append(entry)
    return content


def _read_json(source: Path) -> dict[str, Any]:
    if not source.is_file():
        raise FileNotFoundError(f"{source}: expected a datalist; found no file. Correct the path.")
    text = read_text(source)
    try:
        raw = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{source}: expected JSON; found {error}. Correct the file.") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("modalities"), list):
        raise ValueError(
            f'{source}: expected {{"modalities": [...], "training": [...], ...}}; found no "modalities". Add them.'
        )
    if not all(isinstance(name, str) for name in raw["modalities"]):
        raise ValueError(f"{source}: expected names of modalities; found {raw['modalities']!r}. Correct them.")
    return raw


def vocabulary(dataset_dir: str | os.PathLike | None, default: Sequence[str] = BRATS_MODALITIES) -> list[str]:
    """The modalities of a data set, in order, for use in a config: those of its datalist, else ``default``.

    Args:
        dataset_dir: folder with a ``datalist.json``, or a datalist of any name.
        default: for a data set that has no datalist yet.

    Raises:
        ValueError: for a file that is no datalist.
    """
    path = datalist_path(dataset_dir) if dataset_dir else None
    return [canonical(m) for m in (_read_json(path)["modalities"] if path and path.is_file() else default)]


def datalist_path(dataset_dir: str | os.PathLike) -> Path:
    """Where the datalist of a data set is: the file itself, or ``datalist.json`` in the folder."""
    path = Path(dataset_dir).expanduser()
    return path if path.is_file() else path / DATALIST_NAME


def _checked_entry(item: Any, where: str, folder: Path, modalities: Sequence[str]) -> Entry:
    """An entry with canonical keys and absolute paths of existing files; ``where`` names it in messages."""
    if not isinstance(item, dict) or not item.get(SUBJECT_KEY):
        raise ValueError(f'{where}: expected an object with "{SUBJECT_KEY}" and paths by modality; found {item!r}.')
    entry: Entry = {SUBJECT_KEY: str(item[SUBJECT_KEY])}
    for key, value in item.items():
        name = canonical(key)
        if key == SUBJECT_KEY:
            continue
        if name not in modalities and name != SEGMENTATION_KEY:
            raise ValueError(
                f"{where}: expected keys {', '.join([SUBJECT_KEY, *modalities, SEGMENTATION_KEY])}; found {key!r}. "
                'Correct the key, or add the modality to "modalities".'
            )
        if name in entry:
            raise ValueError(f"{where}: expected one file for {name}; found two. Remove one of the keys.")
        if not isinstance(value, str) or not value:
            raise ValueError(f"{where}: expected a path as text for {name}; found {value!r}. Correct it.")
        file = folder / value
        if not file.exists():
            raise FileNotFoundError(f"{where}: expected the {name} file {file}; found no file. Correct the path.")
        entry[name] = str(file)
    present = [m for m in modalities if m in entry]
    if len(present) < 2:
        raise ValueError(
            f"{where}: expected two or more of {', '.join(modalities)} for subject {entry[SUBJECT_KEY]}; "
            f"found {', '.join(present) or 'none'}. Add a file, or remove the entry."
        )
    return entry


@main_first()
def load_datalist(
    dataset_dir: str | os.PathLike,
    section: str,
    modalities: Sequence[str] = BRATS_MODALITIES,
    *,
    seed: int = 0,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    layout: str = "brats2021",
    phantom_dir: str | os.PathLike | None = None,
    write: bool = True,
) -> list[Entry]:
    """Entries of one section of a data set, for use in a config.

    ``<dataset_dir>/datalist.json`` is read where it exists; otherwise the folder is searched in ``layout``, split by
    subject and the datalist is written there, so that every stage sees one split.

    Args:
        dataset_dir: folder of the data set, or its datalist.
        section: ``training``, ``validation``, ``test`` or ``all``.
        modalities: the vocabulary; other modalities of the datalist are dropped.
        seed: of the split.
        fractions: of the split.
        layout: a key of ``custom.data.layouts.LAYOUTS``.
        phantom_dir: the folder of the embedded phantoms: if ``dataset_dir`` is this folder and does not exist, they
            are made first.
        write: False leaves no datalist in a folder that has none.

    Returns:
        Entries with absolute paths; at least two modalities each.

    Raises:
        FileNotFoundError: if the folder or a file is missing.
        ValueError: for an unknown or empty section, or a faulty datalist.
    """
    if section not in (*SECTIONS, "all"):
        raise ValueError(f"section: expected one of {', '.join(SECTIONS)}, all; found {section!r}. Correct it.")
    folder = Path(dataset_dir).expanduser()
    if phantom_dir is not None and folder.resolve() == Path(phantom_dir).expanduser().resolve():
        ensure_phantom(folder)
    path = datalist_path(folder)
    if not folder.exists():
        raise FileNotFoundError(
            f"{folder}: expected a datalist, or a folder with {DATALIST_NAME} or subjects in the {layout} layout; "
            "found nothing there. Correct dataset_dir."
        )
    if path.is_file():
        content = read_datalist(path)
    elif section == "all":
        return discover(folder, modalities, layout=layout)
    else:
        content = split_by_subject(discover(folder, modalities, layout=layout), fractions, seed)
        if write:
            _try_to_write(path, content, modalities)
    chosen = [e for s in SECTIONS if section in (s, "all") for e in content[s]]
    entries = _restrict(chosen, modalities, where=f"{path}: {section}")
    if not entries:
        found = f"{len(chosen)} subjects, none usable" if chosen else "none"
        raise ValueError(
            f"{path}: expected at least one subject under {section!r} with two or more of {', '.join(modalities)}; "
            f"found {found}. Add subjects to that section."
        )
    return entries


def _try_to_write(path: Path, split: Mapping[str, Sequence[Entry]], modalities: Sequence[str]) -> None:
    sizes = ", ".join(f"{len(split[s])} {s}" for s in SECTIONS)
    try:
        write_datalist(path, split, modalities)
        logger.info("%s: wrote the split by subject (%s).", path, sizes)
    except OSError as error:
        logger.warning("%s: the split by subject (%s) cannot be written (%s); kept in memory.", path, sizes, error)


def _restrict(entries: Sequence[Entry], modalities: Sequence[str], *, where: str) -> list[Entry]:
    """Only the modalities asked for; subjects with fewer than two of them are left out with a warning."""
    vocabulary = [canonical(m) for m in modalities]
    kept = []
    for entry in entries:
        present = [m for m in vocabulary if m in entry]
        if len(present) < 2:
            logger.warning(
                "%s: subject %s is left out: expected two or more of %s; found %s.",
                where, entry[SUBJECT_KEY], ", ".join(vocabulary), ", ".join(present) or "none",
            )  # fmt: skip
            continue
        extra = [SEGMENTATION_KEY] if SEGMENTATION_KEY in entry else []
        kept.append({key: entry[key] for key in (SUBJECT_KEY, *present, *extra)})
    return kept


def ensure_phantom(
    dataset_dir: str | os.PathLike, *, counts: Sequence[int] = PHANTOM_COUNTS, seed: int = 0, **kwargs: Any
) -> Path:
    """Make the phantom data set where it is absent: BraTS 2021 layout and a datalist.

    The number of a phantom and ``seed`` determine its content, files appear whole or not at all, and subjects that are
    complete are kept: an interrupted run goes on where it stopped, and parallel processes do not disturb one another.

    Args:
        dataset_dir: the folder to make; nothing is done where it is complete.
        counts: numbers of training, validation and test subjects.
        seed: of the phantoms and of the split.
        kwargs: other arguments of ``custom.data.phantom.dataset.write_dataset``, such as ``spacing`` in mm.
    """
    folder = Path(dataset_dir).expanduser()
    marker = folder / ".incomplete"
    if folder.is_dir() and not marker.exists():
        return folder
    from custom.data.phantom.dataset import (
        write_dataset,  # the generator loads templates: imported only where it is needed
    )

    subjects = sum(int(c) for c in counts)
    logger.warning("%s: %d synthetic phantoms are made here, once; each of 1 mm takes 10 seconds.", folder, subjects)
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()
    write_dataset(folder, subjects, seed, **kwargs)
    entries = discover(folder)
    drawn, more = entries[:PHANTOM_DRAWN], entries[PHANTOM_DRAWN:]
    split = split_by_subject(drawn, seed=seed, counts=(counts[0] - len(more), *counts[1:]))
    split["training"] += more
    write_datalist(folder / DATALIST_NAME, split, BRATS_MODALITIES)
    marker.unlink(missing_ok=True)
    return folder


def load_phantoms(
    phantom_dir: str | os.PathLike, share: float, modalities: Sequence[str], dataset_dir: str | os.PathLike
) -> list[Entry]:
    """The embedded phantoms to train on, made where they are absent; none for a ``share`` of 0.

    Args:
        phantom_dir: their folder.
        share: of the training's subjects that are to be phantoms, see :func:`choose_phantoms`.
        modalities: the vocabulary.
        dataset_dir: of the training, which must be another data set.

    Raises:
        ValueError: for a share outside [0, 1), or phantoms beside phantoms.
    """
    if not 0 <= share < 1:
        raise ValueError(f"phantom_share: expected a number from 0 to below 1; found {share}. Correct it.")
    if share == 0:
        return []
    if Path(dataset_dir).expanduser().resolve() == Path(phantom_dir).expanduser().resolve():
        raise ValueError(
            f"phantom_share: expected 0 where the data set is the phantoms themselves; found {share}. Leave it out, or "
            "give another dataset_dir."
        )
    return load_datalist(phantom_dir, "training", modalities, phantom_dir=phantom_dir)


def choose_phantoms(phantoms: Sequence[EntryLike], count: int, share: float) -> list[EntryLike]:
    """As many ``phantoms`` as make up ``share`` of a training beside ``count`` other subjects, copies counted."""
    wanted = round(count * share / (1 - share))
    if wanted > len(phantoms):
        logger.warning(
            "phantom_share: expected %d phantoms for a share of %g; found %d, a share of %.2g.",
            wanted, share, len(phantoms), len(phantoms) / (len(phantoms) + count),
        )  # fmt: skip
    return list(phantoms[:wanted])


def with_phantoms(entries: Sequence[EntryLike], phantoms: Sequence[EntryLike], share: float) -> list[EntryLike]:
    """``entries``, and after them so many of the ``phantoms`` that these are ``share`` of all."""
    return [*entries, *choose_phantoms(phantoms, len(entries), share)]
