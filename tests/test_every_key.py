"""Tests that no key of a config, changed, leaves a stale result behind.

Something is made, a key is changed, and it is asked for once more in the same folder. Either it is made anew, or what
is kept equals what an empty folder would have got: voxels, scores; for trainings the latents and the weights after two
steps. A key is in ``CHANGES`` or, with a reason, in ``EXEMPT``: one that is in neither fails.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from torch import Tensor

from custom.data.datalist import write_datalist
from custom.evaluation.results import Results
from tests.fixtures.brains import save_brain

CONFIGS = Path(__file__).resolve().parents[1] / "bundle" / "configs"
TRAININGS = ("train_autoencoder", "train_spade", "train")
WORKFLOWS = ("inference", "evaluate", *TRAININGS)
MODALITIES = ["t1", "t2"]
TINY = {
    "network_def#autoencoder#channels": [4],
    "network_def#autoencoder#bottleneck#num_embeddings": 16,
    "network_def#autoencoder#bottleneck#data_init": False,
    "network_def#style_transfer#width": 8,
    "network_def#style_transfer#num_blocks": 1,
    "network_def#detail#width": 4,
    "network_def#unet#channels": [8, 8],
    "network_def#unet#attention_levels": [False, True],
    "network_def#unet#norm_num_groups": 4,
    "device": "$torch.device('cpu')",
    "amp": False,
}
OF_TRAINING = {
    "train_autoencoder": {"crop_size": [16, 16, 16], "crops_per_subject": 1, "batch_size": 1},
    "train_spade": {"subjects_per_batch": 1, "pairs_per_subject": 1, "latent_crop": [8, 8, 8]},
    "train": {"subjects_per_batch": 1, "pairs_per_subject": 1, "latent_crop": [4, 4, 4]},
}
SMOOTH = {"_target_": "GaussianSmoothd", "sigma": 1.0}
HALVE = {"_target_": "ScaleIntensityd", "keys": "pred", "minv": None, "maxv": None, "factor": -0.5}

CODE = "finds the package or starts the run; what is computed, and by which objects, the other keys say"
PHANTOMS = {
    "_target_": "custom.data.datalist.load_datalist", "dataset_dir": "{folder}/data", "section": "test",
    "modalities": "@modalities",
}  # fmt: skip
WIRING = "joins the objects of the other keys, each of which is changed by itself"
EXEMPT = {
    **dict.fromkeys(("imports", "bundle_code", "initialize", "run", "inference", "evaluating", "training"), CODE),
    **dict.fromkeys(("bundle_workflow", "bundle_places", "bundle_missing"), CODE),
    "bundle_root": "the folder of the bundle; the paths in it are keys of their own",
    "stage": "of a training: names what its own classes do, for its validation and for presets",
    **dict.fromkeys(("dataset", "evaluator", "train", "validate"), WIRING),
    "provenance": "is the identity itself",
    "store": "is the identity itself",
    "resume": "of a training: asks to go on from what is there",
    **dict.fromkeys(("layout", "pattern"), "which files are a subject's; what is made of files, they do not say"),
    "debug": "whether a traceback is printed",
    "output_format": "of DICOM sources alone; tests/inference/test_inference.py changes it",
}

Change = dict[str, Any] | Callable[[ConfigWorkflow], None]


def with_step(key: str, step: dict[str, Any], *, first: bool = False) -> Callable[[ConfigWorkflow], None]:
    """One more transform behind (or before) those of ``key``, however they are written."""

    def change(workflow: ConfigWorkflow) -> None:
        workflow.parser["former"] = workflow.parser[key]
        workflow.parser[key] = {"_target_": "Compose", "transforms": [step, "@former"] if first else ["@former", step]}

    return change


# changes of a key of any config; those of one config come after
CHANGES: dict[str, Change] = {
    "modalities": {"modalities": MODALITIES[::-1]},
    "num_inference_steps": {"num_inference_steps": 2},
    "num_samples": {"num_samples": 2},
    "spatial_divisor": {"spatial_divisor": 8},
    "volume_size": {"volume_size": [48, 32, 32]},
    "intensity_scale": {"intensity_scale": "brain"},
    "seed": {"seed": 7},
    "pretrained": {"pretrained": "{folder}/other.pt"},
    "amp": {"amp": True},
    "num_workers": {"num_workers": 1},
    "device": {"device": "$torch.device('cpu', 0)"},
    "network_def": {"network_def#unet#num_heads": 2, "network_def#num_inference_steps": 3},
    "network": {"network": "$@network_def.to(@device)"},
    "handlers": {"handlers": []},
    "dataloader": {"dataloader#pin_memory": False},
    "learning_rate": {"learning_rate": 1e-4},
    "final_learning_rate": {"final_learning_rate": 1e-6},
    "warmup_steps": {"warmup_steps": 5},
    "clip_norm": {"clip_norm": 0.1},
    "accumulation_steps": {"accumulation_steps": 2},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "max_epochs": {"max_epochs": 2},
    "val_interval": {"val_interval": 50},
    "checkpoint_interval": {"checkpoint_interval": 1},
    "cache_rate": {"cache_rate": 0.0},
    "cache_workers": {"cache_workers": 1},
    "batch_size": {"batch_size": 2},
    "crop_size": {"crop_size": [16, 16, 32]},
    "crops_per_subject": {"crops_per_subject": 2},
    "image_crop": {"image_crop": [16, 16, 32]},
    "latent_crop": {"latent_crop": [8, 8, 12]},
    "subjects_per_batch": {"subjects_per_batch": 2},
    "pairs_per_subject": {"pairs_per_subject": 2},
    "max_sources": {"max_sources": 1},
    "flip": {"flip": True},
    "augmented_copies": {"augmented_copies": 1},
    "cache_target_like": {"cache_target_like": True, "max_sources": 1},
    "adversarial_start_epoch": {"adversarial_start_epoch": 0},
    "perceptual": {"perceptual": None},
    "ema_momentum": {"ema_momentum": 0.1},
    "image_weight": {"image_weight": 1.0},
    "part_size": {"part_size": 2},
    "trained_parts": {"trained_parts": ["style_transfer"]},
    "pure_noise_share": {"pure_noise_share": 0.1},
    "error_weight": {"error_weight": 0.5},
    "sharpness_weight": {"sharpness_weight": 0.5},
    "ssim_weight": {"ssim_weight": 0.5},
    "fitted_share": {"fitted_share": 0.5},
    "joint": {"joint": True, "image_crop": [16, 16, 16]},
    "joint_training": {"joint_training": "$False"},
    "ema": {"ema#momentum_warmup": 0.5},
    "discriminator_def": {"discriminator_def#channels": 4},
    "discriminator": {"discriminator": "$@discriminator_def.eval()"},
    "optimizer": {"optimizer#weight_decay": 0.5},
    "discriminator_optimizer": {"discriminator_optimizer#weight_decay": 0.5},
    "lr_scheduler": {"lr_scheduler#warmup_multiplier": 0.9},
}
OF_CONFIG: dict[str, dict[str, Change]] = {
    "inference": {
        "version": {"version": "9.9.9"},
        "intensity_scale": {"intensity_scale": "brain", "ckpt_path": "{folder}/brain.pt"},
        "image": {"image": "{folder}/other.nii.gz"},
        "displayable_configs": {"displayable_configs#num_samples": 2},
        "targets": {"targets": ["t1"]},
        "skip_done": {"skip_done": False},
        "dataset_dir": {"dataset_dir": "{folder}/moved"},
        "output_dir": {"output_dir": "{folder}/elsewhere"},
        "ckpt_path": {"ckpt_path": "{folder}/other.pt"},
        "align": {"align": True},
        "uncertainty": {"uncertainty": True},
        "preprocessing": with_step("preprocessing", {**SMOOTH, "keys": "image"}),
        "postprocessing": with_step("postprocessing", HALVE, first=True),
        "inferer": {"inferer#seed": 5},
    },
    "evaluate": {
        "intensity_scale": {"intensity_scale": "brain", "ckpt_path": "{folder}/brain.pt"},
        "sources": {"sources": ["t1"]},
        "scored_pairs": {"scored_pairs": [["t1", "t2"]]},
        "methods": {"methods": ["copy-source"]},
        "set_sizes": {"set_sizes": []},
        "section": {"section": "training"},
        "max_subjects": {"max_subjects": 1},
        "lookup_subjects": {"lookup_subjects": 1},
        "num_figures": {"num_figures": 0},
        "pairs": {"pairs": [["t2", "t1"]]},
        "viewer_megabytes": {"viewer_megabytes": 1},
        "segmenter": {"segmenter": "{segmenter}", "segmenter_modalities": MODALITIES},
        "segmenter_modalities": {"segmenter_modalities": MODALITIES},
        "segmenter_model": {"segmenter_model#bundle": "{segmenter}", "segmenter_modalities": MODALITIES},
        "resume": {"resume": False},
        "dataset_dir": {"dataset_dir": "{folder}/moved"},
        "output_dir": {"output_dir": "{folder}/elsewhere"},
        "ckpt_path": {"ckpt_path": "{folder}/other.pt"},
        "preprocessing": with_step("preprocessing", {**SMOOTH, "keys": "@modalities"}),
        "baselines": {"baselines#max_subjects": 1},
        "inferer": {"inferer#num_samples": 2},
    },
    "train_autoencoder": {
        "phantom_share": {"phantom_share": 0.5, "train#dataset#data#phantoms": PHANTOMS},
        "objective": {"objective#perceptual_weight": 0.5},
        "train": {"train#dataloader#shuffle": False},
    },
    "train_spade": {
        "objective": {"objective#latent#cycle_weight": 1.0},
        "autoencoder_path": {"autoencoder_path": "{folder}/other.pt"},
        "intensity_scale": {"intensity_scale": "brain", "autoencoder_path": "{folder}/brain.pt"},
    },
    "train": {
        "objective": {"objective#pure_noise_share": 0.5},
        "spade_path": {"spade_path": "{folder}/other.pt"},
        "intensity_scale": {"intensity_scale": "brain", "spade_path": "{folder}/brain.pt"},
    },
}
for _name in TRAININGS:
    OF_CONFIG[_name] |= {
        "dataset_dir": {"dataset_dir": "{folder}/moved"},
        "output_dir": {"output_dir": "{folder}/elsewhere"},
        "cache_dir": {"cache_dir": "{folder}/elsewhere/latents"},
        "stage_dir": {"stage_dir": "{folder}/elsewhere/stage"},
        "ckpt_path": {"ckpt_path": "{folder}/elsewhere/model.pt"},
        "validate": {"validate#inferer#seed": 7},
    }
    if _name != "train_autoencoder":
        OF_CONFIG[_name]["phantom_share"] = {"phantom_share": 0.5, "train#dataset#phantoms": PHANTOMS}
        OF_CONFIG[_name]["train"] = with_step("train#preprocessing", {**SMOOTH, "keys": "@modalities"})
# for these nothing may be made anew
KEPT = {
    "inference": {"align", "version", "num_workers", "device", "handlers", "dataloader", "dataset_dir"},
    "evaluate": {
        "num_figures",
        "pairs",
        "viewer_megabytes",
        "num_workers",
        "device",
        "handlers",
        "dataloader",
        "dataset_dir",
    },
}
# keys of the trainings with which latents are made anew, or the network or the objective as a whole is another; all
# others, changed, leave the latents as they are
ALONE = {
    *("amp", "modalities", "spatial_divisor", "volume_size", "flip", "joint", "joint_training", "cache_target_like"),
    *("augmented_copies", "phantom_share", "intensity_scale"),
    *("train", "network", "network_def", "objective", "autoencoder_path", "spade_path", "output_dir", "cache_dir"),
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore:parsing metadata:UserWarning"),
    pytest.mark.filterwarnings("ignore:Default metadata file:UserWarning"),
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),
]


def keys_of(name: str) -> list[str]:
    return [key for key in json.loads((CONFIGS / f"{name}.json").read_text()) if not key.startswith("_")]


def changed_keys(name: str) -> list[str]:
    return [key for key in keys_of(name) if key in OF_CONFIG[name] or (key in CHANGES and key not in EXEMPT)]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_key_is_listed(name: str) -> None:
    unlisted = [key for key in keys_of(name) if key not in EXEMPT and key not in changed_keys(name)]
    assert unlisted == [], f"{name}.json: say in CHANGES how these keys are changed, or in EXEMPT why they are not"


def test_nothing_else_is_listed() -> None:
    everywhere = {key for name in WORKFLOWS for key in keys_of(name)}
    assert {*CHANGES, *EXEMPT} <= everywhere
    for name in WORKFLOWS:
        assert {*OF_CONFIG[name], *KEPT.get(name, ())} - {*keys_of(name)} <= {"cache_dir", "ckpt_path"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a data set and a copy of it, weights of two networks, and a scan; tests may add to it."""
    folder, hook = tmp_path_factory.mktemp("made"), sys.excepthook
    entries = [
        {
            "subject": f"s{seed}",
            **{m: str(save_brain(folder / f"data/s{seed}_{m}.nii.gz", m, seed)) for m in MODALITIES},
        }
        for seed in range(5)
    ]
    split = {"training": entries[:2], "validation": entries[2:3], "test": entries[3:]}
    write_datalist(folder / "data" / "datalist.json", split, MODALITIES)
    shutil.copytree(folder / "data", folder / "moved")
    for number, name in enumerate(("model", "other")):
        torch.manual_seed(number)
        network = workflow("inference", folder, {}).parser.get_parsed_content("network_def")
        torch.save(network.state_dict(), folder / f"{name}.pt")
        torch.save(network.state_dict() | {"intensity_scale": torch.tensor(1)}, folder / "brain.pt")
        shutil.copy(folder / f"data/s{number}_t1.nii.gz", folder / f"{'scan' if number == 0 else name}.nii.gz")
    yield folder
    sys.excepthook = hook


