"""What the evaluation takes for brain, where the background of the scans is noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader
from monai.transforms import Compose

from custom.evaluation.evaluator import NativeGrid, SubjectDataset, make_reference, prepare_subject
from custom.evaluation.pairwise import PairwiseInferer
from custom.evaluation.rows import CEILING, FULL_MODEL

CONFIG = Path(__file__).parents[2] / "bundle" / "configs" / "evaluate.json"
MODALITIES = ("t1", "t2")
SIZE = 48
RADII = {"t1": 14, "t2": 18}


class Scans(NamedTuple):
    """A subject's files, where its heads are, and the preprocessing of the evaluation."""

    entry: dict[str, str]
    heads: dict[str, torch.Tensor]
    transform: Compose


@pytest.fixture
def scans(tmp_path: Path) -> Scans:
    """Balls in noise that is nowhere zero, as in IXI; padding to 64³ voxels adds more than 5 % of exact background."""
    rng = np.random.default_rng(0)
    distance = np.sqrt(sum((g - SIZE / 2) ** 2 for g in np.meshgrid(*[np.arange(SIZE)] * 3, indexing="ij")))
    entry, heads = {"subject": "a"}, {}
    for name, radius in RADII.items():
        head = distance < radius
        values = np.where(head, rng.uniform(200, 900, head.shape), rng.uniform(1, 20, head.shape))
        entry[name] = str(tmp_path / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(values.astype(np.float32), np.eye(4)), entry[name])
        heads[name] = torch.from_numpy(head)
    parser = ConfigParser()
    parser.read_config(str(CONFIG))
    parser.update({"modalities": list(MODALITIES), "volume_size": [64, 64, 64]})
    return Scans(entry, heads, parser.get_parsed_content("preprocessing"))


def batch_of(scans: Scans) -> dict[str, Any]:
    return prepare_subject(next(iter(DataLoader(SubjectDataset([scans.entry], scans.transform), batch_size=1))))


def test_brain_of_the_truth_is_the_head_and_not_the_noise(scans: Scans) -> None:
    item = scans.transform(scans.entry)
    for name, head in scans.heads.items():
        brain = make_reference(item, name, NativeGrid(item, scans.transform)).masks["brain"]
        assert torch.equal(brain, head), f"{name}: {int(brain.sum())} voxels for a head of {int(head.sum())}"


@pytest.mark.parametrize(("source", "target"), [("t1", "t2"), ("t2", "t1")])
def test_a_prediction_is_masked_by_its_own_source_alone(scans: Scans, toy, source: str, target: str) -> None:
    batch = batch_of(scans)
    to_native = NativeGrid({m: batch[m][0] for m in MODALITIES}, scans.transform)
    found = {(p.method, p.source, p.target): p.image[0] for p in PairwiseInferer(MODALITIES)(batch, toy().eval())}
    for key in ((FULL_MODEL, source, target), (CEILING, source, source)):
        # nothing of the toy's images is background within a head
        shown = to_native(found[key] + 1, source) > 1e-3
        assert (shown & ~scans.heads[source]).sum() == 0
        # the darkest voxels are clipped to the background's value
        assert (shown & scans.heads[source]).sum() > 0.98 * scans.heads[source].sum()
