"""Tests of custom.reports.curves."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from custom.reports.curves import SPADE_ONLY, Point, best_choice, choose_default, curve_table, draw_curves, write_points
from custom.reports.render import to_text


def point(sampler: str, steps: int, psnr: float, subject: str = "a", model: str = "m", samples: int = 1) -> Point:
    return Point(subject, "t1", "t2", model, sampler, steps, samples, steps * samples, 1.0 + steps, psnr, psnr / 100)


POINTS = [
    point(SPADE_ONLY, 0, 17.0),
    point("DDIM", 1, 18.0),
    point("DDIM", 4, 18.04),
    point("DDPM", 4, 17.5),
    point("mean", 1, 18.02, samples=4),
]


def test_the_choice_is_the_cheapest_of_the_best() -> None:
    assert best_choice(POINTS)[:3] == ("m", "DDIM", 1)
    assert best_choice([*POINTS, point("DDIM", 8, 18.2)])[:3] == ("m", "DDIM", 8)
    assert "m, DDIM, 1 steps (18.00 dB, 1 evaluations)" in choose_default(POINTS)


def test_a_diffusion_that_adds_nothing_is_not_chosen() -> None:
    points = [point(SPADE_ONLY, 0, 18.0), point("DDIM", 1, 18.01)]
    assert best_choice(points)[1] == SPADE_ONLY
    assert f"evaluations: m, {SPADE_ONLY} (18.00 dB, 0 evaluations)" in choose_default(points)


def test_means_are_over_subjects() -> None:
    points = [point("DDIM", 1, 17.0, "a"), point("DDIM", 1, 19.0, "b")]
    assert best_choice(points) == ("m", "DDIM", 1, 1, 2.0, 18.0, pytest.approx(0.18), 2)


def test_table() -> None:
    table = curve_table(POINTS)
    assert [row[:4] for row in table.rows] == [
        ["m", SPADE_ONLY, "0", "0"], ["m", "DDIM", "1", "1"], ["m", "DDIM", "4", "4"], ["m", "DDPM", "4", "4"],
        ["m", "mean", "1", "4"],
    ]  # fmt: skip
    assert "18.00*" in to_text(table)


def test_points_are_written_as_csv(tmp_path: Path) -> None:
    write_points(tmp_path / "folder" / "steps.csv", POINTS)
    with (tmp_path / "folder" / "steps.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(r["sampler"], r["steps"], r["psnr"]) for r in rows[:2]] == [(SPADE_ONLY, "0", "17"), ("DDIM", "1", "18")]
    assert len(rows) == len(POINTS)


@pytest.mark.parametrize("models", [("m",), ("x0", "flow")])
def test_figure(tmp_path: Path, models: tuple[str, ...]) -> None:
    points = [p._replace(model=model) for model in models for p in POINTS]
    path = draw_curves(tmp_path / "folder" / "steps.png", points)
    image = imread(path)
    assert image.shape[0] > 400
    assert np.ptp(image[..., :3]) > 0.5
    assert [p.name for p in path.parent.iterdir()] == ["steps.png"]
