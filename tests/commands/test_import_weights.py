"""Tests of custom.commands.import_weights: what it writes, that the configs run with it, and what it refuses."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from torch import Tensor, nn

from custom import __main__ as command_line
from custom.commands.import_weights import Imported, import_weights
from custom.commands.imported_presets import training_preset
from custom.commands.summary import config_folder
from custom.data.datalist import ensure_phantom
from custom.networks.weights import load_weights, read_weights
from custom.training.discriminators import check_crop
from custom.utils.errors import find_user_error
from tests.fixtures.foreign import PACKAGES, Foreign
from tests.fixtures.near import near
from tests.fixtures.release_model import ReleaseModel, made

MODALITIES = ["t1", "t1ce", "t2", "flair"]
AUTOENCODER = {
    "spatial_dims": 3,
    "num_channels": (16, 16, 16),
    "latent_channels": 3,
    "num_res_blocks": 1,
    "norm_num_groups": 4,
    "attention_levels": (False, False, True),
}
QUICK = {
    "device": "$torch.device('cpu')",
    "max_epochs": 1,
    "val_interval": 2,  # nothing is validated: that is tested elsewhere
    "cache_workers": 0,
    "warmup_steps": 1,
    "amp": "false",
    "latent_crop": [8, 8, 8],
}
SMALL_STYLE = {"network_def#style_transfer#width": 8, "network_def#style_transfer#num_blocks": 1}
SMALL_UNET = {
    "network_def#detail#width": 8,
    "network_def#unet#channels": [8, 8, 8],
    "network_def#unet#norm_num_groups": 4,
}
SPADE = {"adversarial_start_epoch": 0, "discriminator_def#num_layers_d": 1}

pytestmark = [
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore:parsing metadata:UserWarning"),
    pytest.mark.filterwarnings("ignore:Default metadata file:UserWarning"),
]


@pytest.fixture(autouse=True)
def hook() -> Iterator[None]:
    """Runs leave their handler of errors behind."""
    before = sys.excepthook
    yield
    sys.excepthook = before


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_phantom(tmp_path_factory.mktemp("data") / "phantom", counts=(2, 1, 1), spacing=5.0)


def workflow(name: str, preset: Path, run_id: str, **values: Any) -> ConfigWorkflow:
    found = ConfigWorkflow(
        [str(config_folder() / f"{name}.json"), str(preset)],
        logging_file=False,
        workflow_type="train" if run_id == "training" else "inference",
        run_id=run_id,
        **{"bundle_root": str(config_folder().parent), "device": "$torch.device('cpu')", **values},
    )
    found.initialize()
    return found


def network_of(preset: Path, config: str = "inference") -> nn.Module:
    parser = ConfigParser()
    parser.read_config([str(config_folder() / f"{config}.json"), str(preset)])
    return parser.get_parsed_content("network_def").eval()


def save_release(path: Path, model: ReleaseModel, **others: Any) -> Path:
    """A checkpoint as the release's training writes it: a discriminator beside the parameters, and other objects."""
    state = {**model.state_dict(), "loss.discriminator.main.0.weight": torch.randn(4, 4)}
    torch.save({"state_dict": state, "epoch": 7, "callbacks": {Path: Path("a")}, **others}, path)
    return path


def import_release(folder: Path, model: ReleaseModel | None = None) -> Imported:
    checkpoint = save_release(folder / "last.ckpt", made() if model is None else model)
    return import_weights("release", checkpoint, folder / "out" / "theirs.pt", MODALITIES)


def import_foreign(made: Foreign, out: Path, source: str, **given: Any) -> Imported:
    settings = {"config": str(made.config), "intensity_range": (0, 1), **given}
    return import_weights(source, made.checkpoint, out, "t1,t1ce,t2,flair", **settings)


