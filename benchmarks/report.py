"""Tables of what was measured, and the marks it is held against."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.measure import work_ratio
from benchmarks.parts import NETWORK_PARTS, Part, total_seconds
from benchmarks.stock import LOOP_LENGTHS, Comparison
from benchmarks.whole import Whole

__all__ = ["PRECISIONS", "Mark", "markdown", "marks", "share", "table"]

PRECISIONS = {"float32": False, "bfloat16": True}
REFERENCE_STEPS = 200
SHARED = ("encode", "step", "decode")
RATE = "rate of convolution, TFLOP/s"


class Mark(NamedTuple):
    """What was asked for: figure found, and whether it suffices; ``None`` where it was not measured."""

    name: str
    wanted: str
    found: str
    met: bool | None


def share(parts: Sequence[Part], steps: int, names: Iterable[str] = SHARED, *, executed: bool = False) -> float:
    """Arithmetic of the named parts over what the machine could have convolved in the same time.

    That of the plain modules, or what is executed of it.
    """
    chosen = [(part, steps if part.name == "step" else 1) for part in parts if part.name in names]
    possible = sum(part.seconds * part.rate * times for part, times in chosen)
    done = sum((part.executed if executed else part.tflop) * times for part, times in chosen)
    return done / possible if possible else math.nan


def marks(result: Mapping[str, Any]) -> list[Mark]:
    """The marks of the preset ``result`` is about, and those of the small preset."""
    found = []
    steps, default = result["steps"], result["default_precision"]
    parts, stock = result["parts"], result["stock"]
    if "float32" in parts and default in parts:
        ratio = total_seconds(parts["float32"], REFERENCE_STEPS) / total_seconds(parts[default], steps)
        text = f"{ratio:.1f}× ({steps} steps, {default})"
        found.append(Mark("default sampler against 200-step DDIM in float32", "≥ 15× faster", text, ratio >= 15))
    for precision, rows in stock.items():
        found += _against_stock(precision, {p.name: p for p in parts[precision]}, rows)
    limits = {False: 3.5, True: 3.0}
    for whole in result["whole"]:
        if whole.targets == 1:
            limit, peak = limits[whole.amp], whole.memory / 1024
            wanted = f"≤ {limit} GB ({_precision(whole.amp)})"
            found.append(Mark("peak memory of one translation", wanted, f"{peak:.2f} GB", peak <= limit))
    for precision, rows in parts.items():
        reached, executed = share(rows, steps), share(rows, steps, executed=True)
        name = f"share of the convolution rate, encode + steps + decode, {precision}"
        found.append(Mark(name, "≥ 0.75", f"{reached:.2f}", reached >= 0.75))
        found.append(Mark(f"the same, of executed arithmetic, {precision}", "", f"{executed:.2f}", None))
    found += _targets(result["whole"])
    if result["scaling"] is not None:
        exponent = result["scaling"].exponent
        found.append(Mark("cost against voxels", "exponent ≤ 1.1", f"{exponent:.2f}", exponent <= 1.1))
    return found + _small(result.get("small"))


def _against_stock(precision: str, ours: Mapping[str, Part], rows: Sequence[Comparison]) -> list[Mark]:
    found: list[Mark] = []
    met: bool | None
    for row in rows:
        if row.name == "quantise":
            faster, less = work_ratio(row, ours[row.name]), row.memory / max(ours[row.name].memory, 1.0)
            text = f"{faster:.1f}×, 1/{less:.0f}"
            name, met = f"quantise against EMAQuantizer, {precision}", faster >= 5 and less >= 20
            found.append(Mark(name, "≥ 5× faster, extra memory ≤ 1/20", text, met))
        if row.name == "step":
            faster = work_ratio(row, ours[row.name])
            met = faster >= 1.3 if "flash" not in row.remark else None
            found.append(Mark(f"UNet step against {row.remark}, {precision}", "≥ 1.3× faster", f"{faster:.2f}×", met))
    return found


def _targets(wholes: Sequence[Whole]) -> list[Mark]:
    found = []
    for single in (w for w in wholes if w.targets == 1):
        for several in (w for w in wholes if w.targets == 3 and w.amp == single.amp):
            ratio = work_ratio(several, single) / 3
            name = f"three targets against three translations, {_precision(single.amp)}"
            found.append(Mark(name, "≤ 0.85 of the time", f"{ratio:.2f}", ratio <= 0.85))
    return found


def _small(small: Mapping[str, Any] | None) -> list[Mark]:
    if small is None:
        return []
    whole = small["whole"]
    speed = whole.seconds / (math.prod(small["size"]) / 1e6)
    text = f"{speed:.1f} s ({whole.seconds:.1f} s), {whole.memory / 1024:.2f} GB"
    met = speed <= 6.2 and whole.memory <= 2048
    found = [Mark(f"small preset, {_size(small['size'])}", "≤ 6.2 s a million voxels, ≤ 2 GB", text, met)]
    if small["quality"] is not None:
        quality = small["quality"]
        loss = quality.reference_psnr - quality.default_psnr
        text = f"{loss:+.2f} dB ({quality.default_psnr:.2f} against {quality.reference_psnr:.2f})"
        name = f"loss of brain PSNR by the default sampler, small preset, {quality.subject}, {_size(quality.size)}"
        found.append(Mark(name, "≤ 0.1 dB", text, loss <= 0.1))
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """The whole report."""
    lines = [
        f"# {result['preset']} preset, {_size(result['size'])} voxels",
        "",
        f"{result['machine']['processor']}, {result['machine']['threads']} threads, torch {result['machine']['torch']}"
        f", {result['device']}; commit {result['commit']}. Random weights. Extra memory: what a part needed beyond "
        f"what was held before it, {_memory_method(result['device'])}. TFLOP: convolutions and matrix products of the "
        "plain modules, and what is executed of them. Shares are the plain modules' TFLOP over seconds times rate. The "
        "rate of convolution was measured before and after each part (the mean is shown); ratios to MONAI's parts and "
        "of targets are of seconds times rate, those of whole loops of seconds.",
        "",
        *table(("mark", "wanted", "found", "met"), [(*m[:3], _verdict(m.met)) for m in result["marks"]]),
    ]
    for precision, parts in result["parts"].items():
        lines += ["", f"## Parts, {precision}", "", *_parts(parts, result["steps"])]
        if precision in result["stock"]:
            lines += [
                "",
                f"## MONAI's stock parts, {precision}",
                "",
                *_stock(parts, result["stock"][precision], result),
            ]
    lines += ["", "## One run from file to file, in a fresh process", "", *_wholes(result["whole"])]
    if result["scaling"] is not None:
        lines += ["", "## Cost against voxels", "", *_scaling(result["scaling"])]
    if result.get("small") is not None:
        lines += ["", *_small_report(result["small"])]
    return "\n".join(lines) + "\n"


def _parts(parts: Sequence[Part], steps: int) -> list[str]:
    rows = [
        (
            part.name,
            f"{part.seconds:.2f}",
            f"{part.memory:.0f}",
            *(f"{tflop:.3f}" if part.tflop else "" for tflop in (part.tflop, part.executed)),
            f"{part.rate:.3f}",
            f"{part.tflop / part.seconds / part.rate:.2f}" if part.tflop else "",
        )
        for part in parts
    ]
    head = ("part", "seconds", "extra MiB", "TFLOP", "executed", RATE, "share of the rate")
    total, reached = f"{total_seconds(parts, steps):.2f}", f"{share(parts, steps, NETWORK_PARTS):.2f}"
    return table(head, [*rows, (f"all, {steps} steps", total, "", "", "", "", reached)])


def _stock(parts: Sequence[Part], rows: Sequence[Comparison], result: Mapping[str, Any]) -> list[str]:
    ours = {part.name: part for part in parts}
    compared = []
    for row in rows:
        twin = ours["step" if row.name == "loop step" else row.name]
        ratio, memory = work_ratio(row, twin), row.memory / max(twin.memory, 1.0)
        cells = (
            f"{row.seconds:.2f}",
            f"{row.memory:.0f}",
            f"{row.rate:.3f}",
            f"{ratio:.2f}",
            f"{memory:.1f}",
            row.remark,
        )
        compared.append((row.name, *cells))
    head = ("part", "seconds", "extra MiB", RATE, "× our seconds", "× our extra memory", "remark")
    once = sum(row.seconds for row in rows if row.name in ("encode", "quantise", "decode")) + ours["MS-SPADE"].seconds
    step = next(row.seconds for row in rows if row.name == "loop step")
    network = sum(p.seconds * (result["steps"] if p.name == "step" else 1) for p in parts if p.name in NETWORK_PARTS)
    loops = "; ".join(
        f"{n} steps {once + n * step:.0f} s, {(once + n * step) / network:.1f} times our {result['steps']}-step network"
        for n in LOOP_LENGTHS
    )
    return [
        *table(head, compared),
        "",
        f"Whole loops of stock parts (one step's time multiplied; MS-SPADE ours): {loops}.",
    ]


def _wholes(wholes: Sequence[Whole]) -> list[str]:
    head = ("precision", "targets", "steps", "seconds", "peak of the process, GB", RATE)
    rows = [
        (_precision(w.amp), w.targets, w.steps, f"{w.seconds:.2f}", f"{w.memory / 1024:.2f}", f"{w.rate:.3f}")
        for w in wholes
    ]
    return table(head, rows)


def _scaling(scaling: Any) -> list[str]:
    voxels = [math.prod(size) / 1e6 for size in scaling.sizes]
    rows = [
        (_size(size), f"{v:.2f}", f"{s:.2f}", f"{s / v:.2f}", f"{r:.3f}")
        for size, v, s, r in zip(scaling.sizes, voxels, scaling.seconds, scaling.rates, strict=True)
    ]
    head = ("size", "million voxels", "seconds", "seconds a million voxels", RATE)
    return [*table(head, rows), "", f"Exponent of the power law of seconds times rate: {scaling.exponent:.3f}."]


def _small_report(small: Mapping[str, Any]) -> list[str]:
    lines = [f"## Small preset, {_size(small['size'])} voxels", ""]
    lines += [*_parts(small["parts"], small["steps"]), "", *_wholes([small["whole"]])]
    if small["folder"] is not None:
        folder = small["folder"]
        lines += [
            "",
            f"A folder of files of {_size(folder.size)}: {folder.seconds:.1f} s for each further file with one process"
            f", {folder.seconds_two_processes:.1f} s with two on the same cores "
            f"({folder.seconds / folder.seconds_two_processes:.2f} times as fast): {folder.subjects_per_hour:.0f} "
            "subjects an hour.",
        ]
    return lines


def _memory_method(device: str) -> str:
    if device.startswith("cuda"):
        return "the allocator's peak"
    return (
        "the process's peak VmHWM, reset before each part; what earlier parts had freed and the process had not yet "
        "given back counts as held"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of a Markdown table."""
    return [_line(head), _line(["---"] * len(head)), *(_line(row) for row in rows)]


def _line(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _verdict(met: bool | None) -> str:
    return {True: "yes", False: "**no**", None: ""}[met]


def _precision(amp: bool) -> str:
    return "bfloat16" if amp else "float32"


def _size(size: Sequence[int]) -> str:
    return "×".join(map(str, size))