def workflow(name: str, folder: Path, change: Change, **overrides: Any) -> ConfigWorkflow:
    """A workflow on the data of ``folder``; what ``change`` says comes last."""
    values = {"bundle_root": str(CONFIGS.parent), "dataset_dir": str(folder / "data"), **TINY}
    if name in TRAININGS:
        weights = {"train_spade": "autoencoder_path", "train": "spade_path"}
        values |= {"max_epochs": 1, "val_interval": 100, "cache_workers": 0, "warmup_steps": 1, **OF_TRAINING[name]}
        values |= {weights[name]: str(folder / "model.pt")} if name in weights else {}
    else:
        values |= {"ckpt_path": str(folder / "model.pt"), "run": ["$@evaluator.run()"]}
        values |= {"image": str(folder / "scan.nii.gz")} if name == "inference" else {"handlers": []}
    values |= overrides
    if isinstance(change, dict):
        values |= json.loads(json.dumps(change).replace("{folder}", str(folder)).replace("{segmenter}", str(folder)))
    created = ConfigWorkflow(
        str(CONFIGS / f"{name}.json"), logging_file=False, workflow_type="train" if name in TRAININGS else "infer",
        run_id={"inference": "inference", "evaluate": "evaluating"}.get(name, "training"), **values,
    )  # fmt: skip
    if not isinstance(change, dict):
        change(created)
    created.initialize()
    return created