class TestRelease:
    def test_files_and_report(self, tmp_path: Path) -> None:
        done = import_release(tmp_path)
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
            "preset_theirs.json",
            "preset_theirs_training.json",
            "theirs.pt",
            "theirs_tensors.txt",
        ]
        lines = done.report.read_text().splitlines()
        count = len(made().state_dict())
        assert lines[0] == f"{count} tensors used, 1 ignored, 0 missing"
        assert "ignored\tloss.discriminator.main.0.weight" in lines
        assert "used for style_transfer\tspade.block.3.conv_s.weight" in lines
        assert len(lines) == 1 + count + 1

    @pytest.mark.slow
    def test_network_translates_as_the_release(self, tmp_path: Path) -> None:
        model = made()
        done = import_release(tmp_path, model)
        network = load_weights(network_of(done.preset), done.weights)  # strictly, every tensor of the network
        image, target = torch.rand(2, 1, 16, 24, 16) * 2 - 1, torch.tensor([2, 0])
        expected = model.outputs(image, target)["translation"]
        script = torch.jit.script(network)  # as the zoo exports it
        with torch.no_grad(), torch.jit.optimized_execution(False):
            for found in (network(image, target), script(image, target)):
                near(found, expected)

    def test_inference_translates_at_once(self, tmp_path: Path, write_volume) -> None:
        done = import_release(tmp_path)
        source = write_volume("scan.nii.gz")
        run = workflow(
            "inference", done.preset, "inference", image=str(source), targets=["t1ce", "flair"], amp="false",
            output_dir=str(tmp_path / "translated"),
        )  # fmt: skip
        run.run()
        names = sorted(p.name for p in (tmp_path / "translated").rglob("*.nii.gz"))
        assert names == ["scan_flair_synthetic.nii.gz", "scan_t1ce_synthetic.nii.gz"]
        images = [nib.load(tmp_path / "translated" / name) for name in names]
        assert all(image.shape == nib.load(source).shape for image in images)
        assert np.abs(images[0].get_fdata() - images[1].get_fdata()).max() > 0.01

    def test_sampler_steps_are_refused(self, tmp_path: Path, write_volume) -> None:
        done = import_release(tmp_path)
        run = workflow(
            "inference", done.preset, "inference", image=str(write_volume("scan.nii.gz")), num_inference_steps=4,
            output_dir=str(tmp_path / "translated"),
        )  # fmt: skip
        with pytest.raises(Exception, match=r".*") as caught:
            run.run()
        assert "these weights hold no diffusion" in str(find_user_error(caught.value))
        assert not list(tmp_path.rglob("*synthetic*"))

    def test_order_of_the_modalities_is_stored(self, tmp_path: Path) -> None:
        checkpoint = save_release(tmp_path / "last.ckpt", made())
        done = import_weights("release", checkpoint, tmp_path / "other.pt", "FLAIR,T2,T1Gd,T1")
        for preset in (done.preset, done.training):
            assert json.loads(preset.read_text())["modalities"] == ["flair", "t2", "t1ce", "t1"]

    def test_autoencoder_alone_reconstructs(self, tmp_path: Path, write_volume) -> None:
        model = made()
        state = {k: v for k, v in model.state_dict().items() if not k.startswith("spade.")}
        torch.save({"state_dict": state}, tmp_path / "ae.ckpt")
        done = import_weights("release", tmp_path / "ae.ckpt", tmp_path / "ae.pt", MODALITIES)
        run = workflow(
            "inference", done.preset, "inference", image=str(write_volume("scan.nii.gz")),
            output_dir=str(tmp_path / "out"),
        )  # fmt: skip
        run.run()
        assert [p.name for p in (tmp_path / "out").rglob("*.nii.gz")] == ["scan_reconstruction_synthetic.nii.gz"]
        assert "spade_path" not in json.loads(done.training.read_text())

    @pytest.mark.parametrize(
        ("levels", "crop"), [(3, [36, 48, 36]), (4, [16, 24, 16]), (5, [8, 12, 8]), (6, [8, 8, 8])]
    )
    def test_a_deep_autoencoder_leaves_crops_that_the_discriminator_can_judge(
        self, levels: int, crop: list[int], tmp_path: Path
    ) -> None:
        definitions = {"autoencoder": {"embedding_dim": 4, "channels": [8] * levels}}
        overlay = training_preset(tmp_path / "deep.pt", MODALITIES, definitions, None, None, release=True)
        assert overlay["latent_crop"] == crop
        parser = ConfigParser()
        parser.read_config(str(config_folder() / "train_spade.json"))
        parser["network_def#autoencoder#embedding_dim"] = 4
        check_crop(parser.get_parsed_content("discriminator_def"), "latent_crop", overlay["latent_crop"])

    @pytest.mark.slow
    def test_same_network_in_every_training(self, tmp_path: Path, check_shapes) -> None:
        done = import_release(tmp_path)
        for name in ("train_spade", "train", "inference"):
            parser = ConfigParser()
            parser.read_config([str(config_folder() / f"{name}.json"), str(done.training)])
            with torch.device("meta"):
                translator = parser.get_parsed_content("network_def").eval()
            assert parser.get_parsed_content("spatial_divisor") == translator.spatial_divisor
            check_shapes(translator)


