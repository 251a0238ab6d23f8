"""The folder of an evaluation and what is written from it; the page is also opened in a browser where there is one."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from custom.evaluation import slices
from custom.evaluation.metrics import PROTOCOL, Reference
from custom.evaluation.pictures import TRUTH, Pictures, Stamp, resized
from custom.evaluation.results import Results, Setup, SubjectResult
from custom.evaluation.rows import CEILING, COPY_SOURCE, EXPECTED_ERROR, FULL_MODEL, read_rows, rows_of
from custom.evaluation.segmentation import OF_LABEL_REAL, OF_LABEL_SYNTHETIC, OF_REAL, WHOLE
from custom.reports.html import sprite
from custom.reports.measurements import cost_table, dice_table, reliability_table, uncertainty_table
from custom.reports.render import FORMATS
from custom.reports.report import report, write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MODALITIES = ["t1", "t2"]
SHAPE = (20, 24, 18)


def volumes(seed: int) -> dict[str, np.ndarray]:
    grid = np.stack(np.meshgrid(*[np.linspace(-1.2, 1.2, n) for n in SHAPE], indexing="ij"))
    inside = (grid**2).sum(axis=0) < 1
    noise = np.random.default_rng(seed).uniform(-0.1, 0.1, SHAPE)
    return {
        m: np.where(inside, 0.5 + s * 0.3 * grid[0] + noise, 0).astype(np.float32) for m, s in (("t1", 1), ("t2", -1))
    }


def one_subject(results: Results, subject: str, seed: int, *, labelled: bool) -> SubjectResult:
    truths = volumes(seed)
    pictures = Pictures(Stamp(slices.slice_position(truths["t1"] > 0), (2.0, 2.0, 2.5)), viewer_spacing=2.0)
    result = SubjectResult(subject, notes=[] if labelled else ["no label: no lesion scores"])
    for name, truth in truths.items():
        pictures.add((TRUTH, name, name), truth, scroll=True)
    for source, target in (("t1", "t2"), ("t2", "t1"), ("t1", "t1"), ("t2", "t2")):
        methods = [CEILING] if source == target else [COPY_SOURCE, FULL_MODEL]
        for method in methods:
            values = truths[source] if method == COPY_SOURCE else 0.9 * truths[target]
            truth = torch.from_numpy(truths[target])
            scores = Reference(truth, brain=truth > 0).score(torch.from_numpy(values))
            result.rows += rows_of(subject, source, target, method, scores)
            pictures.add((method, source, target), values, scroll=method != COPY_SOURCE)
        if (source, target) == ("t1", "t2"):
            pictures.add((EXPECTED_ERROR, source, target), 0.2 * truths[target], scroll=True)
        result.costs.append([methods[-1], source, target, 1.5, 4, 100.0])
    result.uncertainty = [["t1", "t2", 0.5, [[0.1 * i, 0.08 * i] for i in range(10)], 0.3]]
    result.dice = [["t1", "t2", WHOLE, kind, 0.8] for kind in (OF_REAL, OF_LABEL_REAL, OF_LABEL_SYNTHETIC)]
    if labelled:
        pictures.add_lesion(truths["t1"] > 0.6)
    results.save(result, pictures, "state")
    return result


def pixels(uri: str) -> np.ndarray:
    """Grey levels (rows, columns) of a picture in a page."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("L"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An evaluation of two subjects; a third has failed."""
    results = Results(tmp_path / "out")
    found = [one_subject(results, "sub/a", 0, labelled=True), one_subject(results, "b", 1, labelled=False)]
    setup = Setup(
        "Evaluation of <toys>", MODALITIES, [MODALITIES], num_figures=1, settings={"weights": "toy.pt"},
        failures={"c": "no such file"}, subjects=[r.subject for r in found],
    )  # fmt: skip
    results.save_setup(setup)
    return results.output_dir


def test_results_round_trip(folder):
    results = Results(folder)
    found = results.load("sub/a", "state")
    assert found.rows[0].subject == "sub/a"
    assert found.costs[0] == [FULL_MODEL, "t1", "t2", 1.5, 4, 100.0]
    assert results.load("sub/a", "another state") is None
    assert results.load("absent") is None
    pictures = results.pictures("sub/a")
    assert pictures.stamp.spacing == (2.0, 2.0, 2.5)
    assert pictures.volumes[TRUTH, "t1", "t1"].shape == SHAPE
    assert set(pictures.slices) == {
        (TRUTH, "t1", "t1"), (TRUTH, "t2", "t2"), (CEILING, "t1", "t1"), (CEILING, "t2", "t2"),
        (EXPECTED_ERROR, "t1", "t2"),
        *((m, *pair) for m in (COPY_SOURCE, FULL_MODEL) for pair in (("t1", "t2"), ("t2", "t1"))),
    }  # fmt: skip
    assert pictures.lesion.axial.any()
    assert results.pictures("b").lesion is None


