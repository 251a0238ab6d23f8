"""The modalities of the configs: those of the data set's datalist, the usual four without one, or what is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from custom.data.datalist import vocabulary, write_datalist
from custom.utils.modalities import BRATS_MODALITIES

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"
WORKFLOWS = ("train_autoencoder", "train_spade", "train", "evaluate", "inference")
every_workflow = pytest.mark.parametrize("workflow", WORKFLOWS)


def parse(workflow: str, **values: object) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / f"{workflow}.json"))
    parser.update({"bundle_root": str(CONFIGS.parent), **values})
    return parser


@pytest.fixture
def with_ct(tmp_path: Path) -> Path:
    write_datalist(tmp_path / "datalist.json", {}, ["t1", "ct"])
    return tmp_path


@every_workflow
def test_of_the_datalist(workflow: str, with_ct: Path) -> None:
    parser = parse(workflow, dataset_dir=str(with_ct))
    assert parser.get_parsed_content("modalities") == ["t1", "ct"]
    assert parser.get_parsed_content("network_def#num_modalities") == 2
    if workflow == "evaluate":
        assert parser.get_parsed_content("preprocessing").transforms[0].keys == ("t1", "ct", "seg")
    if workflow == "inference":
        assert parse(workflow, dataset_dir=str(with_ct), targets="ct").get_parsed_content("inferer").targets == ["ct"]


@every_workflow
def test_default(workflow: str, tmp_path: Path) -> None:
    parser = parse(workflow, dataset_dir=str(tmp_path))
    assert parser.get_parsed_content("modalities") == list(BRATS_MODALITIES)


@every_workflow
def test_what_is_asked_for_goes_first(workflow: str, with_ct: Path) -> None:
    parser = parse(workflow, dataset_dir=str(with_ct), modalities=["ct", "t2", "t1"])
    assert parser.get_parsed_content("modalities") == ["ct", "t2", "t1"]
    assert parser.get_parsed_content("network_def#num_modalities") == 3


def test_datalist_of_any_name(with_ct: Path) -> None:
    other = (with_ct / "datalist.json").rename(with_ct / "mine.json")
    assert vocabulary(other) == ["t1", "ct"]
    assert vocabulary(with_ct) == list(BRATS_MODALITIES)
    assert vocabulary(None, ["t1", "PDw"]) == ["t1", "pd"]


def test_no_datalist(tmp_path: Path) -> None:
    (tmp_path / "datalist.json").write_text("[]")
    with pytest.raises(ValueError, match='found no "modalities"'):
        vocabulary(tmp_path)