class TestMONAI:
    """Weights of MONAI's packages, from their users' files to a trained translation of ours."""

    @pytest.mark.slow
    def test_a_trained_autoencoder_becomes_a_translation(self, phantoms: Path, tmp_path: Path) -> None:
        """monai-generative's own loop, import, stages 2 and 3 on it, and a scan translated by the result."""
        autoencoder, config = train_elsewhere(phantoms, tmp_path)
        done = import_weights(
            "monai-generative", tmp_path / "autoencoder.pt", tmp_path / "vae.pt", MODALITIES,
            config=str(config), intensity_range=(0, 1),
        )  # fmt: skip
        image = torch.rand(1, 1, 16, 16, 16)
        with torch.no_grad():
            expected = autoencoder.reconstruct(image)
            network = load_weights(network_of(done.preset), done.weights)
            found = (network(2 * image - 1) + 1) / 2
        near(found, expected)

        common = {**QUICK, **SMALL_STYLE, **SMALL_UNET, "dataset_dir": str(phantoms), "output_dir": str(tmp_path / "o")}
        model = tmp_path / "o" / "model.pt"
        moved = train("train_spade", done.training, **common, **SPADE)
        assert {"style_transfer"} <= moved <= {"style_transfer", "fusion"}  # fusion where several sources are drawn
        moved = train("train", done.training, **common, ckpt_path=str(model))
        assert moved == {"unet", "detail", "latent_scale", "training_range"}
        imported, final = read_weights(done.weights), read_weights(model)
        for name, tensor in imported.items():
            if name.startswith("autoencoder."):
                assert torch.allclose(final[name].float(), tensor, atol=1e-3), name
        run = workflow(
            "inference", done.training, "inference", image=str(next(phantoms.glob("*/*_t1.nii.gz"))),
            targets=["t2"], output_dir=str(tmp_path / "translated"), ckpt_path=str(model), **SMALL_STYLE, **SMALL_UNET,
        )  # fmt: skip
        run.run()
        assert len(list((tmp_path / "translated").rglob("*_t2_synthetic.nii.gz"))) == 1

    @pytest.mark.slow
    @pytest.mark.parametrize("source", PACKAGES)
    def test_diffusion_starts_from_an_imported_unet(
        self, source: str, foreign: Callable[..., Foreign], phantoms: Path, tmp_path: Path
    ) -> None:
        done = import_foreign(
            made_ := foreign(source), tmp_path / "ldm.pt", source, unet_checkpoint=made_.unet_checkpoint
        )
        common = {**QUICK, **SMALL_STYLE, "dataset_dir": str(phantoms), "output_dir": str(tmp_path / "o")}
        train("train_spade", done.training, **common, **SPADE)
        run = workflow("train", done.training, "training", **common, ckpt_path=str(tmp_path / "o" / "model.pt"))
        network, imported = run.parser.get_parsed_content("network"), read_weights(done.weights)
        assert all(torch.equal(v, imported[f"unet.{k}"]) for k, v in network.unet.state_dict().items())
        x, t = torch.randn(1, 3, 4, 4, 4), torch.tensor([500])
        with torch.no_grad():
            expected = made_.unet(x, t)
            found = network.predict(x, x, torch.randn_like(x), t, torch.tensor([3]))
        near(found, expected)
        run.run()
        assert not torch.equal(network.unet.conv_in.weight.detach(), imported["unet.conv_in.weight"])

    def test_reconstruction_with_an_imported_unet(self, foreign: Callable[..., Foreign], tmp_path: Path) -> None:
        given = foreign("monai")
        done = import_foreign(given, tmp_path / "ldm.pt", "monai", unet_checkpoint=given.unet_checkpoint)
        network = load_weights(network_of(done.preset), done.weights)
        image = torch.rand(1, 1, 16, 16, 16)
        with torch.no_grad():
            expected = given.autoencoder.reconstruct(image)
            torch.testing.assert_close((network(2 * image - 1) + 1) / 2, expected, rtol=1e-4, atol=1e-4)


