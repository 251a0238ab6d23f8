from __future__ import annotations

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.data import DataLoader
from monai.transforms import Compose, DivisiblePadd, Orientationd, ScaleIntensityRangePercentilesd
from torch import nn

from custom.baselines import IntensityLookup
from custom.data import write_datalist
from custom.engines.evaluation import (
    NativeGrid,
    PairwiseInferer,
    SubjectDataset,
    TranslationEvaluator,
    make_reference,
    prepare_subject,
    unit,
)
from custom.errors import user_message
from custom.metrics import Reference
from custom.reports.handlers import FiguresHandler, ProgressHandler, ScoresHandler
from custom.reports.tables import CEILING, COPY_SOURCE, FULL_MODEL, LOOKUP, SPADE_ONLY, read_rows
from custom.transforms import CropForegroundUniond, LoadVolumed

MODALITIES = ("t1", "t2", "flair")
SHAPE = (26, 30, 22)


class ToyTranslator(nn.Module):
    """Latent = image; MS-SPADE negates it, the sampler halves that; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = {"encode": 0, "transfer": 0, "sample": 0, "decode": 0}
        self.steps: list[int] = []

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        self.calls["encode"] += 1
        return image

    def transfer(self, latent: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.calls["transfer"] += 1
        assert target.shape == (1,)
        return -latent

    def draw_noise(self, latent: torch.Tensor, seed: int) -> torch.Tensor:
        return torch.full_like(latent[:1], float(seed))

    def sample(self, latent, target_like, target, noise, num_steps=0):
        self.calls["sample"] += 1
        self.steps.append(num_steps)
        assert not torch.is_grad_enabled()
        assert not self.training
        return target_like / 2 + noise

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        self.calls["decode"] += 1
        return latent


def preprocessing() -> Compose:
    keys = (*MODALITIES, "seg")
    some = {"allow_missing_keys": True}
    return Compose(
        [
            LoadVolumed(keys, **some),
            Orientationd(keys, axcodes="RAS", labels=None, **some),
            CropForegroundUniond(keys, MODALITIES, **some),
            ScaleIntensityRangePercentilesd(MODALITIES, 0.5, 99.5, -1.0, 1.0, clip=True, **some),
            DivisiblePadd(MODALITIES, 8, value=-1.0, **some),
            DivisiblePadd("seg", 8, **some),
        ]
    )


def write_subject(folder: Path, subject: str, modalities: tuple[str, ...] = MODALITIES, *, lesion: bool = True) -> dict:
    """A smooth ball on an LPS grid with a wide empty margin."""
    rng = np.random.default_rng(len(subject))
    grid = np.stack(np.meshgrid(*[np.linspace(-1.3, 1.3, n) for n in SHAPE], indexing="ij"))
    brain = (grid**2).sum(axis=0) < 1
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    entry = {"subject": subject}
    for i, name in enumerate(modalities):
        values = 100 * (i + 2 + np.tensordot(rng.uniform(-1, 1, 3), grid, axes=1) + rng.normal(0, 0.1, SHAPE))
        entry[name] = str(folder / f"{subject}_{name}.nii.gz")
        nib.save(nib.Nifti1Image((brain * values).astype(np.float32), affine), entry[name])
    if lesion:
        entry["seg"] = str(folder / f"{subject}_seg.nii.gz")
        nib.save(nib.Nifti1Image((brain & (grid[0] > 0.5)).astype(np.uint8), affine), entry["seg"])
    return entry


def evaluator(entries: list[dict], network: nn.Module, inferer: PairwiseInferer, handlers=()) -> TranslationEvaluator:
    transform = preprocessing()
    loader = DataLoader(SubjectDataset(entries, transform), batch_size=1)
    return TranslationEvaluator(
        "cpu", loader, network, inferer=inferer, preprocessing=transform, val_handlers=list(handlers)
    )


def inputs(seed: int = 0) -> dict[str, torch.Tensor]:
    images = {}
    for i, name in enumerate(MODALITIES):
        generator = torch.Generator().manual_seed(seed + i)
        images[name] = torch.full((1, 1, 16, 16, 16), -1.0)
        images[name][..., 2:14, 2:14, 2:14] = torch.rand((12, 12, 12), generator=generator) * 1.9 - 0.9
    return images


def test_stream_of_predictions():
    network = ToyTranslator().eval()
    images = inputs()
    lookup = IntensityLookup(MODALITIES).fit([{m: v[0] for m, v in images.items() if m != "flair"}])
    inferer = PairwiseInferer(MODALITIES, lookup=lookup)
    predictions = list(inferer(images, network))
    assert len(predictions) == inferer.count(MODALITIES) == 3 + 6 * 3 + 2
    assert network.calls == {"encode": 3, "transfer": 6, "sample": 6, "decode": 3 + 12}
    by_key = {(p.method, p.source, p.target): p.image for p in predictions}
    assert len(by_key) == len(predictions)
    brain = images["t1"] > -1
    torch.testing.assert_close(by_key[CEILING, "t1", "t1"], images["t1"])
    torch.testing.assert_close(by_key[COPY_SOURCE, "t1", "t2"], images["t1"])
    torch.testing.assert_close(by_key[SPADE_ONLY, "t1", "t2"], torch.where(brain, -images["t1"], -1.0))
    torch.testing.assert_close(by_key[FULL_MODEL, "t1", "t2"], torch.where(brain, -images["t1"] / 2, -1.0))
    assert {k[1:] for k in by_key if k[0] == LOOKUP} == {("t1", "t2"), ("t2", "t1")}


def test_methods_sources_seed_and_steps():
    network = ToyTranslator().eval()
    inferer = PairwiseInferer(MODALITIES, methods=[FULL_MODEL], sources=["T2w"], seed=1, num_steps=7)
    predictions = list(inferer(inputs(), network))
    assert [(p.source, p.target) for p in predictions] == [("t2", "t1"), ("t2", "flair")]
    assert network.calls["encode"] == 1
    assert network.steps == [7, 7]
    assert predictions[0].image.max() == 1.0  # the noise of seed 1 is 1 everywhere; clipped


def test_amp_gives_float32():
    network = nn.Module()
    network.encode = lambda image: nn.functional.conv3d(image, torch.ones(1, 1, 1, 1, 1))
    network.decode = lambda latent: latent
    (prediction, *_) = PairwiseInferer(MODALITIES, methods=[CEILING], amp=True)(inputs(), network)
    assert prediction.image.dtype == torch.float32
    torch.testing.assert_close(prediction.image, inputs()["t1"], atol=1e-2, rtol=0)
    assert not torch.equal(prediction.image, inputs()["t1"])  # it was in bfloat16


def test_native_grid_equals_the_scan_and_scores_equal_those_in_the_box(tmp_path):
    entry = write_subject(tmp_path, "case")
    transform = preprocessing()
    item = transform(entry)
    to_native = NativeGrid(item, transform)
    scan = torch.from_numpy(nib.load(entry["t1"]).get_fdata(dtype=np.float32))
    truth = to_native(unit(item["t1"]), "t1")
    assert truth.shape == SHAPE
    inside = (truth > 0) & (truth < 1)
    ratio = torch.corrcoef(torch.stack([truth[inside], scan[inside]]))[0, 1]
    assert ratio == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(truth > 0, scan > 0)
    native = make_reference(item, "t1", to_native).score(to_native(unit(item["t2"]), "t1"))
    boxed = Reference(unit(item["t1"])[0], lesion=item["seg"][0] > 0).score(unit(item["t2"])[0])
    for region in ("brain", "lesion"):
        assert native[region] == pytest.approx(boxed[region], rel=1e-4, abs=1e-5)


def test_evaluation_writes_scores_report_and_figures(tmp_path, capsys):
    entries = [write_subject(tmp_path, "one"), write_subject(tmp_path, "three", ("t1", "t2"), lesion=False)]
    network = ToyTranslator()
    handlers = [
        ProgressHandler(),
        FiguresHandler(tmp_path / "out", modalities=MODALITIES),
        ScoresHandler(tmp_path / "out", modalities=MODALITIES),
    ]
    engine = evaluator(entries, network, PairwiseInferer(MODALITIES), handlers)
    engine.run()
    rows = read_rows(tmp_path / "out" / "per_subject.csv")
    assert len([r for r in rows if r.subject == "one"]) == 3 * (3 + 6 * 3)  # regions × predictions
    assert len([r for r in rows if r.subject == "three"]) == 2 * (2 + 2 * 3)  # no lesion, one modality fewer
    brain = {(r.source, r.target, r.method): r for r in rows if r.subject == "one" and r.region == "brain"}
    assert brain["t1", "t1", CEILING].psnr == np.inf
    assert brain["t1", "t2", FULL_MODEL].psnr > 0
    expected = np.mean([r.psnr for r in rows if r.method == FULL_MODEL and r.region == "brain"])
    assert engine.state.metrics["brain_psnr"] == pytest.approx(expected)
    assert "Protocol:" in capsys.readouterr().out
    files = {p.name for p in (tmp_path / "out").iterdir()}
    assert files == {"per_subject.csv", "report.txt", "one_grid.png", "one_t1_to_t2.png"}
    assert network.training  # its mode is as it was before


def test_a_failing_subject_is_reported_and_the_others_go_on(tmp_path, caplog, capsys):
    broken = {"subject": "broken", "t1": str(tmp_path / "absent.nii.gz"), "t2": str(tmp_path / "absent.nii.gz")}
    entries = [broken, write_subject(tmp_path, "fine")]
    handler = ScoresHandler(tmp_path / "out")
    engine = evaluator(entries, ToyTranslator(), PairwiseInferer(MODALITIES), [ProgressHandler(), handler])
    with caplog.at_level(logging.WARNING):
        engine.run()
    assert "absent.nii.gz" in caplog.text
    assert {r.subject for r in read_rows(handler.csv_path)} == {"fine"}
    assert "broken: " in (tmp_path / "out" / "report.txt").read_text()
    capsys.readouterr()


def test_a_prediction_that_is_not_finite_fails_its_subject_only(tmp_path, capsys):
    class Broken(ToyTranslator):
        def decode(self, latent: torch.Tensor) -> torch.Tensor:
            image = super().decode(latent)
            return image * torch.nan if self.calls["decode"] > 5 and self.calls["encode"] <= 3 else image

    handler = ScoresHandler(tmp_path / "out")
    entries = [write_subject(tmp_path, "one"), write_subject(tmp_path, "three")]
    engine = evaluator(entries, Broken(), PairwiseInferer(MODALITIES), [handler])
    engine.run()
    assert {r.subject for r in read_rows(handler.csv_path)} == {"three"}
    assert "NaN" in engine.state.failures["one"]
    capsys.readouterr()


def test_nothing_evaluated_is_an_error(tmp_path):
    broken = {"subject": "broken", "t1": str(tmp_path / "absent.nii.gz")}
    engine = evaluator([broken], ToyTranslator(), PairwiseInferer(MODALITIES), [ScoresHandler(tmp_path / "out")])
    with pytest.raises(ValueError, match=r"no subject could be evaluated \(broken: .*absent"):
        engine.run()


def test_clear_errors():
    with pytest.raises(ValueError, match="methods: expected some of copy-source"):
        PairwiseInferer(MODALITIES, methods=["magic"])
    with pytest.raises(ValueError, match="amp: expected true or false; found 'maybe'"):
        PairwiseInferer(MODALITIES, amp="maybe")
    assert PairwiseInferer(MODALITIES, amp="True").amp is True
    with pytest.raises(ValueError, match="found 'pd'"):
        PairwiseInferer(MODALITIES, sources=["pd"])
    with pytest.raises(ValueError, match="batch_size to 1"):
        prepare_subject({"subject": ["a", "b"]})


def test_max_subjects():
    entries = [{"subject": str(i)} for i in range(5)]
    assert len(SubjectDataset(entries, max_subjects=2)) == 2
    assert len(SubjectDataset(entries)) == 5


CONFIG = Path(__file__).parents[2] / "bundle" / "configs" / "evaluate.json"


@pytest.fixture(scope="module")
def bundle_data(tmp_path_factory) -> Path:
    """A data set of three small subjects with its data list."""
    folder = tmp_path_factory.mktemp("data")
    modalities = ("t1", "t1ce", "t2", "flair")
    entries = [write_subject(folder, subject, modalities) for subject in ("a", "bb", "ccc")]
    write_datalist(folder / "datalist.json", {"training": entries[:2], "test": entries[2:]}, modalities)
    return folder


def bundle_workflow(bundle_data: Path, tmp_path: Path, **overrides) -> ConfigWorkflow:
    values = {"dataset_dir": str(bundle_data), "output_dir": str(tmp_path), "device": "$torch.device('cpu')"}
    workflow = ConfigWorkflow(str(CONFIG), logging_file=False, workflow_type="evaluation", **{**values, **overrides})
    workflow.initialize()
    return workflow


def test_config_evaluates_every_pair(bundle_data, tmp_path, capsys):
    workflow = bundle_workflow(bundle_data, tmp_path, network="$@network_def.to(@device)", num_figures=1)
    workflow.run()
    rows = read_rows(tmp_path / "per_subject.csv")
    pairs = {(r.source, r.target) for r in rows if r.method == FULL_MODEL}
    assert len(pairs) == 12
    assert {r.method for r in rows} == {COPY_SOURCE, LOOKUP, CEILING, SPADE_ONLY, FULL_MODEL}
    assert {r.subject for r in rows} == {"ccc"}
    assert {p.name for p in tmp_path.iterdir()} == {
        "ccc_grid.png", "ccc_t1_to_t2.png", "intensity_lookup.npz", "per_subject.csv", "report.txt",
    }  # fmt: skip
    assert "brain" in capsys.readouterr().out


def test_config_names_weights_that_are_missing(bundle_data, tmp_path):
    workflow = bundle_workflow(bundle_data, tmp_path, ckpt_path=str(tmp_path / "absent.pt"))
    with pytest.raises(RuntimeError) as caught:
        workflow.parser.get_parsed_content("network")
    assert "absent.pt: expected the model's weights" in user_message(caught.value, "")


def test_config_network_is_that_of_inference():
    definitions = [
        json.loads((CONFIG.parent / f"{name}.json").read_text())["network_def"] for name in ("evaluate", "inference")
    ]
    assert definitions[0] == definitions[1]
