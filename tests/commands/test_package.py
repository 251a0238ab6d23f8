"""The artifact: what is in it, that it is reproducible, what is refused, and the zoo's own checks on it."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path

import jsonschema
import pytest
import torch
from monai.data import MetaTensor
from packaging.specifiers import SpecifierSet

from custom import Translator
from custom.commands import package as package_module
from custom.commands.package import BUNDLE_NAME, REWRITTEN, package
from custom.networks.weights import CARD, compact, read_card, write_card
from custom.rivals import DEaGAN

ROOT = Path(__file__).resolve().parents[2]
PAGE = "custom/reports/assets/report.html.jinja"
SCHEMA = ROOT.parent / "shared" / "schema" / "meta_schema_20240725.json"
needs_weights = pytest.mark.skipif(
    not (ROOT / "bundle" / "models" / "model.pt").is_file(), reason="bundle/models/model.pt is not there; train first"
)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the parts of the repository that are packaged, which a test may spoil."""
    for part in ("bundle/configs", "bundle/models", "bundle/docs", "custom"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "LICENSE", tmp_path)
    monkeypatch.setattr(package_module, "__file__", str(tmp_path / "custom" / "commands" / "package.py"))
    return tmp_path


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    """The unpacked artifact's folder, far from the repository."""
    out = tmp_path_factory.mktemp("artifact")
    with zipfile.ZipFile(package(out)) as archive:
        archive.extractall(out)
    return out / BUNDLE_NAME


@needs_weights
class TestContent:
    def test_holds_the_bundle_and_nothing_else(self, artifact):
        names = {p.relative_to(artifact).as_posix() for p in artifact.rglob("*") if p.is_file()}
        for needed in ("LICENSE", "configs/metadata.json", "configs/inference.json", "models/model.pt", PAGE):
            assert needed in names
        assert {n.split("/")[0] for n in names} <= {"LICENSE", "configs", "models", "docs", "custom"}
        assert not [n for n in names if "__pycache__" in n or n.endswith(".pyc")]

    def test_is_reproducible(self, tmp_path):
        first, second = package(tmp_path / "a"), package(tmp_path / "b")
        assert first.read_bytes() == second.read_bytes()

    def test_version_is_in_the_name_and_changelog(self, tmp_path):
        metadata = json.loads((ROOT / "bundle/configs/metadata.json").read_text())
        assert package(tmp_path).name == f"{BUNDLE_NAME}_v{metadata['version']}.zip"
        assert metadata["version"] in metadata["changelog"]

    def test_weights_are_small_and_tensors_only(self, artifact):
        path = artifact / "models" / "model.pt"
        assert path.stat().st_size < 25_000_000
        state = torch.load(path, weights_only=True)
        assert all(isinstance(v, torch.Tensor) for v in state.values())


@needs_weights
class TestRefusals:
    def test_missing_weights(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
            package(tmp_path / "out", weights=tmp_path / "nowhere.pt")
        assert not (tmp_path / "out").exists()

    def test_misfitting_weights(self, tmp_path):
        torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
        with pytest.raises(ValueError, match="missing tensors"):
            package(tmp_path / "out", weights=tmp_path / "other.pt")

    def test_version_without_changelog(self, copy):
        path = copy / "bundle/configs/metadata.json"
        path.write_text(path.read_text().replace('"version": "0.3.0"', '"version": "9.9.9"'))
        with pytest.raises(ValueError, match=r"9\.9\.9"):
            package(copy / "out")

    def test_second_checkpoint(self, copy):
        (copy / "bundle/models/a.pt").write_bytes(b"")
        with pytest.raises(ValueError, match=r"a\.pt"):
            package(copy / "out")

    @pytest.mark.parametrize("path", ["/data/brats", "../elsewhere", "C:\\data"])
    def test_config_that_points_outside(self, copy, path):
        config = copy / "bundle/configs/inference.json"
        content = json.loads(config.read_text())
        content["dataset_dir"] = path
        config.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="dataset_dir"):
            package(copy / "out")


