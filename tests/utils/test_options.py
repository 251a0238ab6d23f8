"""Tests of custom.utils.options, and of how the configs and the command line use it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow

from custom.__main__ import COMMANDS, _without_debug, check_words
from custom.commands.workflows import bundle_workflow
from custom.utils import options
from custom.utils.errors import find_user_error
from custom.utils.options import unread_options

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"
WORKFLOWS = ("inference", "evaluate", "train_autoencoder", "train_spade", "train")
pytestmark = [
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore:Default metadata file:UserWarning"),
]


@pytest.fixture(autouse=True)
def own_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # an error replaces it


def workflow(name: str, *overlays: str | Path, **overrides: Any) -> ConfigWorkflow:
    files = [str(CONFIGS / f"{config}.json") for config in (name, *overlays)]
    kind = "train" if name.startswith("train") else "inference"
    return ConfigWorkflow(
        files, logging_file=False, meta_file=str(CONFIGS / "metadata.json"), workflow_type=kind,
        bundle_root=str(CONFIGS.parent), **overrides,
    )  # fmt: skip


def fault(name: str, *overlays: str, **overrides: Any) -> str:
    with pytest.raises((ValueError, RuntimeError)) as caught:
        workflow(name, *overlays, **overrides).initialize()
    error = find_user_error(caught.value)
    assert error is not None, caught.value
    return str(error)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_configs_hold_nothing_that_is_not_read(name: str) -> None:
    assert unread_options(workflow(name)) == []


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_path_number_and_switch_of_a_config_has_a_rule(name: str) -> None:
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    ruled = {*options.PATHS, *options.PATHS_OR_NONE, *options.SWITCHES, *options.WHOLE, *options.WHOLE_OR_NONE}
    ruled |= {*options.SIZES, *options.WHOLE_LISTS, *options.NUMBERS, *options.SWITCHES_OR_AUTO}
    numbers = {
        k
        for k, v in config.items()
        if isinstance(v, int | float) or (isinstance(v, list) and v and isinstance(v[0], int))
    }
    paths = {k for k in config if k.endswith(("_dir", "_path", "_root"))}
    assert (numbers | paths) - ruled == set()


@pytest.mark.parametrize(
    ("name", "key", "meant"),
    [
        ("inference", "images", "image"),
        ("inference", "target", "targets"),
        ("inference", "outputdir", "output_dir"),
        ("inference", "out_dir", "output_dir"),
        ("inference", "input", "image"),
        ("inference", "num_steps", "num_inference_steps"),
        ("inference", "inferer#sed", "inferer#seed"),
        ("inference", "network_def#unet#num_head", "network_def#unet#num_heads"),
        ("inference", "displayable_configs#targets", "displayable_configs#target"),
        ("inference", "max_epochs", None),
        ("evaluate", "max_subject", "max_subjects"),
        ("train", "epochs", "max_epochs"),
        ("train_spade", "lr", "learning_rate"),
        ("train", "train#dataloder", "train#dataloader"),
        ("train", "train#dataloader#dataste", None),
    ],
)
def test_an_option_that_nothing_reads_is_an_error(
    monkeypatch: pytest.MonkeyPatch, name: str, key: str, meant: str | None
) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/monai/bundle/__main__.py", "run", f"--{key}", "1"])
    if key == "train#dataloader#dataste":  # a class of MONAI's by its name alone: MONAI says it
        assert unread_options(workflow(name, **{key: 1})) == []
        return
    said = fault(name, **{key: 1})
    assert said.startswith(f"--{key}: expected")
    assert said.endswith(f"Did you mean --{meant}?") or meant is None


def test_what_clients_and_overlays_add_is_known(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text(
        json.dumps({"mine": {"a": 1}, "handlers": "%mine", "_note_": "x", "finalize": []})
    )
    added = {"run_name": "site_1", "experiment_name": "e", "tracking_uri": "u", "save_execute_config": False}
    made = workflow("inference", CONFIGS.parent / str((tmp_path / "own.json").with_suffix("")), **added)
    made.parser.parse()  # as initialize does: macros become copies
    assert unread_options(made) == []
    for preset in ("preset_paper", "preset_release"):
        for stage in ("train_autoencoder", "train_spade", "train"):
            assert unread_options(workflow(stage, preset)) == []


@pytest.mark.parametrize("key", ["network_def#detail", "pretrained"])
def test_null_on_the_command_line_is_said_to_be_a_text(key: str) -> None:
    assert f"--{key}: expected a value; found the word 'null'" in fault("train", **{key: "null"})


def test_a_key_of_another_config_is_an_error_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/monai/bundle/__main__.py", "run", "--crop_size", "[32,32,32]"])
    assert "found a key of preset_paper.json" in fault("train", crop_size=[32, 32, 32])
    monkeypatch.setattr(sys, "argv", ["/x/monai/bundle/__main__.py", "run", "--fitted_share", "0.5"])
    said = fault("train_autoencoder", fitted_share=0.5)
    assert said.endswith(
        "found a key of real_diffusion.json, real_spade.json, train.json, train_spade.json. Leave it out, or run a "
        "config that has it."
    )


@pytest.mark.parametrize(
    ("name", "key", "value", "said"),
    [
        ("inference", "image", "", "image: expected a file or a folder; found an empty path"),
        ("inference", "image", ["a.nii", " "], "image: expected a file or a folder; found an empty path"),
        ("inference", "image", 5, "image: expected a file or a folder; found the number 5"),
        ("inference", "output_dir", 202101, "--output_dir ./202101"),
        ("inference", "output_dir", None, "output_dir: expected a file or a folder; found None"),
        ("inference", "dataset_dir", "", "dataset_dir: expected a file or a folder; found an empty path"),
        ("train", "spade_path", True, "spade_path: expected a file or a folder; found True"),
        ("inference", "device", "gpu", "device: expected cpu, cuda or cuda:N; found 'gpu'"),
        ("inference", "device", "cuda:99", "device: expected one that is here; found 'cuda:99'"),
        ("inference", "seed", "many", "seed: expected a whole number from 0"),
        ("inference", "num_samples", 0, "num_samples: expected a whole number from 1"),
        ("inference", "num_workers", -1, "num_workers: expected a whole number from 0"),
        ("inference", "skip_done", "maybe", "skip_done: expected true or false; found 'maybe'"),
        ("inference", "amp", "maybe", "amp: expected true, false or auto; found 'maybe'"),
        ("inference", "debug", "maybe", "debug: expected true or false"),
        ("train", "max_epochs", 0, "max_epochs: expected a whole number from 1"),
        ("train", "max_epochs", 1.5, "max_epochs: expected a whole number from 1"),
        ("train", "learning_rate", "fast", "learning_rate: expected a number from 0 to 1; found 'fast'"),
        ("train", "learning_rate", -1, "learning_rate: expected a number from 0 to 1; found -1"),
        ("train", "learning_rate", float("nan"), "learning_rate: expected a number from 0 to 1; found nan"),
        ("evaluate", "set_sizes", [1, 2], "set_sizes: expected a whole number from 2 to 16; found 1"),
        ("train_autoencoder", "crop_size", [32, 0, 32], "crop_size: expected a whole number from 1"),
        ("train_autoencoder", "cache_rate", 2, "cache_rate: expected a number from 0 to 1; found 2"),
        ("evaluate", "max_subjects", 0, "max_subjects: expected a whole number from 1"),
    ],
)
def test_a_value_that_cannot_be_meant_is_an_error(name: str, key: str, value: Any, said: str) -> None:
    assert said in fault(name, **{key: value})


def test_an_image_that_is_asked_for_is_no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    workflow("inference", image=None).initialize()
    monkeypatch.setattr(sys, "argv", ["/x/monai/bundle/__main__.py", "run", "--image", "None"])
    assert "image: expected a file or a folder; found None" in fault("inference", image=None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prepar"], "prepar: expected a command; found none. Did you mean prepare?"),
        (["prepare", "--rot", "x"], "--rot: expected a flag of prepare; found none. Did you mean --root?"),
        (["package", "--weight=x"], "--weight: expected a flag of package; found none. Did you mean --weights?"),
        (["export-weights", "unet", "o.pt", "--conf", "x"], "Did you mean --config?"),
        (["package", "dist", "model.pt", "more"], "package: expected flags; found 'more' alone"),
        (["report", "dir", "--zzz"], "--zzz: expected a flag of report; found none. There are --output_dir."),
    ],
)
def test_a_misspelt_command_or_flag_is_refused_before_anything_runs(words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        check_words(words)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        [], ["--help"], ["package", "--help"], ["package", "--", "--help"],
        ["prune-latents", "dir", "--unused_days", "0"],
        ["summary", "--size", "192", "192", "144"], ["prepare", "--root", "x", "--split", "0.8", "0.1", "0.1"],
        ["prepare", "--root=x", "--nostrict"], ["demo", "--amp", "true"], ["phantom", "out", "-s", "3"],
        ["phantom", "--out", "x", "--spacing", "-1"], ["package", "-o", "dist"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_fire_takes_is_let_pass(words: list[str]) -> None:
    if words[-2:] == ["-s", "3"]:  # of subjects, seed, spacing: Fire refuses it as well
        with pytest.raises(ValueError, match="-s"):
            check_words(words)
    else:
        check_words(words)


@pytest.mark.parametrize(
    ("name", "part", "advice"),
    [
        ("inferrer#seed", "inferrer", "Did you mean --inferer?"),
        ("network_def#unett#num_heads", "network_def#unett", "Did you mean --network_def#unet?"),
        ("train#handlers#99#interval", "train#handlers#99", "Did you mean --train#handlers#"),
        ("seed#first", "seed", ""),
    ],
)
def test_a_misspelt_part_of_a_nested_key_is_refused(name: str, part: str, advice: str) -> None:
    with pytest.raises(
        ValueError, match=f"--{part}: expected an entry that holds others, for --{name}; found none. {advice}"
    ):
        bundle_workflow("train" if name.startswith("train") else "inference", {name: 3})


def test_debug_belongs_to_every_command() -> None:
    assert _without_debug(["package", "--debug", "true", "--out", "x"]) == (["package", "--out", "x"], "true")
    assert _without_debug(["package", "--debug=false"]) == (["package"], "false")
    assert _without_debug(["package", "--debug", "--out", "x"]) == (["package", "--out", "x"], True)
    assert _without_debug(["package"]) == (["package"], False)
    assert all(name.replace("-", "_") == name for name in COMMANDS)


@pytest.mark.parametrize("form", ["{}", "--config_file={}"])
def test_a_whole_config_comes_first(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    names = [str(CONFIGS / f"{name}.json") for name in ("real_spade", "train_spade")]
    program = str(Path("monai", "bundle", "__main__.py"))
    for files, fine in ((names, False), (names[::-1], True)):
        words = [form.format(files)] if "=" in form else ["--config_file", form.format(files)]
        monkeypatch.setattr(sys, "argv", [program, "run", "training", *words])
        if fine:
            options._check_order()
        else:
            with pytest.raises(ValueError, match=r"expected train_spade.json first, .* found it after real_spade.json"):
                options._check_order()