def train(name: str, preset: Path, **values: Any) -> set[str]:
    """Run one training; the parts that it has moved."""
    run = workflow(name, preset, "training", **values)
    network = run.parser.get_parsed_content("network")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    run.run()
    run.finalize()
    state = network.state_dict()
    return {key.split(".")[0] for key, value in state.items() if not torch.equal(value, before[key])}


def train_elsewhere(phantoms: Path, folder: Path) -> tuple[nn.Module, Path]:
    """A few steps as in monai-generative's tutorials: L1 and KL, on crops scaled to [0, 1]."""
    torch.manual_seed(0)
    autoencoder = PACKAGES["monai-generative"].AutoencoderKL(**AUTOENCODER)
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=1e-3)
    losses = []
    for step in range(8):
        crop = phantom_crop(phantoms, step)
        reconstruction, mean, sigma = autoencoder(crop)
        divergence = 0.5 * (mean.square() + sigma.square() - sigma.square().log() - 1).sum(dim=(1, 2, 3, 4)).mean()
        loss = nn.functional.l1_loss(reconstruction, crop) + 1e-6 * divergence
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    torch.save(autoencoder.state_dict(), folder / "autoencoder.pt")
    config = folder / "network.json"
    config.write_text(
        json.dumps({"autoencoder": {"_target_": "generative.networks.nets.AutoencoderKL", **AUTOENCODER}})
    )
    return autoencoder.eval(), config


def phantom_crop(phantoms: Path, step: int) -> Tensor:
    files = sorted(phantoms.glob("*/*_t[12].nii.gz"))
    image = torch.from_numpy(nib.load(files[step % len(files)]).get_fdata(dtype=np.float32))
    image = (image / image.quantile(0.995)).clamp(0, 1)
    start = [(n - 24) // 2 for n in image.shape]
    return image[tuple(slice(s, s + 24) for s in start)][None, None]


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    checkpoint = save_release(tmp_path / "last.ckpt", made(), trap=Trap(tmp_path / "mark"))
    done = import_weights("release", checkpoint, tmp_path / "theirs.pt", MODALITIES)
    assert not (tmp_path / "mark").exists()
    load_weights(network_of(done.preset), done.weights)


@pytest.mark.parametrize(
    ("source", "given", "message"),
    [
        ("diffusers", {}, "source: expected one of release, monai, monai-generative; found 'diffusers'"),
        ("release", {}, "expected an autoencoder of the release .* found an AutoencoderKL"),
        ("release", {"modalities": ["t1", "T1"]}, "modalities: expected different names"),
        ("release", {"modalities": []}, "modalities: expected different names"),
        ("release", {"modalities": ["t1", "$exit()"]}, "modalities: expected different names"),
        ("release", {"intensity_range": [0, 1]}, "intensity_range: expected none for --source release"),
        ("monai", {"config": ()}, "config: expected the config with the networks' definitions"),
        ("monai", {"config": "nothing.json"}, "config: expected files at nothing.json; found none"),
        ("monai", {"intensity_range": None}, "intensity_range: expected the range of the images"),
        ("monai", {"intensity_range": [1, 0]}, "intensity_range: expected the range of the images"),
        ("monai", {"conditioning": "source"}, "conditioning: expected with --unet_checkpoint only"),
        ("monai", {"strict": "perhaps"}, "strict: expected true or false; found 'perhaps'"),
        ("monai", {"checkpoint": "nothing.pt"}, "nothing.pt: expected a checkpoint; found no file"),
        ("monai", {"unet_checkpoint": "same"}, "expected a DiffusionModelUNet .* found an AutoencoderKL"),
        ("monai-generative", {}, "missing tensors"),
    ],
)
def test_refusals_write_nothing(
    source: str, given: dict[str, Any], message: str, foreign: Callable[..., Foreign], tmp_path: Path
) -> None:
    made_ = foreign("monai")
    defaults = {"checkpoint": made_.checkpoint, "modalities": MODALITIES}
    if source != "release":
        defaults |= {"config": str(made_.config), "intensity_range": (0, 1)}
    values = {**defaults, **given}
    if values.get("unet_checkpoint") == "same":
        values["unet_checkpoint"] = made_.checkpoint
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        import_weights(source, out=tmp_path / "out" / "file.pt", **values)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float, foreign: Callable[..., Foreign], tmp_path: Path) -> None:
    made_ = foreign("monai")
    state = torch.load(made_.checkpoint, weights_only=True)
    state["post_quant_conv.conv.bias"][0] = value
    torch.save(state, made_.checkpoint)
    with pytest.raises(ValueError, match=r"NaN or infinity in 1 tensors \(post_quant_conv.conv.bias\)"):
        import_foreign(made_, tmp_path / "out" / "file.pt", "monai")
    assert not (tmp_path / "out").exists()