def change_of(name: str, key: str, segmenter: Path | None = None) -> Change:
    change = OF_CONFIG[name].get(key, CHANGES.get(key))
    if isinstance(change, dict) and segmenter is not None:
        return {k: v.replace("{segmenter}", str(segmenter)) if isinstance(v, str) else v for k, v in change.items()}
    return change


@pytest.fixture(scope="module")
def translated(made: Path) -> Path:
    workflow("inference", made, {}, output_dir=str(made / "translated")).run()
    return made / "translated"


@pytest.mark.parametrize("key", [None, *changed_keys("inference")])
def test_no_translation_is_stale(made: Path, translated: Path, tmp_path: Path, key: str | None) -> None:
    change = {} if key is None else change_of("inference", key)
    shutil.copytree(translated, tmp_path / "kept")
    again = workflow("inference", made, change, output_dir=str(tmp_path / "kept"))
    pending = len(again.parser.get_parsed_content("dataset"))
    assert not (pending and (key is None or key in KEPT["inference"]))
    if pending == 0:
        workflow("inference", made, change, output_dir=str(tmp_path / "fresh")).run()
        kept, fresh = (
            {p.name: nib.load(p).get_fdata() for p in (tmp_path / n).glob("*.nii.gz")} for n in ("kept", "fresh")
        )
        assert kept.keys() == fresh.keys()
        for name in fresh:
            np.testing.assert_array_equal(kept[name], fresh[name])


