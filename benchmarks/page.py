"""The figures of a page of the docs, from a result on disk; what they cost at another scale, on paper."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.folder import Folder
from benchmarks.parts import NETWORK_PARTS, Part
from benchmarks.quality import Quality
from benchmarks.report import Mark, markdown, share, table
from benchmarks.scale import Scaling
from benchmarks.stock import Comparison
from benchmarks.whole import Whole
from custom.utils.files import atomic_write

__all__ = ["fill_page", "load_result", "on_paper", "plain"]

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
SUBJECTS, DEVICES = 10_000, 8
DEVICE_RATES = (25, 100, 400)  # TFLOP/s of convolution: to be looked up in the card's own run of this benchmark
IO_PARTS = ("read", "preprocess", "write")


def plain(item: Any) -> Any:
    """Named tuples by name, for JSON."""
    if hasattr(item, "_asdict"):
        return {k: plain(v) for k, v in item._asdict().items()}
    if isinstance(item, dict):
        return {k: plain(v) for k, v in item.items()}
    return [plain(v) for v in item] if isinstance(item, list | tuple) else item


def load_result(path: str | os.PathLike) -> dict[str, Any]:
    """What ``python -m benchmarks`` wrote as JSON.

    Raises:
        ValueError: if the file is something else.
    """
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    try:
        found["parts"] = {k: [Part(**row) for row in rows] for k, rows in found["parts"].items()}
        found["stock"] = {k: [Comparison(**row) for row in rows] for k, rows in found["stock"].items()}
        found["whole"] = [Whole(**row) for row in found["whole"]]
        found["marks"] = [Mark(**row) for row in found["marks"]]
        found["scaling"] = found["scaling"] and Scaling(**found["scaling"])
        if small := found["small"]:
            small["parts"] = [Part(**row) for row in small["parts"]]
            small["whole"] = Whole(**small["whole"])
            small["quality"] = small["quality"] and Quality(**small["quality"])
            small["folder"] = small["folder"] and Folder(**small["folder"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected a result of this benchmark; found no {error}. Run make bench.") from error
    return found


def on_paper(result: Mapping[str, Any]) -> str:
    """What 10,000 subjects cost on 8 GPUs: from the counted work, the share reached here and the measured I/O."""
    precision, steps = result["default_precision"], result["steps"]
    parts = result["parts"][precision]
    work = sum(p.tflop * (steps if p.name == "step" else 1) for p in parts if p.name in NETWORK_PARTS)
    reached = share(parts, steps, NETWORK_PARTS, executed=True)
    reading = sum(p.seconds for p in parts if p.name in IO_PARTS)
    rows = []
    for rate in DEVICE_RATES:
        computing = work / (rate * reached)
        hours = SUBJECTS / DEVICES * max(computing, reading) / 3600
        limit = "computing" if computing >= reading else "files"
        rows.append((rate, f"{computing:.2f}", f"{reading:.2f}", f"{hours:.1f}", limit))
    size = "×".join(map(str, result["size"]))
    head = ("TFLOP/s of convolution of a GPU", "s computing", "s for files", "hours", "limit")
    lines = [
        f"## {SUBJECTS:,} subjects on {DEVICES} GPUs, on paper",
        "",
        f"One translation of {size} voxels by the {result['preset']} preset is {work:.2f} TFLOP of the plain modules "
        f"({steps} sampler steps). What is executed of it reaches {reached:.2f} of the measured rate of convolution "
        f"here; reading, preprocessing and writing take {reading:.2f} s of one CPU core, beside the computing. If a "
        "GPU, where all of it is executed, reaches the same share:",
        "",
        *table(head, rows),
    ]
    if small := result.get("small"):
        seconds = small["folder"].seconds if small["folder"] else small["whole"].seconds
        days = SUBJECTS * seconds / 86400
        voxels = math.prod(small["size"]) / 1e6
        lines += [
            "",
            f"The small preset on the machine measured here, without a GPU: {seconds:.1f} s for a volume of "
            f"{voxels:.1f} million voxels, {days:.1f} days for {SUBJECTS:,} subjects, {days / DEVICES:.1f} days on "
            f"{DEVICES} such machines.",
        ]
    return "\n".join(lines) + "\n"


def fill_page(page: str | os.PathLike, result: Mapping[str, Any]) -> None:
    """Put the tables of ``result`` between the marks of a Markdown page.

    Raises:
        ValueError: if the page has no such marks.
    """
    text = Path(page).read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page}: expected the lines {BEGIN} and {END}; found none. Add them where figures belong.")
    figures = "\n".join(line.replace("# ", "## ", 1) if line.startswith("#") else line for line in _lines(result))
    with atomic_write(page) as path:
        path.write_text(f"{before}{begin}\n\n{figures}\n\n{end}{after}", encoding="utf-8")


def _lines(result: Mapping[str, Any]) -> list[str]:
    return (markdown(result).rstrip() + "\n\n" + on_paper(result).rstrip()).splitlines()