def test_vqvae_is_refused_with_the_reason(foreign: Callable[..., Foreign], tmp_path: Path) -> None:
    made_ = foreign("monai")
    network = PACKAGES["monai"].VQVAE(
        spatial_dims=3, in_channels=1, out_channels=1, channels=(8, 8), num_res_channels=(8, 8), num_res_layers=1,
        downsample_parameters=((2, 4, 1, 1),) * 2, upsample_parameters=((2, 4, 1, 1, 0),) * 2, num_embeddings=16,
        embedding_dim=4,
    )  # fmt: skip
    torch.save(network.state_dict(), made_.checkpoint)
    with pytest.raises(ValueError, match=r"found a VQVAE\. Its residual units have no normalisation"):
        import_foreign(made_, tmp_path / "file.pt", "monai")


def test_the_source_is_not_overwritten(tmp_path: Path) -> None:
    checkpoint = save_release(tmp_path / "last.ckpt", made())
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match="out: expected a file of its own"):
        import_weights("release", checkpoint, checkpoint, MODALITIES)
    assert checkpoint.read_bytes() == before


def test_not_strict_goes_on_with_what_fits(tmp_path: Path) -> None:
    state = made().state_dict()
    del state["decoder.conv_out.bias"]
    torch.save(state, tmp_path / "part.ckpt")
    with pytest.raises(ValueError, match=r"1 missing tensors \(decoder.conv_out.bias\)"):
        import_weights("release", tmp_path / "part.ckpt", tmp_path / "part.pt", MODALITIES)
    done = import_weights("release", tmp_path / "part.ckpt", tmp_path / "part.pt", MODALITIES, strict="false")
    assert done.tensors["autoencoder"].missing == ["decoder.conv_out.bias"]
    assert "missing\tdecoder.conv_out.bias" in done.report.read_text()
    load_weights(network_of(done.preset), done.weights)


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = save_release(tmp_path / "last.ckpt", made())
    command = f"custom import-weights --source release --checkpoint {checkpoint} --out {tmp_path}/theirs.pt"
    monkeypatch.setattr(sys, "argv", [*command.split(), "--modalities", "t1,t1ce,t2,flair"])
    command_line.main()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("tensors used, 1 ignored, 0 missing")
    assert printed[1] == f"Weights: {tmp_path}/theirs.pt"
    assert all(Path(line.partition(": ")[2]).is_file() for line in printed[1:])
