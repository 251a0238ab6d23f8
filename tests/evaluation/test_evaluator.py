from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.data import DataLoader, decollate_batch
from monai.transforms import Compose
from torch import nn

from custom.data.datalist import write_datalist
from custom.data.features import FEATURES, FEATURES_KEY
from custom.data.preprocessing import preprocessing
from custom.evaluation.evaluator import (
    NativeGrid,
    SubjectDataset,
    TranslationEvaluator,
    make_reference,
    prepare_subject,
    unit,
)
from custom.evaluation.metrics import Reference
from custom.evaluation.pairwise import PairwiseInferer
from custom.evaluation.protocols import ContrastEnds, ends_of
from custom.evaluation.results import ResultStore
from custom.evaluation.rows import CEILING, FULL_MODEL, LOOKUP, METHODS, PAIRED_LOOKUP, read_rows
from custom.evaluation.segmentation import OF_LABEL_REAL
from custom.reports.handlers import ProgressHandler, ReportHandler
from custom.utils.errors import user_message

MODALITIES = ("t1", "t2", "flair")
SHAPE = (26, 30, 22)


def transforms(**settings: object) -> Compose:
    return preprocessing(MODALITIES, labels="seg", divisor=8, **settings)


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


def test_native_grid_equals_the_scan_and_scores_equal_those_in_the_box(tmp_path):
    entry = write_subject(tmp_path, "case")
    transform = transforms()
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
    boxed = Reference(unit(item["t1"])[0], brain=item["t1_foreground"][0], lesion=item["seg"][0] > 0).score(
        unit(item["t2"])[0]
    )
    for region in ("brain", "lesion"):
        assert native[region] == pytest.approx(boxed[region], rel=1e-4, abs=1e-5)


def test_images_of_the_brain_scale_are_scored_on_the_percentiles(tmp_path, toy):
    """By constants of the contrast; those of the subject itself give what the percentiles give."""
    entry = write_subject(tmp_path, "case")
    transform = preprocessing(MODALITIES, labels="seg", divisor=8, intensity_scale="brain")
    ends = ContrastEnds(MODALITIES)
    ends.update(transform(entry))
    loader = DataLoader(SubjectDataset([entry], transform), batch_size=1)
    engine = TranslationEvaluator(
        "cpu", loader, toy(), inferer=PairwiseInferer(MODALITIES), preprocessing=transform, ends=ends
    )
    references = []
    for scale, chain in (("brain", transform), ("percentile", transforms())):
        batch = next(iter(DataLoader(SubjectDataset([entry], chain), batch_size=1)))
        item = decollate_batch({k: v for k, v in batch.items() if torch.is_tensor(v)})[0]
        assert ends_of(item["t1"]) == (None if scale == "percentile" else pytest.approx(engine.ends_for("t1")))
        references.append(make_reference(item, "t1", NativeGrid(item, chain)).truth)
    torch.testing.assert_close(references[0], references[1], rtol=0, atol=1e-4)
    engine.run()
    ceiling = [row for row in engine.state.output.rows if row.method == CEILING and row.region == "brain"]
    assert len(ceiling) == 3
    assert min(row.psnr for row in ceiling) > 60  # the toy reconstructs exactly


def store(folder: Path, network: nn.Module, **settings: object) -> ResultStore:
    return ResultStore(folder, network=network, preprocessing=transforms(), settings=settings)


def run(
    entries: list[dict],
    folder: Path,
    network: nn.Module,
    inferer: PairwiseInferer,
    *,
    segmenter=None,
    drawn: bool = False,
) -> TranslationEvaluator:
    """An evaluation that keeps its results in ``folder``; the evaluator afterwards."""
    kept, transform = store(folder, network), transforms()
    loader = DataLoader(SubjectDataset(entries, transform, store=kept), batch_size=1)
    sizes = {"num_figures": int(drawn), "viewer_megabytes": 40 * drawn}
    handlers = [ProgressHandler(), ReportHandler(folder, modalities=MODALITIES, pairs=[("t1", "t2")], **sizes)]
    engine = TranslationEvaluator(
        "cpu",
        loader,
        network,
        inferer=inferer,
        preprocessing=transform,
        store=kept,
        segmenter=segmenter,
        val_handlers=handlers,
    )
    engine.run()
    return engine


