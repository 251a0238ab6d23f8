"""The front door for Python gives what the command line writes, whatever form the scan has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

import custom
from custom import Translator
from custom.commands.package import package
from custom.commands.workflows import bundle_workflow
from custom.data.names import sidecar_of
from custom.data.phantom import write_dataset
from custom.inference.provenance import read_provenance

TARGETS = ["t2", "flair"]


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """T1 of a phantom of 6 mm."""
    folder = tmp_path_factory.mktemp("phantom")
    write_dataset(folder, 1, spacing=6.0, progress=False)
    return next(folder.glob("**/*_t1.nii.gz"))


@pytest.fixture(scope="module")
def translator() -> Translator:
    return Translator.load(device="cpu", amp=False)


@pytest.fixture(scope="module")
def written(scan: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, nib.Nifti1Image]:
    """What ``inference.json`` writes."""
    output = tmp_path_factory.mktemp("written")
    values = {
        "image": str(scan),
        "targets": TARGETS,
        "output_dir": str(output),
        "amp": False,
        "device": "$torch.device('cpu')",
    }
    workflow = bundle_workflow("inference", values)
    workflow.initialize()
    workflow.run()
    return {t: nib.load(output / f"{scan.name.removesuffix('.nii.gz')}_{t}_synthetic.nii.gz") for t in TARGETS}


def tensor_of(scan: Path) -> MetaTensor:
    image = nib.load(scan)
    return MetaTensor(torch.from_numpy(image.get_fdata(dtype=np.float32)), affine=torch.from_numpy(image.affine))


def test_a_translator_is_made_by_load() -> None:
    with pytest.raises(TypeError, match=r"found 'model\.pt'\. Translator\.load\(BUNDLE\)"):
        Translator("model.pt")  # type: ignore[arg-type]


@pytest.mark.slow
def test_voxels_of_the_command_line(translator, scan, written):
    found = translator(scan, TARGETS)
    assert list(found) == TARGETS
    for target, image in found.items():
        np.testing.assert_array_equal(image[0].numpy(), written[target].get_fdata(dtype=np.float32))
        np.testing.assert_allclose(image.affine.numpy(), written[target].affine)
        assert image.meta["descrip"].startswith("SYNTHETIC")
    single = translator(str(scan), "FLAIR")
    assert isinstance(single, MetaTensor)
    assert torch.equal(single.as_tensor(), found["flair"].as_tensor())


@pytest.mark.parametrize("form", ["nibabel", "itk", "monai", "monai without channel"])
@pytest.mark.slow
def test_images_in_memory(translator, scan, written, form):
    image = {
        "nibabel": lambda: nib.load(scan),
        "itk": lambda: itk.imread(str(scan)),
        "monai": lambda: tensor_of(scan)[None],
        "monai without channel": lambda: tensor_of(scan),
    }[form]()
    found = translator(image, "t2")
    np.testing.assert_allclose(found.affine.numpy(), written["t2"].affine, atol=1e-4)
    np.testing.assert_array_equal(found[0].numpy(), written["t2"].get_fdata(dtype=np.float32))


@pytest.mark.slow
def test_saved_like_the_command_line(translator, scan, written, tmp_path):
    file = translator.save(translator(scan, "t2"), tmp_path / "new" / "t2.nii.gz")
    saved, like = nib.load(file), written["t2"]
    np.testing.assert_array_equal(saved.get_fdata(), like.get_fdata())
    np.testing.assert_array_equal(saved.affine, like.affine)
    assert bytes(saved.header["descrip"]) == bytes(like.header["descrip"])
    record = read_provenance(file)
    assert record == read_provenance(like.get_filename())
    assert json.loads(sidecar_of(file).read_text()) == record
    with pytest.raises(ValueError, match=r"ends with \.nii or \.nii\.gz; found 't2\.png'"):
        translator.save(translator(scan, "t2"), tmp_path / "t2.png")
    with pytest.raises(ValueError, match="without the mark that it is synthetic"):
        translator.save(tensor_of(scan)[None], tmp_path / "t2.nii.gz")


@pytest.mark.slow
def test_saving_what_must_not_be_saved(translator, scan, tmp_path):
    image = nib.load(scan)
    copied = tmp_path / "copy.nii.gz"
    nib.save(image, copied)
    before = copied.read_bytes()
    with pytest.raises(ValueError, match="expected another file than the scan itself"):
        translator.save(translator(copied, "t2"), copied)
    assert copied.read_bytes() == before
    with pytest.raises(ValueError, match="expected no file, or an earlier translation"):
        translator.save(translator(scan, "t2"), copied)
    assert copied.read_bytes() == before
    with pytest.raises(ValueError, match="Of several targets save one after the other"):
        translator.save(translator(scan, TARGETS), tmp_path / "t2.nii.gz")
    of_memory = translator(tensor_of(scan), "t2")
    saved = nib.load(translator.save(of_memory, tmp_path / "memory.nii"))
    np.testing.assert_allclose(saved.affine, image.affine, atol=1e-4)
    np.testing.assert_array_equal(saved.get_fdata(dtype=np.float32), of_memory[0].numpy())


@pytest.fixture(scope="module")
def pair(scan: Path) -> list[Path]:
    """T1 and FLAIR of the phantom."""
    return [scan, scan.with_name(scan.name.replace("_t1.", "_flair."))]


@pytest.mark.slow
def test_several_sources_of_one_subject(translator, pair, tmp_path):
    found = translator(pair, "t2")
    for image in (pair[::-1], [str(file) for file in pair]):
        assert torch.equal(translator(image, "t2").as_tensor(), found.as_tensor())
    assert not torch.allclose(translator(pair[0], "t2").as_tensor(), found.as_tensor(), atol=1e-3)
    record = read_provenance(translator.save(found, tmp_path / "t2.nii.gz"))
    assert record["Sources"] == sorted(file.name for file in pair)
    with pytest.raises(ValueError, match="expected another file than the scan itself"):
        translator.save(found, pair[1])
    values = {"image": [str(file) for file in pair], "targets": "t2", "output_dir": str(tmp_path / "out")}
    workflow = bundle_workflow("inference", {**values, "amp": False, "device": "$torch.device('cpu')"})
    workflow.initialize()
    workflow.run()
    [written] = (tmp_path / "out").glob("*.nii.gz")
    np.testing.assert_array_equal(nib.load(written).get_fdata(dtype=np.float32), found[0].numpy())
    assert read_provenance(written) == record


@pytest.mark.slow
def test_several_images_in_memory(translator, pair):
    """In an order of their own, which another rounding than that of files comes with."""
    images = [tensor_of(file) for file in pair]
    found = translator(images, "t2")
    assert torch.equal(translator(images[::-1], "t2").as_tensor(), found.as_tensor())
    torch.testing.assert_close(found.as_tensor(), translator(pair, "t2").as_tensor(), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="found the same content"):
        translator([images[0], pair[0]], "t2")


def test_sources_that_cannot_be(translator, pair):
    with pytest.raises(ValueError, match="expected sources of other contrasts than the targets; found flair"):
        translator(pair, ["t2", "flair"])
    with pytest.raises(ValueError, match="expected a file, a list of files or a folder; found none"):
        translator([], "t2")
    with pytest.raises(ValueError, match="uncertainty: expected true or false; found 2"):
        translator(pair, "t2", uncertainty=2)


@pytest.mark.slow
def test_uncertainty(translator, pair, tmp_path, monkeypatch):
    buffers = translator.network.detail.error._buffers
    monkeypatch.setitem(buffers, "trained", torch.zeros(()))
    with pytest.raises(ValueError, match="uncertainty: expected weights whose error map was trained"):
        translator(pair, "t2", uncertainty=True)
    monkeypatch.setitem(buffers, "trained", torch.ones(()))
    found = translator(pair, ["t2", "t1ce"], uncertainty=True)
    plain = translator(pair, "t2")
    assert list(found) == ["t2", "t1ce"]
    assert torch.equal(found["t2"].image.as_tensor(), plain.as_tensor())
    inside = found["t2"].uncertainty[plain > 0]
    assert (inside > 0).all()
    assert 0.005 < inside.median() < 0.3  # of the size that errors have
    assert not found["t2"].uncertainty[plain == 0].any()
    single = translator(pair[0], "t2", uncertainty=True)
    assert single.uncertainty.shape == single.image.shape
    file = translator.save(single.uncertainty, tmp_path / "error.nii.gz")
    assert read_provenance(file)["Quantity"] == "expected absolute error"
    np.testing.assert_array_equal(nib.load(file).get_fdata(dtype=np.float32), single.uncertainty[0].numpy())
    assert "Quantity" not in read_provenance(translator.save(single.image, tmp_path / "image.nii.gz"))


@pytest.mark.slow
def test_the_artifact_serves_too(translator, scan, tmp_path):
    archive = package(tmp_path)
    of_zip = Translator.load(archive, device="cpu", amp=False)
    assert torch.equal(of_zip(scan, "t2").as_tensor(), translator(scan, "t2").as_tensor())


@pytest.mark.slow
def test_settings_of_a_call(translator, scan):
    with pytest.raises(ValueError, match="num_samples: expected a whole number"):
        translator(scan, "t2", num_samples=1.5)
    for setting in ({"nope": 1}, {"device": "cpu"}, {"output_dir": "here"}):
        with pytest.raises(ValueError, match=f"{next(iter(setting))}: expected one of seed, num_samples"):
            translator(scan, "t2", **setting)
    for targets in (None, 2, ["t2", 2]):
        with pytest.raises(ValueError, match="targets: expected a contrast or a list of contrasts"):
            translator(scan, targets)
    for image in (tensor_of(scan).repeat(2, 1, 1, 1), MetaTensor(torch.zeros(4, 4, 4, dtype=torch.complex64))):
        with pytest.raises(ValueError, match="expected one 3D volume with one channel of real numbers"):
            translator(image, "t2")
    with pytest.raises(ValueError, match="'ct'"):
        translator(scan, "ct")
    with pytest.raises(ValueError, match="found ndarray"):
        translator(np.zeros((8, 8, 8), np.float32), "t2")
    with pytest.raises(FileNotFoundError, match=r"missing\.nii"):
        translator("missing.nii", "t2")


def test_where_weights_are_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a bundle's folder .* found nothing there"):
        Translator.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="none of them in the folder"):
        Translator.load(tmp_path)
    (tmp_path / "cut.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"cut\.zip: expected a bundle's zip"):
        Translator.load(tmp_path / "cut.zip")
    with pytest.raises(ValueError, match="expected cpu, cuda or cuda:N; found 'gpu'"):
        Translator.load(device="gpu")
    with pytest.raises(ValueError, match="number_of_samples: expected one of version, image"):
        Translator.load(number_of_samples=2)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            Translator.load(device="cuda")


def test_names_that_the_package_shows():
    assert "Translator" in dir(custom)
    with pytest.raises(AttributeError, match="Translater"):
        custom.Translater  # noqa: B018
    code = "import sys, custom; assert not {'torch', 'monai'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
