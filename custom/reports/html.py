"""``report.html``: one file with protocol, tables, figures and a viewer of every subject, which needs no network."""

from __future__ import annotations

import base64
import gzip
import importlib.resources
import io
import json
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from custom.evaluation.metrics import PROTOCOL
from custom.evaluation.pictures import TRUTH, Key, Pictures, quantised, resized
from custom.evaluation.results import Results, Setup, SubjectResult
from custom.evaluation.rows import EXPECTED_ERROR, FULL_MODEL, METHODS, Row, display_name
from custom.reports.render import Table, to_html
from custom.utils.files import atomic_write

__all__ = ["sprite", "write_html"]

REPORT = "report.html"
HEADING = "Protocol: "  # which the page has already
TEMPLATE = "report.html.jinja"
VIEWER = "viewer.js"
NIIVUE = "niivue-0.69.0.umd.js.gz"
WEBP_QUALITY = 85  # about 2 of 255 grey levels of mean error, a third of the bytes of PNG
COARSEST = 4.0  # mm; what does not fit even so is left out
COLUMNS = 12
PANELS = ("source", "prediction", "truth", "error")
EXPECTED = "expected"  # the panel of the error map
# of the intensities' range: errors that are shown brightest; the network expects less than the largest that there are
RANGES = {"error": 0.5, EXPECTED: 0.25}


class Volumes(NamedTuple):
    """Volumes that the viewer shows, and the notes about them."""

    subjects: list[dict[str, Any]]
    note: str


def write_html(
    results: Results,
    setup: Setup,
    found: Sequence[SubjectResult],
    *,
    tables: Mapping[str, Table],
    remarks: Sequence[str],
    figures: Iterable[tuple[Path, str]],
) -> Path:
    """Write ``report.html`` into the evaluation's folder.

    Args:
        results: the folder.
        setup: heading, settings and limits.
        found: the results by subject.
        tables: in the order of the page.
        remarks: paragraphs about what was left out.
        figures: PNG files with captions.

    Returns:
        Path of the file.
    """
    volumes = _volumes(results, setup, found)
    environment = jinja2.Environment(loader=jinja2.FunctionLoader(_asset), autoescape=True)
    has_maps = any(EXPECTED in pair for subject in volumes.subjects for pair in subject["pairs"])
    panels = [*PANELS, EXPECTED] if has_maps else [*PANELS]
    data = {"columns": COLUMNS, "panels": panels, "ranges": RANGES, "names": _names(setup, found)}
    data["subjects"] = volumes.subjects
    page = environment.get_template(TEMPLATE).render(
        title=setup.title,
        protocol=PROTOCOL.removeprefix(HEADING)[0].upper() + PROTOCOL.removeprefix(HEADING)[1:],
        settings=setup.settings,
        remarks=remarks,
        tables={name: Markup(to_html(table)) for name, table in tables.items()},
        figures=[{"source": _webp(path), "caption": caption} for path, caption in figures],
        viewer_note=volumes.note,
        panels=panels,
        ranges=RANGES,
        data=Markup(json.dumps(data).replace("</", "<\\/")),
        scripts=[Markup(_library()), Markup(_asset(VIEWER))] if volumes.subjects else [],
    )
    path = results.output_dir / REPORT
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def sprite(volume: np.ndarray, *, columns: int = COLUMNS) -> str:
    """A volume (X, Y, Z), uint8, as a WebP picture of its axial slices, as a data URI; see ``viewer.js``."""
    nx, ny, nz = volume.shape
    tiles = np.zeros((math.ceil(nz / columns) * columns, ny, nx), np.uint8)
    tiles[:nz] = volume.transpose(2, 1, 0)
    picture = tiles.reshape(-1, columns, ny, nx).transpose(0, 2, 1, 3).reshape(-1, columns * nx)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "WEBP", quality=WEBP_QUALITY)
    return _uri(stream.getvalue(), "webp")