def test_a_damaged_file_of_results_is_made_anew(folder, caplog):
    (folder / "subjects" / "b.json").write_text('{"fingerprint": "state", "rows": ')
    assert Results(folder).load("b", "state") is None
    assert "is made anew" in caplog.text


def test_names_that_no_file_can_bear_do_not_meet(tmp_path):
    results = Results(tmp_path)
    for subject in ("a/b", "a_b", "a b"):
        results.save(SubjectResult(subject), None)
    assert {results.load(s).subject for s in ("a/b", "a_b", "a b")} == {"a/b", "a_b", "a b"}


@pytest.mark.slow
def test_report_is_written_from_its_folder_alone(folder, capsys):
    page = report(str(folder))
    text = (folder / "report.txt").read_text()
    assert capsys.readouterr().out.startswith(text[:200])
    assert PROTOCOL in " ".join(text.split())
    for said in ("Subjects evaluated: 2.", "Left out, c: no such file", "b: no label: no lesion scores.", "are few"):
        assert said in " ".join(text.split())
    assert len(read_rows(folder / "per_subject.csv")) == 2 * 6 * 2
    names = {p.stem for p in (folder / "tables").iterdir()}
    expected = {f"{t}_{r}" for t in ("methods", "models", "pairs", "tests") for r in ("volume", "brain")}
    assert names == {*expected, "cost", "uncertainty", "reliability", "segmentation", "summary"}
    assert {p.suffix[1:] for p in (folder / "tables").glob("pairs_brain.*")} == set(FORMATS)
    assert {p.name for p in (folder / "figures").iterdir()} == {
        "reliability.png",
        "sub_a_pairs.png",
        "sub_a_t1_to_t2.png",
    }
    assert page == folder / "report.html"


@pytest.mark.slow
def test_page_needs_no_network(folder, capsys):
    (folder / "extra").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "extra" / "quality_by_steps.png")
    page = report(str(folder)).read_text(encoding="utf-8")
    shell = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)  # NiiVue's text names addresses in comments
    assert not re.search(r"(src|href|url\()\s*=?\s*[\"']?(https?:)?//", shell)
    assert page.count("<script>") == 2
    assert "Evaluation of &lt;toys&gt;" in page
    assert "Quality by steps." in page
    data = json.loads(re.search(r'id="report-data">(.*?)</script>', page, re.DOTALL)[1])
    assert [s["subject"] for s in data["subjects"]] == ["sub/a", "b"]
    first = data["subjects"][0]
    assert {(p["source"], p["target"], p["method"]) for p in first["pairs"]} == {
        ("t1", "t2", FULL_MODEL), ("t2", "t1", FULL_MODEL), ("t1", "t1", CEILING), ("t2", "t2", CEILING),
    }  # fmt: skip
    assert all(p["key"] in first["volumes"] for p in first["pairs"])
    assert "brain: PSNR" in first["pairs"][0]["scores"]
    capsys.readouterr()


@pytest.mark.slow
def test_viewer_shows_the_error_map(folder, capsys):
    page = report(str(folder)).read_text(encoding="utf-8")
    capsys.readouterr()
    data = json.loads(re.search(r'id="report-data">(.*?)</script>', page, re.DOTALL)[1])
    assert data["panels"] == ["source", "prediction", "truth", "error", "expected"]
    assert '<figure class="expected">' in page
    assert "0<i></i>0.25</small>" in page
    assert "its own estimate, made without the truth" in page
    for subject, seed in zip(data["subjects"], (0, 1), strict=True):
        [pair] = [p for p in subject["pairs"] if "expected" in p]
        assert (pair["source"], pair["target"], pair["method"]) == ("t1", "t2", FULL_MODEL)
        assert all(not p["key"].startswith(EXPECTED_ERROR) for p in subject["pairs"])
        shown = pixels(subject["volumes"][pair["expected"]])
        # in 255 steps of the panel's range; WebP loses a little
        mean = shown.sum() / math.prod(subject["shape"])
        assert mean == pytest.approx(255 * 0.2 * volumes(seed)["t2"].mean() / 0.25, abs=2)