@needs_weights
class TestZooChecks:
    """The model zoo's verification, from its description; files and changelog: see above.

    Of the network's input, output and export see the documents' commands: tests/test_documents.py with the shipped
    weights, tests/test_clients.py from the zip of a tiny network.
    """

    def test_metadata_fits_the_schema(self, artifact):
        if not SCHEMA.is_file():
            pytest.skip(f"the zoo's schema is not here: {SCHEMA}")
        metadata = json.loads((artifact / "configs/metadata.json").read_text())
        jsonschema.validate(metadata, json.loads(SCHEMA.read_text()))
        assert metadata["schema"].endswith(SCHEMA.name)
        assert list(metadata["network_data_format"]["inputs"]) == ["image"]
        assert list(metadata["network_data_format"]["outputs"]) == ["pred"]

    def test_versions_are_exact_and_those_of_the_project(self, artifact):
        metadata = json.loads((artifact / "configs/metadata.json").read_text())
        named = {"monai": metadata["monai_version"], "torch": metadata["pytorch_version"]}
        named |= metadata["required_packages_version"]
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        for package_name, version in {**named, "numpy": metadata["numpy_version"]}.items():
            assert re.fullmatch(r"\d+(\.\d+)+", version), package_name
        needed = dict(re.findall(r'^ +"([\w-]+)([=<>].+)",$', project, re.MULTILINE))
        for package_name, version in named.items():
            assert version in SpecifierSet(needed[package_name]), package_name


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """The zip of a rival's weights."""
    folder = tmp_path_factory.mktemp("rival")
    torch.manual_seed(0)
    network = DEaGAN(["t1", "t2", "pd"], ("t1", "pd"), halvings=2)
    torch.save(compact(network.state_dict()), folder / "best.pt")
    return package(folder / "out", weights=folder / "best.pt")


class TestRival:
    def test_is_a_bundle_of_its_own(self, packed, tmp_path):
        name = f"{BUNDLE_NAME}_dea_gan"
        assert packed.name.startswith(f"{name}_v")
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(tmp_path)
        configs = {n: json.loads((tmp_path / name / f"configs/{n}.json").read_text()) for n in REWRITTEN}
        expected = {
            "_target_": "custom.rivals.DEaGAN", "_requires_": "@bundle_code", "modalities": ["t1", "t2", "pd"],
            "pair": ["t1", "pd"], "intensity_scale": "percentile", "size": "small", "halvings": 2, "norm": None,
        }  # fmt: skip
        assert configs["inference"]["network_def"] == configs["evaluate"]["network_def"] == expected
        assert configs["inference"]["displayable_configs"]["target"] == "pd"
        assert configs["evaluate"]["scored_pairs"] == [["t1", "pd"]]
        assert "dea_gan, t1 to pd, small" in configs["metadata"]["description"]
        assert "dea_gan, t1 to pd, small" in (tmp_path / name / "docs/README.md").read_text().splitlines()[0]

    def test_translates(self, packed, brain):
        translator = Translator.load(packed)
        scan = MetaTensor(torch.from_numpy(brain("t1").astype("float32")))
        assert translator.modalities == ["t1", "t2", "pd"]
        assert translator(scan, "pd").shape == (1, *scan.shape)
        with pytest.raises(ValueError, match="target: expected pd, the only one that these weights were trained for"):
            translator(scan, "t2")

    def test_unknown_methods_are_refused(self, tmp_path):
        state = DEaGAN(["t1", "t2"], ("t1", "t2"), halvings=2).state_dict()
        card = {**read_card(state), "target": "os.system"}
        torch.save({**state, CARD: write_card(card)}, tmp_path / "odd.pt")
        with pytest.raises(ValueError, match=r"expected weights of one of custom\.rivals\.CycleGAN.*found os\.system"):
            package(tmp_path / "out", weights=tmp_path / "odd.pt")
        assert not (tmp_path / "out").exists()
