"""Datalists: which files of which subject belong to training, validation and test.

A datalist is a JSON file ``{"modalities": [...], "training": [entry...], "validation": [...], "test": [...]}`` with
entries ``{"subject": id, "<modality>": path, ..., "seg": path?}``; paths are absolute or relative to its own folder.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from custom.data.layouts import SEGMENTATION_KEY, SUBJECT_KEY, discover
from custom.distributed import main_first
from custom.files import appearing_whole
from custom.modalities import BRATS_MODALITIES, canonical

logger = logging.getLogger(__name__)

SECTIONS = ("training", "validation", "test")
DATALIST_NAME = "datalist.json"
PHANTOM_COUNTS = (36, 4, 8)

Entry = dict[str, Any]


def split_by_subject(
    entries: Sequence[Entry],
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    *,
    counts: Sequence[int] | None = None,
) -> dict[str, list[Entry]]:
    """Divide subjects at random among the sections; every section with a share gets at least one.

    Args:
        entries: one entry a subject.
        fractions: shares of training, validation and test, which sum to 1.
        seed: of the shuffle; the result does not depend on the order of ``entries``.
        counts: numbers of subjects instead of fractions; they sum to the number of entries.

    Raises:
        ValueError: for a repeated subject, shares or counts that do not fit, or too few subjects.
    """
    ordered = sorted(entries, key=lambda e: str(e[SUBJECT_KEY]))
    names = [str(e[SUBJECT_KEY]) for e in ordered]
    repeated = sorted({n for n in names if names.count(n) > 1})
    if repeated:
        raise ValueError(f"datalist: expected each subject once; found {', '.join(repeated)} repeated. Merge them.")
    sizes = _section_sizes(len(ordered), fractions) if counts is None else _checked_counts(len(ordered), counts)
    random.Random(seed).shuffle(ordered)
    split, start = {}, 0
    for section, size in zip(SECTIONS, sizes, strict=True):
        split[section] = sorted(ordered[start : start + size], key=lambda e: str(e[SUBJECT_KEY]))
        start += size
    return split


def _checked_counts(total: int, counts: Sequence[int]) -> list[int]:
    sizes = [int(c) for c in counts]
    if len(sizes) != len(SECTIONS) or min(sizes) < 0 or sum(sizes) != total:
        raise ValueError(
            f"counts: expected {len(SECTIONS)} numbers ({', '.join(SECTIONS)}) that sum to {total} subjects; "
            f"found {list(counts)}. Correct the counts."
        )
    return sizes


def _section_sizes(total: int, fractions: Sequence[float]) -> list[int]:
    """Largest-remainder rounding, at least one subject for each section whose share is not zero."""
    shares = [float(f) for f in fractions]
    if len(shares) != len(SECTIONS) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(
            f"fractions: expected {len(SECTIONS)} shares ({', '.join(SECTIONS)}) that sum to 1; "
            f"found {list(fractions)}. Correct the fractions."
        )
    asked = [i for i, s in enumerate(shares) if s > 0]
    if total < len(asked):
        raise ValueError(
            f"datalist: expected at least {len(asked)} subjects for {', '.join(SECTIONS[i] for i in asked)}; "
            f"found {total}. Add subjects, or write a {DATALIST_NAME} that says which section each belongs to."
        )
    exact = [s * total for s in shares]
    sizes = [max(int(e), 1) if i in asked else 0 for i, e in enumerate(exact)]
    while sum(sizes) != total:
        step = 1 if sum(sizes) < total else -1
        movable = asked if step > 0 else [i for i in asked if sizes[i] > 1]
        best = max(movable, key=lambda i: step * (exact[i] - sizes[i]))
        sizes[best] += step
    return sizes


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
    with appearing_whole(target) as temporary:
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
    if not source.is_file():
        raise FileNotFoundError(f"{source}: expected a datalist; found no file. Correct the path.")
    try:
        raw = json.loads(source.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{source}: expected JSON; found {error}. Correct the file.") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("modalities"), list):
        raise ValueError(
            f'{source}: expected {{"modalities": [...], "training": [...], ...}}; found no "modalities". Add them.'
        )
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
        file = folder / str(value)
        if not file.is_file():
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
) -> list[Entry]:
    """Entries of one section of a data set, for use in a config.

    ``<dataset_dir>/datalist.json`` is read where it exists; otherwise the folder is searched in ``layout``, split by
    subject and the datalist is written there, so that every stage sees one split.

    Args:
        dataset_dir: folder of the data set.
        section: ``training``, ``validation``, ``test`` or ``all``.
        modalities: the vocabulary; other modalities of the datalist are dropped.
        seed: of the split.
        fractions: of the split.
        layout: a key of ``custom.data.layouts.LAYOUTS``.
        phantom_dir: the folder of the embedded phantoms: if ``dataset_dir`` is this folder and does not exist, they
            are made first.

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
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: expected a folder with {DATALIST_NAME} or subjects in the {layout} layout; found no folder. "
            "Correct dataset_dir."
        )
    path = folder / DATALIST_NAME
    if path.is_file():
        content = read_datalist(path)
    elif section == "all":
        return discover(folder, modalities, layout=layout)
    else:
        content = split_by_subject(discover(folder, modalities, layout=layout), fractions, seed)
        _try_to_write(path, content, modalities)
    chosen = [e for s in SECTIONS if section in (s, "all") for e in content[s]]
    entries = _restrict(chosen, modalities, where=f"{path}: {section}")
    if not entries:
        raise ValueError(
            f"{path}: expected at least one subject under {section!r} with two or more of {', '.join(modalities)}; "
            f"found {len(chosen)} subjects, none usable. Add subjects, or delete the file to have it made anew."
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
        kwargs: other arguments of ``custom.data.phantom.write_dataset``, such as ``spacing`` in mm.
    """
    folder = Path(dataset_dir).expanduser()
    marker = folder / ".incomplete"
    if folder.is_dir() and not marker.exists():
        return folder
    from custom.data.phantom import write_dataset  # the generator loads templates: imported only where it is needed

    subjects = sum(int(c) for c in counts)
    logger.warning("%s: no data set was given, so %d synthetic phantoms are made here (once).", folder, subjects)
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()
    write_dataset(folder, subjects, seed, **kwargs)
    split = split_by_subject(discover(folder), seed=seed, counts=counts)
    write_datalist(folder / DATALIST_NAME, split, BRATS_MODALITIES)
    marker.unlink(missing_ok=True)
    return folder
