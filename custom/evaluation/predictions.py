"""Which predicted file belongs to which true one: its record tells where this program wrote it, else its name.

A true file is ``<subject>_<modality>``, in any folder, or ``<subject>/<modality>``; a folder with a datalist is read by
it. A predicted file is ``<subject>_<source>_<target>``, ``<subject>_<source>_to_<target>``,
``<subject>_<target>_from_<source>`` or ``<subject>_<target>``, with or without this bundle's ending ``_synthetic``, or
lies in a folder with the subject's name. In names of BIDS the entities ``sub``, ``ses`` and ``run`` are the subject's,
``ce`` (contrast agent) makes a T1 a T1ce, ``from`` and ``to`` name contrasts, and the others say nothing here.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from custom.data.datalist import DATALIST_NAME, SECTIONS, read_datalist
from custom.data.layouts import SEGMENTATION_KEY, SUBJECT_KEY
from custom.data.names import (
    KNOWN,
    SYNTHETIC_SUFFIX,
    UNCERTAINTY_SUFFIX,
    WORDS,
    bids_words,
    contrast_of,
    image_stem,
    words_of,
)
from custom.data.readers import IMAGE_SUFFIXES
from custom.evaluation.rows import TOGETHER
from custom.inference.provenance import QUANTITY, read_record
from custom.utils.modalities import ALIASES, canonical

__all__ = ["Matched", "PredictedFile", "find_truths", "match_predictions"]

FROM, TO = "from", "to"
ERROR_MAP = "an error map, no prediction"


class PredictedFile(NamedTuple):
    """A predicted file, and what its record or its name says.

    Attributes:
        subject: of the truths.
        source: of several the names with ``+`` between them; empty where nothing tells it.
        target: canonical name.
        path: of the file.
        recorded: whether it holds the record of this program, whose images are in [0, 1].
    """

    subject: str
    source: str
    target: str
    path: Path
    recorded: bool = False


class Matched(NamedTuple):
    """The files of one folder of predictions, those that belong to no true file with the reason, and what was guessed.

    ``guesses`` are sentences, each with the files that it concerns.
    """

    files: list[PredictedFile]
    unmatched: dict[str, str]
    guesses: dict[str, list[str]]


def find_truths(folder: Path, modalities: Sequence[str] = ()) -> dict[str, dict[str, Path]]:
    """True files by subject and modality (``seg`` for a label).

    Args:
        folder: the data set.
        modalities: names of contrasts beside the usual ones.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no image whose name ends in a modality, or two for one.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected the folder of true images; found none. Correct the path.")
    if (folder / DATALIST_NAME).is_file():
        content = read_datalist(folder / DATALIST_NAME)
        entries = [entry for section in SECTIONS for entry in content[section]]
        return {e[SUBJECT_KEY]: {k: Path(v) for k, v in e.items() if k != SUBJECT_KEY} for e in entries}
    known = {*KNOWN, SEGMENTATION_KEY, *map(canonical, modalities)}
    found: dict[str, dict[str, Path]] = {}
    for path in _images(folder):
        parsed = _true_name(path, known)
        if parsed is None:
            continue
        subject, name = parsed
        files = found.setdefault(subject, {})
        if name in files:
            raise ValueError(
                f"{path}: expected one {name} of subject {subject}; found {files[name]} too. "
                "Remove one, or describe the data set in a datalist."
            )
        files[name] = path
    found = {subject: files for subject, files in found.items() if set(files) != {SEGMENTATION_KEY}}
    if not found:
        raise ValueError(
            f"{folder}: expected images named <subject>_<modality> with one of {', '.join(sorted(known))}; found none. "
            f"Rename them, or describe the data set in {DATALIST_NAME}."
        )
    return found


