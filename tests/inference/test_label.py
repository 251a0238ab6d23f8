"""What the server of MONAI Label does with the bundle's transforms; the real server is run by ``make clients``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import LoadImaged

from custom.data.sets import SOURCES_KEY, sources_of
from custom.inference.inferer import TranslationInferer
from custom.inference.saver import DeclareSyntheticd
from custom.utils.identity import content_digest

INFERENCE = Path(__file__).resolve().parents[2] / "bundle" / "configs" / "inference.json"


def preprocess(path: Path | str, **options: str) -> dict[str, Any]:
    """The preprocessing of a request as MONAI Label 0.8.5 runs it, with its options."""
    parser = ConfigParser()
    parser.read_config(str(INFERENCE))
    parser["displayable_configs"].update(options)
    parser.parse()
    data: dict[str, Any] = {"image": str(path), "image_path": str(path)}
    for transform in parser.get_parsed_content("preprocessing").transforms:
        if isinstance(transform, LoadImaged):
            transform._loader.image_only = False
        data = transform(data)
    return data


def test_a_scan_is_read(label_server, write_volume: Callable) -> None:
    image = preprocess(write_volume("scan.nii.gz"))["image"]
    assert isinstance(image, MetaTensor)
    assert image.ndim == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: np.stack([h, h], axis=-1), "expected one 3D volume with one channel; found 2 volumes"),
        (lambda h: h[:4], "expected at least 16×16×16 voxels"),
        (lambda h: (h > 0).astype(np.float32), "expected an MRI contrast; found only the values 0 and 1"),
        (lambda h: np.where(h > 500, np.nan, h), "expected finite intensities in the brain; found"),
    ],
    ids=["4D", "tiny", "mask", "NaN"],
)
def test_a_bad_scan_is_the_clients_fault(
    label_server, head: Callable, write_volume: Callable, change: Callable, message: str
) -> None:
    path = write_volume("scan.nii.gz", change(head()))
    with pytest.raises(label_server) as raised:
        preprocess(path)
    assert raised.value.status_code == 400
    assert raised.value.detail.startswith("scan.nii.gz: ")  # not where it lies on the server
    assert message in raised.value.detail
    assert str(path.parent) not in raised.value.detail


@pytest.mark.parametrize("content", [b"only text\n", None], ids=["text", "truncated"])
def test_a_damaged_file_is_the_clients_fault(label_server, write_volume: Callable, content: bytes | None) -> None:
    path = write_volume("scan.nii.gz")
    path.write_bytes(content or path.read_bytes()[:2000])
    with pytest.raises(label_server) as raised:
        preprocess(path)
    assert raised.value.status_code == 400
    assert raised.value.detail.startswith("scan.nii.gz: expected a readable 3D image")


def test_an_unknown_scan_is_not_what_lies_in_the_working_directory(
    label_server, write_series: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MONAI Label hands on the path "" for an id that it does not know."""
    monkeypatch.chdir(write_series("series"))
    with pytest.raises(label_server) as raised:
        preprocess("")
    assert raised.value.status_code == 404
    assert raised.value.detail.startswith("image: expected a scan; found no file of that name")


def test_a_fault_of_ours_stays_one(label_server, write_volume: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("custom.data.transforms.read_volume", lambda path: {}[path])
    with pytest.raises(KeyError):
        preprocess(write_volume("scan.nii.gz"))


def test_other_sources_are_named(label_server, write_volume: Callable, head: Callable) -> None:
    files = [write_volume(f"{name}.nii.gz", head(seed=seed)) for seed, name in enumerate(("a", "b", "c"))]
    expected = preprocess(files[1])["image"].shape[1:]
    for names in ("a", " a.nii.gz, b", "a,"):
        image = preprocess(files[1], sources=names)["image"]
        assert sources_of(image.meta) == [str(file) for file in files[:2]]
        assert image.shape == (2, *expected)
    item = prediction()
    item.meta |= {SOURCES_KEY: json.dumps([str(file) for file in files[:2]]), "filename_or_obj": str(files[0])}
    record = declare("t2")({"pred": item, "image_path": str(files[1])})["result"]["provenance"]
    assert record["Sources"] == ["a.nii.gz", "b.nii.gz"]
    assert record["SourceSHA"] == sorted(map(content_digest, map(str, files[:2])))


@pytest.mark.parametrize(
    ("names", "status", "said"),
    [
        ("gone", 404, "sources: expected scans beside a.nii.gz, with commas between their names; found no gone."),
        ("../b", 400, "sources: expected names of scans beside the image; found '../b'."),
        ("copy", 400, "copy.nii.gz: expected another scan than a.nii.gz; found the same content."),
    ],
)
def test_sources_that_cannot_be(
    label_server, write_volume: Callable, head: Callable, names: str, status: int, said: str
) -> None:
    path = write_volume("a.nii.gz")
    write_volume("copy.nii.gz")
    with pytest.raises(label_server) as raised:
        preprocess(path, sources=names)
    assert raised.value.status_code == status
    assert raised.value.detail.startswith(said)


def test_elsewhere_sources_are_a_list(write_volume: Callable) -> None:
    with pytest.raises(ValueError, match="Name several sources as a list"):
        preprocess(write_volume("a.nii.gz"), sources="b")


def prediction() -> MetaTensor:
    return MetaTensor(torch.zeros(1, 4, 4, 4), meta={"descrip": "scanner"})


def declare(targets: str | list[str]) -> DeclareSyntheticd:
    return DeclareSyntheticd("pred", TranslationInferer(targets, seed=4), version="1")


def test_the_answer_says_that_it_is_synthetic(label_server, write_volume: Callable) -> None:
    item = prediction()
    item.meta["filename_or_obj"] = str(write_volume("scan.one.nii"))
    answer = declare("T2w")({"pred": item, "image_path": "/studies/scan.one.nii"})
    assert answer["result_extension"] == "_t2_synthetic.nii"
    assert answer["result"]["synthetic"] is True
    assert answer["result"]["description"] == "SYNTHETIC t2 from brain_mri_modality_translation v1"
    record = json.loads(json.dumps(answer["result"]["provenance"]))  # as it is sent
    assert (record["Seed"], record["Target"], record["Sources"]) == (4, "t2", ["scan.one.nii"])
    assert record["SourceSHA"] == content_digest(item.meta["filename_or_obj"])
    assert answer["pred"].meta["descrip"] == answer["result"]["description"]


@pytest.mark.parametrize(
    ("asked", "suffix"),
    [({"result_extension": ".nrrd", "image_path": "a.nii"}, ".nrrd"), ({"image_path": "/series"}, ".nii.gz")],
    ids=["as asked", "of a DICOM series"],
)
def test_suffix_of_the_answer(label_server, asked: dict, suffix: str) -> None:
    assert declare("t2")({"pred": prediction(), **asked})["result_extension"] == f"_t2_synthetic{suffix}"


def test_elsewhere_only_the_metadata_says_so() -> None:
    item = declare(["t2", "flair"])({"pred": prediction()})
    assert set(item) == {"pred"}
    assert item["pred"].meta["descrip"] == "SYNTHETIC t2, flair from brain_mri_modality_translation v1"
    assert list(item["pred"].meta["translations"]) == ["t2", "flair"]