@pytest.mark.slow
def test_evaluation_writes_scores_tables_figures_and_the_page(tmp_path, capsys, toy):
    entries = [write_subject(tmp_path, "one"), write_subject(tmp_path, "three", ("t1", "t2"), lesion=False)]
    network = toy()
    engine = run(entries, tmp_path / "out", network, PairwiseInferer(MODALITIES), drawn=True)
    rows = read_rows(tmp_path / "out" / "per_subject.csv")
    assert len([r for r in rows if r.subject == "one"]) == 7 * (3 + 6 * 3)  # regions × predictions
    assert len([r for r in rows if r.subject == "three"]) == 4 * (2 + 2 * 3)  # no lesion, one modality fewer
    brain = {(r.source, r.target, r.method): r for r in rows if r.subject == "one" and r.region == "brain"}
    assert brain["t1", "t1", CEILING].psnr == np.inf
    assert brain["t1", "t2", FULL_MODEL].psnr > 0
    expected = np.mean([r.psnr for r in rows if r.method == FULL_MODEL and r.region == "brain"])
    assert engine.state.metrics["brain_psnr"] == pytest.approx(expected)
    assert {p.name for p in (tmp_path / "out" / "figures").iterdir()} == {
        "one_pairs.png", "one_t1_to_t2.png", "reliability.png"
    }  # fmt: skip
    assert {p.name for p in (tmp_path / "out" / "subjects").iterdir()} == {
        "one.json", "one.npz", "three.json", "three.npz",
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "Protocol:" in printed
    assert "three: no flair: the pairs with it are not scored." in printed
    assert "three: no label: no lesion scores." in printed
    assert "equal the truth in a region" in printed  # ToyTranslator reconstructs exactly
    assert network.training  # its mode is as it was before


@pytest.mark.slow
def test_scans_unlike_those_of_the_training_are_in_the_report(tmp_path, capsys, caplog, toy):
    entries, network, transform = (
        [write_subject(tmp_path, name) for name in ("one", "two")],
        toy(),
        transforms(measure=True),
    )
    [seen] = transform(entries[0])["t1"].meta[FEATURES_KEY]
    edges = next(n for n, feature in enumerate(FEATURES) if feature.name == "shortest voxel edge")
    network.training_range = torch.stack([seen, seen]).clone()
    network.training_range[:, edges] = 3.0
    network.training_range[:, edges + 1 :] = torch.tensor([[-1e6], [1e6]])
    handler = ReportHandler(tmp_path / "out", modalities=MODALITIES, num_figures=0, viewer_megabytes=0)
    loader = DataLoader(SubjectDataset(entries, transform), batch_size=1)
    inferer = PairwiseInferer(MODALITIES, methods=[FULL_MODEL])
    engine = TranslationEvaluator(
        "cpu", loader, network, inferer=inferer, preprocessing=transform, val_handlers=[handler]
    )
    engine.run()
    said = "one, two: unlike the scans of the training: shortest voxel edge (t1, t2, flair)."
    assert said in " ".join(capsys.readouterr().out.split())
    assert said in " ".join((tmp_path / "out" / "report.txt").read_text().split())
    assert "shortest voxel edge" in (tmp_path / "out" / "report.html").read_text()
    assert "one_t1.nii.gz: unlike the scans of the training" in caplog.text
    assert "shortest voxel edge 1 mm, in training 3 to 3" in caplog.text


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on(tmp_path, capsys, toy):
    entries = [write_subject(tmp_path, "one"), write_subject(tmp_path, "three")]
    inferer, first = PairwiseInferer(MODALITIES), toy()
    run(entries[:1], tmp_path / "out", first, inferer)
    again = toy()
    run(entries, tmp_path / "out", again, inferer)
    assert again.calls == first.calls  # one subject's worth: the other's results were there
    assert {r.subject for r in read_rows(tmp_path / "out" / "per_subject.csv")} == {"one", "three"}
    whole = read_rows(tmp_path / "out" / "per_subject.csv")
    run(entries, tmp_path / "at_once", toy(), inferer)
    assert read_rows(tmp_path / "at_once" / "per_subject.csv") == whole
    capsys.readouterr()


def test_what_has_changed_is_evaluated_anew(tmp_path):
    entry = write_subject(tmp_path, "one")
    network, inferer = nn.Linear(2, 2), PairwiseInferer(MODALITIES)
    original = shutil.copy(entry["t2"], tmp_path / "original.nii.gz")
    same = store(tmp_path, network, inferer=inferer).fingerprint(entry)
    assert store(tmp_path, network, inferer=inferer).fingerprint(entry) == same
    assert store(tmp_path, network.eval(), inferer=inferer).fingerprint(entry) == same
    assert store(tmp_path, network, inferer=PairwiseInferer(MODALITIES, seed=1)).fingerprint(entry) != same
    other = ResultStore(tmp_path, network=network, preprocessing=Compose([]), settings={"inferer": inferer})
    assert other.fingerprint(entry) != same
    network.num_inference_steps = 3
    assert store(tmp_path, network, inferer=inferer).fingerprint(entry) != same
    del network.num_inference_steps
    os.utime(entry["t2"], (1, 1))
    assert store(tmp_path, network, inferer=inferer).fingerprint(entry) == same  # the content decides
    shutil.copy(entry["t1"], entry["t2"])
    assert store(tmp_path, network, inferer=inferer).fingerprint(entry) != same
    shutil.copy(original, entry["t2"])
    assert store(tmp_path, network, inferer=inferer).fingerprint(entry) == same
    with torch.no_grad():
        network.bias.add_(1)
    assert store(tmp_path, network, inferer=inferer).fingerprint(entry) != same


def test_a_failing_subject_is_reported_and_the_others_go_on(tmp_path, caplog, capsys, toy):
    broken = {"subject": "broken", "t1": str(tmp_path / "absent.nii.gz"), "t2": str(tmp_path / "absent.nii.gz")}
    entries = [broken, write_subject(tmp_path, "fine")]
    with caplog.at_level(logging.WARNING):
        run(entries, tmp_path / "out", toy(), PairwiseInferer(MODALITIES))
    assert "absent.nii.gz" in caplog.text
    assert {r.subject for r in read_rows(tmp_path / "out" / "per_subject.csv")} == {"fine"}
    report = (tmp_path / "out" / "report.txt").read_text()
    assert "Left out, broken: " in report
    assert "One subject only: no interval and no test" in report
    capsys.readouterr()


@pytest.mark.slow
def test_a_prediction_that_is_not_finite_fails_its_subject_only(tmp_path, capsys, toy):
    class Broken(toy):
        def render(self, latent: torch.Tensor, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            translation = super().render(latent, image, target)
            return translation * torch.nan if self.calls["render"] > 3 and self.calls["encode"] <= 3 else translation

    entries = [write_subject(tmp_path, "one"), write_subject(tmp_path, "three")]
    engine = run(entries, tmp_path / "out", Broken(), PairwiseInferer(MODALITIES))
    assert {r.subject for r in read_rows(tmp_path / "out" / "per_subject.csv")} == {"three"}
    assert not (tmp_path / "out" / "subjects" / "one.json").exists()
    assert "NaN" in engine.state.failures["one"]
    capsys.readouterr()


@pytest.mark.slow
def test_an_empty_label_and_several_samples_are_said(tmp_path, capsys, toy):
    entry = write_subject(tmp_path, "one")
    label = nib.load(entry["seg"])
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), label.affine), entry["seg"])
    run([entry], tmp_path / "out", toy(), PairwiseInferer(MODALITIES, num_samples=2))
    printed = capsys.readouterr().out
    assert "one: the label has no voxel above 0: no lesion scores." in printed
    assert "Error and uncertainty" in printed
    regions = {r.region for r in read_rows(tmp_path / "out" / "per_subject.csv")}
    assert regions == {"volume", "brain", "brain standardised", "brain fitted"}