def match_predictions(folder: Path, truths: Mapping[str, Mapping[str, Path]]) -> Matched:
    """The predicted files of a folder and the subject, source and target of each.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: for two files for one subject, source and target.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of predictions; found none. Correct the path.")
    files: dict[tuple[str, str, str], PredictedFile] = {}
    matched = Matched([], {}, {})
    for path in _images(folder):
        name = path.relative_to(folder).as_posix()
        try:
            found, guess = _identified(path, folder, truths)
        except ValueError as error:
            matched.unmatched[name] = str(error)
            continue
        if (found[:3]) in files:
            raise ValueError(
                f"{path}: expected one prediction of {found.target} for {found.subject}; found {files[found[:3]].path} "
                "too. Remove one."
            )
        files[found[:3]] = found
        if guess:
            matched.guesses.setdefault(guess, []).append(name)
    return matched._replace(files=list(files.values()))


def _true_name(path: Path, known: Container[str]) -> tuple[str, str] | None:
    """Subject and canonical contrast of a true file; None where its name ends in none."""
    stem = image_stem(path)
    if (bids := bids_words(stem)) is not None:
        subject, words = bids
        return (subject, words[-1]) if words and words[-1] in known else None
    *before, last = words_of(stem)
    if last not in known:
        return None
    return stem[: -len(last)].rstrip("_-. ") if before else path.parent.name, canonical(last)


def _identified(path: Path, folder: Path, truths: Mapping[str, Mapping[str, Path]]) -> tuple[PredictedFile, str]:
    """What a predicted file is, by its record where it has one, and what of it was guessed.

    Raises:
        ValueError: with the reason why it is not used.
    """
    record = read_record(path)
    if image_stem(path).endswith(UNCERTAINTY_SUFFIX) or QUANTITY in (record or {}):
        raise ValueError(ERROR_MAP)
    if record is None or "Target" not in record:
        return _read_name(path, folder, truths)
    subject, _ = _subject_of(image_stem(path), path.relative_to(folder).parts[:-1], truths)
    target = canonical(record["Target"])
    if target not in truths[subject] or target == SEGMENTATION_KEY:
        raise ValueError(f"no true {target} of {subject}")
    return PredictedFile(subject, _recorded_source(record, truths), target, path, recorded=True), ""


def _recorded_source(record: Mapping[str, Any], truths: Mapping[str, Mapping[str, Path]]) -> str:
    """The source that a record names, or several; empty for one whose name tells no contrast.

    Raises:
        ValueError: for several of which that holds.
    """
    named, contents = record.get("Sources") or [], record.get("SourceSHA")
    true = {path.name: contrast for files in truths.values() for contrast, path in files.items()}
    known = sorted(({contrast for files in truths.values() for contrast in files} | KNOWN) - {SEGMENTATION_KEY})
    found = [true.get(name) or contrast_of(name, known) for name in named]
    number = max(len(named), len(contents) if isinstance(contents, list) else 1)
    if number == 1:
        return found[0] or "" if found else ""
    names = {name for name in found if name}
    if len(names) < number:
        told = ", ".join(named) or "images in memory"
        raise ValueError(f"it was made of {number} sources, of which the names do not tell the contrasts ({told})")
    return TOGETHER.join([*(m for m in ALIASES if m in names), *sorted(names - set(ALIASES))])


def _read_name(path: Path, folder: Path, truths: Mapping[str, Mapping[str, Path]]) -> tuple[PredictedFile, str]:
    """A predicted file's subject, source and target, and what of it was guessed.

    Raises:
        ValueError: with the reason why it belongs to no true file.
    """
    stem = image_stem(path).removesuffix(SYNTHETIC_SUFFIX)
    subject, words = _subject_of(stem, path.relative_to(folder).parts[:-1], truths)
    contrasts = {m for files in truths.values() for m in files} - {SEGMENTATION_KEY} | KNOWN
    own = [m for m in truths[subject] if m != SEGMENTATION_KEY]
    marked: dict[str, str] = {}
    plain: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if word in contrasts and before in (FROM, TO) and before not in marked:
            marked[before] = word
        elif word in contrasts:
            plain.append(word)
    guess = ""
    if not marked and not plain and len(own) == 1:
        plain, guess = [*own], "taken for the one contrast that the subject has a true image of, as the name holds none"
    if not marked and not plain:
        raise ValueError("its name holds no modality")
    if len(marked) + len(plain) > 2:
        raise ValueError(
            f"its name holds {len(marked) + len(plain)} modalities: expected <subject>_<source>_to_<target>"
        )
    if not marked and len(plain) == 2 and stem == image_stem(path):
        guess = "read as <source>_<target>, as the name holds two contrasts and neither 'to' nor 'from'"
    if TO not in marked and not plain:
        raise ValueError("its name holds a source and no target")
    target = marked[TO] if TO in marked else plain.pop()
    source = marked[FROM] if FROM in marked else plain.pop() if plain else ""
    if target not in own:
        raise ValueError(f"no true {target} of {subject}")
    return PredictedFile(subject, source, target, path), guess


def _subject_of(stem: str, folders: Sequence[str], truths: Mapping[str, Mapping[str, Path]]) -> tuple[str, list[str]]:
    """The true subject of a file, and the words of its name beside that, contrasts canonical."""
    bids = bids_words(stem)
    if bids is not None and bids[0] in truths:
        return bids
    named = [s for s in truths if stem == s or (stem.startswith(s) and WORDS.match(stem[len(s) :]))]
    inside = [s for s in truths if s in folders]
    if not named and not inside:
        raise ValueError("no true subject has the beginning of its name")
    subject = max(named or inside, key=len)
    return subject, [canonical(word) for word in words_of(stem[len(subject) :] if named else stem)]


def _images(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name.lower().endswith(IMAGE_SUFFIXES)]
