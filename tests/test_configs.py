"""Tests of the configs of bundle/configs: what they share, what they read, and that the three trainings chain."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.properties import InferProperties, TrainProperties

from custom.data.datalist import ensure_phantom, read_datalist, write_datalist
from custom.networks.weights import compact, load_weights
from custom.utils.errors import find_user_error

CONFIGS = Path(__file__).resolve().parents[1] / "bundle" / "configs"
STAGES = {
    "train_autoencoder": {"autoencoder"},
    "train_spade": {"style_transfer"},
    "train": {"unet", "detail", "latent_scale", "training_range"},
}
BY_CHANCE = {"fusion"}  # where a step of stage 2 has drawn several sources
FOLDERS = {"train_autoencoder": "autoencoder", "train_spade": "spade", "train": "diffusion"}
WORKFLOWS = (*STAGES, "inference", "evaluate")
PARSED = (*WORKFLOWS, "train_rival")
RUN_IDS = {**dict.fromkeys((*STAGES, "train_rival"), "training"), "inference": "inference", "evaluate": "evaluating"}
# what MONAI and the clients read by its name
READ_BY_NAME = {
    "imports", "initialize", "run", "finalize", "_meta_", "displayable_configs", "channel_def", *RUN_IDS.values(),
    *(p["id"].replace("::", "#") for p in (TrainProperties | InferProperties).values()),
}  # fmt: skip
TINY = {
    "network_def#autoencoder#channels": [8],
    "network_def#style_transfer#width": 8,
    "network_def#style_transfer#num_blocks": 1,
    "network_def#detail#width": 8,
    "network_def#unet#channels": [8, 8, 8],
    "network_def#unet#norm_num_groups": 4,
}
QUICK = {
    "device": "$torch.device('cpu')",
    "max_epochs": 1,
    "val_interval": 1,
    "cache_workers": 0,
    "warmup_steps": 1,
    "amp": "false",
}
OF_STAGE = {
    "train_autoencoder": {"crop_size": [32, 32, 32], "crops_per_subject": 1, "adversarial_start_epoch": 0},
    "train_spade": {"latent_crop": [8, 8, 8], "adversarial_start_epoch": 0, "discriminator_def#num_layers_d": 1},
    "train": {"latent_crop": [8, 8, 8]},
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore:parsing metadata:UserWarning"),
    pytest.mark.filterwarnings("ignore:Default metadata file:UserWarning"),
]


def content(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / f"{name}.json").read_text())


def walk(node: Any) -> Iterator[Any]:
    yield node
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from walk(child)


def references(config: dict[str, Any]) -> set[str]:
    """Everything that is named by ``@id`` in the config, with all its parents."""
    names = set()
    for text in (node for node in walk(config) if isinstance(node, str)):
        for name in re.findall(r"[@%]([A-Za-z_][\w]*(?:(?:#|::)\w+)*)", text):
            parts = name.replace("::", "#").split("#")
            names |= {"#".join(parts[: n + 1]) for n in range(len(parts))}
    return names


SHARED_KEYS = (
    "network_def", "modalities", "spatial_divisor", "volume_size", "intensity_scale", "bundle_root", "device",
)  # fmt: skip


@pytest.mark.parametrize("key", SHARED_KEYS)
def test_what_every_config_declares_is_the_same(key: str) -> None:
    first = content(WORKFLOWS[0])[key]
    for name in WORKFLOWS[1:] if key == "network_def" else PARSED[1:]:
        assert content(name)[key] == first, name


def test_preprocessing_is_the_same_everywhere() -> None:
    """All configs have it from one factory, with the same divisor and size."""
    found = [
        (name, node["preprocessing"])
        for name in PARSED
        for node in walk(content(name))
        if isinstance(node, dict) and isinstance(node.get("preprocessing"), dict)
    ]
    twice = [(name, name) for name in (*STAGES, "train_rival")]
    assert [n for n, _ in found] == [*sum(twice[:3], ()), "inference", "evaluate", *twice[3]]
    for _, node in found:
        assert node["_target_"] == "custom.data.preprocessing.preprocessing"
        settings = {"divisor": "spatial_divisor", "volume_size": "volume_size", "intensity_scale": "intensity_scale"}
        assert {key: node[key] for key in settings} == {key: f"@{name}" for key, name in settings.items()}


def test_the_metadata_names_the_intensity_scale() -> None:
    said = {"percentile": "scaled to [-1, 1] between its percentiles 0.5 and 99.5", "brain": "its brain's median"}
    classes = content("metadata")["image_classes"]
    assert [name for name, text in said.items() if text in classes] == [content("inference")["intensity_scale"]]


@pytest.mark.parametrize("name", PARSED)
def test_every_declared_key_is_read(name: str) -> None:
    config = content(name)
    known = references(config) | READ_BY_NAME
    declared = {key for key in config if key not in ("train", "validate")}
    declared |= {f"{part}#{key}" for part in ("train", "validate") for key in config.get(part, ())}
    assert declared <= known, f"{name}: nobody reads {sorted(declared - known)}"


@pytest.mark.parametrize("name", PARSED)
def test_every_reference_is_declared(name: str) -> None:
    config = content(name)
    for reference in references(config):
        node: Any = config
        for part in reference.split("#"):
            if isinstance(node, str):  # the rest is found in what the reference resolves to
                break
            assert part in node, f"{name}: {reference}"
            node = node[part]


@pytest.mark.parametrize("name", PARSED)
def test_config_parses_and_holds_its_run_id(name: str) -> None:
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / f"{name}.json"))
    parser.parse()
    assert RUN_IDS[name] in parser.get()
    for key in ("modalities", "bundle_root", "dataset_dir", "output_dir", "device"):
        assert parser.get_parsed_content(key), key


class Stage(NamedTuple):
    workflow: ConfigWorkflow
    before: dict[str, torch.Tensor]


class Chain(NamedTuple):
    stages: dict[str, Stage]
    output: Path
    model: Path


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_phantom(tmp_path_factory.mktemp("data") / "phantom", counts=(2, 1, 1), spacing=5.0)


def make_workflow(name: str, data: Path, output: Path, **overrides: Any) -> ConfigWorkflow:
    values = {"bundle_root": str(CONFIGS.parent), "dataset_dir": str(data), "output_dir": str(output)}
    values |= {**QUICK, **TINY, **OF_STAGE[name]}
    if name == "train":
        values["ckpt_path"] = str(output / "models" / "model.pt")
    return ConfigWorkflow(
        str(CONFIGS / f"{name}.json"), logging_file=False, workflow_type="train", run_id="training",
        **{**values, **overrides},
    )  # fmt: skip


def run_stage(name: str, data: Path, output: Path, **overrides: Any) -> Stage:
    workflow = make_workflow(name, data, output, **overrides)
    workflow.initialize()
    network = workflow.parser.get_parsed_content("network")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    workflow.run()
    workflow.finalize()
    return Stage(workflow, before)


@pytest.fixture(scope="module")
def chain(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """One epoch of each of the three trainings, one after the other."""
    output, hook = tmp_path_factory.mktemp("output"), sys.excepthook
    stages = {name: run_stage(name, phantoms, output) for name in STAGES}
    yield Chain(stages, output, output / "models" / "model.pt")
    sys.excepthook = hook


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.slow
def test_training_moves_its_own_part_only(chain: Chain, name: str) -> None:
    stage = chain.stages[name]
    state = stage.workflow.parser.get_parsed_content("network").state_dict()
    moved = {key.split(".")[0] for key, value in state.items() if not torch.equal(value, stage.before[key])}
    assert moved - (BY_CHANCE if name == "train_spade" else set()) == STAGES[name]


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.slow
def test_training_writes_its_files(chain: Chain, name: str) -> None:
    folder = chain.output / FOLDERS[name]
    assert {"best.pt", "last.pt", "losses.csv"} <= {p.name for p in folder.iterdir()}
    assert any(p.name.startswith("events.out.tfevents") for p in folder.iterdir())
    log = (folder / "losses.csv").read_text()
    assert "validation_brain_psnr" in log
    network = chain.stages[name].workflow.parser.get_parsed_content("network_def")
    load_weights(network, folder / "best.pt")


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.slow
def test_training_has_the_properties_that_monai_asks_for(chain: Chain, name: str) -> None:
    assert chain.stages[name].workflow.check_properties() == []


@pytest.mark.slow
def test_frozen_stages_reach_the_model_unchanged(chain: Chain) -> None:
    model = torch.load(chain.model, weights_only=True)
    first = compact(torch.load(chain.output / "autoencoder" / "best.pt", weights_only=True))
    second = compact(torch.load(chain.output / "spade" / "best.pt", weights_only=True))
    for key, value in model.items():
        if key.startswith("autoencoder."):
            assert torch.equal(value, first[key]), key
        if key.startswith(("autoencoder.", "style_transfer.")):
            assert torch.equal(value, second[key]), key
    assert model["latent_scale"] != 1
    assert [p.name for p in chain.model.parent.iterdir()] == ["model.pt"]


@pytest.mark.slow
def test_inference_loads_what_the_trainings_wrote(chain: Chain, phantoms: Path, tmp_path: Path) -> None:
    source = next(phantoms.glob("*/*_t1.nii.gz"))
    workflow = ConfigWorkflow(
        str(CONFIGS / "inference.json"), logging_file=False, workflow_type="inference", run_id="inference",
        bundle_root=str(CONFIGS.parent), ckpt_path=str(chain.model), image=str(source), targets=["t2", "flair"],
        output_dir=str(tmp_path), device="$torch.device('cpu')", **TINY,
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    assert workflow.check_properties() == []
    found = sorted(p.name for p in tmp_path.rglob("*.nii.gz"))
    stem = source.name.removesuffix(".nii.gz")
    assert found == [f"{stem}_flair_synthetic.nii.gz", f"{stem}_t2_synthetic.nii.gz"]


@pytest.mark.slow
def test_training_resumes(chain: Chain, phantoms: Path, tmp_path: Path) -> None:
    (tmp_path / "spade").mkdir()
    for name in ("best.pt", "last.pt", "losses.csv"):
        (tmp_path / "spade" / name).write_bytes((chain.output / "spade" / name).read_bytes())
    best = str(chain.output / "autoencoder" / "best.pt")
    run_stage("train_spade", phantoms, tmp_path, resume="true", max_epochs=2, autoencoder_path=best)
    log = (tmp_path / "spade" / "losses.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log if ",latent," in line] == ["1", "2"]


@pytest.mark.slow
def test_joint_training(chain: Chain, phantoms: Path, tmp_path: Path) -> None:
    stage = run_stage(
        "train_spade", phantoms, tmp_path, joint="true", flip="true", image_crop=[16, 16, 16],
        autoencoder_path=str(chain.output / "autoencoder" / "best.pt"),
    )  # fmt: skip
    state = stage.workflow.parser.get_parsed_content("network").state_dict()
    moved = {key.split(".")[0] for key, value in state.items() if not torch.equal(value, stage.before[key])}
    assert moved == {"autoencoder", "style_transfer"}


@pytest.mark.slow
def test_volumes_smaller_than_the_crop_are_padded(phantoms: Path, tmp_path: Path) -> None:
    workflow = make_workflow("train_autoencoder", phantoms, tmp_path, crop_size=[80, 80, 80], crops_per_subject=1)
    workflow.initialize()
    image = next(iter(workflow.parser.get_parsed_content("train#dataloader")))["image"]
    assert image.shape == (2, 1, 80, 80, 80)
    assert image.min() == -1


def user_error_of(workflow: ConfigWorkflow, part: str) -> str:
    workflow.initialize()
    with pytest.raises((RuntimeError, ValueError, OSError)) as caught:
        workflow.parser.get_parsed_content(part)
    error = find_user_error(caught.value)
    assert error is not None, caught.value
    return str(error)


@pytest.mark.parametrize(("name", "first"), [("train_spade", "train_autoencoder.json"), ("train", "train_spade.json")])
def test_a_run_without_the_stage_before_names_the_training_to_run_first(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, first: str
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # a run replaces it
    workflow = make_workflow(name, phantoms, tmp_path)
    workflow.initialize()
    with pytest.raises((RuntimeError, OSError)) as caught:
        workflow.run()
    assert f"Run the training of {first} first" in str(find_user_error(caught.value))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["train_spade", "train"])
def test_a_set_up_takes_shipped_weights_that_fit_only(phantoms: Path, tmp_path: Path, name: str) -> None:
    message = user_error_of(make_workflow(name, phantoms, tmp_path), "network")
    assert "found no file, and those of the bundle do not fit" in message
    assert "Run the training of the stage before first" in message
    assert list(tmp_path.iterdir()) == []


def test_empty_data_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    message = user_error_of(make_workflow("train_autoencoder", tmp_path / "data", tmp_path / "out"), "train#dataset")
    assert str(tmp_path / "data") in message
    assert [p.name for p in tmp_path.rglob("*")] == ["data"]


def test_entry_with_a_single_modality(phantoms: Path, tmp_path: Path) -> None:
    split = read_datalist(phantoms / "datalist.json")
    modalities = split.pop("modalities")
    lonely = split["training"][0]
    split["training"][0] = {"subject": lonely["subject"], "t1": lonely["t1"]}
    (tmp_path / "data").mkdir()
    write_datalist(tmp_path / "data" / "datalist.json", split, modalities)
    message = user_error_of(make_workflow("train_autoencoder", tmp_path / "data", tmp_path / "out"), "train#dataset")
    assert lonely["subject"] in message
    assert "two or more of t1, t1ce, t2, flair" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["inference", "train"])
def test_each_workflow_finds_its_own_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    workflows = []
    for copy in ("first", "second"):
        shutil.copytree(CONFIGS, tmp_path / copy / "configs")
        file = str(tmp_path / copy / "configs" / f"{name}.json")
        workflows.append(ConfigWorkflow(file, logging_file=False, workflow_type=name))
    monkeypatch.chdir(tmp_path / "second" / "configs")
    workflows.append(ConfigWorkflow(f"{name}.json", logging_file=False, workflow_type=name))
    found = [workflow.parser.get_parsed_content("bundle_root") for workflow in reversed(workflows)]
    assert found == [str(tmp_path / copy) for copy in ("second", "second", "first")]