@pytest.mark.slow
def test_viewer_has_no_panel_for_error_maps_where_there_are_none(folder, capsys):
    results = Results(folder)
    for path in (folder / "subjects").glob("*.npz"):
        pictures = Pictures.load(path)
        pictures.volumes = {k: v for k, v in pictures.volumes.items() if k[0] != EXPECTED_ERROR}
        pictures.save(path)
    setup = results.load_setup()
    page = write_report(results, setup, [results.load(s) for s in setup.subjects]).read_text(encoding="utf-8")
    capsys.readouterr()
    assert '<figure class="error">' in page
    assert 'class="expected"' not in page
    assert "its own estimate" not in page


@pytest.mark.slow
def test_viewer_keeps_to_its_budget_and_says_so(folder, capsys):
    results = Results(folder)
    setup = results.load_setup()
    setup.num_figures = 0
    found = [results.load(s) for s in setup.subjects]
    large = len(write_report(results, setup, found).read_text())
    setup.viewer_megabytes = 0.001
    page = write_report(results, setup, found).read_text()
    assert len(page) < large
    assert "resampled to 4 mm" in page
    assert "1 subjects are not in the viewer, to keep the file small: b." in page
    setup.viewer_megabytes = 0
    assert 'id="viewer"' not in write_report(results, setup, found).read_text()
    capsys.readouterr()


def test_sprite_holds_the_volume():
    volume = (255 * np.stack([np.full((10, 6), z / 12) for z in range(13)], axis=-1)).astype(np.uint8)
    volume[:5] = 0
    picture = pixels(sprite(volume, columns=4))
    assert picture.shape == (4 * 6, 4 * 10)
    for z in range(13):
        row, column = divmod(z, 4)
        tile = picture[6 * row : 6 * row + 6, 10 * column : 10 * column + 10].astype(int)
        # WebP loses a little, most where grey levels jump
        assert np.abs(tile[:, 7:].mean() - volume[9, 0, z]) < 8
        assert tile[:, :3].mean() < 8


def test_resized_volumes_keep_their_mean():
    volume = np.random.default_rng(0).uniform(size=(12, 9, 8)).astype(np.float32)
    small = resized(volume, [0.5, 1 / 3, 1.0])
    assert small.shape == (6, 3, 8)
    assert small.mean() == pytest.approx(volume.mean(), rel=1e-5)


def test_measurements():
    results = [
        SubjectResult("a", costs=[[FULL_MODEL, "t1", "t2", 1.0, 2, 50.0], [FULL_MODEL, "t2", "t1", 3.0, 2, 70.0]])
    ]
    bins = [[0.01, 0.02]] * 10
    results[0].uncertainty = [["t1", "t2", 0.2, bins, math.nan], ["t1", "t2", math.nan, bins, 0.5]]
    results[0].uncertainty += [["t1+pd", "t2", 0.4, [[0.03, 0.01]] * 10, 0.6]]
    results[0].dice = [["t1", "t2", WHOLE, OF_REAL, 0.5]]
    assert cost_table(results).rows == [[FULL_MODEL, "2.00 ± 1.41", "2", "70", "2"]]
    assert uncertainty_table(results).rows == [
        ["T1 → T2", "0.200", "0.500", "1"], ["T1 + PD → T2", "0.400", "0.600", "1"]
    ]  # fmt: skip
    table = reliability_table(results)
    assert table.groups == [("", 1), ("1 source", 2), ("2 sources", 2)]
    assert table.rows[0] == ["1", "0.0100", "0.0200", "0.0300", "0.0100"]
    assert len(table.rows) == 10
    assert dice_table(results).rows == [[f"T1 → T2, {WHOLE}", "0.500", "–", "–", "1"]]
    nothing = [SubjectResult("a")]
    assert (
        cost_table(nothing) is uncertainty_table(nothing) is reliability_table(nothing) is dice_table(nothing) is None
    )


def test_clear_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"evaluation\.json: expected the folder of an evaluation"):
        report(str(tmp_path))
    (tmp_path / "evaluation.json").write_text('{"other": 1}')
    with pytest.raises(ValueError, match="expected what an evaluation wrote"):
        report(str(tmp_path))


@pytest.mark.slow
def test_viewer_runs_in_a_browser(folder, tmp_path, capsys):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser is here to open the page with: none of {', '.join(BROWSERS)}")
    page = report(str(folder))
    capsys.readouterr()
    command = [
        browser, "--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}", "--timeout=60000",
        "--virtual-time-budget=60000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False).stdout
    shell = re.sub(r"<script.*?</script>", "", shown, flags=re.DOTALL)
    assert 'data-ready="true"' in shell, re.search(r'class="status">(.*?)</p>', shell)
    assert "Predicted T2 (synthetic), full model" in shell
    assert "Error that the model expects" in shell
    assert re.search(r'class="scores">volume: PSNR [\d.]+ dB', shell)
