"""Whether every length in a DICOM file lies within what holds it: the file, its sequence, its item.

GDCM, which decodes the pixels, takes as much memory as a length asks for, however deep it lies, and where it does not
understand an element it begins anew with other ideas of what the bytes mean: 2.3 GiB for a file of 2 kB. So the file is
walked here first; no value is read.

Source: DICOM PS3.5 2024, 7 (the data set), annex G (run lengths); PS3.10 2024, 7.1 (preamble and prefix).
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.valuerep import STANDARD_VR

__all__ = ["PREAMBLE", "PREFIX", "Encoding", "check_lengths"]

PREAMBLE, PREFIX = 128, b"DICM"
UNDEFINED = 0xFFFFFFFF  # length
META_GROUP, DELIMITERS = 0x0002, 0xFFFE
PIXELS = (0x7FE0, 0x0010)
ITEM, ITEM_END, SEQUENCE_END = (DELIMITERS, 0xE000), (DELIMITERS, 0xE00D), (DELIMITERS, 0xE0DD)
PADDING = ((0, 0), "\0\0")  # tag and type where zeros fill up a block
RUNS_HEADER = 64  # bytes: the number of segments, and where each begins
SHORTEST = 8  # bytes of an element without a value
LONG = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})  # lengths of 4 bytes


class Encoding(NamedTuple):
    """How a data set is written.

    Attributes:
        explicit: whether elements have their types with them.
        order: of bytes.
        segments: that each picture consists of where it is compressed by run lengths; 0 otherwise.
    """

    explicit: bool
    order: Literal["little", "big"]
    segments: int = 0


META = Encoding(True, "little")  # of what comes before the data set
IMPLICIT = Encoding(False, "little")  # of a sequence of unknown type


class _Element(NamedTuple):
    """Tag, type (``None`` where none is written), length and where the value begins."""

    tag: tuple[int, int]
    kind: str | None
    length: int
    start: int


def check_lengths(file: Path, encoding: Encoding | None) -> None:
    """Walk a file's elements.

    Args:
        file: with or without a preamble.
        encoding: of the data set; None for a compressed one, of which nothing can be said before it is inflated.

    Raises:
        ValueError: where a length is beyond the end of what holds it, or a type is none of DICOM's.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        if stream.read(PREAMBLE + len(PREFIX))[PREAMBLE:] != PREFIX:
            stream.seek(0)
        while size - stream.tell() >= SHORTEST:
            position = stream.tell()
            group = int.from_bytes(stream.read(2), "little")
            stream.seek(position)
            if group != META_GROUP:
                break
            _pass_over(stream, _head(stream, META), size, META)
        if encoding is not None:
            _walk(stream, size, encoding)


def _walk(stream: BinaryIO, end: int, encoding: Encoding, *, delimited: bool = False) -> None:
    """Go through elements to ``end``, or to the end of an item of undefined length."""
    while end - stream.tell() >= SHORTEST:
        element = _head(stream, encoding)
        if delimited and element.tag == ITEM_END:
            return
        _pass_over(stream, element, end, encoding)


def _pass_over(stream: BinaryIO, element: _Element, end: int, encoding: Encoding) -> None:
    """Go to the end of an element, through the elements of the items that it may have."""
    is_undefined = element.length == UNDEFINED
    last = end if is_undefined else element.start + element.length
    if last > end:
        group, number = element.tag
        raise ValueError(
            f"a length of {element.length} bytes at byte {element.start} for ({group:04x},{number:04x}), where "
            f"{end - element.start} are left"
        )
    kind = element.kind
    if kind in ("UN", None) and dictionary_has_tag(element.tag):
        kind = dictionary_VR(element.tag)
    if kind == "SQ" or is_undefined:
        inner = IMPLICIT if element.kind == "UN" else encoding
        _walk_items(stream, last, inner, are_pixels=element.tag == PIXELS)
    if not is_undefined:
        stream.seek(last)


def _walk_items(stream: BinaryIO, end: int, encoding: Encoding, *, are_pixels: bool) -> None:
    """Go through the items of a sequence, or through the table of places and the pieces of compressed pixels."""
    is_table = True
    while end - stream.tell() >= SHORTEST:
        item = _head(stream, encoding)
        if item.tag == SEQUENCE_END:
            return
        if item.tag != ITEM:
            raise ValueError(f"no item at byte {item.start - SHORTEST} of a sequence")
        if item.length == UNDEFINED:
            _walk(stream, end, encoding, delimited=True)
            continue
        last = item.start + item.length
        if last > end:
            raise ValueError(f"an item of {item.length} bytes at byte {item.start}, where {end - item.start} are left")
        if not are_pixels:
            _walk(stream, last, encoding)
        elif encoding.segments and not is_table:
            _check_runs(stream.read(RUNS_HEADER), item, encoding.segments)
        is_table = False
        stream.seek(last)


def _check_runs(header: bytes, item: _Element, segments: int) -> None:
    """Refuse a picture by run lengths whose segments are not where its header says; GDCM divides by their number."""
    number, *places = (int.from_bytes(header[i : i + 4], "little") for i in range(0, len(header), 4))
    used = places[:segments]
    if number != segments or used != sorted(used) or used[:1] != [RUNS_HEADER] or used[-1] >= item.length:
        raise ValueError(f"{number} segments at {used} of a picture of {segments} at byte {item.start}")


def _head(stream: BinaryIO, encoding: Encoding) -> _Element:
    def number(size: int) -> int:
        return int.from_bytes(stream.read(size), encoding.order)

    tag = (number(2), number(2))
    kind = None
    if encoding.explicit and tag[0] != DELIMITERS:
        kind = stream.read(2).decode("latin-1")
        if kind not in STANDARD_VR and (tag, kind) != PADDING:
            raise ValueError(f"a type that DICOM does not know, {kind!r}, at byte {stream.tell() - 2}")
        if kind in LONG:
            stream.seek(2, 1)
    length = number(4 if kind is None or kind in LONG else 2)
    return _Element(tag, kind, length, stream.tell())