def _volumes(results: Results, setup: Setup, found: Sequence[SubjectResult]) -> Volumes:
    """The subjects' volumes, coarser where there are many, so that the file stays as small as ``setup`` says."""
    budget = setup.viewer_megabytes * 1e6
    first = next((p for r in found if (p := results.pictures(r.subject)) is not None), None)
    if first is None or not first.volumes or budget <= 0:
        return Volumes([], "")
    sample = sum(map(len, _sprites(first.volumes).values()))
    finest = max(first.viewer_spacing)
    spacing = min(finest * max(sample * len(found) / budget, 1.0) ** (1 / 3), COARSEST)
    subjects, used, left_out = [], 0, []
    for result in found:
        pictures = results.pictures(result.subject)
        if pictures is None or used > budget:
            left_out.append(result.subject)
            continue
        subjects.append(_subject(result, pictures, spacing))
        used += sum(map(len, subjects[-1]["volumes"].values()))
    note = (
        f"The volumes are resampled to {spacing:.2g} mm, 256 grey levels, WebP with losses of about 1 % of the grey "
        f"scale ({used / 1e6:.1f} MB): for looking, not for measuring."
    )
    if left_out:
        note += f" {len(left_out)} subjects are not in the viewer, to keep the file small: {', '.join(left_out)}."
    return Volumes(subjects, note)


def _subject(result: SubjectResult, pictures: Pictures, spacing: float) -> dict[str, Any]:
    factors = [min(mm / spacing, 1.0) for mm in pictures.viewer_spacing]
    small = {key: _smaller(volume, factors) for key, volume in pictures.volumes.items()}
    shape = next(iter(small.values())).shape
    position = [min(int(i * f), n - 1) for i, f, n in zip(pictures.viewer_position(), factors, shape, strict=True)]
    predicted = [key for key in small if key[0] not in (TRUTH, EXPECTED_ERROR)]
    ordered = sorted(predicted, key=lambda k: METHODS.index(k[0]) if k[0] in METHODS else len(METHODS), reverse=True)
    return {
        "subject": result.subject,
        "shape": shape,
        "spacing": [mm / f for mm, f in zip(pictures.viewer_spacing, factors, strict=True)],
        "position": position,
        "volumes": _sprites(small),
        "pairs": [_pair(key, result.rows, small) for key in ordered],
    }


def _sprites(volumes: Mapping[Key, np.ndarray]) -> dict[str, str]:
    """Volumes by their names in the page; error maps fill the grey scale with the range in which they are shown."""
    brighter = {
        k: quantised(v / np.float32(255 * RANGES[EXPECTED])) for k, v in volumes.items() if k[0] == EXPECTED_ERROR
    }
    return {_name(key): sprite(volume) for key, volume in {**volumes, **brighter}.items()}


def _smaller(volume: np.ndarray, factors: list[float]) -> np.ndarray:
    return volume if min(factors) == 1.0 else quantised(resized(volume / np.float32(255), factors))


def _pair(key: Key, rows: Sequence[Row], volumes: Container[Key]) -> dict[str, str]:
    method, source, target = key
    expected = (EXPECTED_ERROR, source, target)
    scores = [
        f"{row.region}: PSNR {row.psnr:.2f} dB, SSIM {row.ssim:.3f}, NMSE {row.nmse:.3f}, MAE {row.mae:.3f}, "
        f"sharpness {row.sharpness:.2f}"
        for row in rows
        if (row.method, row.source, row.target) == key
    ]
    pair = {"method": method, "source": source, "target": target, "key": _name(key), "scores": " · ".join(scores)}
    return pair | ({EXPECTED: _name(expected)} if method == FULL_MODEL and expected in volumes else {})


def _name(key: Key) -> str:
    """Of a volume in the page: a truth is known by its modality."""
    return key[1] if key[0] == TRUTH else "|".join(key)


def _names(setup: Setup, found: Sequence[SubjectResult]) -> dict[str, str]:
    known = [*setup.modalities, *(m for r in found for row in r.rows for m in (row.source, row.target))]
    return {m: display_name(m) or "not named" for m in dict.fromkeys(known)}


def _asset(name: str) -> str:
    return (importlib.resources.files("custom.reports") / "assets" / name).read_text(encoding="utf-8")


def _library() -> str:
    packed = (importlib.resources.files("custom.reports") / "assets" / NIIVUE).read_bytes()
    return gzip.decompress(packed).decode()


def _webp(path: Path) -> str:
    """A PNG file as WebP, an eighth of the size, as a data URI."""
    stream = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(stream, "WEBP", quality=WEBP_QUALITY)
    return _uri(stream.getvalue(), "webp")


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
