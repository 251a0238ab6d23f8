"""Tests of bundle/configs/inference.json: from files to files."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.bundle.properties import InferProperties
from monai.transforms import SaveImaged
from scipy import ndimage

from custom.data.names import sidecar_of
from custom.data.readers import read_volume
from custom.inference.provenance import read_provenance, translation_record
from custom.inference.saver import save_synthetic
from custom.networks.translator import RANGE
from custom.utils.errors import find_user_error
from custom.utils.identity import weights_digest
from tests.fixtures.translation import written

CONFIG = Path(__file__).resolve().parents[2] / "bundle" / "configs" / "inference.json"
LAS = np.array([[-2, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1.0]])
LPS = np.array([[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1.5, 0], [0, 0, 0, 1.0]])
RECORD = translation_record("t2", {})
OBLIQUE = np.array([[-1.92, 0.56, 0, 31], [0.56, 1.92, 0, -47], [0, 0, 2, 11.5], [0, 0, 0, 1.0]])  # turned in its plane

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")


def test_config_parses_on_its_own() -> None:
    parser = ConfigParser()
    parser.read_config(str(CONFIG))
    network = parser.get_parsed_content("network_def")
    assert network.num_modalities == len(parser.get_parsed_content("modalities"))
    assert network.spatial_divisor == parser.get_parsed_content("spatial_divisor")
    for key in ("preprocessing", "inferer", "postprocessing"):
        assert callable(parser.get_parsed_content(key))


def test_properties(workflow, write_volume) -> None:
    made = workflow(image=str(write_volume("a.nii.gz")))
    for name in set(InferProperties) - {"key_metric"}:
        assert getattr(made, name) is not None, name


def test_version_is_the_packages() -> None:
    parser = ConfigParser()
    parser.read_config(str(CONFIG))
    project = (CONFIG.parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{parser["version"]}"\n' in project


def test_a_request_parameter_sets_the_target() -> None:
    parser = ConfigParser()
    parser.read_config(str(CONFIG))
    parser["displayable_configs"]["target"] = "flair"
    parser["displayable_configs"]["num_inference_steps"] = "3"
    inferer = parser.get_parsed_content("inferer")
    assert (inferer.targets, inferer.num_steps) == (["flair"], 3)


@pytest.mark.parametrize(
    ("affine", "qform", "sform"), [(LAS, 1, 0), (LPS, 2, 1), (LAS, 0, 4)], ids=["LAS", "LPS", "sform"]
)
def test_output_lies_on_the_sources_grid(workflow, write_volume, head, tmp_path, affine, qform, sform) -> None:
    source = write_volume("scan.v1.nii.gz", affine=affine, qform=qform, sform=sform)
    workflow(image=str(source), targets=["t2", "T1Gd"]).run()
    assert written(tmp_path) == ["scan.v1_t1ce_synthetic.nii.gz", "scan.v1_t2_synthetic.nii.gz"]
    original = nib.load(source)
    for target in ("t1ce", "t2"):
        result = nib.load(tmp_path / "out" / f"scan.v1_{target}_synthetic.nii.gz")
        values = np.asanyarray(result.dataobj)
        assert result.shape == original.shape
        np.testing.assert_array_equal(result.affine, original.affine)
        for field in ("qform_code", "sform_code", "pixdim", "xyzt_units"):
            np.testing.assert_array_equal(result.header[field], original.header[field])
        assert result.get_data_dtype() == values.dtype == np.float32
        assert bytes(result.header["descrip"]).startswith(f"SYNTHETIC {target} from brain_mri".encode())
        assert values.min() == 0
        assert values.max() <= 1
        assert not values[head() == 0].any()
        assert values[head() > 0].any()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")  # of ITK's wrapping
@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_other_formats(workflow, write_volume, tmp_path: Path, suffix: str) -> None:
    import itk

    same = write_volume("in/same.nii.gz", affine=LPS)
    source = tmp_path / "in" / f"scan.{suffix}"
    image = itk.image_from_array(itk.array_from_image(itk.imread(str(same))))
    image.CopyInformation(itk.imread(str(same)))
    itk.imwrite(image, str(source))
    workflow(image=str(source.parent), targets="t2").run()
    expected, result = (nib.load(tmp_path / "out" / f"{name}_t2_synthetic.nii.gz") for name in ("same", "scan"))
    np.testing.assert_allclose(result.affine, expected.affine, atol=1e-6)
    np.testing.assert_array_equal(result.get_fdata(), expected.get_fdata())


@pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")  # of ITK's wrapping
@pytest.mark.parametrize("output_format", ["nifti", "dicom"])
def test_dicom_comes_back_on_its_grid(workflow, write_series, tmp_path: Path, output_format: str) -> None:
    source = write_series("in/study/series.1", affine=OBLIQUE)
    workflow(image=str(tmp_path / "in"), targets=["t2", "flair"], output_format=output_format).run()
    suffix = ".nii.gz" if output_format == "nifti" else ""
    names = [f"series.1_{target}_synthetic{suffix}" for target in ("flair", "t2")]
    assert written(tmp_path) == names
    original, first = read_volume(source), read_volume(tmp_path / "out" / names[0])
    assert first.shape == original.shape
    np.testing.assert_allclose(first.affine, original.affine, atol=1e-4)  # NIfTI's single precision
    assert not first[original == 0].any()
    assert first[original > 0].any()


@pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")  # of ITK's wrapping
def test_dicom_output_joins_nifti_results(workflow, write_series, tmp_path: Path) -> None:
    """The documented second command, into the folder of the first."""
    source = write_series("series")
    for output_format in ("nifti", "dicom"):
        workflow(image=str(source), targets="t2", output_format=output_format).run()
    assert written(tmp_path) == ["series_t2_synthetic", "series_t2_synthetic.nii.gz"]


def test_dicom_output_of_another_format_is_refused_before_work(workflow, write_volume, tmp_path: Path) -> None:
    source = write_volume("a.nii.gz")
    with pytest.raises(RuntimeError) as caught:
        workflow(image=str(source), output_format="dicom").run()
    assert str(find_user_error(caught.value)).startswith(f"{source}: expected a DICOM series")
    assert written(tmp_path) == []


def test_a_client_that_takes_the_parts_gets_the_same(workflow, write_volume, tmp_path: Path) -> None:
    """The way of MONAI Label: preprocessing, inferer on one item, postprocessing without savers."""
    made = workflow(image=str(write_volume("scan.nii.gz", affine=LAS)), targets="flair")
    made.run()
    saved = nib.load(tmp_path / "out" / "scan_flair_synthetic.nii.gz")
    data = made.preprocessing({"image": str(tmp_path / "scan.nii.gz")})
    data["pred"] = made.inferer(data["image"][None], made.network_def)[0]
    for transform in made.postprocessing.transforms:
        if not isinstance(transform, SaveImaged):
            data = transform(data)
    np.testing.assert_array_equal(data["pred"][0].numpy(), saved.get_fdata())
    np.testing.assert_allclose(data["pred"].affine.numpy(), saved.affine)
    assert written(tmp_path) == ["scan_flair_synthetic.nii.gz"]


def test_folder_is_translated_in_spite_of_faulty_files(workflow, write_volume, head, tmp_path) -> None:
    write_volume("in/a.nii.gz")
    write_volume("in/b.nii.gz", np.stack([head(), head()], axis=-1))
    write_volume("in/c.nii.gz", np.zeros_like(head()))
    write_volume("in/deep/d.nii.gz", head(seed=1))
    with pytest.raises(RuntimeError) as caught:
        workflow(image=str(tmp_path / "in"), targets="t2").run()
    assert written(tmp_path) == ["a_t2_synthetic.nii.gz", "d_t2_synthetic.nii.gz"]
    message = str(find_user_error(caught.value))
    assert message.startswith("2 of 4 files could not be translated")
    assert "b.nii.gz: expected one 3D volume" in message
    assert "c.nii.gz: expected an MRI contrast" in message


@pytest.mark.slow
def test_a_second_run_translates_only_what_is_new_or_changed(workflow, write_volume, head, tmp_path) -> None:
    def run() -> dict[str, int]:
        workflow(image=str(tmp_path / "in"), targets=["t2", "flair"]).run()
        return {p.name: p.stat().st_ino for p in (tmp_path / "out").glob("*.nii.gz")}

    for name in ("a", "b"):
        write_volume(f"in/{name}.nii.gz", head(seed=ord(name)))
    first = run()
    assert run() == first  # a rewritten file has another inode
    write_volume("in/b.nii.gz", head(seed=9))
    write_volume("in/c.nii.gz")
    (tmp_path / "out" / "a_t2_synthetic.nii.gz").write_bytes(b"damaged")
    third = run()
    assert len(third) == 6
    assert not {name for name, inode in first.items() if third[name] == inode}
    torch.save(
        torch.load(tmp_path / "model.pt", weights_only=True) | {"latent_scale": torch.tensor(2.0)},
        tmp_path / "model.pt",
    )
    fourth = run()
    assert all(fourth[name] != third[name] for name in third)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_stopped(workflow, write_volume, head, tmp_path) -> None:
    for name in ("a", "b", "c"):
        write_volume(f"in/{name}.nii.gz", head(seed=ord(name)))
    made = workflow(image=str(tmp_path / "in"), targets="t2")
    translate, calls = made.inferer.__class__.__call__, []

    def interrupted(*args, **kwargs) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return translate(made.inferer, *args, **kwargs)

    made.evaluator.inferer = interrupted
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        made.run()
    assert written(tmp_path) == ["a_t2_synthetic.nii.gz"]
    assert len(workflow(image=str(tmp_path / "in"), targets="t2").dataset) == 2
    workflow(image=str(tmp_path / "in"), targets="t2").run()
    assert written(tmp_path) == [f"{name}_t2_synthetic.nii.gz" for name in "abc"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda h: np.stack([h, h], axis=-1), "expected one 3D volume"),
        (lambda h: np.where(h > 500, np.nan, h), "expected finite intensities"),
        (lambda h: np.ones_like(h), "expected an MRI contrast"),
        (lambda h: h[:4], "expected at least 16×16×16 voxels"),
    ],
    ids=["4d", "nan", "constant", "thin"],
)
def test_bad_volume(workflow, write_volume, head, tmp_path, spoil, message: str) -> None:
    source = write_volume("bad.nii.gz", spoil(head()))
    with pytest.raises(RuntimeError) as caught:
        workflow(image=str(source)).run()
    assert str(find_user_error(caught.value)).startswith(f"{source}: {message}")
    assert written(tmp_path) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"image": "/nowhere/a.nii.gz"}, "/nowhere/a.nii.gz: expected an image"),
        ({"targets": "pet"}, "targets: expected one or more of t1, t1ce, t2, flair; found 'pet'"),
        ({"ckpt_path": "/nowhere/model.pt"}, "/nowhere/model.pt: expected the model's weights"),
        ({"image": None, "dataset_dir": "/nowhere"}, "/nowhere: expected a datalist"),
    ],
    ids=["image", "target", "weights", "data"],
)
def test_bad_arguments(workflow, write_volume, tmp_path, overrides: dict, message: str) -> None:
    made = workflow(image=str(write_volume("a.nii.gz")))
    for key, value in overrides.items():
        made.parser[key] = value
    made.initialize()
    with pytest.raises(RuntimeError) as caught:
        made.run()
    assert str(find_user_error(caught.value)).startswith(message)
    assert written(tmp_path) == []


def test_failed_write_leaves_nothing(write_volume, head, tmp_path, monkeypatch) -> None:
    source = write_volume("a.nii.gz")

    def fail(image: object, path: str) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(nib, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_synthetic(torch.from_numpy(head()), tmp_path / "out" / "a.nii.gz", str(source), {}, RECORD)
    assert written(tmp_path) == []


def test_what_is_in_the_place_of_a_sidecar_stays(write_volume, head, tmp_path) -> None:
    """The sidecar of a scan, as dcm2niix writes it."""
    source, output = write_volume("a.nii.gz"), tmp_path / "out" / "b.nii.gz"
    output.parent.mkdir()
    output.with_name("b.json").write_text('{"EchoTime": 0.1}')
    with pytest.raises(ValueError, match=r"b\.json: expected no file, or that of an earlier translation"):
        save_synthetic(torch.from_numpy(head()), output, str(source), {}, RECORD)
    assert [p.name for p in output.parent.iterdir()] == ["b.json"]
    assert output.with_name("b.json").read_text() == '{"EchoTime": 0.1}'


def test_every_image_says_what_it_is(workflow, write_volume, tmp_path) -> None:
    source = write_volume("scan.nii.gz")
    workflow(image=str(source), targets=["t2", "flair"], seed=5, num_samples=2).run()
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    for target in ("t2", "flair"):
        image = tmp_path / "out" / f"scan_{target}_synthetic.nii.gz"
        record = json.loads(sidecar_of(image).read_text(encoding="utf-8"))
        assert record == read_provenance(image)
        assert record["Synthetic"] is True
        assert record["GeneratedBy"][0]["Name"] == "brain_mri_modality_translation"
        assert record["GeneratedBy"][0]["Version"] in record["Description"]
        assert (record["Target"], record["Seed"], record["Samples"], record["Steps"]) == (target, 5, 2, 2)
        assert record["Sources"] == ["scan.nii.gz"]
        assert record["SourceSHA"] == hashlib.sha256(source.read_bytes()).hexdigest()
        assert record["WeightsSHA"] == weights_digest({k: v for k, v in state.items() if k != RANGE})
        assert str(tmp_path) not in json.dumps(record)


def test_a_missing_sidecar_is_written_again(workflow, write_volume, tmp_path) -> None:
    source = write_volume("scan.nii.gz")
    workflow(image=str(source), targets="t2").run()
    image = tmp_path / "out" / "scan_t2_synthetic.nii.gz"
    before, content = image.stat().st_ino, sidecar_of(image).read_text()
    sidecar_of(image).unlink()
    workflow(image=str(source), targets="t2").run()
    assert image.stat().st_ino == before
    assert json.loads(sidecar_of(image).read_text()) == json.loads(content)


@pytest.mark.slow
def test_one_line_on_the_terminal(tmp_path: Path) -> None:
    """A user's mistake ends with one line and a failure status, from a working directory that is not the bundle."""
    command = [sys.executable, "-m", "monai.bundle", "run", "inference", "--config_file", str(CONFIG)]
    result = subprocess.run(
        [*command, "--image", "gone.nii.gz"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.rstrip().splitlines()[-1].startswith("error: gone.nii.gz: expected an image or a folder")
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


REAL = ["brats2021_layout/TCGA-DU-7294/TCGA-DU-7294_t1.nii.gz", "ms_mni/patient07/T1_*.nii.gz"]


@pytest.mark.parametrize("pattern", REAL, ids=["LPS", "LAS"])
@pytest.mark.slow
def test_real_scans_come_back_on_their_grid(workflow, shared_data: Path, tmp_path: Path, pattern: str) -> None:
    source = next(shared_data.glob(pattern))
    made = workflow(image=str(source), targets="t1")
    data = made.dataset[0]
    data["pred"] = data["image"].clone()  # a network that changes nothing
    made.postprocessing(data)
    original, result = nib.load(source), nib.load(next((tmp_path / "out").glob("*.nii.gz")))
    assert result.shape == original.shape
    np.testing.assert_array_equal(result.affine, original.affine)
    before, after = (np.asanyarray(i.dataobj, dtype=np.float64) for i in (original, result))
    assert not after[~ndimage.binary_fill_holes(before != 0)].any()  # a cavity without signal is of the brain
    inside = after > 0
    assert np.corrcoef(before[inside], after[inside])[0, 1] > 0.999
