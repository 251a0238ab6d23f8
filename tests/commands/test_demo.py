from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from custom.commands.demo import PHANTOM_COUNTS, PHANTOM_SEED, demo
from custom.data.datalist import ensure_phantom
from custom.evaluation.rows import METHODS, PAIRED_LOOKUP, SPADE_DECODED, read_rows

CONFIG = Path(__file__).parents[2] / "bundle" / "configs" / "inference.json"


@pytest.fixture
def weights(tmp_path) -> str:
    """Random weights of the default network."""
    parser = ConfigParser()
    parser.read_config(str(CONFIG))
    torch.save(parser.get_parsed_content("network_def").state_dict(), tmp_path / "random.pt")
    return str(tmp_path / "random.pt")


@pytest.mark.slow
def test_demo_translates_scores_and_draws(tmp_path, weights, capsys):
    output = tmp_path / "demo"
    phantoms = ensure_phantom(output / "phantoms", counts=PHANTOM_COUNTS, seed=PHANTOM_SEED, spacing=6.0)
    image = phantoms / "phantom-0000" / "phantom-0000_t2.nii.gz"
    demo(image, output, ckpt_path=weights, device="$torch.device('cpu')")
    rows = read_rows(output / "scores.csv")
    # for several sources, and a part of the model
    assert {r.method for r in rows} == {*METHODS} - {PAIRED_LOOKUP, SPADE_DECODED}
    assert {(r.source, r.target) for r in rows if r.source != r.target} == {("t1", t) for t in ("t1ce", "t2", "flair")}
    assert (output / "demo.png").is_file()
    assert (output / "phantom-0000_t2.png").is_file()
    translation = nib.load(output / "phantom-0000_t2_flair_synthetic.nii.gz")
    assert translation.shape == nib.load(image).shape
    np.testing.assert_allclose(translation.affine, nib.load(image).affine)
    assert not (output / "phantom-0000_t2_t2_synthetic.nii.gz").exists()
    assert "full model" in capsys.readouterr().out


def test_a_missing_image_is_an_error_before_anything_is_made(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.nii"):
        demo(tmp_path / "absent.nii", tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
