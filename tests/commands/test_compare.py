from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from custom.commands.compare import compare
from custom.data.names import sidecar_of
from custom.evaluation.rows import COPY_SOURCE, Row, read_rows
from custom.inference.provenance import sidecar_text, translation_record

SHAPE = (24, 28, 22)
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


def save(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values.astype(np.float32), affine), path)


@pytest.fixture
def truths(tmp_path: Path) -> dict[str, np.ndarray]:
    """T2 of two subjects in scanner units, mapped to [0, 1] by 0 and 1000; files of T1, T2 and one label beside."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1.2, 1.2, n) for n in SHAPE], indexing="ij"))
    brain = (grid**2).sum(axis=0) < 1
    found = {}
    for i, subject in enumerate(("s1", "s2")):
        values = np.random.default_rng(i).uniform(0.1, 0.9, SHAPE)
        # more than 0.5 % of the box at either end, so that the percentiles are 0 and 1000
        values[::5, ::3, ::2] = 1
        found[subject] = np.where(brain, values, 0)
        save(tmp_path / f"truth/{subject}_t2.nii.gz", 1000 * found[subject])
        save(tmp_path / f"truth/{subject}_t1.nii.gz", 500 * np.where(brain, 1 - 0.5 * values, 0))
    save(tmp_path / "truth/s1_seg.nii.gz", (grid[0] > 0.3) & brain)
    return found


def scores(folder: Path, region: str = "brain") -> dict[tuple[str, str], Row]:
    return {(r.method, r.subject): r for r in read_rows(folder / "per_subject.csv") if r.region == region}


def run(tmp_path: Path, *models: str, **options) -> tuple[dict[tuple[str, str], Row], str]:
    compare(
        tmp_path / "truth",
        {m: tmp_path / m for m in models},
        tmp_path / "out",
        num_figures=1,
        viewer_megabytes=0,
        **options,
    )
    return scores(tmp_path / "out"), (tmp_path / "out" / "report.txt").read_text()


@pytest.mark.slow
def test_models_are_scored_on_the_truth_s_scale_whatever_their_own(tmp_path, truths, capsys):
    for subject, truth in truths.items():
        off = np.where(truth > 0, np.abs(truth - 0.1), 0)
        save(tmp_path / f"raw/{subject}_t1_t2.nii.gz", 1000 * off)
        save(tmp_path / f"unit/{subject}_t1_to_t2.nii.gz", off)
        save(tmp_path / f"signed/{subject}_t2.nii.gz", 2 * off - 1)
    rows, report = run(tmp_path, "raw", "unit", "signed")
    for model in ("raw", "unit", "signed"):
        assert rows[model, "s1"].psnr == pytest.approx(20, abs=1e-3)  # an error of 0.1 everywhere in the brain
        assert rows[model, "s1"].mae == pytest.approx(0.1, abs=1e-5)
        assert rows[model, "s2"].source == "t1"  # of the others' names
    assert rows[COPY_SOURCE, "s1"].psnr < 20
    assert ("raw", "s1") in scores(tmp_path / "out", "lesion")
    assert ("raw", "s2") not in scores(tmp_path / "out", "lesion")
    assert "s1, s2: unit: intensities read as in [0, 1], which is a guess." in report
    assert "s1, s2: signed: intensities read as in [-1, 1], which is a guess." in report
    assert "s2: no label: no lesion scores." in report
    assert "Models, brain" in report
    assert (tmp_path / "out" / "figures" / "s1_t1_to_t2.png").is_file()
    assert (tmp_path / "out" / "report.html").is_file()
    assert "Paired tests against raw" in capsys.readouterr().out


def test_bad_predictions_are_named_and_cost_only_themselves(tmp_path, truths, capsys):
    t = truths["s1"]
    save(tmp_path / "good/s1_t2.nii.gz", 1000 * t)
    save(tmp_path / "good/s2_t2.nii.gz", 1000 * truths["s2"])
    save(tmp_path / "bad/s1_t2.nii.gz", 1000 * t[:-1])
    save(tmp_path / "bad/s3_t2.nii.gz", 1000 * t)
    save(tmp_path / "shifted/s1_t2.nii.gz", 1000 * t, AFFINE + np.eye(4, k=3) * 5)
    save(tmp_path / "nan/s1_t2.nii.gz", np.full(SHAPE, np.nan))
    save(tmp_path / "dark/s1_t2.nii.gz", 100 * t)
    save(tmp_path / "flat/s1_t2.nii.gz", np.zeros(SHAPE))
    rows, report = run(tmp_path, "good", "bad", "shifted", "nan", "dark", "flat")
    report = " ".join(report.split())
    assert set(rows) == {("good", "s1"), ("good", "s2"), ("flat", "s1")}
    assert rows["good", "s1"].psnr > 100
    assert "bad, → T2 is not scored: it has another grid than the truth: 23×28×22 voxels" in report
    assert "shifted, → T2 is not scored: it has another grid" in report
    assert "nan, → T2 is not scored: expected finite intensities" in report
    assert "bad, s3_t2.nii.gz: not used: no true subject has the beginning of its name." in report
    assert "bad: no prediction of → T2 for s2." in report
    assert "dark, → T2 is not scored: expected intensities in the truth's units, 0 to 1000; found mostly" in report
    assert "flat: a prediction is constant (0)" in report
    assert "equal the truth in a region but for rounding" in report
    capsys.readouterr()


def test_other_orders_of_axes_are_turned_and_ranges_can_be_given(tmp_path, truths, capsys):
    t = truths["s1"]
    canonical = nib.as_closest_canonical(nib.Nifti1Image((1000 * t).astype(np.float32), AFFINE))
    save(tmp_path / "ras/s1_t2.nii.gz", canonical.get_fdata(), canonical.affine)
    save(tmp_path / "dark/s1_t2.nii.gz", 100 * t)
    rows, report = run(tmp_path, "ras", "dark", ranges={"dark": "own"})
    assert rows["ras", "s1"].psnr > 60
    assert rows["dark", "s1"].psnr > 60
    assert "ras: axes brought into the truth's order (LPS)." in report
    assert "which the protocol does not do" in report
    assert "One subject only" in report
    capsys.readouterr()


def zscored(values: np.ndarray, background: float) -> np.ndarray:
    inside = values[values > 0]
    return np.where(values > 0, (values - inside.mean()) / inside.std(), background).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("background", [0.0, -2.0])
def test_a_copy_of_z_scored_truths_is_perfect(tmp_path, truths, capsys, background):
    for subject, truth in truths.items():
        save(tmp_path / f"truth/{subject}_t2.nii.gz", zscored(truth, background))
        save(tmp_path / f"copy/{subject}_t1_t2.nii.gz", zscored(truth, background))
        save(tmp_path / f"unit/{subject}_t1_t2.nii.gz", truth)
    rows, report = run(tmp_path, "copy", "unit")
    for region in ("volume", "brain"):
        rows = scores(tmp_path / "out", region)
        # rounding of float32, whose square is -140 dB
        assert rows["copy", "s1"].psnr > 120
        assert rows["copy", "s1"].ssim == pytest.approx(1, abs=1e-5)
    # the darkest 0.5 % of the brain are clipped in the truth's scale
    assert scores(tmp_path / "out")["unit", "s1"].psnr > 20
    assert ("the truth's background is not its darkest" in report) == (background == 0)
    capsys.readouterr()


@pytest.mark.slow
def test_what_can_be_read_in_two_ways_stops_and_asks(tmp_path, truths, capsys):
    for subject, truth in truths.items():
        save(tmp_path / f"truth/{subject}_t2.nii.gz", 1.6 * truth)
        save(tmp_path / f"other/{subject}_t1_t2.nii.gz", truth)
    question = (
        r"s1_t1_t2.nii.gz: its intensities .* can be read in 2 ways: 'truth' \(in the truth's units, 0 to 1.6\), "
    )
    with pytest.raises(ValueError, match=question + r"'unit' .*Say which with --ranges \"{'other': 'truth'}\""):
        run(tmp_path, "other")
    assert not (tmp_path / "out").exists()
    for kind, low, high in (("unit", 60, np.inf), ([0, 1], 60, np.inf), ("truth", 5, 20)):
        rows, _ = run(tmp_path, "other", ranges={"other": kind})
        assert low < rows["other", "s1"].psnr < high
    capsys.readouterr()


def test_normalised_truths_and_predictions_of_another_scale(tmp_path, truths, capsys):
    t = truths["s1"]
    save(tmp_path / "truth/s1_t2.nii.gz", t)
    for model, values in {"same": t, "signed": 2 * t - 1, "bytes": 255 * t}.items():
        save(tmp_path / f"{model}/s1_t1_t2.nii.gz", values)
    rows, report = run(tmp_path, "same", "signed", "bytes", ranges={"bytes": (0, 255)})
    assert all(rows[model, "s1"].psnr > 60 for model in ("same", "signed", "bytes"))
    assert "signed: intensities read as in [-1, 1], which is a guess." in report
    assert "bytes: intensities read as in [0, 255]." in report
    assert "same, s1_t1_t2.nii.gz: read as <source>_<target>" in " ".join(report.split())
    with pytest.raises(ValueError, match=r"expected some that can be scored; found none.*read with ranges: 'truth'"):
        run(tmp_path, "bytes")
    capsys.readouterr()


def test_clear_errors(tmp_path, truths):
    save(tmp_path / "ours/x_t2.nii.gz", truths["s1"])
    with pytest.raises(ValueError, match=r"none belongs to one of the 2 true subjects \(ours, x_t2"):
        run(tmp_path, "ours")
    with pytest.raises(ValueError, match="ranges: expected some of the models ours"):
        run(tmp_path, "ours", ranges={"ours": "loud"})
    with pytest.raises(FileNotFoundError, match="expected a folder of predictions"):
        run(tmp_path, "absent")


def test_a_translation_of_several_sources_is_a_task_of_its_own(tmp_path, truths, capsys):
    record = translation_record("t2", {}, sources=["s1_flair.nii.gz", "s1_t1.nii.gz"])
    for subject, truth in truths.items():
        off = np.where(truth > 0, np.abs(truth - 0.1), 0)
        save(tmp_path / f"ours/{subject}_t2_synthetic.nii.gz", off)
        save(tmp_path / f"ours/{subject}_t2_synthetic_uncertainty.nii.gz", 0.1 * off)
        sidecar_of(tmp_path / f"ours/{subject}_t2_synthetic.nii.gz").write_text(sidecar_text(record))
        save(tmp_path / f"other/{subject}_t1_to_t2.nii.gz", 1000 * truth)
    rows, report = run(tmp_path, "ours", "other")
    assert (rows["ours", "s1"].source, rows["other", "s1"].source) == ("t1+flair", "t1")
    assert rows["ours", "s1"].psnr == pytest.approx(20, abs=1e-3)  # an error of 0.1 everywhere in the brain
    report = " ".join(report.split())
    assert "T1 + FLAIR → T2" in report
    assert "ours: no prediction of T1 → T2 for s1." in report
    assert "ours: intensities read as in [0, 1]." in report
    assert "source taken to be" not in report
    assert "ours, 2 files such as s1_t2_synthetic_uncertainty.nii.gz: not used: an error map" in report
    save(tmp_path / "ours/s1_t2_synthetic.nii.gz", 1000 * truths["s1"])
    rows, report = run(tmp_path, "ours", "other")
    assert ("ours", "s1") not in rows
    assert "expected intensities in [0, 1], as those of its record are; found 0 to 1000" in " ".join(report.split())
    capsys.readouterr()