@pytest.mark.slow
def test_a_segmentation_model_is_given_real_and_synthetic_images(tmp_path, capsys, toy):
    class Threshold:
        modalities, structures = ("t2",), ("bright",)

        def __call__(self, files: list[Path]) -> np.ndarray:
            return nib.load(files[0]).get_fdata()[None] > 0.5

    entry = write_subject(tmp_path, "one")
    engine = run([entry], tmp_path / "out", toy(), PairwiseInferer(MODALITIES), segmenter=Threshold())
    dice = {(source, target, of): value for source, target, _, of, value in engine.state.output.dice}
    assert {key[:2] for key in dice} == {("t1", "t2"), ("flair", "t2")}  # the model uses T2 alone
    native = nib.load(entry["t2"]).get_fdata()
    label = nib.load(entry["seg"]).get_fdata() > 0
    low, high = np.percentile(native[native > 0], (0, 100))
    real = dice["t1", "t2", OF_LABEL_REAL]
    assert 0 < real < 1
    assert real == dice["flair", "t2", OF_LABEL_REAL]
    bright = native > (low + high) / 2
    # the protocol's percentiles are near the range's ends
    assert real == pytest.approx(2 * (bright & label).sum() / (bright.sum() + label.sum()), abs=0.15)
    assert "Segmentation of real and synthetic images" in capsys.readouterr().out


