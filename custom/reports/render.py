"""One table, written for a terminal, for Markdown, LaTeX and HTML pages, and as CSV."""

from __future__ import annotations

import csv
import html
import io
import itertools
import os
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from custom.utils.files import atomic_write

__all__ = [
    "CHECK",
    "FORMATS",
    "Cell",
    "Table",
    "to_csv",
    "to_html",
    "to_latex",
    "to_markdown",
    "to_text",
    "write_table",
]

CHECK = "✓"
TEXT_WIDTH = 110
WIDE = 9  # columns
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "→": r"$\rightarrow$", "↑": r"$\uparrow$",
    "↓": r"$\downarrow$", CHECK: r"\checkmark", "–": "--", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "−": "$-$", "×": r"$\times$",
}  # fmt: skip


class Cell(NamedTuple):
    """A cell's text, and whether it is the best of its column or group."""

    text: str
    bold: bool = False


class Table(NamedTuple):
    """A table with one or two lines of headings.

    Attributes:
        title: one line; the caption.
        columns: heading of each column.
        rows: cells, as many as columns in each row; plain text stands for a cell that is not bold.
        groups: headings above the columns with the number of columns that each spans; their sum is that of the columns.
        note: a sentence or two below.
        best: what the bold cells are the best of, such as ``"of a column"``.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    groups: Sequence[tuple[str, int]] = ()
    note: str = ""
    best: str = ""

    def cells(self) -> list[list[Cell]]:
        """The rows, every cell a :class:`Cell`."""
        return [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in self.rows]

    def explained(self, mark: str) -> str:
        """The note, and what the mark of the best cells means if there are any."""
        marked = any(c.bold for row in self.cells() for c in row)
        return f"{self.note} {mark}: best {self.best}.".replace(" .", ".").strip() if marked else self.note


def to_text(table: Table) -> str:
    """Aligned columns for a terminal, its groups below one another where they are too wide; asterisks at the best."""
    lines = [_flat_head(table), *([c.text + "*" * c.bold for c in row] for row in table.cells())]
    blocks = _aligned(lines)
    if len(blocks[0]) > TEXT_WIDTH and len(table.groups) > 2:
        ends = list(itertools.accumulate(span for _, span in table.groups))
        parts = [_aligned([[line[0], *line[a:b]] for line in lines]) for a, b in itertools.pairwise(ends)]
        blocks = [line for part in parts for line in (*part, "")][:-1]
    below = textwrap.fill(table.explained("*"), TEXT_WIDTH)
    return "\n".join([textwrap.fill(table.title, TEXT_WIDTH), *blocks, *([below] if below else [])])


def to_markdown(table: Table) -> str:
    """A GitHub table; the best are bold."""
    escape = {"|": r"\|"}
    rows = [
        [f"**{_replace(c.text, escape)}**" if c.bold else _replace(c.text, escape) for c in r] for r in table.cells()
    ]
    head = [_replace(c, escape) for c in _flat_head(table)]
    lines = ["| " + " | ".join(row) + " |" for row in (head, [":--", *["--:"] * (len(head) - 1)], *rows)]
    return (
        "\n\n".join(part for part in (f"**{table.title}**", "\n".join(lines), table.explained("Bold")) if part) + "\n"
    )


def to_latex(table: Table) -> str:
    """A ``table`` environment for the packages booktabs and amssymb; the best are bold."""
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(table.title)}}}"]
    lines += [rf"\begin{{tabular}}{{l{'c' * (len(table.columns) - 1)}}}", r"\toprule"]
    if table.groups:
        spans = [rf"\multicolumn{{{span}}}{{c}}{{{_tex(name)}}}" for name, span in table.groups]
        lines.append(" & ".join(spans) + r" \\")
    lines += [" & ".join(map(_tex, table.columns)) + r" \\", r"\midrule"]
    for row in table.cells():
        lines.append(" & ".join(rf"\textbf{{{_tex(c.text)}}}" if c.bold else _tex(c.text) for c in row) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if below := table.explained("Bold"):
        lines.append(rf"\par\smallskip {_tex(below)}")
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def to_csv(table: Table) -> str:
    """One line of headings, then the rows; what is bold elsewhere is not marked."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_flat_head(table))
    writer.writerows([c.text for c in row] for row in table.cells())
    return text.getvalue()


def to_html(table: Table) -> str:
    """A ``<table>`` with caption; the best have the class ``best``."""
    # as in the paper, the deviation stands below the mean where the columns are many
    wide = len(table.columns) > WIDE
    lines = ['<table class="wide">' if wide else "<table>", f"<caption>{html.escape(table.title)}</caption>", "<thead>"]
    if table.groups:
        spans = [f'<th colspan="{span}">{html.escape(name)}</th>' for name, span in table.groups]
        lines.append("<tr>" + "".join(spans) + "</tr>")
    lines.append("<tr>" + "".join(f"<th>{html.escape(c)}</th>" for c in table.columns) + "</tr></thead><tbody>")
    for first, *others in table.cells():
        texts = [html.escape(c.text).replace(" ±", "<br>±" if wide else " ±") for c in others]
        cells = [f"<td{' class=best' * c.bold}>{text}</td>" for c, text in zip(others, texts, strict=True)]
        lines.append(f"<tr><th>{html.escape(first.text)}</th>{''.join(cells)}</tr>")
    lines.append("</tbody></table>")
    below = table.explained("Bold")
    return "\n".join([*lines, f'<p class="note">{html.escape(below)}</p>' if below else ""])


FORMATS: dict[str, Callable[[Table], str]] = {"txt": to_text, "md": to_markdown, "tex": to_latex, "csv": to_csv}


def write_table(
    table: Table, folder: str | os.PathLike[str], name: str, *, formats: Sequence[str] = tuple(FORMATS)
) -> list[Path]:
    """Write ``<folder>/<name>`` with the suffixes ``formats``, of :data:`FORMATS`; returns the paths."""
    paths = [Path(folder) / f"{name}.{suffix}" for suffix in formats]
    for path, suffix in zip(paths, formats, strict=True):
        with atomic_write(path) as temporary:
            temporary.write_text(FORMATS[suffix](table).rstrip("\n") + "\n", encoding="utf-8")
    return paths


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """The lines in columns, a rule under the first."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    return [text[0], "-" * len(text[0]), *text[1:]]


def _flat_head(table: Table) -> list[str]:
    """One line of headings: group and column."""
    names = [name for name, span in table.groups for _ in range(span)] or [""] * len(table.columns)
    return [f"{group} {column}".strip() for group, column in zip(names, table.columns, strict=True)]


def _tex(text: str) -> str:
    return _replace(text, _LATEX)


def _replace(text: str, replacements: dict[str, str]) -> str:
    return re.sub("|".join(map(re.escape, replacements)), lambda match: replacements[match[0]], text)
