"""A local round of federated learning by MONAI's client, on the packaged bundle, without the repository."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from custom.data.datalist import write_datalist
from custom.utils.modalities import BRATS_MODALITIES
from tests.fixtures.artifact import untrained

pytestmark = pytest.mark.slow

# the client as a federation's server would drive it; two rounds, since the second must go on from the first
CLIENT = """
import json, os, sys, warnings
os.dup2(1, 2)  # its warnings are part of what it says
warnings.simplefilter("ignore")
import torch
import custom
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, ModelType, WeightType
from monai.fl.utils.exchange_object import ExchangeObject

root, overrides, report = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
assert custom.__file__.startswith(root), custom.__file__
algo = MonaiAlgo(root, train_kwargs=dict(overrides), eval_kwargs=dict(overrides))
algo.initialize({ExtraItems.CLIENT_NAME: "site"})
given = torch.load(root + "/models/model.pt", weights_only=True)
weights, scores, steps = given, [], []
for _ in range(2):
    algo.train(ExchangeObject(weights=weights))
    returned = algo.get_weights()
    assert returned.weight_type == WeightType.WEIGHT_DIFF, returned.weight_type
    weights = {name: value + returned.weights[name] for name, value in weights.items()}
    steps.append(int(returned.statistics["num_executed_iterations"]))
    scores.append(algo.evaluate(ExchangeObject(weights=weights)).metrics["brain_psnr"])
scores.append(algo.evaluate(ExchangeObject(weights=given)).metrics["brain_psnr"])
best = algo.get_weights({ExtraItems.MODEL_TYPE: ModelType.BEST_MODEL}).weights
algo.finalize()
torch.save({"given": given, "returned": weights, "best": best, "scores": scores, "steps": steps}, report)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    grid = np.meshgrid(*[np.linspace(-1.2, 1.2, 24)] * 3, indexing="ij")
    inside, random = sum(g**2 for g in grid) < 1, np.random.default_rng(0)
    split = {}
    for section in ("training", "validation"):
        entry = {"subject": section}
        for name in ("t1", "t2"):
            image = np.where(inside, random.uniform(100, 900, inside.shape), 0).astype(np.float32)
            nib.save(nib.Nifti1Image(image, np.eye(4)), folder / f"{section}_{name}.nii.gz")
            entry[name] = str(folder / f"{section}_{name}.nii.gz")
        split[section] = [entry]
    write_datalist(folder / "datalist.json", split, BRATS_MODALITIES)
    return folder


@pytest.fixture(scope="module")
def rounds(bundle: Path, data: Path, elsewhere: Callable, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Two rounds of one epoch each."""
    folder = tmp_path_factory.mktemp("federated")
    overrides = {
        "dataset_dir": str(data),
        "output_dir": str(folder / "output"),
        "device": "$torch.device('cpu')",
        "latent_crop": [4, 4, 4],
        "part_size": 4,
        "pairs_per_subject": 1,
        "cache_workers": 0,
        "learning_rate": 0.001,
        "warmup_steps": 1,
    }
    (folder / "client.py").write_text(CLIENT)
    said = elsewhere(folder / "client.py", bundle, json.dumps(overrides), folder / "report.pt", pythonpath=bundle)
    return {**torch.load(folder / "report.pt", weights_only=True), "said": said}


def test_a_bundle_as_downloaded_starts_with_a_warning(rounds: dict) -> None:
    assert re.search(
        r"output/spade/best.pt: expected the weights of the stage before; found no file.*takes its autoencoder, "
        r"style_transfer, fusion from .+/models/model.pt",
        rounds["said"],
    )


def test_weights_are_named_as_in_the_model(rounds: dict) -> None:
    assert set(rounds["returned"]) == set(rounds["given"])


def test_each_round_trains_an_epoch(rounds: dict) -> None:
    assert rounds["steps"] == [1, 1]
    moved = {
        name.split(".")[0]
        for name, value in rounds["given"].items()
        if not torch.equal(value, rounds["returned"][name])
    }
    assert moved == {"unet", "detail"}


def test_returned_weights_load_and_are_what_is_evaluated(rounds: dict, bundle: Path) -> None:
    untrained(bundle / "configs/inference.json").load_state_dict(rounds["returned"])
    assert all(np.isfinite(rounds["scores"]))
    after_one, after_two, before = rounds["scores"]
    assert len({after_one, after_two, before}) == 3


def test_the_best_model_can_be_asked_for(rounds: dict) -> None:
    assert set(rounds["best"]) == set(rounds["given"])
