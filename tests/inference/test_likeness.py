"""Tests of custom.inference.likeness: scans unlike those of the training are warned about, others are not."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from custom.commands.measure_range import measure_range
from custom.data.datalist import load_datalist
from custom.data.features import FEATURES, FEATURES_KEY
from custom.data.preprocessing import preprocessing
from custom.inference.inferer import TranslationInferer
from custom.inference.likeness import Doubt, doubts, measure_scans, measure_training_range, unlike_training
from custom.inference.saver import DeclareSyntheticd
from custom.networks import LatentTranslator
from custom.networks.translator import RANGE
from custom.networks.weights import load_weights
from custom.utils.identity import identity
from custom.utils.modalities import BRATS_MODALITIES


@pytest.fixture
def trained(cohort: Callable[..., Path], tiny_translator: LatentTranslator) -> LatentTranslator:
    """A network that knows the range of five subjects of the cohort."""
    network = copy.deepcopy(tiny_translator)
    data = [{m: str(f) for m in BRATS_MODALITIES for f in folder.glob(f"*_{m}.nii.gz")}
            for folder in sorted(cohort().iterdir())[:5]]  # fmt: skip
    measure_training_range(network, data, BRATS_MODALITIES)
    return network


def features_of(path: Path | str) -> torch.Tensor:
    return preprocessing("image", measure=True)({"image": str(path)})["image"].meta[FEATURES_KEY][0]


def test_unlike() -> None:
    bounds = torch.stack([torch.full((len(FEATURES),), 90.0), torch.full((len(FEATURES),), 110.0)])
    usual = torch.full((len(FEATURES),), 100.0)
    assert unlike_training(usual, bounds) == []
    assert unlike_training(usual + 20, bounds) == []  # a little beyond the range
    for number, feature in enumerate(FEATURES):
        for value, remedy in ((10.0, feature.low), (300.0, feature.high)):
            scan = usual.clone()
            scan[number] = value
            numbers = f"{value:.0f} {feature.unit}, in training 90 to 110"
            assert unlike_training(scan, bounds) == ([Doubt(feature.name, numbers, remedy)] if remedy else [])


def test_a_subject_like_the_others_is_not_warned_about(trained, cohort, caplog) -> None:
    for file in sorted((cohort() / "s05").glob("*.nii.gz")):
        assert doubts(str(file), features_of(file), trained) == []
    assert caplog.text == ""


def test_another_kind_of_scan_is_named_with_what_to_do(trained, brain, write_volume, caplog) -> None:
    small = write_volume("small.nii.gz", brain("t1"), affine=np.diag([1.5, 1.5, 1.5, 1.0]))
    [*said] = doubts(str(small), features_of(small), trained)
    assert any(doubt.what == "volume of the foreground" for doubt in said)
    [line] = caplog.messages
    assert line.startswith(f"{small}: unlike the scans of the training")
    assert "in training" in line
    assert "Check that the file holds one whole brain" in line
    thick = write_volume("thick.nii.gz", brain("t1", shape=(24, 28, 44))[:, :, ::2], affine=np.diag([4, 4, 8, 1.0]))
    said = [str(doubt) for doubt in doubts(str(thick), features_of(thick), trained)]
    assert any("slice distance 8 mm, in training 4 to 4" in line for line in said)


def test_a_synthetic_source(tiny_translator, caplog) -> None:
    assert [str(doubt) for doubt in doubts("a_t2_synthetic.nii.gz", None, tiny_translator)] == ["synthetic itself"]
    assert "Translate the scan that it was made from" in caplog.text


def test_weights_that_know_nothing_are_said_once(tiny_translator, monkeypatch, caplog) -> None:
    from custom.inference import likeness

    likeness._say_once.cache_clear()
    for _ in range(2):
        assert doubts("a.nii.gz", torch.zeros(len(FEATURES)), tiny_translator) == []
        assert doubts("a.nii.gz", torch.zeros(len(FEATURES)), lambda image, target: image) == []
    [line] = caplog.messages
    assert "python -m custom measure-range" in line


def test_the_record_says_it(trained, brain, write_volume) -> None:
    path = str(write_volume("small.nii.gz", brain("t1"), affine=np.diag([1.5, 1.5, 1.5, 1.0])))
    inferer = TranslationInferer("t2")
    inferer(torch.zeros(1, 1, 16, 16, 16), trained)
    meta = {"filename_or_obj": path, FEATURES_KEY: features_of(path)[None]}
    item = DeclareSyntheticd("pred", inferer)({"pred": MetaTensor(torch.zeros(1, 4, 4, 4), meta=meta)})
    warnings = item["pred"].meta["translations"]["t2"]["Warnings"]
    assert warnings
    assert all(line.startswith("source unlike the scans of the training: ") for line in warnings)


def test_the_range_changes_no_identity_and_goes_with_the_weights(trained, tiny_translator, tmp_path) -> None:
    assert trained.training_range.any()
    assert identity(trained, None, None) == identity(tiny_translator, None, None)
    records = []
    for network in (trained, tiny_translator):
        inferer = TranslationInferer("t2")
        inferer(torch.zeros(1, 1, 16, 16, 16), network)
        records.append(inferer.used())
    assert records[0] == records[1]
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    again = load_weights(copy.deepcopy(tiny_translator), tmp_path / "model.pt")
    assert torch.equal(again.training_range, trained.training_range)
    assert torch.equal(torch.jit.script(again).training_range, trained.training_range)


def test_weights_of_before_load_strictly(trained, tiny_translator, tmp_path) -> None:
    state = {name: tensor for name, tensor in tiny_translator.state_dict().items() if name != RANGE}
    torch.save(state, tmp_path / "model.pt")
    for load in (
        lambda network: load_weights(network, tmp_path / "model.pt"),
        lambda network: network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True)),
    ):
        network = copy.deepcopy(trained)
        load(network)
        assert not network.training_range.any()


def test_command_writes_the_range_alone(trained, tiny_translator, cohort, tmp_path) -> None:
    folder = cohort()
    subjects = sorted(p.name for p in folder.iterdir())
    entries = [{"subject": s, **{m: f"{s}/{s}_{m}.nii.gz" for m in BRATS_MODALITIES}} for s in subjects]
    split = {"training": entries[:5], "validation": entries[5:], "test": []}
    (folder / "datalist.json").write_text(json.dumps({"modalities": list(BRATS_MODALITIES), **split}))
    before = {name: tensor for name, tensor in tiny_translator.state_dict().items() if name != RANGE}
    torch.save(before, tmp_path / "model.pt")
    lines = measure_range(folder, tmp_path / "model.pt")
    assert any(line.startswith("shortest voxel edge: 4 to 4 mm") for line in lines)
    after = torch.load(tmp_path / "model.pt", weights_only=True)
    assert torch.equal(after.pop(RANGE), trained.training_range)
    assert all(torch.equal(after[name], before[name]) for name in {*before, *after})
    torch.save({"weight": torch.zeros(1)}, tmp_path / "part.pt")
    with pytest.raises(ValueError, match=r"part\.pt: expected the weights of the whole model"):
        measure_range(folder, tmp_path / "part.pt")
    assert load_datalist(folder, "training")[0]["subject"] == subjects[0]


def test_a_scan_that_cannot_be_read_is_passed_over(write_volume, tmp_path, caplog) -> None:
    good, bad = write_volume("good.nii.gz"), tmp_path / "bad.nii.gz"
    bad.write_bytes(b"no image")
    found = measure_scans([{"t1": str(good), "t2": str(bad)}], BRATS_MODALITIES)
    assert torch.equal(found[0], found[1])
    assert "bad.nii.gz" in caplog.text
    with pytest.raises(ValueError, match="found none that can be read among 1"):
        measure_scans([{"t1": str(bad)}], BRATS_MODALITIES)
    with caplog.at_level(logging.WARNING):
        assert "not measured" in caplog.text