@pytest.fixture(scope="module")
def evaluated(made: Path) -> Path:
    workflow("evaluate", made, {}, output_dir=str(made / "evaluated")).run()
    return made / "evaluated"


@pytest.mark.slow
@pytest.mark.parametrize("key", [None, *changed_keys("evaluate")])
def test_no_score_is_stale(
    made: Path, evaluated: Path, segmenter_bundle: Path, tmp_path: Path, key: str | None
) -> None:
    change = {} if key is None else change_of("evaluate", key, segmenter_bundle)
    shutil.copytree(evaluated, tmp_path / "kept")
    again = workflow("evaluate", made, change, output_dir=str(tmp_path / "kept"))
    store, entries = (again.parser.get_parsed_content(part) for part in ("store", "dataset"))
    known = [store.known(entry) for entry in entries.data]
    assert all(known) or not (key is None or key in KEPT["evaluate"])
    if any(known):
        workflow("evaluate", made, change, output_dir=str(tmp_path / "fresh")).run()
        for result in filter(None, known):
            fresh = Results(tmp_path / "fresh").load(result.subject)
            assert result.rows
            for part in ("rows", "dice", "uncertainty", "notes"):
                assert getattr(result, part) == getattr(fresh, part), part


def train(name: str, folder: Path, change: Change, output: Path) -> tuple[list[Path], dict[str, Tensor]]:
    """Files of the latents, and latents, images and weights after the training's two steps."""
    overrides = {"output_dir": str(output)}
    if name == "train":
        overrides["ckpt_path"] = str(output / "model.pt")
    training = workflow(name, folder, change, **overrides)
    training.run()
    found = dict(training.parser.get_parsed_content("network").state_dict())
    files = []
    for number, subject in enumerate(training.parser.get_parsed_content("train#dataset").data):
        for part in {"latents", "images", "target_like"} & subject.keys():
            files.append(Path(subject[part].path))
            found |= {f"{part} {number}.{i}": subject[part].read(i) for i in range(subject[part].shape[0])}
    return files, found