def test_nothing_evaluated_is_an_error(tmp_path, toy):
    broken = {"subject": "broken", "t1": str(tmp_path / "absent.nii.gz")}
    with pytest.raises(ValueError, match=r"no subject could be evaluated \(broken: .*absent"):
        run([broken], tmp_path / "out", toy(), PairwiseInferer(MODALITIES))


def test_a_batch_of_two_subjects_is_refused():
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


TINY = {
    "network_def#autoencoder#channels": [8],
    "network_def#style_transfer#width": 8,
    "network_def#detail#width": 8,
    "network_def#unet#channels": [8, 8, 8],
    "network_def#unet#norm_num_groups": 4,
}


def bundle_workflow(bundle_data: Path, tmp_path: Path, **overrides) -> ConfigWorkflow:
    values = {"dataset_dir": str(bundle_data), "output_dir": str(tmp_path), "device": "$torch.device('cpu')"}
    workflow = ConfigWorkflow(str(CONFIG), logging_file=False, workflow_type="evaluation", **{**values, **overrides})
    workflow.initialize()
    return workflow


@pytest.mark.slow
def test_config_evaluates_every_pair(bundle_data, tmp_path, capsys):
    untrained = {"network": "$@network_def.to(@device)", **TINY}
    workflow = bundle_workflow(bundle_data, tmp_path, num_figures=1, **untrained)
    workflow.run()
    rows = read_rows(tmp_path / "per_subject.csv")
    pairs = {(r.source, r.target) for r in rows if r.method == FULL_MODEL}
    assert len({pair for pair in pairs if "+" not in pair[0]}) == 12
    # of each target three sets of two others, and one of all three
    assert sorted(source.count("+") for source, _ in pairs if "+" in source) == [1] * 12 + [2] * 4
    assert {r.method for r in rows if r.source.count("+") == 1} == {LOOKUP, PAIRED_LOOKUP, FULL_MODEL}
    assert {r.method for r in rows if r.source.count("+") == 2} == {LOOKUP, FULL_MODEL}
    [table] = (tmp_path / "tables").glob("sources_brain.csv")
    numbers = [line.split(",")[:2] for line in table.read_text().splitlines()[1:]]
    assert [line for line in numbers if line[1] == FULL_MODEL] == [[str(n), FULL_MODEL] for n in (1, 2, 3)]
    assert all("+" not in file.read_text() for file in (tmp_path / "tables").glob("pairs_*.csv"))
    assert {r.method for r in rows} == set(METHODS)
    assert {r.subject for r in rows} == {"ccc"}
    assert {p.name for p in tmp_path.iterdir()} == {
        "baselines.npz", "evaluation.json", "figures", "files.jsonl", "per_subject.csv", "report.html", "report.txt",
        "subjects", "tables",
    }  # fmt: skip
    assert "brain" in capsys.readouterr().out


def test_config_names_weights_that_are_missing(bundle_data, tmp_path):
    workflow = bundle_workflow(bundle_data, tmp_path, ckpt_path=str(tmp_path / "absent.pt"))
    with pytest.raises(RuntimeError) as caught:
        workflow.parser.get_parsed_content("network")
    assert "absent.pt: expected the model's weights" in user_message(caught.value, "")


@pytest.mark.parametrize(
    ("key", "value", "wrong"),
    [
        ("sources", ["pd"], "pd"),
        ("scored_pairs", [["t1", "pd"]], "pd"),
        ("methods", ["guess"], "guess"),
        ("sources", [], "none"),
        ("methods", [], "none"),
        ("methods", 3, "3"),
        ("scored_pairs", [["t1", "t1"]], "['t1', 't1']"),
        ("scored_pairs", 3, "3"),
        ("scored_pairs", [3], "3"),
        ("num_samples", 100_000, "100000"),
        ("num_inference_steps", 100_000, "100000"),
    ],
)
def test_config_refuses_what_it_cannot_score_before_it_reads_a_scan(bundle_data, tmp_path, key, value, wrong):
    workflow = bundle_workflow(bundle_data, tmp_path, **{key: value})
    with pytest.raises(RuntimeError) as caught:
        workflow.run()
    message = user_message(caught.value, "")
    assert message.startswith(f"{key}: expected")
    assert f"found {wrong}" in message or f"found '{wrong}'" in message
    assert not list(tmp_path.iterdir())


def test_config_network_is_that_of_inference():
    definitions = [
        json.loads((CONFIG.parent / f"{name}.json").read_text())["network_def"] for name in ("evaluate", "inference")
    ]
    assert definitions[0] == definitions[1]