@pytest.fixture(scope="module")
def trained(made: Path) -> Callable[[str], Path]:
    done: dict[str, Path] = {}

    def train_once(name: str) -> Path:
        if name not in done:
            done[name] = made / "trained" / name
            train(name, made, {}, done[name])
        return done[name]

    return train_once


def together(name: str) -> list[tuple[str, ...]]:
    """The keys of a training, by sixes those that leave its latents as they are; one that does not fails its six."""
    keys = [key for key in changed_keys(name) if key not in ALONE]
    count = -(-len(keys) // 6)
    return [(key,) for key in changed_keys(name) if key in ALONE] + [tuple(keys[i::count]) for i in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "keys"), [pytest.param(n, keys, id=f"{n}-{'+'.join(keys)}") for n in TRAININGS for keys in together(n)]
)
def test_no_latent_is_stale(made: Path, trained: Callable, tmp_path: Path, name: str, keys: tuple[str, ...]) -> None:
    changes, used = [change_of(name, key) for key in keys], trained(name)
    change = changes[0] if len(keys) == 1 else {k: v for one in changes for k, v in one.items()}
    before = {*used.rglob("*.npy")}
    files, found = train(name, made, change, used)
    kept = before & {*files}
    assert kept == {*files} or keys[0] in ALONE
    if kept or not files:
        expected = train(name, made, change, tmp_path)[1]
        assert found.keys() == expected.keys()
        for part in expected:
            assert torch.equal(found[part], expected[part]), part
